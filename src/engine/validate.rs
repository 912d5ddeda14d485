//! Judging the copy of an SQE: every field, before anything is changed.

use crate::abi::{
    CANCEL_BY_RECORD, CANCEL_BY_USER_DATA, Class, Detail, OP_BYTES_MAX, Opcode, PAGES_MAX,
    RIGHT_ATOMIC, RIGHT_NOTIFY, RIGHT_READ, RIGHT_WRITE, SQE_COALESCE, SQE_DRAIN, SQE_HARDLINK,
    SQE_LINK, SQE_NO_MERGE, SQE_NOTIFY, SQE_REVOKE, SQE_SKIP_SUCCESS, SQE_SUPERSEDE, Sqe, errno,
};
use crate::fold::FOLDS;
use crate::ids::{RegionId, SessionId};
use crate::ledger::{Failure, NIL, Op};

use super::tables::{Region, RegionKind, Route};

/// Bit n: opcode n is served.
pub(crate) const OPCODES_SERVED: u64 = 1 << Opcode::Nop as u64
    | 1 << Opcode::Write as u64
    | 1 << Opcode::Read as u64
    | 1 << Opcode::Writev as u64
    | 1 << Opcode::Readv as u64
    | 1 << Opcode::FetchAdd as u64
    | 1 << Opcode::CmpSwap as u64
    | 1 << Opcode::Join as u64
    | 1 << Opcode::Cancel as u64
    | 1 << Opcode::Flush as u64
    | 1 << Opcode::Arm as u64;

/// SQE flags that are served.
pub(crate) const FLAGS_SERVED: u16 = SQE_COALESCE
    | SQE_SUPERSEDE
    | SQE_NO_MERGE
    | SQE_NOTIFY
    | SQE_SKIP_SUCCESS
    | SQE_REVOKE
    | SQE_LINK
    | SQE_HARDLINK
    | SQE_DRAIN;

/// All flags that ABI 1 defines.
const FLAGS_DEFINED: u16 = (1 << 9) - 1;

fn refuse(errno: i32, detail: Detail) -> Failure {
    Failure { errno, detail: detail as u16, flags: 0 }
}

fn invalid(detail: Detail) -> Failure {
    refuse(errno::EINVAL, detail)
}

fn zero(value: u64, detail: Detail) -> Result<(), Failure> {
    if value == 0 { Ok(()) } else { Err(invalid(detail)) }
}

/// True if an op moves data, and so goes by a lane.
pub(super) fn data_op(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Write
            | Opcode::Read
            | Opcode::Writev
            | Opcode::Readv
            | Opcode::FetchAdd
            | Opcode::CmpSwap
    )
}

const WRITE: u8 = Opcode::Write as u8;
const READ: u8 = Opcode::Read as u8;

/// What an SQE is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge<'a> {
    pub(super) regions: &'a [Region],
    pub(super) session: SessionId,
    pub(super) ceiling: Class,
    pub(super) cq_entries: u32,
}

impl Judge<'_> {
    /// Parses an SQE into `op`, of which nothing stays as it was. After a failure it means nothing.
    /// Pages of a list are checked later, when they are copied.
    ///
    /// The op is written in place, since it is large: handing it on by value costs more than all
    /// the checks together.
    pub(super) fn parse(self, sqe: &Sqe, op: &mut Op) -> Result<(), Failure> {
        let opcode = Opcode::from_byte(sqe.opcode).ok_or_else(|| invalid(Detail::Opcode))?;
        if OPCODES_SERVED >> sqe.opcode & 1 == 0 {
            return Err(refuse(errno::EOPNOTSUPP, Detail::Opcode));
        }
        let asked = Class::from_byte(sqe.class).ok_or_else(|| invalid(Detail::Class))?;
        if asked < self.ceiling && sqe.class != 0 {
            return Err(refuse(errno::EACCES, Detail::Class));
        }
        let class = asked.max(self.ceiling);
        check_flags(opcode, sqe.flags)?;
        if sqe.flags & SQE_NOTIFY == 0 {
            zero(sqe.immediate.into(), Detail::Immediate)?;
        }
        *op = Op {
            opcode,
            class,
            flags: sqe.flags,
            user_data: sqe.user_data,
            immediate: sqe.immediate,
            ..Op::NOP
        };
        match opcode {
            Opcode::Write | Opcode::Read => self.parse_transfer(sqe, op),
            Opcode::Writev | Opcode::Readv => self.parse_list(sqe, op),
            Opcode::FetchAdd | Opcode::CmpSwap => self.parse_atomic(sqe, op),
            Opcode::Flush => self.parse_flush(sqe, op),
            Opcode::Arm => self.parse_arm(sqe, op),
            Opcode::Cancel => parse_cancel(sqe, op),
            Opcode::Join => {
                no_regions(sqe)?;
                zero(sqe.bytes.into(), Detail::Bytes)?;
                // Its other edges, which are looked up with the first two.
                op.arg = sqe.arg;
                Ok(())
            }
            Opcode::Nop | Opcode::Run => {
                no_regions(sqe)?;
                zero(sqe.bytes.into(), Detail::Bytes)?;
                zero(sqe.arg[0], Detail::Arg)
            }
        }
    }

    /// Parses a WRITE or a READ into `op`, and returns the places of the regions that it names, as
    /// [`Op::names`] has them; `None` for any other opcode and for whatever [`Judge::parse`]
    /// refuses, which says why.
    #[inline(always)]
    pub(super) fn plain_transfer(
        self,
        sqe: &Sqe,
        op: &mut Op,
        routes: &mut [Route; Route::KEPT],
        withdrawn: u64,
    ) -> Option<[u32; 3]> {
        let (opcode, right) = match sqe.opcode {
            WRITE => (Opcode::Write, RIGHT_WRITE),
            READ => (Opcode::Read, RIGHT_READ),
            _ => return None,
        };
        let class = match Class::from_byte(sqe.class) {
            Some(asked) if asked >= self.ceiling || sqe.class == 0 => asked.max(self.ceiling),
            _ => return None,
        };
        let plain = SQE_NO_MERGE | SQE_SKIP_SUCCESS | SQE_LINK | SQE_HARDLINK | SQE_COALESCE;
        let needs = match sqe.flags & !plain {
            0 if sqe.immediate == 0 => right,
            SQE_NOTIFY => right | RIGHT_NOTIFY,
            _ => return None,
        };
        let ids = [sqe.local_region, sqe.remote_region];
        let route = &mut routes[Route::place(ids)];
        if route.ids != ids || route.checked != withdrawn {
            let Ok(found) = self.route(ids) else { return None };
            *route = Route { checked: withdrawn, ..found };
        }
        let bytes = u64::from(sqe.bytes);
        let (near, far) = (sqe.local_offset, sqe.remote_offset);
        let [local, import, target] = route.names;
        let good = sqe.bytes <= OP_BYTES_MAX
            && sqe.pages() == 0
            && route.rights & needs == needs
            && fits(near, bytes, route.local_bytes)
            && fits(far, bytes, route.remote_bytes)
            && (local != target || bytes == 0 || near.abs_diff(far) >= bytes);
        if !good {
            return None;
        }
        op.opcode = opcode;
        op.class = class;
        op.flags = sqe.flags;
        op.user_data = sqe.user_data;
        op.local = local;
        op.import = import;
        op.target = target;
        op.epoch = route.epoch;
        op.local_offset = near;
        op.remote_offset = far;
        op.bytes = sqe.bytes;
        op.pages = 0;
        op.list = NIL;
        op.immediate = sqe.immediate;
        op.deadline_us = sqe.deadline_us();
        op.arg = [0; 2];
        Some(route.names)
    }

    fn parse_transfer(self, sqe: &Sqe, op: &mut Op) -> Result<(), Failure> {
        if sqe.bytes > OP_BYTES_MAX {
            return Err(invalid(Detail::Bytes));
        }
        zero(sqe.pages().into(), Detail::Arg)?;
        let right = if op.opcode == Opcode::Write { RIGHT_WRITE } else { RIGHT_READ };
        op.bytes = sqe.bytes;
        op.deadline_us = sqe.deadline_us();
        if sqe.flags & SQE_SUPERSEDE != 0 {
            op.arg[1] = sqe.arg[1];
        }
        self.bind(sqe, op, right)?;
        inside(self.regions, op, op.local_offset, op.remote_offset).map_err(invalid)
    }

    fn parse_list(self, sqe: &Sqe, op: &mut Op) -> Result<(), Failure> {
        let pages = sqe.pages();
        if pages == 0 {
            return Err(invalid(Detail::Arg));
        }
        if pages > PAGES_MAX {
            return Err(refuse(errno::E2BIG, Detail::Arg));
        }
        if u64::from(sqe.bytes) * u64::from(pages) > u64::from(OP_BYTES_MAX) {
            return Err(invalid(Detail::Bytes));
        }
        let right = if op.opcode == Opcode::Writev { RIGHT_WRITE } else { RIGHT_READ };
        op.bytes = sqe.bytes;
        op.pages = pages;
        op.deadline_us = sqe.deadline_us();
        self.bind(sqe, op, right)?;
        let list_bytes = u64::from(pages) * size_of::<crate::abi::Page>() as u64;
        if !holds(&self.regions[op.local as usize], op.local_offset, list_bytes) {
            return Err(invalid(Detail::LocalOffset));
        }
        Ok(())
    }

    fn parse_atomic(self, sqe: &Sqe, op: &mut Op) -> Result<(), Failure> {
        op.bytes = 8;
        op.deadline_us = sqe.bytes;
        op.arg = sqe.arg;
        if op.opcode == Opcode::FetchAdd {
            zero(sqe.arg[1], Detail::Arg)?;
        }
        self.bind(sqe, op, RIGHT_ATOMIC)?;
        if !op.remote_offset.is_multiple_of(8) {
            return Err(invalid(Detail::RemoteOffset));
        }
        if !op.local_offset.is_multiple_of(8) {
            return Err(invalid(Detail::LocalOffset));
        }
        inside(self.regions, op, op.local_offset, op.remote_offset).map_err(invalid)
    }

    fn parse_flush(self, sqe: &Sqe, op: &mut Op) -> Result<(), Failure> {
        zero(sqe.remote_region.into(), Detail::RemoteRegion)?;
        zero(sqe.local_offset, Detail::LocalOffset)?;
        zero(sqe.remote_offset, Detail::RemoteOffset)?;
        zero(sqe.bytes.into(), Detail::Bytes)?;
        zero(sqe.arg[0], Detail::Arg)?;
        op.local = self.own(sqe.local_region, Detail::LocalRegion)?;
        let kind = self.regions[op.local as usize].kind;
        if op.flags & SQE_REVOKE != 0 && kind != RegionKind::Own {
            return Err(invalid(Detail::LocalRegion));
        }
        Ok(())
    }

    fn parse_arm(self, sqe: &Sqe, op: &mut Op) -> Result<(), Failure> {
        zero(sqe.remote_region.into(), Detail::RemoteRegion)?;
        zero(sqe.local_offset, Detail::LocalOffset)?;
        zero(sqe.remote_offset, Detail::RemoteOffset)?;
        zero(sqe.arg[0], Detail::Arg)?;
        op.local = self.own(sqe.local_region, Detail::LocalRegion)?;
        if self.regions[op.local as usize].kind != RegionKind::Own {
            return Err(invalid(Detail::LocalRegion));
        }
        op.bytes = sqe.bytes;
        match sqe.bytes {
            0 => Err(invalid(Detail::Bytes)),
            count if count > self.cq_entries => Err(refuse(errno::E2BIG, Detail::Bytes)),
            _ => Ok(()),
        }
    }

    /// Finds the two regions of a data op and checks rights.
    fn bind(self, sqe: &Sqe, op: &mut Op, right: u32) -> Result<(), Failure> {
        let route = self.route([sqe.local_region, sqe.remote_region])?;
        let needs = if op.flags & SQE_NOTIFY != 0 { right | RIGHT_NOTIFY } else { right };
        if route.rights & needs != needs {
            return Err(refuse(errno::EACCES, Detail::Rights));
        }
        [op.local, op.import, op.target] = route.names;
        op.epoch = route.epoch;
        op.local_offset = sqe.local_offset;
        op.remote_offset = sqe.remote_offset;
        Ok(())
    }

    /// Finds two regions, and whether they may be the two sides of an op of this session.
    fn route(self, ids: [u32; 2]) -> Result<Route, Failure> {
        let local = self.own(ids[0], Detail::LocalRegion)?;
        let near = &self.regions[local as usize];
        if near.kind != RegionKind::Own {
            return Err(invalid(Detail::LocalRegion));
        }
        let import = self.own(ids[1], Detail::RemoteRegion)?;
        let far = &self.regions[import as usize];
        let (target, epoch, rights) = match far.kind {
            RegionKind::Import { target, epoch, rights } => (target, epoch, rights),
            RegionKind::Peer { epoch, rights, .. } => (RegionId(ids[1]), epoch, rights),
            RegionKind::Own => return Err(invalid(Detail::RemoteRegion)),
        };
        if !current(self.regions, target, epoch) {
            return Err(refuse(errno::ESTALE, Detail::Revoked));
        }
        let names = [local, import, target.index()];
        let (local_bytes, remote_bytes) = (near.bytes, self.regions[names[2] as usize].bytes);
        Ok(Route { ids, names, epoch, rights, local_bytes, remote_bytes, ..Route::NONE })
    }

    /// The place of a live region or import of this very session.
    fn own(self, raw: u32, detail: Detail) -> Result<u32, Failure> {
        let id = RegionId(raw);
        let live = self.regions.get(id.index() as usize).is_some_and(|region| {
            region.id == Some(id) && region.session == self.session && region.removing.is_none()
        });
        if live { Ok(id.index()) } else { Err(invalid(detail)) }
    }
}

/// True if an entry is a NOP without a fault: what most of a NOP's fields must be is zero, which
/// one comparison tells. Any other entry is [`Judge::parse`]'s.
#[inline]
pub(super) fn plain_nop(words: &[u64; 8], ceiling: Class) -> bool {
    /// Opcode and both edges, in the first word; class and flags are looked at below.
    const MUST_BE_ZERO: u64 = 0xffff_ffff_0000_00ff;
    let rest = words[0] & MUST_BE_ZERO | words[2] | words[3] | words[4] | words[5] | words[6];
    let [_, class, low, high, ..] = words[0].to_le_bytes();
    let allowed = class == 0 || Class::from_byte(class).is_some_and(|class| class >= ceiling);
    rest == 0 && allowed && u16::from_le_bytes([low, high]) & !SQE_SKIP_SUCCESS == 0
}

/// True while the region behind an import is there and not revoked.
#[inline]
pub(super) fn current(regions: &[Region], target: RegionId, epoch: u32) -> bool {
    regions.get(target.index() as usize).is_some_and(|region| {
        region.id == Some(target) && region.epoch == epoch && region.removing.is_none()
    })
}

/// Checks one pair of ranges, each `op.bytes` long.
#[inline]
pub(super) fn inside(regions: &[Region], op: &Op, near: u64, far: u64) -> Result<(), Detail> {
    let bytes = u64::from(op.bytes);
    if !holds(&regions[op.local as usize], near, bytes) {
        return Err(Detail::LocalOffset);
    }
    if !holds(&regions[op.target as usize], far, bytes) {
        return Err(Detail::RemoteOffset);
    }
    let apart = near.abs_diff(far) >= bytes;
    if op.local == op.target && bytes > 0 && !apart {
        return Err(Detail::Overlap);
    }
    Ok(())
}

fn holds(region: &Region, offset: u64, bytes: u64) -> bool {
    fits(offset, bytes, region.bytes)
}

/// True if `offset..offset + bytes` lies in what has `all` bytes.
#[inline]
fn fits(offset: u64, bytes: u64, all: u64) -> bool {
    bytes <= all && offset <= all - bytes
}

fn check_flags(opcode: Opcode, flags: u16) -> Result<(), Failure> {
    if flags & !FLAGS_DEFINED != 0 {
        return Err(invalid(Detail::Flags));
    }
    if flags & !FLAGS_SERVED != 0 {
        return Err(refuse(errno::EOPNOTSUPP, Detail::Flags));
    }
    let notify = flags & (SQE_NOTIFY | SQE_NO_MERGE) != 0 && !data_op(opcode);
    let revoke = flags & SQE_REVOKE != 0 && opcode != Opcode::Flush;
    // An ARM may be there for ever: nothing waits for it.
    let arm = SQE_SKIP_SUCCESS | SQE_LINK | SQE_HARDLINK | SQE_DRAIN;
    let skip = flags & arm != 0 && opcode == Opcode::Arm;
    // What supersedes its like has no use for being folded into it.
    let folds = flags & FOLDS;
    let fold = match opcode {
        Opcode::Write => folds == FOLDS,
        Opcode::Read => folds & SQE_SUPERSEDE != 0,
        _ => folds != 0,
    };
    if notify || revoke || skip || fold { Err(invalid(Detail::Flags)) } else { Ok(()) }
}

fn no_regions(sqe: &Sqe) -> Result<(), Failure> {
    zero(sqe.local_region.into(), Detail::LocalRegion)?;
    zero(sqe.remote_region.into(), Detail::RemoteRegion)?;
    zero(sqe.local_offset, Detail::LocalOffset)?;
    zero(sqe.remote_offset, Detail::RemoteOffset)
}

fn parse_cancel(sqe: &Sqe, op: &mut Op) -> Result<(), Failure> {
    no_regions(sqe)?;
    zero(sqe.bytes.into(), Detail::Bytes)?;
    if !(CANCEL_BY_USER_DATA..=CANCEL_BY_RECORD).contains(&sqe.arg[1]) {
        return Err(invalid(Detail::Arg));
    }
    op.arg = sqe.arg;
    Ok(())
}
