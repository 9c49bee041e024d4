//! Actions as text (`dpif::odp`).
//!
//! What is read can be written, and is read again as the same.

use dpif::odp::{format_actions, parse_actions};

use crate::input::text;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Ok(actions) = parse_actions(&text(bytes), None) else { return };
    let shown = format_actions(&actions, None);
    assert_eq!(parse_actions(&shown, None), Ok(actions), "{shown:?}");
}
