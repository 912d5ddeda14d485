//! The verbs provider on real devices: that bytes arrive, that what may not be done ends as an
//! error of the guilty request alone, and that a queue pair in error comes back.
//!
//! `VERBRING_TEST_DEVICE` names two ports that reach each other, and the index of their GIDs:
//! `rxe0:1:1,rxe1:1:1`. The tests are ignored elsewhere; `tests/run vm` runs them over Soft-RoCE
//! in a virtual machine. Each is tried from a port to itself and to the other. Two openings of
//! devices stand for two engines; nothing but keys, addresses and endpoints passes between them.
//! Whole engines, alone and joined, are in `engine` and `engines`, chains of their rings in
//! `ring_chains`; `two_rails` joins them by two cables, the second of which `VERBRING_TEST_SECOND`
//! names in the same way. `hosts` starts engines as two hosts have them, joined by TCP; `restarts`
//! kills them, `losses` takes their packets, `rails_of_hosts` one of their cables, `bounds` floods
//! them, `ghosts` makes packets late, and `commands` tries the commands that people use between
//! hosts.

#[cfg(feature = "cli")]
mod bounds;
#[cfg(feature = "sim")]
mod chains;
#[cfg(feature = "cli")]
mod commands;
#[cfg(feature = "sim")]
mod conformance;
mod data;
mod engine;
mod engines;
mod errors;
mod files;
mod ghosts;
mod hosts;
mod losses;
mod rails_of_hosts;
mod restarts;
mod rights;
mod ring_chains;
mod side;
mod sizes;
#[cfg(feature = "sim")]
mod small;
mod two_rails;
mod wire;
