//! What keeps a process from running: a signal, a debugger, or its control group.

use std::{fs, path::PathBuf, sync::OnceLock};

use procfs::process::{Process, Stat};

use crate::model::process::{Halt, Pid, Sender};

/// A hierarchy of control groups that can be frozen, and its files.
struct Freezer {
    root: PathBuf,
    /// Its line in `/proc/PID/cgroup` begins with a number, and goes on with this.
    controller: &'static str,
    /// Says that the group is frozen, by itself or with one above it; and how.
    state: (&'static str, &'static str),
    /// Says that it is the group itself; and how.
    own: (&'static str, &'static str),
    /// Thaws it when it is written to.
    switch: &'static str,
}

/// What keeps this process from running, by its first thread.
pub(super) fn of(process: &Process, stat: &Stat) -> Option<Halt> {
    match stat.state {
        'T' => Some(Halt::Stopped),
        't' => Some(Halt::Traced(debugger(process))),
        // <https://docs.kernel.org/admin-guide/cgroup-v2.html#core-interface-files>: a frozen one seems to sleep.
        'S' | 'D' => frozen(process.pid).map(Halt::Frozen),
        _ => None,
    }
}

fn debugger(process: &Process) -> Option<Sender> {
    // It is one of its threads that traces.
    let thread = Process::new(process.status().ok()?.tracerpid).ok()?;
    let debugger = thread.status().ok()?.tgid;
    let command = Process::new(debugger).ok()?.stat().ok()?.comm;
    Some(Sender { pid: Pid(u32::try_from(debugger).ok()?), command })
}

/// The file that thaws it.
fn frozen(pid: i32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    freezers().iter().find_map(|freezer| freezer.holds(&groups))
}

impl Freezer {
    fn holds(&self, groups: &str) -> Option<String> {
        let path = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|one| one == self.controller).then_some(path)
        })?;
        let group = self.root.join(path.trim_start_matches('/'));
        let says = |group: &std::path::Path, (file, word): (&str, &str)| {
            fs::read_to_string(group.join(file)).is_ok_and(|text| text.lines().any(|line| line == word))
        };
        if !says(&group, self.state) {
            return None;
        }
        let above = group.ancestors().take_while(|above| above.starts_with(&self.root));
        let whole = above.into_iter().find(|above| says(above, self.own)).unwrap_or(&group);
        Some(whole.join(self.switch).to_string_lossy().into_owned())
    }
}

/// Those that are mounted here.
fn freezers() -> &'static [Freezer] {
    static FOUND: OnceLock<Vec<Freezer>> = OnceLock::new();
    FOUND.get_or_init(|| mounted(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()))
}

fn mounted(mounts: &str) -> Vec<Freezer> {
    let one = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let root = PathBuf::from(place);
        match kind {
            "cgroup2" => Some(Freezer {
                root,
                controller: "",
                state: ("cgroup.events", "frozen 1"),
                own: ("cgroup.freeze", "1"),
                switch: "cgroup.freeze",
            }),
            "cgroup" if options.split(',').any(|option| option == "freezer") => Some(Freezer {
                root,
                controller: "freezer",
                state: ("freezer.state", "FROZEN"),
                own: ("freezer.self_freezing", "1"),
                switch: "freezer.state",
            }),
            _ => None,
        }
    };
    mounts.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halt(pid: i32) -> Option<Halt> {
        let process = Process::new(pid).unwrap();
        let stat = process.stat().unwrap();
        of(&process, &stat)
    }

    #[test]
    fn a_stopped_process_is_stopped_and_a_sleeping_one_is_not() {
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(halt(pid), None);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(halt(pid), Some(Halt::Stopped));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn both_versions_of_control_groups_are_found() {
        let found = mounted(
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nproc /proc proc rw 0 0\n\
             cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /sys/fs/cgroup/freezer cgroup rw,freezer 0 0\n",
        );
        let names: Vec<_> = found.iter().map(|freezer| (freezer.root.to_str(), freezer.switch)).collect();
        assert_eq!(
            names,
            [(Some("/sys/fs/cgroup/unified"), "cgroup.freeze"), (Some("/sys/fs/cgroup/freezer"), "freezer.state")]
        );
    }

    #[test]
    fn the_group_that_is_frozen_is_named_and_not_one_in_it() {
        let root = std::env::temp_dir().join(format!("probe502-halt-{}", std::process::id()));
        let inner = root.join("pod/container");
        fs::create_dir_all(&inner).unwrap();
        for (file, text) in [
            ("pod/container/cgroup.events", "populated 1\nfrozen 1\n"),
            ("pod/container/cgroup.freeze", "0\n"),
            ("pod/cgroup.events", "populated 1\nfrozen 1\n"),
            ("pod/cgroup.freeze", "1\n"),
        ] {
            fs::write(root.join(file), text).unwrap();
        }
        let found = mounted(&format!("cgroup2 {} cgroup2 rw 0 0\n", root.display()));
        let holds = |groups: &str| found[0].holds(groups);
        let switch = root.join("pod/cgroup.freeze");
        assert_eq!(holds("1:memory:/other\n0::/pod/container\n").as_deref(), switch.to_str());
        assert_eq!(holds("0::/other\n"), None);
        assert_eq!(holds(""), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
