//! Edges as they lie in an entry: two in every SQE, eight more in the `arg` of a JOIN.

use super::{Opcode, Sqe};

impl Sqe {
    /// Edges of any entry but a JOIN.
    pub const EDGES: usize = 2;
    /// Edges of a JOIN.
    pub const JOIN_EDGES: usize = 10;
    /// How many SQEs back an edge may reach.
    pub const EDGE_BACK_MAX: u16 = 32_767;

    /// Returns how many edges this entry has room for: 10 for a JOIN, 2 for all others.
    #[must_use]
    pub fn edges_max(&self) -> usize {
        if self.opcode == Opcode::Join as u8 { Self::JOIN_EDGES } else { Self::EDGES }
    }

    /// Adds an edge: how many SQEs back in this ring, 1 to 32,767, and
    /// [`EDGE_ORDER_ONLY`](super::EDGE_ORDER_ONLY) if it is to carry no failure. `None` if it names
    /// no SQE, or if all places are taken.
    ///
    /// ```
    /// use verbring::abi::{EDGE_ORDER_ONLY, Opcode, Sqe};
    ///
    /// // Waits for the SQE just before it, and for the one before that, whether or not that fails.
    /// let read = Sqe { opcode: Opcode::Read as u8, ..Sqe::default() };
    /// let read = read.with_edge(1).and_then(|read| read.with_edge(2 | EDGE_ORDER_ONLY));
    /// assert_eq!(read.map(|read| read.edges), Some([1, 0x8002]));
    /// ```
    #[must_use]
    pub fn with_edge(mut self, edge: u16) -> Option<Self> {
        if edge & Self::EDGE_BACK_MAX == 0 {
            return None;
        }
        if let Some(place) = self.edges.iter_mut().find(|place| **place == 0) {
            *place = edge;
            return Some(self);
        }
        if self.edges_max() == Self::EDGES {
            return None;
        }
        let free = (0..8).find(|place| self.arg[place / 4] >> (place % 4 * 16) & 0xffff == 0)?;
        self.arg[free / 4] |= u64::from(edge) << (free % 4 * 16);
        Some(self)
    }

    /// Makes a JOIN, which completes once all that these edges name is over. `None` if one names
    /// no SQE, or if there are more than ten.
    #[must_use]
    pub fn join(edges: &[u16]) -> Option<Self> {
        let join = Self { opcode: Opcode::Join as u8, ..Self::default() };
        edges.iter().try_fold(join, |join, edge| join.with_edge(*edge))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::EDGE_ORDER_ONLY;

    #[test]
    fn edges_lie_where_the_abi_says() {
        let edges = [1, 2, 3 | EDGE_ORDER_ONLY, 4, 5, 6, 7, 32_767, 9, 0xffff];
        let bytes = Sqe::join(&edges).unwrap().to_words().map(u64::to_le_bytes).concat();
        let at = |place: usize| u16::from_le_bytes([bytes[place], bytes[place + 1]]);
        assert_eq!((bytes[0], at(4), at(6)), (7, edges[0], edges[1]));
        let more: Vec<u16> = (0..8).map(|place| at(48 + 2 * place)).collect();
        assert_eq!(more, edges[2..]);
        assert!(bytes[8..48].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn no_edge_is_lost_for_want_of_room_and_none_names_nothing() {
        let all = [1; Sqe::JOIN_EDGES];
        for count in 0..=Sqe::JOIN_EDGES {
            let join = Sqe::join(&all[..count]).unwrap();
            assert_eq!(join.with_edge(2).is_some(), count < Sqe::JOIN_EDGES, "{count}");
        }
        let nop = Sqe::default();
        let full = nop.with_edge(1).and_then(|nop| nop.with_edge(2)).unwrap();
        assert_eq!((full.edges, full.arg), ([1, 2], [0; 2]));
        assert_eq!(full.with_edge(3), None);
        assert_eq!([nop.with_edge(0), nop.with_edge(EDGE_ORDER_ONLY)], [None; 2]);
    }
}
