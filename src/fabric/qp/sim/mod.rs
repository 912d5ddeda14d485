//! A provider of verbs in memory, with virtual time: queue pairs of one process, joined.
//!
//! [`Net`] is the wire and the clock; [`Net::device`] adds a device to it, which is a
//! `Provider` and a `ProviderControl`, as a card is. Bytes are moved between real mappings,
//! when virtual time comes to it. It does what a reliable connection does, and no more than it
//! promises:
//!
//! * A send queue's entry is free again only when a completion at or behind it was polled.
//! * The bytes of a WRITE are fetched when it starts, and it starts while earlier READs and
//!   atomics are still under way: only the fence keeps it back.
//! * READs and atomics are carried out at the responder in order, their answers land later.
//! * After an error the queue pair is in ERROR, and everything posted is flushed; a remote access
//!   error takes the responder's queue pair along.
//!
//! A test plants faults by hand: partial posts with a right, wrong or missing `bad_wr`
//! ([`Net::plan_post`]), failures of the n-th work request ([`Net::plan_work`]), a dead queue
//! pair ([`Net::kill`]), completions that never come ([`Net::lose_completions`]) or belong to
//! nothing ([`Net::inject`]), packets that land after their sender has given them up
//! ([`Net::land_late`], [`Net::hold_up`]).
//!
//! **Deliberately absent**: any chance of its own. What is random is drawn by the test.

mod device;
mod watch;
mod wire;

use std::cell::{Ref, RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

pub use device::{SimControl, SimProvider};
pub use watch::Touch;

use super::provider::{
    Access, Caps, DeviceLimits, Link, MESSAGE_BYTES, PairState, Range, Wc, WcKind, WcStatus, Wr,
};
use crate::shm::Mapping;

/// What a simulated device can do, and how long it takes.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// What it says of itself.
    pub limits: DeviceLimits,
    /// What it really gives a queue pair, whatever is asked for.
    pub caps_max: Caps,
    /// From one end of a wire to the other, ns.
    pub latency_ns: u64,
    /// Between the starts of two work requests, ns.
    pub gap_ns: u64,
    /// How long a KiB takes to leave, ns: the wire's rate.
    pub kib_ns: u64,
    /// Its driver does the work while it posts, as Soft-RoCE's does on Linux 6.1: when a post
    /// returns, time has passed, and mostly all is answered.
    pub eager: bool,
}

impl SimConfig {
    /// A small device.
    pub const DEFAULT: Self = Self {
        limits: DeviceLimits {
            pairs_max: 1024,
            depth_max: 16_384,
            completions_max: 65_536,
            registrations_max: 1024,
            registration_bytes_max: 1 << 40,
            message_bytes_max: 1 << 30,
            ranges_max: 16,
            reads_in_max: 16,
            reads_out_max: 16,
            mtu_bytes: 1024,
            atomics: true,
        },
        caps_max: Caps { sends: 16_384, receives: 16_384, inline_bytes: 256, ranges: 16 },
        latency_ns: 1_000,
        gap_ns: 50,
        kib_ns: 0,
        eager: false,
    };
}

/// What a device says about the place where a post stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// The truth.
    Right,
    /// Nothing: `bad_wr` is null.
    Missing,
    /// Another place than the true one.
    Wrong(u32),
}

/// A post that stops.
#[derive(Clone, Copy, Debug)]
pub struct PostPlan {
    /// How many of the list are posted.
    pub taken: u32,
    /// What is said about it.
    pub say: Say,
    /// The errno that is given.
    pub errno: i32,
}

/// A work request that fails.
#[derive(Clone, Copy, Debug)]
pub struct WorkPlan {
    /// How many of the queue pair's work requests reach the responder before it.
    pub after: u32,
    /// How it fails.
    pub status: WcStatus,
    /// It takes effect all the same.
    pub effect: bool,
}

/// A simulated wire, all devices on it, and the time. Clones are the same wire.
#[derive(Clone, Debug, Default)]
pub struct Net(Rc<RefCell<World>>);

#[derive(Debug, Default)]
struct World {
    now_ns: u64,
    devices: Vec<Device>,
    /// By number.
    pairs: Vec<Pair>,
    /// By id.
    memories: Vec<Option<Registered>>,
    next_key: u32,
    next_psn: u32,
    /// What was on its way when its queue pair failed lands all the same.
    late: bool,
    ghosts: Vec<Ghost>,
    landed_late: u64,
    landed_held: u64,
    overfull: u64,
    forbidden: watch::Forbidden,
}

/// A packet whose sender has given it up.
#[derive(Debug)]
struct Ghost {
    at_ns: u64,
    from: usize,
    link: Link,
    wr: Wr,
    payload: Vec<u8>,
    number: u64,
    /// Its sender has waited for its answer until it ran out of patience.
    held: bool,
}

#[derive(Debug)]
struct Device {
    config: SimConfig,
    completions: VecDeque<Wc>,
    completions_max: usize,
    overrun: bool,
    armed: bool,
    polls: u64,
    /// Its port is down.
    down: bool,
    /// Until then no queue pair can be connected.
    fails_until_ns: u64,
}

#[derive(Debug)]
struct Pair {
    device: usize,
    state: PairState,
    caps: Caps,
    psn: u32,
    link: Option<Link>,
    sends: VecDeque<Sent>,
    receives: VecDeque<u64>,
    /// Entries of the send queue that no polled completion has freed.
    occupied: VecDeque<u64>,
    occupied_most: usize,
    last_start_ns: u64,
    dead: bool,
    /// Work requests that have left in this life, and the number of the one that it takes next:
    /// it takes them in order, and none a second time.
    started: u64,
    expected: u64,
    /// The next packet is held up until so long after it was given up, ns.
    hold_up_ns: Option<u64>,
    /// Nothing reaches it, and nothing of it arrives.
    cut: bool,
    destroyed: bool,
    rnr_count: u32,
    latency_ns: u64,
    post_plans: VecDeque<PostPlan>,
    receive_plans: VecDeque<PostPlan>,
    work_plans: VecDeque<WorkPlan>,
    /// Completions that will be lost.
    losing: u32,
    /// Completions of success that get lost from now on, and those that come twice.
    lose: u32,
    repeat: u32,
    /// Every work request that was really posted, oldest first.
    posted: Vec<Wr>,
}

#[derive(Debug)]
struct Sent {
    wr: Wr,
    /// Its local side.
    ranges: Vec<Range>,
    /// Its bytes, once they were fetched; the answer's, once it was made.
    payload: Vec<u8>,
    phase: Phase,
    /// Its number among those that have left.
    number: u64,
    /// It took effect at the responder.
    took: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Posted at this time.
    Waiting(u64),
    /// Reaches the responder at this time.
    Flying(u64),
    /// The answer is back at this time.
    Answered(u64, WcStatus),
}

#[derive(Debug)]
struct Registered {
    device: usize,
    mapping: Arc<Mapping>,
    access: Access,
    keys: Box<[super::provider::Key]>,
}

/// Addresses of a registration start at its id, shifted by this.
const ADDRESS_SHIFT: u32 = 40;

impl Net {
    /// A wire without devices, at time 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device with a completion queue of `completions` entries.
    #[must_use]
    pub fn device(&self, config: SimConfig, completions: u32) -> (SimProvider, SimControl) {
        let device = self.add(config, completions);
        let control = SimControl::new(self.clone(), device);
        (SimProvider::new(self.clone(), vec![device]), control)
    }

    /// Adds devices with such a queue each: the cards of one engine, in order.
    #[must_use]
    pub fn cards(&self, configs: &[SimConfig], completions: u32) -> (SimProvider, Vec<SimControl>) {
        let devices: Vec<_> = configs.iter().map(|config| self.add(*config, completions)).collect();
        let control = |device: &usize| SimControl::new(self.clone(), *device);
        let controls = devices.iter().map(control).collect();
        (SimProvider::new(self.clone(), devices), controls)
    }

    fn add(&self, config: SimConfig, completions: u32) -> usize {
        let mut world = self.world();
        let device = world.devices.len();
        world.devices.push(Device {
            config,
            completions: VecDeque::new(),
            completions_max: completions as usize,
            overrun: false,
            armed: false,
            polls: 0,
            down: false,
            fails_until_ns: 0,
        });
        device
    }

    /// Lets time pass: whatever is due by then happens, in order.
    pub fn advance(&self, ns: u64) {
        let mut world = self.world();
        let until_ns = world.now_ns + ns;
        while world.step(until_ns) {}
        world.now_ns = until_ns;
    }

    /// Works for an eager device that has been given something: until all of a queue pair's is
    /// answered, and no longer than that takes on a sound wire.
    fn work(&self, number: u32) {
        let mut world = self.world();
        let number = number as usize;
        let Device { config, .. } = world.devices[world.pairs[number].device];
        if !config.eager {
            return;
        }
        let pair = &world.pairs[number];
        let each = |sent: &Sent| config.gap_ns + u64::from(sent.wr.bytes) * config.kib_ns / 1_024;
        let time_ns = pair.sends.iter().map(each).sum::<u64>() + 2 * pair.latency_ns;
        let until_ns = world.now_ns + time_ns;
        while !world.pairs[number].sends.is_empty() && world.step(until_ns) {}
    }

    /// The time, ns.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.look().now_ns
    }

    /// True if nothing will happen any more, however long one waits.
    #[must_use]
    pub fn is_still(&self) -> bool {
        self.look().next_event().is_none()
    }

    /// The next posts of a queue pair stop as planned, one plan a post.
    pub fn plan_post(&self, number: u32, plan: PostPlan) {
        self.pair(number).post_plans.push_back(plan);
    }

    /// The next posts of receives stop as planned, one plan a post.
    pub fn plan_receives(&self, number: u32, plan: PostPlan) {
        self.pair(number).receive_plans.push_back(plan);
    }

    /// A work request of a queue pair fails; plans follow each other.
    pub fn plan_work(&self, number: u32, plan: WorkPlan) {
        self.pair(number).work_plans.push_back(plan);
    }

    /// Has what is on its way when its queue pair fails, or is reset, land in its time, unless the
    /// responder's queue pair admits nothing any more by then.
    pub fn land_late(&self, late: bool) {
        self.world().late = late;
    }

    /// Holds up what a queue pair sends next: its sender waits for the answer until it has to give
    /// it up, and `ns` later it lands, unless the responder's queue pair admits nothing any more by
    /// then.
    pub fn hold_up(&self, number: u32, ns: u64) {
        self.pair(number).hold_up_ns = Some(ns);
    }

    /// Packets that took effect after their sender had given them up.
    #[must_use]
    pub fn landed_late(&self) -> u64 {
        self.look().landed_late
    }

    /// Of these, those that were held up ([`Net::hold_up`]).
    #[must_use]
    pub fn landed_held(&self) -> u64 {
        self.look().landed_held
    }

    /// Posts that found no room in a send queue, not by plan.
    #[must_use]
    pub fn overfull(&self) -> u64 {
        self.look().overfull
    }

    /// Devices whose completion queue overran.
    #[must_use]
    pub fn overruns(&self) -> usize {
        self.look().devices.iter().filter(|device| device.overrun).count()
    }

    /// The next completions of success of a queue pair get lost, until it fails. A device that
    /// loses any is broken, so that failure is to follow.
    pub fn lose_successes(&self, number: u32, count: u32) {
        self.pair(number).lose = count;
    }

    /// The next completions of a queue pair's work come twice, at once.
    pub fn repeat_completions(&self, number: u32, count: u32) {
        self.pair(number).repeat = count;
    }

    /// Takes back every plan that has not struck yet, and lets devices and ports work.
    pub fn calm(&self) {
        for pair in &mut self.world().pairs {
            pair.post_plans.clear();
            pair.receive_plans.clear();
            pair.work_plans.clear();
            pair.losing = 0;
            (pair.lose, pair.repeat) = (0, 0);
            pair.hold_up_ns = None;
        }
        for device in &mut self.world().devices {
            device.fails_until_ns = 0;
        }
    }

    /// A queue pair's host is gone: it neither sends nor answers, and what it has sent is lost.
    pub fn kill(&self, number: u32) {
        self.pair(number).dead = true;
        self.world().ghosts.retain(|ghost| ghost.from != number as usize);
    }

    /// A queue pair's host, or its port, is there again: what it was about to send goes on.
    pub fn revive(&self, number: u32) {
        self.pair(number).dead = false;
    }

    /// Sets how long a queue pair's packets are under way, ns.
    pub fn delay(&self, number: u32, latency_ns: u64) {
        self.pair(number).latency_ns = latency_ns;
    }

    /// Moves a queue pair to ERROR, as a device does that has had enough.
    pub fn break_pair(&self, number: u32) {
        self.world().fail_pair(number as usize);
    }

    /// Cuts a queue pair's path, or mends it: as [`SimControl::set_port`], for it alone.
    pub fn cut(&self, number: u32, cut: bool) {
        self.pair(number).cut = cut;
        if cut {
            self.world().lose_answers(|pair, _| pair == number as usize);
        }
    }

    /// Has a completion arrive that belongs to nothing, at the queue pair's device.
    pub fn inject(&self, number: u32, wc: Wc) {
        let mut world = self.world();
        let device = world.pairs[number as usize].device;
        world.complete(device, wc);
    }

    /// The next completions of a queue pair's work never come: the work is done, or failed, and
    /// nobody is told.
    pub fn lose_completions(&self, number: u32, count: u32) {
        self.pair(number).losing += count;
    }

    /// What was really posted on a queue pair, oldest first.
    #[must_use]
    pub fn posted(&self, number: u32) -> Vec<Wr> {
        self.look().pairs[number as usize].posted.clone()
    }

    /// The most entries of its send queue that were ever in use.
    #[must_use]
    pub fn occupied_most(&self, number: u32) -> usize {
        self.look().pairs[number as usize].occupied_most
    }

    /// Entries of its send queue that are in use: work requests posted, of which no completion at
    /// or behind them was polled.
    #[must_use]
    pub fn occupied(&self, number: u32) -> Vec<u64> {
        self.look().pairs[number as usize].occupied.iter().copied().collect()
    }

    /// Receives posted on a queue pair that no message has used.
    #[must_use]
    pub fn receives(&self, number: u32) -> u32 {
        u32::try_from(self.look().pairs[number as usize].receives.len()).unwrap_or(u32::MAX)
    }

    /// Work requests posted on a queue pair that have not completed.
    #[must_use]
    pub fn pending(&self, number: u32) -> usize {
        self.look().pairs[number as usize].sends.len()
    }

    fn world(&self) -> RefMut<'_, World> {
        self.0.borrow_mut()
    }

    fn look(&self) -> Ref<'_, World> {
        self.0.borrow()
    }

    fn pair(&self, number: u32) -> RefMut<'_, Pair> {
        RefMut::map(self.world(), |world| &mut world.pairs[number as usize])
    }
}

impl World {
    /// Puts a completion into a device's queue.
    fn complete(&mut self, device: usize, wc: Wc) {
        if wc.kind == WcKind::Work {
            let pair = &mut self.pairs[wc.number as usize];
            if wc.status == WcStatus::Success && pair.lose > 0 {
                pair.lose -= 1;
                return;
            }
            if pair.repeat > 0 {
                pair.repeat -= 1;
                self.devices[device].completions.push_back(wc);
            }
        }
        let device = &mut self.devices[device];
        device.armed = false;
        if device.completions.len() >= device.completions_max {
            device.overrun = true;
            return;
        }
        device.completions.push_back(wc);
    }

    /// A queue pair leaves RTS: what it has sent is on its way for all that.
    fn give_up(&mut self, number: usize) {
        let pair = &self.pairs[number];
        let late = self.late && !pair.dead;
        let Some(link) = pair.link.filter(|_| late) else { return };
        for sent in &pair.sends {
            match sent.phase {
                Phase::Flying(at_ns) => {
                    let (wr, payload, held) = (sent.wr, sent.payload.clone(), false);
                    let (from, number) = (number, sent.number);
                    self.ghosts.push(Ghost { at_ns, from, link, wr, payload, number, held });
                }
                Phase::Answered(..) if sent.took => {}
                // The responder waits for this one, and takes none behind it.
                Phase::Answered(..) | Phase::Waiting(_) => break,
            }
        }
    }

    /// Moves a queue pair to ERROR: everything posted is flushed.
    fn fail_pair(&mut self, number: usize) {
        let pair = &mut self.pairs[number];
        let (device, dead) = (pair.device, pair.dead);
        // This is the failure that losses end in.
        pair.lose = 0;
        if pair.state == PairState::Error || pair.state == PairState::Reset {
            return;
        }
        self.give_up(number);
        let pair = &mut self.pairs[number];
        pair.state = PairState::Error;
        let sends = std::mem::take(&mut pair.sends);
        let receives = std::mem::take(&mut pair.receives);
        if dead {
            return;
        }
        for sent in sends {
            let wc = work_completion(number, sent.wr.wr_id, WcStatus::Flushed);
            self.complete(device, wc);
        }
        for wr_id in receives {
            let wc = work_completion(number, wr_id, WcStatus::Flushed);
            self.complete(device, Wc { kind: WcKind::Receive, ..wc });
        }
    }

    fn set_port(&mut self, device: usize, up: bool) {
        self.devices[device].down = !up;
        if !up {
            self.lose_answers(|_, on| on == device);
        }
    }

    /// The way between a queue pair and its peer, which may be itself, is cut somewhere.
    fn unreachable(&self, near: usize, far: usize) -> bool {
        let (near, far) = (&self.pairs[near], &self.pairs[far]);
        let down = self.devices[near.device].down || self.devices[far.device].down;
        near.cut || far.cut || down && near.device != far.device
    }

    /// Answers that are on their way do not arrive, where the way is cut for a queue pair that
    /// `struck` names by its number and device, or for its peer.
    fn lose_answers(&mut self, struck: impl Fn(usize, usize) -> bool) {
        let now_ns = self.now_ns;
        for number in 0..self.pairs.len() {
            let Some(link) = self.pairs[number].link else { continue };
            let peer = link.peer.number as usize;
            let hit = [number, peer].iter().any(|at| struck(*at, self.pairs[*at].device));
            if !hit || !self.unreachable(number, peer) {
                continue;
            }
            let status = WcStatus::RetryExceeded;
            for sent in &mut self.pairs[number].sends {
                if let Phase::Answered(at_ns, WcStatus::Success) = sent.phase
                    && at_ns > now_ns
                {
                    sent.phase = Phase::Answered(now_ns + wire::patience_ns(&link), status);
                }
            }
        }
    }

    /// The mapping and offset behind an address, if the key admits the range.
    fn admitted(&self, device: usize, key: u32, address: u64, bytes: u64) -> Option<Place> {
        let id = usize::try_from((address >> ADDRESS_SHIFT).checked_sub(1)?).ok()?;
        let memory = self.memories.get(id)?.as_ref()?;
        let piece = memory.keys.iter().find(|piece| piece.lkey == key || piece.rkey == key)?;
        let into = address.checked_sub(piece.address)?;
        let inside = into.checked_add(bytes).is_some_and(|end| end <= piece.bytes);
        (inside && memory.device == device).then(|| Place {
            mapping: Arc::clone(&memory.mapping),
            offset: piece.offset + into,
            access: memory.access,
            local: piece.lkey == key,
        })
    }
}

/// A range that a key admits.
#[derive(Debug)]
struct Place {
    mapping: Arc<Mapping>,
    offset: u64,
    access: Access,
    /// The key is a local one.
    local: bool,
}

fn work_completion(number: usize, wr_id: u64, status: WcStatus) -> Wc {
    Wc {
        wr_id,
        number: u32::try_from(number).unwrap_or(u32::MAX),
        status,
        kind: WcKind::Work,
        bytes: 0,
        message: [0; 2],
        vendor_error: 0,
    }
}

fn receive_completion(number: usize, wr_id: u64, message: [u64; 2]) -> Wc {
    let wc = work_completion(number, wr_id, WcStatus::Success);
    Wc { kind: WcKind::Receive, bytes: MESSAGE_BYTES, message, ..wc }
}
