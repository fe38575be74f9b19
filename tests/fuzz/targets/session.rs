//! The target [`platter_fuzz::session`] as a program of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platter_fuzz::session::run(data));
