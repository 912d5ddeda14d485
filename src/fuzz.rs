//! Decoders, for `fuzz/`: there in builds by cargo-fuzz only.

/// What a stranger says at the gate.
#[cfg(feature = "net")]
pub fn gate(bytes: &[u8]) {
    crate::gate::fuzz(bytes);
}

/// Another engine's datagram.
pub fn peers(bytes: &[u8]) {
    crate::control::peers_fuzz(bytes);
}

/// A client's datagram.
pub fn control(bytes: &[u8]) {
    let _ = crate::control::wire::parse(bytes);
}
