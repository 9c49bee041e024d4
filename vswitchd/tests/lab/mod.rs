//! A switch in this process over any datapath: a namespace for it, wires to another namespace where the neighbours are.
#![allow(dead_code)]

pub(crate) mod storm;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dpif::inproc::{InprocDatapath, Options as InprocOptions, PortBackend};
use dpif::{Dpif, OdpPort};
use dpif_ebpf::{EbpfDpif, Options as EbpfOptions};
use dpif_netlink::{DispatchMode, NetlinkDpif, Options as NetlinkOptions};
use ofproto::{BridgeSettings, FailMode, Options, PortKind, PortVlan, Switch};
use openflow::{FlowMod, NoPortNames};
use testkit::{Need, Netns, RawSocket, veth_pair};

/// Which datapath carries the packets. Another one needs a line in each of these functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Datapath {
    Ebpf,
    /// In this process, on the same wires.
    Userspace,
    /// The kernel's `openvswitch` module.
    Netlink(DispatchMode),
}

impl Datapath {
    /// What a machine needs for it.
    pub(crate) fn needs(self) -> &'static [Need] {
        match self {
            Self::Ebpf => &[Need::Namespaces, Need::Bpf, Need::EbpfObject],
            Self::Userspace => &[Need::Namespaces],
            Self::Netlink(_) => &[Need::Namespaces, Need::OvsModule],
        }
    }

    /// Opens it in the caller's namespace; what an earlier call left under this name is adopted.
    pub(crate) fn open(self, name: &str) -> Arc<dyn Dpif> {
        match self {
            Self::Ebpf => {
                let options = EbpfOptions { bpffs: "/run/sluice-test/bpf".into(), ..EbpfOptions::default() };
                Arc::new(EbpfDpif::open(name, &options).unwrap_or_else(|error| panic!("{name}: {error}")))
            }
            Self::Userspace => {
                let options = InprocOptions { backend: PortBackend::Devices, ..InprocOptions::new(name) };
                Arc::new(InprocDatapath::with_options(options))
            }
            Self::Netlink(mode) => {
                let options = NetlinkOptions { name: name.into(), dispatch: Some(mode) };
                Arc::new(NetlinkDpif::open(&options).unwrap_or_else(|error| panic!("{name}: {error}")))
            }
        }
    }
}

/// A switch with bridge `br0`, whose port `vN` is wired to `vN` of the neighbours.
pub(crate) struct Lab {
    pub(crate) netns: Netns,
    pub(crate) hosts: Netns,
    pub(crate) switch: Arc<Switch>,
    pub(crate) datapath: Datapath,
    pub(crate) name: String,
    n_ports: usize,
}

impl Lab {
    /// With `n_wires` wires, of which the first `n_ports` end in ports. Not started.
    pub(crate) fn new(datapath: Datapath, n_wires: usize, n_ports: usize, options: Options) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (netns, hosts) = (Netns::new("lab").unwrap(), Netns::new("lab-hosts").unwrap());
        for namespace in [&netns, &hosts] {
            namespace.silence().unwrap();
        }
        for n in 1..=n_wires {
            veth_pair(&netns, &format!("v{n}"), &hosts, &format!("v{n}")).unwrap();
        }
        let name = format!("t{}-lab{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let switch = netns.run(|| switch(datapath.open(&name), n_ports, options)).unwrap();
        Self { netns, hosts, switch, datapath, name, n_ports }
    }

    /// Does something in the switch's namespace: threads that it starts are there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce(&Switch) -> T + Send) -> T {
        self.netns.run(|| work(&self.switch)).unwrap()
    }

    /// Starts the switch.
    pub(crate) fn start(&self) {
        self.run(Switch::start).unwrap();
    }

    /// Ends the switch as a process that ends does, and makes a new one over what it left: the datapath itself for one that
    /// lives in this process. Not started.
    pub(crate) fn restart(&mut self, options: Options) {
        self.switch.stop();
        let dpif = (self.datapath == Datapath::Userspace).then(|| Arc::clone(self.switch.dpif()));
        let nothing = Arc::new(InprocDatapath::with_options(InprocOptions::new("none")));
        self.switch = Arc::new(Switch::new(nothing, Options::default()));
        let (datapath, name, n_ports) = (self.datapath, &self.name, self.n_ports);
        let open = || switch(dpif.unwrap_or_else(|| datapath.open(name)), n_ports, options);
        self.switch = self.netns.run(open).unwrap();
    }

    /// Replaces the flows of the bridge.
    pub(crate) fn flows(&self, text: &[&str]) {
        self.switch.flows_replace("br0", Some(&flows(text))).unwrap();
    }

    /// The neighbours' end of wire `n`.
    pub(crate) fn socket(&self, n: usize) -> RawSocket {
        RawSocket::open(&self.hosts, &format!("v{n}")).unwrap()
    }

    /// The datapath's number of port `n`.
    pub(crate) fn odp(&self, n: usize) -> OdpPort {
        let name = format!("v{n}");
        self.switch.dpif().ports().unwrap().into_iter().find(|port| port.name == name).unwrap().port
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.netns.run(|| self.switch.destroy()) {
            eprintln!("the datapath is left: {error}");
        }
    }
}

/// Flow mods from text.
pub(crate) fn flows(text: &[&str]) -> Vec<FlowMod> {
    text.iter()
        .map(|text| FlowMod::parse(text, &NoPortNames).unwrap_or_else(|error| panic!("{text}: {error}")))
        .collect()
}

fn switch(dpif: Arc<dyn Dpif>, n_ports: usize, options: Options) -> Arc<Switch> {
    let switch = Switch::new(dpif, options);
    let settings = BridgeSettings { fail_mode: FailMode::Secure, ..BridgeSettings::default() };
    switch.bridge_add("br0", settings).unwrap();
    for n in 1..=n_ports {
        switch.port_add("br0", &format!("v{n}"), PortKind::System, PortVlan::default(), None).unwrap();
    }
    Arc::new(switch)
}

/// A UDP packet from station `from` to station `to` without a checksum, `len` bytes long, at least 42.
pub(crate) fn udp(to: u8, from: u8, ports: [u16; 2], len: usize) -> Vec<u8> {
    let mut frame = vec![0x50, 0x54, 0, 0, 0, to, 0x50, 0x54, 0, 0, 0, from, 8, 0, 0x45, 0];
    frame.extend(((len - 14) as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    ports.iter().for_each(|port| frame.extend(port.to_be_bytes()));
    frame.extend(((len - 34) as u16).to_be_bytes());
    frame.resize(len, 0);
    frame
}

/// A TCP super-packet as the local stack hands it to a device: its checksum field holds the pseudo-header's sum, to be
/// completed from byte 34 on at offset 16.
pub(crate) fn tcp_super_packet(to: u8, from: u8, ports: [u16; 2], len: usize) -> Vec<u8> {
    let mut frame = udp(to, from, ports, len);
    frame[23] = 6;
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[38..54].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = frame[26..34].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend(((len - 34) as u16).to_be_bytes());
    let sum = !checksum(&pseudo);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn checksum(bytes: &[u8]) -> u16 {
    let half = |half: &[u8]| u32::from(half[0]) << 8 | u32::from(half.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(half).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
