//! `verbring bench qos`: what becomes of tenants with promises beside tenants with appetite.
//!
//! Three workloads, two of tebench's and one of Mooncake's pull request 2794:
//!
//! ```text
//! foreground   2 threads of 4 KiB, deadline 250 us, promised 300 us, weight 4
//!              beside a migration: 6 threads of 2 x 4 MiB, weight 1
//! checkpoint   4 threads of 64 KiB, promised 1,000 us, weight 4
//!              beside a checkpoint: 12 threads of 4 MiB, best effort, weight 1
//! tight        k of 16 threads of 1 MiB are tight, the others loose; k is 0, 1, 4, 8
//! ```
//!
//! A thread is a session with a ring, and submits its next batch when the last has ended. The
//! figures are tebench's: attainment is the part of ops within what was promised; goodput is
//! throughput times attainment; fairness is Jain's over throughput by weight; leakage is what a
//! tenant loses to its neighbours, 1 - throughput / throughput alone, not below 0. What was not
//! measured is null.

use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use verbring::abi::Class;
use verbring::sched::Mode;
use verbring::sched::bound::least_share;

use super::charts::{self, Bars};
use super::crew::Arm;
use super::engine_process::settings_for;
use super::quiet::Watch;
use super::round::{Common, Figure, complain_of, float, merged, read_mode};
use super::streams::{Pace, Part, Played, Stage};
use crate::cli::Failure;
use crate::cli::qos::policy_of;

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    Foreground,
    Checkpoint,
    Tight,
}

/// Arguments of `verbring bench qos`.
#[derive(Debug, Args)]
pub(super) struct QosArgs {
    /// Workloads to run.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "foreground,checkpoint,tight")]
    workloads: Vec<Workload>,
    /// Modes to compare.
    #[arg(long, value_delimiter = ',', value_parser = read_mode,
          default_value = "weighted,strict,fifo,direct")]
    modes: Vec<Mode>,
    /// Leaves out each tenant alone: no leakage then.
    #[arg(long)]
    no_baselines: bool,
    /// Milliseconds of one play, of which the first fifth is not counted.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(5..=60_000))]
    slice_ms: u32,
    #[command(flatten)]
    common: Common,
}

/// Threads that are promised the same.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tenant {
    name: &'static str,
    class: Class,
    threads: usize,
    op_bytes: u64,
    batch: u32,
    deadline_us: u32,
    slo_us: Option<u64>,
    weight: f64,
}

/// Tenants that run beside each other.
#[derive(Clone, Debug, PartialEq)]
struct Scene {
    name: String,
    tenants: Vec<Tenant>,
}

/// A tenant's figures at one mode.
#[derive(Debug, Default)]
struct Track {
    attainment: Figure,
    p99_ns: Figure,
    bytes_per_s: Figure,
    alone_bytes_per_s: Figure,
    share: Figure,
    jain: Figure,
    /// The slowest thread's rate by the average of its tenant's.
    least: Figure,
}

/// A tenant's row.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    workload: String,
    mode: String,
    tenant: &'static str,
    class: &'static str,
    threads: usize,
    op_bytes: u64,
    slo_us: Option<u64>,
    weight: f64,
    /// Part of the ops within `slo_us`; null if nothing was promised.
    slo_attainment: Option<f64>,
    p99_us: f64,
    bytes_per_s: f64,
    /// Bytes a second within what was promised; null if nothing was.
    goodput: Option<f64>,
    /// Of all tenants: 1 if each has its weight's part.
    jain_fairness: f64,
    /// Null without a baseline.
    isolation_leakage: Option<f64>,
    /// Part of all bytes.
    share: f64,
    /// The part that the mode promises its class while others have work; null if none.
    floor: Option<f64>,
    /// Whether the share is not below that; null without a floor, or without others.
    floor_held: Option<bool>,
    /// The slowest thread by the average thread of its tenant.
    least_thread: f64,
    runs: usize,
    /// Of the throughput: from the 10th to the 90th percentile of the runs, as a part of the
    /// median.
    spread: f64,
}

impl QosArgs {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut rows = Vec::new();
        for workload in &self.workloads {
            rows.extend(self.measure(*workload)?);
        }
        self.common.tell(&head(), &rows, Row::line)?;
        self.common.plot.as_deref().map_or(Ok(()), |file| draw(file, &rows))
    }

    fn measure(&self, workload: Workload) -> Result<Vec<Row>, Failure> {
        let cores = self.common.cores()?;
        let arms = self.common.arms(&self.modes, &cores, &[])?;
        let (scenes, parts) = (scenes(workload), parts(workload));
        let slice = Duration::from_millis(self.slice_ms.into());
        let mut stage = Stage::set(&arms, cores.of_client(0), &parts, slice)?;
        let none = |scene: &Scene| scene.tenants.iter().map(|_| Track::default()).collect();
        let mut tracks: Vec<Vec<Vec<Track>>> =
            arms.iter().map(|_| scenes.iter().map(none).collect()).collect();
        let watch = Watch::start(stage.pids(), false)?;
        for run in 0..self.common.runs as usize {
            for turn in 0..arms.len() {
                let engine = (turn + run) % arms.len();
                for (scene, tracks) in scenes.iter().zip(&mut tracks[engine]) {
                    self.play(&mut stage, engine, &parts, scene, tracks)?;
                }
            }
        }
        complain_of(&watch.end(stage.plays())?);
        let mut rows = Vec::new();
        for (arm, tracks) in arms.iter().zip(&tracks) {
            for (scene, tracks) in scenes.iter().zip(tracks) {
                for (tenant, track) in scene.tenants.iter().zip(tracks) {
                    rows.push(row(arm, scene, tenant, track)?);
                }
            }
        }
        Ok(rows)
    }

    /// All tenants of a scene at once, and each alone.
    fn play(
        &self,
        stage: &mut Stage,
        engine: usize,
        parts: &[Part],
        scene: &Scene,
        tracks: &mut [Track],
    ) -> Result<(), Failure> {
        let casts: Vec<Vec<usize>> =
            scene.tenants.iter().map(|tenant| cast(parts, tenant)).collect();
        let voices = |tenant: &Tenant, cast: &[usize]| {
            let pace = Pace::Closed { batch: tenant.batch, depth: tenant.batch };
            cast.iter().map(|part| (*part, pace)).collect::<Vec<_>>()
        };
        let together: Vec<_> = scene
            .tenants
            .iter()
            .zip(&casts)
            .flat_map(|(tenant, cast)| voices(tenant, cast))
            .collect();
        let all = stage.play(engine, &together)?;
        let seconds = stage.counted_s();
        let rates: Vec<f64> = casts.iter().map(|cast| rate(&all, cast, seconds)).collect();
        let whole: f64 = rates.iter().sum();
        let weighed = scene.tenants.iter().zip(&rates).map(|(tenant, rate)| rate / tenant.weight);
        let jain = jain(&weighed.collect::<Vec<_>>());
        for (at, (tenant, cast)) in scene.tenants.iter().zip(&casts).enumerate() {
            let track = &mut tracks[at];
            track.add(tenant, cast, &all);
            track.bytes_per_s.0.push(rates[at]);
            track.share.0.push(rates[at] / whole.max(1.0));
            track.jain.0.push(jain);
            if !self.no_baselines {
                let alone = stage.play(engine, &voices(tenant, cast))?;
                track.alone_bytes_per_s.0.push(rate(&alone, cast, seconds));
            }
        }
        Ok(())
    }
}

fn scenes(workload: Workload) -> Vec<Scene> {
    let high = |name, threads, op_bytes, slo_us| Tenant {
        name,
        class: Class::High,
        threads,
        op_bytes,
        batch: 1,
        deadline_us: 0,
        slo_us,
        weight: 4.0,
    };
    let low = |name, threads, op_bytes, batch| Tenant {
        name,
        class: Class::Low,
        threads,
        op_bytes,
        batch,
        deadline_us: 0,
        slo_us: None,
        weight: 1.0,
    };
    let scene = |name: &str, tenants: &[Tenant]| Scene {
        name: name.to_string(),
        tenants: tenants.iter().filter(|tenant| tenant.threads > 0).copied().collect(),
    };
    match workload {
        Workload::Foreground => {
            let foreground =
                Tenant { deadline_us: 250, ..high("foreground", 2, 4 << 10, Some(300)) };
            vec![scene("foreground", &[foreground, low("migration", 6, 4 << 20, 2)])]
        }
        Workload::Checkpoint => {
            let foreground = high("foreground", 4, 64 << 10, Some(1_000));
            vec![scene("checkpoint", &[foreground, low("checkpoint", 12, 4 << 20, 1)])]
        }
        Workload::Tight => [0, 1, 4, 8]
            .map(|tight| {
                let all = [high("tight", tight, MIB, None), low("loose", 16 - tight, MIB, 1)];
                scene(&format!("tight {tight} of 16"), &all)
            })
            .to_vec(),
    }
}

/// A stream for each thread of the most that a tenant has in any scene.
fn parts(workload: Workload) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for tenant in scenes(workload).iter().flat_map(|scene| &scene.tenants) {
        let have = cast(&parts, tenant).len();
        parts.extend((have..tenant.threads).map(|_| tenant.part()));
    }
    parts
}

/// The streams of a tenant's threads, as far as there are any.
fn cast(parts: &[Part], tenant: &Tenant) -> Vec<usize> {
    let own = (0..parts.len()).filter(|at| parts[*at] == tenant.part());
    own.take(tenant.threads).collect()
}

impl Tenant {
    fn part(&self) -> Part {
        Part {
            class: self.class as u8,
            op_bytes: self.op_bytes,
            working_set_bytes: 2 * self.op_bytes * u64::from(self.batch),
            depth: self.batch,
            deadline_us: self.deadline_us,
        }
    }
}

impl Track {
    fn add(&mut self, tenant: &Tenant, cast: &[usize], all: &[Played]) {
        let own = || all.iter().filter(|it| cast.contains(&it.part));
        let ended = merged(own().map(|it| it.latencies.as_slice()));
        let late = merged(own().map(|it| it.late.as_slice()));
        if let Some(slo_us) = tenant.slo_us {
            let within = ended.count_between(0, slo_us * 1_000);
            let asked = (ended.len() + late.len()).max(1);
            self.attainment.0.push(float(within) / float(asked));
        }
        let mut both = ended;
        // Both have the same bounds, so that this cannot fail.
        let _ = both.add(late);
        self.p99_ns.0.push(float(both.value_at_quantile(0.99)));
        let threads: Vec<f64> = own().map(|it| float(it.bytes)).collect();
        let mean = threads.iter().sum::<f64>() / float(threads.len().max(1) as u64);
        let least = threads.iter().copied().fold(f64::INFINITY, f64::min);
        self.least.0.push(if mean > 0.0 { least / mean } else { 0.0 });
    }
}

/// Bytes a second of some streams.
fn rate(all: &[Played], cast: &[usize], seconds: f64) -> f64 {
    let bytes: u64 = all.iter().filter(|it| cast.contains(&it.part)).map(|it| it.bytes).sum();
    float(bytes) / seconds
}

/// Jain's index of fairness: 1 if all are equal, 1/n if one has all.
fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    if squares == 0.0 { 1.0 } else { sum * sum / (float(values.len() as u64) * squares) }
}

fn row(arm: &Arm, scene: &Scene, tenant: &Tenant, track: &Track) -> Result<Row, Failure> {
    let policy = policy_of(settings_for(&arm.settings)?.config());
    let throughput = track.bytes_per_s.median();
    let some = |figure: &Figure| (!figure.0.is_empty()).then(|| figure.median());
    let attainment = some(&track.attainment);
    // Weights count among those that have work: here medium never has.
    let floor = match policy.mode {
        Mode::Weighted => {
            let [high, _, low] = policy.weights.map(f64::from);
            let own = if tenant.class == Class::High { high } else { low };
            Some(own / (high + low))
        }
        _ => least_share(&policy, tenant.class).map(|(part, of)| float(part) / float(of)),
    };
    let share = track.share.median();
    let beside = scene.tenants.len() > 1 && tenant.class == Class::Low;
    let leakage = |alone: f64| (1.0 - throughput / alone.max(1.0)).max(0.0);
    Ok(Row {
        workload: scene.name.clone(),
        mode: arm.name.clone(),
        tenant: tenant.name,
        class: crate::cli::class_name(tenant.class),
        threads: tenant.threads,
        op_bytes: tenant.op_bytes,
        slo_us: tenant.slo_us,
        weight: tenant.weight,
        slo_attainment: attainment,
        p99_us: track.p99_ns.median() / 1e3,
        bytes_per_s: throughput,
        goodput: attainment.map(|part| part * throughput),
        jain_fairness: track.jain.median(),
        isolation_leakage: some(&track.alone_bytes_per_s).map(leakage),
        share,
        floor,
        // High gets less than its part whenever it asks for less.
        floor_held: floor.filter(|_| beside).map(|floor| share >= FLOOR_NEAR * floor),
        least_thread: track.least.median(),
        runs: track.p99_ns.0.len(),
        spread: track.bytes_per_s.spread(),
    })
}

fn head() -> String {
    format!(
        "{:<13} {:<9} {:<11} {:>7} {:>7} {:>10} {:>10} {:>10} {:>6} {:>8} {:>7} {:>7} {:>6} {:>5} \
         {:>7}\n",
        "workload",
        "mode",
        "tenant",
        "threads",
        "SLO",
        "p99[us]",
        "MB/s",
        "goodput",
        "Jain",
        "leakage",
        "share",
        "floor",
        "least",
        "runs",
        "spread",
    )
}

impl Row {
    fn line(&self) -> String {
        let percent = |value: Option<f64>| {
            value.map_or_else(|| "-".to_string(), |value| format!("{:.1}%", 100.0 * value))
        };
        let mb = |value: f64| format!("{:.1}", value / 1e6);
        format!(
            "{:<13} {:<9} {:<11} {:>7} {:>7} {:>10.1} {:>10} {:>10} {:>6.3} {:>8} {:>7} {:>7} \
             {:>6.2} {:>5} {:>6.1}%\n",
            self.workload,
            self.mode,
            self.tenant,
            self.threads,
            percent(self.slo_attainment),
            self.p99_us,
            mb(self.bytes_per_s),
            self.goodput.map_or_else(|| "-".to_string(), mb),
            self.jain_fairness,
            percent(self.isolation_leakage),
            percent(Some(self.share)),
            percent(self.floor),
            self.least_thread,
            self.runs,
            100.0 * self.spread,
        )
    }
}

fn draw(file: &Path, rows: &[Row]) -> Result<(), Failure> {
    let group = |row: &Row| {
        let name = format!("{} {} {}", row.workload, row.mode, row.tenant);
        (name, vec![row.p99_us])
    };
    let bars = Bars {
        title: "verbring bench qos: p99 by tenant, medians of runs",
        unit: "us",
        series: &["p99"],
        groups: rows.iter().map(group).collect(),
    };
    charts::draw_bars(file, &bars)
}

const MIB: u64 = 1 << 20;

/// A share is counted at the ends of a play, where part of an op is none.
const FLOOR_NEAR: f64 = 0.98;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jain_is_one_for_equals_and_a_part_for_one_that_has_all() {
        assert_eq!(jain(&[3.0, 3.0, 3.0]), 1.0);
        assert_eq!(jain(&[5.0, 0.0]), 0.5);
        assert_eq!((jain(&[]), jain(&[0.0, 0.0])), (1.0, 1.0));
        assert!((jain(&[1.0, 2.0, 3.0]) - 36.0 / 42.0).abs() < 1e-12);
    }

    #[test]
    fn every_thread_of_every_scene_has_a_stream_of_its_own() {
        for workload in [Workload::Foreground, Workload::Checkpoint, Workload::Tight] {
            let parts = parts(workload);
            for scene in scenes(workload) {
                let casts = scene.tenants.iter().map(|tenant| cast(&parts, tenant));
                let mut all: Vec<usize> = casts.flatten().collect();
                let threads: usize = scene.tenants.iter().map(|tenant| tenant.threads).sum();
                all.dedup();
                assert_eq!(all.len(), threads, "{scene:?}");
            }
        }
        let tight = scenes(Workload::Tight);
        assert_eq!(tight.len(), 4);
        assert_eq!(tight[0].tenants.len(), 1, "nobody is tight");
        assert!(tight.iter().all(|scene| {
            scene.tenants.iter().map(|tenant| tenant.threads).sum::<usize>() == 16
        }));
    }

    #[test]
    fn late_ops_miss_what_was_promised_and_count_in_p99() {
        let [scene] = &scenes(Workload::Foreground)[..] else { panic!() };
        let tenant = &scene.tenants[0];
        let one = Played {
            part: 0,
            ops: 4,
            bytes: 10,
            latencies: vec![(100_000, 3), (400_000, 1)],
            late: vec![(251_000, 4)],
        };
        let other = Played { part: 1, bytes: 30, ..Played::default() };
        let mut track = Track::default();
        track.add(tenant, &[0, 1], &[one, other]);
        assert_eq!((track.attainment.0[0], track.least.0[0]), (3.0 / 8.0, 0.5));
        assert!(track.p99_ns.0[0] >= 400_000.0);
    }
}
