//! What one uid may use of an engine: the quota that all have, and contracts of single uids.

use crate::abi::Class;
use crate::sched::Contract;

/// What one uid may use, over all its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quota {
    /// Sessions at once.
    pub sessions: u32,
    /// Rings at once.
    pub rings: u32,
    /// Regions and imports at once.
    pub regions: u32,
    /// Bytes in regions and ring segments.
    pub region_bytes: u64,
    /// Ops in flight.
    pub ops: u32,
    /// Bytes that ops in flight ask for; one op may ask for more, alone.
    pub op_bytes: u64,
    /// Bytes of class high that are posted at once; one request may have more, alone.
    pub high_bytes: u64,
    /// Edges of ops that wait for others; an op with more is refused.
    pub edges: u32,
    /// Share beside other uids of the same class; 1 to 64.
    pub weight: u8,
    /// Control messages a second; more are answered later, not refused.
    pub control_per_s: u32,
    /// Most urgent class.
    pub class_ceiling: Class,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            sessions: 64,
            rings: 1_024,
            regions: 4_096,
            region_bytes: 16 << 30,
            ops: 16_384,
            op_bytes: 1 << 40,
            high_bytes: 1 << 40,
            edges: 16_384,
            weight: 1,
            control_per_s: 20_000,
            class_ceiling: Class::High,
        }
    }
}

/// The contract of one uid: what of its [`Quota`] differs from the one that all have. Fields and
/// ranges are those of [`Quota`]; `None` leaves what all have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "documented in Quota")]
pub struct UidQuota {
    pub sessions: Option<u32>,
    pub rings: Option<u32>,
    pub regions: Option<u32>,
    pub region_bytes: Option<u64>,
    pub ops: Option<u32>,
    pub op_bytes: Option<u64>,
    pub high_bytes: Option<u64>,
    pub edges: Option<u32>,
    pub weight: Option<u8>,
    pub control_per_s: Option<u32>,
    pub class_ceiling: Option<Class>,
}

impl UidQuota {
    /// The quota of this uid where all others have `all`.
    #[must_use]
    pub fn over(&self, all: &Quota) -> Quota {
        Quota {
            sessions: self.sessions.unwrap_or(all.sessions),
            rings: self.rings.unwrap_or(all.rings),
            regions: self.regions.unwrap_or(all.regions),
            region_bytes: self.region_bytes.unwrap_or(all.region_bytes),
            ops: self.ops.unwrap_or(all.ops),
            op_bytes: self.op_bytes.unwrap_or(all.op_bytes),
            high_bytes: self.high_bytes.unwrap_or(all.high_bytes),
            edges: self.edges.unwrap_or(all.edges),
            weight: self.weight.unwrap_or(all.weight),
            control_per_s: self.control_per_s.unwrap_or(all.control_per_s),
            class_ceiling: self.class_ceiling.unwrap_or(all.class_ceiling),
        }
    }
}

impl Quota {
    /// What the core is told of it.
    pub(crate) fn contract(&self) -> Contract {
        Contract {
            ops_max: self.ops,
            bytes_max: self.op_bytes,
            high_bytes_max: self.high_bytes,
            edges_max: self.edges,
            weight: self.weight,
            ceiling: self.class_ceiling,
        }
    }

    /// Its fields with a range: name, value, least, most.
    pub(super) fn ranges(&self) -> [(&'static str, u64, u64, u64); 9] {
        [
            ("sessions", self.sessions.into(), 1, 4_096),
            ("rings", self.rings.into(), 1, 65_536),
            ("regions", self.regions.into(), 1, 1 << 20),
            ("ops", self.ops.into(), 1, 1 << 24),
            ("op_bytes", self.op_bytes, 1, 1 << 50),
            ("high_bytes", self.high_bytes, 1, 1 << 50),
            ("edges", self.edges.into(), 0, 1 << 24),
            ("weight", self.weight.into(), 1, 64),
            ("control_per_s", self.control_per_s.into(), 1, 1_000_000),
        ]
    }
}
