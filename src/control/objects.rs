//! Rings, regions, exports and imports: from a request to something the engine serves, and back.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use subtle::ConstantTimeEq;

use super::fds::{DESCRIPTORS_MAX, bell_pair};
use super::jobs::{Memory, Outcome, Work};
use super::peers::Links;
use super::server::{Asker, JobFor, Pending, RegionSource, Server};
use super::sessions::place;
use super::wire::{self, Refusal};
use crate::abi::{
    self, Detail, Export, ExportReply, Import, ImportReply, Kind, RegionReply, RegionRequest,
    Release, ReplyHead, RingReply, RingRequest, SegmentHeader, UID_OWN, errno,
};
use crate::control::Registered;
use crate::engine::{Command, Reply, Ring, Wind};
use crate::fabric::Held;
use crate::fabric::qp;
use crate::host::link::RingBells;
use crate::ids::{RegionId, RingId};
use crate::ring::Mapped;
use crate::shm::{self, Mapping, PAGE_BYTES, ShmError};

const _: () = assert!(DESCRIPTORS_MAX >= 3);

/// A ring as the control thread sees it.
#[derive(Debug)]
pub(super) struct RingPlace {
    pub(super) session: usize,
    /// Of its segment: charged to its uid.
    bytes: u64,
    /// Made, and not yet mapped by the client: what MAPPED will need.
    made: Option<RingMade>,
    /// A job has its memory in hand.
    pub(super) in_hand: bool,
    /// Given to the engine, which has not answered.
    pub(super) arriving: bool,
    served: bool,
    pub(super) winding: bool,
}

#[derive(Debug)]
pub(super) struct RingMade {
    fd: OwnedFd,
    mapping: Arc<Mapping>,
    memory: Mapped,
    bells: RingBells,
    fenceless: bool,
}

impl RingPlace {
    /// The engine serves it, and it is not being wound up.
    pub(super) fn live(&self) -> bool {
        self.served && !self.winding
    }
}

/// A region or import as the control thread sees it.
#[derive(Debug)]
pub(super) struct RegionPlace {
    pub(super) bytes: u64,
    pub(super) charged: u64,
    import: bool,
    made: Option<(OwnedFd, Arc<Mapping>)>,
    /// A job has memory for it in hand.
    pub(super) in_hand: bool,
    pub(super) arriving: bool,
    pub(super) live: bool,
    pub(super) removing: bool,
    /// Keeps the memory until the engine has let go, so that it is unmapped here and not there.
    pub(super) keep: Option<Arc<Mapping>>,
    /// With the cards, for the engine's own requests.
    pub(super) registration: Option<Registered>,
    /// What other engines have to do with it.
    pub(super) links: Links,
}

/// A region offered under a name.
#[derive(Debug)]
pub(super) struct ExportEntry {
    pub(super) session: usize,
    pub(super) region: RegionId,
    pub(super) rights: u32,
    pub(super) secret: [u8; abi::SECRET_BYTES],
}

fn used_up(what: &str, used: u64, limit: u64, raise: &str) -> Refusal {
    let text = format!("{what}: {used} of {limit} are in use; release some or raise {raise}");
    Refusal::new(errno::EDQUOT, Detail::Quota, text)
}

pub(super) fn memory_refusal(error: &ShmError) -> Refusal {
    let (errno, detail) = match error {
        // Somebody else has sealed it just now.
        ShmError::Os { source: Errno::EPERM, .. } => (errno::EINVAL, Detail::Seals),
        ShmError::Os { .. } => (errno::ENOMEM, Detail::None),
        ShmError::NotMemfd | ShmError::Access => (errno::EINVAL, Detail::Descriptors),
        ShmError::Seals { .. } | ShmError::Sealed { .. } => (errno::EINVAL, Detail::Seals),
        ShmError::Size { .. } => (errno::EINVAL, Detail::Bytes),
    };
    let text = match error {
        ShmError::Os { call, source } => format!("{call}: {source}"),
        other => other.to_string(),
    };
    Refusal::new(errno, detail, text)
}

impl Server {
    pub(super) fn make_ring(&mut self, key: usize, request: &RingRequest) -> Result<(), Refusal> {
        wire::entries("sq_entries", request.sq_entries)?;
        wire::entries("cq_entries", request.cq_entries)?;
        if request.flags & !abi::RING_FENCELESS != 0 {
            let text = format!("flags {:#x} are not known", request.flags);
            return Err(Refusal::new(errno::EINVAL, Detail::Flags, text));
        }
        let limit = self.quota_of(key).rings;
        let used = self.owner_of(key).map_or(0, |owner| owner.rings);
        if used >= limit {
            return Err(used_up(
                "rings of this uid",
                used.into(),
                limit.into(),
                &self.raise(key, "rings"),
            ));
        }
        let bytes = SegmentHeader::lay_out(request.sq_entries, request.cq_entries).segment_bytes;
        self.check_bytes(key, "the ring's segment", bytes, bytes)?;
        let Some(ring) = self.ring_places.take() else {
            let limit = u64::from(self.config.rings_max);
            return Err(used_up("rings of this engine", limit, limit, "rings_max"));
        };
        let fenceless = request.flags & abi::RING_FENCELESS != 0;
        let header = SegmentHeader {
            boot_id: self.boot_id,
            engine: u32::from(self.config.engine),
            ring,
            first_index: self.config.first_index,
            ..SegmentHeader::lay_out(request.sq_entries, request.cq_entries)
        };
        self.rings[ring as usize] = Some(RingPlace {
            session: key,
            bytes,
            made: None,
            in_hand: true,
            arriving: false,
            served: false,
            winding: false,
        });
        if let Some(owner) = self.owner_of(key) {
            owner.rings += 1;
            owner.bytes += bytes;
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.rings.push(ring);
        }
        let tag = request.head.tag;
        let job = self.jobs_for.insert(JobFor::Ring { session: key, ring, tag, header, fenceless });
        self.hold(key);
        self.jobs.start(job, Work::Make { name: c"verbring-ring", bytes, huge: false });
        Ok(())
    }

    /// A job for a ring or region is over: go on, or give it up if it failed or its session ended.
    pub(super) fn job_finished(&mut self, job: JobFor, outcome: Outcome) {
        self.out_of_hand(&job);
        match job {
            JobFor::Ring { session, ring, tag, header, fenceless } => {
                let done = self.memory_of(session, outcome).and_then(|memory| {
                    self.ring_made(session, memory, header, fenceless, tag).map_err(Some)
                });
                self.ring_settled(session, ring, Kind::Ring, tag, done);
            }
            JobFor::RingMapped { session, ring, tag, made } => {
                let done = match self.populated(session, outcome) {
                    Ok(()) => self.ring_mapped(session, ring, made, tag).map_err(Some),
                    Err(refusal) => {
                        self.close_bells(session, made.bells);
                        Err(refusal)
                    }
                };
                self.ring_settled(session, ring, Kind::Mapped, tag, done);
            }
            JobFor::Region { session, region, tag, source } => {
                let done = self.memory_of(session, outcome).and_then(|memory| {
                    self.region_made(session, RegionId(region), memory, source, tag).map_err(Some)
                });
                self.region_settled(session, RegionId(region), Kind::Region, tag, done);
            }
            JobFor::RegionMapped { session, region, tag, mapping } => {
                let done = self.populated(session, outcome).map(|()| {
                    self.add_region(session, RegionId(region), mapping, tag, Kind::Mapped);
                });
                self.region_settled(session, RegionId(region), Kind::Mapped, tag, done);
            }
            JobFor::Recorder { session, tag } => {
                let made = self.memory_of(session, outcome);
                self.recorder_settled(session, tag, made);
            }
            JobFor::Aside { .. }
            | JobFor::TurnedAway
            | JobFor::Reach { .. }
            | JobFor::PeerSocket => {}
        }
    }

    /// The memory that a job made; else why not, and nothing if nobody is there to be told.
    fn memory_of(&mut self, session: usize, outcome: Outcome) -> Result<Memory, Option<Refusal>> {
        let ended = self.sessions.get(session).is_none_or(|session| session.ending);
        match outcome {
            Outcome::Made(memory) if !ended => Ok(memory),
            Outcome::Failed(error, fd) => {
                self.close_aside(session, fd.into_iter().collect());
                Err((!ended).then(|| memory_refusal(&error)))
            }
            _ => Err(None),
        }
    }

    fn populated(&mut self, session: usize, outcome: Outcome) -> Result<(), Option<Refusal>> {
        let ended = self.sessions.get(session).is_none_or(|session| session.ending);
        match outcome {
            Outcome::Populated if !ended => Ok(()),
            Outcome::Failed(error, _) if !ended => Err(Some(memory_refusal(&error))),
            _ => Err(None),
        }
    }

    fn out_of_hand(&mut self, job: &JobFor) {
        match *job {
            JobFor::Ring { ring, .. } | JobFor::RingMapped { ring, .. } => {
                if let Some(place) = self.rings[ring as usize].as_mut() {
                    place.in_hand = false;
                }
            }
            JobFor::Region { region, .. } | JobFor::RegionMapped { region, .. } => {
                if let Some(place) = self.regions.get_mut(&region) {
                    place.in_hand = false;
                }
            }
            JobFor::Recorder { .. }
            | JobFor::Aside { .. }
            | JobFor::TurnedAway
            | JobFor::Reach { .. }
            | JobFor::PeerSocket => {}
        }
    }

    fn ring_settled(
        &mut self,
        session: usize,
        ring: u32,
        kind: Kind,
        tag: u64,
        done: Result<(), Option<Refusal>>,
    ) {
        if let Err(refusal) = done {
            // Only now, since its memory was charged to its owner until now.
            self.forget_ring(session, ring);
            if let Some(refusal) = refusal {
                self.fail(session, kind, tag, &refusal);
            }
        }
        self.settle(session);
    }

    fn region_settled(
        &mut self,
        session: usize,
        region: RegionId,
        kind: Kind,
        tag: u64,
        done: Result<(), Option<Refusal>>,
    ) {
        if let Err(refusal) = done {
            self.forget_region(session, region);
            if let Some(refusal) = refusal {
                self.fail(session, kind, tag, &refusal);
            }
        }
        self.settle(session);
    }

    /// Hands a fresh ring to its client, who maps it and says so.
    fn ring_made(
        &mut self,
        key: usize,
        memory: Memory,
        header: SegmentHeader,
        fenceless: bool,
        tag: u64,
    ) -> Result<(), Refusal> {
        let failed = |text: String| Refusal::new(errno::ENOMEM, Detail::None, text);
        let mapping = Arc::new(memory.mapping);
        let ring =
            Mapped::create(Arc::clone(&mapping), header).map_err(|bad| failed(bad.to_string()))?;
        let sq_bell = bell_pair().map_err(|errno| failed(format!("socketpair: {errno}")))?;
        let cq_bell = bell_pair().map_err(|errno| failed(format!("socketpair: {errno}")))?;
        let bells = RingBells { from_client: sq_bell.0, to_client: cq_bell.0 };
        let reply = RingReply {
            reply: wire::reply_head::<RingReply>(Kind::Ring, tag),
            ring: header.ring,
            reserved: 0,
            segment_bytes: header.segment_bytes,
        };
        let handed = [memory.fd.as_fd(), sq_bell.1.as_fd(), cq_bell.1.as_fd()];
        self.answer(key, &reply, &handed);
        match self.rings[header.ring as usize].as_mut().filter(|place| place.session == key) {
            Some(place) => {
                let made = RingMade { fd: memory.fd, mapping, memory: ring, bells, fenceless };
                place.made = Some(made);
            }
            // The client was gone before it could be told.
            None => self.close_bells(key, bells),
        }
        Ok(())
    }

    /// The client has mapped a ring or an allocated region: seal it for good and make it live.
    pub(super) fn mapped(&mut self, key: usize, request: &abi::Mapped) -> Result<(), Refusal> {
        let tag = request.head.tag;
        let unknown = |what: &str| {
            let text = format!("{what} {} does not wait for MAPPED", request.id);
            Refusal::new(errno::EINVAL, Detail::Ring, text)
        };
        match request.object {
            abi::OBJECT_RING => {
                let owned = |place: &&mut RingPlace| place.session == key;
                let place = self.rings.get_mut(request.id as usize).and_then(Option::as_mut);
                let place = place.filter(owned).ok_or_else(|| unknown("ring"))?;
                let made = place.made.as_ref().ok_or_else(|| unknown("ring"))?;
                shm::seal_for_good(made.fd.as_fd()).map_err(|error| memory_refusal(&error))?;
                let Some(made) = place.made.take() else { return Err(unknown("ring")) };
                place.in_hand = true;
                let mapping = Arc::clone(&made.mapping);
                let job = JobFor::RingMapped { session: key, ring: request.id, tag, made };
                self.populate(key, job, mapping);
            }
            abi::OBJECT_REGION => {
                let owned = self
                    .sessions
                    .get(key)
                    .is_some_and(|session| session.regions.contains(&RegionId(request.id)));
                let place = self.regions.get_mut(&request.id).filter(|_| owned);
                let place = place.ok_or_else(|| unknown("region"))?;
                let (fd, _) = place.made.as_ref().ok_or_else(|| unknown("region"))?;
                shm::seal_for_good(fd.as_fd()).map_err(|error| memory_refusal(&error))?;
                let Some((_, mapping)) = place.made.take() else { return Err(unknown("region")) };
                place.in_hand = true;
                let (region, memory) = (request.id, Arc::clone(&mapping));
                let job = JobFor::RegionMapped { session: key, region, tag, mapping };
                self.populate(key, job, memory);
            }
            other => {
                let text = format!("object is {other}, but must be 1 (ring) or 2 (region)");
                return Err(Refusal::new(errno::EINVAL, Detail::Message, text));
            }
        }
        Ok(())
    }

    /// Has memory populated once more: until it was sealed its client might have punched holes into
    /// it, and the engine thread is not to wait for pages, nor to die of one that is not there.
    fn populate(&mut self, key: usize, job: JobFor, mapping: Arc<Mapping>) {
        let job = self.jobs_for.insert(job);
        self.hold(key);
        self.jobs.start(job, Work::Populate { mapping });
    }

    fn ring_mapped(
        &mut self,
        key: usize,
        ring: u32,
        made: RingMade,
        tag: u64,
    ) -> Result<(), Refusal> {
        if let Err(errno) = self.link.watch(ring, &made.bells) {
            self.close_bells(key, made.bells);
            let text = format!("epoll_ctl: {errno}");
            return Err(Refusal::new(errno::ENOMEM, Detail::None, text));
        }
        if let Some(place) = self.rings[ring as usize].as_mut() {
            place.arriving = true;
        }
        let state = Ring::new(RingId(ring), place(key), made.memory, made.fenceless);
        let token = self.pending.insert(Pending::RingLive { session: key, ring, tag }) as u64;
        self.hold(key);
        self.order_with(Command::AddRing { ring: Box::new(state), token }, Some(made.bells));
        Ok(())
    }

    pub(super) fn make_region(
        &mut self,
        key: usize,
        request: &RegionRequest,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let invalid = |detail, text: String| Err(Refusal::new(errno::EINVAL, detail, text));
        let bytes = request.bytes;
        let source = match request.source {
            abi::REGION_ALLOCATED => RegionSource::Allocated,
            abi::REGION_MEMFD => RegionSource::Memfd,
            other => {
                let text = format!("source is {other}, but must be 1 (allocated) or 2 (memfd)");
                return invalid(Detail::Message, text);
            }
        };
        if request.flags & !abi::REGION_HUGE != 0 {
            return invalid(Detail::Flags, format!("flags {:#x} are not known", request.flags));
        }
        if bytes == 0 {
            return invalid(Detail::Bytes, "bytes is 0, but must be at least 1".into());
        }
        let charged = bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(u64::MAX);
        self.check_bytes(key, "bytes", bytes, charged)?;
        let region = self.new_region(key, bytes, charged, false)?;
        let huge = request.flags & abi::REGION_HUGE != 0;
        // Taken only now: a descriptor of a request that is refused is closed with the others.
        let work = match (source, descriptors.pop()) {
            (RegionSource::Memfd, Some(fd)) => Work::Adopt { fd, bytes },
            _ => Work::Make { name: c"verbring-region", bytes: charged, huge },
        };
        let tag = request.head.tag;
        let job = JobFor::Region { session: key, region: region.0, tag, source };
        let job = self.jobs_for.insert(job);
        self.hold(key);
        self.jobs.start(job, work);
        Ok(())
    }

    /// The setting that gives a session's uid more of something.
    fn raise(&self, key: usize, field: &str) -> String {
        self.config.quota_key(self.uid_of(key), field)
    }

    /// Memory is charged in full, to the uid that asked for it.
    pub(super) fn check_bytes(
        &mut self,
        key: usize,
        what: &str,
        bytes: u64,
        charged: u64,
    ) -> Result<(), Refusal> {
        let limit = self.quota_of(key).region_bytes;
        let used = self.owner_of(key).map_or(0, |owner| owner.bytes);
        if charged <= limit.saturating_sub(used) {
            return Ok(());
        }
        let what = format!("{what} is {bytes}, and bytes of this uid");
        Err(used_up(&what, used, limit, &self.raise(key, "region_bytes")))
    }

    /// Takes an id for a region or import, within the uid's quota.
    pub(super) fn new_region(
        &mut self,
        key: usize,
        bytes: u64,
        charged: u64,
        import: bool,
    ) -> Result<RegionId, Refusal> {
        let limit = self.quota_of(key).regions;
        let used = self.owner_of(key).map_or(0, |owner| owner.regions);
        if used >= limit {
            let what = "regions and imports of this uid";
            return Err(used_up(what, used.into(), limit.into(), &self.raise(key, "regions")));
        }
        let Some(region) = self.region_ids.take() else {
            let limit = u64::from(self.config.regions_max);
            return Err(used_up("regions of this engine", limit, limit, "regions_max"));
        };
        if let Some(owner) = self.owner_of(key) {
            owner.regions += 1;
            owner.bytes += charged;
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.regions.push(region);
        }
        let place = RegionPlace {
            bytes,
            charged,
            import,
            made: None,
            in_hand: !import,
            arriving: false,
            live: false,
            removing: false,
            keep: None,
            registration: None,
            links: Links::default(),
        };
        self.regions.insert(region.0, place);
        Ok(region)
    }

    fn region_made(
        &mut self,
        key: usize,
        region: RegionId,
        memory: Memory,
        source: RegionSource,
        tag: u64,
    ) -> Result<(), Refusal> {
        let mapping = Arc::new(memory.mapping);
        if source == RegionSource::Memfd {
            self.add_region(key, region, mapping, tag, Kind::Region);
            return Ok(());
        }
        let Some(place) = self.regions.get_mut(&region.0) else { return Ok(()) };
        let reply = RegionReply {
            reply: wire::reply_head::<RegionReply>(Kind::Region, tag),
            region: region.0,
            flags: if memory.huge { abi::REGION_HUGE } else { 0 },
            bytes: place.bytes,
        };
        let fd = memory
            .fd
            .try_clone()
            .map_err(|error| Refusal::new(errno::ENOMEM, Detail::None, format!("dup: {error}")))?;
        place.made = Some((memory.fd, mapping));
        self.answer(key, &reply, &[fd.as_fd()]);
        Ok(())
    }

    /// Makes a region known to the engine.
    pub(super) fn admit_region(
        &mut self,
        key: usize,
        region: RegionId,
        memory: Arc<Mapping>,
        tag: u64,
        kind: Kind,
    ) {
        let Some(entry) = self.regions.get_mut(&region.0) else { return };
        entry.arriving = true;
        entry.keep = Some(Arc::clone(&memory));
        let bytes = entry.bytes;
        let card = entry.registration.as_ref();
        let card =
            card.map(|card| qp::Memory::own(Arc::clone(&memory), card.keys.clone(), region.0));
        let memory = Held { mapping: Some(memory), card };
        let pending = Pending::RegionLive { session: key, region: region.0, tag, kind };
        let token = self.pending.insert(pending) as u64;
        self.hold(key);
        self.order(Command::AddRegion { region, session: place(key), bytes, memory, token });
    }

    /// A live region (not an import) of a session.
    fn own_region(&self, key: usize, id: u32) -> Option<RegionId> {
        let owned = self.sessions.get(key)?.regions.contains(&RegionId(id));
        let place = self.regions.get(&id)?;
        (owned && place.live && !place.import && !place.removing).then_some(RegionId(id))
    }

    pub(super) fn export(&mut self, key: usize, request: &Export) -> Result<(), Refusal> {
        let name = wire::name(&request.name)?;
        let region = self.own_region(key, request.region).ok_or_else(|| {
            let text = format!("region {:#x} is not a live region of this session", request.region);
            Refusal::new(errno::EINVAL, Detail::LocalRegion, text)
        })?;
        check_rights(request.rights, request.rights == 0)?;
        let uid = self.sessions.get(key).map_or(UID_OWN, |session| session.uid);
        let entry = (uid, name.to_string());
        if self.exports.contains_key(&entry) {
            let text = format!("the name {name:?} is taken by another export of uid {uid}");
            return Err(Refusal::new(errno::EEXIST, Detail::Name, text));
        }
        let limit = self.quota_of(key).regions as usize;
        let used = self.exports.keys().filter(|(owner, _)| *owner == uid).count();
        if used >= limit {
            let what = "exports of this uid";
            return Err(used_up(what, used as u64, limit as u64, &self.raise(key, "regions")));
        }
        if self.comes_home(key, request)? {
            return Ok(());
        }
        let mut secret = [0; abi::SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|error| {
            Refusal::new(errno::ENOMEM, Detail::Secret, format!("no random bytes: {error}"))
        })?;
        let export = ExportEntry { session: key, region, rights: request.rights, secret };
        self.exports.insert(entry, export);
        let reply = ExportReply {
            reply: wire::reply_head::<ExportReply>(Kind::Export, request.head.tag),
            secret,
        };
        self.answer(key, &reply, &[]);
        Ok(())
    }

    pub(super) fn import(&mut self, key: usize, request: &Import) -> Result<(), Refusal> {
        let name = wire::name(&request.name)?;
        check_rights(request.rights, false)?;
        if request.peer != 0 {
            return self.import_abroad(key, request);
        }
        let own = self.sessions.get(key).map_or(UID_OWN, |session| session.uid);
        let uid = if request.uid == UID_OWN { own } else { request.uid };
        let entry = self.exports.get(&(uid, name.to_string())).ok_or_else(|| {
            let text = format!("uid {uid} exports nothing under the name {name:?}");
            Refusal::new(errno::ENOENT, Detail::Name, text)
        })?;
        let (target, offered) = (entry.region, entry.rights);
        let right = bool::from(entry.secret.ct_eq(&request.secret));
        if !right {
            if let Some(session) = self.sessions.get_mut(key) {
                session.wrong_secrets += 1;
            }
            let text = format!("the secret for {name:?} is wrong; ten wrong ones end the session");
            return Err(Refusal::new(errno::EACCES, Detail::Secret, text));
        }
        let rights = if request.rights == 0 { offered } else { request.rights };
        if rights & !offered != 0 {
            let text = format!("rights {rights:#x} are wanted, {offered:#x} are offered");
            return Err(Refusal::new(errno::EACCES, Detail::Rights, text));
        }
        let bytes = self.regions.get(&target.0).map_or(0, |place| place.bytes);
        let region = self.new_region(key, bytes, 0, true)?;
        if let Some(entry) = self.regions.get_mut(&region.0) {
            entry.arriving = true;
        }
        let tag = request.head.tag;
        let pending = Pending::ImportLive { session: key, region: region.0, rights, tag };
        let token = self.pending.insert(pending) as u64;
        self.hold(key);
        let session = place(key);
        self.order(Command::AddImport { region, session, target, rights, token });
        Ok(())
    }

    pub(super) fn release(&mut self, key: usize, request: &Release) -> Result<(), Refusal> {
        let tag = request.head.tag;
        let Some(session) = self.sessions.get(key) else { return Ok(()) };
        let refused = |detail, what: &str| {
            let text = format!("{what} {:#x} is not a live one of this session", request.id);
            Err(Refusal::new(errno::EINVAL, detail, text))
        };
        match request.object {
            abi::OBJECT_RING if session.rings.contains(&request.id) => {
                let live = self.rings[request.id as usize].as_ref().is_some_and(RingPlace::live);
                if !live {
                    return refused(Detail::Ring, "ring");
                }
                self.hold(key);
                self.wind_ring(key, request.id, Wind::Cancel, Asker::Release { tag });
            }
            abi::OBJECT_REGION if session.regions.contains(&RegionId(request.id)) => {
                let place = self.regions.get(&request.id);
                if !place.is_some_and(|place| place.live && !place.removing) {
                    return refused(Detail::LocalRegion, "region");
                }
                self.hold(key);
                self.exports.retain(|_, export| export.region.0 != request.id);
                self.remove_region(key, RegionId(request.id), Some(tag));
            }
            abi::OBJECT_RING => return refused(Detail::Ring, "ring"),
            _ => return refused(Detail::LocalRegion, "region"),
        }
        Ok(())
    }

    /// Asks the engine to let go of a region or import.
    pub(super) fn remove_region(&mut self, key: usize, region: RegionId, tag: Option<u64>) {
        if let Some(place) = self.regions.get_mut(&region.0) {
            place.removing = true;
        }
        let pending = Pending::RegionRemoved { session: key, region: region.0, tag };
        let token = self.pending.insert(pending) as u64;
        self.order(Command::RemoveRegion { region, token });
    }

    /// Frees a ring's place.
    pub(super) fn forget_ring(&mut self, key: usize, ring: u32) {
        // A second command may have been under way for it: by its answer the place may be another
        // session's.
        let Some(place) = self.rings[ring as usize].take_if(|place| place.session == key) else {
            return;
        };
        if let Some(made) = place.made {
            self.close_bells(key, made.bells);
        }
        self.ring_places.give(ring);
        if let Some(owner) = self.owner_of(key) {
            owner.rings -= 1;
            owner.bytes -= place.bytes;
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.rings.retain(|&own| own != ring);
        }
    }

    /// Frees a region's id; its memory is unmapped here.
    pub(super) fn forget_region(&mut self, key: usize, region: RegionId) {
        let Some(place) = self.regions.remove(&region.0) else { return };
        if let Some(abroad) = place.links.abroad {
            self.give_back(abroad);
        }
        self.region_ids.give(region);
        if let Some(owner) = self.owner_of(key) {
            owner.regions -= 1;
            owner.bytes -= place.charged;
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.regions.retain(|&own| own != region);
        }
    }

    /// The engine has answered a command.
    pub(super) fn continue_with(&mut self, pending: Pending, reply: Reply<Held, Mapped>) {
        match pending {
            Pending::RingLive { session, ring, tag } => {
                if let Some(place) = self.rings[ring as usize].as_mut() {
                    place.arriving = false;
                    place.served = true;
                }
                if self.settle(session) {
                    self.answer(session, &wire::reply_head::<ReplyHead>(Kind::Mapped, tag), &[]);
                }
            }
            Pending::RegionLive { session, region, tag, kind } => {
                self.region_live(session, region, tag, kind);
            }
            Pending::ImportLive { session, region, rights, tag } => {
                self.import_live(session, RegionId(region), rights, tag, &reply);
            }
            Pending::RingWound { session, ring, asker } => {
                self.ring_wound(session, ring, asker, reply);
            }
            Pending::RegionRemoved { session, region, tag } => {
                drop(reply);
                self.let_region_go(session, RegionId(region), tag);
            }
            Pending::Cancel { session, tag } => {
                self.answer_query(session, Kind::Cancel, tag, &reply)
            }
            Pending::Why { session, tag } => self.answer_query(session, Kind::Why, tag, &reply),
            Pending::Stats { session, tag, engine_scope } => {
                if let Reply::Stats { counters, .. } = reply
                    && self.settle(session)
                {
                    self.answer_stats(session, tag, engine_scope, counters);
                }
            }
            Pending::SessionRemoved { session } => self.session_removed(session),
            Pending::Peers(what) => self.engine_did_for_peers(what, &reply),
        }
    }

    fn region_live(&mut self, session: usize, region: u32, tag: u64, kind: Kind) {
        let bytes = self.regions.get_mut(&region).map_or(0, |place| {
            place.arriving = false;
            place.live = true;
            place.bytes
        });
        if !self.settle(session) {
            return;
        }
        if kind == Kind::Mapped {
            self.answer(session, &wire::reply_head::<ReplyHead>(Kind::Mapped, tag), &[]);
        } else {
            let reply = wire::reply_head::<RegionReply>(Kind::Region, tag);
            self.answer(session, &RegionReply { reply, region, flags: 0, bytes }, &[]);
        }
    }

    fn import_live(
        &mut self,
        session: usize,
        region: RegionId,
        rights: u32,
        tag: u64,
        reply: &Reply<Held, Mapped>,
    ) {
        if let Reply::Failed { errno, detail, .. } = *reply {
            self.forget_region(session, region);
            if self.settle(session) {
                let text = "the region was revoked or released just now";
                self.fail(session, Kind::Import, tag, &Refusal::new(errno, detail, text));
            }
            return;
        }
        let bytes = self.regions.get_mut(&region.0).map_or(0, |place| {
            place.arriving = false;
            place.live = true;
            place.bytes
        });
        if self.settle(session) {
            let reply = wire::reply_head::<ImportReply>(Kind::Import, tag);
            let region = region.0;
            self.answer(session, &ImportReply { reply, region, rights, bytes }, &[]);
        }
    }

    fn ring_wound(&mut self, session: usize, ring: u32, asker: Asker, reply: Reply<Held, Mapped>) {
        // Done: a later command took this one's place, and will bring the ring. Failed: an earlier
        // one has brought it, and its number may be another session's by now.
        let gone = matches!(reply, Reply::RingGone { .. });
        drop(reply);
        if gone {
            self.forget_ring(session, ring);
        }
        match asker {
            Asker::Shutdown => {}
            Asker::Departure => {
                self.settle(session);
            }
            Asker::Release { tag } => {
                if self.settle(session) {
                    let head = wire::reply_head::<ReplyHead>(Kind::Release, tag);
                    self.answer(session, &head, &[]);
                }
            }
        }
    }
}

fn check_rights(rights: u32, empty: bool) -> Result<(), Refusal> {
    if rights & !abi::RIGHTS_ALL != 0 || empty {
        let text = format!(
            "rights is {rights:#x}, but must be of {:#x}, and an export grants at least one",
            abi::RIGHTS_ALL
        );
        return Err(Refusal::new(errno::EINVAL, Detail::Rights, text));
    }
    Ok(())
}
