//! Requests on the control socket, and the arguments of commands that have a syntax of their own (`vswitchd`).
//!
//! - A stream is cut into the same requests however it comes in, and they are what it consists of.
//! - A request is read or refused, and the reply is one object.
//! - `vlog/set` and `dpctl/flush-conntrack` read their arguments or refuse them.

use vswitchd::fuzzing;

use crate::input::{Input, text};

/// Most bytes of a request.
const MAX: usize = 512;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let chunk = usize::from(input.u8());
    let stream = input.rest();
    let (requests, whole) = fuzzing::frames(stream, chunk, MAX);
    assert_eq!((&requests, whole), (&fuzzing::frames(stream, 1, MAX).0, fuzzing::frames(stream, 1, MAX).1));
    let mut rest = stream;
    for request in &requests {
        rest = rest.trim_ascii_start().strip_prefix(request.as_slice()).expect("the stream consists of its requests");
        if let Some((_, _, reply)) = fuzzing::call(request) {
            let (again, whole) = fuzzing::frames(&reply, 7, usize::MAX);
            assert_eq!((again, whole), (vec![reply], true));
        }
    }
    let text = text(stream);
    let _ = fuzzing::log_level(&text);
    let _ = fuzzing::connections(&text.split(' ').collect::<Vec<_>>());
}
