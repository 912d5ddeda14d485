//! Whether the machine was quiet while something was measured.
//!
//! Three witnesses: time stolen by the hypervisor, CPU time of processes that are none of ours,
//! and clients taken off their cores against their will. The load average is told, but convicts
//! only a machine with more to run than it has cores: it remembers a minute that is over.

use std::fs;
use std::time::Instant;

use nix::unistd::{SysconfVar, sysconf};

use crate::cli::Failure;

/// A look at the machine before a measurement.
#[derive(Debug)]
pub(super) struct Watch {
    start: Instant,
    pids: Vec<u32>,
    before: Clocks,
    load: f64,
}

/// What disturbed a measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Disturbance {
    /// Average of runnable threads in the minute before.
    pub(super) load: f64,
    /// Cores' worth of time that the hypervisor gave to others.
    pub(super) stolen: f64,
    /// Cores' worth of time that other processes had.
    pub(super) others: f64,
    /// Displacements of the clients a slice.
    pub(super) displaced: f64,
    cores: usize,
}

/// Ticks since the system started.
#[derive(Clone, Copy, Debug, Default)]
struct Clocks {
    busy: u64,
    stolen: u64,
    ours: u64,
}

impl Watch {
    /// Looks before; `pids` and this process are ours.
    pub(super) fn start(mut pids: Vec<u32>) -> Result<Self, Failure> {
        pids.push(std::process::id());
        let before = Clocks::read(&pids)?;
        let load = read("/proc/loadavg")?;
        let load = load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
        Ok(Self { start: Instant::now(), pids, before, load })
    }

    /// Looks after; `displaced` is how often a client was taken off its core in so many slices.
    pub(super) fn end(self, displaced: u64, slices: u64) -> Result<Disturbance, Failure> {
        let after = Clocks::read(&self.pids)?;
        let ticks_per_s = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        #[expect(clippy::cast_precision_loss, reason = "a run is far shorter than 2^52 ticks")]
        let float = |count: u64| count as f64;
        let ticks = self.start.elapsed().as_secs_f64() * float(ticks_per_s.unsigned_abs());
        let share = |after: u64, before: u64| float(after.saturating_sub(before)) / ticks.max(1.0);
        let ours = share(after.ours, self.before.ours);
        Ok(Disturbance {
            load: self.load,
            stolen: share(after.stolen, self.before.stolen),
            others: (share(after.busy, self.before.busy) - ours).max(0.0),
            displaced: float(displaced) / float(slices.max(1)),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }
}

impl Clocks {
    fn read(pids: &[u32]) -> Result<Self, Failure> {
        let (busy, stolen) = machine(&read("/proc/stat")?);
        let ours =
            pids.iter().map(|pid| read(&format!("/proc/{pid}/stat")).map(|text| process(&text)));
        Ok(Self { busy, stolen, ours: ours.sum::<Result<u64, Failure>>()? })
    }
}

impl Disturbance {
    /// What a person should know before believing the figures; empty if the machine was quiet.
    pub(super) fn complaints(&self) -> Vec<String> {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let mut all = Vec::new();
        if self.stolen > SHARE_MAX {
            all.push(format!("the hypervisor took {} of a core", percent(self.stolen)));
        }
        if self.others > SHARE_MAX {
            all.push(format!("other processes took {} of a core", percent(self.others)));
        }
        if self.displaced > DISPLACED_MAX {
            let often = self.displaced;
            all.push(format!("clients were taken off their cores {often:.2} times a slice"));
        }
        #[expect(clippy::cast_precision_loss, reason = "cores are few")]
        if self.load > self.cores as f64 {
            let (load, cores) = (self.load, self.cores);
            all.push(format!("the load average is {load:.1} on {cores} cores"));
        }
        all
    }
}

/// Busy and stolen ticks of all cores, from /proc/stat.
fn machine(text: &str) -> (u64, u64) {
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        first.split_whitespace().skip(1).map(|text| text.parse().unwrap_or(0)).collect();
    let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
    (at(0) + at(1) + at(2) + at(5) + at(6), at(7))
}

/// Ticks of a process with all its threads, from /proc/PID/stat.
fn process(text: &str) -> u64 {
    // The name in brackets may hold anything; utime and stime are the 12th and 13th after it.
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    after.split_whitespace().skip(11).take(2).map(|text| text.parse().unwrap_or(0)).sum()
}

fn read(path: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::of(format!("cannot read {path}"), &error))
}

/// More than this much of one core is no accident.
const SHARE_MAX: f64 = 0.03;

/// The kernel's own small work displaces a client now and then.
const DISPLACED_MAX: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let text = "cpu  1 20 300 4000 50000 6 70 800 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(machine(text), (1 + 20 + 300 + 6 + 70, 800));
        let text = "12 (a) b) (c)) S 1 2 3 4 5 6 7 8 9 10 110 1200 13 14";
        assert_eq!(process(text), 110 + 1200);
        assert_eq!((machine(""), process("")), ((0, 0), 0));
    }

    #[test]
    fn each_disturbance_is_told_and_quiet_is_silent() {
        let quiet = Disturbance { cores: 2, load: 1.9, ..Disturbance::default() };
        assert_eq!(quiet.complaints(), Vec::<String>::new());
        let told = |disturbance: Disturbance| disturbance.complaints().join("; ");
        let text = told(Disturbance { stolen: 0.1, ..quiet.clone() });
        assert_eq!(text, "the hypervisor took 10.0 % of a core");
        let text = told(Disturbance { others: 0.5, ..quiet.clone() });
        assert_eq!(text, "other processes took 50.0 % of a core");
        let text = told(Disturbance { displaced: 2.0, ..quiet.clone() });
        assert_eq!(text, "clients were taken off their cores 2.00 times a slice");
        let text = told(Disturbance { load: 3.0, ..quiet });
        assert_eq!(text, "the load average is 3.0 on 2 cores");
    }

    #[test]
    fn this_machine_can_be_watched() {
        let watch = Watch::start(Vec::new()).unwrap();
        let disturbance = watch.end(3, 6).unwrap();
        assert_eq!(disturbance.displaced, 0.5);
        assert!(disturbance.cores >= 1 && disturbance.others >= 0.0);
    }
}
