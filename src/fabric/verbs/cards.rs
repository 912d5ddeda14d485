//! What RDMA the machine has, as sysfs tells: it can be read without the library, and without any
//! right, so it also speaks of what cannot be used.
//!
//! Everything is read below a root that is an argument, so that tests can lay out machines.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its name, as in `rxe0` or `mlx5_0`.
    pub name: String,
    /// The NUMA node that it is near to, if any is told.
    pub numa_node: Option<u32>,
    /// Why it cannot be opened; filled by [`super::open_all`].
    pub obstacle: Option<String>,
    /// Its ports, by number.
    pub ports: Vec<Port>,
}

/// A port of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// From 1.
    pub number: u8,
    /// Its state in sysfs' words: `ACTIVE`, `DOWN`, `INIT`, `ARMED`.
    pub state: String,
    /// True for Ethernet (RoCE), false for InfiniBand.
    pub ethernet: bool,
    /// Speed, in units of 100 Mbit/s.
    pub rate: u32,
    /// Path MTU, bytes, once the device was opened.
    pub mtu_bytes: Option<u32>,
    /// Addresses, by index; places in the table that hold none are left out.
    pub gids: Vec<Gid>,
}

/// An address of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: u8,
    /// The address.
    pub address: Ipv6Addr,
    /// What packets it makes.
    pub kind: GidKind,
    /// The network device that it came from.
    pub netdev: Option<String>,
    /// True if that network device is up, or there is none.
    pub up: bool,
}

/// What packets an address makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand's own.
    Infiniband,
    /// Ethernet frames of a type of their own: they pass no router.
    RoceV1,
    /// UDP.
    RoceV2,
}

impl GidKind {
    /// Its name, as people write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Infiniband => "InfiniBand",
            Self::RoceV1 => "RoCE v1",
            Self::RoceV2 => "RoCE v2",
        }
    }
}

impl Gid {
    /// True if it reaches beyond its link: an IPv4 address, or an IPv6 one that is not link-local.
    #[must_use]
    pub fn routable(&self) -> bool {
        match self.address.to_ipv4_mapped() {
            Some(address) => !address.is_link_local(),
            None => !self.address.is_unicast_link_local(),
        }
    }
}

fn line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_string())
}

/// Names in a folder, sorted; none if there is no such folder.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// All devices below a root (`/` but for tests), by name.
#[must_use]
pub fn cards(root: &Path) -> Vec<Card> {
    let class = root.join("sys/class/infiniband");
    names(&class).into_iter().map(|name| card(root, name)).collect()
}

/// One of them, by its name; without ports if it is not there.
#[must_use]
pub fn card(root: &Path, name: String) -> Card {
    let place = root.join("sys/class/infiniband").join(&name);
    let mut ports: Vec<_> = names(&place.join("ports"))
        .into_iter()
        .filter_map(|number| {
            let number = number.parse().ok()?;
            Some(port(root, &place.join("ports").join(number_name(number)), number))
        })
        .collect();
    ports.sort_unstable_by_key(|port| port.number);
    let netdev = ports.iter().flat_map(|port| &port.gids).find_map(|gid| gid.netdev.as_ref());
    let near = |place: &Path| line(&place.join("device/numa_node"))?.parse().ok();
    let numa_node = near(&place).or_else(|| near(&root.join("sys/class/net").join(netdev?)));
    Card { name, numa_node, obstacle: None, ports }
}

fn number_name(number: u8) -> String {
    number.to_string()
}

fn port(root: &Path, place: &Path, number: u8) -> Port {
    // As in "4: ACTIVE".
    let state = line(&place.join("state")).unwrap_or_default();
    let state = state.rsplit(": ").next().unwrap_or_default().to_string();
    let ethernet = line(&place.join("link_layer")).is_some_and(|layer| layer == "Ethernet");
    let rate = line(&place.join("rate")).and_then(|rate| tenths(&rate)).unwrap_or(0);
    let mut gids: Vec<_> = names(&place.join("gids"))
        .into_iter()
        .filter_map(|index| gid(root, place, index.parse().ok()?, ethernet))
        .collect();
    gids.sort_unstable_by_key(|gid| gid.index);
    Port { number, state, ethernet, rate, mtu_bytes: None, gids }
}

/// Tenths of the number that a text such as "2.5 Gb/sec (1X SDR)" begins with.
fn tenths(text: &str) -> Option<u32> {
    let number = text.split_whitespace().next()?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let part = part.get(..1)?.parse::<u32>().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(part)
}

fn gid(root: &Path, place: &Path, index: u8, ethernet: bool) -> Option<Gid> {
    let name = number_name(index);
    let address: Ipv6Addr = line(&place.join("gids").join(&name))?.parse().ok()?;
    if address.is_unspecified() {
        return None;
    }
    // Old kernels tell no types, and know only the first.
    let kind = line(&place.join("gid_attrs/types").join(&name)).unwrap_or_default();
    let kind = match (kind.as_str(), ethernet) {
        ("RoCE v2", _) => GidKind::RoceV2,
        (_, true) => GidKind::RoceV1,
        (_, false) => GidKind::Infiniband,
    };
    let netdev = line(&place.join("gid_attrs/ndevs").join(&name)).filter(|name| !name.is_empty());
    let up = netdev.as_ref().is_none_or(|name| {
        let state = line(&root.join("sys/class/net").join(name).join("operstate"));
        // Virtual devices say "unknown" while they work.
        state.is_none_or(|state| state == "up" || state == "unknown")
    });
    Some(Gid { index, address, kind, netdev, up })
}

/// The NUMA node of a processor, if the machine has several.
#[must_use]
pub fn numa_node_of(root: &Path, processor: usize) -> Option<u32> {
    if names(&root.join("sys/devices/system/node")).iter().filter(|n| is_node(n)).count() < 2 {
        return None;
    }
    let place = root.join("sys/devices/system/cpu").join(format!("cpu{processor}"));
    let nodes = names(&place);
    nodes.iter().find(|name| is_node(name))?.strip_prefix("node")?.parse().ok()
}

fn is_node(name: &str) -> bool {
    name.strip_prefix("node").is_some_and(|rest| rest.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A machine laid out in a folder that ends with it.
    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("cards-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join("sys").join(path);
                fs::create_dir_all(path.parent().expect("a folder")).expect("made");
                fs::write(path, format!("{text}\n")).expect("written");
            }
            Self(root)
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const P: &str = "class/infiniband/mlx5_0/ports/1";

    #[test]
    fn a_machine_without_rdma_has_no_cards() {
        assert_eq!(cards(Path::new("/nowhere")), []);
        assert_eq!(numa_node_of(Path::new("/nowhere"), 0), None);
    }

    #[test]
    fn a_card_is_read_whole() {
        let at = |rest: &str| format!("{P}/{rest}");
        let zero = "0000:0000:0000:0000:0000:0000:0000:0000";
        let files = [
            (at("state"), "4: ACTIVE"),
            (at("link_layer"), "Ethernet"),
            (at("rate"), "100 Gb/sec (4X EDR)"),
            (at("gids/0"), "fe80:0000:0000:0000:0012:34ff:fe56:789a"),
            (at("gids/1"), "0000:0000:0000:0000:0000:ffff:0a63:0001"),
            (at("gids/10"), "2001:0db8:0000:0000:0000:0000:0000:0001"),
            (at("gids/2"), zero),
            (at("gid_attrs/types/0"), "IB/RoCE v1"),
            (at("gid_attrs/types/1"), "RoCE v2"),
            (at("gid_attrs/types/10"), "RoCE v2"),
            (at("gid_attrs/ndevs/0"), "eth5"),
            (at("gid_attrs/ndevs/1"), "eth5"),
            (at("gid_attrs/ndevs/10"), "eth6"),
            ("class/net/eth5/operstate".to_string(), "up"),
            ("class/net/eth6/operstate".to_string(), "down"),
            ("class/infiniband/mlx5_0/device/numa_node".to_string(), "1"),
            ("devices/system/node/node0/cpulist".to_string(), "0-3"),
            ("devices/system/node/node1/cpulist".to_string(), "4-7"),
            ("devices/system/cpu/cpu5/node1/cpulist".to_string(), "4-7"),
        ];
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let machine = Machine::new("whole", &files);
        let found = cards(&machine.0);
        let [card] = &found[..] else { panic!("{found:?}") };
        assert_eq!((card.name.as_str(), card.numa_node), ("mlx5_0", Some(1)));
        let [port] = &card.ports[..] else { panic!("{card:?}") };
        assert_eq!((port.number, port.state.as_str(), port.ethernet), (1, "ACTIVE", true));
        assert_eq!(port.rate, 1000);
        let told: Vec<_> = port
            .gids
            .iter()
            .map(|gid| (gid.index, gid.kind, gid.routable(), gid.up, gid.netdev.as_deref()))
            .collect();
        let (v1, v2) = (GidKind::RoceV1, GidKind::RoceV2);
        let expected = [
            (0, v1, false, true, Some("eth5")),
            (1, v2, true, true, Some("eth5")),
            (10, v2, true, false, Some("eth6")),
        ];
        assert_eq!(told, expected, "in the order of numbers, without empty places");
        assert_eq!(port.gids[1].address.to_string(), "::ffff:10.99.0.1");
        assert_eq!(numa_node_of(&machine.0, 5), Some(1));
        assert_eq!(numa_node_of(&machine.0, 6), None);
    }

    #[test]
    fn a_virtual_card_is_near_what_its_network_device_is_near() {
        let files = [
            ("class/infiniband/rxe0/ports/1/state", "1: DOWN"),
            ("class/infiniband/rxe0/ports/1/link_layer", "Ethernet"),
            ("class/infiniband/rxe0/ports/1/gids/0", "fe80:0000:0000:0000:0012:34ff:fe56:789a"),
            ("class/infiniband/rxe0/ports/1/gid_attrs/ndevs/0", "eth5"),
            ("class/net/eth5/device/numa_node", "-1"),
            ("class/infiniband/rxe1/ports/1/gids/0", "fe80:0000:0000:0000:0012:34ff:fe56:789a"),
            ("class/infiniband/rxe1/ports/1/gid_attrs/ndevs/0", "eth6"),
            ("class/net/eth6/device/numa_node", "3"),
        ];
        let machine = Machine::new("virtual", &files);
        let found = cards(&machine.0);
        let told: Vec<_> = found.iter().map(|card| (card.name.as_str(), card.numa_node)).collect();
        assert_eq!(told, [("rxe0", None), ("rxe1", Some(3))]);
        assert_eq!(found[0].ports[0].state, "DOWN");
        assert_eq!(found[1].ports[0].gids[0].kind, GidKind::Infiniband);
    }

    #[test]
    fn rates_are_read_in_tenths() {
        let given = ["2.5 Gb/sec (1X SDR)", "100 Gb/sec", "", "fast"];
        assert_eq!(given.map(tenths), [Some(25), Some(1000), None, None]);
    }
}
