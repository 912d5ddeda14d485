//! Rule 2: a bad SQE is taken, has no effect and no record, and its CQE names the field.

use super::world::{LIMITS, Pair, REGION_BYTES, SENDER, World, arm, cancel, flush, nop};
use crate::abi::{
    CANCEL_BY_RECORD, Class, Detail, OP_BYTES_MAX, Opcode, PAGES_MAX, Page, RIGHT_ATOMIC,
    RIGHT_NOTIFY, RIGHT_READ, RIGHT_WRITE, RIGHTS_ALL, SQE_COALESCE, SQE_DRAIN, SQE_HARDLINK,
    SQE_LINK, SQE_NO_MERGE, SQE_NOTIFY, SQE_REVOKE, SQE_SKIP_SUCCESS, SQE_SUPERSEDE, Sqe, errno,
};
use crate::fabric::Local;
use crate::seeds::each_seed;

/// One thing done to a good SQE, and how it is answered.
pub(super) struct Mutation {
    name: &'static str,
    /// For these opcodes.
    opcodes: &'static [Opcode],
    change: fn(&mut Sqe),
    errno: i32,
    detail: Detail,
}

use Opcode::{Arm, Cancel, CmpSwap, FetchAdd, Flush, Nop, Read, Readv, Write, Writev};

const ALL: &[Opcode] = &[Nop, Write, Read, Writev, Readv, FetchAdd, CmpSwap, Cancel, Flush, Arm];
const DATA: &[Opcode] = &[Write, Read, Writev, Readv, FetchAdd, CmpSwap];
const PLAIN: &[Opcode] = &[Write, Read];
const READS: &[Opcode] = &[Read];
const UNFOLDED: &[Opcode] = &[Nop, Writev, Readv, FetchAdd, CmpSwap, Cancel, Flush, Arm];
const LISTS: &[Opcode] = &[Writev, Readv];
const ATOMICS: &[Opcode] = &[FetchAdd, CmpSwap];
const OWN: &[Opcode] = &[Flush, Arm];
const BARE: &[Opcode] = &[Nop, Cancel];
const NO_DATA: &[Opcode] = &[Nop, Cancel, Flush, Arm];

macro_rules! mutations {
    ($($name:literal $opcodes:ident $errno:ident $detail:ident $change:expr;)*) => {
        &[$(Mutation {
            name: $name,
            opcodes: $opcodes,
            change: $change,
            errno: errno::$errno,
            detail: Detail::$detail,
        },)*]
    };
}

/// Every field of every opcode, wrong in every way that the ABI knows.
pub(super) const MUTATIONS: &[Mutation] = mutations! {
    "an opcode nobody defined" ALL EINVAL Opcode |sqe| sqe.opcode = 12;
    "opcode 255" ALL EINVAL Opcode |sqe| sqe.opcode = 255;
    "a JOIN of regions" DATA EINVAL LocalRegion |sqe| sqe.opcode = Opcode::Join as u8;
    "RUN" ALL EOPNOTSUPP Opcode |sqe| sqe.opcode = Opcode::Run as u8;
    "class 4" ALL EINVAL Class |sqe| sqe.class = 4;
    "class 255" ALL EINVAL Class |sqe| sqe.class = 255;
    "LINK of an ARM" ARMS EINVAL Flags |sqe| sqe.flags |= SQE_LINK;
    "HARDLINK of an ARM" ARMS EINVAL Flags |sqe| sqe.flags |= SQE_HARDLINK;
    "DRAIN of an ARM" ARMS EINVAL Flags |sqe| sqe.flags |= SQE_DRAIN;
    "COALESCE of what has no key" UNFOLDED EINVAL Flags |sqe| sqe.flags |= SQE_COALESCE;
    "SUPERSEDE of what has no key" UNFOLDED EINVAL Flags |sqe| sqe.flags |= SQE_SUPERSEDE;
    "SUPERSEDE of a READ" READS EINVAL Flags |sqe| sqe.flags |= SQE_SUPERSEDE;
    "COALESCE and SUPERSEDE" ALL EINVAL Flags |sqe| sqe.flags |= SQE_COALESCE | SQE_SUPERSEDE;
    "flag 9" ALL EINVAL Flags |sqe| sqe.flags |= 1 << 9;
    "flag 15" ALL EINVAL Flags |sqe| sqe.flags |= 1 << 15;
    "REVOKE elsewhere" DATA EINVAL Flags |sqe| sqe.flags |= SQE_REVOKE;
    "REVOKE on bare ops" BARE EINVAL Flags |sqe| sqe.flags |= SQE_REVOKE;
    "NOTIFY without data" NO_DATA EINVAL Flags |sqe| sqe.flags |= SQE_NOTIFY;
    "NO_MERGE without data" NO_DATA EINVAL Flags |sqe| sqe.flags |= SQE_NO_MERGE;
    "an edge to before the first" ALL EINVAL Edges |sqe| sqe.edges[0] = 0x7fff;
    "an order to nobody" ALL EINVAL Edges |sqe| sqe.edges[1] = 0x8000;
    "an immediate for nobody" ALL EINVAL Immediate |sqe| sqe.immediate = 1;
    "no local region" DATA EINVAL LocalRegion |sqe| sqe.local_region = 0;
    "no region" OWN EINVAL LocalRegion |sqe| sqe.local_region = 0;
    "an older region" DATA EINVAL LocalRegion |sqe| sqe.local_region ^= 3 << 20;
    "an older own region" OWN EINVAL LocalRegion |sqe| sqe.local_region ^= 3 << 20;
    "a region beyond the table" DATA EINVAL LocalRegion |sqe| sqe.local_region |= 0xf_fff0;
    "an import as local" DATA EINVAL LocalRegion |sqe| sqe.local_region = sqe.remote_region;
    "no remote region" DATA EINVAL RemoteRegion |sqe| sqe.remote_region = 0;
    "a region as remote" DATA EINVAL RemoteRegion |sqe| sqe.remote_region = sqe.local_region;
    "a stranger's region" DATA EINVAL RemoteRegion |sqe| sqe.remote_region = 1 << 20 | 1;
    "an older import" DATA EINVAL RemoteRegion |sqe| sqe.remote_region ^= 3 << 20;
    "a stranger's local" DATA EINVAL LocalRegion |sqe| sqe.local_region = 1 << 20 | 1;
    "a remote region unused" NO_DATA EINVAL RemoteRegion |sqe| sqe.remote_region = 1;
    "a local region unused" BARE EINVAL LocalRegion |sqe| sqe.local_region = 1;
    "local ends beyond" PLAIN EINVAL LocalOffset |sqe| sqe.local_offset = REGION_BYTES - 7;
    "local list beyond" LISTS EINVAL LocalOffset |sqe| sqe.local_offset = REGION_BYTES - 31;
    "local word beyond" ATOMICS EINVAL LocalOffset |sqe| sqe.local_offset = REGION_BYTES;
    "local wraps" DATA EINVAL LocalOffset |sqe| sqe.local_offset = u64::MAX - 7;
    "local not aligned" ATOMICS EINVAL LocalOffset |sqe| sqe.local_offset += 4;
    "local unused" NO_DATA EINVAL LocalOffset |sqe| sqe.local_offset = 8;
    "remote ends beyond" PLAIN EINVAL RemoteOffset |sqe| sqe.remote_offset = REGION_BYTES - 7;
    "remote word beyond" ATOMICS EINVAL RemoteOffset |sqe| sqe.remote_offset = REGION_BYTES;
    "remote page beyond" LISTS EINVAL Page |sqe| sqe.remote_offset = REGION_BYTES;
    "remote page wraps" LISTS EINVAL Page |sqe| sqe.remote_offset = u64::MAX;
    "remote wraps" PLAIN EINVAL RemoteOffset |sqe| sqe.remote_offset = u64::MAX;
    "remote not aligned" ATOMICS EINVAL RemoteOffset |sqe| sqe.remote_offset += 4;
    "remote unused" NO_DATA EINVAL RemoteOffset |sqe| sqe.remote_offset = 8;
    "more bytes than an op may have" PLAIN EINVAL Bytes |sqe| sqe.bytes = OP_BYTES_MAX + 1;
    "more bytes in pages" LISTS EINVAL Bytes |sqe| sqe.bytes = OP_BYTES_MAX / sqe.pages() + 1;
    "all bytes" PLAIN EINVAL Bytes |sqe| sqe.bytes = u32::MAX;
    "bytes unused" BARE EINVAL Bytes |sqe| sqe.bytes = 1;
    "bytes for a FLUSH" FLUSHES EINVAL Bytes |sqe| sqe.bytes = 1;
    "ARM of nothing" ARMS EINVAL Bytes |sqe| sqe.bytes = 0;
    "ARM beyond the CQ" ARMS E2BIG Bytes |sqe| sqe.bytes = 65;
    "pages without a list" PLAIN EINVAL Arg |sqe| sqe.arg[0] |= 1 << 32;
    "a list of nothing" LISTS EINVAL Arg |sqe| sqe.arg[0] = 0;
    "a list too long" LISTS E2BIG Arg |sqe| sqe.arg[0] = u64::from(PAGES_MAX + 1) << 32;
    "a swap for an add" ADDS EINVAL Arg |sqe| sqe.arg[1] = 1;
    "an argument for nobody" ARG_UNUSED EINVAL Arg |sqe| sqe.arg[0] = 1;
    "CANCEL by no key" CANCELS EINVAL Arg |sqe| sqe.arg[1] = CANCEL_BY_RECORD + 1;
    "SKIP_SUCCESS of an ARM" ARMS EINVAL Flags |sqe| sqe.flags |= SQE_SKIP_SUCCESS;
    "REVOKE of an ARM" ARMS EINVAL Flags |sqe| sqe.flags |= SQE_REVOKE;
};

const FLUSHES: &[Opcode] = &[Flush];
const ARMS: &[Opcode] = &[Arm];
const ADDS: &[Opcode] = &[FetchAdd];
const CANCELS: &[Opcode] = &[Cancel];
const ARG_UNUSED: &[Opcode] = &[Nop, Flush, Arm];

impl Mutation {
    /// Changes a good SQE of this opcode; how the result must be answered.
    pub(super) fn apply(&self, opcode: Opcode, sqe: &mut Sqe) -> Option<(i32, Detail)> {
        if !self.opcodes.contains(&opcode) {
            return None;
        }
        let good = *sqe;
        (self.change)(sqe);
        (*sqe != good).then_some((self.errno, self.detail))
    }
}

fn pair() -> Pair<Local> {
    Pair::new(World::local(LIMITS), 64)
}

/// A good SQE of each opcode.
fn good(pair: &Pair<Local>, opcode: Opcode) -> Sqe {
    match opcode {
        Nop => nop(),
        Write | Read => pair.op(opcode, 64, 32),
        Writev | Readv => {
            let pages = [64, 128].map(|at| Page { local_offset: at, remote_offset: at });
            pair.list(opcode, &pages, 32)
        }
        FetchAdd | CmpSwap => Sqe { arg: [3, 0], ..pair.op(opcode, 64, 0) },
        Cancel => cancel(0, 77),
        Flush => flush(pair.near),
        Arm => arm(pair.near, 2),
        Opcode::Join | Opcode::Run => unreachable!(),
    }
}

#[test]
fn rule_2_a_bad_field_is_named_and_has_no_effect() {
    let mut tried = 0;
    let mut pair = pair();
    let untouched = (pair.world.bytes(pair.near), pair.world.bytes(pair.target));
    for mutation in MUTATIONS {
        for &opcode in ALL {
            let mut sqe = good(&pair, opcode);
            let Some((errno, detail)) = mutation.apply(opcode, &mut sqe) else { continue };
            let name = mutation.name;
            let list_at = pair.world.bytes(pair.near)[65_000..].to_vec();
            sqe.user_data = 0xfeed_0000 + tried;
            let cqe = pair.world.run(SENDER, sqe);
            let said = (cqe.user_data, cqe.record, cqe.res, cqe.flags, cqe.detail);
            let must = (sqe.user_data, 0, -errno, 0, detail as u16);
            assert_eq!(said, must, "{name}, {opcode:?}");
            pair.world.expect_rest();
            assert_eq!(list_at, pair.world.bytes(pair.near)[65_000..], "{name}, {opcode:?}");
            assert!(untouched.1 == pair.world.bytes(pair.target), "{name}, {opcode:?}");
            tried += 1;
        }
    }
    assert!(untouched.0[..65_000] == pair.world.bytes(pair.near)[..65_000]);
    assert!(tried > 200, "only {tried} kinds of garbage");
}

#[test]
fn every_good_sqe_that_garbage_is_made_of_succeeds() {
    let mut pair = pair();
    for &opcode in ALL {
        let sqe = good(&pair, opcode);
        if opcode == Arm {
            pair.world.push(SENDER, sqe);
            continue;
        }
        let cqe = pair.world.run(SENDER, sqe);
        let must = if opcode == Cancel { -errno::ENOENT } else { cqe.res.max(0) };
        assert_eq!(cqe.res, must, "{opcode:?}");
        assert_ne!(cqe.record, 0, "{opcode:?}");
    }
}

#[test]
fn each_right_is_needed_for_its_verbs() {
    let needs = [
        (Write, RIGHT_WRITE),
        (Writev, RIGHT_WRITE),
        (Read, RIGHT_READ),
        (Readv, RIGHT_READ),
        (FetchAdd, RIGHT_ATOMIC),
        (CmpSwap, RIGHT_ATOMIC),
    ];
    for rights in 1..=RIGHTS_ALL {
        let mut pair = pair();
        let sender = pair.world.clients[SENDER].session;
        pair.far = pair.world.import_of(sender, pair.target, rights).unwrap();
        for (opcode, right) in needs {
            for notify in [false, true] {
                let mut sqe = good(&pair, opcode);
                let mut needed = right;
                if notify {
                    sqe.flags |= SQE_NOTIFY;
                    needed |= RIGHT_NOTIFY;
                }
                let cqe = pair.world.run(SENDER, sqe);
                if rights & needed == needed {
                    assert!(cqe.res > 0, "{opcode:?} with {rights:#x}: {cqe:?}");
                } else {
                    let said = (cqe.record, cqe.res, cqe.detail);
                    assert_eq!(said, (0, -errno::EACCES, Detail::Rights as u16), "{opcode:?}");
                }
            }
        }
    }
}

#[test]
fn a_class_above_the_ceiling_is_refused_and_the_default_is_lowered() {
    let mut world = World::local(LIMITS);
    for (place, ceiling) in [(0, Class::High), (1, Class::Medium), (2, Class::Low)] {
        let session = world.session_of(place, place, 100, ceiling);
        let client = world.ring(session, 4, 4);
        for class in 0..=3u8 {
            let cqe = world.run(client, Sqe { class, ..nop() });
            if class > 0 && class < ceiling as u8 {
                assert_eq!((cqe.res, cqe.detail), (-errno::EACCES, Detail::Class as u16));
            } else {
                assert_eq!(cqe.res, 0, "class {class} under {ceiling:?}");
            }
        }
    }
}

#[test]
fn source_and_destination_may_touch_but_not_overlap() {
    let mut world = World::local(LIMITS);
    let session = world.session(0);
    let client = world.ring(session, 8, 8);
    let near = world.region(session, 4096);
    let own = world.import(session, near);
    let base = Sqe { opcode: Write as u8, local_region: near.0, remote_region: own.0, ..nop() };
    for (local_offset, remote_offset, bytes, good) in [
        (0, 100, 100, true),
        (100, 0, 100, true),
        (0, 99, 100, false),
        (99, 0, 100, false),
        (50, 50, 1, false),
        (50, 50, 0, true),
        (50, 60, 0, true),
    ] {
        let sqe = Sqe { local_offset, remote_offset, bytes, ..base };
        let cqe = world.run(client, sqe);
        let overlap = (-errno::EINVAL, Detail::Overlap as u16);
        assert_eq!(((cqe.res, cqe.detail) != overlap), good, "{sqe:?} {cqe:?}");
    }
    let atomic = Sqe { opcode: FetchAdd as u8, local_offset: 64, remote_offset: 64, ..base };
    let cqe = world.run(client, atomic);
    assert_eq!((cqe.res, cqe.detail), (-errno::EINVAL, Detail::Overlap as u16));
}

/// 64 random bytes: whatever they say, they end once and break nothing.
#[test]
fn rule_2_noise_is_answered_once() {
    each_seed(20, |seed| {
        let mut random = crate::seeds::Random::new(seed);
        let mut pair = pair();
        let untouched = pair.world.bytes(pair.target);
        for number in 0..500u64 {
            let mut words: [u64; 8] = std::array::from_fn(|_| random.next());
            // Half of them begin like something that could be meant.
            if random.chance(50) {
                words[0] = random.below(12) | random.below(4) << 8;
                words[2] = u64::from(pair.near.0) | u64::from(pair.far.0) << 32;
            }
            words[1] = number;
            pair.world.push(SENDER, Sqe::from_words(words));
            pair.world.settle();
            let cqes = pair.world.pop(SENDER);
            assert_eq!(cqes.len(), 1, "{words:x?} {cqes:?}");
            assert_eq!((cqes[0].user_data, cqes[0].record), (number, 0), "{words:x?}");
            assert!(cqes[0].res < 0, "{words:x?} {cqes:?}");
        }
        assert_eq!(untouched, pair.world.bytes(pair.target));
        assert!(pair.world.faults().is_empty());
    });
}
