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

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use backer::Backer;
use dpif_netlink::DispatchMode;
use flow_file::Installed;
use ofproto::{PortVlan, Trunks};
use ports::Ports;
use shared::Shared;

use crate::config::{
    self, BridgeSettings, DatapathType, DesiredState, FailMode, FlowFile, Options, PortConfig, VlanMode,
};
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
    /// By bridge, where they are of a file.
    flows: BTreeMap<String, Installed>,
}

impl Bridges {
    /// No bridges. Nothing of the system is touched.
    pub fn new(setup: Setup) -> Bridges {
        Bridges {
            setup,
            options: Options::default(),
            shared: Arc::default(),
            ports: Ports::default(),
            flows: BTreeMap::new(),
        }
    }

    /// Has all datapaths go by other options, or by those of before as they do now.
    fn set_options(&self, options: &Options) -> Result<(), SwitchError> {
        let switches = self.shared.switches();
        let settings = self.shared.switch_options(options);
        let mut changed = 0;
        let mut result = switches.iter().try_for_each(|switch| {
            switch.set_options(&settings)?;
            changed += 1;
            Ok(())
        });
        // What an operator chose holds until the configuration changes its mind.
        if result.is_ok() && self.options.specialise != options.specialise {
            result = self.specialise(options.specialise);
        }
        if result.is_err() {
            // Who refused has gone back by itself.
            let before = self.shared.switch_options(&self.options);
            for switch in switches.iter().take(changed) {
                if let Err(error) = switch.set_options(&before) {
                    tracing::error!("{}: cannot change options back: {}", switch.dpif_name(), one_line(&error));
                }
            }
        }
        result
    }

    /// Lets the eBPF datapath, if there is one, make a program for what its flows need, or not.
    fn specialise(&self, on: bool) -> Result<(), SwitchError> {
        let backers = self.shared.backers.read();
        let mut ebpf = backers.iter().filter(|backer| backer.kind == DatapathType::Ebpf);
        Ok(ebpf.try_for_each(|backer| backer.switch.dpif().set_specialise(on))?)
    }

    /// Gives a bridge the flows of a file, or those of its fail mode.
    fn set_flows(&mut self, bridge: &str, file: Option<&FlowFile>) -> Result<(), SwitchError> {
        let switch = self.backer_of(bridge)?.0;
        let Some(file) = file else {
            switch.flows_replace(bridge, None)?;
            self.flows.remove(bridge);
            return Ok(());
        };
        let ports = switch.port_names(bridge)?;
        if !self.flows.get(bridge).is_some_and(|installed| installed.is(file, &ports)) {
            let (flows, installed) = flow_file::parse(file, &ports)?;
            switch.flows_replace(bridge, Some(&flows))?;
            self.flows.insert(bridge.into(), installed);
        }
        Ok(())
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
                self.set_options(options)?;
                self.options = options.clone();
            }
            Change::AddBridge { bridge, datapath_type, settings } => {
                self.open(*datapath_type)?.bridge_add(bridge, bridge_settings(settings))?;
                self.flows.remove(bridge);
            }
            Change::SetBridge { bridge, settings } => {
                self.backer_of(bridge)?.0.bridge_set(bridge, bridge_settings(settings))?;
            }
            Change::RemoveBridge { bridge } => {
                self.flows.remove(bridge);
                // Of a datapath that doesn't work yet this is the way back, which ends with `give_up`.
                if let (switch, true) = self.backer_of(bridge)? {
                    switch.bridge_del(bridge)?;
                }
            }
            Change::AddPort { bridge, port } => {
                let switch = self.backer_of(bridge)?.0;
                ports::add(&switch, bridge, port, self.ports.number(&switch, bridge, port))?;
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
                let (switch, started) = self.backer_of(bridge)?;
                let number = switch.port_number(bridge, port);
                self.ports.removed(bridge, port, number);
                // One whose device went and came back may have been lost on the way.
                if started && number.is_some() {
                    switch.port_del(bridge, port)?;
                }
            }
            Change::SetFlows { bridge, flows } => {
                self.set_flows(bridge, flows.as_ref())?;
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
        self.ports.settled();
        Ok(())
    }

    fn give_up(&mut self) {
        for backer in self.shared.backers.write().extract_if(.., |backer| !backer.started) {
            if let Err(error) = backer.give_up() {
                tracing::error!("{}: not as it was: {}", backer.switch.dpif_name(), one_line(error.as_ref()));
            }
        }
        self.ports.settled();
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use dpif::inproc::InprocDatapath;
    use dpif::layer::Layer;
    use dpif::{Dpif, DpifError};

    use super::*;

    /// A datapath that serves only so many handlers, and may refuse to be specialised.
    struct Faulty {
        inner: InprocDatapath,
        most_handlers: AtomicU32,
        refuses: AtomicBool,
        specialised: AtomicBool,
    }

    impl Layer for Faulty {
        fn below(&self) -> &dyn Dpif {
            &self.inner
        }

        fn handlers_set(&self, n_handlers: u32) -> dpif::Result<()> {
            match n_handlers > self.most_handlers.load(Ordering::SeqCst) {
                true => Err(DpifError::Kernel(format!("it has no {n_handlers} handlers"))),
                false => self.inner.handlers_set(n_handlers),
            }
        }

        fn set_specialise(&self, on: bool) -> dpif::Result<()> {
            if self.refuses.load(Ordering::SeqCst) {
                return Err(DpifError::Kernel("it can't".into()));
            }
            self.specialised.store(on, Ordering::SeqCst);
            Ok(())
        }
    }

    fn options(n_handlers: u16, specialise: bool) -> Options {
        Options { n_handlers: Some(n_handlers), n_revalidators: Some(1), specialise, ..Options::default() }
    }

    /// Bridges over two datapaths that run with one handler, and the second of them.
    fn two_datapaths() -> (Bridges, Arc<Faulty>) {
        let mut bridges = Bridges::new(Setup::default());
        bridges.options = options(1, false);
        let faulty = Arc::new(Faulty {
            inner: InprocDatapath::new("second"),
            most_handlers: AtomicU32::new(u32::MAX),
            refuses: AtomicBool::new(false),
            specialised: AtomicBool::new(false),
        });
        let datapaths: [(_, Arc<dyn Dpif>); 2] = [
            (DatapathType::Userspace, Arc::new(InprocDatapath::new("first"))),
            (DatapathType::Ebpf, Arc::clone(&faulty) as _),
        ];
        for (kind, dpif) in datapaths {
            let switch = Arc::new(ofproto::Switch::new(dpif, bridges.shared.switch_options(&bridges.options)));
            switch.bridge_add(&format!("br-{kind}"), ofproto::BridgeSettings::default()).unwrap();
            bridges.shared.backers.write().push(Backer { kind, switch, started: false, found: None });
        }
        bridges.settle().unwrap();
        (bridges, faulty)
    }

    fn handlers(bridges: &Bridges) -> Vec<usize> {
        bridges.shared.switches().iter().map(|switch| switch.handler_reports().len()).collect()
    }

    #[test]
    fn options_that_one_datapath_refuses_change_none() {
        let (mut bridges, faulty) = two_datapaths();
        let change = Change::SetOptions(options(2, true));
        faulty.most_handlers.store(1, Ordering::SeqCst);
        let error = one_line(bridges.apply(&change).unwrap_err().as_ref());
        assert!(error.contains("it has no 2 handlers"), "{error}");
        assert_eq!((handlers(&bridges), &bridges.options), (vec![1, 1], &options(1, false)));
        faulty.most_handlers.store(2, Ordering::SeqCst);
        faulty.refuses.store(true, Ordering::SeqCst);
        let error = one_line(bridges.apply(&change).unwrap_err().as_ref());
        assert!(error.contains("it can't"), "{error}");
        assert_eq!((handlers(&bridges), &bridges.options), (vec![1, 1], &options(1, false)));
        // The next attempt leaves nothing out.
        faulty.refuses.store(false, Ordering::SeqCst);
        bridges.apply(&change).unwrap();
        assert_eq!((handlers(&bridges), &bridges.options), (vec![2, 2], &options(2, true)));
        assert!(faulty.specialised.load(Ordering::SeqCst));
    }

    #[test]
    fn threads_that_could_not_be_started_are_by_the_next_configuration_even_if_it_is_the_same() {
        let (mut bridges, faulty) = two_datapaths();
        faulty.most_handlers.store(0, Ordering::SeqCst);
        assert!(bridges.apply(&Change::SetOptions(options(2, false))).is_err());
        assert_eq!(handlers(&bridges), [1, 0]);
        assert!(bridges.settle().is_err());
        faulty.most_handlers.store(1, Ordering::SeqCst);
        bridges.settle().unwrap();
        assert_eq!(handlers(&bridges), [1, 1]);
    }
}
