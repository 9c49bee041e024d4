//! A whole flow: one line of a flow file.
//!
//! `[add|modify|modify_strict|delete|delete_strict] SETTINGS and MATCH in any order [actions=LIST]`, separated by commas
//! or white space; `add` may be left out. What `dump-flows` prints (with its `duration`, `n_packets` and so on) is read
//! too, so that a dump can be fed back.

use std::fmt;
use std::str::FromStr;

use crate::action::{Action, display_actions};
use crate::error::{FileError, ParseError};
use crate::matching::FlowMatch;
use crate::port::{NoPortNames, OfPort, PortNames};

mod parse;

/// The priority of a flow that does not say one.
pub const DEFAULT_PRIORITY: u16 = 0x8000;

/// A request to add, change or delete flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowMod {
    /// What to do.
    pub command: FlowCommand,
    /// Which table; `None` is table 0 for an addition, all tables for the others.
    pub table: Option<u8>,
    /// The flow's priority: greater wins.
    pub priority: u16,
    /// The cookie to set; `None` gives a new flow 0 and leaves a modified flow's as it is.
    pub cookie: Option<u64>,
    /// Only flows with such a cookie are modified or deleted.
    pub cookie_filter: Option<MaskedCookie>,
    /// Seconds without a packet after which the flow expires; 0 is never.
    pub idle_timeout: u16,
    /// Seconds after which the flow expires; 0 is never.
    pub hard_timeout: u16,
    /// Of flows that have to make room, the less important go first.
    pub importance: u16,
    /// Flags.
    pub flags: FlowFlags,
    /// Only flows with an output to this port are deleted.
    pub out_port: Option<OfPort>,
    /// Which packets (or, of a modification or deletion that is not strict, which flows).
    pub r#match: FlowMatch,
    /// What to do with them; empty drops. Empty in a deletion.
    pub actions: Vec<Action>,
}

/// What a [`FlowMod`] does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FlowCommand {
    /// Adds a flow, replacing one with the same match and priority.
    #[default]
    Add,
    /// Changes the actions of all flows that the match covers; adds one if there is none and no cookie filter.
    Modify,
    /// Changes the actions of the flow with this match and priority; adds it as `Modify` does.
    ModifyStrict,
    /// Deletes all flows that the match covers.
    Delete,
    /// Deletes the flow with this match and priority.
    DeleteStrict,
}

impl FlowCommand {
    /// The command's word in a flow file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Modify => "modify",
            Self::ModifyStrict => "modify_strict",
            Self::Delete => "delete",
            Self::DeleteStrict => "delete_strict",
        }
    }

    /// Whether it deletes.
    pub fn is_delete(self) -> bool {
        matches!(self, Self::Delete | Self::DeleteStrict)
    }
}

/// A cookie to look for: `cookie=VALUE/MASK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaskedCookie {
    /// Bits to compare with; 0 wherever `mask` is 0.
    pub value: u64,
    /// Bits to look at.
    pub mask: u64,
}

/// Flags of a flow (OpenFlow 1.3, `ofp_flow_mod_flags`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowFlags {
    /// Tell the controllers when the flow goes.
    pub send_flow_rem: bool,
    /// Refuse the flow if one of the same priority overlaps.
    pub check_overlap: bool,
    /// Start the counters anew.
    pub reset_counts: bool,
    /// Need not count packets.
    pub no_packet_counts: bool,
    /// Need not count bytes.
    pub no_byte_counts: bool,
}

impl FlowFlags {
    /// Each flag's word and whether it is set.
    pub fn words(self) -> [(&'static str, bool); 5] {
        [
            ("send_flow_rem", self.send_flow_rem),
            ("check_overlap", self.check_overlap),
            ("reset_counts", self.reset_counts),
            ("no_packet_counts", self.no_packet_counts),
            ("no_byte_counts", self.no_byte_counts),
        ]
    }

    /// Sets the flag of that word; false if there is none.
    fn set(&mut self, word: &str) -> bool {
        let flag = match word {
            "send_flow_rem" => &mut self.send_flow_rem,
            "check_overlap" => &mut self.check_overlap,
            "reset_counts" => &mut self.reset_counts,
            "no_packet_counts" => &mut self.no_packet_counts,
            "no_byte_counts" => &mut self.no_byte_counts,
            _ => return false,
        };
        *flag = true;
        true
    }
}

impl Default for FlowMod {
    fn default() -> Self {
        Self {
            command: FlowCommand::Add,
            table: None,
            priority: DEFAULT_PRIORITY,
            cookie: None,
            cookie_filter: None,
            idle_timeout: 0,
            hard_timeout: 0,
            importance: 0,
            flags: FlowFlags::default(),
            out_port: None,
            r#match: FlowMatch::catch_all(),
            actions: Vec::new(),
        }
    }
}

impl FlowMod {
    /// Reads one flow. Its match and actions are checked for prerequisites and against each other, see
    /// [`check_actions`](crate::action::check_actions).
    ///
    /// # Errors
    /// The first thing that is wrong, with its column.
    pub fn parse(text: &str, names: &dyn PortNames) -> Result<Self, ParseError> {
        parse::parse_flow(text, names)
    }

    /// The text with interface names where `names` has them.
    pub fn display<'a>(&'a self, names: &'a dyn PortNames) -> impl fmt::Display + 'a {
        FlowText { flow: self, names }
    }
}

impl FromStr for FlowMod {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text, &NoPortNames)
    }
}

impl fmt::Display for FlowMod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.display(&NoPortNames).fmt(f)
    }
}

/// Reads a flow file: one flow a line, `#` starts a comment, blank lines are skipped.
///
/// # Errors
/// The first thing that is wrong, with its line and column.
pub fn parse_flow_file(text: &str, names: &dyn PortNames) -> Result<Vec<FlowMod>, FileError> {
    let mut flows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        if !line.trim().is_empty() {
            flows.push(FlowMod::parse(line, names).map_err(|error| error.in_line(index + 1))?);
        }
    }
    Ok(flows)
}

struct FlowText<'a> {
    flow: &'a FlowMod,
    names: &'a dyn PortNames,
}

impl fmt::Display for FlowText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flow, names } = *self;
        let mut words = Vec::new();
        if flow.command != FlowCommand::Add {
            words.push(flow.command.name().to_string());
        }
        if let Some(table) = flow.table {
            words.push(format!("table={table}"));
        }
        // A deletion that is not strict looks at no priority, and its syntax has none.
        let priority = if flow.command == FlowCommand::Delete { DEFAULT_PRIORITY } else { flow.priority };
        let matched = flow.r#match.display(priority, names).to_string();
        if !matched.is_empty() {
            words.push(matched);
        }
        if let Some(MaskedCookie { value, mask }) = flow.cookie_filter {
            words.push(format!("cookie={value:#x}/{mask:#x}"));
        }
        if let Some(cookie) = flow.cookie {
            words.push(format!("cookie={cookie:#x}"));
        }
        for (name, value) in
            [("idle_timeout", flow.idle_timeout), ("hard_timeout", flow.hard_timeout), ("importance", flow.importance)]
        {
            if value != 0 {
                words.push(format!("{name}={value}"));
            }
        }
        words.extend(flow.flags.words().iter().filter(|(_, set)| *set).map(|(word, _)| (*word).to_string()));
        if let Some(port) = flow.out_port {
            words.push(format!("out_port={}", port.display(names)));
        }
        if !flow.command.is_delete() {
            words.push(format!("actions={}", display_actions(&flow.actions, names)));
        }
        f.write_str(&words.join(" "))
    }
}
