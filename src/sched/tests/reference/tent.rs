//! TENT's pick as one function, as it was: over whole lanes, all ops of a pass at once.

use super::Reference;

const WEIGHTS: [u64; 3] = [4, 2, 1];

impl Reference {
    /// The ops that a pass of so many ops and bytes takes, in order. They leave the queue.
    pub(in super::super) fn pick(&mut self, ops_max: u32, bytes_max: u64) -> Vec<u32> {
        let (mut taken, mut bytes_left) = (Vec::new(), bytes_max);
        loop {
            let before = taken.len();
            let mut lacked = false;
            let start = self.next_class;
            for class in (0..3).map(|visit| (start + visit) % 3) {
                if taken.len() == ops_max as usize || bytes_left == 0 {
                    return taken;
                }
                self.fill(class, bytes_max);
                while taken.len() < ops_max as usize && bytes_left > 0 {
                    let Some(slot) = self.next_of(class, bytes_left, &mut lacked) else { break };
                    let item = self.item(slot);
                    let bytes = u64::from(item.bytes);
                    let origin = usize::from(item.origin);
                    self.deficit[class][origin] -= bytes;
                    bytes_left -= bytes;
                    self.next_origin[class] = 1 - origin;
                    self.next_class = (class + 1) % 3;
                    self.remove(slot);
                    taken.push(slot);
                }
            }
            if taken.len() == before && !lacked {
                return taken;
            }
        }
    }

    fn fill(&mut self, class: usize, bytes_max: u64) {
        for origin in 0..2 {
            if self.oldest(Some((class, origin))).is_some() {
                let quantum = bytes_max.div_ceil(8).max(1) * WEIGHTS[class];
                let deficit = &mut self.deficit[class][origin];
                *deficit = bytes_max.min(*deficit + quantum);
            }
        }
    }

    fn next_of(&self, class: usize, bytes_left: u64, lacked: &mut bool) -> Option<u32> {
        let next = self.next_origin[class];
        for origin in [next, 1 - next] {
            let Some(slot) = self.oldest(Some((class, origin))) else { continue };
            let bytes = u64::from(self.item(slot).bytes);
            if bytes > bytes_left {
                continue;
            }
            if bytes > self.deficit[class][origin] {
                *lacked = true;
                continue;
            }
            return Some(slot);
        }
        None
    }
}
