//! An engine that runs out of descriptors: what needs one is refused or waits, what needs none
//! goes on, and afterwards all is as before.

use std::path::PathBuf;
use std::process::Command;

use verbring::abi::{Detail, errno};
use verbring::{Engine, Session};

use super::neighbour::Neighbour;
use super::processes::{Player, part, play};
use super::raw::{Answer, Wire};
use super::stage::{Stage, until};

/// The engine of this test may have so many descriptors.
const DESCRIPTORS: u32 = 64;

#[test]
fn of_descriptors() {
    const TEST: &str = "starved::of_descriptors";
    if let Some(socket) = part() {
        let engine = Engine::builder().socket(PathBuf::from(socket)).spawn().unwrap();
        play("");
        return engine.shutdown().unwrap();
    }
    let mut stage = Stage::set("an engine short of descriptors");
    let socket = stage.socket.with_extension("starved");
    let mut limited = Command::new("sh");
    let limit = format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\"");
    limited.args(["-c", &limit]).arg(std::env::current_exe().unwrap());
    let engine = Player::start_by(limited, TEST, socket.to_str().unwrap());
    let neighbour = Neighbour::start(socket.clone());
    let quiet = busy_ticks(&engine, "verbring-contro");
    while stage.goes_on() || neighbour.verified() < 100_000 {
        neighbour.look();
        let mut wire = Wire::connect(&socket);
        wire.hello().done();
        let mut rings = Vec::new();
        let refused = loop {
            let answer = wire.ask_ring(2, 2);
            stage.tally.attempts += 1;
            match answer {
                Answer::Done(..) => rings.push(answer),
                other => break other,
            }
        };
        assert!(rings.len() > 4);
        let text = refused.refused(errno::ENOMEM, Detail::None);
        assert!(text.contains("EMFILE"), "says what is missing: {text}");
        stage.tally.refuse(errno::ENOMEM, Detail::None as u16);
        // Sessions beyond that wait for a descriptor, and have one when the greedy one goes.
        let waiting: Vec<Wire> = (0..8).map(|_| Wire::connect(&socket)).collect();
        let before = neighbour.verified();
        until("the neighbour goes on", || neighbour.verified() > before + 20_000);
        drop((wire, rings));
        for mut wire in waiting {
            wire.hello().done();
            wire.probe().done();
            stage.tally.granted += 1;
        }
    }
    let engine_ticks = busy_ticks(&engine, "verbring-engine");
    let control_ticks = busy_ticks(&engine, "verbring-contro") - quiet;
    assert!(control_ticks < engine_ticks / 2 + 20, "the control thread goes round and round");
    neighbour.rest();
    neighbour.leave();
    Session::connect(&socket).unwrap().probe().unwrap();
    drop(engine);
    let _ = std::fs::remove_file(socket);
    stage.finish();
}

/// CPU time of one of the engine's threads, in clock ticks.
fn busy_ticks(engine: &Player, thread: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", engine.pid())).unwrap();
    for task in tasks {
        let path = task.unwrap().path();
        if std::fs::read_to_string(path.join("comm")).unwrap().trim_end() == thread {
            let stat = std::fs::read_to_string(path.join("stat")).unwrap();
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            return fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    panic!("the engine has no thread {thread}");
}
