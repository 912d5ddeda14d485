//! `verbring sim`: worlds of engines, peers and clients in virtual time, each from one seed.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use verbring::sim::{Broken, Count, Counts, ENGINES_MAX, Kind, Plant, run, run_crowd, run_planted};

use super::{Failure, complain, grouped, say, say_json};

/// Arguments of `verbring sim`.
#[derive(Debug, Args)]
pub(crate) struct Sim {
    /// How many worlds.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    worlds: u64,
    /// The first world's seed; the others' follow.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Engines in each world, all joined to all, of which some die and come back [default: two or
    /// three, as the seed draws].
    #[arg(long, value_name = "N", conflicts_with = "plant")]
    #[arg(value_parser = clap::value_parser!(u16).range(2..=i64::from(ENGINES_MAX)))]
    engines: Option<u16>,
    /// Threads that run worlds [default: one a processor].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Fails if any fault or passage occurred less often: a world without faults proves nothing.
    #[arg(long, value_name = "N", default_value_t = 0)]
    least: u64,
    /// Instead of worlds, shows one rail of two being killed under load and coming back: when it
    /// is out of use, when what it had is done, when it is back, and what is carried meanwhile.
    #[arg(long, conflicts_with_all = ["worlds", "seed", "engines", "threads", "least", "plant"])]
    failover: bool,
    /// Plants a fault in the core, which the worlds must then find; `list` lists them.
    #[arg(long, value_name = "NAME", value_parser = planting)]
    plant: Option<Planting>,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// What `--plant` asks for.
#[derive(Clone, Copy, Debug)]
enum Planting {
    List,
    One(Plant),
}

fn planting(name: &str) -> Result<Planting, String> {
    if name == "list" {
        return Ok(Planting::List);
    }
    let unknown = || {
        let near = |plant: &&Plant| strsim::levenshtein(plant.name(), name);
        let nearest = Plant::ALL.iter().min_by_key(near).map_or("", |plant| plant.name());
        format!("there is no such fault; the nearest is '{nearest}', and 'list' lists all")
    };
    let plant = Plant::named(name).ok_or_else(unknown)?;
    if !Plant::possible() {
        return Err(format!("this build has no planted faults in it; use {}", plant.how()));
    }
    Ok(Planting::One(plant))
}

impl Sim {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if self.failover {
            return super::failover::show(self.json);
        }
        if let Some(Planting::List) = self.plant {
            return if self.json { say_json(&plants_json()) } else { say(&plants_text()) };
        }
        let threads = self.threads.or_else(|| thread::available_parallelism().ok());
        let threads = threads.map_or(1, NonZeroUsize::get);
        let begun = Instant::now();
        let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
        let mut counts = Counts::default();
        let mut found: Option<Broken> = None;
        thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| self.work(&next, &failed))).collect();
            for worker in workers {
                if let Ok((own, broken)) = worker.join() {
                    counts.merge(&own);
                    found = found.take().or(broken);
                }
            }
        });
        if let Some(broken) = found {
            if self.json {
                say_json(&broken_json(&broken))?;
            }
            complain(&broken.to_string());
            complain(&format!("replay: {}", broken.replay()));
            return Err(Failure::Quiet);
        }
        let seconds = begun.elapsed().as_secs_f64();
        if self.json {
            say_json(&to_json(&counts, seconds))?;
        } else {
            say(&to_text(&counts, seconds))?;
        }
        let seldom: Vec<_> = Count::ALL
            .iter()
            .filter(|count| count.kind() != Kind::Sum && counts.of(**count) < self.least)
            .map(|count| format!("{} ({})", count.name(), counts.of(*count)))
            .collect();
        if seldom.is_empty() {
            return Ok(());
        }
        let (seldom, least) = (seldom.join(", "), self.least);
        Err(Failure::Failed(format!("less than {least} times: {seldom}; run more worlds")))
    }

    /// Runs worlds until there are no more, or one of any thread has failed.
    fn work(&self, next: &AtomicU64, failed: &AtomicBool) -> (Counts, Option<Broken>) {
        let mut counts = Counts::default();
        while !failed.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= self.worlds {
                break;
            }
            let seed = self.seed.wrapping_add(at);
            let result = match (self.plant, self.engines) {
                (Some(Planting::One(plant)), _) => run_planted(seed, plant),
                (_, Some(engines)) => run_crowd(seed, engines),
                _ => run(seed),
            };
            match result {
                Ok(report) => counts.merge(&report.counts),
                Err(broken) => {
                    failed.store(true, Ordering::Relaxed);
                    return (counts, Some(broken));
                }
            }
        }
        (counts, None)
    }
}

fn plants_text() -> String {
    let mut text = String::new();
    for plant in Plant::ALL {
        let (name, breaks) = (plant.name(), plant.breaks().name());
        text.push_str(&format!("{name:<20}{breaks:<11}{}\n", plant.about()));
    }
    if !Plant::possible() {
        text.push_str(
            "this build has none of them in it; use RUSTFLAGS=\"--cfg verbring_plant\"\n",
        );
    }
    text
}

fn plants_json() -> serde_json::Value {
    let each = Plant::ALL.iter().map(|plant| {
        json!({ "name": plant.name(), "about": plant.about(), "breaks": plant.breaks().name() })
    });
    json!({ "possible": Plant::possible(), "plants": each.collect::<Vec<_>>() })
}

fn broken_json(broken: &Broken) -> serde_json::Value {
    json!({
        "broken": broken.invariant.name(),
        "why": broken.why,
        "seed": broken.seed,
        "engines": broken.engines,
        "plant": broken.plant.map(Plant::name),
        "replay": broken.replay(),
    })
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Sum => "sums",
        Kind::Fault => "faults planted",
        Kind::Passage => "what became of ops and queue pairs",
    }
}

fn to_text(counts: &Counts, seconds: f64) -> String {
    let mut text = String::new();
    for kind in [Kind::Sum, Kind::Fault, Kind::Passage] {
        text.push_str(&format!("{}\n", kind_name(kind)));
        for count in Count::ALL.iter().filter(|count| count.kind() == kind) {
            text.push_str(&format!("  {:<26}{:>16}\n", count.name(), grouped(counts.of(*count))));
        }
    }
    text.push_str(&format!("no invariant was broken; it took {seconds:.1} s\n"));
    text
}

fn to_json(counts: &Counts, seconds: f64) -> serde_json::Value {
    let each = Count::ALL.iter().map(|count| (count.name().to_string(), counts.of(*count).into()));
    json!({ "seconds": seconds, "counts": each.collect::<serde_json::Map<_, _>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_are_counted_and_what_is_seldom_is_a_failure() {
        let sim = Sim {
            worlds: 20,
            seed: 1,
            engines: None,
            threads: None,
            least: 0,
            failover: false,
            plant: None,
            json: false,
        };
        let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
        let (counts, broken) = sim.work(&next, &failed);
        assert!(broken.is_none(), "{broken:?}");
        assert_eq!(counts.of(Count::Worlds), 20);
        assert!(counts.of(Count::Ops) > 1_000 && !failed.load(Ordering::Relaxed));
        let text = to_text(&counts, 1.0);
        assert!(text.contains("engine_died") && text.contains("degraded"), "{text}");
        assert_eq!(to_json(&counts, 1.0)["counts"]["worlds"], 20);
        let sim = Sim { least: u64::MAX, json: true, worlds: 1, ..sim };
        let Err(Failure::Failed(why)) = sim.run() else { panic!("it did not fail") };
        assert!(why.contains("engine_died"), "{why}");
    }

    #[test]
    fn faults_are_listed_and_a_build_without_them_says_how_to_get_one_with_them() {
        let text = plants_text();
        assert!(Plant::ALL.iter().all(|plant| text.contains(plant.name())), "{text}");
        assert_eq!(plants_json()["plants"][0]["breaks"], Plant::ALL[0].breaks().name());
        assert!(matches!(planting("list"), Ok(Planting::List)));
        let wrong = planting("cqe-twise").unwrap_err();
        assert!(wrong.contains("'cqe-twice'"), "{wrong}");
        match planting("cqe-twice") {
            Ok(Planting::One(Plant::CqeTwice)) => assert!(Plant::possible()),
            Err(why) => assert!(why.contains("--cfg verbring_plant") && !Plant::possible()),
            other => panic!("{other:?}"),
        }
    }
}
