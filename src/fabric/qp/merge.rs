//! Neighbours that share a work request.
//!
//! WRITEs or READs that follow each other on a rail, between the same two regions, each continuing
//! at the far end where the one before it ends, are one message: one work request with a local
//! range for each of them, or fewer where they lie side by side here, too. Each stays a request of
//! its own, with a completion of its own; in the table of what is posted one entry stands for all.
//!
//! A message is never longer than [`Config::merge_bytes_max`], so that what was cut into slices is
//! not put together again.
//!
//! **Who does not join**: what is chained, an atomic, what says so ([`REQUEST_APART`]), and what
//! was under way before. So if a merged work request fails, all of it goes once more, one by one,
//! and only what is at fault fails. What notifies may be the last one only: its message goes
//! behind.

use super::memory::piece;
use super::post::region;
use super::provider::{Range, Ranges, Wr, WrVerb};
use super::rail::{Rail, Stage, Taken};
use super::{Config, Memory};
use crate::fabric::{REQUEST_APART, REQUEST_CHAIN, Request, Verb};

/// What work requests are made from.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) regions: &'a [Option<Memory>],
    pub(super) config: &'a Config,
}

/// True if a request may share a work request.
fn joins(taken: &Taken) -> bool {
    let plain = matches!(taken.request.verb, Verb::Write | Verb::Read);
    plain
        && taken.request.flags & (REQUEST_APART | REQUEST_CHAIN) == 0
        && taken.attempts == 0
        && !taken.alone
        && taken.request.bytes > 0
}

impl Rail {
    /// Has requests go along in the work request that was just made of the one at `at`, which is
    /// the youngest entry; returns how many.
    #[inline]
    pub(super) fn join(
        &mut self,
        at: u32,
        wr: &mut Wr,
        ranges: &mut Vec<Range>,
        with: Sources<'_>,
    ) -> u32 {
        let most = with.config.merge_bytes_max.min(with.config.message_bytes_max);
        // Of what notifies, or is in several pieces, more is to be posted first.
        let whole = wr.bytes < most && self.next == at.wrapping_add(1);
        if !whole || self.taken[at].request.bytes != wr.bytes || !joins(&self.taken[at]) {
            return 0;
        }
        let first = self.taken[at].request;
        let mut joined = 0;
        while self.data_posted < self.depth && self.next != self.taken.tail() {
            let next = self.taken[self.next];
            let goes = !next.begun() && next.failure.is_none() && !next.sent_back && joins(&next);
            if !goes || !follows(&first, wr.bytes, &next.request, most) {
                break;
            }
            let Some(near) = self.beside(wr, &next.request, with.regions) else { break };
            if !self.add(wr, near, ranges) {
                break;
            }
            joined += 1;
            let taken = &mut self.taken[self.next];
            taken.cursor = taken.request.bytes;
            taken.in_flight += 1;
            taken.stage = if taken.notifies() { Stage::Notify } else { Stage::Whole };
            self.data_posted += 1;
            if taken.stage == Stage::Notify {
                break;
            }
            self.next = self.next.wrapping_add(1);
        }
        if joined > 0 {
            let work = self.works.tail().wrapping_sub(1);
            self.works[work].count += joined;
            wr.inline = wr.verb == WrVerb::Write && wr.bytes <= self.inline_bytes;
        }
        joined
    }

    /// Where a request's bytes are here, if its far end lies in one piece behind what a work
    /// request has there.
    fn beside(&self, wr: &Wr, request: &Request, regions: &[Option<Memory>]) -> Option<Range> {
        let bytes = u64::from(request.bytes);
        let near = region(regions, request.local)?.near(self.card);
        let far = region(regions, request.remote)?.far(self.card);
        if near.is_empty() || far.is_empty() {
            return None;
        }
        let near = piece(near, request.local_offset);
        let far = piece(far, request.remote_offset);
        let behind = wr.remote_address.checked_add(wr.bytes.into()) == Some(far.address);
        let fits = near.bytes >= bytes && far.bytes >= bytes && far.rkey == wr.rkey;
        let range = Range { address: near.address, lkey: near.lkey, bytes: request.bytes };
        (behind && fits).then_some(range)
    }

    /// Adds a local range to a work request, whose own are the youngest of `ranges`; false if it
    /// has no room for it.
    fn add(&self, wr: &mut Wr, range: Range, ranges: &mut Vec<Range>) -> bool {
        let own = [Range { address: wr.address, lkey: wr.lkey, bytes: wr.bytes }];
        let count = usize::from(wr.ranges.count);
        let held = if count == 0 { &own[..] } else { &ranges[ranges.len() - count..] };
        // In which order a card places what it has read is its own affair.
        if wr.verb == WrVerb::Read && held.iter().any(|held| overlap(held, &range)) {
            return false;
        }
        let last = held[held.len() - 1];
        if last.lkey == range.lkey && last.address + u64::from(last.bytes) == range.address {
            if count > 0 {
                let end = ranges.len() - 1;
                ranges[end].bytes += range.bytes;
            }
        } else if held.len() >= self.ranges_max as usize {
            return false;
        } else {
            if count == 0 {
                let Ok(first) = u16::try_from(ranges.len()) else { return false };
                wr.ranges = Ranges { first, count: 1 };
                ranges.push(own[0]);
            }
            wr.ranges.count += 1;
            ranges.push(range);
        }
        wr.bytes += range.bytes;
        true
    }
}

/// True if a request continues one of `bytes` that begins with `first`.
fn follows(first: &Request, bytes: u32, next: &Request, most: u32) -> bool {
    next.remote_offset == first.remote_offset + u64::from(bytes)
        && (next.verb, next.local, next.remote) == (first.verb, first.local, first.remote)
        && next.bytes <= most - bytes
}

fn overlap(a: &Range, b: &Range) -> bool {
    let end = |range: &Range| range.address + u64::from(range.bytes);
    a.address < end(b) && b.address < end(a)
}
