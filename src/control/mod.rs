//! The control socket: messages, descriptors, and the server behind them.

pub mod fds;
