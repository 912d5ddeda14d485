//! The slow path over libibverbs: queue pairs and their states, memory, and what the device says.
//!
//! What a device says that it can do is where the search begins, not where it ends: devices
//! over-report, so sizes are found by making queue pairs ([`settle`]).

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::cards::Card;
use super::device::{Device, QueuePair, Queues, Registered, device_names};
use super::error::VerbsError;
use super::events::AsyncEvent;
use super::provider::{Inbox, VerbsPair, VerbsProvider};
use super::sys::{self, Zeroed};
use crate::fabric::qp::provider::{
    Access, Caps, Created, DeviceLimits, Endpoint, Key, Link, MESSAGE_BYTES, Move, PairState,
    PathSettings, ProviderControl, ProviderError, Registration,
};
use crate::shm::{Mapping, PAGE_BYTES};

/// Which device to open, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerbsSettings {
    /// The device's name, as `verbring devices` shows it.
    pub device: String,
    /// Its port, from 1.
    pub port: u8,
    /// Entries of the completion queue: at least all sends and receives of all queue pairs.
    pub completions: u32,
    /// Largest registration, bytes, in whole pages; larger memory is split. The device's own
    /// limit holds besides.
    pub registration_bytes_max: u64,
}

impl VerbsSettings {
    /// A port of a device, with 4,096 completions, split only where the device demands it.
    #[must_use]
    pub fn new(device: &str, port: u8) -> Self {
        Self {
            device: device.to_string(),
            port,
            completions: 4096,
            registration_bytes_max: 1 << 40,
        }
    }
}

/// Opens a device: its data path, and its slow path.
///
/// # Errors
/// [`VerbsError`], each with what to do.
pub fn open(settings: &VerbsSettings) -> Result<(VerbsProvider, VerbsControl), VerbsError> {
    let control = open_one(settings)?;
    let provider = VerbsProvider::new([control.queues.clone()].into());
    Ok((provider, control))
}

/// Opens several devices: one data path over all, and the slow path of each. The device at place
/// `n` is card `n`.
///
/// # Errors
/// [`VerbsError`] of the first that cannot be opened.
pub fn open_several(
    settings: &[VerbsSettings],
) -> Result<(VerbsProvider, Vec<VerbsControl>), VerbsError> {
    let controls: Vec<_> = settings.iter().map(open_one).collect::<Result<_, _>>()?;
    let queues = controls.iter().map(|control| control.queues.clone());
    Ok((VerbsProvider::new(queues.collect()), controls))
}

fn open_one(settings: &VerbsSettings) -> Result<VerbsControl, VerbsError> {
    let device = Device::open(&settings.device)?;
    let attr = device.attr()?;
    if settings.port == 0 || settings.port > attr.phys_port_cnt {
        let name = device.name.clone();
        return Err(VerbsError::NoPort { name, port: settings.port, ports: attr.phys_port_cnt });
    }
    let port = device.port(settings.port)?;
    if port.state != sys::PORT_ACTIVE {
        let name = device.name.clone();
        return Err(VerbsError::PortDown { name, port: settings.port, state: port.state });
    }
    let mut limits = limits(&attr, &port);
    let pages = settings.registration_bytes_max.min(limits.registration_bytes_max) / PAGE_BYTES;
    limits.registration_bytes_max = pages.max(1) * PAGE_BYTES;
    let entries = settings.completions.clamp(1, limits.completions_max);
    Ok(VerbsControl {
        queues: Arc::new(Queues::make(device, entries)?),
        limits,
        ethernet: port.link_layer == sys::LINK_LAYER_ETHERNET,
        pairs: BTreeMap::new(),
        owed: 0,
        registrations: BTreeMap::new(),
        next_registration: 1,
    })
}

/// Opens every device for a moment: fills in what only then can be known, or why it cannot be.
///
/// # Errors
/// [`VerbsError`] if the library itself cannot be used; then no device can.
pub fn open_all(cards: &mut [Card]) -> Result<(), VerbsError> {
    device_names()?;
    for card in cards {
        match Device::open(&card.name) {
            Ok(device) => {
                #[cfg(feature = "ibverbs")]
                super::bindings::fill_gids(card);
                for port in &mut card.ports {
                    let attr = device.port(port.number).ok();
                    port.mtu_bytes = attr.map(|attr| mtu_bytes(attr.active_mtu));
                }
            }
            Err(error) => card.obstacle = Some(error.to_string()),
        }
    }
    Ok(())
}

/// A count that the library gives as a C int.
fn count(value: c_int) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn limits(attr: &sys::DeviceAttr, port: &sys::PortAttr) -> DeviceLimits {
    let reads = |value: c_int| u8::try_from(value.max(0)).unwrap_or(u8::MAX);
    DeviceLimits {
        pairs_max: count(attr.max_qp),
        depth_max: count(attr.max_qp_wr),
        completions_max: count(attr.max_cqe),
        registrations_max: count(attr.max_mr),
        registration_bytes_max: attr.max_mr_size,
        message_bytes_max: port.max_msg_sz,
        ranges_max: ranges(attr.max_sge, attr.max_sge_rd),
        reads_in_max: reads(attr.max_qp_rd_atom),
        reads_out_max: reads(attr.max_qp_init_rd_atom),
        mtu_bytes: mtu_bytes(port.active_mtu),
        atomics: attr.atomic_cap > 0,
    }
}

/// Local ranges that every work request may have. Devices that have no limit of their own for READs
/// say 0 there.
fn ranges(any: c_int, read: c_int) -> u32 {
    let any = count(any).max(1);
    if read > 0 { any.min(count(read)) } else { any }
}

/// An `enum ibv_mtu` in bytes; an unknown one is the least.
fn mtu_bytes(code: u32) -> u32 {
    if (1..=5).contains(&code) { 128 << code } else { 256 }
}

/// The largest `enum ibv_mtu` of at most so many bytes.
fn mtu_code(bytes: u32) -> u32 {
    (1..=5).rev().find(|code| mtu_bytes(*code) <= bytes).unwrap_or(1)
}

/// Finds sizes that a device agrees to, by trying. If all that is asked for cannot be had, first
/// the depths are halved, the larger one at a time, with one range and the least that must be
/// inline; then as much as possible is inline at that depth, and then as many ranges as possible.
fn settle<T>(ask: Caps, mut make: impl FnMut(Caps) -> Result<T, i32>) -> Result<T, i32> {
    // What a size can be the cause of; anything else would not go away.
    const OF_SIZE: [Errno; 5] =
        [Errno::EINVAL, Errno::ENOMEM, Errno::ENOSPC, Errno::E2BIG, Errno::EOVERFLOW];
    let of_size = |errno: i32| OF_SIZE.contains(&Errno::from_raw(errno));
    match make(ask) {
        Err(errno) if of_size(errno) => {}
        other => return other,
    }
    let mut caps = Caps { inline_bytes: MESSAGE_BYTES, ranges: 1, ..ask };
    let mut least = loop {
        match make(caps) {
            Ok(made) => break made,
            Err(errno) if of_size(errno) && (caps.sends > 1 || caps.receives > 1) => {
                let larger =
                    if caps.sends >= caps.receives { &mut caps.sends } else { &mut caps.receives };
                *larger = (*larger / 2).max(1);
            }
            Err(errno) => return Err(errno),
        }
    };
    let mut inline_bytes = ask.inline_bytes;
    while inline_bytes > MESSAGE_BYTES {
        if let Ok(made) = make(Caps { inline_bytes, ..caps }) {
            (least, caps.inline_bytes) = (made, inline_bytes);
            break;
        }
        inline_bytes /= 2;
    }
    let mut ranges = ask.ranges;
    while ranges > 1 {
        if let Ok(made) = make(Caps { ranges, ..caps }) {
            least = made;
            break;
        }
        ranges /= 2;
    }
    Ok(least)
}

/// Pieces of so many bytes at most, as offset and length.
fn pieces(bytes: u64, piece_bytes: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..bytes.div_ceil(piece_bytes)).map(move |index| {
        let offset = index * piece_bytes;
        (offset, piece_bytes.min(bytes - offset))
    })
}

fn os(call: &'static str, errno: i32) -> ProviderError {
    let hint = match Errno::from_raw(errno) {
        Errno::ENOMEM => {
            "raise the limit of locked memory (ulimit -l unlimited, LimitMEMLOCK=infinity)"
        }
        Errno::EPERM | Errno::EACCES => "this user has no right to the device",
        Errno::ENODEV | Errno::EIO => "the device is gone or reset: look at dmesg",
        Errno::EINVAL => "the device does not admit these values: see verbring devices",
        Errno::ETIMEDOUT | Errno::EHOSTUNREACH | Errno::ENETUNREACH => {
            "the peer's GID cannot be reached from this port: see verbring devices --why"
        }
        _ => "look at dmesg",
    };
    ProviderError::Os { call, errno, hint }
}

struct PairEntry {
    shared: Arc<QueuePair>,
    /// Completions that it may owe: its share of the completion queue.
    share: u32,
}

struct Registrations {
    pieces: Vec<Registered>,
}

/// What is in force on a queue pair, as the device tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Path MTU, bytes.
    pub mtu_bytes: u32,
    /// Time to an acknowledgement: 4.096 us * 2^this.
    pub timeout: u8,
    /// Repeats without an acknowledgement.
    pub retry: u8,
    /// Repeats while the peer has no receive.
    pub rnr_retry: u8,
    /// How long the peer is told to wait (IBTA code).
    pub rnr_timer: u8,
    /// READs and atomics outstanding.
    pub reads_out: u8,
    /// READs and atomics answered at once.
    pub reads_in: u8,
    /// Service level.
    pub service_level: u8,
    /// Traffic class.
    pub traffic_class: u8,
}

/// The slow path of one device. It owns what was not handed to the data path, and what is left of
/// it ends with it.
pub struct VerbsControl {
    queues: Arc<Queues>,
    limits: DeviceLimits,
    ethernet: bool,
    pairs: BTreeMap<u32, PairEntry>,
    /// Sum of all shares.
    owed: u32,
    registrations: BTreeMap<u32, Registrations>,
    next_registration: u32,
}

impl std::fmt::Debug for VerbsControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerbsControl")
            .field("device", &self.queues.device.name)
            .field("limits", &self.limits)
            .field("pairs", &self.pairs.keys())
            .field("registrations", &self.registrations.keys())
            .finish_non_exhaustive()
    }
}

impl VerbsControl {
    /// Entries of the completion queue.
    #[must_use]
    pub fn completions(&self) -> u32 {
        self.queues.entries()
    }

    /// The descriptor that becomes readable when [`VerbsControl::next_event`] has something.
    #[must_use]
    pub fn events(&self) -> BorrowedFd<'_> {
        self.queues.device.events()
    }

    /// The next thing that the device says by itself, if there is one.
    pub fn next_event(&mut self) -> Option<AsyncEvent> {
        self.queues.device.next_event().map(|(event, number)| AsyncEvent::from_ibv(event, number))
    }

    /// Asks what is in force on a queue pair.
    ///
    /// # Errors
    /// If the number is not known, or the device refuses.
    pub fn effective(&mut self, number: u32) -> Result<Effective, ProviderError> {
        let mask = sys::QP_PATH_MTU
            | sys::QP_TIMEOUT
            | sys::QP_RETRY_CNT
            | sys::QP_RNR_RETRY
            | sys::QP_MIN_RNR_TIMER
            | sys::QP_MAX_QP_RD_ATOMIC
            | sys::QP_MAX_DEST_RD_ATOMIC
            | sys::QP_AV;
        let attr = self.pair(number)?.query(mask).map_err(|errno| os("ibv_query_qp", errno))?;
        Ok(Effective {
            mtu_bytes: mtu_bytes(attr.path_mtu),
            timeout: attr.timeout,
            retry: attr.retry_cnt,
            rnr_retry: attr.rnr_retry,
            rnr_timer: attr.min_rnr_timer,
            reads_out: attr.max_rd_atomic,
            reads_in: attr.max_dest_rd_atomic,
            service_level: attr.ah_attr.sl,
            traffic_class: attr.ah_attr.grh.traffic_class,
        })
    }

    fn pair(&self, number: u32) -> Result<&QueuePair, ProviderError> {
        let entry = self.pairs.get(&number);
        let entry = entry.ok_or(ProviderError::Unknown { what: "queue pair", number })?;
        Ok(&entry.shared)
    }

    /// A ring of buffers for the messages of so many receives.
    fn inbox(&self, receives: u32) -> Result<Inbox, ProviderError> {
        let bytes = u64::from(receives) * u64::from(MESSAGE_BYTES);
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let buffer = Mapping::anonymous(bytes).map_err(|_| os("mmap", Errno::ENOMEM as i32))?;
        let buffer = Arc::new(buffer);
        let own = Access { write: false, read: false, atomics: false };
        let registered = Registered::make(&self.queues, &buffer, 0, bytes, own)
            .map_err(|errno| os("ibv_reg_mr", errno))?;
        Ok(Inbox::new(buffer, registered, receives))
    }

    fn address(&self, link: &Link) -> sys::AhAttr {
        let settings = &link.settings;
        sys::AhAttr {
            grh: sys::GlobalRoute {
                dgid: link.peer.gid,
                flow_label: 0,
                sgid_index: settings.gid_index,
                hop_limit: settings.hop_limit,
                traffic_class: settings.traffic_class,
            },
            dlid: link.peer.lid,
            sl: settings.service_level,
            src_path_bits: 0,
            static_rate: 0,
            // InfiniBand needs the GID only where there is no LID to go by.
            is_global: u8::from(self.ethernet || link.peer.lid == 0),
            port_num: settings.port,
        }
    }

    /// What a move sets, and which of it counts.
    fn attributes(&self, to: &Move) -> (sys::QpAttr, c_int) {
        let empty = sys::QpAttr::zeroed();
        match to {
            Move::Reset => (sys::QpAttr { qp_state: sys::QPS_RESET, ..empty }, sys::QP_STATE),
            Move::Error => (sys::QpAttr { qp_state: sys::QPS_ERR, ..empty }, sys::QP_STATE),
            Move::Init(settings) => {
                let attr = sys::QpAttr {
                    qp_state: sys::QPS_INIT,
                    port_num: settings.port,
                    qp_access_flags: sys::ACCESS_LOCAL_WRITE
                        | sys::ACCESS_REMOTE_WRITE
                        | sys::ACCESS_REMOTE_READ
                        | sys::ACCESS_REMOTE_ATOMIC,
                    ..empty
                };
                let own = sys::QP_PKEY_INDEX | sys::QP_PORT | sys::QP_ACCESS_FLAGS;
                (attr, sys::QP_STATE | own)
            }
            Move::ReadyToReceive(link) => {
                let attr = sys::QpAttr {
                    qp_state: sys::QPS_RTR,
                    path_mtu: mtu_code(link.mtu_bytes()),
                    dest_qp_num: link.peer.number,
                    rq_psn: link.peer.psn,
                    max_dest_rd_atomic: link.reads_in(),
                    min_rnr_timer: link.settings.rnr_timer,
                    ah_attr: self.address(link),
                    ..empty
                };
                let own = sys::QP_AV
                    | sys::QP_PATH_MTU
                    | sys::QP_DEST_QPN
                    | sys::QP_RQ_PSN
                    | sys::QP_MAX_DEST_RD_ATOMIC
                    | sys::QP_MIN_RNR_TIMER;
                (attr, sys::QP_STATE | own)
            }
            Move::ReadyToSend(link) => {
                let attr = sys::QpAttr {
                    qp_state: sys::QPS_RTS,
                    sq_psn: link.own.psn,
                    timeout: link.settings.timeout,
                    retry_cnt: link.settings.retry,
                    rnr_retry: link.settings.rnr_retry,
                    max_rd_atomic: link.reads_out(),
                    ..empty
                };
                let own = sys::QP_TIMEOUT
                    | sys::QP_RETRY_CNT
                    | sys::QP_RNR_RETRY
                    | sys::QP_SQ_PSN
                    | sys::QP_MAX_QP_RD_ATOMIC;
                (attr, sys::QP_STATE | own)
            }
        }
    }
}

/// The state that a move leads to, and whether it may come from another one.
fn leads(to: &Move, from: PairState) -> (PairState, bool) {
    match to {
        Move::Reset => (PairState::Reset, true),
        Move::Error => (PairState::Error, true),
        Move::Init(_) => (PairState::Init, matches!(from, PairState::Reset | PairState::Init)),
        Move::ReadyToReceive(_) => (PairState::ReadyToReceive, from == PairState::Init),
        Move::ReadyToSend(_) => {
            let may = matches!(from, PairState::ReadyToReceive | PairState::ReadyToSend);
            (PairState::ReadyToSend, may)
        }
    }
}

impl ProviderControl for VerbsControl {
    type Pair = VerbsPair;
    type Memory = Arc<Mapping>;

    fn limits(&self) -> DeviceLimits {
        self.limits
    }

    fn create(&mut self, ask: Caps) -> Result<Created<VerbsPair>, ProviderError> {
        let depth_max = self.limits.depth_max.max(1);
        let ask = Caps {
            sends: ask.sends.clamp(1, depth_max),
            receives: ask.receives.clamp(1, depth_max),
            inline_bytes: ask.inline_bytes.max(MESSAGE_BYTES),
            ranges: ask.ranges.clamp(1, self.limits.ranges_max.max(1)),
        };
        let entries = self.queues.entries();
        let all = u64::from(self.owed) + u64::from(ask.sends) + u64::from(ask.receives);
        if all > u64::from(entries) {
            return Err(ProviderError::Limit {
                field: "sends and receives of all queue pairs",
                value: all,
                limit: entries.into(),
                hint: "open the device with more completions, or make smaller queue pairs",
            });
        }
        let (pair, caps) = settle(ask, |ask| QueuePair::make(&self.queues, ask))
            .map_err(|errno| os("ibv_create_qp", errno))?;
        if caps.inline_bytes < MESSAGE_BYTES || caps.sends == 0 || caps.receives == 0 {
            return Err(ProviderError::Limit {
                field: "inline bytes",
                value: MESSAGE_BYTES.into(),
                limit: caps.inline_bytes.into(),
                hint: "this device cannot carry a message inline: choose another",
            });
        }
        let inbox = self.inbox(caps.receives)?;
        let share = caps.sends + caps.receives;
        let (number, shared) = (pair.number(), Arc::new(pair));
        self.owed += share;
        self.pairs.insert(number, PairEntry { shared: shared.clone(), share });
        Ok(Created { pair: VerbsPair { shared, inbox, caps }, number, caps })
    }

    fn endpoint(
        &mut self,
        number: u32,
        settings: &PathSettings,
        credits: u32,
    ) -> Result<Endpoint, ProviderError> {
        self.pair(number)?;
        let device = &self.queues.device;
        let port = device
            .port(settings.port)
            .map_err(|_| ProviderError::Unknown { what: "port", number: settings.port.into() })?;
        let index = settings.gid_index;
        let table = u64::from(count(port.gid_tbl_len));
        if self.ethernet && u64::from(index) >= table {
            return Err(ProviderError::Limit {
                field: "the GID's index",
                value: index.into(),
                limit: table.saturating_sub(1),
                hint: "the port's table is no longer: see verbring devices",
            });
        }
        let gid = device.gid(settings.port, index).map_err(|errno| os("ibv_query_gid", errno))?;
        if self.ethernet && gid == [0; 16] {
            return Err(ProviderError::NoAddress {
                port: settings.port,
                index,
                hint: "give the network device an address (ip address add), or choose another \
                       place: see verbring devices",
            });
        }
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|_| os("getrandom", Errno::EIO as i32))?;
        Ok(Endpoint {
            number,
            psn: u32::from_le_bytes(random) & 0x00ff_ffff,
            gid,
            lid: port.lid,
            mtu_bytes: mtu_bytes(port.active_mtu).min(settings.mtu_bytes_max),
            reads_in: self.limits.reads_in_max,
            reads_out: self.limits.reads_out_max,
            credits,
        })
    }

    fn modify(&mut self, number: u32, to: &Move) -> Result<(), ProviderError> {
        let (attr, mask) = self.attributes(to);
        let pair = self.pair(number)?;
        let Err(errno) = pair.modify(attr, mask) else { return Ok(()) };
        // EINVAL is also said of values; whether the state was the reason, the state tells.
        if errno == Errno::EINVAL as i32
            && let Ok(have) = self.state(number)
            && let (want, false) = leads(to, have)
        {
            return Err(ProviderError::State { number, have, want });
        }
        Err(os("ibv_modify_qp", errno))
    }

    fn state(&mut self, number: u32) -> Result<PairState, ProviderError> {
        let pair = self.pair(number)?;
        let attr = pair.query(sys::QP_STATE).map_err(|errno| os("ibv_query_qp", errno))?;
        Ok(match attr.qp_state {
            sys::QPS_RESET => PairState::Reset,
            sys::QPS_INIT => PairState::Init,
            sys::QPS_RTR => PairState::ReadyToReceive,
            sys::QPS_RTS => PairState::ReadyToSend,
            sys::QPS_ERR => PairState::Error,
            _ => PairState::Other,
        })
    }

    fn destroy(&mut self, number: u32, pair: VerbsPair) -> Result<(), ProviderError> {
        let unknown = ProviderError::Unknown { what: "queue pair", number };
        // The value is let go in any case; the entry only if it is of the same queue pair.
        if !self.pairs.get(&number).is_some_and(|entry| Arc::ptr_eq(&entry.shared, &pair.shared)) {
            return Err(unknown);
        }
        let VerbsPair { shared, inbox, .. } = pair;
        drop(shared);
        let entry = self.pairs.remove(&number).ok_or(unknown)?;
        self.owed -= entry.share;
        let ended = Arc::into_inner(entry.shared).map_or(Ok(()), QueuePair::end);
        // Its receives name the inbox's memory until here.
        drop(inbox);
        ended.map_err(|errno| os("ibv_destroy_qp", errno))
    }

    fn register(
        &mut self,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> Result<Registration, ProviderError> {
        let mut keys = Vec::new();
        let mut registered = Vec::new();
        let base = memory.base().as_ptr().expose_provenance() as u64;
        for (offset, bytes) in pieces(memory.bytes(), self.limits.registration_bytes_max) {
            // Those before are withdrawn when the list of them is dropped.
            let piece = Registered::make(&self.queues, memory, offset, bytes, access)
                .map_err(|errno| os("ibv_reg_mr", errno))?;
            let (lkey, rkey, address) = (piece.lkey(), piece.rkey(), base + offset);
            keys.push(Key { offset, bytes, address, lkey, rkey });
            registered.push(piece);
        }
        for key in &keys {
            self.queues.keys.add(key.lkey, key.address, key.bytes);
        }
        let id = self.next_registration;
        self.next_registration += 1;
        self.registrations.insert(id, Registrations { pieces: registered });
        Ok(Registration { id, keys: keys.into() })
    }

    fn deregister(&mut self, id: u32) -> Result<(), ProviderError> {
        let unknown = ProviderError::Unknown { what: "registration", number: id };
        let Registrations { pieces } = self.registrations.remove(&id).ok_or(unknown)?;
        let (mut kept, mut refused) = (Vec::new(), None);
        for piece in pieces {
            self.queues.keys.remove(piece.lkey());
            if let Err((errno, piece)) = piece.end() {
                kept.push(piece);
                refused = Some(errno);
            }
        }
        let Some(errno) = refused else { return Ok(()) };
        self.registrations.insert(id, Registrations { pieces: kept });
        Err(os("ibv_dereg_mr", errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that agrees to at most `able`, and says nothing of it.
    fn settled(ask: Caps, able: Caps) -> (Result<Caps, i32>, usize) {
        let mut tries = 0;
        let found = settle(ask, |caps| {
            tries += 1;
            let fits = caps.sends <= able.sends
                && caps.receives <= able.receives
                && caps.inline_bytes <= able.inline_bytes
                && caps.ranges <= able.ranges;
            if fits { Ok(caps) } else { Err(Errno::ENOMEM as i32) }
        });
        (found, tries)
    }

    fn caps(sends: u32, receives: u32, inline_bytes: u32) -> Caps {
        Caps { sends, receives, inline_bytes, ranges: 1 }
    }

    #[test]
    fn f32_ranges_are_found_by_trying() {
        let ask = Caps { ranges: 16, ..caps(256, 64, 512) };
        assert_eq!(settled(ask, ask), (Ok(ask), 1), "all of it at once");
        for (able, found) in [(1, 1), (3, 2), (8, 8), (15, 8)] {
            let made = settled(ask, Caps { ranges: able, ..ask }).0;
            assert_eq!(made, Ok(Caps { ranges: found, ..ask }), "{able}");
        }
        let able = Caps { ranges: 4, ..caps(100, 64, 128) };
        assert_eq!(settled(ask, able).0, Ok(Caps { ranges: 4, ..caps(64, 64, 128) }));
        assert_eq!([ranges(30, 0), ranges(30, 4), ranges(2, 30), ranges(0, 0)], [30, 4, 2, 1]);
    }

    #[test]
    fn f32_sizes_are_found_by_trying() {
        let ask = caps(256, 64, 512);
        assert_eq!(settled(ask, ask), (Ok(ask), 1), "all of it at once");
        assert_eq!(settled(ask, caps(256, 64, 200)).0, Ok(caps(256, 64, 128)), "inline only");
        assert_eq!(settled(ask, caps(100, 64, 512)).0, Ok(caps(64, 64, 512)), "depth only");
        assert_eq!(settled(ask, caps(256, 3, 512)).0, Ok(caps(2, 2, 512)), "either is halved");
        assert_eq!(settled(ask, caps(1, 1, 16)).0, Ok(caps(1, 1, 16)), "the least");
        assert_eq!(settled(ask, caps(1, 1, 15)).0, Err(Errno::ENOMEM as i32));
        assert!(settled(ask, caps(1, 1, 15)).1 < 32);
    }

    #[test]
    fn what_no_size_can_cure_ends_the_search() {
        let mut tries = 0;
        let found = settle(caps(256, 64, 512), |_| -> Result<(), i32> {
            tries += 1;
            Err(Errno::EPERM as i32)
        });
        assert_eq!((found, tries), (Err(Errno::EPERM as i32), 1));
    }

    #[test]
    fn pieces_cover_the_whole_without_gaps() {
        let cut = |bytes, most| pieces(bytes, most).collect::<Vec<_>>();
        assert_eq!(cut(8192, 4096), [(0, 4096), (4096, 4096)]);
        assert_eq!(cut(10_000, 4096), [(0, 4096), (4096, 4096), (8192, 1808)]);
        assert_eq!(cut(4096, 1 << 40), [(0, 4096)]);
    }

    #[test]
    fn mtus_have_their_codes() {
        for (code, bytes) in [(1, 256), (2, 512), (3, 1024), (4, 2048), (5, 4096)] {
            assert_eq!((mtu_bytes(code), mtu_code(bytes)), (bytes, code));
        }
        assert_eq!((mtu_bytes(0), mtu_bytes(6)), (256, 256));
        assert_eq!((mtu_code(4095), mtu_code(1), mtu_code(9000)), (4, 1, 5));
    }

    #[test]
    fn states_follow_one_another() {
        let init = Move::Init(PathSettings::DEFAULT);
        assert_eq!(leads(&init, PairState::Reset), (PairState::Init, true));
        assert_eq!(leads(&init, PairState::Error), (PairState::Init, false));
        assert_eq!(leads(&Move::Reset, PairState::Other), (PairState::Reset, true));
    }
}
