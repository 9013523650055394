//! What can go wrong around the probe: nginx that is reloaded, replaced and crashes all the time, logs that are rotated or cannot be written,
//! interfaces and namespaces that go away, a probe that is stopped, short of memory or killed. What was lost is said, what was explained
//! stays explained, and what fails afterwards is explained and true.

mod hostile;
mod killed;
mod logs;
mod network;
mod nginx;
mod scene;
mod starved;
