//! The kernel's packet generator, which hands packets to a device as if they had been received there, or sends them by one.

use std::fs;
use std::io::{Error, Result};

use testkit::Netns;

use crate::sender::{IN, NEIGHBOUR, Wires};
use crate::table::{ETH_DST, ETH_SRC, FIRST_MASK, FIRST_PORT, FORWARD, FORWARD_XDP, IP_SRC, LEN, MASKS, UDP_DST};

/// The folder of the calling thread's namespace.
const FOLDER: &str = "/proc/thread-self/net/pktgen";
/// What stands in the generator's file when it has sent.
const OK: &str = "Result: OK:";

/// Which packets.
#[derive(Clone, Copy)]
pub(crate) enum Packets {
    /// All of one flow.
    Forward,
    /// Likewise, sent by the neighbour one at a time, so that the XDP hook of the switch's device meets them.
    ForwardXdp,
    /// Likewise, in bursts, as cards hand packets over.
    BurstsXdp,
    /// Of so many flows, as many behind each mask, in turn.
    Masks {
        /// A multiple of [`MASKS`].
        flows: u16,
    },
}

impl Packets {
    /// Whether they are for the XDP hook.
    pub(crate) fn are_for_xdp(self) -> bool {
        matches!(self, Self::ForwardXdp | Self::BurstsXdp)
    }

    /// Whose device it is, and which.
    fn at(self, wires: &Wires) -> (&Netns, &'static str) {
        match self {
            Self::ForwardXdp | Self::BurstsXdp => (&wires.neighbour, NEIGHBOUR),
            Self::Forward | Self::Masks { .. } => (&wires.switch, IN),
        }
    }
}

/// Makes the generator ready; whether each packet is one that nobody else holds, as a card's would be.
///
/// Before Linux 6.7 the generator keeps a hand on its packets, and who wants to change one must copy it.
pub(crate) fn set_up(wires: &Wires) -> Result<bool> {
    let received = set_up_device(Packets::Forward.at(wires), "netif_receive")?;
    let sent = set_up_device(Packets::ForwardXdp.at(wires), "start_xmit")?;
    Ok(received && sent)
}

fn set_up_device((netns, device): (&Netns, &str), mode: &str) -> Result<bool> {
    netns.run(|| {
        write("kpktgend_0", "rem_device_all")?;
        write("kpktgend_0", &format!("add_device {device}"))?;
        write(device, &format!("xmit_mode {mode}"))?;
        let own = write(device, "flag !SHARED").is_ok();
        let [a, b, c, d] = IP_SRC;
        let source = format!("{a}.{b}.{c}.{d}");
        for line in [
            format!("pkt_size {LEN}"),
            format!("src_mac {ETH_SRC}"),
            format!("dst_mac {ETH_DST}"),
            format!("src_min {source}"),
            format!("src_max {source}"),
            format!("udp_dst_min {UDP_DST}"),
            format!("udp_dst_max {UDP_DST}"),
            "delay 0".into(),
        ] {
            write(device, &line)?;
        }
        Ok(own)
    })?
}

/// Sends so many packets and returns when all have been received.
pub(crate) fn send(wires: &Wires, packets: Packets, count: u32) -> Result<()> {
    if matches!(packets, Packets::BurstsXdp) {
        return wires.send_bursts(count);
    }
    let (netns, device) = packets.at(wires);
    // Ports are sent from the first to the one before the last, addresses from the first to the last; both begin with the second.
    let (first, last, ports) = match packets {
        Packets::Forward => (FORWARD, FORWARD, (FIRST_PORT, FIRST_PORT)),
        Packets::ForwardXdp | Packets::BurstsXdp => (FORWARD_XDP, FORWARD_XDP, (FIRST_PORT, FIRST_PORT)),
        Packets::Masks { flows } => {
            let [a, b, c, _] = FIRST_MASK;
            (FIRST_MASK, [a, b, c, MASKS as u8 - 1], (FIRST_PORT, FIRST_PORT + flows))
        }
    };
    let text = |address: [u8; 4]| address.map(|byte| byte.to_string()).join(".");
    netns.run(|| {
        for line in [
            format!("count {count}"),
            format!("dst_min {}", text(first)),
            format!("dst_max {}", text(last)),
            format!("udp_src_min {}", ports.0),
            format!("udp_src_max {}", ports.1),
        ] {
            write(device, &line)?;
        }
        write("pgctrl", "start")?;
        let state = fs::read_to_string(format!("{FOLDER}/{device}"))?;
        if state.lines().any(|line| line.starts_with(OK)) && state.contains(&format!("pkts-sofar: {count} ")) {
            return Ok(());
        }
        Err(Error::other(format!("the packet generator did not send {count} packets: {state}")))
    })?
}

fn write(file: &str, line: &str) -> Result<()> {
    let path = format!("{FOLDER}/{file}");
    fs::write(&path, format!("{line}\n")).map_err(|error| Error::new(error.kind(), format!("{path}: {line}: {error}")))
}
