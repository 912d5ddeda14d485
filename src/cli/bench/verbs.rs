//! The bare queue pair: the same ops as work requests, posted and polled, and no engine.
//!
//! It is the limit that the engine over queue pairs is held against, with the engine's settings:
//! as many work requests in flight on one queue pair, the same path, small WRITEs inline, the last
//! of each post and every sixteenth signalled. Nothing is copied from a ring, checked, recorded,
//! scheduled, or recovered. Both ends lie in this process; the far one only answers.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use verbring::abi::{Page, Sqe};
use verbring::fabric::qp::provider::{
    Access, Caps, Endpoint, Key, Link, Move, PathSettings, Provider, ProviderControl,
    ProviderError, Ranges, Wc, WcStatus, Wr, WrId, WrVerb,
};
use verbring::fabric::verbs::{VerbsControl, VerbsProvider, VerbsSettings, open};
use verbring::host::Config;
use verbring::shm::{Mapping, PAGE_BYTES};

use super::ports::Port;
use super::shape::{OpKind, Shape, Walk};
use super::slice::{Rig, SILENCE_MAX, TIMED, now_ns};
use crate::cli::Failure;

/// How a bare queue pair is to be: between which ports, and as an engine would have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VerbsPlan {
    ports: [Port; 2],
    depth: u32,
    mtu_bytes_max: u32,
    timeout: u8,
    retry: u8,
    rnr_retry: u8,
    service_level: u8,
    traffic_class: u8,
}

impl VerbsPlan {
    /// As engines with this configuration would use the ports for ops of a class.
    pub(super) fn new(ports: [Port; 2], config: &Config, class: u8) -> Self {
        let class = usize::from(class.clamp(1, 3)) - 1;
        Self {
            ports,
            depth: config.verbs_depth,
            mtu_bytes_max: config.verbs_mtu,
            timeout: config.verbs_timeout,
            retry: config.verbs_retry,
            rnr_retry: config.verbs_rnr_retry,
            service_level: config.verbs_service_level[class],
            traffic_class: config.verbs_traffic_class[class],
        }
    }

    fn path(&self, port: &Port) -> PathSettings {
        PathSettings {
            port: port.port,
            gid_index: port.gid_index,
            mtu_bytes_max: self.mtu_bytes_max,
            timeout: self.timeout,
            retry: self.retry,
            rnr_retry: self.rnr_retry,
            service_level: self.service_level,
            traffic_class: self.traffic_class,
            ..PathSettings::DEFAULT
        }
    }
}

/// A WRITE of at most so many bytes goes inline, as in the engine.
const INLINE_BYTES: u32 = 220;
/// Every so many work requests one is signalled, as in the engine.
const SIGNAL_EVERY: u32 = 16;
/// The only one.
const RAIL: u16 = 1;

/// One end of the connection.
pub(super) struct End {
    provider: VerbsProvider,
    control: VerbsControl,
    path: PathSettings,
    number: u32,
    caps: Caps,
    memory: Arc<Mapping>,
    pub(super) key: Key,
}

impl End {
    pub(super) fn open(port: &Port, plan: &VerbsPlan, bytes: u64) -> Result<Self, Failure> {
        let failed = |error| Failure::of(format!("cannot use {port}"), &error);
        let mut settings = VerbsSettings::new(&port.device, port.port);
        let ask = Caps { sends: plan.depth, receives: 1, inline_bytes: INLINE_BYTES, ranges: 1 };
        settings.completions = ask.sends + ask.receives;
        let (mut provider, mut control) = open(&settings)
            .map_err(|error| Failure::of(format!("cannot open {}", port.device), &error))?;
        let created = control.create(ask).map_err(failed)?;
        provider.adopt(RAIL, created.pair);
        let memory = Mapping::anonymous(bytes.next_multiple_of(PAGE_BYTES))
            .map_err(|error| Failure::of("cannot have memory", &error))?;
        let memory = Arc::new(memory);
        let access = Access { write: true, read: true, atomics: true };
        let registration = control.register(&memory, access).map_err(failed)?;
        let [key] = registration.keys[..] else {
            let text = format!("{port} registers {bytes} bytes in pieces: lower --working-set");
            return Err(Failure::Failed(text));
        };
        let path = plan.path(port);
        let (number, caps) = (created.number, created.caps);
        Ok(Self { provider, control, path, number, caps, memory, key })
    }

    pub(super) fn prepare(&mut self) -> Result<Endpoint, ProviderError> {
        self.control.modify(self.number, &Move::Init(self.path))?;
        self.control.endpoint(self.number, &self.path, 0)
    }

    pub(super) fn join(&mut self, own: Endpoint, peer: Endpoint) -> Result<(), ProviderError> {
        let link = Link { own, peer, settings: self.path };
        self.control.modify(self.number, &Move::ReadyToReceive(link))?;
        self.control.modify(self.number, &Move::ReadyToSend(link))
    }
}

/// Two ends, connected, and the ops between them.
pub(super) struct VerbsRig {
    poster: Poster<VerbsProvider>,
    _ends: Vec<(VerbsControl, Arc<Mapping>)>,
    /// Unless that is on another host.
    _far: Option<VerbsProvider>,
}

impl VerbsRig {
    /// Connects two queue pairs, and tries them.
    pub(super) fn new(plan: &VerbsPlan, shape: &Shape) -> Result<Self, Failure> {
        let bytes = shape.memory_bytes();
        let mut near = End::open(&plan.ports[0], plan, bytes)?;
        let mut far = End::open(&plan.ports[1], plan, bytes)?;
        let connect = |near: &mut End, far: &mut End| {
            let (of_near, of_far) = (near.prepare()?, far.prepare()?);
            near.join(of_near, of_far)?;
            far.join(of_far, of_near)
        };
        connect(&mut near, &mut far)
            .map_err(|error| Failure::of("cannot connect two queue pairs", &error))?;
        let mut rig = Self::to_far(near, far.key, plan, shape)?;
        let mut landed = [0];
        far.memory.read(shape.first_destination(), &mut landed);
        if matches!(shape.op, OpKind::Write | OpKind::Writev) && landed != [1] {
            return Err(Failure::Failed("a WRITE did not arrive".to_string()));
        }
        rig._ends.push((far.control, far.memory));
        rig._far = Some(far.provider);
        Ok(rig)
    }

    /// Takes an end that is connected to memory of this key, and tries it.
    pub(super) fn to_far(
        near: End,
        far: Key,
        plan: &VerbsPlan,
        shape: &Shape,
    ) -> Result<Self, Failure> {
        let most = near.control.limits().message_bytes_max;
        if shape.size_bytes > u64::from(most) {
            let text = format!("--size is {}, but must be at most {most} here", shape.size_bytes);
            return Err(Failure::Usage(text));
        }
        let (_, lists) = shape.lists();
        let bytes = usize::try_from(shape.memory_bytes()).unwrap_or(0);
        near.memory.write(0, &vec![1; bytes]);
        let depth = near.caps.sends.min(plan.depth);
        let inline_bytes = near.caps.inline_bytes.min(INLINE_BYTES);
        let places = [near.key, far];
        let mut poster = Poster::new(near.provider, shape, lists, places, depth, inline_bytes);
        poster.try_once()?;
        Ok(Self { poster, _ends: vec![(near.control, near.memory)], _far: None })
    }
}

impl Rig for VerbsRig {
    #[inline]
    fn submit(&mut self, count: u32, tag: u64) -> Result<(), Failure> {
        self.poster.submit(count, tag)
    }

    #[inline]
    fn reap(&mut self) -> Result<(u32, u32), Failure> {
        self.poster.reap()
    }

    fn check(&mut self) -> Result<(), Failure> {
        // A far end that is gone ends as a failed completion.
        Ok(())
    }

    fn at_rest(&mut self) -> bool {
        true
    }
}

/// What a signalled work request speaks for: itself and those before it.
#[derive(Clone, Copy, Debug, Default)]
struct Covered {
    works: u32,
    /// Whole ops, and how many of them are timed.
    ops: u32,
    timed: u32,
}

/// The loop itself: ops become work requests, and completions ops again.
struct Poster<P> {
    provider: P,
    verb: WrVerb,
    walk: Walk,
    lists: Vec<Page>,
    /// Where the page lists begin in the walk's offsets.
    lists_at: u64,
    pages: usize,
    bytes: u32,
    near: Key,
    far: Key,
    inline: bool,
    /// Work requests in flight at most.
    depth: u32,
    in_flight: u32,
    slot: u16,
    /// Not posted yet.
    list: Vec<Wr>,
    /// Since the last signalled one.
    open: Covered,
    signalled: VecDeque<Covered>,
    /// Completed, and not told yet.
    done: Covered,
    completions: Vec<Wc>,
}

impl<P: Provider> Poster<P> {
    fn new(
        provider: P,
        shape: &Shape,
        lists: Vec<Page>,
        [near, far]: [Key; 2],
        depth: u32,
        inline_bytes: u32,
    ) -> Self {
        let verb = match shape.op {
            OpKind::Read => WrVerb::Read,
            OpKind::FetchAdd => WrVerb::FetchAdd,
            OpKind::Nop | OpKind::Write | OpKind::Writev => WrVerb::Write,
        };
        let bytes = u32::try_from(shape.size_bytes).unwrap_or(u32::MAX);
        Self {
            provider,
            verb,
            walk: shape.walk(0, 0),
            lists,
            lists_at: shape.lists().0,
            pages: usize::try_from(shape.pages).unwrap_or(1),
            bytes,
            near,
            far,
            inline: verb == WrVerb::Write && bytes <= inline_bytes,
            depth,
            in_flight: 0,
            slot: 0,
            list: Vec::with_capacity(depth as usize),
            open: Covered::default(),
            signalled: VecDeque::with_capacity(depth as usize),
            done: Covered::default(),
            completions: Vec::with_capacity(64),
        }
    }

    #[inline]
    fn submit(&mut self, count: u32, tag: u64) -> Result<(), Failure> {
        for _ in 0..count {
            let sqe = Sqe::from_words(self.walk.next(tag));
            if self.lists.is_empty() {
                self.enter(sqe.local_offset, sqe.remote_offset)?;
            } else {
                let page_bytes = size_of::<Page>() as u64;
                let first = (sqe.local_offset - self.lists_at) / page_bytes;
                let first = usize::try_from(first).unwrap_or(usize::MAX);
                for at in first..first + self.pages {
                    let Page { local_offset, remote_offset } = self.lists[at];
                    self.enter(local_offset, remote_offset)?;
                }
            }
            self.open.ops += 1;
            self.open.timed += u32::from(tag == TIMED);
        }
        self.post()
    }

    /// Puts a work request into the list; what is there is posted first if there is no room.
    #[inline]
    fn enter(&mut self, local_offset: u64, remote_offset: u64) -> Result<(), Failure> {
        if self.in_flight == self.depth {
            self.post()?;
            while self.in_flight == self.depth {
                self.poll()?;
            }
        }
        // Only now: ops that ended before this one began are covered without it.
        if self.open.works == SIGNAL_EVERY {
            self.signal();
        }
        self.slot = if self.slot == WrId::RECEIVE - 1 { 0 } else { self.slot + 1 };
        self.list.push(Wr {
            wr_id: WrId::new(0, RAIL, self.slot).0,
            verb: self.verb,
            signaled: false,
            fence: false,
            inline: self.inline,
            address: self.near.address + local_offset,
            lkey: self.near.lkey,
            bytes: self.bytes,
            remote_address: self.far.address + remote_offset,
            rkey: self.far.rkey,
            arg: [1, 0],
            ranges: Ranges::NONE,
        });
        self.open.works += 1;
        self.in_flight += 1;
        Ok(())
    }

    /// Has the last of the list signalled, for all that are open.
    #[inline]
    fn signal(&mut self) {
        if let Some(last) = self.list.last_mut() {
            last.signaled = true;
            self.signalled.push_back(std::mem::take(&mut self.open));
        }
    }

    /// Posts the list with one doorbell.
    #[inline]
    fn post(&mut self) -> Result<(), Failure> {
        if self.list.is_empty() {
            return Ok(());
        }
        self.signal();
        let posted = self.provider.post(RAIL, &self.list);
        self.list.clear();
        posted.map_err(|error| Failure::of("cannot post", &error))
    }

    #[inline]
    fn poll(&mut self) -> Result<(), Failure> {
        self.completions.clear();
        self.provider.poll(&mut self.completions).map_err(|errno| {
            Failure::Failed(format!("the completion queue is broken, errno {errno}"))
        })?;
        for completion in &self.completions {
            if completion.status != WcStatus::Success {
                let Wc { status, vendor_error, .. } = completion;
                let text = format!("a queue pair answered {status:?}, vendor error {vendor_error}");
                return Err(Failure::Failed(text));
            }
            let Some(covered) = self.signalled.pop_front() else {
                return Err(Failure::Failed("a completion of nothing".to_string()));
            };
            self.in_flight -= covered.works;
            self.done.ops += covered.ops;
            self.done.timed += covered.timed;
        }
        Ok(())
    }

    #[inline]
    fn reap(&mut self) -> Result<(u32, u32), Failure> {
        self.poll()?;
        let Covered { ops, timed, .. } = std::mem::take(&mut self.done);
        Ok((ops, timed))
    }

    fn try_once(&mut self) -> Result<(), Failure> {
        self.submit(1, 0)?;
        let until = now_ns() + u64::try_from(SILENCE_MAX.as_nanos()).unwrap_or(u64::MAX);
        while self.reap()? == (0, 0) {
            if now_ns() > until {
                let text = format!("no completion came for {} s", SILENCE_MAX.as_secs());
                return Err(Failure::Failed(text));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use verbring::abi::Class;
    use verbring::fabric::qp::provider::{BadPost, Broken, Range, WcKind};

    use super::*;
    use crate::cli::bench::shape::Wish;

    /// Carries out a little with each poll, and tells of what is signalled.
    #[derive(Default)]
    struct Fake {
        posted: VecDeque<Wr>,
        /// Everything ever posted, and how long each list was.
        all: Vec<Wr>,
        lists: Vec<usize>,
        most: usize,
        fails: bool,
    }

    impl Provider for Fake {
        type Pair = ();

        fn completions_max(&self, _card: u8) -> u32 {
            64
        }

        fn adopt(&mut self, _rail: u16, _pair: ()) {}

        fn release(&mut self, _rail: u16) -> Option<()> {
            None
        }

        fn post_ranges(&mut self, rail: u16, list: &[Wr], _: &[Range]) -> Result<(), BadPost> {
            assert_eq!(rail, RAIL);
            self.posted.extend(list);
            self.all.extend(list);
            self.lists.push(list.len());
            self.most = self.most.max(self.posted.len());
            Ok(())
        }

        fn post_receives(&mut self, _: u16, _: u64, _: u32) -> Result<(), BadPost> {
            unreachable!("nothing is received")
        }

        fn poll(&mut self, out: &mut Vec<Wc>) -> Result<(), Broken> {
            for wr in self.posted.drain(..self.posted.len().min(5)).filter(|wr| wr.signaled) {
                let status = if self.fails { WcStatus::RemoteAccess } else { WcStatus::Success };
                let (number, kind, message) = (9, WcKind::Work, [0; 2]);
                let (wr_id, vendor_error) = (wr.wr_id, 3);
                out.push(Wc { wr_id, number, status, kind, bytes: 0, message, vendor_error });
            }
            Ok(())
        }

        fn arm(&mut self) -> Result<(), i32> {
            Ok(())
        }
    }

    fn poster(op: OpKind, size_bytes: u64, pages: u64, depth: u32) -> Poster<Fake> {
        let shape = Shape::settle(Wish {
            op,
            size_bytes,
            pages,
            batch: 1,
            depth: 64,
            class: Class::Medium,
            working_set_bytes: Some(4 * size_bytes * pages),
        })
        .unwrap();
        let key = |at, lkey| Key { offset: 0, bytes: 1 << 20, address: at, lkey, rkey: lkey + 1 };
        let (_, lists) = shape.lists();
        let keys = [key(0x10_0000, 4), key(0x20_0000, 8)];
        Poster::new(Fake::default(), &shape, lists, keys, depth, INLINE_BYTES)
    }

    /// Everything submitted comes back once; never more is in flight than there is room for; and
    /// of so many in a row one is signalled.
    #[test]
    fn every_op_comes_back_once() {
        for (op, pages, batch, depth) in [
            (OpKind::Write, 1, 1, 128),
            (OpKind::Write, 1, 40, 128),
            (OpKind::Read, 1, 40, 24),
            (OpKind::Writev, 3, 7, 16),
            (OpKind::Writev, 40, 2, 16),
        ] {
            let mut poster = poster(op, 8, pages, depth);
            let (mut ops, mut timed, mut out) = (0, 0, 0);
            for round in 0..200_u64 {
                poster.submit(batch, round % 2).unwrap();
                out += batch;
                while out > 20 {
                    let (popped, of_timed) = poster.reap().unwrap();
                    (ops, timed, out) = (ops + popped, timed + of_timed, out - popped);
                }
            }
            while out > 0 {
                let (popped, of_timed) = poster.reap().unwrap();
                (ops, timed, out) = (ops + popped, timed + of_timed, out - popped);
            }
            assert_eq!((ops, timed), (200 * batch, 100 * batch), "{op:?}");
            assert_eq!((poster.in_flight, poster.signalled.len()), (0, 0), "{op:?}");
            let fake = &poster.provider;
            assert_eq!(fake.all.len() as u64, 200 * u64::from(batch) * pages, "{op:?}");
            assert!(fake.most <= depth as usize, "{op:?}: {}", fake.most);
            let most = SIGNAL_EVERY as usize;
            assert!(fake.all.chunks_exact(most).all(|part| part.iter().any(|wr| wr.signaled)));
            let mut from = 0;
            for length in &fake.lists {
                from += length;
                assert!(fake.all[from - 1].signaled, "the last of a post");
            }
        }
    }

    #[test]
    fn work_requests_name_both_ends_where_the_shape_says() {
        let mut add = poster(OpKind::FetchAdd, 8, 1, 16);
        add.submit(3, 0).unwrap();
        let places = |poster: &Poster<Fake>| {
            let wrs = poster.provider.all.iter();
            wrs.map(|wr| (wr.address - 0x10_0000, wr.remote_address - 0x20_0000))
                .collect::<Vec<_>>()
        };
        assert_eq!(places(&add), [(0, 16), (8, 24), (0, 16)]);
        let wr = add.provider.all[0];
        assert_eq!((wr.verb, wr.bytes, wr.arg[0], wr.inline), (WrVerb::FetchAdd, 8, 1, false));
        assert_eq!((wr.lkey, wr.rkey), (4, 9));

        let mut list = poster(OpKind::Writev, 64, 2, 16);
        list.submit(3, 0).unwrap();
        let both = [(0, 256), (64, 320), (128, 384), (192, 448)];
        assert_eq!(places(&list), [&both[..], &both[..2]].concat());
        assert!(list.provider.all.iter().all(|wr| wr.inline && wr.verb == WrVerb::Write));
        let mut large = poster(OpKind::Write, 221, 1, 16);
        large.submit(1, 0).unwrap();
        assert!(!large.provider.all[0].inline, "too large to go inline");
    }

    #[test]
    fn a_failure_is_no_success() {
        let mut poster = poster(OpKind::Write, 8, 1, 16);
        poster.submit(1, 0).unwrap();
        poster.provider.fails = true;
        let Err(Failure::Failed(text)) = poster.reap() else { panic!("a success") };
        assert_eq!(text, "a queue pair answered RemoteAccess, vendor error 3");
    }

    #[test]
    fn a_plan_takes_the_engine_s_settings() {
        let mut config = Config::default();
        config.verbs_depth = 32;
        config.verbs_mtu = 1024;
        config.verbs_service_level = [1, 2, 3];
        config.verbs_traffic_class = [4, 5, 6];
        let ports: [Port; 2] = ["a:1:3", "b:2:4"].map(|text| text.parse().unwrap());
        let plan = VerbsPlan::new(ports.clone(), &config, Class::Low as u8);
        let path = plan.path(&ports[1]);
        assert_eq!((plan.depth, path.mtu_bytes_max, path.port, path.gid_index), (32, 1024, 2, 4));
        assert_eq!((path.service_level, path.traffic_class), (3, 6));
    }
}
