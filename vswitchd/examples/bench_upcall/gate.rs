//! A datapath with a gate before its upcalls, and a clock at its operations.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use dpif::{
    DatapathFlow, DpStats, Dpif, DpifOp, Execute, Features, FlowPut, FlowStats, OdpPort, PortEvent, PortInfo, PortSpec,
    PortStats, Result, Ufid, UpcallBatch,
};
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

impl Dpif for Gated {
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

    fn name(&self) -> &str {
        self.inner.name()
    }
    fn datapath_type(&self) -> &'static str {
        self.inner.datapath_type()
    }
    fn engine(&self) -> &'static str {
        self.inner.engine()
    }
    fn features(&self) -> Features {
        self.inner.features()
    }
    fn stats(&self) -> Result<DpStats> {
        self.inner.stats()
    }
    fn port_add(&self, spec: &PortSpec) -> Result<OdpPort> {
        self.inner.port_add(spec)
    }
    fn port_del(&self, port: OdpPort) -> Result<()> {
        self.inner.port_del(port)
    }
    fn ports(&self) -> Result<Vec<PortInfo>> {
        self.inner.ports()
    }
    fn port_stats(&self, port: OdpPort) -> Result<PortStats> {
        self.inner.port_stats(port)
    }
    fn port_events(&self) -> Vec<PortEvent> {
        self.inner.port_events()
    }
    fn flow_put(&self, put: &FlowPut) -> Result<()> {
        self.inner.flow_put(put)
    }
    fn flow_get(&self, ufid: Ufid) -> Result<DatapathFlow> {
        self.inner.flow_get(ufid)
    }
    fn flow_del(&self, ufid: Ufid) -> Result<FlowStats> {
        self.inner.flow_del(ufid)
    }
    fn flow_dump(&self, visit: &mut dyn FnMut(&DatapathFlow) -> bool) -> Result<()> {
        self.inner.flow_dump(visit)
    }
    fn flow_dump_stats(&self, visit: &mut dyn FnMut(Ufid, FlowStats) -> bool) -> Result<()> {
        self.inner.flow_dump_stats(visit)
    }
    fn flow_flush(&self) -> Result<()> {
        self.inner.flow_flush()
    }
    fn execute(&self, execute: Execute<'_>) -> Result<()> {
        self.inner.execute(execute)
    }
    fn handlers_set(&self, n_handlers: u32) -> Result<()> {
        self.inner.handlers_set(n_handlers)
    }
    fn recv_fd(&self, handler: u32) -> Result<BorrowedFd<'_>> {
        self.inner.recv_fd(handler)
    }
    fn recv_purge(&self, handler: u32) -> Result<usize> {
        self.inner.recv_purge(handler)
    }
    fn upcalls_lost(&self) -> Vec<(OdpPort, u32, u64)> {
        self.inner.upcalls_lost()
    }
    fn destroy(&self) -> Result<()> {
        self.inner.destroy()
    }
}
