//! What strangers say at the gate.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| verbring::fuzz::gate(bytes));
