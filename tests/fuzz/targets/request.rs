//! The target [`platter_fuzz::request`] as a program of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platter_fuzz::request::run(data));
