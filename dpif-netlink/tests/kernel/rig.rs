//! A namespace with a datapath and two wires (`a0` – `a1`, `b0` – `b1`), flows and frames for it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use datapath_common::extract::extract;
use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, FlowKey};
use dpif::odp::{format_actions, format_flow_key};
use dpif::{Action, Dpif, DpifOp, FlowPut, OdpPort, PutMode, Ufid, Upcall, UpcallBatch};
use dpif_netlink::{DispatchMode, NetlinkDpif, Options};
use fastrand::Rng;
use testkit::{Netns, veth_pair};

use crate::generate::{self, Known};

pub(crate) struct Rig {
    pub(crate) ns: Netns,
}

impl Rig {
    pub(crate) fn new(label: &str) -> Self {
        let ns = Netns::new(label).unwrap();
        ns.silence().unwrap();
        veth_pair(&ns, "a0", &ns, "a1").unwrap();
        veth_pair(&ns, "b0", &ns, "b1").unwrap();
        Self { ns }
    }

    /// Runs a test on a thread that is in the namespace; the datapath ends with the namespace.
    pub(crate) fn run(&self, test: impl FnOnce() + Send) {
        self.ns.run(test).unwrap();
    }

    pub(crate) fn open(&self, dispatch: Option<DispatchMode>) -> NetlinkDpif {
        NetlinkDpif::open(&Options { name: "dp-test".into(), dispatch }).unwrap()
    }
}

/// A flow that overlaps with none of another number.
pub(crate) fn flow(rng: &mut Rng, known: Known, number: u32) -> FlowPut {
    let mut key = generate::key(rng);
    key.recirc_id = number;
    let mask = generate::mask(rng, &key);
    let actions = generate::actions(rng, &key.masked(&mask), known).into();
    FlowPut { mode: PutMode::Create, ufid: Ufid(rng.u128(..)), key, mask, actions }
}

pub(crate) fn put_all(dpif: &NetlinkDpif, puts: &[FlowPut]) {
    let mut ops: Vec<_> = puts.iter().map(|put| DpifOp::FlowPut { put, result: Ok(()) }).collect();
    dpif.operate(&mut ops);
    let refused: Vec<_> = ops
        .into_iter()
        .filter_map(|op| match op {
            DpifOp::FlowPut { put, result: Err(error) } => Some(format!("{error}: {}", text(put))),
            _ => None,
        })
        .collect();
    assert!(refused.is_empty(), "{} refused:\n{}", refused.len(), refused.join("\n"));
}

/// A flow as `dpctl/dump-flows` would show it.
fn text(put: &FlowPut) -> String {
    let key = format_flow_key(&put.key.masked(&put.mask), &put.mask, None);
    format!("{key}, actions:{}", format_actions(&put.actions, None))
}

/// Numbers of the actions that the codec knows, and names.
pub(crate) const ACTIONS: [(usize, &str); 24] = [
    (1, "output"),
    (2, "userspace"),
    (3, "set"),
    (4, "push_vlan"),
    (5, "pop_vlan"),
    (6, "sample"),
    (7, "recirc"),
    (8, "hash"),
    (9, "push_mpls"),
    (10, "pop_mpls"),
    (12, "ct"),
    (13, "trunc"),
    (14, "push_eth"),
    (15, "pop_eth"),
    (16, "ct_clear"),
    (17, "push_nsh"),
    (18, "pop_nsh"),
    (19, "meter"),
    (20, "clone"),
    (21, "check_pkt_len"),
    (22, "add_mpls"),
    (23, "dec_ttl"),
    (24, "drop"),
    (25, "psample"),
];

/// Counts actions by their number, those within others too.
pub(crate) fn count(actions: &[Action], counts: &mut [u32; 64]) {
    for action in actions {
        let (number, lists): (usize, Vec<&[Action]>) = match action {
            Action::Output(_) => (1, vec![]),
            Action::Userspace(_) => (2, vec![]),
            Action::Set(_) => (3, vec![]),
            Action::PushVlan(_) => (4, vec![]),
            Action::PopVlan => (5, vec![]),
            Action::Sample { actions, .. } => (6, vec![actions]),
            Action::Recirc(_) => (7, vec![]),
            Action::Hash { .. } => (8, vec![]),
            Action::PushMpls { .. } => (9, vec![]),
            Action::PopMpls(_) => (10, vec![]),
            Action::Ct(_) => (12, vec![]),
            Action::Trunc(_) => (13, vec![]),
            Action::PushEth { .. } => (14, vec![]),
            Action::PopEth => (15, vec![]),
            Action::CtClear => (16, vec![]),
            Action::PushNsh(_) => (17, vec![]),
            Action::PopNsh => (18, vec![]),
            Action::Meter(_) => (19, vec![]),
            Action::Clone(actions) => (20, vec![actions]),
            Action::CheckPktLen { if_greater, if_less_equal, .. } => (21, vec![if_greater, if_less_equal]),
            Action::AddMpls { .. } => (22, vec![]),
            Action::DecTtl(actions) => (23, vec![actions]),
            Action::Drop(_) => (24, vec![]),
            Action::Psample { .. } => (25, vec![]),
            _ => (0, vec![]),
        };
        counts[number] += 1;
        lists.into_iter().for_each(|list| count(list, counts));
    }
}

/// Receives upcalls of all handlers, waiting on their descriptors, until there are `wanted`.
pub(crate) fn receive(dpif: &NetlinkDpif, handlers: u32, wanted: usize, timeout: Duration) -> Vec<Upcall> {
    let deadline = Instant::now() + timeout;
    let mut batch = UpcallBatch::default();
    let mut upcalls = Vec::new();
    while upcalls.len() < wanted {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{} of {wanted} upcalls after {timeout:?}", upcalls.len());
        let fds: Vec<_> = (0..handlers).map(|handler| dpif.recv_fd(handler).unwrap()).collect();
        let mut polled: Vec<_> =
            fds.iter().map(|fd| nix::poll::PollFd::new(*fd, nix::poll::PollFlags::POLLIN)).collect();
        nix::poll::poll(&mut polled, nix::poll::PollTimeout::try_from(left).unwrap()).unwrap();
        for handler in 0..handlers {
            dpif.recv(handler, &mut batch).unwrap();
            upcalls.extend_from_slice(batch.upcalls());
        }
    }
    upcalls
}

/// Tries until there is something.
pub(crate) fn wait<T>(timeout: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "nothing within {timeout:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The key of a frame that came in by `port`, by our own extraction.
pub(crate) fn extracted(frame: &[u8], port: OdpPort) -> FlowKey {
    let mut key = FlowKey { in_port: port.0, ..FlowKey::ZERO };
    extract(&SlicePacket::new(frame), &mut key).unwrap();
    key
}

fn ethernet(eth_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x50, 0x54, 0, 0, 0, 0x0a, 0x50, 0x54, 0, 0, 0, 0x09];
    frame.extend(Be16::new(eth_type).0.to_ne_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(proto: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x45, 0x10, len[0], len[1], 0, 1, 0, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum = packet.chunks(2).map(|half| u32::from(half[0]) << 8 | u32::from(half[1])).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn ipv6(proto: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0x01, 0x23, 0x45, len[0], len[1], proto, 255];
    packet.extend((0..32).map(|i| 0x20 + i as u8));
    packet.extend(payload);
    packet
}

pub(crate) fn udp_frame(port: u16) -> Vec<u8> {
    let port = port.to_be_bytes();
    ethernet(
        0x0800,
        &ipv4(17, &[0x10, 0, port[0], port[1], 0, 38, 0, 0].iter().copied().chain(0..30).collect::<Vec<_>>()),
    )
}

/// Frames of every kind that a key tells apart.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let tcp = [0, 80, 1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x12, 255, 255, 0, 0, 0, 0];
    let nd: Vec<u8> =
        [135, 0, 0, 0, 0, 0, 0, 0].into_iter().chain(0x40..0x50).chain([1, 1, 2, 3, 4, 5, 6, 7]).collect();
    let hop_by_hop: Vec<u8> = [17, 0, 1, 4, 0, 0, 0, 0].into_iter().chain([0, 1, 0, 2, 0, 8, 0, 0]).collect();
    let mut fragment = ipv4(17, &[9; 16]);
    fragment[6..8].copy_from_slice(&[0, 3]);
    let arp: Vec<u8> = [0, 1, 8, 0, 6, 4, 0, 2].into_iter().chain(1..21).collect();
    let nsh: Vec<u8> = [0x0f, 0xc6, 1, 3, 0, 0, 7, 255].into_iter().chain(0..16).chain(udp_frame(1)).collect();
    let tagged = |tags: &[[u8; 4]], frame: Vec<u8>| -> Vec<u8> {
        let mut frame = frame;
        frame.splice(12..12, tags.iter().flatten().copied());
        frame
    };
    let mut frames = vec![
        udp_frame(1),
        ethernet(0x0800, &ipv4(6, &tcp)),
        ethernet(0x0800, &ipv4(1, &[8, 0, 0, 0, 0, 1, 0, 1])),
        ethernet(0x0800, &ipv4(132, &[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0])),
        ethernet(0x0800, &ipv4(89, &[0; 8])),
        ethernet(0x0800, &fragment),
        ethernet(0x86dd, &ipv6(17, &[0, 1, 0, 2, 0, 8, 0, 0])),
        ethernet(0x86dd, &ipv6(58, &nd)),
        ethernet(0x86dd, &ipv6(58, &[128, 0, 0, 0, 0, 0, 0, 0])),
        ethernet(0x86dd, &ipv6(0, &hop_by_hop)),
        ethernet(0x0806, &arp),
        ethernet(0x8847, &[0, 1, 0x20, 64, 0, 2, 0x31, 64, 1, 2, 3, 4]),
        ethernet(0x894f, &nsh),
        ethernet(0x88b5, &[1, 2, 3, 4]),
        ethernet(20, &[0xaa, 0xbb, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        tagged(&[[0x81, 0, 0xa0, 5]], udp_frame(2)),
        tagged(&[[0x88, 0xa8, 0, 7], [0x81, 0, 0x20, 9]], udp_frame(3)),
        ethernet(0x86dd, &ipv6(17, &[0; 8]))[..30].to_vec(),
    ];
    // A device may pad what is shorter; what is sent here stays as it is, so that it can be told again.
    frames.iter_mut().for_each(|frame| frame.resize(frame.len().max(64), 0));
    assert_eq!(frames.iter().collect::<HashSet<_>>().len(), frames.len());
    frames
}
