//! A switch on the in-process datapath, into whose upcalls a test can put its own.

use std::sync::Arc;

use datapath_common::FlowKey;
use dpif::inproc::{InprocDatapath, InprocPort, Options as DpOptions};
use dpif::{Action, Dpif, FlowPut, PutMode, Ufid};
use ofproto::upcall::HandlerReport;
use ofproto::{BridgeSettings, Clock, ManualClock, Options, PortKind, PortVlan, Switch};
use openflow::{FlowMod, NoPortNames, OfPort};

use super::faulty::Faulty;

pub(crate) struct World {
    pub(crate) dp: InprocDatapath,
    pub(crate) faulty: Arc<Faulty>,
    pub(crate) switch: Switch,
    pub(crate) ports: Vec<InprocPort>,
    pub(crate) clock: ManualClock,
}

impl World {
    /// A bridge with ports 1 to 3, which the datapath calls 2 to 4. Time stands still.
    pub(crate) fn new(flows: &[&str]) -> Self {
        Self::with(flows, |_| {})
    }

    pub(crate) fn with(flows: &[&str], change: impl FnOnce(&mut Options)) -> Self {
        let clock = ManualClock::new(1_000_000);
        let dp_clock = clock.clone();
        let dp_options =
            DpOptions { clock: Arc::new(move || dp_clock.now_ms() * 1_000_000), ..DpOptions::new("ovs-netdev") };
        let dp = InprocDatapath::with_options(dp_options);
        let faulty = Arc::new(Faulty::new(dp.clone()));
        let mut options = Options {
            n_handlers: Some(1),
            n_revalidators: Some(1),
            clock: Arc::new(clock.clone()),
            ..Options::default()
        };
        change(&mut options);
        let switch = Switch::new(Arc::clone(&faulty) as Arc<dyn Dpif>, options);
        switch.bridge_add("br0", BridgeSettings::default()).unwrap();
        let ports = ["p1", "p2", "p3"].map(|name| {
            switch.port_add("br0", name, PortKind::System, PortVlan::default(), None).unwrap();
            dp.port_by_name(name).unwrap()
        });
        let mods: Vec<_> = flows.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
        switch.flows_replace("br0", Some(&mods)).unwrap();
        switch.start().unwrap();
        Self { dp, faulty, switch, ports: ports.into(), clock }
    }

    /// Another switch over the same datapath, as another process has one. Not started.
    pub(crate) fn another(&self, flows: &[&str]) -> Switch {
        let options = Options { n_handlers: Some(1), n_revalidators: Some(1), ..Options::default() };
        let options = Options { clock: Arc::new(self.clock.clone()), ..options };
        let switch = Switch::new(Arc::new(self.dp.clone()), options);
        switch.bridge_add("br0", BridgeSettings::default()).unwrap();
        for name in ["p1", "p2", "p3"] {
            switch.port_add("br0", name, PortKind::System, PortVlan::default(), None).unwrap();
        }
        let mods: Vec<_> = flows.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
        switch.flows_replace("br0", Some(&mods)).unwrap();
        switch
    }

    pub(crate) fn add_flow(&self, text: &str) {
        self.switch.flow_mods_apply("br0", &[FlowMod::parse(text, &NoPortNames).unwrap()]).unwrap();
    }

    /// Connects a bridge to a new one by patch ports of these numbers.
    pub(crate) fn patch(&self, a: &str, a_port: u16, b: &str, b_port: u16) {
        self.switch.bridge_add(b, BridgeSettings::default()).unwrap();
        for (bridge, number, other) in [(a, a_port, b), (b, b_port, a)] {
            let kind = PortKind::Patch { peer: format!("to-{bridge}") };
            let name = format!("to-{other}");
            self.switch.port_add(bridge, &name, kind, PortVlan::default(), Some(OfPort(number))).unwrap();
        }
    }

    /// A flow of the datapath for all packets of port 1 that an earlier process has left: it is known, and not translated yet.
    pub(crate) fn put(&self, ufid: u128, actions: Vec<Action>) {
        let key = FlowKey { in_port: 2, ..FlowKey::ZERO };
        let mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO };
        let put = FlowPut { mode: PutMode::Create, ufid: Ufid(ufid), key, mask, actions: actions.into() };
        self.switch.stop();
        self.switch.pause_revalidators();
        self.dp.flow_flush().unwrap();
        self.dp.flow_put(&put).unwrap();
        self.switch.start().unwrap();
    }

    /// Frames that have come out of a port.
    pub(crate) fn out(&self, port: usize) -> Vec<Vec<u8>> {
        self.switch.synchronize();
        std::iter::from_fn(|| self.ports[port - 1].recv()).map(|packet| packet.data).collect()
    }

    pub(crate) fn report(&self) -> HandlerReport {
        self.switch.handler_reports().into_iter().next().unwrap()
    }

    /// The datapath's flows as `dpctl/dump-flows` shows them, sorted.
    pub(crate) fn flows(&self) -> Vec<String> {
        let style = dpif::odp::Style::default();
        let flows = self.switch.flows_of_datapath().unwrap();
        let mut flows: Vec<_> = flows.iter().map(|flow| style.flow(flow, self.clock.now_ms())).collect();
        flows.sort();
        flows
    }
}
