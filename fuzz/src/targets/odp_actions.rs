//! Actions as text (`dpif::odp`).
//!
//! What is read can be written, and is read again as the same and written as the same text.

use dpif::odp::{format_actions, parse_actions};

use crate::input::text;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Ok(actions) = parse_actions(&text(bytes), None) else { return };
    let shown = format_actions(&actions, None);
    let again = parse_actions(&shown, None).unwrap_or_else(|error| panic!("{shown:?} is not read: {error}"));
    assert_eq!(format_actions(&again, None), shown, "written again");
    // A sample's probability is written in tenths of a percent.
    if !shown.contains("sample=") {
        assert_eq!(again, actions, "{shown:?}");
    }
}
