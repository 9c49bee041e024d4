//! Packets under lists of actions: the in-process datapath and userspace's own execution beside each other.
//!
//! Input: the actions as odp text, a part; the port (a byte); the frame.
//!
//! - Nothing panics, and no output is longer than the frame with all tags that were pushed.
//! - The two agree on every output where both can do what is asked and nothing was dropped.
//! - The actions of a program, read from it as from one that an earlier process left, make the same program.

use std::sync::OnceLock;

use datapath_common::FlowKey;
use datapath_common::extract::extract;
use datapath_common::packet::Frame;
use dpif::inproc::InprocDatapath;
use dpif::odp::parse_actions;
use dpif::program::{compile, decompile};
use dpif::{Action, Dpif as _, Execute, OdpPort, Packet, PortKind, PortSpec};

use crate::input::{Input, text};

/// A datapath with ports 1 to 3 and a handler.
fn datapath() -> &'static InprocDatapath {
    static DATAPATH: OnceLock<InprocDatapath> = OnceLock::new();
    DATAPATH.get_or_init(|| {
        let datapath = InprocDatapath::new("fuzz");
        for n in 1..=3 {
            let spec = PortSpec { name: format!("p{n}"), kind: PortKind::System, request: Some(OdpPort(n)) };
            datapath.port_add(&spec).expect("a port in memory");
        }
        datapath.handlers_set(1).expect("a handler");
        datapath
    })
}

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (actions, in_port) = (text(input.part()), u32::from(input.u8() % 5));
    let packet = Packet::new(input.rest());
    let mut key = FlowKey { in_port, ..FlowKey::ZERO };
    let whole = extract(&Frame(&packet.data), &mut key).is_ok();

    let Ok(actions) = parse_actions(&actions, None) else {
        datapath().process(OdpPort(in_port), packet);
        return;
    };
    if let Ok(ops) = compile(&actions)
        && let Some(again) = decompile(&ops, &key)
        // The key says what is set: of other packets than the actions are for, that is something else.
        && let Ok(ops_again) = compile(&again)
    {
        assert_eq!(ops_again, ops, "{actions:?} came back as {again:?}");
    }

    let traced = datapath().process_execute(Execute { packet: &packet, key: &key, actions: &actions });
    let longest = packet.data.len() + 4 * pushes(&actions);
    if let Ok(trace) = &traced {
        for (_, bytes) in trace.outputs() {
            assert!(bytes.len() <= longest, "{} bytes became {}", packet.data.len(), bytes.len());
        }
    }

    let mut pieces = Vec::new();
    let done = ofproto::fuzzing::execute(&packet, &key, &actions, &mut |packet, _, action| {
        assert!(packet.data.len() <= longest);
        pieces.push((action, packet.data.clone()));
        Ok(())
    });
    let simple = pieces.iter().all(|(action, _)| matches!(action, Action::Output(OdpPort(1..=3))));
    if let (Ok(trace), Ok(()), true, true) = (traced, done, simple, whole)
        && trace.drops().is_empty()
    {
        let expected: Vec<_> = pieces
            .iter()
            .filter_map(|(action, data)| match action {
                Action::Output(port) => Some((*port, data.as_slice())),
                _ => None,
            })
            .collect();
        assert_eq!(trace.outputs(), expected, "{actions:?}");
    }
}

fn pushes(actions: &[Action]) -> usize {
    actions
        .iter()
        .map(|action| match action {
            Action::PushVlan(_) => 1,
            Action::Clone(actions) | Action::Sample { actions, .. } => pushes(actions),
            _ => 0,
        })
        .sum()
}
