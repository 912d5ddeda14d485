//! The core under a virtual clock, without threads: one idea a file, on the harness in `world`.

mod audit;
mod garbage;
mod room;
mod script;
mod watched;
mod world;
