//! What our engine knows of other engines: its connections to them, the rails of each, and why the
//! last one to or from a place was lost or could not be had.

use std::time::Duration;

use super::{ControlError, Session, unserved};
use crate::abi::{self, Class, Kind, PeersReply, errno};

/// A connection of our engine to another one, or what became of the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerReport {
    /// True if sessions of our engine have asked for it; false if the other engine came.
    pub ours: bool,
    /// The URL that was asked for, or the address that the other engine came from; empty if it
    /// came from this host.
    pub place: String,
    /// How far it has come, an `abi::PHASE_*` number; [`phase_words`] has words for it.
    pub phase: u8,
    /// Since when.
    pub phase_for: Duration,
    /// What the other engine drew at random when it started; `None` until it has told.
    pub boot_id: Option<[u64; 2]>,
    /// The other engine's process, as its host numbers it; `None` until it has told.
    pub pid: Option<u32>,
    /// Since anything was heard of it; `None` if nothing was.
    pub heard: Option<Duration>,
    /// Regions of the other engine that sessions of ours have.
    pub imports: u32,
    /// Regions of sessions of ours that the other engine has.
    pub loans: u32,
    /// Sessions of ours that have a number for it.
    pub sessions: u32,
    /// Its rails, all of card 0 first.
    pub rails: Vec<PeerRail>,
    /// Why the last connection to or from this place was lost, or could not be had, and how long
    /// ago that was; also after a later one is up.
    pub error: Option<(String, Duration)>,
}

/// A rail of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerRail {
    /// Its number, as completions and [`Look::rails`](super::Look::rails) have it.
    pub rail: u8,
    /// The card that its queue pair is on, from 0.
    pub card: u8,
    /// The class that goes by it; `None` if all do.
    pub class: Option<Class>,
    /// One flow goes by it: that of a session whose requests have failed the rails of all.
    pub apart: bool,
    /// How far it has come, an `abi::JOINT_*` number; [`joint_words`] has words for it.
    pub state: u8,
    /// Its queue pair's number on its device, if it has one.
    pub queue_pair: Option<u32>,
    /// How often it was connected anew, up to 65,535.
    pub rebuilt: u16,
    /// Until it is tried again, if it is put off, in milliseconds.
    pub put_off: Option<Duration>,
}

/// How far a connection has come, in words, by an `abi::PHASE_*` number.
#[must_use]
pub fn phase_words(phase: u8) -> &'static str {
    match phase {
        abi::PHASE_REACHING => "reaching",
        abi::PHASE_GREETING => "greeting",
        abi::PHASE_JOINING => "joining",
        abi::PHASE_UP => "up",
        abi::PHASE_LOST => "lost",
        abi::PHASE_GONE => "gone",
        _ => "unknown",
    }
}

/// How far a rail has come, in words, by an `abi::JOINT_*` number.
#[must_use]
pub fn joint_words(state: u8) -> &'static str {
    match state {
        abi::JOINT_CONNECTING => "connecting",
        abi::JOINT_UP => "up",
        abi::JOINT_QUIESCING => "quiescing",
        abi::JOINT_REBUILDING => "rebuilding",
        abi::JOINT_PUT_OFF => "put off",
        abi::JOINT_LOST => "lost",
        _ => "unknown",
    }
}

impl Session {
    /// Asks for all connections of our engine to other ones, and for what became of those that
    /// there are not any more: for root and the engine's own uid. Connections that come or go
    /// meanwhile may be missing.
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with EACCES for anybody else, and with EOPNOTSUPP if the engine
    /// does not tell.
    pub fn peers(&self) -> Result<Vec<PeerReport>, ControlError> {
        if self.probe()?.features & abi::FEATURE_PEERS == 0 {
            return Err(unserved(Kind::Peers, "this engine does not tell of other engines"));
        }
        let (mut found, mut at) = (Vec::new(), 0);
        loop {
            let request = |head| abi::PeersRequest { head, at, reserved: 0 };
            let reply: PeersReply = match self.wire().call(Kind::Peers, request, None) {
                Ok((reply, [])) => reply,
                Err(ControlError::Refused(refusal)) if refusal.errno == errno::ENOENT => {
                    return Ok(found);
                }
                Err(error) => return Err(error),
            };
            let known = PeerReport::read(&reply).filter(|_| reply.at >= at);
            found.push(known.ok_or(ControlError::Protocol { what: "a peer that cannot be" })?);
            match reply.at.checked_add(1) {
                Some(next) => at = next,
                None => return Ok(found),
            }
        }
    }
}

impl PeerReport {
    /// Reads a reply to PEERS; `None` if it cannot be one.
    #[must_use]
    pub fn read(reply: &PeersReply) -> Option<Self> {
        let ms = |ms: u32| Duration::from_millis(ms.into());
        let rails = reply.rails.get(..usize::from(reply.rails_count))?;
        let error = text(&reply.error)?;
        Some(Self {
            ours: match reply.direction {
                abi::PEER_OURS => true,
                abi::PEER_THEIRS => false,
                _ => return None,
            },
            place: text(&reply.place)?,
            phase: reply.phase,
            phase_for: Duration::from_millis(reply.phase_ms),
            boot_id: Some(reply.boot_id).filter(|boot_id| *boot_id != [0; 2]),
            pid: Some(reply.pid).filter(|pid| *pid != 0),
            heard: (reply.heard_ms != abi::UNHEARD).then(|| ms(reply.heard_ms)),
            imports: reply.imports,
            loans: reply.loans,
            sessions: reply.sessions,
            rails: rails.iter().map(rail).collect(),
            error: (!error.is_empty()).then(|| (error, ms(reply.error_ms))),
        })
    }
}

fn rail(rail: &abi::PeerRail) -> PeerRail {
    let put_off = rail.state == abi::JOINT_PUT_OFF;
    PeerRail {
        rail: rail.rail,
        card: rail.card,
        class: Class::from_byte(rail.class).filter(|_| rail.class != 0),
        apart: rail.class == abi::PEER_RAIL_APART,
        state: rail.state,
        queue_pair: Some(rail.queue_pair).filter(|number| *number != 0),
        rebuilt: rail.rebuilt,
        put_off: put_off.then(|| Duration::from_millis(rail.put_off_ms.into())),
    }
}

/// Zero-padded text, which others may have written: nothing in it steers a terminal.
pub(super) fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let text = std::str::from_utf8(&field[..end]).ok()?;
    let padded = field[end..].iter().all(|byte| *byte == 0);
    padded.then(|| text.replace(char::is_control, " "))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, told};
    use super::*;

    #[test]
    fn all_connections_are_asked_for_one_by_one() {
        let (session, fake) = Fake::attach();
        assert_eq!(session.peers().unwrap(), []);
        fake.tell([told(0), told(1), told(5), told(1 << 31), told(u32::MAX)]);
        let peers = session.peers().unwrap();
        assert_eq!(peers.len(), 5);
        let PeerReport { ours, place, phase, phase_for, boot_id, pid, heard, .. } = &peers[2];
        assert_eq!((*ours, place.as_str(), *phase), (true, "unix:/5", abi::PHASE_UP));
        assert_eq!((*phase_for, *boot_id, *pid), (Duration::from_secs(7), Some([3, 4]), Some(9)));
        assert_eq!(*heard, Some(Duration::from_millis(20)));
        let PeerReport { imports, loans, sessions, error, .. } = &peers[2];
        assert_eq!((*imports, *loans, *sessions), (1, 2, 3));
        assert_eq!(*error, Some(("it is\u{fc} gone ?".to_string(), Duration::from_secs(60))));
        let rails = &peers[2].rails;
        assert_eq!((rails.len(), rails[0].rail, rails[0].card), (2, 6, 0));
        assert_eq!((rails[0].class, rails[0].queue_pair, rails[0].put_off), (None, None, None));
        assert_eq!((rails[1].class, rails[1].queue_pair), (Some(Class::Low), Some(77)));
        assert_eq!(rails[1].put_off, Some(Duration::from_millis(40)));
        assert_eq!((joint_words(rails[1].state), rails[1].rebuilt), ("put off", 8));
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let (session, fake) = Fake::attach();
        let (boot_id, heard_ms) = ([0; 2], abi::UNHEARD);
        let bare = PeersReply { boot_id, pid: 0, heard_ms, rails_count: 0, ..told(0) };
        let error = [0; abi::PEER_ERROR_BYTES];
        fake.tell([PeersReply { place: [0; abi::URL_BYTES], error, ..bare }]);
        let peer = &session.peers().unwrap()[0];
        assert_eq!((peer.boot_id, peer.pid, peer.heard, &peer.error), (None, None, None, &None));
        assert!(peer.rails.is_empty() && peer.place.is_empty());
    }

    #[test]
    fn a_peer_that_cannot_be_is_not_believed() {
        let mut broken = told(0);
        broken.place[0] = 0xff;
        let mut unpadded = told(0);
        unpadded.error = [b'x'; abi::PEER_ERROR_BYTES];
        unpadded.error[3] = 0;
        let rails_count = 13;
        let direction = 3;
        let lies = [
            broken,
            unpadded,
            PeersReply { rails_count, ..told(0) },
            PeersReply { direction, ..told(0) },
        ];
        for lie in lies {
            let (session, fake) = Fake::attach();
            fake.tell([lie]);
            let error = session.peers().unwrap_err();
            assert!(matches!(error, ControlError::Protocol { .. }), "{error}");
        }
        // A place behind which all lies that was told before would be asked for without end.
        let (session, fake) = Fake::attach();
        fake.tell([told(7)]);
        fake.lie_about_places();
        let error = session.peers().unwrap_err();
        assert!(matches!(error, ControlError::Protocol { .. }), "{error}");
    }
}
