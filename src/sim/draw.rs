//! What a client does next.

use super::check::untouched;
use super::client::{Client, NOWHERE, Out, immediate};
use super::ground::{Ground, SLOT_BYTES, SLOT_SIZE, SLOTS};
use crate::abi::{CANCEL_BY_USER_DATA, Opcode, SQE_NOTIFY, SQE_SKIP_SUCCESS, Sqe};
use crate::random::Random;

/// Where an op goes from and to: drawn before it is known what it does.
struct Draft {
    sqe: Sqe,
    out: Out,
}

impl Client {
    /// Draws an op; nothing if what it would need is in use.
    pub(super) fn draw(
        &mut self,
        random: &mut Random,
        grounds: &mut [Ground],
    ) -> Option<(Sqe, Out)> {
        let user_data = self.number();
        let number = self.end.pushed();
        let class = u8::try_from(random.below(4)).ok()?;
        let class = if class == 0 { 0 } else { class.max(self.ceiling as u8) };
        let skips = random.below(20) == 0;
        let flags = if skips { SQE_SKIP_SUCCESS } else { 0 };
        let sqe = Sqe { class, flags, user_data, ..Sqe::default() };
        match random.below(100) {
            0..5 => {
                let sqe = Sqe { opcode: Opcode::Nop as u8, ..sqe };
                Some((sqe, Out { number, skips, ..Out::of(Opcode::Nop) }))
            }
            5..8 => self.draw_cancel(random, sqe, number),
            _ => {
                let out = Out { number, skips, ..Out::of(Opcode::Write) };
                self.draw_data(random, grounds, Draft { sqe, out })
            }
        }
    }

    fn draw_cancel(&self, random: &mut Random, sqe: Sqe, number: u64) -> Option<(Sqe, Out)> {
        let aim = random.below(sqe.user_data.max(1));
        let arg = [aim, CANCEL_BY_USER_DATA];
        let sqe = Sqe { opcode: Opcode::Cancel as u8, flags: 0, arg, ..sqe };
        // What is heard is counted, and a revocation is judged: both are to stay.
        let stays = self.armed == Some(aim) || self.revoking == Some(aim);
        (!stays).then_some((sqe, Out { number, ..Out::of(Opcode::Cancel) }))
    }

    fn draw_data(
        &mut self,
        random: &mut Random,
        grounds: &mut [Ground],
        draft: Draft,
    ) -> Option<(Sqe, Out)> {
        if self.targets.is_empty() {
            return None;
        }
        let target = random.index(self.targets.len());
        let place = &self.targets[target];
        if place.import == NOWHERE {
            return None;
        }
        let slot = random.index(SLOTS);
        let buffer = *self.free.last()?;
        let ground = &mut grounds[place.ground];
        let sqe = Sqe {
            local_region: self.own,
            remote_region: place.import,
            local_offset: buffer as u64 * SLOT_BYTES,
            remote_offset: ground.slot(self.row, slot),
            ..draft.sqe
        };
        self.unmoved_buffer(buffer);
        let out = Out { target, slot, buffer, ..draft.out };
        let draft = Draft { sqe, out };
        let (sqe, out) = if random.below(5) == 0 {
            draw_add(random, ground, &draft)
        } else {
            self.draw_move(random, ground, draft)?
        };
        if out.slot != usize::MAX {
            self.targets[target].slots[slot].busy = true;
            untouched::open(&self.net, ground.memory(), ground.slot(self.row, slot));
        }
        untouched::open(&self.net, &self.memory, sqe.local_offset);
        self.free.pop();
        self.landed[buffer] = None;
        Some((sqe, out))
    }

    /// A WRITE or READ of a slot that no op is under way to.
    fn draw_move(
        &self,
        random: &mut Random,
        ground: &mut Ground,
        Draft { sqe, out }: Draft,
    ) -> Option<(Sqe, Out)> {
        let slot = &self.targets[out.target].slots[out.slot];
        if slot.busy {
            return None;
        }
        let seen = ground.read(self.row, out.slot);
        if let Some(left) = &slot.left {
            untouched::same("slot", out.slot, left, &seen);
        }
        let bytes = match random.below(4) {
            0 => 8 * random.below32(3),
            _ => random.below32(u32::try_from(SLOT_SIZE).ok()? + 1),
        };
        let deadline = if random.below(10) == 0 { random.below(200) } else { 0 };
        let sqe = Sqe { bytes, arg: [deadline, 0], ..sqe };
        let out = Out { bytes, ..out };
        let kind = random.below(80);
        if kind < 35 {
            let opcode = Opcode::Read;
            return Some((Sqe { opcode: opcode as u8, ..sqe }, Out { opcode, ..out }));
        }
        let fill = u8::try_from(sqe.user_data % 251).ok()?;
        self.memory.fill(sqe.local_offset, SLOT_BYTES, fill);
        let opcode = Opcode::Write as u8;
        if kind < 65 {
            return Some((Sqe { opcode, ..sqe }, out));
        }
        ground.notices.tried += 1;
        let flags = sqe.flags | SQE_NOTIFY;
        let immediate = immediate(self.row, sqe.user_data);
        Some((Sqe { opcode, flags, immediate, ..sqe }, Out { notify: true, ..out }))
    }
}

/// How many ops of one effect are pushed at once: mostly the one that was drawn. What notifies is
/// counted by its effects, and has none beside it.
pub(super) fn draw_twins(random: &mut Random, sqe: &Sqe, room: u32) -> u32 {
    let moves = sqe.opcode == Opcode::Write as u8 || sqe.opcode == Opcode::Read as u8;
    if !moves || sqe.flags & SQE_NOTIFY != 0 || random.below(5) != 0 {
        return 1;
    }
    (2 + random.below32(4)).min(room)
}

/// One more on a counter that all share.
fn draw_add(random: &mut Random, ground: &mut Ground, draft: &Draft) -> (Sqe, Out) {
    let opcode = Opcode::FetchAdd;
    ground.adds.tried += 1;
    let sqe = Sqe {
        opcode: opcode as u8,
        // An atomic's deadline.
        bytes: if random.below(8) == 0 { random.below32(200) } else { 0 },
        remote_offset: ground.counter(),
        arg: [1, 0],
        ..draft.sqe
    };
    (sqe, Out { opcode, slot: usize::MAX, bytes: 8, ..draft.out })
}
