//! Surplus round robin in trees of vectors.

/// How it is with a flow.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    pub(super) ops: usize,
    pub(super) held: bool,
    /// Of its owner.
    pub(super) weight: i64,
    pub(super) capped: bool,
}

/// A class, an origin, an owner, a session, or a flow.
#[derive(Debug)]
pub(super) struct Group {
    key: u32,
    /// Levels above it.
    depth: usize,
    balance: i64,
    weight: i64,
    held: bool,
    /// Of a flow.
    ops: usize,
    quantum: i64,
    floor: i64,
    /// The first is in turn.
    ring: Vec<Self>,
    kept: Vec<Self>,
}

const OWNER: usize = 2;

impl Group {
    pub(super) fn new(key: u32, depth: usize, floor: i64) -> Self {
        Self {
            key,
            depth,
            balance: 0,
            weight: 1,
            held: false,
            ops: 0,
            quantum: floor,
            floor,
            ring: Vec::new(),
            kept: Vec::new(),
        }
    }

    fn has_ops(&self) -> bool {
        self.ops > 0 || !self.ring.is_empty() || !self.kept.is_empty()
    }

    fn can_go(&self) -> bool {
        !self.held && (self.ops > 0 || !self.ring.is_empty())
    }

    /// Updates the flow at the end of `path`. With `front`, it and those above it go to the front
    /// of their rings, as far up as they can go; returns whether this group is to.
    pub(super) fn place(&mut self, path: &[u32], flow: Flow, front: bool) -> bool {
        let Some((&key, rest)) = path.split_first() else {
            (self.ops, self.held) = (flow.ops, flow.held);
            return front;
        };
        let at = self.ring.iter().position(|child| child.key == key);
        let mut child = match at {
            Some(at) => self.ring.remove(at),
            None => match self.kept.iter().position(|child| child.key == key) {
                Some(at) => self.kept.remove(at),
                None => self.newcomer(key, flow),
            },
        };
        let front = child.place(rest, flow, front);
        self.put(child, at, front)
    }

    fn newcomer(&self, key: u32, flow: Flow) -> Self {
        let mut child = Self::new(key, self.depth + 1, self.floor);
        if child.depth == OWNER {
            (child.weight, child.held) = (flow.weight, flow.capped);
        }
        child.balance = self.quantum * child.weight;
        child
    }

    fn put(&mut self, child: Self, at: Option<usize>, front: bool) -> bool {
        let goes = child.can_go();
        match (goes, at) {
            (true, _) if front => self.ring.insert(0, child),
            (true, Some(at)) => self.ring.insert(at, child),
            (true, None) => self.ring.push(child),
            (false, _) if child.has_ops() => self.kept.push(child),
            (false, _) => {}
        }
        if !self.has_ops() {
            self.quantum = self.floor;
        }
        front && goes
    }

    pub(super) fn set_cap(&mut self, origin: u32, uid: u32, capped: bool) {
        let all = |group: &Self| -> Vec<u32> {
            group.ring.iter().chain(&group.kept).map(|child| child.key).collect()
        };
        if self.depth + 1 == OWNER {
            if all(self).contains(&uid) {
                let at = self.ring.iter().position(|child| child.key == uid);
                let mut child = match at {
                    Some(at) => self.ring.remove(at),
                    None => {
                        let at = self.kept.iter().position(|child| child.key == uid);
                        self.kept.remove(at.unwrap())
                    }
                };
                child.held = capped;
                self.put(child, at, false);
            }
        } else if all(self).contains(&origin) {
            let at = self.ring.iter().position(|child| child.key == origin);
            let mut child = match at {
                Some(at) => self.ring.remove(at),
                None => {
                    let at = self.kept.iter().position(|child| child.key == origin);
                    self.kept.remove(at.unwrap())
                }
            };
            child.set_cap(origin, uid, capped);
            self.put(child, at, false);
        }
    }

    /// The path to the flow in turn.
    pub(super) fn first(&self) -> Option<[u32; 4]> {
        let mut path = [0; 4];
        let mut group = self;
        for key in &mut path {
            group = group.ring.first()?;
            *key = group.key;
        }
        Some(path)
    }

    pub(super) fn charge(&mut self, path: &[u32], cost: i64) {
        let Some((&key, rest)) = path.split_first() else { return };
        self.quantum = self.quantum.max(cost);
        let quantum = self.quantum;
        let at = self.ring.iter().position(|child| child.key == key);
        let mut children = self.ring.iter_mut().chain(&mut self.kept);
        let child = children.find(|child| child.key == key).unwrap();
        child.charge(rest, cost);
        child.balance -= cost;
        if child.balance > 0 {
            return;
        }
        child.balance += quantum * child.weight;
        assert!(child.balance > 0, "one quantum did not suffice");
        if let Some(at) = at {
            let child = self.ring.remove(at);
            self.ring.push(child);
        }
    }

    pub(super) fn refund(&mut self, path: &[u32], cost: i64) {
        let Some((key, rest)) = path.split_first() else { return };
        let mut children = self.ring.iter_mut().chain(&mut self.kept);
        let Some(child) = children.find(|child| child.key == *key) else { return };
        child.refund(rest, cost);
        let most = self.quantum * child.weight;
        child.balance = child.balance.max(most.min(child.balance + cost));
    }
}
