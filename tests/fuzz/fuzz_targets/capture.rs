//! `probe_tests::fuzz::capture`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe_tests::fuzz::capture(bytes));
