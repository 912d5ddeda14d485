//! How an op or a request ended: errno values, and the detail that names the field or the rule.
//!
//! errno values are Linux's, as fixed numbers: the ABI does not change with the host's headers.

use thiserror::Error;

/// `res` and `status` values, before negation.
pub mod errno {
    /// No such op, name or region.
    pub const ENOENT: i32 = 2;
    /// The wire or the device failed it.
    pub const EIO: i32 = 5;
    /// More than could ever fit.
    pub const E2BIG: i32 = 7;
    /// A pool or quota is used up.
    pub const ENOMEM: i32 = 12;
    /// No right to do this.
    pub const EACCES: i32 = 13;
    /// The name is taken.
    pub const EEXIST: i32 = 17;
    /// The field named by `detail` is wrong.
    pub const EINVAL: i32 = 22;
    /// Expired in the queue.
    pub const ETIME: i32 = 62;
    /// The control message is out of order or malformed.
    pub const EPROTO: i32 = 71;
    /// Defined by the ABI, not served by this engine: ask PROBE.
    pub const EOPNOTSUPP: i32 = 95;
    /// No way to the peer: nothing listens at its URL, or no port of ours reaches it.
    pub const ENETUNREACH: i32 = 101;
    /// The session or the engine is closing.
    pub const ESHUTDOWN: i32 = 108;
    /// The peer did not answer in time.
    pub const ETIMEDOUT: i32 = 110;
    /// The peer is gone.
    pub const EHOSTDOWN: i32 = 112;
    /// Too late to cancel: posted.
    pub const EALREADY: i32 = 114;
    /// The region behind this import is gone or revoked.
    pub const ESTALE: i32 = 116;
    /// A quota of this uid is used up.
    pub const EDQUOT: i32 = 122;
    /// Cancelled.
    pub const ECANCELED: i32 = 125;
}

/// What a failure is about: a field of the SQE or of the control message, or the rule applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
#[repr(u16)]
#[non_exhaustive]
pub enum Detail {
    /// Nothing to add.
    #[error("no detail")]
    None = 0,
    /// SQE `opcode`.
    #[error("opcode")]
    Opcode = 1,
    /// SQE `class`: above 3, or above the session's ceiling.
    #[error("class")]
    Class = 2,
    /// SQE `flags`: reserved, not served, or not for this opcode.
    #[error("flags")]
    Flags = 3,
    /// SQE `edges`.
    #[error("edges")]
    Edges = 4,
    /// SQE `local_region`: not a live region of this session.
    #[error("local_region")]
    LocalRegion = 5,
    /// SQE `remote_region`: not a live import of this session.
    #[error("remote_region")]
    RemoteRegion = 6,
    /// SQE `local_offset`: the range ends beyond the region, or is not aligned.
    #[error("local_offset")]
    LocalOffset = 7,
    /// SQE `remote_offset`: likewise; for atomics it must be a multiple of 8.
    #[error("remote_offset")]
    RemoteOffset = 8,
    /// SQE `bytes`.
    #[error("bytes")]
    Bytes = 9,
    /// SQE `immediate` set where nothing carries it.
    #[error("immediate")]
    Immediate = 10,
    /// SQE `arg`.
    #[error("arg")]
    Arg = 11,
    /// The import does not grant this.
    #[error("rights")]
    Rights = 12,
    /// An entry of the page list.
    #[error("page list")]
    Page = 13,
    /// Source and destination overlap.
    #[error("overlap")]
    Overlap = 14,
    /// The deadline passed in the queue.
    #[error("deadline")]
    Deadline = 15,
    /// CANCEL asked for it.
    #[error("cancelled")]
    Cancelled = 16,
    /// The session or engine is closing.
    #[error("closing")]
    Closing = 17,
    /// The region was revoked or its owner is gone.
    #[error("revoked")]
    Revoked = 18,
    /// Control: message kind, order, or size.
    #[error("message")]
    Message = 19,
    /// Control: version range.
    #[error("version")]
    Version = 20,
    /// Control: entry counts.
    #[error("entries")]
    Entries = 21,
    /// Control: descriptors attached.
    #[error("descriptors")]
    Descriptors = 22,
    /// Control: seals of a memfd.
    #[error("seals")]
    Seals = 23,
    /// Control: a name.
    #[error("name")]
    Name = 24,
    /// Control: a secret.
    #[error("secret")]
    Secret = 25,
    /// Control: a quota; the text names it.
    #[error("quota")]
    Quota = 26,
    /// Control: the ring number.
    #[error("ring")]
    Ring = 27,
    /// The region's use ended (RELEASE) while the op waited.
    #[error("released")]
    Released = 28,
    /// The ring was faulted.
    #[error("faulted")]
    Faulted = 29,
    /// IMPORT `peer`: not one of this session's; else: the peer is gone, or refused.
    #[error("peer")]
    Peer = 30,
    /// CONNECT `url`.
    #[error("url")]
    Url = 31,
    /// CONNECT `require`: no such fabric, or it is not in use between the two.
    #[error("require")]
    Require = 32,
    /// The queue pair or the device failed it, by no rule of the engine's.
    #[error("wire")]
    Wire = 33,
}

impl Detail {
    /// All details, by number.
    pub const ALL: [Self; 34] = [
        Self::None,
        Self::Opcode,
        Self::Class,
        Self::Flags,
        Self::Edges,
        Self::LocalRegion,
        Self::RemoteRegion,
        Self::LocalOffset,
        Self::RemoteOffset,
        Self::Bytes,
        Self::Immediate,
        Self::Arg,
        Self::Rights,
        Self::Page,
        Self::Overlap,
        Self::Deadline,
        Self::Cancelled,
        Self::Closing,
        Self::Revoked,
        Self::Message,
        Self::Version,
        Self::Entries,
        Self::Descriptors,
        Self::Seals,
        Self::Name,
        Self::Secret,
        Self::Quota,
        Self::Ring,
        Self::Released,
        Self::Faulted,
        Self::Peer,
        Self::Url,
        Self::Require,
        Self::Wire,
    ];

    /// Reads a detail number; `None` for one that this version does not know.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}
