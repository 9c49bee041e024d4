//! Datapath flows as text: what `ovs-appctl dpctl/dump-flows` shows and `dpctl/add-flow` takes.
//!
//! ```text
//! recirc_id(0),in_port(2),eth(dst=50:54:00:00:00:0a),eth_type(0x0800),ipv4(dst=10.0.0.0/255.255.0.0,frag=no), packets:1, bytes:98, used:0.123s, actions:2,3
//! ```
//!
//! The syntax is the field's, character by character: scripts and test suites read it. A key is a list of attributes, each
//! matched exactly, under a mask (`value/mask`), or, where it isn't shown, not at all. [`Style`] says how much is shown and
//! whether ports have names.
//!
//! | what | to text | from text |
//! | --- | --- | --- |
//! | key and mask | [`format_flow_key`], [`Style::key`] | [`parse_flow_key`] |
//! | actions | [`format_actions`], [`Style::actions`] | [`parse_actions`] |
//! | a whole flow | [`Style::flow`] | – |
//! | the cookie of a userspace action | within actions | within actions, [`Cookie`] |

mod action;
mod attr;
mod cookie;
mod cursor;
mod flags;
mod key;
mod parse_action;
mod parse_ct;
mod parse_key;
mod parse_nsh;

use std::fmt::Write;

use datapath_common::FlowKey;

use self::cursor::Cursor;
use crate::action::Action;
use crate::flow::{DatapathFlow, FlowStats};
use crate::port::OdpPort;

pub use self::cookie::{COOKIE_LEN, Cookie, CookieKind, SlowPath};
pub use self::cursor::ParseError;

/// Says the name of a port.
pub type PortNames<'a> = Option<&'a dyn Fn(OdpPort) -> Option<String>>;
/// Says the number of a port's name.
pub type PortNumbers<'a> = Option<&'a dyn Fn(&str) -> Option<OdpPort>>;

/// How text is written.
#[derive(Clone, Copy, Default)]
pub struct Style<'a> {
    /// Show ports by name.
    pub names: PortNames<'a>,
    /// Show what isn't matched as well, and the flow's id: `dpctl/dump-flows -m`.
    pub verbose: bool,
    /// Show keys as the reference's userspace datapath does, with `packet_type(…)`, instead of as the kernel's.
    pub packet_type: bool,
}

impl Style<'_> {
    /// A key; without a mask all of it, as exact.
    pub fn key(&self, key: &FlowKey, mask: Option<&FlowKey>) -> String {
        let mut out = String::new();
        key::write_key(&mut out, self, key, mask);
        out
    }

    /// A list of actions.
    pub fn actions(&self, actions: &[Action]) -> String {
        let mut out = String::new();
        action::write_actions(&mut out, self, actions);
        out
    }

    /// A flow on one line. `now_ms`: `CLOCK_MONOTONIC` in milliseconds.
    pub fn flow(&self, flow: &DatapathFlow, now_ms: u64) -> String {
        let mut out = String::new();
        if self.verbose {
            let _ = write!(out, "{}, ", flow.ufid);
        }
        key::write_key(&mut out, self, &flow.key, Some(&flow.mask));
        out.push_str(", ");
        action::write_stats(&mut out, &flow.stats, now_ms);
        if self.verbose {
            out.push_str(", dp:ovs");
        }
        out.push_str(", actions:");
        action::write_actions(&mut out, self, &flow.actions);
        out
    }

    fn write_port(&self, out: &mut String, port: OdpPort) {
        match self.names.and_then(|names| names(port)) {
            Some(name) => out.push_str(&name),
            None => {
                let _ = write!(out, "{port}");
            }
        }
    }
}

/// The attributes of a key that the mask matches.
pub fn format_flow_key(key: &FlowKey, mask: &FlowKey, names: PortNames<'_>) -> String {
    Style { names, ..Style::default() }.key(key, Some(mask))
}

/// A list of actions; `drop` where it is empty.
pub fn format_actions(actions: &[Action], names: PortNames<'_>) -> String {
    Style { names, ..Style::default() }.actions(actions)
}

/// `packets:1, bytes:98, used:0.123s, flags:S.`. `now_ms`: `CLOCK_MONOTONIC` in milliseconds.
pub fn format_stats(stats: &FlowStats, now_ms: u64) -> String {
    let mut out = String::new();
    action::write_stats(&mut out, stats, now_ms);
    out
}

/// A key and its mask. An id (`ufid:…`) may stand in front; it is skipped.
pub fn parse_flow_key(text: &str, numbers: PortNumbers<'_>) -> Result<(FlowKey, FlowKey), ParseError> {
    parse_key::parse_key(&mut Cursor::new(text), numbers)
}

/// A list of actions. `drop` alone and nothing are the empty list.
pub fn parse_actions(text: &str, numbers: PortNumbers<'_>) -> Result<Vec<Action>, ParseError> {
    parse_action::parse_actions(&mut Cursor::new(text), numbers)
}
