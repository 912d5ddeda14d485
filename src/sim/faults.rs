//! Faults, planted one at a time where the world's options say.

use super::cable::Cable;
use super::counts::{Count, Counts};
use super::options::Rates;
use crate::abi::errno;
use crate::fabric::qp::provider::{Wc, WcKind, WcStatus};
use crate::fabric::qp::sim::{Net, PostPlan, Say, WorkPlan};
use crate::random::Random;

/// Draws faults of queue pairs for one step.
pub(super) fn plant(
    net: &Net,
    cables: &mut [Cable],
    rates: &Rates,
    random: &mut Random,
    counts: &mut Counts,
) {
    let live: Vec<u32> = cables
        .iter()
        .filter(|cable| !cable.lost)
        .flat_map(|cable| (0..cable.ends.len()).filter_map(|end| cable.number(end)))
        .collect();
    if live.is_empty() {
        return;
    }
    let number = live[random.index(live.len())];
    let mut now = |rate: u64| random.below(1_000) < rate;
    let struck = [now(rates.posts), now(rates.work), now(rates.pairs), now(rates.delays)];
    let (repeat, lose) = (now(rates.completions), now(rates.losses));
    let held = now(rates.holds);
    if struck[0] {
        let errno = random.pick(&[errno::ENOMEM, errno::EINVAL]);
        let taken = random.below32(6);
        let (say, count) = match random.below(4) {
            0 => (Say::Missing, Count::PostCutMissing),
            1 => (Say::Wrong(1 << 20), Count::PostCutWrong),
            _ => (Say::Right, Count::PostCut),
        };
        if random.below(5) == 0 {
            net.plan_receives(
                number,
                PostPlan { taken: random.below32(3), say: Say::Right, errno },
            );
            counts.add(Count::ReceivesCut);
        } else {
            net.plan_post(number, PostPlan { taken, say, errno });
            counts.add(count);
            counts.many(Count::PostNoMemory, u64::from(errno == errno::ENOMEM));
        }
    }
    if struck[1] {
        let path = [WcStatus::RetryExceeded, WcStatus::Flushed, WcStatus::Other(21)];
        let after = random.below32(6);
        let (status, effect, count) = match random.below(4) {
            0 => (WcStatus::RemoteAccess, false, Count::WorkRefused),
            1 => (random.pick(&path), true, Count::AnswerLost),
            _ => (random.pick(&path), false, Count::WorkLost),
        };
        net.plan_work(number, WorkPlan { after, status, effect });
        counts.add(count);
    }
    if struck[2] {
        net.break_pair(number);
        counts.add(Count::PairBroken);
    }
    if struck[3] {
        // Now and then for longer than controls and cards need for all they do.
        let most = random.pick(&[8_000, 8_000, 8_000, 60_000]);
        net.delay(number, 100 + random.below(most));
        counts.add(Count::Delayed);
    }
    if held {
        // Mostly for no longer than the other end needs to fall quiet.
        let most = random.pick(&[10_000, 50_000, 50_000, 500_000]);
        net.hold_up(number, random.below(most));
        counts.add(Count::WorkHeldUp);
    }
    if lose {
        miscount(number, net, cables, random, counts);
    }
    if repeat {
        repeat_one(number, net, random, counts);
    }
}

/// A completion of long ago comes once more.
fn repeat_one(number: u32, net: &Net, random: &mut Random, counts: &mut Counts) {
    let posted = net.posted(number);
    if posted.len() > 64 {
        let wr_id = posted[random.index(posted.len() - 40)].wr_id;
        let status = random.pick(&[WcStatus::Success, WcStatus::Flushed]);
        let kind = WcKind::Work;
        let (bytes, message, vendor_error) = (0, [0; 2], 0);
        net.inject(number, Wc { wr_id, number, status, kind, bytes, message, vendor_error });
        counts.add(Count::Repeated);
    }
}

/// Completions that do not come, or come twice.
fn miscount(
    number: u32,
    net: &Net,
    cables: &mut [Cable],
    random: &mut Random,
    counts: &mut Counts,
) {
    if random.below(2) == 0 {
        net.lose_successes(number, 1 + random.below32(3));
        let at_ns = net.now_ns() + 1_000 + random.below(20_000);
        cables.iter_mut().for_each(|cable| cable.break_later(number, at_ns));
        counts.add(Count::CompletionsLost);
    } else {
        net.repeat_completions(number, 1 + random.below32(3));
        counts.add(Count::CompletionsTwice);
    }
}
