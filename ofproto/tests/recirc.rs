//! Recirculation: what is left to do is done when the packet comes back, and nothing else changes.

mod common;

use std::sync::Arc;

use common::{MACS, Rng, env, random_flows, random_frame, udp_frame, with_recirculation};
use dpif::inproc::{InprocDatapath, InprocPort, Options as DpOptions};
use dpif::{Action, Dpif};
use ofproto::{BridgeSettings, Clock, ManualClock, Options, PortKind, PortVlan, Switch};
use openflow::{Action as OfAction, FlowMod, NoPortNames};

/// A switch with bridges `br0` and `br1`, each with ports 1 to 3 and a patch port 4 to the other.
struct World {
    dp: InprocDatapath,
    switch: Switch,
    clock: ManualClock,
    ports: Vec<InprocPort>,
}

impl World {
    fn new(flows: [&[FlowMod]; 2], megaflows: bool) -> Self {
        let clock = ManualClock::new(1_000_000);
        let dp_clock = clock.clone();
        let mut options = DpOptions::new("ovs-netdev");
        options.clock = Arc::new(move || dp_clock.now_ms() * 1_000_000);
        let world = Self::over(InprocDatapath::with_options(options), clock, flows, megaflows);
        world.switch.start().unwrap();
        world
    }

    /// A switch that is not started, over a datapath that may have flows.
    fn over(dp: InprocDatapath, clock: ManualClock, flows: [&[FlowMod]; 2], megaflows: bool) -> Self {
        let clock_of_switch = Arc::new(clock.clone());
        let options = Options { clock: clock_of_switch, n_handlers: Some(1), megaflows, ..Options::default() };
        let switch = Switch::new(Arc::new(dp.clone()), options);
        let mut ports = Vec::new();
        for (b, flows) in flows.into_iter().enumerate() {
            let bridge = format!("br{b}");
            switch.bridge_add(&bridge, BridgeSettings::default()).unwrap();
            for n in 1..=3 {
                let name = format!("p{b}{n}");
                switch.port_add(&bridge, &name, PortKind::System, PortVlan::default(), None).unwrap();
                ports.push(dp.port_by_name(&name).unwrap());
            }
            let peer = PortKind::Patch { peer: format!("patch{}", 1 - b) };
            switch.port_add(&bridge, &format!("patch{b}"), peer, PortVlan::default(), None).unwrap();
            switch.flows_replace(&bridge, Some(flows)).unwrap();
        }
        Self { dp, switch, clock, ports }
    }

    /// Ends the switch, not the datapath, and makes another with other flows of `br0`, as a new process does.
    fn restarted(self, flows: &[FlowMod]) -> Self {
        self.switch.stop();
        Self::over(self.dp.clone(), self.clock.clone(), [flows, &[]], true)
    }

    /// The recirculation ids that the datapath's flows match on, and those that they lead to.
    fn ids(&self) -> (Vec<u32>, Vec<u32>) {
        let flows = self.switch.flows_of_datapath().unwrap();
        let matched = flows.iter().map(|flow| flow.key.recirc_id).filter(|id| *id != 0);
        let led = flows.iter().flat_map(|flow| flow.actions.iter()).filter_map(|action| match action {
            Action::Recirc(id) => Some(*id),
            _ => None,
        });
        (matched.collect(), led.collect())
    }

    /// Sends a frame into port `from` of `br0` and says what came out of which port, sorted.
    fn send(&self, from: usize, frame: &[u8]) -> Vec<(String, Vec<u8>)> {
        self.ports[from - 1].send(frame).unwrap();
        self.switch.synchronize();
        let mut out = Vec::new();
        for port in &self.ports {
            while let Some(packet) = port.recv() {
                out.push((port.name().to_string(), packet.data));
            }
        }
        out.sort();
        out
    }

    /// Lookups that a packet may have had too many of.
    fn gave_up(&self) -> u64 {
        let drops = self.dp.stats().unwrap().drops;
        drops.iter().filter(|(reason, _)| reason.contains("recirc")).map(|(_, count)| count).sum()
    }
}

fn flows(text: &[&str]) -> Vec<FlowMod> {
    text.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect()
}

fn names(out: &[(String, Vec<u8>)]) -> Vec<&str> {
    out.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn what_stands_behind_it_is_done_when_the_packet_comes_back() {
    let world =
        World::new([&flows(&["actions=output:2,mod_dl_dst:50:54:00:00:00:09,debug_recirc,output:3"]), &[]], true);
    let frame = udp_frame(MACS[1], MACS[0], &[]);
    let mut changed = frame.clone();
    changed[..6].copy_from_slice(&[0x50, 0x54, 0, 0, 0, 9]);
    for round in 0..3 {
        let out = world.send(1, &frame);
        assert_eq!(out, [("p02".into(), frame.clone()), ("p03".into(), changed.clone())], "round {round}");
    }
    // Both lookups are answered by the datapath from the second packet on.
    let stats = world.dp.stats().unwrap();
    assert_eq!((stats.missed, stats.hit, stats.flows), (2, 4, 2));
    assert_eq!(world.switch.n_recirc_ids(), 1);
}

#[test]
fn all_lists_on_the_way_go_on_in_their_tables() {
    let world = World::new(
        [
            &flows(&[
                "table=0,actions=load:5->NXM_NX_REG0[],resubmit(,1),output:3",
                "table=1,actions=resubmit(,2),output:2",
                "table=2,actions=load:7->OXM_OF_METADATA[],debug_recirc,resubmit(,3)",
                "table=3,reg0=5,metadata=7,actions=IN_PORT",
            ]),
            &[],
        ],
        true,
    );
    for _ in 0..2 {
        let out = world.send(1, &udp_frame(MACS[1], MACS[0], &[]));
        assert_eq!(names(&out), ["p01", "p02", "p03"]);
    }
}

#[test]
fn another_bridge_does_its_own_and_this_one_goes_on() {
    let world = World::new(
        [&flows(&["actions=output:4,output:2"]), &flows(&["actions=mod_nw_ttl:9,debug_recirc,output:1,output:2"])],
        true,
    );
    let frame = udp_frame(MACS[1], MACS[0], &[]);
    for _ in 0..2 {
        let out = world.send(1, &frame);
        assert_eq!(names(&out), ["p02", "p11", "p12"]);
        assert_eq!(out[0].1, frame, "what the other bridge changed, this one doesn't see");
        assert_eq!(out[1].1[22], 9);
    }
}

#[test]
fn an_id_lives_as_long_as_a_flow_that_carries_it() {
    let world = World::new([&flows(&["actions=debug_recirc,output:2"]), &[]], true);
    let frame = udp_frame(MACS[1], MACS[0], &[]);
    world.send(1, &frame);
    assert_eq!((world.switch.n_recirc_ids(), world.dp.stats().unwrap().flows), (1, 2));
    // Other actions, other state: the flow that leads there is changed, the one that comes from there stays until it is idle.
    world.switch.flows_replace("br0", Some(&flows(&["actions=debug_recirc,output:3"]))).unwrap();
    world.switch.revalidate_now();
    assert_eq!(names(&world.send(1, &frame)), ["p03"]);
    assert_eq!(world.switch.n_recirc_ids(), 2);
    world.clock.advance_ms(20_000);
    world.switch.revalidate_now();
    assert_eq!((world.switch.n_recirc_ids(), world.dp.stats().unwrap().flows), (0, 0));
}

#[test]
fn flows_that_recirculate_go_on_after_a_restart_and_nobody_gets_their_ids() {
    let rules = flows(&["actions=debug_recirc,output:2"]);
    let world = World::new([&rules, &[]], true);
    let frame = udp_frame(MACS[1], MACS[0], &[]);
    world.send(1, &frame);
    let (old, led) = world.ids();
    assert_eq!((old.len(), &old), (1, &led));
    let world = world.restarted(&rules);
    // Nobody is there yet.
    assert_eq!(names(&world.send(1, &frame)), ["p02"]);
    let misses = || world.dp.stats().unwrap().missed;
    assert_eq!(misses(), 2);
    world.switch.pause_revalidators();
    world.switch.start().unwrap();
    assert_eq!(world.ids(), (old.clone(), old.clone()), "all were adopted");
    world.ports[0].send(frame.clone()).unwrap();
    assert_eq!((misses(), world.switch.n_inherited_recirc_ids()), (2, 1));
    assert_eq!(world.ports.iter().map(|port| usize::from(port.recv().is_some())).sum::<usize>(), 1);
    // The flow that leads there gets an id of ours. The one that matched on the old id stays for what is under way.
    world.switch.revalidate_now();
    let (matched, led) = world.ids();
    assert_eq!(matched, old);
    assert!(led.len() == 1 && led[0] > old[0], "{led:?}");
    assert_eq!(names(&world.send(1, &frame)), ["p02"]);
    assert_eq!((misses(), world.dp.stats().unwrap().flows), (3, 3));
    // A thousand states later nobody has it.
    for n in 0..1000 {
        let text = format!("actions=load:{n}->NXM_NX_REG0[],debug_recirc,output:2");
        world.switch.flows_replace("br0", Some(&flows(&[&text]))).unwrap();
        world.switch.revalidate_now();
    }
    let (_, led) = world.ids();
    assert!(led[0] > old[0] + 900 && world.switch.n_inherited_recirc_ids() == 1, "{led:?}");
    world.clock.advance_ms(11_000);
    world.switch.revalidate_now();
    assert_eq!((world.dp.stats().unwrap().flows, world.switch.n_inherited_recirc_ids()), (0, 0));
}

#[test]
fn a_flow_of_an_earlier_id_goes_where_its_port_is_gone_or_it_is_a_strangers() {
    let world = World::new([&flows(&["actions=debug_recirc,output:2"]), &[]], true);
    let frame = udp_frame(MACS[1], MACS[0], &[]);
    world.send(1, &frame);
    let old = world.ids().0;
    let world = world.restarted(&flows(&["actions=output:3"]));
    world.switch.start().unwrap();
    world.switch.synchronize();
    assert_eq!(world.ids(), (old.clone(), vec![]), "nobody leads there any more");
    world.switch.port_del("br0", "p02").unwrap();
    assert_eq!((world.ids().0, world.switch.n_inherited_recirc_ids()), (vec![], 0));
    assert_eq!(names(&world.send(1, &frame)), ["p03"]);
    // Who turns up later is not left by an earlier process.
    let mut stranger = world.dp_flow();
    (stranger.ufid, stranger.key.recirc_id, stranger.mask.recirc_id) = (dpif::Ufid(1), old[0], u32::MAX);
    world.dp.flow_put(&stranger).unwrap();
    world.switch.revalidate_now();
    assert!(world.ids().0.is_empty());
}

#[test]
fn a_packet_with_an_unknown_id_is_dropped_and_no_flow_is_made_of_it() {
    let world = World::new([&flows(&["actions=output:2"]), &[]], true);
    let frame = udp_frame(MACS[1], MACS[0], &[]);
    world.send(1, &frame);
    let stranger =
        dpif::FlowPut { mode: dpif::PutMode::Modify, actions: vec![Action::Recirc(4711)].into(), ..world.dp_flow() };
    world.dp.flow_put(&stranger).unwrap();
    let before = coverage::total("xlate_no_recirculation_context").unwrap_or(0);
    assert_eq!(world.send(1, &frame), []);
    assert_eq!(world.send(1, &frame), []);
    assert!(coverage::total("xlate_no_recirculation_context").unwrap_or(0) >= before + 2, "counted");
    assert_eq!(world.dp.stats().unwrap().flows, 1);
}

impl World {
    /// The only flow of the datapath, as it would be put.
    fn dp_flow(&self) -> dpif::FlowPut {
        let mut found = None;
        self.dp
            .flow_dump(&mut |flow| {
                let (ufid, key, mask, actions) = (flow.ufid, flow.key, flow.mask, flow.actions.clone());
                found = Some(dpif::FlowPut { mode: dpif::PutMode::Create, ufid, key, mask, actions });
                true
            })
            .unwrap();
        found.expect("a flow")
    }
}

fn has_three_tags(frame: &[u8]) -> bool {
    [12, 16, 20].iter().all(|at| matches!(frame.get(*at..at + 2), Some([0x81, 0] | [0x88, 0xa8])))
}

/// A switch whose flows recirculate here and there forwards as one whose flows don't.
#[test]
fn recirculation_changes_nothing_of_what_leaves() {
    let rounds = env("OFPROTO_RECIRC_ROUNDS", 60);
    let mut rng = Rng(env("OFPROTO_SOUNDNESS_SEED", 1) as u64 ^ 0x5ec1);
    let (mut sent, mut out_of, mut recirculated) = (0, 0, 0);
    for round in 0..rounds {
        let mut with: Vec<Vec<FlowMod>> = (0..2).map(|_| random_flows(&mut rng, 20)).collect();
        with.iter_mut().for_each(|flows| with_recirculation(&mut rng, flows, 4));
        let mut without = with.clone();
        for flow in without.iter_mut().flatten() {
            flow.actions.retain(|action| !matches!(action, OfAction::DebugRecirc));
        }
        let with = World::new([&with[0], &with[1]], rng.one_in(2));
        let without = World::new([&without[0], &without[1]], true);
        for _ in 0..30 {
            let (frame, from) = (random_frame(&mut rng), 1 + rng.below(3));
            if has_three_tags(&frame) {
                // Recirculation shows what no first look sees.
                continue;
            }
            let gave_up = with.gave_up();
            let failed = coverage::total("xlate_failed");
            let (got, wanted) = (with.send(from, &frame), without.send(from, &frame));
            // A translation that was given up: what went out before it recirculated is out. There may be a flow of it now.
            if coverage::total("xlate_failed") != failed {
                break;
            }
            // Too many recirculations for one packet.
            if with.gave_up() != gave_up {
                continue;
            }
            assert_eq!(got, wanted, "round {round}, port {from}, {frame:02x?}");
            (sent, out_of) = (sent + 1, out_of + usize::from(!got.is_empty()));
        }
        recirculated += with.switch.n_recirc_ids();
    }
    println!("{sent} frames, {out_of} of them sent on, {recirculated} recirculation ids");
    assert!(out_of * 10 > sent && recirculated * 3 > rounds, "{out_of} of {sent}, {recirculated} ids");
}
