//! The whole switch on the in-process datapath: frames go in at ports and come out of ports.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{MACS, udp_frame};
use dpif::inproc::{InprocDatapath, InprocPort, Options as DpOptions};
use dpif::{Dpif, PortKind as DpPortKind, PortSpec};
use ofproto::{BridgeSettings, Clock, FailMode, ManualClock, Options, PortKind, PortVlan, Switch, Trunks};
use openflow::{FlowMod, NoPortNames, OfPort};

const A: [u8; 6] = MACS[0];
const B: [u8; 6] = MACS[1];
const C: [u8; 6] = MACS[2];
const ALL: [u8; 6] = [0xff; 6];

struct World {
    dp: InprocDatapath,
    switch: Switch,
    clock: ManualClock,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Options)) -> Self {
        let clock = ManualClock::new(1_000_000);
        let dp_clock = clock.clone();
        let mut dp_options = DpOptions::new("ovs-netdev");
        dp_options.clock = Arc::new(move || dp_clock.now_ms() * 1_000_000);
        let dp = InprocDatapath::with_options(dp_options);
        let switch = Self::switch(&dp, &clock, change);
        Self { dp, switch, clock }
    }

    fn switch(dp: &InprocDatapath, clock: &ManualClock, change: impl FnOnce(&mut Options)) -> Switch {
        let mut options = Options { clock: Arc::new(clock.clone()), n_handlers: Some(2), ..Options::default() };
        change(&mut options);
        Switch::new(Arc::new(dp.clone()), options)
    }

    fn bridge(&self, name: &str, ports: &[(&str, PortVlan)]) -> Vec<InprocPort> {
        self.switch.bridge_add(name, BridgeSettings::default()).unwrap();
        ports
            .iter()
            .map(|(port, vlan)| {
                self.switch.port_add(name, port, PortKind::System, vlan.clone(), None).unwrap();
                self.dp.port_by_name(port).unwrap()
            })
            .collect()
    }

    fn flows(&self, bridge: &str, text: &[&str]) {
        let mods: Vec<_> = text.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
        self.switch.flows_replace(bridge, Some(&mods)).unwrap();
        self.switch.revalidate_now();
    }

    /// Sends a frame and says which ports it came out of, as what.
    fn send(&self, from: &InprocPort, frame: &[u8], ports: &[InprocPort]) -> Vec<(String, Vec<u8>)> {
        from.send(frame).unwrap();
        self.switch.synchronize();
        let mut out = Vec::new();
        for port in ports {
            while let Some(packet) = port.recv() {
                out.push((port.name().to_string(), packet.data));
            }
        }
        out
    }

    fn flow_count(&self) -> usize {
        self.switch.flows_of_datapath().unwrap().len()
    }
}

fn names(out: &[(String, Vec<u8>)]) -> Vec<&str> {
    out.iter().map(|(name, _)| name.as_str()).collect()
}

fn trunk() -> PortVlan {
    PortVlan::default()
}

#[test]
fn a_learning_switch_floods_until_it_knows() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk()), ("p3", trunk())]);
    world.switch.start().unwrap();
    assert_eq!(names(&world.send(&p[0], &udp_frame(B, A, &[]), &p)), ["p2", "p3"]);
    assert_eq!(names(&world.send(&p[1], &udp_frame(A, B, &[]), &p)), ["p1"]);
    // The first megaflow flooded: what was learned since has changed it in place.
    assert_eq!(names(&world.send(&p[0], &udp_frame(B, A, &[]), &p)), ["p2"]);
    assert_eq!((world.dp.stats().unwrap().hit, world.dp.stats().unwrap().missed), (1, 2));
    assert_eq!(names(&world.send(&p[0], &udp_frame([1, 0x80, 0xc2, 0, 0, 0], A, &[]), &p)), Vec::<&str>::new());
    world.clock.advance_ms(5_000);
    assert_eq!(
        world.switch.fdb_show("br0").unwrap(),
        " port  VLAN  MAC                Age\n    1     0  50:54:00:00:00:01    5\n    2     0  50:54:00:00:00:02    5\n"
    );
    world.clock.advance_ms(300_000);
    world.switch.revalidate_now();
    assert_eq!(world.switch.fdb_show("br0").unwrap(), " port  VLAN  MAC                Age\n");
}

#[test]
fn a_packet_to_its_own_sender_goes_nowhere() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    world.switch.start().unwrap();
    assert_eq!(names(&world.send(&p[0], &udp_frame(A, A, &[]), &p)), Vec::<&str>::new());
    assert_eq!(names(&world.send(&p[0], &udp_frame(A, A, &[]), &p)), Vec::<&str>::new());
}

#[test]
fn vlans_are_tagged_as_each_port_wants() {
    let world = World::new();
    let p = world.bridge(
        "br0",
        &[
            ("acc10", PortVlan::Access(10)),
            ("acc20", PortVlan::Access(20)),
            ("trunk", PortVlan::Trunk(Trunks::of([10, 20]))),
            ("native", PortVlan::NativeUntagged(10, Trunks::of([20]))),
        ],
    );
    world.switch.start().unwrap();
    let tagged = |vid| udp_frame(ALL, A, &[(0x8100, vid)]);
    let untagged = udp_frame(ALL, A, &[]);
    let out = |from: usize, frame: &[u8]| {
        let mut out = world.send(&p[from], frame, &p);
        let local = world.dp.port_by_name("br0").unwrap();
        while local.recv().is_some() {}
        out.sort();
        out
    };
    let expect =
        |pairs: &[(&str, &[u8])]| -> Vec<_> { pairs.iter().map(|(n, f)| (n.to_string(), f.to_vec())).collect() };
    assert_eq!(out(0, &untagged), expect(&[("native", &untagged), ("trunk", &tagged(10))]));
    assert_eq!(out(1, &untagged), expect(&[("native", &tagged(20)), ("trunk", &tagged(20))]));
    assert_eq!(out(2, &tagged(10)), expect(&[("acc10", &untagged), ("native", &untagged)]));
    assert_eq!(out(3, &untagged), expect(&[("acc10", &untagged), ("trunk", &tagged(10))]));
    assert_eq!(out(0, &tagged(10)), [], "an access port takes no tags");
    assert_eq!(out(2, &tagged(30)), [], "not a VLAN of the trunk");
    assert_eq!(out(2, &untagged), [], "VLAN 0 is not one of the trunk's");
}

#[test]
fn a_packet_over_two_bridges_is_one_megaflow() {
    let world = World::new();
    let mut p = world.bridge("br0", &[("p1", trunk())]);
    p.extend(world.bridge("br1", &[("p2", trunk()), ("p3", PortVlan::Access(7))]));
    for (bridge, name, peer) in [("br0", "to1", "to0"), ("br1", "to0", "to1")] {
        world.switch.port_add(bridge, name, PortKind::Patch { peer: peer.into() }, trunk(), None).unwrap();
    }
    world.switch.start().unwrap();
    assert_eq!(names(&world.send(&p[0], &udp_frame(B, A, &[]), &p)), ["p2"]);
    assert_eq!(world.flow_count(), 1);
    assert_eq!(names(&world.send(&p[1], &udp_frame(A, B, &[]), &p)), ["p1"]);
    assert!(world.switch.fdb_show("br1").unwrap().contains("    3     0  50:54:00:00:00:01"));
    assert!(world.switch.fdb_show("br0").unwrap().contains("    2     0  50:54:00:00:00:02"));
    let stats = world.switch.port_stats("br0", "to1").unwrap();
    assert_eq!((stats.tx_packets, stats.rx_packets), (1, 1));
    // Without its peer a patch port leads nowhere.
    world.switch.port_set_peer("br1", "to0", "other").unwrap();
    world.switch.revalidate_now();
    assert_eq!(names(&world.send(&p[0], &udp_frame(B, A, &[]), &p)), Vec::<&str>::new());
}

#[test]
fn what_one_bridge_changes_the_other_ports_do_not_see() {
    let world = World::new();
    let mut p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    p.extend(world.bridge("br1", &[("p3", trunk())]));
    for (bridge, name, peer) in [("br0", "to1", "to0"), ("br1", "to0", "to1")] {
        world.switch.port_add(bridge, name, PortKind::Patch { peer: peer.into() }, trunk(), None).unwrap();
    }
    world.flows("br0", &["actions=output:3,output:2"]);
    world.flows("br1", &["actions=mod_vlan_vid:5,mod_dl_dst:50:54:00:00:00:09,output:1"]);
    world.switch.start().unwrap();
    let frame = udp_frame(B, A, &[]);
    let out = world.send(&p[0], &frame, &p);
    let changed = udp_frame([0x50, 0x54, 0, 0, 0, 9], A, &[(0x8100, 5)]);
    assert_eq!(out, [("p2".to_string(), frame), ("p3".to_string(), changed)]);
}

#[test]
fn idle_megaflows_go_and_used_ones_stay() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    world.flows("br0", &["in_port=1,actions=output:2", "in_port=2,actions=output:1"]);
    world.switch.start().unwrap();
    world.send(&p[0], &udp_frame(B, A, &[]), &p);
    world.send(&p[1], &udp_frame(A, B, &[]), &p);
    assert_eq!(world.flow_count(), 2);
    world.clock.advance_ms(6_000);
    world.send(&p[0], &udp_frame(B, A, &[]), &p);
    assert_eq!(world.dp.stats().unwrap().hit, 1);
    world.clock.advance_ms(6_000);
    world.switch.revalidate_now();
    assert_eq!(world.flow_count(), 1);
    world.clock.advance_ms(6_000);
    world.switch.revalidate_now();
    assert_eq!((world.flow_count(), world.switch.upcall_summary().current), (0, 0));
}

#[test]
fn statistics_reach_the_rules() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    world.flows("br0", &["udp,actions=resubmit(,1)", "table=1,actions=output:2", "table=2,actions=drop"]);
    world.switch.start().unwrap();
    let frame = udp_frame(B, A, &[]);
    for _ in 0..10 {
        assert_eq!(world.send(&p[0], &frame, &p).len(), 1);
    }
    assert_eq!(world.dp.stats().unwrap().hit, 9);
    let dump = world.switch.dump_flows("br0").unwrap();
    let lines: Vec<_> = dump.lines().collect();
    let counted = format!("n_packets=10, n_bytes={}", 10 * frame.len());
    assert!(lines[0].contains(&counted) && lines[0].ends_with("udp actions=resubmit(,1)"), "{dump}");
    assert!(lines[1].contains(&counted) && lines[1].contains("table=1"), "{dump}");
    assert!(lines[2].contains("n_packets=0"), "{dump}");
}

#[test]
fn a_changed_table_changes_the_installed_flow_in_place() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk()), ("p3", trunk())]);
    world.flows("br0", &["actions=output:2"]);
    world.switch.start().unwrap();
    let frame = udp_frame(B, A, &[]);
    assert_eq!(names(&world.send(&p[0], &frame, &p)), ["p2"]);
    let before = world.switch.flows_of_datapath().unwrap();
    let modify = FlowMod::parse("modify actions=output:3", &NoPortNames).unwrap();
    world.switch.flow_mods_apply("br0", &[modify]).unwrap();
    world.switch.revalidate_now();
    let after = world.switch.flows_of_datapath().unwrap();
    assert_eq!((before.len(), after.len(), before[0].ufid), (1, 1, after[0].ufid));
    assert_eq!(names(&world.send(&p[0], &frame, &p)), ["p3"]);
    assert_eq!(world.dp.stats().unwrap().missed, 1, "the datapath knew what to do");
    // A rule that looks at more makes the flow too wide.
    world.flows("br0", &["priority=1,actions=output:2", "priority=2,udp,tp_dst=80,actions=drop"]);
    assert_eq!(world.flow_count(), 0);
    assert_eq!(names(&world.send(&p[0], &frame, &p)), Vec::<&str>::new());
}

#[test]
fn flow_mods_are_seen_whole_or_not_at_all() {
    let world = World::new();
    world.bridge("br0", &[("p1", trunk())]);
    let before = world.switch.dump_flows("br0").unwrap();
    let mods: Vec<_> = ["delete", "priority=1,actions=drop", "sctp,actions=mod_tp_dst:1"]
        .iter()
        .map(|text| FlowMod::parse(text, &NoPortNames).unwrap())
        .collect();
    let error = world.switch.flow_mods_apply("br0", &mods).unwrap_err();
    assert_eq!((error.index, error.message.as_str()), (2, "action mod_tp_dst:1 is not supported yet"));
    assert_eq!(world.switch.dump_flows("br0").unwrap(), before);
}

#[test]
fn rules_expire_by_their_timeouts() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    world.flows("br0", &["priority=2,idle_timeout=10,actions=output:2", "priority=1,hard_timeout=12,actions=drop"]);
    world.switch.start().unwrap();
    let frame = udp_frame(B, A, &[]);
    let rules = || world.switch.dump_flows("br0").unwrap().lines().count();
    for _ in 0..3 {
        assert_eq!(names(&world.send(&p[0], &frame, &p)), ["p2"]);
        world.clock.advance_ms(3_000);
    }
    world.switch.revalidate_now();
    assert_eq!(rules(), 2, "a hit in the datapath is use");
    world.clock.advance_ms(4_000);
    world.switch.revalidate_now();
    assert_eq!(rules(), 1, "12 seconds are over");
    world.clock.advance_ms(10_000);
    world.switch.revalidate_now();
    assert_eq!(rules(), 0);
}

#[test]
fn actions_that_no_datapath_runs_are_run_by_userspace_for_each_packet() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk()), ("p3", trunk())]);
    world.flows("br0", &["actions=output(port=2,max_len=20),mod_dl_dst:50:54:00:00:00:09,output:3"]);
    world.switch.start().unwrap();
    let frame = udp_frame(B, A, &[]);
    let changed = udp_frame([0x50, 0x54, 0, 0, 0, 9], A, &[]);
    for _ in 0..3 {
        let out = world.send(&p[0], &frame, &p);
        assert_eq!(out, [("p2".to_string(), frame[..20].to_vec()), ("p3".to_string(), changed.clone())]);
    }
    let stats = world.dp.stats().unwrap();
    assert_eq!((stats.missed, stats.hit, world.flow_count()), (1, 2, 1));
    assert!(world.switch.dump_flows("br0").unwrap().contains("n_packets=3"));
}

#[test]
fn a_new_process_adopts_the_flows_that_are_there() {
    let mut world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    world.flows("br0", &["in_port=1,actions=output:2", "in_port=2,actions=output:1"]);
    world.switch.start().unwrap();
    world.send(&p[0], &udp_frame(B, A, &[]), &p);
    world.send(&p[1], &udp_frame(A, B, &[]), &p);
    world.switch.stop();
    assert_eq!(world.flow_count(), 2, "the datapath goes on");
    p[0].send(udp_frame(B, A, &[])).unwrap();
    assert!(p[1].recv().is_some());

    // Another process, with another configuration for port 2.
    world.switch = World::switch(&world.dp, &world.clock, |_| {});
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    world.flows("br0", &["in_port=1,actions=output:2"]);
    world.switch.start().unwrap();
    world.switch.revalidate_now();
    assert_eq!(world.flow_count(), 2);
    assert_eq!(names(&world.send(&p[0], &udp_frame(B, A, &[]), &p)), ["p2"]);
    assert_eq!(names(&world.send(&p[1], &udp_frame(A, B, &[]), &p)), Vec::<&str>::new());
    assert_eq!(world.dp.stats().unwrap().missed, 2, "no packet came up again");
    assert!(world.switch.dump_flows("br0").unwrap().contains("n_packets=1,"), "what was before is not counted");
}

#[test]
fn packets_of_a_port_on_no_bridge_are_dropped_until_it_is_on_one() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    let spec = PortSpec { name: "stray".into(), kind: DpPortKind::System, request: None };
    let stray = world.dp.port(world.dp.port_add(&spec).unwrap()).unwrap();
    world.switch.start().unwrap();
    assert_eq!(world.send(&stray, &udp_frame(B, A, &[]), &p), []);
    assert_eq!(world.send(&stray, &udp_frame(C, A, &[]), &p), []);
    world.switch.port_add("br0", "stray", PortKind::System, trunk(), Some(OfPort(9))).unwrap();
    world.switch.revalidate_now();
    assert_eq!(names(&world.send(&stray, &udp_frame(B, A, &[]), &p)), ["p1", "p2"]);
    world.switch.port_del("br0", "stray").unwrap();
    assert_eq!(world.flow_count(), 0);
    assert!(stray.send(udp_frame(B, A, &[])).is_err());
}

#[test]
fn over_the_flow_limit_packets_go_on_by_upcall() {
    let world = World::with(|options| options.flow_limit = 2);
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    world.switch.start().unwrap();
    for n in 0..6 {
        let frame = udp_frame(ALL, [0x50, 0x54, 0, 0, 1, n], &[]);
        assert_eq!(names(&world.send(&p[0], &frame, &p)), ["p2"]);
        assert!(world.flow_count() <= 2);
    }
    assert_eq!(world.switch.upcall_summary().limit, 2);
}

#[test]
fn stopping_takes_little_time_and_a_stopped_switch_starts_again() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk())]);
    for _ in 0..3 {
        world.switch.start().unwrap();
        assert_eq!(names(&world.send(&p[0], &udp_frame(ALL, A, &[]), &p)), ["p2"]);
        let began = Instant::now();
        world.switch.stop();
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    world.switch.flush().unwrap();
    assert_eq!(world.flow_count(), 0);
}

#[test]
fn a_bridge_in_secure_mode_forwards_only_what_its_flows_say() {
    let world = World::new();
    let settings = BridgeSettings { fail_mode: FailMode::Secure, ..BridgeSettings::default() };
    world.switch.bridge_add("br0", settings).unwrap();
    assert_eq!(world.switch.dump_flows("br0").unwrap(), "");
    assert_eq!(
        world.switch.dpif_show().unwrap(),
        "netdev@ovs-netdev: hit:0 missed:0\n  br0:\n    br0 65534/1: (internal)\n"
    );
    world.switch.bridge_del("br0").unwrap();
    assert!(world.dp.ports().unwrap().is_empty());
}

#[test]
fn under_changing_tables_each_packet_meets_one_whole_version() {
    let world = World::new();
    let p = world.bridge("br0", &[("p1", trunk()), ("p2", trunk()), ("p3", trunk())]);
    // In each version exactly one of the two tables leads somewhere, so a mixture gives no output or two.
    let version = |n: usize| -> Vec<FlowMod> {
        let (first, second) = if n.is_multiple_of(2) { ("resubmit(,1)", "2") } else { ("resubmit(,2)", "3") };
        let (one, two) = if n.is_multiple_of(2) { (second, "drop") } else { ("drop", second) };
        [
            "delete".to_string(),
            format!("actions={first}"),
            format!("table=1,actions={one}"),
            format!("table=2,actions={two}"),
        ]
        .iter()
        .map(|text| FlowMod::parse(text, &NoPortNames).unwrap())
        .collect()
    };
    world.switch.flow_mods_apply("br0", &version(0)).unwrap();
    world.switch.start().unwrap();
    let (sent, stop) = (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                world.switch.flow_mods_apply("br0", &version(n)).unwrap();
            }
            assert!(n > 20, "only {n} versions");
        });
        for n in 0..2000u32 {
            let [_, _, a, b] = n.to_be_bytes();
            p[0].send(udp_frame(B, [0x50, 0x54, 0, 1, a, b], &[])).unwrap();
            sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if n.is_multiple_of(40) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        world.switch.synchronize();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    world.switch.synchronize();
    let came = p[1..].iter().map(|port| std::iter::from_fn(|| port.recv()).count()).sum::<usize>();
    let lost = world.dp.stats().unwrap().lost as usize;
    assert_eq!(came + lost, sent.into_inner());
    assert!(lost < 1000, "{lost} lost");
}

#[test]
fn after_a_change_installed_flows_do_what_new_ones_would() {
    let mut rng = common::Rng(11);
    let ports = [("p1", trunk()), ("p2", trunk()), ("p3", trunk())];
    let old = World::new();
    let p = old.bridge("br0", &ports);
    old.switch.start().unwrap();
    let frames: Vec<_> = (0..40).map(|_| (rng.below(3), common::random_frame(&mut rng))).collect();
    for round in 0..12 {
        // What was learned before would tell the two apart.
        let mut flows = common::random_flows(&mut rng, 30);
        flows.retain(|flow| !flow.to_string().contains("NORMAL"));
        old.switch.flows_replace("br0", Some(&flows)).unwrap();
        old.switch.revalidate_now();
        let new = World::with(|options| options.megaflows = false);
        let q = new.bridge("br0", &ports);
        new.switch.flows_replace("br0", Some(&flows)).unwrap();
        new.switch.start().unwrap();
        for (from, frame) in &frames {
            let (a, b) = (old.send(&p[*from], frame, &p), new.send(&q[*from], frame, &q));
            assert_eq!(a, b, "round {round}, frame {frame:02x?} from {}", ports[*from].0);
        }
    }
    assert!(old.dp.stats().unwrap().hit > 20, "{:?}", old.dp.stats());
}

#[test]
fn exact_flows_and_megaflows_send_the_same_frames() {
    let mut outputs = Vec::new();
    for megaflows in [true, false] {
        let world = World::with(|options| options.megaflows = megaflows);
        let p = world.bridge(
            "br0",
            &[("p1", trunk()), ("p2", PortVlan::Access(10)), ("p3", PortVlan::NativeTagged(10, Trunks::of([20])))],
        );
        let mut rng = common::Rng(3);
        let mut flows = common::random_flows(&mut rng, 20);
        flows.push(FlowMod::parse("priority=0,actions=NORMAL", &NoPortNames).unwrap());
        world.switch.flows_replace("br0", Some(&flows)).unwrap();
        world.switch.start().unwrap();
        let mut out = Vec::new();
        let frames: Vec<_> = (0..40).map(|_| common::random_frame(&mut rng)).collect();
        for _ in 0..common::env("OFPROTO_FRAMES", 500) {
            let from = rng.below(3);
            let mut frame = frames[rng.below(frames.len())].clone();
            let (at, value) = (rng.below(frame.len().min(60)), rng.next() as u8);
            frame[at] = rng.pick(&[value, 0, 10, frame[at]]);
            out.push(world.send(&p[from], &frame, &p));
        }
        let stats = world.dp.stats().unwrap();
        println!("megaflows {megaflows}: {} hits, {} misses", stats.hit, stats.missed);
        outputs.push(out);
    }
    let differs = outputs[0].iter().zip(&outputs[1]).position(|(a, b)| a != b);
    assert_eq!(differs, None);
    assert!(outputs[0].iter().filter(|out| !out.is_empty()).count() > 50);
}
