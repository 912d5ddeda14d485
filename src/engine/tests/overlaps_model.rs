//! What bytes may hold after moves that overlap, the obvious slow way: which move may have been the
//! last at each byte, by what is known to have come before what, and nothing else.
//!
//! A byte that two moves write which nothing orders holds the value of either; and so it may be
//! seen by a third. Where everything is ordered there is one value, that of a serial replay.

/// Moves that are looked at together: they have a bit each in a word.
pub(super) const MOVES_MAX: usize = 64;

/// Bytes of one flat memory that are copied to another place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Op {
    moves: Option<Move>,
    /// It failed: nobody knows whether it was carried out, and how far.
    failed: bool,
    /// What comes before it: at first what it was told, in the end all of it.
    before: u64,
    after: u64,
    /// The one that was carried out for it: itself, unless it was folded.
    by: usize,
}

/// A set of byte values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Values([u64; 4]);

impl Values {
    fn add(&mut self, value: u8) {
        self.0[usize::from(value >> 6)] |= 1 << (value & 63);
    }

    fn add_all(&mut self, more: &Self) {
        (0..4).for_each(|at| self.0[at] |= more.0[at]);
    }

    pub(super) fn has(&self, value: u8) -> bool {
        self.0[usize::from(value >> 6)] >> (value & 63) & 1 != 0
    }
}

/// Ops, and what is known of their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Moves {
    ops: Vec<Op>,
    /// By byte: who writes it, and who of these surely did.
    writers: Vec<[u64; 2]>,
    /// What was begun may have been carried out again, from its first that had not succeeded.
    repeated: bool,
}

fn bits(mask: u64) -> impl Iterator<Item = usize> {
    (0..MOVES_MAX).filter(move |at| mask >> at & 1 != 0)
}

impl Moves {
    /// An op that comes behind those of a mask; its number.
    pub(super) fn push(&mut self, moves: Option<Move>, before: u64) -> usize {
        let by = self.ops.len();
        assert!(by < MOVES_MAX);
        self.ops.push(Op { moves, failed: false, before, after: 0, by });
        by
    }

    /// It failed.
    pub(super) fn fail(&mut self, op: usize) {
        self.ops[op].failed = true;
    }

    /// A rail failed: what was begun there is repeated in order, so that an op may read again after
    /// others that come behind it have written.
    pub(super) fn repeat(&mut self) {
        self.repeated = true;
    }

    /// It was not carried out by itself, but by another, whose end was its own.
    pub(super) fn fold(&mut self, op: usize, into: usize) {
        assert!(self.ops[into].by == into && op != into);
        self.ops[op].by = into;
        self.ops[op].moves = None;
    }

    /// All has been said: works out what comes before what. What is folded comes when the one comes
    /// that was carried out for it.
    pub(super) fn order(&mut self, memory_bytes: usize) {
        loop {
            let known: Vec<u64> = self.ops.iter().map(|op| op.before).collect();
            for at in 0..self.ops.len() {
                let by = self.ops[at].by;
                let mut before = known[at] | known[by];
                bits(before).for_each(|op| before |= known[op] | 1 << self.ops[op].by);
                self.ops[at].before = before;
                self.ops[by].before |= before;
            }
            if self.ops.iter().map(|op| op.before).eq(known) {
                break;
            }
        }
        for at in 0..self.ops.len() {
            let before = self.ops[at].before;
            assert_eq!(before >> at & 1, 0, "{at} comes before itself");
            bits(before).for_each(|op| self.ops[op].after |= 1 << at);
        }
        self.writers = vec![[0; 2]; memory_bytes];
        for (at, op) in self.ops.iter().enumerate() {
            for byte in op.moves.iter().flat_map(|it| it.to..it.to + it.bytes) {
                self.writers[byte][0] |= 1 << at;
                self.writers[byte][1] |= u64::from(!op.failed) << at;
            }
        }
    }

    /// Whose value may be seen in a byte by somebody that comes behind some, and before others; and
    /// whether it may be that of before all of them.
    fn seen(&self, byte: usize, behind: u64, ahead_of: u64) -> (u64, bool) {
        let [all, sure] = self.writers[byte];
        let over = sure & behind;
        let last = |op: &usize| self.ops[*op].after & over == 0;
        let found = bits(all & !ahead_of).filter(last).fold(0, |found, op| found | 1 << op);
        (found, over == 0)
    }

    /// Who may have been the last to write a byte, out of how many.
    pub(super) fn last(&self, byte: usize) -> (u32, u32) {
        let (found, _) = self.seen(byte, u64::MAX, 0);
        (found.count_ones(), self.writers[byte][0].count_ones())
    }

    /// What each byte may hold in the end, if this is what it held before.
    pub(super) fn ends(&self, memory: &[u8]) -> Vec<Values> {
        let length = |op: &Op| op.moves.map_or(0, |it| it.bytes);
        let mut carried: Vec<Vec<Values>> =
            self.ops.iter().map(|op| vec![Values::default(); length(op)]).collect();
        let values = |carried: &[Vec<Values>], byte: usize, (writers, untouched): (u64, bool)| {
            let mut values = Values::default();
            if untouched {
                values.add(memory[byte]);
            }
            for op in bits(writers) {
                let to = self.ops[op].moves.map_or(0, |it| it.to);
                values.add_all(&carried[op][byte - to]);
            }
            values
        };
        // What is copied may have been copied before, in any order of what is not ordered: sets
        // grow until nothing is new.
        loop {
            let mut grew = false;
            for (at, op) in self.ops.iter().enumerate() {
                let Some(Move { from, bytes, .. }) = op.moves else { continue };
                for offset in 0..bytes {
                    let ahead_of = if self.repeated { 0 } else { op.after };
                    let seen = self.seen(from + offset, op.before, ahead_of);
                    let more = values(&carried, from + offset, seen);
                    grew |= carried[at][offset] != more;
                    carried[at][offset] = more;
                }
            }
            if !grew {
                break;
            }
        }
        let end = |byte| values(&carried, byte, self.seen(byte, u64::MAX, 0));
        (0..memory.len()).map(end).collect()
    }
}

/// Three bytes that are read from, and one that is written; the values it may hold.
fn may_end(make: impl Fn(&mut Moves)) -> Vec<u8> {
    let memory = [10, 11, 12, 13, 14];
    let mut moves = Moves::default();
    make(&mut moves);
    moves.order(memory.len());
    let end = moves.ends(&memory)[3];
    (0..=u8::MAX).filter(|value| end.has(*value)).collect()
}

fn copy(from: usize, to: usize) -> Option<Move> {
    Some(Move { from, to, bytes: 1 })
}

#[test]
fn the_last_in_order_counts_and_of_the_others_any() {
    let ordered = |moves: &mut Moves| {
        moves.push(copy(0, 3), 0);
        moves.push(copy(1, 3), 1);
    };
    assert_eq!(may_end(ordered), [11]);
    let free = |moves: &mut Moves| {
        moves.push(copy(0, 3), 0);
        moves.push(copy(1, 3), 0);
    };
    assert_eq!(may_end(free), [10, 11]);
    // By way of one that moves nothing.
    let through = |moves: &mut Moves| {
        moves.push(copy(0, 3), 0);
        moves.push(None, 1);
        moves.push(copy(1, 3), 2);
    };
    assert_eq!(may_end(through), [11]);
    // The last one may not have been carried out.
    let failed = |moves: &mut Moves| {
        ordered(moves);
        moves.fail(1);
    };
    assert_eq!(may_end(failed), [10, 11]);
    assert_eq!(may_end(|_| {}), [13]);
}

#[test]
fn what_is_copied_on_is_what_may_have_been_there() {
    let chain = |last: u64| {
        move |moves: &mut Moves| {
            moves.push(copy(0, 4), 0);
            moves.push(copy(1, 4), 1);
            moves.push(copy(4, 3), last);
        }
    };
    assert_eq!(may_end(chain(2)), [11]);
    assert_eq!(may_end(chain(1)), [10, 11]);
    assert_eq!(may_end(chain(0)), [10, 11, 14]);
    // It comes before what it would copy.
    let before = |moves: &mut Moves| {
        moves.push(copy(4, 3), 0);
        moves.push(copy(0, 4), 1);
    };
    assert_eq!(may_end(before), [14]);
    // Both were posted, and are repeated.
    let again = |moves: &mut Moves| {
        before(moves);
        moves.repeat();
    };
    assert_eq!(may_end(again), [10, 14]);
}

#[test]
fn what_is_folded_comes_when_the_other_one_does() {
    // 2 is folded into 0, and comes behind 1, of which 0 knew nothing.
    let folded = |moves: &mut Moves| {
        moves.push(copy(0, 3), 0);
        moves.push(copy(1, 3), 0);
        moves.push(copy(0, 3), 2);
        moves.fold(2, 0);
    };
    assert_eq!(may_end(folded), [10]);
    // What comes behind the folded one comes behind that which was carried out.
    let behind = |moves: &mut Moves| {
        moves.push(copy(0, 3), 0);
        moves.push(copy(0, 3), 0);
        moves.fold(1, 0);
        moves.push(copy(1, 3), 2);
    };
    assert_eq!(may_end(behind), [11]);
}
