//! The correlator's own tests.
