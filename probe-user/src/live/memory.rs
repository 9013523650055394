//! What the start needed and the run does not.

/// Gives memory that is free back to the kernel: reading the kernel's types and nginx's symbols takes tens of megabytes for a moment, and the
/// allocator would keep them for the days that follow.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions; it locks the allocator's own arenas.
    unsafe {
        libc::malloc_trim(0);
    }
}
