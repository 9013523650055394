//! The kernel programs' entry points.
fn main() {}
