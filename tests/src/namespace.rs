//! Network namespaces: made, entered, and removed again together with whatever still runs inside.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Everything the lab names starts so, followed by the pid of the process that made it.
pub(crate) const PREFIX: &str = "p502-";

/// A named network namespace; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes the namespace and brings its loopback up.
    pub(crate) fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let path = path_of(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let namespace = Self { name: name.to_owned(), file };
        namespace.ip_batch("link set lo up\n")?;
        Ok(namespace)
    }

    /// The name `ip netns` shows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open namespace file, for `setns`.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Moves the calling thread into the namespace, for good. Sockets it makes from now on live there.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter the namespace {}", self.name))
    }

    /// Runs `work` on a thread of its own inside the namespace. A socket stays where it was made, whoever uses it later.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs one `ip` command a line inside the namespace.
    pub fn ip_batch(&self, commands: &str) -> Result<()> {
        feed(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), commands)
    }

    /// Sets a `net.*` sysctl of this namespace, given with slashes: `ipv4/tcp_syn_retries`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of whoever looks, so the write has to happen inside.
        let path = Path::new("/proc/sys/net").join(key);
        self.inside(|| fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display())))
    }

    /// Loads an nftables ruleset inside the namespace.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        let mut command = Command::new("ip");
        feed(command.args(["netns", "exec", &self.name, "nft", "-f", "-"]), ruleset)
    }

    /// The processes whose main thread is in the namespace.
    pub fn pids(&self) -> Result<Vec<i32>> {
        pids_in(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Where `ip netns` keeps the namespace.
fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Kills by pid what still runs in a namespace of ours and deletes it. Errors are of no use to anybody here: the
/// next sweep finds what was left.
fn remove(name: &str) {
    for pid in pids_in(name).unwrap_or_default() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = run(Command::new("ip").args(["netns", "delete", name]));
}

/// The pids `ip netns pids` lists.
fn pids_in(name: &str) -> Result<Vec<i32>> {
    let text = run(Command::new("ip").args(["netns", "pids", name]))?;
    Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

/// Removes what labs whose process is gone (kill -9, a lost CI job) have left: namespaces, their processes, their directories.
pub fn sweep() {
    for name in names_in(Path::new("/run/netns")) {
        if is_stale(&name) {
            remove(&name);
        }
    }
    let temporary = std::env::temp_dir();
    for name in names_in(&temporary) {
        if is_stale(&name) {
            let _ = fs::remove_dir_all(temporary.join(name));
        }
    }
}

/// Names in a directory; none when it cannot be read.
fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// Whether a name is one of ours and the process in it is gone.
fn is_stale(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let pid: Option<u32> = rest.split('-').next().and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Runs a command to its end and gives its standard output; says what was run when it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let line = display(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}`: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command with `input` on its standard input.
fn feed(command: &mut Command, input: &str) -> Result<()> {
    let line = display(command);
    let spawn = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawn.with_context(|| format!("run `{line}`"))?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(input.as_bytes()),
        None => Err(io::Error::other("no standard input")),
    };
    let output = child.wait_with_output().with_context(|| format!("wait for `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}`: {}: {}\n{input}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    written.with_context(|| format!("write to `{line}`"))
}

/// The command as one would type it.
fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::is_stale;

    #[test]
    fn only_our_own_names_of_dead_processes_are_stale() {
        assert!(!is_stale(&format!("p502-{}-0-proxy", std::process::id())));
        assert!(is_stale("p502-4194999-0-proxy"), "pids end at 4194304");
        assert!(!is_stale("p502-proxy"));
        assert!(!is_stale("other-4194999-0"));
    }
}
