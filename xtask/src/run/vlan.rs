//! VLANs: what is on one is heard on its access ports and, tagged, on trunks; nowhere else.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testkit::{Frame, RawSocket};

use super::{
    address::{ACCESS, v4, v6},
    lab::{Host, Lab},
    report::Report,
    traffic::{Pair, ping},
};

/// The VLAN of `access1` and `access2`, and that of `other`.
const VLANS: [u8; 2] = [10, 20];
/// How long a frame may take.
const SOON: Duration = Duration::from_secs(3);
/// How long is listened for what must not come.
const QUIET: Duration = Duration::from_millis(200);
/// An Ethernet type for experiments (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// Shows them.
pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    report.check("VLAN pair", || pair(lab))?;
    report.check("VLAN trunk", || trunk(lab))
}

/// Two access ports of a VLAN reach each other, and a third one of another VLAN hears nothing of it.
fn pair(lab: &Lab) -> Result<String> {
    let (one, two) = (&lab.access1, &lab.access2);
    let outside = RawSocket::open(&lab.other.netns, "eth0")?;
    let times = ping(&one.netns, v4(ACCESS, two.number), 10)?;
    ping(&one.netns, v6(ACCESS, two.number), 10)?;
    Pair { from: &one.netns, to: &two.netns, address: v4(ACCESS, two.number) }.transfer(8 << 20)?;
    // Nobody answers on the way from one VLAN to the other.
    let other = v4(ACCESS, lab.other.number);
    ensure!(ping(&one.netns, other, 1).is_err(), "{other} on VLAN 20 answers to a host on VLAN 10");

    let macs = [one.mac()?, two.mac()?];
    let leak = outside.recv_all(QUIET)?.into_iter().find(|frame| macs.iter().any(|mac| source(frame) == Some(mac)));
    ensure!(leak.is_none(), "a frame of VLAN 10 was heard on VLAN 20: {leak:02x?}");
    Ok(format!("ping, ping6, TCP; the other VLAN heard nothing; {times}"))
}

/// The trunk hears broadcasts tagged, and what it says with a tag is heard on that VLAN without.
fn trunk(lab: &Lab) -> Result<String> {
    let trunk = RawSocket::open(&lab.trunk.netns, "eth0")?;
    let (access, other) = (&lab.access1, &lab.other);
    for (host, vlan) in [access, other].into_iter().zip(VLANS) {
        RawSocket::open(&host.netns, "eth0")?.send(&broadcast(&host.mac()?, None))?;
        let expected = broadcast(&host.mac()?, Some(vlan));
        let heard = trunk.recv_where(SOON, |frame| frame.bytes == expected)?;
        heard.with_context(|| format!("the trunk did not hear a broadcast of VLAN {vlan} with its tag"))?;

        let socket = RawSocket::open(&host.netns, "eth0")?;
        trunk.send(&broadcast(&lab.trunk.mac()?, Some(vlan)))?;
        let expected = broadcast(&lab.trunk.mac()?, None);
        let heard = socket.recv_where(SOON, |frame| frame.bytes == expected)?;
        heard.with_context(|| format!("{} did not hear the trunk's broadcast of VLAN {vlan}, untagged", host.port))?;
    }
    // A VLAN that the trunk does not carry.
    let mac = lab.trunk.mac()?;
    let strays = [Some(30), None].map(|vlan| broadcast(&mac, vlan));
    let sockets = [access, other, &lab.one].map(|host: &Host| RawSocket::open(&host.netns, "eth0"));
    trunk.send(&broadcast(&mac, Some(30)))?;
    for socket in sockets {
        let leak = socket?.recv_where(QUIET, |frame| strays.contains(&frame.bytes))?;
        ensure!(leak.is_none(), "a frame of VLAN 30 got through a trunk of 10 and 20: {leak:02x?}");
    }
    Ok("VLAN 10 and 20 are tagged on the trunk and untagged on their access ports; VLAN 30 stays out".into())
}

/// A frame to everybody.
fn broadcast(source: &[u8; 6], vlan: Option<u8>) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(source);
    if let Some(vlan) = vlan {
        frame.extend_from_slice(&[0x81, 0, 0, vlan]);
    }
    frame.extend_from_slice(&EXPERIMENT);
    frame.extend((0..50).map(|i| i * 5));
    frame
}

fn source(frame: &Frame) -> Option<&[u8; 6]> {
    frame.bytes.get(6..12)?.try_into().ok()
}
