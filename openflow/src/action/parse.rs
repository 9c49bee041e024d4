//! Reading actions.

use super::{Action, Controller, PacketInReason};
use crate::error::{ParseError, ParseErrorKind, Parsed};
use crate::field::{
    Access, FieldId, Subfield, ValueUse, is_unsupported_name, parse_decimal, parse_field_value, parse_integer,
    parse_ipv4, parse_mac,
};
use crate::matching::proto::{ETH_QINQ, ETH_VLAN};
use crate::port::{OfPort, PortNames};
use crate::scan::{KeyValue, KeyValues, Span};

/// Actions that the syntax has and this version has not.
const UNSUPPORTED: &[&str] = &[
    "group",
    "enqueue",
    "bundle",
    "bundle_load",
    "push",
    "pop",
    "set_mpls_label",
    "set_mpls_tc",
    "set_mpls_ttl",
    "dec_mpls_ttl",
    "push_mpls",
    "pop_mpls",
    "dec_nsh_ttl",
    "delete_field",
    "encap",
    "decap",
    "set_queue",
    "pop_queue",
    "fin_timeout",
    "learn",
    "multipath",
    "sample",
    "unroll_xlate",
    "ct",
    "ct_clear",
    "nat",
    "clone",
    "check_pkt_larger",
    "debug_recirc",
    "debug_slow",
    "meter",
];

/// The shortest frame that can be asked for: an Ethernet header.
const MIN_TRUNC: u32 = 14;

/// Reads an action list as after `actions=`. The actions are not checked against a match, see
/// [`check_actions`](super::check_actions).
///
/// # Errors
/// The first thing that is wrong, with its column.
pub fn parse_actions(text: &str, names: &dyn PortNames) -> Result<Vec<Action>, ParseError> {
    parse_action_list(Span::new(text), names)
        .map(|actions| actions.into_iter().map(|(_, action)| action).collect())
        .map_err(|fault| fault.in_text(text))
}

/// Reads an action list; each action comes with its place in the text.
pub(crate) fn parse_action_list(text: Span<'_>, names: &dyn PortNames) -> Parsed<Vec<(usize, Action)>> {
    Reader { names, nested: false }.list(text)
}

struct Reader<'n> {
    names: &'n dyn PortNames,
    /// Within `write_actions`, where no instruction can be.
    nested: bool,
}

impl Reader<'_> {
    fn list(&self, text: Span<'_>) -> Parsed<Vec<(usize, Action)>> {
        let mut items = KeyValues::new(text);
        let mut actions = Vec::new();
        let mut drop = None;
        while let Some(item) = items.next()? {
            if item.key.text.eq_ignore_ascii_case("drop") {
                no_argument(item)?;
                drop = Some(item.key);
                continue;
            }
            let before = actions.last().map(|(_, action)| action);
            let found = self.action(item)?;
            if let Some(action) = found.first() {
                self.check_order(item.key, action, before)?;
            }
            actions.extend(found.into_iter().map(|action| (item.key.at, action)));
        }
        match drop {
            Some(key) if !actions.is_empty() => Err(key.fault(ParseErrorKind::DropNotAlone)),
            _ => Ok(actions),
        }
    }

    /// Instructions stand last, in OpenFlow's order, once each. All actions before `before` were in order.
    fn check_order(&self, key: Span<'_>, action: &Action, before: Option<&Action>) -> Parsed<()> {
        let rank = |action: &Action| match action {
            Action::ClearActions => 1,
            Action::WriteActions(_) => 2,
            Action::WriteMetadata { .. } => 3,
            Action::GotoTable(_) => 4,
            _ => 0,
        };
        let this = rank(action);
        if this > 0 {
            self.check_nested(key)?;
        }
        match before {
            Some(earlier) if rank(earlier) > this => {
                let text = format!("{} stands after {earlier}: expected it before", key.text);
                Err(key.fault(ParseErrorKind::InstructionOrder(text)))
            }
            Some(earlier) if this > 0 && rank(earlier) == this => {
                let text = format!("{} stands twice: expected it at most once", key.text);
                Err(key.fault(ParseErrorKind::InstructionOrder(text)))
            }
            _ => Ok(()),
        }
    }

    /// No instruction stands within another; for `write_actions` this also bounds how deep we read.
    fn check_nested(&self, key: Span<'_>) -> Parsed<()> {
        if !self.nested {
            return Ok(());
        }
        let text = format!("{} is an instruction: expected only actions within write_actions", key.text);
        Err(key.fault(ParseErrorKind::InstructionOrder(text)))
    }

    /// One item; only `load` may come to several actions.
    fn action(&self, item: KeyValue<'_>) -> Parsed<Vec<Action>> {
        let KeyValue { key, value, .. } = item;
        let what = key.text;
        let name = what.to_ascii_lowercase();
        let action = match name.as_str() {
            "output" => self.output(value)?,
            "output_reg" => Action::OutputReg(Subfield::parse(value)?),
            "controller" => self.controller(value)?,
            "set_field" => self.set_field(value)?,
            "load" => return load(value),
            "move" => parse_move(value)?,
            "mod_vlan_vid" | "set_vlan_vid" => {
                Action::SetVlanVid { vid: number(what, value, 0xfff)? as u16, push: name == "mod_vlan_vid" }
            }
            "mod_vlan_pcp" | "set_vlan_pcp" => {
                Action::SetVlanPcp { pcp: number(what, value, 7)? as u8, push: name == "mod_vlan_pcp" }
            }
            "strip_vlan" => plain(item, Action::StripVlan)?,
            "pop_vlan" => plain(item, Action::PopVlan)?,
            "push_vlan" => match parse_integer(value.text).and_then(|bits| u16::try_from(bits).ok()) {
                Some(ethertype @ (ETH_VLAN | ETH_QINQ)) => Action::PushVlan(ethertype),
                _ => return Err(value.bad_value(what, "0x8100 or 0x88a8")),
            },
            "mod_dl_src" => Action::ModDlSrc(mac(what, value)?),
            "mod_dl_dst" => Action::ModDlDst(mac(what, value)?),
            "mod_nw_src" => Action::ModNwSrc(ipv4(what, value)?),
            "mod_nw_dst" => Action::ModNwDst(ipv4(what, value)?),
            "mod_nw_tos" => match number(what, value, 0xff)? as u8 {
                tos if tos & 3 == 0 => Action::ModNwTos(tos),
                _ => return Err(value.bad_value(what, "a number from 0 to 252 whose low two bits are 0")),
            },
            "mod_nw_ecn" => Action::ModNwEcn(number(what, value, 3)? as u8),
            "mod_nw_ttl" | "set_nw_ttl" => Action::ModNwTtl(number(what, value, 0xff)? as u8),
            "dec_ttl" => dec_ttl(item)?,
            "mod_tp_src" => Action::ModTpSrc(number(what, value, 0xffff)? as u16),
            "mod_tp_dst" => Action::ModTpDst(number(what, value, 0xffff)? as u16),
            "set_tunnel" | "set_tunnel64" => {
                let id = number(what, value, u64::MAX)?;
                Action::SetTunnel { id, wide: name == "set_tunnel64" || id > u32::MAX.into() }
            }
            "resubmit" => self.resubmit(value)?,
            "conjunction" => conjunction(value)?,
            "note" => Action::Note(hex_bytes(what, value)?),
            "exit" => plain(item, Action::Exit)?,
            "debug_recirc" => plain(item, Action::DebugRecirc)?,
            "clear_actions" => plain(item, Action::ClearActions)?,
            "write_actions" => {
                self.check_nested(key)?;
                let nested = Reader { names: self.names, nested: true }.list(value)?;
                Action::WriteActions(nested.into_iter().map(|(_, action)| action).collect())
            }
            "write_metadata" => write_metadata(what, value)?,
            "goto_table" => Action::GotoTable(table(what, value, 254)?),
            "apply_actions" => {
                let text = "apply_actions is what happens anyway: expected its actions without it".to_string();
                return Err(key.fault(ParseErrorKind::InvalidAction(text)));
            }
            _ if UNSUPPORTED.contains(&name.as_str()) => {
                return Err(key.fault(ParseErrorKind::UnsupportedAction(what.into())));
            }
            _ => match OfPort::parse(what, self.names) {
                Some(port) => plain(item, Action::Output(port))?,
                None => return Err(key.fault(ParseErrorKind::UnknownAction(what.into()))),
            },
        };
        // Packets for the controllers have one form, however they were asked for.
        Ok(vec![match action {
            Action::Output(OfPort::CONTROLLER) => Action::Controller(Controller::default()),
            action => action,
        }])
    }

    /// `output:PORT`, `output:SUBFIELD`, `output(port=PORT,max_len=N)`.
    fn output(&self, value: Span<'_>) -> Parsed<Action> {
        if value.text.contains('=') {
            return self.output_trunc(value);
        }
        if let Some(port) = OfPort::parse(value.text, self.names) {
            return Ok(Action::Output(port));
        }
        if value.is_empty() {
            return Err(value.bad_value("output", "a port or a field that holds a port's number"));
        }
        match Subfield::parse(value) {
            Ok(src) => Ok(Action::OutputReg(src)),
            // Without brackets it rather was meant to be a port.
            Err(fault) if matches!(fault.kind, ParseErrorKind::UnknownField(_)) && !value.text.contains('[') => {
                Err(value.fault(ParseErrorKind::UnknownPort(value.text.into())))
            }
            Err(fault) => Err(fault),
        }
    }

    fn output_trunc(&self, value: Span<'_>) -> Parsed<Action> {
        let (mut port, mut max_len) = (None, None);
        let mut items = KeyValues::new(value);
        while let Some(KeyValue { key, value, .. }) = items.next()? {
            match key.text {
                "port" => {
                    let found = self.port(value)?;
                    if found > OfPort::MAX && found != OfPort::LOCAL && found != OfPort::IN_PORT {
                        return Err(value.bad_value("output with max_len", "a port's number or name, LOCAL or IN_PORT"));
                    }
                    port = Some(found);
                }
                "max_len" => match number("max_len", value, u32::MAX.into())? as u32 {
                    found if found >= MIN_TRUNC => max_len = Some(found),
                    _ => return Err(value.bad_value("max_len", format!("a number from {MIN_TRUNC}"))),
                },
                _ => return Err(key.bad_value("output", "port=PORT,max_len=BYTES")),
            }
        }
        match (port, max_len) {
            (Some(port), Some(max_len)) => Ok(Action::OutputTrunc { port, max_len }),
            _ => Err(value.bad_value("output", "both port=PORT and max_len=BYTES")),
        }
    }

    /// `controller`, `controller:MAX_LEN`, `controller(KEY=VALUE,…)`.
    fn controller(&self, value: Span<'_>) -> Parsed<Action> {
        let mut controller = Controller::default();
        if !value.is_empty() && value.text.bytes().all(|c| c.is_ascii_digit()) {
            controller.max_len = number("max_len", value, 0xffff)? as u16;
            return Ok(Action::Controller(controller));
        }
        let mut items = KeyValues::new(value);
        while let Some(KeyValue { key, value, .. }) = items.next()? {
            match key.text {
                "max_len" => controller.max_len = number("max_len", value, 0xffff)? as u16,
                "id" => controller.id = number("id", value, 0xffff)? as u16,
                "reason" => {
                    let reason = PacketInReason::WORDS.iter().find(|(_, word)| word.eq_ignore_ascii_case(value.text));
                    controller.reason = reason.ok_or_else(|| value.bad_value("reason", reason_words()))?.0;
                }
                "userdata" => controller.userdata = hex_bytes("userdata", value)?,
                "pause" | "meter_id" => {
                    let text = format!("controller({})", key.text);
                    return Err(key.fault(ParseErrorKind::UnsupportedAction(text)));
                }
                _ => return Err(key.bad_value("controller", "reason=, max_len=, id= or userdata=")),
            }
        }
        Ok(Action::Controller(controller))
    }

    /// `set_field:VALUE[/MASK]->FIELD`.
    fn set_field(&self, text: Span<'_>) -> Parsed<Action> {
        let (value, name) = arrow("set_field", text, "VALUE[/MASK]->FIELD")?;
        let field = FieldId::by_name(name.text).ok_or_else(|| {
            name.fault(if is_unsupported_name(name.text) {
                ParseErrorKind::UnsupportedField(name.text.into())
            } else if name.text.contains('[') {
                ParseErrorKind::BadValue {
                    what: "set_field".into(),
                    value: name.text.into(),
                    expected: "a whole field's name (load:VALUE->FIELD[FIRST..LAST] sets some bits)".into(),
                }
            } else {
                ParseErrorKind::UnknownField(name.text.into())
            })
        })?;
        writable(name, field)?;
        let (bits, mask) = parse_field_value(field, name.text, value, self.names, ValueUse::Set)?;
        if mask == 0 {
            return Err(value.bad_value(name.text, "a mask that selects at least one bit"));
        }
        Ok(Action::SetField { field, value: bits, mask })
    }

    /// `resubmit:PORT`, `resubmit(PORT,TABLE)`, `resubmit(,TABLE)`.
    fn resubmit(&self, text: Span<'_>) -> Parsed<Action> {
        let (port, rest) = text.split_at_comma();
        let (table_text, last) = rest.split_at_comma();
        let port = match port.trim_start() {
            port if port.is_empty() => None,
            // Looking up with the port the packet came in by is looking up as it is.
            port => Some(self.port(port)?).filter(|port| *port != OfPort::IN_PORT),
        };
        let table = match table_text.trim_start() {
            text if text.is_empty() => None,
            // 255 is the reference's number for "the current table".
            text => Some(table("resubmit's table", text, 255)?).filter(|table| *table != 255),
        };
        if last.trim().text == "ct" {
            return Err(last.fault(ParseErrorKind::UnsupportedAction("resubmit(PORT,TABLE,ct)".into())));
        }
        if !last.trim().is_empty() || (port.is_none() && table.is_none()) {
            return Err(text.bad_value("resubmit", "resubmit:PORT, resubmit(PORT,TABLE) or resubmit(,TABLE)"));
        }
        Ok(Action::Resubmit { port, table })
    }

    fn port(&self, text: Span<'_>) -> Parsed<OfPort> {
        OfPort::parse(text.text, self.names).ok_or_else(|| text.fault(ParseErrorKind::UnknownPort(text.text.into())))
    }
}

/// `load:VALUE->SUBFIELD`; more than 64 bits become several loads, lowest bits first.
fn load(text: Span<'_>) -> Parsed<Vec<Action>> {
    let (value, name) = arrow("load", text, "VALUE->FIELD[FIRST..LAST]")?;
    let dst = Subfield::parse(name)?;
    writable(name, dst.field)?;
    let bits = parse_integer(value.text)
        .filter(|bits| *bits <= dst.max() && dst.insert(0, *bits) & !dst.field.full_mask() == 0)
        .ok_or_else(|| value.bad_value(name.text, format!("a number from 0 to {:#x}", dst.max())))?;
    let piece = |from: u32| {
        let dst = Subfield::new(dst.field, dst.offset + from, (dst.bits - from).min(64))?;
        Some(Action::Load { value: (bits >> from) as u64 & dst.max() as u64, dst })
    };
    Ok((0..dst.bits).step_by(64).filter_map(piece).collect())
}

fn parse_move(text: Span<'_>) -> Parsed<Action> {
    let (from, to) = arrow("move", text, "FIELD[FIRST..LAST]->FIELD[FIRST..LAST]")?;
    let (src, dst) = (Subfield::parse(from)?, Subfield::parse(to)?);
    writable(to, dst.field)?;
    if src.bits != dst.bits {
        return Err(text.fault(ParseErrorKind::WidthMismatch { source_field: src, destination: dst }));
    }
    Ok(Action::Move { src, dst })
}

fn dec_ttl(item: KeyValue<'_>) -> Parsed<Action> {
    if item.delimiter.is_none() || item.value.is_empty() {
        return Ok(Action::DecTtl(vec![0]));
    }
    let mut ids = Vec::new();
    let mut items = KeyValues::new(item.value);
    while let Some(id) = items.next()? {
        let bad = || item.value.bad_value("dec_ttl", "controller ids, decimal numbers from 0 to 65535");
        let number = parse_decimal(id.key.text).filter(|_| id.delimiter.is_none());
        ids.push(number.ok_or_else(bad)?);
    }
    if ids.is_empty() {
        return Err(item.value.bad_value("dec_ttl", "at least one controller id"));
    }
    Ok(Action::DecTtl(ids))
}

/// `ID,K/N`.
fn conjunction(text: Span<'_>) -> Parsed<Action> {
    let (id, rest) = text.split_at_comma();
    let part = |span: Span<'_>| parse_decimal::<u8>(span.trim().text);
    let id = parse_integer(id.trim().text).and_then(|id| u32::try_from(id).ok());
    let clause = rest.split_once("/").and_then(|(clause, clauses)| Some((part(clause)?, part(clauses)?)));
    match (id, clause) {
        (Some(id), Some((clause, clauses))) if (2..=64).contains(&clauses) && (1..=clauses).contains(&clause) => {
            Ok(Action::Conjunction { id, clause, clauses })
        }
        _ => Err(text.bad_value("conjunction", "ID,K/N: a number of 32 bits, and clause K of N from 2 to 64")),
    }
}

fn write_metadata(what: &str, text: Span<'_>) -> Parsed<Action> {
    let (value, mask) = match text.split_once("/") {
        Some((value, mask)) => (value, number(what, mask, u64::MAX)?),
        None => (text, u64::MAX),
    };
    Ok(Action::WriteMetadata { value: number(what, value, u64::MAX)? & mask, mask })
}

/// Splits `LEFT->RIGHT`, neither being empty.
fn arrow<'a>(what: &str, text: Span<'a>, form: &str) -> Parsed<(Span<'a>, Span<'a>)> {
    text.split_once("->")
        .filter(|(left, right)| !left.is_empty() && !right.is_empty())
        .ok_or_else(|| text.bad_value(what, form))
}

fn writable(name: Span<'_>, field: FieldId) -> Parsed<()> {
    match field.info().access {
        Access::ReadWrite => Ok(()),
        Access::ReadOnly => Err(name.fault(ParseErrorKind::ReadOnlyField(name.text.into()))),
    }
}

fn plain(item: KeyValue<'_>, action: Action) -> Parsed<Action> {
    no_argument(item).map(|()| action)
}

fn no_argument(item: KeyValue<'_>) -> Parsed<()> {
    match item.delimiter {
        None => Ok(()),
        Some(_) => Err(item.value.fault(ParseErrorKind::BadValue {
            what: item.key.text.into(),
            value: item.value.text.into(),
            expected: format!("{} alone, without an argument", item.key.text),
        })),
    }
}

fn number(what: &str, text: Span<'_>, max: u64) -> Parsed<u64> {
    parse_integer(text.text)
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value <= max)
        .ok_or_else(|| text.bad_value(what, format!("a number from 0 to {max}")))
}

/// A table's number, which is decimal only.
fn table(what: &str, text: Span<'_>, max: u8) -> Parsed<u8> {
    parse_decimal(text.text)
        .filter(|table| *table <= max)
        .ok_or_else(|| text.bad_value(what, format!("a decimal number from 0 to {max}")))
}

fn mac(what: &str, text: Span<'_>) -> Parsed<[u8; 6]> {
    parse_mac(text.text).ok_or_else(|| text.bad_value(what, "an Ethernet address such as 00:11:22:33:44:55"))
}

fn ipv4(what: &str, text: Span<'_>) -> Parsed<std::net::Ipv4Addr> {
    parse_ipv4(text.text).ok_or_else(|| text.bad_value(what, "an IPv4 address"))
}

/// Pairs of hexadecimal digits, dots or white space between them.
fn hex_bytes(what: &str, text: Span<'_>) -> Parsed<Vec<u8>> {
    let bad = || text.bad_value(what, "bytes of two hexadecimal digits, such as 00.1f");
    let mut bytes = Vec::new();
    for word in text.text.split(|c: char| c == '.' || c.is_ascii_whitespace()) {
        for pair in word.as_bytes().chunks(2) {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2).ok_or_else(bad)?;
            let digits = pair.bytes().all(|c| c.is_ascii_hexdigit());
            bytes.push(u8::from_str_radix(pair, 16).ok().filter(|_| digits).ok_or_else(bad)?);
        }
    }
    Ok(bytes)
}

fn reason_words() -> String {
    PacketInReason::WORDS.iter().map(|(_, word)| *word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::NoPortNames;

    #[test]
    fn errors_say_where_and_what_was_expected() {
        for (text, error) in [
            ("output:veth9", "column 8: unknown port `veth9`"),
            ("output:reg0[40]", "column 12: bad bits `[40]` of field reg0"),
            ("output", "column 7: output is missing its value"),
            ("output(port=1)", "column 8: bad value `port=1` for output: expected both"),
            ("output(port=1,max_len=13)", "column 23: bad value `13` for max_len: expected a number from 14"),
            ("output(port=NORMAL,max_len=64)", "column 13: bad value `NORMAL`"),
            ("mod_vlan_vid:4096", "column 14: bad value `4096` for mod_vlan_vid: expected a number from 0 to 4095"),
            ("mod_nw_tos:3", "column 12: bad value `3`"),
            ("push_vlan:0x800", "column 11: bad value `0x800` for push_vlan: expected 0x8100 or 0x88a8"),
            ("mod_dl_src:1:2:3", "column 12: bad value `1:2:3`"),
            ("load:0x10->reg0[0..3]", "column 6: bad value `0x10` for reg0[0..3]: expected a number from 0 to 0xf"),
            ("load:1", "column 6: bad value `1` for load: expected VALUE->FIELD[FIRST..LAST]"),
            ("load:1->nw_proto", "column 9: field nw_proto is read-only"),
            (
                "move:reg0->xreg1",
                "column 6: move from NXM_NX_REG0[] (32 bits) to OXM_OF_PKT_REG1[] (64 bits): expected equal",
            ),
            ("set_field:1->reg0[1]", "column 14: bad value `reg0[1]` for set_field: expected a whole field's name"),
            ("set_field:1->ct_mark", "column 14: field ct_mark is not supported yet"),
            ("set_field:0/0->reg0", "column 11: bad value `0/0` for reg0: expected a mask that selects"),
            ("set_field:4096->dl_vlan", "column 11: bad value `4096`"),
            ("set_field:3->nw_tos", "column 11: bad value `3` for nw_tos"),
            ("resubmit(,)", "column 10: bad value `,` for resubmit"),
            ("resubmit(1,2,ct)", "column 14: action resubmit(PORT,TABLE,ct) is not supported yet"),
            ("resubmit(1,2,x)", "column 10: bad value `1,2,x`"),
            ("resubmit:veth9", "column 10: unknown port `veth9`"),
            ("1,learn(table=1)", "column 3: action learn is not supported yet"),
            ("GROUP:1", "column 1: action GROUP is not supported yet"),
            ("frobnicate", "column 1: unknown action `frobnicate`"),
            ("drop,1", "column 1: drop goes alone"),
            ("goto_table:2,1", "column 14: 1 stands after goto_table:2: expected it before"),
            ("clear_actions,clear_actions", "column 15: clear_actions stands twice"),
            ("write_actions(goto_table:1)", "column 15: goto_table is an instruction"),
            ("apply_actions(1)", "column 1: apply_actions is what happens anyway"),
            ("note:0", "column 6: bad value `0`"),
            ("controller(pause)", "column 12: action controller(pause) is not supported yet"),
            ("controller(reason=boredom)", "column 19: bad value `boredom` for reason: expected no_match, action"),
            ("strip_vlan:1", "column 12: bad value `1` for strip_vlan: expected strip_vlan alone"),
            ("resubmit(1", "column 9: `(` without its `)`"),
            ("dec_ttl(,)", "column 9: bad value `,` for dec_ttl"),
            ("conjunction(1,0/2)", "column 13: bad value `1,0/2` for conjunction: expected ID,K/N"),
            ("conjunction(1,3/2)", "column 13: bad value `1,3/2`"),
            ("conjunction(1,1/1)", "column 13: bad value `1,1/1`"),
            ("conjunction(1,1/65)", "column 13: bad value `1,1/65`"),
            ("conjunction(1,1)", "column 13: bad value `1,1`"),
            ("conjunction(0x100000000,1/2)", "column 13: bad value `0x100000000,1/2`"),
            ("dec_ttl(x)", "column 9: bad value `x`"),
        ] {
            let found = parse_actions(text, &NoPortNames).unwrap_err().to_string();
            assert!(found.starts_with(error), "{text}: {found}");
        }
    }

    #[test]
    fn different_texts_of_one_action_are_the_same() {
        for (text, same) in [
            ("CONTROLLER", "controller:65535"),
            ("output:controller", "controller()"),
            ("controller(max_len=128)", "CONTROLLER:128"),
            ("Output:5", "5"),
            ("resubmit(in_port,3)", "resubmit(, 3)"),
            ("resubmit(7,255)", "resubmit:7"),
            ("load:0x10000000000000002->xxreg0", "load:2->xxreg0[0..63],load:1->xxreg0[64..127]"),
            ("set_nw_ttl:5", "mod_nw_ttl:5"),
            ("drop", ""),
            ("note:0011", "note:00.11"),
            ("conjunction(0x10, 1 / 2)", "conjunction(16,1/2)"),
        ] {
            assert_eq!(parse_actions(text, &NoPortNames), parse_actions(same, &NoPortNames), "{text}");
        }
    }
}
