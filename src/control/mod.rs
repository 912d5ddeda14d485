//! The control socket: messages, descriptors, and the server behind them.

mod card;
pub mod fds;
mod jobs;
mod objects;
pub(crate) mod peers;
mod places;
mod questions;
mod recorders;
mod registrations;
mod server;
mod sessions;
mod telemetry;
pub mod wire;

pub(crate) use card::{
    Card, CardAnswer, CardDone, CardOrder, CardOrders, CardWork, PairWork, Registered,
};
#[cfg(fuzzing)]
pub(crate) use peers::message::fuzz as peers_fuzz;
pub(crate) use peers::paths::Address;
pub(crate) use server::{Ask, Server, Ways};
pub(crate) use telemetry::TelemetryMade;
