//! The system call that a process waits in.

use std::fs;

use libc::c_long;

/// Calls in which servers wait, by the numbers of this architecture.
const CALLS: &[(c_long, &str)] = &[
    (libc::SYS_accept, "accept"),
    (libc::SYS_accept4, "accept4"),
    (libc::SYS_clock_nanosleep, "clock_nanosleep"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_epoll_pwait, "epoll_pwait"),
    (libc::SYS_epoll_pwait2, "epoll_pwait2"),
    (libc::SYS_fcntl, "fcntl"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_flock, "flock"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_futex, "futex"),
    (libc::SYS_io_uring_enter, "io_uring_enter"),
    (libc::SYS_nanosleep, "nanosleep"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_ppoll, "ppoll"),
    (libc::SYS_pread64, "pread64"),
    (libc::SYS_pselect6, "pselect6"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_read, "read"),
    (libc::SYS_readv, "readv"),
    (libc::SYS_recvfrom, "recvfrom"),
    (libc::SYS_recvmsg, "recvmsg"),
    (libc::SYS_restart_syscall, "restart_syscall"),
    (libc::SYS_rt_sigsuspend, "rt_sigsuspend"),
    (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait"),
    (libc::SYS_semtimedop, "semtimedop"),
    (libc::SYS_sendfile, "sendfile"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_wait4, "wait4"),
    (libc::SYS_waitid, "waitid"),
    (libc::SYS_write, "write"),
    (libc::SYS_writev, "writev"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, "epoll_wait"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, "open"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_pause, "pause"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, "poll"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_select, "select"),
];

/// The call that the main thread of a process waits in; nothing while it runs, or where it may not be known.
/// `/proc/PID/syscall`: <https://man7.org/linux/man-pages/man5/proc_pid_syscall.5.html>.
pub(super) fn waits_in(pid: i32) -> Option<String> {
    named(&fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?)
}

/// The first word is the call's number, `running`, or -1 for a wait that no call made.
fn named(line: &str) -> Option<String> {
    let number: c_long = line.split_whitespace().next()?.parse().ok().filter(|number| *number >= 0)?;
    let name = CALLS.iter().find(|(known, _)| *known == number).map(|(_, name)| (*name).to_owned());
    Some(name.unwrap_or_else(|| format!("system call {number}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_named_where_it_is_known() {
        let line = format!("{} 0x3 0x7ffd 0x0 0x0 0x0 0x0 0x7ffe 0x7fff\n", libc::SYS_recvfrom);
        assert_eq!(named(&line).as_deref(), Some("recvfrom"));
        assert_eq!(named("9999 0x3 0x7ffd\n").as_deref(), Some("system call 9999"));
        for nothing in ["running\n", "-1 0x7ffe 0x7fff\n", ""] {
            assert_eq!(named(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_process_that_sleeps_waits_in_a_call() {
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        let call = waits_in(i32::try_from(child.id()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        // Who is not root may not look.
        assert!(call.is_none_or(|call| call == "clock_nanosleep" || call == "nanosleep"));
    }
}
