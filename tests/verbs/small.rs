//! A send queue that is smaller than the fabric believes: what does not fit is refused in the
//! middle of a post, goes back, and still ends once.

use std::time::Instant;

use verbring::fabric::conformance::{Harness, request};
use verbring::fabric::qp::provider::{
    Access, Caps, Created, DeviceLimits, Endpoint, Move, PairState, PathSettings, ProviderControl,
    ProviderError, Registration,
};
use verbring::fabric::{Done, Fabric, REQUEST_NOTIFY, Request, Verb};

use super::conformance::{CONFIG, PATIENCE, Two};
use super::side::places;

/// A control that makes queue pairs of few sends, and says that they have what was asked for.
pub(crate) struct Boaster<C> {
    inner: C,
    /// Sends that a queue pair is made with.
    sends: u32,
}

impl<C> Boaster<C> {
    pub(crate) fn new(inner: C, sends: u32) -> Self {
        Self { inner, sends }
    }
}

impl<C: ProviderControl> ProviderControl for Boaster<C> {
    type Pair = C::Pair;
    type Memory = C::Memory;

    fn limits(&self) -> DeviceLimits {
        self.inner.limits()
    }

    fn create(&mut self, caps: Caps) -> Result<Created<C::Pair>, ProviderError> {
        let made = self.inner.create(Caps { sends: caps.sends.min(self.sends), ..caps })?;
        let sends = made.caps.sends.max(caps.sends);
        Ok(Created { caps: Caps { sends, ..made.caps }, ..made })
    }

    fn endpoint(
        &mut self,
        number: u32,
        settings: &PathSettings,
        credits: u32,
    ) -> Result<Endpoint, ProviderError> {
        self.inner.endpoint(number, settings, credits)
    }

    fn modify(&mut self, number: u32, to: &Move) -> Result<(), ProviderError> {
        self.inner.modify(number, to)
    }

    fn state(&mut self, number: u32) -> Result<PairState, ProviderError> {
        self.inner.state(number)
    }

    fn destroy(&mut self, number: u32, pair: C::Pair) -> Result<(), ProviderError> {
        self.inner.destroy(number, pair)
    }

    fn register(
        &mut self,
        memory: &C::Memory,
        access: Access,
    ) -> Result<Registration, ProviderError> {
        self.inner.register(memory, access)
    }

    fn deregister(&mut self, id: u32) -> Result<(), ProviderError> {
        self.inner.deregister(id)
    }
}

const REQUESTS: u64 = 600;
/// Where each of these words is added to.
const WORD: u64 = 32_768;

fn draw(n: u64) -> Request {
    let write = |bytes| request(n, Verb::Write, n % 30 * 1024, n % 30 * 1024, bytes);
    match n % 4 {
        // Large enough that the queue is full before the first is done.
        0 => write(1024),
        1 => Request { flags: REQUEST_NOTIFY, immediate: 7, ..write(64) },
        2 => Request { arg: [1, 0], ..request(n, Verb::FetchAdd, WORD, WORD, 8) },
        _ => request(n, Verb::Read, WORD + 4096, n % 30 * 1024, 512),
    }
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_send_queue_smaller_than_believed_ends_every_request_once() {
    let [first, second] = places();
    for far in [&second, &first] {
        let mut two = Two::boasting([&first, far], 1, 4);
        let begun = Instant::now();
        let (mut next, mut ended) = (0, vec![0; usize::try_from(REQUESTS).expect("small")]);
        let (mut done, mut told) = (Vec::with_capacity(32), 0);
        let mut arrivals = Vec::with_capacity(8);
        while ended.contains(&0) {
            assert!(begun.elapsed() < PATIENCE, "{:?}", two.fabric().counts());
            let batch: Vec<_> = (next..REQUESTS).take(CONFIG.depth as usize).map(draw).collect();
            next += two.fabric().post(&batch) as u64;
            let now_ns = two.advance();
            two.fabric().poll(now_ns, &mut done);
            for end in done.drain(..) {
                assert_eq!(end, Done::new(end.ticket, 0));
                ended[usize::try_from(end.ticket).expect("small")] += 1;
            }
            two.arrivals(&mut arrivals);
            told += arrivals.drain(..).count();
        }
        for _ in 0..100 {
            let now_ns = two.advance();
            two.fabric().poll(now_ns, &mut done);
            two.arrivals(&mut arrivals);
            told += arrivals.drain(..).count();
        }
        assert_eq!(done, [], "nothing ends twice");
        assert!(ended.iter().all(|&times| times == 1));
        assert_eq!(told as u64, REQUESTS / 4, "each notification once");
        let mut word = [0; 8];
        two.far().read(WORD, &mut word);
        assert_eq!(u64::from_le_bytes(word), REQUESTS / 4, "each addition once");
        let counts = two.fabric().counts();
        assert!(counts.partial > 0, "the queue was never full: {counts:?}");
        assert_eq!((counts.degraded, counts.stale, counts.ghosts), (0, 0, 0), "{counts:?}");
        assert!(two.fabric().at_rest(), "{counts:?}");
        assert_eq!(two.fabric().posted(0), 0);
        // Less than half of the credit may be owed.
        let room = two.fabric().room(0);
        assert_eq!((room.requests, room.stop), (CONFIG.depth, None));
        assert!(2 * room.notifies > CONFIG.receives, "credit is lost: {room:?}");
        eprintln!("{} to {}: {counts:?}", first.device, far.device);
    }
}
