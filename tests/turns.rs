//! Claim: what a turn of an engine costs does not depend on how many peers it has that are idle.
//! Counted in instructions, by callgrind: of turns with nothing to do, and of turns that post and
//! end WRITEs to one peer, beside 0, 1, 8 and 31 others that are connected, imported from and have
//! been written to. Without valgrind nothing is counted, and the test says so; what turns ask of
//! the device is compared without it, in `sim::tests`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::process::Command;

use verbring::sim::Idle;

const IDLE: &str = "VERBRING_IDLE_PEERS";
const WORK: &str = "VERBRING_IDLE_WORK";
const TURNS: &str = "VERBRING_IDLE_TURNS";
const NAME: &str = "a_turn_costs_the_same_whatever_the_number_of_idle_peers";
/// WRITEs at a time.
const OPS: u32 = 4;

/// What is counted: the test's own process, started again inside callgrind.
fn play(idle: u16) {
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (work, turns) = (number(WORK) == 1, number(TURNS));
    let mut hub = Idle::new(idle);
    let begun = hub.asked();
    while (hub.asked() - begun).turns < turns {
        if work {
            hub.push(OPS);
            hub.finish(OPS);
        } else {
            hub.turn();
        }
    }
}

/// Instructions inside the hub's turns, those in which it is made too; `None` without valgrind.
fn instructions(idle: u16, work: bool, turns: u64) -> Option<u64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*Idle*turn*")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(IDLE, idle.to_string())
        .env(WORK, u8::from(work).to_string())
        .env(TURNS, turns.to_string());
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let line = text.lines().find(|line| line.contains("Collected :")).unwrap();
    line.split(':').nth(1).unwrap().trim().parse().ok()
}

/// Instructions of one turn, on average.
fn per_turn(idle: u16, work: bool) -> Option<u64> {
    let (few, many) = (300, 1_300);
    let more = instructions(idle, work, many)? - instructions(idle, work, few)?;
    Some(more / (many - few))
}

#[test]
fn a_turn_costs_the_same_whatever_the_number_of_idle_peers() {
    if let Ok(idle) = std::env::var(IDLE) {
        return play(idle.parse().unwrap());
    }
    for work in [false, true] {
        let what = if work { "with 4 WRITEs at a time" } else { "with nothing to do" };
        let Some(alone) = per_turn(0, work) else {
            return println!("there is no valgrind here: nothing was counted");
        };
        assert!(alone > 50, "only {alone} instructions: something else was counted");
        println!("a turn {what}: {alone} instructions without idle peers");
        for idle in [1, 8, 31] {
            let beside = per_turn(idle, work).unwrap();
            println!("a turn {what}: {beside} instructions with {idle}");
            // Within 2 %: what tables are filled with differs.
            assert!(beside.abs_diff(alone) * 50 <= alone, "{beside} with {idle}, {alone} alone");
        }
    }
}
