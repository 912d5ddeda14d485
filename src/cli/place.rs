//! A directory for the socket of an engine that a command starts for itself.

use std::path::PathBuf;

use super::Failure;

/// A directory that only this user can enter, with the socket in it. It goes with the value.
pub(crate) struct Place(PathBuf);

impl Place {
    /// Makes one for a command.
    pub(crate) fn new(command: &str) -> Result<Self, Failure> {
        let template = std::env::temp_dir().join(format!("verbring-{command}-XXXXXX"));
        let path = nix::unistd::mkdtemp(&template)
            .map_err(|error| Failure::of("cannot make a temporary directory", &error))?;
        Ok(Self(path))
    }

    /// Where the engine is to listen.
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // With whatever an engine that was killed has left in it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
