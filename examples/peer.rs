//! The Rust half of the test in which every language meets every other: one process exports a
//! region, another one reads, writes, adds, swaps, scatters and cancels through its import.
//!
//! `peer SOCKET export NAME` prints `ready SECRET` once the region is there to be used, then `ok`.
//! `peer SOCKET use NAME SECRET [--peer URL] [--require FABRIC]` prints `ok`; it imports from the
//! engine at URL instead of its own (`unix:/run/other.sock`). Both exit with 1 and a message at the
//! first difference. Each step looks at `res`, `detail` and `flags` of its CQE, and at the bytes:
//! every success must say that FABRIC (`local`, `verbs`) carried it, or, if none is given, what the
//! engine names as the way to the peer.

use std::error::Error;
use std::fmt::Debug;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use verbring::abi::{self, Class, Cqe, Detail, Opcode, Sqe, errno};
use verbring::{
    Arm, CmpSwap, Completion, FetchAdd, Import, PagePair, Read, Readv, Region, Rights, Ring,
    RingOptions, Session, Write, Writev,
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Longest wait for anything; a peer that stays away is a failure, not a hang.
const PATIENCE: Duration = Duration::from_secs(60);

const REGION_BYTES: u64 = 1 << 20;
const PATTERN_BYTES: u64 = 64 << 10;
/// Where the user's WRITE lands.
const WRITTEN_AT: u64 = 65_536;
/// The u64 that FETCH_ADD adds to.
const SUM_AT: u64 = 524_288;
/// The u64 that CMP_SWAP replaces.
const SWAP_AT: u64 = 524_296;
/// Where the two pages of the WRITEV land.
const PAGES_AT: [u64; 2] = [532_480, 540_672];
/// Where the eight large WRITEs land.
const LARGE_AT: u64 = 589_824;
const LARGE_BYTES: u32 = 262_144;
const PAGE_BYTES: u64 = 4096;

/// The immediate of the WRITE that fills the range.
const FIRST: u32 = 0xC0FFEE;
/// The immediate of the empty WRITE that comes last.
const LAST: u32 = 0xBEEF;

const USAGE: &str = "usage: peer SOCKET export NAME | \
     peer SOCKET use NAME SECRET [--peer URL] [--require local|verbs]";

/// The far side of all ops, and what must carry them there.
struct Far {
    import: Import,
    fabric: u8,
    /// Atomics on a region run in one place: where there is a card, it does them for all.
    atomics: u8,
}

#[allow(dead_code, reason = "tests/languages.rs takes this file as a module and calls `act`")]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    act(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Plays one part, as the arguments say.
pub(crate) fn act(args: &[&str]) -> ExitCode {
    let outcome = match *args {
        [socket, "export", name] => export(socket, name),
        [socket, "use", name, secret, ref options @ ..] => r#use(socket, name, secret, options),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("peer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Offers a region, waits for two notifications, and looks at what the user has done to it.
fn export(socket: &str, name: &str) -> Outcome {
    let session = Session::connect(socket)?;
    let region = session.alloc(REGION_BYTES)?;
    let mut whole = region.lend(0..REGION_BYTES)?;
    whole.write(0, &pattern(PATTERN_BYTES));
    whole.set_u64(SUM_AT, 1000);
    let secret = region.export(name, Rights::ALL)?;

    let mut ring = session.ring(RingOptions::default())?;
    let armed = ring.push(Arm::new(&region, 2))?;
    ring.submit();
    println!("ready {}", secret.to_hex());
    std::io::stdout().flush()?;

    for (immediate, flags) in [(FIRST, abi::CQE_NOTIFY | abi::CQE_MORE), (LAST, abi::CQE_NOTIFY)] {
        let step = format!("notification {immediate:#x}");
        let told = next(&mut ring, &step)?;
        same(&step, "ticket", told.ticket, armed)?;
        same(&step, "result", told.result, Ok(1))?;
        same(&step, "detail", (told.fabric, told.rail), (0, 0))?;
        same(&step, "flags", told.flags, flags)?;
        let notification = told.notification.map(|told| (told.immediate, told.count));
        same(&step, "notification", notification, Some((immediate, 1)))?;
    }

    let mut written = vec![0; usize::try_from(PATTERN_BYTES)?];
    whole.read(WRITTEN_AT, &mut written);
    same_bytes("what was written", &written, &counter_pattern(PATTERN_BYTES))?;
    same("FETCH_ADD", "sum", whole.u64(SUM_AT), 1042)?;
    same("CMP_SWAP", "word", whole.u64(SWAP_AT), 77)
}

/// Uses a peer's region in every way there is.
fn r#use(socket: &str, name: &str, secret: &str, options: &[&str]) -> Outcome {
    let session = Session::connect(socket)?;
    let far = take_up(&session, name, secret, options)?;
    same("IMPORT", "rights", far.import.rights(), Rights::ALL)?;
    same("IMPORT", "bytes", far.import.bytes(), REGION_BYTES)?;
    let region = session.alloc(REGION_BYTES)?;
    let mut ring = session.ring(RingOptions::new(64, 128))?;

    read(&mut ring, &region, &far)?;
    write(&mut ring, &region, &far)?;
    fetch_add(&mut ring, &region, &far)?;
    cmp_swap(&mut ring, &region, &far)?;
    scatter(&mut ring, &region, &far)?;
    cancel(&session, &region, &far)?;
    refused(&mut ring, &region, &far)?;

    let empty = region.lend(0..0)?;
    ring.push(Write::new(empty, far.import.at(0)).notify(LAST))?;
    done(&mut ring, &far, "empty WRITE", 0)?;
    ring.release()?;
    region.release()?;
    far.import.release()?;
    Ok(())
}

/// Imports from where the options say.
fn take_up(session: &Session, name: &str, secret: &str, options: &[&str]) -> Outcome<Far> {
    let (mut url, mut require) = (None, None);
    for option in options.chunks(2) {
        match *option {
            ["--peer", at] => url = Some(at),
            ["--require", "local"] => require = Some(abi::FABRIC_LOCAL),
            ["--require", "verbs"] => require = Some(abi::FABRIC_VERBS),
            _ => return Err(USAGE.into()),
        }
    }
    let secret = secret.parse()?;
    let (import, fabric) = match url {
        None => (session.import(name, None, &secret)?, abi::FABRIC_LOCAL),
        Some(url) => {
            let peer = match require {
                None => session.connect_peer(url)?,
                Some(fabric) => session.connect_peer_over(url, fabric)?,
            };
            (peer.import(name, None, &secret)?, peer.fabric())
        }
    };
    let fabric = require.unwrap_or(fabric);
    let by_card = session.probe()?.uses(abi::FABRIC_VERBS);
    let atomics = if by_card { abi::FABRIC_VERBS } else { fabric };
    Ok(Far { import, fabric, atomics })
}

fn read(ring: &mut Ring, region: &Region, far: &Far) -> Outcome {
    ring.push(Read::new(region.lend(0..PATTERN_BYTES)?, far.import.at(0)))?;
    let read = done(ring, far, "READ", 65_536)?;
    same_bytes("READ", &landed(&read)?, &pattern(PATTERN_BYTES))
}

fn write(ring: &mut Ring, region: &Region, far: &Far) -> Outcome {
    let mut lease = region.lend(131_072..131_072 + PATTERN_BYTES)?;
    lease.write(0, &counter_pattern(PATTERN_BYTES));
    ring.push(Write::new(lease, far.import.at(WRITTEN_AT)).notify(FIRST))?;
    done(ring, far, "WRITE", 65_536)?;
    Ok(())
}

fn fetch_add(ring: &mut Ring, region: &Region, far: &Far) -> Outcome {
    ring.push(FetchAdd::new(region.lend(0..8)?, far.import.at(SUM_AT), 42)?)?;
    let added = done(ring, far, "FETCH_ADD", 8)?;
    same_bytes("FETCH_ADD", &landed(&added)?, &1000u64.to_le_bytes())
}

fn cmp_swap(ring: &mut Ring, region: &Region, far: &Far) -> Outcome {
    for (new, old) in [(77, 0u64), (99, 77)] {
        let step = format!("CMP_SWAP 0 to {new}");
        ring.push(CmpSwap::new(region.lend(0..8)?, far.import.at(SWAP_AT), 0, new)?)?;
        let swapped = done(ring, far, &step, 8)?;
        same_bytes(&step, &landed(&swapped)?, &old.to_le_bytes())?;
    }
    Ok(())
}

/// Gathers three pages of the pattern, scatters two, and reads those back.
fn scatter(ring: &mut Ring, region: &Region, far: &Far) -> Outcome {
    const LIST_AT: u64 = 4 * PAGE_BYTES;
    let lend = || region.lend(0..LIST_AT + 64);
    let page = |pages: &[u8], index: u64| -> Outcome<Vec<u8>> {
        let at = usize::try_from(index * PAGE_BYTES)?;
        Ok(pages[at..at + usize::try_from(PAGE_BYTES)?].to_vec())
    };

    // Far pages 5, 0 and 11 into near pages 1, 3 and 0.
    let pairs = [(1, 5), (3, 0), (0, 11)];
    let list = pairs
        .map(|(local, remote)| PagePair { local: local * PAGE_BYTES, remote: remote * PAGE_BYTES });
    let mut lease = lend()?;
    lease.fill(0);
    ring.push(Readv::new(lease, LIST_AT, &list, 4096, far.import.at(0))?)?;
    let gathered = landed(&done(ring, far, "READV", 3 * 4096)?)?;
    let pattern = pattern(PATTERN_BYTES);
    for (local, remote) in pairs {
        same_bytes("READV", &page(&gathered, local)?, &page(&pattern, remote)?)?;
    }
    same_bytes("READV beside its pages", &page(&gathered, 2)?, &[0; 4096])?;

    let mut lease = lend()?;
    lease.write(0, &[0x5A; 4096]);
    lease.write(2 * PAGE_BYTES, &[0xA5; 4096]);
    // Offsets in the list come on top of the op's own.
    let list = [
        PagePair { local: 0, remote: 0 },
        PagePair { local: 2 * PAGE_BYTES, remote: PAGES_AT[1] - PAGES_AT[0] },
    ];
    ring.push(Writev::new(lease, LIST_AT, &list, 4096, far.import.at(PAGES_AT[0]))?)?;
    done(ring, far, "WRITEV", 2 * 4096)?;
    for (at, byte) in [(PAGES_AT[0], 0x5A), (PAGES_AT[1], 0xA5)] {
        ring.push(Read::new(region.lend(0..PAGE_BYTES)?, far.import.at(at)))?;
        let back = done(ring, far, "READ of a scattered page", 4096)?;
        same_bytes("WRITEV", &landed(&back)?, &[byte; 4096])?;
    }
    Ok(())
}

/// Eight large ops and, in the same breath, the wish to take the last one back. They share their
/// near side, which no lease would allow.
fn cancel(session: &Session, region: &Region, far: &Far) -> Outcome {
    const CANCEL: u64 = 100;
    let mut ring = session.raw_ring(RingOptions::new(64, 128))?;
    let mut last = 0;
    for user_data in 0..8 {
        let sqe = Sqe {
            opcode: Opcode::Write as u8,
            class: Class::Low as u8,
            user_data,
            local_region: region.id(),
            remote_region: far.import.id(),
            local_offset: 262_144,
            remote_offset: LARGE_AT,
            bytes: LARGE_BYTES,
            ..Sqe::default()
        };
        last = ring.push(sqe).ok_or("the SQ is full")?;
    }
    let sqe = Sqe {
        opcode: Opcode::Cancel as u8,
        user_data: CANCEL,
        arg: [last, abi::CANCEL_BY_NUMBER],
        ..Sqe::default()
    };
    ring.push(sqe).ok_or("the SQ is full")?;
    ring.submit_and_wait(9, Some(PATIENCE))?;
    let mut seen = [false; 9];
    for _ in 0..9 {
        let cqe = ring.pop()?.ok_or("fewer than nine CQEs")?;
        let step = format!("op {} of the cancel step", cqe.user_data);
        let (place, expected) = match cqe.user_data {
            7 => (7, (-errno::ECANCELED, Detail::Cancelled as u16, abi::CQE_RETRYABLE)),
            CANCEL => (8, (0, 0, 0)),
            other => {
                let [fabric, rail] = cqe.detail.to_be_bytes();
                carried(&step, (fabric, rail), far.fabric)?;
                (usize::try_from(other)?, (i32::try_from(LARGE_BYTES)?, cqe.detail, 0))
            }
        };
        let Cqe { res, detail, flags, .. } = cqe;
        same(&step, "(res, detail, flags)", (res, detail, flags), expected)?;
        let once = seen.get_mut(place).is_some_and(|seen| !std::mem::replace(seen, true));
        same(&step, "completed once", once, true)?;
    }
    ring.release()?;
    Ok(())
}

/// A range that ends far beyond the region.
fn refused(ring: &mut Ring, region: &Region, far: &Far) -> Outcome {
    const STEP: &str = "WRITE beyond the region";
    ring.push(Write::new(region.lend(0..8)?, far.import.at(1 << 40)))?;
    let refused = next(ring, STEP)?;
    let error = refused.result.err().ok_or("a WRITE beyond the region succeeded")?;
    same(STEP, "errno", error.errno, errno::EINVAL)?;
    same(STEP, "detail", error.detail, Detail::RemoteOffset)?;
    same(STEP, "flags", refused.flags, 0)?;
    same(STEP, "record", refused.record, 0)
}

/// Waits for the op under way: a success of the right fabric with this result.
fn done(ring: &mut Ring, far: &Far, step: &str, bytes: u32) -> Outcome<Completion> {
    let completion = next(ring, step)?;
    same(step, "result", completion.result, Ok(bytes))?;
    let atomic = step.starts_with("FETCH_ADD") || step.starts_with("CMP_SWAP");
    let should = if atomic { far.atomics } else { far.fabric };
    carried(step, (completion.fabric, completion.rail), should)?;
    same(step, "flags", completion.flags, 0)?;
    same(step, "has a record", completion.record != 0, true)?;
    Ok(completion)
}

/// Rail 0 is within this engine; the others are queue pairs.
fn carried(step: &str, (fabric, rail): (u8, u8), should: u8) -> Outcome {
    same(step, "fabric", fabric, should)?;
    same(step, "by rail 0", rail == 0, fabric == abi::FABRIC_LOCAL)
}

fn next(ring: &mut Ring, step: &str) -> Outcome<Completion> {
    ring.submit_and_wait(1, Some(PATIENCE))?;
    ring.reap()?.ok_or_else(|| format!("{step}: no completion within {PATIENCE:?}").into())
}

/// What an op has put into its lease.
fn landed(completion: &Completion) -> Outcome<Vec<u8>> {
    let lease = completion.lease.as_ref().ok_or("a completion without its lease")?;
    let mut bytes = vec![0; usize::try_from(lease.bytes())?];
    lease.read(0, &mut bytes);
    Ok(bytes)
}

fn same<T: PartialEq + Debug>(step: &str, what: &str, is: T, should: T) -> Outcome {
    if is == should {
        return Ok(());
    }
    Err(format!("{step}: {what} is {is:?}, but should be {should:?}").into())
}

fn same_bytes(step: &str, is: &[u8], should: &[u8]) -> Outcome {
    same(step, "length", is.len(), should.len())?;
    match (0..is.len()).find(|at| is[*at] != should[*at]) {
        None => Ok(()),
        Some(at) => same(step, &format!("byte {at}"), is[at], should[at]),
    }
}

/// What the exporter starts with.
fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + 3).to_le_bytes()[0]).collect()
}

/// What the user writes.
fn counter_pattern(bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at * 13 + 5).to_le_bytes()[0]).collect()
}
