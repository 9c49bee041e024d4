//! [`NetlinkDpif`]: the datapath interface over the module.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use dpif::ct::{CtEntry, CtLimits, CtMatch};
use dpif::{
    DatapathFlow, DpStats, Dpif, DpifError, DpifOp, Execute, Features, FlowPut, FlowStats, MeterConfig, MeterFeatures,
    MeterStats, OdpPort, PortEvent, PortInfo, PortSpec, PortStats, Result, Ufid, UpcallBatch,
};
use netdev::device::Namespace;
use nix::errno::Errno;
use parking_lot::Mutex;

use crate::attr::Writer;
use crate::codec;
use crate::conntrack::Conntrack;
use crate::devices::Devices;
use crate::dispatch::{Dispatch, DispatchMode, MAX_HANDLERS, NOBODY, Overflow, Retired, possible_cpus};
use crate::error::{self, ENGINE};
use crate::flow;
use crate::kernel::{DatapathInfo, Kernel, Request};
use crate::message::F_ECHO;
use crate::operate::Operator;
use crate::owner;
use crate::packet::Origin;
use crate::probe;
use crate::transmit::{Transmitted, Transmitter};
use crate::uapi::{cmd, feature, flow as flow_attr, packet_cmd};
use crate::vport::{VportInfo, VportType, Which};

/// The name of the only cache that has a size: of a packet's hash the mask that it was found under.
const MASKS_CACHE: &str = "masks-cache";

/// How a datapath is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Its name, which is that of its own port: `ovs-system`.
    pub name: String,
    /// How upcalls are spread; `None` takes the best that the kernel has.
    pub dispatch: Option<DispatchMode>,
}

/// A datapath of the kernel's `openvswitch` module. Threads that use it have to be in the network namespace that it was opened
/// in: sockets are made as they are needed.
pub struct NetlinkDpif {
    kernel: Kernel,
    conntrack: Conntrack,
    name: String,
    ifindex: i32,
    probed: Features,
    dispatch: Dispatch,
    devices: Mutex<Devices>,
    namespace: Namespace,
    /// None without the right to open packet sockets.
    transmitter: Option<Transmitter>,
    /// Whether the datapath was there before.
    found: bool,
}

impl NetlinkDpif {
    /// Opens a datapath, makes it where there is none, and finds out what the kernel can do.
    pub fn open(options: &Options) -> Result<Self> {
        let kernel = Kernel::open()?;
        let mut devices = Devices::listen(kernel.families.vport.group)?;
        let namespace = Namespace::current().map_err(|error| error::io(error, || "can't look at devices".into()))?;
        let found = kernel.datapath(&options.name)?;
        let was_there = found.is_some();
        let info = match found {
            Some(info) => info,
            None => kernel.make_datapath(&options.name, feature::UNALIGNED | feature::VPORT_PIDS)?,
        };
        let prepared = prepare(&kernel, &info, options, &mut devices).inspect_err(|_| {
            // What was made for nothing is not left behind.
            if !was_there && let Err(error) = kernel.delete_datapath(info.ifindex) {
                tracing::warn!("datapath {} is left behind: {error}", options.name);
            }
        });
        let (mode, features) = prepared?;
        let transmitter = Transmitter::new(kernel.families.vport.group)
            .inspect_err(|error| tracing::warn!("packets are executed by the module alone: {error}"))
            .ok();
        Ok(Self {
            transmitter,
            dispatch: Dispatch::new(mode, Origin { family: kernel.families.packet.id, datapath: info.ifindex, pid: 0 }),
            kernel,
            conntrack: Conntrack::new(),
            name: options.name.clone(),
            ifindex: info.ifindex,
            probed: features,
            devices: Mutex::new(devices),
            namespace,
            found: was_there,
        })
    }

    /// Whether the datapath was there before it was opened.
    pub fn was_found(&self) -> bool {
        self.found
    }

    /// How upcalls are spread.
    pub fn dispatch_mode(&self) -> DispatchMode {
        self.dispatch.mode()
    }

    /// Sockets that overflowed, and how often that was noticed.
    pub fn overflows(&self) -> Vec<(Overflow, u64)> {
        self.dispatch.overflows()
    }

    /// Upcalls whose key could not be read, and which were dropped therefore.
    pub fn unreadable_upcalls(&self) -> u64 {
        self.dispatch.unreadable()
    }

    /// Frames of executed packets that went to their devices without the module.
    pub fn transmitted(&self) -> u64 {
        self.transmitter.as_ref().map_or(0, Transmitter::count)
    }

    /// What the kernel can do.
    pub fn probed(&self) -> &Features {
        &self.probed
    }

    /// Adds a vport of any type.
    pub fn vport_add(&self, name: &str, kind: VportType, request: Option<OdpPort>) -> Result<VportInfo> {
        // Held until the port is known, so that nobody sees it come from elsewhere, and no handlers come or go.
        let mut devices = self.devices.lock();
        let (sockets, pids) = self.dispatch.sockets_for_port()?;
        let wanted = match request {
            None if devices.gone().next().is_some() => devices.free_number(&self.vports()?),
            wanted => wanted,
        };
        let mut info = self.kernel.vport_new(self.ifindex, name, kind, wanted, &pids)?;
        if request.is_none() && devices.was_lost(info.port) {
            self.kernel.vport_del(self.ifindex, info.port)?;
            let free = devices.free_number(&self.vports()?);
            info = self.kernel.vport_new(self.ifindex, name, kind, free, &pids)?;
        }
        devices.added(&info);
        if let Err(error) = self.dispatch.watch_port(info.port, sockets) {
            let _ = self.kernel.vport_del(self.ifindex, info.port);
            devices.removed(info.port);
            return Err(error);
        }
        Ok(info)
    }

    /// All vports by number.
    pub fn vports(&self) -> Result<Vec<VportInfo>> {
        self.kernel.vports(self.ifindex)
    }

    /// The vport of this name. The kernel knows only the names that devices had when they became ports, so one that had been renamed
    /// when the datapath was opened is asked for by its number.
    pub fn vport_by_name(&self, name: &str) -> Result<VportInfo> {
        let missing = || DpifError::NoSuchDevice(name.into());
        match self.kernel.vport_get(self.ifindex, Which::Name(name)) {
            Err(DpifError::NoSuchDevice(_)) => {
                let port = self.devices.lock().known_as(name).ok_or_else(missing)?;
                let info = self.kernel.vport_get(self.ifindex, Which::Port(port));
                info.ok().filter(|info| info.name == name).ok_or_else(missing)
            }
            found => found,
        }
    }

    /// Names of the CPUs' sockets, or of the ports', go to the kernel.
    fn announce(&self, own: &[u32]) -> Result<()> {
        if self.dispatch.mode() == DispatchMode::PerCpu {
            let cpus = possible_cpus();
            let of_cpu = |cpu: usize| own.get(cpu % own.len().max(1)).copied().unwrap_or(0);
            let pids: Vec<u32> = (0..cpus).map(of_cpu).collect();
            self.kernel.set_datapath(self.ifindex, features_of(DispatchMode::PerCpu), Some(&pids))?;
            return Ok(());
        }
        // All are waited for together.
        let (mut retired, mut result) = (self.dispatch.retire(Vec::new()), Ok(()));
        for info in self.vports()? {
            match self.watch(info.port) {
                Ok(more) => retired.merge(more),
                // It has gone meanwhile.
                Err(DpifError::NoSuchPort(_)) => self.dispatch.forget_port(info.port),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Gives a port the sockets that it is to have; those that it had, which the kernel knows no more.
    fn watch(&self, port: OdpPort) -> Result<Retired<'_>> {
        let (sockets, pids, retired) = self.dispatch.sockets_for_known_port(port)?;
        self.dispatch.watch_port(port, sockets)?;
        self.kernel.vport_set_pids(self.ifindex, port, &pids)?;
        Ok(retired)
    }

    fn port_info(&self, vport: VportInfo) -> PortInfo {
        let device = self.namespace.device(&vport.name);
        let error = device.as_ref().err().map(|error| format!("device {}: {error}", vport.name));
        let (mtu, mac) = device.map_or((0, [0; 6]), |device| (device.mtu, device.mac));
        PortInfo { port: vport.port, name: vport.name, kind: vport.kind.kind(), mtu, mac, error }
    }

    fn pid_of(&self, port: u32) -> u32 {
        if self.dispatch.mode() == DispatchMode::PerCpu { NOBODY } else { self.dispatch.pid_of(port) }
    }

    /// Asks something of the flow that `name` names.
    fn flow_request(&self, name: impl Fn(&mut Writer), command: u8) -> Result<Option<Vec<u8>>> {
        let attrs = |to: &mut Writer| {
            name(to);
            Ok(())
        };
        let request = Request { family: self.kernel.families.flow, cmd: command, flags: F_ECHO, attrs: &attrs };
        let mut answer = None;
        self.kernel
            .request(self.ifindex, &request, |_, attrs| answer = Some(attrs.to_vec()))?
            .map_err(|errno| flow_error(errno, "can't ask for a flow"))?;
        Ok(answer)
    }
}

/// What the kernel has against a flow.
pub(crate) fn flow_error(errno: Errno, what: &str) -> DpifError {
    match errno {
        Errno::ENOENT => DpifError::NoSuchFlow,
        Errno::EEXIST => DpifError::FlowExists,
        Errno::EINVAL | Errno::ERANGE => {
            DpifError::Invalid("the kernel refuses the flow's key, mask or actions".into())
        }
        Errno::E2BIG | Errno::EMSGSIZE => DpifError::Full("the flow's actions are too long for the kernel".into()),
        Errno::ENODEV => DpifError::Kernel("the datapath is gone".into()),
        other => error::of(other, || what.into()),
    }
}

pub(crate) fn unreadable(error: &codec::CodecError) -> DpifError {
    DpifError::Kernel(format!("the kernel's flow can't be read: {error}"))
}

fn features_of(mode: DispatchMode) -> u32 {
    match mode {
        DispatchMode::PerCpu => feature::UNALIGNED | feature::VPORT_PIDS | feature::DISPATCH_UPCALL_PER_CPU,
        _ => feature::UNALIGNED | feature::VPORT_PIDS,
    }
}

/// Whether nobody else serves the datapath, what its ports are, and what the kernel can do with it.
fn prepare(
    kernel: &Kernel,
    info: &DatapathInfo,
    options: &Options,
    devices: &mut Devices,
) -> Result<(DispatchMode, Features)> {
    let vports = kernel.vports(info.ifindex)?;
    let pids = info.cpu_pids.iter().chain(vports.iter().flat_map(|vport| &vport.upcall_pids));
    let pids: BTreeSet<u32> = pids.copied().filter(|pid| *pid != 0).collect();
    if let Some(owner) = owner::of_sockets(&pids) {
        let name = &options.name;
        return Err(DpifError::Exists(format!("datapath {name} is in use by {owner}: end that first")));
    }
    vports.iter().for_each(|vport| devices.added(vport));
    Ok((choose(kernel, info, options.dispatch)?, probe::probe(kernel, info.ifindex)?))
}

/// Sets the features of a mode, and looks whether the kernel has them.
fn choose(kernel: &Kernel, info: &DatapathInfo, wanted: Option<DispatchMode>) -> Result<DispatchMode> {
    let modes = match &wanted {
        Some(mode) => std::slice::from_ref(mode),
        None => &[DispatchMode::PerCpu, DispatchMode::PerPort],
    };
    for mode in modes {
        let features = features_of(*mode);
        match kernel.set_datapath(info.ifindex, features, None) {
            Ok(set) if set.features & features == features => return Ok(*mode),
            Ok(_) | Err(DpifError::Unsupported(..)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(DpifError::Unsupported(format!("dispatch of upcalls as {wanted:?}"), ENGINE.into()))
}

impl Dpif for NetlinkDpif {
    fn name(&self) -> &str {
        &self.name
    }

    fn datapath_type(&self) -> &'static str {
        "system"
    }

    fn engine(&self) -> &'static str {
        ENGINE
    }

    fn features(&self) -> Features {
        let mut features = Features { max_handlers: Some(MAX_HANDLERS as u32), ..self.probed.clone() };
        if self.dispatch.mode() == DispatchMode::PerCpu {
            // The kernel sends each CPU's upcalls to one socket, so that is how many handlers there can be work for.
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            features.required_handlers = Some(cpus.min(MAX_HANDLERS) as u32);
        }
        features
    }

    fn stats(&self) -> Result<DpStats> {
        let mut stats = self.kernel.datapath_info(self.ifindex)?.stats;
        stats.drops =
            vec![("upcall-discarded", self.dispatch.discarded()), ("upcall-unreadable", self.dispatch.unreadable())];
        Ok(stats)
    }

    fn port_add(&self, spec: &PortSpec) -> Result<OdpPort> {
        self.vport_add(&spec.name, spec.kind.into(), spec.request).map(|info| info.port)
    }

    fn port_del(&self, port: OdpPort) -> Result<()> {
        // Held until nobody knows the port any more, so that nobody takes it for lost.
        let mut devices = self.devices.lock();
        if devices.remove_gone(port) {
            self.dispatch.forget_port(port);
            return Ok(());
        }
        let deleted = match self.kernel.vport_del(self.ifindex, port) {
            // Its device was quicker, and nobody has been told.
            Err(DpifError::NoSuchPort(_)) if devices.knows(port) => Ok(()),
            deleted => deleted,
        };
        if deleted.is_ok() {
            devices.removed(port);
            self.dispatch.forget_port(port);
        }
        deleted
    }

    fn own_port(&self) -> Option<OdpPort> {
        Some(OdpPort(0))
    }

    fn ports(&self) -> Result<Vec<PortInfo>> {
        let mut ports: Vec<_> = self.vports()?.into_iter().map(|vport| self.port_info(vport)).collect();
        ports.extend(self.devices.lock().gone().cloned());
        ports.sort_by_key(|info| info.port);
        Ok(ports)
    }

    fn port_by_name(&self, name: &str) -> Result<Option<PortInfo>> {
        match self.vport_by_name(name) {
            Ok(info) => Ok(Some(self.port_info(info))),
            Err(DpifError::NoSuchDevice(_)) => Ok(self.devices.lock().gone().find(|info| info.name == name).cloned()),
            Err(error) => Err(error),
        }
    }

    fn port_stats(&self, port: OdpPort) -> Result<PortStats> {
        Ok(self.kernel.vport_get(self.ifindex, Which::Port(port))?.stats)
    }

    fn port_events(&self) -> Vec<PortEvent> {
        let forget = |port| self.dispatch.forget_port(port);
        self.devices.lock().events(&self.kernel, self.ifindex, forget)
    }

    fn flow_put(&self, put: &FlowPut) -> Result<()> {
        let mut ops = [DpifOp::FlowPut { put, result: Ok(()) }];
        self.operate(&mut ops);
        match ops {
            [DpifOp::FlowPut { result, .. }] => result,
            _ => Ok(()),
        }
    }

    fn flow_get(&self, ufid: Ufid) -> Result<DatapathFlow> {
        let attrs = self.flow_request(|to| flow::put_ufid(ufid, to), cmd::GET)?.ok_or(DpifError::NoSuchFlow)?;
        flow::read(&attrs).map(|(_, flow)| flow).map_err(|error| unreadable(&error))
    }

    fn flow_del(&self, ufid: Ufid) -> Result<FlowStats> {
        let name = |to: &mut Writer| {
            flow::put_ufid(ufid, to);
            flow::put_terse(to);
        };
        let attrs = self.flow_request(name, cmd::DEL)?.ok_or(DpifError::NoSuchFlow)?;
        Ok(flow::ufid_and_stats(&attrs).map(|(_, stats)| stats).unwrap_or_default())
    }

    fn flow_dump(&self, visit: &mut dyn FnMut(&DatapathFlow) -> bool) -> Result<()> {
        let mut unread = 0u64;
        self.kernel.dump(
            self.ifindex,
            self.kernel.families.flow,
            |_| {},
            |attrs| match flow::read(attrs) {
                Ok((_, flow)) => visit(&flow),
                Err(_) => {
                    unread += 1;
                    true
                }
            },
        )?;
        if unread != 0 {
            tracing::warn!("{unread} flows of datapath {} can't be read; others made them", self.name);
        }
        Ok(())
    }

    /// Flows without an id, which only a stranger can have put, nobody here could name, keep or delete: they are deleted.
    fn flow_dump_stats(&self, visit: &mut dyn FnMut(Ufid, FlowStats) -> bool) -> Result<()> {
        let family = self.kernel.families.flow;
        let mut nameless = Vec::new();
        let each = |attrs: &[u8]| match flow::ufid_and_stats(attrs) {
            Some((ufid, stats)) => visit(ufid, stats),
            None => {
                nameless.extend(flow::key(attrs).map(<[u8]>::to_vec));
                true
            }
        };
        self.kernel.dump(self.ifindex, family, flow::put_terse, each).map(drop)?;
        if !nameless.is_empty() {
            tracing::warn!("datapath {}: {} flows without an id, which others have put, go", self.name, nameless.len());
        }
        for key in nameless {
            match self.flow_request(|to| to.put(flow_attr::KEY, &key), cmd::DEL) {
                Ok(_) | Err(DpifError::NoSuchFlow) => {}
                Err(error) => tracing::warn!("datapath {}: a flow without an id stays: {error}", self.name),
            }
        }
        Ok(())
    }

    fn flow_flush(&self) -> Result<()> {
        let request = Request { family: self.kernel.families.flow, cmd: cmd::DEL, flags: 0, attrs: &|_| Ok(()) };
        self.kernel
            .request(self.ifindex, &request, |_, _| {})?
            .map_err(|errno| flow_error(errno, "can't flush the flows"))
    }

    fn execute(&self, execute: Execute<'_>) -> Result<()> {
        let mut ops = [DpifOp::Execute { execute, result: Ok(()) }];
        self.operate(&mut ops);
        match ops {
            [DpifOp::Execute { result, .. }] => result,
            _ => Ok(()),
        }
    }

    fn operate(&self, ops: &mut [DpifOp<'_>]) {
        let operator = Operator {
            kernel: &self.kernel,
            datapath: self.ifindex,
            exthdrs: self.probed.ipv6_exthdrs,
            pid_of: &|port| self.pid_of(port),
            transmit: &|ops| match &self.transmitter {
                Some(transmitter) => transmitter.transmit(&self.kernel, self.ifindex, &self.namespace, ops),
                None => Transmitted::default(),
            },
        };
        operator.operate(ops);
    }

    fn handlers_set(&self, n_handlers: u32) -> Result<()> {
        // No port comes or goes meanwhile.
        let devices = self.devices.lock();
        let (own, retired) = self.dispatch.set_handlers(n_handlers)?;
        let announced = self.announce(&own);
        drop((retired, devices));
        if n_handlers > 0 {
            // Where none has gone, as at the start, no flow has to be looked at.
            let gone = self.dispatch.take_gone();
            if !gone.is_empty()
                && let Err(error) = self.renew_flows(&gone)
            {
                tracing::warn!("datapath {}: flows may send packets to sockets that are no more: {error}", self.name);
            }
        }
        announced
    }

    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        self.dispatch.recv(handler, batch)
    }

    fn recv_fd(&self, handler: u32) -> Result<BorrowedFd<'_>> {
        self.dispatch.fd(handler)
    }

    fn recv_purge(&self, handler: u32) -> Result<usize> {
        self.dispatch.purge(handler)
    }

    fn meter_features(&self) -> MeterFeatures {
        self.kernel.meter_features(self.ifindex)
    }

    fn meter_set(&self, id: u32, config: &MeterConfig) -> Result<()> {
        self.kernel.meter_set(self.ifindex, id, config)
    }

    fn meter_get(&self, id: u32) -> Result<MeterStats> {
        self.kernel.meter_stats(self.ifindex, id, false)
    }

    fn meter_del(&self, id: u32) -> Result<MeterStats> {
        self.kernel.meter_stats(self.ifindex, id, true)
    }

    fn ct_dump(&self, zone: Option<u16>) -> Result<Vec<CtEntry>> {
        self.conntrack.dump(zone)
    }

    fn ct_flush(&self, which: &CtMatch) -> Result<()> {
        self.conntrack.flush(which)
    }

    fn ct_limits(&self, zones: &[u16]) -> Result<CtLimits> {
        self.kernel.ct_limits(zones)
    }

    fn ct_limits_set(&self, default: Option<u32>, zones: &[(u16, u32)]) -> Result<()> {
        self.kernel.ct_limits_set(default, zones)
    }

    fn ct_limits_del(&self, default: bool, zones: &[u16]) -> Result<()> {
        self.kernel.ct_limits_del(default, zones)
    }

    fn caches(&self) -> Result<Vec<(&'static str, u32)>> {
        let size = self.kernel.datapath_info(self.ifindex)?.masks_cache_size;
        Ok(size.map(|size| (MASKS_CACHE, size)).into_iter().collect())
    }

    fn cache_set_size(&self, cache: &str, size: u32) -> Result<()> {
        if cache != MASKS_CACHE {
            return Err(DpifError::Invalid(format!("{cache} is no cache of this datapath: expected {MASKS_CACHE}")));
        }
        // Whoever says one thing about a datapath says its features too, or loses them.
        self.kernel.set_masks_cache_size(self.ifindex, features_of(self.dispatch.mode()), size)
    }

    fn destroy(&self) -> Result<()> {
        self.kernel.delete_datapath(self.ifindex)
    }
}

/// A packet whose checksum or segments a device was to make: the module's interface has no word for that. One whose key says that
/// its tunnel brought options would go on without them where they are not here.
pub(crate) fn refuse_unsayable(execute: &Execute<'_>) -> Result<()> {
    if execute.packet.gso_size != 0 || execute.packet.partial_checksum {
        return Err(DpifError::Unsupported("executing a packet that a device was to finish".into(), ENGINE.into()));
    }
    let (said, there) = (usize::from(execute.key.tun_opts_len), execute.packet.tunnel_options.len());
    if said != there {
        return Err(DpifError::Invalid(format!("a packet whose key says {said} bytes of tunnel options has {there}")));
    }
    Ok(())
}

/// What a packet's execution failed with.
pub(crate) fn execute_error(errno: Errno) -> DpifError {
    match errno {
        Errno::EINVAL => DpifError::Invalid("the kernel refuses the packet or its actions".into()),
        Errno::ENODEV => DpifError::Kernel("the datapath is gone".into()),
        other => error::of(other, || "can't execute a packet".into()),
    }
}

/// Command of an execution.
pub(crate) const EXECUTE: u8 = packet_cmd::EXECUTE;
