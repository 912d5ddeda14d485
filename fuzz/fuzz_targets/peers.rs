//! What another engine's control thread says.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| verbring::fuzz::peers(bytes));
