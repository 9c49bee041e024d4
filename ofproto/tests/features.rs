//! Translation obeys what the datapath can do: packets leave as they would on one that can do more, and nothing is asked of this one
//! that it doesn't have.

mod common;
#[path = "features/less.rs"]
mod less;

use std::sync::Arc;

use common::{MACS, frame, ipv4, udp, udp_frame};
use dpif::inproc::{InprocDatapath, InprocPort, Options as DpOptions};
use dpif::{Features, MeterBand, MeterConfig, MeterUnit};
use less::Less;
use ofproto::{BridgeSettings, Options, PortKind, PortVlan, Switch, VirtualMeter};
use openflow::{FlowMod, NoPortNames};

const A: [u8; 6] = MACS[0];
const B: [u8; 6] = MACS[1];

struct World {
    dpif: Arc<Less>,
    switch: Switch,
    ports: Vec<InprocPort>,
}

impl World {
    /// A bridge with ports 1 to 3, which the datapath calls 2 to 4, over a datapath of which `lower` takes something away.
    fn new(flows: &[&str], lower: impl FnOnce(&mut Features)) -> Self {
        let world = Self::unstarted(flows, lower);
        world.switch.start().unwrap();
        world
    }

    fn unstarted(flows: &[&str], lower: impl FnOnce(&mut Features)) -> Self {
        let inner = InprocDatapath::with_options(DpOptions::new("ovs-netdev"));
        let mut features = dpif::Dpif::features(&inner);
        lower(&mut features);
        let dpif = Arc::new(Less::new(inner.clone(), features));
        let options = Options { n_handlers: Some(1), n_revalidators: Some(1), ..Options::default() };
        let switch = Switch::new(Arc::clone(&dpif) as _, options);
        switch.bridge_add("br0", BridgeSettings::default()).unwrap();
        let ports = ["p1", "p2", "p3"].map(|name| {
            switch.port_add("br0", name, PortKind::System, PortVlan::default(), None).unwrap();
            inner.port_by_name(name).unwrap()
        });
        let mods: Vec<_> = flows.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
        switch.flows_replace("br0", Some(&mods)).unwrap();
        Self { dpif, switch, ports: ports.into() }
    }

    /// What comes out of ports 2 and 3 when a frame comes in twice: first it is missed, then it may have a flow.
    fn pass(&self, frame: &[u8]) -> Vec<Vec<Vec<u8>>> {
        (0..2).for_each(|_| {
            self.ports[0].send(frame.to_vec()).unwrap();
            self.switch.synchronize();
        });
        self.ports[1..]
            .iter()
            .map(|port| std::iter::from_fn(|| port.recv()).map(|packet| packet.data).collect())
            .collect()
    }

    /// The datapath's flows, key and actions.
    fn flows(&self) -> Vec<String> {
        let style = dpif::odp::Style::default();
        let flows = self.switch.flows_of_datapath().unwrap();
        let text = |flow: &dpif::DatapathFlow| {
            format!("{} {}", style.key(&flow.key, Some(&flow.mask)), style.actions(&flow.actions))
        };
        let mut flows: Vec<_> = flows.iter().map(text).collect();
        flows.sort();
        flows
    }
}

/// Sends a frame through a datapath with all features and through one that lacks some: the same comes out, and the flows of the
/// second contain this.
fn same_with_less(what: &str, flows: &[&str], frame: &[u8], lower: fn(&mut Features), expected: &str) {
    let (all, less) = (World::new(flows, |_| {}), World::new(flows, lower));
    let (out, out_less) = (all.pass(frame), less.pass(frame));
    assert!(out.iter().any(|port| port.len() == 2), "{what}: {out:?}");
    assert_eq!(out, out_less, "{what}");
    let (with, without) = (all.flows(), less.flows());
    assert!(without.iter().any(|flow| flow.contains(expected)), "{what}: {without:#?}");
    assert!(!with.iter().any(|flow| flow.contains(expected)), "{what}: {with:#?}");
    assert_eq!(less.switch.upcall_totals().put_failed, 0, "{what}");
    assert_eq!(*less.dpif.refused.lock(), [""; 0], "{what}");
}

fn arp() -> Vec<u8> {
    let body = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &A, &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]].concat();
    frame(B, A, &[], 0x0806, &body)
}

fn icmp() -> Vec<u8> {
    frame(B, A, &[], 0x0800, &ipv4(1, [10, 0, 0, 1], [10, 0, 0, 2], 64, 0, 0, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]))
}

#[test]
fn what_the_datapath_can_not_do_userspace_does() {
    let plain = udp_frame(B, A, &[]);
    same_with_less(
        "truncation",
        &["actions=output(port=2,max_len=20),output:3"],
        &plain,
        |features| features.trunc = false,
        "slow_path(action)",
    );
    same_with_less(
        "sets of ARP",
        &["arp,actions=load:2->NXM_OF_ARP_OP[],output:2"],
        &arp(),
        |features| features.set_arp = false,
        "slow_path(action)",
    );
    same_with_less(
        "sets of ICMP",
        &["icmp,actions=set_field:13->icmp_type,output:2"],
        &icmp(),
        |features| features.set_icmp = false,
        "slow_path(action)",
    );
}

#[test]
fn without_sets_of_bits_whole_attributes_are_set_and_matched() {
    same_with_less(
        "a TTL",
        &["ip,actions=mod_nw_ttl:9,output:2"],
        &udp_frame(B, A, &[]),
        |features| features.masked_set = false,
        "set(ipv4(src=10.0.0.1,dst=10.0.0.2,tos=0,ttl=9)),3",
    );
    same_with_less(
        "an address",
        &["actions=mod_dl_src:02:00:00:00:00:07,output:2"],
        &udp_frame(B, A, &[]),
        |features| features.masked_set = false,
        "set(eth(src=02:00:00:00:00:07,dst=50:54:00:00:00:02)),3",
    );
    let world = World::new(&["ip,actions=mod_nw_ttl:9,output:2"], |features| features.masked_set = false);
    world.pass(&udp_frame(B, A, &[]));
    let flows = world.flows();
    assert!(flows[0].contains("ipv4(src=10.0.0.1,dst=10.0.0.2,proto=17,tos=0,ttl=64,frag=no)"), "{flows:?}");
    // Another packet, for which the set would be wrong, has a flow of its own.
    let other = frame(B, A, &[], 0x0800, &ipv4(17, [10, 0, 0, 9], [10, 0, 0, 2], 64, 0, 0, &udp(1, 2, &[0; 30])));
    let out = world.pass(&other);
    assert_eq!(out[0].iter().map(|frame| frame[26..30].to_vec()).collect::<Vec<_>>(), [[10, 0, 0, 9]; 2]);
    assert_eq!(world.flows().len(), 2);
}

#[test]
fn tags_that_the_datapath_does_not_see_make_each_such_packet_come_up() {
    let flows = ["dl_vlan=7,actions=strip_vlan,output:2", "priority=1,actions=output:3"];
    let one_tag = |features: &mut Features| features.max_vlan_headers = 1;
    let inner = [(0x88a8, 7), (0x8100, 9)];
    same_with_less("two tags", &flows, &udp_frame(B, A, &inner), one_tag, "slow_path(match)");
    // One tag it sees, and there is no word of a second.
    let world = World::new(&flows, one_tag);
    let out = world.pass(&udp_frame(B, A, &[(0x8100, 7)]));
    assert_eq!(out[0], [udp_frame(B, A, &[]), udp_frame(B, A, &[])]);
    let flows = world.flows();
    assert!(
        flows[0].contains("vlan(vid=7") && !flows[0].contains("slow_path") && flows[0].ends_with(" pop_vlan,3"),
        "{flows:?}"
    );
    assert_eq!(*world.dpif.refused.lock(), [""; 0]);
}

#[test]
fn what_no_translation_looks_at_may_be_missing_in_keys() {
    let labels = frame(B, A, &[], 0x8847, &[[0, 1, 0x20, 64], [0, 2, 0x30, 64], [0, 3, 0x31, 64]].concat());
    let mut packet = vec![0x60, 0, 0, 0, 0, 24, 0, 64];
    packet.extend([0xfe; 32]);
    packet.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    packet.extend(udp(1, 2, &[0; 8]));
    let headers = frame(B, A, &[], 0x86dd, &packet);
    let lower = |features: &mut Features| (features.max_mpls_depth, features.ipv6_exthdrs) = (1, false);
    for (what, frame) in [("labels", labels), ("extension headers", headers)] {
        let world = World::new(&["actions=output:2"], lower);
        assert_eq!(world.pass(&frame)[0], [frame.clone(), frame.clone()], "{what}");
        let flows = world.flows();
        assert!(flows.len() == 1 && flows[0].ends_with(" 3"), "{what}: {flows:?}");
        assert_eq!(world.switch.upcall_totals().unfit, 0, "{what}");
        assert_eq!(*world.dpif.refused.lock(), [""; 0], "{what}");
    }
}

#[test]
fn without_recirculation_a_packet_that_needs_it_is_given_up() {
    let world = World::new(&["actions=debug_recirc,output:2"], |features| features.recirc = false);
    let out = world.pass(&udp_frame(B, A, &[]));
    assert!(out.iter().all(Vec::is_empty), "{out:?}");
    let flows = world.flows();
    assert!(flows.len() == 1 && flows[0].ends_with(" drop"), "{flows:?}");
    assert_eq!((world.switch.n_recirc_ids(), world.switch.upcall_totals().dropped), (0, 1));
    assert_eq!(*world.dpif.refused.lock(), [""; 0]);
}

#[test]
fn without_samples_meters_stand_alone_or_not_at_all() {
    let config = MeterConfig { unit: MeterUnit::Pktps, bands: vec![MeterBand { rate: 1000, burst: 1000 }] };
    for (which, flow, with, without) in [
        (
            VirtualMeter::Controller,
            "actions=controller,output:2",
            "sample(sample=100.0%,actions(meter(",
            "userspace(pid=0,controller(",
        ),
        (
            VirtualMeter::SlowPath,
            "actions=output(port=2,max_len=64),mod_nw_ttl:9,output:3",
            "sample(sample=100.0%,actions(meter(",
            "meter(",
        ),
    ] {
        for (nesting, expected) in [(10, with), (0, without)] {
            let world = World::new(&[flow], |features| features.sample_nesting = nesting);
            world.switch.set_virtual_meter(which, Some(&config)).unwrap();
            world.pass(&udp_frame(B, A, &[]));
            let flows = world.flows();
            assert!(flows[0].contains(&format!(" {expected}")), "{which:?}: {flows:?}");
            assert_eq!(*world.dpif.refused.lock(), [""; 0]);
        }
    }
}

#[test]
fn a_datapath_without_flow_ids_is_refused() {
    let world = World::unstarted(&["actions=NORMAL"], |features| features.ufid = false);
    let error = world.switch.start().unwrap_err().to_string();
    assert_eq!(error, "datapath ovs-netdev does not support unique flow ids");
}
