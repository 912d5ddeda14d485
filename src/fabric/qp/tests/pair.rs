//! Two fabrics of queue pairs, joined over the simulator, with a memory each.

use std::sync::Arc;

use super::super::join::Join;
use super::super::provider::{Access, Key, PathSettings, ProviderControl};
use super::super::sim::{Net, SimConfig, SimControl, SimProvider};
use super::super::{CardKeys, Config, Memory, RailState, Rails, Recovery};
use crate::fabric::conformance::{BYTES, FAR, FORGED, Harness, NEAR};
use crate::fabric::{Arrival, Fabric};
use crate::shm::Mapping;

pub(super) const CONFIG: Config = Config {
    fabric: 9,
    rails_max: 4,
    depth: 16,
    receives: 8,
    inline_bytes: 64,
    signal_every: 4,
    message_bytes_max: 1 << 30,
    merge_bytes_max: 0,
    regions_max: 4,
    attempts_max: 3,
    stuck_ns: 5_000_000,
    grace_ns: 20_000,
    drain_ns: 10_000_000,
    lost_ns: 2_000_000_000,
    recovery: Recovery {
        backoff_first_ns: 2_000,
        backoff_max_ns: 20_000,
        pause_first_ns: 500_000,
        pause_max_ns: 2_000_000,
        ..Recovery::DEFAULT
    },
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) sim: SimConfig,
    pub(super) config: Config,
    pub(super) rails: u16,
    /// How far time goes at each look, ns.
    pub(super) step_ns: u64,
    pub(super) path: PathSettings,
}

impl Shape {
    pub(super) const DEFAULT: Self = Self {
        sim: SimConfig::DEFAULT,
        config: CONFIG,
        rails: 1,
        step_ns: 500,
        path: PathSettings::DEFAULT,
    };
}

#[derive(Debug)]
pub(super) struct Two {
    pub(super) net: Net,
    pub(super) near: Rails<SimProvider>,
    pub(super) far: Rails<SimProvider>,
    pub(super) join: Join<SimControl>,
    pub(super) memories: [Arc<Mapping>; 2],
    shape: Shape,
}

/// Keys as another side gets them; `forged` ones admit nothing there.
pub(super) fn exported(keys: &[Key], forged: bool) -> CardKeys {
    let turn = if forged { 0x5500 } else { 0 };
    let keys = keys.iter().map(|key| Key { lkey: 0, rkey: key.rkey ^ turn, ..*key });
    CardKeys::first(keys.collect())
}

impl Two {
    pub(super) fn new(shape: Shape) -> Self {
        let Shape { sim, config, rails, .. } = shape;
        let net = Net::new();
        let (near, near_control) = net.device(sim, config.completions());
        let (far, far_control) = net.device(sim, config.completions());
        let mut controls = [near_control, far_control];
        let memories = [0; 2].map(|_| Arc::new(Mapping::anonymous(BYTES).unwrap()));
        let access = Access { write: true, read: true, atomics: true };
        let [ours, theirs] =
            [0, 1].map(|side: usize| controls[side].register(&memories[side], access).unwrap());
        let mut near = Rails::new(near, config);
        let mut far = Rails::new(far, config);
        near.attach(
            NEAR,
            Memory::own(Arc::clone(&memories[0]), CardKeys::first(ours.keys.clone()), NEAR),
        );
        near.attach(FAR, Memory::peer(exported(&theirs.keys, false), FAR).unwrap());
        near.attach(FORGED, Memory::peer(exported(&theirs.keys, true), FAR).unwrap());
        far.attach(
            NEAR,
            Memory::own(Arc::clone(&memories[1]), CardKeys::first(theirs.keys.clone()), NEAR),
        );
        far.attach(FAR, Memory::peer(exported(&ours.keys, false), FAR).unwrap());
        let mut join = Join::new(controls, shape.path);
        for _ in 0..rails {
            join.open([&mut near, &mut far], &config).unwrap();
        }
        let mut two = Self { net, near, far, join, memories, shape };
        for _ in 0..10 {
            two.step();
        }
        for rail in 0..rails {
            assert_eq!(two.near.state(rail), RailState::Ready);
            assert_eq!(two.far.state(rail), RailState::Ready);
        }
        two
    }

    /// Time, control and the far end go on, and the near end without taking completions.
    pub(super) fn step(&mut self) {
        self.advance();
        let mut nothing = Vec::new();
        self.near.poll(self.net.now_ns(), &mut nothing);
    }
}

impl Harness for Two {
    type Fabric = Rails<SimProvider>;

    fn fabric(&mut self) -> &mut Rails<SimProvider> {
        &mut self.near
    }

    fn advance(&mut self) -> u64 {
        self.net.advance(self.shape.step_ns);
        let mut done = Vec::with_capacity(8);
        self.far.poll(self.net.now_ns(), &mut done);
        assert!(done.is_empty(), "the far end asked for nothing");
        while self.join.serve([&mut self.near, &mut self.far]).unwrap() {}
        self.net.now_ns()
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
        self.shape.rails
    }
}
