//! A bench between two hosts: a ring through the engine of each.
//!
//! One side offers memory and does nothing more but wait for the other to end; what is measured is
//! measured by the other side, in slices as everywhere in the bench, with one contestant. Since it
//! takes turns with none, its slices may be as long as the way to the other host needs.
//! **Tests**: `tests/cli.rs` for what is refused, `tests/verbs/hosts.rs` between two engines.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use verbring::Rights;
use verbring::abi::FABRIC_VERBS;

use super::conductor::{Measured, Terms, Track, WARM_PART, rate};
use super::cores::Cores;
use super::quiet::Watch;
use super::rows::{Row, head, rows};
use super::shape::Shape;
use super::slice::{self, Rig, Span, histogram, now_ns};
use super::through_engine::EngineRig;
use super::who::{Carrier, Who};
use crate::cli::afar::{self, Body, FarArgs, Mailbox, Offer, attach, stop_signal};
use crate::cli::{Failure, complain, say, say_json};

/// Sizes of ops, unless others are asked for.
pub(super) const SIZES: [u64; 4] = [64, 4 << 10, 64 << 10, 1 << 20];
/// Ops in flight: one for latency, and enough for throughput.
pub(super) const DEPTHS: [u64; 2] = [1, 64];

/// Offers memory until the other bench is done, or until a signal.
pub(super) fn offer(far: &FarArgs, bytes: Option<u64>, json: bool) -> Result<(), Failure> {
    far.for_offer()?;
    let bytes = bytes.unwrap_or(OFFERED_BYTES);
    if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) || bytes > OFFERED_MAX {
        let limit = format!("a multiple of {PAGE_BYTES}, up to {OFFERED_MAX}");
        let text = format!("--working-set is {bytes}, but must be {limit} with --offer");
        return Err(Failure::Usage(text));
    }
    let socket = far.socket()?;
    let stop = stop_signal()?;
    let session = attach(&socket)?;
    let mut offer = Offer::make(&session, EXPORT_NAME, bytes, Rights::ALL)?;
    if json {
        say_json(&offer.to_json())?;
    } else {
        say(&offer.to_text("bench"))?;
    }
    let mut done = false;
    while !done && stop.try_recv().is_err() {
        match offer.next(LOOK_EVERY)? {
            Some(order) if order.body == Body::Done => done = true,
            Some(order) => offer.answer(&order, Body::Refused)?,
            None => {}
        }
    }
    offer.withdraw()?;
    match (json, done) {
        (true, _) => say_json(&json!({ "ended": if done { "done" } else { "signal" } })),
        (false, true) => say("the other bench is done\n"),
        (false, false) => say("ended by a signal\n"),
    }
}

/// How long is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time {
    pub(super) slice: Duration,
    pub(super) whole: Duration,
}

/// Measures every shape against what is offered at `url`, and tells each as it is there.
pub(super) fn measure(
    far: &FarArgs,
    url: &str,
    shapes: &[Shape],
    time: Time,
    json: bool,
) -> Result<Vec<Row>, Failure> {
    let (socket, secret) = (far.socket()?, far.secret()?);
    // A session each, so that nothing of one shape is left beside the next.
    let reach = |socket: &Path| {
        let session = attach(socket)?;
        let offered = afar::import(&session, url, EXPORT_NAME, far.uid(), &secret)?;
        let (import, mailbox) = Mailbox::open(&session, &offered, FABRIC_VERBS)?;
        Ok::<_, Failure>((session, import, mailbox))
    };
    let terms = terms(time, Who::Verbring);
    let mut all = Vec::new();
    if !json {
        say(&head())?;
    }
    for shape in shapes {
        let (session, import, _) = reach(&socket)?;
        let needs = shape.memory_bytes();
        if needs > import.bytes() {
            let (op, bytes, has) = (shape.op.name(), shape.op_bytes(), import.bytes());
            let text = format!(
                "{op} of {bytes} bytes goes over {needs} bytes there, but {has} are offered: \
                 offer more by bench --offer --working-set {}",
                needs.next_multiple_of(PAGE_BYTES)
            );
            return Err(Failure::Failed(text));
        }
        let mut rig = EngineRig::to_import(&session, import, shape)?;
        let measured = play(&mut rig, shape, &terms, Some(session.engine_pid()))?;
        all.extend(tell_all(&measured, shape, &terms, json, |row| {
            row["peer"] = json!(url);
            row["rails"] = json!(rig.rails());
        })?);
    }
    let (_session, _, mut mailbox) = reach(&socket)?;
    mailbox.say(Body::Done)?;
    Ok(all)
}

/// Tells the rows of one point, to programs with what `more` has to add.
pub(super) fn tell_all(
    measured: &Measured,
    shape: &Shape,
    terms: &Terms,
    json: bool,
    more: impl Fn(&mut serde_json::Value),
) -> Result<Vec<Row>, Failure> {
    let rows = rows(measured, shape, terms);
    for row in &rows {
        if !json {
            say(&row.line())?;
            continue;
        }
        let mut value =
            serde_json::to_value(row).map_err(|error| Failure::of("cannot write a row", &error))?;
        more(&mut value);
        say_json(&value)?;
    }
    for complaint in measured.disturbance.complaints() {
        complain(&format!("the machine is not quiet: {complaint}"));
    }
    Ok(rows)
}

/// Runs all slices of one shape. Whatever an `engine` takes of the machine is no disturbance.
pub(super) fn play(
    rig: &mut impl Rig,
    shape: &Shape,
    terms: &Terms,
    engine: Option<u32>,
) -> Result<Measured, Failure> {
    let mut track = Track {
        who: terms.contestants[0],
        ops: 0,
        rates: Vec::new(),
        medians_ns: Vec::new(),
        latencies: histogram(),
        skipped: None,
    };
    // An engine in another container may not be seen from here.
    let seen = |pid: &u32| Path::new(&format!("/proc/{pid}/stat")).exists();
    let watch = Watch::start(engine.into_iter().filter(seen).collect(), false)?;
    let slice = long_enough(shape.depth, terms.slice, |slice| {
        let counted = slice::run(rig, shape, span(slice), false, &mut histogram())?;
        Ok(counted.ops)
    })?;
    let rounds = terms.time.div_duration_f64(slice);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bounded count")]
    let rounds = (rounds as u32).max(SLICES_MIN);
    for _ in 0..rounds {
        let counted = slice::run(rig, shape, span(slice), false, &mut track.latencies)?;
        track.ops += counted.ops;
        track.rates.push(rate(&counted));
    }
    let disturbance = watch.end(rounds.into())?;
    Ok(Measured { tracks: vec![track], disturbance })
}

/// How long a slice must be so that many ops begin and end in it, and a rate means something;
/// `ops_in` tries one.
fn long_enough(
    depth: u32,
    least: Duration,
    mut ops_in: impl FnMut(Duration) -> Result<u64, Failure>,
) -> Result<Duration, Failure> {
    let ops_min = u64::from(depth.max(8)) * 4;
    let mut slice = least;
    while ops_in(slice)? < ops_min && slice < SLICE_MAX {
        slice = (slice * 2).min(SLICE_MAX);
    }
    Ok(slice)
}

fn span(slice: Duration) -> Span {
    let whole_ns = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    let warm_ns = whole_ns / WARM_PART;
    Span { start_ns: now_ns(), warm_ns, count_ns: whole_ns - warm_ns }
}

/// What rows are made with: nothing here starts an engine or a process.
pub(super) fn terms(time: Time, who: Who) -> Terms {
    Terms {
        cores: Cores { engine: 0, clients: Vec::new() },
        clients: 1,
        settings: Vec::new(),
        carrier: Carrier::Verbs,
        far_settings: None,
        verbs: None,
        slice: time.slice,
        time: time.whole,
        contestants: vec![who],
        idle_rings: 0,
        sleep: false,
    }
}

/// Under this name memory is offered.
const EXPORT_NAME: &str = "verbring bench";
/// Bytes that are offered, unless it is said how many.
const OFFERED_BYTES: u64 = 16 << 20;
/// More memory than this says nothing that less would not say.
const OFFERED_MAX: u64 = 4 << 30;
const PAGE_BYTES: u64 = 4096;
/// A slice gets no longer by itself.
const SLICE_MAX: Duration = Duration::from_secs(1);
/// Fewer slices say too little.
const SLICES_MIN: u32 = 10;
/// Signals are noticed within this time; the other bench's end at once.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_grows_until_ops_fit_into_it_and_no_longer_than_a_second() {
        // One op takes so many milliseconds.
        let grown = |depth, least, op_ms| {
            let ops_in = |slice: Duration| Ok(u64::try_from(slice.as_millis()).unwrap() / op_ms);
            let least = Duration::from_millis(least);
            long_enough(depth, least, ops_in).unwrap().as_millis()
        };
        assert_eq!(grown(1, 10, 1), 40, "32 ops");
        assert_eq!(grown(64, 10, 1), 320, "256 ops");
        assert_eq!(grown(1, 50, 1), 50, "long enough as it is");
        assert_eq!(grown(1, 10, 500), 1_000);
        assert_eq!(grown(1, 3_000, 500), 3_000, "what was asked for stays");
        let fails = |_| Err(Failure::Failed("gone".to_string()));
        assert!(long_enough(1, Duration::from_millis(1), fails).is_err());
    }
}
