//! probe502: ties every nginx 502 to the packet, syscall or process exit behind it.

pub mod decode;
#[cfg(feature = "live")]
pub mod live;
pub mod model;
pub mod report;
