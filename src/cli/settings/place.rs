//! Places of settings: one of the engine's, or one of a uid's. Keys, variables and limits by place.

use std::ffi::OsStr;

use verbring::host::Config;

use super::form::{Form, Shown};
use super::table::{TABLE, UID_TABLE, VARIABLE_PREFIX};

/// Where a setting is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In [`TABLE`].
    Engine(usize),
    /// In [`UID_TABLE`], of this uid.
    Uid(u32, usize),
}

/// Why a key names no setting.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// It is like this one.
    Unknown { nearest: String },
    /// This is no uid.
    Uid { text: String },
}

/// What a uid must be, in words.
pub(super) const UIDS: &str = "a user's number, 0 to 4294967294";

impl Place {
    /// The setting of this key, dotted as in the file.
    pub(super) fn find(key: &str) -> Result<Self, NoPlace> {
        let Some((uid, own)) = key.strip_prefix("uid.").and_then(|rest| rest.split_once('.'))
        else {
            let place = TABLE.iter().position(|setting| setting.key == key).map(Self::Engine);
            let unknown = || NoPlace::Unknown { nearest: nearest(key, Self::engine()).key() };
            return place.ok_or_else(unknown);
        };
        let uid = read_uid(uid)?;
        let place = UID_TABLE.iter().position(|setting| setting.key == own);
        let unknown = || NoPlace::Unknown { nearest: nearest(key, Self::of_uid(uid)).key() };
        place.map(|at| Self::Uid(uid, at)).ok_or_else(unknown)
    }

    /// The setting of this variable of the environment, if there is one.
    pub(super) fn of_variable(name: &str) -> Option<Self> {
        Self::like_variable(name).filter(|place| place.variable() == name)
    }

    /// The setting whose variable is most like this one, if this begins as all do.
    pub(super) fn like_variable(name: &str) -> Option<Self> {
        let key = name.strip_prefix(VARIABLE_PREFIX)?.to_ascii_lowercase();
        let uid = key.strip_prefix("uid_").and_then(|rest| rest.split_once('_'));
        match uid.and_then(|(uid, own)| Some((read_uid(uid).ok()?, own))) {
            Some((uid, own)) => Some(nearest(&format!("uid.{uid}.{own}"), Self::of_uid(uid))),
            None => Some(nearest(&key, Self::engine())),
        }
    }

    pub(super) fn engine() -> impl Iterator<Item = Self> {
        (0..TABLE.len()).map(Self::Engine)
    }

    pub(super) fn of_uid(uid: u32) -> impl Iterator<Item = Self> {
        (0..UID_TABLE.len()).map(move |at| Self::Uid(uid, at))
    }

    /// As in the file, dotted.
    pub(super) fn key(self) -> String {
        match self {
            Self::Engine(at) => TABLE[at].key.to_string(),
            Self::Uid(uid, at) => format!("uid.{uid}.{}", UID_TABLE[at].key),
        }
    }

    /// Its name in the environment.
    pub(super) fn variable(self) -> String {
        VARIABLE_PREFIX.to_string() + &self.key().replace('.', "_").to_ascii_uppercase()
    }

    pub(super) fn form(self) -> Form {
        match self {
            Self::Engine(at) => TABLE[at].form,
            Self::Uid(_, at) => UID_TABLE[at].form,
        }
    }

    pub(super) fn read(self, config: &Config) -> Shown {
        match self {
            Self::Engine(at) => (TABLE[at].read)(config),
            Self::Uid(uid, at) => config.uid.get(&uid).map_or(Shown::Unset, UID_TABLE[at].read),
        }
    }

    /// False if the text cannot be read.
    pub(super) fn write(self, config: &mut Config, text: &OsStr) -> bool {
        match self {
            Self::Engine(at) => (TABLE[at].write)(config, text),
            Self::Uid(uid, at) => (UID_TABLE[at].write)(config.uid.entry(uid).or_default(), text),
        }
    }

    /// What a value must be, in words. Ranges are asked of [`Config::check`], which alone knows
    /// them, by a value that is surely too large.
    pub(super) fn limit(self) -> String {
        self.form().limit(|most| {
            let mut config = Config::default();
            self.write(&mut config, OsStr::new(&most.to_string()));
            match config.check() {
                Err(error) if error.field == self.key() => error.limit,
                _ => format!("0 to {most}"),
            }
        })
    }
}

/// A uid as it is printed, so that none has two tables.
pub(super) fn read_uid(text: &str) -> Result<u32, NoPlace> {
    let uid = text.parse().ok().filter(|uid: &u32| *uid != u32::MAX && uid.to_string() == text);
    uid.ok_or_else(|| NoPlace::Uid { text: text.to_string() })
}

/// The place whose key is most like this one.
fn nearest(key: &str, places: impl Iterator<Item = Place>) -> Place {
    let likeness = |place: &Place| strsim::normalized_damerau_levenshtein(&place.key(), key);
    let nearest = places.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    nearest.unwrap_or(Place::Engine(0))
}
