//! What `/proc` tells of one process.

use procfs::{
    ProcResult,
    process::{LimitValue, Process},
};

use super::{call, halt};
use crate::model::{host::HostFact, process::Pid};

/// The process, while it is there.
pub(super) fn of(pid: Pid) -> Option<Process> {
    Process::new(i32::try_from(pid.0).ok()?).ok()
}

/// Its open files against its limit.
pub(super) fn open_files(pid: Pid) -> Option<HostFact> {
    let process = of(pid)?;
    let open = u64::try_from(process.fd_count().ok()?).ok()?;
    let limit = limit_of_files(&process).ok().flatten();
    Some(HostFact::OpenFiles { pid, command: process.stat().ok()?.comm, open, limit })
}

/// `RLIMIT_NOFILE`, soft; `None`: there is no limit.
pub(super) fn limit_of_files(process: &Process) -> ProcResult<Option<u64>> {
    Ok(match process.limits()?.max_open_files.soft_limit {
        LimitValue::Value(value) => Some(value),
        LimitValue::Unlimited => None,
    })
}

/// What it is doing.
pub(super) fn state(pid: Pid) -> Option<HostFact> {
    let process = of(pid)?;
    let stat = process.stat().ok()?;
    // "0" says that it runs, or that we may not know.
    let wait_channel =
        process.wchan().ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty() && name != "0");
    let call = call::waits_in(process.pid);
    let halt = halt::of(&process, &stat);
    Some(HostFact::ProcessState { pid, command: stat.comm, state: stat.state, wait_channel, call, halt })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_descriptors_are_counted() {
        let Some(HostFact::OpenFiles { open, limit, .. }) = open_files(Pid(std::process::id())) else { panic!() };
        assert!(open >= 3 && limit.is_none_or(|limit| limit >= open));
        assert_eq!(open_files(Pid(0)), None);
    }
}
