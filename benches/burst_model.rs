//! What can an order of ops reach in a burst, whoever implements it?
//!
//! A queueing model of `verbring bench burst`: how much less high ops wait than if they were served
//! as they come, in modes strict and weighted 4:1, by submit rate and service rate. It measures
//! nothing; a change in its numbers means that the model was changed. It is held against what the
//! bench measures, which prints the model's figures at its own rates.
//!
//! ```text
//! cargo bench --bench burst_model                            several submit rates
//! cargo bench --bench burst_model -- 8e6 1.2e6 32768 64      submits/s, ops/s, ops, window
//! ```
#![allow(missing_docs, reason = "a program of its own")]

// Shared with the command, which uses all of it.
#[allow(dead_code, reason = "the command uses more of it")]
#[path = "../src/cli/bench/model.rs"]
mod model;

use model::{Burst, Order, run};

fn main() {
    // Cargo gives its own flags to every benchmark.
    let given: Vec<f64> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let at = |index: usize, default: f64| given.get(index).copied().unwrap_or(default);
    let serve_per_s = at(1, 1e6);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts")]
    let (ops, window_ops) = (at(2, 32_768.0) as usize, at(3, 64.0) as usize);
    let rates: Vec<f64> = match given.first() {
        Some(rate) => vec![*rate],
        None => [1.0, 1.25, 1.5, 2.0, 4.0, 8.0, 16.0, 1e6].map(|it| it * serve_per_s).to_vec(),
    };
    println!("{ops} ops, half of them high, window of {window_ops} ops, {serve_per_s:e} served/s");
    println!("{:>12}  {:>22}  {:>22}", "submitted/s", "strict: avg, p99", "weighted 4:1");
    for submit_per_s in rates {
        let burst = Burst { ops, submit_per_s, serve_per_s, window_ops };
        let direct = run(&burst, Order::Direct);
        let cut = |order| {
            let (avg, p99) = run(&burst, order).cut(&direct);
            format!("{:>8.1} % {:>8.1} %", -100.0 * avg, -100.0 * p99)
        };
        let (strict, weighted) = (cut(Order::Strict), cut(Order::Weighted(4, 1)));
        println!("{submit_per_s:>12.3e}  {strict:>22}  {weighted:>22}");
    }
}
