//! System calls heard at the returns of their own functions.
//!
//! A program there runs for calls that began after it was attached. A server that has been waiting for its next
//! connection since before would take that one unheard, and the connection would look like one that nobody accepted. Tracepoints of
//! system calls are looked for at the return itself, and hear it.

use std::{fs, io};

use aya::Ebpf;

use super::{
    deepen::{Added, take_out},
    offsets::Facts,
};

/// The kernel's name of a system call's function.
pub(super) fn function_of(call: &str) -> String {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    format!("__{architecture}_sys_{call}")
}

/// Debian's 5.10 knows `struct pt_regs` there by its name only, and then lets no program have the pointer.
pub(super) fn unreadable_arguments(function: &str, why: String) -> String {
    if why.contains("invalid bpf_context access") {
        return format!("this kernel's types do not tell what {function} is called with");
    }
    why
}

/// Takes the hook at `accept()`'s return out again where a server would not be heard by it.
pub(super) fn everybody_is_heard(ebpf: &mut Ebpf, added: &mut Vec<Added>, facts: &Facts) -> Result<(), String> {
    let [_, accept, accept4, ..] = facts.settings.syscall_numbers;
    if !wait_in(&[accept, accept4]) {
        return Ok(());
    }
    if let Some(last) = added.pop() {
        take_out(ebpf, last);
    }
    Err("a server has been waiting in accept() since before, and would take its next connection unheard".to_owned())
}

/// Whether some process of the host waits in one of these system calls, or it cannot be known (`/proc/PID/task/TID/syscall`, proc(5)).
fn wait_in(calls: &[u32]) -> bool {
    fs::read_dir("/proc").map_or(true, |entries| {
        entries.flatten().any(|entry| {
            let is_process =
                entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
            is_process && one_waits(&entry.path().join("task"), calls).unwrap_or_else(|error| !is_gone(&error))
        })
    })
}

fn one_waits(threads: &std::path::Path, calls: &[u32]) -> io::Result<bool> {
    for thread in fs::read_dir(threads)? {
        let line = match fs::read_to_string(thread?.path().join("syscall")) {
            Err(error) if is_gone(&error) => continue,
            line => line?,
        };
        if is_in(&line, calls) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `43 0x4 0x7ffd… …`; `running`; `-1 0x… 0x…` outside of any call.
fn is_in(line: &str, calls: &[u32]) -> bool {
    line.split(' ').next().and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| calls.contains(&number))
}

/// It ended meanwhile.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_is_the_first_number() {
        assert!(is_in("43 0x4 0x0 0x0 0x80000 0x0 0x0 0x7ffd 0x7f2a\n", &[43, 288]));
        for line in ["running\n", "-1 0x7ffd 0x7f2a\n", "288", "232 0x2b 0x0", ""] {
            assert!(!is_in(line, &[43]), "{line}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    #[ignore = "needs root"]
    fn a_server_that_waits_is_found() {
        let (accept, accept4) = (43, 288);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || listener.accept().is_ok());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !wait_in(&[accept, accept4]) {
            assert!(std::time::Instant::now() < end, "nobody waits");
        }
        drop(std::net::TcpStream::connect(address).unwrap());
        assert!(server.join().unwrap());
    }
}
