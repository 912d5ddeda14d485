//! Which of a port's addresses a rail uses towards one peer.
//!
//! A port has several: IPv4 and IPv6, of this network and of that one. The end that made the
//! connection leads: it takes its own in order, first the one by which it has reached the peer's
//! gate, and the next whenever a queue pair could not be connected. The other end follows: once it
//! has heard which address it is, it takes the one of its own that is nearest to that. So both
//! ends speak of the same network, and all networks are tried.
//!
//! **Deliberately absent**: devices and clocks. What addresses there are is the caller's to say.

use std::net::{IpAddr, Ipv6Addr};

use crate::fabric::qp::provider::PathSettings;

/// An address of a port: its place in the table, and itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// Place in the port's table of GIDs.
    pub(crate) gid_index: u8,
    /// What is there.
    pub(crate) gid: [u8; 16],
}

/// The ways that a rail may take, best first, and which it takes.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    settings: PathSettings,
    addresses: Vec<Address>,
    follows: bool,
}

impl Paths {
    /// One way, whatever the other end uses.
    pub(crate) fn only(settings: PathSettings) -> Self {
        Self { settings, addresses: Vec::new(), follows: false }
    }

    /// Any of these addresses, in this order; the one that reaches `by` before all others.
    pub(crate) fn leading(
        settings: PathSettings,
        mut addresses: Vec<Address>,
        by: Option<IpAddr>,
    ) -> Self {
        let by = by.map(|by| match by {
            IpAddr::V4(by) => by.to_ipv6_mapped().octets(),
            IpAddr::V6(by) => by.octets(),
        });
        addresses.sort_by_key(|address| Some(address.gid) != by);
        Self { settings, addresses, follows: false }
    }

    /// The one of these addresses that is nearest to the other end's.
    pub(crate) fn following(settings: PathSettings, addresses: Vec<Address>) -> Self {
        let follows = addresses.len() > 1;
        Self { settings, addresses, follows }
    }

    /// What to use now.
    pub(crate) fn settings(&self) -> PathSettings {
        self.settings
    }

    /// It can be chosen only once the other end's is known.
    pub(crate) fn follows(&self) -> bool {
        self.follows
    }

    /// Chooses for an attempt, of which so many have failed; the other end's address, if it is
    /// known.
    pub(crate) fn choose(&mut self, failures: u32, other: Option<[u8; 16]>) {
        let chosen = match other {
            Some(other) if self.follows => {
                self.addresses.iter().max_by_key(|it| (nearness(it.gid, other), first(it)))
            }
            _ if self.addresses.is_empty() => None,
            _ => self.addresses.get(failures as usize % self.addresses.len()),
        };
        if let Some(Address { gid_index, .. }) = chosen {
            self.settings.gid_index = *gid_index;
        }
    }
}

/// Of those that are equally near the first in the table is taken.
fn first(address: &Address) -> std::cmp::Reverse<u8> {
    std::cmp::Reverse(address.gid_index)
}

/// How many leading bits two addresses share; nothing if they are of different kinds.
fn nearness(one: [u8; 16], other: [u8; 16]) -> u32 {
    let kind = |gid: [u8; 16]| {
        let address = Ipv6Addr::from(gid);
        (address.to_ipv4_mapped().is_some(), address.is_unicast_link_local())
    };
    if kind(one) != kind(other) {
        return 0;
    }
    1 + (u128::from_be_bytes(one) ^ u128::from_be_bytes(other)).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(gid_index: u8, text: &str) -> Address {
        let gid = text.parse::<Ipv6Addr>().unwrap().octets();
        Address { gid_index, gid }
    }

    fn port() -> Vec<Address> {
        vec![
            address(3, "::ffff:10.0.0.7"),
            address(5, "::ffff:192.168.4.7"),
            address(7, "fd00::7"),
            address(1, "fe80::7"),
        ]
    }

    #[test]
    fn who_leads_takes_one_after_the_other_and_first_the_way_it_came() {
        let taken = |by: Option<&str>| {
            let by = by.map(|by| by.parse().unwrap());
            let mut paths = Paths::leading(PathSettings::DEFAULT, port(), by);
            assert!(!paths.follows());
            let indices = (0..5).map(|failures| {
                paths.choose(failures, None);
                paths.settings().gid_index
            });
            indices.collect::<Vec<_>>()
        };
        assert_eq!(taken(None), [3, 5, 7, 1, 3]);
        assert_eq!(taken(Some("192.168.4.7")), [5, 3, 7, 1, 5]);
        assert_eq!(taken(Some("fd00::7")), [7, 3, 5, 1, 7]);
        assert_eq!(taken(Some("172.16.0.1")), [3, 5, 7, 1, 3], "by a network without RDMA");
    }

    #[test]
    fn who_follows_takes_the_nearest_of_the_same_kind() {
        let mut paths = Paths::following(PathSettings::DEFAULT, port());
        assert!(paths.follows());
        for (other, index) in [
            ("::ffff:10.0.0.9", 3),
            ("::ffff:192.168.4.200", 5),
            ("::ffff:192.170.0.1", 5),
            ("fd00::9", 7),
            ("2001:db8::1", 7),
            ("fe80::1:2", 1),
        ] {
            for failures in 0..5 {
                paths.choose(failures, Some(address(0, other).gid));
                assert_eq!(paths.settings().gid_index, index, "{other}");
            }
        }
    }

    #[test]
    fn where_there_is_one_way_nobody_waits() {
        let settings = PathSettings { gid_index: 4, ..PathSettings::DEFAULT };
        let one = vec![address(4, "::ffff:10.0.0.7")];
        for mut paths in [Paths::only(settings), Paths::following(settings, one)] {
            assert!(!paths.follows());
            paths.choose(3, None);
            assert_eq!(paths.settings(), settings);
        }
    }
}
