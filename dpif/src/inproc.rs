//! The in-process datapath: the whole datapath in this process, without privileges.
//!
//! It runs the code that the eBPF programs run, so a packet's key, the flow that it finds and what the actions make of it are
//! the same. That makes it three things: what users without root get, the datapath under every test of the layers above, and
//! the twin with which the eBPF programs are compared packet by packet ([`InprocDatapath::process`]).
//!
//! A frame is processed on the thread that brings it, from its arrival ([`InprocPort::send`]) to its last output. There is no
//! lock over that: a lookup holds the table's read lock, counts, and lets go with the flow in hand; an output looks the port up
//! likewise; an upcall holds its handler's queue.

mod device;
mod handlers;
mod meter;
mod port;
mod program;
mod run;
mod slow;
mod table;
mod trace;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datapath_common::key::KEY_WORDS;
use datapath_common::maps::{DEFAULT_SLOTS, MAX_MASKS, MAX_PORTS, PORT_CREDIT};
use datapath_common::op::{DROP_REASONS, DropReason};
use datapath_common::{DigestSeeds, FlowKey};
use netdev::device::Namespace;
use parking_lot::{Mutex, RwLock};

use self::device::DeviceWire;
use self::handlers::Handlers;
use self::meter::Meters;
use self::port::{MemoryWire, Port, Wire};
use self::run::{Run, Sink};
use self::table::{Found, NewFlow, Table};
use crate::Result;
use crate::error::DpifError;
use crate::features::Features;
use crate::flow::{DatapathFlow, FlowPut, FlowStats, Ufid};
use crate::interface::{DpStats, Dpif, Execute, UpcallStats};
use crate::meter::{MeterConfig, MeterFeatures, MeterStats};
use crate::packet::Packet;
use crate::port::{OdpPort, PortEvent, PortInfo, PortKind, PortSpec, PortStats};
use crate::program::CompileError;
use crate::upcall::{Upcall, UpcallBatch};

pub use self::port::InprocPort;
pub use self::run::Frame;
pub use self::slow::SlowTable;
pub use self::trace::{Event, Trace};

/// Says the time: nanoseconds on `CLOCK_MONOTONIC` or on whatever clock a test moves.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How a datapath is made.
#[derive(Clone)]
pub struct Options {
    /// Name of the datapath.
    pub name: String,
    /// Kind of the datapath: `netdev`, or what a test calls it.
    pub datapath_type: &'static str,
    /// The secret of digests and hashes; at random unless an experiment has to repeat.
    pub seeds: DigestSeeds,
    /// The clock.
    pub clock: Clock,
    /// Flows that there is room for.
    pub max_flows: usize,
    /// Masks that there is room for.
    pub max_masks: usize,
    /// Upcalls that one port may have outstanding with one handler.
    pub credit: u64,
    /// Frames that wait in a port until its handle is read; more are dropped.
    pub port_queue: usize,
    /// What ports are.
    pub backend: PortBackend,
}

/// What the ports of a datapath are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PortBackend {
    /// Queues in memory, for tests, examples and users without privileges: see [`InprocPort`].
    #[default]
    Memory,
    /// Network devices: system ports are existing ones, internal ports are made. Needs `CAP_NET_RAW`, internal ports
    /// `CAP_NET_ADMIN`.
    Devices,
}

impl Options {
    /// A datapath of this name with the limits of the eBPF datapath.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            datapath_type: "netdev",
            seeds: random_seeds(),
            clock: Arc::new(monotonic_ns),
            max_flows: DEFAULT_SLOTS,
            max_masks: MAX_MASKS,
            credit: PORT_CREDIT,
            port_queue: 4096,
            backend: PortBackend::Memory,
        }
    }
}

/// A datapath in this process. Clones are the same datapath.
#[derive(Clone)]
pub struct InprocDatapath {
    shared: Arc<Shared>,
}

/// What all threads of a datapath share.
struct Shared {
    options: Options,
    seeds: DigestSeeds,
    clock: Clock,
    table: RwLock<Table>,
    ports: RwLock<BTreeMap<u32, Arc<Port>>>,
    events: Mutex<Vec<PortEvent>>,
    /// Where the devices are; absent in memory, or with why it can't be known.
    namespace: Option<Result<Arc<Namespace>, String>>,
    handlers: Handlers,
    meters: Meters,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    hit: AtomicU64,
    missed: AtomicU64,
    mask_hit: AtomicU64,
    recirculated: AtomicU64,
    /// Of misses, and of packets that an action sent up.
    upcalls: [UpcallCounters; 2],
    /// Queued and thrown away.
    discarded: AtomicU64,
    drops: [AtomicU64; DROP_REASONS],
    /// Frames that no port has counted, because its receiver didn't keep up.
    overruns: AtomicU64,
}

#[derive(Default)]
struct UpcallCounters {
    queued: AtomicU64,
    lost: AtomicU64,
}

impl Counters {
    fn dropped(&self, reason: DropReason) {
        if let Some(counter) = self.drops.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes over what a port has lost since it was last asked.
    fn take_overruns(&self, port: &Port) {
        self.overruns.fetch_add(port.overruns(), Ordering::Relaxed);
    }
}

impl InprocDatapath {
    /// A datapath of this name without ports, flows and handlers.
    pub fn new(name: impl Into<String>) -> Self {
        Self::with_options(Options::new(name))
    }

    /// A datapath with other limits, clock or secret.
    pub fn with_options(options: Options) -> Self {
        let shared = Shared {
            seeds: options.seeds,
            clock: Arc::clone(&options.clock),
            table: RwLock::new(Table::new(options.seeds, options.max_flows, options.max_masks)),
            ports: RwLock::default(),
            events: Mutex::default(),
            namespace: (options.backend == PortBackend::Devices)
                .then(|| Namespace::current().map(Arc::new).map_err(|e| e.to_string())),
            handlers: Handlers::new(options.credit),
            meters: Meters::new(options.seeds.hash),
            counters: Counters::default(),
            options,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The far end of a port in memory.
    pub fn port(&self, number: OdpPort) -> Result<InprocPort> {
        let port = self.shared.port(number).ok_or(DpifError::NoSuchPort(number))?;
        InprocPort::new(Arc::clone(&self.shared), port)
    }

    /// The far end of the port of this name.
    pub fn port_by_name(&self, name: &str) -> Result<InprocPort> {
        let port = self.shared.ports.read().values().find(|p| p.name == name).cloned();
        InprocPort::new(Arc::clone(&self.shared), port.ok_or_else(|| DpifError::NoSuchDevice(name.into()))?)
    }

    /// Processes a frame that comes in at `in_port` and says what happened to it. Everything counts as if it were real, but
    /// outputs and upcalls go into the trace instead of to their ports and handlers (of which an upcall still needs one).
    pub fn process(&self, in_port: OdpPort, frame: impl Into<Frame>) -> Trace {
        let mut trace = Trace::default();
        Run::new(&self.shared, &mut trace).receive(in_port, frame.into());
        trace
    }

    /// [`Dpif::execute`] into a trace.
    pub fn process_execute(&self, execute: Execute<'_>) -> Result<Trace> {
        let mut trace = Trace::default();
        self.shared.execute(execute, &mut trace)?;
        Ok(trace)
    }
}

/// Sends packets to ports and handlers.
struct Live<'a>(&'a Shared);

impl Sink for Live<'_> {
    fn output(&mut self, port: &Port, packet: Packet) -> Result<(), DropReason> {
        port.send(packet)
    }

    fn upcall(&mut self, upcall: Upcall, packet_len: usize) -> Result<(), DropReason> {
        self.0.handlers.push(upcall, packet_len)
    }
}

impl Shared {
    fn port(&self, number: OdpPort) -> Option<Arc<Port>> {
        self.ports.read().get(&number.0).cloned()
    }

    fn receive(&self, in_port: OdpPort, frame: Frame) {
        Run::new(self, &mut Live(self)).receive(in_port, frame);
    }

    fn execute(&self, execute: Execute<'_>, sink: &mut impl Sink) -> Result<()> {
        let program = match program::compile(execute.actions) {
            // This engine copies packets, so it needs no other order than the list's.
            Err(CompileError::Unsupported(_)) => program::compile_in_order(execute.actions),
            done => done,
        };
        let program = program.map_err(|e| self.refused(e))?;
        if Run::new(self, sink).execute(execute.packet.into(), execute.key, execute.actions, &program) {
            Ok(())
        } else {
            Err(DpifError::Invalid(format!(
                "a packet of {} bytes to execute has no valid headers",
                execute.packet.data.len()
            )))
        }
    }

    fn lookup(&self, key: &FlowKey, bytes: u64) -> Found {
        let now = (self.clock)();
        let found = self.table.read().lookup(key, bytes, now);
        let counter = if found.flow.is_some() { &self.counters.hit } else { &self.counters.missed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.counters.mask_hit.fetch_add(found.masks.into(), Ordering::Relaxed);
        found
    }

    fn namespace(&self) -> Result<&Arc<Namespace>> {
        match &self.namespace {
            Some(Ok(namespace)) => Ok(namespace),
            Some(Err(why)) => Err(DpifError::Kernel(format!("the network namespace can't be opened: {why}"))),
            None => Err(DpifError::Invalid("a datapath in memory has no devices".into())),
        }
    }

    fn event(&self, event: PortEvent) {
        self.events.lock().push(event);
    }

    fn refused(&self, error: CompileError) -> DpifError {
        match error {
            CompileError::Unsupported(_) => DpifError::Unsupported(error.to_string(), self.options.name.clone()),
            CompileError::Invalid(text) => DpifError::Invalid(text),
        }
    }

    /// The number for a new port: the one that is asked for, or for the datapath's own port 0, or the lowest that is free.
    fn choose_number(&self, ports: &BTreeMap<u32, Arc<Port>>, spec: &PortSpec) -> Option<OdpPort> {
        let free = |number: &u32| *number < MAX_PORTS as u32 && !ports.contains_key(number);
        let own = (spec.kind == PortKind::Internal && spec.name == self.options.name).then_some(0);
        let wished = spec.request.map(|port| port.0).filter(free).or(own.filter(free));
        wished.or_else(|| (1..MAX_PORTS as u32).find(free)).map(OdpPort)
    }
}

impl Dpif for InprocDatapath {
    fn name(&self) -> &str {
        &self.shared.options.name
    }

    fn datapath_type(&self) -> &'static str {
        self.shared.options.datapath_type
    }

    fn engine(&self) -> &'static str {
        "userspace"
    }

    fn features(&self) -> Features {
        let max_handlers = Some(datapath_common::maps::MAX_HANDLERS as u32);
        Features { max_handlers, ..crate::program::features_of(program::compile) }
    }

    fn stats(&self) -> Result<DpStats> {
        let Shared { counters, table, options, ports, .. } = &*self.shared;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ports.read().values().for_each(|port| counters.take_overruns(port));
        let table = table.read();
        let [(misses, lost_misses), (actions, lost_actions)] =
            counters.upcalls.each_ref().map(|counters| (get(&counters.queued), get(&counters.lost)));
        let discarded = get(&counters.discarded);
        Ok(DpStats {
            hit: get(&counters.hit),
            missed: get(&counters.missed),
            lost: lost_misses + lost_actions,
            mask_hit: get(&counters.mask_hit),
            cache_hit: 0,
            flows: table.n_flows() as u64,
            masks: table.n_masks() as u64,
            max_flows: options.max_flows as u64,
            drops: DropReason::ALL
                .iter()
                .zip(&counters.drops)
                .map(|((_, name), n)| (*name, get(n)))
                .chain([("receive-overrun", get(&counters.overruns))])
                .collect(),
            recirculated: get(&counters.recirculated),
            upcalls: Some(UpcallStats { misses, actions, lost_misses, lost_actions, discarded }),
            slots: None,
        })
    }

    fn port_add(&self, spec: &PortSpec) -> Result<OdpPort> {
        check_name(&spec.name)?;
        let shared = &self.shared;
        let check_new = |ports: &BTreeMap<u32, Arc<Port>>| match ports.values().any(|p| p.name == spec.name) {
            true => Err(DpifError::Exists(format!("{} is a port of datapath {} already", spec.name, self.name()))),
            false => Ok(()),
        };
        check_new(&shared.ports.read())?;
        // Devices are opened without the lock: packets go on meanwhile.
        let (wire, mtu, mac) = match shared.options.backend {
            PortBackend::Memory => {
                let wire = MemoryWire::new(shared.options.port_queue);
                (Wire::Memory(wire), 1500, local_mac(self.name(), &spec.name))
            }
            PortBackend::Devices => {
                let (wire, device) = DeviceWire::open(shared.namespace()?, &spec.name, spec.kind)?;
                (Wire::Device(wire), device.mtu, device.mac)
            }
        };
        let mut ports = shared.ports.write();
        check_new(&ports)?;
        let number = shared
            .choose_number(&ports, spec)
            .ok_or_else(|| DpifError::Full(format!("datapath {} has its {MAX_PORTS} ports already", self.name())))?;
        let port = Arc::new(Port::new(number, &spec.name, spec.kind, mtu, mac, wire));
        ports.insert(number.0, Arc::clone(&port));
        drop(ports);
        if let Wire::Device(wire) = &port.wire
            && let Err(error) = wire.start(shared, number)
        {
            shared.ports.write().remove(&number.0);
            return Err(error);
        }
        Ok(number)
    }

    fn port_del(&self, port: OdpPort) -> Result<()> {
        // Stopped without the lock: the receiver may be waiting for it.
        let removed = self.shared.ports.write().remove(&port.0);
        let removed = removed.ok_or(DpifError::NoSuchPort(port))?;
        removed.stop();
        self.shared.counters.take_overruns(&removed);
        Ok(())
    }

    fn ports(&self) -> Result<Vec<PortInfo>> {
        Ok(self.shared.ports.read().values().map(|p| p.info()).collect())
    }

    fn port_stats(&self, port: OdpPort) -> Result<PortStats> {
        self.shared.port(port).map(|p| p.counters.get()).ok_or(DpifError::NoSuchPort(port))
    }

    fn port_events(&self) -> Vec<PortEvent> {
        let ports: Vec<_> = self.shared.ports.read().values().cloned().collect();
        let mut events = std::mem::take(&mut *self.shared.events.lock());
        events.extend(ports.iter().filter_map(|port| port.look()));
        events
    }

    fn flow_put(&self, put: &FlowPut) -> Result<()> {
        // The list that the eBPF datapath would refuse is refused here as well: the caller knows what to do then.
        let program = program::compile(&put.actions).map_err(|e| self.shared.refused(e))?;
        let FlowPut { mode, ufid, key, mask, ref actions } = *put;
        self.shared.table.write().put(mode, NewFlow { ufid, key, mask, actions: Arc::clone(actions), program })
    }

    fn flow_get(&self, ufid: Ufid) -> Result<DatapathFlow> {
        self.shared.table.read().get(ufid).map(|f| f.to_datapath_flow()).ok_or(DpifError::NoSuchFlow)
    }

    fn flow_del(&self, ufid: Ufid) -> Result<FlowStats> {
        self.shared.table.write().remove(ufid).map(|f| f.counters.get()).ok_or(DpifError::NoSuchFlow)
    }

    fn flow_dump(&self, visit: &mut dyn FnMut(&DatapathFlow) -> bool) -> Result<()> {
        let flows = self.shared.table.read().snapshot();
        for flow in flows {
            if !visit(&flow.to_datapath_flow()) {
                break;
            }
        }
        Ok(())
    }

    fn flow_dump_stats(&self, visit: &mut dyn FnMut(Ufid, FlowStats) -> bool) -> Result<()> {
        let flows = self.shared.table.read().snapshot();
        for flow in flows {
            if !visit(flow.ufid, flow.counters.get()) {
                break;
            }
        }
        Ok(())
    }

    fn flow_flush(&self) -> Result<()> {
        self.shared.table.write().clear();
        Ok(())
    }

    fn execute(&self, execute: Execute<'_>) -> Result<()> {
        self.shared.execute(execute, &mut Live(&self.shared))
    }

    fn handlers_set(&self, n_handlers: u32) -> Result<()> {
        let discarded = self.shared.handlers.set_count(n_handlers)?;
        self.shared.counters.discarded.fetch_add(discarded as u64, Ordering::Relaxed);
        Ok(())
    }

    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        self.shared.handlers.recv(handler, batch)
    }

    fn recv_fd(&self, handler: u32) -> Result<BorrowedFd<'_>> {
        self.shared.handlers.fd(handler)
    }

    fn recv_purge(&self, handler: u32) -> Result<usize> {
        let discarded = self.shared.handlers.purge(handler)?;
        self.shared.counters.discarded.fetch_add(discarded as u64, Ordering::Relaxed);
        Ok(discarded)
    }

    fn upcalls_lost(&self) -> Vec<(OdpPort, u32, u64)> {
        self.shared.handlers.lost()
    }

    fn meter_features(&self) -> MeterFeatures {
        Meters::FEATURES
    }

    fn meter_set(&self, id: u32, config: &MeterConfig) -> Result<()> {
        self.shared.meters.set(id, config, (self.shared.clock)())
    }

    fn meter_get(&self, id: u32) -> Result<MeterStats> {
        self.shared.meters.get(id)
    }

    fn meter_del(&self, id: u32) -> Result<MeterStats> {
        self.shared.meters.del(id)
    }

    fn destroy(&self) -> Result<()> {
        self.shared.handlers.set_count(0)?;
        // Stopped without the lock, as in `port_del`.
        let ports = std::mem::take(&mut *self.shared.ports.write());
        for port in ports.values() {
            port.stop();
            self.shared.counters.take_overruns(port);
        }
        self.shared.table.write().clear();
        self.shared.meters.clear();
        Ok(())
    }
}

impl fmt::Debug for InprocDatapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InprocDatapath").field("name", &self.shared.options.name).finish_non_exhaustive()
    }
}

/// What a network device can be called (`dev_valid_name` of the kernel).
fn check_name(name: &str) -> Result<()> {
    let bad = |c: char| c == '/' || c == ':' || c.is_ascii_whitespace();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        return Err(DpifError::Invalid(format!(
            "{name:?} can't be the name of a network device: 1 to 15 bytes without space, '/' and ':'"
        )));
    }
    Ok(())
}

fn monotonic_ns() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    // Linux always has this clock.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}

/// A secret from the operating system's randomness, by way of the standard library's keyed hash.
fn random_seeds() -> DigestSeeds {
    let key = RandomState::new();
    let mut lanes = [0; KEY_WORDS * 2];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = key.hash_one(i);
    }
    DigestSeeds { lanes, hash: key.hash_one(usize::MAX), reserved: 0 }
}

/// A locally administered address that is the same whenever a datapath has a port of this name.
fn local_mac(datapath: &str, port: &str) -> [u8; 6] {
    // FNV-1a: no secret, no attacker, only the same in every process.
    let bytes = datapath.bytes().chain([0]).chain(port.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}
