//! What operators are told of other engines: PEERS, one connection a reply, and what became of
//! connections that there are not any more.
//!
//! A connection that is lost is soon forgotten, and why it was lost with it. Who asks later wants
//! to know just that: so the last failure of each place is remembered, of so many places.
//!
//! **Invariants**: what is remembered is bounded, apart for places that sessions here ask for and
//! for those that others come from: neither crowds out the other.
//! **Tests**: `tests`; `reported`, over real connections.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::joint::Stage;
use super::message::Hello;
use super::{Connection, Phase, RailPlace, Whose};
use crate::abi::{
    self, CARD_ADDRESSES_MAX, CardsReply, CardsRequest, Detail, Kind, PEER_ERROR_BYTES,
    PEER_RAILS_MAX, PeerRail, PeersReply, PeersRequest, errno,
};
use crate::clock;
use crate::control::card::Card;
use crate::control::server::Server;
use crate::control::wire::{self, Refusal, Url};

/// Places whose last failure is remembered: so many that were asked for here, and so many others.
const FAILURES_MAX: usize = 16;
/// The place in PEERS of the first failure: behind all connections.
const GONE_FROM: u32 = 1 << 31;

/// What is told of a connection, beside what it needs for itself.
#[derive(Clone, Debug)]
pub(super) struct Story {
    /// What sessions here asked for; kept when the connection does not serve it any more.
    url: Option<String>,
    /// When its phase began.
    since_ns: u64,
    heard_ns: Option<u64>,
    boot_id: [u64; 2],
    pid: u32,
}

/// Where failures come from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A URL.
    Ours(String),
    /// Another host: its ports mean nothing.
    Host(IpAddr),
    /// A process of this host.
    Process(u32),
}

/// What became of the last connection to or from a place.
#[derive(Clone, Debug)]
struct Failure {
    place: Place,
    boot_id: [u64; 2],
    pid: u32,
    why: String,
    at_ns: u64,
}

/// The last failures, the newest last.
#[derive(Debug, Default)]
pub(super) struct Failures(VecDeque<Failure>);

impl Story {
    pub(super) fn new(url: Option<&Url>) -> Self {
        Self {
            url: url.map(ToString::to_string),
            since_ns: clock::now_ns(),
            heard_ns: None,
            boot_id: [0; 2],
            pid: 0,
        }
    }

    /// The other engine has told who it is.
    pub(super) fn met(&mut self, hello: &Hello) {
        (self.boot_id, self.pid) = (hello.boot_id, hello.pid);
        self.heard();
    }

    /// The other engine has said something.
    pub(super) fn heard(&mut self) {
        self.heard_ns = Some(clock::now_ns());
    }
}

impl Connection {
    /// Enters a phase; returns the one before.
    pub(super) fn enter(&mut self, phase: Phase) -> Phase {
        self.story.since_ns = clock::now_ns();
        std::mem::replace(&mut self.phase, phase)
    }

    /// Where it leads to or comes from: empty for a process of this host that has come.
    pub(super) fn place(&self) -> String {
        match (&self.story.url, self.from) {
            (Some(url), _) => url.clone(),
            (None, Some(from)) => from.to_string(),
            (None, None) => String::new(),
        }
    }

    fn fails_as(&self) -> Place {
        match (&self.story.url, self.from) {
            (Some(url), _) => Place::Ours(url.clone()),
            (None, Some(from)) => Place::Host(from.ip()),
            (None, None) => Place::Process(self.story.pid),
        }
    }
}

impl Place {
    fn ours(&self) -> bool {
        matches!(self, Self::Ours(_))
    }

    fn text(&self) -> String {
        match self {
            Self::Ours(url) => url.clone(),
            Self::Host(host) => host.to_string(),
            Self::Process(_) => String::new(),
        }
    }
}

impl Failures {
    /// A connection is lost, or could not be had.
    pub(super) fn note(&mut self, connection: &Connection, why: &str, now_ns: u64) {
        let Story { boot_id, pid, .. } = connection.story;
        self.keep(Failure {
            place: connection.fails_as(),
            boot_id,
            pid,
            // Some of it may be another engine's words.
            why: why.replace(char::is_control, " "),
            at_ns: now_ns,
        });
    }

    fn keep(&mut self, failure: Failure) {
        self.0.retain(|known| known.place != failure.place);
        let ours = failure.place.ours();
        let alike = self.0.iter().filter(|known| known.place.ours() == ours).count();
        if alike >= FAILURES_MAX
            && let Some(oldest) = self.0.iter().position(|known| known.place.ours() == ours)
        {
            self.0.remove(oldest);
        }
        self.0.push_back(failure);
    }

    fn of(&self, place: &Place) -> Option<&Failure> {
        self.0.iter().find(|known| known.place == *place)
    }
}

impl Server {
    /// PEERS: the connection at or behind a place, or what became of one.
    pub(in crate::control) fn show_peers(
        &mut self,
        key: usize,
        request: &PeersRequest,
    ) -> Result<(), Refusal> {
        self.check_operator(key, "what is known of other engines is")?;
        let now_ns = clock::now_ns();
        let connections = &self.peers.connections;
        let there = |failure: &&Failure| {
            connections.iter().any(|(_, connection)| connection.fails_as() == failure.place)
        };
        let gone: Vec<&Failure> =
            self.peers.failures.0.iter().filter(|failure| !there(failure)).collect();
        let count = u32::try_from(connections.len() + gone.len()).unwrap_or(u32::MAX);
        let mut places = connections.iter().map(|(key, it)| (narrow(key), key, it));
        let told = match places.find(|(at, ..)| *at >= request.at) {
            Some((at, key, connection)) => {
                PeersReply { at, ..self.connection_told(key, connection, now_ns) }
            }
            None => {
                let from = request.at.max(GONE_FROM);
                let failure = usize::try_from(from - GONE_FROM).ok().and_then(|at| gone.get(at));
                let Some(failure) = failure else {
                    let text = format!("there is no connection at place {} or behind", request.at);
                    return Err(Refusal::new(errno::ENOENT, Detail::Peer, text));
                };
                PeersReply { at: from, ..failure_told(failure, now_ns) }
            }
        };
        let reply = wire::reply_head::<PeersReply>(Kind::Peers, request.head.tag);
        self.answer(key, &PeersReply { reply, count, ..told }, &[]);
        Ok(())
    }

    /// CARDS: one of the cards that other engines are reached by.
    pub(in crate::control) fn show_card(
        &mut self,
        key: usize,
        request: &CardsRequest,
    ) -> Result<(), Refusal> {
        self.check_operator(key, "what is known of cards is")?;
        let count = self.card.as_ref().map_or(0, Card::count);
        let known = u8::try_from(request.card).ok().filter(|card| *card < count);
        let Some((known, card)) = known.zip(self.card.as_ref()) else {
            let text = format!("there is no card {}; there are {count}", request.card);
            return Err(Refusal::new(errno::ENOENT, Detail::Message, text));
        };
        let addresses = card.addresses_of(known).len().min(CARD_ADDRESSES_MAX);
        let reply = CardsReply {
            reply: wire::reply_head::<CardsReply>(Kind::Cards, request.head.tag),
            card: request.card,
            count: count.into(),
            window_bytes: self.config.verbs_window_bytes,
            window_ops: self.config.verbs_window_ops,
            window_wrs: self.config.verbs_window_wrs,
            addresses: card.told(known),
            addresses_count: u8::try_from(addresses).unwrap_or(0),
            name: field(card.name_of(known)),
            ..CardsReply::default()
        };
        self.answer(key, &reply, &[]);
        Ok(())
    }

    fn connection_told(&self, key: usize, connection: &Connection, now_ns: u64) -> PeersReply {
        let story = &connection.story;
        let failure = self.peers.failures.of(&connection.fails_as());
        let mut rails = [PeerRail::default(); PEER_RAILS_MAX];
        let known = connection.all_rails().filter_map(|number| {
            let place = self.peers.rails.get(usize::from(number))?.as_ref()?;
            Some(rail_told(number, place, connection.rails_a_card, now_ns))
        });
        let mut rails_count = 0;
        for (rail, known) in rails.iter_mut().zip(known) {
            *rail = known;
            rails_count += 1;
        }
        PeersReply {
            phase_ms: since_ms(story.since_ns, now_ns),
            boot_id: story.boot_id,
            pid: story.pid,
            heard_ms: story.heard_ns.map_or(abi::UNHEARD, |at| short_ms(at, now_ns)),
            imports: narrow(connection.imports.len()),
            loans: narrow(connection.loans.count()),
            sessions: narrow(self.peers.numbers.count(key)),
            error_ms: failure.map_or(0, |failure| short_ms(failure.at_ns, now_ns)),
            phase: number_of(connection.phase),
            direction: if story.url.is_some() { abi::PEER_OURS } else { abi::PEER_THEIRS },
            rails_count,
            place: field(&connection.place()),
            rails,
            error: failure.map_or([0; PEER_ERROR_BYTES], |failure| field(&failure.why)),
            ..PeersReply::default()
        }
    }
}

fn failure_told(failure: &Failure, now_ns: u64) -> PeersReply {
    PeersReply {
        phase_ms: since_ms(failure.at_ns, now_ns),
        boot_id: failure.boot_id,
        pid: failure.pid,
        heard_ms: abi::UNHEARD,
        error_ms: short_ms(failure.at_ns, now_ns),
        phase: abi::PHASE_GONE,
        direction: if failure.place.ours() { abi::PEER_OURS } else { abi::PEER_THEIRS },
        place: field(&failure.place.text()),
        error: field(&failure.why),
        ..PeersReply::default()
    }
}

fn rail_told(number: u16, place: &RailPlace, a_card: u8, now_ns: u64) -> PeerRail {
    let class = match place.whose {
        Whose::Connection(_, at) if a_card > 1 => at % a_card + 1,
        Whose::Apart(..) => abi::PEER_RAIL_APART,
        _ => 0,
    };
    let put_off = place.put_off.due_ns().filter(|_| place.joint.stage() == Stage::Connecting);
    let state = match place.joint.stage() {
        Stage::Connecting if put_off.is_some() => abi::JOINT_PUT_OFF,
        Stage::Connecting if place.connected > 0 => abi::JOINT_REBUILDING,
        Stage::Connecting => abi::JOINT_CONNECTING,
        Stage::Up => abi::JOINT_UP,
        Stage::Quiescing => abi::JOINT_QUIESCING,
        Stage::Lost => abi::JOINT_LOST,
    };
    let put_off_ms = put_off.map_or(0, |due_ns| due_ns.saturating_sub(now_ns).div_ceil(1_000_000));
    PeerRail {
        queue_pair: place.joint.number().unwrap_or(0),
        // There are at most 64.
        rail: u8::try_from(number).unwrap_or(u8::MAX),
        card: place.card,
        class,
        state,
        rebuilt: u16::try_from(place.connected.saturating_sub(1)).unwrap_or(u16::MAX),
        put_off_ms: u16::try_from(put_off_ms).unwrap_or(u16::MAX),
    }
}

fn number_of(phase: Phase) -> u8 {
    match phase {
        Phase::Reaching => abi::PHASE_REACHING,
        Phase::Greeting => abi::PHASE_GREETING,
        Phase::Joining => abi::PHASE_JOINING,
        Phase::Up => abi::PHASE_UP,
        Phase::Lost => abi::PHASE_LOST,
    }
}

fn since_ms(at_ns: u64, now_ns: u64) -> u64 {
    now_ns.saturating_sub(at_ns) / 1_000_000
}

/// As `since_ms`, and never what would mean "not at all".
fn short_ms(at_ns: u64, now_ns: u64) -> u32 {
    u32::try_from(since_ms(at_ns, now_ns)).unwrap_or(u32::MAX).min(abi::UNHEARD - 1)
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Text in a field, zero padded; what does not fit is cut between two letters.
fn field<const BYTES: usize>(text: &str) -> [u8; BYTES] {
    let text = wire::cut(text, BYTES).as_bytes();
    let mut field = [0; BYTES];
    field[..text.len()].copy_from_slice(text);
    field
}

#[cfg(test)]
mod tests {
    use super::super::joint::{Joint, Step};
    use super::super::patience::{PutOff, Then};
    use super::*;
    use crate::fabric::qp::Ask;
    use crate::fabric::qp::provider::PathSettings;
    use crate::host::tests::CAPS;

    fn failure(place: Place, at_ns: u64) -> Failure {
        Failure { place, boot_id: [1, 2], pid: 3, why: format!("why {at_ns}"), at_ns }
    }

    fn ours(at: u64) -> Place {
        Place::Ours(format!("unix:/{at}"))
    }

    #[test]
    fn the_last_failure_of_each_place_is_kept_and_of_so_many() {
        let mut failures = Failures::default();
        failures.keep(failure(ours(0), 1));
        for at in 0..100 {
            failures.keep(failure(ours(7), 100 + at));
        }
        assert_eq!(failures.0.len(), 2);
        assert_eq!(failures.of(&ours(7)).unwrap().why, "why 199");
        // Whoever comes here, what was asked for is still known.
        for at in 0..1_000 {
            failures.keep(failure(Place::Process(at), 0));
            failures.keep(failure(Place::Host(IpAddr::from(at.to_be_bytes())), 0));
        }
        assert_eq!(failures.0.len(), 2 + FAILURES_MAX);
        assert_eq!(failures.of(&ours(0)).unwrap().at_ns, 1);
        for at in 1..=16 {
            failures.keep(failure(ours(1_000 + at), 2));
        }
        assert_eq!(failures.0.len(), 2 * FAILURES_MAX);
        assert!(failures.of(&ours(0)).is_none() && failures.of(&ours(7)).is_none());
        assert!(failures.of(&ours(1_001)).is_some(), "the newest stay");
    }

    /// A rail of a connection with three a card, the one of low ops on the second.
    #[test]
    fn a_rail_is_told_of_at_each_stage() {
        const MS: u64 = 1_000_000;
        let joint = Joint::new(PathSettings::DEFAULT, CAPS, 4).with_siblings();
        let mut place = RailPlace {
            whose: Whose::Connection(0, 5),
            card: 1,
            joint,
            pair: None,
            connected: 0,
            put_off: PutOff::default(),
            quiet_by_ns: None,
        };
        let told = |place: &RailPlace, now_ns| rail_told(7, place, 3, now_ns);
        let first = PeerRail { rail: 7, card: 1, class: 3, state: 1, ..PeerRail::default() };
        assert_eq!(told(&place, 0), first);
        assert_eq!(rail_told(7, &place, 1, 0).class, 0, "all go by it");
        place.joint.created(Some((9, CAPS)));
        place.joint.wish(1, Ask::Connect);
        place.put_off.failed(Then::NextLife(Step::Endpoint(0)), 1, 10 * MS);
        let put_off = PeerRail { queue_pair: 9, state: abi::JOINT_PUT_OFF, ..first };
        assert_eq!(told(&place, 10 * MS), PeerRail { put_off_ms: 5, ..put_off });
        assert_eq!(told(&place, 99 * MS), PeerRail { put_off_ms: 0, ..put_off }, "it is due");
        place.put_off.connected();
        place.connected = 100_000;
        let again = PeerRail { queue_pair: 9, rebuilt: u16::MAX, ..first };
        assert_eq!(told(&place, 0), PeerRail { state: abi::JOINT_REBUILDING, ..again });
        place.joint.wish(1, Ask::Quiesce);
        assert_eq!(told(&place, 0), PeerRail { state: abi::JOINT_QUIESCING, ..again });
        place.joint.lose();
        assert_eq!(told(&place, 0), PeerRail { state: abi::JOINT_LOST, ..again });
    }

    #[test]
    fn fields_are_padded_and_cut_between_letters() {
        assert_eq!(field::<4>("ab"), *b"ab\0\0");
        assert_eq!(field::<4>("abcd"), *b"abcd");
        assert_eq!(field::<4>("abc\u{e4}"), *b"abc\0");
        assert_eq!((short_ms(5_000_000, 1_000_000), short_ms(0, 1_999_999)), (0, 1));
        assert_eq!(short_ms(0, u64::MAX), abi::UNHEARD - 1);
    }
}
