//! A child that keeps the control socket of a parent that was killed. The socket says that
//! somebody is there; the engine goes by the process that connected.

use std::path::Path;
use std::process::Command;

use nix::sys::prctl::set_child_subreaper;
use verbring::abi::{Counter, Opcode, Sqe};

use super::processes::{Player, end_orphan, part, play};
use super::raw::Wire;
use super::stage::{Stage, until};

#[test]
fn by_a_child() {
    if let Some(socket) = part() {
        return parent(Path::new(&socket));
    }
    let mut stage = Stage::set("a killed parent's socket kept by its child");
    // The orphans become ours, so that we can end them.
    set_child_subreaper(true).unwrap();
    let held = |pid: i32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    while stage.goes_on() || stage.tally.ended < 5 {
        let socket = stage.socket.to_str().unwrap();
        let mut player = Player::start("kept_socket::by_a_child", socket);
        assert_eq!(stage.counter(Counter::Sessions), 3);
        let orphan: i32 = player.word.parse().unwrap();
        player.kill();
        until("the session is over", || stage.counter(Counter::Sessions) == 2);
        assert_eq!(held(orphan), 1, "the child still has the socket");
        end_orphan(orphan);
        stage.tally.attempts += 1;
        stage.tally.ended += 1;
    }
    stage.finish();
}

/// Opens a session with a socket that children inherit, has work done, and has a child.
fn parent(socket: &Path) {
    let mut wire = Wire::connect_inheritable(socket);
    wire.hello().done();
    let (near, _near) = wire.region(4 << 20);
    let import = wire.own_import(near, "kept");
    let mut ring = wire.ring(64, 64);
    for _ in 0..64 {
        ring.write(&Sqe {
            opcode: Opcode::Write as u8,
            local_region: near,
            remote_region: import,
            remote_offset: 2 << 20,
            bytes: 2 << 20,
            ..Sqe::default()
        });
    }
    ring.publish();
    #[allow(clippy::zombie_processes, reason = "it outlives this process, which is killed")]
    let child = Command::new("sleep").arg("3600").spawn().unwrap();
    play(&child.id().to_string());
}
