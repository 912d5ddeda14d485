//! Where the command line says the two ends are, and what the near one must show.

use std::ffi::OsString;
use std::io::{self, BufRead};
use std::path::PathBuf;

use clap::Args;
use verbring::Secret;

use crate::cli::Failure;

/// Arguments that `--offer` and `--peer` share.
#[derive(Debug, Args)]
pub(crate) struct FarArgs {
    /// With --offer or --peer: where the engine of this host listens [or: VERBRING_SOCKET].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// With --peer: what --offer printed; - reads it from standard input [or: VERBRING_SECRET].
    #[arg(long, value_name = "HEX")]
    secret: Option<String>,
    /// With --peer: the uid that --offer runs under [default: that of this command].
    #[arg(long)]
    uid: Option<u32>,
}

impl FarArgs {
    /// The first of these that was given, where none of them has a meaning.
    pub(crate) fn given(&self) -> Option<&'static str> {
        [
            ("--socket", self.socket.is_some()),
            ("--secret", self.secret.is_some()),
            ("--uid", self.uid.is_some()),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }

    /// Where the engine of this host listens.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        let variable = || std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from);
        self.socket.clone().or_else(variable).ok_or_else(|| {
            let ways = "the path at which verbring serve listens on this host";
            Failure::Usage(format!("--socket is missing: give {ways}, or {SOCKET_VARIABLE}"))
        })
    }

    /// What the far end wants to be shown. It is looked for where other users of this machine do
    /// not see it: their lists of processes have its arguments.
    pub(crate) fn secret(&self) -> Result<Secret, Failure> {
        self.secret_from(std::env::var_os(SECRET_VARIABLE), io::stdin().lock())
    }

    fn secret_from(
        &self,
        variable: Option<OsString>,
        input: impl BufRead,
    ) -> Result<Secret, Failure> {
        let (from, text) = match (self.secret.as_deref(), variable) {
            (Some("-"), _) => {
                let mut line = String::new();
                input
                    .take(LINE_BYTES_MAX)
                    .read_line(&mut line)
                    .map_err(|error| Failure::of("--secret is -, but nothing is read", &error))?;
                ("--secret, from standard input,", line)
            }
            (Some(text), _) => ("--secret", text.to_string()),
            (None, Some(text)) => (SECRET_VARIABLE, text.to_string_lossy().into_owned()),
            (None, None) => {
                let text = format!(
                    "--secret is missing: give what --offer printed on the other host, or \
                     --secret - and that as a line, or {SECRET_VARIABLE}"
                );
                return Err(Failure::Usage(text));
            }
        };
        let digits = text.trim();
        digits.parse().map_err(|_| {
            // A secret that is misspelt is one still, and is not repeated.
            let count = digits.chars().count();
            Failure::Usage(format!(
                "{from} has {count} characters, but must be 64 hexadecimal digits, as --offer \
                 prints them on the other host"
            ))
        })
    }

    /// Under which uid the far end is.
    pub(crate) fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Refuses what only the near end needs.
    pub(crate) fn for_offer(&self) -> Result<(), Failure> {
        let name = match (&self.secret, self.uid) {
            (Some(_), _) => "--secret",
            (None, Some(_)) => "--uid",
            (None, None) => return Ok(()),
        };
        let text = format!("{name} is for --peer: an offer makes its secret, and has its own uid");
        Err(Failure::Usage(text))
    }
}

const SOCKET_VARIABLE: &str = "VERBRING_SOCKET";

/// In the environment of a process, which only its own user may read.
pub(super) const SECRET_VARIABLE: &str = "VERBRING_SECRET";

/// More of a line is no secret.
const LINE_BYTES_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(secret: Option<&str>, variable: Option<&str>, input: &str) -> Result<String, String> {
        let args = FarArgs { socket: None, secret: secret.map(str::to_string), uid: None };
        match args.secret_from(variable.map(OsString::from), input.as_bytes()) {
            Ok(secret) => Ok(secret.to_hex()),
            Err(Failure::Usage(text)) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_secret_comes_from_its_argument_its_line_or_its_variable_in_this_order() {
        let [a, b, c] = ["a", "b", "c"].map(|digit| digit.repeat(64));
        assert_eq!(read(Some(&a), Some(&b), &c), Ok(a.clone()));
        assert_eq!(read(Some("-"), Some(&b), &format!("{c}\nmore")), Ok(c));
        assert_eq!(read(None, Some(&format!(" {b}\n")), ""), Ok(b));
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_repeated() {
        for (secret, variable, input, expected) in [
            (Some("beef"), None, "", "--secret has 4 characters, but must be 64"),
            (Some("-"), None, "", "--secret, from standard input, has 0 characters"),
            (None, Some("cafe"), "", "VERBRING_SECRET has 4 characters"),
            (None, None, "", "--secret is missing: give what --offer printed"),
        ] {
            let text = read(secret, variable, input).unwrap_err();
            assert!(text.contains(expected), "{text}");
            assert!(!text.contains("beef") && !text.contains("cafe"), "{text}");
        }
        // However long a line is, no more of it is read.
        let text = read(Some("-"), None, &"f".repeat(100_000)).unwrap_err();
        assert!(text.contains("has 256 characters"), "{text}");
    }
}
