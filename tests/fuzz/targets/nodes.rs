//! The target [`platter_fuzz::nodes`] as a program of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platter_fuzz::nodes::run(data));
