//! probe502: ties every nginx 502 to the packet, syscall or process exit behind it.

#[cfg(feature = "live")]
pub mod live;
