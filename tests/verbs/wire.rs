//! What is done to a cable: it becomes long, or swallows what it is given.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::side::Place;

/// On a long cable each end holds every packet back for half of this: it hides what the machine
/// itself adds.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(10);

/// Both ends of a cable that is not as it was, until this is dropped.
pub(crate) struct Wire([String; 2]);

impl Wire {
    /// A cable on which everything takes its time.
    pub(crate) fn long(ends: [&Place; 2]) -> Self {
        Self::between(ends, &["delay", &format!("{}us", ROUND_TRIP.as_micros() / 2)])
    }

    /// A cable on which nothing arrives, though both ports stay up.
    pub(crate) fn silent(ends: [&Place; 2]) -> Self {
        Self::between(ends, &["loss", "100%"])
    }

    fn between(ends: [&Place; 2], how: &[&str]) -> Self {
        let netdevs = ends.map(|place| {
            let parent = format!("/sys/class/infiniband/{}/parent", place.device);
            let netdev = fs::read_to_string(parent).expect("a Soft-RoCE device");
            netdev.trim().to_string()
        });
        let wire = Self(netdevs);
        for netdev in &wire.0 {
            let status = Command::new("tc")
                .args(["qdisc", "add", "dev", netdev, "root", "netem"])
                .args(how)
                .status()
                .expect("tc, of iproute2");
            assert!(status.success(), "tc: netem {how:?} on {netdev}");
        }
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for netdev in &self.0 {
            let _ = Command::new("tc").args(["qdisc", "del", "dev", netdev, "root"]).status();
        }
    }
}
