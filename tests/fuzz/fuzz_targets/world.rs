//! `probe_tests::fuzz::world`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe_tests::fuzz::world(bytes));
