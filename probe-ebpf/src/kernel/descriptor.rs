//! From a file descriptor of the current process to the kernel's socket.

use aya_ebpf::helpers::generated::bpf_get_current_task;

use super::{globals::offset, read};

/// The descriptors of the current process.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    /// `struct file **`.
    files: u64,
    /// How many there can be.
    pub(crate) limit: u32,
}

impl Table {
    /// That of the current process; `None` once it has given it up.
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        // SAFETY: takes no arguments.
        let task = unsafe { bpf_get_current_task() };
        let files: u64 = read::member(task, offset!(task_files))?;
        let table: u64 = read::member(files, offset!(files_fdt))?;
        let limit: u32 = read::member(table, offset!(fdtable_max_fds))?;
        Some(Self { files: read::member(table, offset!(fdtable_fd))?, limit })
    }

    /// The `struct file` behind a descriptor; `None` if it is closed.
    #[inline(always)]
    pub(crate) fn file(self, descriptor: u32) -> Option<u64> {
        if descriptor >= self.limit {
            return None;
        }
        read::kernel(self.files.wrapping_add(u64::from(descriptor) * 8)).filter(|&file| file != 0)
    }

    /// The `struct sock` behind a descriptor; `None` if it is closed or not a socket.
    ///
    /// That `private_data` is a `struct socket` is known from its `file` member pointing back.
    #[inline(always)]
    pub(crate) fn socket(self, descriptor: u32) -> Option<u64> {
        let file = self.file(descriptor)?;
        let socket: u64 = read::member(file, offset!(file_private_data))?;
        if socket == 0 || read::member::<u64>(socket, offset!(socket_file))? != file {
            return None;
        }
        read::member(socket, offset!(socket_sk)).filter(|&sock| sock != 0)
    }
}

/// The `struct sock` behind a descriptor of the current process; `None` if it is closed or not a socket.
#[inline(always)]
pub(crate) fn socket(descriptor: i32) -> Option<u64> {
    if descriptor < 0 {
        return None;
    }
    Table::current()?.socket(descriptor as u32)
}
