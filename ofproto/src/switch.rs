//! The switch: all bridges over one datapath, as the daemon makes and asks it.
//!
//! A switch begins without bridges and without threads. Whoever makes it adds bridges, ports and flows, then calls
//! [`Switch::start`]: the flows that an earlier process left in the datapath are adopted and checked against what was
//! configured, and upcalls are answered from then on. The configuration may go on changing at any time from any thread; each
//! change is published whole.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dpif::{DatapathFlow, Dpif, DpifError, OdpPort, PortInfo, PortSpec, PortStats};
use openflow::{FlowCommand, FlowMatch, FlowMod, OfPort};
use parking_lot::Mutex;

use crate::backer::{Backer, Limits};
use crate::bridge::{Bridge, BridgeSettings, Config, FailMode};
use crate::clock::{Clock, MonotonicClock};
use crate::mac_learning::MacTable;
use crate::port::{PatchStats, Port, PortKind, PortVlan};
use crate::table::{FlowModError, TableStats, Tables};
use crate::upcall::{self, Caps, Engine, HandlerReport, PortUpcalls, ThreadCounts};

mod show;
mod slow_paths;
mod upcalls;

pub use slow_paths::VirtualMeter;

/// How a switch is made.
#[derive(Clone)]
pub struct Options {
    /// Threads that answer upcalls; `None` lets the switch choose by the number of processors. A datapath that insists on a
    /// number overrides it.
    pub n_handlers: Option<u32>,
    /// Threads that look after the megaflows; `None` lets the switch choose, by the number of handlers if that is given.
    pub n_revalidators: Option<u32>,
    /// Megaflows that may be installed.
    pub flow_limit: usize,
    /// Megaflows that one port may have; 0 is no cap.
    pub port_flow_limit: usize,
    /// Masks that the megaflows of one port may have; 0 is no cap.
    pub port_mask_limit: usize,
    /// Masks that all megaflows may have; 0 is no cap but the datapath's.
    pub mask_limit: usize,
    /// Milliseconds without a packet after which a megaflow goes.
    pub max_idle_ms: u64,
    /// Milliseconds between two looks at all megaflows at most.
    pub max_revalidator_ms: u64,
    /// Packets a second that make it worth to translate a megaflow again where revalidating takes long; those with fewer are
    /// deleted then. 0: all are translated.
    pub min_revalidate_pps: u64,
    /// Whether flows are installed as wide as translation allows. Without, each is for one packet's fields exactly.
    pub megaflows: bool,
    /// The clock, the same as the datapath's.
    pub clock: Arc<dyn Clock>,
    /// How a handler's thread, which calls this, is to be scheduled from now on: whether it lets others finish when it wakes, because
    /// many packets come one by one.
    pub schedule: fn(bool),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            n_handlers: None,
            n_revalidators: None,
            flow_limit: 200_000,
            port_flow_limit: 0,
            port_mask_limit: 128,
            mask_limit: 0,
            max_idle_ms: 10_000,
            max_revalidator_ms: 500,
            min_revalidate_pps: 5,
            megaflows: true,
            clock: Arc::new(MonotonicClock),
            schedule: |_| {},
        }
    }
}

impl Options {
    fn limits(&self) -> Limits {
        Limits {
            flow_limit: self.flow_limit,
            caps: Caps { port_flows: self.port_flow_limit, port_masks: self.port_mask_limit, masks: self.mask_limit },
            max_idle_ms: self.max_idle_ms,
            max_revalidator_ms: self.max_revalidator_ms,
            min_revalidate_pps: self.min_revalidate_pps,
            megaflows: self.megaflows,
        }
    }
}

/// Why the switch refuses or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// There is no such bridge.
    #[error("there is no bridge {0}")]
    NoSuchBridge(String),
    /// There is a bridge of that name.
    #[error("bridge {0} exists already")]
    BridgeExists(String),
    /// The bridge has no such port.
    #[error("bridge {0} has no port {1}")]
    NoSuchPort(String, String),
    /// The name or number is taken; the text says by what.
    #[error("{0}")]
    Exists(String),
    /// The request makes no sense; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// The datapath refused; the text says what was tried.
    #[error("{0}: {1}")]
    Datapath(String, #[source] DpifError),
    /// A flow mod can't be carried out.
    #[error(transparent)]
    Flow(#[from] FlowModError),
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// A change failed, and then the threads could not be started as they were before: there are none.
    #[error("{0}; there are no threads, for those of before could not be started again: {1}")]
    Stopped(Box<SwitchError>, Box<SwitchError>),
}

/// The result of an operation on the switch.
pub type Result<T, E = SwitchError> = core::result::Result<T, E>;

/// All bridges over one datapath.
pub struct Switch {
    backer: Arc<Backer>,
    /// Numbers of handlers and revalidators that were asked for.
    threads: Mutex<(Option<u32>, Option<u32>)>,
    /// Held while bridges and ports come and go: between the look at a name and its use nobody else may take it.
    admin: Mutex<()>,
    engine: Mutex<Option<Engine>>,
    /// The threads have been started, and not stopped. If there are none all the same, the last attempt to start them again failed.
    runs: AtomicBool,
}

impl Switch {
    /// A switch over a datapath, without bridges. Nothing happens to the datapath yet.
    pub fn new(dpif: Arc<dyn Dpif>, options: Options) -> Self {
        let dpif = Arc::new(dpif::Observed::new(dpif));
        let name = format!("{}@{}", dpif.datapath_type(), dpif.name());
        for line in dpif.features().report(&name) {
            tracing::info!(target: "ofproto_dpif", "{line}");
        }
        let backer = Arc::new(Backer::new(dpif, Arc::clone(&options.clock), options.limits(), options.schedule));
        let threads = Mutex::new((options.n_handlers, options.n_revalidators));
        Self { backer, threads, admin: Mutex::new(()), engine: Mutex::new(None), runs: AtomicBool::new(false) }
    }

    /// Changes the options while the switch runs. The clock stays, and what handlers begin with. Other numbers of threads restart them; where what was asked
    /// for changes and the numbers that come of it don't, nothing is restarted.
    ///
    /// # Errors
    /// As [`Switch::start`]; the options are those of before then, and threads run by them. If even these can't be started the error
    /// says so, and the next change or [`Switch::start`] tries again.
    pub fn set_options(&self, options: &Options) -> Result<()> {
        let mut engine = self.engine.lock();
        let before = (self.backer.limits(), *self.threads.lock());
        let changed = self.configure(&mut engine, options.limits(), (options.n_handlers, options.n_revalidators));
        changed.map_err(|error| match self.configure(&mut engine, before.0, before.1) {
            Ok(()) => error,
            Err(undo) => SwitchError::Stopped(Box::new(error), Box::new(undo)),
        })
    }

    /// Changes limits and numbers of threads.
    fn configure(
        &self,
        engine: &mut Option<Engine>,
        limits: Limits,
        threads: (Option<u32>, Option<u32>),
    ) -> Result<()> {
        self.backer.set_limits(limits);
        *self.threads.lock() = threads;
        match engine.take_if(|engine| engine.counts() != self.thread_counts()) {
            Some(old) => self.restart(engine, old, || Ok(())),
            None => self.resume(engine),
        }
    }

    /// Starts the threads if they should run and don't.
    fn resume(&self, engine: &mut Option<Engine>) -> Result<()> {
        if engine.is_none() && self.runs.load(Ordering::SeqCst) {
            *engine = Some(self.started()?);
        }
        Ok(())
    }

    /// The numbers of threads that there ought to be.
    fn thread_counts(&self) -> ThreadCounts {
        let (handlers, revalidators) = *self.threads.lock();
        let features = self.backer.dpif.features();
        ThreadCounts::choose(&features, handlers.unwrap_or(0), revalidators.unwrap_or(0))
    }

    /// Ends the threads, does something while there are none, and starts them.
    fn restart(&self, engine: &mut Option<Engine>, old: Engine, between: impl FnOnce() -> Result<()>) -> Result<()> {
        old.stop(&self.backer);
        let done = between();
        *engine = Some(self.started()?);
        done
    }

    fn started(&self) -> Result<Engine> {
        if !self.backer.features.ufid {
            let name = self.backer.dpif.name();
            return Err(SwitchError::Invalid(format!("datapath {name} does not support unique flow ids")));
        }
        let counts = self.thread_counts();
        counts.log(self.backer.dpif.name());
        Engine::start(&self.backer, counts)
    }

    /// How many recirculation ids are held by flows.
    pub fn n_recirc_ids(&self) -> usize {
        self.config().recirc.len()
    }

    /// How many recirculation ids of an earlier process are held by its flows.
    pub fn n_inherited_recirc_ids(&self) -> usize {
        self.config().recirc.n_inherited()
    }

    /// The datapath.
    pub fn dpif(&self) -> &Arc<dyn Dpif> {
        &self.backer.dpif
    }

    /// Adopts the flows that are in the datapath, and answers upcalls from now on. Nothing where it does already.
    ///
    /// # Errors
    /// The datapath's, or the system's where it has no more threads.
    pub fn start(&self) -> Result<()> {
        let mut engine = self.engine.lock();
        if engine.is_none() {
            *engine = Some(self.started()?);
        }
        self.runs.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Ends all threads. The datapath goes on with the flows that it has; packets for which it has none are lost. Returns
    /// when the threads have ended, which takes no longer than the answer to one batch of upcalls.
    pub fn stop(&self) {
        let mut engine = self.engine.lock();
        self.runs.store(false, Ordering::SeqCst);
        if let Some(engine) = engine.take() {
            engine.stop(&self.backer);
        }
    }

    /// Makes a bridge with its `LOCAL` port, an internal port of its name, and the flows of its fail mode. A port of that name
    /// that is in the datapath already is taken over.
    ///
    /// # Errors
    /// The name is taken, or the datapath refuses the port.
    pub fn bridge_add(&self, name: &str, settings: BridgeSettings) -> Result<()> {
        let _admin = self.admin.lock();
        if self.config().bridges.contains_key(name) {
            return Err(SwitchError::BridgeExists(name.into()));
        }
        self.check_name_is_free(name)?;
        let (odp, _) = self.datapath_port(name, dpif::PortKind::Internal)?;
        let now = self.backer.clock.now_ms();
        self.backer
            .update(|config| {
                let mut tables = Tables::default();
                tables.apply(&default_flows(settings.fail_mode), now)?;
                let local = new_port(name, OfPort::LOCAL, PortKind::Internal, Some(odp), settings.local_vlan.clone());
                let macs = Arc::new(MacTable::new(settings.mac_aging_s, settings.mac_table_size));
                let ports = BTreeMap::from([(OfPort::LOCAL, local)]);
                let table_stats = Arc::new(TableStats::new(name));
                let bridge = Bridge { name: name.into(), settings, ports, tables, table_stats, macs };
                config.bridges.insert(name.into(), Arc::new(bridge));
                config.index();
                Ok(())
            })
            .inspect(|_| coverage::inc!("rev_reconfigure"))
    }

    /// Changes a bridge while it runs. Its flows stay: those of another fail mode come with [`Switch::flows_replace`].
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn bridge_set(&self, name: &str, settings: BridgeSettings) -> Result<()> {
        self.update_bridge(name, |bridge| {
            if let Some(local) = bridge.ports.get(&OfPort::LOCAL) {
                let local = with_vlan(local, settings.local_vlan.clone());
                bridge.ports.insert(OfPort::LOCAL, local);
            }
            bridge.macs.configure(settings.mac_aging_s, settings.mac_table_size);
            bridge.settings = settings;
            Ok(())
        })
    }

    /// Removes a bridge with its ports and flows. Waits as [`Switch::port_del`].
    ///
    /// # Errors
    /// There is no such bridge, or the datapath doesn't let go of a port: the bridge is gone all the same.
    pub fn bridge_del(&self, name: &str) -> Result<()> {
        let _admin = self.admin.lock();
        let gone = self.backer.update(|config| {
            let gone = config.bridges.remove(name).ok_or_else(|| SwitchError::NoSuchBridge(name.into()))?;
            config.index();
            Ok::<_, SwitchError>(gone)
        })?;
        coverage::inc!("rev_reconfigure");
        self.forget_ports();
        let results: Vec<_> = gone.ports.values().map(|port| self.release(port)).collect();
        results.into_iter().collect()
    }

    /// The names of the bridges.
    pub fn bridges(&self) -> Vec<String> {
        self.config().bridges.keys().cloned().collect()
    }

    /// Puts a port on a bridge and says its number: the one asked for, or the lowest that is free. A device that is a port of
    /// the datapath already is taken over with the flows that name it.
    ///
    /// # Errors
    /// The bridge is missing, name or number are taken, or the datapath refuses the device.
    pub fn port_add(
        &self,
        bridge: &str,
        name: &str,
        kind: PortKind,
        vlan: PortVlan,
        request: Option<OfPort>,
    ) -> Result<OfPort> {
        let _admin = self.admin.lock();
        self.bridge(bridge)?;
        self.check_name_is_free(name)?;
        if let Some(number) = request.filter(|number| !number.is_assignable() || *number == OfPort::LOCAL) {
            return Err(SwitchError::Invalid(format!(
                "port {name} can't have the number {number}: expected 1 to {}",
                OfPort::MAX.0 - 1
            )));
        }
        let odp = match &kind {
            PortKind::System => Some(self.datapath_port(name, dpif::PortKind::System)?),
            PortKind::Internal => Some(self.datapath_port(name, dpif::PortKind::Internal)?),
            PortKind::Patch { .. } => None,
        };
        let added = self.update_bridge(bridge, |bridge| {
            let number = match request {
                Some(number) => match bridge.ports.get(&number) {
                    Some(other) => {
                        return Err(SwitchError::Exists(format!(
                            "number {number} of bridge {} is port {}'s already",
                            bridge.name, other.name
                        )));
                    }
                    None => number,
                },
                None => bridge
                    .free_number()
                    .ok_or_else(|| SwitchError::Exists(format!("bridge {} has no free port number", bridge.name)))?,
            };
            bridge.ports.insert(number, new_port(name, number, kind, odp.map(|(odp, _)| odp), vlan));
            bridge.macs.open(number);
            Ok(number)
        });
        if let (Err(_), Some((odp, true))) = (&added, odp) {
            // It was made for this port.
            let _ = self.backer.dpif.port_del(odp);
        }
        added
    }

    /// Takes a port off a bridge; its device gets back the settings it had. Waits for the handlers, so what they call (protocols, sinks)
    /// must not do this.
    ///
    /// # Errors
    /// There is no such port, or the datapath doesn't let go of it: it is no port of the bridge all the same.
    pub fn port_del(&self, bridge: &str, name: &str) -> Result<()> {
        let _admin = self.admin.lock();
        let gone = self.update_bridge(bridge, |bridge| {
            let no_such = || SwitchError::NoSuchPort(bridge.name.to_string(), name.into());
            let number = bridge.port_by_name(name).ok_or_else(no_such)?.number;
            if number == OfPort::LOCAL {
                return Err(SwitchError::Invalid(format!("port {name} goes only with its bridge")));
            }
            let gone = bridge.ports.remove(&number).ok_or_else(no_such)?;
            bridge.macs.close(number);
            Ok(gone)
        })?;
        self.forget_ports();
        self.release(&gone)
    }

    /// Changes what a port does with VLANs.
    ///
    /// # Errors
    /// There is no such port.
    pub fn port_set_vlan(&self, bridge: &str, name: &str, vlan: PortVlan) -> Result<()> {
        self.replace_port(bridge, name, |port| with_vlan(port, vlan))
    }

    /// Changes the name of the port that a patch port is connected to.
    ///
    /// # Errors
    /// There is no such port, or it is no patch port.
    pub fn port_set_peer(&self, bridge: &str, name: &str, peer: &str) -> Result<()> {
        let config = self.config();
        let port = config.bridges.get(bridge).and_then(|bridge| bridge.port_by_name(name));
        if port.is_some_and(|port| !matches!(port.kind, PortKind::Patch { .. })) {
            return Err(SwitchError::Invalid(format!("port {name} is no patch port")));
        }
        self.replace_port(bridge, name, |port| {
            new_port(name, port.number, PortKind::Patch { peer: peer.into() }, None, port.vlan.clone())
        })
    }

    /// Statistics of a port.
    ///
    /// # Errors
    /// There is no such port, or the datapath's.
    pub fn port_stats(&self, bridge: &str, name: &str) -> Result<PortStats> {
        let bridge = self.bridge(bridge)?;
        let port =
            bridge.port_by_name(name).ok_or_else(|| SwitchError::NoSuchPort(bridge.name.to_string(), name.into()))?;
        match port.odp {
            Some(odp) => self
                .backer
                .dpif
                .port_stats(odp)
                .map_err(|error| SwitchError::Datapath(format!("statistics of port {name}"), error)),
            None => Ok(port.patch_stats.get()),
        }
    }

    /// The number of a bridge's port.
    pub fn port_number(&self, bridge: &str, name: &str) -> Option<OfPort> {
        self.bridge(bridge).ok()?.port_by_name(name).map(|port| port.number)
    }

    /// The ports of a bridge with their numbers, `LOCAL` included: the names that flow text may use.
    pub fn port_names(&self, bridge: &str) -> Result<BTreeMap<String, OfPort>> {
        Ok(self.bridge(bridge)?.ports.values().map(|port| (port.name.clone(), port.number)).collect())
    }

    /// Carries out flow mods in order: all of them, or none.
    ///
    /// # Errors
    /// The first that can't be carried out; a missing bridge counts for the first.
    pub fn flow_mods_apply(&self, bridge: &str, flow_mods: &[FlowMod]) -> Result<(), FlowModError> {
        let now = self.backer.clock.now_ms();
        self.change_flows(bridge, |bridge| bridge.tables.apply(flow_mods, now))
    }

    /// Replaces all flows of a bridge by what `flow_mods` make of empty tables (`None`: by those of its fail mode), at once.
    /// Counters begin anew.
    ///
    /// # Errors
    /// As [`Switch::flow_mods_apply`].
    pub fn flows_replace(&self, bridge: &str, flow_mods: Option<&[FlowMod]>) -> Result<(), FlowModError> {
        let now = self.backer.clock.now_ms();
        self.change_flows(bridge, |bridge| {
            let mut tables = Tables::default();
            match flow_mods {
                Some(flow_mods) => tables.apply(flow_mods, now)?,
                None => tables.apply(&default_flows(bridge.settings.fail_mode), now)?,
            }
            bridge.tables = tables;
            Ok(())
        })
    }

    /// Checks flow mods as for empty tables, changing nothing.
    ///
    /// # Errors
    /// The first that can't be carried out.
    pub fn flow_mods_check(flow_mods: &[FlowMod]) -> Result<(), FlowModError> {
        Tables::default().apply(flow_mods, 0)
    }

    /// Forgets the learned addresses of a bridge, or of all.
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn fdb_flush(&self, bridge: Option<&str>) -> Result<()> {
        let config = self.config();
        let bridges = match bridge {
            Some(name) => vec![self.bridge(name)?],
            None => config.bridges.values().cloned().collect(),
        };
        for bridge in bridges {
            bridge.macs.forget(|_| true);
        }
        self.backer.learned();
        Ok(())
    }

    /// The datapath's flows, their statistics up to date.
    ///
    /// # Errors
    /// The datapath's.
    pub fn flows_of_datapath(&self) -> Result<Vec<DatapathFlow>> {
        let mut flows = Vec::new();
        let visit = &mut |flow: &DatapathFlow| {
            flows.push(flow.clone());
            true
        };
        self.backer
            .dpif
            .flow_dump(visit)
            .map_err(|error| SwitchError::Datapath("dumping the datapath's flows".into(), error))?;
        Ok(flows)
    }

    /// Looks at all megaflows now: pushes their statistics to the rules, deletes idle ones, brings the others up to date with
    /// the configuration. On return that is done for all that was configured before the call, and the revalidator's thread
    /// has nothing left to do at once (it is waited for two seconds at most).
    pub fn revalidate_now(&self) {
        upcall::revalidate(&self.backer);
        if self.engine.lock().is_some() {
            self.backer.await_rest(Duration::from_secs(2));
        }
    }

    /// Waits until all upcalls that the datapath has queued are answered, as far as no more come; then as
    /// [`Switch::revalidate_now`]. Returns at the latest after two seconds.
    pub fn synchronize(&self) {
        if let Some(engine) = &*self.engine.lock() {
            engine.drain();
        }
        self.revalidate_now();
    }

    /// Waits until each handler has passed its loop once, so that none still works with a configuration that was published
    /// before the call. `false`: one has not in two seconds.
    pub fn synchronize_threads(&self) -> bool {
        self.engine.lock().as_ref().is_none_or(Engine::synchronize)
    }

    /// What each handler has counted since it was started; nothing while there are none.
    pub fn handler_reports(&self) -> Vec<HandlerReport> {
        self.engine.lock().as_ref().map(Engine::reports).unwrap_or_default()
    }

    /// What all handlers have counted together, those included that have ended. Latency and times are not in it.
    pub fn upcall_totals(&self) -> HandlerReport {
        // Locked, so that no handler is between being there and having ended.
        let engine = self.engine.lock();
        let mut totals = self.backer.retired.lock().clone();
        engine.as_ref().map(Engine::reports).unwrap_or_default().iter().for_each(|report| totals.add(report));
        totals
    }

    /// Upcalls of each port until now, and their rates over the last second or longer.
    pub fn port_upcalls(&self) -> Vec<PortUpcalls> {
        self.backer.losses.ports(&self.backer)
    }

    /// Deletes all flows of the datapath, with the threads at rest. Their statistics are pushed to the rules before.
    ///
    /// # Errors
    /// The datapath's.
    pub fn flush(&self) -> Result<()> {
        let flush = || {
            upcall::flush(&self.backer)
                .map_err(|error| SwitchError::Datapath("flushing the datapath's flows".into(), error))
        };
        let mut engine = self.engine.lock();
        match engine.take() {
            Some(old) => self.restart(&mut engine, old, flush),
            None => flush().and_then(|()| self.resume(&mut engine)),
        }
    }

    /// Deletes the ports of the datapath that belong to no bridge: what an earlier process left and the configuration no
    /// longer has. Says their names. To be called when the first configuration is complete.
    ///
    /// # Errors
    /// The datapath's.
    pub fn remove_unclaimed_ports(&self) -> Result<Vec<String>> {
        let _admin = self.admin.lock();
        let failed = |error| SwitchError::Datapath("listing the datapath's ports".into(), error);
        let config = self.config();
        let mut removed = Vec::new();
        for port in self.backer.dpif.ports().map_err(failed)? {
            if config.port_of(port.port).is_none() && self.backer.dpif.own_port() != Some(port.port) {
                match self.backer.dpif.port_del(port.port) {
                    Ok(()) => removed.push(port.name),
                    // It does no harm where it is.
                    Err(error) => tracing::warn!("port {}, which no bridge has any more, stays: {error}", port.name),
                }
            }
        }
        Ok(removed)
    }

    /// Ends the switch and everything it made: threads, flows, ports.
    ///
    /// # Errors
    /// The datapath's.
    pub fn destroy(&self) -> Result<()> {
        self.stop();
        self.backer.dpif.destroy().map_err(|error| SwitchError::Datapath("removing the datapath".into(), error))
    }

    fn config(&self) -> Arc<Config> {
        self.backer.config()
    }

    fn bridge(&self, name: &str) -> Result<Arc<Bridge>> {
        self.config().bridges.get(name).cloned().ok_or_else(|| SwitchError::NoSuchBridge(name.into()))
    }

    /// A device is a port of one bridge only, and a patch port's name is known to its peer wherever that is.
    fn check_name_is_free(&self, name: &str) -> Result<()> {
        match self.config().bridges.values().find(|bridge| bridge.port_by_name(name).is_some()) {
            Some(bridge) => Err(SwitchError::Exists(format!("port {name} is on bridge {} already", bridge.name))),
            None => Ok(()),
        }
    }

    /// The number of the datapath's port of that name, and whether it was made now.
    fn datapath_port(&self, name: &str, kind: dpif::PortKind) -> Result<(OdpPort, bool)> {
        let dpif = &self.backer.dpif;
        let failed = |error| SwitchError::Datapath(format!("adding port {name} to datapath {}", dpif.name()), error);
        // A tunnel that was made by hand is a device like any other.
        let is_wanted = |port: &PortInfo| match port.kind {
            dpif::PortKind::Tunnel(_) => kind == dpif::PortKind::System,
            there => there == kind,
        };
        let there = dpif.port_by_name(name).map_err(failed)?.filter(is_wanted);
        match there {
            Some(port) if port.error.is_none() => return Ok((port.port, false)),
            Some(port) => dpif.port_del(port.port).map_err(failed)?,
            None => {}
        }
        let spec = PortSpec { name: name.into(), kind, request: None };
        Ok((dpif.port_add(&spec).map_err(failed)?, true))
    }

    /// Has nobody name ports any more that the configuration doesn't have: another device could get their numbers in the datapath. A
    /// handler may have translated by the configuration of before, and be about to execute and to install what came of it; when none is,
    /// the last flows go.
    fn forget_ports(&self) {
        if !self.synchronize_threads() {
            tracing::warn!("{}: a handler may still send to a port that goes", self.dpif_name());
        }
        self.revalidate_now();
    }

    fn release(&self, port: &Port) -> Result<()> {
        match port.odp.map(|odp| self.backer.dpif.port_del(odp)) {
            None | Some(Ok(()) | Err(DpifError::NoSuchPort(_))) => Ok(()),
            Some(Err(error)) => Err(SwitchError::Datapath(format!("removing port {}", port.name), error)),
        }
    }

    fn update_bridge<T>(&self, name: &str, change: impl FnOnce(&mut Bridge) -> Result<T>) -> Result<T> {
        self.backer
            .update(|config| {
                let bridge = config.bridges.get_mut(name).ok_or_else(|| SwitchError::NoSuchBridge(name.into()))?;
                let done = change(Arc::make_mut(bridge))?;
                config.index();
                Ok(done)
            })
            .inspect(|_| coverage::inc!("rev_reconfigure"))
    }

    fn change_flows(
        &self,
        name: &str,
        change: impl FnOnce(&mut Bridge) -> Result<(), FlowModError>,
    ) -> Result<(), FlowModError> {
        self.backer
            .update(|config| {
                let missing = || FlowModError { index: 0, message: format!("there is no bridge {name}") };
                change(Arc::make_mut(config.bridges.get_mut(name).ok_or_else(missing)?))
            })
            .inspect(|_| coverage::inc!("rev_flow_table"))
    }

    fn replace_port(&self, bridge: &str, name: &str, change: impl FnOnce(&Port) -> Arc<Port>) -> Result<()> {
        self.update_bridge(bridge, |bridge| {
            let no_such = || SwitchError::NoSuchPort(bridge.name.to_string(), name.into());
            let changed = change(bridge.port_by_name(name).ok_or_else(no_such)?);
            let number = changed.number;
            bridge.ports.insert(number, changed);
            // What was learned may be of another VLAN now.
            bridge.macs.forget(|entry| entry.port == number);
            Ok(())
        })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch").field("datapath", &self.backer.dpif.name()).finish_non_exhaustive()
    }
}

fn new_port(name: &str, number: OfPort, kind: PortKind, odp: Option<OdpPort>, vlan: PortVlan) -> Arc<Port> {
    Arc::new(Port { name: name.into(), number, kind, odp, vlan, patch_stats: Arc::new(PatchStats::default()) })
}

fn with_vlan(port: &Port, vlan: PortVlan) -> Arc<Port> {
    Arc::new(Port {
        name: port.name.clone(),
        number: port.number,
        kind: port.kind.clone(),
        odp: port.odp,
        vlan,
        patch_stats: Arc::clone(&port.patch_stats),
    })
}

fn default_flows(fail_mode: FailMode) -> Vec<FlowMod> {
    match fail_mode {
        FailMode::Secure => Vec::new(),
        FailMode::Standalone => vec![FlowMod {
            command: FlowCommand::Add,
            priority: 0,
            r#match: FlowMatch::catch_all(),
            actions: vec![openflow::Action::Output(OfPort::NORMAL)],
            ..FlowMod::default()
        }],
    }
}
