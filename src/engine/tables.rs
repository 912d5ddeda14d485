//! What the engine keeps about sessions, owners, rings, regions and posts: arrays made at start.

use crate::abi::{Class, Counter};
use crate::ids::{RegionId, RingId, SessionId};
use crate::ledger::{LANE, List, NIL, RING};
use crate::ring::{EngineEnd, KEPT, Kept, Memory};
use crate::sched::credits::Grant;

use super::search::Search;
use super::ties::Ties;
use super::wire::Lift;

/// A session, as the core sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    pub(super) live: bool,
    pub(super) owner: u32,
    pub(super) ceiling: Class,
    /// Records, list blocks and edges in use: compared with the session's guaranteed part.
    pub(super) records: u32,
    pub(super) blocks: u32,
    pub(super) edges: u32,
    pub(super) counters: [u64; Counter::COUNT],
}

impl Session {
    pub(super) const NONE: Self = Self {
        live: false,
        owner: 0,
        ceiling: Class::High,
        records: 0,
        blocks: 0,
        edges: 0,
        counters: [0; Counter::COUNT],
    };

    #[inline]
    pub(super) fn count(&mut self, counter: Counter, by: u64) {
        self.counters[usize::from(counter as u8)] += by;
    }
}

/// How a ring is being wound up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wind {
    /// Queued ops run to their end; ARMs are taken back.
    Drain,
    /// Queued ops are taken back; posted ones run to their end.
    Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Live,
    /// No more SQEs are taken. `cursor` is the next op to look at, or `NIL` when all were seen;
    /// `token` answers the command that asked for it (a broken ring winds up unasked).
    Winding {
        mode: Wind,
        cursor: u32,
        token: Option<u64>,
    },
}

/// A ring's state, made outside the engine thread and handed in whole.
#[derive(Debug)]
pub struct Ring<M> {
    pub(super) id: RingId,
    pub(super) session: SessionId,
    pub(super) end: EngineEnd<M>,
    pub(super) phase: Phase,
    /// A client broke it: it gets no more CQEs.
    pub(super) faulted: bool,
    pub(super) ops: List<RING>,
    pub(super) next_number: u64,
    /// SQEs that were copied and are not taken yet.
    pub(super) copied: Kept<8>,
    /// All bits of the first words of those that were copied last.
    pub(super) kept_bits: u64,
    /// Pairs of regions that its last SQEs named.
    pub(super) routes: [Route; Route::KEPT],
    /// What its later SQEs depend on.
    pub(super) ties: Ties,
    pub(super) lift: Option<Lift>,
    /// CANCELs that wait for another one's search.
    pub(super) cancels: List<LANE>,
    /// Fate entries not in use.
    pub(super) fates: Vec<u32>,
    /// Fate entries to free once `cq_tail` covers their CQEs.
    pub(super) frees: Vec<u32>,
    /// The CANCEL that searches, and the ops that searches may still look at in this turn.
    pub(super) search: Option<Search>,
    pub(super) search_budget: u32,
    pub(super) last_active_ns: u64,
    pub(super) fenceless: bool,
    /// The doorbell was rung since the last look (fenceless rings).
    pub(super) rung: bool,
    pub(super) polled: bool,
    /// SQEs wait, but the last look could take none: a CQ slot, a record or a quota is wanting.
    pub(super) blocked: bool,
    pub(super) dirty: bool,
}

impl<M: Memory> Ring<M> {
    /// Makes the engine's side of fresh ring memory.
    pub fn new(id: RingId, session: SessionId, memory: M, fenceless: bool) -> Self {
        let end = EngineEnd::new(memory);
        let entries = end.cq_entries();
        Self {
            id,
            session,
            phase: Phase::Live,
            faulted: false,
            ops: List::default(),
            next_number: 0,
            copied: Kept::new(),
            kept_bits: 0,
            routes: [Route::NONE; Route::KEPT],
            ties: Ties::new(),
            lift: None,
            cancels: List::EMPTY,
            fates: (0..entries).rev().collect(),
            frees: Vec::with_capacity(entries as usize),
            search: None,
            search_budget: 0,
            last_active_ns: 0,
            fenceless,
            rung: false,
            polled: false,
            blocked: false,
            dirty: false,
            end,
        }
    }

    /// The ring's number.
    pub fn id(&self) -> RingId {
        self.id
    }

    /// Copies SQEs out of the ring, if none is kept and some wait: their lines come from the
    /// client's cache, and all are asked for before the first is needed. None is read twice,
    /// however long it is kept.
    #[inline]
    pub(super) fn keep_sqes(&mut self) {
        if self.copied.count() == 0 {
            let Self { end, copied, .. } = self;
            let mut bits = 0;
            copied.keep(end.waiting().min(KEPT), |ahead| {
                let words = end.peek(ahead);
                bits |= words[0];
                words
            });
            self.kept_bits = bits;
        }
    }
}

/// A local and a remote region as an SQE names them, looked up and found good for each other.
///
/// What was found holds until a region is withdrawn, any at all: most SQEs of a ring name the
/// same few pairs, and withdrawals are rare.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    /// Both ids, as they lie in an SQE.
    pub(super) ids: [u32; 2],
    /// `Engine::withdrawn` when they were looked up.
    pub(super) checked: u64,
    /// Places of the local region, of the import, and of the region behind it.
    pub(super) names: [u32; 3],
    pub(super) epoch: u32,
    pub(super) rights: u32,
    pub(super) local_bytes: u64,
    pub(super) remote_bytes: u64,
}

impl Route {
    pub(super) const KEPT: usize = 4;

    pub(super) const NONE: Self = Self {
        // No region's id is 0.
        ids: [0; 2],
        checked: u64::MAX,
        names: [NIL; 3],
        epoch: 0,
        rights: 0,
        local_bytes: 0,
        remote_bytes: 0,
    };

    /// Where a pair is kept.
    #[inline]
    pub(super) fn place([local, remote]: [u32; 2]) -> usize {
        (local ^ remote) as usize % Self::KEPT
    }
}

/// A region or an import.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    /// Id of the current use, `None` when the place is free.
    pub(super) id: Option<RegionId>,
    pub(super) session: SessionId,
    pub(super) bytes: u64,
    pub(super) kind: RegionKind,
    /// Ops in flight of the own session that name this place.
    pub(super) refs: u32,
    /// Ops in flight through imports of this region.
    pub(super) remote_refs: u32,
    /// Counts revocations and uses of this place; an import of an earlier epoch is stale. Ids alone
    /// do not tell: their generations go round.
    pub(super) epoch: u32,
    /// Token of the RELEASE that waits for `refs`, `remote_refs` and `lent`.
    pub(super) removing: Option<u64>,
    /// Token of the Withdraw that waits for `remote_refs`.
    pub(super) withdrawing: Option<u64>,
    /// One of the two waits.
    pub(super) awaited: bool,
    /// Rails whose peers may touch it, a bit each; and those that may notify its owner.
    pub(super) lent: u64,
    pub(super) lent_notify: u64,
    /// [`Event::Revoked`](super::Event::Revoked) of this use.
    pub(super) revocations: u32,
    /// The rail that carries atomics of own sessions; 0 if the CPU does.
    pub(super) home: u16,
    pub(super) arms: List<LANE>,
    /// Notifications without an ARM: how many, and the last immediate.
    pub(super) pending: u32,
    pub(super) pending_immediate: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegionKind {
    Own,
    Import {
        target: RegionId,
        epoch: u32,
        rights: u32,
    },
    /// A peer's region: what it names is itself. Its rails are by class,
    /// a bit each.
    Peer {
        epoch: u32,
        rights: u32,
        rails: [u64; 3],
    },
}

impl Region {
    pub(super) const NONE: Self = Self {
        id: None,
        session: SessionId(NIL),
        bytes: 0,
        kind: RegionKind::Own,
        refs: 0,
        remote_refs: 0,
        epoch: 0,
        removing: None,
        withdrawing: None,
        awaited: false,
        lent: 0,
        lent_notify: 0,
        revocations: 0,
        home: 0,
        arms: List::EMPTY,
        pending: 0,
        pending_immediate: 0,
    };

    pub(super) fn idle(&self) -> bool {
        self.refs == 0 && self.remote_refs == 0 && self.lent == 0
    }
}

/// What one session is guaranteed of a pool, and what is left for all.
///
/// Half of the pool is set aside in equal parts, also for sessions that are yet to come: whoever
/// holds the other half may hold it for ever (an ARM does), so a newcomer's part must be there.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) free: u32,
    guaranteed: u32,
    /// Parts of the guarantees that are not in use: not for others to take.
    unfilled: u64,
}

impl Share {
    pub(super) fn new(capacity: u32, sessions_max: u32) -> Self {
        let guaranteed = capacity / sessions_max / 2;
        let unfilled = u64::from(guaranteed) * u64::from(sessions_max);
        Self { free: capacity, guaranteed, unfilled }
    }

    /// True if a session that uses `used` entries may take `want` more: from its own guaranteed
    /// part, and from what no other session is guaranteed.
    #[inline]
    pub(super) fn allows(&self, used: u32, want: u32) -> bool {
        let own = u64::from(self.guaranteed.saturating_sub(used));
        u64::from(self.free) + own >= self.unfilled + u64::from(want)
    }

    /// How many entries a session that uses `used` may take.
    #[inline]
    pub(super) fn left(&self, used: u32) -> u32 {
        let own = u64::from(self.guaranteed.saturating_sub(used));
        let left = (u64::from(self.free) + own).saturating_sub(self.unfilled);
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    #[inline]
    pub(super) fn take(&mut self, used: &mut u32, count: u32) {
        let before = self.guaranteed.saturating_sub(*used);
        *used += count;
        let after = self.guaranteed.saturating_sub(*used);
        self.unfilled -= u64::from(before - after);
        self.free -= count;
    }

    #[inline]
    pub(super) fn give(&mut self, used: &mut u32, count: u32) {
        let before = self.guaranteed.saturating_sub(*used);
        *used -= count;
        let after = self.guaranteed.saturating_sub(*used);
        self.unfilled += u64::from(after - before);
        self.free += count;
    }
}

/// A request that is with the fabric. It exists before the post.
#[derive(Debug)]
pub(super) struct Post {
    /// Uses of this place, this one included.
    generation: u32,
    pub(super) slot: u32,
    pub(super) slice: Slice,
    pub(super) grant: Option<Grant>,
    /// It was handed back: how often it was under way, and the next one of its op.
    again: bool,
    pub(super) attempts: u8,
    pub(super) next: u32,
}

/// What a post that has ended was.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) slot: u32,
    pub(super) bytes: u32,
    pub(super) rail: u16,
    pub(super) grant: Grant,
}

/// The part of an op that a post is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slice {
    pub(super) bytes: u32,
    /// Where it begins, in which page.
    pub(super) cursor: u32,
    pub(super) page: u32,
    pub(super) rail: u16,
}

/// All posts, in places that never move. A ticket is generation << 32 | place, so that a completion
/// that comes twice does not end the post that has its place by then.
#[derive(Debug)]
pub(super) struct Posts {
    posts: Vec<Post>,
    free: Vec<u32>,
    /// Places that are kept for requests that stay on this host.
    kept: u32,
}

impl Posts {
    /// Places for `near` requests that stay on this host, and `far` others.
    pub(super) fn new(near: u32, far: u32) -> Self {
        let slice = Slice { bytes: 0, cursor: 0, page: 0, rail: 0 };
        let blank = |_| Post {
            generation: 0,
            slot: NIL,
            slice,
            grant: None,
            again: false,
            attempts: 0,
            next: NIL,
        };
        let capacity = near + far;
        Self {
            posts: (0..capacity).map(blank).collect(),
            free: (0..capacity).rev().collect(),
            kept: near,
        }
    }

    /// True if there is a place for a request to a peer: what was handed back keeps its own.
    #[inline]
    pub(super) fn spare(&self) -> bool {
        self.free.len() > self.kept as usize
    }

    /// Opens a post. What stays on this host is never handed back, and needs no place in its op.
    #[inline]
    pub(super) fn open<const ABROAD: bool>(
        &mut self,
        slot: u32,
        slice: Slice,
        grant: Grant,
    ) -> Option<u64> {
        let place = self.free.pop()?;
        let post = &mut self.posts[place as usize];
        let generation = post.generation.wrapping_add(1);
        post.generation = generation;
        post.slot = slot;
        post.slice.bytes = slice.bytes;
        post.slice.rail = slice.rail;
        if ABROAD {
            (post.slice.cursor, post.slice.page) = (slice.cursor, slice.page);
            post.again = false;
        }
        post.grant = Some(grant);
        Some(u64::from(generation) << 32 | u64::from(place))
    }

    #[inline]
    pub(super) fn close(&mut self, ticket: u64) -> Option<Closed> {
        let place = (ticket & 0xffff_ffff) as u32;
        let post = self.posts.get_mut(place as usize)?;
        if u64::from(post.generation) != ticket >> 32 {
            return None;
        }
        let grant = post.grant.take()?;
        let Slice { bytes, rail, .. } = post.slice;
        self.free.push(place);
        Some(Closed { slot: post.slot, bytes, rail, grant })
    }

    /// A post comes back undone, and keeps its place: the place, and what it had.
    pub(super) fn hand_back(&mut self, ticket: u64) -> Option<(u32, u32, Slice, Grant)> {
        let place = (ticket & 0xffff_ffff) as u32;
        let Closed { slot, grant, .. } = self.close(ticket)?;
        self.free.pop();
        let post = &mut self.posts[place as usize];
        post.again = true;
        Some((place, slot, post.slice, grant))
    }

    /// Posts once more what was handed back; its ticket.
    pub(super) fn again(&mut self, place: u32, rail: u16, grant: Grant) -> u64 {
        let post = &mut self.posts[place as usize];
        assert!(post.again && post.grant.is_none(), "posted again what is under way");
        post.generation = post.generation.wrapping_add(1);
        post.slice.rail = rail;
        post.grant = Some(grant);
        u64::from(post.generation) << 32 | u64::from(place)
    }

    /// Lets go of what was handed back; the next of its op.
    pub(super) fn let_go(&mut self, place: u32) -> u32 {
        let post = &mut self.posts[place as usize];
        assert!(std::mem::take(&mut post.again) && post.grant.is_none(), "let go what is not here");
        self.free.push(place);
        post.next
    }

    /// What was handed back.
    pub(super) fn returned(&self, place: u32) -> &Post {
        &self.posts[place as usize]
    }

    pub(super) fn returned_mut(&mut self, place: u32) -> &mut Post {
        &mut self.posts[place as usize]
    }

    /// True if a post that is open was handed back before.
    pub(super) fn is_again(&self, ticket: u64) -> bool {
        self.posts[(ticket & 0xffff_ffff) as usize].again
    }

    /// No place is in use.
    #[cfg(test)]
    pub(super) fn at_rest(&self) -> bool {
        self.free.len() == self.posts.len()
    }

    /// The record of a post that is open.
    pub(super) fn slot(&self, ticket: u64) -> u32 {
        self.posts[(ticket & 0xffff_ffff) as usize].slot
    }

    #[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
    pub(super) fn open_posts(&self) -> impl Iterator<Item = &Post> {
        self.posts.iter().filter(|post| post.grant.is_some())
    }
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sched::Bounds;
    use crate::sched::credits::{Ask, Window};
    use crate::seeds::property;

    const SESSIONS: u32 = 4;

    /// What is free for a session: all that is neither in use nor set aside for others.
    fn free_for(capacity: u32, used: &[u32], session: usize) -> u32 {
        let part = capacity / SESSIONS / 2;
        let others = used.iter().enumerate().filter(|(at, _)| *at != session);
        let aside: u32 = others.map(|(_, used)| part.saturating_sub(*used)).sum();
        capacity - used.iter().sum::<u32>() - aside
    }

    proptest! {
        #![proptest_config(property(500))]

        #[test]
        fn no_session_is_starved_of_its_part_and_the_sum_is_kept(
            capacity in 1..200u32,
            steps in proptest::collection::vec((0..4usize, 1..40u32, any::<bool>()), 1..200),
        ) {
            let mut share = Share::new(capacity, SESSIONS);
            let mut used = [0; SESSIONS as usize];
            for (session, count, take) in steps {
                if take {
                    let allowed = share.allows(used[session], count);
                    prop_assert_eq!(share.left(used[session]), free_for(capacity, &used, session));
                    prop_assert_eq!(allowed, count <= free_for(capacity, &used, session));
                    let part = capacity / SESSIONS / 2;
                    prop_assert!(allowed || used[session] + count > part, "starved");
                    if allowed {
                        share.take(&mut used[session], count);
                    }
                } else {
                    let count = count.min(used[session]);
                    share.give(&mut used[session], count);
                }
                prop_assert_eq!(share.free + used.iter().sum::<u32>(), capacity);
            }
            for session in &mut used {
                let count = *session;
                share.give(session, count);
            }
            let aside = u64::from(capacity / SESSIONS / 2 * SESSIONS);
            prop_assert_eq!((share.free, share.unfilled), (capacity, aside));
        }

        #[test]
        fn tickets_of_posts_are_never_the_same_and_close_once(
            steps in proptest::collection::vec((any::<bool>(), 0..64usize), 1..300),
        ) {
            let mut window = Window::new(Bounds { ops: 8, wrs: 8, bytes: 1_000 });
            let mut posts = Posts::new(8, 0);
            let ask = Ask { bytes: 7, enters: true, internal: false };
            let seven = Slice { bytes: 7, cursor: 0, page: 0, rail: 0 };
            let (mut open, mut closed) = (Vec::new(), Vec::new());
            for (slot, (begin, at)) in (0..).zip(steps) {
                if begin && open.len() < 8 {
                    let grant = window.take(ask).unwrap();
                    let ticket = posts.open::<true>(slot, seven, grant).unwrap();
                    prop_assert!(!closed.contains(&ticket) && !open.contains(&(ticket, slot)));
                    open.push((ticket, slot));
                } else if !open.is_empty() {
                    let (ticket, slot) = open.swap_remove(at % open.len());
                    let was = posts.close(ticket).unwrap();
                    prop_assert_eq!((was.slot, was.bytes, was.rail), (slot, 7, 0));
                    window.give(was.grant, true, false);
                    closed.push(ticket);
                }
                for ticket in &closed {
                    prop_assert!(posts.close(*ticket).is_none());
                }
                prop_assert_eq!(posts.open_posts().count(), open.len());
            }
        }
    }
}
