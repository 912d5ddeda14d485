//! What happens on the simulated wire, event by event.

use std::sync::atomic::Ordering;

use super::super::provider::{Link, PairState, Range, WcStatus, Wr, WrVerb};
use super::{Ghost, Phase, Place, World, receive_completion, work_completion};

/// How long a receiver that is not ready is given, ns.
const RNR_NS: u64 = 10_000;

/// Something that happens to a queue pair's work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    at_ns: u64,
    pair: usize,
    kind: Kind,
    index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Complete,
    Arrive,
    /// What its sender has given up arrives.
    Late,
    Start,
}

/// How long an answer is waited for until the work request is given up, ns.
pub(super) fn patience_ns(link: &Link) -> u64 {
    let once_ns = 4_096_u64 << link.settings.timeout.min(31);
    once_ns * (u64::from(link.settings.retry) + 1)
}

impl World {
    /// The next thing that happens anywhere.
    pub(super) fn next_event(&self) -> Option<Event> {
        let late = self.ghosts.iter().enumerate().map(|(index, ghost)| Event {
            at_ns: ghost.at_ns,
            pair: ghost.from,
            kind: Kind::Late,
            index,
        });
        (0..self.pairs.len()).filter_map(|pair| self.next_of(pair)).chain(late).min()
    }

    fn next_of(&self, number: usize) -> Option<Event> {
        let pair = &self.pairs[number];
        if pair.state != PairState::ReadyToSend || pair.dead {
            return None;
        }
        let gap_ns = self.devices[pair.device].config.gap_ns;
        let mut found: Option<Event> = None;
        let mut offer = |event: Event| {
            found = Some(found.map_or(event, |other| other.min(event)));
        };
        let mut answers = false;
        for (index, sent) in pair.sends.iter().enumerate() {
            match sent.phase {
                Phase::Answered(at_ns, status) => {
                    if index == 0 {
                        offer(Event { at_ns, pair: number, kind: Kind::Complete, index });
                    }
                    if status != WcStatus::Success {
                        break;
                    }
                }
                Phase::Flying(at_ns) => {
                    let before = index.checked_sub(1).map(|before| pair.sends[before].phase);
                    if before.is_none_or(|phase| matches!(phase, Phase::Answered(..))) {
                        offer(Event { at_ns, pair: number, kind: Kind::Arrive, index });
                    }
                }
                Phase::Waiting(posted_ns) => {
                    if !(sent.wr.fence && answers) {
                        let at_ns = posted_ns.max(pair.last_start_ns + gap_ns);
                        offer(Event { at_ns, pair: number, kind: Kind::Start, index });
                    }
                    break;
                }
            }
            answers |= sent.wr.verb.answers();
        }
        found
    }

    /// Lets the next thing happen, if it is due; false if there is none.
    pub(super) fn step(&mut self, until_ns: u64) -> bool {
        let Some(event) = self.next_event().filter(|event| event.at_ns <= until_ns) else {
            return false;
        };
        self.now_ns = self.now_ns.max(event.at_ns);
        match event.kind {
            Kind::Start => self.start(event.pair, event.index),
            Kind::Arrive => self.arrive(event.pair, event.index),
            Kind::Late => self.arrive_late(event.index),
            Kind::Complete => self.finish(event.pair),
        }
        true
    }

    /// A work request leaves: its local range is looked at, and a WRITE's bytes are fetched.
    fn start(&mut self, number: usize, index: usize) {
        let pair = &self.pairs[number];
        let wr = pair.sends[index].wr;
        let (device, latency_ns) = (pair.device, pair.latency_ns);
        let mut phase = Phase::Flying(self.now_ns + latency_ns);
        let mut payload = None;
        if wr.bytes > 0 && wr.verb != WrVerb::Send && !wr.inline {
            let ranges = pair.sends[index].ranges.clone();
            let admits = |range: &Range| {
                let bytes = u64::from(range.bytes);
                let place = self.admitted(device, range.lkey, range.address, bytes);
                place.is_some_and(|place| place.local)
            };
            if !ranges.iter().all(admits) {
                phase = Phase::Answered(self.now_ns, WcStatus::LocalProtection);
            } else if wr.verb == WrVerb::Write {
                payload = self.gather(number, &ranges);
            }
        }
        let leaves_ns = u64::from(wr.bytes) * self.devices[device].config.kib_ns / 1_024;
        if let Phase::Flying(at_ns) = &mut phase {
            *at_ns += leaves_ns;
        }
        let pair = &mut self.pairs[number];
        pair.last_start_ns = self.now_ns + leaves_ns;
        let sent = &mut pair.sends[index];
        sent.phase = phase;
        sent.number = pair.started;
        pair.started += 1;
        if let Some(payload) = payload {
            sent.payload = payload;
        }
        self.hold_up(number, index);
    }

    /// If it is planned, what has just left arrives only when its sender waits for it no more.
    fn hold_up(&mut self, number: usize, index: usize) {
        let pair = &mut self.pairs[number];
        let (Some(link), Some(ns)) = (pair.link, pair.hold_up_ns) else { return };
        let sent = &mut pair.sends[index];
        let Phase::Flying(at_ns) = sent.phase else { return };
        pair.hold_up_ns = None;
        let given_up_ns = at_ns + patience_ns(&link);
        sent.phase = Phase::Answered(given_up_ns, WcStatus::RetryExceeded);
        let (wr, payload) = (sent.wr, sent.payload.clone());
        let (at_ns, from, number) = (given_up_ns + ns, number, sent.number);
        self.ghosts.push(Ghost { at_ns, from, link, wr, payload, number, held: true });
    }

    /// Reads local ranges, one behind the other; `None` if a key does not admit one.
    pub(super) fn gather(&mut self, number: usize, ranges: &[Range]) -> Option<Vec<u8>> {
        let device = self.pairs[number].device;
        let mut all = Vec::new();
        for range in ranges {
            let bytes = u64::from(range.bytes);
            let place = self.admitted(device, range.lkey, range.address, bytes);
            let place = place.filter(|place| place.local)?;
            self.touch(number, &place, bytes, false);
            all.extend(read(&place, range.bytes));
        }
        Some(all)
    }

    /// True if the queue pair at the other end is joined to this very life of ours.
    fn answers(&self, number: usize, link: &Link) -> bool {
        self.pairs.get(link.peer.number as usize).is_some_and(|peer| {
            let state = matches!(peer.state, PairState::ReadyToReceive | PairState::ReadyToSend);
            let ours = peer.link.is_some_and(|theirs| {
                theirs.peer.number as usize == number && theirs.peer.psn == link.own.psn
            });
            state && ours && !peer.dead
        }) && !self.unreachable(number, link.peer.number as usize)
    }

    /// A packet whose sender has given it up reaches the responder, who cannot know that.
    fn arrive_late(&mut self, index: usize) {
        let ghost = self.ghosts.remove(index);
        if !self.answers(ghost.from, &ghost.link) {
            return;
        }
        let peer = ghost.link.peer.number as usize;
        if ghost.number != self.pairs[peer].expected {
            // Something before it never came.
            return;
        }
        let mut payload = ghost.payload;
        let status = self.carry_out(peer, &mut payload, &ghost.wr);
        if status == Some(WcStatus::Success) {
            self.pairs[peer].expected += 1;
            self.landed_late += 1;
            self.landed_held += u64::from(ghost.held);
        }
        if matches!(status, Some(WcStatus::RemoteAccess | WcStatus::RemoteInvalid)) {
            self.fail_pair(peer);
        }
    }

    /// A work request reaches the responder.
    fn arrive(&mut self, number: usize, index: usize) {
        let pair = &mut self.pairs[number];
        let (wr, latency_ns) = (pair.sends[index].wr, pair.latency_ns);
        let now_ns = self.now_ns;
        let Some(link) = pair.link else { return };
        let peer = link.peer.number as usize;
        let planned = pair.work_plans.front_mut().and_then(|plan| {
            let due = plan.after == 0;
            plan.after = plan.after.saturating_sub(1);
            due.then_some(*plan)
        });
        if planned.is_some() {
            pair.work_plans.pop_front();
        }
        let answers = self.answers(number, &link);
        let pair = &mut self.pairs[number];
        if !answers {
            let status = WcStatus::RetryExceeded;
            pair.sends[index].phase = Phase::Answered(now_ns + patience_ns(&link), status);
            return;
        }
        let status = match planned {
            Some(plan) if !plan.effect => plan.status,
            _ => match self.carry_out_of(number, index, peer, &wr) {
                Some(status) => planned.map_or(status, |plan| plan.status),
                None => {
                    self.not_ready(number, index, link.settings.rnr_retry);
                    return;
                }
            },
        };
        if matches!(status, WcStatus::RemoteAccess | WcStatus::RemoteInvalid) {
            self.fail_pair(peer);
        }
        let at_ns = now_ns + latency_ns;
        // A pair that is joined to itself has just been flushed.
        if let Some(sent) = self.pairs[number].sends.get_mut(index) {
            sent.phase = Phase::Answered(at_ns, status);
        }
    }

    /// The responder has no receive: the request comes again, or fails.
    fn not_ready(&mut self, number: usize, index: usize, rnr_retry: u8) {
        let now_ns = self.now_ns;
        let pair = &mut self.pairs[number];
        pair.rnr_count += 1;
        pair.sends[index].phase = if rnr_retry < 7 && pair.rnr_count > u32::from(rnr_retry) {
            Phase::Answered(now_ns, WcStatus::ReceiverNotReady)
        } else {
            Phase::Flying(now_ns + RNR_NS)
        };
    }

    fn carry_out_of(
        &mut self,
        number: usize,
        index: usize,
        peer: usize,
        wr: &Wr,
    ) -> Option<WcStatus> {
        let mut payload = std::mem::take(&mut self.pairs[number].sends[index].payload);
        let status = self.carry_out(peer, &mut payload, wr);
        if status.is_some() && wr.verb == WrVerb::Send {
            self.pairs[number].rnr_count = 0;
        }
        let took = status == Some(WcStatus::Success);
        let mut at = None;
        if let Some(sent) = self.pairs[number].sends.get_mut(index) {
            sent.payload = payload;
            sent.took = took;
            at = Some(sent.number);
        }
        if let Some(at) = at.filter(|_| took) {
            let expected = std::mem::replace(&mut self.pairs[peer].expected, at + 1);
            assert_eq!(expected, at, "a work request out of turn");
        }
        status
    }

    /// What a work request does at the responder; `None` if it needs a receive and there is none.
    fn carry_out(&mut self, peer: usize, payload: &mut Vec<u8>, wr: &Wr) -> Option<WcStatus> {
        let device = self.pairs[peer].device;
        if wr.verb == WrVerb::Send {
            let wr_id = self.pairs[peer].receives.pop_front()?;
            self.complete(device, receive_completion(peer, wr_id, wr.arg));
            return Some(WcStatus::Success);
        }
        if wr.bytes == 0 {
            return Some(WcStatus::Success);
        }
        let place = self.admitted(device, wr.rkey, wr.remote_address, u64::from(wr.bytes));
        let may = |place: &Place| {
            !place.local
                && match wr.verb {
                    WrVerb::Write => place.access.write,
                    WrVerb::Read => place.access.read,
                    _ => place.access.atomics,
                }
        };
        let Some(place) = place.filter(may) else { return Some(WcStatus::RemoteAccess) };
        if matches!(wr.verb, WrVerb::FetchAdd | WrVerb::CmpSwap)
            && (wr.bytes != 8 || !place.offset.is_multiple_of(8))
        {
            return Some(WcStatus::RemoteInvalid);
        }
        self.touch(peer, &place, u64::from(wr.bytes), wr.verb != WrVerb::Read);
        match wr.verb {
            WrVerb::Write => place.mapping.write(place.offset, payload),
            WrVerb::Read => *payload = read(&place, wr.bytes),
            WrVerb::FetchAdd => {
                let word = place.mapping.word64(place.offset);
                *payload = word.fetch_add(wr.arg[0], Ordering::AcqRel).to_le_bytes().to_vec();
            }
            WrVerb::CmpSwap => {
                let word = place.mapping.word64(place.offset);
                let [expected, new] = wr.arg;
                let old = word
                    .compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire)
                    .unwrap_or_else(|seen| seen);
                *payload = old.to_le_bytes().to_vec();
            }
            WrVerb::Send => {}
        }
        Some(WcStatus::Success)
    }

    /// The oldest work request is over: an answer lands, and a completion may be given.
    fn finish(&mut self, number: usize) {
        let pair = &mut self.pairs[number];
        let device = pair.device;
        let Some(sent) = pair.sends.pop_front() else { return };
        let Phase::Answered(_, status) = sent.phase else { return };
        let wr = sent.wr;
        if status == WcStatus::Success && wr.verb.answers() && wr.bytes > 0 {
            let mut payload = &sent.payload[..];
            for range in &sent.ranges {
                let bytes = u64::from(range.bytes);
                let (part, rest) = payload.split_at(range.bytes as usize);
                payload = rest;
                if let Some(place) = self.admitted(device, range.lkey, range.address, bytes) {
                    self.touch(number, &place, bytes, true);
                    place.mapping.write(place.offset, part);
                }
            }
        }
        if wr.signaled || status != WcStatus::Success {
            let losing = &mut self.pairs[number].losing;
            if *losing > 0 {
                *losing -= 1;
            } else {
                let wc = work_completion(number, wr.wr_id, status);
                self.complete(device, super::Wc { bytes: wr.bytes, ..wc });
            }
        }
        if status != WcStatus::Success {
            if !sent.took {
                // The responder waits for it, and takes none behind it.
                let behind = &mut self.pairs[number].sends;
                behind.iter_mut().for_each(|sent| sent.phase = Phase::Waiting(self.now_ns));
            }
            self.fail_pair(number);
        }
    }
}

fn read(place: &Place, bytes: u32) -> Vec<u8> {
    let mut payload = vec![0; bytes as usize];
    place.mapping.read(place.offset, &mut payload);
    payload
}
