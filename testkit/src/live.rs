//! Frames by the million: made and counted in the kernel, by programs at two hosts with a switch between them ([`Wires`]).
//!
//! A process can't send as fast as a switch forwards. So frames are made by an XDP program that the kernel runs on memory of its own
//! and that sends what it writes there into the wire ([`Generator`]); a program at the other host counts what arrives ([`Counter`]).

pub mod frames;
mod programs;
mod wires;

pub use self::programs::{Counter, Generator};
pub use self::wires::{Host, Wires};
