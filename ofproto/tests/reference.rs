//! Our megaflows against the reference switch's: the daemon gets the same tables, and `ofproto/trace` says of each packet what
//! was looked at.
//!
//! Frames that the two extractions read otherwise (`docs/extraction.md`) and packets that translation gives up are left out and
//! counted. The differences that are meant to be there are listed in [`rules`]; anything else fails. Tables and packets are the same in
//! every run; `SLUICE_SEED` makes others, `SLUICE_MEGAFLOWS` says how many pairs of tables and packet.

mod common;
#[path = "../../dpif/tests/reference/flow_text.rs"]
#[allow(dead_code, reason = "only traces are read here")]
mod flow_text;
#[path = "reference/megaflow.rs"]
mod megaflow;
#[path = "reference/rules.rs"]
mod rules;
#[path = "../../dpif/tests/reference/server.rs"]
mod server;
#[path = "../../dpif/tests/reference/unixctl.rs"]
mod unixctl;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use common::{Rng, accepted, env, key_of, random_flow, random_frame};
use datapath_common::{Be16, FlowKey};
use dpif::OdpPort;
use ofproto::bridge::{Bridge, BridgeSettings, Config};
use ofproto::classifier::PrefixField;
use ofproto::flow::Flow;
use ofproto::mac_learning::MacTable;
use ofproto::port::{PatchStats, Port};
use ofproto::rule::Rule;
use ofproto::table::{TableStats, Tables};
use ofproto::xlate::{Xlate, translate};
use ofproto::{PortKind, PortVlan};
use openflow::{Action, NoPortNames, OfPort};
use testkit::Need;

use self::rules::{RULES, View};
use self::server::Server;

/// Tables and packets that show all differences.
const SEED: usize = 2;
/// Bridges, each with tables of its own.
const BRIDGES: usize = 100;
/// The reference's release that is compared with has no tries of IPv6 addresses unless asked, and three at most.
const PREFIXES: [(&str, &[PrefixField]); 2] = [
    ("ip_dst,ip_src", &[PrefixField::Ipv4Dst, PrefixField::Ipv4Src]),
    ("ipv6_dst,ip_src,ipv6_src", &[PrefixField::Ipv6Dst, PrefixField::Ipv4Src, PrefixField::Ipv6Src]),
];

/// What a version of the protocol can say of what [`random_flow`] makes.
struct Dialect {
    version: &'static str,
    lacks: &'static [&'static str],
    replace: &'static [(&'static str, &'static str)],
    /// Words that want one of others in the same flow.
    wants: &'static [(&'static str, &'static [&'static str])],
}

const DIALECTS: [Dialect; 2] = [
    Dialect {
        version: "OpenFlow10",
        lacks: &["push_vlan", "mod_nw_ecn", "mod_nw_ttl", "write_actions", "set_field:10."],
        replace: &[("write_metadata:7", "load:7->OXM_OF_METADATA[]"), ("goto_table:", "resubmit(,")],
        wants: &[],
    },
    Dialect {
        version: "OpenFlow15",
        // Said otherwise there, and not quite the same then.
        lacks: &["mod_vlan", "mod_nw_", "mod_tp_", "vlan_tci=", "dl_vlan=0xffff"],
        replace: &[("strip_vlan", "pop_vlan")],
        // Tags are matched before they are taken off, and not twice.
        wants: &[("pop_vlan", &["dl_vlan=10", "dl_vlan=20"]), ("dec_ttl", &["ip,", "tcp", "udp", "icmp", "ipv6,"])],
    },
];

struct Packet {
    bridge: usize,
    in_port: u16,
    frame: Vec<u8>,
}

#[test]
fn megaflows_are_the_references_but_for_the_listed_differences() {
    testkit::require!("megaflows against the reference switch"; Need::Namespaces, Need::Tool("ovs-vswitchd"),
        Need::Tool("ovsdb-server"), Need::Tool("ovsdb-tool"), Need::Tool("ovs-vsctl"), Need::Tool("ovs-ofctl"));
    let pairs = env("SLUICE_MEGAFLOWS", 11_000);
    let mut rng = Rng(env("SLUICE_SEED", SEED) as u64);
    let tables: Vec<Vec<String>> = (0..BRIDGES).map(|b| texts(&mut rng, &DIALECTS[b % 2])).collect();
    let packets: Vec<Packet> = (0..pairs)
        .map(|n| Packet { bridge: n % BRIDGES, in_port: rng.pick(&[1, 1, 2, 3]), frame: random_frame(&mut rng) })
        .collect();
    let started = Instant::now();
    let server = Server::start();
    set_up(&server, &tables);
    let answers = trace(&server, &packets);
    server.stop();
    println!("the reference answered after {:?}", started.elapsed());

    let configs: Vec<Config> = tables.iter().enumerate().map(|(b, texts)| config(b, texts)).collect();
    let mut hits = vec![0; RULES.len()];
    let mut tally = BTreeMap::new();
    let (mut recirculating, mut reserved) = (0, 0);
    let (mut compared, mut conjunctive, mut overlapping) = (0, 0, 0);
    let (mut given_up, mut otherwise_read, mut failures) = (0, 0, Vec::new());
    for (packet, answer) in packets.iter().zip(&answers) {
        let Some(key) = key_of(&packet.frame, packet.in_port.into()) else { continue };
        let Ok(answer) = answer else { continue };
        let config = &configs[packet.bridge];
        // A packet that is traced is learned from, and that before it is forwarded.
        Xlate::apply_effects(&translate(config, &key).unwrap().effects, 1, 64, 0);
        let xlate = translate(config, &key).unwrap();
        if !is_read_alike(&key, answer) {
            otherwise_read += 1;
            continue;
        }
        if xlate.error.is_some() {
            given_up += 1;
            continue;
        }
        compared += 1;
        let is_conjunctive = |line: &str| line.contains("conj_id=") && line.contains("priority");
        conjunctive += usize::from(answer.lines().any(is_conjunctive));
        recirculating += usize::from(xlate.odp_actions.iter().any(|action| matches!(action, dpif::Action::Recirc(_))));
        // An address that NORMAL doesn't forward to is no other there.
        if common::RESERVED.contains(&key.eth_dst) {
            let drops = answer.lines().any(|line| line == "Datapath actions: drop");
            reserved += 1;
            assert_eq!(xlate.odp_actions.is_empty(), drops, "{:02x?}: {:?}\n{answer}", key.eth_dst, xlate.odp_actions);
        }
        let text = answer.lines().find_map(|line| line.strip_prefix("Megaflow: ")).expect("a megaflow in the answer");
        let reference = megaflow::parse_mask(text).unwrap();
        let mut view = View { key, mask: xlate.mask, reference, tags_taken_off: takes_tags_off(answer) };
        for (rule, hits) in RULES.iter().zip(&mut hits) {
            let before = (view.mask, view.reference);
            (rule.apply)(&mut view);
            *hits += usize::from(before != (view.mask, view.reference));
        }
        if view.mask != view.reference && conjunctions_overlap(config, packet, &key) {
            // Which rule is found may differ, and with it what is looked at.
            overlapping += 1;
        } else if view.mask != view.reference {
            for (i, (ours, theirs)) in view.mask.words().iter().zip(view.reference.words()).enumerate() {
                if ours != theirs {
                    *tally.entry((i, ours & !theirs, theirs & !ours)).or_insert(0) += 1;
                }
            }
            failures.push(failure(packet, &view, answer, &tables[packet.bridge]));
        }
    }
    println!(
        "{compared} pairs compared, {conjunctive} with conjunctive matches, {recirculating} that recirculate; left out: \
         {otherwise_read} frames that the reference reads otherwise, {given_up} packets that we give up"
    );
    RULES.iter().zip(&hits).for_each(|(rule, hits)| println!("{hits:6} {}", rule.name));
    println!("{reserved:6} to addresses that switches have for themselves, or nearly");
    println!("{overlapping:6} differ because conjunctive flows overlap");
    for ((word, ours, theirs), n) in tally {
        println!("{n:6} times word {word}: {ours:#018x} more in ours, {theirs:#018x} in the reference's");
    }
    let some: Vec<_> = failures.iter().take(env("SLUICE_SHOW", 3)).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} of {compared} differ:\n{}", failures.len(), some.join("\n"));
    assert!(
        overlapping * 200 < compared,
        "too many differ because conjunctive flows overlap: {overlapping} of {compared}"
    );
    assert!(compared * 10 > pairs * 9, "too few pairs could be compared: {compared} of {pairs}");
    // Other tables may not show what is rare.
    if env("SLUICE_SEED", SEED) == SEED {
        assert!(conjunctive > 50, "too few conjunctive matches: {conjunctive}");
        assert!(recirculating > 100, "too few recirculations: {recirculating}");
        for (rule, hits) in RULES.iter().zip(&hits) {
            assert!(*hits > 0, "no pair shows the difference {:?}", rule.name);
        }
    }
}

#[test]
fn every_difference_is_documented_in_order() {
    let text = include_str!("../../docs/megaflows.md");
    let documented: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(documented, RULES.iter().map(|rule| rule.name).collect::<Vec<_>>());
}

/// Flows of a bridge that both sides take in the same words.
fn texts(rng: &mut Rng, dialect: &Dialect) -> Vec<String> {
    let n = rng.pick(&[3, 10, 25, 25, 60]);
    let mut texts = Vec::new();
    while texts.len() < n {
        let mut text = random_flow(rng);
        for (from, to) in dialect.replace {
            // A resubmission closes its parenthesis.
            text = match text.split_once(from) {
                Some((before, after)) if *from == "goto_table:" => format!("{before}{to}{after})"),
                Some(_) => text.replace(from, to),
                None => text,
            };
        }
        let can = |(word, any): &(&str, &[&str])| match text.matches(word).count() {
            0 => true,
            n => (n == 1 || *word != "pop_vlan") && any.iter().any(|want| text.contains(want)),
        };
        let has_all = dialect.wants.iter().all(can) && !dialect.lacks.iter().any(|word| text.contains(word));
        if !has_all || accepted(&text).is_none() {
            continue;
        }
        texts.push(if rng.one_in(env("SLUICE_RECIRC", 12)) { recirculating(rng, &text).unwrap_or(text) } else { text });
    }
    texts
}

/// The flow with a recirculation somewhere among its actions, if it may have one there.
fn recirculating(rng: &mut Rng, text: &str) -> Option<String> {
    let mut actions = accepted(text)?.actions;
    actions.insert(rng.below(actions.len() + 1), Action::DebugRecirc);
    let (matches, _) = text.split_once("actions=")?;
    let text = format!("{matches}actions={}", openflow::action::display_actions(&actions, &NoPortNames));
    accepted(&text).map(|_| text)
}

fn set_up(server: &Server, tables: &[Vec<String>]) {
    let mut words = Vec::new();
    for (b, _) in tables.iter().enumerate() {
        let mut command = format!("-- add-br m{b} -- set bridge m{b} datapath_type=dummy fail-mode=secure");
        for n in 1..=3 {
            let _ =
                write!(command, " -- add-port m{b} m{b}p{n} -- set interface m{b}p{n} type=dummy ofport_request={n}");
        }
        if b % 4 >= 2 {
            for table in 0..4 {
                let _ = write!(
                    command,
                    " -- --id=@t{b}x{table} create Flow_Table prefixes={} -- set bridge m{b} flow_tables:{table}=@t{b}x{table}",
                    PREFIXES[1].0
                );
            }
        }
        words.extend(command.split_whitespace().map(String::from));
        if b % 20 == 19 || b + 1 == tables.len() {
            server.vsctl(&words);
            words.clear();
        }
    }
    for (b, texts) in tables.iter().enumerate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), texts.join("\n")).unwrap();
        let path = file.path().display().to_string();
        server.ofctl(&format!("m{b}"), &["-O", DIALECTS[b % 2].version, "add-flows"], &[&path]);
    }
}

fn trace(server: &Server, packets: &[Packet]) -> Vec<Result<String, String>> {
    let hex = |frame: &[u8]| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let params = |packet: &Packet| {
        vec![format!("m{}", packet.bridge), format!("in_port={}", packet.in_port), hex(&packet.frame)]
    };
    server.unixctl().call_each("ofproto/trace", &packets.iter().map(params).collect::<Vec<_>>())
}

/// The bridge as we have it, with the numbers of its ports in the datapath as well.
fn config(b: usize, texts: &[String]) -> Config {
    let mut tables = Tables::with_prefixes(PREFIXES[b % 4 / 2].1);
    let mods: Vec<_> = texts.iter().map(|text| accepted(text).unwrap()).collect();
    tables.apply(&mods, 0).unwrap();
    let mut ports = BTreeMap::new();
    for (number, odp) in [(OfPort::LOCAL, 0), (OfPort(1), 1), (OfPort(2), 2), (OfPort(3), 3)] {
        let kind = if number == OfPort::LOCAL { PortKind::Internal } else { PortKind::System };
        let port = Port {
            name: format!("p{odp}"),
            number,
            kind,
            odp: Some(OdpPort(odp)),
            vlan: PortVlan::default(),
            patch_stats: Arc::new(PatchStats::default()),
        };
        ports.insert(number, Arc::new(port));
    }
    let macs = Arc::new(MacTable::default());
    let (settings, table_stats) = (BridgeSettings::default(), Arc::new(TableStats::new("m")));
    let bridge = Bridge { name: "m".into(), settings, ports, tables, table_stats, macs };
    let mut config = Config::default();
    config.bridges.insert("m".into(), Arc::new(bridge));
    config.index();
    config
}

/// Whether in some table the packet meets an alternative of several conjunctive flows, or one that hides a rule of the same match:
/// there the reference may find another rule (`docs/megaflows.md`). Registers and metadata are taken to match.
fn conjunctions_overlap(config: &Config, packet: &Packet, key: &FlowKey) -> bool {
    let flow = Flow::from_key(key, OfPort(packet.in_port));
    let of_packet = |mask: &Flow| {
        let mut of_packet = *mask;
        of_packet.clear_pipeline();
        of_packet
    };
    let bridge = config.bridges.values().next().expect("a bridge");
    (0..4).filter_map(|table| bridge.tables.table(table)).any(|rules| {
        let met =
            |rule: &&Arc<Rule>| !rule.conjunctions.is_empty() && flow.matches(&rule.value, &of_packet(&rule.mask));
        rules.rules().filter(met).any(|rule| {
            let hides = |other: &Arc<Rule>| {
                other.conjunctions.is_empty()
                    && other.priority < rule.priority
                    && other.mask == rule.mask
                    && other.value == rule.value
            };
            rule.conjunctions.len() > 1 || rules.rules().any(hides)
        })
    })
}

/// Whether a tag is taken off on a packet's way, by an action or by NORMAL.
fn takes_tags_off(answer: &str) -> bool {
    answer.lines().map(str::trim).any(|line| ["strip_vlan", "pop_vlan", "NORMAL"].contains(&line))
}

/// Whether the reference found the same key in the frame: where it didn't, `docs/extraction.md` says why.
fn is_read_alike(key: &FlowKey, answer: &str) -> bool {
    let Ok(mut reference) = flow_text::parse_trace(answer) else { return false };
    let mut key = *key;
    // Tags' types are not in the text, an 802.3 frame is said otherwise, and so is what the reference has no field for.
    for key in [&mut reference, &mut key] {
        (key.vlan.tpid, key.cvlan.tpid, key.ipv6_exthdrs, key.mpls_labels) = (Be16::ZERO, Be16::ZERO, 0, 0);
        if key.eth_type.get() == 0x05ff {
            key.eth_type = Be16::new(datapath_common::extract::eth_type::NONE);
        }
    }
    (reference.mpls_lse, key.mpls_lse) = Default::default();
    reference == key
}

fn failure(packet: &Packet, view: &View, answer: &str, texts: &[String]) -> String {
    let words = view.mask.words().iter().zip(view.reference.words()).enumerate();
    let differing = words.filter(|(_, (ours, theirs))| ours != theirs);
    let words: String =
        differing.map(|(i, (ours, theirs))| format!("word {i}: {ours:#x}, not {theirs:#x}; ")).collect();
    let mut text = format!("{words}\n");
    let _ = writeln!(text, "m{} frame {:02x?}\n{answer}", packet.bridge, packet.frame);
    if env("SLUICE_SHOW_TABLES", 0) > 0 {
        let _ = writeln!(text, "{}", texts.join("\n"));
    }
    text
}
