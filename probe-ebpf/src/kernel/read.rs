//! Reading memory that may not be there.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_user, generated};
use probe_abi::globals::ABSENT;

/// A value in kernel memory.
#[inline(always)]
pub(crate) fn kernel<T>(address: u64) -> Option<T> {
    // SAFETY: the kernel checks the address; every type read here is plain numbers.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// A member of a kernel structure.
#[inline(always)]
pub(crate) fn member<T>(structure: u64, offset: u32) -> Option<T> {
    if offset == ABSENT {
        return None;
    }
    kernel(structure.wrapping_add(u64::from(offset)))
}

/// Copies a member of a kernel structure straight into a record; zero if it cannot be read.
#[inline(always)]
pub(crate) fn copy_member<T>(to: &mut T, structure: u64, offset: u32) {
    if offset != ABSENT {
        let from = structure.wrapping_add(u64::from(offset)) as *const _;
        // SAFETY: `to` is exactly that long; the kernel checks `from` and zeroes `to` when it cannot be read.
        unsafe { generated::bpf_probe_read_kernel((&raw mut *to).cast(), size_of::<T>() as u32, from) };
    }
}

/// A number that a kernel structure holds; zero if it cannot be read. Without a branch: in a loop the verifier walks every way.
#[inline(always)]
pub(crate) fn word(structure: u64, offset: u32) -> u64 {
    let mut value = 0;
    copy_member(&mut value, structure, offset);
    value
}

/// A value in the current process's memory.
#[inline(always)]
pub(crate) fn user<T>(address: u64) -> Option<T> {
    // SAFETY: as for `kernel`.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// A member of one of nginx's structures.
#[inline(always)]
pub(crate) fn user_member<T>(structure: u64, offset: u32) -> Option<T> {
    if offset == ABSENT {
        return None;
    }
    user(structure.wrapping_add(u64::from(offset)))
}

/// The first words of one of nginx's structures, read at once: a hardened kernel takes some 60 ns to check each read of a process's memory
/// (`CONFIG_HARDENED_USERCOPY`; 6.18), whatever its length.
pub(crate) struct Words<const N: usize> {
    structure: u64,
    words: [u64; N],
}

impl<const N: usize> Words<N> {
    #[inline(always)]
    pub(crate) fn of(structure: u64) -> Option<Self> {
        Some(Self { structure, words: user(structure)? })
    }

    /// A member; one that lies further back is read by itself.
    #[inline(always)]
    pub(crate) fn member(&self, offset: u32) -> Option<u64> {
        let mut index = 0;
        // No index that is computed: before 5.12 the verifier knows none on the stack.
        while index < N {
            if offset == index as u32 * 8 {
                return Some(self.words[index]);
            }
            index += 1;
        }
        user_member(self.structure, offset)
    }
}

/// Copies at most `N` (a power of two) of `length` bytes of the current process's memory. False if it cannot be read.
#[inline(always)]
pub(crate) fn user_bytes<const N: usize>(to: &mut [u8; N], address: u64, length: u64) -> bool {
    const { assert!(N.is_power_of_two()) };
    // The mask tells the verifier the bound; comparing would be undone by the optimiser.
    let size = if length >= N as u64 { N as u32 } else { length as u32 & (N as u32 - 1) };
    // SAFETY: `to` is at least that long.
    unsafe { generated::bpf_probe_read_user((&raw mut *to).cast(), size, address as *const _) == 0 }
}

/// Copies a NUL-terminated string of the current process, gives its length; what lies behind the NUL is left as it was.
/// One that is too long is cut, and ends with a NUL.
#[inline(always)]
pub(crate) fn user_string<const N: usize>(to: &mut [u8; N], address: u64) -> Option<u32> {
    // SAFETY: `to` is exactly that long.
    let read = unsafe { generated::bpf_probe_read_user_str((&raw mut *to).cast(), N as u32, address as *const _) };
    // The NUL is counted.
    if read > 0 { Some(read as u32 - 1) } else { None }
}

/// Makes `value` all zero bytes.
///
/// Reading from address zero fails, and the kernel clears the destination then: one call instead of a loop of
/// byte-wise stores that the verifier has to walk.
#[inline(always)]
pub(crate) fn clear<T>(value: *mut T) {
    // SAFETY: `value` points at memory of that size, which is only written.
    unsafe { generated::bpf_probe_read_kernel(value.cast(), size_of::<T>() as u32, core::ptr::null()) };
}
