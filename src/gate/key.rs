//! The pre-shared key: engines that have the same one let each other in, and nobody else.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// A file is read up to here: 64 digits and what editors put behind them.
const FILE_BYTES_MAX: u64 = 80;

/// A pre-shared key, 32 bytes.
#[derive(Clone)]
pub struct Key([u8; KEY_BYTES]);

/// Why there is no key.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file cannot be read, or written.
    #[error("the key file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Others than its owner may read it, or write it.
    #[error(
        "the key file {path} has mode {mode:04o}, but nobody else may read or write a key: \
         chmod 600 {path}"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("the key file {path} belongs to uid {uid}, but must to {own}, who runs this, or root")]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Who runs this.
        own: u32,
    },
    /// It holds something else.
    #[error("{path} holds no key: 64 hexadecimal digits are one; make one by verbring key {path}")]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// The system has no randomness to give.
    #[error("no random bytes for a key: {0}")]
    Random(std::io::Error),
}

impl Key {
    /// Reads a key file: 64 hexadecimal digits, readable by its owner alone.
    ///
    /// # Errors
    /// [`KeyError`] if it cannot be read, is open to others, or holds no key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.to_path_buf(), source };
        let file = fs::File::open(path).map_err(failed)?;
        let seen = file.metadata().map_err(failed)?;
        let (mode, uid) = (seen.mode() & 0o7777, seen.uid());
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { path: path.to_path_buf(), mode });
        }
        let own = nix::unistd::geteuid().as_raw();
        if uid != own && uid != 0 {
            return Err(KeyError::Owner { path: path.to_path_buf(), uid, own });
        }
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
        let key = read.ok().and_then(|_| Self::parse(&text));
        key.ok_or_else(|| KeyError::Form { path: path.to_path_buf() })
    }

    /// Makes a new key, and a file for it that nobody else may read. A file that is there stays.
    ///
    /// # Errors
    /// [`KeyError`] if there is a file already, or none can be made.
    pub fn make(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::File { path: path.to_path_buf(), source };
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| KeyError::Random(error.into()))?;
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(format!("{digits}\n").as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        Ok(Self(bytes))
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end();
        if digits.len() != 2 * KEY_BYTES || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut key = [0; KEY_BYTES];
        for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
        }
        Some(Self(key))
    }

    /// One that no stranger guesses.
    #[cfg(fuzzing)]
    pub(super) fn fuzz() -> Self {
        Self([0x5a; KEY_BYTES])
    }

    /// Its bytes, for the handshake.
    #[cfg(feature = "net")]
    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // Best effort: what is freed next need not hold it.
        self.0 = [0; KEY_BYTES];
        std::hint::black_box(&self.0);
    }
}

/// A key for tests.
#[cfg(test)]
#[cfg(feature = "net")]
pub(super) fn tests_key(byte: u8) -> Key {
    Key([byte; KEY_BYTES])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A place for a test's files, gone when it is dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("verbring-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_key_that_is_made_can_be_read_and_no_file_is_overwritten() {
        let folder = Folder::new("key-made");
        let path = folder.0.join("key");
        let made = Key::make(&path).unwrap();
        assert_eq!(Key::read(&path).unwrap().0, made.0);
        assert!(matches!(Key::make(&path), Err(KeyError::File { .. })));
        let other = folder.0.join("other");
        assert_ne!(Key::make(&other).unwrap().0, made.0);
        assert_eq!(format!("{made:?}"), "Key");
    }

    #[test]
    fn what_is_no_key_or_open_to_others_is_refused() {
        let folder = Folder::new("key-bad");
        let path = folder.0.join("key");
        let write = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Key::read(&path).map(|key| key.0)
        };
        let digits = "0F".repeat(KEY_BYTES);
        assert_eq!(write(&digits, 0o400).unwrap(), [15; KEY_BYTES]);
        assert_eq!(write(&format!("{digits}\r\n"), 0o600).unwrap(), [15; KEY_BYTES]);
        for text in
            ["", "0f", &format!("{digits}0"), &digits.replace("0F", "+F"), &"\u{e9}".repeat(32)]
        {
            assert!(matches!(write(text, 0o600), Err(KeyError::Form { .. })), "{text}");
        }
        let long = format!("{digits}\n{}", " ".repeat(1 << 20));
        assert!(write(&long, 0o600).is_ok(), "no more of it is read");
        let text = write(&digits, 0o640).unwrap_err().to_string();
        assert!(text.contains("has mode 0640") && text.contains("chmod 600"), "{text}");
        assert!(matches!(Key::read(&folder.0.join("none")), Err(KeyError::File { .. })));
    }
}
