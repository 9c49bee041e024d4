//! A datapath with a gate before its upcalls, and a clock at its operations.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use dpif::layer::Layer;
use dpif::{Dpif, DpifError, DpifOp, Result, UpcallBatch};
use dpif_ebpf::EbpfDpif;
use parking_lot::RwLock;

pub(crate) struct Gated {
    pub(crate) inner: EbpfDpif,
    /// Held: nobody receives.
    pub(crate) gate: RwLock<()>,
    /// Whether flows and packets of a batch are timed apart.
    pub(crate) timed: AtomicBool,
    /// Nanoseconds and number of flows put.
    pub(crate) puts: [AtomicU64; 2],
    /// Nanoseconds and number of packets executed.
    pub(crate) executes: [AtomicU64; 2],
}

impl Gated {
    pub(crate) fn new(inner: EbpfDpif) -> Self {
        let zero = || [AtomicU64::new(0), AtomicU64::new(0)];
        Self { inner, gate: RwLock::new(()), timed: AtomicBool::new(false), puts: zero(), executes: zero() }
    }
}

impl Layer for Gated {
    fn below(&self) -> &dyn Dpif {
        &self.inner
    }

    fn operate(&self, ops: &mut [DpifOp<'_>]) {
        // Deletions are carried out together, and are no part of what is timed.
        let timed = |op: &DpifOp<'_>| matches!(op, DpifOp::FlowPut { .. } | DpifOp::Execute { .. });
        if !self.timed.load(Ordering::Relaxed) || !ops.iter().all(timed) {
            return self.inner.operate(ops);
        }
        // The packets, then the flows: in this order the datapath carries them out, too.
        for (is_kind, sum) in
            [(is_packet as fn(&DpifOp<'_>) -> bool, &self.executes), (|op| !is_packet(op), &self.puts)]
        {
            let mut some: Vec<_> = ops.iter().filter(|op| is_kind(op)).map(copy).collect();
            let began = Instant::now();
            self.inner.operate(&mut some);
            sum[0].fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
            sum[1].fetch_add(some.len() as u64, Ordering::Relaxed);
            ops.iter_mut().filter(|op| is_kind(op)).zip(some).for_each(|(op, done)| *op = done);
        }
    }

    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        // Who waited here would seem to have spent the time on receiving.
        let Some(_open) = self.gate.try_read() else { return Ok(0) };
        self.inner.recv(handler, batch)
    }
}

fn is_packet(op: &DpifOp<'_>) -> bool {
    matches!(op, DpifOp::Execute { .. })
}

/// The same operation, to be carried out.
fn copy<'a>(op: &DpifOp<'a>) -> DpifOp<'a> {
    let result = Ok(());
    match op {
        DpifOp::FlowPut { put, .. } => DpifOp::FlowPut { put, result },
        DpifOp::Execute { execute, .. } => DpifOp::Execute { execute: *execute, result },
        DpifOp::FlowDel { ufid, .. } => DpifOp::FlowDel { ufid: *ufid, result: Err(DpifError::NoSuchFlow) },
        DpifOp::FlowGet { ufid, .. } => DpifOp::FlowGet { ufid: *ufid, result: Err(DpifError::NoSuchFlow) },
    }
}
