//! How often everything happened: a world in which nothing went wrong proves nothing.

use crate::abi::{
    CQE_COALESCED, CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Cqe, FABRIC_LOCAL, FABRIC_VERBS,
    errno,
};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident = $text:literal $kind:ident;)*) => {
        /// Something that happens in a world.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Count {
            $($(#[$doc])* $name,)*
        }

        impl Count {
            /// All of them, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What it is called.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whether it is a fault, something that becomes of an op, or a sum.
            #[must_use]
            pub fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }
        }
    };
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A plain sum.
    Sum,
    /// A fault that was planted.
    Fault,
    /// A state that an op or a queue pair went through.
    Passage,
}

counts! {
    /// Worlds.
    Worlds = "worlds" Sum;
    /// SQEs pushed.
    Ops = "ops" Sum;
    /// Turns of all engines.
    Turns = "turns" Sum;
    /// Work requests posted.
    Works = "work_requests" Sum;
    /// Lists posted.
    Doorbells = "doorbells" Sum;

    /// A post stops in the middle, and says where.
    PostCut = "post_cut" Fault;
    /// A post stops in the middle, and does not say where.
    PostCutMissing = "post_cut_missing_bad_wr" Fault;
    /// A post stops in the middle, and says a wrong place.
    PostCutWrong = "post_cut_wrong_bad_wr" Fault;
    /// A post of receives stops in the middle.
    ReceivesCut = "receives_cut" Fault;
    /// A work request fails on its way, without effect.
    WorkLost = "work_lost" Fault;
    /// A work request takes effect, and its acknowledgement is lost.
    AnswerLost = "answer_lost" Fault;
    /// A packet is held up until its sender has given it up.
    WorkHeldUp = "work_held_up" Fault;
    /// A work request is refused by the responder.
    WorkRefused = "work_refused" Fault;
    /// A queue pair goes to ERROR by itself.
    PairBroken = "pair_broken" Fault;
    /// Packets of a queue pair take longer from now on: order between queue pairs changes.
    Delayed = "delayed" Fault;
    /// A completion comes a second time.
    Repeated = "completion_repeated" Fault;
    /// Completions of success get lost, and their queue pair fails after them.
    CompletionsLost = "completions_lost" Fault;
    /// Completions come twice at once.
    CompletionsTwice = "completions_twice" Fault;
    /// A device has no memory for a post.
    PostNoMemory = "post_enomem" Fault;
    /// A device fails with all its queue pairs, and works again later.
    DeviceFailed = "device_failed" Fault;
    /// A port goes down for a while.
    PortDown = "port_down" Fault;
    /// A card does not do what its control asks.
    CardRefused = "card_refused" Fault;
    /// An engine dies, with all its queue pairs.
    EngineDied = "engine_died" Fault;
    /// The connection between two controls is lost.
    ControlLost = "control_lost" Fault;
    /// It is cut: nobody can say anything any more, and each end waits for its lease.
    ControlCut = "control_cut" Fault;
    /// A client stops looking at its CQ for a while.
    ClientSlow = "client_slow" Fault;
    /// A client breaks its ring.
    ClientHostile = "client_hostile" Fault;
    /// A region is revoked under way.
    Revoked = "revoked" Fault;

    /// Ops that succeeded on this host.
    DoneLocal = "done_local" Passage;
    /// Ops that succeeded over a queue pair.
    DoneVerbs = "done_verbs" Passage;
    /// Ops whose success was skipped.
    Skipped = "skipped" Passage;
    /// Ops that ended with the one that they were folded into.
    Coalesced = "coalesced" Passage;
    /// Ops that were not started when their engine died.
    VerdictNotStarted = "verdict_not_started" Passage;
    /// Ops of which nobody knows, since their engine died.
    VerdictIndeterminate = "verdict_indeterminate" Passage;
    /// Engines that came back after they had died.
    EngineReturned = "engine_returned" Passage;
    /// Engines that were joined anew.
    Rejoined = "rejoined" Passage;
    /// Ops that were taken back.
    Cancelled = "cancelled" Passage;
    /// Ops that were too late.
    Late = "late" Passage;
    /// Ops that were taken while something that they wait for was under way.
    Waited = "waited" Passage;
    /// Ops that waited, and were carried out.
    Released = "released" Passage;
    /// DRAINs that waited, and were carried out.
    DrainReleased = "drain_released" Passage;
    /// Ops that were carried out though something before them had failed.
    OrderPassed = "order_passed_a_failure" Passage;
    /// Ops that inherited a failure.
    DepFailed = "dep_failed" Passage;
    /// Ops that ended while they waited: taken back, late, or withdrawn.
    WaitEnded = "wait_ended" Passage;
    /// Ops whose edges were refused.
    EdgesRefused = "edges_refused" Passage;
    /// Ops that ended flushed.
    Flushed = "flushed" Passage;
    /// Ops of which nobody knows whether they took effect.
    MaybeDone = "maybe_done" Passage;
    /// Failed ops that may be repeated.
    Retryable = "retryable" Passage;
    /// Ops whose peer is gone.
    HostDown = "host_down" Passage;
    /// Ops whose target was withdrawn.
    Stale = "stale" Passage;
    /// Queue pairs in doubt.
    Degraded = "degraded" Passage;
    /// Requests repeated on a rebuilt queue pair.
    Repeats = "repeats" Passage;
    /// Requests of a failed queue pair that were handed back, for another rail to do.
    Returned = "returned" Passage;
    /// Rails that were probed before they took work again.
    Probes = "probes" Passage;
    /// Probes that failed, or were cut short.
    ProbesFailed = "probes_failed" Passage;
    /// Errors that were a card's own.
    CardErrors = "card_errors" Passage;
    /// Times that a card paused.
    Pauses = "pauses" Passage;
    /// Posts of which a known part was taken.
    Partial = "partial_posts" Passage;
    /// Posts of which it is not known how much was taken.
    Doubts = "posts_in_doubt" Passage;
    /// Completions that belong to nothing.
    StaleCompletions = "stale_completions" Passage;
    /// Packets that took effect after their sender had given them up.
    LandedLate = "landed_late" Passage;
    /// Of these, those that their sender had waited for until it ran out of patience.
    LandedGivenUp = "landed_after_timeout" Passage;
    /// Markers posted behind unsignalled work.
    Markers = "markers" Passage;
    /// Messages that only return credit.
    CreditMessages = "credit_messages" Passage;
    /// Answers of the control side to something that was not asked.
    StaleNews = "stale_news" Passage;

    /// Entries made, before their work requests were posted.
    EntryTentative = "entry_tentative" Passage;
    /// Entries whose work requests were posted.
    EntryPosted = "entry_posted" Passage;
    /// Entries whose work requests were not taken.
    EntryTakenBack = "entry_taken_back" Passage;
    /// Entries whose work requests may have been taken.
    EntryDoubtful = "entry_doubtful" Passage;
    /// Entries that ended by their own completion.
    EntryCompleted = "entry_completed" Passage;
    /// Unsignalled entries that ended by the completion of a later one.
    EntryReleased = "entry_released" Passage;
    /// Entries that failed by their own completion.
    EntryFailed = "entry_failed" Passage;
    /// Entries that were flushed.
    EntryDrained = "entry_drained" Passage;
    /// Entries whose queue pair was reset before their end was known.
    EntryOrphaned = "entry_orphaned" Passage;

    /// Rails that got a queue pair.
    RailAdopted = "rail_absent_connecting" Passage;
    /// Rails that were connected for the first time.
    RailConnected = "rail_connecting_trial" Passage;
    /// Rails that failed before they were connected for the first time.
    RailFailedEarly = "rail_connecting_degraded" Passage;
    /// Rails whose peer was gone before they were connected for the first time.
    RailEndedEarly = "rail_connecting_dead" Passage;
    /// Rails that failed in use.
    RailDegraded = "rail_ready_degraded" Passage;
    /// Rails whose queue pair was reset, both ends being quiet.
    RailReset = "rail_degraded_rebuilding" Passage;
    /// Rails whose peer was gone while they were in doubt.
    RailEndedDegraded = "rail_degraded_dead" Passage;
    /// Rails that were connected again.
    RailBack = "rail_rebuilding_trial" Passage;
    /// Rails that were taken into use.
    RailTrusted = "rail_trial_ready" Passage;
    /// Rails that failed before they were taken into use again.
    RailDistrusted = "rail_trial_degraded" Passage;
    /// Rails that failed on their way back.
    RailFailedAgain = "rail_rebuilding_degraded" Passage;
    /// Rails whose peer was gone while they were on their way back.
    RailEndedRebuilding = "rail_rebuilding_dead" Passage;
    /// Rails whose queue pair was taken back.
    RailReleased = "rail_dead_absent" Passage;

    /// Ends that said that they can be connected.
    JointReady = "joint_ready" Passage;
    /// Ends that said that they are connected.
    JointUp = "joint_up" Passage;
    /// Ends that said that they are quiet.
    JointQuiet = "joint_quiet" Passage;
    /// Rails that were told that both ends are connected.
    JointConnected = "joint_connected" Passage;
    /// Rails that were told that the other end failed.
    JointBroken = "joint_broken" Passage;
    /// Rails that were told that both ends are quiet.
    JointBothQuiet = "joint_both_quiet" Passage;
    /// Rails that were told that their queue pair is reset.
    JointReset = "joint_reset" Passage;
    /// Rails that were told that their peer is gone.
    JointGone = "joint_gone" Passage;
    /// Queue pairs that were taken back to be destroyed.
    JointReleased = "joint_released" Passage;
    /// Connections that their controls gave up.
    JointFailed = "joint_failed" Passage;
    /// Ends of which nothing is left.
    JointOver = "joint_over" Passage;
}

/// The sums of one world, or of many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts([u64; Count::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; Count::ALL.len()])
    }
}

impl Counts {
    /// How often something happened.
    #[must_use]
    pub fn of(&self, count: Count) -> u64 {
        self.0[count as usize]
    }

    /// Adds what happened elsewhere.
    pub fn merge(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }

    pub(super) fn add(&mut self, count: Count) {
        self.many(count, 1);
    }

    pub(super) fn many(&mut self, count: Count, by: u64) {
        self.0[count as usize] += by;
    }

    /// Counts how an op ended.
    pub(super) fn end(&mut self, cqe: &Cqe) {
        for (flag, count) in [
            (CQE_FLUSHED, Count::Flushed),
            (CQE_MAYBE_DONE, Count::MaybeDone),
            (CQE_RETRYABLE, Count::Retryable),
            (CQE_COALESCED, Count::Coalesced),
        ] {
            self.many(count, u64::from(cqe.flags & flag != 0));
        }
        if cqe.res >= 0 {
            match cqe.detail >> 8 {
                fabric if fabric == u16::from(FABRIC_LOCAL) => self.add(Count::DoneLocal),
                fabric if fabric == u16::from(FABRIC_VERBS) => self.add(Count::DoneVerbs),
                _ => {}
            }
        }
        match -cqe.res {
            errno::ECANCELED => self.add(Count::Cancelled),
            errno::ETIME => self.add(Count::Late),
            errno::EHOSTDOWN => self.add(Count::HostDown),
            errno::ESTALE => self.add(Count::Stale),
            _ => {}
        }
    }
}
