//! What the switch should be, as a file says it and as the command line does (`vswitchd::config`).
//!
//! - What a file says is refused with a place in it, or becomes a state whose file says the same.
//! - Each line by itself is read, or refused, as `--bridge`, `--port` and `--flows` are.

use std::path::Path;

use vswitchd::config::{BridgePart, DesiredState, FileError, FlowsPart, Parts, PortPart, from_toml, to_toml};

use crate::input::text;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let text = text(bytes);
    for line in text.lines() {
        let (bridge, port) = (line.parse::<BridgePart>(), line.parse::<PortPart>());
        let _ = line.parse::<FlowsPart>();
        let (bridges, ports) = (bridge.into_iter().collect(), port.into_iter().collect());
        stays(Parts { bridges, ports, ..Parts::default() });
    }
    match from_toml(&text, Path::new("switch.toml")) {
        Ok(parts) => stays(parts),
        Err(FileError::Syntax { line, column, .. }) => {
            assert!(line >= 1 && line <= text.lines().count() + 1, "line {line}");
            let longest = text.split('\n').map(|line| line.chars().count()).max();
            assert!(column >= 1 && Some(column) <= longest.map(|longest| longest + 2), "column {column}");
        }
        Err(error) => panic!("{error}"),
    }
}

fn stays(parts: Parts) {
    // A flow file is read where it is; whose name it would be, the input chooses.
    let Some(state) = build(Parts { flows: Vec::new(), ..parts }) else { return };
    let file = to_toml(&state);
    let again = from_toml(&file, Path::new("switch.toml")).unwrap_or_else(|error| panic!("{error}\n{file}"));
    assert_eq!(build(again).as_ref(), Some(&state), "{file}");
}

fn build(parts: Parts) -> Option<DesiredState> {
    parts.build().ok()
}
