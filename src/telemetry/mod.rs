//! What an engine leaves behind for those who ask later, or look on: the flight recorder, and the
//! telemetry page.

mod histogram;
mod page;
mod recorder;

pub use histogram::Histogram;
pub use page::{
    BLOCK_WORDS, EVERY_NS, Page, SERVICE_AT, Tallies, WAIT_AT, Words, lines_of, read_block,
};
pub use recorder::{Recorder, read_entry};
