//! A datapath that does what a test asks for, and what the one behind it does otherwise.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dpif::inproc::InprocDatapath;
use dpif::{
    DatapathFlow, DpStats, Dpif, DpifError, Execute, Features, FlowPut, FlowStats, OdpPort, PortEvent, PortInfo,
    PortSpec, PortStats, Result, Ufid, Upcall, UpcallBatch,
};
use parking_lot::{Mutex, RwLock};

type Error = Mutex<Option<fn() -> DpifError>>;

pub(crate) struct Faulty {
    inner: InprocDatapath,
    /// What `flow_put` fails with.
    pub(crate) put_error: Error,
    /// What `execute` fails with.
    pub(crate) execute_error: Error,
    /// The next `flow_put` panics.
    pub(crate) panics: AtomicBool,
    /// Received beside what the datapath has.
    pub(crate) inject: Mutex<Vec<Upcall>>,
    /// Records that can't be read, likewise.
    pub(crate) bad_records: AtomicU64,
    /// Held: nobody receives.
    pub(crate) gate: RwLock<()>,
    /// Calls of `recv`.
    pub(crate) receives: AtomicU64,
    pub(crate) required_handlers: Option<u32>,
}

impl Faulty {
    pub(crate) fn new(inner: InprocDatapath) -> Self {
        Self {
            inner,
            put_error: Mutex::default(),
            execute_error: Mutex::default(),
            panics: AtomicBool::new(false),
            inject: Mutex::default(),
            bad_records: AtomicU64::new(0),
            gate: RwLock::default(),
            receives: AtomicU64::new(0),
            required_handlers: None,
        }
    }
}

impl Dpif for Faulty {
    fn flow_put(&self, put: &FlowPut) -> Result<()> {
        if self.panics.swap(false, Ordering::SeqCst) {
            panic!("as the test asked for");
        }
        match *self.put_error.lock() {
            Some(error) => Err(error()),
            None => self.inner.flow_put(put),
        }
    }

    fn execute(&self, execute: Execute<'_>) -> Result<()> {
        match *self.execute_error.lock() {
            Some(error) => Err(error()),
            None => self.inner.execute(execute),
        }
    }

    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        let _gate = self.gate.read();
        self.receives.fetch_add(1, Ordering::SeqCst);
        let n = self.inner.recv(handler, batch)?;
        let mut injected = 0;
        for upcall in self.inject.lock().drain(..) {
            if let Some(slot) = batch.next_slot() {
                *slot = upcall;
                injected += 1;
            }
        }
        for _ in 0..self.bad_records.swap(0, Ordering::SeqCst) {
            batch.count_bad();
        }
        Ok(n + injected)
    }

    fn features(&self) -> Features {
        Features { required_handlers: self.required_handlers, ..self.inner.features() }
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

    fn flow_get(&self, ufid: Ufid) -> Result<DatapathFlow> {
        self.inner.flow_get(ufid)
    }

    fn flow_del(&self, ufid: Ufid) -> Result<FlowStats> {
        self.inner.flow_del(ufid)
    }

    fn flow_dump(&self, visit: &mut dyn FnMut(&DatapathFlow) -> bool) -> Result<()> {
        self.inner.flow_dump(visit)
    }

    fn flow_flush(&self) -> Result<()> {
        self.inner.flow_flush()
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
