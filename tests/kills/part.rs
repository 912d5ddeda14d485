//! Parts that other processes play: this very binary, started anew with a part in its environment.
//!
//! A part's standard input is a socket to whoever started it. At the end of that the part ends, so
//! that nothing outlives the test, in whatever way the test itself dies.

use std::fs::DirBuilder;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use verbring::Engine;
use verbring::host::Config;

/// How long anything may take before it counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The variable that holds a part: its name and its words, separated by line feeds.
pub(crate) const PART: &str = "VERBRING_KILLS_PART";

/// Another process, which dies with this value.
#[derive(Debug)]
pub(crate) struct Part {
    child: Child,
    line: UnixStream,
}

impl Part {
    pub(crate) fn start(words: &[&str]) -> Self {
        let (line, theirs) = UnixStream::pair().unwrap();
        line.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_part", "--nocapture"])
            .env(PART, words.join("\n"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, line }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for what the part has to tell.
    pub(crate) fn hear<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let mut told = [0; BYTES];
        self.line.read_exact(&mut told).unwrap_or_else(|error| {
            panic!("{} did not say what it must: {error}", self.pid());
        });
        told
    }

    /// Kills it, as `kill -9` does, and sees it gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets it end by itself.
    pub(crate) fn end(mut self) -> ExitStatus {
        self.line.shutdown(std::net::Shutdown::Write).unwrap();
        // It closes its end on the way out, and not before; the time-out shows one that hangs.
        self.line.read_to_end(&mut Vec::new()).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Both fail if it is gone already, as it should be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The part's end of the line.
pub(crate) fn line() -> UnixStream {
    let end = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    UnixStream::from(end)
}

/// Waits until whoever started this part has let go of it.
pub(crate) fn wait_for_end(line: &mut UnixStream) {
    // An error means the same as the end.
    let _ = std::io::copy(line, &mut std::io::sink());
}

/// The engine's part: `engine SOCKET SLICE_BYTES`.
pub(crate) fn start_engine(socket: &Path, slice_bytes: u32) -> Part {
    let mut engine = Part::start(&["engine", socket.to_str().unwrap(), &slice_bytes.to_string()]);
    assert_eq!(engine.hear(), *b"r", "the engine is ready");
    engine
}

pub(crate) fn play_engine(words: &[&str]) {
    let mut line = line();
    let mut config = Config::default();
    config.socket = Some(PathBuf::from(words[0]));
    config.slice_bytes = words[1].parse().unwrap();
    // Clients ask as fast as they can, all of them under one uid.
    config.quota.control_per_s = 1_000_000;
    config.sessions_max = 4_096;
    config.quota.sessions = 4_096;
    let engine = Engine::builder().config(config).spawn().unwrap();
    line.write_all(b"r").unwrap();
    wait_for_end(&mut line);
    engine.shutdown().unwrap();
    // Only if the test has died before it could.
    let _ = std::fs::remove_dir(Path::new(words[0]).parent().unwrap());
}

/// A directory of one test, for its socket.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static SCRATCHES: AtomicU32 = AtomicU32::new(0);
        let number = SCRATCHES.fetch_add(1, Ordering::Relaxed);
        let name = format!("verbring-kills-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        Self(path)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("engine.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
