//! Engines on threads: what runs a core in production.
//!
//! Three threads an engine: the engine thread (turns), the control thread (sessions), and the
//! watcher (bells of sleeping rings while the engine is busy). With cards a fourth: the cards'
//! thread (queue pairs' states, registrations, what the devices say). With a key for other hosts'
//! engines one more: the gate's.

mod card_thread;
mod config;
mod engine_thread;
pub(crate) mod link;
mod quota;
#[cfg(test)]
pub(crate) mod tests;
mod verbs;

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use thiserror::Error;

pub use config::{Config, ConfigError, NoVerbsDevice, VERBS_DEVICES_MAX, VerbsDevice, VerbsUse};
pub use quota::{Quota, UidQuota};

use crate::abi::TelemetryHeader;
use crate::client::{ConnectError, ControlError, Session};
pub use verbs::{NoVerbs, Verbs};

use crate::control::fds::control_pair;
use crate::control::{Address, Card, CardOrders, Server, TelemetryMade, Ways};
use crate::engine;
use crate::fabric::qp::provider::PathSettings;
use crate::fabric::qp::{self, Rails};
use crate::fabric::verbs::{VerbsControl, VerbsProvider};
use crate::fabric::{Local, Pair};
#[cfg(feature = "net")]
use crate::gate::Key;
use crate::gate::{Gate, GateThread};
use crate::sched::Policy;
use crate::shm::ShmError;
use card_thread::{CardThread, Look};
use engine_thread::EngineThread;
use link::Link;
use verbs::Opened;

/// How long ops wait for a peer to whom no rail works, ns.
const CUT_OFF_NS: u64 = 30_000_000_000;

/// Bytes given to cards in one turn, at the least. At 40 MB/s, which Soft-RoCE has on an emulated
/// machine, they take six milliseconds, and a slice beyond them three.
const TURN_BYTES: u64 = 256 << 10;

pub(crate) use crate::control::Ask;

/// Why an engine could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A setting is outside its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The socket's path cannot be used.
    #[error("cannot listen at {path}: {why}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// What is in the way, and what to do.
        why: String,
    },
    /// `verbs` is `require`, and no card can be used.
    #[error("verbs is required, but cannot be used")]
    Verbs {
        /// What is in the way, and what to do.
        source: NoVerbs,
    },
    /// Engines of other hosts can neither be let in nor reached.
    #[error("no way to engines of other hosts: {why}")]
    Gate {
        /// What is in the way, and what to do.
        why: String,
    },
    /// The memory of the telemetry page cannot be had.
    #[error("no memory for the telemetry page")]
    Memory {
        /// What is in the way.
        source: ShmError,
    },
    /// A system call failed.
    #[error("{call} failed")]
    Os {
        /// The call.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
}

/// How an engine ended.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownError {
    /// A thread of the engine panicked: a bug in verbring; sessions were ended.
    #[error("the engine's {0} thread panicked")]
    Panicked(&'static str),
}

/// Makes an engine.
///
/// # Examples
/// ```
/// let engine = verbring::Engine::builder().spawn()?;
/// let session = engine.connect()?;
/// assert!(session.probe()?.op_bytes_max > 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Builder {
    config: Config,
}

impl Builder {
    /// Replaces all settings.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Listens at a path, for sessions of other processes.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.socket = Some(path.into());
        self
    }

    /// Starts the engine's threads.
    ///
    /// # Errors
    /// [`SpawnError`] for a setting outside its range, a socket path that cannot be used, or a
    /// refusal of the system.
    pub fn spawn(self) -> Result<Engine, SpawnError> {
        Engine::start(self.config)
    }
}

/// A running engine. Dropping it shuts it down.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    /// By card.
    verbs: Vec<Verbs>,
    /// Where engines of other hosts come in.
    listening: Option<SocketAddr>,
    link: Arc<Link>,
    asks: Sender<Ask>,
    threads: Vec<(&'static str, JoinHandle<()>)>,
}

impl Engine {
    /// Starts with the default settings.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn start(config: Config) -> Result<Self, SpawnError> {
        config.check()?;
        // First, so that an engine that is not to be leaves nothing behind.
        let opened = verbs::open_cards(&config)?;
        let os = |call| move |errno: Errno| SpawnError::Os { call, source: errno.into() };
        let link = Arc::new(Link::new(config.rings_max).map_err(os("epoll_create"))?);
        let (verbs, rails, card) = match opened {
            Some(Opened { provider, controls, rails, paths, addresses, look, verbs }) => {
                for channel in provider.channels() {
                    link.watch_completions(channel).map_err(os("epoll_ctl"))?;
                }
                let known = (paths, addresses);
                let desk = desk((controls, look), known, &rails, &verbs, &config, &link);
                let desk = desk.map_err(os("eventfd"))?;
                (verbs, Some(Rails::new(provider, rails)), Some(desk))
            }
            None => (Vec::new(), None, None),
        };
        let (card, card_thread) = card.unzip();
        let (asks, threads) = (channel().0, Vec::new());
        let mut engine = Self { config, verbs, listening: None, link, asks, threads };
        engine.launch(rails, card, card_thread.map(|thread| move || thread.run()))?;
        Ok(engine)
    }

    /// Starts the threads. The card's comes last: those before must not wait for it in vain.
    fn launch(
        &mut self,
        rails: Option<Rails<VerbsProvider>>,
        card: Option<Card>,
        card_thread: Option<impl FnOnce() + Send + 'static>,
    ) -> Result<(), SpawnError> {
        let config = &self.config;
        let os = |call| move |errno: Errno| SpawnError::Os { call, source: errno.into() };
        let listener = match &config.socket {
            Some(path) => Some((bind_at(path, config.socket_mode)?, path.clone())),
            None => None,
        };
        let mut boot = [0; 16];
        getrandom::fill(&mut boot)
            .map_err(|error| SpawnError::Os { call: "getrandom", source: error.into() })?;
        let boot_id = zerocopy::transmute!(boot);
        let (asks, heard) = channel();
        self.asks = asks;
        let link = Arc::clone(&self.link);
        let (gate, gate_thread) = self.gate()?.unzip();
        let (thread, telemetry) = self.engine_thread(rails, boot_id)?;
        self.listening = gate.as_ref().and_then(Gate::listening);
        let config = self.config.clone();
        let pin = config.pin;
        let ways = Ways { listener, card, gate };
        let server =
            Server::new(config, link, boot_id, telemetry, heard, ways).map_err(os("epoll_ctl"))?;
        self.start_thread("engine", move || {
            pin_to(pin);
            thread.run();
        })?;
        let link = Arc::clone(&self.link);
        self.start_thread("watcher", move || engine_thread::watch(&link))?;
        self.start_thread("control", move || server.run())?;
        if let Some(gate) = gate_thread {
            self.start_thread("gate", move || gate.run())?;
        }
        match card_thread {
            Some(run) => self.start_thread("card", run),
            None => Ok(()),
        }
    }

    /// The gate to other hosts, and its thread, if there is a key.
    #[cfg(feature = "net")]
    fn gate(&self) -> Result<Option<(Gate, GateThread)>, SpawnError> {
        let Some(path) = &self.config.psk_file else {
            return match self.config.listen {
                None => Ok(None),
                Some(listen) => Err(SpawnError::Gate {
                    why: format!(
                        "listen is {listen}, but psk_file is not set: make a key by verbring key \
                         FILE, and give it to both engines"
                    ),
                }),
            };
        };
        let key = Key::read(path).map_err(|error| SpawnError::Gate { why: error.to_string() })?;
        let (asks, link) = (self.asks.clone(), Arc::clone(&self.link));
        let usher = Box::new(move |arrived| {
            let _ = asks.send(Ask::Arrived(arrived));
            link.kick_control();
        });
        let made = Gate::new(key, self.config.listen, usher);
        made.map(Some).map_err(|error| {
            let place = self.config.listen.map_or(String::new(), |listen| format!(" at {listen}"));
            SpawnError::Gate { why: format!("cannot listen{place}: {error}") }
        })
    }

    /// There is none in this build.
    #[cfg(not(feature = "net"))]
    fn gate(&self) -> Result<Option<(Gate, GateThread)>, SpawnError> {
        if self.config.listen.is_none() && self.config.psk_file.is_none() {
            return Ok(None);
        }
        let why = "listen or psk_file is set, but this build is without feature net".to_string();
        Err(SpawnError::Gate { why })
    }

    /// The engine thread, and the page that it keeps count in.
    fn engine_thread(
        &self,
        rails: Option<Rails<VerbsProvider>>,
        boot_id: [u64; 2],
    ) -> Result<(EngineThread, TelemetryMade), SpawnError> {
        let config = &self.config;
        // No client knows it; the boot id they do.
        let mut key = [0; 8];
        getrandom::fill(&mut key)
            .map_err(|error| SpawnError::Os { call: "getrandom", source: error.into() })?;
        let limits = engine::Limits {
            engine: config.engine,
            records: config.records,
            list_blocks: config.list_blocks,
            edges: config.edges.max(24 * config.sessions_max),
            sessions_max: config.sessions_max,
            rings_max: config.rings_max,
            regions_max: config.regions_max,
            window_wrs: config.window_wrs,
            window_bytes: config.window_bytes,
            slice_bytes: config.slice_bytes,
            turn_bytes: TURN_BYTES,
            intake_budget: config.intake_budget,
            ring_idle_ns: u64::from(config.ring_idle_ms) * 1_000_000,
            cut_off_ns: CUT_OFF_NS,
            policy: Policy { coalesce_key: u64::from_le_bytes(key), ..config.policy() },
        };
        let local = Local::new(config.regions_max, config.window_wrs, config.slice_bytes);
        let mut core = engine::Engine::new(limits, Pair::new(local, rails));
        let header = TelemetryHeader {
            boot_id,
            engine: config.engine.into(),
            engine_pid: std::process::id(),
            ..*core.telemetry_header()
        };
        let (telemetry, page) =
            TelemetryMade::new(&header).map_err(|source| SpawnError::Memory { source })?;
        core.keep_telemetry(page);
        let spin_ns = u64::from(config.spin_us) * 1_000;
        let link = Arc::clone(&self.link);
        Ok((EngineThread::new(core, link, config.rings_max, spin_ns), telemetry))
    }

    fn start_thread(
        &mut self,
        name: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), SpawnError> {
        let thread = std::thread::Builder::new()
            .name(format!("verbring-{name}"))
            .spawn(run)
            .map_err(|source| SpawnError::Os { call: "clone", source })?;
        self.threads.push((name, thread));
        Ok(())
    }

    /// Attaches this process to the engine.
    ///
    /// # Errors
    /// [`ConnectError`] if the session's quota is used up or the engine is gone.
    pub fn connect(&self) -> Result<Session, ConnectError> {
        let (theirs, ours) = control_pair()
            .map_err(|errno| ControlError::Os { call: "socketpair", source: errno.into() })?;
        let _ = self.asks.send(Ask::Attach(theirs));
        self.link.kick_control();
        Session::from_socket(ours)
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The card that carries what goes to other engines, the first of several; `None` if none is
    /// used.
    #[must_use]
    pub fn verbs(&self) -> Option<&Verbs> {
        self.verbs.first()
    }

    /// Where engines of other hosts come in, with the port in use; `None` if nowhere.
    #[must_use]
    pub fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    /// All cards that carry what goes to other engines, in the order of the setting.
    #[must_use]
    pub fn cards(&self) -> &[Verbs] {
        &self.verbs
    }

    /// True once the engine thread is gone, by shutdown or by a panic.
    #[must_use]
    pub fn gone(&self) -> bool {
        self.link.dead.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Drains and ends: no SQE is taken any more; those taken run to their end for at most
    /// `drain_ms`; then sessions end.
    ///
    /// # Errors
    /// [`ShutdownError`] if a thread had panicked.
    pub fn shutdown(mut self) -> Result<(), ShutdownError> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), ShutdownError> {
        let _ = self.asks.send(Ask::Shutdown);
        self.link.kick_control();
        // The control thread tells the engine thread to stop, and that one's end ends the watcher.
        // The card's thread, and the gate's, have nobody to work for once the control thread is
        // gone.
        let mut threads = std::mem::take(&mut self.threads);
        let order = ["control", "engine", "watcher", "card", "gate"];
        threads.sort_by_key(|(name, _)| order.iter().position(|known| known == name));
        let mut outcome = Ok(());
        for (name, thread) in threads {
            if name == "engine" {
                self.link.stop.store(true, std::sync::atomic::Ordering::SeqCst);
                self.link.kick_engine();
            }
            if thread.join().is_err() {
                outcome = Err(ShutdownError::Panicked(name));
            }
        }
        outcome
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            let _ = self.stop();
        }
    }
}

/// What the control thread knows of open cards, and the cards' own thread.
fn desk(
    cards: (Vec<VerbsControl>, Look),
    (paths, addresses): (Vec<[PathSettings; 3]>, Vec<Vec<Address>>),
    rails: &qp::Config,
    verbs: &[Verbs],
    config: &Config,
    link: &Arc<Link>,
) -> Result<(Card, CardThread<VerbsControl>), Errno> {
    let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let (orders, ordered) = channel();
    let (said, answers) = channel();
    let names: Vec<_> =
        verbs.iter().map(|verbs| format!("{} port {}", verbs.device, verbs.port)).collect();
    let card = Card {
        orders: CardOrders::new(orders, Arc::clone(&bell)),
        answers,
        paths,
        addresses,
        pinned: !config.verbs_gid.is_empty(),
        caps: rails.caps(),
        receives: rails.receives,
        rails_max: rails.rails_max,
        lease_ns: u64::from(config.verbs_lease_ms) * 1_000_000,
        names,
    };
    let woken = Arc::clone(link);
    let kick = Box::new(move || woken.kick_control());
    Ok((card, CardThread::new(cards, ordered, bell, said, kick)))
}

fn pin_to(cpu: Option<u32>) {
    let Some(cpu) = cpu else { return };
    let mut set = nix::sched::CpuSet::new();
    let pinned = set
        .set(cpu as usize)
        .and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
    if let Err(errno) = pinned {
        tracing::warn!(cpu, %errno, "the engine thread could not be pinned");
    }
}

/// Binds the control socket; a socket file that nobody listens at is replaced.
///
/// The socket is bound under a name beside the path and moved there once it listens: whoever sees
/// the file can connect.
fn bind_at(path: &Path, mode: u32) -> Result<OwnedFd, SpawnError> {
    let failed = |why: String| SpawnError::Listen { path: path.to_path_buf(), why };
    let from = |errno: Errno| failed(errno.to_string());
    let address = |path: &Path| {
        UnixAddr::new(path)
            .map_err(|errno| failed(format!("{errno}: a socket's path has at most 100 bytes")))
    };
    let fresh = || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(from)
    };
    if let Ok(there) = std::fs::symlink_metadata(path) {
        if !std::os::unix::fs::FileTypeExt::is_socket(&there.file_type()) {
            return Err(failed("a file that is no socket is there; choose another path".into()));
        }
        if connect(fresh()?.as_raw_fd(), &address(path)?) != Err(Errno::ECONNREFUSED) {
            return Err(failed("another engine listens there; stop it or choose another".into()));
        }
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let listener = fresh()?;
    bind(listener.as_raw_fd(), &address(&beside)?).map_err(from)?;
    let placed = (|| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&beside, permissions)
            .map_err(|error| failed(error.to_string()))?;
        listen(&listener, Backlog::new(128).map_err(from)?).map_err(from)?;
        std::fs::rename(&beside, path).map_err(|error| failed(error.to_string()))
    })();
    if placed.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    placed.map(|()| listener)
}
