//! Writes a line into a region through the ring, and prints the op's record id.
//!
//! `cargo run --example write -- SOCKET`, with an engine listening at SOCKET
//! (`verbring serve --socket SOCKET`). With `--peer unix:OTHER` behind it the region is exported at
//! the engine that listens at OTHER, and the write goes there by queue pairs; with
//! `--require verbs` it fails if anything else has carried it.

use std::error::Error;
use std::process::ExitCode;

use verbring::{Rights, RingOptions, Session, Write, abi};

const USAGE: &str = "usage: write SOCKET [--peer unix:OTHER] [--require verbs]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("write: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (socket, url, verbs) = match words[..] {
        [socket] => (socket, None, false),
        [socket, "--peer", url] => (socket, Some(url), false),
        [socket, "--peer", url, "--require", "verbs"] => (socket, Some(url), true),
        _ => return Err(USAGE.into()),
    };
    let session = Session::connect(socket)?;
    let home = match url {
        None => session.clone(),
        Some(url) => Session::connect(url.strip_prefix("unix:").ok_or(USAGE)?)?,
    };

    // Whoever imports the region does so by this name and secret; here that is us again.
    let target = home.alloc(64 << 10)?;
    let name = format!("example-write-{}", std::process::id());
    let secret = target.export(&name, Rights::WRITE)?;
    let import = match url {
        None => session.import(&name, None, &secret)?,
        Some(url) => {
            let fabric = if verbs { abi::FABRIC_VERBS } else { abi::FABRIC_NONE };
            session.connect_peer_over(url, fabric)?.import(&name, None, &secret)?
        }
    };

    let mut ring = session.ring(RingOptions::default())?;
    let line = b"hello, ring";
    let source = session.alloc(4096)?;
    let mut lease = source.lend(0..line.len() as u64)?;
    lease.write(0, line);
    ring.push(Write::new(lease, import.at(4096)))?;
    ring.submit_and_wait(1, None)?;
    let completion = ring.reap()?.ok_or("no completion")?;
    let bytes = completion.result?;
    if verbs && completion.fabric != abi::FABRIC_VERBS {
        return Err(format!("fabric {} has carried it", completion.fabric).into());
    }

    let mut landed = vec![0; line.len()];
    target.lend(4096..4096 + u64::from(bytes))?.read(0, &mut landed);
    println!("{}: record {:#x}", String::from_utf8_lossy(&landed), completion.record);
    Ok(())
}
