//! Typed ops: what goes into a [`Ring`](super::Ring), built so that unused fields are zero and the
//! near side is a lease.
//!
//! **Deliberately absent**: `skip_success` on ops that hold a lease. A skipped success has no CQE,
//! and nothing else says when the lease may come back; such entries go through a
//! [`RawRing`](super::RawRing).

use std::borrow::Borrow;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::Ticket;
use super::error::{Unfit, UnfitReason};
use super::graph::Edges;
use super::region::{Import, Lease, Region, Remote};
use crate::abi::{self, Class, Opcode, Page, Sqe};

/// What [`Ring::push`](super::Ring::push) takes. Implemented by the types of this module only.
pub trait Op: sealed::Parts {}

pub(super) mod sealed {
    use super::{Edges, Held, Home, Sqe};

    /// What a ring needs to know of an op.
    #[expect(unnameable_types, reason = "sealed: nobody else makes ops")]
    pub trait Parts {
        fn home(&self) -> Home;
        fn edges(&self) -> &Edges;
        /// Edges that its entry has room for.
        fn edges_max(&self) -> usize;
        fn into_parts(self) -> (Sqe, Held, Edges);
    }
}

/// The leases that an op holds.
#[expect(unnameable_types, reason = "part of a sealed trait")]
#[derive(Debug, Default)]
pub struct Held {
    pub(super) lease: Option<Lease>,
    /// One by one, if the op was built from scattered leases.
    pub(super) pages: Vec<Lease>,
}

/// Where an op may be pushed.
#[expect(unnameable_types, reason = "part of a sealed trait")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Into any ring.
    Any,
    /// Into rings of the session with this uid.
    Session(u64),
    /// Into the ring with this number.
    Ring(u32),
    /// Nowhere: its two sides belong to different sessions.
    Nowhere,
}

/// The one shape behind all builders.
#[derive(Debug)]
struct Draft {
    sqe: Sqe,
    held: Held,
    home: Home,
    edges: Edges,
}

impl Draft {
    fn new(opcode: Opcode, home: Home) -> Self {
        let sqe = Sqe { opcode: opcode as u8, ..Sqe::default() };
        Self { sqe, held: Held::default(), home, edges: Edges::default() }
    }

    /// An op between a lease and a place in an import.
    fn moving(opcode: Opcode, lease: Lease, remote: Remote) -> Self {
        let home = if lease.session_uid() == remote.session {
            Home::Session(remote.session)
        } else {
            Home::Nowhere
        };
        let mut draft = Self::new(opcode, home);
        draft.sqe.local_region = lease.region_id();
        draft.sqe.local_offset = lease.offset();
        draft.sqe.remote_region = remote.region;
        draft.sqe.remote_offset = remote.offset;
        draft.held.lease = Some(lease);
        draft
    }

    /// WRITE or READ of a whole lease. A length beyond what an op can carry becomes one that the
    /// engine refuses.
    fn plain(opcode: Opcode, lease: Lease, remote: Remote) -> Self {
        let bytes = u32::try_from(lease.bytes()).unwrap_or(u32::MAX);
        let mut draft = Self::moving(opcode, lease, remote);
        draft.sqe.bytes = bytes;
        draft
    }

    fn atomic(opcode: Opcode, lease: Lease, remote: Remote, arg: [u64; 2]) -> Result<Self, Unfit> {
        if lease.bytes() != 8 || !lease.offset().is_multiple_of(8) {
            return Err(Unfit { lease, pages: Vec::new(), reason: UnfitReason::Word });
        }
        let mut draft = Self::moving(opcode, lease, remote);
        draft.sqe.arg = arg;
        Ok(draft)
    }

    /// WRITEV or READV: checks the pages, then writes their list into the lease.
    fn paged(
        opcode: Opcode,
        mut lease: Lease,
        list_at: u64,
        pages: &[PagePair],
        page_bytes: u32,
        remote: Remote,
    ) -> Result<Self, Unfit> {
        if let Err(reason) = check_pages(&lease, list_at, pages, page_bytes) {
            return Err(Unfit { lease, pages: Vec::new(), reason });
        }
        let base = lease.offset();
        let list = pages
            .iter()
            .map(|pair| Page { local_offset: base + pair.local, remote_offset: pair.remote });
        write_list(&mut lease, list_at, list);
        let list_offset = lease.offset() + list_at;
        let mut draft = Self::moving(opcode, lease, remote);
        draft.sqe.local_offset = list_offset;
        draft.sqe.bytes = page_bytes;
        draft.sqe.arg[0] = (pages.len() as u64) << 32;
        Ok(draft)
    }

    /// WRITEV or READV of pages that each have a lease of their own.
    fn scattered(
        opcode: Opcode,
        mut list: Lease,
        pages: Vec<Lease>,
        remotes: &[u64],
        remote: Remote,
    ) -> Result<Self, Unfit> {
        if let Err(reason) = check_scattered(&list, &pages, remotes) {
            return Err(Unfit { lease: list, pages, reason });
        }
        let entries = pages.iter().zip(remotes).map(|(page, remote_offset)| Page {
            local_offset: page.offset(),
            remote_offset: *remote_offset,
        });
        write_list(&mut list, 0, entries);
        let mut draft = Self::moving(opcode, list, remote);
        draft.sqe.bytes = u32::try_from(pages[0].bytes()).unwrap_or(u32::MAX);
        draft.sqe.arg[0] = (pages.len() as u64) << 32;
        draft.held.pages = pages;
        Ok(draft)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        // 0 would mean none; rounding down would mean too early.
        let us = deadline.as_nanos().div_ceil(1_000).max(1);
        let us = u32::try_from(us).unwrap_or(u32::MAX);
        if [Opcode::FetchAdd as u8, Opcode::CmpSwap as u8].contains(&self.sqe.opcode) {
            self.sqe.bytes = us;
        } else {
            self.sqe.arg[0] = self.sqe.arg[0] & !0xffff_ffff | u64::from(us);
        }
    }
}

/// Bytes of one entry of a page list.
const PAGE_ENTRY_BYTES: u64 = size_of::<Page>() as u64;

fn write_list(lease: &mut Lease, mut at: u64, pages: impl Iterator<Item = Page>) {
    for page in pages {
        lease.write(at, page.as_bytes());
        at += PAGE_ENTRY_BYTES;
    }
}

fn check_scattered(list: &Lease, pages: &[Lease], remotes: &[u64]) -> Result<(), UnfitReason> {
    let count = pages.len() as u64;
    if !(1..=u64::from(abi::PAGES_MAX)).contains(&count) {
        return Err(UnfitReason::PageCount { count });
    }
    if remotes.len() != pages.len() {
        return Err(UnfitReason::Remotes { pages: pages.len(), remotes: remotes.len() });
    }
    if list.bytes() < count * PAGE_ENTRY_BYTES {
        return Err(UnfitReason::List);
    }
    for (index, page) in pages.iter().enumerate() {
        if !page.same_region(list) {
            return Err(UnfitReason::PageRegion { index });
        }
        if page.bytes() != pages[0].bytes() {
            return Err(UnfitReason::PageBytes { index });
        }
    }
    Ok(())
}

fn check_pages(
    lease: &Lease,
    list_at: u64,
    pages: &[PagePair],
    page_bytes: u32,
) -> Result<(), UnfitReason> {
    let count = pages.len() as u64;
    if !(1..=u64::from(abi::PAGES_MAX)).contains(&count) {
        return Err(UnfitReason::PageCount { count });
    }
    let list_end = list_at.checked_add(count * PAGE_ENTRY_BYTES);
    let Some(list_end) = list_end.filter(|end| *end <= lease.bytes()) else {
        return Err(UnfitReason::List);
    };
    for (index, pair) in pages.iter().enumerate() {
        let end = pair.local.checked_add(page_bytes.into());
        let Some(end) = end.filter(|end| *end <= lease.bytes()) else {
            return Err(UnfitReason::Page { index });
        };
        if pair.local < list_end && list_at < end {
            return Err(UnfitReason::PageInList { index });
        }
    }
    Ok(())
}

/// One page of a WRITEV or READV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePair {
    /// Where the page lies in the lease: bytes from the lease's first.
    pub local: u64,
    /// Where it lies at the far side: bytes from the op's [`Remote`].
    pub remote: u64,
}

macro_rules! op {
    ($(#[$doc:meta])* $name:ident: $($setter:ident)*) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[must_use = "an op does nothing until it is pushed"]
        pub struct $name(Draft);

        impl Op for $name {}

        impl sealed::Parts for $name {
            fn home(&self) -> Home {
                self.0.home
            }

            #[inline]
            fn edges(&self) -> &Edges {
                &self.0.edges
            }

            fn edges_max(&self) -> usize {
                self.0.sqe.edges_max()
            }

            fn into_parts(self) -> (Sqe, Held, Edges) {
                (self.0.sqe, self.0.held, self.0.edges)
            }
        }

        impl $name {
            $(op!(@ $setter);)*
        }
    };
    (@ class) => {
        /// Sets the class; medium if never called.
        pub fn class(mut self, class: Class) -> Self {
            self.0.sqe.class = class as u8;
            self
        }
    };
    (@ notify) => {
        /// Tells the owner of the far side, with these 32 bits, once all bytes are placed. Needs
        /// [`Rights::NOTIFY`](super::Rights::NOTIFY).
        pub fn notify(mut self, immediate: u32) -> Self {
            self.0.sqe.flags |= abi::SQE_NOTIFY;
            self.0.sqe.immediate = immediate;
            self
        }
    };
    (@ deadline) => {
        /// Gives the op up, with ETIME, if it is still queued so long after the engine took it. In
        /// whole microseconds, rounded up, at most 71 minutes.
        pub fn deadline(mut self, deadline: Duration) -> Self {
            self.0.set_deadline(deadline);
            self
        }
    };
    (@ tag) => {
        /// Sets a tag for logs and traces. It changes nothing else, but for SUPERSEDE.
        pub fn tag(mut self, tag: u64) -> Self {
            self.0.sqe.arg[1] = tag;
            self
        }
    };
    (@ after) => {
        /// Has the op wait until an earlier op of the same ring is over. Should that fail, this one
        /// does not run, and ends with ECANCELED, `dep_failed`, and the detail of what failed
        /// first; what waits for this one likewise.
        ///
        /// An op may wait for any number of others, and for each of them in its own way. Beyond two
        /// ([`Join`]: ten) [`Ring::push`](super::Ring::push) puts JOINs before it.
        pub fn after(mut self, earlier: impl Borrow<Ticket>) -> Self {
            self.0.edges.add(*earlier.borrow(), false);
            self
        }

        /// Has the op wait until an earlier op of the same ring is over, however that ends:
        /// otherwise as [`after`](Self::after).
        pub fn after_end(mut self, earlier: impl Borrow<Ticket>) -> Self {
            self.0.edges.add(*earlier.borrow(), true);
            self
        }
    };
    (@ link) => {
        /// Has the next op that is pushed into this ring, whenever that is, wait for this one as
        /// by [`after`](Self::after): a chain needs no handles.
        pub fn link(mut self) -> Self {
            self.0.sqe.flags |= abi::SQE_LINK;
            self
        }

        /// Has the next op that is pushed into this ring, whenever that is, wait for this one as
        /// by [`after_end`](Self::after_end).
        pub fn hard_link(mut self) -> Self {
            self.0.sqe.flags |= abi::SQE_HARDLINK;
            self
        }

        /// Has the op wait until all earlier ops of its ring are over, and all later ones until it
        /// is, however any of them ends. Those that wait for notifications
        /// ([`Arm`]) are passed over.
        pub fn drain(mut self) -> Self {
            self.0.sqe.flags |= abi::SQE_DRAIN;
            self
        }
    };
    (@ coalesce) => {
        /// Lets the op share the work of one of the same session that is still queued, has the
        /// same effect in every respect (both sides, length, notification) and says so too: what
        /// lies between the two does not matter. Each has its own completion; that of an op which
        /// was folded is [`coalesced`](super::Completion::coalesced), and has the other's record.
        ///
        /// An op that waits for others, or is linked, shares nothing. Both move the same range of
        /// a region: see [`Lease::share`]. Not along with SUPERSEDE.
        pub fn coalesce(mut self) -> Self {
            self.0.sqe.flags |= abi::SQE_COALESCE;
            self
        }
    };
    (@ supersede) => {
        /// Lets the op replace one of the same ring that is still queued, goes to the same place
        /// with the same length, and bears the same tag: only the last value matters. The one that
        /// was replaced completes with the last one, as
        /// [`coalesced`](super::Completion::coalesced). Not along with COALESCE.
        pub fn supersede(mut self, tag: u64) -> Self {
            self.0.sqe.flags |= abi::SQE_SUPERSEDE;
            self.0.sqe.arg[1] = tag;
            self
        }
    };
    (@ no_merge) => {
        /// Keeps the op from sharing a work request with a neighbour.
        pub fn no_merge(mut self) -> Self {
            self.0.sqe.flags |= abi::SQE_NO_MERGE;
            self
        }
    };
    (@ skip_success) => {
        /// Drops the completion if the op succeeds; a failure has one as ever.
        pub fn skip_success(mut self) -> Self {
            self.0.sqe.flags |= abi::SQE_SKIP_SUCCESS;
            self
        }
    };
}

op! {
    /// Nothing: completes with 0. Shows that the ring is alive, and what a round trip costs.
    Nop: class tag skip_success after link
}

impl Nop {
    /// Makes a NOP.
    pub fn new() -> Self {
        Self(Draft::new(Opcode::Nop, Home::Any))
    }
}

impl Default for Nop {
    fn default() -> Self {
        Self::new()
    }
}

op! {
    /// Nothing, once other ops are over: completes with 0, or fails as they did. Any number of them
    /// may be named; see [`Ring::join`](super::Ring::join).
    Join: class skip_success after link
}

impl Join {
    /// Makes a JOIN that waits for nothing yet.
    pub fn new() -> Self {
        Self(Draft::new(Opcode::Join, Home::Any))
    }

    /// Makes a JOIN that waits for these: [`Join::after`] for each.
    pub fn of<T: Borrow<Ticket>>(earlier: impl IntoIterator<Item = T>) -> Self {
        earlier.into_iter().fold(Self::new(), Self::after)
    }
}

impl Default for Join {
    fn default() -> Self {
        Self::new()
    }
}

op! {
    /// Copies a lease to a place in an import. Its result is the number of bytes.
    ///
    /// ```
    /// # use std::{error::Error, time::Duration};
    /// # use verbring::{Import, Lease, Ring, Write, abi::Class};
    /// # fn f(ring: &mut Ring, lease: Lease, import: &Import) -> Result<(), Box<dyn Error>> {
    /// let op = Write::new(lease, import.at(4096))
    ///     .class(Class::High)
    ///     .notify(7)
    ///     .deadline(Duration::from_millis(5));
    /// let ticket = ring.push(op)?;
    /// ring.submit_and_wait(1, None)?;
    /// # Ok(())
    /// # }
    /// ```
    Write: class notify deadline tag no_merge after link coalesce supersede
}

impl Write {
    /// Makes a WRITE of the whole lease.
    pub fn new(from: Lease, to: Remote) -> Self {
        Self(Draft::plain(Opcode::Write, from, to))
    }
}

op! {
    /// Copies from a place in an import into a lease, filling it. Its result is the number of
    /// bytes.
    Read: class notify deadline tag no_merge after link coalesce
}

impl Read {
    /// Makes a READ of the whole lease.
    pub fn new(into: Lease, from: Remote) -> Self {
        Self(Draft::plain(Opcode::Read, into, from))
    }
}

op! {
    /// Copies scattered pages of a lease to scattered places of an import. Its result is the
    /// number of bytes in all.
    ///
    /// One lease covers the pages and, apart from them, the list that the engine reads: 16 bytes a
    /// page, from `list_at` on. The engine has read it when it has taken the op.
    ///
    /// ```
    /// # use std::error::Error;
    /// # use verbring::{Import, PagePair, Region, Ring, Writev};
    /// # fn f(ring: &mut Ring, region: &Region, import: &Import) -> Result<(), Box<dyn Error>> {
    /// // Two pages of 4 KiB, then their list.
    /// let mut lease = region.lend(0..8192 + 32)?;
    /// lease.write(0, &[1; 8192]);
    /// let pages = [PagePair { local: 0, remote: 65536 }, PagePair { local: 4096, remote: 0 }];
    /// ring.push(Writev::new(lease, 8192, &pages, 4096, import.at(0))?)?;
    /// # Ok(())
    /// # }
    /// ```
    Writev: class notify deadline tag no_merge after link
}

impl Writev {
    /// Makes a WRITEV of `pages`, each `page_bytes` long, and writes their list into the lease at
    /// `list_at`.
    ///
    /// # Errors
    /// [`Unfit`] hands the lease back, untouched, if pages or list do not lie in it, if they
    /// overlap, or if there are none or more than 1,024 pages.
    pub fn new(
        from: Lease,
        list_at: u64,
        pages: &[PagePair],
        page_bytes: u32,
        to: Remote,
    ) -> Result<Self, Unfit> {
        Draft::paged(Opcode::Writev, from, list_at, pages, page_bytes, to).map(Self)
    }

    /// Makes a WRITEV of pages that each have a lease of their own, all of one region and length:
    /// what lies between them stays free for others. Page `n` goes to `remotes[n]` bytes from
    /// `to`; the engine reads where from `list`, 16 bytes a page. The pages come back, in their
    /// order, in [`Completion::pages`](super::Completion::pages).
    ///
    /// ```
    /// # use std::error::Error;
    /// # use verbring::{Import, Region, Ring, Writev};
    /// # fn f(ring: &mut Ring, region: &Region, import: &Import) -> Result<(), Box<dyn Error>> {
    /// let list = region.lend(0..32)?;
    /// let pages = vec![region.lend(4096..8192)?, region.lend(40960..45056)?];
    /// ring.push(Writev::scattered(list, pages, &[0, 16384], import.at(0))?)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Unfit`] hands all leases back, untouched, if the pages differ in length or region, if the
    /// list is too short, or if there are none or more than 1,024 pages.
    pub fn scattered(
        list: Lease,
        pages: Vec<Lease>,
        remotes: &[u64],
        to: Remote,
    ) -> Result<Self, Unfit> {
        Draft::scattered(Opcode::Writev, list, pages, remotes, to).map(Self)
    }
}

op! {
    /// Copies scattered places of an import into scattered pages of a lease: [`Writev`] the other
    /// way round.
    Readv: class notify deadline tag no_merge after link
}

impl Readv {
    /// Makes a READV of `pages`, each `page_bytes` long, and writes their list into the lease at
    /// `list_at`.
    ///
    /// # Errors
    /// As [`Writev::new`].
    pub fn new(
        into: Lease,
        list_at: u64,
        pages: &[PagePair],
        page_bytes: u32,
        from: Remote,
    ) -> Result<Self, Unfit> {
        Draft::paged(Opcode::Readv, into, list_at, pages, page_bytes, from).map(Self)
    }

    /// Makes a READV into pages that each have a lease of their own: [`Writev::scattered`] the
    /// other way round.
    ///
    /// # Errors
    /// As [`Writev::scattered`].
    pub fn scattered(
        list: Lease,
        pages: Vec<Lease>,
        remotes: &[u64],
        from: Remote,
    ) -> Result<Self, Unfit> {
        Draft::scattered(Opcode::Readv, list, pages, remotes, from).map(Self)
    }
}

op! {
    /// Adds to a u64 in an import, wrapping round; the old value lands in the lease. Its result
    /// is 8.
    FetchAdd: class notify deadline no_merge after link
}

impl FetchAdd {
    /// Makes a FETCH_ADD. The offset of `to` must be a multiple of 8.
    ///
    /// # Errors
    /// [`Unfit`] hands the lease back if it is not 8 bytes at a multiple of 8.
    pub fn new(old_into: Lease, to: Remote, addend: u64) -> Result<Self, Unfit> {
        Draft::atomic(Opcode::FetchAdd, old_into, to, [addend, 0]).map(Self)
    }
}

op! {
    /// Replaces a u64 in an import if it is as expected; the old value lands in the lease, and
    /// tells whether it was. Its result is 8 either way.
    CmpSwap: class notify deadline no_merge after link
}

impl CmpSwap {
    /// Makes a CMP_SWAP. The offset of `to` must be a multiple of 8.
    ///
    /// # Errors
    /// [`Unfit`] hands the lease back if it is not 8 bytes at a multiple of 8.
    pub fn new(old_into: Lease, to: Remote, expected: u64, new: u64) -> Result<Self, Unfit> {
        Draft::atomic(Opcode::CmpSwap, old_into, to, [expected, new]).map(Self)
    }
}

op! {
    /// Takes back an op of the same ring that is still queued. The op then completes with
    /// ECANCELED, and this with 0; with ENOENT if there is no such op in flight (any more), with
    /// EALREADY if it has been posted.
    Cancel: skip_success after link
}

impl Cancel {
    /// Makes a CANCEL of the op behind a ticket.
    pub fn new(op: Ticket) -> Self {
        let mut draft = Draft::new(Opcode::Cancel, Home::Ring(op.ring()));
        draft.sqe.arg = [op.number(), abi::CANCEL_BY_NUMBER];
        Self(draft)
    }

    /// Makes a CANCEL of the op with this ledger record, as WHY reports it.
    pub fn record(record: u64) -> Self {
        let mut draft = Draft::new(Opcode::Cancel, Home::Any);
        draft.sqe.arg = [record, abi::CANCEL_BY_RECORD];
        Self(draft)
    }
}

op! {
    /// Completes when no earlier op of this session touches a region or an import any more.
    Flush: tag after link
}

impl Flush {
    /// Makes a FLUSH of ops whose near side is this region.
    pub fn region(region: &Region) -> Self {
        Self::of(region.session_uid(), region.id())
    }

    /// Makes a FLUSH of ops whose far side is this import.
    pub fn import(import: &Import) -> Self {
        Self::of(import.session_uid(), import.id())
    }

    fn of(session: u64, id: u32) -> Self {
        let mut draft = Draft::new(Opcode::Flush, Home::Session(session));
        draft.sqe.local_region = id;
        Self(draft)
    }

    /// Ends the region's exports as well: when this completes nobody touches the region, and
    /// importers get ESTALE. For regions, not imports.
    pub fn revoke(mut self) -> Self {
        self.0.sqe.flags |= abi::SQE_REVOKE;
        self
    }
}

op! {
    /// Asks for notifications that peers send to a region: as many completions as were asked for,
    /// all with the ticket of this op, all but the last with `more` set.
    ///
    /// Notifications that find no ARM are counted, and appear at the next one as a single
    /// completion with the last immediate.
    Arm: tag after
}

impl Arm {
    /// Makes an ARM for `count` completions, 1 to the number of CQ slots; each holds a CQ slot
    /// from now until it comes.
    pub fn new(region: &Region, count: u32) -> Self {
        let mut draft = Draft::new(Opcode::Arm, Home::Session(region.session_uid()));
        draft.sqe.local_region = region.id();
        draft.sqe.bytes = count;
        Self(draft)
    }
}
