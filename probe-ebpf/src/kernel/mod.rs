//! The kernel programs. Rust has no CO-RE: what depends on the running kernel comes in [`globals`].

pub(crate) mod answer;
pub(crate) mod descriptor;
pub(crate) mod drops;
pub(crate) mod emit;
pub(crate) mod globals;
pub(crate) mod maps;
pub(crate) mod nginx;
pub(crate) mod process;
pub(crate) mod read;
pub(crate) mod records;
pub(crate) mod request;
pub(crate) mod skb;
pub(crate) mod socket;
pub(crate) mod stack;
pub(crate) mod syscalls;
pub(crate) mod target;
pub(crate) mod tcp;
mod unix;
