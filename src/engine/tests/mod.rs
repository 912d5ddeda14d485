//! The core under a virtual clock, without threads: one idea a file, on the harness in `world`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod abroad;
mod budget;
mod cancel;
mod completion;
mod deadline;
mod fate;
mod fault;
mod flush;
mod garbage;
mod lists;
mod model;
mod notify;
mod order;
mod partial;
mod peers;
mod room;
mod script;
mod sleep;
mod streams;
mod two;
mod watched;
mod why;
mod winding;
mod world;
