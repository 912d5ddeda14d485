//! The near end of a mailbox: orders go out by WRITE, answers are fetched by READ.

use std::thread;
use std::time::{Duration, Instant};

use verbring::client::Op;
use verbring::{Completion, Import, Read, Region, Ring, RingOptions, Session, Write};

use super::letter::{Body, LETTER_BYTES, Letter};
use crate::cli::Failure;
use crate::cli::carried::Carried;

/// Bytes of a mailbox, at the end of an offered region: a page each way.
pub(super) const MAILBOX_BYTES: u64 = 8192;
/// Where in it orders lie.
pub(super) const ORDER_AT: u64 = 0;
/// Where in it answers lie.
pub(super) const ANSWER_AT: u64 = 4096;

/// What is said to the far end, and heard of it.
pub(crate) struct Mailbox {
    ring: Ring,
    region: Region,
    import: Import,
    /// Which fabric must carry it all.
    fabric: u8,
    run: u64,
    sequence: u64,
    carried: Carried,
}

impl Mailbox {
    /// Takes up the mailbox of an import, whose ops `fabric` must carry. Returns also what is
    /// offered before it.
    pub(crate) fn open(
        session: &Session,
        offered: &Import,
        fabric: u8,
    ) -> Result<(Import, Self), Failure> {
        let bytes = offered.bytes();
        let parts = bytes.checked_sub(MAILBOX_BYTES).and_then(|before| {
            let payload = offered.slice(0, before).filter(|_| before > 0)?;
            Some((payload, offered.slice(before, MAILBOX_BYTES)?))
        });
        let Some((payload, import)) = parts else {
            let text = format!("{bytes} bytes are offered, which is no more than a mailbox");
            return Err(Failure::Failed(text));
        };
        let region = session
            .alloc(LETTER_BYTES as u64)
            .map_err(|error| Failure::of("cannot have a region", &error))?;
        let ring = session
            .ring(RingOptions::new(2, 2))
            .map_err(|error| Failure::of("cannot have a ring", &error))?;
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(|error| Failure::of("no random bytes", &error))?;
        let run = u64::from_le_bytes(run);
        let carried = Carried::default();
        Ok((payload, Self { ring, region, import, fabric, run, sequence: 0, carried }))
    }

    /// Says something, with a notification; all that was written before is there before it.
    pub(crate) fn say(&mut self, body: Body) -> Result<(), Failure> {
        self.sequence += 1;
        let letter = Letter { run: self.run, sequence: self.sequence, body };
        let mut lease = self.lend()?;
        lease.write(0, &letter.to_bytes());
        let op = Write::new(lease, self.import.at(ORDER_AT)).notify(NEWS);
        self.run_one(op).map(|_| ())
    }

    /// Waits for the answer to what was said last, for at most so long.
    pub(crate) fn hear(&mut self, within: Duration) -> Result<Body, Failure> {
        let until = Instant::now() + within;
        let mut pause = PAUSE_MIN;
        loop {
            let op = Read::new(self.lend()?, self.import.at(ANSWER_AT));
            let completion = self.run_one(op)?;
            let mut bytes = [0; LETTER_BYTES];
            if let Some(lease) = completion.lease {
                lease.read(0, &mut bytes);
            }
            let letter = Letter::parse(&bytes)
                .map_err(|error| Failure::of("what the far end has answered is none", &error))?;
            // Those of another run, and earlier ones, may still lie there.
            let ours = |it: &Letter| (it.run, it.sequence) == (self.run, self.sequence);
            match letter.filter(ours).map(|letter| letter.body) {
                Some(body @ (Body::Seen | Body::Digest(_))) => return Ok(body),
                Some(_) => {
                    let text = "the far end refuses the order: another sender may have begun, or \
                                it runs another version of verbring";
                    return Err(Failure::Failed(text.to_string()));
                }
                None => {}
            }
            if Instant::now() >= until {
                let seconds = within.as_secs();
                let text = format!(
                    "the far end has not answered for {seconds} s: look whether it still runs \
                     --offer there, and whether another sender has begun"
                );
                return Err(Failure::Failed(text));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// What carried the mailbox's own ops.
    pub(crate) fn carried(&self) -> &Carried {
        &self.carried
    }

    /// Gives back what it took.
    pub(crate) fn close(self) -> Result<(), Failure> {
        self.ring
            .release()
            .and_then(|()| self.region.release())
            .map_err(|error| Failure::of("cannot give the mailbox back", &error))
    }

    fn lend(&self) -> Result<verbring::Lease, Failure> {
        self.region.lend(0..LETTER_BYTES as u64).map_err(|error| Failure::of("cannot lend", &error))
    }

    fn run_one(&mut self, op: impl Op) -> Result<Completion, Failure> {
        let over = |error| Failure::of("the ring is over", &error);
        self.ring.push(op).map_err(|error| Failure::of("cannot push", &error))?;
        self.ring.submit_and_wait(1, Some(SILENCE_MAX)).map_err(over)?;
        let Some(completion) = self.ring.reap().map_err(over)? else {
            let seconds = SILENCE_MAX.as_secs();
            let text = format!("an op of the mailbox did not complete for {seconds} s");
            return Err(Failure::Failed(text));
        };
        completion.result.map_err(|error| Failure::of("an op of the mailbox failed", &error))?;
        self.carried.count(&completion, Some(self.fabric))?;
        Ok(completion)
    }
}

/// What a notification carries; it means nothing but that there is a letter.
const NEWS: u32 = 1;
/// Between two looks for an answer, first and at most.
const PAUSE_MIN: Duration = Duration::from_micros(200);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// No single op takes so long, unless something hangs.
const SILENCE_MAX: Duration = Duration::from_secs(30);
