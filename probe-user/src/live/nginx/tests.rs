//! These need root and run the installed nginx, in namespaces of their own where it matters.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use super::*;
use crate::model::net::Address;

/// An nginx with a directory of its own. Ends with the test.
struct Server {
    directory: tempfile::TempDir,
    child: Child,
    master: Pid,
}

const MAIN: &str = "user root; worker_processes 2;
error_log logs/error.log notice;
pid nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
    include more/*.conf;
}
";

fn block(port: u16, upstream: &str) -> String {
    format!(
        "upstream app {{ server {upstream}; }} server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://app; }} }}"
    )
}

impl Server {
    /// `unshare`: options of unshare(1); `prepare`: what a shell does first; `directives` go to `-g`.
    fn start(unshare: &[&str], prepare: &str, directives: &str, included: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test runs nginx in namespaces: run it as root");
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display().to_string();
        let prepare = prepare.replace("{}", &at);
        for below in ["logs", "more"] {
            fs::create_dir(directory.path().join(below)).unwrap();
        }
        fs::write(directory.path().join("nginx.conf"), MAIN).unwrap();
        fs::write(directory.path().join("more/a.conf"), included).unwrap();
        let script = format!("{prepare}\nexec nginx -p {at} -c nginx.conf -e logs/error.log -g '{directives}'");
        let mut command = if unshare.is_empty() { Command::new("sh") } else { Command::new("unshare") };
        if !unshare.is_empty() {
            command.args(unshare).arg("sh");
        }
        let child = command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut server = Self { directory, child, master: Pid(0) };
        let forked = unshare.contains(&"--fork");
        server.master = server.wait(|server| {
            let pid = server.child.id();
            let pid = if forked { child_of(pid)? } else { pid };
            let line = fs::read(process::path(pid, "cmdline")).ok()?;
            let text = String::from_utf8_lossy(&line).into_owned();
            let alone = directives.contains("master_process off");
            let ready =
                if alone { serves_alone(pid) } else { text.starts_with("nginx: master") && workers_of(pid) == 2 };
            ready.then_some(Pid(pid))
        });
        server
    }

    fn wait<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "it did not happen within 10 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.master == Pid(0) {
            let _ = self.child.kill();
        } else if process::summary(self.master.0).is_some() {
            signal(self.master, Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

fn signal(pid: Pid, signal: Signal) {
    kill(nix::unistd::Pid::from_raw(i32::try_from(pid.0).unwrap()), signal).unwrap();
}

/// Workers that have given themselves their titles.
fn workers_of(master: u32) -> usize {
    let worker = |pid: &u32| {
        let line = fs::read(process::path(*pid, "cmdline")).unwrap_or_default();
        title::classify(&line) == Title::Worker
            && process::summary(*pid).is_some_and(|summary| summary.parent == master)
    };
    process::pids().iter().filter(|pid| worker(pid)).count()
}

fn child_of(pid: u32) -> Option<u32> {
    process::pids().into_iter().find(|child| process::summary(*child).is_some_and(|summary| summary.parent == pid))
}

fn appeared(finder: &mut Finder) -> Found {
    match finder.scan().as_slice() {
        [Change::Appeared(found)] => (**found).clone(),
        other => panic!("{other:?}"),
    }
}

fn upstreams(found: &Found) -> Vec<String> {
    found
        .instance
        .configuration
        .iter()
        .flat_map(|configuration| &configuration.upstreams)
        .map(Address::to_string)
        .collect()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn as_root_a_master_is_found_followed_and_missed() {
    let port = free_port();
    let server = Server::start(&[], "", "daemon off;", &block(port, "127.0.0.1:9"));
    let mut finder = Finder::new([server.master]);
    let began = Instant::now();
    let found = appeared(&mut finder);
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!(found.instance.workers.len(), 2);
    assert!(found.instance.version.as_ref().is_some_and(|version| version.starts_with("1.")));
    assert_eq!(found.instance.netns, process::netns(std::process::id()));
    assert_eq!(found.notes, [""; 0]);
    let configuration = found.instance.configuration.as_ref().unwrap();
    assert_eq!(configuration.listen, [format!("127.0.0.1:{port}").parse().unwrap()]);
    assert_eq!(upstreams(&found), ["127.0.0.1:9"]);
    let [log] = found.error_logs.as_slice() else { panic!("{:?}", found.error_logs) };
    assert_eq!(log.name, server.directory.path().join("logs/error.log").display().to_string());
    assert_eq!(log.detail.as_deref(), Some("notice"));
    assert!(log.place.is_some() && found.access_logs.is_empty());
    assert!(finder.scan().is_empty(), "nothing has changed");

    // A reload with another configuration.
    fs::write(server.directory.path().join("more/a.conf"), block(port, "127.0.0.1:8")).unwrap();
    signal(server.master, Signal::SIGHUP);
    server.wait(|_| {
        finder.scan().iter().find_map(|change| match change {
            Change::Changed(found) => (upstreams(found) == ["127.0.0.1:8"]).then_some(()),
            other => panic!("{other:?}"),
        })
    });

    // A worker dies, and is replaced.
    let victim = finder.instances().next().unwrap().instance.workers[0];
    signal(victim, Signal::SIGKILL);
    server.wait(|_| {
        finder.scan();
        let workers = &finder.instances().next()?.instance.workers;
        (workers.len() == 2 && !workers.contains(&victim)).then_some(())
    });

    signal(server.master, Signal::SIGTERM);
    server.wait(|_| {
        let changes = finder.scan();
        changes.iter().any(|change| matches!(change, Change::Gone(pid) if *pid == server.master)).then_some(())
    });
    assert_eq!(finder.instances().count(), 0);
}

#[test]
fn as_root_one_in_namespaces_of_its_own_is_asked_there() {
    // The configuration exists in its mount namespace only, its name of an upstream in its /etc/hosts only.
    let prepare =
        "cp -r {} /run/hd-copy.$$ && mount -t tmpfs none {} && cp -r /run/hd-copy.$$/. {} && rm -r /run/hd-copy.$$
        echo 192.0.2.7 only-here.example > {}/hosts && mount --bind {}/hosts /etc/hosts && ip link set lo up
        sed -i 's/127.0.0.1:9/only-here.example:81/' {}/more/a.conf";
    for unshare in [
        ["-n", "-m", "-p", "--fork", "--mount-proc"].as_slice(),
        ["-n", "-m", "-p", "-U", "-r", "--fork", "--mount-proc"].as_slice(),
    ] {
        let server = Server::start(unshare, prepare, "daemon off;", &block(80, "127.0.0.1:9"));
        let found = appeared(&mut Finder::new([server.master]));
        assert_ne!(found.instance.netns, process::netns(std::process::id()));
        assert_eq!(found.notes, [""; 0], "{unshare:?}");
        assert_eq!(upstreams(&found), ["192.0.2.7:81"]);
        assert_eq!(found.instance.workers.len(), 2);
        // Its log is followed where it is.
        let place = found.error_logs[0].place.clone().unwrap();
        let lines = crate::live::tail::Tail::start(place, Box::new(|_| true)).unwrap();
        signal(server.master, Signal::SIGHUP);
        server.wait(|_| (lines.statistics().lines > 0).then_some(()));
    }
}

#[test]
fn as_root_its_program_gets_no_more_rights_than_it_needs() {
    let server = Server::start(&["-n"], "ip link set lo up", "daemon off;", &block(80, "127.0.0.1:9"));
    // What a program with these rights says about itself instead of nginx.
    let words = ["cat", "/proc/self/status"].map(std::ffi::OsStr::new);
    let text = dump::run_as(server.master.0, Path::new("/bin/cat"), &words).unwrap();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().to_owned()
    };
    let useful = format!("{:016x}", 0b100_0000_1111);
    assert_eq!((field("CapEff:"), field("CapBnd:"), field("CapInh:")), (useful.clone(), useful, "0".repeat(16)));
    assert_eq!(field("NoNewPrivs:"), "1");
}

#[test]
fn as_root_a_faulty_file_is_reported_and_still_read() {
    let port = free_port();
    let server = Server::start(&[], "", "daemon off;", &block(port, "127.0.0.1:9"));
    let broken = format!("no_such_directive on; {}", block(port, "127.0.0.1:7"));
    fs::write(server.directory.path().join("more/a.conf"), broken).unwrap();
    let found = appeared(&mut Finder::new([server.master]));
    assert!(
        found.notes.iter().any(|note| note.contains("unknown directive \"no_such_directive\"")),
        "{:?}",
        found.notes
    );
    assert_eq!(upstreams(&found), ["127.0.0.1:7"]);
    // Nothing can be read at all: the sockets remain.
    fs::write(server.directory.path().join("nginx.conf"), "}").unwrap();
    let found = appeared(&mut Finder::new([server.master]));
    let configuration = found.instance.configuration.as_ref().unwrap();
    assert_eq!(configuration.listen, [format!("127.0.0.1:{port}").parse().unwrap()]);
    assert!(found.notes.iter().any(|note| note.contains("only what its open sockets show")), "{:?}", found.notes);
}

#[test]
fn as_root_one_without_a_master_is_its_own_worker() {
    let server =
        Server::start(&["-n"], "ip link set lo up", "daemon off; master_process off;", &block(80, "127.0.0.1:9"));
    let found = appeared(&mut Finder::new([server.master]));
    assert_eq!(found.instance.workers, [server.master]);
    assert_eq!(upstreams(&found), ["127.0.0.1:9"]);
}

#[test]
fn as_root_open_connections_are_learnt() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = upstream.local_addr().unwrap();
    let port = free_port();
    let server = Server::start(&[], "", "daemon off;", &block(port, &address.to_string()));
    let found = appeared(&mut Finder::new([server.master]));
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let (accepted, _) = upstream.accept().unwrap();
    let sockets = Sockets::of_processes(&found.instance.workers);
    let [open] = sockets.outgoing.as_slice() else { panic!("{sockets:?}") };
    assert_eq!((open.local, open.remote), (accepted.peer_addr().unwrap(), address));
    assert!(found.instance.workers.contains(&open.worker));
}

#[test]
fn a_shell_that_becomes_nginx_is_found() {
    let mut finder = Finder::new([]);
    let script = "read x; exec -a 'nginx: worker process' sleep 30";
    let mut shell = Command::new("bash").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
    for _ in 0..=LOOKS + 1 {
        finder.look();
    }
    assert_eq!(finder.seen[&shell.id()].title, Title::Other);
    shell.stdin.take().unwrap().write_all(b"\n").unwrap();
    let began = Instant::now();
    while finder.seen[&shell.id()].title != Title::Worker {
        assert!(began.elapsed() < Duration::from_secs(5));
        finder.look();
    }
    shell.kill().unwrap();
    shell.wait().unwrap();
}

#[test]
fn a_scan_is_cheap() {
    let mut finder = Finder::new([Pid(u32::MAX)]);
    for _ in 0..=LOOKS {
        finder.scan();
    }
    let began = Instant::now();
    assert!(finder.scan().is_empty());
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
}
