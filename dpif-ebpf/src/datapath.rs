//! The datapath as the interface's users see it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use datapath_common::maps::{EXECUTE_SLOTS, MAX_HANDLERS, MAX_PORTS};
use datapath_common::op::DropReason;
use dpif::program::compile;
use dpif::{
    DatapathFlow, DpStats, Dpif, DpifError, DpifOp, Execute, Features, FlowPut, FlowStats, OdpPort, PortEvent,
    PortInfo, PortSpec, PortStats, ProgramState, Result, Ufid, UpcallBatch, UpcallStats, XdpMode, XdpState,
};
use netdev::packet_sender::BATCH;
use parking_lot::Mutex;

use crate::adopt::{Adopted, adopt};
use crate::background::Background;
use crate::compiled::Compiled;
use crate::debug;
use crate::execute::Executor;
use crate::flows::{self, Flows};
use crate::grace::Grace;
use crate::groups::Groups;
use crate::kernel::{self, io_error};
use crate::maps::{self, Maps, Shape};
use crate::masks::Masks;
use crate::options::Options;
use crate::pins::Pins;
use crate::ports::Ports;
use crate::ports::events;
use crate::programs::InKernel;
use crate::slots::Slots;
use crate::special::Specialiser;
use crate::upcalls::Upcalls;

/// Operations that are carried out together: of a new flow and its packet, as many packets as a system call sends.
const CHUNK: usize = 2 * BATCH;

/// An eBPF datapath, owned by this process as long as this lives.
pub struct EbpfDpif {
    name: String,
    maps: Arc<Maps>,
    pins: Arc<Pins>,
    flows: Flows,
    slots: Arc<Slots>,
    special: Arc<Specialiser<InKernel>>,
    upcalls: Upcalls,
    executor: Executor,
    ports: Arc<Ports>,
    /// Those who watch devices and flows.
    background: Mutex<Vec<Background>>,
    adopted: bool,
    _debug: Option<Background>,
}

impl EbpfDpif {
    /// Makes datapath `name` in the caller's network namespace, or adopts the one that an earlier process left.
    ///
    /// Fails if the kernel lacks something ([`DpifError::Kernel`] says what), if a privilege is missing, or if another
    /// process owns a datapath of this name.
    pub fn open(name: &str, options: &Options) -> Result<Self> {
        kernel::check()?;
        let pins = Arc::new(Pins::open(&options.bpffs, name, crate::ports::give_back_left)?);
        let found = maps::find(&pins)?;
        let made = found.is_none();
        let datapath = Self::assemble(Arc::clone(&pins), options, found);
        // What was there before stays as it is; what was begun here goes.
        if datapath.is_err()
            && made
            && let Err(error) = pins.remove()
        {
            tracing::warn!("{name}: {error}");
        }
        datapath
    }

    fn assemble(pins: Arc<Pins>, options: &Options, found: Option<Shape>) -> Result<Self> {
        let name = pins.name().to_owned();
        let (maps, programs, mut object) = Maps::open(&pins, options, found)?;
        let maps = Arc::new(maps);
        let specialise = options.specialise && !options.debug;
        let special = Arc::new(Specialiser::new(programs, &name, specialise, options.hold));
        let grace = Arc::new(Grace::of_the_kernel()?);

        // Nobody listens until handlers are set; packets that are going up now are waited for.
        maps.n_handlers().store(0, Ordering::SeqCst);
        let upcalls = Upcalls::new(Arc::clone(&maps), Arc::clone(&pins), Arc::clone(&grace));
        let masks = Arc::new(Masks::adopt(Arc::clone(&maps), Arc::clone(&grace)));
        let adopted = if maps.adopted {
            let adopted = adopt(&maps, &masks)?;
            grace.wait().map_err(|error| io_error("waiting for a grace period", error))?;
            let discarded = upcalls.purge_all()?;
            tracing::info!("{name}: adopted {} flows, discarded {discarded} old upcalls", adopted.flows.len());
            adopted
        } else {
            Adopted { flows: Vec::new(), slots: Vec::new(), stats: Vec::new() }
        };
        let slots = Arc::new(Slots::new(Arc::clone(&maps), Arc::clone(&grace), &adopted.slots, &adopted.stats));
        let parts = (Arc::clone(&maps), Arc::clone(&slots), Arc::clone(&special));
        let flows = Flows::new(parts.0, grace, parts.1, Arc::clone(&masks), parts.2, adopted.flows, &name);
        let executor = Executor::new(&pins, options.objects.as_deref(), Arc::clone(&maps), Arc::clone(&slots), &name)?;
        let ports = Arc::new(Ports::open(Arc::clone(&maps), Arc::clone(&pins), options, &name)?);
        let watcher = events::watch(Arc::clone(&ports)).map_err(|e| io_error("can't watch the ports' devices", e))?;
        let debug = if options.debug { Some(debug::follow(&mut object)) } else { None };
        let debug =
            debug.transpose().map_err(|error| io_error("can't follow the datapath's debugging output", error))?;
        let specialising = Specialiser::start(&special, &maps)
            .map_err(|error| io_error("can't start the thread that specialises the datapath's program", error))?;
        let sorting = Masks::start(&masks)
            .map_err(|error| io_error("can't start the thread that orders the datapath's masks", error))?;
        let grouping = Groups::start(&maps, &name)
            .map_err(|error| io_error("can't start the thread that makes groups of the datapath's ports", error))?;
        let (adopted, background) = (maps.adopted, Mutex::new(vec![watcher, specialising, sorting, grouping]));
        Ok(Self {
            name,
            maps,
            pins,
            flows,
            slots,
            special,
            upcalls,
            executor,
            ports,
            background,
            adopted,
            _debug: debug,
        })
    }

    /// Whether the datapath was there already, with its flows and ports.
    pub fn was_adopted(&self) -> bool {
        self.adopted
    }
}

impl Drop for EbpfDpif {
    fn drop(&mut self) {
        // Nobody will read the rings: misses count as lost from now on, and the rings don't fill.
        self.maps.n_handlers().store(0, Ordering::SeqCst);
    }
}

impl Dpif for EbpfDpif {
    fn name(&self) -> &str {
        &self.name
    }

    fn datapath_type(&self) -> &'static str {
        "system"
    }

    fn engine(&self) -> &'static str {
        "ebpf"
    }

    fn features(&self) -> Features {
        Features { max_handlers: Some(MAX_HANDLERS as u32), ..dpif::program::features() }
    }

    fn stats(&self) -> Result<DpStats> {
        let mut stats = DpStats {
            flows: self.flows.len() as u64,
            masks: self.flows.n_masks() as u64,
            max_flows: (self.maps.n_slots - EXECUTE_SLOTS) as u64,
            drops: DropReason::ALL.iter().map(|(_, name)| (*name, 0)).collect(),
            slots: Some(self.slots.count()),
            ..DpStats::default()
        };
        let mut upcalls = UpcallStats { discarded: self.upcalls.discarded(), ..UpcallStats::default() };
        for lane in 0..=self.maps.lanes {
            let Some(part) = self.maps.counters.datapath(lane) else { continue };
            let cached = part.cache_hit + part.special_hit;
            stats.hit += part.hit + cached;
            stats.missed += part.missed;
            stats.lost += part.lost;
            stats.mask_hit += part.mask_hit + cached;
            stats.cache_hit += cached;
            stats.recirculated += part.recirculated;
            upcalls.misses += part.queued_misses;
            upcalls.actions += part.queued_actions;
            upcalls.lost_actions += part.lost_actions;
            for ((reason, _), (_, count)) in DropReason::ALL.iter().zip(&mut stats.drops) {
                *count += part.dropped.get(*reason as usize).copied().unwrap_or_default();
            }
        }
        upcalls.lost_misses = stats.lost.saturating_sub(upcalls.lost_actions);
        stats.upcalls = Some(upcalls);
        Ok(stats)
    }

    fn program(&self) -> Option<ProgramState> {
        Some(self.special.describe(self.flows.len() as u64))
    }

    fn set_specialise(&self, on: bool) -> Result<()> {
        self.special.set(on);
        Ok(())
    }

    fn port_add(&self, spec: &PortSpec) -> Result<OdpPort> {
        self.ports.add(spec)
    }

    fn port_del(&self, port: OdpPort) -> Result<()> {
        self.ports.del(port)
    }

    fn ports(&self) -> Result<Vec<PortInfo>> {
        Ok(self.ports.list())
    }

    fn port_stats(&self, port: OdpPort) -> Result<PortStats> {
        self.ports.stats(port)
    }

    fn port_set_xdp(&self, port: OdpPort, mode: XdpMode) -> Result<XdpState> {
        self.ports.set_xdp(port, mode)
    }

    fn port_xdp(&self, port: OdpPort) -> Result<XdpState> {
        self.ports.xdp(port)
    }

    fn port_events(&self) -> Vec<PortEvent> {
        self.ports.take_events()
    }

    fn flow_put(&self, put: &FlowPut) -> Result<()> {
        self.flows.put(put, &compile(&put.actions))
    }

    fn flow_get(&self, ufid: Ufid) -> Result<DatapathFlow> {
        self.flows.get(ufid)
    }

    fn flow_del(&self, ufid: Ufid) -> Result<FlowStats> {
        let removed = self.flows.remove(ufid)?;
        self.flows.finish(vec![removed])?.pop().ok_or(DpifError::NoSuchFlow)
    }

    fn flow_dump(&self, visit: &mut dyn FnMut(&DatapathFlow) -> bool) -> Result<()> {
        self.flows.dump(visit);
        Ok(())
    }

    fn flow_dump_stats(&self, visit: &mut dyn FnMut(Ufid, FlowStats) -> bool) -> Result<()> {
        self.flows.dump_stats(visit);
        Ok(())
    }

    fn flow_dump_parts(&self) -> usize {
        flows::SHARDS
    }

    fn flow_dump_stats_part(&self, part: usize, flows: &mut Vec<(Ufid, FlowStats)>) -> Result<()> {
        self.flows.dump_stats_part(part, flows);
        Ok(())
    }

    fn flow_flush(&self) -> Result<()> {
        self.flows.flush()
    }

    fn execute(&self, execute: Execute<'_>) -> Result<()> {
        self.executor.execute(execute, &compile(execute.actions))
    }

    fn operate(&self, ops: &mut [DpifOp<'_>]) {
        // Deletions take effect in their turn; their results come after one grace period for all.
        let (mut removed, mut waiting) = (Vec::new(), Vec::new());
        for ops in ops.chunks_mut(CHUNK) {
            let compiled = Compiled::of(ops);
            self.executor.execute_all(ops, &compiled);
            for op in ops.iter() {
                if let DpifOp::FlowPut { put, .. } = op {
                    self.flows.prepare(put.ufid);
                }
            }
            for (index, op) in ops.iter_mut().enumerate() {
                match op {
                    DpifOp::FlowPut { put, result } => {
                        if let Some(program) = compiled.program(index) {
                            *result = self.flows.put(put, program);
                        }
                    }
                    DpifOp::FlowGet { ufid, result } => *result = self.flow_get(*ufid).map(Box::new),
                    DpifOp::Execute { .. } => {}
                    DpifOp::FlowDel { ufid, result } => match self.flows.remove(*ufid) {
                        Ok(flow) => {
                            removed.push(flow);
                            waiting.push(result);
                        }
                        Err(error) => *result = Err(error),
                    },
                }
            }
        }
        match self.flows.finish(removed) {
            Ok(stats) => waiting.into_iter().zip(stats).for_each(|(result, stats)| *result = Ok(stats)),
            Err(error) => {
                let text = error.to_string();
                waiting.into_iter().for_each(|result| *result = Err(DpifError::Kernel(text.clone())));
            }
        }
    }

    fn handlers_set(&self, n_handlers: u32) -> Result<()> {
        self.upcalls.set_handlers(n_handlers)
    }

    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        self.upcalls.recv(handler, batch)
    }

    fn recv_fd(&self, handler: u32) -> Result<BorrowedFd<'_>> {
        self.upcalls.fd(handler)
    }

    fn recv_purge(&self, handler: u32) -> Result<usize> {
        self.upcalls.purge(handler)
    }

    fn upcalls_lost(&self) -> Vec<(OdpPort, u32, u64)> {
        let mut lost = Vec::new();
        for port in self.ports.list() {
            // Those that there are no more have lost what they have lost.
            for handler in 0..MAX_HANDLERS as u32 {
                let n = self.upcalls.lost(port.port.0, handler);
                if n > 0 && (port.port.0 as usize) < MAX_PORTS {
                    lost.push((port.port, handler, n));
                }
            }
        }
        lost
    }

    fn destroy(&self) -> Result<()> {
        // Nobody looks at devices any more while the ports go, nor loads programs against maps that go.
        self.background.lock().clear();
        self.maps.n_handlers().store(0, Ordering::SeqCst);
        self.ports.del_all()?;
        self.flows.flush()?;
        self.maps.invalidate();
        self.pins.remove()
    }
}
