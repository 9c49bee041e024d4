//! The XDP hook between two network cards, as the machine of `cargo xtask test-vm` has them: in the driver, without being asked.

mod common;

use common::*;
use dpif::{Dpif, DpifError, OdpPort, UpcallBatch, XdpMode, XdpState};
use dpif_ebpf::EbpfDpif;
use testkit::cards::{self, End};
use testkit::{Need, Netns, RawSocket, wait_until};

const P1: OdpPort = OdpPort(1);
const P2: OdpPort = OdpPort(2);
const NEEDS: [Need; 4] = [Need::Namespaces, Need::Bpf, Need::EbpfObject, Need::Cards];

/// Wires between cards of the same kind, whose driver runs XDP programs on every kernel.
const VIRTIO: [usize; 2] = [0, 1];
/// The left one's card takes tags off frames, if told to; its driver runs XDP programs since Linux 6.6.
const TAKES_TAGS_OFF: [usize; 2] = [2, 1];

/// A host with the cards `left` and `right`, and the neighbours at the other ends of their wires.
fn between(label: &str, wires: [usize; 2]) -> (Host, Neighbour, Neighbour) {
    let host = Host::new(label);
    let neighbour = |wire, name: &str| {
        cards::take(wire, End::Near, &host.netns, name).expect("a card");
        let netns = Netns::new(name).expect("a network namespace");
        netns.silence().expect("a quiet network namespace");
        cards::take(wire, End::Far, &netns, "eth0").expect("a card");
        // What is sent on is for others.
        netns.ip("link set eth0 promisc on").expect("a promiscuous card");
        let socket = RawSocket::open(&netns, "eth0").expect("a raw socket");
        Neighbour { netns, socket }
    };
    let [left, right] = [(wires[0], "left"), (wires[1], "right")].map(|(wire, name)| neighbour(wire, name));
    (host, left, right)
}

/// Both cards are ports, and what comes in at the one goes out at the other.
fn forwarding(host: &Host) -> EbpfDpif {
    let dpif = host.open();
    assert_eq!(dpif.port_add(&system("left")).unwrap(), P1);
    assert_eq!(dpif.port_add(&system("right")).unwrap(), P2);
    dpif.flow_put(&flow_of_port(P1, vec![output(P2)])).unwrap();
    dpif
}

fn set_mtu(host: &Host, left: &Neighbour, right: &Neighbour, mtu: u32) {
    for (netns, name) in [(&host.netns, "left"), (&host.netns, "right"), (&left.netns, "eth0"), (&right.netns, "eth0")]
    {
        netns.ip(&format!("link set {name} mtu {mtu}")).unwrap();
    }
}

/// All that can be set at a card, and how it is.
fn settings(host: &Host, device: &str) -> String {
    let tell = |words: &str| host.netns.exec(&format!("{words} {device}"));
    let [link, features] = ["ip -d link show dev", "ethtool -k"].map(|words| tell(words).expect("to be told"));
    // Some drivers have no queues to tell of.
    link + &features + &tell("ethtool -l").unwrap_or_default()
}

fn takes_tags_off(host: &Host, device: &str) -> bool {
    let text = host.netns.exec(&format!("ethtool -k {device}")).expect("the features");
    text.lines().find(|line| line.starts_with("rx-vlan-offload:")).expect("the feature").contains(": on")
}

/// To an address that no card here has.
fn foreign(len: usize) -> Vec<u8> {
    let frame = udp(len, 7);
    assert!(cards::WIRES.iter().enumerate().all(|(wire, _)| {
        [End::Near, End::Far].map(|end| cards::address(wire, end)).iter().all(|address| *address != text(&frame[..6]))
    }));
    frame
}

fn to(address: [u8; 6]) -> Vec<u8> {
    let mut frame = udp(200, 7);
    frame[..6].copy_from_slice(&address);
    frame
}

fn tagged(len: usize, tags: &[[u8; 4]]) -> Vec<u8> {
    let mut frame = udp(len, 7);
    frame.splice(12..12, tags.iter().flatten().copied());
    frame
}

fn text(address: &[u8]) -> String {
    address.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Sends frames from left to right, where each has to arrive as it is. Whether the host has seen one: it doesn't see those that the
/// hook has finished.
#[track_caller]
fn pass(host: &Host, left: &Neighbour, right: &Neighbour, frames: &[Vec<u8>]) -> bool {
    let tap = RawSocket::open(&host.netns, "left").expect("a raw socket");
    for frame in frames {
        left.socket.send(frame).unwrap();
        let got = right.recv();
        let (head, got_head) = (&frame[..20], got.as_ref().and_then(|got| got.get(..20)));
        let got_len = got.as_ref().map(Vec::len);
        assert!(got.as_ref() == Some(frame), "{} bytes, {head:02x?}: {got_len:?}, {got_head:02x?}", frame.len());
    }
    tap.recv(QUIET).expect("to receive").is_some()
}

#[test]
fn frames_of_all_kinds_pass_between_two_cards_in_their_drivers() {
    testkit::require!("frames_of_all_kinds_pass_between_two_cards_in_their_drivers"; NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let (host, left, right) = between("cards", VIRTIO);
    let dpif = forwarding(&host);
    // Nobody has asked for it.
    assert_eq!([P1, P2].map(|port| dpif.port_xdp(port).unwrap()), [XdpState::Native, XdpState::Native]);
    let frames = [
        foreign(60),
        foreign(400),
        foreign(1514),
        to([0xff; 6]),
        to([1, 0, 0x5e, 0, 0, 9]),
        to([0x33, 0x33, 0, 0, 0, 9]),
        tagged(60, &[[0x81, 0, 0x0f, 0xa5]]),
        tagged(1514, &[[0x81, 0, 0x20, 7]]),
        tagged(200, &[[0x81, 0, 0xe0, 0]]),
        tagged(200, &[[0x88, 0xa8, 0, 9]]),
        tagged(200, &[[0x88, 0xa8, 0, 9], [0x81, 0, 0, 8]]),
    ];
    let (mut packets, mut bytes) = (0, 0);
    for frame in &frames {
        packets += 1;
        // As where the kernel has taken it off, the outermost tag isn't counted.
        bytes += frame.len() as u64 - if matches!(frame[12..14], [0x81, 0] | [0x88, 0xa8]) { 4 } else { 0 };
        assert!(!pass(&host, &left, &right, std::slice::from_ref(frame)), "it came to the host: {:02x?}", &frame[..20]);
        let (one, two) = (dpif.port_stats(P1).unwrap(), dpif.port_stats(P2).unwrap());
        assert_eq!((one.rx_packets, one.rx_bytes), (packets, bytes), "{:02x?}", &frame[..20]);
        assert_eq!((two.tx_packets, two.tx_bytes), (packets, bytes), "{:02x?}", &frame[..20]);
    }
    right.assert_quiet();
    // The other way there is no flow: up they go, once each.
    dpif.handlers_set(1).unwrap();
    let mut batch = UpcallBatch::default();
    for frame in &frames {
        right.socket.send(frame).unwrap();
        assert_eq!(wait_for_upcalls(&dpif, &mut batch), 1);
        assert_eq!(batch.upcalls()[0].packet.data, *frame);
    }
    left.assert_quiet();
    let stats = dpif.stats().unwrap();
    assert_eq!((stats.hit, stats.missed, stats.lost), (frames.len() as u64, frames.len() as u64, 0));
    dpif.destroy().unwrap();
}

#[test]
fn a_card_gets_its_settings_back_when_the_hook_goes() {
    testkit::require!("a_card_gets_its_settings_back_when_the_hook_goes"; NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    for wires in [VIRTIO, TAKES_TAGS_OFF] {
        let (host, left, right) = between("cards-settings", wires);
        let before = ["left", "right"].map(|device| settings(&host, device));
        let dpif = forwarding(&host);
        assert!(host.shows("left", "promiscuity 1"));
        for mode in [XdpMode::Generic, XdpMode::Off, XdpMode::Auto] {
            let state = dpif.port_set_xdp(P1, mode).unwrap();
            assert_eq!(
                host.shows("left", "prog/xdp"),
                state == XdpState::Native || state == XdpState::Generic,
                "{state}"
            );
            pass(&host, &left, &right, &[foreign(100), tagged(100, &[[0x81, 0, 0, 7]])]);
        }
        dpif.port_del(P1).unwrap();
        assert_eq!(settings(&host, "left"), before[0]);
        dpif.destroy().unwrap();
        assert_eq!(["left", "right"].map(|device| settings(&host, device)), before);
    }
}

#[test]
fn a_tag_passes_whether_the_card_takes_it_off_or_not() {
    testkit::require!("a_tag_passes_whether_the_card_takes_it_off_or_not"; NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let (host, left, right) = between("cards-tags", TAKES_TAGS_OFF);
    let frames = [foreign(100), tagged(100, &[[0x81, 0, 0x20, 7]]), tagged(300, &[[0x81, 0, 0, 1], [0x81, 0, 0, 2]])];
    for offload in [true, false] {
        host.netns.exec(&format!("ethtool -K left rxvlan {}", if offload { "on" } else { "off" })).unwrap();
        assert_eq!(takes_tags_off(&host, "left"), offload);
        let dpif = forwarding(&host);
        for mode in [XdpMode::Off, XdpMode::Native, XdpMode::Generic] {
            let hook = match dpif.port_set_xdp(P1, mode) {
                Ok(state) => matches!(state, XdpState::Native | XdpState::Generic),
                // A driver without XDP, on an older kernel.
                Err(DpifError::Unsupported(..)) if mode == XdpMode::Native => continue,
                Err(error) => panic!("{mode}: {error}"),
            };
            assert_eq!(takes_tags_off(&host, "left"), offload && !hook, "{mode}");
            assert_eq!(pass(&host, &left, &right, &frames), !hook, "{mode}");
        }
        dpif.destroy().unwrap();
        assert_eq!(takes_tags_off(&host, "left"), offload);
    }
}

#[test]
fn a_card_with_jumbo_frames_goes_without_the_hook_and_says_why() {
    testkit::require!("a_card_with_jumbo_frames_goes_without_the_hook_and_says_why"; NEEDS[0], NEEDS[1], NEEDS[2], NEEDS[3]);
    let (host, left, right) = between("cards-jumbo", VIRTIO);
    set_mtu(&host, &left, &right, 9000);
    let jumbo = [foreign(60), foreign(9014), tagged(9014, &[[0x81, 0, 0, 7]])];
    let dpif = forwarding(&host);
    let are_without = |because: &str| {
        let whys = [P1, P2].map(|port| dpif.port_xdp(port).unwrap().to_string());
        whys.iter().all(|why| why.contains(because) && why.contains("an MTU of 9000 is too large"))
    };
    assert!(are_without("auto: "), "{}", dpif.port_xdp(P1).unwrap());
    let error = dpif.port_set_xdp(P1, XdpMode::Native).expect_err("a refusal");
    assert!(matches!(&error, DpifError::Invalid(why) if why.contains("an MTU of 9000")), "{error}");
    assert!(pass(&host, &left, &right, &jumbo));

    // Small enough, it has the hook again; and when it grows under the hook, long frames pass too.
    set_mtu(&host, &left, &right, 1500);
    // The driver of a card without a program doesn't send what the hook of another redirects to it.
    for port in [P2, P1] {
        assert_eq!(dpif.port_set_xdp(port, XdpMode::Auto).unwrap(), XdpState::Native);
    }
    assert!(!pass(&host, &left, &right, &[foreign(1514)]));
    set_mtu(&host, &left, &right, 9000);
    assert!(wait_until(SOON, || are_without("since its MTU changed: ")), "{}", dpif.port_xdp(P1).unwrap());
    assert!(pass(&host, &left, &right, &jumbo));
    dpif.destroy().unwrap();
}
