//! What an op that is not over waits for, told in sentences.

use std::fmt::{self, Formatter};

use super::report::Why;
use super::story::{Short, Times, name, wait_words};
use crate::abi::{self, Class};

/// Where an op is, in words, by an `abi::STATE_*` number.
#[must_use]
pub fn state_words(state: u16) -> &'static str {
    match state {
        abi::STATE_QUEUED => "queued",
        abi::STATE_POSTED => "posted",
        abi::STATE_ARMED => "armed",
        abi::STATE_FLUSHING => "flushing",
        abi::STATE_UNTAKEN => "untaken",
        abi::STATE_WAITING => "waiting",
        abi::STATE_FOLDED => "folded",
        _ => "in an unknown state",
    }
}

/// How a rail is, in words, by an `abi::RAIL_*` number.
#[must_use]
pub fn rail_words(state: u8) -> &'static str {
    match state {
        abi::RAIL_OPEN => "takes requests",
        abi::RAIL_FULL => "is full",
        abi::RAIL_MEMORY => "has a card that is short of memory",
        abi::RAIL_CONNECTING => "is being connected",
        abi::RAIL_DEGRADED => "is degraded and being drained",
        abi::RAIL_REBUILDING => "is being rebuilt",
        abi::RAIL_PAUSED => "is paused, since its card erred too often",
        abi::RAIL_DEAD => "is dead, its peer being gone",
        _ => "is in an unknown state",
    }
}

pub(super) fn tell(why: &Why, f: &mut Formatter<'_>) -> fmt::Result {
    if why.state == abi::STATE_UNTAKEN {
        return untaken(why, f);
    }
    write!(f, "record {:#x}: ", why.record)?;
    what(why, f)?;
    write!(f, ", is not over. ")?;
    stages(why, f)?;
    write!(f, " It waits for {}", words(why))?;
    credit(why, f)?;
    write!(f, ".")?;
    if why.defers > 0 {
        write!(f, " It found no credit {}.", Times(why.defers))?;
    }
    rails(why, f)?;
    place(why, f)
}

/// An SQE that the engine has not taken.
fn untaken(why: &Why, f: &mut Formatter<'_>) -> fmt::Result {
    write!(f, "SQE {} of ring {}, session {}", why.number, why.ring, why.session)?;
    if why.class.is_some() {
        write!(f, ", ")?;
        what(why, f)?;
    }
    write!(f, ", is not taken yet. It waits for {}", words(why))?;
    credit(why, f)?;
    write!(f, ".")?;
    match why.ahead {
        0 => Ok(()),
        1 => write!(f, " 1 SQE of its ring is before it."),
        ahead => write!(f, " {ahead} SQEs of its ring are before it."),
    }
}

/// What it is.
fn what(why: &Why, f: &mut Formatter<'_>) -> fmt::Result {
    use abi::Opcode::{Arm, Cancel, Flush, Join, Nop};
    match why.opcode {
        Some(Arm) => write!(f, "ARM of {} notifications", why.bytes)?,
        Some(op @ (Flush | Cancel | Nop | Join)) => write!(f, "{}", name(op))?,
        Some(op) => write!(f, "{} of {} bytes", name(op), why.bytes)?,
        None => write!(f, "an op of an unknown kind")?,
    }
    if let Some(class) = why.class {
        write!(f, ", class {}", class_name(class))?;
    }
    write!(f, ", user_data {:#x}", why.user_data)?;
    if why.state != abi::STATE_UNTAKEN {
        write!(f, ", SQE {} of ring {}, session {}", why.number, why.ring, why.session)?;
    }
    Ok(())
}

/// Its times so far.
fn stages(why: &Why, f: &mut Formatter<'_>) -> fmt::Result {
    let age = Short(why.age);
    match (why.state, why.queued, why.service()) {
        (abi::STATE_QUEUED | abi::STATE_POSTED, Some(queued), Some(service)) => {
            write!(f, "It was queued for {}, and is posted for {}", Short(queued), Short(service))?;
            write!(f, ": {} of {} bytes are done", why.bytes_done, why.bytes)?;
            write!(f, ", {} of {} requests are under way.", why.in_fabric, why.posts)
        }
        (abi::STATE_POSTED, ..) => write!(f, "It is posted; it was taken {age} ago."),
        (abi::STATE_QUEUED, ..) => write!(f, "It is queued for {age}; nothing of it is posted."),
        (abi::STATE_ARMED, ..) => write!(f, "It is armed for {age}."),
        (abi::STATE_FLUSHING, ..) => write!(f, "It was taken {age} ago."),
        (abi::STATE_WAITING, ..) => write!(f, "It was taken {age} ago, and is not queued yet."),
        (abi::STATE_FOLDED, ..) => write!(f, "It was taken {age} ago, and ends with another op."),
        _ => write!(f, "It is {}; it was taken {age} ago.", state_words(why.state)),
    }
}

/// What it waits for.
fn words(why: &Why) -> &'static str {
    match (why.wait, why.state) {
        (abi::WAIT_NONE, _) => "nothing but the engine's next turn",
        (abi::WAIT_WINDOW_OPS, _) => "room in the device's window, in ops",
        (abi::WAIT_WINDOW_BYTES, _) => "room in the device's window, in bytes",
        (abi::WAIT_FABRIC, abi::STATE_POSTED) => "the fabric to complete it",
        (abi::WAIT_LANE, _) => "ops before it in its flow",
        (abi::WAIT_EARLIER, abi::STATE_WAITING) => "all earlier ops of its ring",
        (wait, _) => wait_words(wait).unwrap_or("something unknown"),
    }
}

/// How much there is of that.
fn credit(why: &Why, f: &mut Formatter<'_>) -> fmt::Result {
    match why.after {
        None => {}
        Some((0 | 1, number)) => return write!(f, ": SQE {number} is not over"),
        Some((count, number)) => {
            return write!(f, ": {count} are not over, SQE {number} among them");
        }
    }
    let Some((used, limit)) = why.used else { return Ok(()) };
    write!(f, ": {used} of {limit} are in use")?;
    if why.wait == abi::WAIT_RAIL || !why.rails.is_empty() {
        write!(f, " on rail {}", why.rail)?;
    }
    if why.wants > 0 { write!(f, ", and it wants {} more", why.wants) } else { Ok(()) }
}

/// The rails that may carry it.
fn rails(why: &Why, f: &mut Formatter<'_>) -> fmt::Result {
    for (rail, state) in &why.rails {
        write!(f, " Rail {rail} {}.", rail_words(*state))?;
    }
    Ok(())
}

/// Its place among those that are queued.
fn place(why: &Why, f: &mut Formatter<'_>) -> fmt::Result {
    let aside = matches!(why.wait, abi::WAIT_FABRIC | abi::WAIT_NOTIFY | abi::WAIT_EARLIER)
        || matches!(why.state, abi::STATE_WAITING | abi::STATE_FOLDED);
    if aside && why.ahead == 0 {
        return Ok(());
    }
    let class = why.class.map_or("unknown", class_name);
    let origin = if why.origin == 0 { "ops of users" } else { "the engine's own ops" };
    write!(f, " Its lane is class {class}, {origin}, served {}:", mode_words(why.mode))?;
    match why.ahead {
        0 => write!(f, " it is the first of its flow")?,
        1 => write!(f, " 1 op of its flow is before it")?,
        ahead => write!(f, " {ahead} ops of its flow are before it")?,
    }
    match why.flows {
        0 => write!(f, "."),
        1 => write!(f, ", and 1 other flow has ops."),
        flows => write!(f, ", and {flows} other flows have ops."),
    }
}

/// The rule by which lanes are served, in words, by an `abi::MODE_*` number.
#[must_use]
pub fn mode_words(mode: u8) -> &'static str {
    match mode {
        abi::MODE_WEIGHTED => "by weight",
        abi::MODE_STRICT => "strictly by class",
        abi::MODE_FIFO => "first come, first served",
        abi::MODE_TENT => "as in TENT",
        abi::MODE_DIRECT => "as ops come",
        _ => "by an unknown rule",
    }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::High => "high",
        Class::Medium => "medium",
        Class::Low => "low",
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::abi::{Opcode, WhyReply};

    fn reply(state: u16, wait: u16) -> WhyReply {
        let mut reply = WhyReply::new_zeroed();
        (reply.state, reply.wait, reply.record, reply.number) = (state, wait, 0x1_0000_0005, 12);
        (reply.opcode, reply.class, reply.bytes, reply.age_ns) = (1, 1, 64, 1_500);
        reply
    }

    #[test]
    fn what_a_waiting_op_comes_after_is_told() {
        let mut reply = reply(abi::STATE_WAITING, abi::WAIT_PREDECESSOR);
        (reply.used, reply.wants) = (3, 7);
        let why = Why::from(reply);
        assert_eq!((why.after, why.used, why.wants), (Some((3, 7)), None, 0));
        let told = "record 0x100000005: WRITE of 64 bytes, class high, user_data 0x0, SQE 12 of \
                    ring 0, session 0, is not over. It was taken 1.5 us ago, and is not queued \
                    yet. It waits for ops that it comes after: 3 are not over, SQE 7 among them.";
        assert_eq!(why.to_string(), told);
        (reply.used, reply.wait) = (1, abi::WAIT_EARLIER);
        reply.opcode = Opcode::Join as u16;
        let why = Why::from(reply).to_string();
        assert!(why.starts_with("record 0x100000005: JOIN, class high, "), "{why}");
        assert!(
            why.ends_with("waits for all earlier ops of its ring: SQE 7 is not over."),
            "{why}"
        );
    }

    #[test]
    fn what_a_folded_op_ends_with_is_told() {
        let why = Why::from(reply(abi::STATE_FOLDED, abi::WAIT_SURVIVOR)).to_string();
        let told = "It was taken 1.5 us ago, and ends with another op. It waits for the op that it \
                    was folded into.";
        assert!(why.ends_with(told), "{why}");
        assert_eq!([abi::STATE_WAITING, abi::STATE_FOLDED].map(state_words), ["waiting", "folded"]);
    }
}
