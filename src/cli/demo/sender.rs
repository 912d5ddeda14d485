//! The sender of a demo, on one host or between two: it sends the file, reads it back, measures.
//!
//! Whom it tells how that goes is a [`Partner`]: the parent by pipes, or the far end by a mailbox.
//!
//! The file goes window by window: one window is as much as the exporter's region holds. A window
//! is cut into chunks, dealt over the three classes in turn, and all its chunks are WRITEs before
//! any is a READ. The probe has a ring of its own, as anything should that must not wait behind
//! what is not yet taken.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use sha2::{Digest, Sha256};
use verbring::abi::Class;
use verbring::client::{Op, Remote, RingError};
use verbring::{
    Completion, Import, Lease, Read, Region, Ring, RingOptions, Secret, Session, Write,
};

use super::digest_text;
use super::outcome::{Latency, Sent};
use super::talk::{Order, Report, next_order, report};
use crate::cli::Failure;
use crate::cli::carried::Carried;

/// One pass of the file, as the sender saw it.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) bytes: u64,
    pub(super) sha256_sent: String,
    pub(super) sha256_read_back: String,
    pub(super) so_far: Sent,
}

/// Whom the sender tells what it has done, and by whom it hears of who looks at the other side.
pub(super) trait Partner {
    /// So many more bytes went there or came back.
    fn moved(&mut self, bytes: u64) -> Result<(), Failure>;

    /// The window holds the next part of the file, `last` of it, and may be looked at.
    fn written(&mut self, bytes: u64, last: bool) -> Result<(), Failure>;

    /// Waits until it was looked at.
    fn seen(&mut self) -> Result<(), Failure>;

    /// The file was sent and read back once; false if that is to be the last time.
    fn passed(&mut self, pass: Passed) -> Result<bool, Failure>;
}

/// The parent of the client that this is.
struct Parent;

impl Partner for Parent {
    fn moved(&mut self, bytes: u64) -> Result<(), Failure> {
        report(&Report::Moved { bytes })
    }

    fn written(&mut self, bytes: u64, last: bool) -> Result<(), Failure> {
        report(&Report::Written { bytes, last })
    }

    fn seen(&mut self) -> Result<(), Failure> {
        match next_order()? {
            Some(Order::Seen) => Ok(()),
            _ => Err(Failure::Failed("no word from the exporter".to_string())),
        }
    }

    fn passed(&mut self, pass: Passed) -> Result<bool, Failure> {
        let Passed { bytes, sha256_sent, sha256_read_back, so_far } = pass;
        report(&Report::Pass { bytes, sha256_sent, sha256_read_back, so_far })?;
        // Whether the digests are equal is for the parent to say, which has all three.
        Ok(true)
    }
}

/// Sends the file once, or over and over for some seconds, as a client of one engine.
pub(super) fn run(socket: &Path, file: &Path, seconds: u32) -> Result<(), Failure> {
    let session = Session::connect(socket).map_err(|error| Failure::of("cannot attach", &error))?;
    let Some(Order::Send { name, secret }) = next_order()? else {
        return Err(Failure::Failed("no order to send".to_string()));
    };
    let secret: Secret =
        secret.parse().map_err(|error| Failure::of("cannot read the secret", &error))?;
    let import = session
        .import(&name, None, &secret)
        .map_err(|error| Failure::of("cannot import", &error))?;
    let line = Line::open(&session, import, None)?;
    report(&Report::Attached)?;
    let line = line.send(file, seconds, &mut Parent)?;
    report(&Report::Done)?;
    line.close()
}

/// All that a transfer needs, and what it measured.
pub(super) struct Line {
    bulk: Ring,
    probe: Probe,
    region: Region,
    import: Import,
    /// Bytes of one window: the region's first half goes there, its second half comes back.
    window_bytes: u64,
    latencies: [Histogram<u64>; 3],
    in_flight_time: Duration,
    bytes_moved: u64,
    /// Record and fabric of the first op reaped, and of the last.
    ends: Option<[(u64, u8); 2]>,
    /// What must carry every op, if that matters.
    fabric: Option<u8>,
    carried: Carried,
}

/// A chunk on its way.
struct Flight {
    index: usize,
    class: Class,
    bytes: u64,
    since: Instant,
}

impl Line {
    /// Takes what it needs to fill `import` and read it back; with a `fabric`, by no other one.
    pub(super) fn open(
        session: &Session,
        import: Import,
        fabric: Option<u8>,
    ) -> Result<Self, Failure> {
        let window_bytes = import.bytes();
        let region = session
            .alloc(2 * window_bytes + PROBE_BYTES)
            .map_err(|error| Failure::of("cannot have a region", &error))?;
        let no_ring = |error| Failure::of("cannot have a ring", &error);
        let bulk = session.ring(RingOptions::new(64, 64)).map_err(no_ring)?;
        let ring = session.ring(RingOptions::new(2, 2)).map_err(no_ring)?;
        let lease = region
            .lend(2 * window_bytes..2 * window_bytes + PROBE_BYTES)
            .map_err(|error| Failure::of("cannot lend", &error))?;
        let probe = Probe {
            ring,
            from: import.clone(),
            lease: Some(lease),
            since: None,
            took: histogram(),
        };
        Ok(Self {
            bulk,
            probe,
            region,
            import,
            window_bytes,
            latencies: [histogram(), histogram(), histogram()],
            in_flight_time: Duration::ZERO,
            bytes_moved: 0,
            ends: None,
            fabric,
            carried: Carried::default(),
        })
    }

    /// Sends the file once, or over and over for some seconds.
    pub(super) fn send(
        mut self,
        file: &Path,
        seconds: u32,
        partner: &mut impl Partner,
    ) -> Result<Self, Failure> {
        let unreadable = |error| Failure::of("cannot read the file", &error);
        let mut source = File::open(file).map_err(unreadable)?;
        let bytes = source.metadata().map_err(unreadable)?.len();
        let until = Instant::now() + Duration::from_secs(seconds.into());
        loop {
            source.rewind().map_err(unreadable)?;
            let pass = self.send_file(&mut source, bytes, partner)?;
            if !partner.passed(pass)? || Instant::now() >= until {
                return Ok(self);
            }
        }
    }

    /// Sends the file and reads it back, once.
    fn send_file(
        &mut self,
        source: &mut File,
        file_bytes: u64,
        partner: &mut impl Partner,
    ) -> Result<Passed, Failure> {
        let mut sent = Sha256::new();
        let mut read_back = Sha256::new();
        let mut bytes = 0;
        loop {
            let want = self.window_bytes.min(file_bytes - bytes);
            let content = read_up_to(source, want)?;
            let got = content.len() as u64;
            bytes += got;
            // A file that shrinks meanwhile ends early.
            let last = bytes == file_bytes || got < want;
            sent.update(&content);
            let there = self.leases(0, got)?;
            self.write_out(there, &content)?;
            partner.moved(got)?;
            partner.written(got, last)?;
            let back = self.leases(self.window_bytes, got)?;
            partner.moved(self.read_back(back, &mut read_back)?)?;
            partner.seen()?;
            if last {
                break;
            }
        }
        Ok(Passed {
            bytes,
            sha256_sent: digest_text(&sent.finalize()),
            sha256_read_back: digest_text(&read_back.finalize()),
            so_far: self.so_far(),
        })
    }

    /// Cuts `bytes` of the region, from `start` on, into chunks: at least one for each class, be
    /// they empty.
    fn leases(&self, start: u64, bytes: u64) -> Result<Vec<Lease>, Failure> {
        let chunk_bytes = CHUNK_BYTES.min(bytes.div_ceil(3));
        let count = bytes.div_ceil(chunk_bytes.max(1)).max(3);
        (0..count)
            .map(|index| {
                let from = (index * chunk_bytes).min(bytes);
                let to = (from + chunk_bytes).min(bytes);
                self.region.lend(start + from..start + to)
            })
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::of("cannot lend", &error))
    }

    fn write_out(&mut self, mut chunks: Vec<Lease>, content: &[u8]) -> Result<(), Failure> {
        let mut rest = content;
        for lease in &mut chunks {
            let (piece, after) = rest.split_at(length(lease));
            lease.write(0, piece);
            rest = after;
        }
        self.run_all(chunks, |lease, to, class| Write::new(lease, to).class(class)).map(|_| ())
    }

    fn read_back(&mut self, chunks: Vec<Lease>, digest: &mut Sha256) -> Result<u64, Failure> {
        let chunks =
            self.run_all(chunks, |lease, from, class| Read::new(lease, from).class(class))?;
        let mut content = Vec::new();
        for lease in &chunks {
            content.resize(length(lease), 0);
            lease.read(0, &mut content);
            digest.update(&content);
        }
        Ok(chunks.iter().map(Lease::bytes).sum())
    }

    /// Runs one op for each chunk, up to [`DEPTH`] at once, and the probe beside them. Hands the
    /// chunks back in their order.
    fn run_all<O: Op>(
        &mut self,
        chunks: Vec<Lease>,
        make: impl Fn(Lease, Remote, Class) -> O,
    ) -> Result<Vec<Lease>, Failure> {
        // However short the run, one READ of the probe goes beside it.
        self.probe.since = None;
        let start = Instant::now();
        let count = chunks.len();
        let origin = chunks.first().map_or(0, Lease::offset);
        let mut waiting = chunks.into_iter().zip(0..);
        let mut in_flight = BTreeMap::new();
        let mut back: Vec<Option<Lease>> = (0..count).map(|_| None).collect();
        let mut done = 0;
        while done < count {
            while in_flight.len() < DEPTH
                && let Some((lease, index)) = waiting.next()
            {
                let class = Class::ALL[index % Class::ALL.len()];
                let bytes = lease.bytes();
                let remote = self.import.at(lease.offset() - origin);
                let op = make(lease, remote, class);
                let since = Instant::now();
                let ticket =
                    self.bulk.push(op).map_err(|error| Failure::of("cannot push", &error))?;
                in_flight.insert(ticket, Flight { index, class, bytes, since });
            }
            self.bulk.submit();
            if let Some(completion) = self.probe.turn()? {
                self.count(&completion, PROBE_BYTES)?;
            }
            let ready = self.bulk.wait(1, Some(PAUSE)).map_err(over)?;
            for _ in 0..ready {
                let Some(completion) = self.bulk.reap().map_err(over)? else { break };
                let Some(flight) = in_flight.remove(&completion.ticket) else {
                    return Err(Failure::Failed("a completion for no op".to_string()));
                };
                self.latencies[flight.class.index()].saturating_record(elapsed_ns(flight.since));
                self.count(&completion, flight.bytes)?;
                back[flight.index] = completion.lease;
                done += 1;
            }
        }
        if let Some(completion) = self.probe.settle()? {
            self.count(&completion, PROBE_BYTES)?;
        }
        self.in_flight_time += start.elapsed();
        back.into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| Failure::Failed("a completion without its lease".to_string()))
    }

    /// Checks a success and counts it in.
    fn count(&mut self, completion: &Completion, bytes: u64) -> Result<(), Failure> {
        match &completion.result {
            Ok(moved) if u64::from(*moved) == bytes => {}
            Ok(moved) => {
                return Err(Failure::Failed(format!("an op moved {moved} of {bytes} bytes")));
            }
            Err(error) => return Err(Failure::of("an op failed", error)),
        }
        self.carried.count(completion, self.fabric)?;
        self.bytes_moved += bytes;
        let here = (completion.record, completion.fabric);
        let [first, _] = *self.ends.get_or_insert([here; 2]);
        if first.1 != here.1 {
            let text = format!("ops went by fabrics {} and {}", first.1, here.1);
            return Err(Failure::Failed(text));
        }
        self.ends = Some([first, here]);
        Ok(())
    }

    fn so_far(&self) -> Sent {
        let [(first_record, fabric), (last_record, _)] = self.ends.unwrap_or_default();
        let mut latencies = self.latencies.clone();
        // A histogram takes in one of the same bounds.
        let _ = latencies[Class::High.index()].add(&self.probe.took);
        Sent {
            ops: latencies.iter().map(Histogram::len).sum(),
            seconds: self.in_flight_time.as_secs_f64(),
            bytes_moved: self.bytes_moved,
            fabric,
            first_record,
            last_record,
            classes: latencies.each_ref().map(Latency::of),
            probe: Latency::of(&self.probe.took),
            carried: self.carried.clone(),
        }
    }

    /// Gives everything back, which a session that ends would do by itself.
    pub(super) fn close(self) -> Result<(), Failure> {
        let released = self
            .bulk
            .release()
            .and_then(|()| self.probe.ring.release())
            .and_then(|()| self.import.release())
            .and_then(|()| self.region.release());
        released.map_err(|error| Failure::of("cannot give a ring or region back", &error))
    }
}

/// A small READ of class high every so often, one at a time.
struct Probe {
    ring: Ring,
    from: Import,
    /// Here unless the READ under way has it.
    lease: Option<Lease>,
    /// When the last READ was pushed.
    since: Option<Instant>,
    took: Histogram<u64>,
}

impl Probe {
    /// Reaps the READ under way if it is done; pushes the next if it is time.
    fn turn(&mut self) -> Result<Option<Completion>, Failure> {
        let due = self.since.is_none_or(|since| since.elapsed() >= PROBE_EVERY);
        if due && let Some(lease) = self.lease.take() {
            let op = Read::new(lease, self.from.at(0)).class(Class::High);
            self.since = Some(Instant::now());
            self.ring.push(op).map_err(|error| Failure::of("cannot push", &error))?;
            self.ring.submit();
        }
        let Some(mut completion) = self.ring.reap().map_err(over)? else { return Ok(None) };
        self.took.saturating_record(self.since.map_or(0, elapsed_ns));
        self.lease = completion.lease.take();
        Ok(Some(completion))
    }

    /// Waits for the READ under way.
    fn settle(&mut self) -> Result<Option<Completion>, Failure> {
        if self.lease.is_some() {
            return Ok(None);
        }
        self.ring.wait(1, None).map_err(over)?;
        self.turn()
    }
}

fn over(error: RingError) -> Failure {
    Failure::of("the ring is over", &error)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("bounds that are sound")
}

fn elapsed_ns(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A lease's length as an index; leases are of mapped memory.
fn length(lease: &Lease) -> usize {
    usize::try_from(lease.bytes()).unwrap_or(usize::MAX)
}

/// Reads so many bytes, or less at the file's end.
fn read_up_to(source: &mut File, bytes: u64) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    source
        .take(bytes)
        .read_to_end(&mut content)
        .map_err(|error| Failure::of("cannot read the file", &error))?;
    Ok(content)
}

/// A class's chunks are this long at most.
const CHUNK_BYTES: u64 = 64 << 10;
/// Chunks in flight at once, over all classes: more than the engine's window holds, so that the
/// classes show.
const DEPTH: usize = 48;
/// Bytes the probe reads.
const PROBE_BYTES: u64 = 64;
/// At most one probe in so long.
const PROBE_EVERY: Duration = Duration::from_micros(100);
/// A wait looks after the probe so often.
const PAUSE: Duration = Duration::from_micros(200);
/// Latencies above a minute count as a minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
