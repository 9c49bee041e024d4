//! What the CPUs count, read from their lanes.
//!
//! A lane ([`Lane`]) is memory that a CPU writes while packets pass; behind the CPUs' lanes is one in which this process counts what
//! it sends itself. Each counter is the sum over all lanes.

use std::mem::{offset_of, size_of};
use std::sync::atomic::AtomicU64;

use datapath_common::maps::{DpStats, Lane, MAX_PORTS, PortStats};
use datapath_common::op::DropReason;

use crate::mmap::Mapping;

/// All lanes of a datapath.
pub(crate) struct Lanes(Mapping<Lane>);

impl Lanes {
    /// Those of a mapped array.
    pub(crate) fn new(lanes: Mapping<Lane>) -> Self {
        Self(lanes)
    }

    /// A lane's counters of the datapath; `None` beyond the last lane.
    pub(crate) fn datapath(&self, lane: usize) -> Option<DpStats> {
        self.0.part(lane, offset_of!(Lane, stats))
    }

    /// A lane's counter of drops for a reason.
    pub(crate) fn dropped(&self, lane: usize, reason: DropReason) -> Option<&AtomicU64> {
        const AT: usize = offset_of!(Lane, stats) + offset_of!(DpStats, dropped);
        self.0.word(lane, AT / 8 + reason as usize)
    }

    /// A lane's counters of a port; `None` beyond the last lane or port.
    pub(crate) fn port(&self, lane: usize, port: u32) -> Option<PortStats> {
        self.0.part(lane, port_at(port)?)
    }

    /// The words of a lane's counters of a port; none beyond the last lane or port.
    pub(crate) fn port_words(&self, lane: usize, port: u32) -> &[AtomicU64] {
        let words = port_at(port).and_then(|at| self.0.words(lane)?.get(at / 8..)?.get(..size_of::<PortStats>() / 8));
        words.unwrap_or_default()
    }
}

/// Where a lane has a port's counters.
fn port_at(port: u32) -> Option<usize> {
    let port = Some(port as usize).filter(|port| *port < MAX_PORTS)?;
    Some(offset_of!(Lane, ports) + port * size_of::<PortStats>())
}
