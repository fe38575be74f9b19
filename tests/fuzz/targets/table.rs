//! The target [`platter_fuzz::table`] as a program of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| platter_fuzz::table::run(data));
