//! What the CPUs count, read from their lanes.
//!
//! A lane ([`Lane`]) is memory that a CPU writes while packets pass; behind the CPUs' lanes is one in which this process counts what
//! it sends itself. Each counter is the sum over all lanes.

use std::cmp::Ordering;
use std::mem::{offset_of, size_of};
use std::sync::atomic::AtomicU64;

use datapath_common::maps::{DpStats, Lane, MAX_PORTS, PortStats};
use datapath_common::op::DropReason;

use crate::mmap::Mapping;

/// All lanes of a datapath: those of CPUs by their numbers, then this process's.
pub(crate) struct Lanes {
    lanes: Mapping<Lane>,
    of_cpus: usize,
}

impl Lanes {
    /// Those of a mapped array, of which so many are CPUs' and the last is this process's.
    pub(crate) fn new(lanes: Mapping<Lane>, of_cpus: usize) -> Self {
        Self { lanes, of_cpus }
    }

    /// How many elements an array of lanes has. Programs find theirs by a mask, so there is a power of two of them before the last.
    pub(crate) fn elements(of_cpus: usize) -> usize {
        of_cpus.next_power_of_two() + 1
    }

    /// Where the array has a lane; beyond its end, if there is none of this number.
    fn place(&self, lane: usize) -> usize {
        match lane.cmp(&self.of_cpus) {
            Ordering::Less => lane,
            Ordering::Equal => self.lanes.len() - 1,
            Ordering::Greater => usize::MAX,
        }
    }

    /// A lane's counters of the datapath; `None` beyond the last lane.
    pub(crate) fn datapath(&self, lane: usize) -> Option<DpStats> {
        self.lanes.part(self.place(lane), offset_of!(Lane, stats))
    }

    /// A lane's counter of drops for a reason.
    pub(crate) fn dropped(&self, lane: usize, reason: DropReason) -> Option<&AtomicU64> {
        const AT: usize = offset_of!(Lane, stats) + offset_of!(DpStats, dropped);
        self.lanes.word(self.place(lane), AT / 8 + reason as usize)
    }

    /// A lane's counters of a port; `None` beyond the last lane or port.
    pub(crate) fn port(&self, lane: usize, port: u32) -> Option<PortStats> {
        self.lanes.part(self.place(lane), port_at(port)?)
    }

    /// The words of a lane's counters of a port; none beyond the last lane or port.
    pub(crate) fn port_words(&self, lane: usize, port: u32) -> &[AtomicU64] {
        let lane = self.lanes.words(self.place(lane));
        let words = port_at(port).and_then(|at| lane?.get(at / 8..)?.get(..size_of::<PortStats>() / 8));
        words.unwrap_or_default()
    }
}

/// Where a lane has a port's counters.
fn port_at(port: u32) -> Option<usize> {
    let port = Some(port as usize).filter(|port| *port < MAX_PORTS)?;
    Some(offset_of!(Lane, ports) + port * size_of::<PortStats>())
}
