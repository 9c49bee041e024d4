//! The control socket: commands for a running daemon, one JSON object each way.
//!
//! The protocol is the field's, so that its `ovs-appctl` talks to this daemon: over a Unix stream socket a client sends
//! JSON-RPC 1.0 requests, `{"method":"version","params":[],"id":0}`, whose parameters are strings, and gets for each
//! `{"id":0,"result":"text\n","error":null}`, or the text in `error` if the command failed. A connection can carry many
//! requests; they are answered in order. After `set-options --format json` the results of that connection are JSON
//! values instead of text; commands that only know text have it wrapped.
//!
//! * [`Registry`] knows the commands: what is called how, with how many arguments.
//! * [`Server`] owns the socket and a thread. No client can hold up another: what a client is slow to send or to take
//!   waits in that client's buffers, which are bounded. A command can hold up others while it runs; one that has to
//!   wait for something takes its [`Responder`] along and answers later.
//! * [`call`] is the client's side, for tools and tests.

mod client;
mod registry;
mod server;
mod socket;
pub(crate) mod wire;

pub use client::{CallError, call};
pub use registry::{Format, Registry, Reply, Request, Responder};
pub use server::{Bound, Server};
pub use socket::SocketError;
