//! What the tests of this crate share: numbers that repeat, frames, rules, bridges.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use datapath_common::FlowKey;
use datapath_common::extract::extract;
use datapath_common::packet::SlicePacket;
use dpif::OdpPort;
use ofproto::bridge::{Bridge, BridgeSettings, Config};
use ofproto::mac_learning::MacTable;
use ofproto::port::{PatchStats, Port};
use ofproto::table::{TableStats, Tables};
use ofproto::{PortKind, PortVlan};
use openflow::OfPort;

/// Numbers at random that are the same in each run (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A number from the environment.
pub(crate) fn env(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Addresses that NORMAL doesn't forward to, and their neighbours.
pub(crate) const RESERVED: [[u8; 6]; 14] = [
    [0x00, 0xe0, 0x2b, 0, 0, 0],
    [0x00, 0xe0, 0x2b, 0, 0, 4],
    [0x00, 0xe0, 0x2b, 0, 0, 5],
    [0x00, 0xe0, 0x2b, 0, 0, 6],
    [0x01, 0x00, 0x0c, 0, 0, 0],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xbf],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xc0],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xc7],
    [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xc8],
    [0x01, 0x00, 0x0c, 0xcd, 0xcd, 0xcd],
    [0x01, 0x80, 0xc2, 0, 0, 0x0f],
    [0x01, 0x80, 0xc2, 0, 0, 0x10],
];
/// Stations, a group, everybody, and an address that no bridge forwards.
pub(crate) const MACS: [[u8; 6]; 7] = [
    [0x50, 0x54, 0, 0, 0, 1],
    [0x50, 0x54, 0, 0, 0, 2],
    [0x50, 0x54, 0, 0, 0, 3],
    [0x50, 0x54, 0, 0, 0, 4],
    [0x01, 0, 0x5e, 0, 0, 1],
    [0xff; 6],
    [0x01, 0x80, 0xc2, 0, 0, 3],
];
pub(crate) const VIDS: [u16; 4] = [0, 10, 20, 30];
pub(crate) const PORTS: [u16; 4] = [0, 80, 443, 1000];

/// A frame from `payload`, with tags.
pub(crate) fn frame(dst: [u8; 6], src: [u8; 6], tags: &[(u16, u16)], eth_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [dst, src].concat();
    for (tpid, tci) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(eth_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet with a right header checksum.
pub(crate) fn ipv4(proto: u8, src: [u8; 4], dst: [u8; 4], ttl: u8, tos: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, tos, 0, 0, 0, 1, 0, 0, ttl, proto, 0, 0];
    p.extend(src);
    p.extend(dst);
    p[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    p[6..8].copy_from_slice(&fragment.to_be_bytes());
    let sum = p.chunks(2).map(|half| u32::from(u16::from_be_bytes([half[0], half[1]]))).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    p[10..12].copy_from_slice(&sum.to_be_bytes());
    p.extend(payload);
    p
}

/// A UDP datagram without a checksum.
pub(crate) fn udp(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let mut u = Vec::new();
    for half in [src, dst, 8 + payload.len() as u16, 0] {
        u.extend(half.to_be_bytes());
    }
    u.extend(payload);
    u
}

/// A frame with UDP in it.
pub(crate) fn udp_frame(dst: [u8; 6], src: [u8; 6], tags: &[(u16, u16)]) -> Vec<u8> {
    frame(dst, src, tags, 0x0800, &ipv4(17, [10, 0, 0, 1], [10, 0, 0, 2], 64, 0, 0, &udp(1000, 80, &[0; 30])))
}

fn transport(rng: &mut Rng, v6: bool) -> (u8, Vec<u8>) {
    let ports = [rng.pick(&PORTS), rng.pick(&PORTS)];
    let mut t: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
    match rng.below(6) {
        0 | 1 => {
            t.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, rng.pick(&[2, 16, 18]), 1, 0, 0, 0, 0, 0]);
            (6, t)
        }
        2 | 3 => {
            t.extend([0, 20, 0, 0]);
            t.extend([9; 12]);
            (17, t)
        }
        4 if v6 => {
            let mut t = vec![rng.pick(&[128, 135, 136]), rng.pick(&[0, 0, 0, 1]), 0, 0, 0, 0, 0, 0];
            t.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, rng.pick(&[1, 2])]);
            t.extend([rng.pick(&[1, 2]), 1]);
            t.extend(rng.pick(&MACS));
            (58, t)
        }
        4 => (1, vec![rng.pick(&[0, 8]), rng.pick(&[0, 1]), 0, 0, 0, 0, 0, 0, 1, 2, 3]),
        _ => (rng.pick(&[132, 47]), [t, vec![0; 20]].concat()),
    }
}

/// A frame at random, of a small world, so that two of them often have much in common.
pub(crate) fn random_frame(rng: &mut Rng) -> Vec<u8> {
    let (mut dst, src) = (rng.pick(&MACS), rng.pick(&MACS[..4]));
    if rng.one_in(24) {
        dst = rng.pick(&RESERVED);
    }
    let n_tags = rng.pick(&[0, 0, 0, 1, 1, 2, 3]);
    let tags: Vec<_> = (0..n_tags)
        .map(|_| (rng.pick(&[0x8100, 0x8100, 0x88a8]), rng.pick(&VIDS) | (rng.below(2) as u16) << 13))
        .collect();
    let address = |rng: &mut Rng| [10, rng.pick(&[0, 0, 1, 64]), 0, rng.pick(&[1, 2, 3, 255])];
    let (eth_type, payload) = match rng.below(8) {
        0..=3 => {
            let (proto, payload) = transport(rng, false);
            let fragment = rng.pick(&[0, 0, 0, 0, 0x2000, 0x2010, 0x0010]);
            let (ttl, tos) = (rng.pick(&[0, 1, 2, 64]), rng.pick(&[0, 0, 0xb8, 0x03]));
            (0x0800, ipv4(proto, address(rng), address(rng), ttl, tos, fragment, &payload))
        }
        4 | 5 => {
            let (proto, payload) = transport(rng, true);
            let mut p = vec![0x60, 0, 0, rng.pick(&[0, 5])];
            p.extend((payload.len() as u16).to_be_bytes());
            p.extend([proto, rng.pick(&[1, 64])]);
            for _ in 0..2 {
                p.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, rng.pick(&[1, 2, 3])]);
            }
            p.extend(payload);
            (0x86dd, p)
        }
        6 => {
            let mut p = vec![0, 1, 8, 0, 6, 4, 0, rng.pick(&[1, 2])];
            p.extend(rng.pick(&MACS[..4]));
            p.extend(address(rng));
            p.extend(rng.pick(&MACS[..4]));
            p.extend(address(rng));
            (0x0806, p)
        }
        _ => (rng.pick(&[0x0899, 0x0030, 0x8847]), vec![rng.next() as u8; 48]),
    };
    let mut frame = frame(dst, src, &tags, eth_type, &payload);
    if rng.one_in(12) {
        frame.truncate(14 + rng.below(frame.len() - 13));
    }
    frame
}

/// The datapath's key of a frame.
pub(crate) fn key_of(frame: &[u8], in_port: u32) -> Option<FlowKey> {
    let mut key = FlowKey { in_port, ..FlowKey::ZERO };
    extract(&SlicePacket::new(frame), &mut key).ok()?;
    Some(key)
}

/// Flow text at random: rules of a bridge with ports 1 to 4, tables 0 to 3.
pub(crate) fn random_flows(rng: &mut Rng, n: usize) -> Vec<openflow::FlowMod> {
    let mut flows = Vec::new();
    while flows.len() < n {
        flows.extend(accepted(&random_flow(rng)));
    }
    flows
}

/// The flow, if it is one: some combinations make no sense, and are refused.
pub(crate) fn accepted(text: &str) -> Option<openflow::FlowMod> {
    let flow = openflow::FlowMod::parse(text, &openflow::NoPortNames).ok()?;
    ofproto::Switch::flow_mods_check(std::slice::from_ref(&flow)).ok()?;
    Some(flow)
}

/// Lets some of the flows recirculate before they do anything else.
pub(crate) fn with_recirculation(rng: &mut Rng, flows: &mut [openflow::FlowMod], one_in: usize) {
    for flow in flows.iter_mut().filter(|flow| !flow.actions.is_empty()) {
        let mut changed = flow.clone();
        changed.actions.insert(0, openflow::Action::DebugRecirc);
        // Not everything goes with it.
        if rng.one_in(one_in) && ofproto::Switch::flow_mods_check(std::slice::from_ref(&changed)).is_ok() {
            *flow = changed;
        }
    }
}

fn mac(rng: &mut Rng) -> String {
    rng.pick(&MACS).map(|byte| format!("{byte:02x}")).join(":")
}

/// An address of the packets' world under a prefix of any length.
fn prefix4(rng: &mut Rng) -> String {
    let len = rng.pick(&[8, 9, 10, 15, 16, 24, 28, 30, 31, 32]);
    format!("10.{}.0.{}/{len}", rng.pick(&[0, 0, 1, 64]), rng.pick(&[1, 2, 3, 255]))
}

fn prefix6(rng: &mut Rng) -> String {
    format!("fe80::{}/{}", rng.pick(&[1, 2, 3]), rng.pick(&[7, 10, 64, 96, 126, 127, 128]))
}

/// A port of the packets' world under a prefix.
fn port(rng: &mut Rng) -> String {
    let mask = rng.pick(&[0xffffu16, 0xffff, 0xfff0, 0xff00, 0x8000, 0xfffe]);
    format!("{}/{mask:#x}", rng.pick(&PORTS) & mask)
}

/// A rule of a conjunctive flow, of which there are three: an alternative of a clause, or the end. A conjunctive flow has as
/// many clauses in all its rules.
pub(crate) fn random_conjunction(rng: &mut Rng) -> String {
    let (table, priority, id) = (rng.pick(&[0, 0, 1]), rng.pick(&[20, 30, 30, 30, 50]), rng.pick(&[1, 2, 7]));
    let clauses = |id: u32| if id == 7 { 3 } else { 2 };
    if rng.one_in(4) {
        let also = rng.pick(&["", "", "ip,", "tcp,"]);
        return format!("table={table},priority={priority},{also}conj_id={id},actions=output:{}", rng.pick(&[1, 2, 3]));
    }
    let field = match rng.below(6) {
        0 => format!("in_port={}", rng.pick(&[1, 2])),
        1 => format!("ip,nw_src={}", prefix4(rng)),
        2 => format!("ip,nw_dst={}", prefix4(rng)),
        3 => format!("{},tp_dst={}", rng.pick(&["tcp", "udp"]), port(rng)),
        4 => format!("dl_src={}", mac(rng)),
        _ => rng.pick(&["ip", "tcp", "ipv6", ""]).into(),
    };
    let mut conjunction = |id| format!("conjunction({id},{}/{})", 1 + rng.below(clauses(id)), clauses(id));
    let (first, second) = (conjunction(id), conjunction(1));
    let also = if id == 7 { format!(",{second}") } else { String::new() };
    format!("table={table},priority={priority},{field},actions={first}{also}")
}

pub(crate) fn random_flow(rng: &mut Rng) -> String {
    if rng.one_in(5) {
        return random_conjunction(rng);
    }
    let table = rng.pick(&[0, 0, 1, 2, 3]);
    let mut words = vec![format!("table={table},priority={}", rng.below(8) * 10)];
    let proto = rng.pick(&[
        "",
        "",
        "",
        "ip",
        "tcp",
        "udp",
        "icmp",
        "arp",
        "ipv6",
        "tcp6",
        "udp6",
        "icmp6",
        "icmp6,icmpv6_type=135",
    ]);
    words.push(proto.into());
    for _ in 0..rng.below(4) {
        let word = match rng.below(17) {
            0 => format!("in_port={}", rng.pick(&[1, 2, 3, 4])),
            1 => format!("dl_src={}", mac(rng)),
            2 => format!("dl_dst={}", mac(rng)),
            3 => "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00".into(),
            4 => format!("dl_vlan={}", rng.pick(&["0xffff", "10", "20", "0"])),
            5 => "vlan_tci=0x1000/0x1000".into(),
            6 => format!("dl_vlan_pcp={}", rng.below(2)),
            7 => format!("nw_src={}", prefix4(rng)),
            8 if rng.one_in(4) => "nw_dst=10.0.0.1/255.0.0.255".into(),
            8 => format!("nw_dst={}", prefix4(rng)),
            9 if rng.one_in(4) => "tp_dst=0/1".into(),
            9 => format!("tp_dst={}", port(rng)),
            10 => format!("tp_src={}", port(rng)),
            11 => format!("nw_ttl={}", rng.pick(&["64", "1"])),
            12 => format!("ip_frag={}", rng.pick(&["no", "later", "first", "not_later"])),
            13 => format!("reg0={}", rng.pick(&["0", "1", "0x10/0xf0"])),
            14 => format!("metadata={}", rng.pick(&["0", "7", "0x8/0x8"])),
            15 => format!("ipv6_{}={}", rng.pick(&["src", "dst"]), prefix6(rng)),
            _ => rng
                .pick(&[
                    "tcp_flags=+syn",
                    "nw_tos=184",
                    "icmp_type=8",
                    "arp_spa=10.0.0.1",
                    "nd_target=fe80::1",
                    "arp_op=1",
                ])
                .into(),
        };
        words.push(word);
    }
    let actions: Vec<_> = (0..rng.below(5)).map(|_| random_action(rng)).collect();
    let last = match rng.below(6) {
        0 => "drop".into(),
        1 if table < 3 => format!("goto_table:{}", table + 1),
        2 if table < 3 => format!("write_metadata:7,goto_table:{}", table + 1),
        _ => rng.pick(&["NORMAL", "FLOOD", "output:1", "output:2", "output:3", "output:4", "LOCAL", "IN_PORT"]).into(),
    };
    if last == "drop" {
        return format!("{},actions=drop", words.join(","));
    }
    format!("{},actions={}", words.join(","), actions.into_iter().chain([last]).collect::<Vec<_>>().join(","))
}

fn random_action(rng: &mut Rng) -> String {
    match rng.below(26) {
        0 => format!("output:{}", rng.pick(&[1, 2, 3, 4])),
        1 => format!("mod_vlan_vid:{}", rng.pick(&VIDS)),
        2 => "strip_vlan".into(),
        3 => format!("push_vlan:{}", rng.pick(&["0x8100", "0x88a8"])),
        4 => format!("mod_vlan_pcp:{}", rng.below(8)),
        5 => format!("mod_dl_src:{}", mac(rng)),
        6 => format!("mod_dl_dst:{}", mac(rng)),
        7 => "mod_nw_src:10.0.0.9".into(),
        8 => "mod_nw_dst:10.0.0.3".into(),
        9 => "mod_nw_tos:184".into(),
        10 => "mod_nw_ecn:1".into(),
        11 => format!("mod_tp_dst:{}", rng.pick(&[80, 8080])),
        12 => "mod_tp_src:443".into(),
        13 => "dec_ttl".into(),
        14 => format!("load:{}->NXM_NX_REG0[{}]", rng.below(2), rng.pick(&["0", "4", "0..3"])),
        15 => "move:NXM_OF_ETH_SRC[0..7]->NXM_NX_REG0[0..7]".into(),
        16 => "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[]".into(),
        17 => format!("resubmit(,{})", rng.pick(&[1, 2, 3])),
        18 => format!("resubmit({},{})", rng.pick(&[1, 2]), rng.pick(&[1, 2])),
        19 => "output:NXM_NX_REG0[0..2]".into(),
        20 => format!("output(port={},max_len={})", rng.pick(&[1, 2, 4]), rng.pick(&[20, 64])),
        21 => "set_field:10.0.0.0/255.0.0.0->ip_src".into(),
        22 => "set_field:0x5/0xf->reg0".into(),
        23 => "set_field:2->arp_op".into(),
        24 => "move:NXM_OF_IP_SRC[]->NXM_OF_IP_DST[]".into(),
        _ => rng
            .pick(&["NORMAL", "set_field:fe80::9->ipv6_dst", "load:0x1005->NXM_OF_VLAN_TCI[]", "mod_nw_ttl:9"])
            .into(),
    }
}

/// What one of [`two_bridges`] has of its own.
pub(crate) struct Side {
    /// Of its devices, ports 1 to 3.
    pub(crate) vlans: [PortVlan; 3],
    pub(crate) tables: Tables,
    /// Stations it has learned: VLAN, address, port.
    pub(crate) stations: Vec<(u16, [u8; 6], u16)>,
}

/// Bridges connected by patch ports (number 4 of each), the datapath's ports 0 to 3 and 10 to 13.
pub(crate) fn two_bridges(sides: [Side; 2]) -> Config {
    let mut config = Config::default();
    for (b, side) in sides.into_iter().enumerate() {
        let name: Arc<str> = format!("br{b}").into();
        let mut ports = BTreeMap::new();
        let mut add = |name: String, number: OfPort, kind, odp: Option<u32>, vlan| {
            let odp = odp.map(OdpPort);
            let port = Port { name, number, kind, odp, vlan, patch_stats: Arc::new(PatchStats::default()) };
            ports.insert(number, Arc::new(port));
        };
        let base = 10 * b as u32;
        add(name.to_string(), OfPort::LOCAL, PortKind::Internal, Some(base), PortVlan::default());
        for (n, vlan) in (1..).zip(side.vlans) {
            add(format!("p{b}{n}"), OfPort(n), PortKind::System, Some(base + u32::from(n)), vlan);
        }
        let peer = format!("patch{}", 1 - b);
        add(format!("patch{b}"), OfPort(4), PortKind::Patch { peer }, None, PortVlan::default());
        let macs = MacTable::default();
        for (vlan, mac, port) in side.stations {
            macs.learn(vlan, mac, OfPort(port), 0);
        }
        let bridge = Bridge {
            name: name.clone(),
            settings: BridgeSettings::default(),
            ports,
            tables: side.tables,
            table_stats: Arc::new(TableStats::new(&name)),
            macs: Arc::new(macs),
        };
        config.bridges.insert(name.to_string(), Arc::new(bridge));
    }
    config.index();
    config
}
