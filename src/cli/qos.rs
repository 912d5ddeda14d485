//! `verbring qos --bound`: the longest that an op can wait, by mode and class.
//!
//! The arithmetic is the library's (`sched::bound`); here its terms are found out: windows and
//! slices from an engine that runs, or from the settings of one that is started for it; the rate
//! from an engine's counters, or from a short load. Bounds are of what stays on the engine's host
//! or, with `--peer`, of what goes to a peer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use verbring::abi::{Class, Counter, Opcode, Sqe};
use verbring::client::{RingError, Scope};
use verbring::host::Config;
use verbring::sched::bound::Device;
use verbring::sched::{Bounds, Mode, Policy};
use verbring::{Engine, Rights, RingOptions, Session};

use super::place::Place;
use super::settings::{Flags, Settings};
use super::stat::per_second;
use super::way::Way;
use super::{Failure, class_name, grouped, say, say_json};

/// Arguments of `verbring qos`.
#[derive(Debug, Args)]
#[command(after_help = FORMULA)]
pub(crate) struct Qos {
    /// Prints the longest that an op can wait, for each mode and class.
    #[arg(long, required = true)]
    bound: bool,
    /// Where a running engine listens; without it, one is started and measured.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Bytes a second, instead of measuring them.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Nanoseconds that a work request costs beside its bytes, instead of measuring them.
    #[arg(long, value_name = "NS")]
    wr_ns: Option<u64>,
    /// Measures a running engine by a load of our own, not by what it does for others meanwhile.
    #[arg(long, requires = "socket")]
    load: bool,
    /// Bounds what goes to this peer of a running engine, by the cards that lead to it, and not
    /// what stays on its host: the URL by which it is connected, as verbring peers shows it.
    #[arg(long, value_name = "URL", requires = "socket", conflicts_with = "load")]
    peer: Option<String>,
    /// Rails over which the device is reached [default: 1; with --peer those that are up].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    rails: Option<u32>,
    /// Bytes of its own class that are served before the op.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    ahead: u64,
    /// Seconds to measure for.
    #[arg(long, default_value = "1", value_parser = read_seconds)]
    seconds: Duration,
    /// A setting of the engine, as in `verbring serve`; of a running one, those that it does not
    /// tell: class_weights, min_share, floor_bytes and, without --peer, window_wrs. May be
    /// repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Prints one JSON object for each mode and class instead of text.
    #[arg(long)]
    json: bool,
}

/// What a bound is made of, and where that came from.
#[derive(Debug)]
struct Terms {
    device: Device,
    window_ops: u32,
    policy: Policy,
    /// Whom the device leads to, if not back to its own host, and by how many cards.
    peer: Option<(String, u32)>,
    rate_from: &'static str,
    wr_from: &'static str,
}

impl Qos {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        // The only question so far; clap insists on it.
        debug_assert!(self.bound, "clap insists on it");
        let terms = self.terms()?;
        if self.json {
            return terms.rows(self.ahead).into_iter().try_for_each(|row| say_json(&row));
        }
        say(&terms.text(self.ahead))
    }

    fn terms(&self) -> Result<Terms, Failure> {
        let settings = Settings::layered(None, &BTreeMap::new(), &Flags::from_pairs(&self.set)?)?;
        let config = settings.config();
        let Some(socket) = &self.socket else {
            let place = Place::new("qos")?;
            let engine = Engine::builder()
                .config(config.clone())
                .socket(place.socket())
                .spawn()
                .map_err(|error| Failure::of("cannot start an engine", &error))?;
            let session = attach(&place.socket())?;
            let terms = self.measured(&session, config, true);
            drop(session);
            engine
                .shutdown()
                .map_err(|error| Failure::of("the engine did not end cleanly", &error))?;
            return terms;
        };
        self.measured(&attach(socket)?, config, self.load)
    }

    fn measured(&self, session: &Session, config: &Config, load: bool) -> Result<Terms, Failure> {
        let probe = session.probe().map_err(|error| Failure::of("no answer", &error))?;
        let way = self.peer.as_deref().map(|peer| Way::ask(session, peer)).transpose()?;
        let (rate, rate_from) = match (self.rate, &way) {
            (Some(rate), _) => (rate, "as given"),
            (None, Some(way)) => (way.watched(session, self.seconds)?, "as its cards' rails moved"),
            (None, None) if load => {
                let rate = load_for(session, self.seconds, LARGE)?;
                (rate.saturating_mul(LARGE), "by a load of large ops")
            }
            (None, None) => (self.watched(session)?, "as the engine's counter grew"),
        };
        let (wr_ns, wr_from) = match self.wr_ns {
            Some(ns) => (ns, "as given"),
            None if load => {
                let per_s = load_for(session, self.seconds, SMALL)?.max(1);
                (NS_PER_S.div_ceil(per_s), "by a load of small ops")
            }
            None if way.is_some() => (0, "not counted: give --wr-ns"),
            None => (0, "not counted: give --wr-ns, or --load to have it measured"),
        };
        let (window, rails) = match &way {
            // What goes to a peer may have to wait until the windows of all its cards are empty.
            Some(way) => (way.window, way.rails),
            None => {
                let (ops, bytes) = (probe.window_ops, probe.window_bytes);
                (Bounds { ops, wrs: config.window_wrs, bytes }, 1)
            }
        };
        let device = Device {
            window_bytes: window.bytes,
            window_wrs: window.wrs,
            slice_bytes: probe.slice_bytes,
            rails: self.rails.unwrap_or(rails),
            bytes_per_s: rate.max(1),
            wr_ns,
        };
        let (policy, window_ops) = (policy_of(config), window.ops);
        let peer = self.peer.clone().zip(way.map(|way| way.cards));
        Ok(Terms { device, window_ops, policy, peer, rate_from, wr_from })
    }

    /// Bytes a second that an engine moves for whoever uses it.
    fn watched(&self, session: &Session) -> Result<u64, Failure> {
        let look = || {
            let stats = session.stats(Scope::Engine);
            stats.map_err(|error| Failure::of("cannot have the counters", &error))
        };
        let (before, start) = (look()?, Instant::now());
        thread::sleep(self.seconds);
        let (after, time) = (look()?, start.elapsed());
        match after[Counter::Bytes].saturating_sub(before[Counter::Bytes]) {
            0 => Err(Failure::Failed(
                "the engine moved nothing meanwhile: have it work, or give --load or --rate"
                    .to_string(),
            )),
            bytes => Ok(per_second(bytes, time)),
        }
    }
}

impl Terms {
    /// Every mode, the bounds of which the others may not have.
    fn policies(&self) -> impl Iterator<Item = Policy> {
        Mode::ALL.into_iter().map(|mode| Policy { mode, ..self.policy })
    }

    fn rows(&self, ahead: u64) -> Vec<serde_json::Value> {
        let device = &self.device;
        let row = |policy: &Policy, class: Class| {
            json!({
                "peer": self.peer.as_ref().map(|(peer, _)| peer),
                "cards": self.peer.as_ref().map(|(_, cards)| cards),
                "mode": policy.mode.name(),
                "class": class_name(class),
                "worst_wait_ns": device.worst_wait_ns(policy, class, ahead),
                "window_ns": device.window_ns(),
                "slices_ns": device.slices_ns(),
                "others_ns": device.before_ns(policy, class),
                "ahead_bytes": ahead,
                "rate_bytes_per_s": device.bytes_per_s,
                "rate_from": self.rate_from,
                "wr_ns": device.wr_ns,
                "wr_from": self.wr_from,
                "window_ops": self.window_ops,
                "window_wrs": device.window_wrs,
                "window_bytes": device.window_bytes,
                "slice_bytes": device.slice_bytes,
                "rails": device.rails,
            })
        };
        let rows = |policy: Policy| Class::ALL.map(|class| row(&policy, class));
        self.policies().flat_map(rows).collect()
    }

    fn text(&self, ahead: u64) -> String {
        let Device { window_bytes, window_wrs, slice_bytes, rails, bytes_per_s, wr_ns } =
            self.device;
        let mut out = match &self.peer {
            Some((peer, cards)) => format!("peer          {peer}, cards {cards}\n"),
            None => String::new(),
        };
        out += &format!(
            "window        {} bytes, {} ops, {} work requests\n\
             slice         {} bytes, rails {rails}\n\
             rate          {} bytes/s, {}\n\
             work request  {wr_ns} ns, {}\n\
             \n\
             wait <= window bytes / rate + work requests * their time     {:>12}\n\
             \x20     + one slice a rail                                     {:>12}\n\
             \x20     + what other classes may be given first, by mode\n\
             \x20     + {} bytes of its own class / (rate * share of its class)\n\n",
            grouped(window_bytes),
            grouped(self.window_ops.into()),
            grouped(window_wrs.into()),
            grouped(slice_bytes.into()),
            grouped(bytes_per_s),
            self.rate_from,
            self.wr_from,
            us(Some(self.device.window_ns())),
            us(Some(self.device.slices_ns())),
            grouped(ahead),
        );
        out += &format!("{:<9} {:<7} {:>16} {:>16}\n", "mode", "class", "other classes", "at most");
        for policy in self.policies() {
            for class in Class::ALL {
                out += &format!(
                    "{:<9} {:<7} {:>16} {:>16}\n",
                    policy.mode.name(),
                    class_name(class),
                    us(self.device.before_ns(&policy, class)),
                    us(self.device.worst_wait_ns(&policy, class, ahead)),
                );
            }
        }
        out + "\nNo bound: as long as whatever was taken before it takes.\n"
    }
}

/// How an engine with these settings shares its device.
pub(super) fn policy_of(config: &Config) -> Policy {
    Policy {
        mode: config.mode,
        weights: config.class_weights,
        floor_bytes: config.floor_bytes,
        min_share: [0, config.min_share, config.min_share],
        ..Policy::DEFAULT
    }
}

/// Ops a second of this size, submitted as fast as they end.
fn load_for(session: &Session, time: Duration, op_bytes: u64) -> Result<u64, Failure> {
    let having = |error| Failure::of("cannot have what a load takes", &error);
    let region = session.alloc(2 * op_bytes * PLACES).map_err(having)?;
    let name = format!("qos {} {op_bytes}", session.number());
    let secret = region.export(&name, Rights::ALL).map_err(having)?;
    let import = session.import(&name, None, &secret).map_err(having)?;
    let mut ring = session.raw_ring(RingOptions::new(256, 256)).map_err(having)?;
    let sqe = |number: u64| {
        let at = number % PLACES * op_bytes;
        Sqe {
            opcode: Opcode::Write as u8,
            class: Class::Low as u8,
            local_region: region.id(),
            remote_region: import.id(),
            local_offset: at,
            remote_offset: PLACES * op_bytes + at,
            bytes: u32::try_from(op_bytes).unwrap_or(u32::MAX),
            ..Sqe::default()
        }
    };
    let over = |error: RingError| Failure::of("the ring is over", &error);
    let (mut pushed, mut ended, mut wrong) = (0, 0, 0);
    let (mut counted_from, start) = (None, Instant::now());
    loop {
        while pushed - ended < DEPTH && ring.push(sqe(pushed)).is_some() {
            pushed += 1;
        }
        ring.submit_and_wait(1, Some(Duration::from_secs(10))).map_err(over)?;
        ended += u64::from(ring.pop_all(|cqe| wrong = wrong.min(cqe.res)).map_err(over)?);
        if wrong < 0 {
            return Err(Failure::Failed(format!("an op of the load answered {wrong}")));
        }
        // The first fifth is for pages and caches to settle.
        if counted_from.is_none() && start.elapsed() > time / 5 {
            counted_from = Some((Instant::now(), ended));
        }
        if let Some((from, before)) = counted_from
            && start.elapsed() >= time
            && ended > before
        {
            return Ok(per_second(ended - before, from.elapsed()));
        }
    }
}

fn attach(socket: &std::path::Path) -> Result<Session, Failure> {
    Session::connect(socket).map_err(|error| Failure::of("cannot attach", &error))
}

fn us(ns: Option<u64>) -> String {
    let us = |ns: u64| format!("{}.{} us", grouped(ns / 1_000), ns / 100 % 10);
    ns.map_or_else(|| "no bound".to_string(), us)
}

fn read_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3_600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("must be a number of seconds from 0.01 to 3600".to_string()),
    }
}

const FORMULA: &str = "\
The longest wait of an op, from intake until the device begins with it, is the sum of:
  what the window holds      its bytes / rate + its work requests * the time of one
  one slice on each rail     which cannot be taken back
  other classes              by mode. weighted: (weights of the others / own weight) slices, and
                             one slice of each; strict: one slice of each for high; for medium and
                             low the larger of the window and a slice / min_share, and one of each
  its own class, if ahead    bytes ahead / (rate * share of its class)
In modes fifo, tent and direct an op waits for all that was taken before it: there is no bound.";

const NS_PER_S: u64 = 1_000_000_000;
/// Ops in flight of a load.
const DEPTH: u64 = 128;
/// Places that a load goes round.
const PLACES: u64 = 16;
/// Bytes of ops that show the rate of bytes, and of ops that show the cost of an op.
const LARGE: u64 = 1 << 20;
const SMALL: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms {
            device: Device {
                window_bytes: 256_000,
                window_wrs: 64,
                slice_bytes: 128_000,
                rails: 1,
                bytes_per_s: 1_000_000_000,
                wr_ns: 100,
            },
            window_ops: 64,
            policy: policy_of(&Config::default()),
            peer: None,
            rate_from: "as given",
            wr_from: "as given",
        }
    }

    #[test]
    fn there_is_a_row_for_each_mode_and_class() {
        let rows = terms().rows(0);
        assert_eq!(rows.len(), Mode::ALL.len() * Class::ALL.len());
        for row in &rows {
            let bounded = ["weighted", "strict"].contains(&row["mode"].as_str().unwrap());
            assert_eq!(row["worst_wait_ns"].is_u64(), bounded, "{row}");
            assert_eq!((&row["window_ns"], &row["slices_ns"]), (&262_400.into(), &128_100.into()));
        }
    }

    #[test]
    fn text_tells_every_term() {
        let text = terms().text(7);
        assert!(text.starts_with("window "), "{text}");
        for part in ["256,000 bytes, 64 ops", "262.4 us", "128.1 us", "7 bytes", "no bound"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let abroad = Terms { peer: Some(("verbring://there:7471".into(), 2)), ..terms() };
        assert!(
            abroad.text(0).starts_with("peer          verbring://there:7471, cards 2\nwindow ")
        );
        let row = &abroad.rows(0)[0];
        assert_eq!((&row["peer"], &row["cards"]), (&"verbring://there:7471".into(), &2.into()));
        assert_eq!((us(None), us(Some(1_234_567))), ("no bound".into(), "1,234.5 us".into()));
    }

    #[test]
    fn a_policy_is_what_the_settings_say() {
        let mut config = Config::default();
        assert_eq!(policy_of(&config).weights, [4, 2, 1]);
        (config.mode, config.min_share, config.floor_bytes) = (Mode::Strict, 20, 64);
        let policy = policy_of(&config);
        assert_eq!(
            (policy.mode, policy.min_share, policy.floor_bytes),
            (Mode::Strict, [0, 20, 20], 64)
        );
    }
}
