//! The upcall engine: packets for which the datapath has no flow, and the flows that it has because of them.
//!
//! **Handlers** are threads. Each sleeps until the datapath has upcalls for it, takes a batch, translates each packet, and
//! answers with one batch of operations: the megaflow, if one may be installed, and the packet itself, which is executed
//! whatever becomes of the megaflow. Upcalls of one microflow come to one handler, in order.
//!
//! **Ukeys** are what userspace knows of the megaflows that it installed: key and mask, actions, what each packet changes
//! ([`Effect`](crate::xlate::Effect)), and how far statistics have been pushed. A ukey is there before its flow and goes after
//! it, so a flow without one is a stranger's and is deleted.
//!
//! **The revalidator** looks at all megaflows at least twice a second: statistics go to the rules that they belong to, idle
//! flows go, and where the configuration has changed each flow is translated again: its actions are replaced in place if they
//! differ, and it is deleted if it turns out to be wider than the new translation allows.

use crate::backer::Backer;

mod cap;
mod classify;
mod fitness;
mod handler;
mod histogram;
mod latch;
mod limit;
mod loss;
mod moderation;
mod packet_in;
mod probes;
mod rate;
mod recent;
mod revalidator;
mod sample;
mod slow;
mod stats;
mod threads;
mod ukey;

pub use cap::PortMegaflows;
pub(crate) use cap::ports as port_megaflows;
pub use histogram::{Histogram, Latency};
pub(crate) use limit::FlowLimit;
pub(crate) use loss::LossWatch;
pub use loss::PortUpcalls;
pub(crate) use rate::Warnings;
pub(crate) use recent::RecentMasks;
pub(crate) use revalidator::{Revalidation, flush, purge, revalidate};
pub(crate) use slow::pieces;
pub use stats::{HandlerReport, Split};
pub(crate) use threads::{Engine, ThreadCounts};
pub(crate) use ukey::{Caps, Census, DelReason, UkeyTable};

/// Numbers of the upcall engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Megaflows installed.
    pub current: usize,
    /// On average over the last passes of the revalidator.
    pub average: usize,
    /// At most so far.
    pub max: usize,
    /// Allowed.
    pub limit: usize,
    /// Milliseconds that the last pass took.
    pub dump_ms: u64,
    /// The same in microseconds, by the system's clock.
    pub round_us: u64,
}

impl Summary {
    pub(crate) fn of(backer: &Backer) -> Self {
        Self {
            current: backer.ukeys.len(),
            average: backer.adapted_limit.average(),
            max: backer.ukeys.max(),
            limit: backer.flow_limit(),
            dump_ms: backer.adapted_limit.dump_ms(),
            round_us: backer.revalidation.last_us(),
        }
    }
}
