//! Whole datagrams of the kernel, to each reader that might get them.
//!
//! - No reader panics, and what it made can be shown.
//! - What is read of a message lies within the datagram.
//! - An upcall has the packet and the cookie that are in the datagram.
//! - A flow that fits can be put where the module can express it, and is then read as the same.

use std::sync::Arc;

use dpif::odp::Style;
use dpif::{FlowPut, PutMode, Upcall};
use dpif_netlink::attr::Writer;
use dpif_netlink::codec::{self, Fitness};
use dpif_netlink::fuzzing;
use dpif_netlink::packet::PacketUpcall;

use crate::input::same;

/// The datapath that upcalls are for.
pub const DATAPATH: i32 = 5;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let mut all = 0;
    fuzzing::messages(bytes, |_errno, message| {
        let Some((command, _, attrs)) = message else { return };
        all += attrs.len();
        one(command, attrs);
    });
    assert!(all <= bytes.len(), "the messages are longer than the datagram");
    // As bare attributes too, so that inputs without headers are worth something.
    one(1, bytes);
    let mut upcall = Upcall { cookie: vec![7; 9], ..Upcall::default() };
    if fuzzing::upcall(bytes, DATAPATH, &mut upcall) {
        let within = |part: &[u8]| part.is_empty() || bytes.windows(part.len()).any(|window| window == part);
        assert!(within(&upcall.packet.data) && within(&upcall.cookie), "a part of the upcall is from elsewhere");
    }
}

fn one(command: u8, attrs: &[u8]) {
    if let Some(upcall) = PacketUpcall::read(command, attrs) {
        let _ = upcall.egress_tunnel();
        let _ = upcall.actions.map(codec::decode_actions);
    }
    if let Some(vport) = fuzzing::vport(attrs) {
        assert!(!vport.name.contains('\0'));
    }
    if let Some(connection) = fuzzing::connection(command, attrs) {
        let _ = connection.text(true, true);
    }
    let _ = (fuzzing::datapath(attrs), fuzzing::meter(attrs), fuzzing::limits(attrs), fuzzing::terse_flow(attrs));
    let _ = fuzzing::family(attrs, "ovs_vport");
    flow(attrs);
}

fn flow(attrs: &[u8]) {
    let Ok((fitness, flow)) = fuzzing::flow(attrs) else { return };
    let _ = Style { verbose: true, ..Style::default() }.flow(&flow, 0);
    if fitness != Fitness::Perfect {
        return;
    }
    let put = FlowPut {
        mode: PutMode::Create,
        ufid: flow.ufid,
        key: flow.key,
        mask: flow.mask,
        actions: Arc::clone(&flow.actions),
    };
    let mut to = Writer::default();
    if fuzzing::put_flow(&put, &mut to).is_err() || to.is_too_long() {
        return;
    }
    let (fitness, again) = fuzzing::flow(to.bytes()).expect("what was written is read");
    assert_eq!((fitness, again.ufid, &again.actions), (Fitness::Perfect, flow.ufid, &flow.actions));
    same(&again.key.masked(&flow.mask), &flow.key, "the key comes back");
}
