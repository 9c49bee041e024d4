//! A switch's surroundings: a namespace for it with the devices `p1` and `p2`, and a host at the other end of each.

use std::io;

use super::frames::{RECEIVER, SENDER};
use super::programs::Counter;
use crate::bpf::Hook;
use crate::{Netns, RawSocket, veth_pair};

/// A switch between two hosts.
pub struct Wires {
    /// Where the switch's devices are.
    pub switch: Netns,
    /// The host behind `p1`.
    pub left: Host,
    /// The host behind `p2`.
    pub right: Host,
}

/// A host, whose device is `eth0`.
pub struct Host {
    /// The host itself.
    pub netns: Netns,
    /// Its device's index.
    pub device: u32,
}

impl Wires {
    /// Sets all up; the switch's namespace gets `label` in its name.
    pub fn new(label: &str) -> io::Result<Self> {
        let switch = Netns::new(label)?;
        switch.silence()?;
        let left = Host::new(&switch, "p1", SENDER, 1)?;
        let right = Host::new(&switch, "p2", RECEIVER, 2)?;
        // A frame that an XDP program sends into a veth arrives only if its other end has GRO or a program.
        switch.exec("ethtool -K p1 gro on")?;
        switch.exec("ethtool -K p2 gro on")?;
        left.knows(2, RECEIVER)?;
        right.knows(1, SENDER)?;
        Ok(Self { switch, left, right })
    }

    /// The index of one of the switch's devices.
    pub fn port(&self, name: &str) -> io::Result<u32> {
        index_of(&self.switch, name)
    }
}

impl Host {
    fn new(switch: &Netns, port: &str, mac: [u8; 6], number: u8) -> io::Result<Self> {
        let netns = Netns::new(port)?;
        netns.silence()?;
        veth_pair(switch, port, &netns, "eth0")?;
        netns.ip(&format!("link set eth0 address {}", text(mac)))?;
        netns.ip(&format!("addr add 10.0.0.{number}/24 dev eth0"))?;
        // Its other end may be sent frames by an XDP program; this one too.
        netns.exec("ethtool -K eth0 gro on")?;
        let device = index_of(&netns, "eth0")?;
        Ok(Self { netns, device })
    }

    /// Tells the host another one's Ethernet address.
    fn knows(&self, number: u8, mac: [u8; 6]) -> io::Result<()> {
        self.netns.ip(&format!("neigh replace 10.0.0.{number} lladdr {} dev eth0 nud permanent", text(mac))).map(drop)
    }

    /// Counts and drops all that arrives, until the guard is dropped.
    pub fn count(&self, hook: Hook) -> io::Result<Counter> {
        self.netns.run(|| Counter::attach(hook, self.device))?
    }

    /// A packet socket at its device.
    pub fn socket(&self) -> io::Result<RawSocket> {
        RawSocket::open(&self.netns, "eth0")
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn index_of(netns: &Netns, device: &str) -> io::Result<u32> {
    Ok(netns.run(|| nix::net::if_::if_nametoindex(device))??)
}
