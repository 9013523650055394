//! What the loader tells the programs before they are loaded.

use probe_abi::globals::{Offsets, RecordFormats, Settings};

/// Member offsets of the running kernel.
///
/// A plain static: reading all of it (as `aya_ebpf::Global` does) would copy it to the stack.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets::UNKNOWN;

/// Switches.
#[unsafe(no_mangle)]
pub(crate) static SETTINGS: Settings = Settings::NONE;

/// Records of classic tracepoints, for kernels without types.
#[unsafe(no_mangle)]
pub(crate) static RECORDS: RecordFormats = RecordFormats::UNKNOWN;

/// An offset, as a value the verifier knows: `.rodata` is frozen, so branches on it are decided at load.
macro_rules! offset {
    ($name:ident) => {
        // SAFETY: a static of plain numbers; volatile because the loader changes it after compilation.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::globals::OFFSETS.$name) }
    };
}

/// A switch, known to the verifier as [`offset`] is.
macro_rules! setting {
    ($($name:tt)+) => {
        // SAFETY: as for offsets.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::globals::SETTINGS.$($name)+) }
    };
}

/// A place in a classic tracepoint's record, known to the verifier as [`offset`] is.
macro_rules! place {
    ($format:expr, $name:ident) => {
        // SAFETY: as for offsets; the format is a part of the static.
        unsafe { core::ptr::read_volatile(&raw const (*$format).$name) }
    };
}

pub(crate) use {offset, place, setting};
