//! `verbring key`: a new key file for engines of two or more hosts.

use std::io::ErrorKind;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use verbring::gate::{Key, KeyError};

use super::{Failure, say, say_json};

/// Arguments of `verbring key`.
#[derive(Debug, Args)]
pub(crate) struct MakeKey {
    /// The file to make. One that is there stays as it is.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

impl MakeKey {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let path = self.file.display();
        // The key itself is told to nobody: it is in the file.
        Key::make(&self.file).map_err(|error| match error {
            KeyError::File { source, .. } if source.kind() == ErrorKind::AlreadyExists => {
                Failure::Failed(format!(
                    "FILE is {path}, which exists and stays as it is: give another name, or \
                     remove it first if no engine uses it any more"
                ))
            }
            error => Failure::of("cannot make a key", &error),
        })?;
        if self.json {
            return say_json(&json!({ "key_file": self.file.display().to_string() }));
        }
        say(&format!(
            "{path} holds a new key, which nobody but its owner may read. Copy it to every host\n\
             whose engine is to meet this one, by a way that nobody listens to (scp -p), and\n\
             start each engine with\n\
             \n  \
               verbring serve --socket PATH --listen ADDRESS:PORT --psk-file FILE\n\
             \n\
             Whoever has the key is let in: keep its mode at 0600.\n"
        ))
    }
}
