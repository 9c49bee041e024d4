//! The kernel's own `openvswitch` module as a datapath.
//!
//! Userspace speaks generic netlink with it: datapaths, vports, flows and packets each have a family ([`uapi`] has the
//! numbers). In the order in which a request meets the code:
//!
//! | module | what |
//! | --- | --- |
//! | [`attr`] | attributes, borrowed when read |
//! | [`codec`] | attributes ↔ keys, masks, actions |
//! | `message`, `socket`, `families` | messages, transactions and dumps, the families' numbers |
//! | `kernel`, [`vport`], `flow`, [`packet`], `operate` | requests about each kind of thing, batches |
//! | `transmit` | packets that only have to be sent |
//! | `devices`, `owner` | devices that come and go; who has the datapath already |
//! | [`dispatch`], `renew` | which socket an upcall goes to, and how handlers read it; flows that name sockets |
//! | `meter`, `conntrack` | meters; tracked connections and their limits |
//! | `probe` | what the kernel can do |
//! | [`NetlinkDpif`] | all of it as a [`dpif::Dpif`] |
//!
//! The table of flows, its lookup and the packets' way are the kernel's; here is no state but sockets, so a datapath that
//! another process left is taken over by opening it.
#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod attr;
pub mod codec;
mod conntrack;
mod datapath;
mod devices;
pub mod dispatch;
mod error;
mod families;
mod flow;
#[doc(hidden)]
pub mod fuzzing;
mod kernel;
mod message;
mod meter;
mod operate;
mod owner;
pub mod packet;
mod probe;
mod renew;
mod socket;
mod transmit;
pub mod uapi;
pub mod vport;

pub use self::datapath::{NetlinkDpif, Options};
pub use self::dispatch::{DispatchMode, Overflow};
pub use self::families::module_is_loaded;
pub use self::vport::{VportInfo, VportType};
