//! Publishes a page in three parts, as a graph: the number that says "complete" goes out once all
//! parts are there, and a reader of it once that is; a part that fails keeps both from happening.
//!
//! `cargo run --example graph -- SOCKET`, with an engine listening at SOCKET
//! (`verbring serve --socket SOCKET`).

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use verbring::{Read, Rights, RingOptions, Session, Write};

const PART: u64 = 1024;
/// Where in the exported region the number lies, behind the parts.
const COMPLETE: u64 = 3 * PART;

fn main() -> ExitCode {
    let Some(socket) = std::env::args_os().nth(1) else {
        eprintln!("usage: graph SOCKET");
        return ExitCode::FAILURE;
    };
    match run(Path::new(&socket)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("graph: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the graph, runs it, and looks at what came of it.
pub fn run(socket: &Path) -> Result<(), Box<dyn Error>> {
    let session = Session::connect(socket)?;
    let target = session.alloc(COMPLETE + 8)?;
    let name = format!("example-graph-{}", std::process::id());
    let secret = target.export(&name, Rights::READ | Rights::WRITE)?;
    let page = session.import(&name, None, &secret)?;
    let source = session.alloc(8 * PART)?;
    let mut ring = session.ring(RingOptions::default())?;

    for version in 1..=3u64 {
        // Of the last version, the third part would end beyond the region: the engine refuses it.
        let third = if version < 3 { 2 * PART } else { COMPLETE };
        let mut parts = Vec::new();
        for (from, to) in [0, PART, 2 * PART].into_iter().zip([0, PART, third]) {
            parts.push(ring.push(Write::new(source.lend(from..from + PART)?, page.at(to)))?);
        }
        let whole = ring.join(&parts)?;
        let mut number = source.lend(COMPLETE..COMPLETE + 8)?;
        number.set_u64(0, version);
        let number = ring.push(Write::new(number, page.at(COMPLETE)).after(whole))?;
        let into = source.lend(COMPLETE + 8..COMPLETE + 16)?;
        let seen = ring.push(Read::new(into, page.at(COMPLETE)).after(number))?;

        ring.submit();
        for _ in 0..6 {
            ring.wait(1, None)?;
            let end = ring.reap()?.ok_or("no completion")?;
            match (end.ticket == seen, end.result) {
                (true, Ok(_)) => {
                    let number = end.lease.ok_or("a READ has a lease")?.u64(0);
                    println!("version {number} is complete");
                }
                (true, Err(error)) if version == 3 && error.dep_failed => {
                    println!("version {version} is not: {error}");
                }
                (false, Ok(_)) => {}
                (false, Err(_)) if version == 3 => {}
                (_, Err(error)) => return Err(error.into()),
            }
        }
        if target.lend(COMPLETE..COMPLETE + 8)?.u64(0) != version.min(2) {
            return Err("the number does not tell what is complete".into());
        }
    }
    Ok(())
}
