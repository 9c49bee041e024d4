//! Fuzzers for everything that reads bytes from outside.
//!
//! A [`Target`] is a plain function of bytes that panics where something that must hold does not: that nothing panics, that what
//! was written is read back as it was, that two ways to the same answer agree. Who drives it is another matter:
//!
//! - `cargo test -p fuzz` replays the corpus of each target (`corpus/TARGET/*`) and a number of mutations of it, the same each time;
//! - `cargo xtask fuzz [TARGET]` builds the targets with coverage counters and lets libFuzzer look for new inputs
//!   (`docs/fuzzing.md`).
//!
//! Who reads bytes that somebody else has chosen, and which target covers it:
//!
//! | crate | what is read | target |
//! | --- | --- | --- |
//! | `datapath-common` | frames, by extraction; also by the plain IPv4 way | [`extract`](targets::extract) |
//! | `dpif` | what a sender left to the device (`offload`) | [`offload`](targets::offload) |
//! | | odp text of keys and of actions (`dpctl/add-flow`) | [`odp_key`](targets::odp_key), [`odp_actions`](targets::odp_actions) |
//! | | cookies of userspace actions | [`cookie`](targets::cookie) |
//! | | packets under lists of actions, programs of an earlier process | [`execute`](targets::execute) |
//! | `dpif-ebpf` | upcall records | [`ebpf_upcall`](targets::ebpf_upcall) |
//! | | frames, for their virtio header | [`offload`](targets::offload) |
//! | `dpif-netlink` | keys and masks | [`netlink_key`](targets::netlink_key) |
//! | | actions | [`netlink_actions`](targets::netlink_actions) |
//! | | whole datagrams: upcalls, flows, vports, datapaths, meters, families, tracked connections, limits | [`netlink_message`](targets::netlink_message) |
//! | `netdev` | frames, for their virtio header; that header | [`offload`](targets::offload) |
//! | `openflow` | flows, matches, actions, flow files | [`flow_text`](targets::flow_text) |
//! | `ofproto` | packets under tables: translation, the width of megaflows | [`translate`](targets::translate) |
//! | | packets executed in userspace | [`execute`](targets::execute) |
//! | `vswitchd` | the configuration file; `--bridge`, `--port`, `--flows` | [`config`](targets::config) |
//! | | requests on the control socket, `vlog/set`, `dpctl/flush-conntrack` | [`control`](targets::control) |
//!
//! Not here: route netlink (`dpif-ebpf/src/rtnl.rs`, `ports`), TOML, JSON and command line syntax are read by libraries; `/proc`, `/sys`
//! and pinned maps are root's own; OpenFlow messages and OVSDB are not read at all yet.
#![forbid(unsafe_code)]

pub mod corpus;
mod input;
pub mod mutate;
mod reading;
pub mod targets;

pub use self::targets::{TARGETS, Target};
