//! The data path over libibverbs: post lists, poll completions, ask for events.
//!
//! Everything that a post needs is allocated beforehand: work requests, ranges and messages stand
//! in arrays that are linked and handed over with one call, which is one doorbell.
//!
//! **Invariants**: receives of a queue pair complete in order, so the place of a message follows
//! from counting. Bytes are copied inline only out of memory that is known to be registered and
//! cannot be withdrawn meanwhile; any other WRITE goes the ordinary way, where the card judges.
//! A queue pair knows its card; each poll begins with another card, so that none waits for ever
//! behind one that always has something.
#![expect(unsafe_code, reason = "hands arrays to the library and reads what it returns")]

use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;

use super::device::{QueuePair, Queues, Registered};
use super::sys::{self, Zeroed};
use crate::fabric::qp::provider::{
    BadPost, Broken, Caps, MESSAGE_BYTES, Provider, RANGES_MAX, Range, Wc, WcKind, WcStatus, Wr,
    WrId, WrVerb,
};
use crate::shm::Mapping;

/// Work requests that are posted with one doorbell; longer lists take several.
const LIST_MAX: u16 = 256;

/// Local ranges that they have together.
const LIST_RANGES_MAX: usize = LIST_MAX as usize * RANGES_MAX as usize;

/// Completions that are polled with one call.
const POLL_MAX: usize = 64;

/// Ranges that local keys admit, for WRITEs whose bytes the CPU copies.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// By key: first address, and first address behind.
    ranges: RwLock<Vec<(u32, u64, u64)>>,
}

impl Keys {
    pub(super) fn add(&self, lkey: u32, address: u64, bytes: u64) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let at = ranges.partition_point(|(key, ..)| *key < lkey);
        ranges.insert(at, (lkey, address, address + bytes));
    }

    /// Waits for posts that look at the ranges now; then none copies from this one any more.
    pub(super) fn remove(&self, lkey: u32) {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.retain(|(key, ..)| *key != lkey);
    }
}

fn admits(ranges: &[(u32, u64, u64)], range: &Range) -> bool {
    let Ok(at) = ranges.binary_search_by_key(&range.lkey, |(key, ..)| *key) else { return false };
    let (_, first, behind) = ranges[at];
    let end = range.address.checked_add(range.bytes.into());
    range.address >= first && end.is_some_and(|end| end <= behind)
}

/// Where the messages of a queue pair's receives lie, and which of them are next.
pub(super) struct Inbox {
    buffer: Arc<Mapping>,
    registered: Registered,
    places: u32,
    /// The `wr_id` of receives that count; earlier ones belong to a queue pair since reset.
    wr_id: u64,
    posted: u32,
    completed: u32,
}

impl Inbox {
    pub(super) fn new(buffer: Arc<Mapping>, registered: Registered, places: u32) -> Self {
        Self { buffer, registered, places, wr_id: u64::MAX, posted: 0, completed: 0 }
    }

    fn room(&self) -> u32 {
        self.places - self.posted.wrapping_sub(self.completed)
    }

    fn offset(&self, count: u32) -> u64 {
        u64::from(count % self.places) * u64::from(MESSAGE_BYTES)
    }

    /// The message of the next completion.
    fn take(&mut self) -> [u64; 2] {
        let mut bytes = [[0; 8]; 2];
        self.buffer.read(self.offset(self.completed), bytes.as_flattened_mut());
        self.completed = self.completed.wrapping_add(1);
        bytes.map(u64::from_le_bytes)
    }
}

/// A queue pair between control and data path.
pub struct VerbsPair {
    pub(super) shared: Arc<QueuePair>,
    pub(super) inbox: Inbox,
    pub(super) caps: Caps,
}

impl std::fmt::Debug for VerbsPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerbsPair")
            .field("device", &self.shared.queues.device.name)
            .field("number", &self.shared.number())
            .field("caps", &self.caps)
            .finish()
    }
}

/// The data path of an engine's devices.
pub struct VerbsProvider {
    /// By card.
    cards: Box<[Arc<Queues>]>,
    /// The card that the next poll begins with.
    first: usize,
    rails: Vec<Option<VerbsPair>>,
    lists: Lists,
    completions: Box<[sys::Completion]>,
}

/// What is handed over with one call, laid out beforehand.
struct Lists {
    requests: Box<[sys::SendWr]>,
    ranges: Box<[sys::Sge]>,
    messages: Box<[[u64; 2]]>,
    receives: Box<[sys::RecvWr]>,
}

// SAFETY: the pointers inside the arrays are only looked at during a call that has just set them.
unsafe impl Send for VerbsProvider {}

impl std::fmt::Debug for VerbsProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let devices: Vec<_> = self.cards.iter().map(|queues| &queues.device.name).collect();
        f.debug_struct("VerbsProvider")
            .field("devices", &devices)
            .field("rails", &self.rails)
            .finish_non_exhaustive()
    }
}

impl VerbsProvider {
    pub(super) fn new(cards: Box<[Arc<Queues>]>) -> Self {
        Self {
            cards,
            first: 0,
            rails: Vec::new(),
            lists: Lists {
                requests: vec![sys::SendWr::zeroed(); LIST_MAX.into()].into(),
                ranges: vec![sys::Sge::zeroed(); LIST_RANGES_MAX].into(),
                messages: vec![[0; 2]; LIST_MAX.into()].into(),
                receives: vec![sys::RecvWr::zeroed(); LIST_MAX.into()].into(),
            },
            completions: vec![sys::Completion::zeroed(); POLL_MAX].into(),
        }
    }

    /// The descriptors that become readable by the events that [`Provider::arm`] asked for, one a
    /// card.
    pub fn channels(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.cards.iter().map(|queues| queues.channel())
    }

    /// Takes all events off the channels, and says how many there were.
    pub fn take_events(&mut self) -> u32 {
        let mut count = 0;
        for queues in &self.cards {
            while queues.take_event() {
                count += 1;
            }
        }
        count
    }

    /// Appends what a card has completed.
    fn poll_card(&mut self, card: usize, out: &mut Vec<Wc>) -> Result<(), i32> {
        loop {
            let room = (out.capacity() - out.len()).min(POLL_MAX);
            let Ok(asked) = i32::try_from(room) else { return Ok(()) };
            if asked == 0 {
                return Ok(());
            }
            let queues = &self.cards[card];
            let into = self.completions.as_mut_ptr();
            // SAFETY: the completion queue lives as long as `queues`; the array has that much room.
            let got = unsafe { (queues.poll_cq)(queues.cq.as_ptr(), asked, into) };
            let Ok(got) = usize::try_from(got) else { return Err(-got) };
            for at in 0..got.min(room) {
                let completion = self.completions[at];
                out.push(self.judge(&completion));
            }
            if got < room {
                return Ok(());
            }
        }
    }
}

impl Lists {
    /// Posts at most [`LIST_MAX`] requests with one call. None has more ranges than its queue pair
    /// was made for.
    fn post(&mut self, pair: &VerbsPair, list: &[Wr], all: &[Range]) -> Result<(), BadPost> {
        let (queues, inline_max) = (&pair.shared.queues, pair.caps.inline_bytes);
        // Held while the library copies. Control is changing it: no bytes are inlined then.
        let admitted = queues.keys.ranges.try_read();
        let admitted = admitted.as_ref().map_or(&[][..], |ranges| ranges.as_slice());
        for (wr, message) in list.iter().zip(&mut self.messages) {
            *message = wr.arg.map(u64::to_le);
        }
        let messages = self.messages.as_ptr();
        let mut places = self.ranges.iter_mut();
        for (at, wr) in list.iter().enumerate() {
            if wr.verb == WrVerb::Send {
                let address = messages.wrapping_add(at).expose_provenance() as u64;
                let message = sys::Sge { addr: address, length: MESSAGE_BYTES, lkey: 0 };
                places.by_ref().take(1).for_each(|place| *place = message);
                continue;
            }
            for (range, place) in wr.local(all).zip(places.by_ref()) {
                *place = sys::Sge { addr: range.address, length: range.bytes, lkey: range.lkey };
            }
        }
        let ranges = self.ranges.as_mut_ptr();
        let first = self.requests.as_mut_ptr();
        let mut used = 0;
        for (at, wr) in list.iter().enumerate() {
            let place = first.wrapping_add(at);
            let next = if at + 1 < list.len() { place.wrapping_add(1) } else { ptr::null_mut() };
            let inline = wr.verb == WrVerb::Send
                || wr.inline
                    && wr.bytes <= inline_max
                    && wr.local(all).all(|range| admits(admitted, &range));
            let request = request(wr, inline, ranges.wrapping_add(used), next);
            used += usize::from(wr.ranges.count.max(1));
            // SAFETY: `at` is below the length of the list, which is at most that of the array.
            unsafe { place.write(request) };
        }
        let mut bad = ptr::null_mut();
        let raw = pair.shared.raw;
        // SAFETY: the queue pair lives, as its rail holds it. The chain ends inside the array, and
        // so do the ranges; inline ones lie in our messages, or in memory whose registration
        // with this card cannot end while `admitted` is held. Other ranges the card checks against
        // their keys.
        let error = unsafe { (queues.post_send)(raw.as_ptr(), first, &raw mut bad) };
        if error == 0 {
            return Ok(());
        }
        let taken = index_of(first.addr(), bad.addr(), size_of::<sys::SendWr>(), list.len());
        Err(BadPost { taken, errno: error })
    }
}

/// Which of a chain a pointer means, if it is one of them.
fn index_of(first: usize, bad: usize, stride: usize, count: usize) -> Option<u32> {
    let distance = bad.checked_sub(first)?;
    let index = distance / stride;
    (distance.is_multiple_of(stride) && index < count).then(|| u32::try_from(index).ok())?
}

fn request(wr: &Wr, inline: bool, range: *mut sys::Sge, next: *mut sys::SendWr) -> sys::SendWr {
    let mut send_flags = 0;
    for (set, flag) in
        [(wr.signaled, sys::SEND_SIGNALED), (wr.fence, sys::SEND_FENCE), (inline, sys::SEND_INLINE)]
    {
        send_flags |= if set { flag } else { 0 };
    }
    let opcode = match wr.verb {
        WrVerb::Write => sys::WR_RDMA_WRITE,
        WrVerb::Read => sys::WR_RDMA_READ,
        WrVerb::FetchAdd => sys::WR_ATOMIC_FETCH_AND_ADD,
        WrVerb::CmpSwap => sys::WR_ATOMIC_CMP_AND_SWP,
        WrVerb::Send => sys::WR_SEND,
    };
    let remote = if matches!(wr.verb, WrVerb::FetchAdd | WrVerb::CmpSwap) {
        let [compare_add, swap] = wr.arg;
        let remote_addr = wr.remote_address;
        sys::Remote { atomic: sys::RemoteWord { remote_addr, compare_add, swap, rkey: wr.rkey } }
    } else {
        sys::Remote { rdma: sys::RemoteRange { remote_addr: wr.remote_address, rkey: wr.rkey } }
    };
    // A range of 0 bytes still names a key; no range at all is what moves nothing.
    let empty = wr.verb != WrVerb::Send && wr.bytes == 0;
    sys::SendWr {
        wr_id: wr.wr_id,
        next,
        sg_list: if empty { ptr::null_mut() } else { range },
        num_sge: if empty { 0 } else { i32::from(wr.ranges.count.max(1)) },
        opcode,
        send_flags,
        wr: remote,
        ..sys::SendWr::zeroed()
    }
}

impl Provider for VerbsProvider {
    type Pair = VerbsPair;

    fn completions_max(&self, card: u8) -> u32 {
        self.cards.get(usize::from(card)).map_or(0, |queues| queues.entries())
    }

    fn adopt(&mut self, rail: u16, pair: VerbsPair) {
        let at = usize::from(rail);
        if self.rails.len() <= at {
            self.rails.resize_with(at + 1, || None);
        }
        debug_assert!(self.rails[at].is_none(), "rail {rail} is in use");
        self.rails[at] = Some(pair);
    }

    fn release(&mut self, rail: u16) -> Option<VerbsPair> {
        self.rails.get_mut(usize::from(rail))?.take()
    }

    fn post_ranges(&mut self, rail: u16, list: &[Wr], ranges: &[Range]) -> Result<(), BadPost> {
        let Some(Some(pair)) = self.rails.get(usize::from(rail)) else {
            return Err(BadPost { taken: Some(0), errno: Errno::EINVAL as i32 });
        };
        let mut before = 0;
        for part in list.chunks(LIST_MAX.into()) {
            self.lists
                .post(pair, part, ranges)
                .map_err(|bad| BadPost { taken: bad.taken.map(|taken| before + taken), ..bad })?;
            before += u32::try_from(part.len()).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    fn post_receives(&mut self, rail: u16, wr_id: u64, count: u32) -> Result<(), BadPost> {
        let Some(Some(pair)) = self.rails.get_mut(usize::from(rail)) else {
            return Err(BadPost { taken: Some(0), errno: Errno::EINVAL as i32 });
        };
        let (inbox, lists) = (&mut pair.inbox, &mut self.lists);
        if inbox.wr_id != wr_id {
            // A queue pair that was reset has forgotten its receives.
            inbox.wr_id = wr_id;
            inbox.completed = inbox.posted;
        }
        let lkey = inbox.registered.lkey();
        let base = inbox.buffer.base().as_ptr().expose_provenance() as u64;
        let mut taken = 0;
        while taken < count {
            let part = (count - taken).min(inbox.room()).min(LIST_MAX.into());
            if part == 0 {
                return Err(BadPost { taken: Some(taken), errno: Errno::ENOMEM as i32 });
            }
            for (at, range) in (0..part).zip(&mut lists.ranges) {
                let addr = base + inbox.offset(inbox.posted.wrapping_add(at));
                *range = sys::Sge { addr, length: MESSAGE_BYTES, lkey };
            }
            let ranges = lists.ranges.as_mut_ptr();
            let first = lists.receives.as_mut_ptr();
            for at in 0..part as usize {
                let place = first.wrapping_add(at);
                let last = at + 1 == part as usize;
                let next = if last { ptr::null_mut() } else { place.wrapping_add(1) };
                let sg_list = ranges.wrapping_add(at);
                // SAFETY: `at` is below LIST_MAX, the length of the array.
                unsafe { place.write(sys::RecvWr { wr_id, next, sg_list, num_sge: 1 }) };
            }
            let mut bad = ptr::null_mut();
            let (raw, queues) = (pair.shared.raw, &pair.shared.queues);
            // SAFETY: the queue pair lives, as its rail holds it; the chain ends inside the array.
            // Its buffers are registered, and hold no message that was not taken: `room`.
            let errno = unsafe { (queues.post_recv)(raw.as_ptr(), first, &raw mut bad) };
            if errno == 0 {
                inbox.posted = inbox.posted.wrapping_add(part);
                taken += part;
                continue;
            }
            let stride = size_of::<sys::RecvWr>();
            let some = index_of(first.addr(), bad.addr(), stride, part as usize);
            inbox.posted = inbox.posted.wrapping_add(some.unwrap_or(part));
            return Err(BadPost { taken: some.map(|some| taken + some), errno });
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Wc>) -> Result<(), Broken> {
        let count = self.cards.len();
        let first = self.first;
        self.first = if first + 1 < count { first + 1 } else { 0 };
        let mut outcome = Ok(());
        for card in (first..count).chain(0..first) {
            if let Err(errno) = self.poll_card(card, out) {
                let card = u8::try_from(card).unwrap_or(u8::MAX);
                outcome = Err(Broken { card, errno });
            }
        }
        outcome
    }

    fn arm(&mut self) -> Result<(), i32> {
        let mut outcome = Ok(());
        for queues in &self.cards {
            // SAFETY: the completion queue lives as long as `queues`.
            let error = unsafe { (queues.req_notify_cq)(queues.cq.as_ptr(), 0) };
            if error != 0 {
                outcome = Err(error.abs());
            }
        }
        outcome
    }
}

impl VerbsProvider {
    fn judge(&mut self, completion: &sys::Completion) -> Wc {
        let id = WrId(completion.wr_id);
        let status = WcStatus::from_ibv(completion.status);
        let kind = if id.slot() == WrId::RECEIVE { WcKind::Receive } else { WcKind::Work };
        let mut message = [0; 2];
        if kind == WcKind::Receive
            && let Some(Some(pair)) = self.rails.get_mut(usize::from(id.rail()))
            && pair.inbox.wr_id == id.0
        {
            let taken = pair.inbox.take();
            if status == WcStatus::Success && completion.byte_len == MESSAGE_BYTES {
                message = taken;
            }
        }
        Wc {
            wr_id: id.0,
            number: completion.qp_num,
            status,
            kind,
            bytes: if status == WcStatus::Success { completion.byte_len } else { 0 },
            message,
            vendor_error: completion.vendor_err,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::qp::provider::Ranges;

    fn wr(lkey: u32, address: u64, bytes: u32) -> Wr {
        Wr {
            wr_id: 7,
            verb: WrVerb::Write,
            signaled: true,
            fence: false,
            inline: true,
            address,
            lkey,
            bytes,
            remote_address: 0x1000,
            rkey: 9,
            arg: [5, 6],
            ranges: Ranges::NONE,
        }
    }

    #[test]
    fn only_bytes_inside_a_registered_range_are_copied() {
        let keys = Keys::default();
        keys.add(8, 0x4000, 0x1000);
        keys.add(3, 0x8000, 0x1000);
        let ranges = keys.ranges.read().expect("unpoisoned").clone();
        let admits = |wr: Wr| {
            let range = Range { address: wr.address, lkey: wr.lkey, bytes: wr.bytes };
            admits(&ranges, &range)
        };
        assert!(admits(wr(8, 0x4000, 0x1000)));
        assert!(admits(wr(3, 0x8fff, 1)));
        assert!(!admits(wr(3, 0x8fff, 2)), "one byte behind");
        assert!(!admits(wr(8, 0x3fff, 8)), "one byte before");
        assert!(!admits(wr(8, 0x8000, 8)), "another key's range");
        assert!(!admits(wr(4, 0x4000, 8)), "no such key");
        assert!(!admits(wr(8, u64::MAX, 8)), "an end that wraps");
        keys.remove(8);
        assert_eq!(*keys.ranges.read().expect("unpoisoned"), [(3, 0x8000, 0x9000)]);
    }

    #[test]
    fn a_bad_pointer_is_only_believed_inside_the_list() {
        assert_eq!(index_of(4096, 4096, 128, 3), Some(0));
        assert_eq!(index_of(4096, 4096 + 256, 128, 3), Some(2));
        assert_eq!(index_of(4096, 4096 + 384, 128, 3), None, "behind the list");
        assert_eq!(index_of(4096, 4096 + 100, 128, 3), None, "between two");
        assert_eq!(index_of(4096, 0, 128, 3), None, "null");
    }

    #[test]
    fn requests_carry_what_the_card_needs() {
        let mut range = sys::Sge::zeroed();
        let made = request(&wr(8, 0x4000, 8), true, &raw mut range, ptr::null_mut());
        assert_eq!((made.opcode, made.num_sge), (sys::WR_RDMA_WRITE, 1));
        assert_eq!(made.send_flags, sys::SEND_SIGNALED | sys::SEND_INLINE);
        let fenced = Wr { fence: true, signaled: false, verb: WrVerb::CmpSwap, ..wr(8, 0x4000, 8) };
        let made = request(&fenced, false, &raw mut range, ptr::null_mut());
        assert_eq!((made.opcode, made.send_flags), (sys::WR_ATOMIC_CMP_AND_SWP, sys::SEND_FENCE));
        // SAFETY: an atomic's request was made, so `atomic` is what was written.
        let word = unsafe { made.wr.atomic };
        assert_eq!((word.compare_add, word.swap, word.rkey), (5, 6, 9));
        let made = request(&wr(8, 0x4000, 0), false, &raw mut range, ptr::null_mut());
        assert!(made.num_sge == 0 && made.sg_list.is_null(), "0 bytes name no key");
        let several = Wr { ranges: Ranges { first: 9, count: 3 }, ..wr(8, 0x4000, 24) };
        let made = request(&several, false, &raw mut range, ptr::null_mut());
        assert_eq!((made.num_sge, made.sg_list), (3, &raw mut range));
    }
}
