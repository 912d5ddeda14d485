//! Whether the machine was quiet while something was measured.
//!
//! Four witnesses: time stolen by the hypervisor, CPU time of processes that are none of ours,
//! threads of ours taken off their cores against their will, and threads that are ready to run
//! while all of ours wait. The load average is told, but convicts nobody: it remembers a minute
//! that is over, and in it the last bench.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};

use crate::cli::Failure;

/// A look at the machine before a measurement.
#[derive(Debug)]
pub(super) struct Watch {
    start: Instant,
    pids: Vec<u32>,
    before: Clocks,
    load_average: f64,
    runnable: f64,
    crowded: bool,
}

/// What disturbed a measurement.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Disturbance {
    /// Average of runnable threads in the minute before.
    pub(super) load_average: f64,
    /// Threads of others that were ready to run just before.
    pub(super) runnable: f64,
    /// Cores' worth of time that the hypervisor gave to others.
    pub(super) stolen: f64,
    /// Cores' worth of time that other processes had.
    pub(super) others: f64,
    /// Displacements of our threads a slice.
    pub(super) displaced: f64,
}

/// Ticks since the system started.
#[derive(Clone, Copy, Debug, Default)]
struct Clocks {
    busy: u64,
    stolen: u64,
    ours: u64,
    /// Not ticks, but times that a thread of ours was displaced.
    displaced: u64,
}

impl Watch {
    /// Looks before, while all processes of ours wait. `crowded`: they displace one another.
    pub(super) fn start(pids: Vec<u32>, crowded: bool) -> Result<Self, Failure> {
        let (load_average, _) = load(&read("/proc/loadavg")?);
        let mut runnable = 0.0;
        for _ in 0..LOOKS {
            // This thread itself is one of them.
            runnable += (load(&read("/proc/loadavg")?).1 - 1.0).max(0.0) / f64::from(LOOKS);
            thread::sleep(Duration::from_millis(1));
        }
        let before = Clocks::read(&pids)?;
        Ok(Self { start: Instant::now(), pids, before, load_average, runnable, crowded })
    }

    /// Looks after so many slices.
    pub(super) fn end(self, slices: u64) -> Result<Disturbance, Failure> {
        let after = Clocks::read(&self.pids)?;
        let ticks_per_s = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        #[expect(clippy::cast_precision_loss, reason = "a run is far shorter than 2^52 ticks")]
        let float = |count: u64| count as f64;
        let ticks = self.start.elapsed().as_secs_f64() * float(ticks_per_s.unsigned_abs());
        let share = |after: u64, before: u64| float(after.saturating_sub(before)) / ticks.max(1.0);
        let ours = share(after.ours, self.before.ours);
        let displaced = float(after.displaced.saturating_sub(self.before.displaced));
        Ok(Disturbance {
            load_average: self.load_average,
            runnable: self.runnable,
            stolen: share(after.stolen, self.before.stolen),
            others: (share(after.busy, self.before.busy) - ours).max(0.0),
            displaced: if self.crowded { 0.0 } else { displaced / float(slices.max(1)) },
        })
    }
}

impl Clocks {
    /// Of the machine, of these processes, and of this one.
    fn read(pids: &[u32]) -> Result<Self, Failure> {
        let (busy, stolen) = machine(&read("/proc/stat")?);
        let ours = process(&read("/proc/self/stat")?);
        let mut clocks = Self { busy, stolen, ours, displaced: 0 };
        for pid in pids {
            clocks.ours += process(&read(&format!("/proc/{pid}/stat"))?);
            let path = format!("/proc/{pid}/task");
            let unreadable = |error| Failure::of(format!("cannot read {path}"), &error);
            for task in fs::read_dir(&path).map_err(unreadable)? {
                // A thread may have ended meanwhile.
                let Ok(task) = task else { continue };
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                clocks.displaced += displacements(&status);
            }
        }
        Ok(clocks)
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
            all.push(format!("threads of the bench were displaced {often:.2} times a slice"));
        }
        if self.runnable > RUNNABLE_MAX {
            all.push(format!("{:.1} threads of others were ready to run before", self.runnable));
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

/// The load average of a minute, and how many threads are ready to run now, from /proc/loadavg.
fn load(text: &str) -> (f64, f64) {
    let mut fields = text.split_whitespace();
    let average = fields.next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let runnable = fields.nth(2).and_then(|text| text.split('/').next()?.parse().ok());
    (average, runnable.unwrap_or(0.0))
}

/// How often a thread was taken off its core against its will, from its status.
fn displacements(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

fn read(path: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::of(format!("cannot read {path}"), &error))
}

/// More than this much of one core is no accident.
const SHARE_MAX: f64 = 0.03;

/// The kernel's own small work displaces a thread now and then.
const DISPLACED_MAX: f64 = 2.0;

/// More than a thread that is ready every other time is a third one beside two that measure.
const RUNNABLE_MAX: f64 = 0.5;

/// Looks at what is ready to run, a millisecond apart.
const LOOKS: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let text = "cpu  1 20 300 4000 50000 6 70 800 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(machine(text), (1 + 20 + 300 + 6 + 70, 800));
        let text = "12 (a) b) (c)) S 1 2 3 4 5 6 7 8 9 10 110 1200 13 14";
        assert_eq!(process(text), 110 + 1200);
        assert_eq!(load("1.50 2.00 3.00 4/567 890\n"), (1.5, 4.0));
        let text = "voluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t42\n";
        assert_eq!(displacements(text), 42);
        assert_eq!((machine(""), process(""), displacements("")), ((0, 0), 0, 0));
        assert_eq!(load(""), (0.0, 0.0));
    }

    #[test]
    fn each_disturbance_is_told_and_quiet_is_silent() {
        let quiet = Disturbance { load_average: 9.0, ..Disturbance::default() };
        assert_eq!(quiet.complaints(), Vec::<String>::new());
        let told = |disturbance: Disturbance| disturbance.complaints().join("; ");
        let text = told(Disturbance { stolen: 0.1, ..quiet.clone() });
        assert_eq!(text, "the hypervisor took 10.0 % of a core");
        let text = told(Disturbance { others: 0.5, ..quiet.clone() });
        assert_eq!(text, "other processes took 50.0 % of a core");
        let text = told(Disturbance { displaced: 2.5, ..quiet.clone() });
        assert_eq!(text, "threads of the bench were displaced 2.50 times a slice");
        let text = told(Disturbance { runnable: 1.5, ..quiet });
        assert_eq!(text, "1.5 threads of others were ready to run before");
    }

    #[test]
    fn this_machine_can_be_watched() {
        let watch = Watch::start(vec![std::process::id()], false).unwrap();
        let disturbance = watch.end(6).unwrap();
        assert!(disturbance.displaced.is_finite() && disturbance.others >= 0.0);
        assert!(disturbance.load_average >= 0.0);
        assert!(Watch::start(vec![u32::MAX], false).is_err(), "a process that is not there");
    }
}
