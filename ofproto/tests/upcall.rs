//! Handlers on a datapath that lies, fails and dies: an in-process datapath behind a wrapper that does what a test asks for.

mod common;
#[path = "upcall/faulty.rs"]
mod faulty;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{MACS, ipv4, udp, udp_frame};
use datapath_common::{Be16, FlowKey};
use dpif::inproc::{InprocDatapath, InprocPort};
use dpif::odp::{Cookie, CookieKind, SlowPath};
use dpif::{Action, Dpif, DpifError, OdpPort, Packet, PortKind as DpPortKind, PortSpec, Upcall, UpcallKind};
use faulty::Faulty;
use ofproto::upcall::HandlerReport;
use ofproto::{BridgeSettings, ManualClock, Options, PortKind, PortVlan, Switch};
use openflow::{FlowMod, NoPortNames};
use testkit::wait_until;

const A: [u8; 6] = MACS[0];
const B: [u8; 6] = MACS[1];

struct World {
    dp: InprocDatapath,
    faulty: Arc<Faulty>,
    switch: Switch,
    ports: Vec<InprocPort>,
}

impl World {
    fn new(flows: &[&str]) -> Self {
        Self::with(flows, |_, _| {})
    }

    /// A bridge with three ports.
    fn with(flows: &[&str], change: impl FnOnce(&mut Options, &mut Faulty)) -> Self {
        let dp = InprocDatapath::new("ovs-netdev");
        let mut faulty = Faulty::new(dp.clone());
        let mut options = Options { n_handlers: Some(1), n_revalidators: Some(1), ..Options::default() };
        change(&mut options, &mut faulty);
        let faulty = Arc::new(faulty);
        let switch = Switch::new(Arc::clone(&faulty) as Arc<dyn Dpif>, options);
        switch.bridge_add("br0", BridgeSettings::default()).unwrap();
        let ports = ["p1", "p2", "p3"].map(|name| {
            switch.port_add("br0", name, PortKind::System, PortVlan::default(), None).unwrap();
            dp.port_by_name(name).unwrap()
        });
        let mods: Vec<_> = flows.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
        switch.flows_replace("br0", Some(&mods)).unwrap();
        switch.start().unwrap();
        Self { dp, faulty, switch, ports: ports.into() }
    }

    fn report(&self) -> HandlerReport {
        self.switch.handler_reports().into_iter().next().unwrap()
    }

    /// Frames that come out of port 2.
    fn out(&self) -> usize {
        self.switch.synchronize();
        std::iter::from_fn(|| self.ports[1].recv()).count()
    }

    fn send(&self, tag: u8) {
        self.ports[0].send(frame(tag)).unwrap();
    }

    fn n_flows(&self) -> usize {
        self.switch.flows_of_datapath().unwrap().len()
    }

    fn ukeys(&self) -> String {
        self.switch.upcall_show().lines().nth(1).unwrap().to_string()
    }

    /// What comes of upcalls that no datapath makes.
    fn inject(&self, upcalls: Vec<Upcall>) -> HandlerReport {
        self.faulty.inject.lock().extend(upcalls);
        // The question wakes the handler.
        self.switch.synchronize();
        self.report()
    }
}

/// A frame of its own station, so that it is a flow of its own.
fn frame(tag: u8) -> Vec<u8> {
    udp_frame(B, [A[0], A[1], A[2], A[3], 9, tag], &[])
}

/// One megaflow for each source address.
const PER_SOURCE: [&str; 2] =
    ["table=0,actions=move:NXM_OF_ETH_SRC[]->NXM_NX_XXREG0[0..47],resubmit(,1)", "table=1,actions=2"];
const PLAIN: [&str; 1] = ["in_port=1,actions=2"];

fn miss(world: &World, data: Vec<u8>, change: impl FnOnce(&mut FlowKey)) -> Upcall {
    let mut key =
        FlowKey { in_port: world.dp.ports().unwrap().iter().find(|p| p.name == "p1").unwrap().port.0, ..FlowKey::ZERO };
    datapath_common::extract::extract(
        &datapath_common::packet::SlicePacket {
            bytes: data.clone(),
            vlan: Default::default(),
            partial_checksum: false,
        },
        &mut key,
    )
    .unwrap();
    change(&mut key);
    Upcall { packet: Packet::new(data), key, ..Upcall::default() }
}

#[test]
fn whatever_a_datapath_answers_to_a_flow_the_packet_is_executed() {
    let errors: [(fn() -> DpifError, bool); 4] = [
        (|| DpifError::Full("no room".into()), true),
        (|| DpifError::FlowExists, false),
        (|| DpifError::NoSuchFlow, true),
        (|| DpifError::Io("busy".into(), std::io::Error::from_raw_os_error(16)), true),
    ];
    for (error, counts_as_failed) in errors {
        let world = World::new(&PLAIN);
        *world.faulty.put_error.lock() = Some(error);
        world.send(1);
        assert_eq!(world.out(), 1, "{:?}", error());
        world.send(1);
        assert_eq!(world.out(), 1, "{:?}: and the next", error());
        let report = world.report();
        assert_eq!((report.received, report.translated, report.installed), (2, 2, 0));
        let failed = if counts_as_failed { (2, 0) } else { (0, 2) };
        assert_eq!((report.put_failed, report.duplicate), failed, "{:?}", error());
        assert!(world.ukeys().contains("(current 0)"), "no ukey stays: {}", world.ukeys());
        // What is left of it is in nobody's way.
        *world.faulty.put_error.lock() = None;
        world.send(1);
        assert_eq!((world.out(), world.n_flows(), world.report().installed), (1, 1, 1));
    }
}

#[test]
fn a_packet_that_the_datapath_does_not_execute_is_counted() {
    let world = World::new(&PLAIN);
    for error in [|| DpifError::NoSuchFlow, || DpifError::Full("busy".into())] as [fn() -> DpifError; 2] {
        *world.faulty.execute_error.lock() = Some(error);
        world.switch.flush().unwrap();
        world.send(1);
        assert_eq!(world.out(), 0);
        let report = world.report();
        assert_eq!((report.execute_failed, report.executed, report.installed), (1, 0, 1));
    }
}

#[test]
fn a_packet_that_comes_alone_is_executed_before_its_flow_is_put() {
    let world = World::new(&PER_SOURCE);
    let calls = || std::mem::take(&mut *world.faulty.calls.lock());
    world.send(1);
    assert_eq!(world.out(), 1);
    assert_eq!(calls(), ["execute", "put"]);
    let report = world.report();
    assert_eq!((report.received, report.executed, report.installed, report.latency.count()), (1, 1, 1, 1));
    let gate = world.faulty.gate.write();
    world.send(2);
    world.send(3);
    drop(gate);
    assert_eq!(world.out(), 2);
    assert_eq!(calls(), ["put", "execute", "put", "execute"], "these go together");
    assert_eq!((world.report().executed, world.report().latency.count()), (3, 3));
}

#[test]
fn a_revalidator_that_panics_begins_anew_and_leaves_no_flow_behind() {
    let world = World::new(&PLAIN);
    let rules = |texts: &[&str]| {
        let mods: Vec<_> = texts.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
        world.switch.flows_replace("br0", Some(&mods)).unwrap();
    };
    let actions =
        || world.switch.flows_of_datapath().unwrap().iter().map(|flow| flow.actions.len()).collect::<Vec<_>>();
    let restarts = || coverage::total("revalidator_restart").unwrap_or(0);
    // What the revalidator's thread has to see by itself: a flow that does something else, and one that is too wide.
    let dumping: (&AtomicBool, &[&str], &[usize]) = (&world.faulty.dump_panics, &["actions=drop"], &[0]);
    let deleting: (_, &[&str], &[usize]) =
        (&world.faulty.del_panics, &["priority=40000,dl_dst=00:11:22:33:44:55,actions=3", "actions=drop"], &[]);
    for (panics, changed, left) in [dumping, deleting] {
        rules(&PLAIN);
        world.switch.revalidate_now();
        world.send(1);
        assert_eq!((world.out(), actions()), (1, vec![1]));
        let before = restarts();
        panics.store(true, Ordering::SeqCst);
        rules(changed);
        assert!(wait_until(Duration::from_secs(5), || restarts() > before), "nobody panicked");
        assert!(wait_until(Duration::from_secs(5), || actions() == left), "{:?}", actions());
    }
}

#[test]
fn a_panic_loses_what_has_no_outcome_yet() {
    let world = World::new(&PLAIN);
    let gate = world.faulty.gate.write();
    let cut = Upcall { kind: UpcallKind::Action, cookie: vec![1, 2, 3], ..Upcall::default() };
    world.faulty.inject.lock().extend(std::iter::repeat_n(cut, 3));
    world.faulty.panics.store(true, Ordering::SeqCst);
    world.send(1);
    drop(gate);
    assert_eq!(world.out(), 0);
    let report = world.report();
    assert_eq!((report.received, report.bad_cookie, report.lost_in_panic), (4, 3, 1));
    assert_eq!(report.outcomes().iter().map(|(_, n)| n).sum::<u64>(), 4);
}

#[test]
fn packets_that_wait_while_their_flow_is_installed_are_not_translated_again() {
    let world = World::new(&PLAIN);
    let gate = world.faulty.gate.write();
    for tag in 0..50 {
        world.send(tag);
    }
    drop(gate);
    assert_eq!(world.out(), 50);
    let report = world.report();
    assert_eq!((report.received, report.translated, report.hit_installed), (50, 1, 49));
    assert_eq!((report.executed, report.installed, world.n_flows()), (50, 1, 1));
    assert_eq!(report.latency.count(), 50);
    let flows = world.switch.dump_flows("br0").unwrap_or_default();
    assert!(flows.contains("n_packets=50"), "{flows}");
}

#[test]
fn a_flow_for_each_packet_is_not_confused_with_the_others() {
    let world = World::new(&PER_SOURCE);
    let gate = world.faulty.gate.write();
    for tag in 0..100 {
        world.send(tag % 50);
    }
    drop(gate);
    assert_eq!(world.out(), 100);
    let report = world.report();
    assert_eq!((report.translated, report.hit_installed, world.n_flows()), (50, 50, 50));
}

#[test]
fn a_port_goes_when_no_handler_can_send_to_it_any_more() {
    for bridge in [false, true] {
        let world = World::new(&PLAIN);
        let number = world.dp.port_by_name("p2").unwrap().number();
        // A packet to port 2 is translated, and its handler stopped before it sends it.
        let desk = world.faulty.desk.write();
        world.send(1);
        assert!(wait_until(Duration::from_secs(5), || world.faulty.operates.load(Ordering::SeqCst) > 0));
        let other = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                match bridge {
                    true => world.switch.bridge_del("br0").unwrap(),
                    false => world.switch.port_del("br0", "p2").unwrap(),
                }
                // Devices get the numbers that are free, the lowest first.
                let add = |name: String| {
                    let spec = PortSpec { name: name.clone(), kind: DpPortKind::System, request: None };
                    world.dp.port_add(&spec).unwrap();
                    world.dp.port_by_name(&name).unwrap()
                };
                (0..).map(|n| add(format!("other{n}"))).find(|port| port.number() == number).unwrap()
            });
            std::thread::sleep(Duration::from_millis(300));
            assert!(!other.is_finished() && world.dp.port_by_name("p2").is_ok(), "it has not waited");
            drop(desk);
            other.join().unwrap()
        });
        world.switch.synchronize();
        assert!(other.recv().is_none(), "what was meant for a port that is gone came to another");
        let named = |action: &Action| matches!(action, Action::Output(port) if *port == number);
        let flows = world.switch.flows_of_datapath().unwrap();
        assert!(!flows.iter().any(|flow| flow.actions.iter().any(named)), "{flows:?}");
    }
}

#[test]
fn a_flow_of_another_configuration_answers_nothing() {
    let world = World::new(&PLAIN);
    world.send(1);
    assert_eq!(world.out(), 1);
    let gate = world.faulty.gate.write();
    // The datapath loses the flow, and before the next packet is received the tables say something else.
    world.dp.flow_flush().unwrap();
    world.send(1);
    let mods = [FlowMod::parse("in_port=1,actions=3", &NoPortNames).unwrap()];
    world.switch.flows_replace("br0", Some(&mods)).unwrap();
    drop(gate);
    assert_eq!(world.out(), 0);
    assert_eq!(std::iter::from_fn(|| world.ports[2].recv()).count(), 1);
}

#[test]
fn a_handler_that_panics_is_started_again_and_the_others_go_on() {
    let world = World::new(&PER_SOURCE);
    world.faulty.panics.store(true, Ordering::SeqCst);
    world.send(1);
    assert_eq!(world.out(), 1, "a packet alone goes before its flow is put");
    let report = world.report();
    assert_eq!((report.restarts, report.lost_in_panic, report.executed), (1, 0, 1));
    world.send(2);
    assert_eq!(world.out(), 1, "the handler is there again");
    // The flow of the first packet was never put: its ukey goes when the datapath hasn't shown it for some passes.
    (0..5).for_each(|_| world.switch.revalidate_now());
    world.send(1);
    assert_eq!((world.out(), world.n_flows()), (1, 2));

    let world = World::with(&PER_SOURCE, |options, _| options.n_handlers = Some(4));
    let gate = world.faulty.gate.write();
    for tag in 0..60 {
        // Handlers share microflows, and their packets stay together.
        let datagram = udp(1000 + u16::from(tag), 80, &[0; 30]);
        let packet = ipv4(17, [10, 0, 0, 1], [10, 0, 0, 2], 64, 0, 0, &datagram);
        let station = [A[0], A[1], A[2], A[3], 9, tag];
        world.ports[0].send(common::frame(B, station, &[], 0x0800, &packet)).unwrap();
    }
    world.faulty.panics.store(true, Ordering::SeqCst);
    drop(gate);
    let out = world.out();
    let reports = world.switch.handler_reports();
    let lost: u64 = reports.iter().map(|report| report.lost_in_panic).sum();
    assert_eq!(reports.iter().map(|report| report.restarts).sum::<u64>(), 1);
    assert!(lost > 0 && lost < 60, "{lost}");
    // Of those in hand some had been executed before.
    assert!(out >= 60 - lost as usize, "{out} out, {lost} lost");
}

#[test]
fn upcalls_that_lie_are_dropped_and_counted() {
    let world = World::new(&PLAIN);
    let cookie = Cookie::new(CookieKind::SlowPath(SlowPath::ACTION)).encode();
    let action =
        |cookie: &[u8]| Upcall { kind: UpcallKind::Action, cookie: cookie.into(), ..miss(&world, frame(1), |_| {}) };
    let report = world.inject(vec![
        action(&cookie[..40]),
        action(&[cookie.clone(), vec![0]].concat()),
        action(&[7; 48]),
        action(&[]),
    ]);
    assert_eq!(report.bad_cookie, 4);
    let report = world.inject(vec![
        Upcall { packet: Packet::new(vec![0; 5]), ..miss(&world, frame(1), |_| {}) },
        miss(&world, frame(1), |key| key.ip_proto = 6),
        miss(&world, frame(1), |key| key.eth_type = Be16::new(0x86dd)),
    ]);
    assert_eq!((report.malformed, report.contradictory), (1, 2));
    world.faulty.bad_records.store(3, Ordering::SeqCst);
    assert_eq!(world.inject(vec![]).bad_record, 3);
    assert_eq!((world.out(), world.n_flows()), (0, 0));
    world.send(1);
    assert_eq!(world.out(), 1);
}

#[test]
fn a_slow_path_upcall_is_translated_and_installs_nothing() {
    let world = World::new(&PLAIN);
    let cookie = Cookie::new(CookieKind::SlowPath(SlowPath::MATCH)).encode();
    let before = world.report();
    world.faulty.inject.lock().push(Upcall { kind: UpcallKind::Action, cookie, ..miss(&world, frame(1), |_| {}) });
    world.switch.synchronize();
    assert_eq!((world.report().executed - before.executed, world.n_flows(), world.out()), (1, 0, 1));
}

#[test]
fn a_key_that_says_more_or_less_than_the_packet_makes_a_flow_that_sends_all_up() {
    for (what, change) in [
        ("less", (|key| (key.tp_src, key.tp_dst) = (Be16::new(0), Be16::new(0))) as fn(&mut FlowKey)),
        ("more", |key| key.nd_target = [1; 16]),
    ] {
        let world = World::new(&PLAIN);
        let upcall = miss(&world, frame(1), change);
        let key = upcall.key;
        world.faulty.inject.lock().push(upcall);
        world.switch.synchronize();
        assert_eq!((world.report().unfit, world.out()), (1, 1), "{what}");
        let flows = world.switch.flows_of_datapath().unwrap();
        let [flow] = flows.as_slice() else { panic!("{flows:?}") };
        assert!(matches!(&*flow.actions, [Action::Userspace(_)]), "{what}: {flow:?}");
        assert!(flow.key.matches(&flow.mask, &key), "{what}: it is the flow of packets that the datapath sees so");
        assert_eq!(flow.mask.eth_src, [0xff; 6], "{what}: and of those only");
    }
}

#[test]
fn a_port_on_no_bridge_gets_an_empty_flow() {
    let world = World::new(&PLAIN);
    let spec = PortSpec { name: "stray".into(), kind: DpPortKind::System, request: None };
    let port = world.dp.port_add(&spec).unwrap();
    let stray = world.dp.port_by_name("stray").unwrap();
    stray.send(frame(1)).unwrap();
    world.switch.synchronize();
    let flows = world.switch.flows_of_datapath().unwrap();
    assert_eq!((flows.len(), flows[0].key.in_port, flows[0].actions.len()), (1, port.0, 0));
    stray.send(frame(2)).unwrap();
    assert_eq!((world.out(), world.report().unknown_port), (0, 1));
}

#[test]
fn handlers_that_have_nothing_to_do_sleep() {
    let world = World::new(&PLAIN);
    world.send(1);
    world.switch.synchronize();
    // Whoever has been busy may look once more.
    std::thread::sleep(Duration::from_millis(100));
    let before = world.faulty.receives.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(world.faulty.receives.load(Ordering::SeqCst), before);
    let began = Instant::now();
    world.switch.stop();
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn threads_that_could_not_be_started_again_are_started_by_the_next_change() {
    let world = World::new(&PLAIN);
    let options = |handlers| Options { n_handlers: Some(handlers), n_revalidators: Some(1), ..Options::default() };
    let fails = |fails: bool| {
        *world.faulty.handlers_error.lock() = fails.then_some(|| DpifError::Kernel("it is gone".into()));
    };
    fails(true);
    assert!(world.switch.set_options(&options(2)).is_err());
    assert_eq!(world.switch.handler_reports().len(), 0);
    fails(false);
    // As it was before.
    world.switch.set_options(&options(1)).unwrap();
    assert_eq!(world.switch.handler_reports().len(), 1);
    world.send(1);
    world.switch.synchronize();
    assert_eq!(world.out(), 1);
    // A flush restarts them too, and does no harm to those that were stopped.
    fails(true);
    assert!(world.switch.flush().is_err());
    fails(false);
    world.switch.flush().unwrap();
    assert_eq!(world.switch.handler_reports().len(), 1);
    world.switch.stop();
    world.switch.flush().unwrap();
    world.switch.set_options(&options(1)).unwrap();
    assert_eq!(world.switch.handler_reports().len(), 0);
}

#[test]
fn options_that_threads_can_not_be_started_with_leave_those_of_before() {
    let world = World::with(&PLAIN, |options, _| options.flow_limit = 7);
    world.faulty.most_handlers.store(1, Ordering::SeqCst);
    let options = Options { n_handlers: Some(2), n_revalidators: Some(1), flow_limit: 9, ..Options::default() };
    let error = world.switch.set_options(&options).unwrap_err().to_string();
    assert!(error.contains("it has no 2 handlers") && !error.contains("no threads"), "{error}");
    assert_eq!((world.switch.handler_reports().len(), world.switch.upcall_summary().limit), (1, 7));
    world.send(1);
    assert_eq!((world.out(), world.n_flows()), (1, 1));
    // Nor does a later restart go by them.
    world.switch.flush().unwrap();
    assert_eq!(world.switch.handler_reports().len(), 1);
    // Where not even those of before can be had the error says so, and they come with the next start.
    world.faulty.most_handlers.store(0, Ordering::SeqCst);
    let error = world.switch.set_options(&options).unwrap_err().to_string();
    assert!(error.contains("it has no 2 handlers") && error.contains("there are no threads"), "{error}");
    world.faulty.most_handlers.store(1, Ordering::SeqCst);
    world.switch.start().unwrap();
    assert_eq!((world.switch.handler_reports().len(), world.switch.upcall_summary().limit), (1, 7));
}

#[test]
fn numbers_of_threads_change_while_packets_come_and_unchanged_ones_restart_nothing() {
    let world = World::new(&PLAIN);
    let set = |handlers, revalidators| {
        let options = Options { n_handlers: handlers, n_revalidators: revalidators, ..Options::default() };
        world.switch.set_options(&options).unwrap();
        world.switch.handler_reports().len()
    };
    world.send(1);
    world.switch.synchronize();
    assert_eq!((set(Some(1), Some(1)), world.report().received), (1, 1), "the same threads");
    assert_eq!((set(Some(3), Some(1)), world.report().received), (3, 0), "others");
    world.send(2);
    assert_eq!(world.out(), 2, "flows stay");
    let cpus = std::thread::available_parallelism().unwrap().get().max(2);
    assert_eq!(set(None, None), (cpus - (cpus / 4 + 1)).max(1));
    assert_eq!(set(Some(0), Some(0)), (cpus - (cpus / 4 + 1)).max(1), "0 is automatic");
    assert!(world.switch.synchronize_threads());

    let world = World::with(&PLAIN, |options, faulty| {
        options.n_handlers = Some(1);
        faulty.required_handlers = Some(3);
    });
    assert_eq!(world.switch.handler_reports().len(), 3, "the datapath insists");
}

#[test]
fn a_flush_leaves_no_flow_and_the_threads_go_on() {
    let world = World::new(&PER_SOURCE);
    (0..20).for_each(|tag| world.send(tag));
    assert_eq!((world.out(), world.n_flows()), (20, 20));
    world.switch.flush().unwrap();
    assert_eq!(world.n_flows(), 0);
    assert!(world.ukeys().contains("(current 0)"), "{}", world.ukeys());
    world.send(1);
    assert_eq!((world.out(), world.n_flows()), (1, 1));
    let flows = world.switch.dump_flows("br0").unwrap_or_default();
    assert!(flows.contains("n_packets=21"), "statistics were pushed: {flows}");
}

#[test]
fn over_the_flow_limit_packets_go_on_and_flows_do_not() {
    let world = World::with(&PER_SOURCE, |options, _| options.flow_limit = 5);
    let gate = world.faulty.gate.write();
    (0..20).for_each(|tag| world.send(tag));
    drop(gate);
    assert_eq!(world.out(), 20);
    let report = world.report();
    assert_eq!((report.installed, report.flow_limit), (5, 15));
}

#[test]
fn a_storm_of_one_port_does_not_take_anothers_upcalls() {
    let world = World::new(&PER_SOURCE);
    let gate = world.faulty.gate.write();
    // Nobody answers: port 1 uses up its credit.
    for n in 0..20_000u32 {
        let [_, a, b, c] = n.to_be_bytes();
        let _ = world.ports[0].send(udp_frame(B, [2, 0, 0, a, b, c], &[]));
    }
    for n in 0..100 {
        world.ports[2].send(udp_frame(B, [4, 0, 0, 0, 0, n], &[])).unwrap();
    }
    drop(gate);
    world.switch.synchronize();
    let stats = |port: &str| {
        let port = world.dp.ports().unwrap().into_iter().find(|info| info.name == port).unwrap().port;
        world.dp.port_stats(OdpPort(port.0)).unwrap()
    };
    assert!(stats("p1").upcall_lost > 0, "the storm was none");
    assert_eq!((stats("p3").upcalls, stats("p3").upcall_lost), (100, 0));
    let others = std::iter::from_fn(|| world.ports[1].recv()).filter(|packet| packet.data[6] == 4).count();
    assert_eq!(others, 100);
}

#[test]
fn what_is_shown_of_ports_is_counted_now_and_rated_by_the_second() {
    let clock = ManualClock::new(1_000_000);
    let world = World::with(&PER_SOURCE, |options, _| options.clock = Arc::new(clock.clone()));
    let shown = || {
        let shown = world.switch.port_upcalls().into_iter().find(|port| port.name == "p1").unwrap();
        (shown.upcalls, shown.lost, shown.rate, shown.lost_rate)
    };
    world.send(0);
    assert_eq!((world.out(), shown()), (1, (1, 0, 0, 0)), "when what came before the first look came is not known");
    (1..=6).for_each(|tag| world.send(tag));
    assert_eq!((world.out(), shown()), (6, (7, 0, 0, 0)), "no second has passed since the first look");
    clock.advance_ms(2_000);
    assert_eq!(shown(), (7, 0, 3, 0));
    clock.advance_ms(2_000);
    assert_eq!(shown(), (7, 0, 0, 0));
}

#[test]
fn a_handler_lets_others_finish_while_many_packets_come_one_by_one() {
    static TOLD: parking_lot::Mutex<Vec<bool>> = parking_lot::Mutex::new(Vec::new());
    let clock = ManualClock::new(1_000_000);
    let handlers_clock = clock.clone();
    let world = World::with(&["actions=output:2"], |options, _| {
        options.clock = Arc::new(handlers_clock);
        options.schedule = |lets_others_finish| TOLD.lock().push(lets_others_finish);
        // Each packet comes up.
        options.flow_limit = 0;
    });
    let come = |packets: u32, a_ms: u32| {
        for n in 1..=packets {
            world.send(1);
            world.switch.synchronize();
            clock.advance_ms(u64::from(n % a_ms == 0));
        }
    };
    come(50, 1);
    assert_eq!(*TOLD.lock(), [false; 0]);
    come(1_000, 40);
    assert_eq!(*TOLD.lock(), [true]);
    clock.advance_ms(30);
    assert!(wait_until(Duration::from_secs(10), || *TOLD.lock() == [true, false]), "{:?}", TOLD.lock());
}
