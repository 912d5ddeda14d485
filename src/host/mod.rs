//! Engines on threads: what runs a core in production.

mod config;

pub use config::{Config, ConfigError, Quota};

/// Placeholder for the running engine.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// x
    pub fn connect(&self) {}
}
