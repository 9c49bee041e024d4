//! Packets that come up beside misses, on real devices: what a protocol gets, what controllers see of the local stack's
//! unfinished packets, and that a cap holds. On each datapath that this machine can have.

use std::sync::Arc;
use std::time::Duration;

use dpif::Dpif;
use dpif::inproc::{InprocDatapath, Options as InprocOptions, PortBackend};
use dpif_ebpf::{EbpfDpif, Options as EbpfOptions};
use ofproto::packet_in::{PacketIn, PacketInQueue, PacketInSink};
use ofproto::protocol::{Look, Protocol, ProtocolKind, Received};
use ofproto::{BridgeSettings, FailMode, Options, PortKind, PortVlan, Switch};
use openflow::{FieldId, FlowMod, NoPortNames, OfPort, PacketInReason};
use parking_lot::Mutex;
use testkit::raw::{Gso, GsoKind, Offload};
use testkit::{Need, Netns, RawSocket, veth_pair};

const SOON: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
enum Datapath {
    Ebpf,
    Userspace,
}

/// A switch with bridge `br0` and ports `v1` and `v2`, and neighbours on their wires.
struct Lab {
    switch: Switch,
    sockets: [RawSocket; 2],
    netns: Netns,
    _hosts: Netns,
}

impl Lab {
    fn new(datapath: Datapath, name: &str, flows: &[&str]) -> Self {
        let (netns, hosts) = (Netns::new("slow").unwrap(), Netns::new("slow-hosts").unwrap());
        for namespace in [&netns, &hosts] {
            namespace.silence().unwrap();
        }
        for device in ["v1", "v2"] {
            veth_pair(&netns, device, &hosts, device).unwrap();
        }
        let name = format!("t{}-{name}", std::process::id() % 100_000);
        let switch = netns.run(|| {
            let options = Options { n_handlers: Some(1), n_revalidators: Some(1), ..Options::default() };
            let switch = Switch::new(open(datapath, &name), Options { port_flow_limit: 3, ..options });
            let settings = BridgeSettings { fail_mode: FailMode::Secure, ..BridgeSettings::default() };
            switch.bridge_add("br0", settings).unwrap();
            for name in ["v1", "v2"] {
                switch.port_add("br0", name, PortKind::System, PortVlan::default(), None).unwrap();
            }
            let mods: Vec<_> = flows.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
            switch.flows_replace("br0", Some(&mods)).unwrap();
            switch.start().unwrap();
            switch
        });
        let sockets = ["v1", "v2"].map(|device| RawSocket::open(&hosts, device).unwrap());
        Self { switch: switch.unwrap(), sockets, netns, _hosts: hosts }
    }

    fn flows(&self) -> Vec<String> {
        let style = dpif::odp::Style::default();
        self.switch.flows_of_datapath().unwrap().iter().map(|flow| style.flow(flow, 0)).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.netns.run(|| self.switch.destroy()) {
            eprintln!("the datapath is left: {error}");
        }
    }
}

fn open(datapath: Datapath, name: &str) -> Arc<dyn Dpif> {
    match datapath {
        Datapath::Ebpf => {
            let options = EbpfOptions { bpffs: "/run/sluice-test/bpf".into(), slots: 4096, ..EbpfOptions::default() };
            Arc::new(EbpfDpif::open(name, &options).unwrap_or_else(|error| panic!("{name}: {error}")))
        }
        Datapath::Userspace => {
            let options = InprocOptions { backend: PortBackend::Devices, ..InprocOptions::new(name) };
            Arc::new(InprocDatapath::with_options(options))
        }
    }
}

/// The datapaths that a test runs on here.
fn datapaths(test: &str) -> Vec<Datapath> {
    let on =
        |datapath, needs: &[Need]| testkit::skip::have(&format!("{test} on {datapath:?}"), needs).then_some(datapath);
    let ebpf = on(Datapath::Ebpf, &[Need::Namespaces, Need::Bpf, Need::EbpfObject]);
    [ebpf, on(Datapath::Userspace, &[Need::Namespaces])].into_iter().flatten().collect()
}

/// A protocol that takes the packets of an Ethernet type, and keeps them.
#[derive(Debug, Default)]
struct Cfm(Mutex<Vec<Vec<u8>>>);

impl Protocol for Cfm {
    fn kind(&self) -> ProtocolKind {
        ProtocolKind::Cfm
    }

    fn takes(&self, _: OfPort, look: &mut Look<'_>) -> bool {
        look.field(FieldId::EthType) == Some(0x8902)
    }

    fn receive(&self, received: &Received<'_>) {
        self.0.lock().push(received.packet.data.clone());
    }
}

#[test]
fn a_protocol_gets_its_packets_and_the_others_go_on() {
    for (n, datapath) in datapaths("a_protocol_gets_its_packets_and_the_others_go_on").into_iter().enumerate() {
        let lab = Lab::new(datapath, &format!("cfm{n}"), &["in_port=1,actions=2"]);
        let cfm = Arc::new(Cfm::default());
        lab.switch.protocol_attach("br0", Some("v1"), Arc::clone(&cfm) as Arc<dyn Protocol>).unwrap();
        let frame = |eth_type: [u8; 2], n: u8| {
            [&[1, 0x80, 0xc2, 0, 0, 0x30, 2, 0, 0, 0, 0, 1][..], &eth_type, &[n; 60]].concat()
        };
        for n in 1..=3 {
            lab.sockets[0].send(&frame([0x89, 2], n)).unwrap();
            assert!(
                testkit::wait_until(SOON, || cfm.0.lock().last() == Some(&frame([0x89, 2], n))),
                "{datapath:?} {n}"
            );
            // The flow is there before the next.
            lab.switch.synchronize();
        }
        lab.sockets[0].send(&frame([0x88, 0xb5], 9)).unwrap();
        assert_eq!(lab.sockets[1].recv(SOON).unwrap().unwrap().bytes, frame([0x88, 0xb5], 9), "{datapath:?}");
        lab.switch.synchronize();
        let report = lab.switch.handler_reports().remove(0);
        assert_eq!((cfm.0.lock().len(), report.slow_path, report.missed), (3, 2, 2), "{datapath:?}");
        let slow = lab.flows().into_iter().find(|flow| flow.contains("slow_path")).unwrap();
        assert!(slow.ends_with("actions:userspace(pid=0,slow_path(cfm))"), "{datapath:?}: {slow}");
    }
}

/// A TCP super-packet with a tag as the local stack hands it to a device: the checksum field has the pseudo-header's sum.
fn super_packet(payload: &[u8]) -> (Vec<u8>, Offload) {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 5, 8, 0, 0x45, 0];
    let len = 40 + payload.len();
    frame.extend((len as u16).to_be_bytes());
    frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = sum(&frame[18..38]);
    frame[28..30].copy_from_slice(&(!sum).to_be_bytes());
    frame.extend([4, 0, 0, 80, 0, 0, 0, 100, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    let pseudo = [&frame[30..38], &[0, 6], &((len - 20) as u16).to_be_bytes()].concat();
    let pseudo = self::sum(&pseudo);
    frame[54..56].copy_from_slice(&pseudo.to_be_bytes());
    frame.extend(payload);
    let gso = Gso { kind: GsoKind::Tcp4, size: 1000, headers: 58 };
    (frame, Offload { checksum: Some((38, 16)), gso: Some(gso) })
}

/// The one's complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u16 {
    let half = |half: &[u8]| u32::from(half[0]) << 8 | u32::from(half.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(half).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn controllers_see_what_the_wire_would_and_ports_get_what_was_sent() {
    let test = "controllers_see_what_the_wire_would_and_ports_get_what_was_sent";
    for (n, datapath) in datapaths(test).into_iter().enumerate() {
        let lab =
            Lab::new(datapath, &format!("pin{n}"), &["cookie=7,in_port=1,actions=controller(max_len=900,id=3),2"]);
        let queue = Arc::new(PacketInQueue::new(100));
        lab.switch.set_packet_in_sink(Some(Arc::clone(&queue) as Arc<dyn PacketInSink>));
        let payload: Vec<u8> = (0..2500u16).map(|n| n as u8).collect();
        let (frame, offload) = super_packet(&payload);
        // The first is executed, the second finds the flow.
        for round in ["first", "second"] {
            lab.sockets[0].send_offloaded(&frame, offload).unwrap();
            let mut done = 0;
            for len in [1000, 1000, 500] {
                let packet_in =
                    queue.pop_within(SOON).unwrap_or_else(|| panic!("{datapath:?}, {round}: nothing after {done}"));
                let PacketIn { reason, cookie, controller_id, total_len, data, .. } = packet_in;
                assert_eq!((reason, cookie, controller_id), (PacketInReason::Action, 7, 3));
                assert_eq!((total_len, data.len()), (58 + len, (58 + len).min(900)), "{datapath:?}, {round}");
                assert_eq!(data[..18], frame[..18], "{datapath:?}, {round}: the tag is there");
                assert_eq!(sum(&data[18..38]), 0xffff, "{datapath:?}, {round}: the header's checksum");
                assert_eq!(data[42..46], (100 + done as u32).to_be_bytes());
                assert_eq!(data[58..], payload[done..done + data.len() - 58]);
                if data.len() == total_len {
                    let pseudo =
                        [&data[30..38], &[0, 6], &((total_len - 38) as u16).to_be_bytes(), &data[38..]].concat();
                    assert_eq!(sum(&pseudo), 0xffff, "{datapath:?}, {round}: the checksum");
                }
                done += len;
            }
            let out = lab.sockets[1].recv_where(SOON, |out| out.bytes.len() > 100).unwrap().unwrap();
            assert_eq!(out.bytes, frame, "{datapath:?}, {round}");
            assert_eq!(out.offload.gso.map(|gso| gso.size), Some(1000), "{datapath:?}, {round}");
        }
        lab.switch.synchronize();
        let report = lab.switch.handler_reports().remove(0);
        assert_eq!((report.controller, report.packet_in, report.packet_in_lost), (2, 6, 0), "{datapath:?}");
        assert!(lab.flows()[0].contains("controller(reason=1,"), "{:?}", lab.flows());
    }
}

#[test]
fn a_port_over_its_cap_goes_on_packet_by_packet() {
    for (n, datapath) in datapaths("a_port_over_its_cap_goes_on_packet_by_packet").into_iter().enumerate() {
        let flows = ["actions=move:NXM_OF_ETH_SRC[]->NXM_NX_XXREG0[0..47],2"];
        let lab = Lab::new(datapath, &format!("cap{n}"), &flows);
        for n in 0..10u8 {
            let frame = [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 1, n, 0x88, 0xb5][..], &[n; 60]].concat();
            lab.sockets[0].send(&frame).unwrap();
            assert_eq!(lab.sockets[1].recv(SOON).unwrap().unwrap().bytes, frame, "{datapath:?} {n}");
        }
        lab.switch.synchronize();
        let megaflows = lab.switch.port_megaflows().into_iter().find(|of| of.name == "v1").unwrap();
        assert_eq!((megaflows.flows, megaflows.refused, lab.flows().len()), (3, 7, 3), "{datapath:?}");
    }
}
