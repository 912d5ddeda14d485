//! What a queue could reach in a burst: one server, ops that come at a steady rate, and an order.
//!
//! Each client submits its low ops first and then its high ones, all clients at the same pace, so
//! that of all arrivals the first half is low and the second is high. The server takes the same
//! time for every op. In front of it lies a window: what is in it has been chosen and cannot be
//! overtaken. An op's latency is from its arrival to its end.
//!
//! At an endless submit rate the first half is there before the second, and nothing is served yet:
//! then high waits three quarters of the whole on the average if served as it comes, a quarter if
//! it goes first, and at 4:1 five sixteenths, which is 58 % less; its last one ends at the end,
//! the half, and five eighths of the whole.
//!
//! `benches/burst_model.rs` includes this file. **Deliberately absent**: what choosing, taking in
//! and telling cost, and noise: what is missing to the model is the engine's.

use std::collections::VecDeque;

/// A burst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Burst {
    /// Ops in all, half of them high.
    pub(crate) ops: usize,
    /// Ops a second, as they are submitted.
    pub(crate) submit_per_s: f64,
    /// Ops a second, as they are served.
    pub(crate) serve_per_s: f64,
    /// Ops chosen and not ended.
    pub(crate) window_ops: usize,
}

/// Which op goes next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// As they came.
    Direct,
    /// High first.
    Strict,
    /// High and low share by these weights while both have work.
    Weighted(u64, u64),
}

/// Latencies, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Latency {
    pub(crate) avg_ns: f64,
    pub(crate) p99_ns: f64,
}

/// What a burst comes to: of high, and of low.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) high: Latency,
    pub(crate) low: Latency,
}

impl Outcome {
    /// How much less high waits than in `other`, as parts of one: on the average, and at p99.
    pub(crate) fn cut(&self, other: &Self) -> (f64, f64) {
        let cut = |ours: f64, theirs: f64| 1.0 - ours / theirs;
        (cut(self.high.avg_ns, other.high.avg_ns), cut(self.high.p99_ns, other.high.p99_ns))
    }
}

/// Serves the burst in an order.
pub(crate) fn run(burst: &Burst, order: Order) -> Outcome {
    let (gap_ns, service_ns) = (1e9 / burst.submit_per_s, 1e9 / burst.serve_per_s);
    let mut queues = Queues::default();
    let mut window = VecDeque::new();
    let mut latencies = [Vec::new(), Vec::new()];
    let (mut arrived, mut now_ns) = (0, 0.0);
    for _ in 0..burst.ops {
        loop {
            while arrived < burst.ops && at(arrived) * gap_ns <= now_ns {
                queues.waiting[usize::from(arrived < burst.ops / 2)].push_back(arrived);
                arrived += 1;
            }
            while window.len() < burst.window_ops.max(1)
                && let Some(next) = queues.choose(order)
            {
                window.push_back(next);
            }
            if !window.is_empty() {
                break;
            }
            now_ns = at(arrived) * gap_ns;
        }
        if let Some((op, class)) = window.pop_front() {
            now_ns += service_ns;
            latencies[class].push(now_ns - at(op) * gap_ns);
        }
    }
    let [high, low] = latencies.map(Latency::of);
    Outcome { high, low }
}

impl Latency {
    fn of(mut all: Vec<f64>) -> Self {
        all.sort_by(f64::total_cmp);
        let p99_ns = all.get((all.len() * 99).div_ceil(100).max(1) - 1).copied().unwrap_or(0.0);
        Self { avg_ns: all.iter().sum::<f64>() / at(all.len().max(1)), p99_ns }
    }
}

/// High, then low.
#[derive(Default)]
struct Queues {
    waiting: [VecDeque<usize>; 2],
    /// What each was served, by its weight.
    virtual_time: [u64; 2],
    /// The virtual time of the one served last.
    clock: u64,
    had: [bool; 2],
}

impl Queues {
    fn choose(&mut self, order: Order) -> Option<(usize, usize)> {
        let heads = [self.waiting[0].front().copied(), self.waiting[1].front().copied()];
        let class = match (heads, order) {
            ([None, None], _) => return None,
            ([Some(_), None], _) => 0,
            ([None, Some(_)], _) => 1,
            ([Some(high), Some(low)], Order::Direct) => usize::from(low < high),
            (_, Order::Strict) => 0,
            (_, Order::Weighted(..)) => {
                self.rejoin();
                usize::from(self.virtual_time[1] < self.virtual_time[0])
            }
        };
        if let Order::Weighted(high, low) = order {
            self.rejoin();
            self.clock = self.virtual_time[class];
            // The other's weight counts as well as a division by one's own, and stays whole.
            self.virtual_time[class] += if class == 0 { low } else { high };
            self.had = self.waiting.each_ref().map(|queue| !queue.is_empty());
        }
        self.waiting[class].pop_front().map(|op| (op, class))
    }

    /// A class that had nothing begins where the other one is.
    fn rejoin(&mut self) {
        for class in 0..2 {
            if !self.had[class] && !self.waiting[class].is_empty() {
                self.virtual_time[class] = self.virtual_time[class].max(self.clock);
                self.had[class] = true;
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "ops of one burst")]
fn at(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: Burst =
        Burst { ops: 32_768, submit_per_s: 1e12, serve_per_s: 1e6, window_ops: 64 };

    fn near(value: f64, expected: f64) -> bool {
        (value - expected).abs() < 0.005
    }

    #[test]
    fn at_an_endless_submit_rate_the_cuts_are_those_of_arithmetic() {
        let direct = run(&BURST, Order::Direct);
        let whole_ns = 32_768.0 * 1e3;
        assert!(near(direct.high.avg_ns / whole_ns, 0.75));
        assert!(near(direct.low.avg_ns / whole_ns, 0.25));
        let (avg, p99) = run(&BURST, Order::Strict).cut(&direct);
        assert!(near(avg, 2.0 / 3.0) && near(p99, 0.5), "{avg} {p99}");
        let (avg, p99) = run(&BURST, Order::Weighted(4, 1)).cut(&direct);
        assert!(near(avg, 7.0 / 12.0) && near(p99, 3.0 / 8.0), "{avg} {p99}");
        assert_eq!(direct.cut(&direct), (0.0, 0.0));
    }

    /// Served as fast as it comes, nothing waits, and no order is better than another.
    #[test]
    fn at_the_servers_own_rate_no_order_matters() {
        let burst = Burst { submit_per_s: 0.99e6, ..BURST };
        for order in [Order::Direct, Order::Strict, Order::Weighted(4, 1)] {
            let outcome = run(&burst, order);
            assert!(near(outcome.high.avg_ns / 1e3, 1.0), "{order:?} {outcome:?}");
            assert!(near(outcome.low.p99_ns / 1e3, 1.0), "{order:?} {outcome:?}");
        }
    }

    /// Whatever the order, the server does the same work in the same time.
    #[test]
    fn orders_move_latency_about_and_add_none() {
        let burst = Burst { ops: 4_096, submit_per_s: 4e6, ..BURST };
        let sum = |order| {
            let Outcome { high, low } = run(&burst, order);
            high.avg_ns + low.avg_ns
        };
        let direct = sum(Order::Direct);
        for order in [Order::Strict, Order::Weighted(4, 1), Order::Weighted(1, 1)] {
            assert!((sum(order) / direct - 1.0).abs() < 1e-6, "{order:?}");
        }
    }
}
