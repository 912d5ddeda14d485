//! What a failed work request means: whose fault it is, and the errno of the request that ends
//! by it.

use crate::abi::errno;

use super::provider::WcStatus;

/// Input or output error: the device or the peer's device failed.
pub const EIO: i32 = 5;
/// The peer did not answer in the time that the path's settings allow.
pub const ETIMEDOUT: i32 = 110;
/// The peer is gone.
pub const EHOSTDOWN: i32 = 112;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The request's own: to repeat it would fail again.
    Request,
    /// The peer's card would not have it. That is the request's own fault, unless the peer is
    /// going: a process that dies loses its keys before its queue pairs.
    Refused,
    /// Of the path, the peer or the queue pair: the request may do better on a fresh one.
    Path,
}

/// Judges a failed work request.
pub(super) fn judge(status: WcStatus) -> (Fault, i32) {
    match status {
        WcStatus::Success => unreachable!("a success was judged as a failure"),
        WcStatus::LocalLength => (Fault::Request, errno::EINVAL),
        WcStatus::LocalProtection | WcStatus::LocalAccess => (Fault::Request, errno::EACCES),
        WcStatus::RemoteInvalid => (Fault::Refused, errno::EINVAL),
        WcStatus::RemoteAccess => (Fault::Refused, errno::EACCES),
        WcStatus::RemoteOperation => (Fault::Refused, EIO),
        WcStatus::RetryExceeded | WcStatus::ReceiverNotReady | WcStatus::ResponseTimeout => {
            (Fault::Path, ETIMEDOUT)
        }
        WcStatus::Flushed | WcStatus::RemoteAborted => (Fault::Path, EIO),
        status if cards_own(status) => (Fault::Path, EIO),
        _ => (Fault::Request, EIO),
    }
}

/// True if the card, or what it keeps of a queue pair, failed.
///
/// LOC_QP_OP is an inconsistency that the card found in its own queue pair; Soft-RoCE says it also
/// when it cannot send, as when its port goes down. So it says nothing of the request, until that
/// has failed as often by itself.
pub(super) fn cards_own(status: WcStatus) -> bool {
    /// A failure of the transport that has no name of its own.
    const GENERAL: u32 = 21;
    matches!(status, WcStatus::LocalOperation | WcStatus::Fatal | WcStatus::Other(GENERAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_libibverbs_has_a_verdict() {
        for number in 1..64 {
            let status = WcStatus::from_ibv(number);
            assert_ne!(status, WcStatus::Success);
            let (fault, errno) = judge(status);
            assert!(errno > 0, "{status:?} {fault:?}");
        }
        assert_eq!(judge(WcStatus::from_ibv(2)), (Fault::Path, EIO), "the queue pair's own");
        assert_eq!(judge(WcStatus::from_ibv(5)), (Fault::Path, EIO), "flushed");
        assert_eq!(judge(WcStatus::from_ibv(10)), (Fault::Refused, errno::EACCES), "rkey");
        assert_eq!(judge(WcStatus::from_ibv(12)), (Fault::Path, ETIMEDOUT), "no answer");
    }
}
