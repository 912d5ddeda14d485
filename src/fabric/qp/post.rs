//! From requests to posted work: pieces, fences, signals, one doorbell; and what a device did not
//! take goes back to where it was.
//!
//! **Which work is signalled**: the last of every post (so nothing is ever waited for without a
//! signalled request behind it, and room that the next chain lacks is on its way), and every
//! `signal_every`th (so credit comes back before a long list has ended). If a device takes a part
//! without its signalled end and nothing follows, a marker does: a WRITE of no bytes.

use super::memory::piece;
use super::merge::Sources;
use super::message::Message;
use super::provider::{BadPost, MESSAGE_BYTES, Provider, Range, Ranges, Wr, WrId, WrVerb};
use super::rail::{Answers, Last, Rail, RailState, Role, Stage, Taken, Work};
use super::status::{EHOSTDOWN, Fault};
use super::{Config, Memory, Rails};
use crate::abi::errno;
use crate::fabric::{Request, Verb};
use crate::plant::{Plant, planted};

/// Try again: the device's answer to a full queue, beside ENOMEM.
const EAGAIN: i32 = 11;

/// The device has no room just now: no fault of anybody's.
fn starved(errno: i32) -> bool {
    errno == errno::ENOMEM || errno == EAGAIN
}

fn verb(verb: Verb) -> WrVerb {
    match verb {
        Verb::Write => WrVerb::Write,
        Verb::Read => WrVerb::Read,
        Verb::FetchAdd => WrVerb::FetchAdd,
        Verb::CmpSwap => WrVerb::CmpSwap,
    }
}

pub(super) fn region(regions: &[Option<Memory>], index: u32) -> Option<&Memory> {
    regions.get(index as usize)?.as_ref()
}

impl<P: Provider> Rails<P> {
    /// Takes a request into its rail's table, if there is room. One that cannot be carried out is
    /// taken, too: it ends as failed, in its turn.
    pub(super) fn accept(&mut self, request: &Request) -> bool {
        if self.live as usize + self.finished.len() >= self.finished_max as usize {
            return false;
        }
        let Some(rail) = self.rails.get_mut(usize::from(request.rail)) else { return false };
        let works = works(&self.regions, &self.config, rail.card, request);
        let mut taken = Taken::new(*request, 0);
        taken.last_before = rail.last;
        let chained = taken.chained() && !planted(Plant::ChainUncut);
        let works = match rail.state {
            RailState::Dead => Err((Fault::Path, EHOSTDOWN)),
            RailState::Ready if chained && rail.last == Last::Failed => {
                Err((Fault::Path, errno::ECANCELED))
            }
            RailState::Ready if chained && rail.last == Last::Returned => {
                taken.sent_back = true;
                Ok(0)
            }
            RailState::Ready => works.map_err(|errno| (Fault::Request, errno)),
            _ => return false,
        };
        let told = works.is_ok() && taken.notifies() && !taken.sent_back;
        if !rail.admits(works.unwrap_or(0), told) {
            return false;
        }
        rail.last = match works {
            _ if taken.sent_back => Last::Returned,
            Ok(_) => Last::Sound,
            Err(_) => Last::Failed,
        };
        match works {
            Ok(works) if !taken.sent_back => {
                taken.works = works;
                rail.used += works;
                if taken.notifies() {
                    rail.credits.reserve();
                }
            }
            over => {
                self.counts.returned += u64::from(taken.sent_back);
                if let Err(failure) = over {
                    taken.fail(failure, true);
                }
                if rail.next == rail.taken.tail() {
                    rail.next = rail.next.wrapping_add(1);
                }
            }
        }
        rail.taken.push(taken);
        self.live += 1;
        true
    }

    /// Posts what was just accepted; returns how many requests, the youngest, go back.
    pub(super) fn send_accepted(&mut self, number: u16, accepted: usize) -> usize {
        if accepted == 0 {
            return 0;
        }
        self.pump(number);
        let rail = &mut self.rails[usize::from(number)];
        let mut back = 0;
        while back < accepted && rail.next != rail.taken.tail() {
            let at = rail.taken.tail().wrapping_sub(1);
            let taken = rail.taken[at];
            if taken.begun() || taken.refused || taken.alone {
                break;
            }
            rail.used -= taken.works;
            self.counts.returned -= u64::from(taken.sent_back);
            if taken.notifies() && taken.failure.is_none() && !taken.sent_back {
                rail.credits.unreserve();
            }
            rail.last = taken.last_before;
            rail.taken.pop_back();
            back += 1;
        }
        let youngest = rail.taken.tail().wrapping_sub(1);
        if rail.taken.contains(youngest) && rail.taken[youngest].refused {
            // What will be chained to it goes along, though others were in between for a while.
            rail.last = Last::Failed;
        }
        self.live -= u32::try_from(back).unwrap_or(u32::MAX);
        self.settle(number);
        back
    }

    /// Posts what a rail has to post and room for.
    pub(super) fn pump(&mut self, number: u16) {
        let rail = &mut self.rails[usize::from(number)];
        if rail.state != RailState::Ready {
            return;
        }
        let mut list = std::mem::take(&mut self.list);
        let mut ranges = std::mem::take(&mut self.ranges);
        let with = Sources { regions: &self.regions, config: &self.config };
        self.counts.merged += u64::from(rail.fill(number, with, &mut list, &mut ranges));
        if rail.credits.due() {
            let credits = rail.credits.pay();
            rail.credits.message_posted = true;
            let message = Message { notification: None, credits };
            let work = Work { role: Role::Credit, credits, ..Work::NONE };
            let wr_id = rail.enter(number, work);
            list.push(send(wr_id, message));
            self.counts.credit_messages += 1;
        }
        if list.is_empty() && rail.tail_unsignaled() && !rail.marker_posted {
            list.push(rail.marker(number));
            self.counts.markers += 1;
        }
        if !list.is_empty() {
            self.ring_doorbell(number, &mut list, &ranges);
        }
        list.clear();
        ranges.clear();
        (self.list, self.ranges) = (list, ranges);
    }

    /// Posts a marker on a rail that takes no requests any more. One of which the device does not
    /// say whether it took it stays in its place, and is not posted a second time: there is room
    /// for one. False if the device did not take it, or may not have.
    pub(super) fn post_marker(&mut self, number: u16) -> bool {
        let rail = &mut self.rails[usize::from(number)];
        let marker = rail.marker(number);
        self.counts.entered += 1;
        let posted = self.provider.post(number, &[marker]);
        match posted {
            Ok(()) => self.counts.markers += 1,
            Err(bad) => {
                let rail = &mut self.rails[usize::from(number)];
                if bad.taken == Some(0) {
                    rail.take_back();
                    self.counts.taken_back += 1;
                } else {
                    let last = rail.works.tail().wrapping_sub(1);
                    rail.works[last].doubt = true;
                    self.counts.doubts += 1;
                    self.counts.doubtful += 1;
                    self.degrade(number);
                }
                if !starved(bad.errno) {
                    self.card_erred(number);
                }
            }
        }
        posted.is_ok()
    }

    fn ring_doorbell(&mut self, number: u16, list: &mut [Wr], ranges: &[Range]) {
        let rail = &mut self.rails[usize::from(number)];
        let last = rail.works.tail().wrapping_sub(1);
        rail.works[last].signaled = true;
        rail.unsignaled = 0;
        let count = list.len();
        list[count - 1].signaled |= !planted(Plant::NeverSignalled);
        self.counts.doorbells += 1;
        self.counts.entered += count as u64;
        match self.provider.post_ranges(number, list, ranges) {
            Ok(()) => {
                rail.starved = false;
                rail.stuck_since_ns = None;
                self.count_works(list);
            }
            Err(bad) => self.post_failed(number, list, bad),
        }
    }

    fn count_works(&mut self, list: &[Wr]) {
        self.counts.works += list.len() as u64;
        self.counts.signaled += list.iter().filter(|wr| wr.signaled).count() as u64;
    }

    /// A part of a list was posted. The rest leaves the table of posted work as if it had never
    /// been there; if the part is not known, the rail is in doubt.
    fn post_failed(&mut self, number: u16, list: &[Wr], bad: BadPost) {
        let count = u32::try_from(list.len()).unwrap_or(u32::MAX);
        let rail = &mut self.rails[usize::from(number)];
        let Some(taken) = bad.taken.filter(|taken| *taken < count) else {
            for back in 1..=count {
                let at = rail.works.tail().wrapping_sub(back);
                rail.works[at].doubt = true;
            }
            self.counts.doubts += 1;
            if !starved(bad.errno) {
                self.card_erred(number);
            }
            self.counts.doubtful += u64::from(count);
            self.degrade(number);
            return;
        };
        self.counts.partial += 1;
        let mut refused = Work::NONE;
        for _ in if planted(Plant::PrefixForgotten) { 0 } else { taken }..count {
            if !planted(Plant::RestPosted) {
                refused = rail.take_back();
                self.counts.taken_back += 1;
                self.counts.merged -= u64::from(refused.count - 1);
            }
        }
        let starved = starved(bad.errno);
        rail.starved = starved;
        if !starved && matches!(refused.role, Role::Data | Role::Notify) {
            match refused.count {
                1 => rail.refuse(refused.taken, bad.errno),
                // One of them is at fault. They are tried one by one.
                _ => refused.requests().for_each(|at| rail.taken[at].alone = true),
            }
        }
        let stuck = rail.nothing_signaled();
        let since = *rail.stuck_since_ns.get_or_insert(self.now_ns);
        if !stuck {
            rail.stuck_since_ns = None;
        } else if self.now_ns.saturating_sub(since) > self.config.stuck_ns {
            self.degrade(number);
        }
        let taken = taken as usize;
        self.count_works(&list[..taken]);
        self.attend(number);
        if !starved {
            self.card_erred(number);
        }
    }
}

impl Rail {
    /// Makes work requests of what is not posted yet, as far as depth and credit reach.
    fn fill(
        &mut self,
        number: u16,
        with: Sources<'_>,
        list: &mut Vec<Wr>,
        ranges: &mut Vec<Range>,
    ) -> u32 {
        let mut merged = 0;
        while self.data_posted < self.depth && self.next != self.taken.tail() {
            let at = self.next;
            let taken = &self.taken[at];
            if taken.suspect() && self.data_posted > taken.in_flight || self.suspect_posted() {
                break;
            }
            let (stage, failed) = (taken.stage, taken.failure.is_some());
            let made = match stage {
                _ if failed => None,
                Stage::Data => match self.data(number, at, with) {
                    Some(wr) => Some(wr),
                    None => {
                        self.refuse(at, errno::ESTALE);
                        continue;
                    }
                },
                Stage::Notify if !self.credits.spend() => break,
                Stage::Notify => Some(self.notification(number, at, with.regions)),
                Stage::Whole => None,
            };
            if let Some(wr) = made {
                list.push(wr);
                self.taken[at].in_flight += 1;
                self.data_posted += 1;
            }
            if made.is_none() || self.taken[at].stage == Stage::Whole {
                self.next = at.wrapping_add(1);
            }
            if stage == Stage::Data
                && made.is_some()
                && let Some(wr) = list.last_mut()
            {
                merged += self.join(at, wr, ranges, with);
            }
        }
        merged
    }

    /// The next piece of a request's bytes.
    fn data(
        &mut self,
        number: u16,
        at: u32,
        Sources { regions, config }: Sources<'_>,
    ) -> Option<Wr> {
        let taken = &self.taken[at];
        let request = &taken.request;
        let near = region(regions, request.local)?;
        let far = region(regions, request.remote)?;
        let (near, far) = (near.near(self.card), far.far(self.card));
        if near.is_empty() || far.is_empty() {
            return None;
        }
        let near = piece(near, request.local_offset + u64::from(taken.cursor));
        let far = piece(far, request.remote_offset + u64::from(taken.cursor));
        let piece = near.bytes.min(far.bytes).min(u64::from(config.message_bytes_max));
        let left = request.bytes - taken.cursor;
        let bytes = left.min(u32::try_from(piece).unwrap_or(u32::MAX));
        let work = Work { role: Role::Data, taken: at, cursor: taken.cursor, ..self.work_before() };
        let (begun, chained, verb) = (taken.begun(), taken.chained(), verb(request.verb));
        if !begun && !chained {
            self.answers = Answers::None;
        }
        let fence = !begun && self.fence();
        let awaited = self.answers != Answers::None;
        if verb.answers() {
            self.answers = Answers::Open;
        }
        let taken = &mut self.taken[at];
        taken.cursor += bytes;
        if taken.cursor == taken.request.bytes {
            taken.stage = if taken.notifies() { Stage::Notify } else { Stage::Whole };
        }
        // What it is chained to may bring the very bytes that it carries.
        let inline = verb == WrVerb::Write && bytes > 0 && !awaited;
        let arg = taken.request.arg;
        let signaled = self.signal(config);
        let wr_id = self.enter(number, Work { signaled, ..work });
        Some(Wr {
            wr_id,
            verb,
            signaled,
            fence,
            inline: inline && bytes <= self.inline_bytes,
            address: near.address,
            lkey: near.lkey,
            bytes,
            remote_address: far.address,
            rkey: far.rkey,
            arg,
            ranges: Ranges::NONE,
        })
    }

    /// The message behind a request's bytes.
    fn notification(&mut self, number: u16, at: u32, regions: &[Option<Memory>]) -> Wr {
        let taken = self.taken[at];
        let name = region(regions, taken.request.remote).map_or(0, Memory::name);
        let credits = self.credits.pay();
        let work = Work { role: Role::Notify, taken: at, credits, ..self.work_before() };
        let fence = self.fence();
        self.taken[at].stage = Stage::Whole;
        let wr_id = self.enter(number, Work { cursor: taken.cursor, ..work });
        let notification = Some((name, taken.request.immediate));
        Wr { fence, ..send(wr_id, Message { notification, credits }) }
    }

    fn work_before(&self) -> Work {
        Work { answers: self.answers, ..Work::NONE }
    }

    /// True if the next work request must wait for what its chain has read before it.
    fn fence(&mut self) -> bool {
        let fence = self.answers == Answers::Open;
        if fence {
            self.answers = Answers::Fenced;
        }
        fence
    }

    /// True if the next work request is one of every so many.
    fn signal(&mut self, config: &Config) -> bool {
        self.unsignaled += 1;
        let signaled = self.unsignaled >= config.signal_every;
        if signaled {
            self.unsignaled = 0;
        }
        signaled
    }

    /// Enters work into the table of what is posted, before it is.
    fn enter(&mut self, number: u16, work: Work) -> u64 {
        let slot = self.works.slot(self.works.tail());
        self.works.push(work);
        let stamp = &mut self.stamps[slot];
        // Never 0, which stands for nothing having been taken back.
        stamp.generation = stamp.generation.wrapping_add(1).max(1);
        let Ok(slot) = u16::try_from(slot) else { unreachable!("depth is below 2^15") };
        WrId::new(stamp.generation, number, slot).0
    }

    fn marker(&mut self, number: u16) -> Wr {
        self.marker_posted = true;
        let wr_id = self.enter(number, Work { signaled: true, ..Work::NONE });
        Wr { signaled: true, ..nothing(wr_id) }
    }

    fn tail_unsignaled(&self) -> bool {
        !self.works.is_empty() && !self.works[self.works.tail().wrapping_sub(1)].signaled
    }

    /// True if the oldest work posted is that of a suspect, and it is posted whole.
    fn suspect_posted(&self) -> bool {
        if self.data_posted == 0 {
            return false;
        }
        let head = &self.taken[self.taken.head()];
        head.suspect() && head.stage == Stage::Whole
    }

    /// True if no completion is to be expected.
    fn nothing_signaled(&self) -> bool {
        (0..self.works.len()).all(|ahead| {
            let at = self.works.head().wrapping_add(ahead);
            !self.works[at].signaled
        })
    }

    /// Takes the youngest posted work back: it was not posted after all.
    fn take_back(&mut self) -> Work {
        let at = self.works.tail().wrapping_sub(1);
        let (work, slot) = (self.works[at], self.works.slot(at));
        self.works.pop_back();
        self.stamps[slot].burnt = self.stamps[slot].generation;
        match work.role {
            Role::Data | Role::Notify => {
                for at in work.requests() {
                    let taken = &mut self.taken[at];
                    taken.in_flight -= 1;
                    taken.cursor = if at == work.taken { work.cursor } else { 0 };
                    taken.stage = if work.role == Role::Data { Stage::Data } else { Stage::Notify };
                    self.data_posted -= 1;
                }
                self.answers = work.answers;
                self.next = work.taken;
                if work.role == Role::Notify {
                    self.credits.unspend();
                    self.credits.unpay(work.credits);
                }
            }
            Role::Credit => {
                self.credits.unpay(work.credits);
                self.credits.message_posted = false;
            }
            Role::Marker => self.marker_posted = false,
        }
        work
    }
}

/// How many work requests a request becomes, or the errno with which it ends at once.
pub(super) fn works(
    regions: &[Option<Memory>],
    config: &Config,
    card: u8,
    request: &Request,
) -> Result<u32, i32> {
    let near = region(regions, request.local).ok_or(errno::ESTALE)?;
    let far = region(regions, request.remote).ok_or(errno::ESTALE)?;
    let bytes = u64::from(request.bytes);
    let inside = near.holds(request.local_offset, bytes) && far.holds(request.remote_offset, bytes);
    if !inside || near.mapping().is_none() {
        return Err(errno::EINVAL);
    }
    let (near, far) = (near.near(card), far.far(card));
    if near.is_empty() || far.is_empty() {
        // It is not registered with this card, here or at the peer.
        return Err(errno::ESTALE);
    }
    let notification = u32::from(request.flags & crate::fabric::REQUEST_NOTIFY != 0);
    let mut at = 0;
    let mut pieces = 0;
    while at < bytes {
        let near = piece(near, request.local_offset + at).bytes;
        let far = piece(far, request.remote_offset + at).bytes;
        at += near.min(far).min(u64::from(config.message_bytes_max));
        pieces += 1;
    }
    if matches!(request.verb, Verb::FetchAdd | Verb::CmpSwap) {
        let whole = bytes == 8 && pieces == 1 && request.remote_offset.is_multiple_of(8);
        return if whole { Ok(1 + notification) } else { Err(errno::EINVAL) };
    }
    Ok(pieces.max(1) + notification)
}

/// A WRITE of no bytes.
fn nothing(wr_id: u64) -> Wr {
    Wr {
        wr_id,
        verb: WrVerb::Write,
        signaled: false,
        fence: false,
        inline: false,
        address: 0,
        lkey: 0,
        bytes: 0,
        remote_address: 0,
        rkey: 0,
        arg: [0; 2],
        ranges: Ranges::NONE,
    }
}

fn send(wr_id: u64, message: Message) -> Wr {
    let arg = message.to_words();
    Wr { verb: WrVerb::Send, inline: true, bytes: MESSAGE_BYTES, arg, ..nothing(wr_id) }
}
