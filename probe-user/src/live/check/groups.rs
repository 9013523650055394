//! Control groups of both versions: what they limit, and how often they held back or killed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::check::host::GroupSeen;

/// Limits from here on are none (version 1 writes the largest number of pages, in bytes).
const UNLIMITED: u64 = 1 << 60;

/// A hierarchy that limits memory or the CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mounted: PathBuf,
    /// Of version 2; it has everything.
    unified: bool,
    /// The controller of version 1.
    controller: &'static str,
}

/// The groups of these processes, with those above them, whose limits hold as well.
pub(super) fn of(pids: impl Iterator<Item = u32>) -> Vec<GroupSeen> {
    let hierarchies = hierarchies(&fs::read_to_string("/proc/self/mounts").unwrap_or_default());
    let mut members: Vec<BTreeMap<String, Vec<String>>> = vec![BTreeMap::new(); hierarchies.len()];
    for pid in pids {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let (Some(groups), Some(command)) = (read("cgroup"), read("comm")) else { continue };
        for (hierarchy, members) in hierarchies.iter().zip(&mut members) {
            if let Some(path) = path_in(hierarchy, &groups) {
                members.entry(path).or_default().push(format!("{} {pid}", command.trim_end()));
            }
        }
    }
    let mut all = Vec::new();
    for (hierarchy, members) in hierarchies.iter().zip(members) {
        for (path, (is_above, members)) in with_those_above(members) {
            all.push(GroupSeen { is_above, members, ..group(hierarchy, &path) });
        }
    }
    all
}

/// The hierarchies that are mounted here, of `/proc/self/mounts`. A controller is in one of them only.
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(place), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let mut add = |unified, controller| {
            if !found.iter().any(|known| known.unified == unified && known.controller == controller) {
                found.push(Hierarchy { mounted: PathBuf::from(place), unified, controller });
            }
        };
        match kind {
            "cgroup2" => add(true, ""),
            "cgroup" => {
                let has = |controller: &str| options.split(',').any(|option| option == controller);
                ["memory", "cpu"].into_iter().filter(|controller| has(controller)).for_each(|one| add(false, one));
            }
            _ => {}
        }
    }
    found
}

/// A process's group in a hierarchy, of `/proc/PID/cgroup`.
fn path_in(hierarchy: &Hierarchy, groups: &str) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = if hierarchy.unified {
            number == "0"
        } else {
            controllers.split(',').any(|controller| controller == hierarchy.controller)
        };
        is_it.then(|| path.to_owned())
    })
}

/// The groups, and which of them are only above. The root limits nothing.
fn with_those_above(own: BTreeMap<String, Vec<String>>) -> BTreeMap<String, (bool, Vec<String>)> {
    let mut all: BTreeMap<String, (bool, Vec<String>)> = BTreeMap::new();
    for (path, members) in own {
        for above in Path::new(&path).ancestors().filter(|above| above.parent().is_some()) {
            let entry = all.entry(above.to_string_lossy().into_owned()).or_insert((true, Vec::new()));
            entry.0 &= above != Path::new(&path);
            entry.1.extend(members.iter().cloned());
        }
    }
    all
}

fn group(hierarchy: &Hierarchy, path: &str) -> GroupSeen {
    let directory = hierarchy.mounted.join(path.trim_start_matches('/'));
    let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
    let number = |name: &str| read(name).and_then(|text| text.trim().parse().ok());
    let keyed = |name: &str, key: &str| {
        let text = read(name)?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
    };
    let [used, limit, kills] = if hierarchy.unified {
        ["memory.current", "memory.max", "memory.events"]
    } else {
        ["memory.usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control"]
    };
    GroupSeen {
        path: path.to_owned(),
        memory: number(used),
        memory_limit: number(limit).filter(|limit| *limit < UNLIMITED),
        oom_kills: keyed(kills, "oom_kill"),
        throttled: keyed("cpu.stat", "nr_throttled"),
        periods: keyed("cpu.stat", "nr_periods"),
        ..GroupSeen::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\ncgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\ncgroup2 /again cgroup2 rw 0 0\n";
        let found = hierarchies(mounts);
        let places: Vec<&str> = found.iter().filter_map(|one| one.mounted.to_str()).collect();
        assert_eq!(places, ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"]);
        let groups = "4:memory:/a/m\n1:cpu,cpuacct:/c\n0::/u.slice\n";
        let paths: Vec<_> = found.iter().filter_map(|hierarchy| path_in(hierarchy, groups)).collect();
        assert_eq!(paths, ["/c", "/a/m", "/u.slice"]);
    }

    #[test]
    fn those_above_are_looked_at_too() {
        let own = BTreeMap::from([
            ("/a/b".to_owned(), vec!["x 1".to_owned()]),
            ("/a".to_owned(), vec!["y 2".to_owned()]),
            ("/c/d".to_owned(), vec!["z 3".to_owned()]),
            ("/".to_owned(), vec!["r 4".to_owned()]),
        ]);
        let all = with_those_above(own);
        let named: Vec<(&str, bool, usize)> =
            all.iter().map(|(path, (is_above, members))| (path.as_str(), *is_above, members.len())).collect();
        assert_eq!(named, [("/a", false, 2), ("/a/b", false, 1), ("/c", true, 1), ("/c/d", false, 1)]);
    }

    #[test]
    fn files_of_a_group_are_read() {
        let mounted = tempfile::tempdir().unwrap();
        let directory = mounted.path().join("a");
        fs::create_dir(&directory).unwrap();
        let write = |files: &[(&str, &str)]| {
            for (name, text) in files {
                fs::write(directory.join(name), text).unwrap();
            }
        };
        write(&[
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
            ("cpu.stat", "usage_usec 5\nnr_periods 40\nnr_throttled 30\n"),
        ]);
        let mut hierarchy = Hierarchy { mounted: mounted.path().to_owned(), unified: true, controller: "" };
        let second = group(&hierarchy, "/a");
        assert_eq!((second.memory, second.memory_limit, second.oom_kills), (Some(1_000), None, Some(2)));
        assert_eq!((second.throttled, second.periods), (Some(30), Some(40)));
        write(&[
            ("memory.usage_in_bytes", "2000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        ]);
        (hierarchy.unified, hierarchy.controller) = (false, "memory");
        let first = group(&hierarchy, "/a");
        assert_eq!((first.memory, first.memory_limit, first.oom_kills), (Some(2_000), None, Some(1)));
        assert_eq!(group(&hierarchy, "/none").memory, None);
    }
}
