//! The only part that touches the world.

pub mod capture;
pub mod host;
pub mod nginx;
pub mod tail;
