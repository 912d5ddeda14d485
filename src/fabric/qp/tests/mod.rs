//! Tests of queue pairs over the simulator: conformance, planted faults, and a model.

mod chains;
mod faults;
mod limits;
mod links;
mod merge;
mod model;
mod pair;
mod quiet;
mod silence;
mod trial;

use pair::{CONFIG, Shape, Two};

use super::Config;
use super::provider::{Caps, DeviceLimits};
use super::sim::SimConfig;

/// As small as it gets.
fn tiny() -> Two {
    Two::new(Shape {
        config: Config { depth: 1, receives: 1, signal_every: 1, ..CONFIG },
        ..Shape::DEFAULT
    })
}

/// Memory in many pieces, and short messages: a request becomes many work requests.
fn pieces() -> Two {
    let limits = DeviceLimits {
        registration_bytes_max: 3000,
        message_bytes_max: 1000,
        ..SimConfig::DEFAULT.limits
    };
    let sim = SimConfig { limits, ..SimConfig::DEFAULT };
    let config = Config { depth: 5, message_bytes_max: 1000, ..CONFIG };
    Two::new(Shape { sim, config, ..Shape::DEFAULT })
}

/// A device that gives less than it is asked for.
fn stingy() -> Two {
    let caps_max = Caps { sends: 5, receives: 4, inline_bytes: 16, ranges: 1 };
    Two::new(Shape { sim: SimConfig { caps_max, ..SimConfig::DEFAULT }, ..Shape::DEFAULT })
}

fn rails() -> Two {
    Two::new(Shape { rails: 4, ..Shape::DEFAULT })
}

/// Neighbours share work requests, on a device that takes so many ranges.
fn merging(ranges: u32) -> Two {
    let caps_max = Caps { ranges, ..SimConfig::DEFAULT.caps_max };
    let sim = SimConfig { caps_max, ..SimConfig::DEFAULT };
    let config = Config { merge_bytes_max: 4096, ..CONFIG };
    Two::new(Shape { sim, config, ..Shape::DEFAULT })
}

crate::conformance!(over_sim_merging, super::merging(16));
crate::conformance!(over_sim_merging_in_pairs, super::merging(2));
crate::conformance!(over_sim_merging_side_by_side, super::merging(1));
crate::conformance!(over_sim, super::Two::new(super::Shape::DEFAULT));
crate::conformance!(over_sim_tiny, super::tiny());
crate::conformance!(over_sim_in_pieces, super::pieces());
crate::conformance!(over_sim_stingy, super::stingy());
crate::conformance!(over_sim_many_rails, super::rails());
