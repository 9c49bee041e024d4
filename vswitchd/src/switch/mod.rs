//! The daemon's switch: bridges over datapaths.
//!
//! [`Bridges`] carries out the [changes](crate::plan) of a desired state on one [`ofproto::Switch`] per datapath type in
//! use. A datapath that an earlier process left is found with its ports and flows when its first bridge is made; it
//! forwards on as it did while bridges, ports and flows are configured, and when all of that is
//! complete ([`Switch::settle`]) what fits is adopted and the rest goes. If the configuration turns out to be impossible
//! before that, the datapath is left as it was found.

mod backer;
pub(crate) mod commands;
mod flow_file;
mod ports;
mod shared;

use std::path::PathBuf;
use std::sync::Arc;

use backer::Backer;
use dpif_netlink::DispatchMode;
use ofproto::{PortVlan, Trunks};
use ports::Ports;
use shared::Shared;

use crate::config::{self, BridgeSettings, DatapathType, DesiredState, FailMode, Options, PortConfig, VlanMode};
use crate::plan::Change;
use crate::reconcile::{Switch, SwitchError, one_line};
use crate::unixctl::Registry;

/// What is fixed for the life of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setup {
    /// Where the BPF file system is that keeps the eBPF datapath.
    pub bpffs: PathBuf,
    /// Ports of the userspace datapath are queues in memory instead of network devices.
    pub memory_ports: bool,
    /// How the kernel's module spreads upcalls; `None` takes the best that the kernel has.
    pub dispatch: Option<DispatchMode>,
}

/// The bridges on all datapaths.
pub struct Bridges {
    setup: Setup,
    options: Options,
    shared: Arc<Shared>,
    ports: Ports,
}

impl Bridges {
    /// No bridges. Nothing of the system is touched.
    pub fn new(setup: Setup) -> Bridges {
        Bridges { setup, options: Options::default(), shared: Arc::default(), ports: Ports::default() }
    }

    /// Lets the eBPF datapath, if there is one, make a program for what its flows need, or not.
    fn specialise(&self, on: bool) -> Result<(), SwitchError> {
        let backers = self.shared.backers.read();
        let mut ebpf = backers.iter().filter(|backer| backer.kind == DatapathType::Ebpf);
        Ok(ebpf.try_for_each(|backer| backer.switch.dpif().set_specialise(on))?)
    }

    /// The datapath of a type, opened if it is not yet.
    fn open(&self, kind: DatapathType) -> Result<Arc<ofproto::Switch>, SwitchError> {
        let mut backers = self.shared.backers.write();
        if let Some(backer) = backers.iter().find(|backer| backer.kind == kind) {
            return Ok(Arc::clone(&backer.switch));
        }
        let backer = Backer::open(kind, &self.setup, &self.options, &self.shared)?;
        let switch = Arc::clone(&backer.switch);
        backers.push(backer);
        Ok(switch)
    }

    /// The datapath that a bridge is on; whether it works already comes with it.
    fn backer_of(&self, bridge: &str) -> Result<(Arc<ofproto::Switch>, bool), SwitchError> {
        let backers = self.shared.backers.read();
        let backer = backers.iter().find(|backer| backer.switch.bridges().iter().any(|name| name == bridge));
        let backer = backer.ok_or_else(|| format!("there is no bridge {bridge}"))?;
        Ok((Arc::clone(&backer.switch), backer.started))
    }
}

impl Switch for Bridges {
    fn register_commands(&mut self, registry: &Registry) {
        commands::register(registry, &self.shared);
    }

    fn check(&self, desired: &DesiredState) -> Result<(), SwitchError> {
        let running = !self.shared.backers.read().is_empty();
        if running && desired.options.max_flows != self.options.max_flows {
            return Err("max-flows can't change while there are bridges: it is a datapath's for its life".into());
        }
        desired.bridges.iter().try_for_each(flow_file::check)?;
        Ok(())
    }

    fn apply(&mut self, change: &Change) -> Result<(), SwitchError> {
        match change {
            Change::SetOptions(options) => {
                let before = std::mem::replace(&mut self.options, options.clone());
                let settings = self.shared.switch_options(options);
                self.shared.switches().iter().try_for_each(|switch| switch.set_options(&settings))?;
                // What an operator chose holds until the configuration changes its mind.
                if before.specialise != options.specialise {
                    self.specialise(options.specialise)?;
                }
            }
            Change::AddBridge { bridge, datapath_type, settings } => {
                self.open(*datapath_type)?.bridge_add(bridge, bridge_settings(settings))?;
            }
            Change::SetBridge { bridge, settings } => {
                self.backer_of(bridge)?.0.bridge_set(bridge, bridge_settings(settings))?;
            }
            Change::RemoveBridge { bridge } => {
                // Of a datapath that doesn't work yet this is the way back, which ends with `give_up`.
                if let (switch, true) = self.backer_of(bridge)? {
                    switch.bridge_del(bridge)?;
                }
            }
            Change::AddPort { bridge, port } => {
                let switch = self.backer_of(bridge)?.0;
                ports::add(&switch, bridge, port, port.ofport_request.map(openflow::OfPort))?;
                self.ports.added(bridge, port);
            }
            Change::SetPort { bridge, port } => {
                let switch = self.backer_of(bridge)?.0;
                self.ports.change_xdp(&switch, port)?;
                switch.port_set_vlan(bridge, &port.name, port_vlan(&port.vlan))?;
                if let config::PortKind::Patch { peer } = &port.kind {
                    switch.port_set_peer(bridge, &port.name, peer)?;
                }
                self.ports.added(bridge, port);
            }
            Change::RemovePort { bridge, port } => {
                self.ports.removed(port);
                // One whose device went and came back may have been lost on the way.
                if let (switch, true) = self.backer_of(bridge)?
                    && switch.port_number(bridge, port).is_some()
                {
                    switch.port_del(bridge, port)?;
                }
            }
            Change::SetFlows { bridge, flows } => {
                let switch = self.backer_of(bridge)?.0;
                let flows = match flows {
                    Some(file) => Some(flow_file::read(file, &switch.port_names(bridge)?)?),
                    None => None,
                };
                switch.flows_replace(bridge, flows.as_deref())?;
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), SwitchError> {
        let mut backers = self.shared.backers.write();
        backers.iter_mut().try_for_each(Backer::start)?;
        // Nobody needs a datapath without bridges.
        for unused in backers.extract_if(.., |backer| backer.switch.bridges().is_empty()) {
            tracing::info!("{}: removing, it has no bridges any more", unused.switch.dpif_name());
            unused.shutdown(true)?;
        }
        Ok(())
    }

    fn give_up(&mut self) {
        for backer in self.shared.backers.write().extract_if(.., |backer| !backer.started) {
            if let Err(error) = backer.give_up() {
                tracing::error!("{}: not as it was: {}", backer.switch.dpif_name(), one_line(error.as_ref()));
            }
        }
    }

    fn run(&mut self, _now_ms: u64) {
        for backer in &*self.shared.backers.read() {
            self.ports.run(&backer.switch);
        }
    }

    fn memory_usage(&self) -> Vec<(String, u64)> {
        let mut usage = Vec::new();
        for backer in &*self.shared.backers.read() {
            let name = backer.switch.dpif_name();
            usage.push((format!("{name}-udpif-keys"), backer.switch.upcall_summary().current as u64));
            let bridges = backer.switch.bridges();
            let rules = bridges.iter().filter_map(|bridge| backer.switch.aggregate(bridge).ok()).map(|(_, _, n)| n);
            usage.push((format!("{name}-rules"), rules.sum::<usize>() as u64));
            let ports = bridges.iter().filter_map(|bridge| backer.switch.ports(bridge).ok()).map(|ports| ports.len());
            usage.push((format!("{name}-ports"), ports.sum::<usize>() as u64));
        }
        usage
    }

    fn shutdown(&mut self, cleanup: bool) -> Result<(), SwitchError> {
        // The lock is not held meanwhile: commands that run find no datapath.
        let backers = std::mem::take(&mut *self.shared.backers.write());
        let results: Vec<_> = backers.iter().map(|backer| backer.shutdown(cleanup)).collect();
        results.into_iter().collect()
    }
}

fn bridge_settings(settings: &BridgeSettings) -> ofproto::BridgeSettings {
    ofproto::BridgeSettings {
        fail_mode: match settings.fail_mode {
            FailMode::Standalone => ofproto::FailMode::Standalone,
            FailMode::Secure => ofproto::FailMode::Secure,
        },
        mac_aging_s: settings.mac_aging_time,
        mac_table_size: settings.mac_table_size,
        local_vlan: port_vlan(&settings.local_vlan),
    }
}

fn port_kind(port: &PortConfig) -> ofproto::PortKind {
    match &port.kind {
        config::PortKind::System => ofproto::PortKind::System,
        config::PortKind::Internal => ofproto::PortKind::Internal,
        config::PortKind::Patch { peer } => ofproto::PortKind::Patch { peer: peer.clone() },
    }
}

fn port_vlan(vlan: &config::PortVlan) -> PortVlan {
    let vlan = vlan.effective();
    let tag = vlan.tag.get();
    let trunks = vlan.trunks.map_or(Trunks::All, |set| Trunks::of(set.iter().map(config::Vlan::get)));
    match vlan.mode {
        VlanMode::Access => PortVlan::Access(tag),
        VlanMode::Trunk => PortVlan::Trunk(trunks),
        VlanMode::NativeTagged => PortVlan::NativeTagged(tag, trunks),
        VlanMode::NativeUntagged => PortVlan::NativeUntagged(tag, trunks),
    }
}
