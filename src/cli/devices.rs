//! `verbring devices`: what could move bytes on this machine, what would, and why.

use std::path::Path;

use clap::Args;
use nix::sched::sched_getcpu;
use serde_json::{Value, json};
use verbring::fabric::verbs::{
    Card, Gid, Judged, Near, Port, VerbsError, Wish, cards, judge, numa_node_of, open_all,
};

use super::{Failure, say, say_json, with_causes};

/// Arguments of `verbring devices`.
#[derive(Debug, Args)]
pub(crate) struct Devices {
    /// Chooses this device, or this port of it.
    #[arg(long, value_name = "DEVICE[:PORT]", env = "VERBRING_DEVICE", value_parser = read_place)]
    device: Option<(String, Option<u8>)>,
    /// Chooses the address at this place of the port's table.
    #[arg(long, value_name = "INDEX", env = "VERBRING_GID")]
    gid: Option<u8>,
    /// Prefers devices near this NUMA node; by default the one that this command runs on.
    #[arg(long, value_name = "NODE")]
    numa_node: Option<u32>,
    /// Says of each address what decided.
    #[arg(long)]
    why: bool,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Everything that is told.
struct Survey {
    cards: Vec<Card>,
    /// What was asked for.
    wish: Wish,
    /// Why no device can be used, whatever there is.
    library: Option<VerbsError>,
    judged: Vec<Judged>,
}

impl Survey {
    fn chosen(&self) -> Option<&Judged> {
        self.judged.first().filter(|first| first.obstacles.is_empty())
    }

    /// Why the verbs fabric cannot be used, in one line.
    fn obstacle(&self) -> Option<String> {
        if self.chosen().is_some() {
            return None;
        }
        if let Some(error) = &self.library {
            return Some(with_causes(error));
        }
        if self.cards.is_empty() {
            return Some(VerbsError::NoDevice.to_string());
        }
        let have: Vec<_> = self.cards.iter().map(|card| card.name.as_str()).collect();
        if let Some(device) = &self.wish.device
            && !have.contains(&device.as_str())
        {
            return Some(format!("there is no device {device}: choose one of {}", have.join(", ")));
        }
        Some("no address that was asked for can be used: verbring devices --why".to_string())
    }

    fn of(&self, card: &Card, port: &Port, gid: Option<&Gid>) -> Option<&Judged> {
        let index = gid.map(|gid| gid.index);
        self.judged
            .iter()
            .find(|it| it.device == card.name && it.port == port.number && it.gid_index == index)
    }

    /// What decided about a place.
    fn why(&self, judged: &Judged) -> String {
        if !judged.obstacles.is_empty() {
            let obstacles = judged.obstacles.iter().map(ToString::to_string);
            return format!("cannot be used: {}", obstacles.collect::<Vec<_>>().join("; "));
        }
        match self.chosen() {
            Some(best) if best != judged => format!(
                "could be used, but {} is chosen: {}",
                place_of(best),
                judged.merits.behind(&best.merits)
            ),
            _ => format!("chosen: {}", judged.words()),
        }
    }
}

impl Devices {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let root = Path::new("/");
        let mut cards = cards(root);
        let library = open_all(&mut cards).err();
        if let Some(error) = &library {
            for card in &mut cards {
                card.obstacle = Some(error.to_string());
            }
        }
        let here = || numa_node_of(root, sched_getcpu().ok()?);
        let (device, port) = self.device.clone().unzip();
        let wish = Wish {
            device,
            port: port.flatten(),
            gid_index: self.gid,
            numa_node: self.numa_node.or_else(here),
        };
        let judged = judge(&cards, &wish);
        let asked = wish.device.is_some() || wish.gid_index.is_some();
        let survey = Survey { cards, wish, library, judged };
        if self.json {
            say_json(&to_json(&survey))?;
        } else {
            say(&to_text(&survey, self.why))?;
        }
        match survey.obstacle() {
            Some(obstacle) if asked => {
                Err(Failure::Failed(format!("what was asked for cannot be used: {obstacle}")))
            }
            _ => Ok(()),
        }
    }
}

/// A device, and a port behind a colon.
fn read_place(text: &str) -> Result<(String, Option<u8>), String> {
    let Some((device, port)) = text.split_once(':') else { return Ok((text.to_string(), None)) };
    match port.parse() {
        Ok(port) if port > 0 && !device.is_empty() => Ok((device.to_string(), Some(port))),
        _ => Err("not DEVICE or DEVICE:PORT, with a port from 1 to 255".to_string()),
    }
}

fn place_of(judged: &Judged) -> String {
    let place = format!("{}:{}", judged.device, judged.port);
    match judged.gid_index {
        Some(index) => format!("{place} GID {index}"),
        None => place,
    }
}

fn to_text(survey: &Survey, why: bool) -> String {
    let verbs = match (survey.chosen(), survey.obstacle()) {
        (Some(chosen), _) => format!("usable, by {}", place_of(chosen)),
        (None, obstacle) => format!("not usable: {}", obstacle.unwrap_or_default()),
    };
    let mut out = format!("fabrics\n  local  usable, on this machine\n  verbs  {verbs}\n");
    if !survey.cards.is_empty() {
        out += "devices\n";
    }
    for card in &survey.cards {
        let numa = card.numa_node.map_or(String::new(), |node| format!(", NUMA node {node}"));
        out += &format!("  {}{numa}\n", card.name);
        // What stands in the way of all was told above.
        if survey.library.is_none()
            && let Some(obstacle) = &card.obstacle
        {
            out += &format!("    {obstacle}\n");
        }
        for port in &card.ports {
            out += &port_text(port);
            if port.gids.is_empty() {
                out += &why_text(survey, survey.of(card, port, None), why);
            }
            for gid in &port.gids {
                let netdev = gid.netdev.as_deref().unwrap_or("");
                let (index, kind) = (gid.index, gid.kind.name());
                out += &format!("      GID {index:3}  {kind:10}  {}  {netdev}\n", gid.address);
                out += &why_text(survey, survey.of(card, port, Some(gid)), why);
            }
        }
    }
    out
}

fn port_text(port: &Port) -> String {
    let layer = if port.ethernet { "Ethernet" } else { "InfiniBand" };
    let mtu = port.mtu_bytes.map_or(String::new(), |bytes| format!(", path MTU {bytes}"));
    let (state, rate) = (&port.state, port.rate);
    format!("    port {}  {state}, {layer}, {}.{} Gbit/s{mtu}\n", port.number, rate / 10, rate % 10)
}

fn why_text(survey: &Survey, judged: Option<&Judged>, why: bool) -> String {
    let Some(judged) = judged else { return String::new() };
    let chosen = survey.chosen() == Some(judged);
    if why || chosen && survey.judged.len() > 1 {
        format!("               {}\n", survey.why(judged))
    } else {
        String::new()
    }
}

fn to_json(survey: &Survey) -> Value {
    let devices: Vec<_> = survey
        .cards
        .iter()
        .map(|card| {
            let ports: Vec<_> =
                card.ports.iter().map(|port| port_json(survey, card, port)).collect();
            json!({
                "name": card.name,
                "numa_node": card.numa_node,
                "obstacle": card.obstacle,
                "ports": ports,
            })
        })
        .collect();
    let chosen = survey.chosen().map(
        |chosen| json!({ "device": chosen.device, "port": chosen.port, "gid": chosen.gid_index }),
    );
    json!({
        "fabrics": [
            { "name": "local", "usable": true, "obstacle": null },
            {
                "name": "verbs",
                "usable": chosen.is_some(),
                "obstacle": survey.obstacle(),
            },
        ],
        "chosen": chosen,
        "devices": devices,
    })
}

fn port_json(survey: &Survey, card: &Card, port: &Port) -> Value {
    let verdict = |gid: Option<&Gid>| {
        survey.of(card, port, gid).map(|judged| {
            json!({
                "usable": judged.obstacles.is_empty(),
                "chosen": survey.chosen() == Some(judged),
                "why": survey.why(judged),
                "routable": judged.merits.routable,
                "near": match judged.merits.near {
                    Near::No => Some(false),
                    Near::Unknown => None,
                    Near::Yes => Some(true),
                },
            })
        })
    };
    let gids: Vec<_> = port
        .gids
        .iter()
        .map(|gid| {
            json!({
                "index": gid.index,
                "address": gid.address.to_string(),
                "type": gid.kind.name(),
                "netdev": gid.netdev,
                "verdict": verdict(Some(gid)),
            })
        })
        .collect();
    json!({
        "port": port.number,
        "state": port.state,
        "link_layer": if port.ethernet { "Ethernet" } else { "InfiniBand" },
        "rate_gbit_s": f64::from(port.rate) / 10.0,
        "path_mtu_bytes": port.mtu_bytes,
        "verdict": if port.gids.is_empty() { verdict(None) } else { None },
        "gids": gids,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read() {
        assert_eq!(read_place("mlx5_0"), Ok(("mlx5_0".to_string(), None)));
        assert_eq!(read_place("mlx5_0:2"), Ok(("mlx5_0".to_string(), Some(2))));
        for bad in ["mlx5_0:", "mlx5_0:0", "mlx5_0:x", ":1", "mlx5_0:256"] {
            assert!(read_place(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_machine_without_rdma_is_told_what_to_do_and_that_local_works() {
        let wish = Wish::default();
        let survey = Survey { cards: vec![], wish, library: None, judged: vec![] };
        let text = to_text(&survey, true);
        assert!(text.contains("local  usable"), "{text}");
        assert!(text.contains("verbs  not usable: there is no RDMA device"), "{text}");
        let json = to_json(&survey);
        assert_eq!(json["fabrics"][1]["usable"], false);
        assert_eq!(json["chosen"], Value::Null);
    }
}
