//! The measured contestant: a ring of whole entries through the production engine.

use std::path::Path;
use std::time::Duration;

use verbring::abi::Sqe;
use verbring::client::RingError;
use verbring::{Import, RawRing, Region, Rights, RingOptions, Session};

use super::shape::{Shape, Walk};
use super::slice::{Rig, SILENCE_MAX, TIMED};
use super::wake::Sleeper;
use crate::cli::Failure;

/// A session with one ring, and one region that it has exported and imported itself.
pub(super) struct EngineRig {
    ring: RawRing,
    walk: Walk,
    /// What every success must say.
    result: i32,
    _memory: Option<(Region, Import)>,
}

impl EngineRig {
    /// Attaches to the engine at `socket`. `spin` is how long a wait looks before it sleeps.
    pub(super) fn new(socket: &Path, shape: &Shape, spin: Duration) -> Result<Self, Failure> {
        let session =
            Session::connect(socket).map_err(|error| Failure::of("cannot attach", &error))?;
        let entries = shape.entries();
        let options = RingOptions { spin, ..RingOptions::new(entries, entries) };
        let ring =
            session.raw_ring(options).map_err(|error| Failure::of("cannot have a ring", &error))?;
        let memory = match shape.op_bytes() {
            0 => None,
            _ => Some(memory(&session, shape)?),
        };
        let [local, remote] =
            memory.as_ref().map_or([0; 2], |(region, import)| [region.id(), import.id()]);
        let walk = shape.walk(local, remote);
        let result = i32::try_from(shape.op_bytes()).unwrap_or(i32::MAX);
        Ok(Self { ring, walk, result, _memory: memory })
    }
}

/// A region that holds the working set and the page lists, present and offered to ourselves.
fn memory(session: &Session, shape: &Shape) -> Result<(Region, Import), Failure> {
    let failed = |error| Failure::of("cannot have a region", &error);
    let region = session.alloc(shape.memory_bytes()).map_err(failed)?;
    let mut lease = region
        .lend(0..region.bytes())
        .map_err(|error| Failure::of("cannot fill the region", &error))?;
    lease.fill(1);
    let (base, lists) = shape.lists();
    lease.write(base, zerocopy::IntoBytes::as_bytes(lists.as_slice()));
    drop(lease);
    // A name is unique per uid, and other clients of the bench export, too.
    let name = format!("bench {}", session.number());
    let secret = region.export(&name, Rights::ALL).map_err(failed)?;
    let import = session.import(&name, None, &secret).map_err(failed)?;
    Ok((region, import))
}

/// Makes rings that stay idle.
pub(super) fn crowd(socket: &Path, rings: u32) -> Result<Vec<RawRing>, Failure> {
    if rings == 0 {
        return Ok(Vec::new());
    }
    let session = Session::connect(socket).map_err(|error| Failure::of("cannot attach", &error))?;
    (0..rings)
        .map(|_| session.raw_ring(RingOptions::new(2, 2)))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::of("cannot have idle rings", &error))
}

impl Sleeper for EngineRig {
    fn other_sleeps(&mut self) -> bool {
        self.ring.engine_sleeps()
    }

    fn once(&mut self) -> Result<(), Failure> {
        self.submit(1, 0)?;
        self.ring.wait(1, Some(SILENCE_MAX)).map_err(over)?;
        match self.reap()? {
            (0, _) => Err(Failure::Failed("an op did not complete".to_string())),
            _ => Ok(()),
        }
    }
}

impl Rig for EngineRig {
    #[inline]
    fn submit(&mut self, count: u32, tag: u64) -> Result<(), Failure> {
        let mut left = count;
        loop {
            let walk = &mut self.walk;
            let sqes = (0..left).map(|_| Sqe::from_words(walk.next(tag)));
            left -= self.ring.push_all(sqes);
            if left == 0 {
                break;
            }
            // As many SQEs as slots are in flight: the engine has taken them, or soon will.
            self.ring.submit();
            self.check()?;
        }
        self.ring.submit();
        Ok(())
    }

    #[inline]
    fn reap(&mut self) -> Result<(u32, u32), Failure> {
        let (mut timed, mut wrong) = (0, None);
        let result = self.result;
        let popped = self.ring.pop_all(|cqe| {
            if cqe.res != result {
                wrong = Some(cqe);
            }
            timed += u32::from(cqe.user_data == TIMED);
        });
        if let Some(cqe) = wrong {
            let detail = verbring::abi::Detail::from_number(cqe.detail);
            let text = format!("an op answered {} ({detail:?})", cqe.res);
            return Err(Failure::Failed(text));
        }
        Ok((popped.map_err(over)?, timed))
    }

    fn check(&mut self) -> Result<(), Failure> {
        // A wait of no length looks whether the engine and the session live.
        self.ring.wait(1, Some(Duration::ZERO)).map(|_| ()).map_err(over)
    }

    fn at_rest(&mut self) -> bool {
        self.ring.engine_sleeps()
    }
}

fn over(error: RingError) -> Failure {
    Failure::of("the ring is over", &error)
}
