//! What a device says by itself, as values.

use super::sys;

/// An asynchronous event of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AsyncEvent {
    /// A queue pair is in ERROR, by no fault of a request of ours: its number.
    PairFailed(u32),
    /// Something went over a queue pair that was not yet in RTS: its number.
    PairEstablished(u32),
    /// No receive of a queue pair is touched any more: its number.
    PairDrained(u32),
    /// The completion queue overflowed; nothing on the device goes on.
    CompletionsLost,
    /// A port came up.
    PortActive(u32),
    /// A port went down.
    PortDown(u32),
    /// The addresses of a port changed: queue pairs may have to be connected anew.
    AddressesChanged(u32),
    /// The device must be closed and opened again.
    DeviceFailed,
    /// Another, as its number in libibverbs.
    Other(u32),
}

impl AsyncEvent {
    /// From `event_type`, and the number of the queue pair or port that it is about.
    #[must_use]
    pub fn from_ibv(event_type: u32, number: u32) -> Self {
        match event_type {
            sys::EVENT_CQ_ERR => Self::CompletionsLost,
            sys::EVENT_QP_FATAL | sys::EVENT_QP_REQ_ERR | sys::EVENT_QP_ACCESS_ERR => {
                Self::PairFailed(number)
            }
            sys::EVENT_COMM_EST => Self::PairEstablished(number),
            sys::EVENT_SQ_DRAINED | sys::EVENT_QP_LAST_WQE_REACHED => Self::PairDrained(number),
            sys::EVENT_DEVICE_FATAL => Self::DeviceFailed,
            sys::EVENT_PORT_ACTIVE => Self::PortActive(number),
            sys::EVENT_PORT_ERR => Self::PortDown(number),
            sys::EVENT_LID_CHANGE | sys::EVENT_GID_CHANGE => Self::AddressesChanged(number),
            other => Self::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are libibverbs' own, in the order of its enumeration.
    #[test]
    fn f12_events_keep_what_they_are_about() {
        use AsyncEvent::{
            AddressesChanged, CompletionsLost, DeviceFailed, Other, PairDrained, PairEstablished,
            PairFailed, PortActive, PortDown,
        };
        let meanings = [
            (0, CompletionsLost),
            (1, PairFailed(17)),
            (2, PairFailed(17)),
            (3, PairFailed(17)),
            (4, PairEstablished(17)),
            (5, PairDrained(17)),
            (8, DeviceFailed),
            (9, PortActive(17)),
            (10, PortDown(17)),
            (11, AddressesChanged(17)),
            (13, Other(13)),
            (16, PairDrained(17)),
            (18, AddressesChanged(17)),
            (77, Other(77)),
        ];
        for (number, meaning) in meanings {
            assert_eq!(AsyncEvent::from_ibv(number, 17), meaning, "event {number}");
        }
    }
}
