//! No more power than the moment needs: capabilities that nothing here ever uses are given up before anything is read, and cannot come
//! back.
//!
//! Capabilities belong to a thread, so this is done while there is one only. What stays is what following an nginx that starts later
//! needs: kernel programs, captures, other processes' files and namespaces.

mod thread;

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::{Gid, Uid, User, setgroups, setresgid, setresuid},
};

pub use self::thread::{Fence, Fences, Work, confine, try_out};

/// What is kept, and for what.
const KEPT: [Capability; 19] = [
    // Kernel programs, uprobes, the ring; before 5.8 and for entering namespaces SYS_ADMIN; before 5.11 locked memory.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_IPC_LOCK,
    // Names of kernel functions.
    Capability::CAP_SYSLOG,
    // Captures, listings of sockets, routes and packet filters.
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_ADMIN,
    // Other users' processes, their files, logs after a rotation; output in a folder of somebody else.
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_CHOWN,
    // `nginx -T` as nginx's own user, in its namespaces and below its root directory, with fewer rights still.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_KILL,
];

/// Whether this run becomes another user later.
static RETIRES: AtomicBool = AtomicBool::new(false);

/// To be said before the first thread is confined: the C library changes the user of every thread, and ends the program where one of them
/// may not.
pub fn expect_to_retire() {
    RETIRES.store(true, Ordering::Relaxed);
}

/// Of those, what somebody else than root must have been given, or there is nothing to watch with.
const NEEDED: [Capability; 7] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    // uprobes, and tracepoints where `perf_event_paranoid` is above 2 (Debian's is 3).
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
];

/// What is lacking for watching, by name; nothing for root, whatever root has been left: what it then cannot do is told as a gap.
#[must_use]
pub fn lacking() -> Vec<String> {
    if nix::unistd::geteuid().is_root() {
        return Vec::new();
    }
    let has = caps::read(None, CapSet::Effective).unwrap_or_default();
    NEEDED.iter().filter(|needed| !has.contains(needed)).map(ToString::to_string).collect()
}

/// Gives up what is never used, the way back to it, and core dumps, which would hold what strangers sent.
pub fn reduce() -> io::Result<()> {
    let other = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let has = caps::read(None, CapSet::Permitted).map_err(other)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|capability| has.contains(capability)).collect();
    // Without SETPCAP the bounding set stays as it is; no_new_privs closes that way too.
    if has.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(other)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(other)?;
        }
    }
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(other)?;
    caps::set(None, CapSet::Effective, &kept).map_err(other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(other)?;
    prctl::set_no_new_privs()?;
    Ok(())
}

/// Who runs this when nothing more is to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// By name or number; without one whoever called sudo, and `nobody` where that was root itself.
    pub fn find(name: Option<&str>) -> io::Result<Self> {
        let unknown = |name: &str| io::Error::new(io::ErrorKind::NotFound, format!("there is no user {name}"));
        let by_number = |uid: u32, gid: Option<u32>| {
            let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
            Self {
                uid: Uid::from_raw(uid),
                gid: gid.map_or_else(|| user.map_or(Gid::from_raw(uid), |user| user.gid), Gid::from_raw),
            }
        };
        let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
        let account = match name {
            Some(name) => {
                if let Ok(uid) = name.parse() {
                    by_number(uid, None)
                } else {
                    let user = User::from_name(name)?.ok_or_else(|| unknown(name))?;
                    Self { uid: user.uid, gid: user.gid }
                }
            }
            None => match variable("SUDO_UID").filter(|uid| *uid != 0) {
                Some(uid) => by_number(uid, variable("SUDO_GID")),
                None => User::from_name("nobody")?
                    .map_or_else(|| by_number(65_534, None), |user| Self { uid: user.uid, gid: user.gid }),
            },
        };
        if account.uid.is_root() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "root is nobody to change to"));
        }
        Ok(account)
    }

    /// User and group, as numbers.
    #[must_use]
    pub const fn numbers(self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }
}

/// Becomes this user, in every thread, and gives up every capability. `still_works` is asked without any: if it says no, because this
/// kernel reads maps of kernel programs only for those who may load them (before 5.19, `kernel.unprivileged_bpf_disabled`), that one is
/// kept by the calling thread, which is told by `false`.
pub fn retire(account: Account, mut still_works: impl FnMut() -> bool) -> io::Result<bool> {
    let other = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    // Of this thread alone: the C library changes the user of all threads, and with it the kernel takes all the others have.
    prctl::set_keepcaps(true)?;
    setgroups(&[])?;
    setresgid(account.gid, account.gid, account.gid)?;
    setresuid(account.uid, account.uid, account.uid)?;
    prctl::set_keepcaps(false)?;
    let nothing = CapsHashSet::new();
    caps::set(None, CapSet::Effective, &nothing).map_err(other)?;
    let all = still_works();
    let kept: CapsHashSet = if all { nothing } else { maps_of_kernel_programs().into_iter().collect() };
    caps::set(None, CapSet::Effective, &kept).map_err(other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(other)?;
    Ok(all)
}

/// What reading a map needs: `CAP_BPF` since 5.8.
fn maps_of_kernel_programs() -> Option<Capability> {
    let has = caps::read(None, CapSet::Permitted).unwrap_or_default();
    [Capability::CAP_BPF, Capability::CAP_SYS_ADMIN].into_iter().find(|capability| has.contains(capability))
}
