//! Ops whose effect can be read off memory afterwards: each has a place of its own on both sides,
//! and what lies there before and after follows from its number alone.

use verbring::abi::{self, Class, Opcode, Page, Sqe};
use zerocopy::IntoBytes;

use super::chance::Chance;

/// One op, before it is pushed and after everything is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    /// Its number in its ring, which makes its bytes unlike any other's.
    pub(crate) number: u64,
    /// Where its place begins, in both regions.
    pub(crate) at: u64,
    /// Bytes, of each page if it has pages; a multiple of 8.
    pub(crate) bytes: u32,
    pub(crate) class: Class,
    pub(crate) skip_success: bool,
    /// Given up if still queued after so many microseconds; 0 never.
    pub(crate) deadline_us: u32,
    /// Names a range that is not there.
    pub(crate) refused: bool,
}

/// What an op does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Write,
    Read,
    Writev { pages: u32 },
    Readv { pages: u32 },
    FetchAdd,
    CmpSwap,
    Cancel { target: u64 },
    Flush,
}

/// What lies in an op's place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) near: Vec<u8>,
    pub(crate) far: Vec<u8>,
}

/// How much of an op is to be seen in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    Nothing,
    Part,
    Whole,
}

/// Places begin at multiples of this.
pub(crate) const PLACE_BYTES: u64 = 64;
/// No place is longer.
pub(crate) const PLACE_BYTES_MAX: u64 = 64 << 10;
/// Beyond every region.
pub(crate) const NOWHERE: u64 = 1 << 40;

impl Op {
    /// Draws an op of any kind; so many percent are large.
    pub(crate) fn draw(chance: &mut Chance, number: u64, at: u64, large_percent: u64) -> Self {
        let pages = 2 + chance.below(4);
        let pages = u32::try_from(pages).unwrap();
        let kind = match chance.below(100) {
            0..40 => Kind::Write,
            40..60 => Kind::Read,
            60..68 => Kind::Writev { pages },
            68..74 => Kind::Readv { pages },
            74..82 => Kind::FetchAdd,
            82..90 => Kind::CmpSwap,
            90..98 if number > 0 => {
                Kind::Cancel { target: number - 1 - chance.below(8.min(number)) }
            }
            _ => Kind::Flush,
        };
        // A large one has several slices, if they are small.
        let large = chance.percent(large_percent);
        let words = if large { 500 + chance.below(1_000) } else { chance.below(64) };
        let carries = !matches!(kind, Kind::Cancel { .. } | Kind::Flush);
        Self {
            kind,
            number,
            at,
            bytes: u32::try_from(8 + 8 * words).unwrap(),
            class: chance.one_of(&[Class::High, Class::Medium, Class::Medium, Class::Low]),
            skip_success: chance.percent(30),
            deadline_us: if carries && chance.percent(4) { 1 } else { 0 },
            refused: carries && chance.percent(2),
        }
    }

    /// Bytes of the place it needs, in either region.
    pub(crate) fn place_bytes(&self) -> u64 {
        let pages = u64::from(self.pages());
        let bytes = pages * (u64::from(self.bytes) + PAGE_ENTRY_BYTES);
        debug_assert!(bytes <= PLACE_BYTES_MAX);
        bytes.next_multiple_of(PLACE_BYTES)
    }

    /// Pages, 1 for an op without a list.
    fn pages(&self) -> u32 {
        match self.kind {
            Kind::Writev { pages } | Kind::Readv { pages } => pages,
            _ => 1,
        }
    }

    /// What `res` says if it succeeds.
    pub(crate) fn result(&self) -> i32 {
        let bytes = match self.kind {
            Kind::FetchAdd | Kind::CmpSwap => 8,
            Kind::Cancel { .. } | Kind::Flush => 0,
            _ => self.pages() * self.bytes,
        };
        i32::try_from(bytes).unwrap()
    }

    /// The page list: near pages in order behind the list, far ones permuted.
    pub(crate) fn page_list(&self) -> Vec<Page> {
        let pages = u64::from(self.pages());
        let bytes = u64::from(self.bytes);
        let page = |index| Page {
            local_offset: self.at + pages * PAGE_ENTRY_BYTES + index * bytes,
            // A permutation, since 7 divides no number of pages.
            remote_offset: (7 * index + 3) % pages * bytes,
        };
        (0..pages).map(page).collect()
    }

    /// What addend a FETCH_ADD has, or what a CMP_SWAP expects and puts in its place.
    pub(crate) fn arg(&self) -> [u64; 2] {
        match self.kind {
            Kind::FetchAdd => [self.number + 1, 0],
            Kind::CmpSwap => [self.word(0), self.word(1)],
            _ => [0, 0],
        }
    }

    /// The entry for it.
    pub(crate) fn sqe(&self, local_region: u32, remote_region: u32) -> Sqe {
        let skip = if self.skip_success { abi::SQE_SKIP_SUCCESS } else { 0 };
        let bare =
            Sqe { class: self.class as u8, flags: skip, user_data: self.number, ..Sqe::default() };
        let deadline = u64::from(self.deadline_us);
        let opcode = match self.kind {
            Kind::Cancel { target } => {
                let arg = [target, abi::CANCEL_BY_NUMBER];
                return Sqe { opcode: Opcode::Cancel as u8, arg, ..bare };
            }
            Kind::Flush => return Sqe { opcode: Opcode::Flush as u8, local_region, ..bare },
            Kind::Write => Opcode::Write,
            Kind::Read => Opcode::Read,
            Kind::Writev { .. } => Opcode::Writev,
            Kind::Readv { .. } => Opcode::Readv,
            Kind::FetchAdd => Opcode::FetchAdd,
            Kind::CmpSwap => Opcode::CmpSwap,
        };
        let remote_offset = if self.refused { NOWHERE } else { self.at };
        let (bytes, arg) = match self.kind {
            Kind::FetchAdd | Kind::CmpSwap => (self.deadline_us, self.arg()),
            Kind::Writev { pages } | Kind::Readv { pages } => {
                (self.bytes, [u64::from(pages) << 32 | deadline, 0])
            }
            _ => (self.bytes, [deadline, 0]),
        };
        let (opcode, local_offset) = (opcode as u8, self.at);
        Sqe { opcode, local_region, remote_region, local_offset, remote_offset, bytes, arg, ..bare }
    }

    /// What must lie in its place before it is pushed.
    pub(crate) fn before(&self) -> Image {
        let blank = || vec![0; self.result_bytes()];
        match self.kind {
            Kind::Write => Image { near: self.pattern(), far: blank() },
            Kind::Read => Image { near: blank(), far: self.pattern() },
            Kind::Writev { .. } => Image { near: self.listed(self.pattern()), far: blank() },
            Kind::Readv { .. } => Image { near: self.listed(blank()), far: self.pattern() },
            Kind::FetchAdd | Kind::CmpSwap => Image { near: vec![0; 8], far: le(self.word(0)) },
            Kind::Cancel { .. } | Kind::Flush => Image { near: Vec::new(), far: Vec::new() },
        }
    }

    /// What lies there once it is done.
    pub(crate) fn after(&self) -> Image {
        let before = self.before();
        match self.kind {
            Kind::Write => Image { far: self.pattern(), ..before },
            Kind::Read => Image { near: self.pattern(), ..before },
            Kind::Writev { .. } => {
                let mut far = before.far;
                for (near, page) in self.pattern().chunks(self.page_bytes()).zip(self.page_list()) {
                    let at = usize::try_from(page.remote_offset).unwrap();
                    far[at..at + near.len()].copy_from_slice(near);
                }
                Image { near: before.near, far }
            }
            Kind::Readv { .. } => {
                let pages = self.page_list().into_iter().flat_map(|page| {
                    let at = usize::try_from(page.remote_offset).unwrap();
                    before.far[at..at + self.page_bytes()].to_vec()
                });
                Image { near: self.listed(pages.collect()), far: before.far }
            }
            Kind::FetchAdd => {
                let sum = self.word(0).wrapping_add(self.number + 1);
                Image { near: le(self.word(0)), far: le(sum) }
            }
            Kind::CmpSwap => Image { near: le(self.word(0)), far: le(self.word(1)) },
            Kind::Cancel { .. } | Kind::Flush => before,
        }
    }

    /// Judges what lies there now. An op without bytes of its own has always landed.
    pub(crate) fn landed(&self, now: &Image) -> Landed {
        if *now == self.after() {
            Landed::Whole
        } else if *now == self.before() {
            Landed::Nothing
        } else {
            Landed::Part
        }
    }

    /// True if whether it has landed can be seen.
    pub(crate) fn leaves_a_trace(&self) -> bool {
        !matches!(self.kind, Kind::Cancel { .. } | Kind::Flush)
    }

    fn result_bytes(&self) -> usize {
        usize::try_from(self.result()).unwrap()
    }

    fn page_bytes(&self) -> usize {
        usize::try_from(self.bytes).unwrap()
    }

    /// Word `index` of its bytes: never 0, and in no other op.
    fn word(&self, index: u64) -> u64 {
        (self.number + 1) << 20 | (index + 1)
    }

    fn pattern(&self) -> Vec<u8> {
        (0..self.result_bytes() as u64 / 8)
            .flat_map(|index| self.word(index).to_le_bytes())
            .collect()
    }

    fn listed(&self, pages: Vec<u8>) -> Vec<u8> {
        let mut near = self.page_list().as_bytes().to_vec();
        near.extend(pages);
        near
    }
}

fn le(word: u64) -> Vec<u8> {
    word.to_le_bytes().to_vec()
}

const PAGE_ENTRY_BYTES: u64 = size_of::<Page>() as u64;
