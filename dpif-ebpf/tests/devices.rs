//! What happens to a port when its device changes.

mod common;

use common::*;
use dpif::{Dpif, DpifError, OdpPort, PortEvent, PortInfo, PortSpec};
use dpif_ebpf::{Attach, EbpfDpif};
use testkit::Netns;
use testkit::wait_until;

const P1: OdpPort = OdpPort(1);
const P2: OdpPort = OdpPort(2);

fn port(dpif: &EbpfDpif, number: OdpPort) -> PortInfo {
    dpif.ports().unwrap().into_iter().find(|port| port.port == number).unwrap()
}

/// Waits until the port is detached, and says why.
fn detached(dpif: &EbpfDpif, number: OdpPort) -> String {
    assert!(wait_until(SOON, || port(dpif, number).error.is_some()));
    let events = dpif.port_events();
    let why = port(dpif, number).error.unwrap();
    assert!(events.contains(&PortEvent::Detached(number, why.clone())), "{events:?}");
    why
}

#[test]
fn a_changed_mtu_is_that_of_the_port() {
    testkit::require_root_and_bpf!("a_changed_mtu_is_that_of_the_port");
    let host = Host::new("mtu");
    let (dpif, left, right) = two_ports(&host);
    let br0 = dpif.port_add(&internal("br0")).unwrap();
    dpif.flow_put(&flow_of_port(P1, vec![output(P2)])).unwrap();
    for netns in [&host.netns, &left.netns] {
        netns
            .ip(&format!("link set {} mtu 3000", if std::ptr::eq(netns, &host.netns) { "left" } else { "eth0" }))
            .unwrap();
    }
    left.socket.send(&udp(1515, 1)).unwrap();
    right.assert_quiet();
    assert!(dpif.stats().unwrap().drops.contains(&("mtu", 1)));
    right.netns.ip("link set eth0 mtu 3000").unwrap();
    host.netns.ip("link set right mtu 3000").unwrap();
    assert!(wait_until(SOON, || port(&dpif, P2).mtu == 3000));
    assert!(dpif.port_events().contains(&PortEvent::Changed(P2)));
    left.socket.send(&udp(1515, 1)).unwrap();
    assert_eq!(right.recv().unwrap(), udp(1515, 1));

    // The datapath's end of an internal port follows the host's.
    host.netns.ip("link set br0 mtu 4000").unwrap();
    assert!(wait_until(SOON, || port(&dpif, br0).mtu == 4000));
    assert!(host.shows("br0-dp", "mtu 4000"));
    host.netns.ip("link set br0 address 02:11:22:33:44:55").unwrap();
    assert!(wait_until(SOON, || port(&dpif, br0).mac == [2, 0x11, 0x22, 0x33, 0x44, 0x55]));
    dpif.destroy().unwrap();
}

#[test]
fn a_device_that_is_deleted_renamed_or_moved_is_detached() {
    testkit::require_root_and_bpf!("a_device_that_is_deleted_renamed_or_moved_is_detached");
    for attach in [Attach::Auto, Attach::Clsact] {
        let mut host = Host::new("detach");
        host.options.attach = attach;
        let (dpif, left, right) = two_ports(&host);
        let third = host.neighbour("third");
        let p3 = dpif.port_add(&system("third")).unwrap();
        for from in [P1, P2, p3] {
            dpif.flow_put(&flow_of_port(from, vec![output(P1), output(P2), output(p3)])).unwrap();
        }

        host.netns.ip("link set left down").unwrap();
        host.netns.ip("link set left name links").unwrap();
        host.netns.ip("link set links up").unwrap();
        assert_eq!(detached(&dpif, P1), "left was renamed to links");
        assert!(!host.shows("links", "promiscuity 1"), "its settings are given back");
        left.socket.send(&udp(60, 1)).unwrap();
        right.assert_quiet();
        assert_eq!(dpif.port_stats(P1).unwrap().rx_packets, 0);

        let elsewhere = Netns::new("elsewhere").unwrap();
        host.netns.ip(&format!("link set right netns {}", elsewhere.name())).unwrap();
        assert_eq!(detached(&dpif, P2), "right was moved to another network namespace");
        elsewhere.ip("link set right up").unwrap();
        let before = dpif.stats().unwrap();
        right.socket.send(&udp(60, 1)).unwrap();
        third.assert_quiet();
        let after = dpif.stats().unwrap();
        assert_eq!((before.hit, before.missed), (after.hit, after.missed), "nothing runs on it any more");

        host.netns.ip("link del third").unwrap();
        assert_eq!(detached(&dpif, p3), "third was deleted");

        // A port that is detached keeps its name until it is removed.
        let error = dpif.port_add(&system("third")).unwrap_err();
        assert!(matches!(&error, DpifError::Exists(text) if text.contains("detached (third was deleted)")), "{error}");
        for number in [P1, P2, p3] {
            dpif.port_del(number).unwrap();
        }
        let again = dpif.port_add(&system("links")).unwrap();
        assert_eq!(dpif.ports().unwrap().len(), 1);
        dpif.port_del(again).unwrap();
        dpif.destroy().unwrap();
        host.assert_no_pins();
    }
}

#[test]
fn an_internal_port_whose_device_goes_is_detached() {
    testkit::require_root_and_bpf!("an_internal_port_whose_device_goes_is_detached");
    let host = Host::new("gone");
    let dpif = host.open();
    let (br0, br1) = (dpif.port_add(&internal("br0")).unwrap(), dpif.port_add(&internal("br1")).unwrap());
    host.netns.ip("link del br0").unwrap();
    assert_eq!(detached(&dpif, br0), "br0 was deleted");
    host.netns.ip("link set br1 down").unwrap();
    host.netns.ip("link set br1 name other").unwrap();
    assert_eq!(detached(&dpif, br1), "br1 was renamed to other");
    dpif.port_del(br0).unwrap();
    dpif.port_del(br1).unwrap();
    assert!(host.netns.ip("link show dev other").is_err(), "the pair goes with its port");
    dpif.destroy().unwrap();
}

#[test]
fn the_number_of_a_device_that_has_moved_may_be_anothers() {
    testkit::require_root_and_bpf!("the_number_of_a_device_that_has_moved_may_be_anothers");
    let host = Host::new("number");
    let elsewhere = Netns::new("elsewhere").unwrap();
    let dpif = host.open();
    let br0 = dpif.port_add(&internal("br0")).unwrap();
    let shown = host.netns.ip("-o link show dev br0").unwrap();
    let index = shown.split(':').next().unwrap();
    host.netns.ip(&format!("link set br0 netns {}", elsewhere.name())).unwrap();
    assert_eq!(detached(&dpif, br0), "br0 was moved to another network namespace");
    host.netns.ip(&format!("link add stranger index {index} type veth peer name friend")).unwrap();
    dpif.port_del(br0).unwrap();
    assert!(host.netns.ip("link show dev stranger").is_ok());
    assert!(host.netns.ip("link show dev br0-dp").is_err(), "what is left of the port goes");
    dpif.destroy().unwrap();
}

#[test]
fn what_a_port_has_lost_is_not_the_next_ones() {
    testkit::require_root_and_bpf!("what_a_port_has_lost_is_not_the_next_ones");
    let host = Host::new("lost");
    let (dpif, left, _right) = two_ports(&host);
    dpif.handlers_set(1).unwrap();
    // Nobody receives.
    for n in 0..20_000u32 {
        left.socket.send(&udp(60, n as u16)).unwrap();
    }
    assert!(dpif.upcalls_lost().iter().any(|(port, _, n)| *port == P1 && *n > 0), "{:?}", dpif.upcalls_lost());
    // What was sent has come in, or was dropped by the wire.
    let (received, mut last) = (|| dpif.port_stats(P1).unwrap().rx_packets, 0);
    let stands_still = || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        std::mem::replace(&mut last, received()) == received()
    };
    assert!(wait_until(SOON, stands_still));
    dpif.port_del(P1).unwrap();
    dpif.port_add(&PortSpec { request: Some(P1), ..system("left") }).unwrap();
    assert_eq!(dpif.upcalls_lost(), []);
    dpif.destroy().unwrap();
}

#[test]
fn what_happened_while_no_process_was_there_is_noticed() {
    testkit::require_root_and_bpf!("what_happened_while_no_process_was_there_is_noticed");
    for attach in [Attach::Auto, Attach::Clsact] {
        let mut host = Host::new("absent");
        host.options.attach = attach;
        let (dpif, left, _right) = two_ports(&host);
        let _third = host.neighbour("third");
        dpif.port_add(&system("third")).unwrap();
        dpif.port_add(&internal("br0")).unwrap();
        dpif.port_add(&internal("br1")).unwrap();
        drop(dpif);
        host.netns.ip("link set left mtu 1400").unwrap();
        host.netns.ip("link del right").unwrap();
        host.netns.ip("link set third down").unwrap();
        host.netns.ip("link set third name fourth").unwrap();
        host.netns.ip("link del br1").unwrap();
        let dpif = host.open();
        let ports: Vec<_> = dpif.ports().unwrap().into_iter().map(|port| (port.name, port.mtu, port.error)).collect();
        assert_eq!(ports, [("left".into(), 1400, None), ("br0".into(), 1500, None)]);
        assert!(!host.shows("fourth", "promiscuity 1"));
        drop(left);
        dpif.destroy().unwrap();
        host.assert_no_pins();
    }
}

#[test]
fn settings_that_were_there_before_stay() {
    testkit::require_root_and_bpf!("settings_that_were_there_before_stay");
    for attach in [Attach::Auto, Attach::Clsact] {
        let mut host = Host::new("settings");
        host.options.attach = attach;
        let _left = host.neighbour("left");
        host.netns.ip("link set left promisc on").unwrap();
        host.netns.exec("tc qdisc add dev left clsact").unwrap();
        let dpif = host.open();
        let number = dpif.port_add(&system("left")).unwrap();
        dpif.port_del(number).unwrap();
        assert!(host.shows("left", "PROMISC"));
        let qdiscs = host.netns.exec("tc qdisc show dev left").unwrap();
        assert!(qdiscs.contains("clsact"), "{qdiscs}");
        let filters = host.netns.exec("tc filter show dev left ingress").unwrap();
        assert!(!filters.contains("sluice"), "{filters}");
        dpif.destroy().unwrap();
    }
}

#[test]
fn a_port_of_another_namespace_is_given_up_when_the_datapath_moves() {
    testkit::require_root_and_bpf!("a_port_of_another_namespace_is_given_up_when_the_datapath_moves");
    let host = Host::new("from");
    let (dpif, left, right) = two_ports(&host);
    dpif.flow_put(&flow_of_port(P1, vec![output(P2)])).unwrap();
    drop(dpif);
    let to = Netns::new("to").unwrap();
    let dpif = to.run(|| EbpfDpif::open(&host.name, &host.options)).unwrap().unwrap();
    assert!(dpif.was_adopted() && dpif.ports().unwrap().is_empty());
    left.socket.send(&udp(60, 1)).unwrap();
    right.assert_quiet();
    dpif.destroy().unwrap();
    host.assert_no_pins();
}
