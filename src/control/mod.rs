//! The control socket: messages, descriptors, and the server behind them.

pub mod fds;
mod jobs;
mod objects;
mod places;
mod server;
mod sessions;
pub mod wire;

pub(crate) use server::{Ask, Server};
