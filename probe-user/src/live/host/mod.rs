//! What the host looks like: processes, listeners, limits. Read from `/proc` and by `sock_diag`.

pub mod process;
