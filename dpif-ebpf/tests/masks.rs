//! Which masks a packet is tried under, and in which order.

#[path = "differential/rig.rs"]
mod rig;

use std::time::{Duration, Instant};

use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, Be32, FlowKey, extract};
use dpif::{Action, Dpif as _, FlowPut, OdpPort, PutMode, Ufid};
use rig::{Arrival, REDIRECT, Rig, SHOT};

/// How long the masks may take to be in order.
const SOON: Duration = Duration::from_secs(10);

/// A UDP packet from this port of the datapath to this address.
fn packet(port: u32, to: u32) -> Arrival {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    bytes.extend([0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1]);
    bytes.extend(to.to_be_bytes());
    bytes.extend([0, 80, 0, 90, 0, 30, 0, 0]);
    bytes.resize(64, 0);
    Arrival { port, bytes, ..Arrival::default() }
}

/// A flow of packets from a port, or from any if that is `None`, to a network.
fn flow(ufid: u128, port: Option<u32>, to: u32, bits: u32) -> FlowPut {
    let mut key = FlowKey { in_port: port.unwrap_or_default(), ..FlowKey::ZERO };
    extract::extract(&SlicePacket::new(packet(0, to).bytes), &mut key).expect("a whole packet");
    let in_port = if port.is_some() { u32::MAX } else { 0 };
    let ipv4_dst = Be32::new(u32::MAX << (32 - bits));
    let mask = FlowKey { in_port, recirc_id: u32::MAX, eth_type: Be16::MAX, ipv4_dst, ..FlowKey::ZERO };
    let actions = vec![Action::Output(OdpPort(3))].into();
    FlowPut { mode: PutMode::Create, ufid: Ufid(ufid), key: key.masked(&mask), mask, actions }
}

/// What becomes of a packet, and how many masks it was tried under.
fn run(rig: &mut Rig, port: u32, to: u32) -> (u32, u64) {
    let before = rig.dpif.stats().expect("statistics").mask_hit;
    let verdict = rig.run(&packet(port, to), 1).verdict;
    (verdict, rig.dpif.stats().expect("statistics").mask_hit - before)
}

/// A network for masks of this length.
fn network(bits: u32) -> u32 {
    0x0100_0000 * bits
}

#[test]
fn a_packet_is_tried_under_masks_of_its_port_and_of_no_port_alone() {
    testkit::require_root_and_bpf!("a_packet_is_tried_under_masks_of_its_port_and_of_no_port_alone");
    Rig::with("lists", |rig| {
        let put = |rig: &Rig, flow| rig.dpif.flow_put(&flow).expect("a flow");
        // Twenty masks of port 2, two of them of port 1 too.
        for bits in 9..29 {
            put(rig, flow(bits.into(), Some(2), network(bits), bits));
        }
        assert_eq!(run(rig, 1, network(200)), (SHOT, 0));
        for bits in [9, 20] {
            put(rig, flow(100 + u128::from(bits), Some(1), network(bits), bits));
        }
        assert_eq!(rig.dpif.stats().expect("statistics").masks, 20);
        assert_eq!(run(rig, 1, network(200)), (SHOT, 2));
        assert_eq!(run(rig, 2, network(200)), (SHOT, 20));
        assert_eq!(run(rig, 1, network(20)), (REDIRECT, 2));
        assert_eq!(run(rig, 1, network(21)), (SHOT, 2));
        assert_eq!(run(rig, 3, network(20)), (SHOT, 0));
        // Three of no port: every packet is tried under them, last.
        for bits in 5..8 {
            put(rig, flow(200 + u128::from(bits), None, network(64 + 8 * bits), bits));
        }
        assert_eq!(run(rig, 1, network(9) + 1), (REDIRECT, 1));
        assert_eq!(run(rig, 1, network(200)), (SHOT, 2 + 3));
        assert_eq!(run(rig, 2, network(200)), (SHOT, 20 + 3));
        assert_eq!(run(rig, 3, network(64 + 8 * 7)), (REDIRECT, 3));

        // A mask leaves the list with the port's last flow, not with the last of all.
        rig.dpif.flow_del(Ufid(120)).expect("to delete");
        assert_eq!(run(rig, 1, network(200)), (SHOT, 1 + 3));
        assert_eq!(run(rig, 1, network(20)), (SHOT, 1 + 3));
        assert_eq!(run(rig, 2, network(20)).0, REDIRECT);
        for bits in 5..8 {
            rig.dpif.flow_del(Ufid(200 + bits)).expect("to delete");
        }
        assert_eq!(run(rig, 2, network(200)), (SHOT, 20));
        put(rig, flow(120, Some(1), network(20), 20));
        assert_eq!(run(rig, 1, network(20) + 1), (REDIRECT, 2));
    });
}

#[test]
fn masks_that_find_most_are_tried_first() {
    testkit::require_root_and_bpf!("masks_that_find_most_are_tried_first");
    Rig::with("order", |rig| {
        for bits in 9..29 {
            rig.dpif.flow_put(&flow(bits.into(), Some(1), network(bits), bits)).expect("a flow");
        }
        // Connections that the cache doesn't know: the mask is found by a scan.
        let scanned = |rig: &mut Rig, bits: u32, n: u32| {
            let (verdict, scanned) = run(rig, 1, network(bits) + n % (1 << (32 - bits)));
            assert_eq!(verdict, REDIRECT);
            scanned
        };
        assert_eq!(scanned(rig, 26, 63), 18);
        for favourite in [24, 12] {
            let (start, mut n) = (Instant::now(), 0);
            // Masks are in this order once one that is new needs no more than one look, for each of some.
            let is_first = |rig: &mut Rig, n: &mut u32| {
                *n += 1;
                scanned(rig, favourite, *n) <= 1
            };
            while !(0..50).all(|_| is_first(rig, &mut n)) {
                assert!(start.elapsed() < SOON, "/{favourite} is not the first one of the list");
                // What a place of the cache says of the mask is thrown out by packets of others.
                for bits in 9..13 {
                    scanned(rig, bits, n);
                }
            }
        }
        // Nothing got lost when the list changed.
        for bits in 9..29 {
            assert_eq!(run(rig, 1, network(bits) + 1).0, REDIRECT, "/{bits}");
        }
    });
}

#[test]
fn flows_are_found_while_the_lists_change() {
    testkit::require_root_and_bpf!("flows_are_found_while_the_lists_change");
    Rig::with("changing", |rig| {
        for bits in 9..29 {
            rig.dpif.flow_put(&flow(bits.into(), Some(1), network(bits), bits)).expect("a flow");
        }
        let (start, mut rng, mut here) = (Instant::now(), fastrand::Rng::with_seed(1), [false; 29]);
        let mut n = 0;
        while start.elapsed() < Duration::from_secs(3) {
            n += 1;
            // The favourite changes, so that the order does; masks come and go at this port and at another one.
            let favourite = 9 + n / 2000 % 20;
            for _ in 0..10 {
                let bits = if rng.u8(..4) == 0 { rng.u32(9..29) } else { favourite };
                let to = network(bits) + rng.u32(..1 << (32 - bits).min(24));
                assert_eq!(run(rig, 1, to).0, REDIRECT, "/{bits}");
            }
            let bits = rng.usize(9..29);
            let ufid = 1000 + bits as u128;
            if here[bits] {
                rig.dpif.flow_del(Ufid(ufid)).expect("to delete");
            } else {
                let mut put = flow(ufid, Some(1 + rng.u32(..2)), network(100), bits as u32);
                put.mask.ip_proto = 0xff;
                put.key.ip_proto = 17;
                rig.dpif.flow_put(&put).expect("a flow");
            }
            here[bits] = !here[bits];
        }
    });
}
