//! What a client says on its control socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| verbring::fuzz::control(bytes));
