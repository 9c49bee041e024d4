//! Flows in the syntax of `ovs-ofctl` (`openflow`).
//!
//! - What is read can be written, and is read again as the same: a flow, a match, a list of actions, a whole file.
//! - A file has the flows of its lines.

use openflow::{FlowMatch, FlowMod, NoPortNames, action::display_actions, parse_actions, parse_flow_file};

use crate::input::text;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let text = text(bytes);
    let flows = parse_flow_file(&text, &NoPortNames);
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .filter(|line| !line.trim().is_empty())
        .map(|line| FlowMod::parse(line, &NoPortNames))
        .collect();
    assert_eq!(flows.as_ref().ok(), lines.iter().cloned().collect::<Result<Vec<_>, _>>().ok().as_ref());
    for flow in lines.into_iter().flatten() {
        let shown = flow.to_string();
        assert_eq!(FlowMod::parse(&shown, &NoPortNames), Ok(flow), "{shown:?}");
    }
    if let Ok(of) = FlowMatch::parse(&text, &NoPortNames) {
        let shown = of.to_string();
        assert_eq!(FlowMatch::parse(&shown, &NoPortNames), Ok(of), "{shown:?}");
    }
    if let Ok(actions) = parse_actions(&text, &NoPortNames) {
        let shown = display_actions(&actions, &NoPortNames).to_string();
        assert_eq!(parse_actions(&shown, &NoPortNames), Ok(actions), "{shown:?}");
    }
}
