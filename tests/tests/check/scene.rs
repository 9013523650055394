//! nginx as the lab's own is not: with a configuration written out, as another user, or in more namespaces; upstreams of few words; and
//! what the check says about them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use probe_tests::client::Connection;
use probe_tests::lab::Lab;
use probe_tests::namespace::Namespace;
use probe_tests::nginx::children_of;
use probe_tests::probe::output_within;
use probe_tests::process::{Process, Start, wait_until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);
/// A check with servers that say nothing waits for each answer that does not come.
const LONGEST: Duration = Duration::from_secs(30);

/// An nginx with a configuration of its own; gone when dropped.
pub(crate) struct Server {
    process: Process,
    master: u32,
}

impl Server {
    /// Starts nginx in a namespace with these lines of `http`, and waits until it takes connections on `port`.
    pub(crate) fn start(lab: &Lab, namespace: &Namespace, name: &str, http: &str, port: u16) -> Result<Self> {
        Self::start_as(lab, namespace, name, "user root;", http, port, &[])
    }

    /// The same with other lines of the top level, and through other programs (`unshare …`).
    pub(crate) fn start_as(
        lab: &Lab,
        namespace: &Namespace,
        name: &str,
        main: &str,
        http: &str,
        port: u16,
        through: &[&str],
    ) -> Result<Self> {
        let directory = lab.subdirectory(name)?;
        let path = directory.join("nginx.conf");
        let dir = directory.display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
            .collect::<Vec<_>>()
            .concat();
        let text = format!(
            "{main}\ndaemon off;\npid {dir}/pid;\nworker_processes 1;\nerror_log {dir}/error.log error;\n\
             events {{ worker_connections 256; }}\nhttp {{\naccess_log {dir}/access.log;\n{temporary}{http}\n}}\n"
        );
        fs::write(&path, text)?;
        let mut words = through.to_vec();
        words.push("nginx");
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("-c").arg(&path).arg("-p").arg(&directory);
        command.arg("-e").arg(directory.join("error.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(directory.join("stderr.log"))?);
        let mut process = Process::spawn(name, command, Start { namespace: Some(namespace), ..Start::default() })?;
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        wait_until("nginx takes connections", PATIENCE, || {
            if let Some(status) = process.ended()? {
                bail!("nginx ended at once: {status}\n{}", fs::read_to_string(directory.join("stderr.log"))?);
            }
            Ok(Connection::open(namespace, target).is_ok())
        })?;
        let mut master = process.pid();
        // What stands between is a parent with one child.
        while !through.is_empty() && fs::read_to_string(format!("/proc/{master}/comm"))?.trim() != "nginx" {
            master = *children_of(master)?.first().context("a child")?;
        }
        Ok(Self { process, master })
    }

    /// The master's pid on the host.
    pub(crate) fn master(&self) -> u32 {
        self.master
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its workers end with it; a pid namespace with its first process.
        let _ = probe_tests::process::send(self.master, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait(Duration::from_secs(2));
    }
}

/// A listener in a namespace that treats every connection alike, on threads that end with the test's process.
pub(crate) fn serve(
    namespace: &Namespace,
    address: SocketAddr,
    treat: impl Fn(TcpStream) + Send + Sync + Clone + 'static,
) -> Result<()> {
    let listener = namespace.inside(|| Ok(TcpListener::bind(address)?))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let treat = treat.clone();
            std::thread::spawn(move || treat(stream));
        }
    });
    Ok(())
}

/// Reads what comes first, then says this and closes.
pub(crate) fn answering(bytes: &'static [u8]) -> impl Fn(TcpStream) + Send + Sync + Clone + 'static {
    move |mut stream| {
        let mut buffer = [0; 4_096];
        if stream.read(&mut buffer).is_ok_and(|length| length > 0) {
            let _ = stream.write_all(bytes);
        }
    }
}

/// An HTTP answer without anything to mind.
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// What the check said.
pub(crate) struct Checked {
    /// Every finding, as JSON.
    pub(crate) findings: Vec<Value>,
    /// How each upstream was found.
    pub(crate) upstreams: Vec<Value>,
    /// The last line.
    pub(crate) summary: Value,
    /// The exit status.
    pub(crate) code: Option<i32>,
    /// What was said beside.
    pub(crate) stderr: String,
}

impl Checked {
    /// Checks one nginx.
    pub(crate) fn of(master: u32, more: &[&str]) -> Result<Self> {
        let pid = master.to_string();
        let arguments = [&["check", "--json", "--pid", &pid], more].concat();
        Self::run(&arguments)
    }

    /// Runs the command.
    pub(crate) fn run(arguments: &[&str]) -> Result<Self> {
        let printed = output_within(arguments, LONGEST)?;
        let mut checked = Self {
            findings: Vec::new(),
            upstreams: Vec::new(),
            summary: Value::Null,
            code: printed.status.code(),
            stderr: printed.stderr,
        };
        for line in printed.stdout.lines() {
            let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            match value["type"].as_str() {
                Some("finding") => checked.findings.push(value),
                Some("upstream") => checked.upstreams.push(value),
                Some("summary") => checked.summary = value,
                _ => bail!("a line of no known type: {line}"),
            }
        }
        for finding in &checked.findings {
            let cause = finding["cause"].as_str();
            ensure!(cause.is_none_or(|cause| probe502::diagnose::find(cause).is_some()), "no such cause: {finding:#}");
        }
        ensure!(checked.summary.is_object(), "no summary; stderr: {}", checked.stderr);
        Ok(checked)
    }

    /// Subject (an address, a name) and cause of every fault.
    pub(crate) fn faults(&self) -> BTreeMap<String, String> {
        let faults = self.findings.iter().filter(|finding| finding["weight"] == "fault");
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let subject = |finding: &Value| text(&finding["subject"]).split(' ').next().unwrap_or_default().to_owned();
        faults.map(|finding| (subject(finding), text(&finding["cause"]))).collect()
    }

    /// These faults, and no others.
    pub(crate) fn expect(&self, expected: &[(String, &str)]) -> Result<()> {
        let found = self.faults();
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(subject, cause)| (subject.clone(), (*cause).to_owned())).collect();
        ensure!(found == expected, "found {found:#?}\nexpected {expected:#?}\n{:#?}", self.findings);
        let code = i32::from(!expected.is_empty());
        ensure!(self.code == Some(code), "exit status {:?}, expected {code}; {}", self.code, self.stderr);
        ensure!(self.summary["faults"] == expected.len(), "{}", self.summary);
        for finding in &self.findings {
            let complete = finding["seen"].as_array().is_some_and(|seen| !seen.is_empty())
                && finding["why"].as_str().is_some_and(|why| !why.is_empty())
                && finding["fix"].as_array().is_some_and(|fix| !fix.is_empty());
            ensure!(complete, "a finding says what was seen, why it matters and what to do: {finding:#}");
        }
        Ok(())
    }
}

/// Makes an authority, and certificates signed by it: `good` for app.lab, `old` that has expired; and `own`, signed by itself.
pub(crate) fn certificates(lab: &Lab) -> Result<PathBuf> {
    let directory = lab.subdirectory("certificates")?;
    let run = |line: &str| -> Result<()> {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().context("a program")?);
        let output = command.args(words).current_dir(&directory).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    fs::write(directory.join("ext"), "subjectAltName=DNS:app.lab\nbasicConstraints=CA:FALSE\n")?;
    run(&format!("openssl req -x509 {key} -keyout ca.key -out ca.pem -days 30 -subj /CN=lab-authority"))?;
    run(&format!("openssl req {key} -keyout leaf.key -out leaf.csr -subj /CN=app.lab"))?;
    let sign = "openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile ext";
    run(&format!("{sign} -days 30 -out good.pem"))?;
    run(&format!("{sign} -days -1 -out old.pem"))?;
    run("openssl x509 -req -in leaf.csr -key leaf.key -days 30 -extfile ext -out own.pem")?;
    Ok(directory)
}

/// A path as text.
pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
