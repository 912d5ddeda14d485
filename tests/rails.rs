//! Claim: the fabric of queue pairs allocates nothing once it is made, while requests of every
//! kind are posted in batches of every size, posts stop half-way, notifications come and go, and
//! queue pairs fail and are rebuilt. The allocator of this binary counts what is asked for inside
//! calls of the fabric; the provider beneath is one of this test's own, with all its room made
//! beforehand, so that whatever is counted is the fabric's.

#![allow(unsafe_code, reason = "a counting global allocator is unsafe to implement")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

use verbring::fabric::qp::provider::{
    BadPost, Broken, Caps, Key, Provider, Range, Wc, WcKind, WcStatus, Wr, WrVerb,
};
use verbring::fabric::qp::{Ask, CardKeys, Config, Counts, Memory, News, Rails, Recovery, Told};
use verbring::fabric::{Arrival, Done, Fabric, REQUEST_CHAIN, REQUEST_NOTIFY, Request, Verb};
use verbring::shm::Mapping;

struct Counting;

thread_local! {
    /// Calls are counted while this thread is inside the fabric.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    if INSIDE.get() {
        CALLS.set(CALLS.get() + 1);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: `pointer` came from `alloc` above with this layout, as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls the fabric, with the allocator watching.
fn inside<T>(call: impl FnOnce() -> T) -> T {
    INSIDE.set(true);
    let result = call();
    INSIDE.set(false);
    result
}

const RAILS: u16 = 3;
const CONFIG: Config = Config {
    fabric: 9,
    rails_max: RAILS,
    depth: 16,
    receives: 4,
    inline_bytes: 32,
    signal_every: 4,
    message_bytes_max: 4096,
    merge_bytes_max: 0,
    regions_max: 2,
    attempts_max: 2,
    stuck_ns: 1_000_000,
    grace_ns: 10,
    drain_ns: 1_000,
    lost_ns: 1_000_000_000,
    recovery: Recovery {
        backoff_first_ns: 200,
        backoff_max_ns: 1_600,
        card_errors_max: 4,
        pause_first_ns: 1_000,
        pause_max_ns: 4_000,
        ..Recovery::DEFAULT
    },
};

/// A device whose peer echoes: every message comes back, and every so often something fails.
struct Echo {
    completions: VecDeque<Wc>,
    receives: [VecDeque<u64>; RAILS as usize],
    failed: [bool; RAILS as usize],
    clock: u64,
}

impl Echo {
    fn new() -> Self {
        let room = CONFIG.completions() as usize;
        Self {
            completions: VecDeque::with_capacity(2 * room),
            receives: std::array::from_fn(|_| VecDeque::with_capacity(room)),
            failed: [false; RAILS as usize],
            clock: 0,
        }
    }

    fn complete(&mut self, wr_id: u64, kind: WcKind, status: WcStatus, message: [u64; 2]) {
        let wc = Wc { wr_id, number: 0, status, kind, bytes: 16, message, vendor_error: 0 };
        assert!(self.completions.len() < self.completions.capacity());
        self.completions.push_back(wc);
    }
}

impl Provider for Echo {
    type Pair = ();

    fn completions_max(&self, _card: u8) -> u32 {
        CONFIG.completions()
    }

    fn adopt(&mut self, _rail: u16, _pair: ()) {}

    fn release(&mut self, _rail: u16) -> Option<()> {
        Some(())
    }

    fn post_ranges(&mut self, rail: u16, list: &[Wr], _: &[Range]) -> Result<(), BadPost> {
        let at = usize::from(rail);
        for (wr, index) in list.iter().zip(0..) {
            self.clock += 1;
            if self.clock.is_multiple_of(97) {
                let taken = (!self.clock.is_multiple_of(5)).then_some(index);
                return Err(BadPost { taken, errno: 12 });
            }
            let fails = self.clock.is_multiple_of(1009);
            if self.failed[at] || fails {
                let cause = if self.failed[at] { WcStatus::Flushed } else { WcStatus::Other(21) };
                self.failed[at] = true;
                self.complete(wr.wr_id, WcKind::Work, cause, [0; 2]);
                continue;
            }
            if wr.verb == WrVerb::Send
                && let Some(wr_id) = self.receives[at].pop_front()
            {
                // The echo of a notification returns its credit; that of credit asks for none.
                let credits = u64::from(wr.arg[1] & 0xffff_ffff == 1) << 32;
                let message = [wr.arg[0], wr.arg[1] & 0xffff_ffff | credits];
                self.complete(wr_id, WcKind::Receive, WcStatus::Success, message);
            }
            if wr.signaled {
                self.complete(wr.wr_id, WcKind::Work, WcStatus::Success, [0; 2]);
            }
        }
        Ok(())
    }

    fn post_receives(&mut self, rail: u16, wr_id: u64, count: u32) -> Result<(), BadPost> {
        for _ in 0..count {
            self.receives[usize::from(rail)].push_back(wr_id);
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Wc>) -> Result<(), Broken> {
        while out.len() < out.capacity()
            && let Some(wc) = self.completions.pop_front()
        {
            out.push(wc);
        }
        Ok(())
    }

    fn arm(&mut self) -> Result<(), i32> {
        Ok(())
    }
}

/// Answers what rails wish.
fn serve(fabric: &mut Rails<Echo>) {
    while let Some(wish) = inside(|| fabric.wish()) {
        let at = usize::from(wish.rail);
        let news = match wish.ask {
            Ask::Quiesce => {
                fabric.provider().failed[at] = true;
                News::Quiet
            }
            Ask::Reset => {
                let provider = fabric.provider();
                provider.failed[at] = false;
                provider.receives[at].clear();
                News::Reset
            }
            Ask::Connect => News::Connected { credits: CONFIG.receives },
        };
        inside(|| fabric.tell(Told { rail: wish.rail, epoch: wish.epoch, news }));
    }
}

#[test]
fn the_fabric_of_queue_pairs_allocates_nothing_once_it_is_made() {
    let alone = carry(0);
    assert!(alone.repeats > 100 && alone.returned == 0, "{alone:?}");
    let shared = carry(0b111);
    assert!(shared.returned > 100 && shared.probes > 100, "{shared:?}");
}

/// Carries what fails every so often, over rails of which these lead to the same place.
fn carry(shared: u64) -> Counts {
    let mapping = Arc::new(Mapping::anonymous(1 << 16).unwrap());
    let key = |offset, bytes| Key { offset, bytes, address: 4096 + offset, lkey: 1, rkey: 2 };
    let keys = Box::new([key(0, 40_000), key(40_000, (1 << 16) - 40_000)]);
    let mut fabric = Rails::new(Echo::new(), CONFIG);
    fabric.attach(0, Memory::own(mapping, CardKeys::first(keys.clone()), 0));
    fabric.attach(1, Memory::peer(CardKeys::first(keys), 0).unwrap());
    fabric.share(shared);
    let given = Caps { ..CONFIG.caps() };
    for rail in 0..RAILS {
        inside(|| fabric.adopt(rail, (), given, 0)).unwrap();
    }
    let mut done: Vec<Done> = Vec::with_capacity(32);
    let mut arrivals: Vec<Arrival> = Vec::with_capacity(4);
    let mut batch = Vec::with_capacity(24);
    let (mut taken, mut ended, mut told) = (0_u64, 0_u64, 0_u64);
    for turn in 0..200_000_u64 {
        done.clear();
        inside(|| fabric.poll(turn * 100, &mut done));
        ended += done.len() as u64;
        serve(&mut fabric);
        if turn % 3 == 0 {
            arrivals.clear();
            inside(|| fabric.arrivals(&mut arrivals));
            told += arrivals.len() as u64;
        }
        batch.clear();
        for n in 0..turn % 24 {
            let verb = [Verb::Write, Verb::Read, Verb::FetchAdd][usize::try_from(n % 3).unwrap()];
            let atomic = verb == Verb::FetchAdd;
            let notifies = if n % 7 == 0 { REQUEST_NOTIFY } else { 0 };
            batch.push(Request {
                ticket: taken + n,
                verb,
                local: 0,
                remote: 1,
                local_offset: 39_000,
                remote_offset: 8 * n,
                bytes: if atomic { 8 } else { u32::try_from(turn % 6000).unwrap() },
                arg: [1, 0],
                rail: u16::try_from(turn % u64::from(RAILS)).unwrap(),
                flags: notifies | if n % 5 == 1 { REQUEST_CHAIN } else { 0 },
                immediate: 1,
                attempts: 0,
            });
        }
        taken += inside(|| fabric.post(&batch)) as u64;
    }
    let counts = fabric.counts();
    for turn in 200_000..300_000_u64 {
        done.clear();
        inside(|| fabric.poll(turn * 100, &mut done));
        ended += done.len() as u64;
        serve(&mut fabric);
        arrivals.clear();
        inside(|| fabric.arrivals(&mut arrivals));
    }
    assert_eq!(CALLS.get(), 0, "calls of the allocator");
    assert!(taken > 100_000 && told > 1_000, "{taken} requests, {told} notifications");
    assert_eq!(ended, taken, "{counts:?}");
    assert!(fabric.at_rest());
    let busy = [counts.partial, counts.doubts, counts.degraded, counts.markers];
    assert!(busy.iter().all(|count| *count > 100), "{counts:?}");
    counts
}
