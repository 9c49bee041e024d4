//! A whole switch in one process: no root, no devices, no kernel.
//!
//! The datapath is the in-process one with ports in memory; behind each port is a host with a TCP/IP stack of its own
//! ([`host`]). So the frames are real (ARP, neighbour discovery, handshakes, checksums), and so are upcalls, translation and
//! megaflows: only the wires are not. Every kind of traffic that `cargo xtask run` shows on the eBPF datapath is shown here as
//! far as it exists; the process ends with 0 if all passed.
#![forbid(unsafe_code)]

mod host;

use std::process::ExitCode;
use std::sync::Arc;

use dpif::Dpif as _;
use dpif::inproc::{InprocDatapath, InprocPort};
use ofproto::{BridgeSettings, Options, PortKind, PortVlan, Switch, Trunks};

use host::{Host, Network, PATIENCE};

type Error = Box<dyn std::error::Error>;
type Outcome = Result<String, Error>;

/// Echoes of one ping.
const PINGS: u16 = 20;
/// Bytes of the bulk transfer, and of those that only show a way.
const BULK: usize = 16 << 20;
const SOME: usize = 1 << 20;
/// How many hits there must be for each miss.
const HITS_PER_MISS: u64 = 100;
/// An Ethernet type for experiments (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// The hosts, by their place in the network.
#[derive(Clone, Copy)]
enum Who {
    One,
    Two,
    Three,
    Access1,
    Access2,
    Other,
    Switch,
}

struct Lab {
    dp: InprocDatapath,
    switch: Switch,
    network: Network,
    trunk: InprocPort,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, Error> {
    let mut lab = Lab::new()?;
    let mut failed = 0;
    let mut passed = 0;
    println!("==> traffic");
    for (name, kind) in KINDS {
        match kind(&mut lab) {
            Ok(detail) => {
                passed += 1;
                println!("    passed {name:<26} {detail}");
            }
            Err(error) => {
                failed += 1;
                println!("    FAILED {name:<26} {error}");
            }
        }
    }
    lab.switch.stop();
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

type Kind = fn(&mut Lab) -> Outcome;
const KINDS: [(&str, Kind); 10] = [
    ("ping IPv4", |lab| lab.ping(Who::One, Who::Two, false)),
    ("ping IPv6", |lab| lab.ping(Who::One, Who::Two, true)),
    ("TCP bulk", |lab| lab.tcp(Who::One, Who::Two, BULK)),
    ("UDP", |lab| lab.udp(Who::One, Who::Two)),
    ("VLAN pair", |lab| lab.vlan_pair()),
    ("VLAN trunk", |lab| lab.vlan_trunk()),
    ("second bridge, patch port", |lab| lab.way(Who::One, Who::Three)),
    ("host over internal port", |lab| lab.way(Who::One, Who::Switch)),
    ("hits and misses", |lab| lab.hits()),
    ("megaflows, addresses", |lab| lab.tables()),
];

impl Lab {
    /// Two bridges joined by patch ports, and a host behind each port.
    fn new() -> Result<Self, Error> {
        let dp = InprocDatapath::new("ovs-netdev");
        let switch = Switch::new(Arc::new(dp.clone()), Options::default());
        let trunk = || PortVlan::Trunk(Trunks::All);
        switch.bridge_add("br0", BridgeSettings::default())?;
        switch.bridge_add("br1", BridgeSettings::default())?;
        let patch = |peer: &str| PortKind::Patch { peer: peer.into() };
        switch.port_add("br0", "to-br1", patch("to-br0"), trunk(), None)?;
        switch.port_add("br1", "to-br0", patch("to-br1"), trunk(), None)?;
        let port = |bridge: &str, name: &str, vlan| -> Result<InprocPort, Error> {
            switch.port_add(bridge, name, PortKind::System, vlan, None)?;
            Ok(dp.port_by_name(name)?)
        };
        // In the order of `Who`.
        let wires = [
            port("br0", "p1", trunk())?,
            port("br0", "p2", trunk())?,
            port("br1", "p3", trunk())?,
            port("br0", "v1", PortVlan::Access(10))?,
            port("br0", "v2", PortVlan::Access(10))?,
            port("br0", "v3", PortVlan::Access(20))?,
            dp.port_by_name("br0")?,
        ];
        let trunk = port("br0", "t1", PortVlan::Trunk(Trunks::of([10, 20])))?;
        switch.start()?;
        let hosts = wires.into_iter().zip(1..).map(|(wire, number)| Host::new(wire, number)).collect();
        Ok(Self { dp, switch, network: Network::new(hosts), trunk })
    }

    fn ping(&mut self, from: Who, to: Who, v6: bool) -> Outcome {
        self.network.ping(from as usize, to as usize, v6, PINGS)?;
        Ok(format!("{PINGS} echoes"))
    }

    fn tcp(&mut self, from: Who, to: Who, len: usize) -> Outcome {
        let rate = self.network.transfer(from as usize, to as usize, len)?;
        Ok(format!("{} MiB, every byte compared, {rate:.2} Gbit/s", len >> 20))
    }

    fn udp(&mut self, from: Who, to: Who) -> Outcome {
        let sizes: Vec<usize> = (1..=1400).step_by(7).collect();
        self.network.echo(from as usize, to as usize, &sizes)?;
        Ok(format!("{} datagrams came back unchanged", sizes.len()))
    }

    fn way(&mut self, from: Who, to: Who) -> Outcome {
        self.ping(from, to, false)?;
        self.ping(from, to, true)?;
        self.udp(from, to)?;
        self.tcp(from, to, SOME)
    }

    fn vlan_pair(&mut self) -> Outcome {
        let other = Who::Other as usize;
        self.network.hosts[other].forget_heard();
        self.way(Who::Access1, Who::Access2)?;
        if self.network.ping(Who::Access1 as usize, other, false, 1).is_ok() {
            return Err("a host on VLAN 20 answers to one on VLAN 10".into());
        }
        let macs = [Who::Access1, Who::Access2].map(|who| self.network.hosts[who as usize].mac());
        if macs.iter().any(|mac| self.network.hosts[other].has_heard(*mac)) {
            return Err("a frame of VLAN 10 was heard on VLAN 20".into());
        }
        Ok("ping, ping6, UDP, TCP; the other VLAN heard nothing".into())
    }

    fn vlan_trunk(&mut self) -> Outcome {
        for (who, vlan) in [(Who::Access1, 10), (Who::Other, 20)] {
            let mac = self.network.hosts[who as usize].mac();
            self.network.hosts[who as usize].send(broadcast(mac, None))?;
            self.hear(&broadcast(mac, Some(vlan)))
                .ok_or_else(|| format!("the trunk did not hear a broadcast of VLAN {vlan} with its tag"))?;
            let own = [2, 0, 0, 0, 0, 99];
            self.network.hosts[who as usize].forget_heard();
            self.trunk.send(broadcast(own, Some(vlan)))?;
            let heard = |network: &mut Network| Ok(network.hosts[who as usize].has_heard(own).then_some(()));
            self.network.until(PATIENCE, "the trunk's broadcast does not arrive", heard)?;
        }
        Ok("VLAN 10 and 20 are tagged on the trunk and untagged on their access ports".into())
    }

    /// The frame, if it comes out of the trunk; others are passed over.
    fn hear(&self, frame: &[u8]) -> Option<()> {
        loop {
            let packet = self.trunk.recv_timeout(PATIENCE)?;
            if packet.data == frame {
                return Some(());
            }
        }
    }

    fn hits(&mut self) -> Outcome {
        let stats = self.dp.stats()?;
        let (hit, missed, lost) = (stats.hit, stats.missed, stats.lost);
        let share = 100.0 * hit as f64 / (hit + missed).max(1) as f64;
        let text = format!("{hit} hits, {missed} misses (upcalls), {lost} lost: {share:.3} % never left the datapath");
        if lost > 0 || hit < HITS_PER_MISS * missed.max(1) { Err(text.into()) } else { Ok(text) }
    }

    fn tables(&mut self) -> Outcome {
        let mut flows = self.switch.flows_of_datapath()?;
        flows.sort_by_key(|flow| std::cmp::Reverse(flow.stats.packets));
        let style = dpif::odp::Style::default();
        for flow in flows.iter().take(8) {
            let key = style.key(&flow.key, Some(&flow.mask));
            println!("      {key}, packets:{}, actions:{}", flow.stats.packets, style.actions(&flow.actions));
        }
        let addresses = self.switch.fdb_show("br0")?;
        addresses.lines().for_each(|line| println!("      {line}"));
        if flows.is_empty() || addresses.lines().count() < 2 {
            return Err("nothing is installed or learned".into());
        }
        Ok(format!("{} megaflows, {} addresses on br0", flows.len(), addresses.lines().count() - 1))
    }
}

/// A frame to everybody.
fn broadcast(source: [u8; 6], vlan: Option<u8>) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&source);
    if let Some(vlan) = vlan {
        frame.extend_from_slice(&[0x81, 0, 0, vlan]);
    }
    frame.extend_from_slice(&EXPERIMENT);
    frame.extend(0..50);
    frame
}
