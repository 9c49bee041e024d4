//! Datapath flows from files: `dpctl/add-flows`, `dpctl/mod-flows`, `dpctl/del-flows`.
//!
//! A line is `[add|modify|delete] FLOW [ACTIONS]`, the flow without blanks. Lines are carried out one by one; those that can't be are
//! told, and the others go on.

use std::fmt::Write as _;
use std::sync::Arc;

use dpif::PutMode;

use super::flows::{del_line, put_line};
use super::options::{Options, find};
use super::say;
use crate::switch::shared::Shared;
use crate::unixctl::Registry;

/// What is done with a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verb {
    Add,
    Modify,
    Delete,
}

pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) {
    for (name, verb) in [("dpctl/add-flows", Verb::Add), ("dpctl/mod-flows", Verb::Modify)] {
        let all = Arc::clone(shared);
        registry.register(name, "[DP] FILE", 1, 6, move |args| from_file(&all, args, verb));
    }
    let all = Arc::clone(shared);
    registry.register("dpctl/del-flows", "[DP] [FILE]", 0, 6, move |args| delete(&all, args));
}

fn delete(shared: &Shared, args: &[String]) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let all = match options.rest.as_slice() {
        [] => true,
        // A datapath, or else a file.
        [one] => find(shared, one).is_ok(),
        _ => false,
    };
    if !all {
        return from_file(shared, args, Verb::Delete);
    }
    options.datapath(shared, 0)?.flush().map_err(say)?;
    Ok(String::new())
}

fn from_file(shared: &Shared, args: &[String], verb: Verb) -> Result<String, String> {
    let mut options = Options::read(args)?;
    let switch = options.datapath(shared, 1)?;
    let path = options.rest.first().copied().unwrap_or_default();
    let text = std::fs::read_to_string(path).map_err(|error| format!("Opening file \"{path}\" failed ({error})"))?;
    let mut said = String::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let done = match parse(line, verb) {
            Some((Verb::Delete, flow, None)) => del_line(&switch, flow, &options),
            Some((Verb::Add, flow, Some(actions))) => put_line(&switch, flow, actions, PutMode::Create),
            Some((Verb::Modify, flow, Some(actions))) => put_line(&switch, flow, actions, PutMode::Modify),
            _ => Err(format!("Failed parsing line number {number}, skipped!")),
        };
        match done {
            Ok(text) => said.push_str(&text),
            Err(error) => {
                let _ = writeln!(said, "{error}");
            }
        }
    }
    Ok(said)
}

/// What a line asks for, its flow, and its actions if it has some.
fn parse(line: &str, verb: Verb) -> Option<(Verb, &str, Option<&str>)> {
    let end = line.find([',', ' ', '\t']).unwrap_or(line.len());
    let (word, rest) = line.split_at(end);
    // A verb may be cut short.
    let words = [("add", Verb::Add), ("delete", Verb::Delete), ("modify", Verb::Modify)];
    let said = words.into_iter().find(|(name, _)| !word.is_empty() && name.starts_with(word));
    let (verb, rest) = said.map_or((verb, line), |(_, verb)| (verb, rest));
    let rest = rest.trim_start();
    let end = rest.find([' ', '\t']).unwrap_or(rest.len());
    let (flow, actions) = rest.split_at(end);
    let actions = Some(actions.trim_start()).filter(|actions| !actions.is_empty());
    (!flow.is_empty()).then_some((verb, flow, actions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_say_what_is_to_be_done() {
        for (line, expected) in [
            ("in_port(1) 2", Some((Verb::Add, "in_port(1)", Some("2")))),
            ("add in_port(1) 2,3", Some((Verb::Add, "in_port(1)", Some("2,3")))),
            ("del in_port(1)", Some((Verb::Delete, "in_port(1)", None))),
            ("modify\tin_port(1),eth() drop", Some((Verb::Modify, "in_port(1),eth()", Some("drop")))),
            ("delete", None),
            ("in_port(1)", Some((Verb::Add, "in_port(1)", None))),
        ] {
            assert_eq!(parse(line, Verb::Add), expected, "{line}");
        }
        assert_eq!(parse("in_port(1)", Verb::Delete), Some((Verb::Delete, "in_port(1)", None)));
    }
}
