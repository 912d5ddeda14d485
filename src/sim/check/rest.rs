//! At rest nothing is held: no record but those of ARMs, and every queue pair's depth, credits and
//! entries are back.

use super::hold;
use crate::abi::Counter;
use crate::engine::{Command, Reply};
use crate::sim::node::Node;

/// Of one engine, with so many ARMs.
pub(in crate::sim) fn of(node: &mut Node, arms: u64) {
    let token = node.token();
    let answer = node.ask(token, Command::Stats { session: None, token });
    let Reply::Stats { counters, .. } = answer else { panic!("STATS without an answer") };
    let held = counters[Counter::InFlight as usize];
    hold!(AtRest, held == arms, "{held} records are held, and {arms} ARMs are there");
    let rails = node.rails_mut();
    let counts = rails.counts();
    hold!(AtRest, rails.at_rest(), "queue pairs hold something: {counts:?}");
}
