//! Between which ports of cards a bench over queue pairs runs: those that were asked for, or the
//! best two that there are.
//!
//! **Tests**: here, over cards that are made up.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use verbring::fabric::verbs::{Card, Judged, VerbsError, Wish, cards, judge, open_all};

use crate::cli::{Failure, with_causes};

/// A port of a card, and one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Port {
    pub(super) device: String,
    pub(super) port: u8,
    pub(super) gid_index: u8,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let mut parts = text.split(':');
            let device = parts.next().filter(|device| !device.is_empty())?.to_string();
            let port = parts.next()?.parse().ok().filter(|port| *port > 0)?;
            let gid_index = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some(Self { device, port, gid_index })
        };
        read().ok_or_else(|| "must be DEVICE:PORT:GID, as in rxe0:1:1".to_string())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.device, self.port, self.gid_index)
    }
}

impl Port {
    /// What makes an engine use this port, and not start without it.
    pub(super) fn settings(&self) -> [String; 3] {
        [
            "verbs=require".to_string(),
            format!("verbs_device={}:{}", self.device, self.port),
            format!("verbs_gid={}", self.gid_index),
        ]
    }
}

/// Settles both ends: those asked for, one for both, or the best that this machine has.
///
/// # Errors
/// One line that says what is in the way, and what to do.
pub(super) fn settle(asked: &[Port]) -> Result<[Port; 2], Failure> {
    let unusable = |error: &VerbsError| Failure::Failed(with_causes(error));
    let mut cards = cards(Path::new("/"));
    if cards.is_empty() {
        return Err(unusable(&VerbsError::NoDevice));
    }
    open_all(&mut cards).map_err(|error| unusable(&error))?;
    choose(asked, &cards)
}

fn choose(asked: &[Port], cards: &[Card]) -> Result<[Port; 2], Failure> {
    match asked {
        [] => best_two(cards),
        [both] => check(both, cards).map(|()| [both.clone(), both.clone()]),
        [near, far] => {
            check(near, cards)?;
            check(far, cards).map(|()| [near.clone(), far.clone()])
        }
        more => {
            let text = format!("--devices names {} ports, but must name 1 or 2", more.len());
            Err(Failure::Usage(text))
        }
    }
}

/// The best address, and the best one of another port; the same again where there is no other.
fn best_two(cards: &[Card]) -> Result<[Port; 2], Failure> {
    let judged = judge(cards, &Wish::default());
    let mut usable = judged.iter().filter(|it| it.obstacles.is_empty());
    let Some(near) = usable.next() else {
        let text = "no port of a card can be used: verbring devices --why".to_string();
        return Err(Failure::Failed(text));
    };
    let other = |it: &&Judged| (&it.device, it.port) != (&near.device, near.port);
    let far = usable.find(other).unwrap_or(near);
    Ok([near, far].map(|it| Port {
        device: it.device.clone(),
        port: it.port,
        gid_index: it.gid_index.unwrap_or(0),
    }))
}

fn check(port: &Port, cards: &[Card]) -> Result<(), Failure> {
    let wish = Wish { device: Some(port.device.clone()), ..Wish::default() };
    let judged = judge(cards, &wish);
    // On InfiniBand a port may have no table of addresses.
    let here = |it: &&Judged| {
        it.device == port.device
            && it.port == port.port
            && it.gid_index.unwrap_or(port.gid_index) == port.gid_index
    };
    let Some(found) = judged.iter().find(here) else {
        let text = format!("there is no {port}: verbring devices shows those that there are");
        return Err(Failure::Failed(text));
    };
    if found.obstacles.is_empty() {
        return Ok(());
    }
    let why: Vec<_> = found.obstacles.iter().map(ToString::to_string).collect();
    Err(Failure::Failed(format!("{port} cannot be used: {}", why.join("; "))))
}

#[cfg(test)]
mod tests {
    use verbring::fabric::verbs;

    use super::*;

    fn card(name: &str, state: &str) -> Card {
        let gids = [(0, "fe80::1"), (1, "::ffff:10.99.0.1")].map(|(index, address)| verbs::Gid {
            index,
            address: address.parse().unwrap(),
            kind: verbs::GidKind::RoceV2,
            netdev: Some("wire0".to_string()),
            up: true,
        });
        let port = verbs::Port {
            number: 1,
            state: state.to_string(),
            ethernet: true,
            rate: 100,
            mtu_bytes: Some(1024),
            gids: gids.to_vec(),
        };
        Card { name: name.to_string(), numa_node: None, obstacle: None, ports: vec![port] }
    }

    fn ports(text: &str) -> Vec<Port> {
        text.split(',').filter(|part| !part.is_empty()).map(|part| part.parse().unwrap()).collect()
    }

    fn chosen(asked: &str, cards: &[Card]) -> Result<Vec<String>, String> {
        match choose(&ports(asked), cards) {
            Ok(both) => Ok(both.iter().map(ToString::to_string).collect()),
            Err(Failure::Failed(text) | Failure::Usage(text)) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn ports_are_read_and_shown_alike() {
        let port: Port = "mlx5_0:2:3".parse().unwrap();
        assert_eq!((port.device.as_str(), port.port, port.gid_index), ("mlx5_0", 2, 3));
        assert_eq!(port.to_string(), "mlx5_0:2:3");
        assert_eq!(port.settings(), ["verbs=require", "verbs_device=mlx5_0:2", "verbs_gid=3"]);
        for bad in ["", ":1:1", "rxe0", "rxe0:1", "rxe0:0:1", "rxe0:1:256", "rxe0:1:1:1"] {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
    }

    #[test]
    fn two_devices_are_better_than_one() {
        let cards = [card("rxe0", "ACTIVE"), card("rxe1", "ACTIVE"), card("rxe2", "ACTIVE")];
        let both = |near: &str, far: &str| Ok(vec![near.to_string(), far.to_string()]);
        assert_eq!(chosen("", &cards), both("rxe0:1:1", "rxe1:1:1"));
        assert_eq!(chosen("", &cards[2..]), both("rxe2:1:1", "rxe2:1:1"));
        assert_eq!(chosen("rxe2:1:0", &cards), both("rxe2:1:0", "rxe2:1:0"));
        assert_eq!(chosen("rxe2:1:0,rxe0:1:1", &cards), both("rxe2:1:0", "rxe0:1:1"));
    }

    #[test]
    fn what_cannot_be_used_is_named_with_the_way_out() {
        let cards = [card("rxe0", "ACTIVE"), card("rxe1", "DOWN")];
        let text = chosen("rxe0:1:1,rxe1:1:1", &cards).unwrap_err();
        assert!(text.starts_with("rxe1:1:1 cannot be used: the port is DOWN: bring"), "{text}");
        for missing in ["rxe9:1:1", "rxe0:2:1", "rxe0:1:7"] {
            let text = chosen(missing, &cards).unwrap_err();
            assert_eq!(
                text,
                format!("there is no {missing}: verbring devices shows those that there are")
            );
        }
        let text = chosen("", &cards[1..]).unwrap_err();
        assert_eq!(text, "no port of a card can be used: verbring devices --why");
        let text = chosen("rxe0:1:1,rxe0:1:1,rxe0:1:1", &cards).unwrap_err();
        assert_eq!(text, "--devices names 3 ports, but must name 1 or 2");
    }
}
