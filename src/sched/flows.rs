//! The queued ops, flow by flow: first come, first served in each.
//!
//! A flow is what one session has for one line in one lane. Ops of class medium and low that have
//! aged are in the flow of class high, on lists of their own: the head of such a flow is the op
//! that was taken first, so ageing costs the same however much is queued.

use crate::abi::Class;
use crate::ids::SessionId;
use crate::ledger::{LANE, Ledger, List, NIL, Record};

/// Lanes: three classes of two origins.
pub(super) const LANES: u32 = 6;

/// A lane's number.
#[inline]
pub(super) fn lane_of(record: &Record) -> u32 {
    let class = if record.aged { 0 } else { record.class as u32 - 1 };
    class * 2 + u32::from(record.origin)
}

/// The class that an op is scheduled as, from 0.
#[inline]
pub(super) fn class_of(record: &Record) -> usize {
    lane_of(record) as usize / 2
}

/// Into how many flows ops are told apart; 1 for what does not matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) lanes: u32,
    pub(super) sessions: u32,
    pub(super) lines: u32,
}

/// All flows.
#[derive(Debug)]
pub(super) struct Flows {
    extent: Extent,
    lists: Box<[List<LANE>]>,
    /// By flow of class high: what has aged of medium, and of low. Nothing if nothing ages.
    aged: Box<[[List<LANE>; 2]]>,
    /// A bit for each flow that has ops: by line, then lane, then session.
    busy: Box<[u64]>,
    /// Words of `busy` of one line and lane.
    words: u32,
    /// By line: flows that have ops.
    by_line: Box<[u32]>,
    /// By lane: the same.
    by_lane: [u32; LANES as usize],
    /// Lines that have ops, a bit each.
    queued: u64,
    /// Where ageing looks next: a word of `busy` and a bit in it.
    cursor: (u32, u32),
}

impl Flows {
    pub(super) fn new(extent: Extent, ageing: bool) -> Self {
        let Extent { lanes, sessions, lines } = extent;
        let count = |parts: [u32; 3]| parts.iter().map(|&part| part as usize).product::<usize>();
        let words = sessions.div_ceil(64);
        let ages = if ageing { count([2, sessions, lines]) } else { 0 };
        Self {
            extent,
            lists: vec![List::EMPTY; count([lanes, sessions, lines])].into(),
            aged: vec![[List::EMPTY; 2]; ages].into(),
            busy: vec![0; count([lines, lanes, words])].into(),
            words,
            by_line: vec![0; lines as usize].into(),
            by_lane: [0; LANES as usize],
            queued: 0,
            cursor: (0, 0),
        }
    }

    #[inline]
    fn lane(&self, record: &Record) -> u32 {
        if self.extent.lanes == 1 { 0 } else { lane_of(record) }
    }

    /// The flow of an op.
    #[inline]
    pub(super) fn of(&self, record: &Record) -> u32 {
        let Extent { sessions, lines, .. } = self.extent;
        let session = if sessions == 1 { 0 } else { record.session.0 };
        let line = if lines == 1 { 0 } else { u32::from(record.line) };
        debug_assert!(session < sessions && line < lines);
        (self.lane(record) * sessions + session) * lines + line
    }

    /// The class of a flow, from 0.
    pub(super) fn class(&self, flow: u32) -> usize {
        (flow / (self.extent.sessions * self.extent.lines)) as usize / 2
    }

    /// The list of an op.
    #[inline]
    fn list(&mut self, record: &Record, flow: u32) -> &mut List<LANE> {
        match record.class {
            class if record.aged => &mut self.aged[flow as usize][class.index() - 1],
            _ => &mut self.lists[flow as usize],
        }
    }

    /// The first op of each list there is.
    #[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
    pub(super) fn heads(&self) -> impl Iterator<Item = u32> {
        let aged = self.aged.iter().flatten();
        self.lists.iter().chain(aged).map(List::head).filter(|&head| head != NIL)
    }

    /// True if a flow has no ops.
    #[inline]
    pub(super) fn is_idle(&self, flow: u32) -> bool {
        let aged = self.aged.get(flow as usize).is_none_or(|aged| aged.iter().all(List::is_empty));
        self.lists[flow as usize].is_empty() && aged
    }

    /// Queues an op; returns true if its flow had none.
    #[inline]
    pub(super) fn push(&mut self, ledger: &mut Ledger, slot: u32, flow: u32, front: bool) -> bool {
        let idle = self.is_idle(flow);
        let list = self.list(&ledger[slot], flow);
        if front {
            list.push_front(ledger, slot)
        } else {
            list.push_back(ledger, slot)
        }
        if idle {
            self.mark(&ledger[slot], true);
        }
        idle
    }

    /// Queues ops that are strung together, all of this flow; returns true if that had none.
    #[inline]
    pub(super) fn append(&mut self, ledger: &mut Ledger, run: List<LANE>, flow: u32) -> bool {
        let first = run.head();
        let idle = self.is_idle(flow);
        self.list(&ledger[first], flow).append(ledger, run);
        if idle {
            self.mark(&ledger[first], true);
        }
        idle
    }

    /// Takes an op out; returns true if its flow has none left.
    #[inline]
    pub(super) fn remove(&mut self, ledger: &mut Ledger, slot: u32, flow: u32) -> bool {
        let list = self.list(&ledger[slot], flow);
        list.remove(ledger, slot);
        let idle = self.is_idle(flow);
        if idle {
            self.mark(&ledger[slot], false);
        }
        idle
    }

    /// Puts an op in the place of a queued one, of the same flow.
    pub(super) fn replace(&mut self, ledger: &mut Ledger, slot: u32, by: u32) {
        let flow = self.of(&ledger[slot]);
        debug_assert!(flow == self.of(&ledger[by]) && ledger[slot].aged == ledger[by].aged);
        let list = self.list(&ledger[slot], flow);
        list.replace(ledger, slot, by);
    }

    /// Notes that the flow of an op has ops now, or none.
    #[inline]
    fn mark(&mut self, record: &Record, busy: bool) {
        let Extent { lanes, sessions, lines } = self.extent;
        let lane = self.lane(record);
        let session = if sessions == 1 { 0 } else { record.session.0 };
        let line = if lines == 1 { 0 } else { u32::from(record.line) };
        let word = (line * lanes + lane) * self.words + session / 64;
        self.busy[word as usize] ^= 1 << (session % 64);
        let (by_line, by_lane) =
            (&mut self.by_line[line as usize], &mut self.by_lane[lane as usize]);
        if busy {
            *by_line += 1;
            *by_lane += 1;
            self.queued |= 1 << line;
        } else {
            *by_line -= 1;
            *by_lane -= 1;
            self.queued &= !(u64::from(*by_line == 0) << line);
        }
    }

    /// The first op of a flow, or [`NIL`].
    #[inline]
    pub(super) fn head(&self, ledger: &Ledger, flow: u32) -> u32 {
        let own = self.lists[flow as usize].head();
        match self.aged.get(flow as usize) {
            None => own,
            Some([medium, low]) => [own, medium.head(), low.head()]
                .into_iter()
                .filter(|&slot| slot != NIL)
                .min_by_key(|&slot| ledger[slot].sequence)
                .unwrap_or(NIL),
        }
    }

    /// Ops of its flow that go before a queued one, counted no further than to `most`.
    pub(super) fn ahead(&self, ledger: &Ledger, slot: u32, most: u32) -> u32 {
        let flow = self.of(&ledger[slot]);
        let mut count = 0;
        let mut at = slot;
        while count < most && List::<LANE>::previous(ledger, at) != NIL {
            at = List::<LANE>::previous(ledger, at);
            count += 1;
        }
        let own = at;
        let others = self.aged.get(flow as usize).map_or([List::EMPTY; 2], |aged| *aged);
        for list in [self.lists[flow as usize], others[0], others[1]] {
            let mut at = if list.head() == own { NIL } else { list.head() };
            while count < most && at != NIL && ledger[at].sequence < ledger[slot].sequence {
                at = List::<LANE>::next(ledger, at);
                count += 1;
            }
        }
        count
    }

    /// Flows with ops in the lane of an op.
    pub(super) fn in_lane(&self, record: &Record) -> u32 {
        self.by_lane[self.lane(record) as usize]
    }

    /// Lines that have ops, a bit each.
    #[inline]
    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    /// An op of a line.
    pub(super) fn any(&self, line: u16) -> Option<u32> {
        let Extent { lanes, sessions, lines } = self.extent;
        let line = u32::from(line);
        if self.queued >> line & 1 == 0 {
            return None;
        }
        let from = line * lanes * self.words;
        let words = &self.busy[from as usize..(from + lanes * self.words) as usize];
        let (at, word) = (0..).zip(words).find(|(_, word)| **word != 0)?;
        let (lane, session) = (at / self.words, at % self.words * 64 + word.trailing_zeros());
        let flow = ((lane * sessions + session) * lines + line) as usize;
        let aged = self.aged.get(flow).into_iter().flatten();
        let mut lists = std::iter::once(&self.lists[flow]).chain(aged);
        lists.find(|list| !list.is_empty()).map(List::head)
    }

    /// The next op, in rounds over all flows, that has waited for as long as its class allows, if
    /// one is found in `budget` steps. The flow of what is returned is looked at again.
    pub(super) fn old(
        &mut self,
        ledger: &Ledger,
        (now_ns, aging_ns): (u64, [u64; 2]),
        budget: &mut u32,
    ) -> Option<u32> {
        let Extent { lanes, sessions, lines } = self.extent;
        if self.queued == 0 {
            return None;
        }
        while *budget > 0 {
            *budget -= 1;
            let (at, bit) = self.cursor;
            let lane = at / self.words % lanes;
            let word = if lane < 2 { 0 } else { self.busy[at as usize] };
            let rest = word.checked_shr(bit).unwrap_or(0);
            if rest == 0 {
                self.cursor = ((at + 1) % (lines * lanes * self.words), 0);
                continue;
            }
            let bit = bit + rest.trailing_zeros();
            let session = at % self.words * 64 + bit;
            let flow = (lane * sessions + session) * lines + at / self.words / lanes;
            let slot = self.lists[flow as usize].head();
            let age_ns = now_ns.saturating_sub(ledger[slot].taken_ns);
            let after_ns = aging_ns[lane as usize / 2 - 1];
            if after_ns > 0 && age_ns >= after_ns {
                self.cursor = (at, bit);
                return Some(slot);
            }
            self.cursor = (at, bit + 1);
        }
        None
    }

    /// Leaves the flow of what [`Flows::old`] returned last as it is.
    pub(super) fn pass_by(&mut self) {
        self.cursor.1 += 1;
    }
}

/// The session of an op that waits as one of class high.
#[inline]
pub(super) fn high_of(record: &Record) -> Option<SessionId> {
    (record.aged || record.class == Class::High).then_some(record.session)
}
