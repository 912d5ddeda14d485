//! Control messages as bytes: syntax only. Meaning is in `server`.

use std::fmt;
use std::path::{Path, PathBuf};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{
    self, CardsRequest, Connect, Detail, ERROR_TEXT_MAX, Export, Head, Hello, Import, Kind, Mapped,
    OpQuery, PeersRequest, Probe, REPLY, RecorderRequest, RegionRequest, Release, ReplyHead,
    RingRequest, Stats, TelemetryRequest, errno,
};

/// A well-formed request.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "one variant a message of abi::control")]
pub enum Request {
    Hello(Hello),
    Ring(RingRequest),
    Mapped(Mapped),
    Region(RegionRequest),
    Export(Export),
    Import(Import),
    Connect(Connect),
    Release(Release),
    Probe(Probe),
    Stats(Stats),
    Cancel(OpQuery),
    Why(OpQuery),
    Recorder(RecorderRequest),
    Telemetry(TelemetryRequest),
    Peers(PeersRequest),
    Cards(CardsRequest),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// Positive errno.
    pub errno: i32,
    /// What it is about.
    pub detail: Detail,
    /// For people: field, value, limit, what to do.
    pub text: String,
}

impl Refusal {
    /// Composes a refusal.
    pub fn new(errno: i32, detail: Detail, text: impl Into<String>) -> Self {
        Self { errno, detail, text: text.into() }
    }
}

/// Reads the head of a datagram, if it has one.
#[must_use]
pub fn head(bytes: &[u8]) -> Option<Head> {
    Head::read_from_prefix(bytes).ok().map(|(head, _)| head)
}

/// Checks a datagram's syntax: kind, size, reserved fields.
///
/// # Errors
/// A [`Refusal`] for the sender.
pub fn parse(bytes: &[u8]) -> Result<Request, Refusal> {
    let kind = kind_of(bytes)?;
    let reserved = |value: u32| {
        if value == 0 { Ok(()) } else { Err(malformed(format!("reserved is {value}, must be 0"))) }
    };
    Ok(match kind {
        Kind::Hello => {
            let hello: Hello = exact(bytes)?;
            reserved(hello.reserved)?;
            Request::Hello(hello)
        }
        Kind::Ring => {
            let ring: RingRequest = exact(bytes)?;
            reserved(ring.reserved)?;
            Request::Ring(ring)
        }
        Kind::Mapped => Request::Mapped(exact(bytes)?),
        Kind::Region => Request::Region(exact(bytes)?),
        Kind::Export => Request::Export(exact(bytes)?),
        Kind::Import => {
            let import: Import = exact(bytes)?;
            reserved(import.reserved)?;
            Request::Import(import)
        }
        Kind::Connect => {
            let connect: Connect = exact(bytes)?;
            reserved(connect.reserved)?;
            Request::Connect(connect)
        }
        Kind::Release => Request::Release(exact(bytes)?),
        Kind::Probe => Request::Probe(exact(bytes)?),
        Kind::Stats => {
            let stats: Stats = exact(bytes)?;
            reserved(stats.reserved)?;
            Request::Stats(stats)
        }
        Kind::Cancel => Request::Cancel(exact(bytes)?),
        Kind::Why => Request::Why(exact(bytes)?),
        Kind::Recorder => {
            let recorder: RecorderRequest = exact(bytes)?;
            reserved(recorder.reserved)?;
            Request::Recorder(recorder)
        }
        Kind::Telemetry => Request::Telemetry(exact(bytes)?),
        Kind::Peers => {
            let peers: PeersRequest = exact(bytes)?;
            reserved(peers.reserved)?;
            Request::Peers(peers)
        }
        Kind::Cards => {
            let cards: CardsRequest = exact(bytes)?;
            reserved(cards.reserved)?;
            Request::Cards(cards)
        }
        Kind::Prepare => {
            let text = "PREPARE is defined but not served by this engine";
            return Err(Refusal::new(errno::EOPNOTSUPP, Detail::Message, text));
        }
    })
}

fn malformed(text: String) -> Refusal {
    Refusal::new(errno::EPROTO, Detail::Message, text)
}

/// Checks what is alike in all kinds.
fn kind_of(bytes: &[u8]) -> Result<Kind, Refusal> {
    let Some(head) = head(bytes) else {
        return Err(malformed(format!("a message of {} bytes has no 16-byte head", bytes.len())));
    };
    if head.reserved != 0 {
        return Err(malformed(format!("head.reserved is {}, but must be 0", head.reserved)));
    }
    if usize::try_from(head.bytes) != Ok(bytes.len()) {
        let (said, came) = (head.bytes, bytes.len());
        return Err(malformed(format!("head.bytes is {said}, but {came} bytes came")));
    }
    Kind::from_number(head.kind).ok_or_else(|| {
        let (kind, last) = (head.kind, Kind::ALL.len());
        malformed(format!("kind {kind} is not known; 1 to {last} are"))
    })
}

fn exact<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8]) -> Result<T, Refusal> {
    T::read_from_bytes(bytes).map_err(|_| {
        let text =
            format!("the message has {} bytes, but this kind has {}", bytes.len(), size_of::<T>());
        Refusal::new(errno::EPROTO, Detail::Message, text)
    })
}

/// Reads a zero-padded UTF-8 name.
///
/// # Errors
/// A [`Refusal`] if it is empty, not UTF-8, or has bytes behind its end.
pub fn name(field: &[u8]) -> Result<&str, Refusal> {
    text("name", Detail::Name, field)
}

/// Where another engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// On this host: its control socket.
    Socket(PathBuf),
    /// On any host: where its gate listens.
    Host {
        /// A name, or an address without brackets.
        host: String,
        /// The TCP port.
        port: u16,
    },
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
            Self::Host { host, port } if host.contains(':') => {
                write!(f, "verbring://[{host}]:{port}")
            }
            Self::Host { host, port } => write!(f, "verbring://{host}:{port}"),
        }
    }
}

/// Reads the URL of a CONNECT: `unix:` and an absolute path, or `verbring://HOST:PORT`, where an
/// IPv6 address stands in brackets.
///
/// # Errors
/// A [`Refusal`] as for a name, or if it is neither.
pub fn url(field: &[u8]) -> Result<Url, Refusal> {
    let url = text("url", Detail::Url, field)?;
    let path = url.strip_prefix("unix:").map(Path::new).filter(|path| path.is_absolute());
    let place = || url.strip_prefix("verbring://").and_then(host_and_port);
    path.map(|path| Url::Socket(path.to_path_buf())).or_else(place).ok_or_else(|| {
        let text = format!(
            "url is {url:?}, but must be unix: and an absolute path, or verbring://HOST:PORT"
        );
        Refusal::new(errno::EINVAL, Detail::Url, text)
    })
}

fn host_and_port(text: &str) -> Option<Url> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once("]:")?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port)
        }
        None => text.rsplit_once(':').filter(|(host, _)| !host.contains(':'))?,
    };
    let plain = |letter: char| letter.is_ascii_alphanumeric() || ".-_:".contains(letter);
    let digits = !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
    let port: u16 = port.parse().ok().filter(|port| digits && *port > 0)?;
    let named = !host.is_empty() && host.chars().all(plain);
    named.then(|| Url::Host { host: host.to_string(), port })
}

fn text<'f>(what: &str, detail: Detail, field: &'f [u8]) -> Result<&'f str, Refusal> {
    let bad = |text: String| Refusal::new(errno::EINVAL, detail, text);
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    if end == 0 {
        return Err(bad(format!("the {what} is empty; give 1 to {} bytes of UTF-8", field.len())));
    }
    if field[end..].iter().any(|&byte| byte != 0) {
        return Err(bad(format!("the {what} has bytes behind its end; pad with zeros")));
    }
    std::str::from_utf8(&field[..end]).map_err(|_| bad(format!("the {what} is not UTF-8")))
}

/// The head of a successful reply whose whole layout is `T`.
#[must_use]
pub fn reply_head<T>(kind: Kind, tag: u64) -> ReplyHead {
    let bytes = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
    ReplyHead { kind: kind as u16 | REPLY, bytes, tag, ..ReplyHead::default() }
}

/// The bytes of a failed reply.
#[must_use]
pub fn failure(kind: u16, tag: u64, refusal: &Refusal) -> Vec<u8> {
    let text = cut(&refusal.text, ERROR_TEXT_MAX).as_bytes();
    let head = ReplyHead {
        kind: kind | REPLY,
        reserved: 0,
        bytes: u32::try_from(size_of::<ReplyHead>() + text.len()).unwrap_or(u32::MAX),
        tag,
        status: -refusal.errno,
        detail: u32::from(refusal.detail as u16),
    };
    [head.as_bytes(), text].concat()
}

/// As much of a text as so many bytes hold, cut between two letters.
#[must_use]
pub fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Checks an entry count of a RING request.
///
/// # Errors
/// A [`Refusal`] that names the field.
pub fn entries(field: &str, value: u32) -> Result<(), Refusal> {
    if value.is_power_of_two() && (abi::ENTRIES_MIN..=abi::ENTRIES_MAX).contains(&value) {
        return Ok(());
    }
    let text = format!(
        "{field} is {value}, but must be a power of two from {} to {}",
        abi::ENTRIES_MIN,
        abi::ENTRIES_MAX
    );
    Err(Refusal::new(errno::EINVAL, Detail::Entries, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of each request; PREPARE has none.
    fn sizes() -> [(Kind, usize); 17] {
        [
            (Kind::Hello, 64),
            (Kind::Ring, 32),
            (Kind::Mapped, 24),
            (Kind::Region, 32),
            (Kind::Export, 88),
            (Kind::Import, 128),
            (Kind::Connect, 152),
            (Kind::Release, 24),
            (Kind::Prepare, 16),
            (Kind::Probe, 16),
            (Kind::Stats, 24),
            (Kind::Cancel, 32),
            (Kind::Why, 32),
            (Kind::Recorder, 24),
            (Kind::Telemetry, 16),
            (Kind::Peers, 24),
            (Kind::Cards, 24),
        ]
    }

    fn message(kind: u16, bytes: usize) -> Vec<u8> {
        let said = u32::try_from(bytes).unwrap();
        let head = Head { kind, reserved: 0, bytes: said, tag: 7 };
        let mut message = head.as_bytes().to_vec();
        message.resize(bytes.max(16), 0);
        message.truncate(bytes);
        message
    }

    #[test]
    fn each_kind_has_one_size_and_nothing_in_reserved_fields() {
        for (kind, bytes) in sizes() {
            let number = kind as u16;
            let served = parse(&message(number, bytes));
            if kind == Kind::Prepare {
                assert_eq!(served.unwrap_err().errno, errno::EOPNOTSUPP);
                continue;
            }
            served.unwrap();
            for other in (0..=200).filter(|other| *other != bytes) {
                let refusal = parse(&message(number, other)).unwrap_err();
                assert_eq!(refusal.errno, errno::EPROTO, "{kind:?}, {other} bytes");
            }
        }
        for number in [0, 18, 0x7fff, u16::MAX] {
            let refusal = parse(&message(number, 24)).unwrap_err();
            assert!(refusal.text.ends_with("is not known; 1 to 17 are"), "{refusal}");
        }
    }

    #[test]
    fn a_request_for_peers_is_read_whole() {
        let mut bytes = message(Kind::Peers as u16, 24);
        bytes[16..20].copy_from_slice(&0x8000_0001_u32.to_le_bytes());
        let Ok(Request::Peers(peers)) = parse(&bytes) else { panic!("no request") };
        assert_eq!((peers.at, peers.head.tag), (0x8000_0001, 7));
        bytes[20] = 1;
        let refusal = parse(&bytes).unwrap_err();
        assert_eq!((refusal.errno, refusal.detail), (errno::EPROTO, Detail::Message));
        assert!(refusal.text.contains("reserved is 1"), "{refusal}");
    }

    #[test]
    fn texts_are_cut_between_letters() {
        let text = "a\u{e4}\u{1f600}b";
        let cuts: Vec<&str> = (0..10).map(|bytes| cut(text, bytes)).collect();
        let (one, two, three) = ("a", "a\u{e4}", "a\u{e4}\u{1f600}");
        assert_eq!(cuts, ["", one, one, two, two, two, two, three, text, text]);
    }
}
