//! Reading a flow.

use super::{FlowCommand, FlowFlags, FlowMod, MaskedCookie};
use crate::action::{check_located, parse_action_list};
use crate::error::{ParseError, ParseErrorKind, Parsed};
use crate::field::{parse_decimal, parse_integer};
use crate::matching::MatchParser;
use crate::port::{OfPort, PortNames};
use crate::scan::{KeyValue, KeyValues, Span};

/// Words of `dump-flows` that describe a flow rather than ask for it.
const IGNORED: &[&str] = &["duration", "n_packets", "n_bytes", "idle_age", "hard_age"];

/// Words that earlier versions of the reference took; they mean nothing.
const OBSOLETE: &[&str] = &["no_readonly_table", "allow_hidden_fields"];

pub(super) fn parse_flow(text: &str, names: &dyn PortNames) -> Result<FlowMod, ParseError> {
    parse(Span::new(text), names).map_err(|fault| fault.in_text(text))
}

fn parse(text: Span<'_>, names: &dyn PortNames) -> Parsed<FlowMod> {
    let (command, text) = split_command(text);
    let mut flow = FlowMod { command, ..FlowMod::default() };
    let mut matching = MatchParser::new(names);
    let mut items = KeyValues::new(text);
    let mut action_text = None;
    while let Some(item) = items.next()? {
        if matches!(item.key.text, "actions" | "action") {
            action_text = Some(split_actions(command, text, item.key)?);
            break;
        }
        if !matching.item(item)? {
            setting(&mut flow, item, names)?;
        }
    }
    flow.r#match = matching.finish()?;
    match action_text {
        None if command.is_delete() => {}
        None => return Err(items.rest().tail().fault(ParseErrorKind::MissingActions)),
        Some(text) => {
            let actions = parse_action_list(text, names)?;
            // Only an addition without a table is known to be for table 0.
            let table = if command == FlowCommand::Add { flow.table.or(Some(0)) } else { flow.table };
            check_located(&flow.r#match, table, &actions)?;
            flow.actions = actions.into_iter().map(|(_, action)| action).collect();
        }
    }
    Ok(flow)
}

fn split_command(text: Span<'_>) -> (FlowCommand, Span<'_>) {
    let text = text.trim_start();
    let end = text.text.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(text.text.len());
    let (word, rest) = text.split_at(end);
    let commands = [
        FlowCommand::Add,
        FlowCommand::Modify,
        FlowCommand::ModifyStrict,
        FlowCommand::Delete,
        FlowCommand::DeleteStrict,
    ];
    match commands.into_iter().find(|command| command.name() == word.text) {
        Some(command) => (command, rest),
        None => (FlowCommand::Add, text),
    }
}

/// All that follows `actions=` is actions, whatever white space is around the `=`.
fn split_actions<'a>(command: FlowCommand, text: Span<'a>, key: Span<'a>) -> Parsed<Span<'a>> {
    if command.is_delete() {
        return Err(key.fault(ParseErrorKind::WrongCommand {
            setting: "actions".into(),
            command: command.name(),
            hint: "a deletion has none (out_port=PORT selects flows by output)",
        }));
    }
    let after = text.skip(key.at - text.at + key.text.len()).trim_start();
    match after.text.strip_prefix('=') {
        Some(_) => Ok(after.skip(1).trim()),
        None => Err(after
            .fault(ParseErrorKind::MissingValue { what: key.text.into(), expected: "`=` and an action list".into() })),
    }
}

fn setting(flow: &mut FlowMod, item: KeyValue<'_>, names: &dyn PortNames) -> Parsed<()> {
    let KeyValue { key, value, .. } = item;
    let command = flow.command;
    let wrong =
        |hint| Err(key.fault(ParseErrorKind::WrongCommand { setting: key.text.into(), command: command.name(), hint }));
    let deletes = command.is_delete();
    match key.text {
        // Tables are numbered in decimal; 255 is the reference's number for "not said".
        "table" => {
            let bad = || value.bad_value("table", "a decimal number from 0 to 255");
            flow.table = Some(parse_decimal::<u8>(value.text).ok_or_else(bad)?).filter(|table| *table != 255);
        }
        "priority" if command == FlowCommand::Delete => return wrong("delete_strict looks at priorities"),
        "priority" => flow.priority = number(item, 0xffff)? as u16,
        "idle_timeout" | "hard_timeout" | "importance" if deletes => return wrong("a deletion sets nothing"),
        "importance" if command != FlowCommand::Add => return wrong("only an addition sets it"),
        "idle_timeout" => flow.idle_timeout = number(item, 0xffff)? as u16,
        "hard_timeout" => flow.hard_timeout = number(item, 0xffff)? as u16,
        "importance" => flow.importance = number(item, 0xffff)? as u16,
        "cookie" => cookie(flow, item)?,
        "out_port" if !deletes => return wrong("it selects flows to delete"),
        "out_port" => {
            let unknown = || value.fault(ParseErrorKind::UnknownPort(value.text.into()));
            flow.out_port = Some(OfPort::parse(value.text, names).ok_or_else(unknown)?);
        }
        "out_group" => return Err(key.fault(ParseErrorKind::UnsupportedSetting("out_group".into()))),
        word if FlowFlags::default().set(word) => {
            alone(item)?;
            if deletes {
                return wrong("a deletion sets nothing");
            }
            flow.flags.set(word);
        }
        word if OBSOLETE.contains(&word) => alone(item)?,
        word if IGNORED.contains(&word) => {}
        word => return Err(key.fault(ParseErrorKind::UnknownKeyword(word.into()))),
    }
    Ok(())
}

fn cookie(flow: &mut FlowMod, item: KeyValue<'_>) -> Parsed<()> {
    let KeyValue { key, value, .. } = item;
    let read = |text: Span<'_>| {
        let bits = parse_integer(text.text).and_then(|bits| u64::try_from(bits).ok());
        bits.ok_or_else(|| text.bad_value("cookie", "a number from 0 to 0xffffffffffffffff"))
    };
    let command = flow.command.name();
    let wrong = |hint| Err(key.fault(ParseErrorKind::WrongCommand { setting: key.text.into(), command, hint }));
    match value.split_once("/") {
        Some(_) if flow.command == FlowCommand::Add => wrong("a new flow's cookie has no /MASK"),
        Some((bits, mask)) => {
            let mask = read(mask)?;
            flow.cookie_filter =
                Some(MaskedCookie { value: read(bits)? & mask, mask }).filter(|cookie| cookie.mask != 0);
            Ok(())
        }
        None if flow.command.is_delete() => wrong("a deletion sets none (cookie=VALUE/-1 selects flows by cookie)"),
        None => {
            flow.cookie = Some(read(value)?);
            Ok(())
        }
    }
}

fn alone(item: KeyValue<'_>) -> Parsed<()> {
    match item.delimiter {
        None => Ok(()),
        Some(_) => Err(item.value.fault(ParseErrorKind::BadValue {
            what: item.key.text.into(),
            value: item.value.text.into(),
            expected: format!("{} alone, without a value", item.key.text),
        })),
    }
}

fn number(item: KeyValue<'_>, max: u64) -> Parsed<u64> {
    parse_integer(item.value.text)
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value <= max)
        .ok_or_else(|| item.value.bad_value(item.key.text, format!("a number from 0 to {max}")))
}
