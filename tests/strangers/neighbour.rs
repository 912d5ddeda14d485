//! The neighbour: a session that minds its own business and looks at every byte of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use verbring::abi::{FABRIC_LOCAL, Opcode, Page, Sqe};
use verbring::{Import, Lease, RawRing, Region, Rights, RingOptions, Session};
use zerocopy::IntoBytes;

use super::chance::Chance;
use super::stage::PATIENCE;

/// A neighbour at work on a thread of its own.
#[derive(Debug)]
pub(crate) struct Neighbour {
    verified: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// Dropped to send the session home.
    home: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// What went wrong, or that it has stopped in good order.
    outcome: Receiver<Result<(), String>>,
    /// Ids that attackers may try to forge.
    pub(crate) ids: Ids,
}

/// Numbers of the neighbour's objects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids {
    pub(crate) near: u32,
    pub(crate) far: u32,
    pub(crate) import: u32,
    pub(crate) ring: u32,
}

impl Neighbour {
    /// Starts one; returns once its first round is verified.
    pub(crate) fn start(socket: PathBuf) -> Self {
        let (verified, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (report, outcome) = channel();
        let (ready, born) = channel();
        let (home, going) = channel();
        let work = {
            let (verified, stop) = (Arc::clone(&verified), Arc::clone(&stop));
            move || {
                let mut house = House::open(socket);
                house.round(&verified).unwrap();
                ready.send(house.ids()).unwrap();
                let mut outcome = Ok(());
                while outcome.is_ok() && !stop.load(Ordering::Relaxed) {
                    outcome = house.round(&verified);
                }
                report.send(outcome).unwrap();
                // The session stays until the other side hangs up.
                let _: Result<(), _> = going.recv();
            }
        };
        let thread = std::thread::spawn(work);
        let ids = born.recv_timeout(PATIENCE).expect("the neighbour's first round");
        Self { verified, stop, home: Some(home), thread: Some(thread), outcome, ids }
    }

    /// Ops verified so far.
    pub(crate) fn verified(&self) -> u64 {
        self.verified.load(Ordering::Relaxed)
    }

    /// Fails the test at once if the neighbour was disturbed.
    pub(crate) fn look(&self) {
        if let Ok(outcome) = self.outcome.try_recv() {
            panic!("the neighbour was disturbed: {outcome:?}");
        }
    }

    /// Ends its last round, and fails the test if it was disturbed. The session stays.
    pub(crate) fn rest(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.outcome.recv_timeout(PATIENCE).expect("the neighbour is stuck");
        assert_eq!(outcome, Ok(()), "the neighbour was disturbed");
    }

    /// Ends its session.
    pub(crate) fn leave(mut self) {
        drop(self.home.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Also when the test has failed: the next one counts what it finds.
impl Drop for Neighbour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.home.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// WRITEs of a round, and as many READs.
const OPS: u64 = 64;
const OP_BYTES: u64 = 256;
const ROUND_BYTES: usize = (OPS * OP_BYTES) as usize;
/// The last of them is a WRITEV, and a READV, of so many pages.
const PAGES: u64 = 4;
const PAGE_BYTES: u64 = OP_BYTES / PAGES;
/// Places in the near region.
const SOURCE_AT: u64 = 0;
const LANDING_AT: u64 = OPS * OP_BYTES;
const LIST_AT: u64 = 2 * OPS * OP_BYTES;
const REGION_BYTES: u64 = LIST_AT + 4096;

struct House {
    ring: RawRing,
    near: Region,
    far: Region,
    import: Import,
    memory: Lease,
    chance: Chance,
    sent: Vec<u8>,
    back: Vec<u8>,
}

impl House {
    fn open(socket: PathBuf) -> Self {
        let session = Session::connect(socket).unwrap();
        let near = session.alloc(REGION_BYTES).unwrap();
        let far = session.alloc(REGION_BYTES).unwrap();
        let secret = far.export("neighbour", Rights::ALL).unwrap();
        let import = session.import("neighbour", None, &secret).unwrap();
        let ring = session.raw_ring(RingOptions::new(64, 128)).unwrap();
        let memory = near.lend(0..REGION_BYTES).unwrap();
        let chance = Chance::new(0x6e65_6967);
        let (sent, back) = (vec![0; ROUND_BYTES], vec![0; ROUND_BYTES]);
        Self { ring, near, far, import, memory, chance, sent, back }
    }

    fn ids(&self) -> Ids {
        let (near, far, import) = (self.near.id(), self.far.id(), self.import.id());
        Ids { near, far, import, ring: self.ring.number() }
    }

    /// Writes 64 ranges, reads them back, and compares.
    fn round(&mut self, verified: &AtomicU64) -> Result<(), String> {
        for word in self.sent.chunks_exact_mut(8) {
            word.copy_from_slice(&self.chance.u64().to_le_bytes());
        }
        self.memory.write(SOURCE_AT, &self.sent);
        self.batch(Opcode::Write, Opcode::Writev, SOURCE_AT)?;
        self.batch(Opcode::Read, Opcode::Readv, LANDING_AT)?;
        self.memory.read(LANDING_AT, &mut self.back);
        if self.sent != self.back {
            let at = self.sent.iter().zip(&self.back).position(|(sent, back)| sent != back);
            return Err(format!("byte {at:?} of a round came back changed"));
        }
        verified.fetch_add(2 * OPS, Ordering::Relaxed);
        Ok(())
    }

    fn batch(&mut self, plain: Opcode, paged: Opcode, local_at: u64) -> Result<(), String> {
        for index in 0..OPS - 1 {
            let offset = index * OP_BYTES;
            self.push(plain, index, local_at + offset, offset, OP_BYTES, 0)?;
        }
        let offset = (OPS - 1) * OP_BYTES;
        for page in 0..PAGES {
            let entry = Page {
                local_offset: local_at + offset + page * PAGE_BYTES,
                remote_offset: page * PAGE_BYTES,
            };
            self.memory.write(LIST_AT + page * size_of::<Page>() as u64, entry.as_bytes());
        }
        self.push(paged, OPS - 1, LIST_AT, offset, PAGE_BYTES, PAGES)?;
        self.reap()
    }

    fn push(
        &mut self,
        opcode: Opcode,
        user_data: u64,
        local_offset: u64,
        remote_offset: u64,
        bytes: u64,
        pages: u64,
    ) -> Result<(), String> {
        let sqe = Sqe {
            opcode: opcode as u8,
            class: (user_data % 4) as u8,
            user_data,
            local_region: self.near.id(),
            remote_region: self.import.id(),
            local_offset,
            remote_offset,
            bytes: u32::try_from(bytes).unwrap(),
            arg: [pages << 32, 0],
            ..Sqe::default()
        };
        self.ring.push(sqe).map(|_| ()).ok_or_else(|| "the SQ is full".into())
    }

    /// Takes the 64 completions of a batch: each once, each whole, each by the local fabric.
    fn reap(&mut self) -> Result<(), String> {
        let mut missing = u64::MAX;
        self.ring.submit();
        while missing != 0 {
            let want = missing.count_ones();
            let ready = self.ring.wait(want, Some(PATIENCE)).map_err(|over| over.to_string())?;
            if ready < want {
                return Err(format!("{want} ops without a completion for {PATIENCE:?}"));
            }
            for _ in 0..ready {
                let cqe = self.ring.pop().map_err(|over| over.to_string())?;
                let cqe = cqe.ok_or("a completion vanished")?;
                let good = (OP_BYTES as i32, u16::from(FABRIC_LOCAL) << 8, 0);
                let bit = 1u64.checked_shl(u32::try_from(cqe.user_data).unwrap_or(64));
                if (cqe.res, cqe.detail, cqe.flags) != good || missing & bit.unwrap_or(0) == 0 {
                    return Err(format!("a completion that cannot be: {cqe:?}"));
                }
                missing &= !bit.unwrap_or(0);
            }
        }
        Ok(())
    }
}
