//! From a file descriptor of the current process to the kernel's socket.

use aya_ebpf::helpers::generated::bpf_get_current_task;

use super::{globals::offset, read};

/// The `struct sock` behind a descriptor of the current process; `None` if it is closed or not a socket.
///
/// That `private_data` is a `struct socket` is known from its `file` member pointing back.
#[inline(always)]
pub(crate) fn socket(descriptor: i32) -> Option<u64> {
    if descriptor < 0 {
        return None;
    }
    // SAFETY: takes no arguments.
    let task = unsafe { bpf_get_current_task() };
    let files: u64 = read::member(task, offset!(task_files))?;
    let table: u64 = read::member(files, offset!(files_fdt))?;
    let limit: u32 = read::member(table, offset!(fdtable_max_fds))?;
    if descriptor as u32 >= limit {
        return None;
    }
    let array: u64 = read::member(table, offset!(fdtable_fd))?;
    let file: u64 = read::kernel(array.wrapping_add(u64::from(descriptor as u32) * 8))?;
    if file == 0 {
        return None;
    }
    let socket: u64 = read::member(file, offset!(file_private_data))?;
    if socket == 0 || read::member::<u64>(socket, offset!(socket_file))? != file {
        return None;
    }
    read::member(socket, offset!(socket_sk)).filter(|&sock| sock != 0)
}
