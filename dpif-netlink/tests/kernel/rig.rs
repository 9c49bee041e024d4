//! A namespace with a datapath and two wires (`a0` – `a1`, `b0` – `b1`), flows and frames for it.

use std::time::{Duration, Instant};

use datapath_common::FlowKey;
use datapath_common::extract::extract;
use datapath_common::packet::SlicePacket;
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
