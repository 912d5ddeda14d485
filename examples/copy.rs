//! Copies a file into another process's memory and back, through the ring.
//!
//! One process holds memory and waits until somebody has filled it; it then writes it to a file:
//! `copy SOCKET hold NAME BYTES OUT` prints `ready SECRET`. Another one sends a file there, and
//! fetches it back: `copy SOCKET send NAME SECRET FILE BACK`. With `--peer URL` the memory is that
//! of another engine's session, and with `--fabric N` every op must have gone by that fabric.
//!
//! The same program exists in C (`examples/c/copy.c`) and Python (`examples/python/copy.py`), and
//! each of them can hold what another one sends.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use verbring::{Arm, Import, Read, Region, Rights, Ring, RingOptions, Session, Write};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: copy SOCKET hold NAME BYTES OUT
       copy SOCKET send NAME SECRET FILE BACK [--peer URL] [--fabric N]";
/// Bytes of one op; the engine moves larger ones in slices anyway.
const CHUNK: u64 = 1 << 20;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("copy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [socket, "hold", name, bytes, out] => hold(socket, name, bytes.parse()?, out),
        [socket, "send", name, secret, file, back, ref how @ ..] => {
            let option = |flag: &str| {
                how.iter().position(|word| *word == flag).and_then(|at| how.get(at + 1)).copied()
            };
            let session = Session::connect(socket)?;
            let import = match option("--peer") {
                Some(url) => session.connect_peer(url)?.import(name, None, &secret.parse()?)?,
                None => session.import(name, None, &secret.parse()?)?,
            };
            let fabric = option("--fabric").map(str::parse).transpose()?;
            send(&session, &import, &std::fs::read(file)?, back, fabric)
        }
        _ => Err(USAGE.into()),
    }
}

/// Offers memory, and keeps what is there once it is told that it is whole.
fn hold(socket: &str, name: &str, bytes: u64, out: &str) -> Outcome {
    let session = Session::connect(socket)?;
    let region = session.alloc(bytes)?;
    let secret = region.export(name, Rights::ALL)?;
    let mut ring = session.ring(RingOptions::default())?;
    ring.push(Arm::new(&region, 1))?;
    ring.submit();
    println!("ready {}", secret.to_hex());
    std::io::stdout().flush()?;

    ring.submit_and_wait(1, Some(PATIENCE))?;
    ring.reap()?.ok_or("nobody has filled it")?.result?;
    let mut held = vec![0; usize::try_from(bytes)?];
    region.lend(0..bytes)?.read(0, &mut held);
    std::fs::write(out, held)?;
    println!("ok");
    Ok(())
}

/// Writes a file there, reads it back, and tells the holder.
fn send(
    session: &Session,
    import: &Import,
    file: &[u8],
    back: &str,
    fabric: Option<u8>,
) -> Outcome {
    let bytes = file.len() as u64;
    let region = session.alloc(bytes)?;
    region.lend(0..bytes)?.write(0, file);
    let mut ring = session.ring(RingOptions::default())?;
    for at in (0..bytes).step_by(usize::try_from(CHUNK)?) {
        let lease = region.lend(at..bytes.min(at + CHUNK))?;
        ring.push(Write::new(lease, import.at(at)))?;
    }
    finish(&mut ring, bytes, fabric)?;

    region.lend(0..bytes)?.fill(0);
    for at in (0..bytes).step_by(usize::try_from(CHUNK)?) {
        let lease = region.lend(at..bytes.min(at + CHUNK))?;
        ring.push(Read::new(lease, import.at(at)))?;
    }
    finish(&mut ring, bytes, fabric)?;
    let mut read = vec![0; file.len()];
    region.lend(0..bytes)?.read(0, &mut read);
    std::fs::write(back, read)?;

    tell(&mut ring, &region, import)?;
    println!("ok");
    Ok(())
}

/// Waits until so many bytes have been moved.
fn finish(ring: &mut Ring, bytes: u64, fabric: Option<u8>) -> Outcome {
    let mut moved = 0;
    while moved < bytes {
        ring.submit_and_wait(1, Some(PATIENCE))?;
        while let Some(completion) = ring.reap()? {
            moved += u64::from(completion.result?);
            if fabric.is_some_and(|fabric| fabric != completion.fabric) {
                return Err(format!("an op went by fabric {}", completion.fabric).into());
            }
        }
    }
    Ok(())
}

/// An empty WRITE that notifies: the memory is whole.
fn tell(ring: &mut Ring, region: &Region, import: &Import) -> Outcome {
    ring.push(Write::new(region.lend(0..0)?, import.at(0)).notify(1))?;
    ring.submit_and_wait(1, Some(PATIENCE))?;
    ring.reap()?.ok_or("no completion")?.result?;
    Ok(())
}
