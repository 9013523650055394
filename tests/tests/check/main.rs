//! `probe502 check` finds what is broken before a request is sent, and finds nothing where nothing is broken.

mod connect;
mod healthy;
mod protocol;
mod scene;
