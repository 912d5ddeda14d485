//! From sleep to completion: one op while both sides sleep, and a futex wake there and back.
//!
//! Before each op the client pauses until the other side is asleep, which is not counted. From
//! just before the push until the completion is popped, the engine is woken, works, and wakes the
//! client, which sleeps meanwhile. The limit is two threads that wake each other by a futex and do
//! nothing else.

use std::sync::atomic::{AtomicU32, Ordering};

use hdrhistogram::Histogram;
use rustix::io::Errno;
use rustix::thread::futex::{self, Timespec};
use verbring::ring::{Mapped, Memory, Word};

use super::slice::{Counted, SILENCE_MAX, Span, histogram, now_ns};
use crate::cli::Failure;

/// A contestant's client that sleeps.
pub(super) trait Sleeper {
    /// True once the other side sleeps.
    fn other_sleeps(&mut self) -> bool;

    /// One op, from push to pop; this side sleeps until it is done.
    fn once(&mut self) -> Result<(), Failure>;
}

/// Runs one slice; what is counted as time is the ops' alone, without the pauses.
pub(super) fn run(
    sleeper: &mut impl Sleeper,
    span: Span,
    latencies: &mut Histogram<u64>,
) -> Result<Counted, Failure> {
    let warm_end = span.start_ns + span.warm_ns;
    let end = warm_end + span.count_ns;
    let mut counted = Counted::default();
    let mut here = histogram();
    loop {
        pause(sleeper)?;
        let start = now_ns();
        sleeper.once()?;
        let took = now_ns() - start;
        if start >= warm_end {
            counted.ops += 1;
            counted.elapsed_ns += took;
            here.saturating_record(took);
        }
        // One op at least, however long a pause was.
        if now_ns() >= end && counted.ops > 0 {
            break;
        }
    }
    counted.p50_ns = here.value_at_quantile(0.5);
    // A histogram takes in one of the same bounds.
    let _ = latencies.add(&here);
    Ok(counted)
}

/// Until the other side has said that it sleeps, and then for as long as it takes to do so.
fn pause(sleeper: &mut impl Sleeper) -> Result<(), Failure> {
    let begun = now_ns();
    let mut asleep_since = None;
    loop {
        let now = now_ns();
        if asleep_since.is_none() && sleeper.other_sleeps() {
            asleep_since = Some(now);
        }
        if asleep_since.is_some_and(|since| now - since >= SETTLE_NS) {
            return Ok(());
        }
        if now - begun > u64::try_from(SILENCE_MAX.as_nanos()).unwrap_or(u64::MAX) {
            let seconds = SILENCE_MAX.as_secs();
            return Err(Failure::Failed(format!("the other side did not sleep for {seconds} s")));
        }
        std::hint::spin_loop();
    }
}

/// The client's end of a futex ping-pong, in the words of a bare ring.
pub(super) struct FutexClient<'a>(pub(super) &'a Mapped);

impl Sleeper for FutexClient<'_> {
    fn other_sleeps(&mut self) -> bool {
        // It goes to sleep at once; the pause is long enough for that.
        true
    }

    fn once(&mut self) -> Result<(), Failure> {
        let (there, back) = (self.0.word(Word::SqTail), self.0.word(Word::CqTail));
        let ball = there.load(Ordering::Relaxed).wrapping_add(1);
        send(there, ball)?;
        loop {
            match back.load(Ordering::Acquire) {
                seen if seen == ball => return Ok(()),
                seen => await_change(back, seen)?,
            }
        }
    }
}

impl FutexClient<'_> {
    /// Lets the far end go back to its parent's word.
    pub(super) fn dismiss(&self, slice: u32) -> Result<(), Failure> {
        self.0.word(Word::BellAt).store(slice, Ordering::Release);
        let there = self.0.word(Word::SqTail);
        send(there, there.load(Ordering::Relaxed).wrapping_add(1))
    }
}

/// The far end: sends every ball back until the slice is over.
pub(super) fn serve_futex(memory: &Mapped, slice: u32) -> Result<(), Failure> {
    let (there, back) = (memory.word(Word::SqTail), memory.word(Word::CqTail));
    loop {
        let last = back.load(Ordering::Relaxed);
        await_change(there, last)?;
        let ball = there.load(Ordering::Acquire);
        if memory.word(Word::BellAt).load(Ordering::Acquire) == slice {
            back.store(ball, Ordering::Release);
            return Ok(());
        }
        send(back, ball)?;
    }
}

fn send(word: &AtomicU32, ball: u32) -> Result<(), Failure> {
    word.store(ball, Ordering::Release);
    futex::wake(word, futex::Flags::empty(), 1)
        .map(|_| ())
        .map_err(|error| Failure::of("futex wake", &error))
}

/// Sleeps until the word is no longer what it was.
fn await_change(word: &AtomicU32, was: u32) -> Result<(), Failure> {
    let limit = Timespec { tv_sec: SILENCE_MAX.as_secs().try_into().unwrap_or(0), tv_nsec: 0 };
    while word.load(Ordering::Acquire) == was {
        match futex::wait(word, futex::Flags::empty(), was, Some(&limit)) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(Failure::of("the other side of a futex", &error)),
        }
    }
    Ok(())
}

/// Longer than it takes from the announcement of sleep into the kernel.
const SETTLE_NS: u64 = 50_000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use verbring::abi::SegmentHeader;
    use verbring::shm::Mapping;

    use super::*;

    /// Two slices over the same ring: the second begins where the first has ended.
    #[test]
    fn the_ball_comes_back_until_the_slice_is_over() {
        let header = SegmentHeader::lay_out(2, 2);
        let mapping = Arc::new(Mapping::anonymous(header.segment_bytes).unwrap());
        let memory = Mapped::create(mapping, header).unwrap();
        for slice in [1, 2] {
            let far = memory.clone();
            let echo = std::thread::spawn(move || serve_futex(&far, slice));
            let mut client = FutexClient(&memory);
            let mut latencies = histogram();
            let span = Span { start_ns: now_ns(), warm_ns: 0, count_ns: 1_000_000 };
            let counted = run(&mut client, span, &mut latencies).unwrap();
            assert!(counted.ops > 0 && counted.p50_ns > 0 && counted.elapsed_ns > 0);
            assert_eq!(latencies.len(), counted.ops);
            client.dismiss(slice).unwrap();
            echo.join().unwrap().unwrap();
            let [there, back] =
                [Word::SqTail, Word::CqTail].map(|word| memory.word(word).load(Ordering::Relaxed));
            assert_eq!(there, back, "a ball is left over for the next slice");
        }
    }
}
