//! A datapath that does what a test asks for, and what the one behind it does otherwise.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use dpif::inproc::InprocDatapath;
use dpif::layer::{Layer, one_by_one};
use dpif::{Dpif, DpifError, DpifOp, Execute, Features, FlowPut, FlowStats, Result, Ufid, Upcall, UpcallBatch};
use parking_lot::{Mutex, RwLock};

type Error = Mutex<Option<fn() -> DpifError>>;

pub(crate) struct Faulty {
    inner: InprocDatapath,
    /// What `flow_put` fails with.
    pub(crate) put_error: Error,
    /// What `execute` fails with.
    pub(crate) execute_error: Error,
    /// What `flow_del` fails with.
    pub(crate) del_error: Error,
    /// What `recv` fails with.
    pub(crate) recv_error: Error,
    /// What `handlers_set` fails with, of a number that is not 0.
    pub(crate) handlers_error: Error,
    /// `handlers_set` fails of a number above this one.
    pub(crate) most_handlers: AtomicU32,
    /// The next `flow_put` panics.
    pub(crate) panics: AtomicBool,
    /// The next dump of statistics panics.
    pub(crate) dump_panics: AtomicBool,
    /// The next `flow_del` panics.
    pub(crate) del_panics: AtomicBool,
    /// Received beside what the datapath has.
    pub(crate) inject: Mutex<Vec<Upcall>>,
    /// Records that can't be read, likewise.
    pub(crate) bad_records: AtomicU64,
    /// Held: nobody receives.
    pub(crate) gate: RwLock<()>,
    /// Held: nobody operates.
    pub(crate) desk: RwLock<()>,
    /// Calls of `operate`, those that wait included.
    pub(crate) operates: AtomicU64,
    /// What was called, of `flow_put` and `execute`.
    pub(crate) calls: Mutex<Vec<&'static str>>,
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
            del_error: Mutex::default(),
            recv_error: Mutex::default(),
            handlers_error: Mutex::default(),
            most_handlers: AtomicU32::new(u32::MAX),
            panics: AtomicBool::new(false),
            dump_panics: AtomicBool::new(false),
            del_panics: AtomicBool::new(false),
            inject: Mutex::default(),
            bad_records: AtomicU64::new(0),
            gate: RwLock::default(),
            desk: RwLock::default(),
            operates: AtomicU64::new(0),
            calls: Mutex::default(),
            receives: AtomicU64::new(0),
            required_handlers: None,
        }
    }
}

impl Layer for Faulty {
    fn below(&self) -> &dyn Dpif {
        &self.inner
    }

    fn operate(&self, ops: &mut [DpifOp<'_>]) {
        self.operates.fetch_add(1, Ordering::SeqCst);
        let _desk = self.desk.read();
        one_by_one(self, ops);
    }

    fn flow_put(&self, put: &FlowPut) -> Result<()> {
        self.calls.lock().push("put");
        if self.panics.swap(false, Ordering::SeqCst) {
            panic!("as the test asked for");
        }
        match *self.put_error.lock() {
            Some(error) => Err(error()),
            None => self.inner.flow_put(put),
        }
    }

    fn flow_del(&self, ufid: Ufid) -> Result<FlowStats> {
        if self.del_panics.swap(false, Ordering::SeqCst) {
            panic!("as the test asked for");
        }
        match *self.del_error.lock() {
            Some(error) => Err(error()),
            None => self.inner.flow_del(ufid),
        }
    }

    fn execute(&self, execute: Execute<'_>) -> Result<()> {
        self.calls.lock().push("execute");
        match *self.execute_error.lock() {
            Some(error) => Err(error()),
            None => self.inner.execute(execute),
        }
    }

    fn flow_dump_stats_part(&self, part: usize, flows: &mut Vec<(Ufid, FlowStats)>) -> Result<()> {
        if self.dump_panics.swap(false, Ordering::SeqCst) {
            panic!("as the test asked for");
        }
        self.inner.flow_dump_stats_part(part, flows)
    }

    fn handlers_set(&self, n_handlers: u32) -> Result<()> {
        match *self.handlers_error.lock() {
            Some(error) if n_handlers != 0 => Err(error()),
            None if n_handlers > self.most_handlers.load(Ordering::SeqCst) => {
                Err(DpifError::Kernel(format!("it has no {n_handlers} handlers")))
            }
            _ => self.inner.handlers_set(n_handlers),
        }
    }

    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        let _gate = self.gate.read();
        self.receives.fetch_add(1, Ordering::SeqCst);
        if let Some(error) = *self.recv_error.lock() {
            return Err(error());
        }
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
}
