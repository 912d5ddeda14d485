//! Other processes: this very test program, started once more to play a part.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Tells a test what part it has to play, in a process that another test has started for that.
pub(crate) const PART: &str = "VERBRING_HOSTILE_PART";

/// The part, if this process was started to play one.
pub(crate) fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// A process that plays a part until this is dropped.
#[derive(Debug)]
pub(crate) struct Player {
    child: Child,
    /// What it said when it was ready.
    pub(crate) word: String,
}

impl Player {
    /// Starts the test of this name with a part, and waits for its word.
    pub(crate) fn start(test: &str, part: &str) -> Self {
        Self::start_by(Command::new(std::env::current_exe().unwrap()), test, part)
    }

    /// The same through a command that takes the program and its arguments behind its own.
    pub(crate) fn start_by(mut command: Command, test: &str, part: &str) -> Self {
        let mut child = command
            .args(["--exact", test, "--nocapture"])
            .env(PART, part)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines {
            let line = line.unwrap();
            if let Some((_, word)) = line.split_once("ready ") {
                return Self { word: word.into(), child };
            }
        }
        panic!("{test} does not play {part}: {:?}", child.wait());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that the part is being played, and plays on until the other side goes.
pub(crate) fn play(word: &str) {
    use std::io::Write;
    let mut out = std::io::stdout();
    writeln!(out, "ready {word}").unwrap();
    out.flush().unwrap();
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

/// Ends an orphan that has come to us.
pub(crate) fn end_orphan(pid: i32) {
    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGKILL).unwrap();
    waitpid(pid, None).unwrap();
}
