//! WHY: where an op is, what it waits for, and how much there is of that.
//!
//! Everything is worked out when it is asked for, from what the engine keeps anyway: an op that
//! nobody asks about pays nothing.
//!
//! **Invariants**: nothing is changed. **Deliberately absent**: SQEs that are not taken
//! (`untaken`), and what is left of an op that is over (`record`).

use crate::abi::{
    MODE_DIRECT, MODE_FIFO, MODE_STRICT, MODE_TENT, MODE_WEIGHTED, RAIL_CONNECTING, RAIL_DEAD,
    RAIL_DEGRADED, RAIL_FULL, RAIL_MEMORY, RAIL_OPEN, RAIL_PAUSED, RAIL_REBUILDING, STATE_ARMED,
    STATE_FLUSHING, STATE_FOLDED, STATE_POSTED, STATE_QUEUED, STATE_WAITING, WAIT_CREDIT,
    WAIT_EARLIER, WAIT_FABRIC, WAIT_LANE, WAIT_NONE, WAIT_NOTIFY, WAIT_PEER, WAIT_PREDECESSOR,
    WAIT_RAIL, WAIT_SURVIVOR, WAIT_WINDOW_BYTES, WAIT_WINDOW_OPS, WAIT_WINDOW_WRS,
};
use crate::fabric::{Fabric, Room, Stop};
use crate::ledger::{Aside, LANE, List, NIL, Record, State, TIE_DRAIN};
use crate::ring::Memory;
use crate::sched::credits::{Ask, Window};
use crate::sched::{self, Bounds, Mode};

use super::lines::{each_bit, is_atomic};
use super::ties::Before;
use super::{Engine, Why};

/// Where a queued op stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Ops before it in its flow.
    ahead: u32,
    /// Other flows of its lane that have ops.
    flows: u32,
    /// What it waits for.
    wait: u16,
}

/// How much there is of what an op waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lack {
    pub(super) used: u64,
    pub(super) limit: u64,
    pub(super) wants: u64,
    /// The rail that it is about.
    rail: Option<u16>,
}

impl Lack {
    pub(super) fn of(used: impl Into<u64>, limit: impl Into<u64>, wants: impl Into<u64>) -> Self {
        Self { used: used.into(), limit: limit.into(), wants: wants.into(), rail: None }
    }

    /// Of the one thing that is used up in a window.
    fn in_window(window: &Window, wait: u16, bytes: u32) -> Self {
        let Bounds { ops, wrs, bytes: most } = *window.bounds();
        match wait {
            WAIT_WINDOW_OPS => Self::of(window.ops(), ops, 1_u32),
            WAIT_WINDOW_WRS => Self::of(window.wrs(), wrs, 1_u32),
            _ => Self::of(window.bytes(), most, bytes),
        }
    }
}

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Says where an op is and what it waits for.
    pub(super) fn why(&self, slot: u32) -> Why {
        let record = &self.ledger[slot];
        let queued = matches!(record.state, State::Queued | State::Posted) && !record.posted_whole;
        let place = if queued { self.place(slot) } else { Place::over(record) };
        let set = if queued { self.may_go_by(record) } else { went_by(record) };
        let lack = if queued {
            self.lack(record, place.wait, set)
        } else if record.state == State::Waiting {
            self.awaits(slot)
        } else {
            Lack::default()
        };
        let state = match record.state {
            State::Queued => STATE_QUEUED,
            State::Armed => STATE_ARMED,
            State::Flushing => STATE_FLUSHING,
            State::Waiting => STATE_WAITING,
            State::Folded => STATE_FOLDED,
            State::Posted | State::Free => STATE_POSTED,
        };
        Why {
            record: record.id(),
            number: record.number,
            user_data: record.op.user_data,
            age_ns: self.now_ns.saturating_sub(record.taken_ns),
            queued_ns: record.posted_ns.saturating_sub(record.taken_ns),
            bytes: u64::from(record.op.bytes) * u64::from(record.op.pages.max(1)),
            bytes_done: record.done_bytes,
            ahead: place.ahead,
            defers: record.defers,
            opcode: Some(record.op.opcode),
            class: Some(record.op.class),
            state,
            wait: place.wait,
            taken_ns: record.taken_ns,
            used: lack.used,
            limit: lack.limit,
            wants: lack.wants,
            rails: set,
            rail_states: self.rail_states(set),
            ring: record.ring,
            session: record.session,
            flows: place.flows,
            posts: record.posts.into(),
            in_fabric: record.in_fabric,
            rail: lack.rail.unwrap_or(record.rail),
            origin: record.origin,
            mode: self.mode(),
        }
    }

    /// `MODE_*`.
    pub(super) fn mode(&self) -> u8 {
        match self.limits.policy.mode {
            Mode::Weighted => MODE_WEIGHTED,
            Mode::Strict => MODE_STRICT,
            Mode::Fifo => MODE_FIFO,
            Mode::Tent => MODE_TENT,
            Mode::Direct => MODE_DIRECT,
        }
    }

    /// Where an op stands that is queued, all of it or the rest.
    fn place(&self, slot: u32) -> Place {
        let record = &self.ledger[slot];
        let far = self.abroad() && record.line != 0;
        let (ahead, flows, wait) = if record.aside == Aside::No {
            let queue = if far { &self.abroad.queue } else { &self.lanes };
            let place = queue.place(&self.ledger, slot);
            // The first of all, or of a flow that cannot go on, waits for what it lacked.
            let wait = if place.wait == WAIT_NONE { record.wait } else { place.wait };
            (place.ahead, place.flows, wait)
        } else {
            let ahead = self.ahead_of(slot);
            let behind = far && ahead > 0;
            (ahead, 0, if behind { WAIT_LANE } else { record.wait })
        };
        let takes = |rail: u16| {
            let room = self.fabric.room(rail);
            room.requests > 0 || room.stop == Some(Stop::Dead)
        };
        let wait = match record.aside {
            _ if far && !each_bit(self.may_go_by(record)).any(takes) => WAIT_RAIL,
            Aside::Credit => WAIT_CREDIT,
            // The first of all is tried in this turn: those that were before it are gone.
            _ if ahead == 0 && wait == WAIT_LANE => WAIT_NONE,
            _ => wait,
        };
        Place { ahead, flows, wait }
    }

    /// Ops before one that has stepped aside, counted as far as the scheduler counts.
    fn ahead_of(&self, slot: u32) -> u32 {
        let mut ahead = 0;
        let mut at = List::<LANE>::previous(&self.ledger, slot);
        while at != NIL && ahead < sched::Place::AHEAD_MAX {
            ahead += 1;
            at = List::<LANE>::previous(&self.ledger, at);
        }
        ahead
    }

    /// The rails that may carry what an op posts next; none if it stays on this host.
    fn may_go_by(&self, record: &Record) -> u64 {
        if record.line == 0 || !self.abroad() {
            return 0;
        }
        let set = self.abroad.set(record.line);
        match record.aside {
            Aside::Rail => 1 << record.rail,
            _ if is_atomic(&record.op) => set & set.wrapping_neg(),
            _ => set,
        }
    }

    /// How much is in use of what a queued op waits for, and how much there is.
    fn lack(&self, record: &Record, wait: u16, set: u64) -> Lack {
        let bytes = self.bytes_to_post(record);
        let (enters, internal) = (record.in_fabric == 0, record.origin != 0);
        let ask = Ask { bytes, enters, internal };
        match wait {
            WAIT_WINDOW_OPS | WAIT_WINDOW_WRS | WAIT_WINDOW_BYTES if set == 0 => {
                Lack::in_window(&self.window, wait, bytes)
            }
            WAIT_WINDOW_OPS | WAIT_WINDOW_WRS | WAIT_WINDOW_BYTES => {
                let window = |rail: u16| &self.abroad.card_of(rail).window;
                let rail = each_bit(set).find(|rail| window(*rail).admits(ask) == Err(wait));
                rail.map_or_else(Lack::default, |rail| Lack {
                    rail: Some(rail),
                    ..Lack::in_window(window(rail), wait, bytes)
                })
            }
            WAIT_PEER => {
                let window = self.abroad.peer_window(record.line);
                let wait = window.admits(ask).err().unwrap_or(WAIT_WINDOW_BYTES);
                Lack::in_window(window, wait, bytes)
            }
            WAIT_RAIL => {
                let full = |rail: &u16| self.fabric.room(*rail).stop == Some(Stop::Depth);
                each_bit(set).find(full).map_or_else(Lack::default, |rail| {
                    let depth = self.fabric.depth_of(rail);
                    Lack { rail: Some(rail), ..Lack::of(self.abroad.flying_on(rail), depth, 1_u32) }
                })
            }
            WAIT_CREDIT => Lack::of(0_u32, 0_u32, 1_u32),
            _ => Lack::default(),
        }
    }

    /// How many an op still waits for, and the SQE number of one of them.
    fn awaits(&self, slot: u32) -> Lack {
        let record = &self.ledger[slot];
        let ring = self.rings[record.ring.0 as usize].as_ref();
        let named = ring.and_then(|ring| {
            let live = |(before, _)| match before {
                Before::Live(slot) => Some(slot),
                _ => None,
            };
            let mut named = ring.ties.names(&self.ledger, slot).filter_map(live);
            let drain = ring.ties.drain_before(&self.ledger, record.ring, slot);
            named.next().or(drain).or_else(|| {
                let first = ring.ops.head();
                (record.ties & TIE_DRAIN != 0 && first != NIL).then_some(first)
            })
        });
        let number = named.map_or(0, |slot| self.ledger[slot].number);
        Lack::of(record.awaits, 0_u32, number)
    }

    /// Bytes of what an op posts next.
    fn bytes_to_post(&self, record: &Record) -> u32 {
        if record.returned != NIL {
            return self.posts.returned(record.returned).slice.bytes;
        }
        let slice =
            if record.line == 0 { self.pace.slice() } else { self.abroad.slice(record.line) };
        (record.op.bytes - record.cursor).min(slice)
    }

    /// `RAIL_*` of each rail of a set, lowest first, a byte each.
    fn rail_states(&self, set: u64) -> u64 {
        let mut states = [0; 8];
        for (state, rail) in states.iter_mut().zip(each_bit(set)) {
            *state = rail_state(self.fabric.room(rail));
        }
        u64::from_le_bytes(states)
    }
}

impl Place {
    /// Of an op that is in no lane any more.
    fn over(record: &Record) -> Self {
        let wait = match record.state {
            State::Armed => WAIT_NOTIFY,
            State::Flushing => WAIT_EARLIER,
            State::Waiting if record.ties & TIE_DRAIN != 0 => WAIT_EARLIER,
            State::Waiting => WAIT_PREDECESSOR,
            State::Folded => WAIT_SURVIVOR,
            State::Queued | State::Posted | State::Free => WAIT_FABRIC,
        };
        Self { ahead: 0, flows: 0, wait }
    }
}

/// The rail of an op that is posted whole.
fn went_by(record: &Record) -> u64 {
    if record.line == 0 { 0 } else { 1 << record.rail }
}

/// `RAIL_*` of a rail.
pub(super) fn rail_state(room: Room) -> u8 {
    match room.stop {
        Some(Stop::Depth) => RAIL_FULL,
        Some(Stop::Memory) => RAIL_MEMORY,
        Some(Stop::Connecting) => RAIL_CONNECTING,
        Some(Stop::Degraded) => RAIL_DEGRADED,
        Some(Stop::Rebuilding) => RAIL_REBUILDING,
        Some(Stop::Paused) => RAIL_PAUSED,
        Some(Stop::Dead) => RAIL_DEAD,
        None => RAIL_OPEN,
    }
}
