//! Which of the host's processes are nginx, asked twice a second for days: without looking into each of thousands every time.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use procfs::process::Process;

use super::processes::{Master, NAMES, families, title};

/// So often a process is looked into before it is believed to be something else: one that was just forked may become an nginx yet.
const NEW: u8 = 10;
/// Of the others one in so many is looked into each time: a shell that becomes an nginx after hours is found in a few seconds, also where
/// the kernel tells of no exec.
const TURNS: u32 = 16;
/// After a look as much time as so many looks take passes before the next.
const REST: u32 = 200;

/// What earlier looks found.
#[derive(Debug, Default)]
pub struct Census {
    /// Processes that are no nginx, and how often that was seen.
    others: BTreeMap<u32, u8>,
    looks: u32,
    rested: Option<Instant>,
}

impl Census {
    /// Every nginx on this host. Processes that end meanwhile are left out.
    pub fn masters(&mut self) -> Vec<Master> {
        let began = Instant::now();
        self.looks = self.looks.wrapping_add(1);
        let Ok(listing) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = listing.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let (mut others, mut nginx) = (BTreeMap::new(), BTreeMap::new());
        for pid in pids {
            let seen = self.others.get(&pid).copied().unwrap_or(0);
            if seen >= NEW && pid % TURNS != self.looks % TURNS {
                others.insert(pid, seen);
                continue;
            }
            let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
            if !NAMES.contains(&name.trim_end()) {
                others.insert(pid, (seen + 1).min(NEW));
                continue;
            }
            let process = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok());
            if let Some(process) = process
                && let Ok(stat) = process.stat()
                && stat.state != 'Z'
            {
                nginx.insert(pid, (stat, title(&process)));
            }
        }
        self.others = others;
        let masters = families(&nginx);
        let now = Instant::now();
        self.rested = Some(now + now.duration_since(began).saturating_mul(REST).min(Duration::from_secs(30)));
        masters
    }

    /// The next look looks into every process.
    pub fn forget(&mut self) {
        self.others.clear();
    }

    /// Whether the last look is so long ago that another one is cheap.
    #[must_use]
    pub fn is_rested(&self) -> bool {
        self.rested.is_none_or(|rested| rested <= Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process called `sleep`, or what it becomes.
    fn shell(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn it_remembers_who_is_something_else_and_looks_again() {
        let mut child = shell("read line; exec sleep 60");
        let mut census = Census::default();
        assert!(census.is_rested());
        for _ in 0..NEW + 5 {
            let _none = census.masters();
        }
        assert_eq!(census.others.get(&child.id()), Some(&NEW));
        assert_eq!(census.others.get(&std::process::id()), Some(&NEW));
        assert!(!census.is_rested());
        census.forget();
        let _none = census.masters();
        assert_eq!(census.others.get(&child.id()), Some(&1));
        child.kill().unwrap();
        child.wait().unwrap();
        let _none = census.masters();
        assert_eq!(census.others.get(&child.id()), None);
    }

    #[test]
    #[ignore = "needs nginx"]
    fn a_shell_that_becomes_an_nginx_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nginx.conf");
        fs::write(&file, "daemon off; master_process off; pid nginx.pid; error_log stderr; events {}").unwrap();
        let script = format!("read line; exec nginx -p {0} -c {1}", folder.path().display(), file.display());
        let mut child = shell(&script);
        let mut census = Census::default();
        let pid = child.id();
        let is_it = |master: &Master| master.pid == pid;
        for _ in 0..NEW {
            assert!(!census.masters().iter().any(is_it));
        }
        drop(child.stdin.take());
        let began = Instant::now();
        let mut looks = 0;
        while !census.masters().iter().any(is_it) && began.elapsed().as_secs() < 10 {
            looks += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        let found = census.masters().iter().any(is_it);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found, "after {looks} looks");
    }
}
