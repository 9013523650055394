//! Worlds made by chance, of which the truth is known: what really happened to each request, everything that kernel, wire, nginx and
//! host would show of it, and any view of that. The laws (`tests/laws.rs`) compare what the pipeline says with what is true.
//!
//! A [`truth::World`] is a plan without times. [`story::play`] plays it: it makes every record that could be made, with times, sequence
//! numbers and byte counters that add up the way Linux 6.18 and nginx 1.22.1 add them up. A [`view::View`] takes things away. [`run`]
//! delivers what is left.

pub mod crowd;
pub mod dice;
pub mod fate;
pub mod nginx;
pub mod run;
pub mod stage;
pub mod story;
pub mod strategy;
pub mod tape;
pub mod tcp;
pub mod truth;
pub mod verdict;
pub mod view;
