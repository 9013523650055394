//! These need root and run the installed nginx, in namespaces of their own where it matters.

use std::{
    ffi::OsStr,
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use super::*;
use crate::live::tail::Tail;

/// An nginx with a directory of its own. Ends with the test.
struct Server {
    directory: tempfile::TempDir,
    child: Child,
    /// 0 until it was found.
    master: u32,
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

fn block(upstream: &str) -> String {
    format!("upstream app {{ server {upstream}; }} server {{ listen 80; location / {{ proxy_pass http://app; }} }}")
}

impl Server {
    /// In a network namespace of its own, and more by options of unshare(1). `prepare` is what a shell does first, `{}` being the directory.
    fn start(unshare: &[&str], prepare: &str, directives: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test runs nginx in namespaces: run it as root");
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display().to_string();
        for below in ["logs", "more"] {
            fs::create_dir(directory.path().join(below)).unwrap();
        }
        fs::write(directory.path().join("nginx.conf"), MAIN).unwrap();
        fs::write(directory.path().join("more/a.conf"), block("127.0.0.1:9")).unwrap();
        let prepare = prepare.replace("{}", &at);
        let script =
            format!("{prepare}\nexec nginx -p {at} -c nginx.conf -e logs/error.log -g 'daemon off; {directives}'");
        let mut command = Command::new("unshare");
        command.arg("-n").args(unshare).args(["sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = Self { directory, child: command.spawn().unwrap(), master: 0 };
        let workers = if directives.is_empty() { 2 } else { 1 };
        server.master = server.wait(|server| {
            let found = masters().into_iter().find(|master| server.is(master))?;
            (found.workers.len() == workers).then_some(found.pid)
        });
        server
    }

    fn is(&self, master: &Master) -> bool {
        self.directory.path().to_str().is_some_and(|path| master.argument("-p") == Some(path))
    }

    fn master(&self) -> Master {
        masters().into_iter().find(|master| master.pid == self.master).unwrap()
    }

    fn wait<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it did not happen within 20 s");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        kill(nix::unistd::Pid::from_raw(i32::try_from(self.master).unwrap()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.master == 0 {
            let _ = self.child.kill();
        } else if masters().iter().any(|master| self.is(master)) {
            self.signal(Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

fn upstreams(found: &Found) -> Vec<String> {
    upstream_addresses(found).iter().map(ToString::to_string).collect()
}

#[test]
fn as_root_one_in_namespaces_of_its_own_is_asked_there() {
    // The configuration is in its mount namespace only, and there its log is a link that leads elsewhere from outside.
    let prepare = "cp -r {} /run/copy.$$ && mount -t tmpfs none {} && cp -r /run/copy.$$/. {} && rm -r /run/copy.$$
        ip link set lo up; mkdir {}/real; touch {}/real/e.log; ln -s {}/real/e.log {}/logs/error.log
        sed -i 's/127.0.0.1:9/192.0.2.7:81/' {}/more/a.conf";
    for unshare in [
        ["-m", "-p", "--fork", "--mount-proc"].as_slice(),
        ["-m", "-p", "-U", "-r", "--fork", "--mount-proc"].as_slice(),
    ] {
        let server = Server::start(unshare, prepare, "");
        let found = examine(&server.master());
        assert_eq!(found.gaps, [""; 0], "{unshare:?}");
        assert_ne!(found.instance.netns, namespaces::inode(std::process::id(), "net"));
        assert_eq!(upstreams(&found), ["192.0.2.7:81"]);
        assert!(found.instance.version.as_ref().is_some_and(|version| version.starts_with("1.")));
        let [(place, level)] = found.error_logs.as_slice() else { panic!("{found:?}") };
        assert_eq!(level, "notice");
        let lines = Tail::start(place.clone(), Box::new(|_| true)).unwrap();
        server.signal(Signal::SIGHUP);
        server.wait(|_| (lines.statistics().lines > 0).then_some(()));
    }
}

#[test]
fn as_root_a_log_linked_to_the_containers_output_is_the_masters() {
    // As in the official image: from outside /dev/stderr is the probe's own.
    let server = Server::start(&[], "ln -s /dev/stderr {}/logs/error.log; exec 2>>{}/output", "");
    let found = examine(&server.master());
    let [(place, _)] = found.error_logs.as_slice() else { panic!("{found:?}") };
    assert_eq!(place.to_string(), format!("/proc/{}/fd/2", server.master));
    let lines = Tail::start(place.clone(), Box::new(|_| true)).unwrap();
    server.signal(Signal::SIGHUP);
    server.wait(|_| (lines.statistics().lines > 0).then_some(()));

    let piped = Server::start(
        &[],
        "ln -s /dev/stderr {}/logs/error.log; mkfifo {}/pipe; cat {}/pipe >/dev/null & exec 2>{}/pipe",
        "",
    );
    let found = examine(&piped.master());
    assert!(found.error_logs.is_empty() && found.unreadable_logs == ["logs/error.log"], "{found:?}");
}

#[test]
fn as_root_its_program_gets_no_more_rights_than_it_needs() {
    let server = Server::start(&[], "", "");
    let words = ["cat", "/proc/self/status"].map(OsStr::new);
    let text = confined::run(server.master, Path::new("/bin/cat"), &words).unwrap().stdout;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().to_owned()
    };
    let useful = format!("{:016x}", 0b100_0000_1111);
    assert_eq!((field("CapEff:"), field("CapBnd:"), field("CapInh:")), (useful.clone(), useful, "0".repeat(16)));
    assert_eq!(field("NoNewPrivs:"), "1");
}

#[test]
fn as_root_a_program_that_hangs_is_ended() {
    let server = Server::start(&["-m", "-p", "--fork", "--mount-proc"], "", "");
    let began = Instant::now();
    let words = ["sleep", "1000"].map(OsStr::new);
    let failure = confined::run(server.master, Path::new("/bin/sleep"), &words).unwrap_err();
    assert!(matches!(failure, confined::Failure::Slow), "{failure:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[test]
fn as_root_a_faulty_file_is_reported_and_still_read() {
    let server = Server::start(&[], "", "");
    let broken = format!("no_such_directive on; {}", block("127.0.0.1:7"));
    fs::write(server.directory.path().join("more/a.conf"), broken).unwrap();
    let found = examine(&server.master());
    assert!(found.gaps.iter().any(|gap| gap.contains("unknown directive \"no_such_directive\"")), "{:?}", found.gaps);
    assert_eq!(upstreams(&found), ["127.0.0.1:7"]);
    fs::write(server.directory.path().join("nginx.conf"), "}").unwrap();
    assert_eq!(examine(&server.master()).instance.configuration, None);
}

#[test]
fn as_root_one_without_a_master_is_its_own_worker() {
    let server = Server::start(&[], "ip link set lo up", "master_process off;");
    let master = server.master();
    assert_eq!(master.workers, [master.pid]);
    assert_eq!(upstreams(&examine(&master)), ["127.0.0.1:9"]);
}

#[test]
fn as_root_a_worker_is_never_taken_for_a_master() {
    let server = Server::start(&[], "", "");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        // Every reload forks workers, which have their master's title for a moment.
        server.signal(Signal::SIGHUP);
        for _ in 0..20 {
            let found: Vec<u32> =
                masters().iter().filter(|master| server.is(master)).map(|master| master.pid).collect();
            assert_eq!(found, [server.master]);
        }
    }
}
