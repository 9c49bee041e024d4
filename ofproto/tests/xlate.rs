//! What translation makes of actions: datapath actions, composed late and no more than needed.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{MACS, RESERVED, frame, ipv4, key_of, udp, udp_frame};
use datapath_common::FlowKey;
use dpif::odp::{Cookie, CookieKind};
use dpif::{Action, Features, OdpPort};
use ofproto::bridge::{Bridge, BridgeSettings, Config};
use ofproto::mac_learning::MacTable;
use ofproto::port::{PatchStats, Port};
use ofproto::table::{TableStats, Tables};
use ofproto::xlate::{Xlate, XlateError, translate};
use ofproto::{PortKind, PortVlan};
use openflow::{FlowMod, NoPortNames, OfPort};

/// Bridges with ports 1 to 3, which are datapath ports 1 to 3, 11 to 13 and so on, and a patch port 4 to the next bridge.
fn config(bridges: &[&[&str]]) -> Config {
    let mut config = Config::default();
    for (b, flows) in bridges.iter().enumerate() {
        let name = format!("br{b}");
        let mut ports = BTreeMap::new();
        let mut add = |name: String, number, kind, odp| {
            let patch_stats = Arc::new(PatchStats::default());
            let port = Port { name, number, kind, odp, vlan: PortVlan::default(), patch_stats };
            ports.insert(number, Arc::new(port));
        };
        let base = 10 * b as u32;
        add(name.clone(), OfPort::LOCAL, PortKind::Internal, Some(OdpPort(base + 5)));
        for n in 1..=3 {
            add(format!("p{b}-{n}"), OfPort(n), PortKind::System, Some(OdpPort(base + u32::from(n))));
        }
        let peer = format!("patch{}", (b + 1) % bridges.len());
        add(format!("patch{b}"), OfPort(4), PortKind::Patch { peer }, None);
        let mods: Vec<_> = flows.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
        let mut tables = Tables::default();
        tables.apply(&mods, 0).unwrap();
        let (settings, macs) = (BridgeSettings::default(), Arc::new(MacTable::default()));
        let table_stats = Arc::new(TableStats::new(&name));
        let bridge = Bridge { name: name.as_str().into(), settings, ports, tables, table_stats, macs };
        config.bridges.insert(name, Arc::new(bridge));
    }
    config.index();
    config
}

fn xlate(bridges: &[&[&str]], frame: &[u8]) -> Xlate {
    translate(&config(bridges), &key_of(frame, 1).unwrap()).unwrap()
}

/// The actions as text: `2` is an output, `set(FIELD=VALUE,…)` names the fields that change.
fn text(actions: &[Action]) -> String {
    let action = |action: &Action| match action {
        Action::Output(port) => port.to_string(),
        Action::PushVlan(vlan) => format!("push({:x}:{:x})", vlan.tpid.get(), vlan.tci.get()),
        Action::PopVlan => "pop".into(),
        Action::Trunc(len) => format!("trunc({len})"),
        Action::Set(set) => format!("set({})", set_text(&set.value, &set.mask)),
        Action::Userspace(up) => match Cookie::decode(&up.cookie).map(|cookie| cookie.kind) {
            Some(CookieKind::Controller { reason, max_len, .. }) => format!("controller({reason},{max_len})"),
            kind => format!("{kind:?}"),
        },
        other => format!("{other:?}"),
    };
    actions.iter().map(action).collect::<Vec<_>>().join(",")
}

fn set_text(value: &FlowKey, mask: &FlowKey) -> String {
    let mut words = Vec::new();
    let mut put = |name: &str, value: u64, mask: u64, all: u64| match mask {
        0 => {}
        mask if mask == all => words.push(format!("{name}={value:x}")),
        mask => words.push(format!("{name}={value:x}/{mask:x}")),
    };
    let mac = |mac: [u8; 6]| mac.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    put("src", mac(value.eth_src), mac(mask.eth_src), 0xffff_ffff_ffff);
    put("dst", mac(value.eth_dst), mac(mask.eth_dst), 0xffff_ffff_ffff);
    put("nw_src", value.ipv4_src.get().into(), mask.ipv4_src.get().into(), 0xffff_ffff);
    put("nw_dst", value.ipv4_dst.get().into(), mask.ipv4_dst.get().into(), 0xffff_ffff);
    put("tos", value.ip_tos.into(), mask.ip_tos.into(), 0xff);
    put("ttl", value.ip_ttl.into(), mask.ip_ttl.into(), 0xff);
    put("proto", value.ip_proto.into(), mask.ip_proto.into(), 0xff);
    put("tp_src", value.tp_src.get().into(), mask.tp_src.get().into(), 0xffff);
    put("tp_dst", value.tp_dst.get().into(), mask.tp_dst.get().into(), 0xffff);
    put("mark", value.skb_mark.into(), mask.skb_mark.into(), 0xffff_ffff);
    words.join(",")
}

/// The tag that is taken off and the one that comes in its place may be the same: then the packet doesn't change, and that is so only
/// for packets with that tag.
#[test]
fn a_tag_in_the_place_of_one_that_was_taken_off_depends_on_it() {
    let packet = |tci| udp_frame(MACS[1], MACS[0], &[(0x8100, tci)]);
    for flow in [
        "actions=strip_vlan,push_vlan:0x8100,set_field:1->vlan_pcp,output:2",
        "actions=strip_vlan,mod_vlan_pcp:1,output:2",
        "actions=strip_vlan,mod_vlan_vid:0,mod_vlan_pcp:1,output:2",
    ] {
        let config = config(&[&[flow]]);
        let of = |tci| translate(&config, &key_of(&packet(tci), 1).unwrap()).unwrap();
        let (same, other) = (of(0x2000), of(0x2014));
        assert_eq!(text(&same.odp_actions), "2", "{flow}");
        assert_eq!(text(&other.odp_actions), "pop,push(8100:3000),2", "{flow}");
        let (key, mask) = (key_of(&packet(0x2000), 1).unwrap(), same.mask);
        assert!(!key.masked(&mask).matches(&mask, &key_of(&packet(0x2014), 1).unwrap()), "{flow}: {mask:?}");
        assert!(!key.masked(&mask).matches(&mask, &key_of(&packet(0x4000), 1).unwrap()), "{flow}: {mask:?}");
    }
}

#[test]
fn actions_become_datapath_actions() {
    let plain = udp_frame(MACS[1], MACS[0], &[]);
    let tagged = udp_frame(MACS[1], MACS[0], &[(0x8100, 0x2005)]);
    let double = udp_frame(MACS[1], MACS[0], &[(0x88a8, 5), (0x8100, 6)]);
    for (frame, flows, actions) in [
        (&plain, "actions=output:2,output:1,IN_PORT,output:9", "2,1"),
        (&plain, "actions=FLOOD", "2,3,5"),
        (&plain, "actions=ALL,LOCAL", "2,3,5,5"),
        (&plain, "actions=drop", ""),
        (&plain, "actions=CONTROLLER:65535,output:2", "controller(1,65535),2"),
        (&plain, "actions=mod_dl_dst:02:00:00:00:00:09,CONTROLLER:128", "set(dst=20000000009),controller(1,128)"),
        // What nobody sees costs nothing.
        (&plain, "actions=mod_dl_dst:50:54:00:00:00:09", ""),
        (&plain, "actions=output:2,mod_dl_dst:50:54:00:00:00:09", "2"),
        // To set what is there already costs nothing either.
        (&plain, "actions=mod_dl_dst:50:54:00:00:00:02,output:2", "2"),
        (&plain, "actions=mod_dl_dst:50:54:00:00:00:09,output:2,output:3", "set(dst=505400000009),2,3"),
        (&plain, "ip,actions=mod_nw_src:10.0.0.9,dec_ttl,output:2", "set(nw_src=a000009,ttl=3f),2"),
        (&plain, "ip,actions=set_field:172.0.0.0/255.0.0.0->ip_src,output:2", "set(nw_src=ac000000/ff000000),2"),
        (&plain, "ip,actions=mod_nw_tos:184,output:2", "set(tos=b8/fc),2"),
        (&plain, "udp,actions=mod_tp_dst:53,output:2", "set(tp_dst=35),2"),
        (&plain, "actions=mod_tp_dst:53,output:2", "set(tp_dst=35),2"),
        (&plain, "actions=load:7->NXM_NX_PKT_MARK[],output:2", "set(mark=7),2"),
        (&plain, "actions=mod_vlan_vid:7,output:2", "push(8100:1007),2"),
        (
            &plain,
            "actions=push_vlan:0x88a8,mod_vlan_vid:7,mod_vlan_pcp:3,output:2,strip_vlan,output:3",
            "push(88a8:7007),2,pop,3",
        ),
        (&plain, "actions=set_vlan_vid:7,output:2", "2"),
        (&plain, "actions=mod_vlan_vid:7,strip_vlan,output:2", "2"),
        (&tagged, "actions=mod_vlan_vid:5,output:2", "2"),
        (&tagged, "actions=mod_vlan_vid:7,output:2", "pop,push(8100:3007),2"),
        (&tagged, "actions=push_vlan:0x8100,mod_vlan_vid:9,output:2", "push(8100:1009),2"),
        (&tagged, "actions=pop_vlan,output:2", "pop,2"),
        (&double, "actions=pop_vlan,output:2,pop_vlan,output:3", "pop,2,pop,3"),
        (&double, "actions=mod_vlan_vid:7,output:2", "pop,push(88a8:1007),2"),
        (&plain, "actions=output(port=2,max_len=60),output:3", "trunc(60),2,3"),
        (&plain, "actions=load:3->NXM_NX_REG0[],output:NXM_NX_REG0[]", "3"),
        (&plain, "actions=move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],output:2", "set(dst=505400000001),2"),
        (&plain, "actions=load:2->NXM_OF_IN_PORT[],output:2,output:1", "1"),
        (&plain, "actions=exit,output:2", ""),
    ] {
        let flows: Vec<_> = flows.split(" / ").collect();
        assert_eq!(text(&xlate(&[&flows], frame).odp_actions), actions, "{flows:?}");
    }
}

#[test]
fn tables_lead_to_tables() {
    let plain = udp_frame(MACS[1], MACS[0], &[]);
    for (flows, actions) in [
        (vec!["actions=resubmit(,1),output:3", "table=1,actions=output:2"], "2,3"),
        (vec!["actions=goto_table:1", "table=1,actions=output:2"], "2"),
        (vec!["actions=resubmit(2,1)", "table=1,in_port=2,actions=IN_PORT", "table=1,in_port=1,actions=output:3"], "1"),
        (vec!["actions=load:5->NXM_NX_REG3[],resubmit(,1)", "table=1,reg3=5,actions=output:2"], "2"),
        (vec!["actions=write_metadata:7/0xf,goto_table:1", "table=1,metadata=7,actions=output:2"], "2"),
        (vec!["actions=resubmit(,1),output:3", "table=1,actions=exit"], ""),
        // The TTL of 64 goes down in the nested table, and what follows sees it.
        (vec!["ip,actions=resubmit(,1),output:3", "table=1,ip,actions=dec_ttl"], "set(ttl=3f),3"),
        (vec!["actions=write_actions(output:2),goto_table:1", "table=1,actions=output:3"], "3,2"),
        (vec!["actions=write_actions(output:2,pop_vlan,push_vlan:0x8100,output:3)"], "push(8100:1000),3"),
        (vec!["actions=write_actions(output:2),goto_table:1", "table=1,actions=clear_actions"], ""),
        (vec!["actions=write_actions(mod_dl_dst:50:54:00:00:00:09)"], ""),
    ] {
        assert_eq!(text(&xlate(&[&flows], &plain).odp_actions), actions, "{flows:?}");
    }
}

#[test]
fn conjunctive_flows_lead_on_and_are_looked_up_in_each_table() {
    let clauses = [
        "priority=9,ip,nw_src=10.0.0.0/24,actions=conjunction(5,1/2)",
        "priority=9,udp,tp_dst=80,actions=conjunction(5,2/2)",
    ];
    let plain = udp_frame(MACS[1], MACS[0], &[]);
    for (more, actions) in [
        (&[][..], ""),
        (&["conj_id=5,actions=output:2"], "2"),
        (&["conj_id=5,ip,actions=resubmit(,1)", "table=1,conj_id=5,actions=output:2", "table=1,actions=output:3"], "3"),
        (&["conj_id=6,actions=output:2", "priority=1,actions=output:3"], "3"),
    ] {
        let flows = [&clauses[..], more].concat();
        let xlate = xlate(&[&flows], &plain);
        assert_eq!(text(&xlate.odp_actions), actions, "{more:?}");
        assert_eq!((xlate.mask.ipv4_src.get(), xlate.mask.tp_dst.get()), (0xffff_ff00, 0xffff));
    }
}

#[test]
fn the_ports_of_a_fragment_are_not_matched() {
    let packet = |fragment| {
        let packet = ipv4(17, [10, 0, 0, 1], [10, 0, 0, 2], 64, 0, fragment, &udp(1, 80, &[0; 8]));
        frame(MACS[1], MACS[0], &[], 0x0800, &packet)
    };
    let flows: &[&str] = &["priority=2,udp,tp_dst=80,actions=output:2", "priority=1,udp,tp_dst=0,actions=output:3"];
    for (fragment, actions) in [(0, "2"), (0x2000, "3"), (0x0010, "3")] {
        assert_eq!(text(&xlate(&[flows], &packet(fragment)).odp_actions), actions, "{fragment:#x}");
    }
}

#[test]
fn a_packet_at_its_end_goes_no_further_in_its_list() {
    let packet = ipv4(17, [10, 0, 0, 1], [10, 0, 0, 2], 1, 0, 0, &udp(1, 2, &[]));
    let frame = frame(MACS[1], MACS[0], &[], 0x0800, &packet);
    let flows: &[&str] = &["ip,actions=resubmit(,1),output:3", "table=1,ip,actions=dec_ttl,output:2"];
    assert_eq!(text(&xlate(&[flows], &frame).odp_actions), "controller(2,65535),3");
}

#[test]
fn loops_end_and_give_the_packet_up() {
    let plain = udp_frame(MACS[1], MACS[0], &[]);
    for (bridges, error) in [
        (vec![vec!["actions=output:2,resubmit(,0)"]], XlateError::TooDeep),
        (
            // Each table looks the next one up twice: a few lines, and more lookups than there are atoms.
            vec![
                (0..200)
                    .map(|n| format!("table={n},actions=resubmit(,{0}),resubmit(,{0})", n + 1).leak() as &str)
                    .collect(),
            ],
            XlateError::TooManyResubmits,
        ),
        (vec![vec!["actions=IN_PORT,output:4"], vec!["actions=IN_PORT"]], XlateError::TooDeep),
        (
            vec![vec![
                "actions=push_vlan:0x8100,push_vlan:0x8100,resubmit(,1)",
                "table=1,actions=push_vlan:0x8100,output:2",
            ]],
            XlateError::TooManyVlans,
        ),
    ] {
        let bridges: Vec<&[&str]> = bridges.iter().map(Vec::as_slice).collect();
        let xlate = xlate(&bridges, &plain);
        assert_eq!((xlate.error, xlate.odp_actions), (Some(error), vec![]));
    }
}

#[test]
fn thousands_of_nested_lookups_fit_the_stack_of_a_thread() {
    // Again and again through 64 tables, each lookup inside the one before.
    let mut flows: Vec<String> = (0..63).map(|n| format!("table={n},actions=resubmit(,{})", n + 1)).collect();
    flows.push("table=63,actions=output:2,resubmit(,0)".into());
    let flows: Vec<&str> = flows.iter().map(String::as_str).collect();
    let run = move || {
        let bridges: &[&[&str]] = &[&flows.iter().map(|f| (*f).to_string().leak() as &str).collect::<Vec<_>>()];
        xlate(bridges, &udp_frame(MACS[1], MACS[0], &[])).error
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(512 << 10).spawn_scoped(scope, run).unwrap();
        assert_eq!(thread.join().unwrap(), Some(XlateError::TooManyResubmits));
    });
}

#[test]
fn what_is_not_looked_at_is_wild() {
    let plain = udp_frame(MACS[1], MACS[0], &[]);
    let mask = |flows: &[&str]| xlate(&[flows], &plain).mask;
    let least = mask(&["actions=output:2"]);
    assert_eq!(
        (least.in_port, least.recirc_id, least.eth_type.get(), least.ip_frag),
        (u32::MAX, u32::MAX, 0xffff, 0xff)
    );
    let rest = FlowKey { in_port: 0, recirc_id: 0, eth_type: Default::default(), ip_frag: 0, ..least };
    assert_eq!(rest, FlowKey::ZERO);
    let normal = mask(&["actions=NORMAL"]);
    assert_eq!((normal.eth_src, normal.eth_dst, normal.vlan.tci.get()), ([0xff; 6], [0xff; 6], 0x1fff));
    assert_eq!(normal.ipv4_dst.get(), 0);
    let prefix = mask(&["ip,nw_dst=10.0.0.0/8,actions=output:2"]);
    assert_eq!((prefix.ipv4_dst.get(), prefix.ipv4_src.get()), (0xff00_0000, 0));
    let port = mask(&["priority=2,udp,tp_dst=53,actions=drop", "priority=1,actions=output:2"]);
    // Port 80 is told from 53 by its tenth bit.
    assert_eq!((port.tp_dst.get(), port.ip_proto, port.tp_src.get()), (0xffc0, 0xff, 0));
}

#[test]
fn a_truncation_counts_what_the_packet_had_then() {
    let plain = udp_frame(MACS[1], MACS[0], &[]);
    let bridges: &[&[&str]] =
        &[&["actions=output(port=4,max_len=64),output:2"], &["actions=mod_vlan_vid:5,output:2,strip_vlan,output:3"]];
    assert_eq!(text(&xlate(bridges, &plain).odp_actions), "push(8100:1005),trunc(68),12,pop,trunc(64),13,2");
    assert!(xlate(bridges, &plain).slow.is_some(), "a truncation before a change is nothing for a datapath");
}

#[test]
fn a_tunnel_id_ends_at_a_patch_port() {
    let packet = udp_frame(MACS[1], MACS[0], &[]);
    let other: &[&str] = &["priority=2,tun_id=5,actions=output:2", "priority=1,tun_id=0,actions=output:3"];
    let one: &[&str] = &["actions=set_tunnel:5,output:4,resubmit(,1)", "table=1,tun_id=5,actions=output:2"];
    assert_eq!(text(&xlate(&[one, other], &packet).odp_actions), "13,2", "behind it, it is there again");
}

#[test]
fn a_tunnel_id_is_there_after_a_recirculation() {
    let packet = udp_frame(MACS[1], MACS[0], &[]);
    let rules: &[&str] = &[
        "in_port=1,actions=set_tunnel:5,debug_recirc,resubmit(,1)",
        "in_port=2,actions=set_tunnel:6,debug_recirc,resubmit(,1)",
        "in_port=3,actions=set_tunnel:5,output:4",
        "table=1,tun_id=5,actions=output:3",
        "table=1,tun_id=6,actions=IN_PORT",
    ];
    let other: &[&str] =
        &["actions=debug_recirc,resubmit(,1)", "table=1,tun_id=5,actions=output:1", "table=1,actions=output:2"];
    let config = config(&[rules, other]);
    let mut held = Vec::new();
    for (port, expected) in [(1, "3"), (2, "2"), (3, "12")] {
        let key = key_of(&packet, port).unwrap();
        let xlate = translate(&config, &key).unwrap();
        let [Action::Recirc(id)] = xlate.odp_actions[..] else { panic!("{:?}", xlate.odp_actions) };
        let again = translate(&config, &FlowKey { recirc_id: id, ..key }).unwrap();
        assert_eq!(text(&again.odp_actions), expected, "port {port}");
        held.push(xlate);
    }
}

#[test]
fn what_switches_say_to_each_other_is_not_forwarded() {
    for mac in RESERVED {
        let is_free = matches!(mac, [_, _, 0x2b, _, _, 5] | [_, _, 0x0c, _, _, 0xbf | 0xc8] | [_, _, 0xc2, _, _, 0x10]);
        let xlate = xlate(&[&["actions=NORMAL"]], &udp_frame(mac, MACS[0], &[]));
        assert_eq!(
            (xlate.odp_actions.is_empty(), xlate.effects.len() > 1),
            (!is_free, is_free),
            "{mac:02x?}: {:?}",
            xlate.effects
        );
    }
}

#[test]
fn what_our_own_engines_can_not_compile_another_datapath_may_run() {
    let mut config = config(&[&["in_port=1,actions=output(port=2,max_len=64),mod_nw_ttl:9,output:3"]]);
    let key = key_of(&udp_frame(MACS[1], MACS[0], &[]), 1).unwrap();
    let slow = |config: &Config| {
        let xlate = translate(config, &key).unwrap();
        (xlate.slow, xlate.slow_path != 0)
    };
    assert_eq!(slow(&config), (Some("action trunc before a change to the packet".into()), true));
    config.features = Arc::new(Features { compiles: false, ..(*config.features).clone() });
    assert_eq!(slow(&config), (None, false));
    // But not what it doesn't have.
    config.features = Arc::new(Features { trunc: false, ..(*config.features).clone() });
    assert_eq!(slow(&config), (Some("action trunc".into()), true));
}
