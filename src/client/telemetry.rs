//! The telemetry page as its readers see it: what goes through an engine, by lane, rail and
//! session.
//!
//! Nothing here asks the engine: the page is memory, which lives as long as anybody holds it.

use std::os::fd::{AsFd, OwnedFd};

use thiserror::Error;
use zerocopy::FromBytes;

use crate::abi::{self, Tally, TelemetryHeader};
use crate::shm::{ShmError, View};
use crate::telemetry::{Histogram, read_block};

/// An engine's telemetry page, mapped for reading.
#[derive(Debug)]
pub struct Telemetry {
    header: TelemetryHeader,
    view: View,
}

/// Memory that is no telemetry page.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// It cannot be mapped, or might shrink.
    #[error(transparent)]
    Memory(#[from] ShmError),
    /// Its header cannot be.
    #[error("not a telemetry page of ABI 1: header field {field} is {value}")]
    Header {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
}

/// What one lane, rail or session has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tallies {
    counts: Vec<u64>,
    /// From intake to first post, of the ops that were posted and have ended. Empty for a rail.
    pub wait: Histogram,
    /// From first post to the end, of the same ops; for a rail, of those that it took last.
    pub service: Histogram,
}

/// All that the page tells at about one moment. Each part is whole in itself; between two of
/// them the engine may have gone on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Of class high, medium, low; of each first those of users, then those of the engine's own
    /// work.
    pub lanes: Vec<Tallies>,
    /// By number; 0 is the engine's own host.
    pub rails: Vec<Tallies>,
    /// Sessions that are gone, all together.
    pub gone: Tallies,
    /// Sessions that are there, with their numbers.
    pub sessions: Vec<(u32, Tallies)>,
}

/// A block that is being written all the time is taken as it is: its engine was killed meanwhile.
const TRIES: u32 = 10_000;

impl Telemetry {
    /// Maps a telemetry page.
    ///
    /// # Errors
    /// [`TelemetryError`] if it is none.
    pub fn open(memfd: OwnedFd) -> Result<Self, TelemetryError> {
        let view = View::open(memfd.as_fd())?;
        let mut bytes = [0; size_of::<TelemetryHeader>()];
        if view.bytes() < u64::from(abi::TELEMETRY_HEADER_BYTES) {
            return Err(TelemetryError::Header { field: "magic", value: 0 });
        }
        view.read(0, &mut bytes);
        let Ok(header) = TelemetryHeader::read_from_bytes(&bytes) else {
            unreachable!("the array has the header's size");
        };
        check(&header, view.bytes())?;
        Ok(Self { header, view })
    }

    /// Looks at all of it.
    #[must_use]
    pub fn look(&self) -> Look {
        let header = &self.header;
        let lanes = (0..header.lanes).map(|lane| self.read(lane)).collect();
        let rails = (0..header.rails).map(|rail| self.read(header.rail_block(rail))).collect();
        let used = |session: &u32| {
            let uses = self.line(header.session_block(*session), Tally::Uses as u64 / 8);
            let uses = &uses[Tally::Uses as usize % 8];
            uses.load(std::sync::atomic::Ordering::Relaxed) % 2 == 1
        };
        let sessions = (0..header.sessions).filter(used);
        let sessions = sessions.map(|number| (number, self.read(header.session_block(number))));
        let sessions = sessions.filter(|(_, tallies)| tallies.uses() % 2 == 1).collect();
        Look { lanes, rails, gone: self.read(header.gone_block()), sessions }
    }

    /// Returns the engine's number, as record ids carry it.
    #[must_use]
    pub fn engine(&self) -> u32 {
        self.header.engine
    }

    /// Returns the engine's process id.
    #[must_use]
    pub fn engine_pid(&self) -> u32 {
        self.header.engine_pid
    }

    /// Returns what the engine drew at random when it started.
    #[must_use]
    pub fn boot_id(&self) -> [u64; 2] {
        self.header.boot_id
    }

    pub(super) fn bytes(&self) -> u64 {
        self.view.bytes()
    }

    fn line(&self, block: u32, line: u64) -> &[std::sync::atomic::AtomicU64; 8] {
        let at = u64::from(block) * u64::from(self.header.block_stride);
        self.view.line(u64::from(self.header.header_bytes) + at + 64 * line)
    }

    fn read(&self, block: u32) -> Tallies {
        let TelemetryHeader { counters, buckets, unit_ns, steps, .. } = self.header;
        let (counters, buckets) = (counters as usize, buckets as usize);
        let mut words = vec![0; (counters + 2 * buckets).next_multiple_of(8)];
        let lines = words.len() as u64 / 8;
        for _ in 0..TRIES {
            if read_block((0..lines).map(|line| self.line(block, line)), &mut words) {
                break;
            }
            std::hint::spin_loop();
        }
        let histogram =
            |from: usize| Histogram::new(words[from..][..buckets].to_vec(), unit_ns, steps);
        let (wait, service) = (histogram(counters), histogram(counters + buckets));
        words.truncate(counters);
        Tallies { counts: words, wait, service }
    }
}

impl Tallies {
    /// Returns a count; `Tally::Waits` is the first of those by wait reason.
    #[must_use]
    pub fn of(&self, tally: Tally) -> u64 {
        self.counts[tally as usize]
    }

    /// Returns how often an op was to go on and lacked this, an `abi::WAIT_*` number.
    #[must_use]
    pub fn waits(&self, reason: u16) -> u64 {
        let of = Tally::Waits as usize + usize::from(reason);
        if reason < 16 { self.counts[of] } else { 0 }
    }

    fn uses(&self) -> u64 {
        self.of(Tally::Uses)
    }

    /// Returns whether this is the same session as then, and not another one in its place.
    #[must_use]
    pub fn same_as(&self, earlier: &Self) -> bool {
        self.uses() == earlier.uses()
    }
}

fn check(header: &TelemetryHeader, bytes: u64) -> Result<(), TelemetryError> {
    let bad = |field, value| Err(TelemetryError::Header { field, value });
    let TelemetryHeader { magic, abi_version, header_bytes, block_stride, .. } = *header;
    let TelemetryHeader { counters, buckets, unit_ns, steps, lanes, rails, sessions, .. } = *header;
    if magic != abi::TELEMETRY_MAGIC {
        return bad("magic", magic);
    }
    if abi_version != u32::from(abi::ABI_VERSION) {
        return bad("abi_version", abi_version.into());
    }
    if header_bytes < abi::TELEMETRY_HEADER_BYTES || !header_bytes.is_multiple_of(64) {
        return bad("header_bytes", header_bytes.into());
    }
    if !(abi::BLOCK_COUNTERS..=WORDS_MAX).contains(&counters) {
        return bad("counters", counters.into());
    }
    if !(1..=WORDS_MAX).contains(&buckets) {
        return bad("buckets", buckets.into());
    }
    let words = (counters + 2 * buckets).next_multiple_of(8);
    if block_stride < 8 * words || !block_stride.is_multiple_of(64) || block_stride > 1 << 20 {
        return bad("block_stride", block_stride.into());
    }
    if unit_ns == 0 {
        return bad("unit_ns", 0);
    }
    if !steps.is_power_of_two() {
        return bad("steps", steps.into());
    }
    // Numbers of blocks have 32 bits with room to spare.
    for (field, count) in [("lanes", lanes), ("rails", rails), ("sessions", sessions)] {
        if count > 1 << 20 || field == "lanes" && count < abi::TELEMETRY_LANES {
            return bad(field, count.into());
        }
    }
    if header.bytes() > bytes {
        return bad("sessions", sessions.into());
    }
    Ok(())
}

/// Most words of counters, and of a histogram, that are believed.
const WORDS_MAX: u32 = 4_096;
