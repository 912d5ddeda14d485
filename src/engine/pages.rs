//! Page lists of WRITEV and READV: copied once, into blocks of a bounded pool.

use crate::abi::Page;
use crate::ledger::NIL;

/// Pages in a block.
pub(super) const BLOCK_PAGES: u32 = 64;

#[derive(Debug)]
pub(super) struct PagePool {
    blocks: Vec<[Page; BLOCK_PAGES as usize]>,
    next: Vec<u32>,
    free: u32,
}

impl PagePool {
    pub(super) fn new(blocks: u32) -> Self {
        let next = (0..blocks).map(|at| if at + 1 < blocks { at + 1 } else { NIL }).collect();
        let blank = [Page { local_offset: 0, remote_offset: 0 }; BLOCK_PAGES as usize];
        Self { blocks: vec![blank; blocks as usize], next, free: 0 }
    }

    /// Blocks that a list of `pages` needs.
    pub(super) fn blocks_for(pages: u32) -> u32 {
        pages.div_ceil(BLOCK_PAGES)
    }

    /// Takes a chain of blocks, which the caller knows to be free.
    pub(super) fn take(&mut self, blocks: u32) -> u32 {
        let first = self.free;
        let mut last = NIL;
        for _ in 0..blocks {
            assert!(self.free != NIL, "took page blocks beyond the pool");
            last = self.free;
            self.free = self.next[last as usize];
        }
        if last == NIL {
            return NIL;
        }
        self.next[last as usize] = NIL;
        first
    }

    /// Gives a chain back; returns its blocks.
    pub(super) fn give(&mut self, first: u32) -> u32 {
        let mut count = 0;
        let mut at = first;
        while at != NIL {
            let next = self.next[at as usize];
            self.next[at as usize] = self.free;
            self.free = at;
            at = next;
            count += 1;
        }
        count
    }

    #[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
    pub(super) fn free_count(&self) -> u32 {
        let mut count = 0;
        let mut at = self.free;
        while at != NIL {
            at = self.next(at);
            count += 1;
        }
        count
    }

    pub(super) fn next(&self, block: u32) -> u32 {
        self.next[block as usize]
    }

    pub(super) fn block(&mut self, block: u32) -> &mut [Page; BLOCK_PAGES as usize] {
        &mut self.blocks[block as usize]
    }

    pub(super) fn page(&self, block: u32, page: u32) -> Page {
        self.blocks[block as usize][(page % BLOCK_PAGES) as usize]
    }
}
