//! The check by somebody who is not root: it does what it can, says what it left out, and takes nothing that only it may not do for something
//! that nginx cannot do.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use probe_tests::lab::Lab;
use probe_tests::namespace::Namespace;
use probe_tests::probe::binary;
use serde_json::Value;

use crate::scene::{OK, Server, answering, serve, text};

/// A copy of the program where anybody may run it.
struct Program {
    directory: tempfile::TempDir,
}

impl Program {
    fn copy() -> Result<Self> {
        let directory = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir()?;
        let program = Self { directory };
        fs::copy(binary()?, program.path())?;
        Ok(program)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("probe502")
    }

    /// Runs `check --json` as nobody, in a network namespace or in the one of the test.
    fn check(&self, namespace: Option<&Namespace>, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(self.path());
        command.args(["check", "--json"]).args(arguments).stdin(Stdio::null());
        let mut run = || command.output().context("run the check as nobody");
        match namespace {
            Some(namespace) => namespace.inside(run),
            None => run(),
        }
    }
}

fn lines(output: &Output) -> Result<Vec<Value>> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// A configuration file with upstreams on the loopback of a namespace is no matter of this test: the port of this one is closed.
#[test]
fn a_configuration_is_looked_at() -> Result<()> {
    let program = Program::copy()?;
    let conf = program.directory.path().join("nginx.conf");
    let closed = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    fs::write(&conf, format!("events {{}} http {{ server {{ location / {{ proxy_pass http://{closed}; }} }} }}"))?;
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o644))?;
    let output = program.check(None, &["--conf", text(&conf)?])?;
    ensure!(output.status.code() == Some(1), "{} {}", output.status, String::from_utf8_lossy(&output.stderr));
    let lines = lines(&output)?;
    ensure!(lines.iter().any(|line| line["cause"] == "upstream-refused"), "{lines:#?}");
    ensure!(lines.last().context("a summary")?["left_out"].to_string().contains("only root"), "{lines:#?}");
    Ok(())
}

/// An nginx that root runs: its configuration is read from its files, its upstreams are tried. A socket that nginx may use and nobody may not is
/// no fault; one that the worker may not use either is. Seen from outside of its network nothing is said of it at all.
#[test]
fn a_running_nginx_is_looked_at_where_it_can_be() -> Result<()> {
    let lab = Lab::new()?;
    let app = |port: u16| SocketAddr::from((lab.addresses().app, port));
    serve(lab.app(), app(9641), answering(OK))?;
    let (open, closed) = (lab.directory().join("open.sock"), lab.directory().join("closed.sock"));
    let _listeners = [&open, &closed].map(UnixListener::bind);
    // The workers are users of another number: the one socket is theirs, the other root's alone.
    std::os::unix::fs::chown(&open, Some(33), Some(33))?;
    for socket in [&open, &closed] {
        fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    }
    let locations = [
        ("/", format!("http://{}", app(9641))),
        ("/gone", format!("http://{}", app(9642))),
        ("/open", format!("http://unix:{}:", open.display())),
        ("/closed", format!("http://unix:{}:", closed.display())),
    ];
    let locations = locations.map(|(path, to)| format!("location {path} {{ proxy_pass {to}; }}")).join("\n");
    let http = format!("server {{ listen 8080; {locations} }}");
    let nginx = Server::start_as(&lab, lab.proxy(), "front", "user www-data;", &http, 8080, &[])?;
    let pid = nginx.master().to_string();
    let program = Program::copy()?;

    let output = program.check(Some(lab.proxy()), &["--pid", &pid])?;
    ensure!(output.status.code() == Some(1), "{} {}", output.status, String::from_utf8_lossy(&output.stderr));
    let said = lines(&output)?;
    let faults = said.iter().filter(|line| line["type"] == "finding" && line["weight"] == "fault");
    let mut causes: Vec<String> = faults.map(|fault| format!("{}", fault["cause"])).collect();
    causes.sort();
    ensure!(causes == ["\"unix-socket-denied\"", "\"upstream-refused\""], "{said:#?}");
    let upstreams: Vec<&Value> = said.iter().filter(|line| line["type"] == "upstream").collect();
    ensure!(upstreams.len() == 3, "{upstreams:#?}");
    let left_out = said.last().context("a summary")?["left_out"].to_string();
    for word in ["open.sock", "read from its files", "workers", "only root"] {
        ensure!(left_out.contains(word), "{word}: {left_out}");
    }
    ensure!(!left_out.contains("closed.sock"), "{left_out}");

    let output = program.check(None, &["--pid", &pid])?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3) && output.stdout.is_empty(), "{}", output.status);
    ensure!(complaint.lines().count() == 1 && complaint.contains("only root"), "{complaint}");
    Ok(())
}
