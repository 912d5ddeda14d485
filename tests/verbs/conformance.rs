//! What every fabric must do, over queue pairs of real devices: the suite that the simulator and
//! the same-host fabric pass, too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use verbring::fabric::conformance::{BYTES, FAR, FORGED, Harness, NEAR, run_all};
use verbring::fabric::qp::join::Join;
use verbring::fabric::qp::provider::{Key, ProviderControl};
use verbring::fabric::qp::{CardKeys, Config, Memory, RailState, Rails, Recovery};
use verbring::fabric::verbs::{VerbsControl, VerbsProvider, VerbsSettings, open};
use verbring::fabric::{Arrival, Done, Fabric};
use verbring::shm::Mapping;

use super::side::{ALL, Place, places};
use super::small::Boaster;

const MS: u64 = 1_000_000;

/// Only a failure ever waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const CONFIG: Config = Config {
    fabric: 2,
    rails_max: 4,
    depth: 16,
    receives: 8,
    inline_bytes: 64,
    signal_every: 4,
    message_bytes_max: 1 << 30,
    merge_bytes_max: 4096,
    regions_max: 4,
    attempts_max: 3,
    stuck_ns: 2000 * MS,
    grace_ns: 20 * MS,
    drain_ns: 5000 * MS,
    lost_ns: 30_000 * MS,
    recovery: Recovery::DEFAULT,
};

/// Two fabrics over devices, a memory each, and the control of both.
pub(crate) struct Two {
    near: Rails<VerbsProvider>,
    far: Rails<VerbsProvider>,
    join: Join<Boaster<VerbsControl>>,
    memories: [Arc<Mapping>; 2],
    begun: Instant,
    rails: u16,
    far_done: Vec<Done>,
}

/// Keys as another side gets them; `forged` ones admit nothing there.
fn exported(keys: &[Key], forged: bool) -> Memory {
    let turn = if forged { 0x5500 } else { 0 };
    let keys = keys.iter().map(|key| Key { lkey: 0, rkey: key.rkey ^ turn, ..*key }).collect();
    Memory::peer(CardKeys::first(keys), FAR).expect("keys without gaps")
}

impl Two {
    pub(crate) fn new(ends: [&Place; 2], rails: u16) -> Self {
        Self::boasting(ends, rails, u32::MAX)
    }

    /// With queue pairs of no more than so many sends, of which nothing is told.
    pub(crate) fn boasting([near, far]: [&Place; 2], rails: u16, sends: u32) -> Self {
        let opened = |place: &Place| {
            let mut settings = VerbsSettings::new(&place.device, place.settings.port);
            settings.completions = CONFIG.completions();
            // Two keys a memory, so that requests across both are tried as well.
            settings.registration_bytes_max = BYTES / 2;
            open(&settings).expect("a device")
        };
        let (settings, [near, far]) = (near.settings, [opened(near), opened(far)]);
        let memories = [0; 2].map(|_| Arc::new(Mapping::anonymous(BYTES).expect("memory")));
        let (mut near, mut far, mut controls) =
            (Rails::new(near.0, CONFIG), Rails::new(far.0, CONFIG), [near.1, far.1]);
        let [ours, theirs] = [0, 1].map(|side: usize| {
            controls[side].register(&memories[side], ALL).expect("locked memory")
        });
        near.attach(
            NEAR,
            Memory::own(Arc::clone(&memories[0]), CardKeys::first(ours.keys.clone()), NEAR),
        );
        near.attach(FAR, exported(&theirs.keys, false));
        near.attach(FORGED, exported(&theirs.keys, true));
        far.attach(
            NEAR,
            Memory::own(Arc::clone(&memories[1]), CardKeys::first(theirs.keys.clone()), NEAR),
        );
        far.attach(FAR, exported(&ours.keys, false));
        let controls = controls.map(|control| Boaster::new(control, sends));
        let mut join = Join::new(controls, settings);
        for _ in 0..rails {
            join.open([&mut near, &mut far], &CONFIG).expect("a queue pair at each end");
        }
        let begun = Instant::now();
        let mut two = Self { near, far, join, memories, begun, rails, far_done: Vec::new() };
        let up = |two: &Self| {
            (0..rails)
                .all(|rail| [two.near.state(rail), two.far.state(rail)] == [RailState::Ready; 2])
        };
        while !up(&two) {
            assert!(begun.elapsed() < Duration::from_secs(30), "the rails did not come up");
            let now = two.advance();
            two.near.poll(now, &mut Vec::new());
        }
        two
    }
}

impl Harness for Two {
    type Fabric = Rails<VerbsProvider>;

    fn fabric(&mut self) -> &mut Self::Fabric {
        &mut self.near
    }

    fn advance(&mut self) -> u64 {
        let now = u64::try_from(self.begun.elapsed().as_nanos()).expect("584 years");
        let mut done = Vec::with_capacity(8);
        self.far.poll(now, &mut done);
        self.far_done.extend(done);
        while self.join.serve([&mut self.near, &mut self.far]).expect("control") {}
        now
    }

    fn near(&self) -> Arc<Mapping> {
        Arc::clone(&self.memories[0])
    }

    fn far(&self) -> Arc<Mapping> {
        Arc::clone(&self.memories[1])
    }

    fn arrivals(&mut self, out: &mut Vec<Arrival>) {
        self.far.arrivals(out);
    }

    fn rails(&self) -> u16 {
        self.rails
    }
}

fn conforms(ends: [&Place; 2], rails: u16) {
    run_all(
        || Two::new(ends, rails),
        |name| eprintln!("{} to {}, {rails} rails: {name}", ends[0].device, ends[1].device),
    );
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_port_to_itself_conforms() {
    let [first, _] = places();
    conforms([&first, &first], 1);
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_port_to_another_conforms() {
    let [first, second] = places();
    conforms([&first, &second], 1);
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn several_rails_conform() {
    let [first, second] = places();
    conforms([&first, &second], 3);
}
