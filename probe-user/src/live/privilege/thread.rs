//! A thread that reads what strangers sent needs less than the program: no capability, no other program, no file but its own.
//!
//! Threads share their memory, so whoever takes over one of them can reach the others: these are fences against mistakes, cheap and in
//! depth, not walls.

use std::{collections::BTreeMap, io, path::Path, sync::atomic::Ordering};

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use super::RETIRES;

/// What a thread does for the rest of its life.
#[derive(Clone, Copy, Debug)]
pub enum Work<'a> {
    /// It reads what is open already: the ring, a capture.
    Reads,
    /// It opens files of others again: a log after a rotation.
    Reopens,
    /// It writes files below this folder, or none.
    Writes(Option<&'a Path>),
}

/// How one of the fences stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// As it should.
    Whole,
    /// The kernel knows only a part of it.
    Part(String),
    /// Not at all, and why.
    None(String),
}

impl Fence {
    fn of<T>(result: Result<T, impl ToString>) -> Self {
        result.map_or_else(|error| Self::None(error.to_string()), |_| Self::Whole)
    }
}

/// What was achieved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fences {
    /// Capabilities given up.
    pub capabilities: Fence,
    /// Files out of reach (Landlock, Linux 5.13; not where it is not among the active security modules).
    pub files: Fence,
    /// System calls refused (seccomp).
    pub calls: Fence,
}

/// Confines the calling thread for good. What the kernel cannot do is not done, and told in what comes back.
pub fn confine(work: Work<'_>) -> Fences {
    // Landlock and seccomp ask for no_new_privs or SYS_ADMIN: both are there as long as the capabilities are.
    let files = match work {
        Work::Writes(folder) => files(folder),
        Work::Reads | Work::Reopens => Fence::None("not for this thread".to_owned()),
    };
    let calls = Fence::of(calls());
    let capabilities = Fence::of(capabilities(work));
    let fences = Fences { capabilities, files, calls };
    tracing::debug!("this thread ({work:?}) is confined: {fences:?}");
    fences
}

fn capabilities(work: Work<'_>) -> Result<(), caps::errors::CapsError> {
    let kept: &[Capability] = match work {
        Work::Reads | Work::Writes(None) => &[],
        Work::Reopens => &[Capability::CAP_DAC_READ_SEARCH],
        // The folder of whoever called sudo.
        Work::Writes(Some(_)) => &[Capability::CAP_DAC_OVERRIDE, Capability::CAP_CHOWN, Capability::CAP_FOWNER],
    };
    let has = caps::read(None, CapSet::Permitted)?;
    let to_retire: &[Capability] =
        if RETIRES.load(Ordering::Relaxed) { &[Capability::CAP_SETUID, Capability::CAP_SETGID] } else { &[] };
    let kept: CapsHashSet =
        kept.iter().chain(to_retire).copied().filter(|capability| has.contains(capability)).collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

/// Every access to files but below one folder is refused: what is open stays open.
fn files(folder: Option<&Path>) -> Fence {
    let all = AccessFs::from_all(ABI::V5);
    let ruled = || -> Result<_, Box<dyn std::error::Error>> {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?.create()?;
        let ruleset = match folder {
            Some(folder) => ruleset.add_rule(PathBeneath::new(PathFd::new(folder)?, all))?,
            None => ruleset,
        };
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match ruled() {
        Ok(RulesetStatus::FullyEnforced) => Fence::Whole,
        Ok(RulesetStatus::PartiallyEnforced) => {
            Fence::Part("this kernel's Landlock knows less than the newest".to_owned())
        }
        Ok(RulesetStatus::NotEnforced) => {
            Fence::None("this kernel has no Landlock, or it is not switched on".to_owned())
        }
        Err(error) => Fence::None(error.to_string()),
    }
}

/// What none of these threads ever asks for: other programs, other namespaces, other processes' memory, the kernel's own code. A list of
/// what is forbidden, not of what is allowed: the C library and the allocator may change their minds about the rest.
const NEVER: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_perf_event_open,
    libc::SYS_bpf,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
];

fn calls() -> Result<(), Box<dyn std::error::Error>> {
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    let refused = SeccompAction::Errno(u32::try_from(libc::EPERM)?);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}

/// What this kernel can do, tried on a thread that ends at once.
pub fn try_out() -> io::Result<Fences> {
    let tried = std::thread::Builder::new().name("fences".to_owned()).spawn(|| confine(Work::Writes(None)))?;
    tried.join().map_err(|_panic| io::Error::other("the thread that tried ended early"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confined_thread_writes_where_it_may_and_starts_nothing() {
        let here = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let before = caps::read(None, CapSet::Permitted).unwrap();
        let (fences, refused) = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sys::prctl::set_no_new_privs().unwrap();
                let fences = confine(Work::Writes(Some(here.path())));
                std::fs::create_dir(here.path().join(".partial")).unwrap();
                std::fs::write(here.path().join(".partial/incident.json"), "{}").unwrap();
                std::fs::rename(here.path().join(".partial"), here.path().join("whole")).unwrap();
                assert!(std::process::Command::new("/bin/true").status().is_err(), "another program");
                let kept = caps::read(None, CapSet::Permitted).unwrap();
                assert!(!kept.contains(&Capability::CAP_SYS_ADMIN) && !kept.contains(&Capability::CAP_BPF));
                (fences, std::fs::write(elsewhere.path().join("file"), "no").is_err())
            });
            thread.join().unwrap()
        });
        assert_eq!(fences.calls, Fence::Whole);
        assert_eq!(fences.capabilities, Fence::Whole);
        // A kernel without Landlock says so.
        assert_eq!(refused, !matches!(fences.files, Fence::None(_)), "{fences:?}");
        assert!(here.path().join("whole/incident.json").exists());
        assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), before, "other threads keep what they have");
    }
}
