//! `verbring peers`: the other engines that one knows, the rails to each, and why the last
//! connection to or from a place was lost.
//!
//! Control says what there is and how it is, the telemetry page what goes through: the two are
//! joined by the numbers of rails.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use verbring::Session;
use verbring::abi::{FABRIC_VERBS, PHASE_GONE, Tally, errno};
use verbring::client::{
    CardReport, ControlError, Look, PeerRail, PeerReport, Telemetry, joint_words, phase_words,
};

use super::stat::{per_second, read_period};
use super::{Failure, class_name, grouped, say, say_json};

/// Over so long rates are taken when it is told once, if there is a rail to take them of.
const GLANCE: Duration = Duration::from_millis(500);

/// Arguments of `verbring peers`.
#[derive(Debug, Args)]
pub(crate) struct Peers {
    /// Where the engine listens.
    #[arg(long, value_name = "PATH", env = "VERBRING_SOCKET")]
    socket: PathBuf,
    /// Prints one JSON object a look instead of text.
    #[arg(long)]
    json: bool,
    /// Looks again every so many seconds, until interrupted.
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = read_period,
        num_args = 0..=1,
        default_missing_value = "1"
    )]
    watch: Option<Duration>,
}

/// All that is told at one moment.
struct Survey {
    /// Whether the engine has a card for peers.
    verbs: bool,
    /// Those that it has.
    cards: Vec<CardReport>,
    peers: Vec<PeerReport>,
    look: Look,
    /// How long before there was another look, and what it saw.
    before: Option<(Duration, Look)>,
}

impl Peers {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let session = Session::connect_unrecorded(&self.socket)
            .map_err(|error| Failure::of("cannot ask", &error))?;
        let cannot = |error: ControlError| match session.over() {
            true => Failure::Failed("the engine is gone, or has ended this session".to_string()),
            false => Failure::of("cannot have what the engine knows of others", &error),
        };
        let verbs = session.probe().map_err(cannot)?.uses(FABRIC_VERBS);
        let mut peers = session.peers().map_err(cannot)?;
        let telemetry = session.telemetry().map_err(cannot)?;
        let mut before = None;
        if self.watch.is_none() && peers.iter().any(|peer| !peer.rails.is_empty()) {
            before = Some((Instant::now(), telemetry.look()));
            thread::sleep(GLANCE);
            peers = session.peers().map_err(cannot)?;
        }
        loop {
            let cards = cards_of(&session).map_err(cannot)?;
            let (now, survey) = survey((verbs, cards), peers, &telemetry, before);
            self.tell(&survey)?;
            let Some(period) = self.watch else { return Ok(()) };
            before = Some((now, survey.look));
            thread::sleep(period);
            peers = session.peers().map_err(cannot)?;
        }
    }

    fn tell(&self, survey: &Survey) -> Result<(), Failure> {
        if self.json {
            return say_json(&to_json(survey));
        }
        say(&to_text(survey))?;
        if self.watch.is_some() { say("\n") } else { Ok(()) }
    }
}

/// The cards, if the engine tells of them.
fn cards_of(session: &Session) -> Result<Vec<CardReport>, ControlError> {
    match session.cards() {
        Err(ControlError::Refused(refusal)) if refusal.errno == errno::EOPNOTSUPP => Ok(Vec::new()),
        told => told,
    }
}

fn survey(
    (verbs, cards): (bool, Vec<CardReport>),
    peers: Vec<PeerReport>,
    telemetry: &Telemetry,
    before: Option<(Instant, Look)>,
) -> (Instant, Survey) {
    let (now, look) = (Instant::now(), telemetry.look());
    let before = before.map(|(then, look)| (now - then, look));
    (now, Survey { verbs, cards, peers, look, before })
}

impl Survey {
    /// Bytes a second by a rail; `None` at the first look.
    fn bytes_per_s(&self, rail: u8) -> Option<u64> {
        let (time, then) = self.before.as_ref()?;
        let bytes = |look: &Look| Some(look.rails.get(usize::from(rail))?.of(Tally::Bytes));
        Some(per_second(bytes(&self.look)?.saturating_sub(bytes(then)?), *time))
    }

    /// Requests under way by a rail.
    fn in_flight(&self, rail: u8) -> u64 {
        let rail = self.look.rails.get(usize::from(rail));
        rail.map_or(0, |rail| rail.of(Tally::InFlight))
    }
}

/// What the other engine is called, as we see it.
fn name(peer: &PeerReport) -> String {
    let from_here = || match peer.pid {
        Some(pid) => format!("from this host, pid {pid}"),
        None => "from this host".to_string(),
    };
    match (peer.ours, peer.place.as_str()) {
        (true, place) => format!("to {place}"),
        (false, "") => from_here(),
        (false, place) => format!("from {place}"),
    }
}

fn to_text(survey: &Survey) -> String {
    let mut out =
        if survey.peers.is_empty() { nobody(survey.verbs).to_string() } else { table(survey) };
    for card in &survey.cards {
        let addresses: Vec<String> = card.addresses.iter().map(|it| address(*it)).collect();
        let at = if addresses.is_empty() {
            "without an address".to_string()
        } else {
            addresses.join(", ")
        };
        out += &format!("card {} is {}, {at}\n", card.card, card.name);
    }
    out
}

/// As people write it.
fn address(address: Ipv6Addr) -> String {
    address.to_ipv4_mapped().map_or_else(|| address.to_string(), |address| address.to_string())
}

fn table(survey: &Survey) -> String {
    let mut out = format!(
        "{:40}  {:8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>10}\n",
        "peer", "state", "since", "sessions", "imports", "loans", "heard"
    );
    for peer in &survey.peers {
        let none = || "-".to_string();
        let heard = peer.heard.map_or_else(none, |heard| format!("{} ago", span(heard)));
        let there = peer.phase != PHASE_GONE;
        let count = |count: u32| if there { grouped(count.into()) } else { none() };
        out += &format!(
            "{:40}  {:8}  {:>8}  {:>8}  {:>8}  {:>8}  {:>10}\n",
            name(peer),
            phase_words(peer.phase),
            span(peer.phase_for),
            count(peer.sessions),
            count(peer.imports),
            count(peer.loans),
            heard,
        );
        for rail in &peer.rails {
            out += &rail_text(survey, rail);
        }
        if let Some((why, ago)) = &peer.error {
            out += &format!("    last error, {} ago: {why}\n", span(*ago));
        }
    }
    out
}

/// Without peers: why, and what to do.
fn nobody(verbs: bool) -> &'static str {
    if verbs {
        "no peers: no session has asked for another engine, and none has come\n\
         A session asks for one by its URL (connect_peer): unix:/PATH on this host, or \
         verbring://HOST:PORT.\n"
    } else {
        "no peers: verbs is not in use here, and other engines are reached by nothing else\n\
         verbring devices --why tells what is missing; the setting verbs must not be off.\n"
    }
}

/// What goes by a rail, in a word.
fn class_of(rail: &PeerRail) -> &'static str {
    if rail.apart { "apart" } else { rail.class.map_or("all", class_name) }
}

fn rail_text(survey: &Survey, rail: &PeerRail) -> String {
    let class = class_of(rail);
    let mut state = joint_words(rail.state).to_string();
    if let Some(put_off) = rail.put_off {
        state += &format!(" for {}", span(put_off));
    }
    let rate = survey.bytes_per_s(rail.rail).map_or_else(|| "-".to_string(), grouped);
    let pair = rail.queue_pair.map_or_else(|| "-".to_string(), |number| number.to_string());
    format!(
        "    rail {:<3} card {:<2} class {class:7} {state:18} {rate:>15} bytes/s {:>6} in flight  \
         queue pair {pair}, rebuilt {}\n",
        rail.rail,
        rail.card,
        grouped(survey.in_flight(rail.rail)),
        rail.rebuilt,
    )
}

/// A time in its largest unit.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn to_json(survey: &Survey) -> Value {
    let seconds = survey.before.as_ref().map(|(time, _)| time.as_secs_f64());
    let peers: Vec<Value> = survey.peers.iter().map(|peer| peer_json(survey, peer)).collect();
    let cards: Vec<Value> = survey.cards.iter().map(card_json).collect();
    json!({ "verbs": survey.verbs, "seconds": seconds, "cards": cards, "peers": peers })
}

fn card_json(card: &CardReport) -> Value {
    let addresses: Vec<String> = card.addresses.iter().map(|it| address(*it)).collect();
    json!({
        "card": card.card,
        "name": card.name,
        "addresses": addresses,
        "window_ops": card.window_ops,
        "window_wrs": card.window_wrs,
        "window_bytes": card.window_bytes,
    })
}

fn peer_json(survey: &Survey, peer: &PeerReport) -> Value {
    let rails: Vec<Value> = peer
        .rails
        .iter()
        .map(|rail| {
            json!({
                "rail": rail.rail,
                "card": rail.card,
                "class": class_of(rail),
                "state": joint_words(rail.state),
                "queue_pair": rail.queue_pair,
                "rebuilt": rail.rebuilt,
                "put_off_ms": rail.put_off.map(ms),
                "bytes_per_s": survey.bytes_per_s(rail.rail),
                "in_flight": survey.in_flight(rail.rail),
            })
        })
        .collect();
    json!({
        "direction": if peer.ours { "ours" } else { "theirs" },
        "place": peer.place,
        "state": phase_words(peer.phase),
        "since_ms": ms(peer.phase_for),
        "boot_id": peer.boot_id.map(|[low, high]| format!("{high:016x}{low:016x}")),
        "pid": peer.pid,
        "heard_ms": peer.heard.map(ms),
        "sessions": peer.sessions,
        "imports": peer.imports,
        "loans": peer.loans,
        "rails": rails,
        "error": peer.error.as_ref().map(|(why, _)| why),
        "error_ms": peer.error.as_ref().map(|(_, ago)| ms(*ago)),
    })
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use verbring::abi::{self, CardsReply, PeersReply, TelemetryHeader};
    use verbring::shm::{self, Mapping};
    use verbring::telemetry::{Page, Tallies as Counting};

    use super::*;

    fn field<const BYTES: usize>(text: &str) -> [u8; BYTES] {
        let mut field = [0; BYTES];
        field[..text.len()].copy_from_slice(text.as_bytes());
        field
    }

    /// One that is up, with a rail that moves bytes and one that is put off; one that failed.
    fn replies() -> [PeersReply; 2] {
        let mut up = PeersReply {
            phase: abi::PHASE_UP,
            direction: abi::PEER_OURS,
            phase_ms: 125_000,
            boot_id: [1, 2],
            pid: 77,
            heard_ms: 40,
            imports: 1_234,
            sessions: 2,
            rails_count: 2,
            error_ms: 300_000,
            place: field("unix:/run/other.sock"),
            error: field("it closed its socket"),
            ..PeersReply::default()
        };
        let state = abi::JOINT_UP;
        up.rails[0] = abi::PeerRail { queue_pair: 9, rail: 1, state, ..up.rails[0] };
        let state = abi::JOINT_PUT_OFF;
        up.rails[1] =
            abi::PeerRail { rail: 2, card: 1, class: 1, put_off_ms: 30, state, ..up.rails[1] };
        let gone = PeersReply {
            phase: PHASE_GONE,
            direction: abi::PEER_THEIRS,
            pid: 78,
            heard_ms: abi::UNHEARD,
            error: field("its process is gone"),
            ..PeersReply::default()
        };
        [up, gone]
    }

    fn surveyed() -> Survey {
        let counting = Counting::new(3, 1);
        let header = TelemetryHeader { engine_pid: 7, ..*counting.header() };
        let fd: OwnedFd = shm::create(c"verbring-test", header.bytes(), false).unwrap();
        let mapping = Mapping::shared(fd.as_fd(), header.bytes()).unwrap();
        let mut counting = counting;
        counting.copy_to(Page::create(mapping, &header));
        let telemetry = Telemetry::open(fd).unwrap();
        counting.add(header.rail_block(1), Tally::Bytes as usize, 1_000);
        counting.publish_all();
        let then = telemetry.look();
        counting.add(header.rail_block(1), Tally::Bytes as usize, 5_000_000);
        counting.add(header.rail_block(1), Tally::Dispatched as usize, 3);
        counting.publish_all();
        let before = Some((Duration::from_millis(500), then));
        let peers = replies().iter().map(|reply| PeerReport::read(reply).unwrap()).collect();
        let mut card = CardsReply { window_bytes: 5, addresses_count: 2, ..CardsReply::default() };
        card.name = field("rxe0 port 1");
        for (place, address) in card.addresses.iter_mut().zip(["::ffff:10.0.0.7", "fd00::7"]) {
            *place = address.parse::<Ipv6Addr>().unwrap().octets();
        }
        let none = CardsReply { card: 1, name: field("rxe1 port 1"), ..CardsReply::default() };
        let cards = [card, none].iter().map(|card| CardReport::read(card).unwrap()).collect();
        Survey { verbs: true, cards, peers, look: telemetry.look(), before }
    }

    #[test]
    fn peers_stand_in_a_table_with_their_rails() {
        let text = to_text(&surveyed());
        let words =
            |at: usize| -> Vec<&str> { text.lines().nth(at).unwrap().split_whitespace().collect() };
        assert_eq!(words(1)[..5], ["to", "unix:/run/other.sock", "up", "2", "min"], "{text}");
        assert_eq!(words(1)[5..], ["2", "1,234", "0", "40", "ms", "ago"], "{text}");
        assert_eq!(words(2)[..7], ["rail", "1", "card", "0", "class", "all", "up"], "{text}");
        assert_eq!(words(2)[7..12], ["10,000,000", "bytes/s", "3", "in", "flight"], "{text}");
        assert_eq!(words(3)[5..11], ["high", "put", "off", "for", "30", "ms"], "{text}");
        assert_eq!(words(4).join(" "), "last error, 5 min ago: it closed its socket", "{text}");
        assert_eq!(words(5)[..6], ["from", "this", "host,", "pid", "78", "gone"], "{text}");
        assert_eq!(words(6).join(" "), "last error, 0 ms ago: its process is gone", "{text}");
        let cards = "card 0 is rxe0 port 1, 10.0.0.7, fd00::7\n\
                     card 1 is rxe1 port 1, without an address\n";
        assert!(text.ends_with(cards), "{text}");
        let first = Survey { before: None, ..surveyed() };
        assert!(to_text(&first).contains(" - bytes/s"), "no rate yet");
    }

    #[test]
    fn programs_get_all_of_it() {
        let told = to_json(&surveyed());
        assert_eq!((&told["verbs"], &told["seconds"]), (&true.into(), &0.5.into()));
        let card = &told["cards"][0];
        assert_eq!((&card["name"], &card["window_bytes"]), (&"rxe0 port 1".into(), &5.into()));
        assert_eq!((&card["card"], &card["addresses"][1]), (&0.into(), &"fd00::7".into()));
        let up = &told["peers"][0];
        assert_eq!((&up["direction"], &up["state"]), (&"ours".into(), &"up".into()));
        assert_eq!(up["boot_id"], "00000000000000020000000000000001");
        assert_eq!((&up["since_ms"], &up["heard_ms"]), (&125_000.into(), &40.into()));
        assert_eq!(
            (&up["error"], &up["error_ms"]),
            (&"it closed its socket".into(), &300_000.into())
        );
        let [rail, off] = [&up["rails"][0], &up["rails"][1]];
        assert_eq!((&rail["bytes_per_s"], &rail["in_flight"]), (&10_000_000.into(), &3.into()));
        assert_eq!((&rail["class"], &rail["put_off_ms"]), (&"all".into(), &Value::Null));
        assert_eq!((&off["state"], &off["put_off_ms"]), (&"put off".into(), &30.into()));
        let gone = &told["peers"][1];
        assert_eq!((&gone["heard_ms"], &gone["pid"]), (&Value::Null, &78.into()));
        assert_eq!((&gone["state"], &gone["place"]), (&"gone".into(), &"".into()));
    }

    #[test]
    fn who_has_no_peers_is_told_why_and_what_to_do() {
        assert!(nobody(false).contains("verbring devices --why"));
        assert!(nobody(true).contains("verbring://HOST:PORT"));
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let given = [0, 999, 1_000, 59_999, 60_000, 3_600_000, 86_399_999, 172_800_000];
        let told = ["0 ms", "999 ms", "1 s", "59 s", "1 min", "1 h", "23 h", "2 days"];
        assert_eq!(given.map(|ms| span(Duration::from_millis(ms))), told);
    }
}
