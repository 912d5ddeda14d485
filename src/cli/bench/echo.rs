//! The far end of the bare rings: a process that answers and does nothing else.
//!
//! Between its slices it waits for its parent's next word, and costs nothing.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use verbring::shm::{self, Mapping};

use super::bare::{self, EchoEnd, move_payload};
use super::cores::pin_to;
use super::shape::Shape;
use super::talk::{Order, Report, misplaced, next_order, report};
use super::wake::serve_futex;
use super::who::Who;
use crate::cli::Failure;

/// Answers in its slices until no more is wanted.
pub(super) fn run() -> Result<(), Failure> {
    let Some(order) = next_order()? else { return Ok(()) };
    let Order::Echo { core, segments, shape } = order else { return Err(misplaced(&order)) };
    pin_to(core)?;
    let bytes = bare::segment_bytes(&shape);
    let mut ends = Vec::new();
    for segment in &segments {
        ends.push(EchoEnd::new(bare::open(open_segment(segment, bytes)?)?));
    }
    let memory = payload(&shape)?;
    report(&Report::Ready { skipped: Vec::new() })?;
    while let Some(order) = next_order()? {
        match order {
            Order::Go { slice, who: Who::Bare } => serve(&mut ends, slice, |_| 0),
            Order::Go { slice, who: Who::BareMemcpy } => {
                serve(&mut ends, slice, |sqe| move_payload(&memory, sqe));
            }
            // Only one waits for each futex.
            Order::Go { slice, who: Who::Futex } => {
                let end = ends.first().ok_or_else(|| Failure::Failed("no ring".to_string()))?;
                serve_futex(end.memory(), slice)?;
            }
            other => return Err(misplaced(&other)),
        }
    }
    Ok(())
}

/// Answers until every client is done with this slice.
fn serve(ends: &mut [EchoEnd], slice: u32, mut work: impl FnMut(&verbring::abi::Sqe) -> i32) {
    let mut idle = 0_u32;
    loop {
        let mut answered = 0;
        for end in &mut *ends {
            answered += end.answer(&mut work);
        }
        if answered > 0 {
            idle = 0;
            continue;
        }
        idle = idle.wrapping_add(1);
        // The last word lies on a line of its own, not to be looked at while there is work.
        if idle.is_multiple_of(LOOKS_PER_DOUBT) && ends.iter().all(|end| end.dismissed(slice)) {
            return;
        }
    }
}

/// Memory like that of a region: a memfd, all of it present.
fn payload(shape: &Shape) -> Result<Mapping, Failure> {
    let failed = |error| Failure::of("cannot have memory for the payload", &error);
    let bytes = shape.memory_bytes().next_multiple_of(shm::PAGE_BYTES);
    let fd = shm::create(c"verbring-bench-payload", bytes, false).map_err(failed)?;
    let memory = Mapping::shared(fd.as_fd(), bytes).map_err(failed)?;
    memory.populate().map_err(failed)?;
    let (base, lists) = shape.lists();
    memory.write(base, zerocopy::IntoBytes::as_bytes(lists.as_slice()));
    Ok(memory)
}

/// Maps a segment that the parent has made and this process has inherited.
pub(super) fn open_segment(path: &Path, bytes: u64) -> Result<Arc<Mapping>, Failure> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| Failure::of("cannot open the bare ring", &error))?;
    let mapping = Mapping::shared(file.as_fd(), bytes)
        .and_then(|mapping| mapping.populate().map(|()| mapping))
        .map_err(|error| Failure::of("cannot map the bare ring", &error))?;
    Ok(Arc::new(mapping))
}

/// Looks in vain between two looks whether the slice is over.
const LOOKS_PER_DOUBT: u32 = 1_024;
