//! The reference's `ovs-ofctl` reads and writes flows as we do.
//!
//! `tests/flows.golden` holds flows as written and as the reference writes them back. That we agree with the file is
//! tested everywhere; that the file agrees with the reference, and that both agree on generated flows, where an
//! `ovs-ofctl` is found (`SLUICE_OVS_OFCTL`, or PATH). `SLUICE_BLESS=1` rewrites the file's answers from the reference.
//!
//! `ovs-ofctl diff-flows` reads flows from files and prints what differs without asking a switch: against an empty file
//! it prints everything as it was understood. `parse-flow` prints what would go over the wire.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use common::additions;
use openflow::field::FieldFormat;
use openflow::{Action, FieldId, FlowFlags, FlowMod, MatchFields, NoPortNames, Prerequisite, check_actions};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use testkit::Need;

/// Flows may need any version of OpenFlow.
const ALL_VERSIONS: &str = "OpenFlow10,OpenFlow11,OpenFlow12,OpenFlow13,OpenFlow14,OpenFlow15";

/// What both refuse.
const REFUSED: &[&str] = &[
    "",
    "tcp",
    "foo=1 actions=1",
    "tcp,foo actions=1",
    "priority=65536 actions=1",
    "priority=-1 actions=1",
    "priority=a actions=1",
    "priority actions=1",
    "table=256 actions=1",
    "table=a actions=1",
    "table=0x3 actions=1",
    "actions=goto_table:0x3",
    "actions=resubmit(,0x3)",
    "actions=resubmit(,3 )",
    "table actions=1",
    "idle_timeout=65536 actions=1",
    "cookie=1/1 actions=1",
    "cookie=x actions=1",
    "cookie actions=1",
    "out_port=1 actions=1",
    "in_port=eth0 actions=1",
    "in_port=65536 actions=1",
    "in_port=-1 actions=1",
    "in_port=0x10 actions=1",
    "in_port=1/1 actions=1",
    "in_port actions=1",
    "dl_src=00:11:22:33:44 actions=1",
    "dl_src=00:11:22:33:44:55:66 actions=1",
    "dl_src=00:11:22:33:44:gg actions=1",
    "dl_src=00:11:22:33:44:55/ff actions=1",
    "dl_src actions=1",
    "dl_type=0x10000 actions=1",
    "dl_type=0x800/0xff actions=1",
    "dl_vlan=65536 actions=1",
    "dl_vlan=10/0xfff actions=1",
    "dl_vlan=ten actions=1",
    "dl_vlan_pcp=256 actions=1",
    "dl_vlan_pcp=3/3 actions=1",
    "vlan_tci=0x10000 actions=1",
    "vlan_tci=0x1000/ actions=1",
    "ip,nw_src=10.0.0 actions=1",
    "ip,nw_src=10.0.0.1/33 actions=1",
    "ip,nw_src=10.0.0.1/a actions=1",
    "ip,nw_src=host actions=1",
    "ip,nw_proto=256 actions=1",
    "ip,nw_proto=6/7 actions=1",
    "ip,nw_tos=256 actions=1",
    "ip,ip_frag=maybe actions=1",
    "ip,ip_frag=1 actions=1",
    "ipv6,ipv6_src=::g actions=1",
    "ipv6,ipv6_src=::1/129 actions=1",
    "ipv6,ipv6_src=10.0.0.1 actions=1",
    "tcp,tp_dst=65536 actions=1",
    "tcp,tp_dst=http actions=1",
    "tcp,tp_dst=1/0x10000 actions=1",
    "tcp,tcp_flags=0x1000 actions=1",
    "tcp,tcp_flags=+foo actions=1",
    "tcp,tcp_flags=+syn+syn actions=1",
    "tcp,tcp_flags=foo actions=1",
    "icmp,icmp_type=256 actions=1",
    "arp,arp_op=65536 actions=1",
    "reg0=0x100000000 actions=1",
    "reg0=-1 actions=1",
    "reg0=1/0x100000000 actions=1",
    "reg16=1 actions=1",
    "reg0[0..3]=16 actions=1",
    "reg0[3..0]=1 actions=1",
    "reg0[32]=1 actions=1",
    "metadata=0x10000000000000000 actions=1",
    "xxreg0=0x100000000000000000000000000000000 actions=1",
    "NXM_NX_REG0=1 actions=1",
    "actions=conjunction(1,0/2)",
    "actions=conjunction(1,3/2)",
    "actions=conjunction(1,1/1)",
    "actions=conjunction(1,1/65)",
    "actions=conjunction(1)",
    "actions=conjunction(1,1/2),output:1",
    "conj_id=1/1 actions=1",
    "actions=foo",
    "actions=foo:1",
    "actions=output:foo",
    "actions=output:65535",
    "actions=output:65280",
    "actions=output:reg0[32]",
    "actions=output(port=1,max_len=13)",
    "actions=output(port=NORMAL,max_len=64)",
    "actions=output(port=1,max_len=64,x=1)",
    "actions=output_trunc(port=1,max_len=64)",
    "actions=controller:65536",
    "actions=controller(reason=foo)",
    "actions=controller(foo=1)",
    "actions=controller(id=65536)",
    "actions=controller(userdata=0)",
    "actions=mod_vlan_vid:4096",
    "actions=mod_vlan_vid",
    "actions=mod_vlan_pcp:8",
    "actions=push_vlan:0x800",
    "actions=push_vlan:0x8100,push_vlan:0x8100,push_vlan:0x8100",
    "actions=mod_dl_src:00:11:22",
    "ip actions=mod_nw_src:10.0.0",
    "ip actions=mod_nw_tos:3",
    "ip actions=mod_nw_tos:256",
    "ip actions=mod_nw_ecn:4",
    "ip actions=mod_nw_ttl:256",
    "tcp actions=mod_tp_dst:65536",
    "actions=set_tunnel:x",
    "actions=set_field:1",
    "actions=set_field:1->",
    "actions=set_field:1->foo",
    "actions=set_field:1->reg0[0..3]",
    "actions=set_field:1->NXM_NX_REG0",
    "actions=set_field:0x100000000->reg0",
    "actions=set_field:4096->dl_vlan",
    "ip actions=set_field:6->nw_proto",
    "ip actions=set_field:3->nw_tos",
    "ip actions=set_field:64->ip_dscp",
    "actions=set_field:80->tcp_dst",
    "udp actions=set_field:80->tcp_dst",
    "actions=set_field:10.0.0.1->nw_src",
    "actions=set_field:4097->vlan_vid",
    "dl_vlan=1 actions=strip_vlan,set_field:4097->vlan_vid",
    "tcp,ip_frag=later actions=set_field:80->tcp_dst",
    "actions=load:1",
    "actions=load:1->foo",
    "actions=load:x->reg0",
    "actions=load:16->reg0[0..3]",
    "actions=load:80->NXM_OF_TCP_DST[]",
    "actions=move:reg0->xreg1",
    "actions=move:reg0[0..3]->reg1[0..4]",
    "actions=move:reg0",
    "actions=move:reg0->ip_src",
    "ip actions=move:reg0[0..7]->nw_proto",
    "actions=resubmit",
    "actions=resubmit(,)",
    "actions=resubmit(,255)",
    "actions=resubmit:in_port",
    "actions=resubmit(foo,1)",
    "actions=resubmit(1,256)",
    "actions=resubmit(1,2,x)",
    "actions=goto_table:256",
    "actions=goto_table:x",
    "table=3 actions=goto_table:3",
    "table=3 actions=goto_table:2",
    "actions=goto_table:1,2",
    "actions=goto_table:1,goto_table:2",
    "actions=write_metadata:1,write_metadata:1",
    "actions=goto_table:1,write_metadata:1",
    "actions=write_metadata:1,clear_actions",
    "actions=write_actions(goto_table:1)",
    "actions=write_metadata:x",
    "actions=apply_actions(1)",
    "actions=drop,1",
    "actions=1,drop",
    "actions=note:0g",
    "actions=note:0",
    "ip actions=dec_ttl(,)",
];

/// What the reference takes and we refuse, either because it would silently weaken or drop it, or because we do not have
/// it yet.
const STRICTER: &[&str] = &[
    // Matches that its normalization drops.
    "tp_src=80 actions=1",
    "ip,tp_dst=80 actions=1",
    "nw_src=10.0.0.1 actions=1",
    "ipv6_src=::1 actions=1",
    "nw_proto=6 actions=1",
    "nw_tos=4 actions=1",
    "ip_frag=yes actions=1",
    "tcp_flags=+syn actions=1",
    "ip,arp_op=1 actions=1",
    "icmp6,nd_target=::1 actions=1",
    // Fields of another protocol, which it takes for the matched one's.
    "udp,tcp_dst=53 actions=1",
    "tcp,icmp_type=8 actions=1",
    // Values whose upper bits it cuts off.
    "dl_vlan=5000 actions=1",
    "dl_vlan_pcp=8 actions=1",
    "ip,ip_dscp=64 actions=1",
    "ip,nw_ecn=4 actions=1",
    "arp,arp_op=256 actions=1",
    // Text that it passes over.
    "tcp=5 actions=1",
    "reg0 actions=1",
    "actions=strip_vlan:1",
    "actions=normal:1",
    "actions=load:5x->reg0",
    "actions=resubmit(1",
    "ip actions=load:6->NXM_OF_IP_PROTO[]",
    // A mask without bits.
    "actions=set_field:0/0->reg0",
    // Table 0 is what `table` is when it is left out.
    "actions=goto_table:0",
    "actions=write_actions(conjunction(1,1/2))",
    "actions=load:1->NXM_NX_CONJ_ID[]",
    // Not supported yet.
    "ct_state=+trk actions=1",
    "tun_src=1.2.3.4 actions=1",
    "mpls,mpls_label=5 actions=1",
    "actions=group:1",
    "ip actions=ct(commit)",
    "actions=learn(table=1)",
    "actions=push:reg0",
    "ip,nw_proto=6,ct_state=+trk+est actions=resubmit(1,2,ct)",
    "actions=controller(pause)",
    "actions=set_field:1.2.3.4->tun_src",
];

#[test]
fn flows_are_written_as_the_reference_writes_them() {
    let cases = golden();
    assert!(cases.len() >= 150, "only {} flows", cases.len());
    let wrong = cases.into_iter().filter_map(|Case { line, input, output }| {
        let found = FlowMod::parse(&input, &NoPortNames).map_or_else(|error| error.to_string(), reference_form);
        (found != output).then(|| format!("line {line}: {input}\n  golden: {output}\n  ours:   {found}"))
    });
    none_of("differently written", wrong);
}

#[test]
fn bad_flows_are_refused() {
    for text in REFUSED.iter().chain(STRICTER) {
        assert!(FlowMod::parse(text, &NoPortNames).is_err(), "{text}");
    }
}

#[test]
fn the_reference_writes_the_golden_flows() {
    let Some(ofctl) = Ofctl::find("the_reference_writes_the_golden_flows") else { return };
    let bless = std::env::var_os("SLUICE_BLESS").is_some();
    let mut wrong = Vec::new();
    let mut answers = BTreeMap::new();
    for Case { line, input, output } in golden() {
        let found = ofctl.understood(&input).unwrap_or_else(|error| panic!("line {line}: {input}: {error}"));
        let [found] = found.as_slice() else { panic!("line {line}: {input}: {found:?}") };
        if *found != output {
            wrong.push(format!("line {line}: {input}\n  golden:    {output}\n  reference: {found}"));
        }
        answers.insert(line, found.clone());
    }
    if bless {
        let file = fs::read_to_string(golden_path()).unwrap();
        let lines = file.lines().enumerate().map(|(n, text)| match answers.get(&n) {
            // The answer stands in the line after the question's.
            Some(answer) if text.starts_with('>') => format!("> {answer}\n"),
            _ => format!("{text}\n"),
        });
        fs::write(golden_path(), lines.collect::<String>()).unwrap();
    }
    if !bless {
        none_of("answered differently", wrong);
    }
}

#[test]
fn the_reference_sends_what_we_match() {
    let Some(ofctl) = Ofctl::find("the_reference_sends_what_we_match") else { return };
    let mut wrong = Vec::new();
    for Case { line, input, .. } in golden() {
        let flow = FlowMod::parse(&input, &NoPortNames).unwrap();
        let sent = ofctl.sent(&input).unwrap_or_else(|error| panic!("line {line}: {input}: {error}"));
        if sent.contains("decode error") {
            // It sends something that it does not understand itself: set_field of dl_vlan in OpenFlow 1.0.
            continue;
        }
        let (_, words) = sent.split_once(": ADD ").unwrap_or_else(|| panic!("line {line}: {sent}"));
        let words = words.split("actions=").next().unwrap_or_default();
        let matched = words.split(' ').find(|word| !word.is_empty() && !is_setting(word)).unwrap_or_default();
        // A VLAN id without the bit that says "tagged" matches nothing; OpenFlow 1.0 has no way to say that.
        if input.contains("vlan_vid=5 ") {
            continue;
        }
        let ours = flow.r#match.display(flow.priority, &NoPortNames).to_string();
        if ours != matched {
            wrong.push(format!("line {line}: {input}\n  sent: {matched}\n  ours: {ours}"));
        }
    }
    none_of("differently sent", wrong);
}

#[test]
fn the_reference_refuses_what_we_refuse() {
    let Some(ofctl) = Ofctl::find("the_reference_refuses_what_we_refuse") else { return };
    none_of("taken by the reference", REFUSED.iter().filter(|text| ofctl.sent(text).is_ok()));
    none_of(
        "refused by the reference too",
        STRICTER.iter().filter_map(|text| ofctl.understood(text).err().map(|error| format!("{text}: {error}"))),
    );
}

#[test]
fn the_reference_understands_generated_flows_as_we_do() {
    const FLOWS: u16 = 4000;
    let Some(ofctl) = Ofctl::find("the_reference_understands_generated_flows_as_we_do") else { return };
    let mut runner = TestRunner::deterministic();
    let strategy = additions();
    let mut flows = BTreeMap::new();
    let mut text = String::new();
    for priority in 1..=FLOWS {
        let mut flow = strategy.new_tree(&mut runner).unwrap().current();
        // Each flow has a priority of its own, so that none replaces another and each is found again.
        flow.priority = priority;
        only_carryable(&mut flow);
        text += &format!("{flow}\n");
        flows.insert(priority, flow);
    }
    let answers = ofctl.understood(&text).unwrap();
    assert_eq!(answers.len(), usize::from(FLOWS));
    let mut wrong = Vec::new();
    for answer in answers {
        // Its own words are understood by us as well.
        let read = FlowMod::parse(&answer, &NoPortNames).unwrap_or_else(|error| panic!("{answer}: {error}"));
        let flow = flows.remove(&read.priority).unwrap_or_else(|| panic!("{answer}"));
        let ours = reference_form(flow.clone());
        if ours != answer {
            wrong.push(format!("{flow}\n  reference: {answer}\n  ours:      {ours}"));
        }
    }
    none_of("differently understood", wrong);
}

/// The reference takes an IPv6 mask that starts with a decimal digit for a prefix length; one with these bits starts with
/// `f`.
const HIGH_DIGIT: u128 = 0xf << 124;

/// Takes out of a flow what would leave no version of OpenFlow to carry it, which the reference refuses: its old actions
/// without their prerequisites go only with OpenFlow 1.0, flags and instructions only with later versions.
fn only_carryable(flow: &mut FlowMod) {
    flow.flags.reset_counts = false;
    flow.flags.no_packet_counts = false;
    flow.flags.no_byte_counts = false;
    for field in [FieldId::Ipv6Src, FieldId::Ipv6Dst, FieldId::NdTarget] {
        let (value, mask) = flow.r#match.get(field);
        if mask != 0 {
            flow.r#match.set(field, value, mask | HIGH_DIGIT);
        }
    }
    let fields = flow.r#match.value.clone();
    let mut tags = usize::from(fields.meets(Prerequisite::VlanVid));
    retain_carryable(&mut flow.actions, &fields, &mut tags);
    // What is left may have stood on what is gone.
    if check_actions(&flow.r#match, flow.table, &flow.actions).is_err() {
        flow.actions.clear();
    }
}

fn retain_carryable(actions: &mut Vec<Action>, fields: &MatchFields, tags: &mut usize) {
    use Prerequisite as P;
    let met = |any: &[P]| any.iter().any(|prerequisite| fields.meets(*prerequisite));
    actions.retain_mut(|action| match action {
        Action::ModNwSrc(_) | Action::ModNwDst(_) => met(&[P::Ipv4]),
        Action::ModNwTos(_) | Action::ModNwEcn(_) | Action::ModNwTtl(_) | Action::DecTtl(_) => met(&[P::Ip]),
        Action::ModTpSrc(_) | Action::ModTpDst(_) => met(&[P::Tcp, P::Udp, P::Sctp]),
        Action::SetVlanVid { push, .. } | Action::SetVlanPcp { push, .. } => {
            *tags = (*tags).max(usize::from(*push));
            *tags > 0
        }
        Action::StripVlan | Action::PopVlan => {
            let found = *tags > 0;
            *tags = tags.saturating_sub(1);
            found
        }
        Action::PushVlan(_) => {
            *tags += 1;
            true
        }
        Action::SetField { field, mask, .. } if field.info().format == FieldFormat::Ipv6 => {
            *mask |= HIGH_DIGIT;
            true
        }
        // May have taken the tag away or brought it.
        Action::SetField { field: FieldId::VlanTci, .. } => false,
        Action::Load { dst, .. } => dst.field != FieldId::VlanTci,
        Action::WriteActions(nested) => {
            retain_carryable(nested, fields, &mut tags.clone());
            true
        }
        _ => true,
    });
}

/// Fails with all of `items`, not only the first.
fn none_of(what: &str, items: impl IntoIterator<Item = impl std::fmt::Display>) {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    assert!(items.is_empty(), "{} {what}:\n{}", items.len(), items.join("\n"));
}

/// A flow as `diff-flows` prints it: it shows no flags, and nothing that is 0.
fn reference_form(flow: FlowMod) -> String {
    FlowMod {
        flags: FlowFlags::default(),
        table: flow.table.filter(|table| *table != 0),
        cookie: flow.cookie.filter(|cookie| *cookie != 0),
        ..flow
    }
    .to_string()
}

/// An empty match leaves two spaces, or one in front.
fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a word of `parse-flow`'s output is a setting rather than the match.
fn is_setting(word: &str) -> bool {
    const SETTINGS: &[&str] = &["table:", "cookie:", "idle:", "hard:", "importance:"];
    const FLAGS: &[&str] = &["send_flow_rem", "check_overlap", "reset_counts", "no_packet_counts", "no_byte_counts"];
    FLAGS.contains(&word) || SETTINGS.iter().any(|setting| word.starts_with(setting))
}

struct Case {
    /// The question's line, from 1.
    line: usize,
    input: String,
    output: String,
}

fn golden_path() -> PathBuf {
    testkit::workspace_root().join("openflow/tests/flows.golden")
}

/// The file has a line `< FLOW` and a line `> ANSWER` for each case; other lines are comments.
fn golden() -> Vec<Case> {
    let file = fs::read_to_string(golden_path()).unwrap();
    let lines: Vec<_> = file.lines().collect();
    let case = |(n, pair): (usize, &[&str])| {
        let input = pair.first()?.strip_prefix("< ")?.to_string();
        let output = pair.get(1)?.strip_prefix('>')?.trim_start().to_string();
        Some(Case { line: n + 1, input, output })
    };
    lines.windows(2).enumerate().filter_map(case).collect()
}

/// The reference's tool.
struct Ofctl {
    folder: tempfile::TempDir,
}

impl Ofctl {
    /// The tool, or `None` and `test` counted as skipped.
    fn find(test: &str) -> Option<Self> {
        let found = Self::configured().is_some() || testkit::skip::have(test, &[Need::Tool("ovs-ofctl")]);
        found.then(|| Self { folder: tempfile::tempdir().unwrap() })
    }

    fn configured() -> Option<Command> {
        std::env::var_os("SLUICE_OVS_OFCTL").map(Command::new)
    }

    /// The flows of a file's text as the tool understands them, or its error.
    fn understood(&self, text: &str) -> Result<Vec<String>, String> {
        let [flows, nothing] = ["flows", "nothing"].map(|name| self.folder.path().join(name));
        fs::write(&flows, text).unwrap();
        fs::write(&nothing, "").unwrap();
        let output = self.run(["diff-flows".into(), flows.into(), nothing.into()]);
        let text = String::from_utf8_lossy(&output.stdout);
        // It exits with 2 when files differ, as diff does not, and with 1 on errors.
        match output.status.code() {
            Some(0 | 2) => Ok(text.lines().filter_map(|line| line.strip_prefix('-').map(single_spaced)).collect()),
            _ => Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// The message that the tool would send for a flow, or its error.
    fn sent(&self, flow: &str) -> Result<String, String> {
        let output = self.run(["-O".into(), ALL_VERSIONS.into(), "parse-flow".into(), flow.into()]);
        let text = String::from_utf8_lossy(&output.stdout);
        match (output.status.success(), text.lines().find(|line| line.contains("_FLOW_MOD "))) {
            (true, Some(line)) => Ok(line.to_string()),
            _ => Err(format!("{flow}: {text}{}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn run<const N: usize>(&self, arguments: [std::ffi::OsString; N]) -> Output {
        let command = Self::configured().or_else(|| testkit::tools::command("ovs-ofctl"));
        command.expect("found before").args(arguments).output().expect("ovs-ofctl runs")
    }
}
