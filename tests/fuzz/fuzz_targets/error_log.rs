//! `probe_tests::fuzz::error_log`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe_tests::fuzz::error_log(bytes));
