//! What can be set about an engine: plain values with ranges; checked before anything starts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::quota::{Quota, UidQuota};
use crate::abi;
use crate::fabric::qp::CARDS_MAX;
use crate::sched::{Bounds, Mode, Policy};

/// Settings of one engine. `Config::default()` suits a shared two-core machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The engine's number, 0 to 255: part of every record id.
    pub engine: u8,
    /// Where to listen; `None` serves only sessions of [`Engine::connect`](super::Engine::connect).
    pub socket: Option<PathBuf>,
    /// Mode of the socket file, octal 0600 by default: who may attach is settled here first.
    pub socket_mode: u32,
    /// Ops in flight, over all sessions; 64 to 2^24.
    pub records: u32,
    /// Page-list blocks of 64 pages for WRITEV and READV, over all sessions; 64 to 2^20.
    pub list_blocks: u32,
    /// Edges of ops that wait for others, over all sessions; 64 to 2^24. There are at least 24 for
    /// each session, so that the half that is set aside has in each part what any op needs.
    pub edges: u32,
    /// Sessions at once; 1 to 4,096.
    pub sessions_max: u32,
    /// Rings at once, over all sessions; 1 to 65,536.
    pub rings_max: u32,
    /// Regions and imports at once, over all sessions; 1 to 2^20.
    pub regions_max: u32,
    /// Ops (work requests) in flight on the device; 1 to 4,096.
    pub window_ops: u32,
    /// Bytes in flight on the device; at least one slice.
    pub window_bytes: u64,
    /// Work requests (slices and pages) in flight on the device; 1 to 16,384.
    pub window_wrs: u32,
    /// A large op moves in slices of at most this many bytes; 4 KiB to 64 MiB.
    pub slice_bytes: u32,
    /// Microseconds that a slice is to take at the measured rate of its device: slices are made
    /// smaller for it, down to 4 KiB (32 KiB towards peers); 0 to 1,000,000, where 0 leaves them as
    /// they are.
    pub slice_us: u32,
    /// Which op goes next.
    pub mode: Mode,
    /// Shares of high, medium and low in the bytes that are moved; 1 to 64 each.
    pub class_weights: [u8; 3],
    /// In mode strict: what medium and low each get at the least while they have work, in
    /// thousandths of what is moved; 0 to 250.
    pub min_share: u16,
    /// A work request counts as at least so many bytes; 0 to 64 KiB.
    pub floor_bytes: u32,
    /// Microseconds after which a queued op of class medium counts as high; 0 for never.
    pub aging_medium_us: u32,
    /// Microseconds after which a queued op of class low counts as high; 0 for never.
    pub aging_low_us: u32,
    /// Part of `window_ops` that is kept for the engine's own work; less than that.
    pub reserve_ops: u32,
    /// Part of `window_bytes` that is kept for the engine's own work; at least a slice is left.
    pub reserve_bytes: u64,
    /// Ops in flight towards one peer; 0 sets no bound but the card's.
    pub peer_ops: u32,
    /// Work requests in flight towards one peer; 0 sets no bound but the card's.
    pub peer_wrs: u32,
    /// Bytes in flight towards one peer; 0 sets no bound but the card's, else at least one slice.
    pub peer_bytes: u64,
    /// Ops that ask for it are folded (COALESCE, SUPERSEDE); if not, each is carried out.
    pub coalesce: bool,
    /// SQEs taken from one ring in one turn; 1 to 1,024.
    pub intake_budget: u32,
    /// Ended ops that a session's flight recorder holds, 64 bytes each: a power of two from 16 to
    /// 65,536, or 0 for no flight recorders.
    pub recorder_entries: u32,
    /// Microseconds the engine looks for work before it sleeps; 0 to 1,000,000.
    pub spin_us: u32,
    /// Milliseconds without an SQE after which a ring leaves the poll set; 1 to 60,000.
    pub ring_idle_ms: u32,
    /// Milliseconds that shutdown waits for posted ops; 0 to 600,000.
    pub drain_ms: u32,
    /// First value of every ring's cursors. Any value is right; tests start near `u32::MAX`.
    pub first_index: u32,
    /// CPU to pin the engine thread to.
    pub pin: Option<u32>,
    /// Whether queue pairs of a card are used.
    pub verbs: VerbsUse,
    /// The devices, each with its port; at most [`VERBS_DEVICES_MAX`], each once. Without any, the
    /// one that `verbring devices` calls chosen; with [`VerbsDevice::ALL`] alone, every one that
    /// can be used, the best first. Two engines that are connected pair theirs by their networks,
    /// as many as both have: each pair is a rail of its own.
    pub verbs_device: Vec<VerbsDevice>,
    /// Place in the port's table of GIDs, one for all devices or one for each; without any, what
    /// `verbring devices` calls chosen.
    pub verbs_gid: Vec<u8>,
    /// Ops in flight on one card, over all its rails; 1 to 65,536.
    pub verbs_window_ops: u32,
    /// Work requests in flight on one card, over all its rails; 1 to 65,536.
    pub verbs_window_wrs: u32,
    /// Bytes in flight on one card, over all its rails; at least one slice.
    pub verbs_window_bytes: u64,
    /// Work requests posted and not completed on one rail; 1 to 8,192. The device may give less.
    pub verbs_depth: u32,
    /// Notifications that a peer may send on one rail before any is handed out; 1 to 4,096.
    pub verbs_receives: u32,
    /// Time to an acknowledgement: 4.096 us * 2^this; 1 to 31. A silent peer is given up after
    /// about `verbs_retry` + 1 times that.
    pub verbs_timeout: u8,
    /// Repeats without an acknowledgement; 0 to 7.
    pub verbs_retry: u8,
    /// Repeats while the peer has no receive; 0 to 7, where 7 is without end. A peer that keeps the
    /// rules has one for all that is sent to it.
    pub verbs_rnr_retry: u8,
    /// Milliseconds after which nothing that was sent to a peer can still arrive there, and within
    /// which a peer that lost its connection stops listening; 10 to 60,000. Ops under way to a peer
    /// that is lost, but may be alive, are told of no earlier.
    pub verbs_lease_ms: u32,
    /// Address and TCP port to listen at for engines of other hosts; `None` lets none in. It takes
    /// `psk_file`.
    pub listen: Option<SocketAddr>,
    /// File of the key that engines of other hosts must have, too: 64 hexadecimal digits, readable
    /// by nobody else. Without it none is let in or reached.
    pub psk_file: Option<PathBuf>,
    /// Milliseconds after which another engine that does not answer is lost; 100 to 600,000.
    /// It is asked after a fifth of them.
    pub peer_silence_ms: u32,
    /// Largest path MTU to use, bytes: 256, 512, 1024, 2048 or 4096.
    pub verbs_mtu: u32,
    /// Service level of each class, high, medium and low; 0 to 15.
    pub verbs_service_level: [u8; 3],
    /// Traffic class (DSCP and ECN, for RoCE) of each class, high, medium and low.
    pub verbs_traffic_class: [u8; 3],
    /// Rails at once, this host among them; 2 to 64. Fewer if the device has no room for them.
    pub rails_max: u16,
    /// What one uid may use.
    pub quota: Quota,
    /// Contracts of single uids: what of their quotas differs. Uids are 0 to 2^32 - 2.
    pub uid: BTreeMap<u32, UidQuota>,
}

/// Whether an engine uses queue pairs of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerbsUse {
    /// No card is looked for.
    Off,
    /// Where a device can be used, it is; where not, one line of the log says why.
    Auto,
    /// An engine without a device does not start.
    Require,
}

/// A device of a card, and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerbsDevice {
    /// Its name, as `verbring devices` shows it.
    pub name: String,
    /// Its port, from 1; `None` takes the best.
    pub port: Option<u8>,
}

impl VerbsDevice {
    /// True if both may mean the same port.
    fn is(&self, other: &Self) -> bool {
        let any = self.port.is_none() || other.port.is_none();
        self.name == other.name && (any || self.port == other.port)
    }
}

impl VerbsDevice {
    /// Instead of a device's name: all that can be used.
    pub const ALL: &str = "all";
}

impl FromStr for VerbsDevice {
    type Err = NoVerbsDevice;

    fn from_str(text: &str) -> Result<Self, NoVerbsDevice> {
        let (name, port) = match text.split_once(':') {
            None => (text, None),
            Some((name, port)) => match port.parse() {
                Ok(port) if port > 0 => (name, Some(port)),
                _ => return Err(NoVerbsDevice),
            },
        };
        if name.is_empty() || name.contains('/') {
            return Err(NoVerbsDevice);
        }
        Ok(Self { name: name.to_string(), port })
    }
}

impl fmt::Display for VerbsDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Devices that one engine may use.
pub const VERBS_DEVICES_MAX: usize = CARDS_MAX;

/// A text that names no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not DEVICE or DEVICE:PORT, with a port from 1 to 255")]
pub struct NoVerbsDevice;

impl Default for Config {
    fn default() -> Self {
        Self {
            engine: 0,
            socket: None,
            socket_mode: 0o600,
            records: 16_384,
            list_blocks: 4_096,
            edges: 16_384,
            sessions_max: 256,
            rings_max: 1_024,
            regions_max: 4_096,
            window_ops: 64,
            window_bytes: 256 << 10,
            window_wrs: 128,
            slice_bytes: 128 << 10,
            slice_us: 100,
            mode: Mode::Weighted,
            class_weights: [4, 2, 1],
            min_share: 10,
            floor_bytes: 512,
            aging_medium_us: 0,
            aging_low_us: 0,
            reserve_ops: 0,
            reserve_bytes: 0,
            peer_ops: 0,
            peer_wrs: 0,
            peer_bytes: 0,
            coalesce: true,
            intake_budget: 64,
            recorder_entries: 1_024,
            spin_us: 50,
            ring_idle_ms: 10,
            drain_ms: 5_000,
            first_index: u32::MAX - 40,
            pin: None,
            verbs: VerbsUse::Auto,
            verbs_device: Vec::new(),
            verbs_gid: Vec::new(),
            verbs_window_ops: 256,
            verbs_window_wrs: 512,
            verbs_window_bytes: 2 << 20,
            verbs_depth: 128,
            verbs_receives: 64,
            verbs_timeout: 14,
            verbs_retry: 7,
            verbs_rnr_retry: 6,
            verbs_lease_ms: 2_000,
            listen: None,
            psk_file: None,
            peer_silence_ms: 10_000,
            verbs_mtu: 4_096,
            verbs_service_level: [0; 3],
            verbs_traffic_class: [0; 3],
            rails_max: 32,
            quota: Quota::default(),
            uid: BTreeMap::new(),
        }
    }
}

/// A setting outside its range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field} is {value}, but must be {limit}")]
pub struct ConfigError {
    /// The setting, as in a file of settings: `quota.ops`, or `uid.1000.ops`.
    pub field: Cow<'static, str>,
    /// What was given.
    pub value: u64,
    /// What it must be.
    pub limit: String,
}

impl ConfigError {
    /// An error unless a value is in its range.
    fn unless(
        field: impl Into<Cow<'static, str>>,
        value: u64,
        low: u64,
        high: u64,
    ) -> Result<(), Self> {
        if (low..=high).contains(&value) {
            return Ok(());
        }
        Err(Self { field: field.into(), value, limit: format!("{low} to {high}") })
    }
}

impl Config {
    /// What a uid may use: its own contract, and where that says nothing, the quota of all.
    #[must_use]
    pub fn quota_of(&self, uid: u32) -> Quota {
        self.uid.get(&uid).map_or_else(|| self.quota.clone(), |own| own.over(&self.quota))
    }

    /// The setting that gives a uid more of what its quota names so.
    #[must_use]
    pub fn quota_key(&self, uid: u32, field: &str) -> String {
        match self.uid.contains_key(&uid) {
            true => format!("uid.{uid}.{field}"),
            false => format!("quota.{field}"),
        }
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first that is outside.
    pub fn check(&self) -> Result<(), ConfigError> {
        let service_level = self.verbs_service_level.into_iter().max().unwrap_or_default();
        let slice_bytes = u64::from(self.slice_bytes);
        let least_weight = self.class_weights.into_iter().min().unwrap_or_default();
        let most_weight = self.class_weights.into_iter().max().unwrap_or_default();
        let peer_bytes = if self.peer_bytes == 0 { slice_bytes } else { self.peer_bytes };
        // Something is left for users, of this host's own device and of every card.
        let wrs = self.window_wrs.min(self.verbs_window_wrs);
        let ops = self.window_ops.min(self.verbs_window_ops).min(wrs);
        let reserve_ops = u64::from(ops.saturating_sub(1));
        let bytes = self.window_bytes.min(self.verbs_window_bytes);
        let reserve_bytes = bytes.saturating_sub(slice_bytes);
        let ranges: [(&'static str, u64, u64, u64); 35] = [
            ("records", self.records.into(), 64, 1 << 24),
            ("peer_silence_ms", self.peer_silence_ms.into(), 100, 600_000),
            ("list_blocks", self.list_blocks.into(), 64, 1 << 20),
            ("edges", self.edges.into(), 64, 1 << 24),
            ("sessions_max", self.sessions_max.into(), 1, 4_096),
            ("rings_max", self.rings_max.into(), 1, 65_536),
            ("regions_max", self.regions_max.into(), 1, 1 << 20),
            ("window_ops", self.window_ops.into(), 1, 4_096),
            ("slice_bytes", self.slice_bytes.into(), 4_096, 64 << 20),
            ("window_bytes", self.window_bytes, self.slice_bytes.into(), 1 << 40),
            ("window_wrs", self.window_wrs.into(), 1, 16_384),
            ("slice_us", self.slice_us.into(), 0, 1_000_000),
            ("class_weights", least_weight.into(), 1, 64),
            ("class_weights", most_weight.into(), 1, 64),
            ("min_share", self.min_share.into(), 0, 250),
            ("floor_bytes", self.floor_bytes.into(), 0, 64 << 10),
            ("reserve_ops", self.reserve_ops.into(), 0, reserve_ops),
            ("reserve_bytes", self.reserve_bytes, 0, reserve_bytes),
            ("peer_bytes", peer_bytes, slice_bytes, u64::MAX),
            ("verbs_window_ops", self.verbs_window_ops.into(), 1, 65_536),
            ("verbs_window_wrs", self.verbs_window_wrs.into(), 1, 65_536),
            ("verbs_window_bytes", self.verbs_window_bytes, slice_bytes, 1 << 40),
            ("intake_budget", self.intake_budget.into(), 1, 1_024),
            ("spin_us", self.spin_us.into(), 0, 1_000_000),
            ("ring_idle_ms", self.ring_idle_ms.into(), 1, 60_000),
            ("drain_ms", self.drain_ms.into(), 0, 600_000),
            ("verbs_depth", self.verbs_depth.into(), 1, 8_192),
            ("verbs_receives", self.verbs_receives.into(), 1, 4_096),
            ("verbs_timeout", self.verbs_timeout.into(), 1, 31),
            ("verbs_retry", self.verbs_retry.into(), 0, 7),
            ("verbs_rnr_retry", self.verbs_rnr_retry.into(), 0, 7),
            ("verbs_lease_ms", self.verbs_lease_ms.into(), 10, 60_000),
            ("verbs_service_level", service_level.into(), 0, 15),
            ("rails_max", self.rails_max.into(), 2, 64),
            ("socket_mode", self.socket_mode.into(), 0, 0o777),
        ];
        for (field, value, low, high) in ranges {
            ConfigError::unless(field, value, low, high)?;
        }
        self.check_quotas()?;
        self.check_devices()?;
        let entries = self.recorder_entries;
        let range = RECORDER_ENTRIES_MIN..=abi::RECORDER_ENTRIES_MAX;
        if entries != 0 && !(entries.is_power_of_two() && range.contains(&entries)) {
            let limit = "0, or a power of two from 16 to 65536".to_string();
            let field = "recorder_entries".into();
            return Err(ConfigError { field, value: entries.into(), limit });
        }
        if !MTUS.contains(&self.verbs_mtu) {
            let limit = "256, 512, 1024, 2048 or 4096".to_string();
            let field = "verbs_mtu".into();
            return Err(ConfigError { field, value: self.verbs_mtu.into(), limit });
        }
        Ok(())
    }
}

impl Config {
    /// How the engine is to share its devices.
    pub(super) fn policy(&self) -> Policy {
        let ns = |us: u32| u64::from(us) * 1_000;
        let bound = |value: u32| if value == 0 { u32::MAX } else { value };
        Policy {
            mode: self.mode,
            weights: self.class_weights,
            floor_bytes: self.floor_bytes,
            min_share: [0, self.min_share, self.min_share],
            aging_ns: [ns(self.aging_medium_us), ns(self.aging_low_us)],
            window_ops: self.window_ops,
            card: Bounds {
                ops: self.verbs_window_ops,
                wrs: self.verbs_window_wrs,
                bytes: self.verbs_window_bytes,
            },
            peer: Bounds {
                ops: bound(self.peer_ops),
                wrs: bound(self.peer_wrs),
                bytes: if self.peer_bytes == 0 { u64::MAX } else { self.peer_bytes },
            },
            reserve_ops: self.reserve_ops,
            reserve_bytes: self.reserve_bytes,
            slice_ns: ns(self.slice_us),
            coalesce: self.coalesce,
            ..Policy::DEFAULT
        }
    }

    fn check_quotas(&self) -> Result<(), ConfigError> {
        for (field, value, low, high) in self.quota.ranges() {
            ConfigError::unless(format!("quota.{field}"), value, low, high)?;
        }
        for (uid, own) in &self.uid {
            // All ones is nobody, to the system and in an IMPORT.
            ConfigError::unless("uid", (*uid).into(), 0, u64::from(abi::UID_OWN) - 1)?;
            // What it does not name is in range, as it was before.
            for (field, value, low, high) in own.over(&self.quota).ranges() {
                ConfigError::unless(format!("uid.{uid}.{field}"), value, low, high)?;
            }
        }
        Ok(())
    }

    fn check_devices(&self) -> Result<(), ConfigError> {
        let (devices, gids) = (&self.verbs_device, &self.verbs_gid);
        let twice = (1..devices.len()).any(|at| devices[..at].iter().any(|it| it.is(&devices[at])));
        if devices.len() > VERBS_DEVICES_MAX || twice {
            let value = devices.len() as u64;
            let limit = format!("at most {VERBS_DEVICES_MAX} devices, each once");
            return Err(ConfigError { field: "verbs_device".into(), value, limit });
        }
        if gids.len() > 1 && gids.len() != devices.len() {
            let (value, count) = (gids.len() as u64, devices.len());
            let limit = format!("one number for all devices, or one for each of {count}");
            return Err(ConfigError { field: "verbs_gid".into(), value, limit });
        }
        Ok(())
    }
}

/// Fewer would be overwritten before anybody looks.
const RECORDER_ENTRIES_MIN: u32 = 16;
/// Path MTUs that there are, bytes.
const MTUS: [u32; 5] = [256, 512, 1024, 2048, 4096];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_passes_and_each_excess_is_named() {
        Config::default().check().unwrap();
        let config = Config { window_ops: 0, ..Config::default() };
        assert_eq!(
            config.check().unwrap_err().to_string(),
            "window_ops is 0, but must be 1 to 4096"
        );
        let config = Config { window_bytes: 1, ..Config::default() };
        assert_eq!(config.check().unwrap_err().field, "window_bytes");
        let config = Config { verbs_service_level: [0, 16, 3], ..Config::default() };
        let text = "verbs_service_level is 16, but must be 0 to 15";
        assert_eq!(config.check().unwrap_err().to_string(), text);
        for (entries, good) in [(0, true), (16, true), (65_536, true), (8, false), (17, false)] {
            let config = Config { recorder_entries: entries, ..Config::default() };
            let wrong = config.check().err().map(|error| error.field);
            assert_eq!(wrong, (!good).then_some("recorder_entries".into()), "{entries}");
        }
        let config = Config { verbs_mtu: 1500, ..Config::default() };
        let text = "verbs_mtu is 1500, but must be 256, 512, 1024, 2048 or 4096";
        assert_eq!(config.check().unwrap_err().to_string(), text);
    }

    /// What no scheduler could run with is refused before anything starts, by name.
    #[test]
    fn what_nothing_could_be_scheduled_with_is_refused_by_field_value_and_limit() {
        type Change = fn(&mut Config);
        let table: [(Change, &str); 25] = [
            (|it| it.window_ops = 0, "window_ops is 0, but must be 1 to 4096"),
            (|it| it.window_wrs = 0, "window_wrs is 0, but must be 1 to 16384"),
            (|it| it.window_bytes = 0, "window_bytes is 0, but must be 131072 to 1099511627776"),
            (
                |it| it.slice_bytes = 512 << 10,
                "window_bytes is 262144, but must be 524288 to 1099511627776",
            ),
            (|it| it.slice_bytes = 0, "slice_bytes is 0, but must be 4096 to 67108864"),
            (|it| it.slice_us = 1_000_001, "slice_us is 1000001, but must be 0 to 1000000"),
            (|it| it.reserve_ops = 64, "reserve_ops is 64, but must be 0 to 63"),
            (
                |it| (it.reserve_ops, it.verbs_window_wrs) = (8, 8),
                "reserve_ops is 8, but must be 0 to 7",
            ),
            (
                |it| it.reserve_bytes = (128 << 10) + 1,
                "reserve_bytes is 131073, but must be 0 to 131072",
            ),
            (
                |it| it.reserve_bytes = u64::MAX,
                "reserve_bytes is 18446744073709551615, but must be 0 to 131072",
            ),
            (|it| it.class_weights = [4, 0, 1], "class_weights is 0, but must be 1 to 64"),
            (|it| it.class_weights = [65, 2, 1], "class_weights is 65, but must be 1 to 64"),
            (|it| it.min_share = 251, "min_share is 251, but must be 0 to 250"),
            (|it| it.floor_bytes = 65_537, "floor_bytes is 65537, but must be 0 to 65536"),
            (|it| it.peer_bytes = 1, "peer_bytes is 1, but must be 131072 to 18446744073709551615"),
            (|it| it.verbs_depth = 0, "verbs_depth is 0, but must be 1 to 8192"),
            (|it| it.verbs_window_ops = 0, "verbs_window_ops is 0, but must be 1 to 65536"),
            (|it| it.verbs_window_wrs = 0, "verbs_window_wrs is 0, but must be 1 to 65536"),
            (
                |it| it.verbs_window_bytes = 4_096,
                "verbs_window_bytes is 4096, but must be 131072 to 1099511627776",
            ),
            (|it| it.intake_budget = 0, "intake_budget is 0, but must be 1 to 1024"),
            (|it| it.quota.ops = 0, "quota.ops is 0, but must be 1 to 16777216"),
            (|it| it.quota.weight = 0, "quota.weight is 0, but must be 1 to 64"),
            (|it| it.quota.op_bytes = 0, "quota.op_bytes is 0, but must be 1 to 1125899906842624"),
            (
                |it| it.uid.entry(7).or_default().high_bytes = Some(0),
                "uid.7.high_bytes is 0, but must be 1 to 1125899906842624",
            ),
            (
                |it| it.uid.entry(u32::MAX).or_default().ops = Some(1),
                "uid is 4294967295, but must be 0 to 4294967294",
            ),
        ];
        for (change, expected) in table {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().to_string(), expected);
        }
        let mut config = Config::default();
        (config.reserve_ops, config.reserve_bytes) = (63, 128 << 10);
        (config.min_share, config.floor_bytes, config.peer_bytes) = (250, 64 << 10, 128 << 10);
        (config.class_weights, config.quota.weight) = ([64, 1, 64], 64);
        config.check().unwrap();
    }

    #[test]
    fn a_uid_has_its_own_where_it_is_named_and_else_what_all_have() {
        let mut config = Config::default();
        config.quota.ops = 7;
        let mut own = UidQuota::default();
        (own.weight, own.class_ceiling) = (Some(4), Some(abi::Class::Low));
        config.uid.insert(1_000, own);
        let quota = config.quota_of(1_000);
        assert_eq!((quota.weight, quota.ops, quota.class_ceiling), (4, 7, abi::Class::Low));
        assert_eq!(config.quota_of(1_001), config.quota);
        config.quota.ops = 8;
        assert_eq!(config.quota_of(1_000).ops, 8, "what is not named follows");
        assert_eq!(config.quota_key(1_000, "ops"), "uid.1000.ops");
        assert_eq!(config.quota_key(0, "ops"), "quota.ops");
    }

    #[test]
    fn devices_are_few_each_once_with_one_gid_or_one_each() {
        let check = |devices: &[&str], gids: &[u8]| {
            let verbs_device = devices.iter().map(|device| device.parse().unwrap()).collect();
            let config = Config { verbs_device, verbs_gid: gids.to_vec(), ..Config::default() };
            config.check().map_err(|error| error.to_string())
        };
        assert_eq!(check(&["a"; 1], &[]), Ok(()));
        assert_eq!(check(&["a", "b", "c", "d"], &[3]), Ok(()));
        assert_eq!(check(&["a:1", "a:2"], &[3, 4]), Ok(()), "two ports of one card");
        let text = "verbs_device is 5, but must be at most 4 devices, each once";
        assert_eq!(check(&["a", "b", "c", "d", "e"], &[]).unwrap_err(), text);
        for same in [["a", "a"], ["a:1", "a:1"], ["a", "a:2"]] {
            assert!(check(&same, &[]).unwrap_err().contains("each once"), "{same:?}");
        }
        let text = "verbs_gid is 2, but must be one number for all devices, or one for each of 3";
        assert_eq!(check(&["a", "b", "c"], &[1, 2]).unwrap_err(), text);
        assert!(check(&[], &[1, 2]).is_err());
    }

    #[test]
    fn devices_are_read_and_shown_alike() {
        for (text, name, port) in [("mlx5_0", "mlx5_0", None), ("rxe0:2", "rxe0", Some(2))] {
            let device: VerbsDevice = text.parse().unwrap();
            assert_eq!((device.name.as_str(), device.port), (name, port));
            assert_eq!(device.to_string(), text);
        }
        for bad in ["", ":1", "mlx5_0:", "mlx5_0:0", "mlx5_0:x", "mlx5_0:256", "../x"] {
            assert!(bad.parse::<VerbsDevice>().is_err(), "{bad}");
        }
    }
}
