//! What a packet costs in the in-process datapath, by the number of masks that its lookup passes.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use datapath_common::packet::SlicePacket;
use dpif::inproc::{InprocDatapath, InprocPort};
use dpif::odp::{parse_actions, parse_flow_key};
use dpif::*;

/// A datapath in which a packet of port 1 passes `masks` masks and goes to port 2.
fn datapath(masks: u32, actions: &str) -> (InprocDatapath, InprocPort, InprocPort) {
    let dp = InprocDatapath::new("bench");
    let [p1, p2] = ["p1", "p2"].map(|name| {
        let spec = PortSpec { name: name.into(), kind: PortKind::System, request: None };
        dp.port_add(&spec).and_then(|port| dp.port(port)).expect("a port in memory")
    });
    let put = |ufid: u32, key: &str, extra: u32, actions: &str| {
        let (key, mut mask) = parse_flow_key(key, None).expect("a key");
        mask.skb_mark = extra;
        let actions = parse_actions(actions, None).expect("actions");
        let put = FlowPut { mode: PutMode::Create, ufid: Ufid(ufid.into()), key, mask, actions: actions.into() };
        dp.flow_put(&put).expect("the flow is put");
    };
    for i in 1..masks {
        put(i, "in_port(3),eth(),eth_type(0x0800),ipv4(dst=10.0.0.2)", i, "");
    }
    put(0, "in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.0.0.2,frag=no)", 0, actions);
    (dp, p1, p2)
}

/// A UDP packet of 64 bytes to 10.0.0.2.
fn frame() -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0x66, 0xb7, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 53, 0, 53, 0, 30, 0, 0]);
    frame.resize(64, 0);
    frame
}

fn packets(c: &mut Criterion) {
    let mut group = c.benchmark_group("inproc");
    group.throughput(Throughput::Elements(1));
    for (name, masks, actions) in [
        ("1 mask, output", 1, "2"),
        ("8 masks, output", 8, "2"),
        ("32 masks, output", 32, "2"),
        ("1 mask, drop", 1, ""),
        ("1 mask, set and push", 1, "set(ipv4(src=1.2.3.4,ttl=63)),push_vlan(vid=5,pcp=0),2"),
    ] {
        let (_dp, p1, p2) = datapath(masks, actions);
        let packet = SlicePacket::new(frame());
        group.bench_function(name, |b| {
            b.iter_batched(
                || packet.clone(),
                |packet| {
                    p1.send(black_box(packet)).expect("the port is there");
                    p2.recv()
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, packets);
criterion_main!(benches);
