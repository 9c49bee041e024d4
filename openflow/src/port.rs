//! OpenFlow port numbers.
//!
//! A bridge numbers its ports from 1; a few numbers at the top of the 16-bit range are reserved for ports that are
//! really instructions ("where it came from", "everywhere"). Text may name a port by number, by reserved name in any
//! case, or by the interface's name; the last needs a switch to ask, which [`PortNames`] stands for.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// An OpenFlow port number of one bridge, host byte order (OpenFlow 1.0, section 5.2.1).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OfPort(pub u16);

/// OpenFlow 1.1 and later write reserved ports with 32 bits; this is the distance to the 16-bit numbers.
const OF11_OFFSET: u32 = 0xffff_0000;
/// The first reserved port in OpenFlow 1.1's numbering.
const OF11_MAX: u32 = 0xffff_ff00;

impl OfPort {
    /// Ordinary ports are smaller than this.
    pub const MAX: Self = Self(0xff00);
    /// The action set has no output (matched by `actset_output` only).
    pub const UNSET: Self = Self(0xfff7);
    /// The port the packet came in by.
    pub const IN_PORT: Self = Self(0xfff8);
    /// The flow table (of packet-outs).
    pub const TABLE: Self = Self(0xfff9);
    /// Traditional learning switch.
    pub const NORMAL: Self = Self(0xfffa);
    /// All ports but the one it came in by and those with flooding off.
    pub const FLOOD: Self = Self(0xfffb);
    /// All ports but the one it came in by.
    pub const ALL: Self = Self(0xfffc);
    /// The OpenFlow controllers.
    pub const CONTROLLER: Self = Self(0xfffd);
    /// The bridge's own port (the host's stack).
    pub const LOCAL: Self = Self(0xfffe);
    /// No port (OpenFlow 1.0's name).
    pub const NONE: Self = Self(0xffff);
    /// Any port (OpenFlow 1.1's name for the same number).
    pub const ANY: Self = Self(0xffff);

    /// The name of a reserved port, `None` for other numbers.
    pub fn reserved_name(self) -> Option<&'static str> {
        RESERVED.iter().find(|(_, port)| *port == self).map(|(name, _)| *name)
    }

    /// Whether a bridge can have a port of this number: 1 to 0xfeff, or LOCAL.
    pub fn is_assignable(self) -> bool {
        (self.0 >= 1 && self < Self::MAX) || self == Self::LOCAL
    }

    /// Reads a port: a decimal number (16-bit, or OpenFlow 1.1's 32-bit form of a reserved one), a reserved name in any
    /// case, or a name that `names` knows, bare or as a JSON string in double quotes. `None` if it is none of these.
    pub fn parse(text: &str, names: &dyn PortNames) -> Option<Self> {
        if text.starts_with(|c: char| c.is_ascii_digit())
            && let Ok(number) = text.parse::<u32>()
        {
            let number = if number >= OF11_MAX { number - OF11_OFFSET } else { number };
            return u16::try_from(number).ok().map(Self);
        }
        if let Some((_, port)) = RESERVED.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            return Some(*port);
        }
        if text.starts_with('"') {
            return names.port_by_name(&serde_json::from_str::<String>(text).ok()?);
        }
        if text.is_empty() { None } else { names.port_by_name(text) }
    }

    /// The port's text with interface names where `names` has them, quoted where a bare name would be misread.
    pub fn display(self, names: &dyn PortNames) -> impl fmt::Display + '_ {
        PortText { port: self, names }
    }
}

/// Names in the order they are looked up; the first one of a number is the one printed.
const RESERVED: &[(&str, OfPort)] = &[
    ("IN_PORT", OfPort::IN_PORT),
    ("TABLE", OfPort::TABLE),
    ("NORMAL", OfPort::NORMAL),
    ("FLOOD", OfPort::FLOOD),
    ("ALL", OfPort::ALL),
    ("CONTROLLER", OfPort::CONTROLLER),
    ("LOCAL", OfPort::LOCAL),
    ("ANY", OfPort::ANY),
    ("UNSET", OfPort::UNSET),
    ("NONE", OfPort::NONE),
];

impl fmt::Display for OfPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reserved_name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for OfPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OfPort({self})")
    }
}

impl From<u16> for OfPort {
    fn from(number: u16) -> Self {
        Self(number)
    }
}

/// Who knows the interface names of a bridge's ports.
pub trait PortNames {
    /// The port of that name.
    fn port_by_name(&self, name: &str) -> Option<OfPort>;
    /// The name of that port.
    fn name_of_port(&self, port: OfPort) -> Option<Cow<'_, str>>;
}

/// Knows no name: ports are numbers or reserved names.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPortNames;

impl PortNames for NoPortNames {
    fn port_by_name(&self, _: &str) -> Option<OfPort> {
        None
    }

    fn name_of_port(&self, _: OfPort) -> Option<Cow<'_, str>> {
        None
    }
}

impl PortNames for BTreeMap<String, OfPort> {
    fn port_by_name(&self, name: &str) -> Option<OfPort> {
        self.get(name).copied()
    }

    fn name_of_port(&self, port: OfPort) -> Option<Cow<'_, str>> {
        self.iter().find(|(_, p)| **p == port).map(|(name, _)| Cow::Borrowed(name.as_str()))
    }
}

impl<S: std::hash::BuildHasher> PortNames for HashMap<String, OfPort, S> {
    fn port_by_name(&self, name: &str) -> Option<OfPort> {
        self.get(name).copied()
    }

    fn name_of_port(&self, port: OfPort) -> Option<Cow<'_, str>> {
        // A hash map has no order of its own: of two names for one port the smaller one, so that output is stable.
        self.iter().filter(|(_, p)| **p == port).map(|(name, _)| name.as_str()).min().map(Cow::Borrowed)
    }
}

struct PortText<'a> {
    port: OfPort,
    names: &'a dyn PortNames,
}

impl fmt::Display for PortText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.port.reserved_name() {
            Some(_) => None,
            None => self.names.name_of_port(self.port),
        };
        match name {
            Some(name) if needs_quotes(&name) => match serde_json::to_string(&*name) {
                Ok(quoted) => f.write_str(&quoted),
                Err(_) => write!(f, "{}", self.port),
            },
            Some(name) => f.write_str(&name),
            None => write!(f, "{}", self.port),
        }
    }
}

/// A bare name is a letter followed by letters and digits, and not a reserved word.
fn needs_quotes(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_alphabetic())
        || !name.chars().all(|c| c.is_ascii_alphanumeric())
        || RESERVED.iter().any(|(reserved, _)| reserved.eq_ignore_ascii_case(name))
}
