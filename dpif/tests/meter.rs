//! Meters, samples and clones on the in-process datapath, and what an upcall of theirs carries.

#[allow(dead_code)]
mod frames;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datapath_common::op::DropReason;
use datapath_common::packet::SlicePacket;
use dpif::inproc::{Frame, InprocDatapath, Options};
use dpif::*;
use frames::udp_frame;

/// A datapath with ports 1 to 3 and a flow for what comes in at port 1; the clock is the test's.
fn datapath(actions: Vec<Action>) -> (InprocDatapath, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(1_000_000_000));
    let read = Arc::clone(&clock);
    let options = Options { clock: Arc::new(move || read.load(Ordering::SeqCst)), ..Options::new("dp") };
    let dp = InprocDatapath::with_options(options);
    for name in ["p1", "p2", "p3"] {
        dp.port_add(&PortSpec { name: name.into(), kind: PortKind::System, request: None }).unwrap();
    }
    let key = FlowKey { in_port: 1, ..FlowKey::ZERO };
    let mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO };
    dp.flow_put(&FlowPut { mode: PutMode::Create, ufid: Ufid(1), key, mask, actions: actions.into() }).unwrap();
    dp.handlers_set(1).unwrap();
    (dp, clock)
}

fn output(port: u32) -> Action {
    Action::Output(OdpPort(port))
}

fn always(actions: Vec<Action>) -> Action {
    Action::Sample { probability: u32::MAX, actions }
}

fn pktps(rate: u32, burst: u32) -> MeterConfig {
    MeterConfig { unit: MeterUnit::Pktps, bands: vec![MeterBand { rate, burst }] }
}

fn ports_of(trace: &inproc::Trace) -> Vec<u32> {
    trace.outputs().iter().map(|(port, _)| port.0).collect()
}

#[test]
fn a_meter_drops_what_exceeds_it_and_what_comes_behind_it() {
    let (dp, clock) = datapath(vec![output(2), Action::Meter(7), output(3)]);
    let send = || dp.process(OdpPort(1), udp_frame(80, &[0; 58]));
    assert_eq!(ports_of(&send()), [2, 3], "a meter that isn't there lets everything through");
    dp.meter_set(7, &pktps(10, 1)).unwrap();
    assert_eq!(ports_of(&send()), [2, 3]);
    let trace = send();
    assert_eq!((ports_of(&trace), trace.drops()), (vec![2], vec![DropReason::Meter]));
    clock.fetch_add(100_000_000, Ordering::SeqCst);
    assert_eq!(ports_of(&send()), [2, 3]);
    let stats = MeterStats { packets: 3, bytes: 300, bands: vec![BandStats { packets: 1, bytes: 100 }] };
    assert_eq!(dp.meter_get(7).unwrap(), stats);
    assert_eq!(dp.stats().unwrap().drops.iter().find(|drop| drop.0 == "meter").unwrap().1, 1);
    assert_eq!(dp.meter_del(7).unwrap(), stats);
    assert!(matches!(dp.meter_get(7), Err(DpifError::NoSuchMeter(7))));
    assert_eq!(ports_of(&send()), [2, 3]);
}

#[test]
fn what_happens_to_a_copy_does_not_happen_to_the_packet() {
    let push = Action::PushVlan(Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1005) });
    let (dp, _) = datapath(vec![
        Action::Clone(vec![push.clone(), output(2)]),
        always(vec![Action::PopVlan, push, output(2)]),
        output(3),
    ]);
    let frame = udp_frame(80, &[0; 58]);
    let trace = dp.process(OdpPort(1), frame.clone());
    let lengths: Vec<_> = trace.outputs().iter().map(|(port, bytes)| (port.0, bytes.len())).collect();
    assert_eq!(lengths, [(2, 104), (2, 104), (3, 100)]);
    assert_eq!(trace.outputs()[2].1, frame);
}

#[test]
fn a_copy_that_a_meter_drops_takes_nothing_else_with_it() {
    let cookie = vec![7; 48];
    let up = Action::Userspace(UserspaceAction { cookie: cookie.clone(), ..Default::default() });
    let (dp, _) = datapath(vec![always(vec![Action::Meter(1), up]), output(2)]);
    dp.meter_set(1, &pktps(1, 2)).unwrap();
    let traces: Vec<_> = (0..4).map(|_| dp.process(OdpPort(1), udp_frame(80, &[0; 58]))).collect();
    assert!(traces.iter().all(|trace| ports_of(trace) == [2]));
    assert_eq!(traces.iter().map(|trace| trace.upcalls().len()).collect::<Vec<_>>(), [1, 1, 0, 0]);
    assert_eq!(traces[0].upcalls()[0].cookie, cookie);
}

#[test]
fn a_copy_can_be_looked_up_again() {
    let (dp, _) = datapath(vec![Action::Clone(vec![Action::Recirc(5)]), output(2)]);
    let key = FlowKey { in_port: 1, recirc_id: 5, ..FlowKey::ZERO };
    let mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO };
    let put = FlowPut { mode: PutMode::Create, ufid: Ufid(2), key, mask, actions: [output(3)].into() };
    dp.flow_put(&put).unwrap();
    assert_eq!(ports_of(&dp.process(OdpPort(1), udp_frame(80, &[]))), [3, 2]);
}

#[test]
fn an_upcall_brings_the_actions_if_it_is_to() {
    let up =
        |with_actions| Action::Userspace(UserspaceAction { cookie: vec![1; 48], with_actions, ..Default::default() });
    let list = vec![up(true), up(false), always(vec![up(true)]), output(2)];
    let (dp, _) = datapath(list.clone());
    let trace = dp.process(OdpPort(1), udp_frame(80, &[]));
    let actions: Vec<_> = trace.upcalls().iter().map(|upcall| upcall.actions.as_deref()).collect();
    assert_eq!(actions, [Some(&*list), None, Some(&*list)], "the whole list, also from within a part of it");
}

#[test]
fn an_upcall_has_the_tag_in_its_bytes_and_says_the_mru_and_the_segment_size() {
    let (dp, _) = datapath(vec![]);
    dp.flow_flush().unwrap();
    let tag = Vlan { tpid: Be16::new(0x8100), tci: Be16::new(5) };
    let packet = SlicePacket { bytes: udp_frame(80, &[3; 58]), vlan: tag, partial_checksum: true };
    let trace = dp.process(OdpPort(1), Frame { packet, gso_size: 20, mru: 1400, ..Frame::default() });
    let [upcall] = trace.upcalls()[..] else { panic!("{trace:?}") };
    assert_eq!(upcall.packet.data[12..18], [0x81, 0, 0, 5, 8, 0]);
    let Packet { gso_size, partial_checksum, mru, .. } = upcall.packet;
    assert_eq!((gso_size, partial_checksum, mru, upcall.orig_len), (20, true, 1400, 104));
    // What is executed leaves as it came.
    let execute = Execute { packet: &upcall.packet, key: &upcall.key, actions: &[output(2)] };
    let trace = dp.process_execute(execute).unwrap();
    let sent = trace.events.iter().find_map(|event| match event {
        inproc::Event::Output(_, packet) => Some(packet.clone()),
        _ => None,
    });
    assert_eq!(sent, Some(upcall.packet.clone()));
}

#[test]
fn datapaths_without_meters_say_so() {
    struct Bare(InprocDatapath);
    // A datapath that has nothing but what it must have.
    macro_rules! forward {
        ($($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
            $(fn $name(&self, $($arg: $type),*) -> $out { self.0.$name($($arg),*) })*
        };
    }
    impl Dpif for Bare {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn datapath_type(&self) -> &'static str {
            self.0.datapath_type()
        }
        fn engine(&self) -> &'static str {
            self.0.engine()
        }
        fn recv_fd(&self, handler: u32) -> Result<std::os::fd::BorrowedFd<'_>> {
            self.0.recv_fd(handler)
        }
        forward! {
            features() -> Features;
            stats() -> Result<DpStats>;
            port_add(spec: &PortSpec) -> Result<OdpPort>;
            port_del(port: OdpPort) -> Result<()>;
            ports() -> Result<Vec<PortInfo>>;
            port_stats(port: OdpPort) -> Result<PortStats>;
            port_events() -> Vec<PortEvent>;
            flow_put(put: &FlowPut) -> Result<()>;
            flow_get(ufid: Ufid) -> Result<DatapathFlow>;
            flow_del(ufid: Ufid) -> Result<FlowStats>;
            flow_dump(visit: &mut dyn FnMut(&DatapathFlow) -> bool) -> Result<()>;
            flow_flush() -> Result<()>;
            execute(execute: Execute<'_>) -> Result<()>;
            handlers_set(n: u32) -> Result<()>;
            recv(handler: u32, batch: &mut UpcallBatch) -> Result<usize>;
            recv_purge(handler: u32) -> Result<usize>;
            destroy() -> Result<()>;
        }
    }
    let dp = Observed::new(Arc::new(Bare(InprocDatapath::new("dp"))));
    assert_eq!(dp.meter_features(), MeterFeatures::default());
    for error in
        [dp.meter_set(1, &pktps(1, 1)).unwrap_err(), dp.meter_get(1).unwrap_err(), dp.meter_del(1).unwrap_err()]
    {
        assert_eq!(error.to_string(), "a meter is not supported by datapath userspace");
    }
    let dp = Observed::new(Arc::new(InprocDatapath::new("dp")));
    dp.meter_set(1, &pktps(1, 1)).unwrap();
    assert_eq!((dp.meter_get(1).unwrap(), dp.meter_features().max_bands), (dp.meter_del(1).unwrap(), 8));
}
