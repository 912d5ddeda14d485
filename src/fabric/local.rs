//! The same-host fabric: requests are copies between mapped regions.
//!
//! `post` only queues; `poll` copies at most one slice's bytes, so that the engine publishes what
//! is finished before the next copy. Atomics run on the CPU: the only place where exports that
//! stay on the host are changed atomically.
//!
//! Requests are carried out in the order in which they were taken, so what is chained to one that
//! failed finds that out when its turn comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{DONE_FLUSHED, Done, Fabric, Limits, REQUEST_CHAIN, Request, Verb};
use crate::abi::{FABRIC_LOCAL, Page, errno};
use crate::shm::Mapping;

/// Copies between regions that this process has mapped.
#[derive(Debug)]
pub struct Local {
    regions: Vec<Option<Arc<Mapping>>>,
    queue: VecDeque<Request>,
    depth: u32,
    slice_bytes: u64,
    /// The request that was carried out last failed: what is chained to it is not carried out.
    broken: bool,
}

impl Local {
    /// Makes a fabric for region indices below `regions_max`, holding `depth` requests.
    #[must_use]
    pub fn new(regions_max: u32, depth: u32, slice_bytes: u32) -> Self {
        Self {
            regions: (0..regions_max).map(|_| None).collect(),
            queue: VecDeque::with_capacity(depth as usize),
            depth,
            slice_bytes: u64::from(slice_bytes),
            broken: false,
        }
    }

    fn region(&self, index: u32) -> Option<&Arc<Mapping>> {
        self.regions.get(index as usize)?.as_ref()
    }

    /// Carries out one request; 0 or a positive errno.
    fn carry_out(&self, request: &Request) -> i32 {
        let (Some(local), Some(remote)) = (self.region(request.local), self.region(request.remote))
        else {
            return errno::ESTALE;
        };
        let bytes = u64::from(request.bytes);
        if !local.holds(request.local_offset, bytes) || !remote.holds(request.remote_offset, bytes)
        {
            return errno::EINVAL;
        }
        let (near, far) = (request.local_offset, request.remote_offset);
        match request.verb {
            Verb::Write => Mapping::copy(local, near, remote, far, bytes),
            Verb::Read => Mapping::copy(remote, far, local, near, bytes),
            Verb::FetchAdd => {
                let old = remote.word64(far).fetch_add(request.arg[0], Ordering::AcqRel);
                local.write(near, &old.to_le_bytes());
            }
            Verb::CmpSwap => {
                let [expected, new] = request.arg;
                let word = remote.word64(far);
                let old = word
                    .compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire)
                    .unwrap_or_else(|seen| seen);
                local.write(near, &old.to_le_bytes());
            }
        }
        0
    }
}

impl Fabric for Local {
    type Memory = Arc<Mapping>;

    fn limits(&self) -> Limits {
        let depth = self.depth;
        Limits { depth, fabric: FABRIC_LOCAL, chain_max: depth, notifies: false }
    }

    fn attach(&mut self, region: u32, memory: Arc<Mapping>) {
        let place = &mut self.regions[region as usize];
        assert!(place.is_none(), "attached a region twice");
        *place = Some(memory);
    }

    fn detach(&mut self, region: u32) -> Option<Arc<Mapping>> {
        self.regions.get_mut(region as usize)?.take()
    }

    fn read_pages(&self, region: u32, offset: u64, pages: &mut [Page]) -> bool {
        let Some(memory) = self.region(region) else { return false };
        let bytes = zerocopy::IntoBytes::as_mut_bytes(pages);
        if !memory.holds(offset, bytes.len() as u64) {
            return false;
        }
        memory.read(offset, bytes);
        true
    }

    #[inline]
    fn post(&mut self, batch: &[Request]) -> usize {
        let room = self.depth as usize - self.queue.len();
        let taken = batch.len().min(room);
        self.queue.extend(&batch[..taken]);
        taken
    }

    #[inline]
    fn poll(&mut self, _now_ns: u64, done: &mut Vec<Done>) {
        let mut copied = 0;
        while done.len() < done.capacity() {
            let Some(request) = self.queue.front().copied() else { break };
            if copied > 0 && copied + u64::from(request.bytes) > self.slice_bytes {
                break;
            }
            self.queue.pop_front();
            if self.broken && request.flags & REQUEST_CHAIN != 0 {
                let cut = Done::new(request.ticket, errno::ECANCELED);
                done.push(Done { flags: DONE_FLUSHED, ..cut });
                continue;
            }
            copied += u64::from(request.bytes);
            let errno = self.carry_out(&request);
            self.broken = errno != 0;
            done.push(Done::new(request.ticket, errno));
        }
    }
}
