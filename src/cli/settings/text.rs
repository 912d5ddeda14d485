//! Values as texts: read, and shown.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;

use verbring::abi::Class;
use verbring::host::{Config, VerbsDevice, VerbsUse};
use verbring::sched::Mode as Order;

use super::form::Shown;
use crate::cli::class_name;

/// Reads a whole number; `0x`, `0o` and `0b` may precede it.
pub(super) fn read_number(text: &OsStr) -> Option<u64> {
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

pub(super) fn read_bytes(text: &OsStr) -> Option<u64> {
    let whole = text.to_str()?;
    for (unit, shift) in [("KiB", 10), ("MiB", 20), ("GiB", 30)] {
        if let Some(number) = whole.strip_suffix(unit) {
            return read_number(OsStr::new(number.trim_end()))?.checked_mul(1 << shift);
        }
    }
    read_number(text)
}

pub(super) fn read_mode(text: &OsStr) -> Option<u32> {
    let text = text.to_str()?;
    let digits = text.strip_prefix("0o").unwrap_or(text);
    digits.starts_with(|first: char| first.is_digit(8)).then_some(())?;
    u32::from_str_radix(digits, 8).ok()
}

pub(super) fn read_order(text: &OsStr) -> Option<Order> {
    text.to_str()?.parse().ok()
}

pub(super) fn read_class(text: &OsStr) -> Option<Class> {
    Class::ALL.into_iter().find(|class| text == class_name(*class))
}

pub(super) fn read_switch(text: &OsStr) -> Option<bool> {
    text.to_str()?.parse().ok()
}

pub(super) fn read_path(text: &OsStr) -> Option<Option<PathBuf>> {
    (!text.is_empty()).then(|| Some(PathBuf::from(text)))
}

pub(super) fn read_cpu(text: &OsStr) -> Option<Option<u32>> {
    if text == "none" {
        return Some(None);
    }
    u32::try_from(read_number(text)?).ok().map(Some)
}

pub(super) fn read_address(text: &OsStr) -> Option<Option<SocketAddr>> {
    text.to_str()?.parse().ok().map(Some)
}

/// Reads what stands between commas; `auto` is none of it.
pub(super) fn read_list<T>(text: &OsStr, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    match text.to_str()? {
        "auto" => Some(Vec::new()),
        text => text.split(',').map(|part| read(part.trim())).collect(),
    }
}

pub(super) fn show_list<T: ToString>(list: &[T]) -> Shown {
    match list {
        [] => Shown::Text("auto".to_string()),
        list => Shown::Text(list.iter().map(T::to_string).collect::<Vec<_>>().join(",")),
    }
}

pub(super) fn read_places(text: &OsStr) -> Option<Vec<u8>> {
    read_list(text, |part| u8::try_from(read_number(OsStr::new(part))?).ok())
}

pub(super) fn show_places(places: &[u8]) -> Shown {
    match *places {
        [place] => Shown::Number(place.into()),
        _ => show_list(places),
    }
}

/// Reads devices; none if [`Config::check`] would not have them, which knows no texts.
pub(super) fn read_devices(text: &OsStr) -> Option<Vec<VerbsDevice>> {
    let mut config = Config::default();
    config.verbs_device = read_list(text, |part| part.parse().ok())?;
    config.check().ok()?;
    Some(config.verbs_device)
}

/// Reads a number for all classes, or one for each of high, medium and low.
pub(super) fn read_per_class(text: &OsStr) -> Option<[u8; 3]> {
    let read = |text: &str| u8::try_from(read_number(OsStr::new(text.trim()))?).ok();
    let numbers: Vec<u8> = text.to_str()?.split(',').map(read).collect::<Option<_>>()?;
    match numbers[..] {
        [all] => Some([all; 3]),
        [high, medium, low] => Some([high, medium, low]),
        _ => None,
    }
}

pub(super) fn show_per_class(numbers: [u8; 3]) -> Shown {
    match numbers {
        [high, medium, low] if high == medium && medium == low => Shown::Number(high.into()),
        [high, medium, low] => Shown::Text(format!("{high},{medium},{low}")),
    }
}

const USES: [(VerbsUse, &str); 3] =
    [(VerbsUse::Off, "off"), (VerbsUse::Auto, "auto"), (VerbsUse::Require, "require")];

pub(super) fn use_name(verbs: VerbsUse) -> &'static str {
    USES.iter().find(|(known, _)| *known == verbs).map_or("", |(_, name)| name)
}

pub(super) fn read_use(text: &OsStr) -> Option<VerbsUse> {
    USES.iter().find(|(_, name)| text == *name).map(|(known, _)| *known)
}

/// Stores what was read, if it was and fits.
pub(super) fn store<T: TryFrom<U>, U>(field: &mut T, read: Option<U>) -> bool {
    match read.and_then(|value| T::try_from(value).ok()) {
        Some(value) => {
            *field = value;
            true
        }
        None => false,
    }
}
