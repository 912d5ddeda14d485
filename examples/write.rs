//! Writes a line into a region through the ring, and prints the op's record id.
//!
//! `cargo run --example write -- SOCKET`, with an engine listening at SOCKET
//! (`verbring serve --socket SOCKET`).

use std::error::Error;

use verbring::{Rights, RingOptions, Session, Write};

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args().nth(1).ok_or("usage: write SOCKET")?;
    let session = Session::connect(socket)?;

    // A peer would import the region by this name and secret; here we are our own peer.
    let region = session.alloc(64 << 10)?;
    let name = format!("example-write-{}", std::process::id());
    let secret = region.export(&name, Rights::WRITE)?;
    let import = session.import(&name, None, &secret)?;

    let mut ring = session.ring(RingOptions::default())?;
    let line = b"hello, ring";
    let mut lease = region.lend(0..line.len() as u64)?;
    lease.write(0, line);
    ring.push(Write::new(lease, import.at(4096)))?;
    ring.submit_and_wait(1, None)?;
    let completion = ring.reap()?.ok_or("no completion")?;
    let bytes = completion.result?;

    let mut landed = vec![0; line.len()];
    region.lend(4096..4096 + u64::from(bytes))?.read(0, &mut landed);
    println!("{}: record {:#x}", String::from_utf8_lossy(&landed), completion.record);
    Ok(())
}
