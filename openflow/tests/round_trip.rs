//! What is written is read back as it was, and no text makes the parser panic.

mod common;

use std::collections::BTreeMap;

use common::{flow_mods, matches};
use openflow::{FlowMatch, FlowMod, NoPortNames, OfPort, ParseErrorKind, parse_actions, parse_flow_file};
use proptest::prelude::*;
use proptest::sample::Index;

fn names() -> BTreeMap<String, OfPort> {
    ["eth0", "a-b", "5", "veth1.100", "x,y", "(p)", "q\"uote", "tcp", "LOCAL", "drop", "é", "back\\slash"]
        .into_iter()
        .zip(1..)
        .map(|(name, port)| (name.to_string(), OfPort(port)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_written_flow_is_read_back(flow in flow_mods()) {
        let text = flow.to_string();
        let read = FlowMod::parse(&text, &NoPortNames);
        prop_assert_eq!(read, Ok(flow), "{}", text);
    }

    #[test]
    fn a_flow_written_with_port_names_is_read_back(mut flow in flow_mods(), port in 1u16..13) {
        // A bare `drop` or `tcp` is not an interface in the places where the syntax has its own meaning for the word.
        flow.r#match.set_exact(openflow::FieldId::InPort, port.into());
        if !flow.command.is_delete() {
            flow.actions.insert(0, openflow::Action::Output(OfPort(port)));
            flow.actions.insert(0, openflow::Action::Resubmit { port: Some(OfPort(port)), table: Some(7) });
        }
        let names = names();
        let text = flow.display(&names).to_string();
        prop_assert_eq!(FlowMod::parse(&text, &names), Ok(flow), "{}", text);
    }

    #[test]
    fn a_written_match_is_read_back_without_wild_bits(flow in matches()) {
        prop_assert_eq!(FlowMatch::parse(&flow.to_string(), &NoPortNames), Ok(flow.clone()));
        // Bits that are not looked at are 0, so that equal matches compare equal.
        for field in openflow::FieldId::all() {
            let (value, mask) = flow.get(field);
            prop_assert_eq!(value & !mask, 0, "{}", field);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        survives(&text)?;
    }

    #[test]
    fn no_damaged_flow_makes_the_parser_panic(
        flow in flow_mods(),
        edits in proptest::collection::vec((any::<Index>(), any::<u8>(), "[\"(),:=/\\[\\]>. \t\n|+*#0x9a-]|->|\\.\\.|é|->ct_mark|99999999999999999999"), 1..6),
    ) {
        let mut text = flow.to_string();
        for (place, kind, insertion) in edits {
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let at = *place.get(&places);
            match kind % 4 {
                0 => text.insert_str(at, &insertion),
                1 => text.truncate(at),
                2 if at < text.len() => drop(text.remove(at)),
                _ => text.replace_range(at..text[at..].chars().next().map_or(at, |c| at + c.len_utf8()), &insertion),
            }
        }
        survives(&text)?;
    }
}

/// Reads the text in every way there is; errors must lie within it and be one line.
fn survives(text: &str) -> Result<(), TestCaseError> {
    let names = names();
    let columns = text.chars().count() + 1;
    let errors = [
        FlowMod::parse(text, &names).err(),
        FlowMod::parse(&format!("actions={text}"), &names).err(),
        FlowMatch::parse(text, &names).err(),
        parse_actions(text, &names).err(),
    ];
    for error in errors.into_iter().flatten() {
        prop_assert!((1..=columns + "actions=".len()).contains(&error.column), "{error}");
        prop_assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
    if let Err(error) = parse_flow_file(text, &names) {
        prop_assert!((1..=text.lines().count()).contains(&error.line), "{error}");
    }
    // What was understood can be written and understood again.
    if let Ok(flow) = FlowMod::parse(text, &names) {
        let written = flow.display(&names).to_string();
        prop_assert_eq!(FlowMod::parse(&written, &names), Ok(flow), "{}", written);
    }
    Ok(())
}

#[test]
fn a_flow_file_is_read_line_by_line() {
    let flows = parse_flow_file(
        "# a comment\n\n in_port=1 actions=2 # behind\nadd table=3,actions=drop\r\ndelete table=4\n",
        &NoPortNames,
    );
    assert_eq!(
        flows.map(|flows| flows.iter().map(FlowMod::to_string).collect::<Vec<_>>()),
        Ok(vec!["in_port=1 actions=output:2".into(), "table=3 actions=drop".into(), "delete table=4".into()])
    );
}

#[test]
fn an_error_in_a_flow_file_says_where_it_is() {
    for (text, line, column, error) in [
        (
            "actions=drop\n\ntable=1, tcp, tp_dst=http actions=1",
            3,
            22,
            "bad value `http` for tp_dst: expected a number",
        ),
        ("in_port=1\n", 1, 10, "no actions"),
        ("# é\né=1 actions=drop", 2, 1, "unknown keyword `é`"),
        ("reg0=1 actions=output:reg0[3..99]", 1, 27, "bad bits `[3..99]` of field reg0"),
        ("priority=65536 actions=drop", 1, 10, "bad value `65536` for priority: expected a number from 0 to 65535"),
        ("delete priority=5", 1, 8, "priority does not go with `delete`: delete_strict looks at priorities"),
        ("delete actions=1", 1, 8, "actions does not go with `delete`"),
        ("out_port=1 actions=drop", 1, 1, "out_port does not go with `add`"),
        ("cookie=1/1 actions=drop", 1, 1, "cookie does not go with `add`: a new flow's cookie has no /MASK"),
        ("delete cookie=1", 1, 8, "cookie does not go with `delete`"),
        ("udp actions=1,set_field:1->tcp_src", 1, 15, "set_field:1->tcp_src needs its prerequisite: add tcp"),
        ("table=5 actions=goto_table:4", 1, 17, "goto_table:4 does not lead on from table 5"),
        ("actions", 1, 8, "actions is missing its value: expected `=` and an action list"),
        ("meter=1 actions=1", 1, 1, "unknown keyword `meter`"),
        ("out_group=1,actions=1", 1, 1, "out_group is not supported yet"),
    ] {
        let found = parse_flow_file(text, &NoPortNames).unwrap_err();
        assert_eq!((found.line, found.column), (line, column), "{text}: {found}");
        assert!(found.to_string().starts_with(&format!("line {line}, column {column}: {error}")), "{text}: {found}");
    }
}

#[test]
fn the_reference_s_dumps_can_be_fed_back() {
    let text = " cookie=0x5, duration=3.2s, table=2, n_packets=1, n_bytes=60, idle_timeout=9, idle_age=3, send_flow_rem \
                priority=7,tcp,in_port=LOCAL,tcp_flags=+syn-ack actions=CONTROLLER:65535";
    let flow = FlowMod::parse(text, &NoPortNames).unwrap();
    assert_eq!(
        flow.to_string(),
        "table=2 priority=7,tcp,in_port=LOCAL,tcp_flags=+syn-ack cookie=0x5 idle_timeout=9 send_flow_rem \
         actions=CONTROLLER:65535"
    );
}

#[test]
fn deep_nesting_is_refused_and_long_text_is_read_in_time() {
    let deep = format!("{}output:1{}", "write_actions(".repeat(100_000), ")".repeat(100_000));
    assert!(parse_actions(&deep, &NoPortNames).unwrap_err().to_string().contains("is an instruction"));
    for piece in ["(", "\"", "a(\"", "\"\\", "load:1->xxreg0,", "[", "->", "+syn", "|"] {
        let long = piece.repeat(100_000 / piece.len());
        for text in [long.clone(), format!("tcp,tcp_flags={long} actions={long}"), format!("actions=note:{long}")] {
            let _ = FlowMod::parse(&text, &NoPortNames);
        }
    }
}

#[test]
fn port_names_stand_for_their_ports() {
    let names = names();
    let flow =
        FlowMod::parse("in_port=\"a-b\" actions=output:eth0,\"x,y\",resubmit(\"x,y\",3),\"(p)\"", &names).unwrap();
    assert_eq!(flow.to_string(), "in_port=2 actions=output:1,output:5,resubmit(5,3),output:6");
    let error = FlowMod::parse("in_port=eth1 actions=drop", &names).unwrap_err();
    assert_eq!(error.kind, ParseErrorKind::UnknownPort("eth1".into()));
}
