//! The network of a run: hosts in namespaces, and a namespace for the switch in which nothing else is.
//!
//! ```text
//!  one ──p1┐                    ┌v1 (tag 10)── access1
//!  two ──p2┤                    ├v2 (tag 10)── access2
//! late ──p4┤ br0 ───patch─── br1├p3─────────── three
//!          │  │                 ├v3 (tag 20)── other
//!          └──┼─(all of br0)────┴t1 (10+20)─── trunk
//!             └ the switch's own host, through the internal port br0
//! ```
//!
//! Hosts `one` and `two` have a second wire each, to a bridge of the kernel's in a namespace of its own: what the switch's
//! throughput is compared with. A host's end of a wire comes up only when the switch is ready, so that no packet is there
//! before someone can answer for it.

use anyhow::{Context as _, Result, bail};
use testkit::Netns;

use super::address;

/// A host and its wire to the switch.
pub(super) struct Host {
    /// Where it lives. Its device is `eth0`.
    pub(super) netns: Netns,
    /// The switch's end of its wire, the port.
    pub(super) port: &'static str,
    /// Its number in its network.
    pub(super) number: u8,
    /// Its network.
    network: u8,
}

/// All namespaces; gone when dropped.
pub(super) struct Lab {
    /// The switch's namespace.
    pub(super) switch: Netns,
    /// The kernel's bridge, if this kernel has one.
    pub(super) bridge: Result<Netns>,
    pub(super) one: Host,
    pub(super) two: Host,
    /// Behind the second bridge.
    pub(super) three: Host,
    /// Whom nobody has talked to yet.
    pub(super) late: Host,
    pub(super) access1: Host,
    pub(super) access2: Host,
    /// On another VLAN.
    pub(super) other: Host,
    pub(super) trunk: Host,
}

/// The number of the switch's own host.
pub(super) const SWITCH: u8 = 100;

impl Lab {
    /// Makes the namespaces and wires; the hosts' ends are down.
    pub(super) fn new() -> Result<Self> {
        let switch = Netns::new("sw")?;
        // What the kernel says by itself on the ports' devices would go past the switch.
        switch.silence()?;
        // Each of its devices answers for its own addresses only: br1 must not speak for br0.
        switch.sysctl("ipv4/conf/all/arp_ignore", "1")?;
        let host = |label, port, network, number| Host::new(&switch, label, port, network, number);
        let (one, two) = (host("one", "p1", address::SWITCHED, 1)?, host("two", "p2", address::SWITCHED, 2)?);
        let bridge = kernel_bridge([&one, &two]);
        Ok(Self {
            bridge,
            three: host("three", "p3", address::SWITCHED, 3)?,
            late: host("late", "p4", address::SWITCHED, 4)?,
            access1: host("access1", "v1", address::ACCESS, 1)?,
            access2: host("access2", "v2", address::ACCESS, 2)?,
            other: host("other", "v3", address::ACCESS, 3)?,
            trunk: host("trunk", "t1", address::ACCESS, 4)?,
            one,
            two,
            switch,
        })
    }

    /// The hosts behind the switch.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.one, &self.two, &self.three, &self.late, &self.access1, &self.access2, &self.other, &self.trunk]
            .into_iter()
    }

    /// What the daemon is told of it.
    pub(super) fn switch_options(&self) -> Vec<String> {
        let words = "--bridge br0 --bridge br1 --port br0:p1 --port br0:p2 --port br0:p4 --port br0:v1,tag=10 \
                     --port br0:v2,tag=10 --port br0:v3,tag=20 --port br0:t1,trunks=10+20 \
                     --port br0:to-br1,type=patch,peer=to-br0 --port br1:to-br0,type=patch,peer=to-br1 --port br1:p3";
        words.split_whitespace().map(String::from).collect()
    }

    /// Brings the hosts up, once the switch runs, the switch's own host included.
    pub(super) fn connect(&self) -> Result<()> {
        for host in self.hosts() {
            host.netns.ip("link set eth0 up")?;
            give_addresses(&host.netns, "eth0", host.network, host.number)?;
        }
        self.switch.sysctl("ipv6/conf/br0/disable_ipv6", "0")?;
        give_addresses(&self.switch, "br0", address::SWITCHED, SWITCH)
    }
}

impl Host {
    fn new(switch: &Netns, label: &str, port: &'static str, network: u8, number: u8) -> Result<Self> {
        let netns = Netns::new(label)?;
        wire(switch, port, &netns, "eth0")?;
        Ok(Self { netns, port, number, network })
    }

    /// The Ethernet address of its device.
    pub(super) fn mac(&self) -> Result<[u8; 6]> {
        let json: serde_json::Value = serde_json::from_str(&self.netns.ip("-j link show dev eth0")?)?;
        let text = json[0]["address"].as_str().context("`ip` shows no address")?;
        let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        match bytes.try_into() {
            Ok(mac) => Ok(mac),
            Err(_) => bail!("{text:?} is no Ethernet address"),
        }
    }
}

/// Connects two namespaces; `device`'s end stays down.
fn wire(switch: &Netns, port: &str, host: &Netns, device: &str) -> Result<()> {
    switch.ip(&format!("link add {port} type veth peer name {device} netns {}", host.name()))?;
    switch.ip(&format!("link set {port} up"))?;
    Ok(())
}

/// The addresses are there at once: nobody else has them.
fn give_addresses(netns: &Netns, device: &str, network: u8, host: u8) -> Result<()> {
    let [v4, v6] = address::both(network, host);
    netns.ip(&format!("addr add {v4}/24 dev {device}"))?;
    netns.ip(&format!("addr add {v6}/64 dev {device} nodad"))?;
    Ok(())
}

/// A bridge of the kernel's between second wires of two hosts.
fn kernel_bridge(hosts: [&Host; 2]) -> Result<Netns> {
    let netns = Netns::new("bridge")?;
    netns.silence()?;
    netns.ip("link add name bridge0 type bridge").context("this kernel has no bridge to compare with")?;
    netns.ip("link set bridge0 up")?;
    for host in hosts {
        wire(&netns, host.port, &host.netns, "eth1")?;
        netns.ip(&format!("link set {} master bridge0", host.port))?;
        host.netns.ip("link set eth1 up")?;
        give_addresses(&host.netns, "eth1", address::BRIDGED, host.number)?;
    }
    Ok(netns)
}
