//! What the control threads of two engines say to each other: one SEQPACKET datagram a message.
//!
//! Layouts are fixed and little-endian; each starts with [`MAGIC`], which no client's message
//! does, and the version. A peer is parsed, never believed: what is not exactly a message of this
//! version is a [`PeerError`], which names the field, and ends the connection.
//!
//! ```text
//!  connecting side                     accepting side
//!  HELLO ------------------------------->              the cards and rails it would have
//!        <------------------------------- WELCOME      the pairs that they get, or REFUSE
//!  READY, UP, QUIET <--> READY, UP, QUIET              of each rail: see `joint`; and BARREN
//!  WANT ------------------------------->               an export is taken up
//!        <------------------------------- HAVE, or NO
//!        <------------------------------- WITHDRAW     it was revoked
//!  GIVE BACK -------------------------->               nothing touches it here any more
//!  APART ------------------------------>               from either side: one more rail, for a flow
//!        <------------------------------- OVER         there is none, or none any more
//!  OVER ------------------------------->               who asked for it needs it no more
//!  CALL ------------------------------->               from either side, after a silence
//!        <------------------------------- HERE
//!  BYE  <------------------------------>               lost, and nothing more is delivered
//! ```
//!
//! **Tests**: every message comes back as it was; no bytes at all make the parser panic.

use thiserror::Error;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::joint::Say;
use super::pairing::Ports;
use crate::abi::{MESSAGE_BYTES_MAX, NAME_BYTES, RIGHTS_ALL, SECRET_BYTES};
use crate::fabric::qp::CARDS_MAX;
use crate::fabric::qp::provider::{Endpoint, Key};

/// Starts every message. As kind and reserved field of a client's message it would be neither.
pub(crate) const MAGIC: u32 = 0x3150_5256;
/// The only version that is understood. The first one knew of one card, the second of one host, the
/// third of no rounds and pairs, and of no features.
pub(super) const VERSION: u16 = 4;
/// It knows what APART is, and has rails for it.
pub(super) const FEATURE_APART: u32 = 1 << 0;
/// How long a peer may be silent, ms: the most that one may say of itself.
const SILENCE_MS_MAX: u32 = 600_000;
/// Rails that a connection may have on each card.
pub(super) const RAILS_A_CARD_MAX: u8 = 3;
/// Rails that a connection may have.
const RAILS_MAX: u8 = 12;
const _: () = assert!(RAILS_MAX as usize == RAILS_A_CARD_MAX as usize * CARDS_MAX);
/// Places of rails that are one flow's alone, behind those of all: even ones are asked for by the
/// end that made the connection, odd ones by the other.
pub(super) const APARTS: std::ops::Range<u8> = RAILS_MAX..RAILS_MAX + 8;
/// Keys in one HAVE. A region of more pieces comes in several.
pub(super) const KEYS_A_MESSAGE: usize = 12;
/// Pieces of one region.
pub(super) const KEYS_MAX: u32 = 4_096;
/// Notifications that a peer may say it has receives for.
const CREDITS_MAX: u32 = 1 << 20;
/// Bytes of text in a REFUSE or NO.
const TEXT_BYTES: usize = 240;

/// What came is not a message of this version.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum PeerError {
    /// Its bytes are not those of any message.
    #[error("a message of {bytes} bytes: {want}")]
    Bytes {
        /// Bytes that came.
        bytes: usize,
        /// What should have come.
        want: &'static str,
    },
    /// A peer of another version.
    #[error("the peer speaks version {version} of the peers' messages, this engine {VERSION}")]
    Version {
        /// The peer's.
        version: u16,
    },
    /// A field has a value that it cannot have.
    #[error("{field} is {value}, but must be {limit}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        limit: &'static str,
    },
}

/// Opens a connection, and answers that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// Names the engine for as long as it lives.
    pub(super) boot_id: [u64; 2],
    /// The engine's process.
    pub(super) pid: u32,
    /// On each card one rail for all classes, or three, one a class. What WELCOME says is what
    /// they get.
    pub(super) rails: u8,
    /// Cards to be joined, at most. What WELCOME says, at most what HELLO did, is what they get.
    pub(super) cards: u8,
    /// In HELLO the cards that there are, of which `cards` may be joined.
    pub(super) there: u8,
    /// In WELCOME, which of HELLO's cards is in each of the pairs; else in order.
    pub(super) picked: [u8; CARDS_MAX],
    /// In WELCOME, which of its sender's own is; else in order.
    pub(super) own: [u8; CARDS_MAX],
    /// What ports are addressed: in HELLO of each card that there is, in WELCOME of the card there
    /// of each pair.
    pub(super) told: [Ports; CARDS_MAX],
    /// Who says nothing to it for so long is lost to it, ms: until then it may go on as if nothing
    /// had happened.
    pub(super) silence_ms: u32,
    /// Between hosts: what the connecting engine calls this connection. Who says the same boot id
    /// and link once more has lost the one before. 0 on one host, and in WELCOME.
    pub(super) link: u64,
    /// `FEATURE_*`; what is not known is nothing to who reads it.
    pub(super) features: u32,
}

/// Asks for an export of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// Comes back in the answer.
    pub(super) tag: u64,
    /// Whose export.
    pub(super) uid: u32,
    /// Who asks.
    pub(super) asker: u32,
    /// Rights wanted; 0 takes all that are offered.
    pub(super) rights: u32,
    /// The export's name, zero padded.
    pub(super) name: [u8; NAME_BYTES],
    /// Its secret.
    pub(super) secret: [u8; SECRET_BYTES],
}

/// A part of an export that was granted; more follow until all keys have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Have {
    /// From WANT.
    pub(super) tag: u64,
    /// Names it to WITHDRAW and GIVE BACK.
    pub(super) loan: u32,
    /// What its owner calls the region: for notifications.
    pub(super) region: u32,
    /// Of the region.
    pub(super) bytes: u64,
    /// Rights granted.
    pub(super) rights: u32,
    /// Keys in all.
    pub(super) keys_total: u32,
    /// The place of the first key in here.
    pub(super) first: u32,
    /// Each with the pair that its card is in, all of a pair's in order. Without lkey.
    pub(super) keys: Vec<(u8, Key)>,
}

/// A failure, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Positive.
    pub(super) errno: i32,
    /// `DETAIL_*`.
    pub(super) detail: u16,
    /// At most 240 bytes.
    pub(super) text: String,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Hello(Hello),
    Welcome(Hello),
    Refuse(Failure),
    /// Of one rail, by its place in the connection: all of the first pair first, then those of
    /// flows.
    Joint(u8, Say),
    Want(Want),
    Have(Have),
    No(u64, Failure),
    Withdraw(u32),
    GiveBack(u32),
    /// One more rail to the first card of who is asked, at this place, for one flow of who asks.
    /// The other end lends on it what it has lent, and joins it, or says OVER.
    Apart(u8),
    /// Of the rail at this place: who asked for it needs it no more; or there is no such rail at
    /// who was asked, or none any more.
    Over(u8),
    /// Are you there?
    Call,
    /// The answer to it.
    Here,
    /// Nothing that the other end has sent is delivered any more: the connection is lost.
    Bye,
}

macro_rules! layouts {
    ($($name:ident = $bytes:literal { $($field:ident: $ty:ty,)* })*) => {$(
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        struct $name { $($field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $bytes && $bytes <= MESSAGE_BYTES_MAX);
    )*};
}

layouts! {
    HeadWire = 16 { magic: u32, version: u16, kind: u16, bytes: u32, reserved: u32, }
    HelloWire = 328 {
        head: HeadWire, boot_id: [u64; 2], pid: u32, rails: u32, cards: u32, silence_ms: u32,
        link: u64, there: u32, picked: [u8; CARDS_MAX], told: [Ports; CARDS_MAX],
        features: u32, own: [u8; CARDS_MAX],
    }
    FailureWire = 272 {
        head: HeadWire, tag: u64, errno: i32, detail: u16, text_bytes: u16, text: [u8; 240],
    }
    ReadyWire = 64 {
        head: HeadWire, rail: u32, life: u32, number: u32, psn: u32, gid: [u8; 16],
        mtu_bytes: u32, credits: u32, lid: u16, reads_in: u8, reads_out: u8, round: u32,
    }
    StepWire = 24 { head: HeadWire, rail: u32, life: u32, }
    WantWire = 136 {
        head: HeadWire, tag: u64, uid: u32, asker: u32, rights: u32, reserved: u32,
        name: [u8; NAME_BYTES], secret: [u8; SECRET_BYTES],
    }
    KeyWire = 32 { offset: u64, bytes: u64, address: u64, rkey: u32, card: u32, }
    HaveWire = 440 {
        head: HeadWire, tag: u64, bytes: u64, loan: u32, region: u32, rights: u32,
        keys_total: u32, first: u32, count: u32, keys: [KeyWire; KEYS_A_MESSAGE],
    }
    PlaceWire = 24 { head: HeadWire, place: u32, reserved: u32, }
    LoanWire = 24 { head: HeadWire, loan: u32, reserved: u32, }
}

const HELLO: u16 = 1;
const WELCOME: u16 = 2;
const REFUSE: u16 = 3;
const READY: u16 = 4;
const UP: u16 = 5;
const QUIET: u16 = 6;
const WANT: u16 = 7;
const HAVE: u16 = 8;
const NO: u16 = 9;
const WITHDRAW: u16 = 10;
const GIVE_BACK: u16 = 11;
const CALL: u16 = 12;
const HERE: u16 = 13;
const BYE: u16 = 14;
const BARREN: u16 = 15;
const APART: u16 = 16;
const OVER: u16 = 17;

impl Message {
    /// What it is called: what is in it is not for a log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "HELLO",
            Self::Welcome(_) => "WELCOME",
            Self::Refuse(_) => "REFUSE",
            Self::Joint(_, Say::Ready { .. }) => "READY",
            Self::Joint(_, Say::Up { .. }) => "UP",
            Self::Joint(_, Say::Barren { .. }) => "BARREN",
            Self::Joint(_, Say::Quiet { .. }) => "QUIET",
            Self::Want(_) => "WANT",
            Self::Have(_) => "HAVE",
            Self::No(..) => "NO",
            Self::Withdraw(_) => "WITHDRAW",
            Self::GiveBack(_) => "GIVE BACK",
            Self::Apart(_) => "APART",
            Self::Over(_) => "OVER",
            Self::Call => "CALL",
            Self::Here => "HERE",
            Self::Bye => "BYE",
        }
    }

    /// The message as a datagram.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => hello.to_bytes(HELLO),
            Self::Welcome(hello) => hello.to_bytes(WELCOME),
            Self::Refuse(failure) => failure.to_bytes(REFUSE, 0),
            Self::No(tag, failure) => failure.to_bytes(NO, *tag),
            Self::Joint(rail, say) => say_bytes(*rail, say),
            Self::Want(want) => {
                let Want { tag, uid, asker, rights, name, secret } = *want;
                let head = head::<WantWire>(WANT);
                let reserved = 0;
                bytes(&WantWire { head, tag, uid, asker, rights, reserved, name, secret })
            }
            Self::Have(have) => have.to_bytes(),
            Self::Withdraw(loan) => loan_bytes(WITHDRAW, *loan),
            Self::GiveBack(loan) => loan_bytes(GIVE_BACK, *loan),
            Self::Apart(place) => place_bytes(APART, *place),
            Self::Over(place) => place_bytes(OVER, *place),
            Self::Call => bytes(&head::<HeadWire>(CALL)),
            Self::Here => bytes(&head::<HeadWire>(HERE)),
            Self::Bye => bytes(&head::<HeadWire>(BYE)),
        }
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`PeerError`] if it is not exactly a message of this version.
    pub(super) fn parse(datagram: &[u8]) -> Result<Self, PeerError> {
        let wrong = |want| PeerError::Bytes { bytes: datagram.len(), want };
        let (head, _) =
            HeadWire::read_from_prefix(datagram).map_err(|_| wrong("at least 16 are a head"))?;
        field("magic", head.magic, head.magic == MAGIC, "0x31505256")?;
        if head.version != VERSION {
            return Err(PeerError::Version { version: head.version });
        }
        zero("head.reserved", head.reserved)?;
        if usize::try_from(head.bytes) != Ok(datagram.len()) {
            return Err(wrong("its head says another number"));
        }
        Ok(match head.kind {
            HELLO => Self::Hello(Hello::parse(exact(datagram)?)?),
            WELCOME => Self::Welcome(Hello::parse(exact(datagram)?)?),
            REFUSE => {
                let wire: FailureWire = exact(datagram)?;
                field("tag", wire.tag, wire.tag == 0, "0")?;
                Self::Refuse(Failure::parse(&wire)?)
            }
            NO => {
                let wire: FailureWire = exact(datagram)?;
                Self::No(wire.tag, Failure::parse(&wire)?)
            }
            READY => parse_ready(&exact(datagram)?)?,
            kind @ (UP | BARREN | QUIET) => {
                let StepWire { rail, life, .. } = exact(datagram)?;
                let say = match kind {
                    UP => Say::Up { life },
                    BARREN => Say::Barren { life },
                    _ => Say::Quiet { life },
                };
                Self::Joint(parse_rail(rail)?, say)
            }
            WANT => {
                let wire: WantWire = exact(datagram)?;
                zero("reserved", wire.reserved)?;
                let known = wire.rights & !RIGHTS_ALL == 0;
                field("rights", wire.rights, known, "of RIGHT_*")?;
                let WantWire { tag, uid, asker, rights, name, secret, .. } = wire;
                Self::Want(Want { tag, uid, asker, rights, name, secret })
            }
            HAVE => Self::Have(Have::parse(&exact(datagram)?)?),
            WITHDRAW => Self::Withdraw(parse_loan(datagram)?),
            GIVE_BACK => Self::GiveBack(parse_loan(datagram)?),
            APART => Self::Apart(parse_place(datagram)?),
            OVER => Self::Over(parse_place(datagram)?),
            CALL => exact::<HeadWire>(datagram).map(|_| Self::Call)?,
            HERE => exact::<HeadWire>(datagram).map(|_| Self::Here)?,
            BYE => exact::<HeadWire>(datagram).map(|_| Self::Bye)?,
            kind => {
                let (field, value, limit) = ("kind", u64::from(kind), "1 to 17");
                return Err(PeerError::Field { field, value, limit });
            }
        })
    }
}

/// Any datagram: what is parsed says the same once more.
#[cfg(fuzzing)]
pub(crate) fn fuzz(datagram: &[u8]) {
    if let Ok(message) = Message::parse(datagram) {
        assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
    }
}

/// True if a datagram's first word is a peer's, not a client's.
pub(crate) fn is_peers(datagram: &[u8]) -> bool {
    datagram.starts_with(&MAGIC.to_le_bytes())
}

impl Hello {
    fn to_bytes(self, kind: u16) -> Vec<u8> {
        let Self { boot_id, pid, rails, cards, there, picked, own, told, .. } = self;
        let Self { silence_ms, link, features, .. } = self;
        let head = head::<HelloWire>(kind);
        let (rails, cards, there) = (rails.into(), cards.into(), there.into());
        let wire = HelloWire {
            head,
            boot_id,
            pid,
            rails,
            cards,
            silence_ms,
            link,
            there,
            picked,
            told,
            features,
            own,
        };
        bytes(&wire)
    }

    fn parse(wire: HelloWire) -> Result<Self, PeerError> {
        let HelloWire { boot_id, pid, rails, cards, silence_ms, link, picked, told, .. } = wire;
        let HelloWire { features, own, .. } = wire;
        field("silence_ms", silence_ms, silence_ms <= SILENCE_MS_MAX, "at most 600000")?;
        let allowed = rails == 1 || rails == u32::from(RAILS_A_CARD_MAX);
        field("rails", rails, allowed, "1, or 3 for one a class")?;
        let rails = if rails == 1 { 1 } else { RAILS_A_CARD_MAX };
        let known = card(cards.wrapping_sub(1));
        field("cards", cards, known.is_some(), "1 to 4")?;
        let cards = known.map_or(1, |last| last + 1);
        let there = card(wire.there.wrapping_sub(1)).map_or(0, |last| last + 1);
        field("there", wire.there, there >= cards, "cards to 4")?;
        for (at, card) in picked.iter().enumerate() {
            let known = *card < there && !picked[..at].contains(card);
            field("picked", *card, known || at >= cards.into(), "each a card that is there, once")?;
        }
        for (at, card) in own.iter().enumerate() {
            let known = usize::from(*card) < CARDS_MAX && !own[..at].contains(card);
            field("own", *card, known || at >= cards.into(), "each below 4, once")?;
        }
        Ok(Self {
            boot_id,
            pid,
            rails,
            cards,
            there,
            picked,
            own,
            told,
            silence_ms,
            link,
            features,
        })
    }
}

impl Failure {
    fn to_bytes(&self, kind: u16, tag: u64) -> Vec<u8> {
        let mut end = self.text.len().min(TEXT_BYTES);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let mut text = [0; TEXT_BYTES];
        text[..end].copy_from_slice(&self.text.as_bytes()[..end]);
        let text_bytes = u16::try_from(end).unwrap_or(0);
        let (errno, detail) = (self.errno, self.detail);
        let head = head::<FailureWire>(kind);
        bytes(&FailureWire { head, tag, errno, detail, text_bytes, text })
    }

    fn parse(wire: &FailureWire) -> Result<Self, PeerError> {
        let FailureWire { errno, detail, text_bytes, text, .. } = wire;
        let value = u64::try_from(*errno).unwrap_or(0);
        field("errno", value, (1..4_096).contains(errno), "1 to 4095")?;
        let inside = text.get(..usize::from(*text_bytes));
        let text = inside.and_then(|inside| std::str::from_utf8(inside).ok());
        field("text_bytes", *text_bytes, text.is_some(), "at most 240, all UTF-8")?;
        // For a log and a terminal: nothing that moves a cursor.
        let text = text.unwrap_or_default().replace(|letter: char| letter.is_control(), " ");
        Ok(Self { errno: *errno, detail: *detail, text })
    }
}

impl Have {
    fn to_bytes(&self) -> Vec<u8> {
        let mut keys = [KeyWire::new_zeroed(); KEYS_A_MESSAGE];
        for (wire, (card, key)) in keys.iter_mut().zip(&self.keys) {
            let Key { offset, bytes, address, rkey, .. } = *key;
            *wire = KeyWire { offset, bytes, address, rkey, card: u32::from(*card) };
        }
        let Self { tag, loan, region, rights, keys_total, first, .. } = *self;
        let count = u32::try_from(self.keys.len()).unwrap_or(0);
        let head = head::<HaveWire>(HAVE);
        let bytes_of_it = self.bytes;
        bytes(&HaveWire {
            head,
            tag,
            bytes: bytes_of_it,
            loan,
            region,
            rights,
            keys_total,
            first,
            count,
            keys,
        })
    }

    fn parse(wire: &HaveWire) -> Result<Self, PeerError> {
        let HaveWire { tag, bytes, loan, region, rights, keys_total, first, count, .. } = *wire;
        let known = rights & !RIGHTS_ALL == 0 && rights != 0;
        field("rights", rights, known, "of RIGHT_*, at least one")?;
        field("keys_total", keys_total, (1..=KEYS_MAX).contains(&keys_total), "1 to 4096")?;
        let inside = count > 0 && first.checked_add(count).is_some_and(|end| end <= keys_total);
        let held = wire.keys.get(..count as usize).filter(|_| inside);
        field("count", count, held.is_some(), "1 to 12, within keys_total")?;
        let key = |wire: &KeyWire| {
            let KeyWire { offset, bytes, address, rkey, card: number } = *wire;
            let known = card(number);
            field("keys.card", number, known.is_some(), "below 4")?;
            Ok((known.unwrap_or(0), Key { offset, bytes, address, lkey: 0, rkey }))
        };
        let keys = held.unwrap_or_default().iter().map(key).collect::<Result<_, _>>()?;
        Ok(Self { tag, loan, region, bytes, rights, keys_total, first, keys })
    }
}

fn say_bytes(rail: u8, say: &Say) -> Vec<u8> {
    let rail = u32::from(rail);
    let step = |kind, life| bytes(&StepWire { head: head::<StepWire>(kind), rail, life });
    match *say {
        Say::Up { life } => step(UP, life),
        Say::Barren { life } => step(BARREN, life),
        Say::Quiet { life } => step(QUIET, life),
        Say::Ready { life, endpoint, round } => {
            let Endpoint { number, psn, gid, lid, mtu_bytes, reads_in, reads_out, credits } =
                endpoint;
            bytes(&ReadyWire {
                head: head::<ReadyWire>(READY),
                rail,
                life,
                number,
                psn,
                gid,
                mtu_bytes,
                credits,
                lid,
                reads_in,
                reads_out,
                round,
            })
        }
    }
}

fn parse_ready(wire: &ReadyWire) -> Result<Message, PeerError> {
    let ReadyWire { life, number, psn, gid, mtu_bytes, credits, lid, .. } = *wire;
    let ReadyWire { reads_in, reads_out, round, .. } = *wire;
    field("number", number, number < 1 << 24, "below 2^24")?;
    field("psn", psn, psn < 1 << 24, "below 2^24")?;
    let mtu = matches!(mtu_bytes, 256 | 512 | 1024 | 2048 | 4096);
    field("mtu_bytes", mtu_bytes, mtu, "256, 512, 1024, 2048 or 4096")?;
    field("credits", credits, credits <= CREDITS_MAX, "at most 2^20")?;
    let endpoint = Endpoint { number, psn, gid, lid, mtu_bytes, reads_in, reads_out, credits };
    Ok(Message::Joint(parse_rail(wire.rail)?, Say::Ready { life, endpoint, round }))
}

fn parse_rail(rail: u32) -> Result<u8, PeerError> {
    let known = u8::try_from(rail).ok().filter(|rail| *rail < APARTS.end);
    field("rail", rail, known.is_some(), "below 20")?;
    Ok(known.unwrap_or(0))
}

/// A card's number, if there can be such a card.
fn card(number: u32) -> Option<u8> {
    u8::try_from(number).ok().filter(|number| usize::from(*number) < CARDS_MAX)
}

fn place_bytes(kind: u16, place: u8) -> Vec<u8> {
    bytes(&PlaceWire { head: head::<PlaceWire>(kind), place: u32::from(place), reserved: 0 })
}

fn parse_place(datagram: &[u8]) -> Result<u8, PeerError> {
    let wire: PlaceWire = exact(datagram)?;
    zero("reserved", wire.reserved)?;
    let known = u8::try_from(wire.place).ok().filter(|place| APARTS.contains(place));
    field("place", wire.place, known.is_some(), "12 to 19")?;
    Ok(known.unwrap_or(APARTS.start))
}

fn loan_bytes(kind: u16, loan: u32) -> Vec<u8> {
    bytes(&LoanWire { head: head::<LoanWire>(kind), loan, reserved: 0 })
}

fn parse_loan(datagram: &[u8]) -> Result<u32, PeerError> {
    let wire: LoanWire = exact(datagram)?;
    zero("reserved", wire.reserved)?;
    Ok(wire.loan)
}

fn head<T>(kind: u16) -> HeadWire {
    let bytes = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
    HeadWire { magic: MAGIC, version: VERSION, kind, bytes, reserved: 0 }
}

fn bytes<T: IntoBytes + Immutable>(wire: &T) -> Vec<u8> {
    wire.as_bytes().to_vec()
}

fn exact<T: FromBytes + Immutable + KnownLayout>(datagram: &[u8]) -> Result<T, PeerError> {
    let want = "its kind has another size";
    T::read_from_bytes(datagram).map_err(|_| PeerError::Bytes { bytes: datagram.len(), want })
}

fn field(
    field: &'static str,
    value: impl Into<u64>,
    allowed: bool,
    limit: &'static str,
) -> Result<(), PeerError> {
    let value = value.into();
    if allowed { Ok(()) } else { Err(PeerError::Field { field, value, limit }) }
}

fn zero(name: &'static str, value: u32) -> Result<(), PeerError> {
    field(name, value, value == 0, "0")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::wire;

    fn endpoint() -> Endpoint {
        Endpoint {
            number: 0x12_3456,
            psn: 0xff_ffff,
            gid: [7; 16],
            lid: 9,
            mtu_bytes: 2048,
            reads_in: 16,
            reads_out: 8,
            credits: 40,
        }
    }

    fn messages() -> Vec<Message> {
        let hello = Hello {
            boot_id: [1, 2],
            pid: 3,
            rails: 3,
            cards: 4,
            there: 4,
            picked: [3, 2, 0, 1],
            own: [1, 0, 2, 3],
            told: [[[7; 16]; 4]; 4],
            silence_ms: 600_000,
            link: 5,
            features: 7,
        };
        let failure = Failure { errno: 13, detail: 25, text: "the secret is wrong".into() };
        let key = Key { offset: 0, bytes: 4096, address: 0x7000, lkey: 0, rkey: 5 };
        let want = Want {
            tag: 4,
            uid: 5,
            asker: 6,
            rights: RIGHTS_ALL,
            name: [b'a'; 64],
            secret: [8; 32],
        };
        let have = Have {
            tag: 4,
            loan: 5,
            region: 6,
            bytes: 7,
            rights: 8,
            keys_total: 13,
            first: 1,
            keys: (0..12).map(|at| (at / 3, key)).collect(),
        };
        vec![
            Message::Hello(hello),
            Message::Welcome(Hello { rails: 1, cards: 1, ..hello }),
            Message::Refuse(failure.clone()),
            Message::Joint(19, Say::Ready { life: 5, endpoint: endpoint(), round: 6 }),
            Message::Joint(1, Say::Up { life: u32::MAX }),
            Message::Joint(2, Say::Barren { life: 7 }),
            Message::Joint(0, Say::Quiet { life: 0 }),
            Message::Want(want),
            Message::Have(have),
            Message::No(7, failure),
            Message::Withdraw(3),
            Message::GiveBack(4),
            Message::Apart(APARTS.start),
            Message::Over(APARTS.end - 1),
            Message::Call,
            Message::Here,
            Message::Bye,
        ]
    }

    #[test]
    fn every_message_comes_back_and_is_no_clients() {
        for message in messages() {
            let datagram = message.to_bytes();
            assert!(is_peers(&datagram));
            assert_eq!(Message::parse(&datagram), Ok(message));
            assert!(wire::parse(&datagram).is_err());
        }
    }

    #[test]
    fn what_is_not_exactly_a_message_is_named() {
        for message in messages() {
            let good = message.to_bytes();
            for cut in 0..good.len() {
                assert!(Message::parse(&good[..cut]).is_err(), "{message:?} cut at {cut}");
            }
            let longer = [good.as_slice(), &[0]].concat();
            assert!(matches!(Message::parse(&longer), Err(PeerError::Bytes { .. })));
            let mut other = good.clone();
            other[4] = 1;
            assert_eq!(Message::parse(&other), Err(PeerError::Version { version: 1 }));
            let mut other = good.clone();
            other[0] ^= 1;
            let error = Message::parse(&other).unwrap_err().to_string();
            assert!(error.starts_with("magic is"), "{error}");
        }
    }

    #[test]
    fn cards_and_rails_that_cannot_be_are_named() {
        let refused = |message: &Message| Message::parse(&message.to_bytes()).unwrap_err();
        let Some(Message::Hello(hello)) = messages().into_iter().next() else { panic!("HELLO") };
        let hello = Hello { rails: 1, cards: 0, ..hello };
        assert_eq!(refused(&Message::Hello(hello)).to_string(), "cards is 0, but must be 1 to 4");
        let hello = Hello { cards: 5, ..hello };
        assert_eq!(refused(&Message::Hello(hello)).to_string(), "cards is 5, but must be 1 to 4");
        let hello = Hello { cards: 3, there: 2, ..hello };
        let text = refused(&Message::Hello(hello)).to_string();
        assert_eq!(text, "there is 2, but must be cards to 4");
        let hello = Hello { there: 3, picked: [0, 3, 0, 0], ..hello };
        let text = refused(&Message::Hello(hello)).to_string();
        assert_eq!(text, "picked is 3, but must be each a card that is there, once");
        let hello = Hello { picked: [2, 1, 2, 0], ..hello };
        assert!(Message::parse(&Message::Hello(hello).to_bytes()).is_err(), "twice");
        let hello = Hello { cards: 2, ..hello };
        assert!(Message::parse(&Message::Hello(hello).to_bytes()).is_ok(), "not used");
        let hello = Hello { own: [0, 4, 2, 3], ..hello };
        let text = refused(&Message::Hello(hello)).to_string();
        assert_eq!(text, "own is 4, but must be each below 4, once");
        let hello = Hello { own: [1, 1, 2, 3], ..hello };
        assert!(Message::parse(&Message::Hello(hello).to_bytes()).is_err(), "twice");
        let text = refused(&Message::Joint(20, Say::Up { life: 0 })).to_string();
        assert_eq!(text, "rail is 20, but must be below 20");
        for place in [0, 11, 20] {
            let text = refused(&Message::Apart(place)).to_string();
            assert_eq!(text, format!("place is {place}, but must be 12 to 19"));
        }
        let Some(Message::Have(mut have)) =
            messages().into_iter().find(|it| matches!(it, Message::Have(_)))
        else {
            panic!("there is one")
        };
        have.keys[7].0 = 4;
        let text = refused(&Message::Have(have)).to_string();
        assert_eq!(text, "keys.card is 4, but must be below 4");
    }

    #[test]
    fn texts_are_cut_at_a_letter_and_made_harmless() {
        let letters = "\u{e4}".repeat(121);
        let failure = Failure { errno: 1, detail: 0, text: format!("{}{letters}", "a") };
        let Ok(Message::No(1, back)) = Message::parse(&Message::No(1, failure).to_bytes()) else {
            panic!("no answer")
        };
        assert_eq!(back.text.len(), 239);
        let failure = Failure { errno: 1, detail: 0, text: "a\x1b[2J\nb".into() };
        let Ok(Message::Refuse(back)) = Message::parse(&Message::Refuse(failure).to_bytes()) else {
            panic!("no answer")
        };
        assert_eq!(back.text, "a [2J b");
    }

    proptest! {
        #![proptest_config(crate::seeds::property(4_000))]

        /// Bytes of any kind, and messages with some bytes changed: parsed or refused; and what is
        /// parsed says the same once more.
        #[test]
        fn no_bytes_make_the_parser_panic(
            which in 0..18_usize,
            noise in proptest::collection::vec(any::<u8>(), 0..520),
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6),
        ) {
            let mut datagram = messages().get(which).map_or(noise, Message::to_bytes);
            for (at, byte) in changes {
                let length = datagram.len().max(1);
                if let Some(place) = datagram.get_mut(at % length) {
                    *place = byte;
                }
            }
            if let Ok(message) = Message::parse(&datagram) {
                prop_assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
            }
        }
    }
}
