//! Every checker of the simulated worlds finds what it is there for: with one fault planted in the
//! core, worlds from fixed seeds break the one invariant that the fault offends; with none, the
//! same worlds of the same build break nothing.
//!
//! Faults are there only in builds with `--cfg verbring_plant`; `tests/plants` makes one.

use verbring::sim::{Invariant, Plant};

/// Faults, and the invariant that each must break.
macro_rules! planted {
    ($($test:ident: $plant:ident breaks $invariant:ident;)*) => {
        const ALL: &[(Plant, Invariant)] = &[$((Plant::$plant, Invariant::$invariant),)*];

        #[cfg(verbring_plant)]
        mod planted {
            $(#[test]
            fn $test() {
                super::must_break(super::Plant::$plant, super::Invariant::$invariant);
            })*
        }
    };
}

planted! {
    depth_that_is_not_returned: DepthKept breaks Credits;
    a_window_grant_that_is_not_given_back: GrantKept breaks Credits;
    a_quota_that_is_not_given_back: OwnerKept breaks Credits;
    bytes_of_a_quota_that_are_not_given_back: BytesKept breaks Credits;
    a_bound_on_class_high_that_is_not_given_back: HighKept breaks Credits;
    receives_that_the_peer_is_not_told_of: CreditKept breaks Credits;
    a_depth_that_was_asked_for_and_not_given: DepthAsked breaks Depth;
    a_second_cqe: CqeTwice breaks OneCqe;
    a_cqe_that_is_lost: CqeLost breaks Credits;
    a_post_before_its_entry: PostBeforeEntry breaks Fates;
    a_folded_op_that_is_not_shown_as_posted: FoldedUnmarked breaks Fates;
    a_posted_prefix_that_is_forgotten: PrefixForgotten breaks Entries;
    a_cqe_before_its_queue_pair_is_quiet: CqeBeforeQuiet breaks Untouched;
    a_retry_before_the_old_queue_pair_is_dead: RetryBeforeQuiet breaks Untouched;
    a_retry_by_another_rail_after_our_own_flush_alone: RetryEarly breaks Untouched;
    an_end_before_the_lease_is_over: GoneEarly breaks Untouched;
    an_atomic_that_is_repeated: AtomicAgain breaks Effects;
    a_notification_that_is_repeated: NotifyAgain breaks Effects;
    a_wait_with_nothing_signalled: NeverSignalled breaks Ends;
    a_stale_completion_that_is_honoured: StaleHonoured breaks Data;
    the_rest_of_a_partial_post_that_counts_as_posted: RestPosted breaks Data;
    a_chain_that_is_not_cut: ChainUncut breaks Effects;
    an_effect_that_is_said_to_be_retryable: FalselyRetryable breaks Effects;
    a_loan_that_is_never_given_back: LoanKept breaks Ends;
    a_revocation_that_does_not_wait: RevokedEarly breaks Untouched;
    an_op_that_is_let_go_before_all_it_waits_for_is_over: ReleasedEarly breaks Edges;
    a_failure_that_is_not_passed_on: FailureForgotten breaks Edges;
    a_drain_that_does_not_wait: DrainPassed breaks Edges;
}

#[test]
fn every_fault_has_its_test_and_says_which_invariant_it_breaks() {
    let here: Vec<_> = ALL.iter().map(|(plant, _)| *plant).collect();
    assert_eq!(here, Plant::ALL, "each fault once, in the order of the list");
    for (plant, invariant) in ALL {
        assert_eq!(plant.breaks(), *invariant, "{}", plant.name());
    }
}

#[cfg(not(verbring_plant))]
#[test]
fn a_build_without_faults_says_how_to_get_them() {
    assert!(!Plant::possible());
    let refused = std::panic::catch_unwind(|| verbring::sim::run_planted(1, Plant::CqeTwice));
    let why = refused.unwrap_err().downcast::<String>().unwrap();
    assert!(why.contains("--cfg verbring_plant") && why.contains("--plant cqe-twice"), "{why}");
}

/// Worlds in which a fault must be found.
#[cfg(verbring_plant)]
const WORLDS: u64 = 3_000;

#[cfg(verbring_plant)]
fn must_break(plant: Plant, invariant: Invariant) {
    let mut others = std::collections::BTreeMap::<Invariant, u32>::new();
    for seed in 1..=WORLDS {
        let Err(broken) = verbring::sim::run_planted(seed, plant) else { continue };
        if broken.invariant == invariant {
            println!("found in world {seed}: {broken}; before it broke {others:?}");
            assert_eq!(broken.seed, seed);
            assert!(broken.replay().ends_with(&format!("--plant {}", plant.name())));
            return;
        }
        *others.entry(broken.invariant).or_default() += 1;
    }
    panic!("{} was not found to break {invariant} in {WORLDS} worlds: {others:?}", plant.name());
}

#[cfg(verbring_plant)]
#[test]
fn without_a_fault_the_same_build_breaks_nothing() {
    assert!(Plant::possible());
    for seed in 1..=WORLDS {
        if let Err(broken) = verbring::sim::run(seed) {
            panic!("{broken}\nreplay: {}", broken.replay());
        }
    }
}
