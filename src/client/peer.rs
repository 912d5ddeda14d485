//! Other engines, which ours reaches over queue pairs: what is exported there can be imported too.

use super::wire::padded;
use super::{ControlError, Import, Secret, Session};
use crate::abi::{self, Kind};

/// Another engine, as this session reaches it through its own.
///
/// Clones mean the same peer. It lasts as long as the session; a second one for the same engine
/// is another peer.
///
/// # Examples
/// ```no_run
/// use verbring::{Secret, Session, abi};
///
/// let session = Session::connect("/run/verbring.sock")?;
/// let peer = session.connect_peer_over("verbring://node7:7471", abi::FABRIC_VERBS)?;
/// let secret: Secret = std::env::var("SECRET")?.parse()?;
/// let import = peer.import("theirs", None, &secret)?; // used like any other import
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Peer {
    session: Session,
    number: u32,
    fabric: u8,
    rail: u8,
}

impl Session {
    /// Connects our engine to the one at `url`, by whatever fabric there is: `unix:` and the
    /// absolute path of its socket on this host, or `verbring://HOST:PORT` on any, if both engines
    /// have the same key.
    ///
    /// # Errors
    /// [`ControlError::Url`] for a URL that no message can carry. A refusal with EINVAL for one
    /// that is none, with EOPNOTSUPP if no fabric is in use between the two, with ENETUNREACH,
    /// ETIMEDOUT or EHOSTDOWN if the engine there does not answer, with EACCES if it may not.
    pub fn connect_peer(&self, url: &str) -> Result<Peer, ControlError> {
        self.reach(url, 0)
    }

    /// As [`Session::connect_peer`], but only by `fabric`, an `abi::FABRIC_*` number; 0 is any.
    /// Each op through the peer's imports then says in its completion that this fabric carried it.
    ///
    /// # Errors
    /// As [`Session::connect_peer`]; a refusal with `Detail::Require` if it cannot be that fabric.
    pub fn connect_peer_over(&self, url: &str, fabric: u8) -> Result<Peer, ControlError> {
        self.reach(url, fabric)
    }

    fn reach(&self, url: &str, require: u8) -> Result<Peer, ControlError> {
        let url = padded(url).ok_or(ControlError::Url)?;
        let require = u32::from(require);
        let request = |head| abi::Connect { head, require, reserved: 0, url };
        let (reply, []): (abi::ConnectReply, _) = self.wire().call(Kind::Connect, request, None)?;
        let (Ok(fabric), Ok(rail)) = (u8::try_from(reply.fabric), u8::try_from(reply.rail)) else {
            return Err(ControlError::Protocol { what: "a fabric or rail that no CQE could name" });
        };
        if reply.peer == 0 || ![0, u32::from(fabric)].contains(&require) {
            return Err(ControlError::Protocol { what: "a peer other than the one asked for" });
        }
        Ok(Peer { session: self.clone(), number: reply.peer, fabric, rail })
    }
}

impl Peer {
    /// Takes up an export at that engine, under its name and secret. `uid` is the exporter's there;
    /// `None` means our own.
    ///
    /// # Errors
    /// As [`Session::import`]; a refusal with EHOSTDOWN if the peer is gone.
    pub fn import(
        &self,
        name: &str,
        uid: Option<u32>,
        secret: &Secret,
    ) -> Result<Import, ControlError> {
        self.session.take_up(self.number, name, uid, secret)
    }

    /// Returns the peer's number in this session, from 1.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns what carries ops to it, an `abi::FABRIC_*` number.
    #[must_use]
    pub fn fabric(&self) -> u8 {
        self.fabric
    }

    /// Returns the rail that carries medium ops to it. Those of other classes may have their own.
    #[must_use]
    pub fn rail(&self) -> u8 {
        self.rail
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, PEER_RAIL};
    use super::*;
    use crate::abi::{Detail, FABRIC_LOCAL, FABRIC_VERBS, errno};

    #[test]
    fn a_peer_is_asked_for_by_url_and_fabric() {
        let (session, _fake) = Fake::attach();
        let first = session.connect_peer("unix:/one").unwrap();
        assert_eq!((first.number(), first.fabric(), first.rail()), (1, FABRIC_VERBS, PEER_RAIL));
        let longest = format!("unix:/{}", "x".repeat(abi::URL_BYTES - 6));
        let second = session.connect_peer_over(&longest, FABRIC_VERBS).unwrap();
        assert_eq!(second.number(), 2);
        let refused = session.connect_peer_over("unix:/one", 7).unwrap_err();
        let refusal = refused.refusal().unwrap();
        assert_eq!((refusal.errno, refusal.detail), (errno::EOPNOTSUPP, Detail::Require));
        for url in ["", "unix:/a\0b", &format!("{longest}x")] {
            let error = session.connect_peer(url).unwrap_err();
            assert!(matches!(error, ControlError::Url), "{url}: {error}");
        }
    }

    #[test]
    fn an_import_names_the_peer_that_it_is_from() {
        let (session, _fake) = Fake::attach();
        let secret = Secret::from_bytes([b'p'; abi::SECRET_BYTES]);
        // The stand-in refuses a name that begins with `p` for this engine, and any other for a
        // peer's.
        session.import("peers", None, &secret).unwrap_err();
        let peer = session.connect_peer("unix:/one").unwrap();
        assert_eq!(peer.import("peers", None, &secret).unwrap().bytes(), 8192);
        let wrong = Secret::from_bytes([1; abi::SECRET_BYTES]);
        let refused = peer.import("peers", Some(5), &wrong).unwrap_err();
        assert_eq!(refused.refusal().unwrap().errno, errno::EACCES);
    }

    #[test]
    fn a_peer_that_was_not_asked_for_is_not_believed() {
        let (session, _fake) = Fake::attach();
        // The stand-in says verbs to whoever asks for local.
        for url in ["unix:/any", "unix:/zero", "unix:/rail"] {
            let require = if url == "unix:/any" { FABRIC_LOCAL } else { 0 };
            let error = session.connect_peer_over(url, require).unwrap_err();
            assert!(matches!(error, ControlError::Protocol { .. }), "{url}: {error}");
        }
    }
}
