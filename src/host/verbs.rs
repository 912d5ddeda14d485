//! Which devices an engine uses, and opening them: those that the settings name, all that can be
//! used, or the one that `verbring devices` calls chosen.
//!
//! **Tests**: here for the sizes and the choice; over a device in `tests/verbs`.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;

use nix::sched::sched_getcpu;
use thiserror::Error;
use tracing::{info, warn};

use super::SpawnError;
use super::card_thread::Look;
use super::config::{Config, VERBS_DEVICES_MAX, VerbsDevice, VerbsUse};
use crate::abi::FABRIC_VERBS;
use crate::control::Address;
use crate::fabric::qp::provider::{DeviceLimits, PathSettings, ProviderControl};
use crate::fabric::qp::{self, RECEIVES_KEPT, SENDS_KEPT};
use crate::fabric::verbs::{
    Card, Judged, Obstacle, VerbsControl, VerbsError, VerbsProvider, VerbsSettings, Wish, card,
    cards, judge, numa_node_of, open_all, open_several,
};

/// A card that an engine uses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verbs {
    /// The device's name.
    pub device: String,
    /// Its port, from 1.
    pub port: u8,
    /// Place in the port's table of GIDs; 0 on InfiniBand without one.
    pub gid_index: u8,
    /// The address there.
    pub address: Option<Ipv6Addr>,
    /// Path MTU, bytes: the least of the port's and the setting.
    pub mtu_bytes: u32,
    /// Queue pairs at once, of all cards together.
    pub pairs_max: u16,
    /// Work requests in flight on each.
    pub depth: u32,
    /// Notifications that a peer may send on each before any is handed out.
    pub receives: u32,
}

impl fmt::Display for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, port, gid_index, mtu_bytes, pairs_max, depth, receives, .. } = self;
        write!(f, "{device} port {port} GID {gid_index}")?;
        if let Some(address) = self.address {
            write!(f, " ({address})")?;
        }
        write!(f, ", path MTU {mtu_bytes}, up to {pairs_max} queue pairs ")?;
        write!(f, "of {depth} sends and {receives} receives")
    }
}

/// Why no card can be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NoVerbs {
    /// The library, or the device, does not open.
    #[error(transparent)]
    Device(#[from] VerbsError),
    /// The device that was asked for is not there.
    #[error("there is no device {wished}: set verbs_device to one of {have}")]
    Unknown {
        /// What was asked for.
        wished: String,
        /// Those that are there.
        have: String,
    },
    /// Nothing of what was asked for can be used.
    #[error("{place} cannot be used: {why}")]
    Obstacle {
        /// The device, port and GID that came nearest.
        place: String,
        /// What is in its way, and what to do.
        why: String,
    },
    /// Nothing fits what was asked for.
    #[error(
        "no port and address fits verbs_device and verbs_gid: verbring devices shows those that \
         there are"
    )]
    NotFound,
    /// Not even one queue pair fits.
    #[error(
        "{device} completes {entries} works at once, and one queue pair of {depth} sends and \
         {receives} receives is more: lower verbs_depth or verbs_receives"
    )]
    Room {
        /// The device.
        device: String,
        /// Entries of its completion queue.
        entries: u32,
        /// Of one queue pair.
        depth: u32,
        /// Of one queue pair.
        receives: u32,
    },
}

/// Cards, open.
pub(super) struct Opened {
    pub(super) provider: VerbsProvider,
    /// By card, as all that follows.
    pub(super) controls: Vec<VerbsControl>,
    /// Sizes and times of the fabric over them.
    pub(super) rails: qp::Config,
    /// How each class uses its path, high, medium, low.
    pub(super) paths: Vec<[PathSettings; 3]>,
    /// Addresses that a peer may be reached from, best first.
    pub(super) addresses: Vec<Vec<Address>>,
    /// Finds them anew.
    pub(super) look: Look,
    pub(super) verbs: Vec<Verbs>,
}

/// A WRITE of at most so many bytes goes inline, where the device can.
const INLINE_BYTES: u32 = 220;
/// At least every so many work requests one is signalled.
const SIGNAL_EVERY: u32 = 16;
/// Repeats of a request on a rebuilt queue pair.
const ATTEMPTS_MAX: u8 = 3;
/// Beside the work's own time-outs: what the two control threads need to answer each other.
const ANSWERS_NS: u64 = 500_000_000;
/// Beside the device's own time-outs: how long all that is posted on one queue pair may take on a
/// busy link until the first of it completes.
const LOST_NS: u64 = 30_000_000_000;

/// Opens the cards that the settings ask for. `None`, and a line in the log, where there is none
/// and none is required. Of several that are named, none is left out: who is whose pair at the
/// other engine follows from their order.
pub(super) fn open_cards(config: &Config) -> Result<Option<Opened>, SpawnError> {
    if config.verbs == VerbsUse::Off {
        return Ok(None);
    }
    match open_chosen(config) {
        Ok(opened) => {
            for verbs in &opened.verbs {
                let fewer = verbs.pairs_max + 1 < config.rails_max;
                let why = if fewer { ": fewer than rails_max, for want of room" } else { "" };
                info!("verbs: {verbs}{why}");
            }
            Ok(Some(opened))
        }
        Err(source) if config.verbs == VerbsUse::Require => Err(SpawnError::Verbs { source }),
        // What was named is missed; what was not, most machines do not have.
        Err(error) if !config.verbs_device.is_empty() => {
            warn!("verbs is not used: {error}");
            Ok(None)
        }
        Err(error) => {
            info!("verbs is not used: {error}");
            Ok(None)
        }
    }
}

fn open_chosen(config: &Config) -> Result<Opened, NoVerbs> {
    let root = Path::new("/");
    let mut cards = cards(root);
    if cards.is_empty() {
        return Err(VerbsError::NoDevice.into());
    }
    open_all(&mut cards)?;
    let processor = config.pin.map(|cpu| cpu as usize).or_else(|| sched_getcpu().ok());
    let numa_node = processor.and_then(|processor| numa_node_of(root, processor));
    let chosen = choose(&cards, config, numa_node)?;
    let (provider, controls) = open_sized(config, &chosen)?;
    let able: Vec<_> =
        controls.iter().map(|control| (control.limits(), control.completions())).collect();
    let rails = sizes(config, &able);
    if rails.rails_max < 2 {
        let qp::Config { depth, receives, .. } = rails;
        let smallest = chosen.iter().zip(&able).min_by_key(|(_, (_, entries))| *entries);
        let (device, entries) =
            smallest.map_or_else(Default::default, |(it, able)| (it.device.clone(), able.1));
        return Err(NoVerbs::Room { device, entries, depth, receives });
    }
    let gid_index = |it: &Judged| it.gid_index.unwrap_or(0);
    let verbs = chosen.iter().zip(&able).map(|(it, (limits, _))| Verbs {
        device: it.device.clone(),
        port: it.port,
        gid_index: gid_index(it),
        address: address(&cards, it),
        mtu_bytes: limits.mtu_bytes.min(config.verbs_mtu),
        pairs_max: rails.rails_max - 1,
        depth: rails.depth,
        receives: rails.receives,
    });
    let verbs = verbs.collect();
    let paths = chosen.iter().map(|it| paths(config, it.port, gid_index(it))).collect();
    let pinned = !config.verbs_gid.is_empty();
    let named = |it: &Judged| {
        let gid = address(&cards, it)?.octets();
        Some(Address { gid_index: gid_index(it), gid })
    };
    let found = |it: &Judged| match pinned {
        true => named(it).into_iter().collect(),
        false => addresses(&cards, it),
    };
    let addresses = chosen.iter().map(found).collect();
    Ok(Opened { provider, controls, rails, paths, addresses, look: look(chosen), verbs })
}

/// The best places of those that the settings admit, one for each device that they name.
fn choose(cards: &[Card], config: &Config, numa_node: Option<u32>) -> Result<Vec<Judged>, NoVerbs> {
    let gid = |at: usize| config.verbs_gid.get(at).or_else(|| config.verbs_gid.first()).copied();
    let wish = |at: usize| {
        let device = config.verbs_device.get(at);
        Wish {
            device: device.map(|device| device.name.clone()),
            port: device.and_then(|device| device.port),
            gid_index: gid(at),
            numa_node,
        }
    };
    if let [one] = &config.verbs_device[..]
        && one.name == VerbsDevice::ALL
        && one.port.is_none()
    {
        let wish = Wish { device: None, ..wish(0) };
        let all = choose_all(cards, &wish);
        return if all.is_empty() { Ok(vec![choose_one(cards, &wish)?]) } else { Ok(all) };
    }
    (0..config.verbs_device.len().max(1)).map(|at| choose_one(cards, &wish(at))).collect()
}

/// The best place of every device whose packets pass routers and that can be used, the best
/// devices first: near ones before far ones.
fn choose_all(cards: &[Card], wish: &Wish) -> Vec<Judged> {
    let mut chosen: Vec<Judged> = Vec::new();
    let usable = |it: &Judged| it.obstacles.is_empty() && it.merits.routed_packets;
    for place in judge(cards, wish).into_iter().filter(usable) {
        let known = chosen.iter().any(|it| it.device == place.device);
        if !known && chosen.len() < VERBS_DEVICES_MAX {
            chosen.push(place);
        }
    }
    chosen
}

fn choose_one(cards: &[Card], wish: &Wish) -> Result<Judged, NoVerbs> {
    if let Some(wished) = &wish.device
        && !cards.iter().any(|card| card.name == *wished)
    {
        let have: Vec<_> = cards.iter().map(|card| card.name.as_str()).collect();
        return Err(NoVerbs::Unknown { wished: wished.clone(), have: have.join(", ") });
    }
    let judged = judge(cards, wish);
    let wished = |it: &&Judged| !it.obstacles.contains(&Obstacle::NotWished);
    let Some(best) = judged.iter().find(wished) else { return Err(NoVerbs::NotFound) };
    if best.obstacles.is_empty() {
        return Ok(best.clone());
    }
    let gid = best.gid_index.map_or(String::new(), |index| format!(" GID {index}"));
    let place = format!("{} port {}{gid}", best.device, best.port);
    let why: Vec<_> = best.obstacles.iter().map(ToString::to_string).collect();
    Err(NoVerbs::Obstacle { place, why: why.join("; ") })
}

fn address(cards: &[Card], chosen: &Judged) -> Option<Ipv6Addr> {
    let card = cards.iter().find(|card| card.name == chosen.device)?;
    let port = card.ports.iter().find(|port| port.number == chosen.port)?;
    let gid = port.gids.iter().find(|gid| Some(gid.index) == chosen.gid_index)?;
    Some(gid.address)
}

/// Reads the addresses of these places' ports anew, by card.
fn look(chosen: Vec<Judged>) -> Look {
    Box::new(move |number| {
        let Some(chosen) = chosen.get(usize::from(number)) else { return Vec::new() };
        addresses(&[card(Path::new("/"), chosen.device.clone())], chosen)
    })
}

/// All addresses of a chosen place's port that make the same packets, the chosen one first.
fn addresses(cards: &[Card], chosen: &Judged) -> Vec<Address> {
    let wish =
        Wish { device: Some(chosen.device.clone()), port: Some(chosen.port), ..Wish::default() };
    let found = judge(cards, &wish).into_iter();
    let found = found.filter(|it| it.obstacles.is_empty() && it.kind == chosen.kind);
    let address = |it: Judged| {
        let gid = address(cards, &it)?.octets();
        Some(Address { gid_index: it.gid_index?, gid })
    };
    let mut found: Vec<Address> = found.filter_map(address).collect();
    found.sort_by_key(|it| Some(it.gid_index) != chosen.gid_index);
    found
}

/// Opens devices, each with a completion queue for all rails: a peer may have one card alone.
/// Smaller ones where their memory may not be locked.
fn open_sized(
    config: &Config,
    chosen: &[Judged],
) -> Result<(VerbsProvider, Vec<VerbsControl>), VerbsError> {
    let pair = config.verbs_depth + SENDS_KEPT + config.verbs_receives + RECEIVES_KEPT;
    let mut completions = pair * u32::from(config.rails_max - 1);
    loop {
        let settings: Vec<_> = chosen
            .iter()
            .map(|it| VerbsSettings { completions, ..VerbsSettings::new(&it.device, it.port) })
            .collect();
        match open_several(&settings) {
            Err(VerbsError::LockedMemory { .. }) if completions / 2 >= pair => completions /= 2,
            other => return other,
        }
    }
}

/// What fits all devices, by their limits and completions: queue pairs within their depth, and as
/// many as each can have.
fn sizes(config: &Config, able: &[(DeviceLimits, u32)]) -> qp::Config {
    let least = |of: fn(&DeviceLimits) -> u32| able.iter().map(|it| of(&it.0)).min().unwrap_or(0);
    let depth_max = least(|limits| limits.depth_max);
    let most = |kept: u32| depth_max.saturating_sub(kept).max(1);
    let depth = config.verbs_depth.min(most(SENDS_KEPT));
    let receives = config.verbs_receives.min(most(RECEIVES_KEPT));
    let completions = able.iter().map(|it| it.1).min().unwrap_or(0);
    let pairs = completions / (depth + SENDS_KEPT + receives + RECEIVES_KEPT);
    let pairs = pairs.min(least(|limits| limits.pairs_max)).min(u32::from(config.rails_max - 1));
    let timeout_ns = 4_096_u64 << config.verbs_timeout;
    let silent_ns = timeout_ns.saturating_mul(u64::from(config.verbs_retry) + 1);
    qp::Config {
        fabric: FABRIC_VERBS,
        rails_max: u16::try_from(pairs + 1).unwrap_or(config.rails_max),
        depth,
        receives,
        inline_bytes: INLINE_BYTES,
        signal_every: SIGNAL_EVERY.min(depth),
        message_bytes_max: least(|limits| limits.message_bytes_max),
        merge_bytes_max: config.slice_bytes,
        regions_max: config.regions_max,
        attempts_max: ATTEMPTS_MAX,
        stuck_ns: silent_ns.saturating_add(ANSWERS_NS),
        grace_ns: timeout_ns.min(ANSWERS_NS / 4),
        drain_ns: silent_ns.saturating_add(ANSWERS_NS),
        // Devices may take four times what they are set to.
        lost_ns: silent_ns.saturating_mul(4).saturating_add(LOST_NS),
        recovery: qp::Recovery::DEFAULT,
    }
}

fn paths(config: &Config, port: u8, gid_index: u8) -> [PathSettings; 3] {
    let mut paths = [PathSettings {
        port,
        gid_index,
        mtu_bytes_max: config.verbs_mtu,
        timeout: config.verbs_timeout,
        retry: config.verbs_retry,
        rnr_retry: config.verbs_rnr_retry,
        ..PathSettings::DEFAULT
    }; 3];
    let (levels, classes) = (config.verbs_service_level, config.verbs_traffic_class);
    for ((path, service_level), traffic_class) in paths.iter_mut().zip(levels).zip(classes) {
        (path.service_level, path.traffic_class) = (service_level, traffic_class);
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::qp::sim::SimConfig;
    use crate::fabric::verbs::{Gid, GidKind, Port};

    fn config(devices: &str, gid: Option<u8>) -> Config {
        let verbs_device = devices.split(',').map(|device| device.parse().unwrap()).collect();
        Config { verbs_device, verbs_gid: gid.into_iter().collect(), ..Config::default() }
    }

    fn card(name: &str, up: bool) -> Card {
        let gid = |index, address: &str| Gid {
            index,
            address: address.parse().unwrap(),
            kind: GidKind::RoceV2,
            netdev: Some("wire0".to_string()),
            up,
        };
        let gids = vec![gid(0, "fe80::1"), gid(1, "::ffff:10.99.0.1")];
        let (state, mtu_bytes) = ("ACTIVE".to_string(), Some(1024));
        let port = Port { number: 1, state, ethernet: true, rate: 100, mtu_bytes, gids };
        Card { name: name.to_string(), numa_node: None, obstacle: None, ports: vec![port] }
    }

    #[test]
    fn the_settings_choose_and_what_is_in_the_way_is_told() {
        let cards = [card("rxe0", true), card("rxe1", false)];
        let chosen = |config: &Config| {
            let all = choose(&cards, config, None).map_err(|error| error.to_string())?;
            Ok::<_, String>(
                all.into_iter().map(|it| (it.device, it.port, it.gid_index)).collect::<Vec<_>>(),
            )
        };
        let of = |device: &str, gid| (device.to_string(), 1, Some(gid));
        assert_eq!(chosen(&Config::default()), Ok(vec![of("rxe0", 1)]));
        assert_eq!(chosen(&config("rxe0:1", Some(0))), Ok(vec![of("rxe0", 0)]));
        let text = "there is no device mlx5_0: set verbs_device to one of rxe0, rxe1";
        assert_eq!(chosen(&config("mlx5_0", None)), Err(text.to_string()));
        let text = "rxe1 port 1 GID 1 cannot be used: wire0 is down: ip link set wire0 up";
        assert_eq!(chosen(&config("rxe1", None)), Err(text.to_string()));
        let refusal = chosen(&config("rxe0:2", None)).unwrap_err();
        assert!(refusal.contains("verbs_device and verbs_gid"), "{refusal}");
    }

    #[test]
    fn several_are_all_taken_in_their_order_or_none_is() {
        let cards = [card("rxe0", true), card("rxe1", false), card("rxe2", true)];
        let chosen = |config: &Config| {
            let all = choose(&cards, config, None).map_err(|error| error.to_string())?;
            Ok::<_, String>(all.into_iter().map(|it| (it.device, it.gid_index)).collect::<Vec<_>>())
        };
        let of = |device: &str, gid| (device.to_string(), Some(gid));
        assert_eq!(chosen(&config("rxe2,rxe0", None)), Ok(vec![of("rxe2", 1), of("rxe0", 1)]));
        let all = chosen(&config("rxe2:1,rxe0", Some(0)));
        assert_eq!(all, Ok(vec![of("rxe2", 0), of("rxe0", 0)]), "one for all");
        let each = Config { verbs_gid: vec![0, 1], ..config("rxe2,rxe0", None) };
        assert_eq!(chosen(&each), Ok(vec![of("rxe2", 0), of("rxe0", 1)]), "one for each");
        let text = "rxe1 port 1 GID 1 cannot be used: wire0 is down: ip link set wire0 up";
        assert_eq!(chosen(&config("rxe0,rxe1", None)), Err(text.to_string()));
    }

    #[test]
    fn all_are_those_that_can_be_used_near_ones_first() {
        let mut cards = ["a", "b", "c", "d", "e", "f"].map(|name| card(name, name != "b"));
        cards[2].numa_node = Some(1);
        cards[0].numa_node = Some(0);
        let chosen = |cards: &[Card], numa_node| {
            let all = choose(cards, &config("all", None), numa_node);
            let all = all.map_err(|error| error.to_string())?;
            Ok::<_, String>(all.into_iter().map(|it| it.device).collect::<Vec<_>>().join(","))
        };
        assert_eq!(chosen(&cards, None), Ok("a,c,d,e".to_string()), "four at the most");
        assert_eq!(chosen(&cards, Some(1)), Ok("c,d,e,f".to_string()), "without the far one");
        let text = "b port 1 GID 1 cannot be used: wire0 is down: ip link set wire0 up";
        assert_eq!(chosen(&cards[1..2], None), Err(text.to_string()));
        // What passes no router is used only if there is nothing else.
        cards[0].ports[0].gids.iter_mut().for_each(|gid| gid.kind = GidKind::RoceV1);
        assert_eq!(chosen(&cards[..3], None), Ok("c".to_string()));
        assert_eq!(chosen(&cards[..2], None), Ok("a".to_string()));
    }

    #[test]
    fn fewer_rails_where_completions_are_few() {
        let limits = SimConfig::DEFAULT.limits;
        let config = Config::default();
        let each = 128 + SENDS_KEPT + 64 + RECEIVES_KEPT;
        let sizes = |config: &Config, limits: &DeviceLimits, completions: u32| {
            sizes(config, &[(*limits, completions)])
        };
        let all = sizes(&config, &limits, each * 31);
        assert_eq!((all.rails_max, all.depth, all.receives), (32, 128, 64));
        assert_eq!(all.caps().sends + all.caps().receives, each);
        assert_eq!(sizes(&config, &limits, each * 5 - 1).rails_max, 5);
        assert_eq!(sizes(&config, &limits, each - 1).rails_max, 1, "none but this host");
        let small = DeviceLimits { depth_max: 32, pairs_max: 3, ..limits };
        let few = sizes(&config, &small, 1 << 16);
        assert_eq!((few.rails_max, few.depth), (4, 32 - SENDS_KEPT));
        assert_eq!(few.receives, 32 - RECEIVES_KEPT);
        let both = [(limits, each * 31), (small, 1 << 16)];
        assert_eq!(super::sizes(&config, &both), few, "what fits both");
        let both = [(limits, each * 31), (limits, each * 3)];
        assert_eq!(super::sizes(&config, &both).rails_max, 4);
    }

    #[test]
    fn classes_have_their_own_levels() {
        let config = Config {
            verbs_service_level: [3, 2, 1],
            verbs_traffic_class: [106, 0, 0],
            verbs_mtu: 1024,
            ..Config::default()
        };
        let [high, medium, low] = paths(&config, 2, 7);
        assert_eq!((high.service_level, high.traffic_class), (3, 106));
        assert_eq!((medium.service_level, low.service_level), (2, 1));
        assert_eq!((low.port, low.gid_index, low.mtu_bytes_max), (2, 7, 1024));
    }

    #[test]
    fn one_line_says_what_is_in_use() {
        let verbs = Verbs {
            device: "rxe0".to_string(),
            port: 1,
            gid_index: 1,
            address: Some("::ffff:10.99.0.1".parse().unwrap()),
            mtu_bytes: 1024,
            pairs_max: 31,
            depth: 128,
            receives: 64,
        };
        let line = "rxe0 port 1 GID 1 (::ffff:10.99.0.1), path MTU 1024, up to 31 queue pairs of \
                    128 sends and 64 receives";
        assert_eq!(verbs.to_string(), line);
    }
}
