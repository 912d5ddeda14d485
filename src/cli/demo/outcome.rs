//! What a demo run came to: figures, the comparison of digests, and how both are told.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::json;
use verbring::abi::{Class, FABRIC_LOCAL, FABRIC_NONE, FABRIC_VERBS};

use crate::cli::carried::Carried;
use crate::cli::{class_name, grouped};

/// What the sender measured, over all passes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sent {
    /// Ops that succeeded, the probe's among them.
    pub(super) ops: u64,
    /// Seconds in which ops were in flight.
    pub(super) seconds: f64,
    /// Payload bytes that ops moved, there and back.
    pub(super) bytes_moved: u64,
    /// `detail >> 8` of every success.
    pub(super) fabric: u8,
    pub(super) first_record: u64,
    pub(super) last_record: u64,
    /// By [`Class::index`].
    pub(super) classes: [Latency; 3],
    /// The probe alone; its ops are among the high class's.
    pub(super) probe: Latency,
    /// What every success says that carried it.
    pub(super) carried: Carried,
}

/// Ops and how long they took, from push to reap, as the client saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) ops: u64,
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
}

impl Latency {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            ops: histogram.len(),
            p50_ns: histogram.value_at_quantile(0.50),
            p99_ns: histogram.value_at_quantile(0.99),
        }
    }
}

/// One pass of the file, seen from three sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) bytes: u64,
    pub(super) sha256_sent: String,
    pub(super) sha256_received: String,
    pub(super) sha256_read_back: String,
}

impl Pass {
    /// Says what differs, if anything does.
    pub(super) fn mismatch(&self) -> Option<String> {
        let sent = &self.sha256_sent;
        [
            ("the exporter received", &self.sha256_received),
            ("was read back", &self.sha256_read_back),
        ]
        .into_iter()
        .find(|(_, digest)| *digest != sent)
        .map(|(what, digest)| {
            format!("what {what} is not what was sent: SHA-256 {digest} instead of {sent}")
        })
    }
}

/// The other host's end, and what was said to it.
#[derive(Clone, Debug)]
pub(super) struct Far {
    /// Its engine's URL.
    pub(super) url: String,
    /// What carried the mailbox's ops, which are beside those of the file.
    pub(super) mailbox: Carried,
}

/// The whole run.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) file: String,
    /// The far end, if that was on another host.
    pub(super) peer: Option<Far>,
    /// The last pass, or the one that did not match.
    pub(super) pass: Pass,
    pub(super) passes: u64,
    /// Bytes of the file, times passes.
    pub(super) bytes: u64,
    pub(super) sent: Sent,
}

impl Outcome {
    pub(super) fn to_json(&self) -> serde_json::Value {
        let classes: Vec<_> = Class::ALL
            .into_iter()
            .map(|class| with_latency(class_name(class), &self.sent.classes[class.index()]))
            .collect();
        let mut carried = self.sent.carried.clone();
        let mailbox = self.peer.as_ref().map(|far| &far.mailbox);
        mailbox.into_iter().for_each(|mailbox| carried.merge(mailbox));
        json!({
            "file": self.file,
            "peer": self.peer.as_ref().map(|far| far.url.clone()),
            "bytes": self.bytes,
            "passes": self.passes,
            "ops": self.sent.ops,
            "seconds": self.sent.seconds,
            "ops_per_s": self.per_second(self.sent.ops),
            "bytes_moved": self.sent.bytes_moved,
            "bytes_per_s": self.per_second(self.sent.bytes_moved),
            "sha256_sent": self.pass.sha256_sent,
            "sha256_received": self.pass.sha256_received,
            "sha256_read_back": self.pass.sha256_read_back,
            "fabric": fabric_name(self.sent.fabric),
            "first_record": format!("{:#018x}", self.sent.first_record),
            "last_record": format!("{:#018x}", self.sent.last_record),
            "mailbox_ops": mailbox.map(Carried::ops),
            "carried": carried.to_json(),
            "classes": classes,
            "probe": with_latency("high", &self.sent.probe),
        })
    }

    pub(super) fn to_text(&self) -> String {
        let Sent { ops, seconds, bytes_moved, .. } = self.sent;
        let mut out = format!("{}: {} bytes", self.file, grouped(self.pass.bytes));
        if self.passes > 1 {
            out += &format!(", {} times", grouped(self.passes));
        }
        let to = self.peer.as_ref().map_or("a second process", |far| &far.url);
        out += &format!(
            ", to {to} and back\n\
             \n  \
               SHA-256 sent       {}\n  \
               SHA-256 received   {}\n  \
               SHA-256 read back  {}\n\
             \n  \
               {} ops moved {} bytes, {seconds:.3} s in flight: {} ops/s, {:.1} MiB/s\n  \
               fabric {}, records {:#018x} to {:#018x}\n\
             {}{}\
             \n  \
               class        ops    p50 us    p99 us\n",
            self.pass.sha256_sent,
            self.pass.sha256_received,
            self.pass.sha256_read_back,
            grouped(ops),
            grouped(bytes_moved),
            grouped(self.per_second(ops)),
            self.per_second(bytes_moved) as f64 / f64::from(1 << 20),
            fabric_name(self.sent.fabric),
            self.sent.first_record,
            self.sent.last_record,
            self.sent.carried.to_text(),
            self.mailbox_text(),
        );
        for class in Class::ALL {
            out += &row(class_name(class), &self.sent.classes[class.index()]);
        }
        out += &row("probe", &self.sent.probe);
        out += "\n  high includes the probe: READs of 64 bytes while the file moves\n";
        out
    }

    fn mailbox_text(&self) -> String {
        let Some(far) = &self.peer else { return String::new() };
        format!("  and of the mailbox, by which the two ends talk:\n{}", far.mailbox.to_text())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people: neither negative nor near 2^64"
    )]
    fn per_second(&self, count: u64) -> u64 {
        (count as f64 / self.sent.seconds.max(1e-9)) as u64
    }
}

fn row(name: &str, latency: &Latency) -> String {
    let micros = |ns: u64| ns as f64 / 1e3;
    let ops = grouped(latency.ops);
    format!("  {name:6} {ops:>9} {:>9.1} {:>9.1}\n", micros(latency.p50_ns), micros(latency.p99_ns))
}

fn with_latency(class: &str, latency: &Latency) -> serde_json::Value {
    json!({
        "class": class,
        "ops": latency.ops,
        "p50_ns": latency.p50_ns,
        "p99_ns": latency.p99_ns,
    })
}

/// A fabric's name; one that this version does not know keeps its number.
pub(crate) fn fabric_name(fabric: u8) -> String {
    match fabric {
        FABRIC_NONE => "none".to_string(),
        FABRIC_LOCAL => "local".to_string(),
        FABRIC_VERBS => "verbs".to_string(),
        number => format!("fabric {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(sent: &str, received: &str, read_back: &str) -> Pass {
        Pass {
            bytes: 3,
            sha256_sent: sent.to_string(),
            sha256_received: received.to_string(),
            sha256_read_back: read_back.to_string(),
        }
    }

    #[test]
    fn any_of_three_digests_that_differs_is_told() {
        assert_eq!(pass("a", "a", "a").mismatch(), None);
        let text = pass("a", "b", "a").mismatch().unwrap();
        assert!(text.contains("exporter received") && text.contains("b instead of a"), "{text}");
        let text = pass("a", "a", "c").mismatch().unwrap();
        assert!(text.contains("read back") && text.contains("c instead of a"), "{text}");
        assert!(pass("a", "b", "b").mismatch().is_some());
    }

    #[test]
    fn the_object_has_what_programs_were_promised() {
        let latency = Latency { ops: 2, p50_ns: 10, p99_ns: 20 };
        let sent = Sent {
            ops: 6,
            seconds: 2.0,
            bytes_moved: 6,
            fabric: FABRIC_LOCAL,
            first_record: 1 << 32,
            last_record: 1 << 32 | 5,
            classes: [latency; 3],
            probe: latency,
            carried: Carried::default(),
        };
        let file = "f".to_string();
        let pass = pass("a", "a", "a");
        let outcome = Outcome { file, peer: None, pass, passes: 1, bytes: 3, sent };
        let value = outcome.to_json();
        assert_eq!(value["first_record"], "0x0000000100000000");
        assert_eq!(value["last_record"], "0x0000000100000005");
        assert_eq!(value["fabric"], "local");
        assert_eq!((&value["bytes"], &value["ops"]), (&3.into(), &6.into()));
        assert_eq!(value["ops_per_s"], 3);
        let classes = value["classes"].as_array().unwrap();
        let names: Vec<_> = classes.iter().map(|class| class["class"].as_str().unwrap()).collect();
        assert_eq!(names, ["high", "medium", "low"]);
        assert_eq!(classes[0]["p99_ns"], 20);
        assert!(outcome.to_text().contains("6 ops moved 6 bytes, 2.000 s in flight: 3 ops/s"));
    }
}
