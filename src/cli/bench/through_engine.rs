//! The measured contestant: a ring of whole entries through the production engine.

use std::path::Path;
use std::time::Duration;

use verbring::abi::{Cqe, FABRIC_VERBS, Sqe};
use verbring::client::{ControlError, LendError, RingError};
use verbring::{Import, RawRing, Region, Rights, RingOptions, Secret, Session};

use super::shape::{OpKind, Shape, Walk};
use super::slice::{Rig, SILENCE_MAX, TIMED};
use super::wake::Sleeper;
use crate::cli::Failure;
use crate::cli::demo::fabric_name;

/// A session with one ring, and one region that it has exported and imported itself; or one that
/// it has imported from a second engine, where another session of ours has exported it.
pub(super) struct EngineRig {
    ring: RawRing,
    walk: Walk,
    /// What every success must say.
    result: i32,
    memory: Option<Memory>,
    /// The fabric that every success must name, if that matters, and a bit for each rail of it
    /// that one did.
    fabric: Option<u8>,
    rails: u64,
}

/// The near side, and the far side.
pub(super) struct Memory {
    pub(super) near: Region,
    pub(super) import: Import,
    /// Held, if it is a region of its own.
    far: Option<Region>,
}

impl EngineRig {
    /// Attaches to the engine at `socket`, and to the one at `far`, to which the ops then go by
    /// queue pairs. `spin` is how long a wait looks before it sleeps.
    pub(super) fn new(
        socket: &Path,
        far: Option<&Path>,
        shape: &Shape,
        spin: Duration,
    ) -> Result<Self, Failure> {
        let session = attach(socket)?;
        let memory = match shape.op_bytes() {
            0 => None,
            _ => Some(match far {
                None => memory(&session, shape)?,
                Some(far) => memory_beyond(&session, far, shape)?,
            }),
        };
        let mut rig = Self::over(&session, memory, shape, spin)?;
        if far.is_some() {
            rig.try_verbs(shape)?;
        }
        Ok(rig)
    }

    /// Goes between a region here and what another host offers, by queue pairs alone.
    pub(super) fn to_import(
        session: &Session,
        import: Import,
        shape: &Shape,
    ) -> Result<Self, Failure> {
        let memory = Memory { near: region(session, shape)?, import, far: None };
        let mut rig = Self::over(session, Some(memory), shape, Duration::ZERO)?;
        rig.fabric = Some(FABRIC_VERBS);
        rig.try_verbs(shape)?;
        Ok(rig)
    }

    fn over(
        session: &Session,
        memory: Option<Memory>,
        shape: &Shape,
        spin: Duration,
    ) -> Result<Self, Failure> {
        let entries = shape.entries();
        let options = RingOptions { spin, ..RingOptions::new(entries, entries) };
        let ring =
            session.raw_ring(options).map_err(|error| Failure::of("cannot have a ring", &error))?;
        let [local, remote] =
            memory.as_ref().map_or([0; 2], |memory| [memory.near.id(), memory.import.id()]);
        let walk = shape.walk(local, remote);
        let result = i32::try_from(shape.op_bytes()).unwrap_or(i32::MAX);
        Ok(Self { ring, walk, result, memory, fabric: None, rails: 0 })
    }

    /// The rails that carried ops, if the fabric was asked for.
    pub(super) fn rails(&self) -> Vec<u32> {
        (0..u64::BITS).filter(|rail| self.rails >> rail & 1 != 0).collect()
    }

    /// Runs one op, which must go by queue pairs and arrive: all that follow are like it.
    fn try_verbs(&mut self, shape: &Shape) -> Result<(), Failure> {
        self.ring.push(Sqe::from_words(self.walk.next(0)));
        self.ring.submit_and_wait(1, Some(SILENCE_MAX)).map_err(over)?;
        let cqe = self.ring.pop().map_err(over)?;
        let cqe = cqe.ok_or_else(|| Failure::Failed("the first op did not complete".into()))?;
        let [fabric, _] = cqe.detail.to_be_bytes();
        if (cqe.res, fabric) != (self.result, FABRIC_VERBS) {
            let Cqe { res, detail, .. } = cqe;
            let text = format!("the first op answered {res}, detail {detail:#x}: not by verbs");
            return Err(Failure::Failed(text));
        }
        let far = self.memory.as_ref().and_then(|memory| memory.far.as_ref());
        let mut landed = [1];
        if let Some(far) = far.filter(|_| matches!(shape.op, OpKind::Write | OpKind::Writev)) {
            let at = shape.first_destination();
            far.lend(at..at + 1).map_err(filling)?.read(0, &mut landed);
        }
        match landed {
            [1] => Ok(()),
            _ => Err(Failure::Failed("the first op did not arrive".to_string())),
        }
    }
}

/// Opens a session.
pub(super) fn attach(socket: &Path) -> Result<Session, Failure> {
    Session::connect(socket).map_err(|error| Failure::of("cannot attach", &error))
}

/// A region that holds the working set and the page lists, present.
fn region(session: &Session, shape: &Shape) -> Result<Region, Failure> {
    let region = session.alloc(shape.memory_bytes()).map_err(having)?;
    let mut lease = region.lend(0..region.bytes()).map_err(filling)?;
    lease.fill(1);
    let (base, lists) = shape.lists();
    lease.write(base, zerocopy::IntoBytes::as_bytes(lists.as_slice()));
    drop(lease);
    Ok(region)
}

/// A name is unique per uid, and other clients of the bench export, too.
fn export(region: &Region, session: &Session) -> Result<(String, Secret), Failure> {
    let name = format!("bench {}", session.number());
    let secret = region.export(&name, Rights::ALL).map_err(having)?;
    Ok((name, secret))
}

/// One region, offered to ourselves.
pub(super) fn memory(session: &Session, shape: &Shape) -> Result<Memory, Failure> {
    let near = region(session, shape)?;
    let (name, secret) = export(&near, session)?;
    let import = session.import(&name, None, &secret).map_err(having)?;
    Ok(Memory { near, import, far: None })
}

/// A region here, and one at another engine, to be reached by queue pairs.
fn memory_beyond(session: &Session, socket: &Path, shape: &Shape) -> Result<Memory, Failure> {
    let there = attach(socket)?;
    let far = there.alloc(shape.memory_bytes()).map_err(having)?;
    far.lend(0..far.bytes()).map_err(filling)?.fill(0);
    let (name, secret) = export(&far, &there)?;
    let url = format!("unix:{}", socket.display());
    let peer = session
        .connect_peer_over(&url, FABRIC_VERBS)
        .map_err(|error| Failure::of("cannot reach the second engine", &error))?;
    let import = peer.import(&name, None, &secret).map_err(having)?;
    Ok(Memory { near: region(session, shape)?, import, far: Some(far) })
}

fn having(error: ControlError) -> Failure {
    Failure::of("cannot have a region", &error)
}

fn filling(error: LendError) -> Failure {
    Failure::of("cannot fill the region", &error)
}

/// Makes rings that stay idle.
pub(super) fn crowd(socket: &Path, rings: u32) -> Result<Vec<RawRing>, Failure> {
    if rings == 0 {
        return Ok(Vec::new());
    }
    let session = attach(socket)?;
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
        let (result, fabric) = (self.result, self.fabric);
        let rails = &mut self.rails;
        let popped = self.ring.pop_all(|cqe| {
            if cqe.res != result {
                wrong = Some(cqe);
            }
            if let Some(fabric) = fabric {
                let [went, rail] = cqe.detail.to_be_bytes();
                if went != fabric {
                    wrong = Some(cqe);
                }
                *rails |= 1 << (rail % 64);
            }
            timed += u32::from(cqe.user_data == TIMED);
        });
        if let Some(cqe) = wrong {
            if cqe.res == result {
                let fabric = fabric_name(cqe.detail.to_be_bytes()[0]);
                let text = format!("an op went by fabric {fabric}, but must by verbs");
                return Err(Failure::Failed(text));
            }
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

pub(super) fn over(error: RingError) -> Failure {
    Failure::of("the ring is over", &error)
}
