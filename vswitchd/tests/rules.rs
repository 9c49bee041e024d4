//! The upcall engine's rules on datapaths with real devices, each on eBPF and in this process.
//!
//! `ofproto/tests/{upcall,revalidator,recirc}.rs` hold the rules one by one, with a clock that the test moves and a datapath that
//! does what the test asks for. Here are those in which the datapath has a part: what it counts, how it keeps, changes and deletes
//! flows, what it sends up and executes. Not here are the rules about a datapath that lies or fails, a handler that panics, dumps
//! that miss flows (both datapaths dump what they have), and numbers that come from the clock alone.

mod lab;

use std::time::Duration;

use dpif::{Action, DpStats, FlowKey, FlowPut, FlowStats, PortKind as DpPortKind, PortSpec, PutMode, Ufid};
use lab::{Datapath, Lab, flows, udp};
use ofproto::{BridgeSettings, FailMode, Options, PortKind, PortVlan, Switch};
use testkit::{RawSocket, wait_until};

/// How long something that must come may take.
const SOON: Duration = Duration::from_secs(5);
/// How long is waited for what must not come.
const QUIET: Duration = Duration::from_millis(30);

/// One megaflow for each UDP source port.
const PER_FLOW: &str = "udp,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],output:2";

/// A switch with ports 1 to 3 whose revalidators work when the test says so.
struct Rig {
    lab: Lab,
    sockets: Vec<RawSocket>,
}

/// Runs a test on both datapaths.
fn on_each_datapath(name: &str, options: impl Fn(&mut Options), rules: &[&str], test: impl Fn(&mut Rig)) {
    for datapath in [Datapath::Userspace, Datapath::Ebpf] {
        if !testkit::skip::have(name, datapath.needs()) {
            return;
        }
        println!("on {datapath:?}");
        let lab = Lab::new(datapath, 4, 3, with(&options));
        lab.flows(rules);
        lab.switch.pause_revalidators();
        lab.start();
        let sockets = (1..=4).map(|n| lab.socket(n)).collect();
        test(&mut Rig { lab, sockets });
    }
}

fn with(change: &impl Fn(&mut Options)) -> Options {
    let mut options =
        Options { n_handlers: Some(1), n_revalidators: Some(1), max_idle_ms: 60_000, ..Options::default() };
    change(&mut options);
    options
}

fn frame(n: u16) -> Vec<u8> {
    udp(2, 1, [n, 80], 60)
}

impl Rig {
    fn switch(&self) -> &Switch {
        &self.lab.switch
    }

    fn stats(&self) -> DpStats {
        self.switch().dpif().stats().unwrap()
    }

    /// A frame comes in by a port; returns when it has been looked up, and its upcalls, if any, are answered.
    fn send_by(&self, port: usize, frame: &[u8]) {
        let lookups = |stats: DpStats| stats.hit + stats.missed;
        let before = lookups(self.stats());
        self.sockets[port - 1].send(frame).unwrap();
        assert!(wait_until(SOON, || lookups(self.stats()) > before), "the frame did not come in");
        // A miss is counted before it is queued, and its answer may be another one.
        let is_answered = || {
            let before = self.stats();
            self.switch().await_upcalls();
            let queued = |of: &DpStats| of.upcalls.map(|upcalls| upcalls.misses + upcalls.lost_misses);
            queued(&before) == Some(before.missed) && self.stats() == before
        };
        assert!(wait_until(SOON, is_answered), "upcalls without end");
    }

    fn send(&self, frame: &[u8]) {
        self.send_by(1, frame);
    }

    /// What comes out of a port: `n` frames and no more.
    fn out(&self, port: usize, n: usize) -> Vec<Vec<u8>> {
        let socket = &self.sockets[port - 1];
        let frames: Vec<_> = (0..n).map_while(|_| socket.recv(SOON).unwrap()).map(|frame| frame.bytes).collect();
        assert_eq!(frames.len(), n, "port {port}");
        let more = socket.recv(QUIET).unwrap();
        assert!(more.is_none(), "{n} frames and {more:02x?} out of port {port}");
        frames
    }

    fn flows(&self) -> Vec<(Ufid, FlowStats)> {
        self.switch().flows_of_datapath().unwrap().into_iter().map(|flow| (flow.ufid, flow.stats)).collect()
    }

    fn ukeys(&self) -> usize {
        self.switch().upcall_summary().current
    }

    /// The flow of the datapath that has this action, as it would be put.
    fn flow_with(&self, action: &Action) -> FlowPut {
        let flow = self.switch().flows_of_datapath().unwrap().into_iter().find(|flow| flow.actions.contains(action));
        let flow = flow.unwrap_or_else(|| panic!("no flow has {action:?}"));
        FlowPut { mode: PutMode::Create, ufid: flow.ufid, key: flow.key, mask: flow.mask, actions: flow.actions }
    }

    /// The recirculation ids that the datapath's flows match on, and those that they lead to.
    fn ids(&self) -> (Vec<u32>, Vec<u32>) {
        let flows = self.switch().flows_of_datapath().unwrap();
        let led = |action: &Action| if let Action::Recirc(id) = action { Some(*id) } else { None };
        let matched = flows.iter().map(|flow| flow.key.recirc_id).filter(|id| *id != 0);
        (matched.collect(), flows.iter().flat_map(|flow| flow.actions.iter()).filter_map(led).collect())
    }

    /// `n_packets` of the only rule whose text has `what` in it.
    fn packets(&self, what: &str) -> u64 {
        let dump = self.switch().dump_flows("br0").unwrap();
        let lines: Vec<_> = dump.lines().filter(|line| line.contains(what)).collect();
        let [line] = lines.as_slice() else { panic!("{what} is not in one line of\n{dump}") };
        line.split("n_packets=").nth(1).and_then(|rest| rest.split(',').next()?.parse().ok()).expect("a number")
    }

    fn deleted(&self, reason: &str) -> bool {
        self.switch().upcall_show().contains(&format!("deleted: {reason} "))
    }
}

#[test]
fn a_miss_installs_a_flow_and_its_packet_goes_on() {
    on_each_datapath(
        "a_miss_installs_a_flow_and_its_packet_goes_on",
        |_| {},
        &[PER_FLOW],
        |rig| {
            for n in 0..20 {
                rig.send(&frame(n % 10));
            }
            assert_eq!(rig.out(2, 20), (0..20).map(|n| frame(n % 10)).collect::<Vec<_>>());
            let (stats, totals) = (rig.stats(), rig.switch().upcall_totals());
            assert_eq!((stats.missed, stats.hit, stats.flows, rig.ukeys()), (10, 10, 10, 10));
            assert_eq!((totals.received, totals.installed, totals.executed), (10, 10, 10));
            // The first packet of each is counted by its handler, the others by the datapath until a round.
            assert_eq!(rig.packets("actions"), 10);
            rig.switch().revalidate_now();
            assert_eq!(rig.packets("actions"), 20);
        },
    );
}

#[test]
fn over_the_flow_limit_packets_go_on_and_flows_do_not() {
    let limited = |options: &mut Options| options.flow_limit = 5;
    on_each_datapath("over_the_flow_limit_packets_go_on_and_flows_do_not", limited, &[PER_FLOW], |rig| {
        (0..20).for_each(|n| rig.send(&frame(n)));
        rig.out(2, 20);
        assert_eq!((rig.stats().flows, rig.switch().upcall_totals().flow_limit), (5, 15));
        rig.switch().set_dynamic_flow_limit(2);
        rig.switch().revalidate_now();
        assert_eq!((rig.stats().flows, rig.ukeys()), (0, 0), "over twice the limit all go");
        assert!(rig.deleted("kill all flows condition reached"));
        assert_eq!(rig.packets("actions"), 20);
    });
}

#[test]
fn a_packet_that_no_datapath_can_handle_comes_up_each_time() {
    let rules = ["actions=output(port=2,max_len=20),mod_nw_ttl:9,output:3"];
    on_each_datapath(
        "a_packet_that_no_datapath_can_handle_comes_up_each_time",
        |_| {},
        &rules,
        |rig| {
            (0..3).for_each(|_| rig.send(&frame(1)));
            assert_eq!(rig.out(2, 3), vec![frame(1)[..20].to_vec(); 3]);
            assert!(rig.out(3, 3).iter().all(|frame| frame[22] == 9));
            let (stats, totals) = (rig.stats(), rig.switch().upcall_totals());
            assert_eq!((stats.missed, stats.hit, stats.flows), (1, 2, 1));
            assert_eq!((totals.received, totals.executed), (3, 3));
            assert_eq!(stats.upcalls.map(|upcalls| (upcalls.misses, upcalls.actions)), Some((1, 2)));
        },
    );
}

#[test]
fn a_port_on_no_bridge_gets_an_empty_flow() {
    on_each_datapath(
        "a_port_on_no_bridge_gets_an_empty_flow",
        |_| {},
        &["actions=FLOOD"],
        |rig| {
            let spec = PortSpec { name: "v4".into(), kind: DpPortKind::System, request: None };
            let port = rig.lab.run(|switch| switch.dpif().port_add(&spec)).unwrap();
            (0..3).for_each(|n| rig.send_by(4, &frame(n)));
            let flows = rig.switch().flows_of_datapath().unwrap();
            let [flow] = flows.as_slice() else { panic!("{flows:?}") };
            assert_eq!((flow.key.in_port, flow.actions.len()), (port.0, 0));
            assert_eq!((rig.switch().upcall_totals().unknown_port, rig.stats().hit), (1, 2));
            (1..=3).for_each(|n| drop(rig.out(n, 0)));
        },
    );
}

#[test]
fn a_flush_and_a_purge_leave_no_flow_and_count_its_packets() {
    on_each_datapath(
        "a_flush_and_a_purge_leave_no_flow_and_count_its_packets",
        |_| {},
        &[PER_FLOW],
        |rig| {
            (0..20).for_each(|n| rig.send(&frame(n / 2)));
            rig.lab.run(Switch::flush).unwrap();
            assert_eq!((rig.stats().flows, rig.ukeys(), rig.packets("actions")), (0, 0, 20));
            rig.send(&frame(1));
            rig.send(&frame(1));
            rig.switch().purge_flows();
            assert_eq!((rig.stats().flows, rig.ukeys(), rig.packets("actions")), (0, 0, 22));
            rig.send(&frame(1));
            rig.out(2, 23);
        },
    );
}

#[test]
fn a_flow_goes_when_it_is_idle_and_not_before() {
    let short = |options: &mut Options| options.max_idle_ms = 400;
    on_each_datapath("a_flow_goes_when_it_is_idle_and_not_before", short, &[PER_FLOW], |rig| {
        rig.send(&frame(1));
        rig.send(&frame(2));
        for _ in 0..6 {
            std::thread::sleep(Duration::from_millis(100));
            rig.send(&frame(1));
            rig.switch().revalidate_now();
        }
        assert_eq!((rig.stats().flows, rig.stats().missed), (1, 2), "one was used, the other was not");
        assert!(rig.deleted("flow idle timeout"));
        std::thread::sleep(Duration::from_millis(600));
        rig.switch().revalidate_now();
        assert_eq!((rig.stats().flows, rig.ukeys(), rig.packets("actions")), (0, 0, 8));
    });
}

#[test]
fn a_flow_whose_actions_alone_differ_is_modified_in_place() {
    let rules = ["actions=output:2"];
    on_each_datapath(
        "a_flow_whose_actions_alone_differ_is_modified_in_place",
        |_| {},
        &rules,
        |rig| {
            (0..3).for_each(|_| rig.send(&frame(1)));
            let before = rig.flows();
            rig.lab.flows(&["actions=output:3"]);
            rig.switch().revalidate_now();
            assert_eq!(rig.flows(), before, "the same flow, its statistics kept");
            (0..2).for_each(|_| rig.send(&frame(1)));
            rig.out(2, 3);
            rig.out(3, 2);
            rig.switch().revalidate_now();
            assert_eq!(
                (rig.stats().missed, rig.packets("output:3")),
                (1, 2),
                "what it counted before is another rule's"
            );
            assert_eq!(rig.flows()[0].1.packets, 4);
        },
    );
}

#[test]
fn a_flow_that_is_too_wide_is_deleted_with_its_last_packets_counted() {
    let rules = ["priority=1,actions=output:2"];
    on_each_datapath(
        "a_flow_that_is_too_wide_is_deleted_with_its_last_packets_counted",
        |_| {},
        &rules,
        |rig| {
            (0..3).for_each(|_| rig.send(&frame(1)));
            rig.switch().flow_mods_apply("br0", &flows(&["priority=2,udp,tp_src=7,actions=output:3"])).unwrap();
            rig.switch().revalidate_now();
            assert_eq!((rig.stats().flows, rig.ukeys(), rig.packets("output:2")), (0, 0, 3));
            assert!(rig.deleted("flow needs a narrower wildcard mask"));
            rig.send(&frame(7));
            rig.send(&frame(8));
            rig.out(3, 1);
            rig.out(2, 4);
        },
    );
}

#[test]
fn flows_of_a_port_that_is_on_no_bridge_any_more_go() {
    let rules = ["actions=FLOOD"];
    on_each_datapath(
        "flows_of_a_port_that_is_on_no_bridge_any_more_go",
        |_| {},
        &rules,
        |rig| {
            rig.send_by(1, &frame(1));
            rig.send_by(3, &frame(1));
            let gone = rig.lab.odp(3);
            rig.lab.run(|switch| switch.port_del("br0", "v3")).unwrap();
            let flows = rig.switch().flows_of_datapath().unwrap();
            assert_eq!(flows.len(), 1, "{flows:?}");
            assert!(
                flows.iter().all(|flow| flow.key.in_port != gone.0 && !flow.actions.contains(&Action::Output(gone)))
            );
        },
    );
}

#[test]
fn a_flow_that_turns_up_is_adopted_if_it_fits_and_one_that_is_taken_away_is_missed() {
    let name = "a_flow_that_turns_up_is_adopted_if_it_fits_and_one_that_is_taken_away_is_missed";
    on_each_datapath(
        name,
        |_| {},
        &["actions=output:2"],
        |rig| {
            let dpif = rig.switch().dpif();
            rig.send(&frame(1));
            let right = rig.flow_with(&Action::Output(rig.lab.odp(2)));
            dpif.flow_del(right.ufid).unwrap();
            (0..5).for_each(|_| rig.switch().revalidate_now());
            assert_eq!(rig.ukeys(), 0);
            assert!(rig.deleted("flow is missing from the datapath"));

            let key = |n: usize| FlowKey { in_port: rig.lab.odp(n).0, ..right.key };
            let put = |ufid: u128, key: FlowKey, actions: &[Action]| {
                let put = FlowPut { ufid: Ufid(ufid), key, actions: actions.into(), ..right.clone() };
                dpif.flow_put(&put).unwrap_or_else(|error| panic!("{error}"));
            };
            let output = [Action::Output(rig.lab.odp(2))];
            // One that is right, one with other actions, one of a port that is on no bridge, one of a recirculation.
            put(1, key(1), &output);
            put(2, key(3), &[]);
            put(3, FlowKey { in_port: 77, ..key(1) }, &output);
            put(4, FlowKey { recirc_id: 4711, ..key(1) }, &output);
            rig.switch().revalidate_now();
            assert_eq!((rig.flows().len(), rig.ukeys()), (2, 2), "{:?}", rig.flows());
            rig.send_by(3, &frame(1));
            rig.out(2, 2);
            assert_eq!(rig.stats().missed, 1);
        },
    );
}

#[test]
fn revalidators_share_the_flows_and_each_counts_once() {
    let three = |options: &mut Options| options.n_revalidators = Some(3);
    on_each_datapath("revalidators_share_the_flows_and_each_counts_once", three, &[PER_FLOW], |rig| {
        for n in 0..300 {
            rig.sockets[0].send(&frame(n / 3)).unwrap();
        }
        rig.out(2, 300);
        (0..3).for_each(|_| rig.switch().revalidate_now());
        assert_eq!((rig.packets("actions"), rig.stats().flows, rig.ukeys()), (300, 100, 100));
    });
}

#[test]
fn flows_go_on_over_a_restart_and_are_adopted() {
    on_each_datapath(
        "flows_go_on_over_a_restart_and_are_adopted",
        |_| {},
        &["actions=output:2"],
        |rig| {
            rig.send(&frame(1));
            let (ufids, missed) = (rig.flows()[0].0, rig.stats().missed);
            rig.lab.restart(with(&|_| {}));
            rig.lab.flows(&["actions=output:2"]);
            rig.send(&frame(1));
            rig.lab.start();
            rig.send(&frame(1));
            rig.switch().synchronize();
            rig.out(2, 3);
            assert_eq!((rig.flows()[0].0, rig.ukeys(), rig.stats().missed), (ufids, 1, missed));
            rig.send(&frame(1));
            rig.switch().revalidate_now();
            assert!((1..=2).contains(&rig.packets("output:2")), "what came before is not this switch's");
        },
    );
}

#[test]
fn what_stands_behind_a_recirculation_is_done_when_the_packet_comes_back() {
    let rules = [
        "table=0,actions=load:5->NXM_NX_REG0[],resubmit(,1),output:3",
        "table=1,actions=resubmit(,2),output:2",
        "table=2,actions=load:7->OXM_OF_METADATA[],mod_dl_dst:50:54:00:00:00:09,debug_recirc,resubmit(,3)",
        "table=3,reg0=5,metadata=7,actions=IN_PORT",
    ];
    let name = "what_stands_behind_a_recirculation_is_done_when_the_packet_comes_back";
    on_each_datapath(
        name,
        |_| {},
        &rules,
        |rig| {
            (0..3).for_each(|_| rig.send(&frame(1)));
            for port in 1..=3 {
                assert!(rig.out(port, 3).iter().all(|frame| frame[..6] == [0x50, 0x54, 0, 0, 0, 9]));
            }
            let stats = rig.stats();
            assert_eq!((stats.missed, stats.hit, stats.flows, stats.recirculated), (2, 4, 2, 3));
            assert_eq!(rig.switch().n_recirc_ids(), 1);
        },
    );
}

#[test]
fn another_bridge_recirculates_and_this_one_goes_on() {
    let name = "another_bridge_recirculates_and_this_one_goes_on";
    on_each_datapath(
        name,
        |_| {},
        &["actions=output:9,output:2"],
        |rig| {
            let patch = |peer: &str| PortKind::Patch { peer: peer.into() };
            rig.lab.run(|switch| {
                let settings = BridgeSettings { fail_mode: FailMode::Secure, ..BridgeSettings::default() };
                switch.bridge_add("br1", settings).unwrap();
                let nine = Some(openflow::OfPort(9));
                switch.port_add("br0", "patch0", patch("patch1"), PortVlan::default(), nine).unwrap();
                switch.port_add("br1", "patch1", patch("patch0"), PortVlan::default(), nine).unwrap();
                switch.port_add("br1", "v4", PortKind::System, PortVlan::default(), None).unwrap();
                switch.flows_replace("br1", Some(&flows(&["actions=mod_nw_ttl:9,debug_recirc,output:1"]))).unwrap();
            });
            (0..2).for_each(|_| rig.send(&frame(1)));
            assert_eq!(rig.out(2, 2), vec![frame(1); 2], "what the other bridge changed, this one doesn't see");
            assert!(rig.out(4, 2).iter().all(|frame| frame[22] == 9));
        },
    );
}

#[test]
fn a_recirculation_id_lives_as_long_as_a_flow_that_carries_it() {
    let short = |options: &mut Options| options.max_idle_ms = 300;
    let name = "a_recirculation_id_lives_as_long_as_a_flow_that_carries_it";
    on_each_datapath(name, short, &["actions=debug_recirc,output:2"], |rig| {
        rig.send(&frame(1));
        assert_eq!((rig.switch().n_recirc_ids(), rig.stats().flows), (1, 2));
        rig.lab.flows(&["actions=debug_recirc,output:3"]);
        rig.switch().revalidate_now();
        rig.send(&frame(1));
        rig.out(2, 1);
        rig.out(3, 1);
        assert_eq!(rig.switch().n_recirc_ids(), 2);
        std::thread::sleep(Duration::from_millis(400));
        rig.switch().revalidate_now();
        assert_eq!((rig.switch().n_recirc_ids(), rig.stats().flows), (0, 0));
    });
}

#[test]
fn a_packet_with_an_unknown_recirculation_id_is_dropped_and_makes_no_flow() {
    let name = "a_packet_with_an_unknown_recirculation_id_is_dropped_and_makes_no_flow";
    on_each_datapath(
        name,
        |_| {},
        &["actions=output:2"],
        |rig| {
            rig.send(&frame(1));
            rig.out(2, 1);
            let flow = rig.flow_with(&Action::Output(rig.lab.odp(2)));
            let astray = FlowPut { mode: PutMode::Modify, actions: vec![Action::Recirc(4711)].into(), ..flow };
            rig.switch().dpif().flow_put(&astray).unwrap();
            (0..2).for_each(|_| rig.send(&frame(1)));
            rig.switch().await_upcalls();
            rig.out(2, 0);
            assert_eq!((rig.stats().flows, rig.switch().upcall_totals().dropped), (1, 2));
        },
    );
}

#[test]
fn flows_that_recirculate_go_on_over_a_restart_and_nobody_gets_their_ids() {
    let rules = ["actions=debug_recirc,output:2"];
    let name = "flows_that_recirculate_go_on_over_a_restart_and_nobody_gets_their_ids";
    on_each_datapath(
        name,
        |_| {},
        &rules,
        |rig| {
            rig.send(&frame(1));
            let (old, missed) = (rig.ids().0, rig.stats().missed);
            assert_eq!((old.len(), missed), (1, 2));
            let short = |options: &mut Options| options.max_idle_ms = 1_000;
            rig.lab.restart(with(&short));
            rig.lab.flows(&rules);
            rig.send(&frame(1));
            rig.switch().pause_revalidators();
            rig.lab.start();
            rig.send(&frame(1));
            assert_eq!(
                (rig.ids(), rig.stats().missed),
                ((old.clone(), old.clone()), missed),
                "nothing is lost or looked at twice"
            );
            rig.switch().revalidate_now();
            let (matched, led) = rig.ids();
            assert!(matched == old && led.len() == 1 && led[0] > old[0], "{matched:?} {led:?}");
            rig.send(&frame(1));
            rig.out(2, 4);
            assert_eq!((rig.ids().0.len(), rig.switch().n_inherited_recirc_ids()), (2, 1));
            // What nobody is led to any more goes when it is idle, what is in use stays.
            let only_ours = || {
                rig.send(&frame(1));
                rig.switch().revalidate_now();
                rig.ids().0 == led
            };
            assert!(wait_until(SOON, only_ours), "{:?}, of ours {led:?}", rig.ids());
            assert_eq!(rig.switch().n_inherited_recirc_ids(), 0);
        },
    );
}
