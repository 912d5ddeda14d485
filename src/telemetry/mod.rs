//! What an engine leaves behind for those who ask later: the flight recorder.

mod recorder;

pub use recorder::{Recorder, read_entry};
