//! The only part that touches the world.

pub mod capture;
pub mod tail;
