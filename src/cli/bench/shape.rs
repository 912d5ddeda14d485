//! What one measurement does: the op, its size, how many at once, and over how much memory.
//!
//! The same shape is given to every contestant, so that what differs is the contestant. A shape
//! lies in one stretch of memory: sources in its first half, destinations in its second, page
//! lists behind them.
//! **Tests**: here, for what is refused and for where ops lie.

use std::mem::offset_of;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use verbring::abi::{Class, ENTRIES_MAX, OP_BYTES_MAX, Opcode, PAGES_MAX, Page, Sqe};

/// Which op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum OpKind {
    Nop,
    Write,
    Read,
    FetchAdd,
    Writev,
}

impl OpKind {
    /// Its name on the command line and in rows.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nop => "nop",
            Self::Write => "write",
            Self::Read => "read",
            Self::FetchAdd => "fetch-add",
            Self::Writev => "writev",
        }
    }

    pub(super) fn opcode(self) -> Opcode {
        match self {
            Self::Nop => Opcode::Nop,
            Self::Write => Opcode::Write,
            Self::Read => Opcode::Read,
            Self::FetchAdd => Opcode::FetchAdd,
            Self::Writev => Opcode::Writev,
        }
    }
}

/// One point of a sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) op: OpKind,
    /// Bytes of an op, of a page for WRITEV; 0 for NOP.
    pub(super) size_bytes: u64,
    /// Pages of a WRITEV; 1 for all else.
    pub(super) pages: u64,
    /// Ops pushed at once.
    pub(super) batch: u32,
    /// Ops in flight at most.
    pub(super) depth: u32,
    /// As in the SQE.
    pub(super) class: u8,
    /// Bytes of sources and destinations together.
    pub(super) working_set_bytes: u64,
}

/// A shape that cannot be.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("{field} is {value}, but must be {limit}")]
pub(super) struct BadShape {
    field: &'static str,
    value: u64,
    limit: String,
}

/// What a command line says of a shape, before the op has its say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) op: OpKind,
    pub(super) size_bytes: u64,
    pub(super) pages: u64,
    pub(super) batch: u64,
    pub(super) depth: u64,
    pub(super) class: Class,
    /// `None`: hot, of one op.
    pub(super) working_set_bytes: Option<u64>,
}

impl Shape {
    /// Settles what was asked for, or says what is wrong with it.
    pub(super) fn settle(wish: Wish) -> Result<Self, BadShape> {
        let Wish { op, .. } = wish;
        let bad = |field, value, limit: String| Err(BadShape { field, value, limit });
        let most = u64::from(ENTRIES_MAX);
        for (field, value) in [("--batch", wish.batch), ("--depth", wish.depth)] {
            if !(1..=most).contains(&value) {
                return bad(field, value, format!("1 to {most}"));
            }
        }
        if wish.depth < wish.batch {
            return bad("--depth", wish.depth, format!("at least --batch, {}", wish.batch));
        }
        let (size_bytes, pages) = match op {
            OpKind::Nop => (0, 1),
            OpKind::FetchAdd => (8, 1),
            OpKind::Write | OpKind::Read => (wish.size_bytes, 1),
            OpKind::Writev => (wish.size_bytes, wish.pages),
        };
        if op != OpKind::Nop && !(1..=u64::from(OP_BYTES_MAX)).contains(&size_bytes) {
            return bad("--size", size_bytes, format!("1 to {OP_BYTES_MAX} bytes"));
        }
        if !(1..=u64::from(PAGES_MAX)).contains(&pages) {
            return bad("--pages", pages, format!("1 to {PAGES_MAX}"));
        }
        let op_bytes = size_bytes * pages;
        if op_bytes > u64::from(OP_BYTES_MAX) {
            let limit =
                format!("at most {} for pages of {size_bytes}", OP_BYTES_MAX_U64 / size_bytes);
            return bad("--pages", pages, limit);
        }
        let working_set_bytes = match wish.working_set_bytes {
            _ if op == OpKind::Nop => 0,
            Some(bytes) => bytes,
            None => 2 * op_bytes,
        };
        if op != OpKind::Nop && !(2 * op_bytes..=WORKING_SET_MAX).contains(&working_set_bytes) {
            let limit = format!(
                "source and destination of an op, {}, to {WORKING_SET_MAX} bytes",
                2 * op_bytes
            );
            return bad("--working-set", working_set_bytes, limit);
        }
        Ok(Self {
            op,
            size_bytes,
            pages,
            batch: wish.batch.try_into().unwrap_or(ENTRIES_MAX),
            depth: wish.depth.try_into().unwrap_or(ENTRIES_MAX),
            class: wish.class as u8,
            working_set_bytes,
        })
    }

    /// The same shape without payload, for contestants that move none.
    pub(super) fn bare(&self) -> Self {
        let bare = Self { op: OpKind::Nop, size_bytes: 0, pages: 1, ..self.clone() };
        Self { working_set_bytes: 0, ..bare }
    }

    /// Payload bytes of one op.
    pub(super) fn op_bytes(&self) -> u64 {
        self.size_bytes * self.pages
    }

    /// Slots of every ring: they hold all that is in flight, and are so many that a slot written
    /// anew has not been read just now, which would cost one side a wait for its cache line.
    pub(super) fn entries(&self) -> u32 {
        self.depth.next_power_of_two().max(64)
    }

    /// Different places that ops go to, one after the other.
    fn places(&self) -> u64 {
        match self.op {
            OpKind::Nop => 1,
            _ => self.half_bytes() / self.step_bytes(),
        }
    }

    /// From the first source to the first destination: whole words, for atomics.
    fn half_bytes(&self) -> u64 {
        (self.working_set_bytes / 2).next_multiple_of(8)
    }

    /// Where the first op of them that writes leaves its first byte.
    pub(super) fn first_destination(&self) -> u64 {
        self.half_bytes()
    }

    fn step_bytes(&self) -> u64 {
        self.op_bytes().max(1)
    }

    fn list_bytes(&self) -> u64 {
        self.pages * size_of::<Page>() as u64
    }

    /// Bytes of memory that the shape lies in, page lists included.
    pub(super) fn memory_bytes(&self) -> u64 {
        let lists = if self.op == OpKind::Writev { self.places() * self.list_bytes() } else { 0 };
        (2 * self.half_bytes() + lists).max(1)
    }

    /// The page lists, and where they begin.
    pub(super) fn lists(&self) -> (u64, Vec<Page>) {
        let base = 2 * self.half_bytes();
        if self.op != OpKind::Writev {
            return (base, Vec::new());
        }
        let pages = (0..self.places() * self.pages).map(|at| Page {
            local_offset: at * self.size_bytes,
            remote_offset: self.half_bytes() + at * self.size_bytes,
        });
        (base, pages.collect())
    }

    /// The ops, place after place and over again, between two regions.
    pub(super) fn walk(&self, local_region: u32, remote_region: u32) -> Walk {
        let nop = self.op == OpKind::Nop;
        let (list_base, step) = (2 * self.half_bytes(), self.step_bytes());
        let (local, local_step) = match self.op {
            OpKind::Writev => (list_base, self.list_bytes()),
            _ => (0, step),
        };
        // A list names the destinations itself; an atomic names no bytes, being always of 8.
        let (remote, remote_step) = match self.op {
            OpKind::Nop | OpKind::Writev => (0, 0),
            _ => (self.half_bytes(), step),
        };
        let bytes = match self.op {
            OpKind::Nop | OpKind::FetchAdd => 0,
            _ => self.size_bytes,
        };
        let arg = match self.op {
            OpKind::FetchAdd => [1, 0],
            OpKind::Writev => [self.pages << 32, 0],
            _ => [0, 0],
        };
        let first = Sqe {
            opcode: self.op.opcode() as u8,
            class: self.class,
            local_region: if nop { 0 } else { local_region },
            remote_region: if nop { 0 } else { remote_region },
            local_offset: local,
            remote_offset: remote,
            bytes: bytes.try_into().unwrap_or(OP_BYTES_MAX),
            arg,
            ..Sqe::default()
        };
        let local_step = if nop { 0 } else { local_step };
        Walk {
            words: first.to_words(),
            offsets: [local, remote],
            first: [local, remote],
            steps: [if nop { 0 } else { local_step }, remote_step],
            left: self.places(),
            places: self.places(),
        }
    }
}

/// Prebuilt entries, one place after the other, as the words that go into a slot.
///
/// What changes is kept apart from what does not: words that were just written one by one cannot
/// be read back in pairs without a stall.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    words: [u64; 8],
    /// Local and remote: now, at the first place, and from place to place.
    offsets: [u64; 2],
    first: [u64; 2],
    steps: [u64; 2],
    left: u64,
    places: u64,
}

impl Walk {
    /// The next entry.
    #[inline]
    pub(super) fn next(&mut self, user_data: u64) -> [u64; 8] {
        let [local, remote] = self.offsets;
        self.left -= 1;
        if self.left == 0 {
            self.offsets = self.first;
            self.left = self.places;
        } else {
            self.offsets = [local + self.steps[0], remote + self.steps[1]];
        }
        let mut words = self.words;
        words[AT_USER_DATA] = user_data;
        words[AT_LOCAL_OFFSET] = local;
        words[AT_REMOTE_OFFSET] = remote;
        words
    }
}

/// Words of an SQE.
const AT_USER_DATA: usize = offset_of!(Sqe, user_data) / 8;
const AT_LOCAL_OFFSET: usize = offset_of!(Sqe, local_offset) / 8;
const AT_REMOTE_OFFSET: usize = offset_of!(Sqe, remote_offset) / 8;

const OP_BYTES_MAX_U64: u64 = OP_BYTES_MAX as u64;

/// More memory than this says nothing that less would not say.
const WORKING_SET_MAX: u64 = 4 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(op: OpKind) -> Wish {
        Wish {
            op,
            size_bytes: 64,
            pages: 4,
            batch: 2,
            depth: 8,
            class: Class::Medium,
            working_set_bytes: None,
        }
    }

    #[test]
    fn hot_is_one_op_and_nop_has_no_payload() {
        let nop = Shape::settle(Wish { working_set_bytes: Some(99), ..wish(OpKind::Nop) }).unwrap();
        assert_eq!((nop.size_bytes, nop.working_set_bytes, nop.op_bytes()), (0, 0, 0));
        let write = Shape::settle(wish(OpKind::Write)).unwrap();
        assert_eq!((write.working_set_bytes, write.op_bytes()), (128, 64));
        let list = Shape::settle(wish(OpKind::Writev)).unwrap();
        assert_eq!((list.working_set_bytes, list.op_bytes(), list.memory_bytes()), (512, 256, 576));
        let add = Shape::settle(wish(OpKind::FetchAdd)).unwrap();
        assert_eq!((add.size_bytes, add.working_set_bytes), (8, 16));
        assert_eq!(write.bare(), Shape { batch: 2, depth: 8, ..nop });
    }

    #[test]
    fn what_cannot_be_is_named() {
        let refused = |wish: Wish| Shape::settle(wish).unwrap_err().to_string();
        let write = wish(OpKind::Write);
        assert_eq!(refused(Wish { batch: 0, ..write }), "--batch is 0, but must be 1 to 32768");
        assert_eq!(
            refused(Wish { depth: 40_000, ..write }),
            "--depth is 40000, but must be 1 to 32768"
        );
        let text = refused(Wish { depth: 1, ..write });
        assert_eq!(text, "--depth is 1, but must be at least --batch, 2");
        let text = refused(Wish { size_bytes: 0, ..write });
        assert_eq!(text, "--size is 0, but must be 1 to 2147479552 bytes");
        let text = refused(Wish { pages: 0, ..wish(OpKind::Writev) });
        assert!(text.starts_with("--pages is 0, but must be 1 to "), "{text}");
        let text = refused(Wish { size_bytes: 1 << 30, ..wish(OpKind::Writev) });
        assert_eq!(text, "--pages is 4, but must be at most 1 for pages of 1073741824");
        let text = refused(Wish { working_set_bytes: Some(127), ..write });
        assert!(text.starts_with("--working-set is 127, but must be source and"), "{text}");
    }

    /// Every op of every kind lies inside the memory, sources apart from destinations.
    #[test]
    fn walks_cover_the_working_set_and_begin_again() {
        for op in [OpKind::Write, OpKind::Read, OpKind::FetchAdd, OpKind::Writev] {
            let shape = Shape::settle(Wish { working_set_bytes: Some(2_048), ..wish(op) }).unwrap();
            let (base, lists) = shape.lists();
            let mut walk = shape.walk(7, 8);
            let places = 1_024 / shape.op_bytes();
            let all: Vec<_> = (0..places).map(|at| Sqe::from_words(walk.next(at))).collect();
            assert_eq!(Sqe::from_words(walk.next(0)), all[0], "over again");
            for (at, sqe) in all.iter().enumerate() {
                let at = at as u64;
                assert_eq!((sqe.opcode, sqe.user_data), (op.opcode() as u8, at));
                assert_eq!((sqe.local_region, sqe.remote_region), (7, 8));
                if op == OpKind::Writev {
                    assert_eq!((sqe.local_offset, sqe.remote_offset), (base + 64 * at, 0));
                    assert_eq!((sqe.bytes, sqe.pages()), (64, 4));
                } else {
                    let step = shape.op_bytes();
                    assert_eq!(
                        (sqe.local_offset, sqe.remote_offset),
                        (step * at, 1_024 + step * at)
                    );
                }
            }
            if op == OpKind::Writev {
                assert_eq!(lists.len() as u64, places * 4);
                let last = lists.last().unwrap();
                assert_eq!((last.local_offset, last.remote_offset), (960, 1_984));
                assert_eq!(shape.memory_bytes(), base + 16 * lists.len() as u64);
            } else {
                assert!(lists.is_empty());
                assert_eq!(shape.memory_bytes(), 2_048);
            }
        }
    }

    #[test]
    fn nops_name_no_memory() {
        let mut walk = Shape::settle(wish(OpKind::Nop)).unwrap().walk(7, 8);
        for at in 0..3 {
            let class = Class::Medium as u8;
            let sqe = Sqe { user_data: at, class, ..Sqe::default() };
            assert_eq!(walk.next(at), sqe.to_words());
        }
    }
}
