//! What is measured: frames, the flows that switches need for them, and what is to come out.

use datapath_common::{Be16, FlowKey};
use dpif::Action;

use testkit::live::frames::{Flow, LARGE, SMALL, fix_ip};

use crate::keys::{key, usual_mask};

/// One measurement of all peers.
pub(crate) struct Case {
    pub(crate) id: String,
    /// The flows whose frames are sent in turn.
    pub(crate) flows: Vec<Flow>,
    /// What a datapath needs for them, from port 1 to port 2.
    pub(crate) megaflows: Vec<Megaflow>,
    /// The same as OpenFlow rules.
    pub(crate) rules: String,
    /// What comes out for a frame.
    pub(crate) out: fn(Vec<u8>) -> Vec<u8>,
    /// Whether only a switch can do it: not bare redirections and the kernel's bridge.
    pub(crate) switches_only: bool,
    /// Whether frames are sent by a packet socket.
    pub(crate) by_socket: bool,
}

/// A datapath flow.
#[derive(Clone)]
pub(crate) struct Megaflow {
    pub(crate) key: FlowKey,
    pub(crate) mask: FlowKey,
    pub(crate) actions: Vec<Action>,
}

/// Flows that a datapath of ours must have room for.
pub(crate) const MOST_FLOWS: usize = 100_000;

/// Classes that flows are in, by the low bits of their source ports; each has one of the masks.
const CLASSES: usize = 256;

const FORWARD: &str = "in_port=1,actions=output:2\n";
const NAT: &str = "in_port=1,ip,udp,actions=mod_dl_src:02:00:00:00:00:08,mod_dl_dst:02:00:00:00:00:09,mod_nw_src:192.0.2.1,dec_ttl,mod_tp_src:40000,output:2\n";
const VLAN: &str = "in_port=1,actions=mod_vlan_vid:100,output:2\n";
const RECIRCULATE: &str = "in_port=1,actions=debug_recirc,debug_recirc,debug_recirc,output:2\n";

/// Those of `bench forward`.
pub(crate) fn forward() -> Vec<Case> {
    // By what such frames are called.
    let mut cases: Vec<Case> = [(64, SMALL, 1), (64, SMALL, 1_000), (64, SMALL, MOST_FLOWS), (1500, LARGE, 1)]
        .map(|(name, len, flows)| forwarding(format!("{name}B-{flows}-flows"), len, flows, 1))
        .into();
    let mut by_socket = forwarding("64B-1-flows-by-socket".into(), SMALL, 1, 1);
    by_socket.by_socket = true;
    cases.push(by_socket);
    cases.push(changing("nat", NAT, nat_out, vec![(0, "set(eth(src=02:00:00:00:00:08,dst=02:00:00:00:00:09)),set(ipv4(src=192.0.2.1,ttl=63)),set(udp(src=40000)),2")]));
    cases.push(changing("push-vlan", VLAN, tagged, vec![(0, "push_vlan(vid=100,pcp=0),2")]));
    let recirculations = vec![(0, "recirc(0x1)"), (1, "recirc(0x2)"), (2, "recirc(0x3)"), (3, "2")];
    cases.push(changing("recirculate-3", RECIRCULATE, |frame| frame, recirculations));
    cases
}

/// Those of `bench masks`.
pub(crate) fn masks() -> Vec<Case> {
    let few = [1, 10, 50, 200].map(|masks| (1_000, masks));
    let many = [1, 50].map(|masks| (60_000, masks));
    let case = |(flows, masks)| {
        let mut case = forwarding(format!("{masks}-masks-{flows}-flows"), SMALL, flows, masks);
        case.switches_only = true;
        case
    };
    few.into_iter().chain(many).map(case).collect()
}

/// Frames of many flows go out as they are. Each flow has a megaflow of its own, under one of as many masks.
fn forwarding(id: String, len: usize, flows: usize, masks: usize) -> Case {
    let flows: Vec<Flow> = (0..flows).map(|number| Flow::number(number, len)).collect();
    let megaflow = |(number, flow): (usize, &Flow)| {
        let mut mask = usual_mask();
        (mask.tp_src, mask.tp_dst) = (Be16::MAX, Be16::MAX);
        // Masks differ in which bits of the sender's address they have; the ports tell the flows apart.
        mask.eth_src = [0xff; 6];
        mask.eth_src[5] = !((number % CLASSES % masks) as u8);
        Megaflow { key: key(1, &flow.frame()).masked(&mask), mask, actions: actions("2") }
    };
    let megaflows = flows.iter().enumerate().map(megaflow).collect();
    let (out, rules) = (|frame| frame, if flows.len() == 1 { FORWARD.into() } else { rules(masks) });
    Case { id, flows, megaflows, rules, out, switches_only: false, by_socket: false }
}

/// Rules that look at both ports of every packet, and at as many bits of the addresses as make so many masks of its classes.
fn rules(masks: usize) -> String {
    let rule = |class: usize| {
        let (src, dst) = (class % masks % 32, class % masks / 32);
        format!(
            "in_port=1,udp,tp_src={class}/0xff,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],\
             move:NXM_OF_UDP_DST[]->NXM_NX_REG1[0..15],move:NXM_OF_IP_SRC[0..{src}]->NXM_NX_REG2[0..{src}],\
             move:NXM_OF_IP_DST[0..{dst}]->NXM_NX_REG3[0..{dst}],output:2\n"
        )
    };
    (0..CLASSES).map(rule).collect()
}

/// Frames of one flow, through megaflows by recirculation number.
fn changing(id: &str, rules: &'static str, out: fn(Vec<u8>) -> Vec<u8>, way: Vec<(u32, &str)>) -> Case {
    let flow = Flow::number(1, SMALL);
    let mask = FlowKey { eth_src: [0xff; 6], ip_ttl: 0xff, tp_src: Be16::MAX, ..usual_mask() };
    let megaflow = |(recirc_id, text): &(u32, &str)| {
        let key = FlowKey { recirc_id: *recirc_id, ..key(1, &flow.frame()) };
        Megaflow { key: key.masked(&mask), mask, actions: actions(text) }
    };
    let megaflows = way.iter().map(megaflow).collect();
    Case {
        id: id.into(),
        flows: vec![flow],
        megaflows,
        rules: rules.into(),
        out,
        switches_only: true,
        by_socket: false,
    }
}

fn nat_out(frame: Vec<u8>) -> Vec<u8> {
    let mut frame = frame;
    (frame[5], frame[11], frame[22]) = (9, 8, 63);
    let mut sum = u32::from(!u16::from_be_bytes([frame[40], frame[41]]));
    // RFC 1624: the old words out, the new words in.
    for (at, new) in [(26, [192, 0]), (28, [2, 1]), (34, 40_000u16.to_be_bytes())] {
        sum += u32::from(!u16::from_be_bytes([frame[at], frame[at + 1]])) + u32::from(u16::from_be_bytes(new));
        frame[at..at + 2].copy_from_slice(&new);
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[40..42].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    fix_ip(&mut frame);
    frame
}

fn tagged(frame: Vec<u8>) -> Vec<u8> {
    let mut frame = frame;
    frame.splice(12..12, [0x81, 0, 0, 100]);
    frame
}

fn actions(text: &str) -> Vec<Action> {
    dpif::odp::parse_actions(text, None).unwrap_or_else(|error| panic!("{text}: {error}"))
}
