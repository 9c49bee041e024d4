//! A switch's surroundings: a namespace for it with the devices `p1` and `p2`, and a host at the other end of each.

use std::io;

use testkit::{Netns, RawSocket, veth_pair};

use crate::frames::{RECEIVER, SENDER};
use crate::programs::{Attached, COUNTED, Hook, Memory, Program};

pub(crate) struct Wires {
    pub(crate) switch: Netns,
    pub(crate) left: Host,
    pub(crate) right: Host,
}

/// A host, whose device is `eth0`.
pub(crate) struct Host {
    pub(crate) netns: Netns,
    pub(crate) device: u32,
}

impl Wires {
    pub(crate) fn new(label: &str) -> io::Result<Self> {
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
    pub(crate) fn port(&self, name: &str) -> io::Result<u32> {
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
    pub(crate) fn count(&self, hook: Hook) -> io::Result<Counter> {
        let memory = Memory::new(&[0; COUNTED])?;
        let program = Program::count(hook, &memory)?;
        let attached = self.netns.run(|| program.attach(self.device))??;
        Ok(Counter { memory, _attached: attached })
    }

    pub(crate) fn socket(&self) -> io::Result<RawSocket> {
        RawSocket::open(&self.netns, "eth0")
    }
}

/// Counts what arrives at a host.
pub(crate) struct Counter {
    memory: Memory,
    _attached: Attached,
}

impl Counter {
    /// Begins anew.
    pub(crate) fn reset(&self) -> io::Result<()> {
        self.memory.write(&[0; COUNTED])
    }

    /// Frames so far.
    pub(crate) fn frames(&self) -> io::Result<u64> {
        Ok(self.memory.read()?.first().copied().unwrap_or_default())
    }

    /// Frames per second, from the first to the last whose time was taken; 0 where there were too few to say.
    pub(crate) fn rate(&self) -> io::Result<f64> {
        match self.memory.read()?.as_slice() {
            [_, first_ns, first, last_ns, last] if last_ns > first_ns => {
                Ok((last - first) as f64 * 1e9 / (last_ns - first_ns) as f64)
            }
            _ => Ok(0.0),
        }
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn index_of(netns: &Netns, device: &str) -> io::Result<u32> {
    Ok(netns.run(|| nix::net::if_::if_nametoindex(device))??)
}
