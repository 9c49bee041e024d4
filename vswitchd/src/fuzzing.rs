//! The readers of requests that are nobody else's business, for the fuzzers of the `fuzz` crate.

use crate::switch::commands::ct_match;
use crate::unixctl::wire::{Call, Framer, reply};
use crate::vlog::spec::Spec;

/// Cuts a stream that comes in chunks of `chunk` bytes into requests of at most `max` bytes; whether it is a stream of them to
/// its end.
pub fn frames(stream: &[u8], chunk: usize, max: usize) -> (Vec<Vec<u8>>, bool) {
    let mut framer = Framer::new(max);
    let mut found = Vec::new();
    for chunk in stream.chunks(chunk.max(1)) {
        framer.push(chunk);
        loop {
            match framer.next() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
    }
    (found, true)
}

/// Reads a request: its method, the number of its parameters, and a reply to it.
pub fn call(request: &[u8]) -> Option<(String, usize, Vec<u8>)> {
    let call = Call::parse(request).ok()?;
    let answer = reply(&call.id, Err(call.method.clone()));
    Some((call.method, call.params.len(), answer))
}

/// Reads what `vlog/set` sets; whether it means something.
pub fn log_level(text: &str) -> bool {
    Spec::parse(text, |module| Some(module.to_owned())).is_ok()
}

/// Reads the arguments of `dpctl/flush-conntrack`.
pub fn connections(args: &[&str]) -> Result<dpif::ct::CtMatch, String> {
    ct_match::parse(args)
}
