use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    sync::mpsc::{Receiver, sync_channel},
};

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn follow(path: &Path) -> (Tail, Receiver<Line>) {
    let (sender, lines) = sync_channel(1000);
    let tail = Tail::start(Place::Path(path.to_owned()), Box::new(move |line| sender.try_send(line).is_ok())).unwrap();
    (tail, lines)
}

fn next(lines: &Receiver<Line>) -> String {
    String::from_utf8(lines.recv_timeout(SOON).unwrap().bytes).unwrap()
}

fn append(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

#[test]
fn begins_at_the_end_and_waits_for_line_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("error.log");
    fs::write(&path, "old\nhalf").unwrap();
    let (tail, lines) = follow(&path);
    let mut log = append(&path);
    let before = now();
    log.write_all(b" of a line\nfirst\nsec").unwrap();
    let line = lines.recv_timeout(SOON).unwrap();
    assert_eq!(line.bytes, b"first", "the half line is nobody's");
    assert!(line.arrived >= before && line.arrived.since_ns(before) < 80_000_000, "inotify is faster than the nap");
    log.write_all(b"ond\n\n").unwrap();
    assert_eq!((next(&lines).as_str(), next(&lines).as_str()), ("second", ""));
    log.write_all(b"last\n").unwrap();
    assert_eq!(tail.stop().lines, 4, "what is there is read before it stops");
}

#[test]
fn survives_rotation_by_renaming() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("error.log");
    let mut old = append(&path);
    let (tail, lines) = follow(&path);
    old.write_all(b"1\n").unwrap();
    assert_eq!(next(&lines), "1");
    fs::rename(&path, directory.path().join("error.log.1")).unwrap();
    old.write_all(b"2\n").unwrap();
    assert_eq!(next(&lines), "2", "nothing has taken its place yet");
    let mut new = append(&path);
    new.write_all(b"4\n").unwrap();
    assert_eq!(next(&lines), "4");
    old.write_all(b"3\n").unwrap();
    assert_eq!(next(&lines), "3", "a worker has not opened its logs again yet");
    fs::remove_file(&path).unwrap();
    new.write_all(b"5\n").unwrap();
    assert_eq!(next(&lines), "5", "a deleted file is still written to");
    assert_eq!(tail.stop().rotations, 1);
}

#[test]
fn survives_truncation() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("error.log");
    let mut log = append(&path);
    let (tail, lines) = follow(&path);
    log.write_all(b"a longer line\n").unwrap();
    assert_eq!(next(&lines), "a longer line");
    log.set_len(0).unwrap();
    log.write_all(b"new\n").unwrap();
    assert_eq!(next(&lines), "new");
    let statistics = tail.stop();
    assert_eq!(statistics.truncations, 1);
    let (from, to) = statistics.cut_off.unwrap();
    assert!(from < to, "between two readings");
}

#[test]
fn waits_for_a_file_and_cuts_endless_lines() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("error.log");
    let (tail, lines) = follow(&path);
    std::thread::sleep(Duration::from_millis(150));
    assert!(tail.statistics().trouble.is_some());
    let mut text = vec![b'x'; 200_000];
    text.extend(b"\nnext\n");
    fs::write(&path, text).unwrap();
    let line = lines.recv_timeout(SOON).unwrap();
    assert!(line.cut && line.bytes.len() == file::LONGEST);
    assert_eq!(next(&lines), "next", "read from its beginning");
    let statistics = tail.stop();
    assert_eq!((statistics.cut, statistics.lines, statistics.trouble), (1, 2, None));
}

#[test]
fn follows_a_descriptor_of_a_file_without_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("error.log");
    let mut log = append(&path);
    fs::remove_file(&path).unwrap();
    let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&log)));
    let (tail, lines) = follow(&by_descriptor);
    log.write_all(b"x\n").unwrap();
    assert_eq!(next(&lines), "x");
    assert_eq!(tail.stop().rotations, 0);
}

#[test]
fn pipes_are_left_to_their_readers() {
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader)));
    let error = Tail::start(Place::Path(path), Box::new(|_| true)).unwrap_err();
    assert!(matches!(error, TailError::NotAFile { kind: "a pipe", .. }), "{error:?}");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket)));
    let error = Tail::start(Place::Path(path), Box::new(|_| true)).unwrap_err();
    assert!(matches!(error, TailError::NotAFile { kind: "a socket", .. }), "{error:?}");
}

#[test]
fn a_full_sink_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("error.log");
    let mut log = append(&path);
    let tail = Tail::start(Place::Path(path), Box::new(|_| false)).unwrap();
    log.write_all(b"1\n2\n").unwrap();
    assert_eq!(tail.stop().lost, 2);
}

#[test]
fn links_stay_below_another_root() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("var/log/real.log");
    fs::create_dir_all(log.parent().unwrap()).unwrap();
    // Absolute, as in a container: outside of it the same link leads elsewhere.
    std::os::unix::fs::symlink("/var/log/real.log", directory.path().join("error.log")).unwrap();
    let mut file = append(&log);
    let root = Arc::new(OwnedFd::from(File::open(directory.path()).unwrap()));
    let place = Place::InRoot { root, path: "/error.log".into() };
    let (sender, lines) = sync_channel(10);
    let tail = Tail::start(place, Box::new(move |line| sender.try_send(line).is_ok())).unwrap();
    file.write_all(b"x\n").unwrap();
    assert_eq!(next(&lines), "x");
    assert_eq!(tail.stop().lines, 1);
}
