//! What this process itself has taken of the host: processor time by thread, memory.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

/// Memory of this process, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Held now, the rings it shares with the kernel included.
    pub resident: u64,
    /// The most it ever held.
    pub peak: u64,
}

/// Processor time by thread name, as the scheduler counts it. Threads of one name are added up; those that ended are not in it.
#[must_use]
pub fn processor_time() -> BTreeMap<String, Duration> {
    let mut by_name: BTreeMap<String, Duration> = BTreeMap::new();
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for folder in threads.map(|thread| thread.path()) {
        // A thread may end between the listing and the reading.
        let (Some(name), Some(time)) = (name(folder.join("comm")), on_processor(folder.join("schedstat"))) else {
            continue;
        };
        *by_name.entry(name).or_default() += time;
    }
    by_name
}

fn name(path: PathBuf) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

/// The first figure is nanoseconds on a processor (`Documentation/scheduler/sched-stats.rst`).
fn on_processor(path: PathBuf) -> Option<Duration> {
    let text = fs::read_to_string(path).ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// Memory held; `None` where `/proc` cannot be read.
#[must_use]
pub fn memory() -> Option<Memory> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1_024)
    };
    Some(Memory { resident: bytes("VmRSS:")?, peak: bytes("VmHWM:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_taken_something() {
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let spent: Duration = processor_time().values().sum();
        assert!(spent > Duration::ZERO, "{spent:?}");
        let memory = memory().unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident, "{memory:?}");
    }
}
