//! The trait that every datapath implements.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use datapath_common::FlowKey;

use crate::Result;
use crate::action::Action;
use crate::ct::{CtEntry, CtLimits, CtMatch};
use crate::error::DpifError;
use crate::features::Features;
use crate::flow::{DatapathFlow, FlowPut, FlowStats, Ufid};
use crate::meter::{MeterConfig, MeterFeatures, MeterStats};
use crate::packet::Packet;
use crate::port::{OdpPort, PortEvent, PortInfo, PortSpec, PortStats, XdpMode, XdpState};
use crate::upcall::UpcallBatch;

/// Counters of a datapath.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DpStats {
    /// Lookups that found a flow.
    pub hit: u64,
    /// Lookups that found none.
    pub missed: u64,
    /// Upcalls that were lost.
    pub lost: u64,
    /// Masks looked at over all lookups.
    pub mask_hit: u64,
    /// Lookups that a cache answered.
    pub cache_hit: u64,
    /// Flows installed.
    pub flows: u64,
    /// Masks in use.
    pub masks: u64,
    /// Flows that there is room for; 0 = no limit.
    pub max_flows: u64,
    /// Packets dropped, by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// Lookups of packets that had been looked up before, or that userspace executed: where no frame came in for one.
    pub recirculated: u64,
    /// What became of upcalls; `None` where the engine doesn't tell.
    pub upcalls: Option<UpcallStats>,
    /// Memory that flows and executed packets have; `None` where there is no fixed number of places.
    pub slots: Option<SlotStats>,
}

/// What became of upcalls. Each miss is queued or lost, and each of the packets that an action sends up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UpcallStats {
    /// Misses that were put into a handler's queue.
    pub misses: u64,
    /// Packets of actions that were.
    pub actions: u64,
    /// Misses that were not.
    pub lost_misses: u64,
    /// Packets of actions that were not.
    pub lost_actions: u64,
    /// Queued packets that were thrown away unread, by this process: their handler is gone.
    pub discarded: u64,
}

/// Places for flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotStats {
    /// That a flow, or a packet that is being executed, has.
    pub used: u64,
    /// That were given back and are not used again before no program can be looking at them.
    pub resting: u64,
}

/// The program of a datapath that makes one for what its flows need.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProgramState {
    /// What the specialised program serves that runs in front of the general one; `None` if the general one runs alone.
    pub serves: Option<Vec<&'static str>>,
    /// Why that one runs, in words.
    pub why: String,
    /// How often it was changed.
    pub swaps: u64,
    /// Specialised programs that could not be loaded.
    pub refused: u64,
}

/// A packet to run actions on.
#[derive(Clone, Copy, Debug)]
pub struct Execute<'a> {
    /// The packet.
    pub packet: &'a Packet,
    /// Its metadata: `in_port`, `recirc_id`, `dp_hash`, `skb_priority`, `skb_mark`, connection and tunnel fields. Packet
    /// fields are extracted again.
    pub key: &'a FlowKey,
    /// What to do with it.
    pub actions: &'a [Action],
}

/// One operation of a batch, with its result.
#[derive(Debug)]
pub enum DpifOp<'a> {
    /// [`Dpif::flow_put`].
    FlowPut {
        /// The flow.
        put: &'a FlowPut,
        /// The result.
        result: Result<()>,
    },
    /// [`Dpif::flow_del`].
    FlowDel {
        /// The flow.
        ufid: Ufid,
        /// The result, the final statistics.
        result: Result<FlowStats>,
    },
    /// [`Dpif::flow_get`].
    FlowGet {
        /// The flow.
        ufid: Ufid,
        /// The result.
        result: Result<Box<DatapathFlow>>,
    },
    /// [`Dpif::execute`].
    Execute {
        /// The packet.
        execute: Execute<'a>,
        /// The result.
        result: Result<()>,
    },
}

/// A datapath. All methods may be called from any thread. Whoever adds one adds it to the list
/// of [`Layer`](crate::layer::Layer), too, a default included.
pub trait Dpif: Send + Sync {
    /// Name of the datapath, such as `ovs-system`.
    fn name(&self) -> &str;
    /// Kind of the datapath as the operator names it: `system` or `netdev`.
    fn datapath_type(&self) -> &'static str;
    /// Name of the engine: `ebpf`, `userspace`, `netlink`.
    fn engine(&self) -> &'static str;
    /// What it can do.
    fn features(&self) -> Features;
    /// Its counters.
    fn stats(&self) -> Result<DpStats>;

    /// Which program runs, if the datapath makes one for what its flows need.
    fn program(&self) -> Option<ProgramState> {
        None
    }
    /// Switches that on or off.
    fn set_specialise(&self, on: bool) -> Result<()> {
        let _ = on;
        Err(DpifError::Unsupported("a specialised program".into(), self.name().into()))
    }

    /// Adds a port and says its number.
    fn port_add(&self, spec: &PortSpec) -> Result<OdpPort>;
    /// Removes a port; its device gets back the settings it had.
    fn port_del(&self, port: OdpPort) -> Result<()>;
    /// All ports by number.
    fn ports(&self) -> Result<Vec<PortInfo>>;
    /// The port of this name, if there is one.
    fn port_by_name(&self, name: &str) -> Result<Option<PortInfo>> {
        Ok(self.ports()?.into_iter().find(|port| port.name == name))
    }
    /// The port that is the datapath's own: it is there as long as the datapath and can't be removed.
    fn own_port(&self) -> Option<OdpPort> {
        None
    }
    /// Statistics of a port.
    fn port_stats(&self, port: OdpPort) -> Result<PortStats>;
    /// Chooses whether the port's frames are met in the XDP hook, and says what came of it. A mode that is asked for by name
    /// and can't be had is an error, and leaves the port without the hook.
    fn port_set_xdp(&self, port: OdpPort, mode: XdpMode) -> Result<XdpState> {
        let _ = port;
        match mode {
            XdpMode::Auto | XdpMode::Off => Ok(XdpState::Off("the datapath has no XDP hook".into())),
            mode => Err(DpifError::Unsupported(format!("XDP mode {mode}"), self.name().into())),
        }
    }
    /// What meets the port's frames first.
    fn port_xdp(&self, port: OdpPort) -> Result<XdpState> {
        let _ = port;
        Ok(XdpState::Off("the datapath has no XDP hook".into()))
    }
    /// What happened to the devices since the last call. Doesn't block.
    fn port_events(&self) -> Vec<PortEvent>;

    /// Installs or modifies a flow.
    fn flow_put(&self, put: &FlowPut) -> Result<()>;
    /// The flow with this id.
    fn flow_get(&self, ufid: Ufid) -> Result<DatapathFlow>;
    /// Deletes a flow and says its final statistics, which no packet can change any more.
    fn flow_del(&self, ufid: Ufid) -> Result<FlowStats>;
    /// Calls `visit` with each flow until it says `false`. Flows that come or go meanwhile may be missed or seen, none twice.
    fn flow_dump(&self, visit: &mut dyn FnMut(&DatapathFlow) -> bool) -> Result<()>;
    /// Calls `visit` with the id and the statistics of each flow: what a revalidator needs most often.
    fn flow_dump_stats(&self, visit: &mut dyn FnMut(Ufid, FlowStats) -> bool) -> Result<()> {
        self.flow_dump(&mut |flow| visit(flow.ufid, flow.stats))
    }
    /// Parts that a dump of statistics is cut into, at least one: several threads can share the work part by part. A flow is in
    /// part `ufid % parts`.
    fn flow_dump_parts(&self) -> usize {
        1
    }
    /// Appends the id and the statistics of each flow of part `part` (less than [`Dpif::flow_dump_parts`]) to `flows`. Over all
    /// parts that is what [`Dpif::flow_dump_stats`] visits.
    fn flow_dump_stats_part(&self, part: usize, flows: &mut Vec<(Ufid, FlowStats)>) -> Result<()> {
        if part > 0 {
            return Ok(());
        }
        self.flow_dump_stats(&mut |ufid, stats| {
            flows.push((ufid, stats));
            true
        })
    }
    /// Deletes all flows.
    fn flow_flush(&self) -> Result<()>;

    /// Runs actions on a packet. Returns when they have run.
    fn execute(&self, execute: Execute<'_>) -> Result<()>;

    /// Runs a batch; each operation holds its result. Flows are changed in their order and packets executed in theirs, but a packet may
    /// be executed before a flow that stands in front of it is put: so it can't be overtaken by one that finds the flow. Deletions may
    /// share one grace period.
    fn operate(&self, ops: &mut [DpifOp<'_>]) {
        crate::layer::one_by_one(self, ops);
    }

    /// Sets how many handlers receive upcalls; 0 = nobody listens and misses count as lost. Handlers must not be receiving.
    fn handlers_set(&self, n_handlers: u32) -> Result<()>;
    /// Receives upcalls of `handler` into `batch` (cleared first) until it is full or there are no more. Doesn't block. Those of
    /// one port come in order; where more wait than a batch takes, ports take turns.
    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize>;
    /// Readable when `handler` has upcalls: for epoll, together with whatever else should wake the handler.
    fn recv_fd(&self, handler: u32) -> Result<BorrowedFd<'_>>;
    /// Throws away what `handler` has not received, and says how many.
    fn recv_purge(&self, handler: u32) -> Result<usize>;

    /// Upcalls that were lost because they were not received in time, by port and handler, since the datapath was made. What
    /// an engine can't tell apart is missing.
    fn upcalls_lost(&self) -> Vec<(OdpPort, u32, u64)> {
        Vec::new()
    }

    /// What its meters can do; no meter at all by default.
    fn meter_features(&self) -> MeterFeatures {
        MeterFeatures::default()
    }
    /// Makes a meter or replaces one, statistics included. Flows use it by `Action::Meter`.
    fn meter_set(&self, _id: u32, _config: &MeterConfig) -> Result<()> {
        Err(DpifError::Unsupported("a meter".into(), self.engine().into()))
    }
    /// Statistics of a meter.
    fn meter_get(&self, _id: u32) -> Result<MeterStats> {
        Err(DpifError::Unsupported("a meter".into(), self.engine().into()))
    }
    /// Deletes a meter and says its final statistics. Flows that use it pass their packets on.
    fn meter_del(&self, _id: u32) -> Result<MeterStats> {
        Err(DpifError::Unsupported("a meter".into(), self.engine().into()))
    }
    /// Deletes the tracked connections that match.
    fn ct_flush(&self, _which: &CtMatch) -> Result<()> {
        Err(DpifError::Unsupported("connection tracking".into(), self.engine().into()))
    }

    /// Tracked connections, of all zones or of one.
    fn ct_dump(&self, _zone: Option<u16>) -> Result<Vec<CtEntry>> {
        Err(DpifError::Unsupported("connection tracking".into(), self.engine().into()))
    }
    /// Limits of these zones, or of all that have one.
    fn ct_limits(&self, _zones: &[u16]) -> Result<CtLimits> {
        Err(DpifError::Unsupported("limiting connections".into(), self.engine().into()))
    }
    /// Sets how many connections zones may have: those without a limit of their own, and each of these.
    fn ct_limits_set(&self, _default: Option<u32>, _zones: &[(u16, u32)]) -> Result<()> {
        Err(DpifError::Unsupported("limiting connections".into(), self.engine().into()))
    }
    /// Takes limits away.
    fn ct_limits_del(&self, _default: bool, _zones: &[u16]) -> Result<()> {
        Err(DpifError::Unsupported("limiting connections".into(), self.engine().into()))
    }

    /// The caches that an operator may size, by the field's names, with their places.
    fn caches(&self) -> Result<Vec<(&'static str, u32)>> {
        Err(DpifError::Unsupported("sizing a cache".into(), self.engine().into()))
    }
    /// Sets how many places a cache has; 0 turns it off.
    fn cache_set_size(&self, _cache: &str, _size: u32) -> Result<()> {
        Err(DpifError::Unsupported("sizing a cache".into(), self.engine().into()))
    }

    /// How long a flow must at least rest between deletion and reuse of its memory; for reports.
    fn grace_period(&self) -> Duration {
        Duration::ZERO
    }
    /// Ends the datapath: ports detached, flows and everything pinned gone. Without this call the datapath outlives the
    /// process as far as its engine can.
    fn destroy(&self) -> Result<()>;
}
