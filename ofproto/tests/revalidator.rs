//! The rules by which revalidators work, one by one: on the in-process datapath, with a clock that the test moves.

mod common;
#[path = "revalidator/rig.rs"]
mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{MACS, ipv4, udp, udp_frame};
use datapath_common::{Be16, FlowKey};
use dpif::{Action, Dpif, FlowPut, OdpPort, PutMode, Ufid};
use ofproto::{PortKind, PortVlan, Switch};
use rig::{Rig, alone, counted};

const A: [u8; 6] = MACS[0];
const B: [u8; 6] = MACS[1];

/// Rules that force a megaflow for each source address.
const BY_SOURCE: &[&str] = &["actions=move:NXM_OF_ETH_SRC[]->NXM_NX_XXREG0[0..47],output:2"];

fn frame() -> Vec<u8> {
    udp_frame(B, A, &[])
}

fn frame_from(n: u8) -> Vec<u8> {
    udp_frame(B, [0x50, 0x54, 0, 0, 1, n], &[])
}

/// A flow that somebody else puts into the datapath.
fn stranger(ufid: u128, key: FlowKey, mask: FlowKey, actions: &[Action]) -> FlowPut {
    FlowPut { mode: PutMode::Create, ufid: Ufid(ufid), key, mask, actions: actions.into() }
}

#[test]
fn a_flow_without_packets_goes_after_max_idle_and_not_before() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    rig.round_after(10_000);
    assert_eq!(rig.ufids().len(), 1, "it has been idle for max-idle, not for longer");
    let deleted = counted("upcall_flow_del_idle_timeout", || rig.round_after(1));
    assert_eq!((rig.ufids().len(), rig.ukeys(), deleted), (0, 0, 1));
}

#[test]
fn a_packet_keeps_its_flow() {
    let _alone = alone();
    let rig = Rig::with(&["actions=output:2"], |options| options.max_idle_ms = 1_500);
    rig.send(&frame());
    for _ in 0..5 {
        rig.clock.advance_ms(1_000);
        rig.send(&frame());
        rig.round_after(0);
    }
    assert_eq!((rig.ufids().len(), rig.between.dp.stats().unwrap().missed), (1, 1));
    rig.round_after(1_501);
    assert_eq!(rig.ufids().len(), 0);
}

#[test]
fn over_the_flow_limit_a_flow_may_be_idle_for_100_ms() {
    let _alone = alone();
    let rig = Rig::new(BY_SOURCE);
    (0..3).for_each(|n| rig.send(&frame_from(n)));
    rig.switch.set_dynamic_flow_limit(2);
    let hit = counted("upcall_flow_limit_hit", || rig.round_after(100));
    assert_eq!((rig.ufids().len(), hit), (3, 1));
    rig.switch.set_dynamic_flow_limit(2);
    rig.send(&frame_from(0));
    rig.clock.advance_ms(60);
    rig.send(&frame_from(1));
    rig.round_after(50);
    assert_eq!(rig.ufids().len(), 1, "one was used 50 ms ago, the others longer ago than 100 ms");
}

#[test]
fn over_twice_the_flow_limit_all_flows_go() {
    let _alone = alone();
    let rig = Rig::new(BY_SOURCE);
    (0..5).for_each(|n| rig.send(&frame_from(n)));
    rig.switch.set_dynamic_flow_limit(2);
    let mut deleted = 0;
    let killed = counted("upcall_flow_limit_kill", || {
        deleted = counted("upcall_flow_del_flow_limit", || rig.round_after(0));
    });
    assert_eq!((rig.ufids().len(), killed, deleted), (0, 1, 5));
    assert_eq!(rig.packets("output:2"), 5);
}

#[test]
fn the_flow_limit_follows_the_duration_of_a_round() {
    let _alone = alone();
    let rig = Rig::with(BY_SOURCE, |options| options.max_idle_ms = 1_000_000);
    (0..20).for_each(|n| rig.send(&frame_from(n)));
    let limit_after = |takes: u64, counter: &str| {
        rig.between.dump_takes.store(takes, Ordering::SeqCst);
        assert_eq!(counted(counter, || rig.round_after(0)), 1, "{counter} after {takes} ms");
        rig.switch.upcall_summary().limit
    };
    assert_eq!(rig.switch.upcall_summary().limit, 10_000);
    // 20 flows in 1 ms would be 20,000 in a second.
    assert_eq!(limit_after(1, "upcall_flow_limit_grew"), 11_000);
    assert_eq!(limit_after(1_301, "upcall_flow_limit_reduced"), 8_250);
    assert_eq!(limit_after(3_999, "upcall_flow_limit_scaled"), 2_750);
    assert_eq!(limit_after(60_000, "upcall_flow_limit_scaled"), 1_000);
    assert_eq!(rig.switch.upcall_summary().dump_ms, 60_000);
    rig.between.dump_takes.store(1_100, Ordering::SeqCst);
    rig.round_after(0);
    assert_eq!(rig.switch.upcall_summary().limit, 1_000, "neither long nor short");
}

#[test]
fn a_flow_whose_actions_alone_differ_is_modified_in_place() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    rig.send(&frame());
    let before = rig.ufids();
    rig.flow_mod("modify actions=output:3");
    let modified = counted("revalidate_modified", || rig.round_after(0));
    assert_eq!((rig.ufids(), modified), (before, 1));
    rig.send(&frame());
    assert_eq!((rig.received(2), rig.received(3), rig.between.dp.stats().unwrap().missed), (2, 1, 1));
    rig.round_after(0);
    assert_eq!(rig.packets("output:3"), 3, "a modified rule goes on counting");
}

#[test]
fn what_a_flow_counted_belongs_to_the_rule_that_it_was_translated_by() {
    let _alone = alone();
    let rig = Rig::new(&["priority=1,actions=output:2", "priority=0,actions=output:3"]);
    rig.send(&frame());
    rig.round_after(0);
    (0..4).for_each(|_| rig.send(&frame()));
    rig.flow_mod("delete_strict priority=1");
    rig.round_after(0);
    assert_eq!(rig.packets("output:3"), 0, "these packets went out of port 2");
    rig.send(&frame());
    rig.round_after(0);
    assert_eq!((rig.packets("output:3"), rig.received(2), rig.received(3)), (1, 5, 1));
}

#[test]
fn a_flow_that_is_too_wide_is_deleted_with_its_last_packets_counted() {
    let _alone = alone();
    let rig = Rig::new(&["priority=1,actions=output:2"]);
    (0..3).for_each(|_| rig.send(&frame()));
    rig.flow_mod("priority=2,udp,tp_dst=53,actions=drop");
    let deleted = counted("upcall_flow_del_wildcarded", || rig.round_after(0));
    assert_eq!((rig.ufids().len(), rig.ukeys(), deleted), (0, 0, 1));
    assert_eq!(rig.packets("output:2"), 3);
}

#[test]
fn a_change_that_concerns_no_flow_deletes_none() {
    let _alone = alone();
    // That the first rule doesn't match is told by its source. Of a destination of which nothing is known its trie tells it too.
    let rig =
        Rig::new(&["priority=10,ip,nw_src=10.0.0.0/8,nw_dst=192.168.0.0/16,actions=output:2", "actions=output:3"]);
    let packet = ipv4(17, [11, 0, 0, 1], [192, 168, 1, 1], 64, 0, 0, &udp(1000, 80, &[]));
    rig.send(&common::frame(B, A, &[], 0x0800, &packet));
    let before = rig.ufids();
    rig.flow_mod("table=9,actions=drop");
    let translated = counted("revalidate_flow", || {
        assert_eq!(counted("upcall_flow_del_wildcarded", || rig.round_after(0)), 0);
    });
    assert_eq!((rig.ufids(), before.len(), translated), (before, 1, 1));
}

#[test]
fn where_rounds_take_long_only_flows_with_packets_are_translated_again() {
    let _alone = alone();
    let busy_and_quiet = |pps: u64, takes: u64| {
        let rig = Rig::with(BY_SOURCE, |options| options.min_revalidate_pps = pps);
        (0..2).for_each(|n| rig.send(&frame_from(n)));
        rig.between.dump_takes.store(takes, Ordering::SeqCst);
        // The first is seen in use once more; then one has ten packets in a second and the other one.
        (0..2).for_each(|n| rig.send(&frame_from(n)));
        rig.round_after(0);
        (0..10).for_each(|_| rig.send(&frame_from(0)));
        rig.send(&frame_from(1));
        rig.flow_mod("table=9,actions=drop");
        let deleted = counted("upcall_flow_del_too_expensive", || rig.round_after(1_000 - takes));
        assert_eq!(2 - rig.ufids().len() as u64, deleted);
        assert_eq!(rig.packets("output:2"), 15, "whatever became of them, they count");
        deleted
    };
    assert_eq!(busy_and_quiet(5, 250), 1);
    assert_eq!(busy_and_quiet(5, 249), 0, "less than half of max-revalidator");
    assert_eq!(busy_and_quiet(0, 250), 0, "0 lets all be translated");
    assert_eq!(busy_and_quiet(100, 250), 2);
}

#[test]
fn a_flow_that_four_dumps_miss_is_given_up() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    rig.round_after(0);
    let ufid = rig.ufids()[0];
    let missed = |times: usize| {
        rig.between.hidden.lock().insert(ufid);
        (0..times).for_each(|_| rig.round_after(0));
    };
    missed(3);
    assert_eq!(rig.ukeys(), 1);
    rig.between.hidden.lock().clear();
    rig.round_after(0);
    missed(3);
    assert_eq!(rig.ukeys(), 1, "one dump that shows it, and the count begins anew");
    let deleted = counted("revalidate_missing_dp_flow", || missed(1));
    assert_eq!((rig.ukeys(), rig.ufids().len(), deleted), (0, 0, 1));
}

#[test]
fn a_flow_that_the_dump_misses_is_judged_by_what_is_known() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    rig.round_after(0);
    rig.between.hidden.lock().extend(rig.ufids());
    rig.flow_mod("modify actions=output:3");
    let swept = counted("revalidate_missed_dp_flow", || rig.round_after(0));
    assert_eq!(swept, 1);
    rig.send(&frame());
    assert_eq!(rig.received(3), 1);
}

#[test]
fn a_dump_that_fails_says_nothing_of_the_flows_that_it_misses() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    rig.between.hidden.lock().extend(rig.ufids());
    *rig.between.dump_fails.lock() = true;
    (0..6).for_each(|_| rig.round_after(0));
    assert_eq!((rig.ukeys(), rig.ufids().len()), (1, 1));
}

#[test]
fn a_flow_that_is_dumped_twice_counts_once() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    (0..3).for_each(|_| rig.send(&frame()));
    rig.between.copies.store(2, Ordering::SeqCst);
    assert_eq!(counted("dumped_duplicate_flow", || rig.round_after(0)), 1);
    assert_eq!(rig.packets("output:2"), 3);
}

#[test]
fn a_flow_is_new_in_one_dump() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    assert_eq!(counted("dumped_new_flow", || rig.round_after(0)), 1);
    assert_eq!(counted("dumped_new_flow", || rig.round_after(0)), 0);
}

#[test]
fn a_flow_that_can_not_be_modified_is_deleted() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    *rig.between.modify_fails.lock() = true;
    rig.flow_mod("modify actions=output:3");
    let deleted = counted("upcall_flow_del_update_fail", || rig.round_after(0));
    assert_eq!((rig.ufids().len(), rig.ukeys(), deleted), (0, 0, 1));
    rig.send(&frame());
    assert_eq!(rig.received(3), 1);
}

#[test]
fn flows_of_a_port_that_is_on_no_bridge_any_more_go() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    let deleted = counted("upcall_flow_del_no_ofproto", || rig.switch.port_del("br0", "p1").unwrap());
    assert_eq!((rig.ufids().len(), deleted), (0, 1));
}

#[test]
fn a_counter_that_goes_back_is_noticed_and_counts_nothing() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    (0..5).for_each(|_| rig.send(&frame()));
    rig.round_after(0);
    // Somebody replaced the flow behind our back: the new one counts from 0.
    let flow = rig.switch.flows_of_datapath().unwrap().remove(0);
    rig.between.dp.flow_del(flow.ufid).unwrap();
    rig.between.dp.flow_put(&stranger(flow.ufid.0, flow.key, flow.mask, &flow.actions)).unwrap();
    rig.send(&frame());
    assert_eq!(counted("ukey_invalid_stat_reset", || rig.round_after(0)), 1);
    rig.send(&frame());
    rig.round_after(0);
    assert_eq!(rig.packets("output:2"), 6);
}

#[test]
fn a_flow_that_turns_up_is_adopted_if_it_fits() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    let odp = |port: usize| rig.between.dp.port_by_name(&format!("p{port}")).unwrap().number();
    let wide = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO };
    let exact = FlowKey { eth_src: [0xff; 6], eth_type: Be16::MAX, ip_frag: 0xff, ..wide };
    let key = |port: usize| FlowKey { in_port: odp(port).0, eth_src: A, eth_type: Be16::new(0x0800), ..FlowKey::ZERO };
    let right = [Action::Output(odp(2))];
    let put = |put: &FlowPut| rig.between.dp.flow_put(put).unwrap();
    // One that is right, one with other actions, one of a port that is on no bridge, one that recirculates.
    put(&stranger(1, key(1), exact, &right));
    put(&stranger(2, key(3), exact, &[]));
    put(&stranger(3, FlowKey { in_port: 77, ..FlowKey::ZERO }, wide, &right));
    put(&stranger(4, FlowKey { recirc_id: 7, ..key(1) }, exact, &right));
    let adopted = counted("upcall_flow_adopted", || rig.round_after(0));
    assert_eq!((rig.ufids().len(), rig.ukeys(), adopted), (2, 2, 3));
    rig.ports[2].send(frame()).unwrap();
    assert_eq!((rig.received(2), rig.between.dp.stats().unwrap().missed), (1, 0));
    rig.round_after(0);
    assert_eq!(rig.packets("output:2"), 1);
}

#[test]
fn flows_that_are_there_at_the_start_go_on_and_count_from_then() {
    let _alone = alone();
    let mut rig = Rig::new(&["actions=output:2"]);
    (0..3).for_each(|_| rig.send(&frame()));
    rig.switch.stop();
    let ufids = rig.ufids();
    let again = Rig::over(Arc::clone(&rig.between), rig.clock.clone(), &["actions=output:2"], |_| {});
    rig.ports = Vec::new();
    again.send(&frame());
    again.switch.start().unwrap();
    again.switch.pause_revalidators();
    again.send(&frame());
    again.round_after(0);
    assert_eq!((again.ufids(), again.between.dp.stats().unwrap().missed), (ufids, 1));
    assert!(again.packets("output:2") <= 1, "what came before the start is not this switch's");
    again.send(&frame());
    again.round_after(0);
    assert!(again.packets("output:2") >= 1);
}

#[test]
fn a_purge_deletes_all_flows_that_are_ours_and_counts_their_packets() {
    let _alone = alone();
    let rig = Rig::new(BY_SOURCE);
    (0..7).for_each(|n| rig.send(&frame_from(n)));
    (0..7).for_each(|n| rig.send(&frame_from(n)));
    let deleted = counted("upcall_flow_del_purge", || rig.switch.purge_flows());
    assert_eq!((rig.ufids().len(), rig.ukeys(), deleted), (0, 0, 7));
    assert_eq!(rig.packets("output:2"), 14);
}

#[test]
fn paused_revalidators_begin_no_round() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    rig.send(&frame());
    assert!(rig.switch.revalidators_are_paused());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(rig.packets("output:2"), 1, "the handler's");
    rig.switch.resume_revalidators();
    assert!(testkit::wait_until(Duration::from_secs(5), || rig.packets("output:2") == 2));
}

#[test]
fn statistics_go_to_rules_tables_addresses_and_patch_ports() {
    let _alone = alone();
    let rig = Rig::new(&["priority=1,udp,actions=resubmit(,1),resubmit(,2)", "table=1,udp,actions=output:9,NORMAL"]);
    rig.switch.bridge_add("br1", ofproto::BridgeSettings::default()).unwrap();
    for (bridge, name, peer, number) in [("br0", "to1", "to0", 9), ("br1", "to0", "to1", 1)] {
        let kind = PortKind::Patch { peer: peer.into() };
        rig.switch.port_add(bridge, name, kind, PortVlan::default(), Some(openflow::OfPort(number))).unwrap();
    }
    let bytes = frame().len() as u64;
    (0..4).for_each(|_| rig.send(&frame()));
    rig.round_after(0);
    rig.clock.advance_ms(3_000);
    (0..2).for_each(|_| rig.send(&frame()));
    rig.round_after(1_000);
    assert_eq!((rig.packets("resubmit(,1)"), rig.packets("table=1")), (6, 6));
    let table = |bridge: &str, table: u8| rig.switch.table_stats(bridge, table).unwrap();
    assert_eq!((table("br0", 0), table("br0", 1), table("br0", 2)), ((6, 0), (6, 0), (0, 6)));
    assert_eq!(table("br1", 0), (12, 0), "by the patch port, and flooded to it once more");
    let stats = rig.switch.port_stats("br1", "to0").unwrap();
    assert_eq!((stats.rx_packets, stats.rx_bytes), (12, 12 * bytes));
    let addresses = rig.switch.fdb_show("br0").unwrap();
    assert!(addresses.contains("50:54:00:00:00:01    1\n"), "seen a second ago:\n{addresses}");
}

#[test]
fn dumps_of_whole_flows_do_the_same() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.switch.set_terse_dumps(false);
    (0..3).for_each(|_| rig.send(&frame()));
    rig.round_after(0);
    assert_eq!((rig.packets("output:2"), rig.ufids().len()), (3, 1));
    assert!(rig.switch.upcall_show().contains("ufid enabled : false\n"));
}

#[test]
fn revalidators_share_a_dump() {
    let _alone = alone();
    let rig = Rig::with(BY_SOURCE, |options| options.n_revalidators = Some(3));
    rig.between.parts.store(16, Ordering::SeqCst);
    (0..100).for_each(|n| rig.send(&frame_from(n)));
    (0..100).for_each(|n| rig.send(&frame_from(n)));
    rig.between.readers.lock().clear();
    rig.between.crowd.store(3, Ordering::SeqCst);
    rig.round_after(0);
    assert_eq!(rig.between.readers.lock().len(), 3, "who leads and two followers");
    assert_eq!((rig.packets("output:2"), rig.ukeys()), (200, 100), "each flow was counted once");
    rig.round_after(10_001);
    assert_eq!((rig.ufids().len(), rig.ukeys()), (0, 0));
}

#[test]
fn a_chain_of_rules_is_shown_with_bridges_tables_and_cookies() {
    let _alone = alone();
    let rig = Rig::new(&[
        "cookie=0x12,priority=100,udp,actions=resubmit(,1),resubmit(,4),output:9",
        "table=1,priority=200,ip,actions=output:2",
    ]);
    let settings = ofproto::BridgeSettings { fail_mode: ofproto::FailMode::Standalone, ..Default::default() };
    rig.switch.bridge_add("br1", settings).unwrap();
    for (bridge, name, peer, number) in [("br0", "to1", "to0", 9), ("br1", "to0", "to1", 1)] {
        let kind = PortKind::Patch { peer: peer.into() };
        rig.switch.port_add(bridge, name, kind, PortVlan::default(), Some(openflow::OfPort(number))).unwrap();
    }
    rig.send(&frame());
    rig.round_after(2_500);
    let bytes = frame().len();
    let counters = format!("duration=2s, n_packets=1, n_bytes={bytes}, n_offload_packets=0, n_offload_bytes=0, ");
    let expected = format!(
        "br0\n  cookie=0x12, {counters}priority=100,udp,actions=resubmit(,1),resubmit(,4),output:9\n  \
         table_id=1, {counters}priority=200,ip,actions=output:2\n  table_id=4, no match\n\
         br1\n  {counters}priority=0,actions=NORMAL\n"
    );
    assert_eq!(rig.switch.detrace(rig.ufids()[0]), expected);
    assert_eq!(rig.switch.detrace(Ufid(5)), "UFID was not found for netdev@ovs-netdev\n");
}

#[test]
fn what_is_known_of_each_flow_is_shown() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    rig.send(&frame());
    rig.round_after(1_500);
    let text = rig.switch.dump_ukeys(None);
    let ufid = rig.ufids()[0].to_string();
    for what in [ufid.as_str(), "packets:1, ", "state:operational, ", "age:1.500s, up to date, missed_dumps:0\n"] {
        assert!(text.contains(what), "{what} is not in {text}");
    }
    rig.flow_mod("table=7,actions=drop");
    assert!(rig.switch.dump_ukeys(None).contains("to be translated"));
}

/// So that a test may be without threads: nothing is revalidated before the flows found are adopted.
#[test]
fn a_switch_that_was_not_started_deletes_nothing() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    rig.send(&frame());
    rig.switch.stop();
    let fresh: Rig = Rig::over(Arc::clone(&rig.between), rig.clock.clone(), &["actions=drop"], |_| {});
    fresh.round_after(60_000);
    assert_eq!(fresh.ufids().len(), 1);
    let _: (&Switch, OdpPort) = (&fresh.switch, OdpPort(1));
}

#[test]
fn what_makes_flows_be_translated_again_is_counted_by_its_kind() {
    let _alone = alone();
    let rig = Rig::new(&["actions=NORMAL"]);
    assert_eq!(counted("rev_flow_table", || rig.flow_mod("table=3,actions=drop")), 1);
    assert_eq!(counted("rev_mac_learning", || rig.send(&frame())), 1);
    assert_eq!(counted("rev_mac_learning", || rig.send(&frame())), 0, "it is no news");
    let reconfigured = counted("rev_reconfigure", || {
        rig.switch.port_set_vlan("br0", "p1", PortVlan::Access(3)).unwrap();
        rig.switch.port_set_vlan("br0", "none", PortVlan::Access(3)).unwrap_err();
    });
    assert_eq!(reconfigured, 1);
    assert!(counted("xlate_actions", || rig.round_after(0)) >= 1);
}

#[test]
fn operations_of_the_datapath_are_counted() {
    let _alone = alone();
    let rig = Rig::new(&["actions=output:2"]);
    assert_eq!(counted("dpif_flow_put", || rig.send(&frame())), 1);
    assert_eq!(counted("dpif_flow_del", || rig.switch.purge_flows()), 1);
    assert_eq!(counted("dpif_execute", || rig.send(&frame())), 1);
    let ufid = rig.ufids()[0];
    let failed = counted("dpif_flow_del_error", || {
        rig.switch.dpif().flow_del(ufid).unwrap();
        rig.switch.dpif().flow_del(ufid).unwrap_err();
    });
    assert_eq!(failed, 1);
}
