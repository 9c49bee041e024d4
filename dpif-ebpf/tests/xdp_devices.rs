//! The XDP hook and what devices do: frames that are too long for it, and changes under a port that has it.

mod common;

use common::*;
use dpif::{Dpif, DpifError, OdpPort, XdpMode, XdpState};
use dpif_ebpf::EbpfDpif;
use testkit::{Netns, RawSocket, wait_until};

const P1: OdpPort = OdpPort(1);
const P2: OdpPort = OdpPort(2);

/// Two ports with the hook in this mode, each of which sends its frames to the other one.
fn hooked(host: &Host, mode: XdpMode) -> (EbpfDpif, Neighbour, Neighbour) {
    let (dpif, left, right) = two_ports(host);
    for neighbour in [&left, &right] {
        takes_redirected(neighbour, true);
    }
    for (port, to) in [(P1, P2), (P2, P1)] {
        dpif.port_set_xdp(port, mode).unwrap();
        dpif.flow_put(&flow_of_port(port, vec![output(to)])).unwrap();
    }
    // Now that both take redirected frames each says so.
    dpif.port_set_xdp(P1, mode).unwrap();
    (dpif, left, right)
}

/// Sets the MTU of both ends of a neighbour's wire.
fn set_mtu(host: &Host, device: &str, neighbour: &Neighbour, mtu: u32) {
    neighbour.netns.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
    host.netns.ip(&format!("link set {device} mtu {mtu}")).unwrap();
}

fn drops(dpif: &EbpfDpif) -> Vec<(&'static str, u64)> {
    dpif.stats().unwrap().drops.into_iter().filter(|drop| drop.1 != 0).collect()
}

#[test]
fn a_jumbo_frame_passes_the_generic_hook_whole() {
    testkit::require_root_and_bpf!("a_jumbo_frame_passes_the_generic_hook_whole");
    let host = Host::new("jumbo");
    let (dpif, left, right) = hooked(&host, XdpMode::Generic);
    set_mtu(&host, "left", &left, 9000);
    set_mtu(&host, "right", &right, 9000);
    assert!(wait_until(SOON, || dpif.ports().unwrap().iter().all(|port| port.mtu == 9000)));
    // The longest is in several pages: more than a frame of the driver's hook has.
    for len in [60, 1514, 3000, 5000, 9014] {
        left.socket.send(&udp(len, 7)).unwrap();
        assert_eq!(right.recv().unwrap(), udp(len, 7), "{len}");
        right.socket.send(&udp(len, 9)).unwrap();
        assert_eq!(left.recv().unwrap(), udp(len, 9), "{len}");
    }
    let stats = dpif.stats().unwrap();
    assert_eq!((stats.hit, stats.missed, drops(&dpif)), (10, 0, vec![]));
    assert_eq!(dpif.port_stats(P2).unwrap().tx_bytes, 60 + 1514 + 3000 + 5000 + 9014);
    dpif.destroy().unwrap();
}

#[test]
fn jumbo_frames_go_by_the_tc_hook_where_the_driver_refuses_the_other() {
    testkit::require_root_and_bpf!("jumbo_frames_go_by_the_tc_hook_where_the_driver_refuses_the_other");
    let host = Host::new("jumbo-native");
    let (dpif, left, right) = hooked(&host, XdpMode::Off);
    set_mtu(&host, "left", &left, 9000);
    set_mtu(&host, "right", &right, 9000);
    assert!(wait_until(SOON, || dpif.ports().unwrap().iter().all(|port| port.mtu == 9000)));
    let error = dpif.port_set_xdp(P1, XdpMode::Native).unwrap_err();
    assert!(matches!(&error, DpifError::Invalid(text) if text.contains("an MTU of 9000 is too large")), "{error}");
    assert!(matches!(dpif.port_xdp(P1).unwrap(), XdpState::Off(_)));
    for len in [60, 3000, 9014] {
        left.socket.send(&udp(len, 7)).unwrap();
        assert_eq!(right.recv().unwrap(), udp(len, 7), "{len}");
    }
    // With an MTU that fits it can be had.
    set_mtu(&host, "right", &right, 1500);
    set_mtu(&host, "left", &left, 1500);
    assert_eq!(dpif.port_set_xdp(P1, XdpMode::Native).unwrap(), XdpState::Native);
    dpif.destroy().unwrap();
}

#[test]
fn an_mtu_that_changes_under_the_hook_holds_there_too() {
    testkit::require_root_and_bpf!("an_mtu_that_changes_under_the_hook_holds_there_too");
    let host = Host::new("xdp-mtu");
    let (dpif, left, right) = hooked(&host, XdpMode::Native);
    host.netns.ip("link set right mtu 600").unwrap();
    assert!(wait_until(SOON, || dpif.ports().unwrap().iter().any(|port| port.mtu == 600)));
    assert_eq!(dpif.port_xdp(P2).unwrap(), XdpState::Native);
    for len in [614, 615, 1514] {
        left.socket.send(&udp(len, 7)).unwrap();
    }
    assert_eq!(right.recv().unwrap(), udp(614, 7));
    right.assert_quiet();
    assert_eq!((drops(&dpif), dpif.port_stats(P2).unwrap().tx_dropped), (vec![("mtu", 2)], 2));
    host.netns.ip("link set right mtu 1500").unwrap();
    assert!(wait_until(SOON, || dpif.ports().unwrap().iter().all(|port| port.mtu == 1500)));
    left.socket.send(&udp(1514, 7)).unwrap();
    assert_eq!(right.recv().unwrap(), udp(1514, 7));
    assert_eq!(dpif.port_stats(P1).unwrap().rx_packets, 4);
    dpif.destroy().unwrap();
}

#[test]
fn a_device_that_is_moved_to_another_namespace_loses_the_hook() {
    testkit::require_root_and_bpf!("a_device_that_is_moved_to_another_namespace_loses_the_hook");
    let host = Host::new("xdp-moved");
    let (dpif, left, right) = hooked(&host, XdpMode::Native);
    let elsewhere = Netns::new("elsewhere").unwrap();
    elsewhere.silence().unwrap();
    host.netns.ip(&format!("link set right netns {}", elsewhere.name())).unwrap();
    assert!(wait_until(SOON, || dpif.ports().unwrap().iter().any(|port| port.error.is_some())));
    elsewhere.ip("link set right up").unwrap();
    let text = elsewhere.ip("-d link show dev right").unwrap();
    assert!(!text.contains("xdp"), "{text}");
    // Nothing of it runs the datapath any more, and nothing goes there.
    let tap = RawSocket::open(&elsewhere, "right").unwrap();
    right.socket.send(&udp(60, 9)).unwrap();
    assert_eq!(tap.recv(SOON).unwrap().map(|frame| frame.bytes), Some(udp(60, 9)));
    left.assert_quiet();
    left.socket.send(&udp(60, 7)).unwrap();
    right.assert_quiet();
    let (stats, of_port) = (dpif.stats().unwrap(), dpif.port_stats(P1).unwrap());
    assert_eq!((stats.hit, stats.missed, of_port.rx_packets), (1, 0, 1));
    assert_eq!(drops(&dpif), [("no-port", 1)]);
    let error = dpif.port_set_xdp(P2, XdpMode::Native).unwrap_err();
    assert!(error.to_string().contains("right was moved to another network namespace"), "{error}");
    dpif.destroy().unwrap();
    host.assert_no_pins();
}

/// As a driver that is loaded anew does: the device is deleted, and another one has its name.
#[test]
fn a_device_that_comes_back_under_its_name_can_be_a_port_with_the_hook_again() {
    testkit::require_root_and_bpf!("a_device_that_comes_back_under_its_name_can_be_a_port_with_the_hook_again");
    let host = Host::new("xdp-reload");
    let (dpif, left, right) = hooked(&host, XdpMode::Native);
    drop(right);
    // The other end has gone with its namespace.
    assert!(wait_until(SOON, || dpif.ports().unwrap().iter().any(|port| port.error.is_some())));
    left.socket.send(&udp(60, 7)).unwrap();
    assert!(wait_until(SOON, || drops(&dpif) == [("no-port", 1)]));
    let right = host.neighbour("right");
    takes_redirected(&right, true);
    let error = dpif.port_set_xdp(P2, XdpMode::Native).unwrap_err();
    assert!(error.to_string().contains("right was deleted"), "{error}");
    dpif.port_del(P2).unwrap();
    let again = dpif.port_add(&system("right")).unwrap();
    assert_eq!(dpif.port_set_xdp(again, XdpMode::Native).unwrap(), XdpState::Native);
    dpif.flow_put(&flow_of_port(P1, vec![output(again)])).unwrap();
    let tap = RawSocket::open(&host.netns, "left").unwrap();
    left.socket.send(&udp(60, 8)).unwrap();
    assert_eq!(right.recv().unwrap(), udp(60, 8));
    assert_eq!(tap.recv(QUIET).unwrap().is_none(), kernel_knows());
    dpif.destroy().unwrap();
    host.assert_no_pins();
}
