//! Settings given as flags: by their own, or as `key=value`.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use verbring::host::Config;

use super::form::Shown;
use super::place::Place;
use super::table::TABLE;
use super::{BadSetting, no_place};

/// Settings given as flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags(pub(super) Vec<Given>);

/// A setting given as a flag: its place, its text, and the flag as it was written.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) place: Place,
    pub(super) text: OsString,
    pub(super) flag: String,
}

/// The flag that takes settings by their keys.
const SET: &str = "set";

impl Flags {
    /// Takes settings given as `key=value`, for commands whose own flags would mix with them.
    pub(crate) fn from_pairs(pairs: &[String]) -> Result<Self, BadSetting> {
        let given = pairs.iter().map(|pair| {
            let (key, text) = pair.split_once('=').unwrap_or((pair, ""));
            let place = Place::find(key)
                .map_err(|why| no_place(&format!("flag --set {pair}"), key, why))?;
            Ok(Given { place, text: OsString::from(text), flag: format!("--set {key}") })
        });
        given.collect::<Result<_, _>>().map(Self)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let pairs: Vec<String> = matches.get_many(SET).into_iter().flatten().cloned().collect();
        let mut flags = Self::from_pairs(&pairs)
            .map_err(|error| clap::Error::raw(ErrorKind::InvalidValue, format!("{error}\n")))?;
        flags.0.extend(TABLE.iter().enumerate().filter_map(|(at, setting)| {
            let flag = format!("--{}", setting.flag());
            let text = matches.get_one::<OsString>(setting.key).cloned();
            text.map(|text| Given { place: Place::Engine(at), text, flag })
        }));
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let set = Arg::new(SET)
            .long(SET)
            .value_name("KEY=VALUE")
            .action(ArgAction::Append)
            .help("Any setting by its key; also of one uid, as in uid.1000.weight=4")
            .help_heading("Settings");
        TABLE.iter().fold(command.arg(set), |command, setting| {
            let default = match (setting.read)(&Config::default()) {
                Shown::Unset => String::new(),
                Shown::Number(number) => format!(" [default: {number}]"),
                Shown::Switch(on) => format!(" [default: {on}]"),
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
