//! Frames for several ports in the XDP hook: flooded there where all ports take them, else left to the TC hook.

mod common;

use std::time::{Duration, Instant};

use common::*;
use dpif::{Dpif, OdpPort, XdpMode, XdpState};
use dpif_ebpf::EbpfDpif;
use testkit::RawSocket;

const P1: OdpPort = OdpPort(1);
const P2: OdpPort = OdpPort(2);
const P3: OdpPort = OdpPort(3);

/// A datapath with the XDP hook at each of three ports, whose flows send everything to the two others.
struct Hub {
    neighbours: Vec<Neighbour>,
    dpif: EbpfDpif,
    /// What the host sees of the first port's frames, which is what the hook doesn't finish.
    tap: RawSocket,
    sent: usize,
    host: Host,
}

impl Hub {
    fn new(label: &str) -> Self {
        let host = Host::new(label);
        let neighbours = ["left", "right", "third"].map(|device| host.neighbour(device)).into();
        let (dpif, tap) = (host.open(), RawSocket::open(&host.netns, "left").expect("a raw socket"));
        let hub = Self { neighbours, dpif, tap, sent: 0, host };
        hub.neighbours.iter().for_each(|neighbour| takes_redirected(neighbour, true));
        for device in ["left", "right", "third"] {
            let port = hub.dpif.port_add(&system(device)).unwrap();
            assert_eq!(hub.dpif.port_set_xdp(port, XdpMode::Native).unwrap(), XdpState::Native);
        }
        for (from, to) in [(P1, [P2, P3]), (P2, [P3, P1]), (P3, [P1, P2])] {
            hub.dpif.flow_put(&flow_of_port(from, to.map(output).into())).unwrap();
        }
        hub
    }

    /// Sends a frame from one neighbour, which all others get once, as it is, and who has sent it doesn't. Whether the hook did it.
    fn flood(&mut self, from: usize, len: usize) -> bool {
        let frame = udp(len, 7);
        self.sent += 1;
        self.neighbours[from].socket.send(&frame).unwrap();
        for (_, to) in self.neighbours.iter().enumerate().filter(|(number, _)| *number != from) {
            assert_eq!(to.recv().as_ref(), Some(&frame), "{len} bytes from {from}");
        }
        let seen = self.tap.recv(Duration::ZERO).expect("to receive").is_some();
        while self.tap.recv(Duration::ZERO).expect("to receive").is_some() {}
        from == 0 && !seen
    }

    /// Waits until the hook floods, or for as long as that takes to be sure that it doesn't.
    fn is_flooding(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            if self.flood(0, 100) {
                return true;
            }
        }
        false
    }

    fn assert_quiet(&self) {
        self.neighbours.iter().for_each(|neighbour| neighbour.assert_quiet());
    }
}

#[test]
fn a_frame_for_several_ports_is_flooded_in_the_hook_and_counted_once() {
    testkit::require_root_and_bpf!("a_frame_for_several_ports_is_flooded_in_the_hook_and_counted_once");
    let mut hub = Hub::new("flood");
    assert_eq!(hub.is_flooding(), kernel_knows());
    for len in [60, 400, 1514] {
        assert_eq!(hub.flood(0, len), kernel_knows(), "{len}");
        hub.flood(1, len);
        hub.flood(2, len);
    }
    hub.assert_quiet();
    let stats = hub.dpif.stats().unwrap();
    let sent = hub.sent as u64;
    assert_eq!((stats.hit, stats.missed, stats.drops.iter().map(|drop| drop.1).sum::<u64>()), (sent, 0, 0));
    let ports = [P1, P2, P3].map(|port| hub.dpif.port_stats(port).unwrap());
    assert_eq!(ports.map(|port| (port.rx_packets, port.tx_packets)), [(sent - 6, 6), (3, sent - 3), (3, sent - 3)]);
    assert_eq!(ports[1].tx_bytes, (sent - 9) * 100 + 2 * (60 + 400 + 1514));
    hub.dpif.destroy().unwrap();
}

/// A frame that were flooded to such a port would vanish there without a word.
#[test]
fn a_port_that_takes_no_redirected_frames_gets_those_for_several_all_the_same() {
    testkit::require_root_and_bpf!("a_port_that_takes_no_redirected_frames_gets_those_for_several_all_the_same");
    let mut hub = Hub::new("flood-peer");
    assert_eq!(hub.is_flooding(), kernel_knows());
    takes_redirected(&hub.neighbours[2], false);
    // The choice of a mode looks at the device again.
    hub.dpif.port_set_xdp(P3, XdpMode::Off).unwrap();
    assert!(!hub.is_flooding());
    takes_redirected(&hub.neighbours[2], true);
    hub.dpif.port_set_xdp(P3, XdpMode::Off).unwrap();
    assert_eq!(hub.is_flooding(), kernel_knows());
    hub.assert_quiet();
    hub.dpif.destroy().unwrap();
}

#[test]
fn a_frame_that_is_too_long_for_one_port_is_not_flooded() {
    testkit::require_root_and_bpf!("a_frame_that_is_too_long_for_one_port_is_not_flooded");
    let mut hub = Hub::new("flood-mtu");
    assert_eq!(hub.is_flooding(), kernel_knows());
    hub.host.netns.ip("link set third mtu 600").unwrap();
    assert!(testkit::wait_until(SOON, || hub.dpif.ports().unwrap().iter().any(|port| port.mtu == 600)));
    assert_eq!(hub.is_flooding(), kernel_knows());
    hub.neighbours[0].socket.send(&udp(614, 7)).unwrap();
    assert_eq!((hub.neighbours[1].recv(), hub.neighbours[2].recv()), (Some(udp(614, 7)), Some(udp(614, 7))));
    hub.neighbours[0].socket.send(&udp(615, 7)).unwrap();
    assert_eq!(hub.neighbours[1].recv(), Some(udp(615, 7)));
    hub.assert_quiet();
    assert_eq!(hub.dpif.port_stats(P3).unwrap().tx_dropped, 1);
    hub.dpif.destroy().unwrap();
}

#[test]
fn flooding_ends_with_a_port_and_goes_on_after_a_restart() {
    testkit::require_root_and_bpf!("flooding_ends_with_a_port_and_goes_on_after_a_restart");
    let mut hub = Hub::new("flood-adopt");
    assert_eq!(hub.is_flooding(), kernel_knows());
    // The next process has its own groups, under the same flows.
    let Hub { neighbours, dpif, tap, sent, host } = hub;
    drop(dpif);
    let dpif = host.open();
    assert!(dpif.was_adopted());
    hub = Hub { neighbours, dpif, tap, sent, host };
    assert_eq!(hub.is_flooding(), kernel_knows());
    // A flow that changes its ports is in another group.
    hub.dpif.flow_put(&flow_of_port(P1, vec![output(P2)])).unwrap();
    hub.neighbours[0].socket.send(&udp(100, 7)).unwrap();
    assert_eq!(hub.neighbours[1].recv(), Some(udp(100, 7)));
    hub.assert_quiet();
    hub.dpif.flow_put(&flow_of_port(P1, vec![output(P3), output(P2)])).unwrap();
    assert_eq!(hub.is_flooding(), kernel_knows());
    // What is left of a group whose port is gone gets its frames.
    hub.dpif.port_del(P3).unwrap();
    for _ in 0..20 {
        hub.neighbours[0].socket.send(&udp(100, 7)).unwrap();
        assert_eq!(hub.neighbours[1].recv(), Some(udp(100, 7)));
    }
    hub.assert_quiet();
    assert_eq!(hub.dpif.stats().unwrap().drops.iter().map(|drop| drop.1).sum::<u64>(), 20);
    hub.dpif.destroy().unwrap();
}
