//! One end of a connection, and two of them connected.

use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use verbring::fabric::qp::provider::{
    Access, Caps, Endpoint, Key, Link, Move, PathSettings, Provider, ProviderControl, Ranges,
    Registration, Wc, WcKind, WcStatus, Wr, WrId, WrVerb,
};
use verbring::fabric::verbs::{VerbsControl, VerbsProvider, VerbsSettings, open};
use verbring::shm::Mapping;

/// Bytes of each side's memory. Registering takes an emulated machine 30 ms a MiB.
pub(crate) const BYTES: u32 = 64 << 10;

pub(crate) const ALL: Access = Access { write: true, read: true, atomics: true };

pub(crate) const CAPS: Caps = Caps { sends: 64, receives: 16, inline_bytes: 64, ranges: 16 };

/// How long a completion may take; only a failure ever waits so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A port and the index of a GID.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) device: String,
    pub(crate) settings: PathSettings,
}

/// The two ports that `VERBRING_TEST_DEVICE` names.
pub(crate) fn places() -> [Place; 2] {
    places_in("VERBRING_TEST_DEVICE", "rxe0:1:1,rxe1:1:1")
}

/// The two ports of a second cable, that `VERBRING_TEST_SECOND` names.
pub(crate) fn second_places() -> [Place; 2] {
    places_in("VERBRING_TEST_SECOND", "rxe2:1:1,rxe3:1:1")
}

fn places_in(variable: &str, such_as: &str) -> [Place; 2] {
    let text = env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: {such_as}"));
    let places: Vec<_> = text
        .split(',')
        .map(|place| {
            let parts: Vec<_> = place.split(':').collect();
            let [device, port, gid_index] = parts[..] else { panic!("{place}: DEVICE:PORT:GID") };
            let settings = PathSettings {
                port: port.parse().expect("a port"),
                gid_index: gid_index.parse().expect("an index"),
                // 67 ms, so that errors do not make tests long.
                timeout: 14,
                retry: 3,
                ..PathSettings::DEFAULT
            };
            Place { device: device.to_string(), settings }
        })
        .collect();
    places.try_into().expect("two ports")
}

/// One engine's part: a device, a queue pair as rail 3, and registered memory.
pub(crate) struct Side {
    pub(crate) provider: VerbsProvider,
    pub(crate) control: VerbsControl,
    pub(crate) settings: PathSettings,
    pub(crate) number: u32,
    pub(crate) caps: Caps,
    pub(crate) memory: Arc<Mapping>,
    pub(crate) registration: Registration,
    epoch: u32,
    slot: u16,
}

pub(crate) const RAIL: u16 = 3;

impl Side {
    pub(crate) fn open(place: &Place, caps: Caps, registration_bytes_max: u64) -> Self {
        let mut settings = VerbsSettings::new(&place.device, place.settings.port);
        settings.completions = 256;
        settings.registration_bytes_max = registration_bytes_max;
        let (mut provider, mut control) = open(&settings).expect("a device");
        let created = control.create(caps).expect("a queue pair");
        provider.adopt(RAIL, created.pair);
        let memory = Arc::new(Mapping::anonymous(BYTES.into()).expect("memory"));
        let registration = control.register(&memory, ALL).expect("locked memory");
        Self {
            provider,
            control,
            settings: place.settings,
            number: created.number,
            caps: created.caps,
            memory,
            registration,
            epoch: 0,
            slot: 0,
        }
    }

    /// From RESET to INIT, with receives posted; what the other end must know.
    pub(crate) fn prepare(&mut self) -> Endpoint {
        self.epoch += 1;
        self.control.modify(self.number, &Move::Init(self.settings)).expect("INIT");
        let wr_id = WrId::new(self.epoch, RAIL, WrId::RECEIVE);
        self.provider.post_receives(RAIL, wr_id.0, 4).expect("receives");
        self.control.endpoint(self.number, &self.settings, 4).expect("an endpoint")
    }

    pub(crate) fn join(&mut self, own: Endpoint, peer: Endpoint) -> Link {
        let link = Link { own, peer, settings: self.settings };
        self.control.modify(self.number, &Move::ReadyToReceive(link)).expect("RTR");
        self.control.modify(self.number, &Move::ReadyToSend(link)).expect("RTS");
        link
    }

    pub(crate) fn key(&self) -> Key {
        self.registration.keys[0]
    }

    /// A signalled request between the beginnings of both memories.
    pub(crate) fn wr(&mut self, verb: WrVerb, bytes: u32, peer: Key) -> Wr {
        self.slot = (self.slot + 1) % 1000;
        let own = self.key();
        Wr {
            wr_id: WrId::new(self.epoch, RAIL, self.slot).0,
            verb,
            signaled: true,
            fence: false,
            inline: false,
            address: own.address,
            lkey: own.lkey,
            bytes,
            remote_address: peer.address,
            rkey: peer.rkey,
            arg: [0; 2],
            ranges: Ranges::NONE,
        }
    }

    /// Posts a list and waits for as many completions as were signalled, or flushed.
    pub(crate) fn run(&mut self, list: &[Wr]) -> Vec<WcStatus> {
        self.provider.post(RAIL, list).expect("posted");
        let signaled = list.iter().filter(|wr| wr.signaled).count();
        self.wait(signaled, WcKind::Work).iter().map(|wc| wc.status).collect()
    }

    pub(crate) fn run_one(&mut self, wr: Wr) -> WcStatus {
        self.run(&[wr])[0]
    }

    /// Waits for completions of one kind; others are dropped.
    pub(crate) fn wait(&mut self, count: usize, kind: WcKind) -> Vec<Wc> {
        let begun = Instant::now();
        let (mut got, mut out) = (Vec::new(), Vec::with_capacity(16));
        while got.len() < count {
            assert!(begun.elapsed() < PATIENCE, "{} of {count} completions", got.len());
            self.provider.poll(&mut out).expect("a sound queue");
            got.extend(out.drain(..).filter(|wc| wc.kind == kind));
        }
        got
    }

    /// Polls what is there, without waiting.
    pub(crate) fn poll(&mut self) -> Vec<Wc> {
        let mut out = Vec::with_capacity(256);
        self.provider.poll(&mut out).expect("a sound queue");
        out
    }

    pub(crate) fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.memory.read(offset, &mut out);
        out
    }

    /// Ends everything, and insists that each end succeeds.
    pub(crate) fn close(mut self) {
        let pair = self.provider.release(RAIL).expect("rail 3");
        self.control.destroy(self.number, pair).expect("destroyed");
        self.control.deregister(self.registration.id).expect("deregistered");
    }
}

/// Two sides, connected.
pub(crate) fn pair(places: [&Place; 2]) -> [Side; 2] {
    let mut sides = places.map(|place| Side::open(place, CAPS, 1 << 30));
    connect(&mut sides);
    sides
}

pub(crate) fn connect(sides: &mut [Side; 2]) -> [Link; 2] {
    let [a, b] = sides;
    let (of_a, of_b) = (a.prepare(), b.prepare());
    [a.join(of_a, of_b), b.join(of_b, of_a)]
}

/// After an error on both sides: everything is polled, reset, and connected anew.
pub(crate) fn rebuild(sides: &mut [Side; 2]) {
    for side in &mut *sides {
        side.control.modify(side.number, &Move::Error).expect("ERR");
        side.poll();
        side.control.modify(side.number, &Move::Reset).expect("RESET");
    }
    connect(sides);
}

/// Runs a test from the first port to itself, and to the other.
pub(crate) fn both_ways(test: fn([Side; 2])) {
    let [first, second] = places();
    for [a, b] in [[&first, &first], [&first, &second]] {
        eprintln!("{} to {}", a.device, b.device);
        test(pair([a, b]));
    }
}

/// Bytes without a pattern that copies of a page would repeat.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        state.to_le_bytes()[6]
    };
    (0..count).map(next).collect()
}
