//! How values are written, and what they must be, in words.

use verbring::host::VERBS_DEVICES_MAX;

/// How a value is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// A whole number up to the given one.
    Number(u64),
    /// Likewise, where KiB, MiB or GiB may follow.
    Bytes(u64),
    /// Permission bits in octal.
    Mode,
    Path,
    /// An IP address and a port.
    Address,
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
    /// True or false.
    Switch,
}

/// A value as it is printed.
pub(super) enum Shown {
    Unset,
    Number(u64),
    Switch(bool),
    Text(String),
}

impl Form {
    /// Whether an integer written in this radix will do. A mode in decimal is a slip of the pen.
    pub(super) fn takes_integer(self, radix: u32) -> bool {
        match self {
            Self::Number(_) | Self::Bytes(_) | Self::Cpu | Self::Places | Self::PerClass => true,
            Self::Mode => radix == 8,
            Self::Path
            | Self::Address
            | Self::Devices
            | Self::Use
            | Self::Order
            | Self::Class
            | Self::Switch => false,
        }
    }

    pub(super) fn takes_string(self) -> bool {
        !matches!(self, Self::Number(_) | Self::Switch)
    }

    pub(super) fn takes_boolean(self) -> bool {
        matches!(self, Self::Switch)
    }

    pub(super) fn placeholder(self) -> &'static str {
        match self {
            Self::Number(_) => "NUMBER",
            Self::Bytes(_) => "BYTES",
            Self::Mode => "MODE",
            Self::Path => "PATH",
            Self::Address => "ADDRESS:PORT",
            Self::Cpu => "CPU",
            Self::Places => "INDEX[,INDEX...]",
            Self::Devices => "DEVICE[:PORT][,DEVICE[:PORT]...]",
            Self::PerClass => "NUMBER[,NUMBER,NUMBER]",
            Self::Use => "USE",
            Self::Order => "ORDER",
            Self::Class => "CLASS",
            Self::Switch => "BOOLEAN",
        }
    }

    /// What a value must be, in words; `range` tells of what is kept in up to so much.
    pub(super) fn limit(self, range: impl Fn(u64) -> String) -> String {
        match self {
            Self::Number(most) => format!("a whole number, {}", range(most)),
            Self::Bytes(most) => format!("{} bytes; KiB, MiB or GiB may follow", range(most)),
            Self::Mode => "permission bits in octal, 0000 to 0777".to_string(),
            Self::Path => "a path that is not empty".to_string(),
            Self::Address => "an IP address and a port, as 0.0.0.0:7471 or [::]:7471".to_string(),
            Self::Cpu => "a CPU's number or none".to_string(),
            Self::Places => "a number from 0 to 255, or one for each device, \"A,B\", or \
                             auto"
                .to_string(),
            Self::Devices => format!(
                "DEVICE or DEVICE:PORT, with a port from 1 to 255; or up to {VERBS_DEVICES_MAX} \
                 of them, \"A,B\", each once; or all, or auto"
            ),
            Self::PerClass => format!(
                "a whole number, {}, or three of them, \"HIGH,MEDIUM,LOW\"",
                range(u8::MAX.into())
            ),
            Self::Use => "off, auto or require".to_string(),
            Self::Order => "weighted, strict, fifo, tent or direct".to_string(),
            Self::Class => "high, medium or low".to_string(),
            Self::Switch => "true or false".to_string(),
        }
    }
}
