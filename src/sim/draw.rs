//! What a client does next.

use super::check::untouched;
use super::client::{Client, NOWHERE, Out, immediate};
use super::ground::{Ground, SLOT_BYTES, SLOT_SIZE, SLOTS};
use crate::abi::{
    CANCEL_BY_USER_DATA, EDGE_ORDER_ONLY, Opcode, SQE_COALESCE, SQE_DRAIN, SQE_HARDLINK, SQE_LINK,
    SQE_NOTIFY, SQE_SKIP_SUCCESS, SQE_SUPERSEDE, Sqe,
};
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
        let (sqe, out) = self.draw_alone(random, grounds)?;
        let sqe = self.tie(random, sqe);
        let tied = crate::engine::graph::named(&sqe).iter().any(|edge| *edge != 0);
        Some((sqe, Out { tied, ..out }))
    }

    /// Ties an op to earlier ones, and the next one to it.
    fn tie(&self, random: &mut Random, sqe: Sqe) -> Sqe {
        if random.below(100) >= self.ties {
            return sqe;
        }
        let mut edge = |odds: u64| {
            if random.below(100) >= odds {
                return 0;
            }
            // Now and then to before the first, or to an ARM: that is refused.
            let distance = u16::try_from(1 + random.below(8)).unwrap_or(1);
            distance | random.pick(&[0, 0, EDGE_ORDER_ONLY])
        };
        let mut sqe = Sqe { edges: [edge(60), edge(25)], ..sqe };
        if sqe.opcode == Opcode::Join as u8 {
            for word in &mut sqe.arg {
                *word = (0..4).fold(0, |word, _| word << 16 | u64::from(edge(30)));
            }
        }
        sqe.flags |= match random.below(20) {
            0..4 => SQE_LINK,
            4..7 => SQE_HARDLINK,
            7 => SQE_LINK | SQE_HARDLINK,
            8 => SQE_DRAIN,
            _ => 0,
        };
        sqe
    }

    fn draw_alone(&mut self, random: &mut Random, grounds: &mut [Ground]) -> Option<(Sqe, Out)> {
        let user_data = self.number();
        let number = self.end.pushed();
        let class = u8::try_from(random.below(4)).ok()?;
        let class = if class == 0 { 0 } else { class.max(self.ceiling as u8) };
        let skips = random.below(20) == 0;
        let flags = if skips { SQE_SKIP_SUCCESS } else { 0 };
        let sqe = Sqe { class, flags, user_data, ..Sqe::default() };
        match random.below(100) {
            0..5 => {
                let joins = self.ties > 0 && random.below(2) == 0;
                let opcode = if joins { Opcode::Join } else { Opcode::Nop };
                let sqe = Sqe { opcode: opcode as u8, ..sqe };
                Some((sqe, Out { number, skips, ..Out::of(opcode) }))
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

/// How many ops of one effect are pushed at once, and how they are to be folded: mostly the one
/// that was drawn, which is not. What notifies is
/// counted by its effects, and has none beside it; nor has what is tied to others.
pub(super) fn draw_twins(random: &mut Random, sqe: &Sqe, room: u32) -> (u32, u16) {
    let moves = sqe.opcode == Opcode::Write as u8 || sqe.opcode == Opcode::Read as u8;
    let tied = sqe.edges != [0; 2] || sqe.flags & (SQE_LINK | SQE_HARDLINK | SQE_DRAIN) != 0;
    if !moves || tied || sqe.flags & SQE_NOTIFY != 0 || random.below(5) != 0 {
        return (1, 0);
    }
    let count = (2 + random.below32(4)).min(room);
    let replaces = sqe.opcode == Opcode::Write as u8 && random.below(3) == 0;
    (count, if replaces { SQE_SUPERSEDE } else { SQE_COALESCE })
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
