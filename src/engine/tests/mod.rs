//! The core under a virtual clock, without threads: one idea a file, on the harness in `world`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod abroad;
mod board;
mod budget;
mod bytes;
mod cancel;
mod caps;
mod codes;
mod completion;
mod deadline;
mod edges;
mod fate;
mod fault;
mod flood;
mod flush;
mod fold;
mod fold_abroad;
mod fold_model;
mod garbage;
mod graphs;
mod graphs_large;
mod lists;
mod merging;
mod model;
mod notify;
mod order;
mod outage;
mod partial;
mod peers;
mod record;
mod room;
mod script;
mod sets;
mod shares;
mod sleep;
mod started;
mod streams;
mod supersede;
mod telemetry;
mod two;
mod watched;
mod why;
mod why_rails;
mod winding;
mod world;
