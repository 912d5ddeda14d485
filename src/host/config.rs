//! What can be set about an engine: plain values with ranges; checked before anything starts.

use std::path::PathBuf;

use thiserror::Error;

use crate::abi::Class;

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
    /// A large op moves in slices of this many bytes; 4 KiB to 64 MiB.
    pub slice_bytes: u32,
    /// SQEs taken from one ring in one turn; 1 to 1,024.
    pub intake_budget: u32,
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
    /// What one uid may use.
    pub quota: Quota,
}

/// What one uid may use, over all its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quota {
    /// Sessions at once.
    pub sessions: u32,
    /// Rings at once.
    pub rings: u32,
    /// Regions and imports at once.
    pub regions: u32,
    /// Bytes in regions and ring segments.
    pub region_bytes: u64,
    /// Ops in flight.
    pub ops: u32,
    /// Control messages a second; more are answered later, not refused.
    pub control_per_s: u32,
    /// Most urgent class.
    pub class_ceiling: Class,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            engine: 0,
            socket: None,
            socket_mode: 0o600,
            records: 16_384,
            list_blocks: 4_096,
            sessions_max: 256,
            rings_max: 1_024,
            regions_max: 4_096,
            window_ops: 64,
            window_bytes: 256 << 10,
            slice_bytes: 128 << 10,
            intake_budget: 64,
            spin_us: 50,
            ring_idle_ms: 10,
            drain_ms: 5_000,
            first_index: u32::MAX - 40,
            pin: None,
            quota: Quota::default(),
        }
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            sessions: 64,
            rings: 1_024,
            regions: 4_096,
            region_bytes: 16 << 30,
            ops: 16_384,
            control_per_s: 20_000,
            class_ceiling: Class::High,
        }
    }
}

/// A setting outside its range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field} is {value}, but must be {limit}")]
pub struct ConfigError {
    /// The setting.
    pub field: &'static str,
    /// What was given.
    pub value: u64,
    /// What it must be.
    pub limit: String,
}

impl Config {
    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`ConfigError`] names the first that is outside.
    pub fn check(&self) -> Result<(), ConfigError> {
        let quota = &self.quota;
        let ranges: [(&'static str, u64, u64, u64); 18] = [
            ("records", self.records.into(), 64, 1 << 24),
            ("list_blocks", self.list_blocks.into(), 64, 1 << 20),
            ("sessions_max", self.sessions_max.into(), 1, 4_096),
            ("rings_max", self.rings_max.into(), 1, 65_536),
            ("regions_max", self.regions_max.into(), 1, 1 << 20),
            ("window_ops", self.window_ops.into(), 1, 4_096),
            ("slice_bytes", self.slice_bytes.into(), 4_096, 64 << 20),
            ("window_bytes", self.window_bytes, self.slice_bytes.into(), 1 << 40),
            ("intake_budget", self.intake_budget.into(), 1, 1_024),
            ("spin_us", self.spin_us.into(), 0, 1_000_000),
            ("ring_idle_ms", self.ring_idle_ms.into(), 1, 60_000),
            ("drain_ms", self.drain_ms.into(), 0, 600_000),
            ("quota.sessions", quota.sessions.into(), 1, 4_096),
            ("quota.rings", quota.rings.into(), 1, 65_536),
            ("quota.regions", quota.regions.into(), 1, 1 << 20),
            ("quota.ops", quota.ops.into(), 1, 1 << 24),
            ("quota.control_per_s", quota.control_per_s.into(), 1, 1_000_000),
            ("socket_mode", self.socket_mode.into(), 0, 0o777),
        ];
        for (field, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                return Err(ConfigError { field, value, limit: format!("{low} to {high}") });
            }
        }
        Ok(())
    }
}

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
    }
}
