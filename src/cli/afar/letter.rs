//! What lies in a mailbox: one letter, as bytes and as a value.
//!
//! A letter is written by one end and read by the other while it may be half there, and either end
//! may be anybody with the secret. Its last word is a check over the rest: a letter that is torn
//! is one that is not there yet. A check that is right says nothing of who wrote it, so that every
//! field is looked at.
//! **Tests**: here, with every byte changed, and with bytes of no meaning.

use sha2::{Digest, Sha256};
use thiserror::Error;

/// Bytes of a letter.
pub(super) const LETTER_BYTES: usize = 96;

/// An order, or an answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Letter {
    /// Tells one run of a near end from another; random.
    pub(super) run: u64,
    /// Of the order in its run, from 1; an answer has that of its order.
    pub(super) sequence: u64,
    pub(super) body: Body,
}

/// What a letter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Order: so many bytes were placed from the region's start; `last` of the file.
    Look { bytes: u64, last: bool },
    /// Order: nothing more is wanted.
    Done,
    /// Answer: it was looked at.
    Seen,
    /// Answer to the last of a file: the SHA-256 of all of it.
    Digest([u8; 32]),
    /// Answer: the order cannot be followed.
    Refused,
}

/// A whole letter that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{field} of the letter is {value:#x}, but must be {limit}")]
pub(super) struct BadLetter {
    field: &'static str,
    value: u64,
    limit: &'static str,
}

const MAGIC: u64 = u64::from_le_bytes(*b"vr-mail1");

/// Where in a letter its parts begin.
const RUN_AT: usize = 8;
const SEQUENCE_AT: usize = 16;
const KIND_AT: usize = 24;
const BYTES_AT: usize = 32;
const DIGEST_AT: usize = 40;
const RESERVED_AT: usize = 72;
const CHECK_AT: usize = 88;

impl Letter {
    pub(super) fn to_bytes(self) -> [u8; LETTER_BYTES] {
        let mut bytes = [0; LETTER_BYTES];
        let (kind, value, digest) = match self.body {
            Body::Look { bytes, last: false } => (1, bytes, [0; 32]),
            Body::Look { bytes, last: true } => (2, bytes, [0; 32]),
            Body::Done => (3, 0, [0; 32]),
            Body::Seen => (4, 0, [0; 32]),
            Body::Digest(digest) => (5, 0, digest),
            Body::Refused => (6, 0, [0; 32]),
        };
        let words = [(0, MAGIC), (RUN_AT, self.run), (SEQUENCE_AT, self.sequence)];
        for (at, word) in words.into_iter().chain([(KIND_AT, kind), (BYTES_AT, value)]) {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[DIGEST_AT..RESERVED_AT].copy_from_slice(&digest);
        let check = check(&bytes);
        bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads a letter; `None` if there is none, or not all of it yet.
    pub(super) fn parse(bytes: &[u8; LETTER_BYTES]) -> Result<Option<Self>, BadLetter> {
        if word(bytes, CHECK_AT) != check(bytes) {
            return Ok(None);
        }
        let bad = |field, value, limit| Err(BadLetter { field, value, limit });
        let magic = word(bytes, 0);
        if magic != MAGIC {
            return bad("magic", magic, "that of this version of verbring");
        }
        let (kind, value) = (word(bytes, KIND_AT), word(bytes, BYTES_AT));
        let digest = &bytes[DIGEST_AT..RESERVED_AT];
        let body = match kind {
            1 => Body::Look { bytes: value, last: false },
            2 => Body::Look { bytes: value, last: true },
            3 => Body::Done,
            4 => Body::Seen,
            5 => Body::Digest(digest.try_into().unwrap_or([0; 32])),
            6 => Body::Refused,
            _ => return bad("kind", kind, "1 to 6"),
        };
        if !matches!(body, Body::Look { .. }) && value != 0 {
            return bad("bytes", value, "0 in a letter of its kind");
        }
        if !matches!(body, Body::Digest(_)) && digest.iter().any(|byte| *byte != 0) {
            return bad("digest", word(bytes, DIGEST_AT), "zeros in a letter of its kind");
        }
        for at in [RESERVED_AT, RESERVED_AT + 8] {
            if word(bytes, at) != 0 {
                return bad("a reserved word", word(bytes, at), "0");
            }
        }
        let (run, sequence) = (word(bytes, RUN_AT), word(bytes, SEQUENCE_AT));
        if sequence == 0 {
            return bad("sequence", sequence, "1 or more");
        }
        Ok(Some(Self { run, sequence, body }))
    }
}

fn word(bytes: &[u8; LETTER_BYTES], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

/// The first word of a SHA-256 over all but itself.
fn check(bytes: &[u8; LETTER_BYTES]) -> u64 {
    let digest = Sha256::digest(&bytes[..CHECK_AT]);
    digest[..8].try_into().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODIES: [Body; 6] = [
        Body::Look { bytes: 8 << 20, last: false },
        Body::Look { bytes: 0, last: true },
        Body::Done,
        Body::Seen,
        Body::Digest([7; 32]),
        Body::Refused,
    ];

    /// As somebody would write it who knows the check.
    fn sealed(mut bytes: [u8; LETTER_BYTES]) -> [u8; LETTER_BYTES] {
        let check = check(&bytes);
        bytes[CHECK_AT..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    #[test]
    fn a_letter_is_read_as_it_was_written_and_torn_it_is_not_there() {
        for body in BODIES {
            let letter = Letter { run: u64::MAX, sequence: 3, body };
            let bytes = letter.to_bytes();
            assert_eq!(Letter::parse(&bytes), Ok(Some(letter)));
            for at in 0..LETTER_BYTES {
                let mut torn = bytes;
                torn[at] ^= 0x10;
                assert_eq!(Letter::parse(&torn), Ok(None), "byte {at}");
            }
        }
        assert_eq!(Letter::parse(&[0; LETTER_BYTES]), Ok(None));
        assert_eq!(Letter::parse(&[0xff; LETTER_BYTES]), Ok(None));
    }

    #[test]
    fn a_right_check_over_wrong_fields_is_refused_by_name() {
        let good = Letter { run: 1, sequence: 1, body: Body::Done }.to_bytes();
        for (at, field) in [
            (0, "magic"),
            (KIND_AT + 4, "kind"),
            (BYTES_AT, "bytes"),
            (DIGEST_AT + 31, "digest"),
            (RESERVED_AT, "reserved"),
            (CHECK_AT - 1, "reserved"),
        ] {
            let mut bytes = good;
            bytes[at] ^= 1;
            let text = Letter::parse(&sealed(bytes)).unwrap_err().to_string();
            assert!(text.contains(field) && text.contains("must be"), "{text}");
        }
        let mut bytes = good;
        bytes[SEQUENCE_AT] = 0;
        assert!(Letter::parse(&sealed(bytes)).unwrap_err().to_string().contains("sequence"));
    }

    proptest! {
        /// What parses writes the same bytes again: no two letters mean the same.
        #[test]
        fn bytes_of_no_meaning_are_never_taken_for_a_letter(
            bytes in proptest::collection::vec(0u8..8, LETTER_BYTES),
            like in 0usize..7,
        ) {
            let mut bytes: [u8; LETTER_BYTES] = bytes.try_into().unwrap();
            if let Some(body) = BODIES.get(like) {
                let whole = Letter { run: 5, sequence: 2, body: *body }.to_bytes();
                bytes[..KIND_AT + 8].copy_from_slice(&whole[..KIND_AT + 8]);
            }
            let bytes = sealed(bytes);
            if let Ok(Some(letter)) = Letter::parse(&bytes) {
                prop_assert_eq!(letter.to_bytes(), bytes);
            }
        }
    }
}
