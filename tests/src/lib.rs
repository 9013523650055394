//! The lab of probe502: real nginx, real upstreams, faults as values, in network namespaces made and removed by the lab; and the
//! means to start the probe beside it and to compare what it says with what is true.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use probe_tests::{fault::Fault, lab::Lab, site::Site};
//! let lab = Lab::new()?;
//! let fault = Fault::named("upstream-refused")?;
//! let site = Site::start(&lab, &[fault])?;
//! for witness in site.provoke(&fault)? {
//!     assert_eq!(witness.exchange.status, Some(502));
//! }
//! # Ok(())
//! # }
//! ```

pub mod attached;
pub mod bench;
mod bpf;
pub mod browser;
pub mod capture;
pub mod cgroup;
pub mod client;
pub mod config;
pub mod curl;
pub mod debugger;
pub mod expect;
pub mod fault;
pub mod forger;
pub mod fuzz;
pub mod generalisation;
pub mod lab;
pub mod line;
pub mod load;
pub mod namespace;
pub mod nginx;
pub mod probe;
pub mod process;
pub mod recording;
pub mod server;
pub mod site;
pub mod strangers;
pub mod table;
pub mod trial;
pub mod upstream;
pub mod view;
pub mod vm;
pub mod worlds;
