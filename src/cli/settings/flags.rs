//! Settings given as flags: by their own, or as `key=value`.

use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command};
use verbring::host::Config;

use super::form::Shown;
use super::table::TABLE;
use super::{BadSetting, nearest_key};

/// Settings given as flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags(pub(super) Vec<Given>);

/// A setting given as a flag: place in [`TABLE`], text, and the flag as it was written.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) place: usize,
    pub(super) text: OsString,
    pub(super) flag: String,
}

impl Flags {
    /// Takes settings given as `key=value`, for commands whose own flags would mix with them.
    pub(crate) fn from_pairs(pairs: &[String]) -> Result<Self, BadSetting> {
        let given = pairs.iter().map(|pair| {
            let (key, text) = pair.split_once('=').unwrap_or((pair, ""));
            match TABLE.iter().position(|setting| setting.key == key) {
                Some(place) => {
                    Ok(Given { place, text: OsString::from(text), flag: format!("--set {key}") })
                }
                None => {
                    let (origin, nearest) = (format!("flag --set {pair}"), nearest_key(key));
                    Err(BadSetting::UnknownKey { origin, key: key.to_string(), nearest })
                }
            }
        });
        given.collect::<Result<_, _>>().map(Self)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = TABLE.iter().enumerate().filter_map(|(place, setting)| {
            let flag = format!("--{}", setting.flag());
            let text = matches.get_one::<OsString>(setting.key).cloned();
            text.map(|text| Given { place, text, flag })
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        TABLE.iter().fold(command, |command, setting| {
            let default = match (setting.read)(&Config::default()) {
                Shown::Unset => String::new(),
                Shown::Number(number) => format!(" [default: {number}]"),
                Shown::Text(text) => format!(" [default: {text}]"),
            };
            let arg = Arg::new(setting.key)
                .long(setting.flag())
                .value_name(setting.form.placeholder())
                .value_parser(clap::value_parser!(OsString))
                .allow_hyphen_values(true)
                .help(format!("{}{default}", setting.help))
                .help_heading("Settings");
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
