//! Whose session is whose, and who may post nothing more of class high.

use crate::ids::SessionId;

/// An owner's place; there are at most as many as sessions.
pub(super) type OwnerIndex = u32;

#[derive(Clone, Copy, Debug)]
struct Owner {
    uid: u32,
    sessions: u32,
    capped: bool,
}

/// The owners of sessions.
#[derive(Debug)]
pub(super) struct Owners {
    owners: Box<[Owner]>,
    /// By session; its own place in the beginning.
    of: Box<[OwnerIndex]>,
    adopted: Box<[bool]>,
    /// How many are capped.
    capped: u32,
}

impl Owners {
    pub(super) fn new(sessions: u32) -> Self {
        let nobody = Owner { uid: 0, sessions: 0, capped: false };
        Self {
            owners: vec![nobody; sessions as usize].into(),
            of: (0..sessions).collect(),
            adopted: vec![false; sessions as usize].into(),
            capped: 0,
        }
    }

    /// Notes whose a session is from now on; returns the owner's place.
    pub(super) fn adopt(&mut self, session: SessionId, uid: u32) -> OwnerIndex {
        let at = session.0 as usize;
        if std::mem::replace(&mut self.adopted[at], true) {
            self.owners[self.of[at] as usize].sessions -= 1;
        }
        let place = self.find(uid).unwrap_or_else(|| self.vacant());
        let owner = &mut self.owners[place as usize];
        if owner.uid != uid || owner.sessions == 0 && !owner.capped {
            self.capped -= u32::from(owner.capped);
            *owner = Owner { uid, sessions: 0, capped: false };
        }
        owner.sessions += 1;
        self.of[at] = place;
        place
    }

    /// The place of one who has sessions, or is capped.
    pub(super) fn find(&self, uid: u32) -> Option<OwnerIndex> {
        let known = |owner: &Owner| owner.uid == uid && (owner.sessions > 0 || owner.capped);
        (0..).zip(&self.owners).find(|(_, owner)| known(owner)).map(|(place, _)| place)
    }

    /// A place without sessions: there is one, since the session that asks has none. One that is
    /// capped is used last.
    fn vacant(&self) -> OwnerIndex {
        let free = |capped: bool| {
            let is_free = move |owner: &Owner| owner.sessions == 0 && owner.capped == capped;
            (0..).zip(&self.owners).find(move |(_, owner)| is_free(owner)).map(|(place, _)| place)
        };
        let Some(place) = free(false).or_else(|| free(true)) else {
            unreachable!("more owners than sessions");
        };
        place
    }

    #[inline]
    pub(super) fn of(&self, session: SessionId) -> OwnerIndex {
        self.of[session.0 as usize]
    }

    /// Caps an owner, or no longer; `None` if that is so already, or nobody has that uid.
    pub(super) fn cap(&mut self, uid: u32, capped: bool) -> Option<OwnerIndex> {
        let place = self.find(uid)?;
        let owner = &mut self.owners[place as usize];
        if owner.capped == capped {
            return None;
        }
        owner.capped = capped;
        self.capped = if capped { self.capped + 1 } else { self.capped - 1 };
        Some(place)
    }

    #[inline]
    pub(super) fn is_capped(&self, session: SessionId) -> bool {
        self.capped > 0 && self.owners[self.of(session) as usize].capped
    }
}
