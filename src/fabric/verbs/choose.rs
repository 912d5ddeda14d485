//! Which port and address to use, and why not the others: a function of what was found.
//!
//! An obstacle rules a place out. Among those without one the order is: what passes routers before
//! what does not, near memory before far, fast before slow, and then by name, so that the same
//! machine always gives the same answer.

use std::cmp::Reverse;
use std::fmt;

use super::cards::{Card, Gid, GidKind, Port};

/// What is asked for; what is not said is left to the order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The device.
    pub device: Option<String>,
    /// Its port.
    pub port: Option<u8>,
    /// The place in its table of GIDs.
    pub gid_index: Option<u8>,
    /// The NUMA node to be near to.
    pub numa_node: Option<u32>,
}

/// Why a place cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Another one was asked for.
    NotWished,
    /// The device cannot be opened.
    CannotOpen(String),
    /// The port's state.
    NotActive(String),
    /// The port has no address.
    NoGid,
    /// The address's network device is down.
    NetdevDown(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWished => write!(f, "another one was asked for"),
            Self::CannotOpen(why) => write!(f, "{why}"),
            Self::NotActive(state) => {
                write!(f, "the port is {state}: bring its link up, or look at the cable")
            }
            Self::NoGid => write!(f, "the port has no address: give its network device one"),
            Self::NetdevDown(name) => {
                write!(f, "{name} is down: ip link set {name} up")
            }
        }
    }
}

/// What speaks for a place, the weightiest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Merits {
    /// Packets that pass routers: RoCE v2, or InfiniBand's own.
    pub routed_packets: bool,
    /// An address that reaches beyond its link. InfiniBand's subnets need none.
    pub routable: bool,
    /// Near to the wished NUMA node; unknown if either is not told.
    pub near: Near,
    /// Speed, in units of 100 Mbit/s.
    pub rate: u32,
}

/// How near a device is to where the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Near {
    /// On another NUMA node.
    No,
    /// Not told.
    Unknown,
    /// On the same.
    Yes,
}

impl Merits {
    /// In what this falls short of a better one.
    #[must_use]
    pub fn behind(&self, best: &Self) -> &'static str {
        if self.routed_packets != best.routed_packets {
            "its packets pass routers"
        } else if self.routable != best.routable {
            "its address reaches beyond the link"
        } else if self.near != best.near {
            "it is nearer"
        } else if self.rate != best.rate {
            "it is faster"
        } else {
            "it comes first by name and number"
        }
    }
}

/// A place, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The device.
    pub device: String,
    /// The port.
    pub port: u8,
    /// The place in the table of GIDs; none if the port has none.
    pub gid_index: Option<u8>,
    /// What rules it out; empty if it can be used.
    pub obstacles: Vec<Obstacle>,
    /// What packets its address makes, if it has one.
    pub kind: Option<GidKind>,
    /// What speaks for it.
    pub merits: Merits,
}

impl Judged {
    /// What speaks for it, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let Merits { routable, near, rate, .. } = self.merits;
        let kind = self.kind.map_or("InfiniBand", GidKind::name);
        let reach = if routable { "routable" } else { "link-local" };
        let near = match near {
            Near::No => ", on another NUMA node",
            Near::Unknown => "",
            Near::Yes => ", near",
        };
        format!("active, {kind}, {reach}{near}, {}.{} Gbit/s", rate / 10, rate % 10)
    }
}

/// Judges every address of every port, the one to use first. If that has an obstacle, none can be
/// used.
#[must_use]
pub fn judge(cards: &[Card], wish: &Wish) -> Vec<Judged> {
    let mut judged = Vec::new();
    for card in cards {
        for port in &card.ports {
            if port.gids.is_empty() {
                judged.push(judge_one(card, port, None, wish));
            }
            judged.extend(port.gids.iter().map(|gid| judge_one(card, port, Some(gid), wish)));
        }
    }
    judged.sort_by_key(|it| {
        let place = (it.device.clone(), it.port, it.gid_index);
        (!it.obstacles.is_empty(), Reverse(it.merits), place)
    });
    judged
}

fn judge_one(card: &Card, port: &Port, gid: Option<&Gid>, wish: &Wish) -> Judged {
    let gid_index = gid.map(|gid| gid.index);
    let mut obstacles = Vec::new();
    let other = wish.device.as_ref().is_some_and(|device| *device != card.name)
        || wish.port.is_some_and(|number| number != port.number)
        || wish.gid_index.is_some_and(|index| Some(index) != gid_index);
    if other {
        obstacles.push(Obstacle::NotWished);
    }
    if let Some(why) = &card.obstacle {
        obstacles.push(Obstacle::CannotOpen(why.clone()));
    }
    if port.state != "ACTIVE" {
        obstacles.push(Obstacle::NotActive(port.state.clone()));
    }
    if gid.is_none() && port.ethernet {
        obstacles.push(Obstacle::NoGid);
    }
    if let Some(Gid { up: false, netdev: Some(netdev), .. }) = gid {
        obstacles.push(Obstacle::NetdevDown(netdev.clone()));
    }
    let near = match (card.numa_node, wish.numa_node) {
        (Some(card), Some(wish)) if card == wish => Near::Yes,
        (Some(_), Some(_)) => Near::No,
        _ => Near::Unknown,
    };
    let kind = gid.map(|gid| gid.kind);
    let merits = Merits {
        routed_packets: gid.is_none_or(|gid| gid.kind != GidKind::RoceV1),
        routable: gid.is_none_or(|gid| gid.routable() || gid.kind == GidKind::Infiniband),
        near,
        rate: port.rate,
    };
    Judged { device: card.name.clone(), port: port.number, gid_index, obstacles, kind, merits }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, address: &str, kind: GidKind) -> Gid {
        let address = address.parse().expect("an address");
        Gid { index, address, kind, netdev: Some("eth0".to_string()), up: true }
    }

    fn card(name: &str, numa_node: Option<u32>, rate: u32) -> Card {
        let gids = vec![
            gid(0, "fe80::1", GidKind::RoceV1),
            gid(1, "fe80::1", GidKind::RoceV2),
            gid(2, "::ffff:10.0.0.1", GidKind::RoceV1),
            gid(3, "::ffff:10.0.0.1", GidKind::RoceV2),
        ];
        let state = "ACTIVE".to_string();
        let port = Port { number: 1, state, ethernet: true, rate, mtu_bytes: None, gids };
        Card { name: name.to_string(), numa_node, obstacle: None, ports: vec![port] }
    }

    fn first(cards: &[Card], wish: &Wish) -> (String, Option<u8>, bool) {
        let best = judge(cards, wish).swap_remove(0);
        (best.device, best.gid_index, best.obstacles.is_empty())
    }

    #[test]
    fn routable_roce_v2_comes_first_and_the_order_is_the_same_every_time() {
        let mut cards = [card("mlx5_1", None, 1000), card("mlx5_0", None, 1000)];
        assert_eq!(first(&cards, &Wish::default()), ("mlx5_0".to_string(), Some(3), true));
        cards.reverse();
        assert_eq!(first(&cards, &Wish::default()), ("mlx5_0".to_string(), Some(3), true));
        let order: Vec<_> =
            judge(&cards[..1], &Wish::default()).iter().map(|judged| judged.gid_index).collect();
        assert_eq!(order, [Some(3), Some(1), Some(2), Some(0)]);
    }

    #[test]
    fn near_comes_before_fast_and_fast_before_slow() {
        let cards = [card("a", Some(0), 4000), card("b", Some(1), 1000), card("c", Some(1), 2000)];
        let near = |node| Wish { numa_node: Some(node), ..Wish::default() };
        assert_eq!(first(&cards, &near(1)).0, "c");
        assert_eq!(first(&cards, &near(0)).0, "a");
        assert_eq!(first(&cards, &Wish::default()).0, "a", "the fastest");
    }

    #[test]
    fn what_is_asked_for_rules_out_the_rest() {
        let cards = [card("a", None, 10), card("b", None, 10)];
        let wish = Wish { device: Some("b".to_string()), gid_index: Some(0), ..Wish::default() };
        assert_eq!(first(&cards, &wish), ("b".to_string(), Some(0), true));
        let wish = Wish { port: Some(2), ..Wish::default() };
        assert!(!first(&cards, &wish).2, "there is no port 2");
    }

    #[test]
    fn every_obstacle_is_told() {
        let mut bad = card("a", None, 10);
        bad.obstacle = Some("no right".to_string());
        bad.ports[0].state = "DOWN".to_string();
        bad.ports[0].gids.truncate(1);
        bad.ports[0].gids[0].up = false;
        let judged = judge(&[bad.clone()], &Wish::default());
        let expected = [
            Obstacle::CannotOpen("no right".to_string()),
            Obstacle::NotActive("DOWN".to_string()),
            Obstacle::NetdevDown("eth0".to_string()),
        ];
        assert_eq!(judged[0].obstacles, expected);
        bad.ports[0].gids.clear();
        let judged = judge(&[bad], &Wish::default());
        assert_eq!(judged[0].obstacles[2..], [Obstacle::NoGid]);
        assert_eq!(judge(&[], &Wish::default()), []);
    }

    #[test]
    fn infiniband_needs_no_address_beyond_its_subnet() {
        let mut ib = card("ib", None, 1000);
        ib.ports[0].ethernet = false;
        ib.ports[0].gids = vec![gid(0, "fe80::1", GidKind::Infiniband)];
        let mut roce = card("roce", None, 100);
        roce.ports[0].gids.truncate(2);
        assert_eq!(first(&[roce, ib.clone()], &Wish::default()).0, "ib");
        ib.ports[0].gids.clear();
        assert_eq!(judge(&[ib], &Wish::default())[0].obstacles, []);
    }

    #[test]
    fn what_decided_is_told() {
        let cards = [card("a", Some(0), 10), card("b", Some(1), 10)];
        let wish = Wish { numa_node: Some(1), ..Wish::default() };
        let judged = judge(&cards, &wish);
        let words: Vec<_> =
            judged[1..].iter().map(|it| it.merits.behind(&judged[0].merits)).collect();
        assert_eq!(words[0], "it is nearer");
        assert_eq!(words[1], "its address reaches beyond the link");
        assert_eq!(words[6], "its packets pass routers");
        assert_eq!(judged[0].words(), "active, RoCE v2, routable, near, 1.0 Gbit/s");
    }
}
