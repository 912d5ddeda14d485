//! What is done to a cable: it becomes long, or swallows some or all of what it is given.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::side::Place;

/// On a long cable each end holds every packet back for half of this: it hides what the machine
/// itself adds.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(10);

/// Runs `ip`, which must do it.
pub(crate) fn ip(arguments: &str) -> String {
    let done = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// The network device of a port.
pub(crate) fn netdev(place: &Place) -> String {
    let parent = format!("/sys/class/infiniband/{}/parent", place.device);
    fs::read_to_string(parent).expect("a Soft-RoCE device").trim().to_string()
}

/// Packets that a network device has sent.
pub(crate) fn sent(netdev: &str) -> u64 {
    let path = format!("/sys/class/net/{netdev}/statistics/tx_packets");
    fs::read_to_string(path).expect("a counter").trim().parse().expect("a number")
}

/// Packets that a network device has to send, and holds back.
pub(crate) fn held_back(netdev: &str) -> u64 {
    let told = Command::new("tc").args(["-s", "qdisc", "show", "dev", netdev]).output();
    let text = String::from_utf8(told.expect("tc, of iproute2").stdout).expect("text");
    // backlog 1968b 24p requeues 0
    let mut words = text.split_whitespace().skip_while(|word| *word != "backlog");
    let packets = words.nth(2).and_then(|word| word.strip_suffix('p')?.parse().ok());
    packets.unwrap_or_else(|| panic!("{netdev} has no queue: {text}"))
}

/// Ends of cables that are not as they were, until this is dropped.
pub(crate) struct Wire(Vec<String>);

impl Wire {
    /// A cable on which everything takes its time.
    pub(crate) fn long(ends: [&Place; 2]) -> Self {
        Self::between(ends, &["delay", &format!("{}us", ROUND_TRIP.as_micros() / 2)])
    }

    /// A cable that loses this share of the packets, such as "1%", each way.
    pub(crate) fn losing(ends: [&Place; 2], share: &str) -> Self {
        Self::between(ends, &["loss", share])
    }

    /// A cable on which nothing arrives, though both ports stay up.
    pub(crate) fn silent(ends: [&Place; 2]) -> Self {
        Self::between(ends, &["loss", "100%"])
    }

    fn between(ends: [&Place; 2], how: &[&str]) -> Self {
        Self::from(ends.map(netdev).into(), how)
    }

    /// What these network devices send is treated so by netem.
    pub(crate) fn from(netdevs: Vec<String>, how: &[&str]) -> Self {
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
