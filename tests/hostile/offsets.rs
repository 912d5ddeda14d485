//! Offsets and lengths at every edge, each judged as sums without bounds would judge it.

use verbring::abi::{Cqe, Detail, OP_BYTES_MAX, Opcode, PAGES_MAX, Page, Sqe, errno};
use zerocopy::IntoBytes;

use super::raw::HandRing;
use super::stage::Stage;

const NEAR: u64 = 64 << 10;
const FAR: u64 = 4096 + 8;

/// Offsets around both sizes, around powers of two, and at the end of u64.
fn offsets() -> Vec<u64> {
    let mut all = vec![0, 1, 7, 8, 4095, 4096];
    for edge in [NEAR, FAR, 1 << 31, 1 << 32, 1 << 63, u64::MAX - 4096, u64::MAX] {
        for step in [-4096i64, -65, -64, -63, -9, -8, -7, -1, 0, 1, 8] {
            all.push(edge.wrapping_add(step as u64));
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

const LENGTHS: [u32; 10] =
    [0, 1, 8, 64, 4096, 4104, 65_536, OP_BYTES_MAX, OP_BYTES_MAX + 1, u32::MAX];

/// What becomes of a range: arithmetic in 128 bits cannot overflow.
fn holds(size: u64, offset: u64, bytes: u64) -> bool {
    u128::from(offset) + u128::from(bytes) <= u128::from(size)
}

/// The two regions and the ring of one attack.
struct Field {
    ring: HandRing,
    near: u32,
    import: u32,
    /// An import of the near region: both sides of an op in one place.
    own: u32,
}

impl Field {
    /// Pushes entries and compares each CQE with what it should say; `Ok` is the bytes moved.
    fn judge(&mut self, stage: &mut Stage, batch: &mut Vec<(Sqe, Result<u32, Detail>)>) {
        for (at, (sqe, _)) in batch.iter().enumerate() {
            self.ring.write(&Sqe { user_data: at as u64, ..*sqe });
        }
        self.ring.publish();
        for _ in 0..batch.len() {
            let cqe = self.ring.next();
            let (sqe, should) = &batch[cqe.user_data as usize];
            let is = match cqe {
                Cqe { res: 0.., .. } => Ok(cqe.res as u32),
                Cqe { detail, .. } if cqe.res == -errno::EINVAL => Err(detail),
                _ => panic!("{cqe:?}"),
            };
            assert_eq!(is, should.map_err(|detail| detail as u16), "{sqe:?}");
            stage.tally.attempts += 1;
            stage.tally.cqe(&cqe);
        }
        batch.clear();
    }
}

fn field(stage: &mut Stage) -> (super::raw::Wire, Field, Vec<verbring::shm::Mapping>) {
    let mut wire = stage.wire();
    let ring = wire.ring(64, 64);
    let (near, near_memory) = wire.region(NEAR);
    let (far, far_memory) = wire.region(FAR);
    let import = wire.own_import(far, "offsets");
    let own = wire.own_import(near, "offsets-own");
    (wire, Field { ring, near, import, own }, vec![near_memory, far_memory])
}

/// READ and WRITE, and the same within one region, where ranges may overlap.
#[test]
fn of_transfers() {
    let mut stage = Stage::set("offsets of READ and WRITE");
    let (wire, mut field, memory) = field(&mut stage);
    let (near, import, own) = (field.near, field.import, field.own);
    let mut batch = Vec::new();
    let mut first = true;
    while stage.goes_on() || first {
        first = false;
        for &local_offset in &offsets() {
            for &remote_offset in &offsets() {
                for (at, &bytes) in LENGTHS.iter().enumerate() {
                    let (length, together) = (u64::from(bytes), at % 3 == 0);
                    let size = if together { NEAR } else { FAR };
                    let apart = local_offset.abs_diff(remote_offset) >= length;
                    let should = if bytes > OP_BYTES_MAX {
                        Err(Detail::Bytes)
                    } else if !holds(NEAR, local_offset, length) {
                        Err(Detail::LocalOffset)
                    } else if !holds(size, remote_offset, length) {
                        Err(Detail::RemoteOffset)
                    } else if together && bytes > 0 && !apart {
                        Err(Detail::Overlap)
                    } else {
                        Ok(bytes)
                    };
                    let sqe = Sqe {
                        opcode: [Opcode::Write, Opcode::Read][at % 2] as u8,
                        local_region: near,
                        remote_region: if together { own } else { import },
                        local_offset,
                        remote_offset,
                        bytes,
                        ..Sqe::default()
                    };
                    batch.push((sqe, should));
                    if batch.len() == 64 {
                        field.judge(&mut stage, &mut batch);
                    }
                }
            }
        }
    }
    field.judge(&mut stage, &mut batch);
    drop((wire, field, memory));
    stage.finish();
}

/// FETCH_ADD and CMP_SWAP: eight bytes at multiples of eight.
#[test]
fn of_atomics() {
    let mut stage = Stage::set("offsets of atomics");
    let (wire, mut field, memory) = field(&mut stage);
    let (near, import) = (field.near, field.import);
    let mut batch = Vec::new();
    while stage.goes_on() {
        for &local_offset in &offsets() {
            for &remote_offset in &offsets() {
                let should = if remote_offset % 8 != 0 {
                    Err(Detail::RemoteOffset)
                } else if local_offset % 8 != 0 || !holds(NEAR, local_offset, 8) {
                    Err(Detail::LocalOffset)
                } else if !holds(FAR, remote_offset, 8) {
                    Err(Detail::RemoteOffset)
                } else {
                    Ok(8)
                };
                let opcode = [Opcode::FetchAdd, Opcode::CmpSwap][batch.len() % 2];
                let sqe = Sqe {
                    opcode: opcode as u8,
                    local_region: near,
                    remote_region: import,
                    local_offset,
                    remote_offset,
                    arg: [1, 0],
                    ..Sqe::default()
                };
                batch.push((sqe, should));
                if batch.len() == 64 {
                    field.judge(&mut stage, &mut batch);
                }
            }
        }
    }
    field.judge(&mut stage, &mut batch);
    drop((wire, field, memory));
    stage.finish();
}

/// Page lists: where they lie, how long they are, and every entry.
#[test]
fn of_page_lists() {
    let mut stage = Stage::set("offsets of page lists");
    let (wire, mut field, memory) = field(&mut stage);
    let (near, import) = (field.near, field.import);
    let mut batch = Vec::new();
    while stage.goes_on() {
        for &offset in &offsets() {
            for &other in &[0, 8, 64, FAR - 64, FAR - 63, u64::MAX - 63, u64::MAX] {
                // A list of three at 0; its last page is the one in question.
                let pages = [(0, 0), (64, 64), (offset, other)];
                for (at, (local_offset, remote_offset)) in (0..).zip(pages) {
                    let page = Page { local_offset, remote_offset };
                    memory[0].write(16 * at, page.as_bytes());
                }
                let base = [0, 8, u64::MAX][batch.len() % 3];
                let good = |local, remote: u64| {
                    let far = remote.checked_add(base);
                    holds(NEAR, local, 64) && far.is_some_and(|far| holds(FAR, far, 64))
                };
                let all_good = pages.iter().all(|&(local, remote)| good(local, remote));
                let sqe = Sqe {
                    opcode: Opcode::Readv as u8,
                    local_region: near,
                    remote_region: import,
                    remote_offset: base,
                    bytes: 64,
                    arg: [3 << 32, 0],
                    ..Sqe::default()
                };
                // The list must not change before it is copied: one entry at a time.
                batch.push((sqe, if all_good { Ok(192) } else { Err(Detail::Page) }));
                field.judge(&mut stage, &mut batch);
            }
            for pages in [1, 2, 1023, PAGES_MAX] {
                let list = holds(NEAR, offset, 16 * u64::from(pages));
                let sqe = Sqe {
                    opcode: Opcode::Writev as u8,
                    local_region: near,
                    remote_region: import,
                    local_offset: offset,
                    arg: [u64::from(pages) << 32, 0],
                    ..Sqe::default()
                };
                if !list {
                    batch.push((sqe, Err(Detail::LocalOffset)));
                }
                let large = Sqe { bytes: OP_BYTES_MAX / pages + 1, ..sqe };
                batch.push((large, Err(Detail::Bytes)));
            }
            field.judge(&mut stage, &mut batch);
        }
    }
    drop((wire, field, memory));
    stage.finish();
}
