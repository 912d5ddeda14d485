//! A scheduler written the obvious slow way: one list of all ops in which everything is searched.

mod groups;
mod tent;
mod turns;

use crate::abi::{Class, WAIT_CAP, WAIT_CLASS, WAIT_LANE, WAIT_NONE, WAIT_TURN};
use crate::sched::{Mode, Place, Policy, Shape};

use groups::Group;
use turns::Turns;

/// An op, as far as a scheduler cares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) slot: u32,
    pub(super) class: Class,
    pub(super) aged: bool,
    pub(super) origin: u8,
    pub(super) session: u32,
    pub(super) line: u16,
    pub(super) bytes: u32,
    pub(super) sequence: u64,
    pub(super) taken_ns: u64,
}

impl Item {
    fn as_class(&self) -> usize {
        if self.aged { 0 } else { self.class.index() }
    }
}

/// What tells flows apart, from the top down: class, origin, uid, session, line.
type Path = [u32; 5];

pub(super) struct Reference {
    mode: Mode,
    floor: u32,
    /// All queued ops; those of one flow in their order.
    queue: Vec<Item>,
    /// By session: its owner's uid.
    pub(super) uids: Vec<u32>,
    weights: Vec<(u32, u8)>,
    pub(super) capped: Vec<u32>,
    /// In the order in which they were parked.
    parked: Vec<Path>,
    classes: [Group; 3],
    turns: Turns,
    deficit: [[u64; 2]; 3],
    next_origin: [usize; 3],
    next_class: usize,
}

impl Reference {
    pub(super) fn new(policy: &Policy, shape: Shape) -> Self {
        let floor = policy.floor_bytes.max(1);
        let quantum = i64::from(floor).max((65_536).min(shape.window_bytes / 8).cast_signed());
        Self {
            mode: policy.mode,
            floor,
            queue: Vec::new(),
            uids: vec![0; shape.sessions as usize],
            weights: Vec::new(),
            capped: Vec::new(),
            parked: Vec::new(),
            classes: [0, 1, 2].map(|class| Group::new(class, 0, quantum)),
            turns: Turns::new(policy, shape),
            deficit: [[0; 2]; 3],
            next_origin: [0; 3],
            next_class: 0,
        }
    }

    fn is_fair(&self) -> bool {
        matches!(self.mode, Mode::Weighted | Mode::Strict)
    }

    pub(super) fn adopt(&mut self, session: u32, uid: u32, weight: u8) {
        self.uids[session as usize] = uid;
        self.weights.retain(|entry| entry.0 != uid);
        self.weights.push((uid, weight));
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn item(&self, slot: u32) -> Item {
        *self.queue.iter().find(|item| item.slot == slot).unwrap()
    }

    pub(super) fn items(&self) -> &[Item] {
        &self.queue
    }

    /// The flow of an op. Where there are none, what a park holds: a line, of a lane in mode tent.
    fn path(&self, item: &Item) -> Path {
        let (class, line) = (u32::try_from(item.as_class()).unwrap(), item.line.into());
        match self.mode {
            Mode::Fifo | Mode::Direct => [0, 0, 0, 0, line],
            Mode::Tent => [class, item.origin.into(), 0, 0, line],
            _ => {
                let uid = self.uids[item.session as usize];
                [class, item.origin.into(), uid, item.session, line]
            }
        }
    }

    fn flow(&self, path: Path) -> impl Iterator<Item = &Item> {
        self.queue.iter().filter(move |item| self.path(item) == path)
    }

    /// The first op of a flow: the oldest of the first of its own, of aged medium and aged low.
    fn head(&self, path: Path) -> Option<&Item> {
        let firsts = Class::ALL.map(|class| {
            let own = class.index() == path[0] as usize;
            let any = matches!(self.mode, Mode::Fifo | Mode::Direct);
            self.flow(path).find(|item| any || item.class == class && (own || item.aged))
        });
        firsts.into_iter().flatten().min_by_key(|item| item.sequence)
    }

    pub(super) fn push(&mut self, item: Item, front: bool) {
        let path = self.path(&item);
        if front {
            self.queue.insert(0, item)
        } else {
            self.queue.push(item)
        }
        self.place_flow(path, front);
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let path = self.path(&self.item(slot));
        self.queue.retain(|item| item.slot != slot);
        if self.flow(path).next().is_none() {
            self.parked.retain(|parked| *parked != path);
        }
        let (class, origin) = (path[0], path[1]);
        let of_lane = |item: &Item| self.path(item)[..2] == [class, origin];
        if self.mode == Mode::Tent && !self.queue.iter().any(of_lane) {
            self.deficit[class as usize][origin as usize] = 0;
        }
        self.place_flow(path, false);
    }

    /// Has the tree of a flow's class know how it is with it.
    fn place_flow(&mut self, path: Path, front: bool) {
        if !self.is_fair() {
            return;
        }
        let ops = self.flow(path).count();
        let held = self.parked.contains(&path);
        let weight = self.weight(path[2]);
        let capped = path[0] == 0 && self.capped.contains(&path[2]);
        let class = &mut self.classes[path[0] as usize];
        class.place(&path[1..], groups::Flow { ops, held, weight, capped }, front);
    }

    fn weight(&self, uid: u32) -> i64 {
        self.weights.iter().find(|entry| entry.0 == uid).unwrap().1.into()
    }

    pub(super) fn park(&mut self, slot: u32) {
        let path = self.path(&self.item(slot));
        if !self.parked.contains(&path) {
            self.parked.push(path);
            self.place_flow(path, false);
        }
    }

    pub(super) fn unpark(&mut self, line: u16) {
        let gone: Vec<Path> =
            self.parked.iter().filter(|path| path[4] == u32::from(line)).copied().collect();
        for path in gone {
            self.parked.retain(|parked| *parked != path);
            self.place_flow(path, false);
        }
    }

    pub(super) fn parked(&self) -> u64 {
        self.parked.iter().fold(0, |lines, path| lines | 1 << path[4])
    }

    pub(super) fn queued(&self) -> u64 {
        self.queue.iter().fold(0, |lines, item| lines | 1 << item.line)
    }

    pub(super) fn set_cap(&mut self, uid: u32, capped: bool) {
        self.capped.retain(|other| *other != uid);
        if capped {
            self.capped.push(uid);
        }
        for origin in 0..2 {
            if self.is_fair() {
                self.classes[0].set_cap(origin, uid, capped);
            }
        }
    }

    fn is_capped(&self, item: &Item) -> bool {
        let high = if self.is_fair() { item.as_class() == 0 } else { item.class == Class::High };
        high && self.capped.contains(&self.uids[item.session as usize])
    }

    /// Of several flows that are not parked or capped at their first op: the oldest first op.
    fn oldest(&self, lane: Option<(usize, usize)>) -> Option<u32> {
        let mut best: Option<&Item> = None;
        for item in &self.queue {
            let path = self.path(item);
            let there = lane.is_none_or(|(class, origin)| {
                (path[0] as usize, path[1] as usize) == (class, origin)
            });
            if !there || self.parked.contains(&path) || self.is_capped(item) {
                continue;
            }
            let first = self.head(path).unwrap().slot == item.slot;
            if first && best.is_none_or(|best| item.sequence < best.sequence) {
                best = Some(item);
            }
        }
        best.map(|item| item.slot)
    }

    pub(super) fn class(&mut self, elsewhere: u8) -> Option<Class> {
        if self.is_fair() {
            let here = |class: usize| self.classes[class].first().is_some();
            let work = [0, 1, 2].map(|class| here(class) || elsewhere >> class & 1 == 1);
            return self.turns.class(work).map(|class| Class::ALL[class]);
        }
        let aside = Class::ALL.into_iter().find(|class| elsewhere >> class.index() & 1 == 1);
        aside.or_else(|| Some(Class::ALL[self.item(self.oldest(None)?).as_class()]))
    }

    pub(super) fn first_of(&self, class: Class) -> Option<u32> {
        if self.is_fair() {
            let [origin, uid, session, line] = self.classes[class.index()].first()?;
            let path = [u32::try_from(class.index()).unwrap(), origin, uid, session, line];
            return Some(self.head(path).unwrap().slot);
        }
        self.oldest(None).filter(|slot| self.item(*slot).class == class)
    }

    pub(super) fn charge(&mut self, slot: u32, bytes: u32) {
        let path = self.path(&self.item(slot));
        if self.is_fair() {
            let cost = i64::from(bytes.max(self.floor));
            self.turns.charge(path[0] as usize, cost);
            self.classes[path[0] as usize].charge(&path[1..], cost);
        }
    }

    pub(super) fn charge_aside(&mut self, class: Class, bytes: u32) {
        self.turns.charge(class.index(), bytes.max(self.floor).into());
    }

    pub(super) fn refund(&mut self, slot: u32, bytes: u32) {
        let path = self.path(&self.item(slot));
        if self.is_fair() {
            let cost = i64::from(bytes.max(self.floor));
            self.turns.refund(path[0] as usize, cost);
            self.classes[path[0] as usize].refund(&path[1..], cost);
        }
    }

    /// The first of another class, in turn there, that fits; whether it does is the caller's.
    pub(super) fn beside(&self, slot: u32, fits: impl Fn(u32) -> bool) -> Option<u32> {
        let blocked = self.item(slot).as_class();
        let others = Class::ALL.into_iter().filter(|class| class.index() != blocked);
        let mut heads = others.filter_map(|class| self.first_of(class));
        if self.is_fair() { heads.find(|&slot| fits(slot)) } else { None }
    }

    /// The ops that are due to age: old enough, first of their flow, not of who is capped.
    pub(super) fn due(&self, now_ns: u64, aging_ns: [u64; 2]) -> Vec<u32> {
        let is_due = |item: &&Item| {
            let class = item.as_class();
            class > 0
                && self.flow(self.path(item)).next().unwrap().slot == item.slot
                && aging_ns[class - 1] > 0
                && now_ns - item.taken_ns >= aging_ns[class - 1]
                && !self.capped.contains(&self.uids[item.session as usize])
        };
        self.queue.iter().filter(is_due).map(|item| item.slot).collect()
    }

    /// An op is as one of class high from now on.
    pub(super) fn age(&mut self, slot: u32) {
        let item = self.item(slot);
        self.remove(slot);
        self.push(Item { aged: true, ..item }, false);
    }

    /// `wait` of the first op of a parked flow is the caller's.
    pub(super) fn place(&self, slot: u32, parked: u16) -> Place {
        let item = self.item(slot);
        let path = self.path(&item);
        let (own, others): (Vec<&Item>, Vec<&Item>) = self.flow(path).partition(|other| {
            matches!(self.mode, Mode::Fifo | Mode::Direct) || other.class == item.class
        });
        let of_own = own.iter().position(|other| other.slot == slot).unwrap();
        let older = |class: Class| {
            let list = others.iter().filter(move |other| other.class == class);
            list.take_while(|other| other.sequence < item.sequence).count()
        };
        let ahead = of_own + Class::ALL.into_iter().map(older).sum::<usize>();
        let mut lane: Vec<Path> = self.queue.iter().map(|other| self.path(other)).collect();
        lane.retain(|other| other[..2] == path[..2]);
        lane.sort_unstable();
        lane.dedup();
        let class = Class::ALL[path[0] as usize];
        let wait = match () {
            () if ahead > 0 => WAIT_LANE,
            () if self.parked.contains(&path) => parked,
            () if self.is_capped(&item) => WAIT_CAP,
            () if self.is_fair() && self.first_of(class) != Some(slot) => WAIT_TURN,
            () if !self.is_fair() && self.oldest(self.lane_of(path)) != Some(slot) => WAIT_TURN,
            () if self.is_fair() && self.turns.in_turn() != Some(class.index()) => WAIT_CLASS,
            () => WAIT_NONE,
        };
        let flows = u32::try_from(lane.len()).unwrap();
        Place { ahead: u32::try_from(ahead).unwrap(), first: ahead == 0, wait, flows }
    }

    fn lane_of(&self, path: Path) -> Option<(usize, usize)> {
        (self.mode == Mode::Tent).then_some((path[0] as usize, path[1] as usize))
    }
}
