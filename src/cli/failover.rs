//! `verbring sim --failover`: one rail of two is killed under load, and comes back.

use serde_json::json;
use verbring::sim::{Failover, failover};

use super::{Failure, grouped, say, say_json};

/// Runs it, prints what happened, and fails if anything did not hold.
pub(crate) fn show(as_json: bool) -> Result<(), Failure> {
    let report = failover();
    if as_json {
        say_json(&to_json(&report))?;
    } else {
        say(&to_text(&report))?;
    }
    if report.broken.is_empty() { Ok(()) } else { Err(Failure::Failed(report.broken.join("; "))) }
}

/// Milliseconds with three digits.
fn ms(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000)
}

fn to_text(report: &Failover) -> String {
    let mut text = format!(
        "{:<14}{:>11}{:>11}{:>14}{:>14}{:>14}\n",
        "phase", "from ms", "to ms", "rail 1 MB/s", "rail 2 MB/s", "both MB/s"
    );
    for phase in &report.phases {
        text.push_str(&format!(
            "{:<14}{:>11}{:>11}{:>14}{:>14}{:>14}\n",
            phase.name,
            ms(phase.from_ns),
            ms(phase.to_ns),
            grouped(phase.rate(0)),
            grouped(phase.rate(1)),
            grouped(phase.total())
        ));
    }
    let Failover { cut_ns, out_ns, safe_ns, restored_ns, back_ns, back_within_ns, .. } = *report;
    let since = |to: u64, from: u64| ms(to.saturating_sub(from));
    text.push_str(&format!(
        "rail 2's port goes down                      {:>11} ms\n\
         out of use, at its first failed completion   {:>11} ms, {} after\n\
         all {} ops under way then have ended         {:>11} ms, {} after ({} handed back)\n\
         its port is up again                         {:>11} ms ({} probes failed by then)\n\
         it takes work again                          {:>11} ms, {} after; at most {} with these \
         settings\n\
         {} ops succeeded, none failed; times are virtual\n",
        ms(cut_ns),
        ms(out_ns),
        since(out_ns, cut_ns),
        report.under_way,
        ms(safe_ns),
        since(safe_ns, out_ns),
        report.returned,
        ms(restored_ns),
        report.probes[1],
        ms(back_ns),
        since(back_ns, restored_ns),
        ms(back_within_ns),
        grouped(report.done),
    ));
    text
}

fn to_json(report: &Failover) -> serde_json::Value {
    let phase = |phase: &verbring::sim::Phase| {
        json!({
            "name": phase.name,
            "from_ns": phase.from_ns,
            "to_ns": phase.to_ns,
            "bytes": phase.bytes,
            "mb_s": [phase.rate(0), phase.rate(1)],
        })
    };
    json!({
        "phases": report.phases.iter().map(phase).collect::<Vec<_>>(),
        "cut_ns": report.cut_ns,
        "out_ns": report.out_ns,
        "safe_ns": report.safe_ns,
        "restored_ns": report.restored_ns,
        "back_ns": report.back_ns,
        "back_within_ns": report.back_within_ns,
        "under_way": report.under_way,
        "returned": report.returned,
        "probes": report.probes[0],
        "probes_failed": report.probes[1],
        "done": report.done,
        "broken": report.broken,
    })
}

#[cfg(test)]
mod tests {
    use verbring::sim::Phase;

    use super::*;

    #[test]
    fn what_does_not_hold_is_told() {
        let phase = Phase { name: "before", from_ns: 0, to_ns: 2_000_000, bytes: [4_000_000, 1] };
        let mut report = Failover {
            phases: vec![phase],
            cut_ns: 1_500_000,
            out_ns: 4_000_000,
            safe_ns: 0,
            restored_ns: 0,
            back_ns: 0,
            back_within_ns: 1,
            under_way: 7,
            returned: 3,
            probes: [5, 4],
            done: 1_234,
            broken: Vec::new(),
        };
        let text = to_text(&report);
        assert!(text.contains("2.500 after") && text.contains("1.500 ms"), "{text}");
        assert!(text.contains("1,234 ops succeeded"), "{text}");
        report.broken.push("it is slow".to_string());
        let value = to_json(&report);
        assert_eq!(value["phases"][0]["mb_s"][0], 2_000);
        assert_eq!(value["broken"][0], "it is slow");
    }
}
