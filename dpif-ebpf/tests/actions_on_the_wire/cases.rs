//! What each action does to a frame, said twice: as the action, and as a change of the frame's fields.

use datapath_common::{Be16, Be32};
use dpif::{Action, FlowKey, KeyAttr, SetAction, Vlan};

use crate::frame::{Body, Frame, ICMP, ICMPV6, Mode, TCP, UDP, arp, over4, over6};

/// A list of actions, and what it makes of a frame.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) frame: Frame,
    pub(crate) actions: Vec<Action>,
    pub(crate) expected: Frame,
}

impl Case {
    fn new(name: &str, frame: Frame, actions: Vec<Action>, change: impl Fn(&mut Frame)) -> Self {
        let kind = match &frame.body {
            Body::Arp(_) => "ARP".into(),
            Body::Ip4(_, l4) => format!("IPv4 {}", l4.proto),
            Body::Ip6(_, l4) => format!("IPv6 {}", l4.proto),
        };
        let name = format!("{name} of {kind}, {} tags", frame.tags.len());
        let mut expected = frame.clone();
        change(&mut expected);
        Self { name, frame, actions, expected }
    }

    /// The ways in which such a frame can be handed over.
    pub(crate) fn modes(&self) -> &'static [Mode] {
        match &self.frame.body {
            Body::Ip4(ip, l4) if matches!(l4.proto, TCP | UDP) && !l4.bare && ip.fragment.is_none() => {
                &[Mode::Complete, Mode::Partial, Mode::Gso(1000)]
            }
            // The kernel doesn't cut packets with these headers.
            Body::Ip6(ip, l4) if matches!(l4.proto, TCP | UDP) && !ip.headers.is_empty() => {
                if ip.last_dst.is_none() {
                    &[Mode::Complete, Mode::Partial]
                } else {
                    &[Mode::Complete]
                }
            }
            Body::Ip6(_, l4) if matches!(l4.proto, TCP | UDP) && !l4.bare => {
                &[Mode::Complete, Mode::Partial, Mode::Gso(1000)]
            }
            _ => &[Mode::Complete],
        }
    }
}

/// A set of all fields that `fields` puts into value and mask.
pub(crate) fn set(attr: KeyAttr, fields: impl Fn(&mut FlowKey, &mut FlowKey)) -> Action {
    let (mut value, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
    fields(&mut value, &mut mask);
    Action::Set(Box::new(SetAction { attr, value, mask }))
}

pub(crate) fn push(tpid: u16, tci: u16) -> Action {
    // The bit that is the drop-eligible indicator on the wire says "present" here.
    Action::PushVlan(Vlan { tpid: Be16::new(tpid), tci: Be16::new(tci | 0x1000) })
}

pub(crate) fn tagged(mut frame: Frame, tags: &[(u16, u16)]) -> Frame {
    frame.tags = tags.to_vec();
    frame
}

const MAC: [u8; 6] = [0x0a, 0xbb, 0xcc, 0xdd, 0xee, 0x0f];
const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    ethernet(&mut cases);
    ipv4(&mut cases);
    ipv6(&mut cases);
    transport(&mut cases);
    arp_fields(&mut cases);
    vlan(&mut cases);
    cases
}

fn ethernet(cases: &mut Vec<Case>) {
    let frames = [over4(TCP), over6(UDP), arp(), tagged(over4(UDP), &[(Q, 5)])];
    for frame in frames {
        let mut add = |name: &str, action, change: fn(&mut Frame)| {
            cases.push(Case::new(name, frame.clone(), vec![action], change));
        };
        add("eth src", set(KeyAttr::Ethernet, |v, m| (v.eth_src, m.eth_src) = (MAC, [255; 6])), |f| f.src = MAC);
        add("eth dst", set(KeyAttr::Ethernet, |v, m| (v.eth_dst, m.eth_dst) = (MAC, [255; 6])), |f| f.dst = MAC);
        let both = set(KeyAttr::Ethernet, |v, m| {
            (v.eth_src, m.eth_src) = ([0, 0, 0x50, 0, 0, 0x0a], [0, 0, 0xf0, 0, 0, 0x0f]);
            (v.eth_dst, m.eth_dst) = ([4, 0, 0, 0, 0, 0], [0xfe, 0, 0, 0, 0, 0]);
        });
        add("masked eth", both, |f| {
            (f.src[2], f.src[5], f.dst[0]) = (f.src[2] & 0x0f | 0x50, f.src[5] & 0xf0 | 0x0a, f.dst[0] & 1 | 4);
        });
    }
}

fn ipv4(cases: &mut Vec<Case>) {
    let mut bare = over4(UDP);
    bare.l4().bare = true;
    let mut options = over4(TCP);
    options.ip4().options = vec![148, 4, 0, 0, 1, 1, 1, 0];
    let mut first = over4(UDP);
    first.ip4().fragment = Some((0, 40, true));
    let mut later = over4(TCP);
    later.ip4().fragment = Some((40, 100, false));
    let frames = [
        over4(TCP),
        over4(UDP),
        over4(ICMP),
        bare,
        options,
        first,
        later,
        tagged(over4(TCP), &[(Q, 0x6005)]),
        tagged(over4(UDP), &[(AD, 7), (Q, 8)]),
    ];
    for frame in frames {
        let mut add = |name: &str, action, change: fn(&mut Frame)| {
            cases.push(Case::new(name, frame.clone(), vec![action], change));
        };
        let all = Be32::MAX;
        let (src, dst) = (Be32::new(0xac10_fffe), Be32::new(0x0808_0404));
        add("ip src", set(KeyAttr::Ipv4, |v, m| (v.ipv4_src, m.ipv4_src) = (src, all)), |f| f.ip4().src = 0xac10_fffe);
        add("ip dst", set(KeyAttr::Ipv4, |v, m| (v.ipv4_dst, m.ipv4_dst) = (dst, all)), |f| f.ip4().dst = 0x0808_0404);
        add("ip tos", set(KeyAttr::Ipv4, |v, m| (v.ip_tos, m.ip_tos) = (0xb9, 255)), |f| f.ip4().tos = 0xb9);
        add("ip ttl", set(KeyAttr::Ipv4, |v, m| (v.ip_ttl, m.ip_ttl) = (1, 255)), |f| f.ip4().ttl = 1);
        let masked = set(KeyAttr::Ipv4, |v, m| {
            (v.ipv4_src, m.ipv4_src) = (Be32::new(0x0033_4400), Be32::new(0x00ff_ff00));
            (v.ipv4_dst, m.ipv4_dst) = (Be32::new(0x0000_0001), Be32::new(0x8000_0001));
            (v.ip_tos, m.ip_tos) = (0xb8, 0xfc);
            (v.ip_ttl, m.ip_ttl) = (0x05, 0x0f);
        });
        add("masked ip", masked, |f| {
            let ip = f.ip4();
            (ip.src, ip.dst) = (ip.src & 0xff00_00ff | 0x0033_4400, ip.dst & 0x7fff_fffe | 1);
            (ip.tos, ip.ttl) = (ip.tos & 3 | 0xb8, ip.ttl & 0xf0 | 5);
        });
    }
}

fn ipv6(cases: &mut Vec<Case>) {
    let mut options = over6(TCP);
    options.ip6().headers = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])];
    let mut routed = over6(UDP);
    let last = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let mut routing = vec![2, 0, 1, 0, 0, 0, 0];
    routing.extend(last);
    (routed.ip6().headers, routed.ip6().last_dst) = (vec![(43, routing)], Some(last));
    let frames = [
        over6(TCP),
        over6(UDP),
        over6(ICMPV6),
        options,
        routed,
        tagged(over6(UDP), &[(Q, 0x2005)]),
        tagged(over6(TCP), &[(AD, 7), (Q, 8)]),
    ];
    const NEW: [u8; 16] = [0xfe, 0x80, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
    for frame in frames {
        let mut add = |name: &str, action, change: fn(&mut Frame)| {
            cases.push(Case::new(name, frame.clone(), vec![action], change));
        };
        add("ipv6 src", set(KeyAttr::Ipv6, |v, m| (v.ipv6_src, m.ipv6_src) = (NEW, [255; 16])), |f| f.ip6().src = NEW);
        add("ipv6 dst", set(KeyAttr::Ipv6, |v, m| (v.ipv6_dst, m.ipv6_dst) = (NEW, [255; 16])), |f| f.ip6().dst = NEW);
        add("ipv6 class", set(KeyAttr::Ipv6, |v, m| (v.ip_tos, m.ip_tos) = (0xe3, 255)), |f| f.ip6().tclass = 0xe3);
        add("ipv6 hops", set(KeyAttr::Ipv6, |v, m| (v.ip_ttl, m.ip_ttl) = (255, 255)), |f| f.ip6().hops = 255);
        let label = Be32::new(0xedcba);
        let whole = Be32::new(0xfffff);
        add("ipv6 label", set(KeyAttr::Ipv6, |v, m| (v.ipv6_label, m.ipv6_label) = (label, whole)), |f| {
            f.ip6().label = 0xedcba;
        });
        let masked = set(KeyAttr::Ipv6, |v, m| {
            (v.ipv6_src[1], m.ipv6_src[1], v.ipv6_src[15], m.ipv6_src[15]) = (0x20, 0xf0, 0x80, 0x80);
            (v.ipv6_dst[7], m.ipv6_dst[7], v.ipv6_dst[8], m.ipv6_dst[8]) = (0x01, 0x0f, 0xf0, 0xff);
            (v.ip_tos, m.ip_tos, v.ip_ttl, m.ip_ttl) = (0x01, 0x03, 0x07, 0x0f);
            (v.ipv6_label, m.ipv6_label) = (Be32::new(0x54300), Be32::new(0xfff00));
        });
        add("masked ipv6", masked, |f| {
            let ip = f.ip6();
            (ip.src[1], ip.src[15]) = (ip.src[1] & 0x0f | 0x20, ip.src[15] & 0x7f | 0x80);
            (ip.dst[7], ip.dst[8]) = (ip.dst[7] & 0xf0 | 1, 0xf0);
            (ip.tclass, ip.hops) = (ip.tclass & 0xfc | 1, ip.hops & 0xf0 | 7);
            ip.label = ip.label & 0xff | 0x54300;
        });
    }
}

fn transport(cases: &mut Vec<Case>) {
    let mut bare = over4(UDP);
    bare.l4().bare = true;
    let mut options = over4(UDP);
    options.ip4().options = vec![148, 4, 0, 0];
    let mut extended = over6(TCP);
    extended.ip6().headers = vec![(0, vec![0, 1, 4, 0, 0, 0, 0]), (60, vec![0, 1, 4, 0, 0, 0, 0])];
    let frames = [
        over4(TCP),
        over4(UDP),
        over6(TCP),
        over6(UDP),
        bare,
        options,
        extended,
        tagged(over4(TCP), &[(Q, 1)]),
        tagged(over6(UDP), &[(AD, 1), (Q, 2)]),
    ];
    for mut frame in frames {
        let attr = if frame.l4().proto == TCP { KeyAttr::Tcp } else { KeyAttr::Udp };
        let mut add = |name: &str, fields: fn(&mut FlowKey, &mut FlowKey), change: fn(&mut Frame)| {
            cases.push(Case::new(name, frame.clone(), vec![set(attr, fields)], change));
        };
        add("source port", |v, m| (v.tp_src, m.tp_src) = (Be16::new(1), Be16::MAX), |f| f.l4().a = 1);
        add("destination port", |v, m| (v.tp_dst, m.tp_dst) = (Be16::new(65535), Be16::MAX), |f| f.l4().b = 65535);
        add(
            "masked ports",
            |v, m| {
                (v.tp_src, m.tp_src) = (Be16::new(0x0550), Be16::new(0x0ff0));
                (v.tp_dst, m.tp_dst) = (Be16::new(0x8000), Be16::new(0x8001));
            },
            |f| (f.l4().a, f.l4().b) = (f.l4().a & 0xf00f | 0x0550, f.l4().b & 0x7ffe | 0x8000),
        );
    }
    for (frame, attr) in [(over4(ICMP), KeyAttr::Icmp), (over6(ICMPV6), KeyAttr::Icmpv6)] {
        let mut add = |name: &str, fields: fn(&mut FlowKey, &mut FlowKey), change: fn(&mut Frame)| {
            cases.push(Case::new(name, frame.clone(), vec![set(attr, fields)], change));
        };
        add("type", |v, m| (v.tp_src, m.tp_src) = (Be16::new(3), Be16::MAX), |f| f.l4().a = 3);
        add("code", |v, m| (v.tp_dst, m.tp_dst) = (Be16::new(13), Be16::MAX), |f| f.l4().b = 13);
        add(
            "type and code",
            |v, m| {
                (v.tp_src, m.tp_src) = (Be16::new(0x81), Be16::new(0xff));
                (v.tp_dst, m.tp_dst) = (Be16::new(4), Be16::new(0x0f));
            },
            |f| (f.l4().a, f.l4().b) = (0x81, 4),
        );
    }
}

fn arp_fields(cases: &mut Vec<Case>) {
    for frame in [arp(), tagged(arp(), &[(Q, 5)])] {
        let mut add = |name: &str, fields: fn(&mut FlowKey, &mut FlowKey), change: fn(&mut Frame)| {
            cases.push(Case::new(name, frame.clone(), vec![set(KeyAttr::Arp, fields)], change));
        };
        add("op", |v, m| (v.ip_proto, m.ip_proto) = (2, 255), |f| f.arp().op = 2);
        add(
            "spa",
            |v, m| (v.ipv4_src, m.ipv4_src) = (Be32::new(0x0102_0304), Be32::MAX),
            |f| f.arp().spa = 0x0102_0304,
        );
        add(
            "tpa",
            |v, m| (v.ipv4_dst, m.ipv4_dst) = (Be32::new(0x0506_0708), Be32::MAX),
            |f| f.arp().tpa = 0x0506_0708,
        );
        add("sha", |v, m| (v.arp_sha, m.arp_sha) = (MAC, [255; 6]), |f| f.arp().sha = MAC);
        add("tha", |v, m| (v.arp_tha, m.arp_tha) = (MAC, [255; 6]), |f| f.arp().tha = MAC);
        add(
            "masked fields",
            |v, m| {
                (v.ip_proto, m.ip_proto) = (2, 3);
                (v.ipv4_src, m.ipv4_src) = (Be32::new(0x0000_ab00), Be32::new(0x0000_ff00));
                (v.arp_sha[1], m.arp_sha[1], v.arp_tha[5], m.arp_tha[5]) = (0x70, 0x70, 1, 1);
            },
            |f| {
                let arp = f.arp();
                (arp.op, arp.spa) = (2, arp.spa & 0xffff_00ff | 0xab00);
                (arp.sha[1], arp.tha[5]) = (arp.sha[1] | 0x70, arp.tha[5] | 1);
            },
        );
    }
}

fn vlan(cases: &mut Vec<Case>) {
    for frame in [over4(TCP), over6(UDP), arp(), over4(ICMP)] {
        let mut add = |name: &str, tags: &[(u16, u16)], actions: Vec<Action>, change: fn(&mut Frame)| {
            cases.push(Case::new(name, tagged(frame.clone(), tags), actions, change));
        };
        let (one, two) = ([(Q, 0x6005)], [(AD, 0x2007), (Q, 0x4008)]);
        add("push 802.1Q", &[], vec![push(Q, 0xefff)], |f| f.tags.insert(0, (Q, 0xefff)));
        add("push 802.1ad", &[], vec![push(AD, 0x0064)], |f| f.tags.insert(0, (AD, 0x64)));
        add("push 802.1Q", &one, vec![push(Q, 9)], |f| f.tags.insert(0, (Q, 9)));
        add("push 802.1ad", &one, vec![push(AD, 0x8009)], |f| f.tags.insert(0, (AD, 0x8009)));
        add("push twice", &[], vec![push(Q, 1), push(AD, 2)], |f| f.tags = vec![(AD, 2), (Q, 1)]);
        add("push 802.1ad", &two, vec![push(AD, 1)], |f| f.tags.insert(0, (AD, 1)));
        add("pop", &one, vec![Action::PopVlan], |f| f.tags.clear());
        add("pop", &[(AD, 3)], vec![Action::PopVlan], |f| f.tags.clear());
        add("pop", &two, vec![Action::PopVlan], |f| f.tags = vec![(Q, 0x4008)]);
        add("pop twice", &two, vec![Action::PopVlan, Action::PopVlan], |f| f.tags.clear());
        add("pop and push", &one, vec![Action::PopVlan, push(AD, 4)], |f| f.tags = vec![(AD, 4)]);
        add("pop and push", &two, vec![Action::PopVlan, push(Q, 4)], |f| f.tags = vec![(Q, 4), (Q, 0x4008)]);
        add("push and pop", &[], vec![push(Q, 1), Action::PopVlan], |_| {});
        let eth = set(KeyAttr::Ethernet, |v, m| (v.eth_src, m.eth_src) = (MAC, [255; 6]));
        add("push, eth src, pop", &one, vec![push(AD, 1), eth.clone(), Action::PopVlan], |f| f.src = MAC);
        add("eth src, push", &[], vec![eth, push(Q, 3)], |f| (f.src, f.tags) = (MAC, vec![(Q, 3)]));
    }
    // Headers that have moved are found again.
    let fields = || {
        vec![
            set(KeyAttr::Ipv4, |v, m| {
                (v.ipv4_src, m.ipv4_src, v.ip_ttl, m.ip_ttl) = (Be32::new(0x0102_0304), Be32::MAX, 3, 255);
            }),
            set(KeyAttr::Tcp, |v, m| (v.tp_dst, m.tp_dst) = (Be16::new(7), Be16::MAX)),
        ]
    };
    let change = |f: &mut Frame| {
        (f.ip4().src, f.ip4().ttl, f.l4().b) = (0x0102_0304, 3, 7);
    };
    let lists = [
        ("push and set", vec![], [vec![push(Q, 1)], fields()].concat(), vec![(Q, 1)]),
        ("set and push", vec![], [fields(), vec![push(AD, 1)]].concat(), vec![(AD, 1)]),
        ("pop and set", vec![(AD, 1), (Q, 2)], [vec![Action::PopVlan], fields()].concat(), vec![(Q, 2)]),
        ("pop twice and set", vec![(AD, 1), (Q, 2)], [vec![Action::PopVlan; 2], fields()].concat(), vec![]),
        ("push twice and set", vec![], [vec![push(Q, 1), push(AD, 2)], fields()].concat(), vec![(AD, 2), (Q, 1)]),
    ];
    for (name, before, actions, after) in lists {
        cases.push(Case::new(name, tagged(over4(TCP), &before), actions, |f| {
            change(f);
            f.tags.clone_from(&after);
        }));
    }
}
