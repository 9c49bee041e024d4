//! OpenFlow over a datapath: tables, translation and the upcall engine.
//!
//! The datapath knows *megaflows*: a key under a mask, and a list of simple actions. OpenFlow knows tables of rules with
//! priorities, resubmission between them, ports like NORMAL that stand for a learning switch, and several bridges connected by
//! patch ports. This crate is between the two. A packet for which the datapath has no flow comes up (an *upcall*), is
//! *translated* (what would all those tables do with it, and which of its bits did they look at?), and goes back with a
//! megaflow that spares all packets like it the way up.
//!
//! | a packet meets | which owns |
//! | --- | --- |
//! | [`upcall`] | handlers, which receive and answer; the *ukeys*, what userspace knows of each megaflow |
//! | [`flow`] | the packet's fields with OpenFlow's eyes, masks of them |
//! | [`bridge`], [`port`] | the configuration it is translated against, a version that never changes |
//! | [`xlate`] | translation |
//! | [`table`], [`classifier`], [`rule`] | which rule matches, and what was looked at to know |
//! | [`recirc`] | what is left to do when the datapath has looked at the packet again |
//! | [`protocol`], [`packet_in`], [`export`] | what else a packet may come up for: protocols, controllers, samplers |
//! | [`mac_learning`] | which port a station is behind |
//! | [`upcall::revalidator`](upcall) | later: is the megaflow still right, is it still used, who gets its statistics |
//!
//! [`Switch`] is all of it over one datapath, as the daemon sees it.
#![forbid(unsafe_code)]

mod backer;
pub mod bridge;
pub mod classifier;
pub mod clock;
pub mod export;
pub mod flow;
#[doc(hidden)]
pub mod fuzzing;
pub mod mac_learning;
pub mod packet_in;
pub mod port;
pub mod protocol;
pub mod recirc;
pub mod rule;
pub mod switch;
mod sync;
pub mod table;
pub mod upcall;
pub mod xlate;

pub use bridge::{BridgeSettings, FailMode};
pub use clock::{Clock, ManualClock, MonotonicClock};
pub use port::{PortKind, PortVlan, Trunks};
pub use switch::{Options, Switch, SwitchError, VirtualMeter};
pub use table::FlowModError;
