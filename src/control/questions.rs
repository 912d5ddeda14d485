//! Questions that clients ask: what is served, what was counted, where an op is, and whether it can
//! be taken back.

use super::server::{Pending, Server};
use super::sessions::place;
use super::wire::{self, Refusal};
use crate::abi::{
    self, CancelReply, Counter, Detail, Kind, OpQuery, Probe, ProbeReply, Stats, StatsReply,
    WhyReply, errno,
};
use crate::engine::{Command, Reply, Why};
use crate::fabric::Held;
use crate::ids::RingId;
use crate::ring::Mapped;

impl Server {
    /// `FABRIC_*` bits of what is in use.
    fn fabrics(&self) -> u64 {
        let verbs = u64::from(self.card.is_some()) << abi::FABRIC_VERBS;
        1 << abi::FABRIC_LOCAL | verbs
    }

    /// `FEATURE_*` bits of what is served.
    fn features(&self) -> u64 {
        let recorder = if self.config.recorder_entries == 0 { 0 } else { abi::FEATURE_RECORDER };
        recorder | abi::FEATURE_TELEMETRY | abi::FEATURE_PEERS | abi::FEATURE_CARDS
    }

    pub(super) fn probe(&mut self, key: usize, request: &Probe) -> Result<(), Refusal> {
        let uid = self.uid_of(key);
        let quota = self.config.quota_of(uid);
        let own = self.config.uid.contains_key(&uid);
        let reply = ProbeReply {
            reply: wire::reply_head::<ProbeReply>(Kind::Probe, request.head.tag),
            opcodes: crate::engine::OPCODES_SERVED,
            sqe_flags: u64::from(crate::engine::FLAGS_SERVED),
            features: self.features(),
            fabrics: self.fabrics(),
            op_bytes_max: abi::OP_BYTES_MAX,
            pages_max: abi::PAGES_MAX,
            entries_max: abi::ENTRIES_MAX,
            rings_max: quota.rings.min(self.config.rings_max),
            regions_max: quota.regions.min(self.config.regions_max),
            class_ceiling: u32::from(quota.class_ceiling as u8),
            region_bytes_max: quota.region_bytes,
            window_ops: self.config.window_ops,
            slice_bytes: self.config.slice_bytes,
            window_bytes: self.config.window_bytes,
            uid,
            contract: if own { abi::CONTRACT_UID } else { abi::CONTRACT_ALL },
            sessions_max: quota.sessions.min(self.config.sessions_max),
            ops_max: quota.ops.min(self.config.records),
            weight: quota.weight.into(),
            control_per_s: quota.control_per_s,
            ops_bytes_max: quota.op_bytes,
            high_bytes_max: quota.high_bytes,
        };
        self.answer(key, &reply, &[]);
        Ok(())
    }

    pub(super) fn stats(&mut self, key: usize, request: &Stats) -> Result<(), Refusal> {
        let engine_scope = match request.scope {
            abi::STATS_SESSION => false,
            abi::STATS_ENGINE => true,
            other => {
                let text = format!("scope is {other}, but must be 0 (session) or 1 (engine)");
                return Err(Refusal::new(errno::EINVAL, Detail::Message, text));
            }
        };
        if engine_scope {
            self.check_operator(key, "counters of the engine are")?;
        }
        let tag = request.head.tag;
        let pending = Pending::Stats { session: key, tag, engine_scope };
        let token = self.pending.insert(pending) as u64;
        self.hold(key);
        let session = (!engine_scope).then(|| place(key));
        self.order(Command::Stats { session, token });
        Ok(())
    }

    /// What is told of all sessions together is for whoever runs the engine.
    pub(super) fn check_operator(&self, key: usize, what: &str) -> Result<(), Refusal> {
        let uid = self.sessions.get(key).map_or(abi::UID_OWN, |session| session.uid);
        let own_uid = nix::unistd::geteuid().as_raw();
        if uid == 0 || uid == own_uid {
            return Ok(());
        }
        let text = format!("{what} for uid {own_uid} and root: ask as one of them");
        Err(Refusal::new(errno::EACCES, Detail::Rights, text))
    }

    pub(super) fn query(
        &mut self,
        key: usize,
        query: &OpQuery,
        cancel: bool,
    ) -> Result<(), Refusal> {
        let live = self.rings.get(query.ring as usize).and_then(Option::as_ref);
        let seen = live
            .filter(|ring| ring.live())
            .is_some_and(|ring| ring.session == key || !cancel && self.may_see(key, ring.session));
        if !seen {
            let whose = if cancel { "session" } else { "uid" };
            let text = format!("ring {} is not a live ring of this {whose}", query.ring);
            return Err(Refusal::new(errno::EINVAL, Detail::Ring, text));
        }
        if u64::from(query.by) > abi::CANCEL_BY_RECORD {
            let text = format!("by is {}, but must be 0, 1 or 2", query.by);
            return Err(Refusal::new(errno::EINVAL, Detail::Arg, text));
        }
        let tag = query.head.tag;
        let session = key;
        let pending =
            if cancel { Pending::Cancel { session, tag } } else { Pending::Why { session, tag } };
        let token = self.pending.insert(pending) as u64;
        self.hold(key);
        self.order(Command::Query {
            ring: RingId(query.ring),
            by: u64::from(query.by),
            target: query.target,
            cancel,
            token,
        });
        Ok(())
    }

    /// True if one session may ask about the ops of another: it is of the same uid, or root's.
    fn may_see(&self, key: usize, other: usize) -> bool {
        let uid = |key: usize| self.sessions.get(key).map(|session| session.uid);
        uid(key) == Some(0) || uid(key).is_some() && uid(key) == uid(other)
    }

    pub(super) fn answer_query(
        &mut self,
        session: usize,
        kind: Kind,
        tag: u64,
        reply: &Reply<Held, Mapped>,
    ) {
        if !self.settle(session) {
            return;
        }
        match *reply {
            Reply::Cancelled { record, .. } => {
                let reply = wire::reply_head::<CancelReply>(kind, tag);
                self.answer(session, &CancelReply { reply, record: record.0 }, &[]);
            }
            Reply::Why { why, .. } => self.answer(session, &why_reply(&why, tag), &[]),
            Reply::Failed { errno, detail, .. } => {
                let text = if errno == errno::EALREADY {
                    "the op is posted: its CQE will come"
                } else {
                    "no op in flight in this ring is meant: it is over, or never was"
                };
                self.fail(session, kind, tag, &Refusal::new(errno, detail, text));
            }
            _ => {}
        }
    }

    pub(super) fn answer_stats(
        &mut self,
        session: usize,
        tag: u64,
        engine_scope: bool,
        mut counters: [u64; Counter::COUNT],
    ) {
        let (mut rings, mut regions, mut bytes) = (0, 0, 0);
        if engine_scope {
            rings = self.rings.iter().flatten().count() as u64;
            regions = self.regions.len() as u64;
            bytes = self.regions.values().map(|place| place.charged).sum();
            counters[Counter::Sessions as usize] = self.sessions.len() as u64;
            counters[Counter::Evicted as usize] = self.evicted;
            counters[Counter::Descriptors as usize] =
                std::fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64);
            counters[Counter::Sleeps as usize] =
                self.link.sleeps.load(std::sync::atomic::Ordering::Relaxed);
        } else if let Some(entry) = self.sessions.get(session) {
            rings = entry.rings.len() as u64;
            regions = entry.regions.len() as u64;
            let places = entry.regions.iter().filter_map(|id| self.regions.get(&id.0));
            bytes = places.map(|place| place.charged).sum();
        }
        counters[Counter::Rings as usize] = rings;
        counters[Counter::Regions as usize] = regions;
        counters[Counter::RegionBytes as usize] = bytes;
        let reply = wire::reply_head::<StatsReply>(Kind::Stats, tag);
        self.answer(session, &StatsReply { reply, counters }, &[]);
    }
}

fn why_reply(why: &Why, tag: u64) -> WhyReply {
    WhyReply {
        reply: wire::reply_head::<WhyReply>(Kind::Why, tag),
        record: why.record.0,
        number: why.number,
        user_data: why.user_data,
        age_ns: why.age_ns,
        queued_ns: why.queued_ns,
        bytes: why.bytes,
        bytes_done: why.bytes_done,
        ahead: why.ahead,
        defers: why.defers,
        opcode: why.opcode.map_or(0, |opcode| u16::from(opcode as u8)),
        class: why.class.map_or(0, |class| u16::from(class as u8)),
        state: why.state,
        wait: why.wait,
        reserved: 0,
        taken_ns: why.taken_ns,
        used: why.used,
        limit: why.limit,
        wants: why.wants,
        rails: why.rails,
        rail_states: why.rail_states,
        ring: why.ring.0,
        session: why.session.0,
        flows: why.flows,
        posts: why.posts,
        in_fabric: why.in_fabric,
        rail: why.rail,
        origin: why.origin,
        mode: why.mode,
    }
}
