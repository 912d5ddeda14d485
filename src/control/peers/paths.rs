//! Which of a port's addresses a rail uses towards one peer.
//!
//! A port has several: IPv4 and IPv6, of this network and of that one. The end that made the
//! connection leads: it takes its own in order, first the one by which it has reached the peer's
//! gate, and the next whenever a queue pair did not come up. When it has been through all of them
//! it begins again, in its next round. The other end follows: it hears which address that is and
//! which round, and takes the one of its own that is nearest; in the next round the next nearest.
//! So both ends speak of the same network, and every pair of addresses of one kind comes to its
//! turn, whatever the ends know of each other's failures: only the leading end counts.
//!
//! What has worked is taken again. When the port's table has changed, and the address in use is
//! still in it, be it at another place, so is that one; otherwise all begins anew.
//!
//! **Deliberately absent**: devices and clocks. What addresses there are is the caller's to say.
//! **Tests**: here, against all pairs laid out.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::fabric::qp::provider::PathSettings;

/// Addresses of a port that are tried, at most: the best of them.
pub(crate) const WAYS_MAX: usize = 8;

/// An address of a port: its place in the table, and itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// Place in the port's table of GIDs.
    pub(crate) gid_index: u8,
    /// What is there.
    pub(crate) gid: [u8; 16],
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.gid_index, Ipv6Addr::from(self.gid))
    }
}

/// What an end that follows has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The leading end's address.
    pub(crate) gid: [u8; 16],
    /// How often it has been through all of its own.
    pub(crate) round: u32,
}

/// Who chooses first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The settings say which address; the other end may have several all the same.
    Pinned,
    /// This end, and the address by which it has reached the peer comes before all others.
    Leads { by: Option<[u8; 16]> },
    /// The other end.
    Follows,
}

/// Why an address was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Because {
    /// There is no other.
    Only,
    /// The peer was reached by it.
    CameBy,
    /// The port's best.
    Best,
    /// So many attempts with others before it failed.
    OthersFailed(u32),
    /// It is the nearest to the other end's.
    Nearest,
    /// So many are nearer to the other end's, and failed.
    NearerFailed(u32),
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => write!(f, "it is the only one"),
            Self::CameBy => write!(f, "the peer was reached by it"),
            Self::Best => write!(f, "it is the port's best"),
            Self::OthersFailed(count) => write!(f, "attempt {} since one worked", count + 1),
            Self::Nearest => write!(f, "it is the nearest to the peer's"),
            Self::NearerFailed(count) => write!(f, "{count} nearer to the peer's failed"),
        }
    }
}

/// The ways that a rail may take, best first, and which it takes.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    settings: PathSettings,
    addresses: Vec<Address>,
    role: Role,
    /// What is known of the other end's before it says anything.
    others: Vec<[u8; 16]>,
    /// Attempts that failed, since the addresses are these.
    failures: u32,
    because: Because,
}

impl Paths {
    /// One way, whatever the other end uses.
    pub(crate) fn only(settings: PathSettings) -> Self {
        Self::new(settings, Role::Pinned)
    }

    /// Any of these addresses: the one that reaches `by` before all others, then those of which the
    /// other end has a like one, as far as it is known; of these the nearest first, and what does
    /// not reach beyond its link last.
    pub(crate) fn leading(
        settings: PathSettings,
        addresses: &[Address],
        by: Option<IpAddr>,
        others: &[[u8; 16]],
    ) -> Self {
        let by = by.map(|by| match by {
            IpAddr::V4(by) => by.to_ipv6_mapped().octets(),
            IpAddr::V6(by) => by.octets(),
        });
        let mut paths = Self::new(settings, Role::Leads { by });
        paths.others = others.iter().copied().filter(|gid| *gid != [0; 16]).collect();
        paths.addresses = paths.ordered(addresses);
        paths
    }

    /// The one of these addresses that is nearest to the other end's.
    pub(crate) fn following(settings: PathSettings, addresses: &[Address]) -> Self {
        let mut paths = Self::new(settings, Role::Follows);
        paths.addresses = paths.ordered(addresses);
        paths
    }

    fn new(settings: PathSettings, role: Role) -> Self {
        let (addresses, others, because) = (Vec::new(), Vec::new(), Because::Only);
        Self { settings, addresses, role, others, failures: 0, because }
    }

    fn ordered(&self, addresses: &[Address]) -> Vec<Address> {
        let mut ordered = addresses.to_vec();
        if let Role::Leads { by } = self.role {
            ordered.sort_by_key(|address| {
                let near = self.others.iter().map(|other| nearness(address.gid, *other)).max();
                let near = near.unwrap_or(0);
                let narrow = Ipv6Addr::from(address.gid).is_unicast_link_local();
                let narrow = narrow && !self.others.is_empty();
                (Some(address.gid) != by, near == 0, narrow, std::cmp::Reverse(near))
            });
        }
        ordered.truncate(WAYS_MAX);
        ordered
    }

    /// What to use now.
    pub(crate) fn settings(&self) -> PathSettings {
        self.settings
    }

    /// It can be chosen only once the other end's is known.
    pub(crate) fn follows(&self) -> bool {
        self.role == Role::Follows && self.addresses.len() > 1
    }

    /// How many there are to choose from, at least 1.
    pub(crate) fn ways(&self) -> u32 {
        u32::try_from(self.addresses.len()).unwrap_or(u32::MAX).max(1)
    }

    /// What the other end is to hear beside the address: see [`Heard`].
    pub(crate) fn round(&self) -> u32 {
        if self.role == Role::Follows { 0 } else { self.failures / self.ways() }
    }

    /// Why the address in use was chosen.
    pub(crate) fn because(&self) -> Because {
        self.because
    }

    /// A queue pair that was connected by what was chosen did not come up.
    pub(crate) fn failed(&mut self) {
        self.failures = self.failures.wrapping_add(1);
    }

    /// What was chosen is not there any more: another is taken, if there is one.
    pub(crate) fn missing(&mut self) {
        if self.addresses.len() > 1 {
            self.failed();
        }
    }

    /// The port has these addresses now.
    pub(crate) fn renew(&mut self, addresses: &[Address]) {
        let renewed = self.ordered(addresses);
        if self.role == Role::Pinned || renewed == self.addresses {
            return;
        }
        let (round, used) = (self.round(), self.current());
        self.addresses = renewed;
        let still = self.addresses.iter().position(|it| Some(it.gid) == used.map(|it| it.gid));
        let still = still.and_then(|at| u32::try_from(at).ok());
        self.failures = still.map_or(0, |at| round.wrapping_mul(self.ways()).wrapping_add(at));
    }

    /// The address whose turn it is at the end that leads.
    fn current(&self) -> Option<Address> {
        self.addresses.get(self.failures as usize % self.addresses.len().max(1)).copied()
    }

    /// Chooses for an attempt; what the other end has said, if it has.
    pub(crate) fn choose(&mut self, other: Option<Heard>) {
        let chosen = match (self.role, other) {
            (Role::Follows, Some(other)) => self.near(other),
            (role, _) => self.current().map(|it| {
                let came = matches!(role, Role::Leads { by } if by == Some(it.gid));
                let because = match self.failures {
                    _ if self.addresses.len() == 1 => Because::Only,
                    0 if came => Because::CameBy,
                    0 => Because::Best,
                    failures => Because::OthersFailed(failures),
                };
                (it, because)
            }),
        };
        if let Some((Address { gid_index, .. }, because)) = chosen {
            (self.settings.gid_index, self.because) = (gid_index, because);
        }
    }

    /// Those of the other's kind, the nearest first, or all if there is none; in each round the
    /// next.
    fn near(&self, other: Heard) -> Option<(Address, Because)> {
        let mut near: Vec<_> =
            self.addresses.iter().map(|it| (nearness(it.gid, other.gid), *it)).collect();
        if near.iter().any(|(nearness, _)| *nearness > 0) {
            near.retain(|(nearness, _)| *nearness > 0);
        }
        // Of those that are equally near the first in the table comes first.
        near.sort_by_key(|(nearness, it)| (std::cmp::Reverse(*nearness), it.gid_index));
        let at = other.round as usize % near.len().max(1);
        let because = match at {
            _ if self.addresses.len() == 1 => Because::Only,
            0 => Because::Nearest,
            at => Because::NearerFailed(u32::try_from(at).unwrap_or(u32::MAX)),
        };
        near.get(at).map(|(_, it)| (*it, because))
    }
}

/// How many leading bits two addresses share, and one; 0 if they are of different kinds.
pub(crate) fn nearness(one: [u8; 16], other: [u8; 16]) -> u32 {
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
    use std::collections::BTreeSet;

    use proptest::prelude::*;

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

    /// What is chosen in so many attempts, each of which fails, and why.
    fn taken(paths: &mut Paths, attempts: usize, other: Option<Heard>) -> Vec<(u8, Because)> {
        let each = (0..attempts).map(|_| {
            paths.choose(other);
            let chosen = (paths.settings().gid_index, paths.because());
            paths.failed();
            chosen
        });
        each.collect()
    }

    #[test]
    fn who_leads_takes_one_after_the_other_and_first_the_way_it_came() {
        let order = |by: Option<&str>| {
            let by = by.map(|by| by.parse().unwrap());
            let mut paths = Paths::leading(PathSettings::DEFAULT, &port(), by, &[]);
            assert!(!paths.follows());
            let taken = taken(&mut paths, 5, None);
            let why = taken[0].1;
            (taken.iter().map(|it| it.0).collect::<Vec<_>>(), why)
        };
        assert_eq!(order(None), (vec![3, 5, 7, 1, 3], Because::Best));
        assert_eq!(order(Some("192.168.4.7")), (vec![5, 3, 7, 1, 5], Because::CameBy));
        assert_eq!(order(Some("fd00::7")), (vec![7, 3, 5, 1, 7], Because::CameBy));
        // What the other end has is tried before what it has not; zeros are none.
        let others = ["fe80::9", "::ffff:192.168.4.9"].map(|text| address(0, text).gid);
        let others = [others[0], others[1], [0; 16]];
        let by = Some("fd00::7".parse().unwrap());
        for (by, all) in [(by, [7, 5, 3, 1]), (None, [5, 3, 1, 7])] {
            let mut paths = Paths::leading(PathSettings::DEFAULT, &port(), by, &others);
            let order = taken(&mut paths, 4, None);
            assert_eq!(order.iter().map(|it| it.0).collect::<Vec<_>>(), all);
        }
        let elsewhere = order(Some("172.16.0.1"));
        assert_eq!(elsewhere, (vec![3, 5, 7, 1, 3], Because::Best), "a network without RDMA");
    }

    #[test]
    fn who_follows_takes_the_nearest_of_the_same_kind_and_then_the_next() {
        let mut paths = Paths::following(PathSettings::DEFAULT, &port());
        assert!(paths.follows());
        for (other, indices) in [
            ("::ffff:10.0.0.9", [3, 5, 3]),
            ("::ffff:192.168.4.200", [5, 3, 5]),
            ("::ffff:192.170.0.1", [5, 3, 5]),
            ("fd00::9", [7, 7, 7]),
            ("2001:db8::1", [7, 7, 7]),
            ("fe80::1:2", [1, 1, 1]),
        ] {
            for (round, index) in (0..).zip(indices) {
                paths.choose(Some(Heard { gid: address(0, other).gid, round }));
                assert_eq!(paths.settings().gid_index, index, "{other}");
                // What it knows of failures is not asked for.
                paths.failed();
            }
        }
        assert_eq!(paths.round(), 0, "it is not the one to count");
        // Without one of the kind it tries what it has.
        let mut paths = Paths::following(PathSettings::DEFAULT, &port()[..2]);
        let all = (0..3).map(|round| {
            paths.choose(Some(Heard { gid: address(0, "fd00::9").gid, round }));
            paths.settings().gid_index
        });
        assert_eq!(all.collect::<Vec<_>>(), [3, 5, 3]);
    }

    #[test]
    fn where_there_is_one_way_nobody_waits() {
        let settings = PathSettings { gid_index: 4, ..PathSettings::DEFAULT };
        let one = [address(4, "::ffff:10.0.0.7")];
        for mut paths in [Paths::only(settings), Paths::following(settings, &one)] {
            assert!(!paths.follows());
            paths.choose(None);
            assert_eq!((paths.settings(), paths.because()), (settings, Because::Only));
        }
        // The other end may have several all the same.
        let mut paths = Paths::only(settings);
        let rounds = (0..3).map(|_| {
            paths.failed();
            paths.round()
        });
        assert_eq!(rounds.collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_table_that_changes_is_followed_unless_the_settings_name_a_place() {
        let mut paths = Paths::leading(PathSettings::DEFAULT, &port(), None, &[]);
        assert_eq!(taken(&mut paths, 5, None)[4].0, 3);
        let chosen = |paths: &mut Paths| {
            paths.choose(None);
            (paths.settings().gid_index, paths.round())
        };
        assert_eq!(chosen(&mut paths), (5, 1));
        // It has another place, and another has come before it.
        let moved = [port()[3], port()[0], address(9, "::ffff:192.168.4.7")];
        paths.renew(&moved);
        assert_eq!(chosen(&mut paths), (9, 1));
        // It is gone: from the beginning.
        paths.renew(&moved[..2]);
        assert_eq!(chosen(&mut paths), (1, 0));
        // All are gone: what was there is what is asked for until there is something.
        paths.renew(&[]);
        assert_eq!((chosen(&mut paths), paths.ways()), ((1, 0), 1));
        paths.renew(&port()[2..]);
        assert_eq!(chosen(&mut paths), (7, 0));
        paths.missing();
        assert_eq!(chosen(&mut paths), (1, 0));

        let settings = PathSettings { gid_index: 4, ..PathSettings::DEFAULT };
        let mut paths = Paths::only(settings);
        paths.renew(&port());
        paths.choose(None);
        paths.missing();
        assert_eq!((paths.settings(), paths.round()), (settings, 0));
    }

    fn some_port() -> impl Strategy<Value = Vec<Address>> {
        let texts = [
            "::ffff:10.0.0.1",
            "::ffff:10.0.0.2",
            "::ffff:10.0.9.1",
            "::ffff:192.168.0.1",
            "fd00::1",
            "fd00::2",
            "2001:db8::1",
            "fe80::1",
            "fe80::2",
        ];
        let all: Vec<Address> = (0..).zip(texts).map(|(at, text)| address(at, text)).collect();
        proptest::sample::subsequence(all, 0..=WAYS_MAX).prop_shuffle()
    }

    proptest! {
        #![proptest_config(crate::seeds::property(2_000))]

        /// All pairs of one kind are tried in as many attempts as there are pairs at all, whatever
        /// the following end makes of failures; and each address of the leading end first with
        /// the nearest there.
        #[test]
        fn every_pair_of_one_kind_comes_to_its_turn(
            near in some_port(),
            far in some_port(),
            heeded in proptest::collection::vec(any::<bool>(), WAYS_MAX * WAYS_MAX),
        ) {
            let others: Vec<_> = far.iter().map(|it| it.gid).take(4).collect();
            let mut leads = Paths::leading(PathSettings::DEFAULT, &near, None, &others);
            let mut follows = Paths::following(PathSettings::DEFAULT, &far);
            let by_index =
                |port: &[Address], index| port.iter().find(|it| it.gid_index == index).copied();
            let mut tried = BTreeSet::new();
            for heeded in heeded.into_iter().take(near.len() * far.len()) {
                leads.choose(None);
                let ours = by_index(&near, leads.settings().gid_index).expect("one of them");
                follows.choose(Some(Heard { gid: ours.gid, round: leads.round() }));
                let theirs = by_index(&far, follows.settings().gid_index).expect("one of them");
                if leads.round() == 0 {
                    let nearest = far.iter().map(|it| nearness(it.gid, ours.gid)).max();
                    prop_assert_eq!(Some(nearness(ours.gid, theirs.gid)), nearest);
                }
                tried.insert((ours.gid, theirs.gid));
                leads.failed();
                if heeded {
                    follows.failed();
                }
            }
            for ours in &near {
                for theirs in &far {
                    let alike = nearness(ours.gid, theirs.gid) > 0;
                    let tried = tried.contains(&(ours.gid, theirs.gid));
                    prop_assert!(tried || !alike, "{} with {}", ours, theirs);
                }
            }
        }
    }
}
