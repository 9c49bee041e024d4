//! How grave a message is, and where it goes.

use std::ops::{Index, IndexMut};

/// How grave, the gravest first. A destination set to a level takes that and what is graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Takes nothing; no message has it.
    Off,
    /// The process can't go on.
    Emer,
    /// Something that was asked for doesn't work.
    Err,
    /// Something is not as it should be.
    Warn,
    /// What an operator may want to know.
    Info,
    /// What only somebody who looks for a fault wants to know. `tracing`'s `DEBUG` and `TRACE`.
    Dbg,
}

impl Level {
    const ALL: [Level; 6] = [Level::Off, Level::Emer, Level::Err, Level::Warn, Level::Info, Level::Dbg];

    /// The level's name.
    pub fn name(self) -> &'static str {
        match self {
            Level::Off => "OFF",
            Level::Emer => "EMER",
            Level::Err => "ERR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Dbg => "DBG",
        }
    }

    /// The level called `name`, in whatever case.
    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(name))
    }

    /// The level of a `tracing` event.
    pub(super) fn of(level: &tracing::Level) -> Level {
        match *level {
            tracing::Level::ERROR => Level::Err,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::INFO => Level::Info,
            _ => Level::Dbg,
        }
    }

    /// The severity of RFC 5424, as the field maps it.
    pub(super) fn severity(self) -> u8 {
        match self {
            Level::Off | Level::Emer => 1,
            Level::Err => 3,
            Level::Warn => 4,
            Level::Info => 5,
            Level::Dbg => 7,
        }
    }
}

/// Where messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The system log.
    Syslog,
    /// Standard error.
    Console,
    /// The log file.
    File,
}

impl Destination {
    pub(super) const ALL: [Destination; 3] = [Destination::Syslog, Destination::Console, Destination::File];

    /// The destination's name.
    pub fn name(self) -> &'static str {
        match self {
            Destination::Syslog => "SYSLOG",
            Destination::Console => "CONSOLE",
            Destination::File => "FILE",
        }
    }

    /// The destination called `name`, in whatever case.
    pub fn from_name(name: &str) -> Option<Destination> {
        Destination::ALL.into_iter().find(|destination| destination.name().eq_ignore_ascii_case(name))
    }

    /// This one, or all.
    pub(super) fn these(destination: Option<Destination>) -> impl Iterator<Item = Destination> {
        Destination::ALL.into_iter().filter(move |other| destination.is_none_or(|this| this == *other))
    }

    pub(super) fn default_pattern(self) -> &'static str {
        match self {
            Destination::Syslog => "ovs|%05N|%c%T|%p|%m",
            Destination::Console | Destination::File => "%D{%Y-%m-%dT%H:%M:%S.###Z}|%05N|%c%T|%p|%m",
        }
    }
}

/// One of something for each destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct PerDestination<T> {
    syslog: T,
    console: T,
    file: T,
}

impl<T> PerDestination<T> {
    pub(super) fn from_fn(make: impl Fn(Destination) -> T) -> PerDestination<T> {
        PerDestination {
            syslog: make(Destination::Syslog),
            console: make(Destination::Console),
            file: make(Destination::File),
        }
    }
}

impl<T> Index<Destination> for PerDestination<T> {
    type Output = T;

    fn index(&self, destination: Destination) -> &T {
        match destination {
            Destination::Syslog => &self.syslog,
            Destination::Console => &self.console,
            Destination::File => &self.file,
        }
    }
}

impl<T> IndexMut<Destination> for PerDestination<T> {
    fn index_mut(&mut self, destination: Destination) -> &mut T {
        match destination {
            Destination::Syslog => &mut self.syslog,
            Destination::Console => &mut self.console,
            Destination::File => &mut self.file,
        }
    }
}

/// The level of each destination.
pub(super) type Levels = PerDestination<Level>;

impl Levels {
    pub(super) fn all(level: Level) -> Levels {
        PerDestination::from_fn(|_| level)
    }
}
