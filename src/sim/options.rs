//! What a world is like: drawn from its seed, each world another one.
//!
//! Swarm: most worlds have only some of the faults, so that none hides behind another.

use crate::abi::Class;
use crate::fabric::Pair;
use crate::fabric::qp;
use crate::fabric::qp::provider::Caps;
use crate::fabric::qp::sim::{SimConfig, SimProvider};
use crate::ids::SessionId;
use crate::random::Random;
use crate::sched::{Bounds, Contract, Mode, Policy};

/// How often a fault is planted, per mille of the steps; of a card, per mille of what it is asked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    pub(super) posts: u64,
    pub(super) work: u64,
    pub(super) pairs: u64,
    pub(super) delays: u64,
    pub(super) completions: u64,
    pub(super) deaths: u64,
    pub(super) control: u64,
    pub(super) clients: u64,
    pub(super) revokes: u64,
    pub(super) losses: u64,
    pub(super) devices: u64,
    pub(super) ports: u64,
    pub(super) cards: u64,
    pub(super) holds: u64,
}

impl Rates {
    fn draw(random: &mut Random) -> Self {
        let mut rate = |most: u64| if random.below(2) == 0 { 0 } else { 1 + random.below(most) };
        Self {
            posts: rate(20),
            work: rate(10),
            pairs: rate(6),
            delays: rate(10),
            completions: rate(10),
            deaths: rate(2),
            control: rate(2),
            clients: rate(4),
            revokes: rate(3),
            losses: rate(6),
            devices: rate(2),
            ports: rate(6),
            cards: rate(60),
            holds: rate(8),
        }
    }
}

/// One world's shape.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) engines: usize,
    pub(super) clients: usize,
    pub(super) steps: u64,
    pub(super) step_ns: u64,
    pub(super) sq_entries: u32,
    pub(super) cq_entries: u32,
    pub(super) limits: crate::engine::Limits,
    pub(super) rails: qp::Config,
    /// What each uid may have, and how many uids the sessions of an engine are of.
    pub(super) contract: Contract,
    pub(super) owners: u32,
    /// Each engine's cards; card i here is joined to card i there.
    pub(super) cards: Vec<SimConfig>,
    /// The cards of the rails between two engines.
    pub(super) strands: Vec<u8>,
    /// Time to an acknowledgement, as in `PathSettings`.
    pub(super) timeout: u8,
    /// What is on its way when its queue pair fails lands all the same.
    pub(super) late: bool,
    /// A message between two controls takes at most so long, ns.
    pub(super) control_ns: u64,
    /// Card work takes at most so long, ns.
    pub(super) card_ns: u64,
    pub(super) rates: Rates,
    /// Of a hundred ops so many are tied to others.
    pub(super) ties: u64,
    /// An engine that died is away for at most so many steps.
    pub(super) away_steps: u64,
}

/// How devices are shared: each mode, with narrow windows and wide ones.
fn draw_policy(random: &mut Random, window_wrs: u32, slice_bytes: u32) -> Policy {
    let slices = |random: &mut Random| u64::from(slice_bytes) * (1 + random.below(8));
    let reserve = random.below(4) == 0;
    let (ops, wrs) = (2 + random.below32(31), 2 + random.below32(31));
    let card = Bounds { ops, wrs, bytes: u64::from(slice_bytes) + slices(random) };
    let narrow =
        Bounds { ops: 1 + random.below32(16), wrs: 1 + random.below32(16), bytes: slices(random) };
    Policy {
        mode: random.pick(&[
            Mode::Weighted,
            Mode::Weighted,
            Mode::Strict,
            Mode::Fifo,
            Mode::Tent,
            Mode::Direct,
        ]),
        weights: random.pick(&[[4, 2, 1], [1, 1, 1], [64, 7, 3]]),
        floor_bytes: random.pick(&[0, 64, 512]),
        min_share: random.pick(&[[0; 3], [0, 10, 10], [0, 250, 250]]),
        aging_ns: random.pick(&[[0; 2], [0; 2], [20_000, 50_000], [0, 5_000]]),
        window_ops: 2 + random.below32(window_wrs.max(2)),
        card,
        peer: random.pick(&[Bounds::NONE, narrow]),
        reserve_ops: u32::from(reserve && window_wrs > 1),
        reserve_bytes: 0,
        slice_ns: random.pick(&[0, 1_000, 100_000]),
        coalesce: random.below(8) != 0,
        coalesce_key: random.next(),
    }
}

/// What a uid may have: mostly all, sometimes little.
fn draw_contract(random: &mut Random, limits: &crate::engine::Limits) -> Contract {
    let little = |random: &mut Random, bytes: u64| random.pick(&[u64::MAX, u64::MAX, bytes]);
    let slice_bytes = u64::from(limits.slice_bytes);
    Contract {
        ops_max: random.pick(&[limits.records, limits.records, 8]),
        bytes_max: little(random, 4 * slice_bytes),
        high_bytes_max: little(random, slice_bytes),
        edges_max: random.pick(&[u32::MAX, u32::MAX, 16]),
        weight: 1 + u8::try_from(random.below(64)).unwrap_or(0),
        ceiling: random.pick(&[Class::High, Class::High, Class::High, Class::Medium, Class::Low]),
    }
}

const MS: u64 = 1_000_000;

impl Options {
    pub(super) fn draw(random: &mut Random) -> Self {
        let rates = Rates::draw(random);
        let engines = 2 + random.index(2);
        let pieces = random.below(5) == 0;
        let depth = 1 + random.below32(24);
        let mut device = SimConfig::DEFAULT;
        device.latency_ns = 200 + random.below(4_000);
        if pieces {
            device.limits.registration_bytes_max = 1_000;
            device.limits.message_bytes_max = 96;
        }
        if random.below(4) == 0 {
            // Less than is asked for.
            device.caps_max =
                Caps { sends: 3 + depth / 2, receives: 4, inline_bytes: 16, ranges: 2 };
        }
        device.eager = random.below(6) == 0;
        let (cards, strands) = draw_cards(random, device);
        let window_wrs = 1 + random.below32(32);
        let slice_bytes = random.pick(&[64, 128, 256, 4096]);
        let limits = crate::engine::Limits {
            engine: 0,
            records: 128,
            list_blocks: 64,
            edges: 128,
            sessions_max: 8,
            rings_max: 16,
            regions_max: 128,
            window_wrs,
            window_bytes: u64::from(slice_bytes) * (1 + random.below(8)),
            slice_bytes,
            turn_bytes: u64::from(slice_bytes) * random.pick(&[1, 4, 64]),
            intake_budget: 1 + random.below32(16),
            ring_idle_ns: 100_000,
            cut_off_ns: random.pick(&[MS / 4, 20 * MS]),
            policy: draw_policy(random, window_wrs, slice_bytes),
        };
        let rails = draw_rails(random, depth, device.limits.message_bytes_max, &limits);
        Self {
            engines,
            clients: engines * (1 + random.index(2)),
            steps: 200 + random.below(400),
            step_ns: 500 + random.below(1_000),
            sq_entries: random.pick(&[4, 16, 64]),
            cq_entries: random.pick(&[16, 64]),
            contract: draw_contract(random, &limits),
            owners: 1 + random.below32(limits.sessions_max),
            limits,
            rails,
            cards,
            strands,
            timeout: 1 + u8::try_from(random.below(6)).unwrap_or(0),
            late: random.below(2) == 0,
            control_ns: 1 + random.below(20_000),
            card_ns: 1 + random.below(10_000),
            rates,
            ties: random.pick(&[0, 0, 20, 50, 90]),
            away_steps: random.pick(&[1, 1, 20, 100]),
        }
    }

    /// A world of so many engines, all joined to all, of which some die and come back. What goes
    /// wrong is drawn for each of them: it is more often that anything does.
    pub(super) fn crowd(random: &mut Random, engines: u16) -> Self {
        let mut options = Self::draw(random);
        let rates = options.rates;
        options.rates = Rates {
            deaths: 4 + random.below(12),
            control: 8 * rates.control,
            clients: 8 * rates.clients,
            revokes: 4 * rates.revokes,
            devices: 4 * rates.devices,
            ports: 4 * rates.ports,
            ..rates
        };
        let peers = engines - 1;
        let strands = |options: &Self| u16::try_from(options.strands.len()).unwrap_or(u16::MAX);
        if peers.saturating_mul(strands(&options)) > RAILS_TO_PEERS {
            options.strands.truncate(1);
        }
        options.rails.rails_max = peers * strands(&options) + RAILS_KEPT;
        options.engines = engines.into();
        options.clients = engines.into();
        // A region of each peer, and of its lives before as long as they are named.
        options.limits.regions_max = 128.max(8 * u32::from(engines));
        options.rails.regions_max = options.limits.regions_max;
        options
    }

    /// How many faults of queue pairs may be planted in one step.
    pub(super) fn faults(&self) -> usize {
        self.engines.div_ceil(3)
    }

    /// The session of a client: the only one of that number at its engine.
    pub(super) fn session_of(&self, client: usize) -> SessionId {
        let number = client / self.engines + client % self.engines;
        let number = u32::try_from(number).unwrap_or(u32::MAX) % self.limits.sessions_max;
        SessionId(number)
    }
}

/// Rails that lead to no peer: this host's own copies, and the one that leads back to it.
const RAILS_KEPT: u16 = 2;
const RAILS_TO_PEERS: u16 = Pair::<SimProvider>::RAILS_MAX - RAILS_KEPT;

/// Most engines of a world: each has at least one rail to each other one.
pub const ENGINES_MAX: u16 = RAILS_TO_PEERS + 1;

/// The cards of an engine, of which the second may be slower, and those of its rails to a peer.
fn draw_cards(random: &mut Random, first: SimConfig) -> (Vec<SimConfig>, Vec<u8>) {
    let second = SimConfig { latency_ns: first.latency_ns * (1 + random.below(6)), ..first };
    match random.below(8) {
        0..2 => (vec![first], vec![0]),
        2 => (vec![first], vec![0, 0]),
        _ => (vec![first, second], vec![0, 1]),
    }
}

fn draw_rails(
    random: &mut Random,
    depth: u32,
    message_bytes_max: u32,
    limits: &crate::engine::Limits,
) -> qp::Config {
    qp::Config {
        fabric: crate::abi::FABRIC_VERBS,
        rails_max: 16,
        depth,
        receives: 1 + random.below32(8),
        inline_bytes: random.pick(&[0, 16, 64]),
        signal_every: 1 + random.below32(8),
        message_bytes_max,
        // Whoever is cut into slices is not put together again.
        merge_bytes_max: if depth.is_multiple_of(2) { limits.slice_bytes } else { 0 },
        regions_max: limits.regions_max,
        attempts_max: u8::try_from(random.below(5)).unwrap_or(0),
        stuck_ns: 2 * MS,
        grace_ns: MS / 5,
        drain_ns: 5 * MS,
        lost_ns: 20 * MS,
        recovery: qp::Recovery {
            backoff_first_ns: 1 + random.below(10_000),
            backoff_max_ns: 20_000 + random.below(MS / 5),
            card_errors_max: 1 + random.below32(8),
            pause_first_ns: 1 + random.below(MS / 5),
            pause_max_ns: MS,
            seed: random.next(),
        },
    }
}
