//! Where an engine's settings come from: default, TOML file, environment, flags, in that order.
//!
//! One table names every setting once; the file's keys, the environment's names, the flags, the
//! help text and `--print-config` all follow from it, so none can be forgotten in one of them.
//! What was printed is itself a file that gives the same settings.
//!
//! **Invariants**: a key that is not in the table is refused, never skipped; a value that was
//! overridden is still refused if it could not be read; only the values in force must be in range.
//! **Tests**: `tests` for the layers and each kind of mistake; `tests/cli.rs` through the command.

mod flags;
mod form;
mod show;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use verbring::host::Config;

use flags::Given;
use form::Form;
use table::{Setting, TABLE, VARIABLE_PREFIX};

pub(crate) use flags::Flags;

/// The settings in force, each with where it came from.
#[derive(Debug)]
pub(crate) struct Settings {
    config: Config,
    /// By place in [`TABLE`].
    origins: Vec<Origin>,
}

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
    UnknownKey { origin: String, key: String, nearest: &'static str },
    #[error("{origin}: {key} is {value}, but must be {limit}")]
    Value { origin: String, key: String, value: String, limit: String },
}

impl Settings {
    /// Lays the file over the defaults, the environment over the file and the flags over all.
    pub(crate) fn layered(
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<OsString>,
        flags: &Flags,
    ) -> Result<Self, BadSetting> {
        let mut settings =
            Self { config: Config::default(), origins: vec![Origin::Default; TABLE.len()] };
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| BadSetting::Unreadable { path: path.to_owned(), source })?;
            settings.lay_file(path, &text)?;
        }
        for (place, setting) in TABLE.iter().enumerate() {
            let name = setting.variable();
            if let Some(text) = environment(&name) {
                settings.lay(place, &text, Origin::Environment(name))?;
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
                let inside = format!("{key}.");
                let is_section = TABLE.iter().any(|setting| setting.key.starts_with(&inside));
                let place = TABLE.iter().position(|setting| setting.key == key);
                match (place, value.get_ref()) {
                    (Some(place), _) => self.lay_value(place, value, origin)?,
                    (None, DeValue::Table(table)) if is_section || !table.is_empty() => {
                        pending.push((inside, table));
                    }
                    (None, _) if is_section => {
                        let value = describe(value.get_ref());
                        return Err(bad_value(&origin, &key, value, "a table".to_string()));
                    }
                    (None, _) => {
                        let nearest = nearest_key(&key);
                        let origin = origin.to_string();
                        return Err(BadSetting::UnknownKey { origin, key, nearest });
                    }
                }
            }
        }
        Ok(())
    }

    fn lay_value(
        &mut self,
        place: usize,
        value: &Spanned<DeValue<'_>>,
        origin: Origin,
    ) -> Result<(), BadSetting> {
        let setting = &TABLE[place];
        let text = match value.get_ref() {
            DeValue::Integer(number) if setting.form.takes_integer(number.radix()) => {
                Some(number.to_string())
            }
            DeValue::String(text) if setting.form.takes_string() => Some(text.to_string()),
            _ => None,
        };
        match text {
            Some(text) if (setting.write)(&mut self.config, OsStr::new(&text)) => {
                self.origins[place] = origin;
                Ok(())
            }
            _ => {
                let value = describe(value.get_ref());
                Err(bad_value(&origin, setting.key, value, setting.limit()))
            }
        }
    }

    fn lay(&mut self, place: usize, text: &OsStr, origin: Origin) -> Result<(), BadSetting> {
        let setting = &TABLE[place];
        if !(setting.write)(&mut self.config, text) {
            let value = format!("{text:?}");
            return Err(bad_value(&origin, setting.key, value, setting.limit()));
        }
        self.origins[place] = origin;
        Ok(())
    }

    fn check(&self) -> Result<(), BadSetting> {
        let Err(error) = self.config.check() else { return Ok(()) };
        let place = TABLE.iter().position(|setting| setting.key == error.field);
        let origin = place.map_or(&Origin::Default, |place| &self.origins[place]);
        let octal = place.is_some_and(|place| matches!(TABLE[place].form, Form::Mode));
        let (value, limit) = match (octal, place) {
            (true, Some(place)) => (format!("0{:o}", error.value), TABLE[place].limit()),
            _ => (error.value.to_string(), error.limit),
        };
        Err(bad_value(origin, error.field, value, limit))
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

/// What tests and their virtual machine are told by: no misspelt settings.
const OF_TESTS: [&str; 2] = ["VERBRING_TEST_", "VERBRING_VM_"];

/// Names in the environment that look like settings but are none, each with the nearest that is.
pub(crate) fn unknown_variables(names: impl Iterator<Item = OsString>) -> Vec<(String, String)> {
    let known: Vec<String> = TABLE.iter().map(Setting::variable).collect();
    names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with(VARIABLE_PREFIX) && !known.contains(name))
        .filter(|name| !OF_TESTS.iter().any(|prefix| name.starts_with(prefix)))
        .map(|name| {
            let key = name[VARIABLE_PREFIX.len()..].to_ascii_lowercase();
            let nearest = TABLE.iter().find(|setting| setting.key == nearest_key(&key));
            (name, nearest.map(Setting::variable).unwrap_or_default())
        })
        .collect()
}

fn bad_value(origin: &Origin, key: &str, value: String, limit: String) -> BadSetting {
    BadSetting::Value { origin: origin.to_string(), key: key.to_string(), value, limit }
}

fn nearest_key(key: &str) -> &'static str {
    let likeness = |setting: &&Setting| strsim::normalized_damerau_levenshtein(setting.key, key);
    let nearest = TABLE.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    nearest.map_or("", |setting| setting.key)
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
