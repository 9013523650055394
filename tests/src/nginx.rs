//! A real nginx in the lab.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::client::{Connection, find};
use crate::config::Config;
use crate::lab::Lab;
use crate::namespace::run;
use crate::process::{Process, Start, Stopped, send, stat, wait_until};

/// nginx starts, reloads and stops well within this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Held while workers are stopped.
static STOPPING: Mutex<()> = Mutex::new(());

/// A running nginx: one master and its workers.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    /// The process itself, or its child where that makes namespaces for it.
    master: u32,
    /// What reads its logs where those are pipes.
    readers: Vec<JoinHandle<()>>,
    directory: PathBuf,
    port: u16,
}

impl Nginx {
    /// Writes the configuration into a directory `name` of the lab, starts nginx beside the proxy's addresses and waits until it
    /// answers.
    pub fn start(lab: &Lab, name: &str, config: &Config) -> Result<Self> {
        let directory = lab.subdirectory(name)?;
        let mut command = command(&directory, config)?;
        command.stdin(Stdio::null());
        if config.container {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        } else {
            let output = fs::File::create(directory.join("stderr.log")).context("make stderr.log")?;
            command.stdout(Stdio::null()).stderr(output);
        }
        let start = Start { namespace: Some(lab.proxy()), ..Start::default() };
        let mut process = Process::spawn("nginx", command, start)?;
        let mut readers = Vec::new();
        if let Some(pipe) = process.child().stderr.take() {
            readers.push(keep(pipe, &directory.join("error.log"))?);
        }
        if let Some(pipe) = process.child().stdout.take() {
            readers.push(keep(pipe, &directory.join("access.log"))?);
        }
        let master = process.pid();
        let mut nginx = Self { process, master, readers, directory, port: config.port };
        nginx.wait_answers(lab)?;
        if config.container {
            nginx.master = children_of(master)?.first().copied().context("nginx in the container")?;
        }
        Ok(nginx)
    }

    /// Waits for the first answer.
    fn wait_answers(&mut self, lab: &Lab) -> Result<()> {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        wait_until("nginx answers", PATIENCE, || {
            if let Some(status) = self.process.ended()? {
                let said = self.read("stderr.log").unwrap_or_default();
                bail!("nginx ended at once: {status}\n{said}{}", self.error_log()?);
            }
            let answer = Connection::open(lab.proxy(), target).and_then(|mut connection| connection.get("/lab-ready"));
            Ok(answer.is_ok_and(|exchange| exchange.status == Some(204)))
        })
    }

    /// The master's pid.
    #[must_use]
    pub fn master(&self) -> u32 {
        self.master
    }

    /// The pids of the master's children, in order; those that are shutting down too.
    pub fn workers(&self) -> Result<Vec<u32>> {
        children_of(self.master())
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its configuration and logs lie.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `nginx -s reload`: waits until new workers run and the old ones take no more connections, though they may still be finishing
    /// what they have. Gives the new ones.
    pub fn reload(&self) -> Result<Vec<u32>> {
        let before = self.workers()?;
        send(self.master, Signal::SIGHUP)?;
        let mut new = Vec::new();
        wait_until("new workers run", PATIENCE, || {
            let (old, fresh) = self.workers()?.into_iter().partition(|pid| before.contains(pid));
            new = fresh;
            let (old, wanted): (Vec<u32>, usize) = (old, before.len());
            Ok(new.len() >= wanted && old.into_iter().all(is_leaving))
        })?;
        Ok(new)
    }

    /// Rotates the error log as logrotate does: renames it, then USR1. Waits until nginx has opened the new one.
    pub fn rotate_error_log(&self) -> Result<()> {
        let path = self.directory.join("error.log");
        fs::rename(&path, self.directory.join("error.log.1")).context("rename the error log")?;
        send(self.master, Signal::SIGUSR1)?;
        let workers = self.workers()?;
        wait_until("every worker has opened the new error log", PATIENCE, || {
            let mut open = path.exists();
            for worker in &workers {
                open &= has_open(*worker, &path)?;
            }
            Ok(open)
        })
    }

    /// Kills a worker with SIGKILL and waits for the one the master starts instead, which it gives.
    pub fn kill_worker(&self, worker: u32) -> Result<u32> {
        let before = self.workers()?;
        send(worker, Signal::SIGKILL)?;
        let mut new = None;
        wait_until("another worker runs", PATIENCE, || {
            new = self.workers()?.into_iter().find(|pid| !before.contains(pid));
            Ok(new.is_some())
        })?;
        new.context("a new worker")
    }

    /// Stops every worker (SIGSTOP) while `work` runs: what arrives meanwhile, nginx finds in one batch, in its order. One at a time:
    /// whoever came second would be set going by the first.
    pub fn while_stopped<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _alone = STOPPING.lock().unwrap_or_else(PoisonError::into_inner);
        let _stopped = Stopped::new(self.workers()?)?;
        work()
    }

    /// A fast shutdown, in order.
    pub fn stop(mut self) -> Result<()> {
        send(self.master, Signal::SIGTERM)?;
        self.process.wait(PATIENCE)?;
        Ok(())
    }

    /// The error log so far.
    pub fn error_log(&self) -> Result<String> {
        self.read("error.log")
    }

    /// The access log so far: `status "upstream_status" "upstream_addr" "cache_status" client port pid connection "request"`.
    pub fn access_log(&self) -> Result<String> {
        self.read("access.log")
    }

    /// A file of its directory.
    fn read(&self, name: &str) -> Result<String> {
        let path = self.directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let workers = self.workers().unwrap_or_default();
        // Once reaped, its pid may be another's.
        if !matches!(self.process.ended(), Ok(None)) {
            return;
        }
        let _ = send(self.master, Signal::SIGTERM);
        if self.process.wait(Duration::from_secs(3)).is_err() {
            // Killing the master alone would leave its workers behind.
            let _ = send(self.master, Signal::SIGKILL);
            let _ = self.process.signal(Signal::SIGKILL);
            for worker in workers {
                let _ = send(worker, Signal::SIGKILL);
            }
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// Writes the configuration into the directory; gives the command line of an nginx that runs by it.
pub(crate) fn command(directory: &Path, config: &Config) -> Result<Command> {
    let path = directory.join("nginx.conf");
    fs::write(&path, config.render(directory)).with_context(|| format!("write {}", path.display()))?;
    if config.tls {
        make_certificate(directory)?;
    }
    if config.container {
        // The host's own /etc/nginx stays what it is: only this nginx sees the other.
        let mut command = Command::new("unshare");
        command.args(["--pid", "--mount", "--mount-proc", "--fork", "--kill-child", "--", "sh", "-c"]);
        command.arg("mount --bind \"$0\" /etc/nginx && exec nginx -e stderr").arg(directory);
        return Ok(command);
    }
    let mut command = match &config.hosts {
        None => Command::new("nginx"),
        Some(hosts) => {
            let path = directory.join("hosts");
            fs::write(&path, hosts).with_context(|| format!("write {}", path.display()))?;
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec nginx \"$@\""]).arg(path);
            command
        }
    };
    command.arg("-c").arg(&path).arg("-p").arg(directory).arg("-e").arg(directory.join("error.log"));
    Ok(command)
}

/// A certificate for `shop.example`, signed by itself, valid today.
fn make_certificate(directory: &Path) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=shop.example", "-keyout"]).arg(directory.join("key.pem"));
    run(openssl.arg("-out").arg(directory.join("certificate.pem")))?;
    Ok(())
}

/// Copies what comes through a pipe into a file, as a container's runtime does.
fn keep(mut pipe: impl Read + Send + 'static, path: &Path) -> Result<JoinHandle<()>> {
    let mut file = fs::File::create(path).with_context(|| format!("make {}", path.display()))?;
    Ok(std::thread::spawn(move || {
        // The pipe ends with the last process that holds it; a full disk ends it earlier, which the tests' own reading shows.
        let _ = std::io::copy(&mut pipe, &mut file);
    }))
}

/// Whether a worker takes no more connections: it says so in its title before it closes its listeners in the same turn, and it may be
/// gone altogether.
fn is_leaving(worker: u32) -> bool {
    fs::read(format!("/proc/{worker}/cmdline")).map_or(true, |title| find(&title, b"shutting down").is_some())
}

/// Whether a process has a file open, by its present name.
fn has_open(pid: u32, path: &Path) -> Result<bool> {
    let directory = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&directory).with_context(|| format!("list {directory}"))?;
    Ok(entries.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path)))
}

/// The children of a process, in order of their pids.
pub fn children_of(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let name = entry.context("list /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process may end between the listing and the reading.
        if stat(pid).is_ok_and(|(state, of)| of == parent && state != 'Z') {
            children.push(pid);
        }
    }
    children.sort_unstable();
    Ok(children)
}
