//! Datapath flows as text, against what the reference prints, and there and back again.

use datapath_common::key::VLAN_PRESENT;
use dpif::odp::{Cookie, CookieKind, SlowPath, Style, format_actions, format_flow_key, parse_actions, parse_flow_key};
use dpif::*;
use proptest::prelude::*;

fn names(port: OdpPort) -> Option<String> {
    (1..=2).contains(&port.0).then(|| format!("p{port}"))
}

fn numbers(name: &str) -> Option<OdpPort> {
    name.strip_prefix('p')?.parse().ok().map(OdpPort)
}

#[test]
fn dumps_read_as_the_references() {
    let cases: Vec<&str> = include_str!("odp/dumps.txt").split("\n\n").skip(1).collect();
    assert!(cases.len() >= 20);
    for case in cases {
        let lines: Vec<&str> = case.lines().collect();
        let [key, actions, short, verbose] = lines[..] else { panic!("a case has four lines: {case}") };
        let (key, mask) = parse_flow_key(key, None).unwrap_or_else(|e| panic!("{key}: {e}"));
        let actions = parse_actions(actions, None).unwrap_or_else(|e| panic!("{actions}: {e}"));
        // Whoever adds a flow without a recirculation id means id 0.
        let mask = FlowKey { recirc_id: u32::MAX, ..mask };
        let flow = DatapathFlow { ufid: Ufid(1), key, mask, actions: actions.into(), stats: FlowStats::default() };
        let style = Style { packet_type: true, ..Style::default() };
        assert_eq!(style.flow(&flow, 0), short);
        let style = Style { verbose: true, names: Some(&names), ..style };
        let (_, text) = style.flow(&flow, 0).split_once(", ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert_eq!(text, verbose);
        // What is dumped can be added again, ports by name or by number.
        for (text, style) in [(short, Style { packet_type: true, ..Style::default() }), (verbose, style)] {
            let (again, _) = text.split_once(", packets:").unwrap();
            let (key, mask) = parse_flow_key(again, Some(&numbers)).unwrap_or_else(|e| panic!("{again}: {e}"));
            assert_eq!(style.key(&key, Some(&mask)), again);
            let (_, again) = text.split_once("actions:").unwrap();
            let actions = parse_actions(again, Some(&numbers)).unwrap_or_else(|e| panic!("{again}: {e}"));
            assert_eq!(style.actions(&actions), again);
        }
    }
}

#[test]
fn keys_read_as_the_kernels() {
    // The second column is what becomes of the text, where it isn't the same.
    for (text, expected) in [
        (
            "recirc_id(0),in_port(2),eth(src=50:54:00:00:00:09,dst=50:54:00:00:00:0a),eth_type(0x0806),arp(op=1/0xff)",
            "",
        ),
        ("recirc_id(0x7),dp_hash(0x1/0xf),skb_priority(0x5),in_port(2),skb_mark(0x9/0xff),eth(),eth_type(0x1234)", ""),
        ("recirc_id(0),in_port(2),eth(),eth_type(0/0xffff)", ""),
        ("recirc_id(0),in_port(2),eth(),eth_type(0x8100),vlan(vid=5),encap(eth_type(0/0xffff))", ""),
        (
            "recirc_id(0),in_port(2),eth(),eth_type(0x88a8),vlan(vid=5,pcp=0),encap(eth_type(0x8100),vlan(vid=7/0x7,pcp=1),\
             encap(eth_type(0x0800),ipv4(dst=10.0.0.0/255.0.0.0,proto=17,frag=later)))",
            "",
        ),
        (
            "recirc_id(0),in_port(2),eth(),eth_type(0x86dd),ipv6(src=fe80::1,dst=::1.2.3.4,label=0x12345,proto=132,\
             tclass=0x1c/0xfc,hlimit=0/0x1,frag=no),sctp(src=1,dst=0x50/0xfff0)",
            "recirc_id(0),in_port(2),eth(),eth_type(0x86dd),ipv6(src=fe80::1,dst=::1.2.3.4,label=0x12345,proto=132,\
             tclass=0x1c/0xfc,hlimit=0/0x1,frag=no),sctp(src=1,dst=80/0xfff0)",
        ),
        ("recirc_id(0),eth(),eth_type(0x0800),ipv4(proto=6,frag=no),tcp_flags(syn|ack)", ""),
        (
            "recirc_id(0),eth(),eth_type(0x0800),ipv4(proto=6,frag=no),tcp_flags(0x12/0x17)",
            "…,tcp_flags(-fin+syn-rst+ack)",
        ),
        ("recirc_id(0),eth(),eth_type(0x8847),mpls(label=7,tc=0,ttl=64,bos=0,label=8,tc=0,ttl=64,bos=1)", ""),
        ("recirc_id(0),eth(),eth_type(0x894f),nsh(flags=0,np=3,spi=0x1234,c2=0x1/0x000000ff)", ""),
        ("recirc_id(0),ct_state(+est+trk),ct_label(0x10000000000000002/0xff0000000000000002),eth()", ""),
        ("recirc_id(0),ct_tuple6(src=::1,proto=6,dst_port=5),eth(),eth_type(0x86dd)", ""),
        ("recirc_id(0),tunnel(tun_id=0x5/0xff,dst=1.1.1.1,flags(-df+key)),in_port(1),eth()", ""),
        ("eth() , in_port(1),\trecirc_id(3)", "recirc_id(0x3),in_port(1),eth()"),
        ("ufid:00000000-0000-0000-0000-000000000001, recirc_id(0),eth()", "recirc_id(0),eth()"),
    ] {
        let (key, mask) = parse_flow_key(text, None).unwrap_or_else(|e| panic!("{text}: {e}"));
        let shown = format_flow_key(&key, &mask, None);
        match expected.strip_prefix('…') {
            _ if expected.is_empty() => assert_eq!(shown, text),
            Some(end) => assert!(shown.ends_with(end), "{shown}"),
            None => assert_eq!(shown, expected),
        }
    }
}

#[test]
fn everything_is_shown_where_there_is_no_mask_or_on_demand() {
    let text =
        "recirc_id(0),in_port(2),eth(),eth_type(0x0800),ipv4(dst=10.0.0.0/255.0.0.0,proto=6,frag=no),tcp(dst=80)";
    let (key, mask) = parse_flow_key(text, None).unwrap();
    let verbose = Style { verbose: true, ..Style::default() }.key(&key, Some(&mask));
    assert_eq!(
        verbose,
        "recirc_id(0),dp_hash(0/0),skb_priority(0/0),in_port(2),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),\
         ct_label(0/0),eth(src=00:00:00:00:00:00/00:00:00:00:00:00,dst=00:00:00:00:00:00/00:00:00:00:00:00),\
         eth_type(0x0800),ipv4(src=0.0.0.0/0.0.0.0,dst=10.0.0.0/255.0.0.0,proto=6,tos=0/0,ttl=0/0,frag=no),\
         tcp(src=0/0,dst=80),tcp_flags(0/0)"
    );
    assert_eq!(
        Style::default().key(&key, None),
        "recirc_id(0),dp_hash(0),skb_priority(0),in_port(2),skb_mark(0),ct_state(0),ct_zone(0),ct_mark(0),ct_label(0),\
         eth(src=00:00:00:00:00:00,dst=00:00:00:00:00:00),eth_type(0x0800),ipv4(src=0.0.0.0,dst=10.0.0.0,proto=6,tos=0,\
         ttl=0,frag=no),tcp(src=0,dst=80),tcp_flags(0)"
    );
}

#[test]
fn a_whole_flow_says_its_statistics() {
    let (key, mask) = parse_flow_key("recirc_id(0),in_port(2),eth()", None).unwrap();
    let stats = FlowStats { packets: 1, bytes: 98, used_ms: 10_000, tcp_flags: 0x012 };
    let actions = parse_actions("2,3", None).unwrap();
    let flow = DatapathFlow { ufid: Ufid(0x1234_5678_9abc_def0 << 64 | 5), key, mask, actions: actions.into(), stats };
    assert_eq!(
        Style::default().flow(&flow, 10_123),
        "recirc_id(0),in_port(2),eth(), packets:1, bytes:98, used:0.123s, flags:S., actions:2,3"
    );
    let verbose = Style { verbose: true, ..Style::default() }.flow(&flow, 10_123);
    assert!(verbose.starts_with("ufid:12345678-9abc-def0-0000-000000000005, recirc_id(0)"), "{verbose}");
}

#[test]
fn actions_read_as_the_references() {
    for text in [
        "1,2,3",
        "drop",
        "set(eth(src=00:01:02:03:04:05,dst=10:11:12:00:00:00/ff:ff:ff:00:00:00)),set(ipv4(tos=0/0x3)),1",
        "set(ipv6(label=0/0xfff,hlimit=1)),set(icmp(type=1,code=2)),set(icmpv6(type=1)),set(nd(sll=00:00:00:00:00:01))",
        "set(arp(sip=1.2.3.4,op=2)),set(udp(src=256/0xff00)),set(sctp(dst=1)),set(skb_mark(0x5)),set(skb_priority(0x1/0x3))",
        "set(mpls(label=1,tc=2,ttl=3,bos=1)),set(nsh(ttl=3)),set(tunnel(tun_id=0x5,dst=1.1.1.1,tos=0x1,ttl=64,flags(df|key)))",
        "push_vlan(vid=12,pcp=0),push_vlan(tpid=0x88a8,vid=13,pcp=5,cfi=0),pop_vlan",
        "sample(sample=50.0%,actions(1,clone(2,trunc(100),3))),clone(drop),meter(3)",
        "ct(force_commit,zone=5,mark=0x1/0xff,label=0x10/0xff,helper=ftp,timeout=quick,nat(src=10.0.0.1-10.0.0.9:5-7,random))",
        "ct(commit,nat(dst=[fd00::1]:80,persistent,hash)),ct(nat),ct(commit,nat(src=fd00::1-fd00::9))",
        "push_nsh(flags=0,ttl=63,mdtype=1,np=3,spi=0x1234,si=255,c1=0x11,c2=0x0,c3=0x0,c4=0x44)",
        "push_nsh(flags=2,ttl=1,mdtype=2,np=1,spi=0x0,si=1,md2=0x1020304)",
        "ct,ct(commit,zone=5),ct(zone=1),ct_clear,recirc(0x1),hash(l4(7)),hash(sym_l4(0))",
        "push_mpls(label=5,tc=1,ttl=64,bos=1,eth_type=0x8847),pop_mpls(eth_type=0x800),add_mpls(label=200,tc=7,ttl=64,bos=1,eth_type=0x8847)",
        "push_eth(src=00:00:00:00:00:01,dst=00:00:00:00:00:02),pop_eth,pop_nsh(),dec_ttl(le_1(1)),psample(group=1,cookie=0x01ff),psample(group=2)",
        "check_pkt_len(size=200,gt(4),le(drop)),1",
        "userspace(pid=6633,sFlow(vid=9,pcp=7,output=10),actions,tunnel_out_port=10)",
        "userspace(pid=9765,slow_path(0)),userspace(pid=9765,slow_path(cfm,match))",
        "userspace(pid=1234567,userdata(0102030405060708090a0b0c0d0e0f),actions),userspace(pid=1)",
        "userspace(pid=6633,flow_sample(probability=123,collector_set_id=1234,obs_domain_id=2345,obs_point_id=3456,output_port=10,ingress))",
        "userspace(pid=6633,ipfix(output_port=10))",
        "userspace(pid=6633,controller(reason=1,dont_send=0,continuation=1,recirc_id=4444,rule_cookie=0x5555,controller_id=0,max_len=65535))",
    ] {
        let actions = parse_actions(text, None).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(format_actions(&actions, None), text);
    }
    assert_eq!(format_actions(&parse_actions("hash(hash_l4(0)) 1", None).unwrap(), None), "hash(l4(0)),1");
    assert_eq!(parse_actions("", None).unwrap(), []);
    assert_eq!(parse_actions("drop", None).unwrap(), []);
    assert_eq!(format_actions(&[Action::Drop(1)], None), "drop");
    let header = [0x0f, 0xc6, 1, 3, 0, 0x12, 0x34, 0xff, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x44];
    assert_eq!(
        format_actions(&[Action::PushNsh(header.to_vec())], None),
        "push_nsh(flags=0,ttl=63,mdtype=1,np=3,spi=0x1234,si=255,c1=0x11,c2=0x0,c3=0x0,c4=0x44)"
    );
}

#[test]
fn ports_have_names_on_demand() {
    let actions = parse_actions("p1,pop_vlan,p2,7", Some(&numbers)).unwrap();
    assert_eq!(format_actions(&actions, Some(&names)), "p1,pop_vlan,p2,7");
    let (key, mask) = parse_flow_key("in_port(p2)", Some(&numbers)).unwrap();
    assert_eq!((key.in_port, mask.in_port), (2, u32::MAX));
    assert_eq!(format_flow_key(&key, &mask, Some(&names)), "in_port(p2),eth()");
}

#[test]
fn errors_say_where_and_what() {
    for (text, error) in [
        ("in_port(x)", "column 9: expected a number up to 4294967295, found \"x)\""),
        ("in_port(1),foo(2)", "column 12: expected an attribute such as in_port(1), found \"foo(2)\""),
        ("in_port(1", "column 10: expected \")\", found the end"),
        ("in_port(1),in_port(2)", "column 12: expected each attribute only once, found \"in_port(2)\""),
        ("eth(src=1:2:3)", "column 9: expected an Ethernet address such as 50:54:00:00:00:09, found \"1:2:3)\""),
        ("eth(foo=1)", "column 5: expected a field of eth: src, dst, found \"foo=1)\""),
        ("tcp(dst=80)", "column 1: expected an IP packet with proto=6, which tcp needs, found \"tcp(dst=80)\""),
        (
            "eth(),eth_type(0x0806),ipv4(frag=no)",
            "column 24: expected eth_type(0x0800), which ipv4 needs, found \"ipv4(frag=no)\"",
        ),
        ("encap()", "column 1: expected vlan(…) before encap(…), found \"encap()\""),
        ("dp_hash(0x1/0x1ffffffff)", "column 13: expected a number up to 4294967295, found \"0x1ffffffff)\""),
    ] {
        assert_eq!(parse_flow_key(text, None).unwrap_err().to_string(), error);
    }
    for (text, error) in [
        (
            "1,foo",
            "column 3: expected an action such as 1, pop_vlan or set(eth(dst=…)), or a port's name, found \"foo\"",
        ),
        (
            "set(foo(1))",
            "column 5: expected what can be set: eth, ipv4, ipv6, tcp, udp, icmp, arp, skb_mark, …, found \"foo(1))\"",
        ),
        ("push_vlan(vid=4096,pcp=0)", "column 15: expected a number up to 4095, found \"4096,pcp=0)\""),
        (
            "ct(comit)",
            "column 4: expected commit, force_commit, zone, mark, label, helper, timeout or nat, found \"comit)\"",
        ),
        (
            "ct(commit,nat(src=10.0.0.9-10.0.0.1))",
            "column 19: expected an address or two, and :PORT or :FIRST-LAST, found \"10.0.0.9-10.0.0.1))\"",
        ),
        ("push_nsh(mdtype=0)", "column 17: expected metadata type 1 or 2, found \"0)\""),
        (
            "tnl_pop(1)",
            "column 1: expected an action of this datapath, which has no tnl_pop in text, found \"tnl_pop(1)\"",
        ),
        ("1)", "column 2: expected an action such as 1 or pop_vlan, found \")\""),
        (
            "pop_vlanx",
            "column 1: expected an action such as 1, pop_vlan or set(eth(dst=…)), or a port's name, found \"pop_vlanx\"",
        ),
    ] {
        assert_eq!(parse_actions(text, None).unwrap_err().to_string(), error);
    }
    let deep = "clone(".repeat(100_000);
    assert!(parse_actions(&deep, None).unwrap_err().to_string().contains("less nesting"));
    assert!(parse_flow_key(&"eth_type(0x8100),vlan(vid=1),encap(".repeat(100_000), None).is_err());
}

#[test]
fn a_verbose_text_of_a_protocol_that_is_matched_in_part_is_read() {
    let text = "recirc_id(0),in_port(1),eth(),eth_type(0x0800),ipv4(proto=1/0xa3,frag=no)";
    let (key, mask) = parse_flow_key(text, None).unwrap();
    let verbose = Style { verbose: true, ..Style::default() }.key(&key, Some(&mask));
    assert!(verbose.ends_with("icmp(type=0/0,code=0/0)"), "{verbose}");
    assert_eq!(parse_flow_key(&verbose, None).map(|(_, mask)| mask), Ok(mask));
    // What is matched needs all of the type; what isn't, the type that is there.
    for refused in ["icmp(type=8)", "icmp(type=8/1,code=0/0)", "udp(src=0/0)"] {
        assert!(parse_flow_key(&format!("{text},{refused}"), None).is_err(), "{refused}");
    }
}

#[test]
fn a_packet_without_link_layer_has_no_ethernet_header_and_no_tag() {
    for refused in ["eth()", "eth(src=00:00:00:00:00:01)", "eth_type(0x8100),vlan(vid=1),encap(eth_type(0x0800))"] {
        let error = parse_flow_key(&format!("packet_type(ns=1,id=0x800),{refused}"), None).unwrap_err();
        assert!(error.to_string().contains("an Ethernet packet, which"), "{error}");
    }
    // A packet type that isn't matched says nothing.
    let (key, mask) = parse_flow_key("packet_type(ns=1/0,id=0/0),eth(),eth_type(0x0800)", None).unwrap();
    assert_eq!((key.mac_proto, mask.mac_proto), (0, 0));
}

#[test]
fn a_frame_that_ends_in_its_tag_is_read_with_and_without_it() {
    for text in
        ["recirc_id(0),eth(),eth_type(0x8100),vlan(vid=0,pcp=0,cfi=0),encap()", "eth(),eth_type(0x8100),encap()"]
    {
        let (key, mask) = parse_flow_key(text, None).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!((key.eth_type, mask.eth_type, key.vlan), (Be16::new(0x8100), Be16::MAX, Vlan::default()));
    }
    assert!(parse_flow_key("eth(),eth_type(0x8100),encap(eth_type(0x0800))", None).is_err());
}

#[test]
fn a_tuple_is_shown_where_it_is_matched() {
    for text in [
        "recirc_id(0),ct_state(+trk),ct_tuple4(src=10.0.0.1,proto=6),eth(),eth_type(0x0800)",
        "recirc_id(0),ct_state(+trk),ct_tuple4(dst=0.0.1.0/0.0.1.0),eth(),eth_type(0x0800)",
        "recirc_id(0),ct_tuple6(dst=::1,proto=0),eth(),eth_type(0x86dd)",
    ] {
        let (key, mask) = parse_flow_key(text, None).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(format_flow_key(&key, &mask, None), text);
    }
}

#[test]
fn only_neighbour_discovery_has_its_fields() {
    let text = |more: &str| format!("eth(),eth_type(0x86dd),ipv6(proto=58,frag=no),{more}");
    for (more, is_read) in [
        ("icmpv6(type=135,code=0),nd(target=fe80::1)", true),
        ("icmpv6(type=136),nd(tll=50:54:00:00:00:01)", true),
        ("icmpv6(type=137,code=0),nd(target=fe80::1)", false),
        ("icmpv6(type=135/0x7f),nd(target=fe80::1)", false),
        ("nd(target=fe80::1)", false),
    ] {
        assert_eq!(parse_flow_key(&text(more), None).is_ok(), is_read, "{more}");
    }
}

#[test]
fn connection_states_without_a_name_are_refused_where_they_could_not_be_written() {
    for (text, is_read) in [("0x2/0xff", true), ("0x2/0x1ff", false), ("0x2/0xffffffff", true), ("0x102", true)] {
        let read = parse_flow_key(&format!("ct_state({text}),eth()"), None);
        assert_eq!(read.is_ok(), is_read, "{text}");
        if let Ok((key, mask)) = read {
            assert_eq!(parse_flow_key(&format_flow_key(&key, &mask, None), None), Ok((key, mask)), "{text}");
        }
    }
}

#[test]
fn a_reason_without_a_name_survives() {
    let text = "userspace(pid=0,slow_path(action,0x700000))";
    let actions = parse_actions(text, None).unwrap();
    assert_eq!(format_actions(&actions, None), text);
}

#[test]
fn a_cookie_survives_and_says_why() {
    let cookie = Cookie { in_port: 7, bridge: 0x1234 << 64, kind: CookieKind::SlowPath(SlowPath::ACTION) };
    assert_eq!(Cookie::decode(&cookie.encode()), Some(cookie));
    let action = UserspaceAction { cookie: cookie.encode(), ..UserspaceAction::default() };
    assert_eq!(format_actions(&[Action::Userspace(action)], None), "userspace(pid=0,slow_path(action))");
    assert_eq!(Cookie::decode(&[0; 48]), None);
    assert_eq!(Cookie::decode(&[0; 47]), None);
}

/// A mask for a field: none, all or any bits of it.
fn bits(full: u64) -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0), 3 => Just(full), 1 => any::<u64>().prop_map(move |bits| bits & full)]
}

fn bytes<const N: usize>() -> impl Strategy<Value = [u8; N]> {
    (bits(u64::MAX), bits(u64::MAX)).prop_map(|(a, b)| {
        let mut bytes = [0; N];
        let all: Vec<u8> = a.to_ne_bytes().into_iter().chain(b.to_ne_bytes()).collect();
        bytes.copy_from_slice(&all[..N]);
        bytes
    })
}

prop_compose! {
    /// Metadata and link layer of any packet.
    fn outside()(
        numbers in (any::<[u32; 5]>(), any::<[u16; 4]>(), any::<[u8; 28]>(), 0usize..3),
        masks in (
            bits(u64::MAX), bits(u64::MAX), bits(u64::MAX), bytes::<6>(), bytes::<6>(), bytes::<16>(),
            [bits(0xefff), bits(0xefff)],
        ),
    ) -> (FlowKey, FlowKey) {
        let ([in_port, recirc_id, dp_hash, skb_mark, ct_mark], [zone, tci, inner, _], b, tags) = numbers;
        let (m1, m2, m3, src, dst, label, tcis) = masks;
        let array = |at: usize| -> [u8; 6] { b[at..at + 6].try_into().unwrap() };
        let mut key = FlowKey {
            in_port: in_port >> 1, recirc_id, dp_hash, skb_mark, ct_mark, ct_zone: zone, skb_priority: recirc_id ^ 5,
            ct_state: u32::from(zone & 0xff), ct_label: b[..16].try_into().unwrap(),
            eth_src: array(16), eth_dst: array(22), ..FlowKey::ZERO
        };
        let mut mask = FlowKey {
            in_port: m1 as u32, recirc_id: u32::MAX, dp_hash: (m1 >> 32) as u32, skb_mark: m2 as u32,
            ct_mark: (m2 >> 32) as u32, ct_zone: m3 as u16, skb_priority: (m3 >> 16) as u32,
            ct_state: (m3 >> 48) as u32 & 0xff, ct_label: label, eth_src: src, eth_dst: dst, eth_type: Be16::MAX,
            ..FlowKey::ZERO
        };
        let tag = |on: bool, tpid, tci: u16, bits: u64| if on {
            (
                Vlan { tpid: Be16::new(tpid), tci: Be16::new(tci | VLAN_PRESENT) },
                Vlan { tpid: Be16::MAX, tci: Be16::new(bits as u16 | VLAN_PRESENT) },
            )
        } else {
            (Vlan::default(), Vlan { tpid: Be16::ZERO, tci: Be16::MAX })
        };
        (key.vlan, mask.vlan) = tag(tags > 0, 0x8100, tci, tcis[0]);
        if tags > 0 {
            (key.cvlan, mask.cvlan) = tag(tags > 1, 0x88a8, inner, tcis[1]);
        }
        (key, mask)
    }
}

prop_compose! {
    /// The rest, for each kind of packet that has attributes of its own.
    fn packet()(
        (mut key, mut mask) in outside(),
        kind in 0u8..11,
        values in (any::<u128>(), any::<u128>(), any::<u128>(), any::<u64>(), any::<u64>()),
        masks in (bytes::<16>(), bytes::<16>(), bytes::<16>(), bits(u64::MAX), bytes::<6>(), bytes::<6>()),
    ) -> (FlowKey, FlowKey) {
        let (a, b, c, d, e) = values;
        let (ma, mb, mc, md, sha, tha) = masks;
        let be32 = |bytes: [u8; 16]| Be32::new(u32::from_be_bytes(bytes[..4].try_into().unwrap()));
        let six = |n: u64| -> [u8; 6] { n.to_ne_bytes()[..6].try_into().unwrap() };
        let ip = |key: &mut FlowKey, mask: &mut FlowKey, proto: u8| {
            (key.ip_proto, mask.ip_proto) = (proto, u8::MAX);
            (key.ip_tos, key.ip_ttl, key.ip_frag) = (d as u8, (d >> 8) as u8, if proto == 250 { 2 } else { (d >> 16) as u8 & 1 });
            (mask.ip_tos, mask.ip_ttl, mask.ip_frag) = (md as u8, (md >> 8) as u8, u8::MAX);
        };
        let ipv4 = |key: &mut FlowKey, mask: &mut FlowKey, proto| {
            key.eth_type = Be16::new(0x0800);
            (key.ipv4_src, key.ipv4_dst) = (Be32::new(a as u32), Be32::new(b as u32));
            (mask.ipv4_src, mask.ipv4_dst) = (be32(ma), be32(mb));
            ip(key, mask, proto);
        };
        let ipv6 = |key: &mut FlowKey, mask: &mut FlowKey, proto| {
            key.eth_type = Be16::new(0x86dd);
            (key.ipv6_src, key.ipv6_dst, key.ipv6_label) = (a.to_be_bytes(), b.to_be_bytes(), Be32::new(c as u32 & 0xf_ffff));
            (mask.ipv6_src, mask.ipv6_dst) = (ma, mb);
            mask.ipv6_label = Be32::new(be32(mc).get() & 0xf_ffff);
            ip(key, mask, proto);
        };
        let ports = |key: &mut FlowKey, mask: &mut FlowKey, full: u16| {
            (key.tp_src, key.tp_dst) = (Be16::new(e as u16 & full), Be16::new((e >> 16) as u16 & full));
            (mask.tp_src, mask.tp_dst) = (Be16::new((md >> 16) as u16 & full), Be16::new((md >> 32) as u16 & full));
        };
        match kind {
            0 => key.eth_type = Be16::new(0x1234),
            1 => key.eth_type = Be16::new(4),
            2 => {
                ipv4(&mut key, &mut mask, 6);
                ports(&mut key, &mut mask, 0xffff);
                (key.tcp_flags, mask.tcp_flags) = (Be16::new(e as u16 & 0xfff), Be16::new((md >> 48) as u16 & 0xfff));
            }
            3 => {
                ipv6(&mut key, &mut mask, 17);
                ports(&mut key, &mut mask, 0xffff);
            }
            4 => {
                ipv4(&mut key, &mut mask, 1);
                ports(&mut key, &mut mask, 0xff);
            }
            5 | 6 => {
                ipv6(&mut key, &mut mask, 58);
                ports(&mut key, &mut mask, 0xff);
                if kind == 6 {
                    (key.tp_src, mask.tp_src) = (Be16::new(135), Be16::new(0xff));
                    (key.nd_target, mask.nd_target) = (c.to_be_bytes(), mc);
                    (key.arp_sha, key.arp_tha, mask.arp_sha, mask.arp_tha) = (six(d), six(e), sha, tha);
                }
            }
            7 => {
                key.eth_type = Be16::new(0x0806);
                (key.ipv4_src, key.ipv4_dst, key.ip_proto) = (Be32::new(a as u32), Be32::new(b as u32), c as u8);
                (mask.ipv4_src, mask.ipv4_dst, mask.ip_proto) = (be32(ma), be32(mb), md as u8);
                (key.arp_sha, key.arp_tha, mask.arp_sha, mask.arp_tha) = (six(d), six(e), sha, tha);
            }
            8 => {
                key.eth_type = Be16::new(0x8847);
                let n = 1 + (d & 1) as usize;
                (key.mpls_labels, mask.mpls_labels) = ((1 << n) - 1, (1 << n) - 1);
                for i in 0..n {
                    (key.mpls_lse[i], mask.mpls_lse[i]) = (Be32::new((a >> (32 * i)) as u32), be32(ma));
                }
                // A stack of labels none of which is matched is not shown.
                mask.mpls_lse[n - 1] = Be32::MAX;
            }
            9 => {
                key.eth_type = Be16::new(0x894f);
                (key.nsh_flags, key.nsh_ttl, key.nsh_mdtype, key.nsh_np) = (d as u8, (d >> 8) as u8, 1, (d >> 16) as u8);
                (mask.nsh_flags, mask.nsh_ttl, mask.nsh_mdtype) = (md as u8, (md >> 8) as u8, 255);
                (key.nsh_path, mask.nsh_path) = (Be32::new(a as u32), be32(ma));
                key.nsh_context = [1, 2, 3, 4].map(|i| Be32::new((b >> (8 * i)) as u32));
                mask.nsh_context = [be32(mb), be32(mc), Be32::MAX, Be32::ZERO];
            }
            _ => ipv4(&mut key, &mut mask, 250),
        }
        (key.masked(&mask), mask)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_key_survives_its_text((key, mask) in packet(), packet_type: bool, verbose: bool) {
        let style = Style { packet_type, verbose, ..Style::default() };
        let text = style.key(&key, Some(&mask));
        let (key_again, mask_again) = parse_flow_key(&text, None).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
        prop_assert_eq!(mask_again, mask, "{}", text);
        prop_assert_eq!(key_again, key, "{}", text);
    }

    #[test]
    fn no_text_is_too_strange_to_parse(
        (key, mask) in packet(), at: prop::sample::Index, cut in 0usize..6, with in "[a-z0-9(),=/:.+é-]{0,6}",
    ) {
        let actions = "set(ipv4(src=1.2.3.4/255.0.0.0,ttl=63)),userspace(pid=1,controller(reason=1,dont_send=0,continuation=1,\
            recirc_id=4444,rule_cookie=0x5555,controller_id=0,max_len=65535)),sample(sample=50.0%,actions(1,clone(2))),push_vlan(vid=1,pcp=2)";
        for text in [Style::default().key(&key, Some(&mask)), actions.to_owned()] {
            let start = at.index(text.len());
            let end = (start + cut).min(text.len());
            let mut text = text;
            text.replace_range(start..end, &with);
            for error in [parse_flow_key(&text, None).err(), parse_actions(&text, None).err()].into_iter().flatten() {
                prop_assert!(error.column <= text.chars().count() + 1, "{} {}", error, text);
            }
        }
    }
}
