//! Where an engine's settings come from: default, TOML file, environment, flags, in that order.
//!
//! One table names every setting once; the file's keys, the environment's names, the flags, the
//! help text and `--print-config` all follow from it, so none can be forgotten in one of them.
//! What was printed is itself a file that gives the same settings.
//!
//! **Invariants**: a key that is not in the table is refused, never skipped; a value that was
//! overridden is still refused if it could not be read; only the values in force must be in range.
//! **Tests**: here for the layers and each kind of mistake; `tests/cli.rs` through the command.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command};
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use verbring::abi::Class;
use verbring::host::{Config, VERBS_DEVICES_MAX, VerbsDevice, VerbsUse};
use verbring::sched::Mode as Order;

use super::class_name;

/// The settings in force, each with where it came from.
#[derive(Debug)]
pub(crate) struct Settings {
    config: Config,
    /// By place in [`TABLE`].
    origins: Vec<Origin>,
}

/// Settings given as flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags(Vec<Given>);

/// A setting given as a flag: place in [`TABLE`], text, and the flag as it was written.
#[derive(Clone, Debug)]
struct Given {
    place: usize,
    text: OsString,
    flag: String,
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

    /// The settings as a TOML file, with the origin of each as a comment.
    pub(crate) fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        let mut section = "";
        for (setting, origin) in TABLE.iter().zip(&self.origins) {
            let (table, key) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
            if table != section {
                lines.push((format!("\n[{table}]"), None));
                section = table;
            }
            let line = match (setting.read)(&self.config) {
                Shown::Unset => format!("# {key} is not set"),
                Shown::Number(number) => format!("{key} = {number}"),
                Shown::Text(text) => format!("{key} = {}", toml::Value::String(text)),
            };
            lines.push((line, Some(origin)));
        }
        let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
        let mut out = String::new();
        for (line, origin) in lines {
            match origin {
                Some(origin) => out += &format!("{line:width$}  # {origin}\n"),
                None => out += &format!("{line}\n"),
            }
        }
        out
    }

    /// The settings as one object: for each key its value and its origin.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let rows = TABLE.iter().zip(&self.origins).map(|(setting, origin)| {
            let value = match (setting.read)(&self.config) {
                Shown::Unset => serde_json::Value::Null,
                Shown::Number(number) => number.into(),
                Shown::Text(text) => text.into(),
            };
            let row = serde_json::json!({ "value": value, "from": origin.to_string() });
            (setting.key.to_string(), row)
        });
        serde_json::Value::Object(rows.collect())
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

/// One row of [`TABLE`].
struct Setting {
    /// As in the file, dotted, and in [`Config`].
    key: &'static str,
    form: Form,
    help: &'static str,
    read: fn(&Config) -> Shown,
    /// False if the text cannot be read.
    write: fn(&mut Config, &OsStr) -> bool,
}

/// How a value is written.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// A whole number up to the given one.
    Number(u64),
    /// Likewise, where KiB, MiB or GiB may follow.
    Bytes(u64),
    /// Permission bits in octal.
    Mode,
    Path,
    /// A number or `none`.
    Cpu,
    /// A number, or several, or `auto`.
    Places,
    /// A device's name, and perhaps its port behind a colon; or several of them; or `auto`.
    Devices,
    /// One number for all classes, or one for each.
    PerClass,
    /// Which op goes next.
    Order,
    Use,
    Class,
}

/// A value as it is printed.
enum Shown {
    Unset,
    Number(u64),
    Text(String),
}

impl Setting {
    fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }

    fn variable(&self) -> String {
        VARIABLE_PREFIX.to_string() + &self.key.replace('.', "_").to_ascii_uppercase()
    }

    /// What a value must be, in words. Ranges are asked of [`Config::check`], which alone knows
    /// them, by a value that is surely too large.
    fn limit(&self) -> String {
        let range = |most: u64| {
            let mut config = Config::default();
            (self.write)(&mut config, OsStr::new(&most.to_string()));
            match config.check() {
                Err(error) if error.field == self.key => error.limit,
                _ => format!("0 to {most}"),
            }
        };
        match self.form {
            Form::Number(most) => format!("a whole number, {}", range(most)),
            Form::Bytes(most) => format!("{} bytes; KiB, MiB or GiB may follow", range(most)),
            Form::Mode => "permission bits in octal, 0000 to 0777".to_string(),
            Form::Path => "a path that is not empty".to_string(),
            Form::Cpu => "a CPU's number or none".to_string(),
            Form::Places => "a number from 0 to 255, or one for each device, \"A,B\", or \
                             auto"
                .to_string(),
            Form::Devices => format!(
                "DEVICE or DEVICE:PORT, with a port from 1 to 255; or up to {VERBS_DEVICES_MAX} \
                 of them, \"A,B\", each once; or auto"
            ),
            Form::PerClass => format!(
                "a whole number, {}, or three of them, \"HIGH,MEDIUM,LOW\"",
                range(u8::MAX.into())
            ),
            Form::Use => "off, auto or require".to_string(),
            Form::Order => "weighted, strict, fifo, tent or direct".to_string(),
            Form::Class => "high, medium or low".to_string(),
        }
    }
}

impl Form {
    /// Whether an integer written in this radix will do. A mode in decimal is a slip of the pen.
    fn takes_integer(self, radix: u32) -> bool {
        match self {
            Self::Number(_) | Self::Bytes(_) | Self::Cpu | Self::Places | Self::PerClass => true,
            Self::Mode => radix == 8,
            Self::Path | Self::Devices | Self::Use | Self::Order | Self::Class => false,
        }
    }

    fn takes_string(self) -> bool {
        !matches!(self, Self::Number(_))
    }

    fn placeholder(self) -> &'static str {
        match self {
            Self::Number(_) => "NUMBER",
            Self::Bytes(_) => "BYTES",
            Self::Mode => "MODE",
            Self::Path => "PATH",
            Self::Cpu => "CPU",
            Self::Places => "INDEX[,INDEX...]",
            Self::Devices => "DEVICE[:PORT][,DEVICE[:PORT]...]",
            Self::PerClass => "NUMBER[,NUMBER,NUMBER]",
            Self::Use => "USE",
            Self::Order => "ORDER",
            Self::Class => "CLASS",
        }
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Setting({})", self.key)
    }
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

/// Reads a whole number; `0x`, `0o` and `0b` may precede it.
fn read_number(text: &OsStr) -> Option<u64> {
    let text = text.to_str()?;
    let (digits, radix) = match text.get(..2) {
        Some("0x") => (&text[2..], 16),
        Some("0o") => (&text[2..], 8),
        Some("0b") => (&text[2..], 2),
        _ => (text, 10),
    };
    // The standard parser also takes a sign.
    digits.starts_with(|first: char| first.is_ascii_hexdigit()).then_some(())?;
    u64::from_str_radix(digits, radix).ok()
}

fn read_bytes(text: &OsStr) -> Option<u64> {
    let whole = text.to_str()?;
    for (unit, shift) in [("KiB", 10), ("MiB", 20), ("GiB", 30)] {
        if let Some(number) = whole.strip_suffix(unit) {
            return read_number(OsStr::new(number.trim_end()))?.checked_mul(1 << shift);
        }
    }
    read_number(text)
}

fn read_mode(text: &OsStr) -> Option<u32> {
    let text = text.to_str()?;
    let digits = text.strip_prefix("0o").unwrap_or(text);
    digits.starts_with(|first: char| first.is_digit(8)).then_some(())?;
    u32::from_str_radix(digits, 8).ok()
}

fn read_order(text: &OsStr) -> Option<Order> {
    text.to_str()?.parse().ok()
}

fn read_class(text: &OsStr) -> Option<Class> {
    Class::ALL.into_iter().find(|class| text == class_name(*class))
}

fn read_path(text: &OsStr) -> Option<Option<PathBuf>> {
    (!text.is_empty()).then(|| Some(PathBuf::from(text)))
}

fn read_cpu(text: &OsStr) -> Option<Option<u32>> {
    if text == "none" {
        return Some(None);
    }
    u32::try_from(read_number(text)?).ok().map(Some)
}

/// Reads what stands between commas; `auto` is none of it.
fn read_list<T>(text: &OsStr, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    match text.to_str()? {
        "auto" => Some(Vec::new()),
        text => text.split(',').map(|part| read(part.trim())).collect(),
    }
}

fn show_list<T: ToString>(list: &[T]) -> Shown {
    match list {
        [] => Shown::Text("auto".to_string()),
        list => Shown::Text(list.iter().map(T::to_string).collect::<Vec<_>>().join(",")),
    }
}

fn read_places(text: &OsStr) -> Option<Vec<u8>> {
    read_list(text, |part| u8::try_from(read_number(OsStr::new(part))?).ok())
}

fn show_places(places: &[u8]) -> Shown {
    match *places {
        [place] => Shown::Number(place.into()),
        _ => show_list(places),
    }
}

/// Reads devices; none if [`Config::check`] would not have them, which knows no texts.
fn read_devices(text: &OsStr) -> Option<Vec<VerbsDevice>> {
    let mut config = Config::default();
    config.verbs_device = read_list(text, |part| part.parse().ok())?;
    config.check().ok()?;
    Some(config.verbs_device)
}

/// Reads a number for all classes, or one for each of high, medium and low.
fn read_per_class(text: &OsStr) -> Option<[u8; 3]> {
    let read = |text: &str| u8::try_from(read_number(OsStr::new(text.trim()))?).ok();
    let numbers: Vec<u8> = text.to_str()?.split(',').map(read).collect::<Option<_>>()?;
    match numbers[..] {
        [all] => Some([all; 3]),
        [high, medium, low] => Some([high, medium, low]),
        _ => None,
    }
}

fn show_per_class(numbers: [u8; 3]) -> Shown {
    match numbers {
        [high, medium, low] if high == medium && medium == low => Shown::Number(high.into()),
        [high, medium, low] => Shown::Text(format!("{high},{medium},{low}")),
    }
}

const USES: [(VerbsUse, &str); 3] =
    [(VerbsUse::Off, "off"), (VerbsUse::Auto, "auto"), (VerbsUse::Require, "require")];

fn use_name(verbs: VerbsUse) -> &'static str {
    USES.iter().find(|(known, _)| *known == verbs).map_or("", |(_, name)| name)
}

fn read_use(text: &OsStr) -> Option<VerbsUse> {
    USES.iter().find(|(_, name)| text == *name).map(|(known, _)| *known)
}

/// Stores what was read, if it was and fits.
fn store<T: TryFrom<U>, U>(field: &mut T, read: Option<U>) -> bool {
    match read.and_then(|value| T::try_from(value).ok()) {
        Some(value) => {
            *field = value;
            true
        }
        None => false,
    }
}

macro_rules! table {
    ($($key:literal $form:ident $(($kind:ty))? $($field:ident).+, $help:literal;)*) => {
        const TABLE: &[Setting] = &[$(Setting {
            key: $key,
            form: table!(@form $form $($kind)?),
            help: $help,
            read: |config| table!(@read $form config.$($field).+),
            write: |config, text| table!(@write $form config.$($field).+, text),
        },)*];
    };
    (@form Number $kind:ty) => { Form::Number(<$kind>::MAX as u64) };
    (@form Bytes $kind:ty) => { Form::Bytes(<$kind>::MAX as u64) };
    (@form $form:ident) => { Form::$form };
    (@read Number $field:expr) => { Shown::Number(u64::from($field)) };
    (@read Bytes $field:expr) => { Shown::Number(u64::from($field)) };
    (@read Mode $field:expr) => { Shown::Text(format!("{:04o}", $field)) };
    (@read Path $field:expr) => {
        $field.as_ref().map_or(Shown::Unset, |path| Shown::Text(path.display().to_string()))
    };
    (@read Cpu $field:expr) => {
        $field.map_or(Shown::Text("none".to_string()), |cpu| Shown::Number(cpu.into()))
    };
    (@read Places $field:expr) => { show_places(&$field) };
    (@read Devices $field:expr) => { show_list(&$field) };
    (@read PerClass $field:expr) => { show_per_class($field) };
    (@read Use $field:expr) => { Shown::Text(use_name($field).to_string()) };
    (@read Order $field:expr) => { Shown::Text($field.to_string()) };
    (@read Class $field:expr) => { Shown::Text(class_name($field).to_string()) };
    (@write Number $field:expr, $text:ident) => { store(&mut $field, read_number($text)) };
    (@write Bytes $field:expr, $text:ident) => { store(&mut $field, read_bytes($text)) };
    (@write Mode $field:expr, $text:ident) => { store(&mut $field, read_mode($text)) };
    (@write Path $field:expr, $text:ident) => { store(&mut $field, read_path($text)) };
    (@write Cpu $field:expr, $text:ident) => { store(&mut $field, read_cpu($text)) };
    (@write Places $field:expr, $text:ident) => { store(&mut $field, read_places($text)) };
    (@write Devices $field:expr, $text:ident) => { store(&mut $field, read_devices($text)) };
    (@write PerClass $field:expr, $text:ident) => { store(&mut $field, read_per_class($text)) };
    (@write Use $field:expr, $text:ident) => { store(&mut $field, read_use($text)) };
    (@write Order $field:expr, $text:ident) => { store(&mut $field, read_order($text)) };
    (@write Class $field:expr, $text:ident) => { store(&mut $field, read_class($text)) };
}

table! {
    "engine" Number(u8) engine, "The engine's number, 0 to 255: part of every record id";
    "socket" Path socket, "Where to listen";
    "socket_mode" Mode socket_mode, "Mode of the socket file: who may attach is settled here first";
    "records" Number(u32) records, "Ops in flight, over all sessions";
    "list_blocks" Number(u32) list_blocks,
        "Page-list blocks of 64 pages for WRITEV and READV, over all sessions";
    "sessions_max" Number(u32) sessions_max, "Sessions at once";
    "rings_max" Number(u32) rings_max, "Rings at once, over all sessions";
    "regions_max" Number(u32) regions_max, "Regions and imports at once, over all sessions";
    "window_ops" Number(u32) window_ops, "Ops in flight on the device";
    "window_bytes" Bytes(u64) window_bytes, "Bytes in flight on the device; at least one slice";
    "window_wrs" Number(u32) window_wrs, "Work requests in flight on the device";
    "slice_bytes" Bytes(u32) slice_bytes,
        "A large op moves in slices of at most this many bytes";
    "slice_us" Number(u32) slice_us,
        "Microseconds that a slice is to take at the measured rate; 0 leaves slices whole";
    "mode" Order mode, "Which op goes next: weighted, strict, fifo, tent or direct";
    "class_weights" PerClass class_weights, "Weighted: shares of high, medium and low";
    "min_share" Number(u16) min_share,
        "Strict: thousandths of all bytes that medium and low each get at the least";
    "floor_bytes" Bytes(u32) floor_bytes, "A work request counts as at least so many bytes";
    "aging_medium_us" Number(u32) aging_medium_us,
        "Microseconds after which a queued medium op counts as high; 0 for never";
    "aging_low_us" Number(u32) aging_low_us,
        "Microseconds after which a queued low op counts as high; 0 for never";
    "reserve_ops" Number(u32) reserve_ops, "Part of window_ops for the engine's own work";
    "reserve_bytes" Bytes(u64) reserve_bytes, "Part of window_bytes for the engine's own work";
    "peer_ops" Number(u32) peer_ops, "Ops in flight towards one peer; 0 for the card's bound";
    "peer_wrs" Number(u32) peer_wrs,
        "Work requests in flight towards one peer; 0 for the card's bound";
    "peer_bytes" Bytes(u64) peer_bytes,
        "Bytes in flight towards one peer; 0 for the card's bound";
    "intake_budget" Number(u32) intake_budget, "SQEs taken from one ring in one turn";
    "recorder_entries" Number(u32) recorder_entries,
        "Ended ops that a session's flight recorder holds, a power of two; 0 for none";
    "spin_us" Number(u32) spin_us, "Microseconds the engine looks for work before it sleeps";
    "ring_idle_ms" Number(u32) ring_idle_ms,
        "Milliseconds without an SQE after which a ring leaves the poll set";
    "drain_ms" Number(u32) drain_ms, "Milliseconds that shutdown waits for posted ops";
    "first_index" Number(u32) first_index, "First value of every ring's cursors";
    "pin" Cpu pin, "CPU to pin the engine thread to";
    "verbs" Use verbs, "Whether queue pairs are used: off; auto, with a card; require, or fail";
    "verbs_device" Devices verbs_device,
        "The card's device and port, or several; auto is what verbring devices calls chosen";
    "verbs_gid" Places verbs_gid,
        "Place in the ports' tables of GIDs; auto is what verbring devices calls chosen";
    "verbs_window_ops" Number(u32) verbs_window_ops, "Ops in flight on one card";
    "verbs_window_wrs" Number(u32) verbs_window_wrs, "Work requests in flight on one card";
    "verbs_window_bytes" Bytes(u64) verbs_window_bytes,
        "Bytes in flight on one card; at least one slice";
    "verbs_depth" Number(u32) verbs_depth, "Work requests in flight on one rail";
    "verbs_receives" Number(u32) verbs_receives,
        "Notifications that a peer may send on one rail before any is handed out";
    "verbs_timeout" Number(u8) verbs_timeout,
        "Time to an acknowledgement: 4.096 us * 2^this";
    "verbs_retry" Number(u8) verbs_retry, "Repeats without an acknowledgement";
    "verbs_rnr_retry" Number(u8) verbs_rnr_retry,
        "Repeats while the peer has no receive; 7 is without end";
    "verbs_lease_ms" Number(u32) verbs_lease_ms,
        "How long ops under way to a lost peer wait, unless it says that it is quiet, or is dead";
    "verbs_mtu" Number(u32) verbs_mtu, "Largest path MTU to use, bytes";
    "verbs_service_level" PerClass verbs_service_level,
        "Service level, of all classes or of high, medium and low";
    "verbs_traffic_class" PerClass verbs_traffic_class,
        "Traffic class (DSCP and ECN), of all classes or of high, medium and low";
    "rails_max" Number(u16) rails_max, "Rails at once, this host among them";
    "quota.sessions" Number(u32) quota.sessions, "Sessions at once of one uid";
    "quota.rings" Number(u32) quota.rings, "Rings at once of one uid";
    "quota.regions" Number(u32) quota.regions, "Regions and imports at once of one uid";
    "quota.region_bytes" Bytes(u64) quota.region_bytes, "Bytes in regions of one uid";
    "quota.ops" Number(u32) quota.ops, "Ops in flight of one uid";
    "quota.op_bytes" Bytes(u64) quota.op_bytes, "Bytes that ops in flight of one uid ask for";
    "quota.high_bytes" Bytes(u64) quota.high_bytes,
        "Bytes of class high that one uid has posted at once";
    "quota.weight" Number(u8) quota.weight, "Share of one uid beside others of the same class";
    "quota.control_per_s" Number(u32) quota.control_per_s,
        "Control messages a second of one uid; more are answered later";
    "quota.class_ceiling" Class quota.class_ceiling,
        "Most urgent class of one uid: high, medium or low";
}

/// Starts every setting's name in the environment.
const VARIABLE_PREFIX: &str = "VERBRING_";

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn none(_: &str) -> Option<OsString> {
        None
    }

    fn flags(given: &[(&str, &str)]) -> Flags {
        let place = |key: &str| TABLE.iter().position(|setting| setting.key == key).unwrap();
        let given = given.iter().map(|(key, text)| Given {
            place: place(key),
            text: OsString::from(text),
            flag: format!("--{}", TABLE[place(key)].flag()),
        });
        Flags(given.collect())
    }

    /// A file of this test alone, gone with the value.
    struct File(PathBuf);

    impl File {
        fn new(text: &str) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "verbring-settings-{}-{}.toml",
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed)
            );
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, text).unwrap();
            Self(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn refusal(text: &str) -> String {
        let file = File::new(text);
        let error = Settings::layered(Some(&file.0), none, &Flags::default()).unwrap_err();
        error.to_string().replace(&file.0.display().to_string(), "FILE")
    }

    #[test]
    fn each_layer_covers_the_one_below() {
        let file = File::new("records = 100\nwindow_ops = 7\nspin_us = 1\n[quota]\nops = 3\n");
        let environment = |name: &str| match name {
            "VERBRING_WINDOW_OPS" => Some(OsString::from("8")),
            "VERBRING_SPIN_US" => Some(OsString::from("2")),
            "VERBRING_QUOTA_RINGS" => Some(OsString::from("5")),
            _ => None,
        };
        let flags = flags(&[("spin_us", "3")]);
        let settings = Settings::layered(Some(&file.0), environment, &flags).unwrap();
        let config = settings.config();
        assert_eq!((config.records, config.window_ops, config.spin_us), (100, 8, 3));
        assert_eq!((config.quota.ops, config.quota.rings), (3, 5));
        assert_eq!(config.slice_bytes, Config::default().slice_bytes);
        let from = |key: &str| settings.to_json()[key]["from"].as_str().unwrap().to_string();
        assert_eq!(from("records"), format!("{}:1", file.0.display()));
        assert_eq!(from("quota.ops"), format!("{}:5", file.0.display()));
        assert_eq!(from("window_ops"), "environment VERBRING_WINDOW_OPS");
        assert_eq!(from("spin_us"), "flag --spin-us");
        assert_eq!(from("slice_bytes"), "default");
    }

    #[test]
    fn pairs_are_flags_under_another_name() {
        let pairs = |given: &[&str]| {
            Flags::from_pairs(&given.iter().map(|pair| pair.to_string()).collect::<Vec<_>>())
                .and_then(|flags| Settings::layered(None, none, &flags))
        };
        let settings = pairs(&["quota.ops=3", "spin_us=1", "spin_us=2"]).unwrap();
        assert_eq!((settings.config().quota.ops, settings.config().spin_us), (3, 2));
        let refused = |pair: &str| pairs(&[pair]).unwrap_err().to_string();
        assert_eq!(
            refused("spin_us=x"),
            "flag --set spin_us: spin_us is \"x\", but must be a whole number, 0 to 1000000"
        );
        assert!(refused("spin_us").contains("spin_us is \"\""), "no value");
        let text = "flag --set spin_u=1: unknown key spin_u; the nearest known one is spin_us";
        assert_eq!(refused("spin_u=1"), text);
    }

    #[test]
    fn what_is_printed_gives_the_same_settings_again() {
        let given = [
            ("socket", "/tmp/a \"b\".sock"),
            ("socket_mode", "660"),
            ("pin", "1"),
            ("window_bytes", "4MiB"),
            ("first_index", "0xffffffff"),
            ("verbs", "require"),
            ("verbs_device", "rxe0:1, rxe2"),
            ("verbs_gid", "3,1"),
            ("verbs_service_level", "3, 2,1"),
            ("verbs_traffic_class", "106"),
            ("quota.class_ceiling", "low"),
        ];
        let settings = Settings::layered(None, none, &flags(&given)).unwrap();
        assert_eq!(settings.config().socket_mode, 0o660);
        assert_eq!(settings.config().window_bytes, 4 << 20);
        assert_eq!(settings.config().first_index, u32::MAX);
        assert_eq!(settings.config().verbs_service_level, [3, 2, 1]);
        assert_eq!(settings.config().verbs_traffic_class, [106; 3]);
        assert_eq!(settings.config().verbs_gid, [3, 1]);
        let json = settings.to_json();
        assert_eq!(json["verbs_device"]["value"], "rxe0:1,rxe2");
        let file = File::new(&settings.to_toml());
        let again = Settings::layered(Some(&file.0), none, &Flags::default()).unwrap();
        assert_eq!(settings.config(), again.config());
    }

    #[test]
    fn one_device_and_its_gid_are_written_as_ever() {
        let given = [("verbs_device", "mlx5_0:2"), ("verbs_gid", "3")];
        let json = Settings::layered(None, none, &flags(&given)).unwrap().to_json();
        assert_eq!((json["verbs_device"]["value"].as_str()), Some("mlx5_0:2"));
        assert_eq!(json["verbs_gid"]["value"], 3);
        let json = Settings::layered(None, none, &Flags::default()).unwrap().to_json();
        assert_eq!((json["verbs_device"]["value"].as_str()), Some("auto"));
        assert_eq!((json["verbs_gid"]["value"].as_str()), Some("auto"));
    }

    #[test]
    fn an_unset_value_is_a_comment_in_toml_and_null_in_json() {
        let settings = Settings::layered(None, none, &Flags::default()).unwrap();
        assert!(settings.to_toml().contains("# socket is not set"));
        assert!(settings.to_json()["socket"]["value"].is_null());
        assert_eq!(settings.config(), &Config::default());
    }

    #[test]
    fn unknown_keys_name_file_line_path_and_the_nearest() {
        let nearest = "the nearest known one is";
        assert_eq!(
            refusal("# first\nrecrods = 64\n"),
            format!("FILE:2: unknown key recrods; {nearest} records")
        );
        assert_eq!(
            refusal("[quota]\nsesions = 1\n"),
            format!("FILE:2: unknown key quota.sesions; {nearest} quota.sessions")
        );
        assert_eq!(
            refusal("[quotas]\nrings = 1\n"),
            format!("FILE:2: unknown key quotas.rings; {nearest} quota.rings")
        );
        assert_eq!(
            refusal("[windows]\n"),
            format!("FILE:1: unknown key windows; {nearest} window_wrs")
        );
    }

    #[test]
    fn wrong_types_and_ranges_name_key_value_and_limit() {
        for (text, expected) in [
            (
                "records = \"100\"",
                "FILE:1: records is the string \"100\", but must be a whole \
                number, 64 to 16777216",
            ),
            ("records = -1", "FILE:1: records is -1, but must be a whole number, 64 to 16777216"),
            ("records = 1.5", "FILE:1: records is 1.5, but must be a whole number, 64 to 16777216"),
            (
                "records = 5000000000",
                "FILE:1: records is 5000000000, but must be a whole number, \
                64 to 16777216",
            ),
            ("records = 63", "FILE:1: records is 63, but must be 64 to 16777216"),
            ("engine = 256", "FILE:1: engine is 256, but must be a whole number, 0 to 255"),
            ("socket = 5", "FILE:1: socket is 5, but must be a path that is not empty"),
            (
                "socket = \"\"",
                "FILE:1: socket is the string \"\", but must be a path that is not \
                empty",
            ),
            (
                "socket_mode = 600",
                "FILE:1: socket_mode is 600, but must be permission bits in \
                octal, 0000 to 0777",
            ),
            (
                "socket_mode = 0o1777",
                "FILE:1: socket_mode is 01777, but must be permission bits \
                in octal, 0000 to 0777",
            ),
            (
                "window_bytes = \"1 MB\"",
                "FILE:1: window_bytes is the string \"1 MB\", but must be \
                131072 to 1099511627776 bytes; KiB, MiB or GiB may follow",
            ),
            ("verbs = true", "FILE:1: verbs is true, but must be off, auto or require"),
            (
                "verbs_mtu = 1500",
                "FILE:1: verbs_mtu is 1500, but must be 256, 512, 1024, 2048 \
                or 4096",
            ),
            (
                "verbs_service_level = \"1,2\"",
                "FILE:1: verbs_service_level is the string \"1,2\", but must be a whole number, \
                0 to 15, or three of them, \"HIGH,MEDIUM,LOW\"",
            ),
            ("rails_max = 65", "FILE:1: rails_max is 65, but must be 2 to 64"),
            ("pin = true", "FILE:1: pin is true, but must be a CPU's number or none"),
            ("quota = 5", "FILE:1: quota is 5, but must be a table"),
            ("[records]", "FILE:1: records is a table, but must be a whole number, 64 to 16777216"),
            (
                "[quota]\nclass_ceiling = \"urgent\"",
                "FILE:2: quota.class_ceiling is the string \
                \"urgent\", but must be high, medium or low",
            ),
        ] {
            assert_eq!(refusal(text), expected);
        }
        let error = Settings::layered(None, none, &flags(&[("spin_us", "fast")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "flag --spin-us: spin_us is \"fast\", but must be a whole number, 0 to 1000000"
        );
    }

    #[test]
    fn devices_that_cannot_be_are_refused_with_what_may() {
        for text in ["rxe0:0", "rxe0,rxe0:1", "rxe0,,rxe2", "a,b,c,d,e"] {
            let expected = format!(
                "FILE:1: verbs_device is the string \"{text}\", but must be DEVICE or \
                 DEVICE:PORT, with a port from 1 to 255; or up to 4 of them, \"A,B\", each once; \
                 or auto"
            );
            assert_eq!(refusal(&format!("verbs_device = \"{text}\"")), expected);
        }
        assert_eq!(
            refusal("verbs_device = \"rxe0,rxe2\"\nverbs_gid = \"1,2,3\""),
            "FILE:2: verbs_gid is 3, but must be one number for all devices, or one for each of 2"
        );
    }

    #[test]
    fn a_value_out_of_range_is_no_matter_once_it_is_covered() {
        let file = File::new("window_ops = 0\n");
        assert!(Settings::layered(Some(&file.0), none, &Flags::default()).is_err());
        let settings = Settings::layered(Some(&file.0), none, &flags(&[("window_ops", "1")]));
        assert_eq!(settings.unwrap().config().window_ops, 1);
    }

    #[test]
    fn files_that_cannot_be_read_or_parsed_are_named() {
        let error = Settings::layered(Some(Path::new("/nowhere/x.toml")), none, &Flags::default())
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/x.toml");
        assert!(refusal("records = 64\nrecords = 65\n").starts_with("FILE:2: "));
        assert!(refusal("records 64\n").starts_with("FILE:1: "));
    }

    /// The table has each field of `Config` once: a field that is missing would keep its default
    /// whatever is written.
    #[test]
    fn the_table_is_complete() {
        let mut text = format!("{:?}", Config::default());
        for setting in TABLE {
            let field = setting.key.rsplit('.').next().unwrap();
            let at = text.find(&format!(" {field}: ")).expect(setting.key);
            text.replace_range(at..at + field.len() + 2, " ");
        }
        assert_eq!(text.matches(": ").count(), 1, "a field without a row: {text}");
        assert!(text.contains("quota: Quota"));
    }

    #[test]
    fn variables_that_are_no_settings_are_found() {
        let names = ["VERBRING_RECORD", "VERBRING_RECORDS", "PATH", "VERBRING_VM_SECONDS"];
        let found = unknown_variables(names.map(OsString::from).into_iter());
        assert_eq!(found, [("VERBRING_RECORD".to_string(), "VERBRING_RECORDS".to_string())]);
    }
}
