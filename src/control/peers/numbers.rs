//! Sessions' names for connections: small numbers, never used again.
//!
//! A number whose connection is lost is kept, so that who uses it is told so; but only so many a
//! session, or one that connects again and again would have this grow without end.

use std::collections::BTreeMap;

/// Numbers of lost connections that are kept for a session.
const LOST_MAX: usize = 16;

#[derive(Debug)]
struct Place {
    session: usize,
    /// `None` once it is lost.
    connection: Option<usize>,
}

/// All numbers of all sessions.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    places: BTreeMap<u32, Place>,
    last: u32,
}

impl Numbers {
    /// A session's number for a connection: the one that it has, or a new one.
    pub(super) fn number_for(&mut self, session: usize, connection: usize) -> u32 {
        let same = |place: &Place| place.session == session && place.connection == Some(connection);
        if let Some((number, _)) = self.places.iter().find(|(_, place)| same(place)) {
            return *number;
        }
        let lost = |place: &Place| place.session == session && place.connection.is_none();
        let mut old =
            self.places.iter().filter(|(_, place)| lost(place)).map(|(number, _)| *number);
        if let Some(oldest) = old.next()
            && old.count() + 1 >= LOST_MAX
        {
            self.places.remove(&oldest);
        }
        self.last += 1;
        self.places.insert(self.last, Place { session, connection: Some(connection) });
        self.last
    }

    /// The connection of a session's number: `None` if it is none of its, or long lost;
    /// `Some(None)` if the connection is lost.
    pub(super) fn connection(&self, session: usize, number: u32) -> Option<Option<usize>> {
        let place = self.places.get(&number).filter(|place| place.session == session)?;
        Some(place.connection)
    }

    /// True if a session has a number for a connection.
    pub(super) fn names(&self, connection: usize) -> bool {
        self.count(connection) > 0
    }

    /// Sessions that have a number for a connection: one each.
    pub(super) fn count(&self, connection: usize) -> usize {
        self.places.values().filter(|place| place.connection == Some(connection)).count()
    }

    /// A connection is lost.
    pub(super) fn lose(&mut self, connection: usize) {
        for place in self.places.values_mut() {
            if place.connection == Some(connection) {
                place.connection = None;
            }
        }
    }

    /// A session ends: its numbers mean nothing any more.
    pub(super) fn forget(&mut self, session: usize) {
        self.places.retain(|_, place| place.session != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_its_sessions_own_and_never_used_again() {
        let mut numbers = Numbers::default();
        assert_eq!((numbers.number_for(1, 7), numbers.number_for(1, 7)), (1, 1));
        assert_eq!(numbers.number_for(2, 7), 2);
        assert_eq!(numbers.connection(1, 1), Some(Some(7)));
        assert_eq!((numbers.connection(2, 1), numbers.connection(1, 3)), (None, None));
        assert!(numbers.names(7) && !numbers.names(8));
        assert_eq!((numbers.count(7), numbers.count(8)), (2, 0));
        numbers.lose(7);
        assert_eq!(numbers.connection(1, 1), Some(None), "it is told that it is lost");
        assert!(!numbers.names(7));
        assert_eq!(numbers.number_for(1, 7), 3);
        numbers.forget(1);
        assert_eq!((numbers.connection(1, 3), numbers.connection(2, 2)), (None, Some(None)));
        assert_eq!(numbers.number_for(1, 7), 4);
    }

    #[test]
    fn who_connects_again_and_again_makes_it_grow_no_further() {
        let mut numbers = Numbers::default();
        numbers.number_for(1, 1_000);
        let kept = numbers.number_for(2, 0);
        for connection in 0..1_000 {
            numbers.number_for(2, connection);
            numbers.lose(connection);
            assert!(numbers.places.len() <= 1 + LOST_MAX + 1);
        }
        assert_eq!(numbers.connection(1, 1), Some(Some(1_000)), "another's are its own");
        assert_eq!(numbers.connection(2, kept), None);
        assert_eq!(numbers.connection(2, 1_001), Some(None), "the last is remembered");
    }
}
