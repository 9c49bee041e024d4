//! What is fuzzed.

pub mod config;
pub mod control;
pub mod cookie;
pub mod ebpf_upcall;
pub mod execute;
pub mod extract;
pub mod flow_text;
pub mod netlink_actions;
pub mod netlink_key;
pub mod netlink_message;
pub mod odp_actions;
pub mod odp_key;
pub mod offload;
pub mod translate;

/// A function of bytes that must not panic.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Runs it on an input.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident)*) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $name::run }),*];
    };
}

targets!(
    config control cookie ebpf_upcall execute extract flow_text netlink_actions netlink_key netlink_message odp_actions odp_key
    offload translate
);
