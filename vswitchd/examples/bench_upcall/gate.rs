//! A datapath with a gate before its upcalls, and a clock at its operations.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use dpif::layer::Layer;
use dpif::{Dpif, DpifOp, Result, UpcallBatch};
use dpif_ebpf::EbpfDpif;
use parking_lot::RwLock;

pub(crate) struct Gated {
    pub(crate) inner: EbpfDpif,
    /// Held: nobody receives.
    pub(crate) gate: RwLock<()>,
    /// Whether flows and packets of a batch are timed one by one.
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
        for op in ops {
            let (began, sum) = match op {
                DpifOp::FlowPut { .. } => (Instant::now(), &self.puts),
                _ => (Instant::now(), &self.executes),
            };
            self.inner.operate(std::slice::from_mut(op));
            sum[0].fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
            sum[1].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        // Who waited here would seem to have spent the time on receiving.
        let Some(_open) = self.gate.try_read() else { return Ok(0) };
        self.inner.recv(handler, batch)
    }
}
