//! The cache of flows in front of the lookup: it may make a lookup cheaper, never another.

#[path = "differential/rig.rs"]
mod rig;

use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, Be32, FlowKey, extract};
use dpif::{Action, Dpif as _, FlowPut, OdpPort, PutMode, Ufid};
use rig::{Arrival, REDIRECT, Rig, SHOT};

/// A UDP packet to this address.
fn packet(to: u32) -> Arrival {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    bytes.extend([0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1]);
    bytes.extend(to.to_be_bytes());
    bytes.extend([0, 80, 0, 90, 0, 30, 0, 0]);
    bytes.resize(64, 0);
    Arrival { port: 1, bytes, ..Arrival::default() }
}

/// The mask of a flow for this many leading bits of the destination.
fn mask(bits: u32) -> FlowKey {
    let ipv4_dst = Be32::new(u32::MAX << (32 - bits));
    FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, eth_type: Be16::MAX, ipv4_dst, ..FlowKey::ZERO }
}

fn flow(ufid: u128, to: u32, bits: u32, mode: PutMode, actions: Vec<Action>) -> FlowPut {
    let mut key = FlowKey { in_port: 1, ..FlowKey::ZERO };
    extract::extract(&SlicePacket::new(packet(to).bytes), &mut key).expect("a whole packet");
    let mask = mask(bits);
    FlowPut { mode, ufid: Ufid(ufid), key: key.masked(&mask), mask, actions: actions.into() }
}

fn output() -> Vec<Action> {
    vec![Action::Output(OdpPort(2))]
}

/// Does this to a datapath with its general program, and to one that specialises it.
fn both(label: &str, work: impl Fn(&mut Rig) + Send + Sync) {
    for special in [false, true] {
        Rig::with(label, |rig| {
            rig.specialise(special);
            work(rig);
        });
    }
}

/// Runs a packet three times, so that the cache knows it, and says what became of it the last time, and how many of the
/// lookups found a flow and how many of these in the cache.
fn thrice(rig: &mut Rig, to: u32) -> (u32, u64, u64) {
    let before = rig.dpif.stats().expect("statistics");
    let mut verdict = 0;
    for _ in 0..3 {
        verdict = rig.run(&packet(to), 1).verdict;
    }
    let after = rig.dpif.stats().expect("statistics");
    assert_eq!(after.hit + after.missed, before.hit + before.missed + 3);
    (verdict, after.hit - before.hit, after.cache_hit - before.cache_hit)
}

const ALL: (u32, u64) = (REDIRECT, 3);
const NONE: (u32, u64, u64) = (SHOT, 0, 0);

#[test]
fn a_flow_that_is_gone_is_not_found_in_the_cache() {
    testkit::require_root_and_bpf!("a_flow_that_is_gone_is_not_found_in_the_cache");
    both("gone", |rig| {
        // Keeps the mask.
        rig.dpif.flow_put(&flow(3, 1, 32, PutMode::Create, vec![])).expect("a flow");
        for round in 0..20 {
            let (one, other) = (0x0a00_0002 + round, 0x0b00_0002 + round);
            rig.dpif.flow_put(&flow(1, one, 32, PutMode::Create, output())).expect("a flow");
            let (verdict, hits, cached) = thrice(rig, one);
            assert_eq!((verdict, hits), ALL);
            assert!(cached >= 2, "{cached}");
            rig.dpif.flow_del(Ufid(1)).expect("to delete");
            assert_eq!(thrice(rig, one), NONE);
            // In the slot that has just become free.
            rig.dpif.flow_put(&flow(2, other, 32, PutMode::Create, output())).expect("a flow");
            assert_eq!(thrice(rig, one), NONE);
            let (verdict, hits, _) = thrice(rig, other);
            assert_eq!((verdict, hits), ALL);
            rig.dpif.flow_del(Ufid(2)).expect("to delete");
        }
    });
}

#[test]
fn changed_actions_hold_for_a_cached_flow_at_once() {
    testkit::require_root_and_bpf!("changed_actions_hold_for_a_cached_flow_at_once");
    both("changed", |rig| {
        let to = 0x0a00_0002;
        rig.dpif.flow_put(&flow(1, to, 32, PutMode::Create, output())).expect("a flow");
        for _ in 0..50 {
            assert_eq!(thrice(rig, to).0, REDIRECT);
            rig.dpif.flow_put(&flow(1, to, 32, PutMode::Modify, vec![])).expect("to modify");
            assert_eq!(thrice(rig, to).0, SHOT);
            rig.dpif.flow_put(&flow(1, to, 32, PutMode::Modify, output())).expect("to modify");
        }
        assert_eq!(rig.dpif.flow_get(Ufid(1)).expect("the flow").stats.packets, 300);
    });
}

#[test]
fn masks_that_move_in_their_list_do_not_mislead_the_cache() {
    testkit::require_root_and_bpf!("masks_that_move_in_their_list_do_not_mislead_the_cache");
    both("moving", |rig| {
        // A network of its own for each length of the mask.
        let to = |bits: u32| 0x0100_0000 * bits + 5;
        let put = |rig: &Rig, bits: u32| {
            let actions = if bits.is_multiple_of(2) { output() } else { vec![] };
            rig.dpif.flow_put(&flow(bits.into(), to(bits), bits, PutMode::Create, actions)).expect("a flow");
        };
        let check = |rig: &mut Rig, gone: u32| {
            for bits in (8..=32).filter(|bits| *bits != gone) {
                let (verdict, hits, _) = thrice(rig, to(bits));
                assert_eq!(hits, 3, "/{bits} without /{gone}");
                assert_eq!(verdict, if bits.is_multiple_of(2) { REDIRECT } else { SHOT }, "/{bits} without /{gone}");
            }
            if gone != 0 {
                assert_eq!(thrice(rig, to(gone)), NONE, "/{gone} is gone");
            }
        };
        (8..=32).for_each(|bits| put(rig, bits));
        check(rig, 0);
        for gone in [8, 20, 32, 9] {
            rig.dpif.flow_del(Ufid(gone.into())).expect("to delete");
            check(rig, gone);
            put(rig, gone);
            check(rig, 0);
        }
    });
}

#[test]
fn packets_that_share_a_place_of_the_cache_keep_their_flows() {
    testkit::require_root_and_bpf!("packets_that_share_a_place_of_the_cache_keep_their_flows");
    both("sharing", |rig| {
        // Every other network of four addresses has a flow, and there are more packets than places.
        let packets = 3 * datapath_common::maps::FLOW_CACHE_PLACES as u32;
        for network in (0..packets / 4).step_by(16) {
            rig.dpif.flow_put(&flow(network.into(), network * 4, 30, PutMode::Create, output())).expect("a flow");
        }
        for round in 0..2 {
            for to in 0..packets {
                let wanted = if (to / 4).is_multiple_of(16) { REDIRECT } else { SHOT };
                assert_eq!(rig.run(&packet(to), 1).verdict, wanted, "packet {to} in round {round}");
            }
        }
    });
}

#[test]
fn packets_of_a_crowded_row_are_all_found_in_the_cache() {
    testkit::require_root_and_bpf!("packets_of_a_crowded_row_are_all_found_in_the_cache");
    Rig::with("crowded", |rig| {
        // One in three shares its own place with another; the mask that is found there is right for one in nine.
        let to = |n: u32| 0x0100_0000 * (8 + n % 9) + n / 9;
        for bits in 8..17 {
            rig.dpif.flow_put(&flow(bits.into(), to(bits + 1), bits, PutMode::Create, output())).expect("a flow");
        }
        let packets = datapath_common::maps::FLOW_CACHE_PLACES as u32 / 3;
        let round = |rig: &mut Rig| {
            let before = rig.dpif.stats().expect("statistics").cache_hit;
            for n in 0..packets {
                assert_eq!(rig.run(&packet(to(n)), 1).verdict, REDIRECT, "packet {n}");
            }
            (rig.dpif.stats().expect("statistics").cache_hit - before) as u32
        };
        for _ in 0..3 {
            round(rig);
        }
        let found = round(rig);
        assert!(found >= packets / 100 * 99, "{found} of {packets}");
    });
}
