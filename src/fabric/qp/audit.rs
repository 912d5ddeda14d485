//! What must hold of rails between two polls, counted afresh from the requests and the entries.

use super::provider::{Provider, WrId};
use super::rail::{Rail, RailState, Role, Stage};
use super::{CARDS_MAX, RECEIVES_KEPT, Rails, SENDS_KEPT};

/// Notifications of a rail: who holds the right to send them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditAudit {
    /// Notifications that this end may send.
    pub granted: u32,
    /// Receives that this end has for the peer's notifications.
    pub receives: u32,
    /// Of these, what the peer has used and was not given back yet.
    pub used: u32,
    /// Receives that are still to be posted, those for messages of credit too.
    pub missing: u32,
}

impl<P: Provider> Rails<P> {
    /// Compares what is held with what is in flight.
    ///
    /// # Panics
    /// If sums and tables do not tell one story.
    pub fn audit(&self) {
        let taken: u32 = self.rails.iter().map(|rail| rail.taken.len()).sum();
        assert_eq!(self.live, taken, "requests under way");
        let mut completions = [0; CARDS_MAX];
        for rail in self.rails.iter().filter(|rail| rail.state != RailState::Absent) {
            completions[usize::from(rail.card)] += rail.completions;
        }
        assert_eq!(self.completions, completions, "completion queue entries");
        for (number, rail) in self.rails.iter().enumerate() {
            rail.audit(number);
        }
        let counts = &self.counts;
        let ended = counts.taken_back
            + counts.completed
            + counts.released
            + counts.failed
            + counts.drained
            + counts.orphaned;
        let open: u64 = self.rails.iter().map(|rail| u64::from(rail.works.len())).sum();
        assert_eq!(counts.entered, ended + open, "post entries, and how they ended");
    }

    /// True if a work request has its entry among those that are posted.
    #[must_use]
    pub fn holds(&self, wr_id: u64) -> bool {
        let id = WrId(wr_id);
        let Some(rail) = self.rails.get(usize::from(id.rail())) else { return false };
        let stamp = rail.stamps.get(usize::from(id.slot()));
        rail.works.position(id.slot()).is_some()
            && stamp.is_some_and(|stamp| stamp.generation == id.generation())
    }

    /// The credit for notifications of a rail that is in use; `None` of others.
    #[must_use]
    pub fn credit_audit(&self, rail: u16) -> Option<CreditAudit> {
        let rail = self.rails.get(usize::from(rail))?;
        (rail.state == RailState::Ready).then(|| rail.credits.audit())
    }
}

impl Rail {
    fn audit(&self, number: usize) {
        let (mut works, mut in_flight, mut reserved) = (0, 0, 0);
        for ahead in 0..self.taken.len() {
            let taken = &self.taken[self.taken.head().wrapping_add(ahead)];
            works += taken.works;
            in_flight += taken.in_flight;
            let waits = taken.works > taken.in_flight;
            reserved += u32::from(waits && taken.notifies() && taken.stage != Stage::Whole);
        }
        assert_eq!(self.used, works, "depth taken on rail {number}");
        assert_eq!(self.data_posted, in_flight, "work in flight on rail {number}");
        assert_eq!(self.credits.reserved(), reserved, "notifications reserved on rail {number}");
        assert!(self.data_posted <= self.depth, "beyond depth on rail {number}");
        let (mut data, mut kept) = (0, 0);
        for ahead in 0..self.works.len() {
            let work = self.works[self.works.head().wrapping_add(ahead)];
            match work.role {
                Role::Data | Role::Notify => data += work.count,
                Role::Credit | Role::Marker => kept += 1,
            }
        }
        assert_eq!(self.data_posted, data, "entries of requests on rail {number}");
        assert!(kept <= SENDS_KEPT, "{kept} entries of its own on rail {number}");
        let messages = u32::from(self.marker_posted) + u32::from(self.credits.message_posted);
        assert_eq!(kept, messages, "markers and credit messages on rail {number}");
        assert!(
            self.credits.missing() <= self.credits.receives() + RECEIVES_KEPT,
            "receives to post on rail {number}"
        );
    }
}
