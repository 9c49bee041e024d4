//! The XDP hook at ports: what comes through it on real wires, and where it can't be had.

mod common;

use std::time::Duration;

use common::*;
use dpif::{Dpif, DpifError, OdpPort, UpcallBatch, XdpMode, XdpState};
use dpif_ebpf::EbpfDpif;
use testkit::RawSocket;

const P1: OdpPort = OdpPort(1);
const P2: OdpPort = OdpPort(2);

/// Sends frames from left to right, and says whether the host has seen them: it doesn't where the hook finishes them.
fn seen_on_their_way(host: &Host, left: &Neighbour, right: &Neighbour) -> bool {
    let tap = RawSocket::open(&host.netns, "left").expect("a raw socket");
    for len in [60, 400, 1514] {
        left.socket.send(&udp(len, 7)).unwrap();
        assert_eq!(right.recv().unwrap(), udp(len, 7));
    }
    tap.recv(QUIET).expect("to receive").is_some()
}

#[test]
fn a_port_forwards_in_each_mode_and_counts_once() {
    testkit::require_root_and_bpf!("a_port_forwards_in_each_mode_and_counts_once");
    let host = Host::new("xdp-modes");
    let (left, right) = (host.neighbour("left"), host.neighbour("right"));
    takes_redirected(&right, true);
    let dpif = host.open();
    dpif.port_add(&system("left")).unwrap();
    dpif.port_add(&system("right")).unwrap();
    assert!(matches!(dpif.port_xdp(P1).unwrap(), XdpState::Off(why) if why.starts_with("auto: ")));
    let put = flow_of_port(P1, vec![output(P2)]);
    dpif.flow_put(&put).unwrap();
    let modes = [XdpMode::Off, XdpMode::Generic, XdpMode::Native, XdpMode::Off, XdpMode::Native, XdpMode::Auto];
    for (i, mode) in modes.into_iter().enumerate() {
        let state = dpif.port_set_xdp(P1, mode).unwrap();
        let expected = [XdpMode::Native, XdpMode::Generic].contains(&mode);
        assert_eq!(matches!(state, XdpState::Native | XdpState::Generic), expected, "{mode}: {state}");
        assert_eq!(dpif.port_xdp(P1).unwrap(), state);
        assert_eq!(seen_on_their_way(&host, &left, &right), !(expected && kernel_knows()), "{mode}");
        let packets = 3 * (i as u64 + 1);
        let (flow, one, two) =
            (dpif.flow_get(put.ufid).unwrap().stats, dpif.port_stats(P1).unwrap(), dpif.port_stats(P2).unwrap());
        assert_eq!((flow.packets, one.rx_packets, two.tx_packets), (packets, packets, packets), "{mode}");
        assert_eq!(
            (flow.bytes, one.rx_bytes, two.tx_bytes),
            (1974 / 3 * packets, 1974 / 3 * packets, 1974 / 3 * packets)
        );
        assert_eq!((dpif.stats().unwrap().hit, dpif.stats().unwrap().missed), (packets, 0));
    }
    right.assert_quiet();
    dpif.destroy().unwrap();
    drop(dpif);
    host.assert_no_pins();
}

#[test]
fn a_miss_passes_the_hook_untouched_and_goes_up_once() {
    testkit::require_root_and_bpf!("a_miss_passes_the_hook_untouched_and_goes_up_once");
    let host = Host::new("xdp-miss");
    let (dpif, left, _right) = two_ports(&host);
    dpif.handlers_set(1).unwrap();
    assert_eq!(dpif.port_set_xdp(P1, XdpMode::Native).unwrap(), XdpState::Native);
    let mut batch = UpcallBatch::default();
    for len in [60, 1514] {
        left.socket.send(&udp(len, 7)).unwrap();
        assert_eq!(wait_for_upcalls(&dpif, &mut batch), 1);
        assert_eq!(batch.upcalls()[0].packet.data, udp(len, 7));
    }
    let stats = dpif.stats().unwrap();
    assert_eq!((stats.hit, stats.missed, stats.lost), (0, 2, 0));
    assert_eq!(dpif.port_stats(P1).unwrap().rx_packets, 2);
    dpif.destroy().unwrap();
}

/// Frames that were redirected to a device whose other end doesn't take them would vanish without a word.
#[test]
fn a_device_that_takes_no_redirected_frames_gets_them_all_the_same() {
    testkit::require_root_and_bpf!("a_device_that_takes_no_redirected_frames_gets_them_all_the_same");
    let host = Host::new("xdp-peer");
    let (left, right) = (host.neighbour("left"), host.neighbour("right"));
    takes_redirected(&right, false);
    let dpif = host.open();
    dpif.port_add(&system("left")).unwrap();
    dpif.port_add(&system("right")).unwrap();
    dpif.flow_put(&flow_of_port(P1, vec![output(P2)])).unwrap();
    assert_eq!(dpif.port_set_xdp(P1, XdpMode::Native).unwrap(), XdpState::Native);
    assert!(seen_on_their_way(&host, &left, &right));
    // The choice of a mode looks at the device again.
    takes_redirected(&right, true);
    dpif.port_set_xdp(P2, XdpMode::Off).unwrap();
    assert_eq!(seen_on_their_way(&host, &left, &right), !kernel_knows());
    dpif.destroy().unwrap();
}

#[test]
fn the_hook_outlives_the_process_and_is_adopted() {
    testkit::require_root_and_bpf!("the_hook_outlives_the_process_and_is_adopted");
    let host = Host::new("xdp-adopt");
    let (left, right) = (host.neighbour("left"), host.neighbour("right"));
    takes_redirected(&right, true);
    let dpif = host.open();
    dpif.port_add(&system("left")).unwrap();
    dpif.port_add(&system("right")).unwrap();
    dpif.flow_put(&flow_of_port(P1, vec![output(P2)])).unwrap();
    dpif.port_set_xdp(P1, XdpMode::Native).unwrap();
    drop(dpif);
    assert_eq!(seen_on_their_way(&host, &left, &right), !kernel_knows());
    let dpif = host.open();
    assert!(dpif.was_adopted());
    assert_eq!(dpif.port_xdp(P1).unwrap(), XdpState::Native);
    assert_eq!(seen_on_their_way(&host, &left, &right), !kernel_knows());
    // A port that goes takes its hook along.
    dpif.port_del(P1).unwrap();
    assert!(!host.shows("left", "xdp"));
    dpif.destroy().unwrap();
}

#[test]
fn receive_vlan_offload_is_off_as_long_as_the_hook_is_there() {
    testkit::require_root_and_bpf!("receive_vlan_offload_is_off_as_long_as_the_hook_is_there");
    let host = Host::new("xdp-vlan");
    let (dpif, _left, _right) = two_ports(&host);
    let offload = || {
        let text = host.netns.exec("ethtool -k left").expect("the features");
        text.lines().find(|line| line.starts_with("rx-vlan-offload:")).expect("the feature").contains(": on")
    };
    assert!(offload());
    for mode in [XdpMode::Native, XdpMode::Generic] {
        dpif.port_set_xdp(P1, mode).unwrap();
        assert!(!offload());
        dpif.port_set_xdp(P1, XdpMode::Off).unwrap();
        assert!(offload());
    }
    dpif.port_set_xdp(P1, XdpMode::Native).unwrap();
    dpif.port_del(P1).unwrap();
    assert!(offload(), "a port that goes gives its device back");
    dpif.destroy().unwrap();
}

/// Refused: the error and the port say why.
fn refused(dpif: &EbpfDpif, port: OdpPort, mode: XdpMode, part: &str) -> DpifError {
    let error = dpif.port_set_xdp(port, mode).expect_err("a refusal");
    assert!(error.to_string().contains(part), "{error}");
    assert!(matches!(dpif.port_xdp(port).unwrap(), XdpState::Off(_)));
    error
}

#[test]
fn a_driver_without_xdp_is_named() {
    testkit::require_root_and_bpf!("a_driver_without_xdp_is_named");
    let host = Host::new("xdp-none");
    let (dpif, _left, _right) = two_ports(&host);
    host.netns.ip("link add soft type bridge").unwrap();
    let soft = dpif.port_add(&system("soft")).unwrap();
    assert!(matches!(refused(&dpif, soft, XdpMode::Native, "soft"), DpifError::Unsupported(..)));
    // The generic hook needs none.
    assert_eq!(dpif.port_set_xdp(soft, XdpMode::Generic).unwrap(), XdpState::Generic);
    dpif.destroy().unwrap();
}

#[test]
fn an_mtu_that_is_too_large_for_the_driver_is_said() {
    testkit::require_root_and_bpf!("an_mtu_that_is_too_large_for_the_driver_is_said");
    let host = Host::new("xdp-large");
    let (dpif, left, right) = two_ports(&host);
    left.netns.ip("link set eth0 mtu 9000").unwrap();
    assert!(matches!(refused(&dpif, P1, XdpMode::Native, "MTU"), DpifError::Invalid(_)));
    // What was refused leaves a port that works.
    dpif.flow_put(&flow_of_port(P1, vec![output(P2)])).unwrap();
    left.socket.send(&udp(100, 7)).unwrap();
    assert_eq!(right.recv().unwrap(), udp(100, 7));
    dpif.destroy().unwrap();
}

#[test]
fn a_program_of_somebody_else_stays_where_it_is() {
    testkit::require_root_and_bpf!("a_program_of_somebody_else_stays_where_it_is");
    let host = Host::new("xdp-taken");
    let (dpif, _left, _right) = two_ports(&host);
    let object = std::fs::read(testkit::workspace_root().join("target/bpf/port-entry.o")).unwrap();
    let mut other = aya::Ebpf::load(&object).unwrap();
    let program: &mut aya::programs::Xdp = other.program_mut("sluice_xdp_port").unwrap().try_into().unwrap();
    program.load().unwrap();
    host.run(|| program.attach("right", aya::programs::xdp::XdpMode::Driver).map(drop)).unwrap();
    for mode in [XdpMode::Native, XdpMode::Generic] {
        assert!(matches!(refused(&dpif, P2, mode, "someone else's"), DpifError::Exists(_)));
        assert!(host.shows("right", "xdp"));
    }
    drop(other);
    assert_eq!(dpif.port_set_xdp(P2, XdpMode::Native).unwrap(), XdpState::Native);
    dpif.destroy().unwrap();
}

#[test]
fn a_port_that_can_not_have_the_hook_is_said() {
    testkit::require_root_and_bpf!("a_port_that_can_not_have_the_hook_is_said");
    let host = Host::new("xdp-refused");
    let (dpif, _left, _right) = two_ports(&host);
    // The host's own port, and none at all.
    let own = dpif.port_add(&internal("own")).unwrap();
    assert!(matches!(refused(&dpif, own, XdpMode::Generic, "own"), DpifError::Unsupported(..)));
    assert!(matches!(dpif.port_set_xdp(OdpPort(99), XdpMode::Auto), Err(DpifError::NoSuchPort(_))));

    // A device that goes is no port any more, hook or not.
    host.netns.ip("link del right").unwrap();
    assert!(testkit::wait_until(Duration::from_secs(5), || dpif
        .ports()
        .unwrap()
        .iter()
        .any(|port| port.error.is_some())));
    assert!(dpif.port_set_xdp(P2, XdpMode::Native).is_err());
    dpif.destroy().unwrap();
}
