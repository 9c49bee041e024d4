//! Caps on the flows and masks that ports have: what they keep out, who is named, and what goes on.

mod common;
#[path = "upcall/faulty.rs"]
#[allow(dead_code)]
mod faulty;
#[path = "caps/log.rs"]
mod log;
#[path = "slow_path/world.rs"]
#[allow(dead_code)]
mod world;

use common::{MACS, frame, ipv4, udp};
use dpif::Dpif;
use log::{alone, warnings};
use ofproto::upcall::PortMegaflows;
use ofproto::{Options, PortKind};
use world::World;

const A: [u8; 6] = MACS[0];
const B: [u8; 6] = MACS[1];

/// One megaflow for each source port.
const PER_PORT: [&str; 2] =
    ["table=0,udp,actions=resubmit(,3)", "table=3,udp,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],2"];
/// A mask for each prefix that tells a packet's address from the rules'.
const PREFIXES: [&str; 6] = [
    "table=0,ip,actions=resubmit(,7)",
    "table=7,priority=5,ip,nw_dst=10.0.0.2/32,actions=2",
    "table=7,priority=4,ip,nw_dst=10.0.0.0/24,actions=2",
    "table=7,priority=3,ip,nw_dst=10.0.0.0/16,actions=2",
    "table=7,priority=2,ip,nw_dst=10.0.0.0/8,actions=2",
    "table=7,priority=1,ip,actions=2",
];

fn datagram(from: u16, dst: [u8; 4]) -> Vec<u8> {
    frame(B, A, &[], 0x0800, &ipv4(17, [10, 0, 0, 1], dst, 64, 0, 0, &udp(from, 80, &[0; 30])))
}

/// Addresses that need as many bits as the rules make them need: some five masks.
fn addresses() -> Vec<[u8; 4]> {
    vec![[10, 0, 0, 2], [10, 0, 0, 9], [10, 0, 7, 1], [10, 9, 0, 1], [11, 0, 0, 1], [80, 0, 0, 1], [200, 0, 0, 1]]
}

fn with(flows: &[&str], change: impl FnOnce(&mut Options)) -> World {
    World::with(flows, change)
}

fn of(world: &World, port: &str) -> PortMegaflows {
    world.switch.port_megaflows().into_iter().find(|of| of.name == port).unwrap()
}

#[test]
fn a_port_has_as_many_flows_as_it_may_and_its_other_packets_go_on() {
    let _alone = alone();
    let world = with(&PER_PORT, |options| options.port_flow_limit = 5);
    let (text, sent) = warnings(|| {
        for from in 0..20 {
            world.ports[0].send(datagram(from, [10, 0, 0, 2])).unwrap();
        }
        world.out(2).len()
    });
    assert_eq!((sent, world.flows().len()), (20, 5));
    let report = world.report();
    assert_eq!((report.installed, report.port_flow_limit, report.executed), (5, 15, 20));
    let expected = PortMegaflows { name: "p1".into(), bridge: "br0".into(), port: 2, flows: 5, masks: 1, refused: 15 };
    assert_eq!(of(&world, "p1"), expected);
    assert_eq!(
        text,
        ["bridge br0: port p1 (2) has as many flows as a port may have (port-flow-limit 5): its packets are executed \
          without a flow (flows 5, masks 1; most masks come of table 3 of bridge br0, whose rules have 1) (0 more before)"]
    );
    let shown = "  port 2 p1 of br0: (flows 5 of 5) (masks 1 of 128) (refused 15)\n";
    assert!(world.switch.upcall_show().contains(shown), "{}", world.switch.upcall_show());

    // Another port has its own five; and who is known by a flow loses nothing.
    world.ports[2].send(datagram(1, [10, 0, 0, 2])).unwrap();
    world.ports[0].send(datagram(0, [10, 0, 0, 2])).unwrap();
    assert_eq!((world.out(2).len(), world.report().received, of(&world, "p3").flows), (2, 21, 1));

    // With its flows gone the port gets others.
    world.clock.advance_ms(20_000);
    world.switch.revalidate_now();
    assert_eq!((of(&world, "p1").flows, of(&world, "p1").masks, world.switch.n_masks()), (0, 0, 0));
    world.ports[0].send(datagram(19, [10, 0, 0, 2])).unwrap();
    assert_eq!((world.out(2).len(), world.report().installed), (1, 7));
}

#[test]
fn the_table_with_the_most_masks_is_named() {
    let _alone = alone();
    let world = with(&PREFIXES, |options| options.port_mask_limit = 2);
    let (text, sent) = warnings(|| {
        for dst in addresses() {
            world.ports[0].send(datagram(1, dst)).unwrap();
        }
        world.out(2).len()
    });
    let PortMegaflows { flows, masks, refused, .. } = of(&world, "p1");
    assert_eq!((sent, masks, flows as u64 + refused), (addresses().len(), 2, addresses().len() as u64));
    assert_eq!(world.report().mask_limit, refused);
    let [line] = text.as_slice() else { panic!("one in five seconds: {text:?}") };
    assert!(
        line.starts_with("bridge br0: port p1 (2) has as many masks as a port may have (port-mask-limit 2)"),
        "{line}"
    );
    assert!(line.contains("most masks come of table 7 of bridge br0, whose rules have 5"), "{line}");
    let stats = world.dp.stats().unwrap();
    assert_eq!((stats.masks, stats.flows), (2, flows as u64));
}

#[test]
fn all_ports_together_have_as_many_masks_as_there_may_be() {
    let _alone = alone();
    let world = with(&PREFIXES, |options| options.mask_limit = 2);
    let (text, _) = warnings(|| {
        for (port, dst) in [(0, 0), (0, 1), (2, 1), (2, 4), (0, 1)] {
            world.ports[port].send(datagram(1, addresses()[dst])).unwrap();
            assert_eq!(world.out(2).len(), 1);
        }
    });
    // Port 3 may have a mask that is there already, and no other.
    assert_eq!((of(&world, "p1").masks, of(&world, "p3").masks, world.switch.n_masks()), (2, 1, 2));
    assert_eq!((of(&world, "p3").refused, of(&world, "p1").refused, world.report().mask_limit), (1, 0, 1));
    assert!(
        text[0].contains("port p3 (4) has flows that need another mask, with 2 there already (mask-limit 2)"),
        "{text:?}"
    );
}

#[test]
fn one_ports_alarm_does_not_hide_anothers_and_a_storm_is_one_line() {
    let _alone = alone();
    let world = with(&PER_PORT, |options| options.port_flow_limit = 1);
    let storm = || {
        for from in 0..50 {
            world.ports[0].send(datagram(from, [10, 0, 0, 2])).unwrap();
            world.ports[2].send(datagram(from, [10, 0, 0, 2])).unwrap();
        }
        world.switch.synchronize();
    };
    let (text, ()) = warnings(storm);
    assert_eq!(text.iter().map(|line| line.contains("port p1")).collect::<Vec<_>>(), [true, false], "{text:?}");
    world.clock.advance_ms(5_000);
    let (text, ()) = warnings(storm);
    assert!(text.len() == 2 && text.iter().all(|line| line.ends_with("(48 more before)")), "{text:?}");
}

#[test]
fn caps_are_changed_while_the_switch_runs_and_none_is_none() {
    let _alone = alone();
    let world = with(&PER_PORT, |options| options.port_flow_limit = 2);
    let send = |n| {
        for from in 0..n {
            world.ports[0].send(datagram(from, [10, 0, 0, 2])).unwrap();
        }
        world.out(2).len()
    };
    assert_eq!((send(10), of(&world, "p1").flows), (10, 2));
    let clock = std::sync::Arc::new(world.clock.clone());
    for (limit, flows) in [(4, 4), (0, 10)] {
        let options = Options {
            n_handlers: Some(1),
            n_revalidators: Some(1),
            port_flow_limit: limit,
            clock: std::sync::Arc::<ofproto::ManualClock>::clone(&clock),
            ..Options::default()
        };
        world.switch.set_options(&options).unwrap();
        assert_eq!((send(10), of(&world, "p1").flows), (10, flows));
    }
}

#[test]
fn flows_that_were_there_before_count_and_stay() {
    let _alone = alone();
    let world = with(&PER_PORT, |options| options.port_flow_limit = 3);
    for from in 0..3 {
        world.ports[0].send(datagram(from, [10, 0, 0, 2])).unwrap();
    }
    assert_eq!((world.out(2).len(), world.flows().len()), (3, 3));
    // The process ends; the next one may have fewer.
    world.switch.stop();
    let options = Options {
        n_handlers: Some(1),
        n_revalidators: Some(1),
        port_flow_limit: 2,
        clock: std::sync::Arc::new(world.clock.clone()),
        ..Options::default()
    };
    let next = ofproto::Switch::new(std::sync::Arc::new(world.dp.clone()), options);
    next.bridge_add("br0", ofproto::BridgeSettings::default()).unwrap();
    for name in ["p1", "p2", "p3"] {
        next.port_add("br0", name, PortKind::System, ofproto::PortVlan::default(), None).unwrap();
    }
    let mods = PER_PORT.map(|text| openflow::FlowMod::parse(text, &openflow::NoPortNames).unwrap());
    next.flows_replace("br0", Some(&mods)).unwrap();
    next.start().unwrap();
    next.revalidate_now();
    world.ports[0].send(datagram(9, [10, 0, 0, 2])).unwrap();
    next.synchronize();
    let [p1] = next.port_megaflows().try_into().unwrap();
    assert_eq!((p1.flows, p1.refused, world.dp.stats().unwrap().flows), (3, 1, 3));
    assert!(world.ports[1].recv().is_some());
}

#[test]
fn masks_of_least_use_make_room_where_others_are_wanted() {
    let _alone = alone();
    let world = with(&PREFIXES, |options| options.port_mask_limit = 2);
    let send = |at: usize, n: usize| {
        for _ in 0..n {
            world.ports[0].send(datagram(1, addresses()[at])).unwrap();
        }
        assert_eq!(world.out(2).len(), n);
    };
    let masks = || world.dp.stats().unwrap().masks;
    let installed = || world.report().installed;
    let period = || {
        world.clock.advance_ms(500);
        world.switch.revalidate_now();
    };
    // Two masks, one of which is used; a third one is wanted.
    send(0, 1);
    send(2, 1);
    period();
    period();
    assert_eq!((masks(), installed()), (2, 2));
    send(0, 20);
    send(3, 5);
    assert_eq!((masks(), installed(), of(&world, "p1").refused), (2, 2, 5));
    // The end of the period chooses, the next round evicts.
    period();
    world.switch.revalidate_now();
    assert_eq!((masks(), of(&world, "p1").masks), (1, 1));
    send(3, 1);
    assert_eq!((masks(), installed()), (2, 3));
    // It is the one in use that has stayed: its packets need no upcall.
    let received = world.report().received;
    send(0, 1);
    assert_eq!(world.report().received, received);
}

#[test]
fn masks_of_least_use_make_room_where_the_datapath_takes_no_more() {
    let _alone = alone();
    let world = with(&PREFIXES, |_| {});
    let send = |at: usize, n: usize| {
        for _ in 0..n {
            world.ports[0].send(datagram(1, addresses()[at])).unwrap();
        }
        assert_eq!(world.out(2).len(), n);
    };
    let period = || {
        world.clock.advance_ms(500);
        world.switch.revalidate_now();
    };
    let refused = |error: fn() -> dpif::DpifError| {
        for _ in 0..5 {
            *world.faulty.put_error.lock() = Some(error);
            send(3, 1);
        }
    };
    send(0, 1);
    send(2, 1);
    period();
    period();
    send(0, 20);
    refused(|| dpif::DpifError::TooManyMasks(2));
    assert_eq!((world.dp.stats().unwrap().masks, world.report().put_failed), (2, 5));
    period();
    world.switch.revalidate_now();
    assert_eq!(world.dp.stats().unwrap().masks, 1);
    let received = world.report().received;
    send(0, 1);
    assert_eq!(world.report().received, received);
    // Other errors want no mask.
    refused(|| dpif::DpifError::Full("slots".into()));
    period();
    period();
    assert_eq!(world.dp.stats().unwrap().masks, 1);
}

#[test]
fn a_mask_with_more_packets_than_were_refused_stays_and_nobody_evicts_without_need() {
    let _alone = alone();
    let world = with(&PREFIXES, |options| options.mask_limit = 2);
    let send = |port: usize, at: usize, n: usize| {
        for _ in 0..n {
            world.ports[port].send(datagram(1, addresses()[at])).unwrap();
        }
        assert_eq!(world.out(2).len(), n);
    };
    let rounds = || {
        for _ in 0..3 {
            world.clock.advance_ms(500);
            world.switch.revalidate_now();
        }
    };
    send(0, 0, 1);
    send(0, 2, 1);
    rounds();
    assert_eq!(world.switch.n_masks(), 2);
    // Both are used more than the third is wanted.
    send(0, 0, 9);
    send(0, 2, 9);
    send(2, 3, 5);
    rounds();
    assert_eq!((world.switch.n_masks(), of(&world, "p1").masks), (2, 2));
    // One is not: it goes, whichever port it belongs to.
    send(0, 0, 9);
    send(2, 3, 5);
    rounds();
    assert_eq!((world.switch.n_masks(), of(&world, "p1").masks), (1, 1));
    send(2, 3, 1);
    assert_eq!((world.switch.n_masks(), of(&world, "p3").masks), (2, 1));
}
