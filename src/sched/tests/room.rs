//! Workload W04: an op of 48 MiB of class high arrives among ops of 1 MiB of class low that keep a
//! window of 64 MiB full. Ops are taken whole; a first op without room holds back what is behind.

use std::collections::VecDeque;

use crate::abi::Class;
use crate::sched::credits::{Ask, Grant, Window};
use crate::sched::{Bounds, Mode, Policy, Shape};

use super::stock::{Stock, Want};

const WINDOW_BYTES: u64 = 64 << 20;
const BOUNDS: Bounds = Bounds { ops: 1_000, wrs: 1_000, bytes: WINDOW_BYTES };
const LOW: u32 = 1 << 20;
const HIGH: u32 = 48 << 20;
const COMPLETIONS: u32 = 5_000;

struct World {
    stock: Stock,
    window: Window,
    in_flight: VecDeque<Grant>,
    low_bytes: u64,
}

impl World {
    /// Lets in what there is room for; true if that was the op of class high.
    fn pass(&mut self) -> bool {
        let left = WINDOW_BYTES - self.window.bytes();
        self.stock.scheduler.begin(1_000 - self.window.ops(), left);
        while let Some(slot) = self.stock.scheduler.first(&self.stock.ledger) {
            let op = self.stock.ledger[slot].op;
            let ask = Ask { bytes: op.bytes, enters: true, internal: false };
            let Ok(grant) = self.window.take(ask) else { return false };
            self.in_flight.push_back(grant);
            self.stock.serve(slot);
            if op.class == Class::High {
                return true;
            }
            self.low_bytes += u64::from(LOW);
            self.stock.add(Want::of(Class::Low, LOW), 0);
        }
        false
    }

    fn complete(&mut self) {
        let grant = self.in_flight.pop_front().unwrap();
        self.window.give(grant, true, false);
    }
}

/// Bytes of class low that were let in before the op of class high; none if it never was.
fn overtaken(mode: Mode) -> Option<u64> {
    let shape = Shape { sessions: 1, peers: 1, window_bytes: WINDOW_BYTES };
    let stock = Stock::new(&Policy { mode, ..Policy::DEFAULT }, shape, 200);
    let window = Window::new(BOUNDS);
    let mut world = World { stock, window, in_flight: VecDeque::new(), low_bytes: 0 };
    (0..100).for_each(|_| world.stock.add(Want::of(Class::Low, LOW), 0));
    for _ in 0..200 {
        world.pass();
        world.complete();
    }
    world.stock.add(Want::of(Class::High, HIGH), 0);
    world.low_bytes = 0;
    for _ in 0..COMPLETIONS {
        if world.pass() {
            return Some(world.low_bytes);
        }
        world.complete();
    }
    None
}

#[test]
fn w04_a_large_urgent_op_finds_room() {
    for mode in [Mode::Weighted, Mode::Strict] {
        let bytes = overtaken(mode).expect("it is let in");
        assert!(bytes <= 2 * WINDOW_BYTES, "{mode}: {bytes}");
    }
}

#[test]
fn w04_never_in_tent() {
    assert_eq!(overtaken(Mode::Tent), None);
}
