//! What the kernel side and the user side agree on.
#![no_std]
