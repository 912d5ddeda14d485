//! Who is measured: the engine's ring, and what it is held against.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A contestant. Its name in rows is its serde name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Who {
    /// A ring through the engine.
    Verbring,
    /// The same ring over again: what it differs by is the error of the measurement.
    #[serde(rename = "self")]
    Again,
    /// A ring of an engine in mode direct: what it differs by is the price of scheduling.
    Direct,
    /// A ring of an engine that has many idle ones beside it.
    VerbringIdleRings,
    /// The bare ring: an echo, no payload.
    Bare,
    /// The bare ring with a plain memcpy at its far end.
    BareMemcpy,
    /// io_uring NOPs, entered by system calls.
    IoUring,
    /// io_uring NOPs, taken by a kernel thread.
    IoUringSqpoll,
    /// A queue pair, posted to and polled without an engine.
    Verbs,
    /// A futex wake there and a futex wake back.
    Futex,
}

impl Who {
    /// Its name in rows.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Verbring => "verbring",
            Self::Again => "self",
            Self::Direct => "direct",
            Self::VerbringIdleRings => "verbring_idle_rings",
            Self::Bare => "bare",
            Self::BareMemcpy => "bare_memcpy",
            Self::IoUring => "io_uring",
            Self::IoUringSqpoll => "io_uring_sqpoll",
            Self::Verbs => "verbs",
            Self::Futex => "futex",
        }
    }

    /// True if its far end is the echo process.
    pub(super) fn echoes(self) -> bool {
        matches!(self, Self::Bare | Self::BareMemcpy | Self::Futex)
    }

    /// True if it moves the payload; the others run NOPs, whatever the op is.
    pub(super) fn moves_payload(self) -> bool {
        matches!(
            self,
            Self::Verbring
                | Self::Again
                | Self::Direct
                | Self::VerbringIdleRings
                | Self::BareMemcpy
                | Self::Verbs
        )
    }
}

/// What a `--baseline` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Baseline {
    /// A bare ring of the same entries between two processes: no payload.
    Bare,
    /// That ring with a plain memcpy over the same working set.
    Memcpy,
    /// io_uring NOPs, entered by system calls.
    #[value(name = "io_uring")]
    IoUring,
    /// io_uring NOPs, taken by a kernel thread on the engine's core.
    Sqpoll,
    /// The measured ring itself, which shows the error of the measurement.
    #[value(name = "self")]
    Again,
    /// An engine in mode direct, beside that in the usual mode.
    Direct,
    /// The same ops posted to a queue pair and polled, without an engine.
    Verbs,
    /// A futex wake there and back (with --sleep).
    Futex,
}

impl Baseline {
    pub(super) fn who(self) -> Who {
        match self {
            Self::Bare => Who::Bare,
            Self::Memcpy => Who::BareMemcpy,
            Self::IoUring => Who::IoUring,
            Self::Sqpoll => Who::IoUringSqpoll,
            Self::Again => Who::Again,
            Self::Direct => Who::Direct,
            Self::Verbs => Who::Verbs,
            Self::Futex => Who::Futex,
        }
    }
}

/// What carries the measured ops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Carrier {
    /// Copies within one engine.
    #[default]
    Local,
    /// Queue pairs from one engine to another.
    Verbs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_in_rows_and_in_messages() {
        let all = [
            Who::Verbring,
            Who::Again,
            Who::Direct,
            Who::VerbringIdleRings,
            Who::Bare,
            Who::BareMemcpy,
            Who::IoUring,
            Who::IoUringSqpoll,
            Who::Verbs,
            Who::Futex,
        ];
        for who in all {
            assert_eq!(serde_json::to_value(who).unwrap(), who.name());
        }
    }
}
