//! The cookie of a userspace action (`dpif::odp::Cookie`), which comes back from the datapath with each packet.
//!
//! A cookie that is read is written and read as the same; as part of an action its text is read as the same bytes.

use dpif::odp::{Cookie, format_actions, parse_actions};
use dpif::{Action, UserspaceAction};

/// Runs the target.
pub fn run(bytes: &[u8]) {
    if let Some(cookie) = Cookie::decode(bytes) {
        assert_eq!(Cookie::decode(&cookie.encode()), Some(cookie));
    }
    let actions = vec![Action::Userspace(UserspaceAction { cookie: bytes.to_vec(), ..Default::default() })];
    let shown = format_actions(&actions, None);
    let again = parse_actions(&shown, None).unwrap_or_else(|error| panic!("{shown:?} is not read: {error}"));
    assert_eq!(format_actions(&again, None), shown);
}
