//! nginx's processes.

use std::collections::BTreeMap;

use procfs::process::{Process, Stat};

use super::census::Census;

/// A master with its children. In single process mode (`master_process off`) it is its own worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its pid in the initial namespace.
    pub pid: u32,
    /// Its parent: the old master where it came out of a binary upgrade.
    pub parent: u32,
    /// Clock ticks from boot to its start: with the pid it names the process.
    pub started: u64,
    /// Its workers, old generations included, in order.
    pub workers: Vec<u32>,
    /// Its other children (cache manager and loader).
    pub others: Vec<u32>,
    /// Its command line after the title, as nginx keeps it: joined by blanks, quoting lost.
    pub command_line: String,
}

/// What an nginx calls itself: the process title is set by nginx, the name comes from the executable.
pub(super) const NAMES: &[&str] = &["nginx", "angie", "openresty", "tengine", "freenginx", "nginx-debug"];

impl Master {
    /// Whether this process is the master or a child of it.
    #[must_use]
    pub fn has(&self, pid: u32) -> bool {
        pid == self.pid || self.workers.contains(&pid) || self.others.contains(&pid)
    }

    /// The value of a command line option (`-c`, `-p`, `-e`).
    #[must_use]
    pub fn argument(&self, option: &str) -> Option<&str> {
        let mut words = self.command_line.split_whitespace();
        words.by_ref().find(|word| *word == option)?;
        words.next()
    }

    /// The value of `-g`, which holds blanks: up to the next option.
    #[must_use]
    pub fn directives(&self) -> Option<String> {
        let mut words = self.command_line.split_whitespace();
        words.by_ref().find(|word| *word == "-g")?;
        let value: Vec<&str> = words.take_while(|word| !matches!(*word, "-c" | "-p" | "-e")).collect();
        Some(value.join(" "))
    }
}

/// Whether a process of this number runs: one that is only waited for has ended.
#[must_use]
pub fn is_living(pid: u32) -> bool {
    let stat = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()?.stat().ok());
    stat.is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Every nginx on this host. Processes that end meanwhile are left out.
#[must_use]
pub fn masters() -> Vec<Master> {
    Census::default().masters()
}

/// The masters among processes that are called nginx.
pub(super) fn families(nginx: &BTreeMap<u32, (Stat, String)>) -> Vec<Master> {
    let mut found = Vec::new();
    for (pid, (stat, title)) in nginx {
        let children =
            || nginx.iter().filter(|(_, (child, _))| u32::try_from(child.ppid).is_ok_and(|parent| parent == *pid));
        let (workers, others): (Vec<_>, Vec<_>) = children()
            .filter(|(_, (child, title))| !title.contains(": master process") || is_only_forked(child, nginx))
            .partition(|(_, (_, title))| title.contains(": worker process"));
        let numbers = |list: Vec<(&u32, &(Stat, String))>| list.into_iter().map(|(pid, _)| *pid).collect::<Vec<u32>>();
        if is_only_forked(stat, nginx) {
            continue;
        }
        if let Some((_, command_line)) = title.split_once(": master process") {
            found.push(Master {
                pid: *pid,
                parent: u32::try_from(stat.ppid).unwrap_or(0),
                started: stat.starttime,
                workers: numbers(workers),
                others: numbers(others),
                command_line: command_line.trim().to_owned(),
            });
        } else if is_single(*pid, stat, title, nginx) {
            found.push(Master {
                pid: *pid,
                parent: u32::try_from(stat.ppid).unwrap_or(0),
                started: stat.starttime,
                workers: vec![*pid],
                others: Vec::new(),
                command_line: title.clone(),
            });
        }
    }
    found
}

/// The master's (or worker's) title, or the command line where nginx has set none.
pub(super) fn title(process: &Process) -> String {
    process.cmdline().map(|words| words.join(" ").trim().to_owned()).unwrap_or_default()
}

/// A master's child that has not given itself a title yet, and so still has its master's. One that was executed (a binary upgrade) has its
/// arguments elsewhere, because the kernel randomises the stack.
fn is_only_forked(stat: &Stat, nginx: &BTreeMap<u32, (Stat, String)>) -> bool {
    let parent = u32::try_from(stat.ppid).ok().and_then(|parent| nginx.get(&parent));
    parent.is_some_and(|(parent, title)| {
        title.contains(": master process") && stat.arg_start.is_some() && stat.arg_start == parent.arg_start
    })
}

/// `master_process off`: one process without a title that serves. A command (`nginx -s reload`, `-t`, a start that is still reading its
/// configuration) is none.
fn is_single(pid: u32, stat: &Stat, title: &str, nginx: &BTreeMap<u32, (Stat, String)>) -> bool {
    let parent_is_nginx = u32::try_from(stat.ppid).is_ok_and(|parent| nginx.contains_key(&parent));
    let command = title.split_whitespace().any(|word| matches!(word, "-s" | "-t" | "-T" | "-v" | "-V" | "-h" | "-?"));
    if parent_is_nginx || command || title.contains(": worker process") || title.contains(": cache ") {
        return false;
    }
    // Serving means an epoll descriptor; a starting nginx has none before its configuration is read.
    std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|descriptors| {
        descriptors.flatten().any(|descriptor| {
            std::fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventpoll]")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(command_line: &str) -> Master {
        Master {
            pid: 1,
            parent: 0,
            started: 0,
            workers: Vec::new(),
            others: Vec::new(),
            command_line: command_line.to_owned(),
        }
    }

    #[test]
    fn options_survive_nginxs_joined_title() {
        let debian = master("/usr/sbin/nginx -g daemon on; master_process on;");
        assert_eq!(debian.directives().as_deref(), Some("daemon on; master_process on;"));
        assert_eq!(debian.argument("-c"), None);
        let lab = master("nginx -c /tmp/x/nginx.conf -p /tmp/x -g daemon off; -e /tmp/x/e.log");
        assert_eq!(lab.argument("-c"), Some("/tmp/x/nginx.conf"));
        assert_eq!(lab.argument("-p"), Some("/tmp/x"));
        assert_eq!(lab.argument("-e"), Some("/tmp/x/e.log"));
        assert_eq!(lab.directives().as_deref(), Some("daemon off;"));
    }

    #[test]
    fn one_that_is_only_waited_for_has_ended() {
        assert!(is_living(std::process::id()) && !is_living(u32::MAX));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let began = std::time::Instant::now();
        while is_living(child.id()) && began.elapsed().as_secs() < 5 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!is_living(child.id()));
        child.wait().unwrap();
    }
}
