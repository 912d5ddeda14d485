//! What clients do while something is killed: each activity goes on until its engine is gone.
//!
//! In the test of killed engines they run on threads of the test, and each must come to an end. In
//! the test of killed clients they run in the process that is killed.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use verbring::abi::{Counter, Detail};
use verbring::client::{ConnectError, ControlError, OpRef, RingError, Scope};
use verbring::{Arm, Import, Nop, RawRing, Region, Rights, Ring, RingOptions, Session, shm};

use super::chance::Chance;
use super::load::{self, Tally};

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Loads a ring of whole entries.
    LoadRaw,
    /// Loads a ring of typed ops.
    LoadTyped,
    /// Opens and closes sessions.
    Connect,
    /// Makes and gives back regions, exports and imports.
    Register,
    /// Makes and gives back rings, with an op in each.
    MakeRings,
    /// Asks for counters, for what is served, and after ops.
    Ask,
    /// Sleeps until an ARM is notified, which it never is.
    Sleep,
    /// Sleeps in a reactor, on nothing but the ring's descriptor.
    React,
    /// Looks for completions, and never waits.
    Look,
}

impl Activity {
    pub(crate) const LOADS: [Self; 2] = [Self::LoadRaw, Self::LoadTyped];
    pub(crate) const CALLS: [Self; 7] = [
        Self::Connect,
        Self::Register,
        Self::MakeRings,
        Self::Ask,
        Self::Sleep,
        Self::React,
        Self::Look,
    ];
}

/// How an activity came to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// Calls (or ops) that were answered before.
    pub(crate) calls: u64,
    /// The last error said that the engine is gone; else that the session is over, or that nobody
    /// listens.
    pub(crate) gone: bool,
    /// Of a load that came so far as to have a ring.
    pub(crate) tally: Option<Tally>,
}

impl Ended {
    pub(crate) fn connecting(calls: u64, error: &ConnectError) -> Self {
        match error {
            ConnectError::Socket { .. } => Self { calls, gone: false, tally: None },
            ConnectError::Hello(error) => Self::asking(calls, error),
            other => panic!("{other}"),
        }
    }

    pub(crate) fn asking(calls: u64, error: &ControlError) -> Self {
        match error {
            ControlError::EngineGone => Self { calls, gone: true, tally: None },
            ControlError::SessionOver => Self { calls, gone: false, tally: None },
            other => panic!("a call failed for another reason than its engine's death: {other}"),
        }
    }

    fn waiting(calls: u64, error: &RingError) -> Self {
        expect_end(error);
        Self { calls, gone: matches!(error, RingError::EngineGone), tally: None }
    }
}

/// A socket closes a little before its process is gone, so either error may come first.
pub(crate) fn expect_end(error: &RingError) {
    assert!(matches!(error, RingError::EngineGone | RingError::SessionOver), "{error}");
}

/// Goes on with an activity until its engine is gone. Calls `begun` once it is under way.
pub(crate) fn carry_on(
    activity: Activity,
    socket: &Path,
    seed: u64,
    begun: &mut dyn FnMut(),
) -> Ended {
    match activity {
        Activity::LoadRaw => return load::raw(socket, seed, begun),
        Activity::LoadTyped => return load::typed(socket, seed, begun),
        _ => {}
    }
    let session = match Session::connect(socket) {
        Ok(session) => session,
        Err(error) => return Ended::connecting(0, &error),
    };
    let mut chance = Chance::new(seed);
    let name = format!("call-{}-{seed}", std::process::id());
    match activity {
        Activity::Connect => {
            drop(session);
            connect(socket, begun)
        }
        Activity::Register => repeat(begun, || register(&session, &mut chance, &name)),
        Activity::MakeRings => repeat(begun, || make_ring(&session, &mut chance)),
        Activity::Ask => repeat(begun, || ask(&session)),
        _ => match (session.alloc(4096), session.ring(RingOptions::default())) {
            (Ok(region), Ok(mut ring)) => {
                ring.push(Arm::new(&region, 1)).unwrap();
                ring.submit();
                begun();
                wait(activity, &mut ring)
            }
            (Err(error), _) | (_, Err(error)) => Ended::asking(0, &error),
        },
    }
}

fn connect(socket: &Path, begun: &mut dyn FnMut()) -> Ended {
    let mut calls = 0;
    loop {
        let asked = match Session::connect(socket) {
            Ok(session) => session.probe().map(drop),
            // Sessions that are closed one after the other are a while in ending.
            Err(ConnectError::Hello(ControlError::Refused(refusal)))
                if refusal.detail == Detail::Quota =>
            {
                Ok(())
            }
            Err(error) => return Ended::connecting(calls, &error),
        };
        match asked {
            Ok(()) => calls += 1,
            Err(error) => return Ended::asking(calls, &error),
        }
        begun();
    }
}

fn repeat(begun: &mut dyn FnMut(), mut call: impl FnMut() -> Result<u64, CallError>) -> Ended {
    let mut calls = 0;
    loop {
        match call() {
            Ok(more) => calls += more,
            Err(CallError::Control(error)) => return Ended::asking(calls, &error),
            Err(CallError::Ring(error)) => return Ended::waiting(calls, &error),
        }
        begun();
    }
}

#[derive(Debug)]
enum CallError {
    Control(ControlError),
    Ring(RingError),
}

impl From<ControlError> for CallError {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

impl From<RingError> for CallError {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

fn register(session: &Session, chance: &mut Chance, name: &str) -> Result<u64, CallError> {
    let bytes = 4096 * (1 + chance.below(1_024));
    let region = if chance.percent(50) {
        session.alloc(bytes)?
    } else {
        let memfd = shm::create(c"verbring-kills", bytes, false).map_err(ControlError::from)?;
        session.region_from_memfd(memfd, bytes)?
    };
    let secret = region.export(name, Rights::ALL)?;
    let import = session.import(name, None, &secret)?;
    // In either order, and sometimes not at all: then the session's end has to.
    if chance.percent(50) {
        import.release()?;
    }
    region.release()?;
    Ok(5)
}

fn make_ring(session: &Session, chance: &mut Chance) -> Result<u64, CallError> {
    let entries = [2, 64, 4_096];
    let options = RingOptions::new(chance.one_of(&entries), chance.one_of(&entries));
    let mut ring = session.ring(options)?;
    ring.push(Nop::new()).unwrap();
    ring.submit_and_wait(1, None)?;
    let completion = ring.reap()?.expect("one is ready");
    assert_eq!(completion.result, Ok(0));
    ring.release()?;
    Ok(3)
}

fn ask(session: &Session) -> Result<u64, CallError> {
    let stats = session.stats(Scope::Engine)?;
    assert!(stats[Counter::Sessions] > 0);
    session.stats(Scope::Session)?;
    session.probe()?;
    // Of no ring of ours, so refused, which is an answer as well.
    let nobody = OpRef::number(u32::MAX, 0);
    for refused in [session.cancel(nobody).map(drop), session.why(nobody).map(drop)] {
        match refused {
            Err(ControlError::Refused(_)) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => panic!("found an op in no ring"),
        }
    }
    Ok(5)
}

/// Waits in one way or another for what never comes.
fn wait(activity: Activity, ring: &mut Ring) -> Ended {
    let over = match activity {
        Activity::React => loop {
            match ring.arm(1) {
                Ok(true) => {
                    let mut bell = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
                    poll(&mut bell, PollTimeout::NONE).unwrap();
                }
                Ok(false) => panic!("a completion of an ARM that nobody notifies"),
                Err(over) => break over,
            }
        },
        Activity::Look => until_error(|| {
            assert!(ring.reap()?.is_none());
            Ok(())
        }),
        _ => match ring.wait(1, None) {
            Ok(ready) => panic!("{ready} completions of an ARM that nobody notifies"),
            Err(over) => over,
        },
    };
    Ended::waiting(0, &over)
}

/// Repeats a call that must end with an error, by itself.
pub(crate) fn until_error(mut call: impl FnMut() -> Result<(), RingError>) -> RingError {
    loop {
        if let Err(error) = call() {
            return error;
        }
    }
}

/// Waits until the engine's process is gone, which is when verdicts are final.
pub(crate) fn await_death(session: &Session) {
    while !session.engine_gone() {
        let mut pidfd = [PollFd::new(session.pidfd(), PollFlags::POLLIN)];
        poll(&mut pidfd, PollTimeout::NONE).unwrap();
    }
}

/// Every call on the control socket of a dead engine says so.
pub(crate) fn expect_all_dead(session: &Session, region: &Region, import: &Import) {
    let gone = |what: &str, outcome: Result<(), ControlError>| {
        assert!(matches!(outcome, Err(ControlError::EngineGone)), "{what}: {outcome:?}");
    };
    gone("stats", session.stats(Scope::Session).map(drop));
    gone("probe", session.probe().map(drop));
    gone("alloc", session.alloc(4096).map(drop));
    gone("ring", session.ring(RingOptions::default()).map(drop));
    gone("cancel", session.cancel(OpRef::number(0, 0)).map(drop));
    gone("why", session.why(OpRef::number(0, 0)).map(drop));
    let export = region.export("late", Rights::ALL);
    gone("export", export.map(drop));
    let memfd = shm::create(c"verbring-kills", 4096, false).unwrap();
    gone("memfd", session.region_from_memfd(memfd, 4096).map(drop));
    gone("release", import.clone().release());
}

/// Every call on a ring of a dead engine, from which all is popped, says so.
pub(crate) fn expect_ring_dead(ring: &mut RawRing) {
    let gone = |what: &str, outcome: Result<(), RingError>| {
        assert!(matches!(outcome, Err(RingError::EngineGone)), "{what}: {outcome:?}");
    };
    gone("wait", ring.wait(1, None).map(drop));
    gone("wait for some time", ring.wait(1, Some(Duration::from_secs(1))).map(drop));
    gone("arm", ring.arm(1).map(drop));
    gone("submit", ring.submit_and_wait(1, None).map(drop));
}
