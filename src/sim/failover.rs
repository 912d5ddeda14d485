//! A rail that is killed under load, and comes back: what that costs, in virtual time.
//!
//! Two engines are joined by two rails, each on a card of its own with a wire of a modelled rate. A
//! client keeps as many WRITEs under way as fit. After a while one card's port goes down: what is
//! on its way is lost, and its queue pair learns of it by a time-out. Later the port is up again.
//! Every byte is looked at.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::joined::{Joined, RAILS};
use super::options::Options;
use crate::abi::{Cqe, Opcode, Sqe};
use crate::fabric::qp::sim::SimConfig;
use crate::fabric::qp::{self, RailState, Recovery};
use crate::ids::RingId;
use crate::random::Random;
use crate::sched::{Contract, Policy};

const MS: u64 = 1_000_000;
const OP_BYTES: u32 = 64 << 10;
/// Ops under way.
const UNDER_WAY: u64 = 64;
/// What a KiB takes on each wire: about 1 GB/s.
const KIB_NS: u64 = 1_000;
const CUT_NS: u64 = 100 * MS;
const RESTORED_NS: u64 = 300 * MS;
const END_NS: u64 = 500 * MS;
const RECOVERY: Recovery =
    Recovery { backoff_first_ns: 5 * MS, backoff_max_ns: 40 * MS, ..Recovery::DEFAULT };
/// Time to an acknowledgement 2^8 * 4.096 us, three times: 3.1 ms until silence is an error.
const TIMEOUT: u8 = 8;
const SILENCE_NS: u64 = 3 * (4_096 << TIMEOUT);
/// The longest wait before a probe, one probe that was lost and what follows it, and the probe.
const BACK_WITHIN_NS: u64 = RECOVERY.backoff_max_ns + 2 * SILENCE_NS + 2 * MS;
/// The rail that is killed.
const KILLED: usize = 1;

/// What the rails carried in a part of the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What it is called.
    pub name: &'static str,
    /// When it began, ns.
    pub from_ns: u64,
    /// When it ended, ns.
    pub to_ns: u64,
    /// Bytes by rail.
    pub bytes: [u64; 2],
}

impl Phase {
    /// MB/s of one rail.
    #[must_use]
    pub fn rate(&self, rail: usize) -> u64 {
        self.bytes[rail] * 1_000 / self.to_ns.saturating_sub(self.from_ns).max(1)
    }

    /// MB/s of both.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.rate(0) + self.rate(1)
    }
}

/// What happened, and what did not hold of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// Before the port went down; from there until all that was under way had ended; on one rail;
    /// until the other one was back; after.
    pub phases: Vec<Phase>,
    /// The port goes down, ns.
    pub cut_ns: u64,
    /// The rail is out of use, in the turn that saw its first failed completion, ns.
    pub out_ns: u64,
    /// All ops have ended that were under way then, ns.
    pub safe_ns: u64,
    /// The port is up again, ns.
    pub restored_ns: u64,
    /// The rail takes work again, ns.
    pub back_ns: u64,
    /// How long that may take at most with these settings, ns.
    pub back_within_ns: u64,
    /// Ops under way when the rail went out of use, on both rails.
    pub under_way: u64,
    /// Requests that it handed back.
    pub returned: u64,
    /// Probes, and those of them that failed.
    pub probes: [u64; 2],
    /// Ops that succeeded.
    pub done: u64,
    /// What should hold and does not.
    pub broken: Vec<String>,
}

/// Kills a rail under load and lets it come back, with everything looked at.
///
/// # Panics
/// If the simulated engines cannot even be joined.
#[must_use]
pub fn failover() -> Failover {
    let mut stage = Stage::new();
    stage.run();
    stage.judge()
}

#[derive(Debug)]
struct Stage {
    two: Joined,
    pushed: u64,
    out: BTreeSet<u64>,
    /// Under way when the rail went out of use, and not ended yet.
    doubtful: BTreeSet<u64>,
    /// Successes: when, by which rail.
    ends: Vec<(u64, usize)>,
    errors: Vec<String>,
    report: Failover,
    /// Bytes' work requests on the killed rail when it went out of use.
    posted: Option<usize>,
}

fn options() -> Options {
    let mut options = Options::draw(&mut Random::new(1));
    let card = SimConfig { latency_ns: 2_000, kib_ns: KIB_NS, ..SimConfig::DEFAULT };
    options.engines = 2;
    options.cards = vec![card; 2];
    options.strands = vec![0, 1];
    options.timeout = TIMEOUT;
    (options.sq_entries, options.cq_entries) = (128, 128);
    (options.contract, options.owners) = (Contract::of_ops(options.limits.records), 1);
    options.limits = crate::engine::Limits {
        window_wrs: 64,
        window_bytes: 1 << 20,
        slice_bytes: OP_BYTES,
        intake_budget: 64,
        cut_off_ns: 1_000 * MS,
        policy: Policy::DEFAULT,
        ..options.limits
    };
    options.rails = qp::Config {
        depth: 32,
        receives: 8,
        inline_bytes: 64,
        signal_every: 4,
        message_bytes_max: card.limits.message_bytes_max,
        attempts_max: 3,
        stuck_ns: 2 * MS,
        grace_ns: MS / 5,
        drain_ns: 5 * MS,
        lost_ns: 20 * MS,
        recovery: RECOVERY,
        ..options.rails
    };
    options
}

impl Stage {
    fn new() -> Self {
        Self {
            two: Joined::new(&options(), UNDER_WAY * u64::from(OP_BYTES)),
            pushed: 0,
            out: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            ends: Vec::new(),
            errors: Vec::new(),
            report: Failover {
                phases: Vec::new(),
                cut_ns: 0,
                out_ns: 0,
                safe_ns: 0,
                restored_ns: 0,
                back_ns: 0,
                back_within_ns: BACK_WITHIN_NS,
                under_way: 0,
                returned: 0,
                probes: [0; 2],
                done: 0,
                broken: Vec::new(),
            },
            posted: None,
        }
    }

    fn run(&mut self) {
        while !self.two.cables[0].ready() {
            self.two.step();
        }
        for _ in 0..100 {
            self.two.step();
        }
        let begun_ns = self.two.net.now_ns();
        while self.two.net.now_ns() < begun_ns + END_NS {
            let now_ns = self.two.net.now_ns() - begun_ns;
            let report = &mut self.report;
            if report.cut_ns == 0 && now_ns >= CUT_NS {
                report.cut_ns = now_ns;
                self.two.nodes[1].controls[KILLED].set_port(false);
            }
            if report.restored_ns == 0 && now_ns >= RESTORED_NS {
                report.restored_ns = now_ns;
                self.two.nodes[1].controls[KILLED].set_port(true);
            }
            self.push();
            self.two.step();
            let now_ns = self.two.net.now_ns() - begun_ns;
            self.look(now_ns);
            self.hear(now_ns);
        }
        let counts = self.two.nodes[0].rails_mut().counts();
        self.report.returned = counts.returned;
        self.report.probes = [counts.probes, counts.probes_failed];
    }

    /// Keeps as many ops under way as there are buffers.
    fn push(&mut self) {
        let busy = self.out.iter().fold(0_u64, |busy, number| busy | 1 << (number % UNDER_WAY));
        for buffer in 0..UNDER_WAY {
            if busy >> buffer & 1 != 0 || self.two.end.room() == 0 {
                continue;
            }
            let number = self.pushed / UNDER_WAY * UNDER_WAY + UNDER_WAY + buffer;
            self.pushed = self.pushed.max(number);
            let at = buffer * u64::from(OP_BYTES);
            self.two.near.word64(at).store(number, Ordering::Release);
            let sqe = Sqe {
                opcode: Opcode::Write as u8,
                user_data: number,
                local_region: self.two.own,
                remote_region: self.two.import,
                local_offset: at,
                remote_offset: at,
                bytes: OP_BYTES,
                ..Sqe::default()
            };
            self.two.end.push(sqe.to_words());
            self.out.insert(number);
        }
        if self.two.end.publish() {
            self.two.nodes[0].engine.wake(RingId(0));
        }
    }

    /// Looks at the rail that is killed.
    fn look(&mut self, now_ns: u64) {
        let rail = RAILS[KILLED];
        let works = self.two.nodes[0].rails_mut().state(rail) == RailState::Ready;
        let number = self.two.cables[0].number(2 * KILLED).expect("a queue pair");
        let carried = || self.two.net.posted(number).iter().filter(|wr| wr.bytes > 0).count();
        let report = &mut self.report;
        if report.out_ns == 0 && !works {
            report.out_ns = now_ns;
            report.under_way = self.out.len() as u64;
            self.doubtful.clone_from(&self.out);
            self.posted = Some(carried());
        }
        if report.out_ns > 0 && report.back_ns == 0 && works {
            report.back_ns = now_ns;
            // It took what this very turn posted.
            let more = carried() - self.posted.unwrap_or(0);
            if more > 32 {
                self.errors.push(format!("{more} WRITEs went by a rail that was out of use"));
            }
        }
    }

    fn hear(&mut self, now_ns: u64) {
        while let Some(words) = self.two.end.pop().expect("an engine's tail that can be") {
            let cqe = Cqe::from_words(words);
            let number = cqe.user_data;
            if !self.out.remove(&number) {
                self.errors.push(format!("a CQE for nothing, or a second one: {cqe:?}"));
            }
            if u32::try_from(cqe.res) != Ok(OP_BYTES) {
                self.errors.push(format!("an op failed: {cqe:?}"));
                continue;
            }
            let at = number % UNDER_WAY * u64::from(OP_BYTES);
            if self.two.far.word64(at).load(Ordering::Acquire) != number {
                self.errors.push(format!("a success without its bytes: {cqe:?}"));
            }
            let rail = usize::from(cqe.detail & 0xff) - usize::from(RAILS[0]);
            self.ends.push((now_ns, rail));
            if self.doubtful.remove(&number) && self.doubtful.is_empty() {
                self.report.safe_ns = now_ns;
            }
        }
        self.two.end.release();
    }

    fn judge(self) -> Failover {
        let Self { mut report, ends, errors, .. } = self;
        let Failover { cut_ns, out_ns, safe_ns, restored_ns, back_ns, .. } = report;
        let times = [0, cut_ns, safe_ns, restored_ns, back_ns, END_NS];
        let names = ["before", "failing", "on one rail", "coming back", "after"];
        for (name, from) in names.into_iter().zip(0..) {
            let (from_ns, to_ns) = (times[from], times[from + 1]);
            let mut bytes = [0; 2];
            for (at_ns, rail) in &ends {
                if (from_ns..to_ns).contains(at_ns) {
                    bytes[*rail] += u64::from(OP_BYTES);
                }
            }
            report.phases.push(Phase { name, from_ns, to_ns, bytes });
        }
        report.done = ends.len() as u64;
        report.broken = errors;
        let [before, _, alone, _, after] = &report.phases[..] else { unreachable!("five names") };
        let shares = |phase: &Phase| {
            let [a, b] = [phase.rate(0), phase.rate(1)];
            a.abs_diff(b) * 10 <= a.max(b)
        };
        let one_ns = 1_024 * 1_000 / KIB_NS;
        let holds = [
            (shares(before), "before, the rails share within 10 %"),
            (before.total() * 10 >= 2 * one_ns * 9, "before, both wires are full"),
            (out_ns > cut_ns && out_ns - cut_ns <= SILENCE_NS + MS, "it is out of use in time"),
            (safe_ns > 0 && safe_ns - out_ns <= 10 * MS, "what was under way ends in time"),
            (alone.bytes[KILLED] == 0, "nothing goes by a rail that is out of use"),
            (alone.rate(1 - KILLED) * 10 >= one_ns * 9, "on one rail, its wire is full"),
            (back_ns > restored_ns, "it comes back, and not before the port is up"),
            (back_ns < restored_ns + BACK_WITHIN_NS, "it is back in time"),
            (shares(after), "after, the rails share within 10 %"),
            (after.total() * 100 >= before.total() * 95, "after, it is as fast as before"),
            (report.returned > 0, "something was handed back"),
        ];
        for (_, what) in holds.into_iter().filter(|(holds, _)| !holds) {
            report.broken.push(format!("does not hold: {what}"));
        }
        report
    }
}
