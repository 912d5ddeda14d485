//! Ends of connections, joined by hand: what goes through, and what does not.

use proptest::prelude::*;

use super::*;
use crate::gate::key::tests_key as key;

/// Carries all that one end has said to the other, in pieces of so many bytes.
fn carry(from: &mut Channel, to: &mut Channel, piece: usize) -> Result<Vec<Vec<u8>>, ChannelError> {
    let bytes = from.unsent().to_vec();
    from.sent(bytes.len());
    let mut messages = Vec::new();
    for part in bytes.chunks(piece) {
        to.hear(part, &mut messages)?;
    }
    Ok(messages)
}

fn joined(piece: usize) -> (Channel, Channel) {
    let mut one = Channel::initiator(&key(1)).unwrap();
    let mut other = Channel::responder(&key(1)).unwrap();
    assert_eq!(carry(&mut one, &mut other, piece), Ok(Vec::new()));
    assert!(!other.proved(), "it may be a copy of what another has said");
    assert_eq!(carry(&mut other, &mut one, piece), Ok(Vec::new()));
    assert!(one.proved());
    (one, other)
}

#[test]
fn messages_go_both_ways_however_they_are_cut() {
    for piece in [1, 2, 7, 60, 4_096] {
        let (mut one, mut other) = joined(piece);
        let messages: Vec<Vec<u8>> =
            [1, 2, 16, MESSAGE_BYTES_MAX].into_iter().map(|length| vec![9; length]).collect();
        for message in &messages {
            one.say(message).unwrap();
        }
        assert_eq!(carry(&mut one, &mut other, piece), Ok(messages.clone()));
        assert!(other.proved());
        for message in messages.iter().rev() {
            other.say(message).unwrap();
        }
        let back: Vec<_> = messages.into_iter().rev().collect();
        assert_eq!(carry(&mut other, &mut one, piece), Ok(back));
        let long = one.say(&[0; MESSAGE_BYTES_MAX + 1]).unwrap_err().to_string();
        assert_eq!(long, "a record is 513 bytes, but must be 1 to 512");
        assert_eq!(
            one.say(b"").unwrap_err().to_string(),
            "a record is 0 bytes, but must be 1 to 512"
        );
    }
}

#[test]
fn nothing_is_said_in_the_clear() {
    let (mut one, _) = joined(99);
    let secret = b"a secret that is long enough";
    one.say(secret).unwrap();
    assert!(!one.unsent().windows(8).any(|window| secret.starts_with(window)));
}

#[test]
fn another_key_is_told_to_both_ends() {
    let mut one = Channel::initiator(&key(1)).unwrap();
    let mut other = Channel::responder(&key(2)).unwrap();
    assert_eq!(carry(&mut one, &mut other, 99), Err(ChannelError::Key));
    assert_eq!(carry(&mut other, &mut one, 99), Err(ChannelError::Key));
    assert_eq!(one.say(b"anything"), Err(ChannelError::Over));
    assert_eq!(other.hear(b"", &mut Vec::new()), Err(ChannelError::Over));
}

#[test]
fn another_version_is_told_to_both_ends() {
    let mut other = Channel::responder(&key(1)).unwrap();
    let theirs = preamble(7, Status::Welcome);
    assert_eq!(other.hear(&theirs, &mut Vec::new()), Err(ChannelError::Version { theirs: 7 }));
    let mut one = Channel::initiator(&key(1)).unwrap();
    assert_eq!(carry(&mut other, &mut one, 99), Err(ChannelError::Version { theirs: 1 }));
    // One that does not say so, but is.
    let mut one = Channel::initiator(&key(1)).unwrap();
    assert_eq!(one.hear(&theirs, &mut Vec::new()), Err(ChannelError::Version { theirs: 7 }));
    let mut one = Channel::initiator(&key(1)).unwrap();
    let odd = [MAGIC.as_slice(), &[1, 0, 9, 0]].concat();
    assert_eq!(one.hear(&odd, &mut Vec::new()), Err(ChannelError::Status { status: 9 }));
}

#[test]
fn strangers_are_known_by_their_first_byte_and_get_no_answer() {
    for text in ["GET / HTTP/1.1\r\n", "V", "VRBX", "\0\0\0\0"] {
        let mut other = Channel::responder(&key(1)).unwrap();
        let came = other.hear(text.as_bytes(), &mut Vec::new());
        let begins = MAGIC.starts_with(text.as_bytes());
        assert_eq!(came, if begins { Ok(()) } else { Err(ChannelError::Stranger) }, "{text}");
        assert_eq!(other.unsent(), b"");
    }
}

#[test]
fn lengths_that_cannot_be_are_seen_before_anything_is_held() {
    let mut other = Channel::responder(&key(1)).unwrap();
    let huge = [preamble(VERSION, Status::Welcome).as_slice(), &[0xff, 0xff]].concat();
    let error = ChannelError::Record { bytes: 65_535, low: 48, high: 48 };
    assert_eq!(other.hear(&huge, &mut Vec::new()), Err(error));
    for bytes in [0, 16, 529_u16, u16::MAX] {
        let (mut one, _) = joined(99);
        let error = ChannelError::Record { bytes: usize::from(bytes), low: 17, high: 528 };
        assert_eq!(one.hear(&bytes.to_le_bytes(), &mut Vec::new()), Err(error));
    }
}

#[test]
fn a_record_that_was_meddled_with_does_not_open() {
    let sealed = |one: &mut Channel| {
        one.say(b"first").unwrap();
        let bytes = one.unsent().to_vec();
        one.sent(bytes.len());
        bytes
    };
    let heard = |other: &mut Channel, bytes: &[u8]| {
        let mut messages = Vec::new();
        other.hear(bytes, &mut messages).map(|()| messages.len())
    };
    // Changed, anywhere behind its length.
    for at in LENGTH_BYTES..LENGTH_BYTES + 5 + SEAL_BYTES {
        let (mut one, mut other) = joined(99);
        let mut bytes = sealed(&mut one);
        bytes[at] ^= 1;
        assert_eq!(heard(&mut other, &bytes), Err(ChannelError::Forged), "at {at}");
    }
    // Repeated.
    let (mut one, mut other) = joined(99);
    let bytes = sealed(&mut one);
    assert_eq!(heard(&mut other, &bytes), Ok(1));
    assert_eq!(heard(&mut other, &bytes), Err(ChannelError::Forged));
    // Left out.
    let (mut one, mut other) = joined(99);
    sealed(&mut one);
    let second = sealed(&mut one);
    assert_eq!(heard(&mut other, &second), Err(ChannelError::Forged));
    // Sent back.
    let (mut one, _) = joined(99);
    let own = sealed(&mut one);
    assert_eq!(heard(&mut one, &own), Err(ChannelError::Forged));
    // Of another connection.
    let ((mut one, _), (_, mut other)) = (joined(99), joined(99));
    assert_eq!(heard(&mut other, &sealed(&mut one)), Err(ChannelError::Forged));
}

#[test]
fn a_copy_of_anothers_first_words_proves_nothing() {
    let mut one = Channel::initiator(&key(1)).unwrap();
    let words = one.unsent().to_vec();
    one.sent(words.len());
    for _ in 0..2 {
        let mut other = Channel::responder(&key(1)).unwrap();
        assert_eq!(other.hear(&words, &mut Vec::new()), Ok(()));
        assert!(!other.proved());
        // Whoever cannot seal a record gets no further.
        let error = other.hear(
            &[17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17],
            &mut Vec::new(),
        );
        assert_eq!(error, Err(ChannelError::Forged));
        assert!(!other.proved());
    }
}

proptest! {
    #![proptest_config(crate::seeds::property(300))]

    /// Bytes of any kind, at any time: an error or nothing, never a message, and never more held
    /// than one record.
    #[test]
    fn no_bytes_make_a_message_or_fill_memory(
        greeted in any::<bool>(),
        initiator in any::<bool>(),
        begins in any::<bool>(),
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..700), 1..6),
    ) {
        let mut end = match (greeted, initiator) {
            (true, true) => joined(99).0,
            (true, false) => joined(99).1,
            (false, true) => Channel::initiator(&key(1)).unwrap(),
            (false, false) => Channel::responder(&key(1)).unwrap(),
        };
        let mut messages = Vec::new();
        if begins {
            let _ = end.hear(&preamble(VERSION, Status::Welcome), &mut messages);
        }
        for piece in pieces {
            let _ = end.hear(&piece, &mut messages);
            prop_assert!(end.heard.len() <= LENGTH_BYTES + RECORD_BYTES_MAX);
        }
        prop_assert!(messages.is_empty());
    }
}
