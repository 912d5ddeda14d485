//! Flight recorders as their readers see them: what became of the ops that are over.
//!
//! Nothing here asks the engine: a recorder is memory, which lives as long as anybody holds it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use zerocopy::FromBytes;

use super::story;
use crate::abi::{self, Class, Detail, Opcode, RecordEntry, RecorderHeader};
use crate::shm::{ShmError, View};
use crate::telemetry::read_entry;

/// A session's flight recorder, mapped for reading: the last of its ops that are over.
#[derive(Debug)]
pub struct Recorder {
    header: RecorderHeader,
    view: View,
    /// By this others find it at this process.
    _memfd: OwnedFd,
}

/// Memory that is no flight recorder, or a process whose recorders cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecorderError {
    /// It cannot be mapped, or might shrink.
    #[error(transparent)]
    Memory(#[from] ShmError),
    /// Its header cannot be.
    #[error("not a flight recorder of ABI 1: header field {field} is {value}")]
    Header {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The descriptors of a process cannot be looked at.
    #[error("cannot look at {}", path.display())]
    Process {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Memfds that are called so may be flight recorders.
const NAME: &str = "/memfd:verbring-recorder";

impl Recorder {
    /// Maps a flight recorder, and keeps its descriptor: [`Recorder::of_process`] goes by it.
    ///
    /// # Errors
    /// [`RecorderError`] if it is none.
    pub fn open(memfd: OwnedFd) -> Result<Self, RecorderError> {
        let view = View::open(memfd.as_fd())?;
        let mut bytes = [0; size_of::<RecorderHeader>()];
        if view.bytes() < u64::from(abi::RECORDER_HEADER_BYTES) {
            return Err(RecorderError::Header { field: "magic", value: 0 });
        }
        view.read(0, &mut bytes);
        let Ok(header) = RecorderHeader::read_from_bytes(&bytes) else {
            unreachable!("the array has the header's size");
        };
        check(&header, view.bytes())?;
        Ok(Self { header, view, _memfd: memfd })
    }

    /// Maps all flight recorders that a process holds: a client's are there when its engine is
    /// dead. Takes the right to look at the process, as a debugger has it.
    ///
    /// # Errors
    /// [`RecorderError::Process`] if there is no such process, or it may not be looked at.
    pub fn of_process(pid: u32) -> Result<Vec<Self>, RecorderError> {
        let path = PathBuf::from(format!("/proc/{pid}/fd"));
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| RecorderError::Process { path, source }
        };
        let mut found: Vec<Self> = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed(&path))? {
            let link = entry.map_err(failed(&path))?.path();
            // What is closed in the meantime is not looked for.
            let Ok(target) = std::fs::read_link(&link) else { continue };
            if !target.as_os_str().as_encoded_bytes().starts_with(NAME.as_bytes()) {
                continue;
            }
            let file = match File::open(&link) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&link)(error)),
            };
            // One of that name may be anybody's; an engine in the client's process has it twice.
            let Ok(recorder) = Self::open(file.into()) else { continue };
            if found.iter().all(|known| known.header != recorder.header) {
                found.push(recorder);
            }
        }
        Ok(found)
    }

    /// Returns what is known of the ops that ended last, oldest first. An op that ends meanwhile
    /// may be in it or not.
    #[must_use]
    pub fn records(&self) -> Vec<LedgerEntry> {
        let mut entries: Vec<RecordEntry> = (0..self.header.entries)
            .filter_map(|place| {
                let at = u64::from(place) * u64::from(self.header.entry_stride);
                let line = self.view.line(u64::from(self.header.header_bytes) + at);
                read_entry(line).map(RecordEntry::from_words)
            })
            .collect();
        // Sequences wrap, but no two that are there are further apart than there are places.
        let Some(first) = entries.first().map(|entry| entry.sequence) else { return Vec::new() };
        let half = 1 << 31;
        entries.sort_by_key(|entry| entry.sequence.wrapping_sub(first).wrapping_add(half));
        entries.into_iter().map(|entry| LedgerEntry::new(self.header.session, &entry)).collect()
    }

    /// Returns what is known of the op with this record, if it is over and not overwritten yet.
    #[must_use]
    pub fn find(&self, record: u64) -> Option<LedgerEntry> {
        self.records().into_iter().rev().find(|entry| entry.record == record)
    }

    /// Returns how many ops it holds.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.header.entries
    }

    /// Returns the session's number in its engine.
    #[must_use]
    pub fn session(&self) -> u32 {
        self.header.session
    }

    /// Returns the engine's number, as record ids carry it.
    #[must_use]
    pub fn engine(&self) -> u32 {
        self.header.engine
    }

    /// Returns what the engine drew at random when it started.
    #[must_use]
    pub fn boot_id(&self) -> [u64; 2] {
        self.header.boot_id
    }

    /// Returns the process ids of the engine and of the client, as the engine saw them.
    #[must_use]
    pub fn pids(&self) -> [u32; 2] {
        [self.header.engine_pid, self.header.client_pid]
    }

    /// Returns the client's uid.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.header.uid
    }
}

fn check(header: &RecorderHeader, bytes: u64) -> Result<(), RecorderError> {
    let bad = |field, value| Err(RecorderError::Header { field, value });
    let RecorderHeader { magic, abi_version, header_bytes, entry_stride, entries, .. } = *header;
    if magic != abi::RECORDER_MAGIC {
        return bad("magic", magic);
    }
    if abi_version != u32::from(abi::ABI_VERSION) {
        return bad("abi_version", abi_version.into());
    }
    if header_bytes < abi::RECORDER_HEADER_BYTES || !header_bytes.is_multiple_of(8) {
        return bad("header_bytes", header_bytes.into());
    }
    let strides = abi::RECORD_STRIDE..=4096;
    if !strides.contains(&entry_stride) || !entry_stride.is_multiple_of(8) {
        return bad("entry_stride", entry_stride.into());
    }
    let good = entries.is_power_of_two() && entries <= abi::RECORDER_ENTRIES_MAX;
    if !good || header.bytes() > bytes {
        return bad("entries", entries.into());
    }
    Ok(())
}

/// What became of an op that is over. Shown (`Display`), it tells its story in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LedgerEntry {
    /// Its ledger record, as in its completion.
    pub record: u64,
    /// Its session's number.
    pub session: u32,
    /// Its ring's number.
    pub ring: u32,
    /// Its `user_data`.
    pub user_data: u64,
    /// What it did; `None` if this version does not know it.
    pub opcode: Option<Opcode>,
    /// Its class; `None` if this version does not know it.
    pub class: Option<Class>,
    /// When it was taken: nanoseconds of CLOCK_MONOTONIC.
    pub taken_ns: u64,
    /// From intake to its first post; `None` if nothing of it was posted.
    pub queued: Option<Duration>,
    /// From intake to its end.
    pub total: Duration,
    /// Requests that it was given to the fabric as; saturates at 65,535.
    pub posts: u32,
    /// Times the fabric posted one of them again; saturates at 255.
    pub retries: u32,
    /// Times it was to go on and found no credit; saturates at 65,535.
    pub defers: u32,
    /// What it lacked the last time, or, if it waited and never lacked anything, who went before
    /// it: an `abi::WAIT_*` number.
    pub wait: u16,
    /// The rail that it went by last; 0 is the engine's host.
    pub rail: u16,
    /// Bytes asked for; notifications of an ARM.
    pub bytes: u32,
    /// Bytes moved, or a negative errno, as in its completion; notifications of an ARM.
    pub res: i32,
    /// `abi::CQE_*` bits, as in its completion.
    pub flags: u16,
    /// As in its completion: on failure an `abi::Detail` number, on success fabric << 8 | rail.
    pub detail: u16,
    /// errno of the first failure that was its own; 0 if it failed only along with its queue pair,
    /// or did not fail. What it ended with may be another one.
    pub cause: i32,
}

impl LedgerEntry {
    fn new(session: u32, entry: &RecordEntry) -> Self {
        let unpacked = |word: u64| {
            let count = (word & ((1 << abi::RECORD_TIME_SHIFT) - 1)) as u32;
            (Duration::from_nanos(word >> abi::RECORD_TIME_SHIFT), count)
        };
        let ((queued, posts), (total, defers)) = (unpacked(entry.queued), unpacked(entry.total));
        Self {
            record: entry.record,
            session,
            ring: entry.ring.into(),
            user_data: entry.user_data,
            opcode: Opcode::from_byte(entry.opcode),
            class: Class::from_byte(entry.class).filter(|_| entry.class != 0),
            taken_ns: entry.taken_ns,
            queued: (posts > 0).then_some(queued),
            total,
            posts,
            retries: entry.retries.into(),
            defers,
            wait: entry.wait.into(),
            rail: entry.rail.into(),
            bytes: entry.bytes,
            res: entry.res,
            flags: entry.flags,
            detail: entry.detail,
            cause: entry.cause.into(),
        }
    }

    /// Returns in words why it waited, and how long it was served.
    #[must_use]
    pub fn summary(&self) -> String {
        struct Summary<'e>(&'e LedgerEntry);
        impl fmt::Display for Summary<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                story::answer(self.0, f)
            }
        }
        Summary(self).to_string()
    }

    /// Returns from its first post to its end; `None` if nothing of it was posted.
    #[must_use]
    pub fn service(&self) -> Option<Duration> {
        self.queued.map(|queued| self.total.saturating_sub(queued))
    }

    /// Returns when it was over: nanoseconds of CLOCK_MONOTONIC.
    #[must_use]
    pub fn ended_ns(&self) -> u64 {
        self.taken_ns.saturating_add(u64::try_from(self.total.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns the field or the rule that a failure is about; `None` for a success, and for a
    /// number that this version does not know.
    #[must_use]
    pub fn failed_by(&self) -> Option<Detail> {
        if self.res < 0 { Detail::from_number(self.detail) } else { None }
    }

    /// True if it failed along with its queue pair, and not by a fault of its own.
    #[must_use]
    pub fn flushed(&self) -> bool {
        self.res < 0 && self.flags & abi::CQE_FLUSHED != 0 && self.cause == 0
    }
}

impl fmt::Display for LedgerEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        story::tell(self, f)
    }
}
