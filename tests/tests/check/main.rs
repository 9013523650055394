//! `probe502 check` finds what is broken before a request is sent, and finds nothing where nothing is broken.

mod command;
mod connect;
mod families;
mod filters;
mod healthy;
mod limits;
mod protocol;
mod real;
mod scene;
mod servers;
mod unprivileged;
