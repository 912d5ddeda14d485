//! Where an engine's settings come from: default, TOML file, environment, flags, in that order.
//!
//! One table names every setting once; the file's keys, the environment's names, the flags, the
//! help text and `--print-config` all follow from it, so none can be forgotten in one of them.
//! What was printed is itself a file that gives the same settings. A second table names what one
//! uid may have of its own: `[uid.7]` in the file, `VERBRING_UID_7_OPS`, `--set uid.7.ops=1`.
//!
//! **Invariants**: a key that is not in the table is refused, never skipped; a value that was
//! overridden is still refused if it could not be read; only the values in force must be in range.
//! **Tests**: `tests` for the layers and each kind of mistake; `tests/cli.rs` through the command.

mod flags;
mod form;
mod place;
mod show;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use verbring::host::Config;

use flags::Given;
use form::Form;
use place::{NoPlace, Place, UIDS, read_uid};
use table::TABLE;

pub(crate) use flags::Flags;

/// The settings in force, each with where it came from.
#[derive(Debug)]
pub(crate) struct Settings {
    config: Config,
    /// Of what is not at its default.
    origins: BTreeMap<Place, Origin>,
}

/// Names and values of what a process is told by its environment.
pub(crate) type Environment = BTreeMap<String, OsString>;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Default,
    File(PathBuf, usize),
    Environment(String),
    Flag(String),
}

/// A setting that cannot be used.
#[derive(Debug, Error)]
pub(crate) enum BadSetting {
    #[error("cannot read {}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}: {text}", .path.display())]
    Syntax { path: PathBuf, line: usize, text: String },
    #[error("{origin}: unknown key {key}; the nearest known one is {nearest}")]
    UnknownKey { origin: String, key: String, nearest: String },
    #[error("{origin}: {key} is {value}, but must be {limit}")]
    Value { origin: String, key: String, value: String, limit: String },
}

impl Settings {
    /// Lays the file over the defaults, the environment over the file and the flags over all.
    pub(crate) fn layered(
        file: Option<&Path>,
        environment: &Environment,
        flags: &Flags,
    ) -> Result<Self, BadSetting> {
        let mut settings = Self { config: Config::default(), origins: BTreeMap::new() };
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| BadSetting::Unreadable { path: path.to_owned(), source })?;
            settings.lay_file(path, &text)?;
        }
        for (name, text) in environment {
            if let Some(place) = Place::of_variable(name) {
                settings.lay(place, text, Origin::Environment(name.clone()))?;
            }
        }
        for Given { place, text, flag } in &flags.0 {
            settings.lay(*place, text, Origin::Flag(flag.clone()))?;
        }
        settings.check()?;
        Ok(settings)
    }

    /// The settings as the library takes them.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    fn origin(&self, place: Place) -> &Origin {
        self.origins.get(&place).unwrap_or(&Origin::Default)
    }

    fn lay_file(&mut self, path: &Path, text: &str) -> Result<(), BadSetting> {
        let line_of = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let document = DeTable::parse(text).map_err(|error| BadSetting::Syntax {
            path: path.to_owned(),
            line: line_of(error.span().map_or(0, |span| span.start)),
            text: error.message().trim_end().to_string(),
        })?;
        // Tables still to be walked, each with its dotted path and a dot.
        let mut pending = vec![(String::new(), document.get_ref())];
        while let Some((prefix, table)) = pending.pop() {
            for (name, value) in table {
                let key = format!("{prefix}{}", name.get_ref());
                let origin = Origin::File(path.to_owned(), line_of(name.span().start));
                let is_section = self.section(&prefix, name.get_ref(), &origin)?;
                match (Place::find(&key), value.get_ref()) {
                    (Ok(place), _) => self.lay_value(place, value, origin)?,
                    (Err(_), DeValue::Table(table)) if is_section || !table.is_empty() => {
                        pending.push((format!("{key}."), table));
                    }
                    (Err(_), _) if is_section => {
                        let value = describe(value.get_ref());
                        return Err(bad_value(&origin, &key, value, "a table".to_string()));
                    }
                    (Err(why), _) => return Err(no_place(&origin.to_string(), &key, why)),
                }
            }
        }
        Ok(())
    }

    /// True if this is the name of a table that there may be. That of a uid is a contract, even if
    /// nothing is in it.
    fn section(&mut self, prefix: &str, name: &str, origin: &Origin) -> Result<bool, BadSetting> {
        if prefix == "uid." {
            let key = format!("{prefix}{name}");
            let uid = read_uid(name).map_err(|why| no_place(&origin.to_string(), &key, why))?;
            self.config.uid.entry(uid).or_default();
            return Ok(true);
        }
        let inside = format!("{prefix}{name}.");
        Ok(inside == "uid." || TABLE.iter().any(|setting| setting.key.starts_with(&inside)))
    }

    fn lay_value(
        &mut self,
        place: Place,
        value: &Spanned<DeValue<'_>>,
        origin: Origin,
    ) -> Result<(), BadSetting> {
        let form = place.form();
        let text = match value.get_ref() {
            DeValue::Integer(number) if form.takes_integer(number.radix()) => {
                Some(number.to_string())
            }
            DeValue::String(text) if form.takes_string() => Some(text.to_string()),
            DeValue::Boolean(value) if form.takes_boolean() => Some(value.to_string()),
            _ => None,
        };
        match text {
            Some(text) if place.write(&mut self.config, OsStr::new(&text)) => {
                self.origins.insert(place, origin);
                Ok(())
            }
            _ => {
                let value = describe(value.get_ref());
                Err(bad_value(&origin, &place.key(), value, place.limit()))
            }
        }
    }

    fn lay(&mut self, place: Place, text: &OsStr, origin: Origin) -> Result<(), BadSetting> {
        if !place.write(&mut self.config, text) {
            let value = format!("{text:?}");
            return Err(bad_value(&origin, &place.key(), value, place.limit()));
        }
        self.origins.insert(place, origin);
        Ok(())
    }

    fn check(&self) -> Result<(), BadSetting> {
        let Err(error) = self.config.check() else { return Ok(()) };
        let place = Place::find(&error.field).ok();
        let origin = place.map_or(&Origin::Default, |place| self.origin(place));
        let (value, limit) = match place {
            Some(place) if matches!(place.form(), Form::Mode) => {
                (format!("0{:o}", error.value), place.limit())
            }
            _ => (error.value.to_string(), error.limit),
        };
        Err(bad_value(origin, &error.field, value, limit))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// What tests, their virtual machine, and other commands are told by: no misspelt settings.
const OF_OTHERS: [&str; 3] = ["VERBRING_TEST_", "VERBRING_VM_", "VERBRING_SECRET"];

/// Names in the environment that look like settings but are none, each with the nearest that is.
pub(crate) fn unknown_variables(environment: &Environment) -> Vec<(String, String)> {
    let names = environment.keys().filter(|name| Place::of_variable(name).is_none());
    names
        .filter(|name| !OF_OTHERS.iter().any(|prefix| name.starts_with(prefix)))
        .filter_map(|name| Some((name.clone(), Place::like_variable(name)?.variable())))
        .collect()
}

fn bad_value(origin: &Origin, key: &str, value: String, limit: String) -> BadSetting {
    BadSetting::Value { origin: origin.to_string(), key: key.to_string(), value, limit }
}

fn no_place(origin: &str, key: &str, why: NoPlace) -> BadSetting {
    let (origin, key) = (origin.to_string(), key.to_string());
    match why {
        NoPlace::Unknown { nearest } => BadSetting::UnknownKey { origin, key, nearest },
        NoPlace::Uid { text } => {
            let (key, value, limit) = ("uid".to_string(), format!("{text:?}"), UIDS.to_string());
            BadSetting::Value { origin, key, value, limit }
        }
    }
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(value) => value.to_string(),
        DeValue::Array(_) => "an array".to_string(),
        DeValue::Table(_) => "a table".to_string(),
    }
}
