//! Our extraction against the reference switch's own: the daemon with its userspace datapath is given the same frames, and
//! says the key of each, as an OpenFlow flow (`ofproto/trace`) and as the flow it installs (`dpctl/dump-flows`).
//!
//! Ours follows the kernel module, and the reference's userspace datapath differs from that on purpose or by accident. The
//! differences are listed in [`rules`]; anything else fails. The frames are the same in every run; `SLUICE_SEED` makes others.

#[path = "reference/flow_text.rs"]
mod flow_text;
#[path = "reference/frames.rs"]
mod frames;
#[path = "reference/rules.rs"]
mod rules;
#[path = "reference/server.rs"]
mod server;
#[path = "reference/twin.rs"]
mod twin;
#[path = "reference/unixctl.rs"]
mod unixctl;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use datapath_common::extract::{Layers, eth_type, extract_into};
use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, FlowKey};
use testkit::Need;

use self::frames::{CLASSES, PER_CLASS, Rng};
use self::rules::{RULES, View};
use self::server::Server;

/// Frames whose flows are in the reference's datapath at a time.
const BATCH: usize = 500;
/// Frames in one command: the dummy port's queue holds a hundred and drops the rest.
const RECEIVE: usize = 8;

struct Frame {
    class: usize,
    bytes: Vec<u8>,
}

#[test]
fn the_key_is_the_references_but_for_the_listed_differences() {
    testkit::require!("extraction against the reference switch"; Need::Namespaces, Need::Tool("ovs-vswitchd"),
        Need::Tool("ovsdb-server"), Need::Tool("ovsdb-tool"), Need::Tool("ovs-vsctl"), Need::Tool("ovs-ofctl"));
    let frames = generate();
    let server = Server::start();
    let started = Instant::now();
    let traced = trace(&server, &frames);
    let dumped = dump(&server, &frames, &traced);
    let took = started.elapsed();
    server.stop();

    let mut hits = vec![0; RULES.len()];
    let mut failures = Vec::new();
    let mut refused = 0;
    for (i, frame) in frames.iter().enumerate() {
        let Ok(trace) = &traced[i] else {
            assert!(frame.bytes.len() < 14, "the reference refuses {}: {:?}", hex(&frame.bytes), traced[i]);
            assert!(View::new(frame.bytes.clone()).dropped, "{} is too short for a key", hex(&frame.bytes));
            refused += 1;
            continue;
        };
        let mut reference = *trace;
        // Only the datapath's flow says the tpids.
        (reference.vlan.tpid, reference.cvlan.tpid) = (dumped[&i].vlan.tpid, dumped[&i].cvlan.tpid);
        if let Some(failure) = compare(frame, &reference, &mut hits) {
            failures.push(failure);
        }
        let (trace, dump) = (as_dumped(&reference), as_dumped(&dumped[&i]));
        if trace != dump {
            failures.push(format!("{}: trace and dump differ:\n{}", hex(&frame.bytes), differences(&trace, &dump)));
        }
    }
    println!("{} frames in {took:?}, {refused} refused by both", frames.len());
    RULES.iter().zip(&hits).for_each(|(rule, hits)| println!("{hits:6} {}", rule.name));
    let some: Vec<_> = failures.iter().take(20).map(String::as_str).collect();
    assert!(failures.is_empty(), "{} of {} frames differ:\n{}", failures.len(), frames.len(), some.join("\n"));
    for (rule, hits) in RULES.iter().zip(&hits) {
        assert!(*hits > 0, "no frame shows the difference {:?}", rule.name);
    }
}

#[test]
fn the_fields_that_the_reference_lacks_are_as_a_simple_reading_finds_them() {
    let (mut extended, mut labelled) = (0, 0);
    for frame in generate() {
        let (mut key, mut layers) = (FlowKey::ZERO, Layers::default());
        let dropped = extract_into(&SlicePacket::new(frame.bytes.clone()), &mut key, &mut layers).is_err();
        let l3 = frame.bytes.get(layers.l3 as usize..).unwrap_or_default();
        let bits = match key.eth_type.get() {
            eth_type::IPV6 if l3.len() >= 40 => twin::extension_bits(l3),
            _ => 0,
        };
        let labels = match key.eth_type.get() {
            eth_type::MPLS | eth_type::MPLS_MC => twin::label_bits(l3),
            _ => 0,
        };
        assert!(dropped || key.ipv6_exthdrs == bits, "{}: {:#x}, not {bits:#x}", hex(&frame.bytes), key.ipv6_exthdrs);
        assert!(dropped || key.mpls_labels == labels, "{}: {}, not {labels}", hex(&frame.bytes), key.mpls_labels);
        extended += u32::from(bits != 0);
        labelled += u32::from(labels != 0);
    }
    assert!(extended > 1000 && labelled > 300, "{extended} with extension headers, {labelled} with labels");
}

#[test]
fn there_are_enough_frames_of_each_class() {
    let frames = generate();
    assert!(frames.len() >= 10_000);
    for (i, class) in CLASSES.iter().enumerate().filter(|(_, class)| class.malformed) {
        let count = frames.iter().filter(|frame| frame.class == i).count();
        assert!(count >= 200, "{}: {count}", class.name);
    }
}

#[test]
fn every_difference_is_documented_in_order() {
    let text = include_str!("../../docs/extraction.md");
    let documented: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(documented, RULES.iter().map(|rule| rule.name).collect::<Vec<_>>());
}

fn generate() -> Vec<Frame> {
    let seed = std::env::var("SLUICE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut rng = Rng(seed);
    let classes = CLASSES.iter().enumerate().flat_map(|(class, c)| std::iter::repeat_n((class, c), PER_CLASS));
    let mut frames: Vec<Frame> = classes.map(|(class, c)| Frame { class, bytes: (c.make)(&mut rng) }).collect();
    for (i, frame) in frames.iter_mut().enumerate() {
        // Each has a source address of its own, by which its flow is found again.
        if let Some(source) = frame.bytes.get_mut(6..12) {
            source.copy_from_slice(&source_of(i));
        }
    }
    frames
}

fn source_of(i: usize) -> [u8; 6] {
    let [_, _, _, _, a, b, c, d] = (i as u64).to_be_bytes();
    [2, 0, a, b, c, d]
}

/// What `ofproto/trace` says of each frame.
fn trace(server: &Server, frames: &[Frame]) -> Vec<Result<FlowKey, String>> {
    let params = |frame: &Frame| vec!["br0".into(), "in_port=1".into(), hex(&frame.bytes)];
    let params: Vec<_> = frames.iter().map(params).collect();
    let answers = server.unixctl().call_each("ofproto/trace", &params);
    answers.into_iter().map(|answer| flow_text::parse_trace(&answer?)).collect()
}

/// The keys of the flows that the frames, received on a port, make.
fn dump(server: &Server, frames: &[Frame], traced: &[Result<FlowKey, String>]) -> HashMap<usize, FlowKey> {
    // A match on the source address in the table makes every flow match on it, so each frame has one of its own.
    server.add_flow("dl_src=06:00:00:00:00:01,actions=drop");
    let mut unixctl = server.unixctl();
    let mut keys = HashMap::new();
    let all: Vec<usize> = (0..frames.len()).filter(|i| traced[*i].is_ok()).collect();
    for batch in all.chunks(BATCH) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut missing = batch.to_vec();
        while !missing.is_empty() {
            assert!(Instant::now() < deadline, "no flow for {}", hex(&frames[missing[0]].bytes));
            for some in missing.chunks(RECEIVE) {
                let mut params = vec!["p1".to_owned()];
                params.extend(some.iter().map(|i| hex(&frames[*i].bytes)));
                unixctl.call("netdev-dummy/receive", &params).unwrap();
            }
            let text = unixctl.call("dpctl/dump-flows", &["-m".into()]).unwrap();
            for line in text.lines() {
                let Some(source) = flow_text::source_of_dump(line) else { continue };
                let [_, _, a, b, c, d] = source;
                keys.entry(u32::from_be_bytes([a, b, c, d]) as usize)
                    .or_insert_with(|| flow_text::parse_dump(line).unwrap_or_else(|error| panic!("{line}: {error}")));
            }
            missing.retain(|i| !keys.contains_key(i));
        }
        unixctl.call("dpctl/del-flows", &[]).unwrap();
    }
    keys
}

/// Applies the rules to our key of the frame; says what differs then.
fn compare(frame: &Frame, reference: &FlowKey, hits: &mut [usize]) -> Option<String> {
    let mut view = View::new(frame.bytes.clone());
    let (ours, ours_dropped) = (view.key, view.dropped);
    let mut applied = Vec::new();
    for (rule, hits) in RULES.iter().zip(hits) {
        let before = (view.key, view.dropped);
        (rule.apply)(&mut view);
        if before != (view.key, view.dropped) {
            *hits += 1;
            applied.push(rule.name);
        }
    }
    let mut expected = view.key;
    expected.in_port = 1;
    if expected == *reference && !view.dropped {
        return None;
    }
    let dropped = if ours_dropped { "dropped; " } else { "" };
    Some(format!(
        "{} ({}), {applied:?}:\n  ours: {dropped}{}\n  reference: {}\n{}",
        hex(&frame.bytes),
        CLASSES[frame.class].name,
        text(&ours),
        text(reference),
        differences(&expected, reference)
    ))
}

/// What a dump shows of a key, with the same for all that it doesn't show.
fn as_dumped(key: &FlowKey) -> FlowKey {
    let mut key = *key;
    (key.tcp_flags, key.mpls_labels) = Default::default();
    // The text of a network service header that isn't matched is empty.
    (key.nsh_flags, key.nsh_ttl, key.nsh_mdtype, key.nsh_np) = (0, 0, 0, 0);
    (key.nsh_path, key.nsh_context) = Default::default();
    // That there is no Ethernet type is not shown behind a tag.
    if key.eth_type.get() < 0x0600 {
        key.eth_type = Be16::ZERO;
    }
    // A dump shows type and code only of the ICMP that belongs to the IP version.
    let shown = match key.eth_type.get() {
        0x0800 => matches!(key.ip_proto, 1 | 6 | 17 | 132),
        0x86dd => matches!(key.ip_proto, 6 | 17 | 58 | 132),
        _ => true,
    };
    if !shown {
        (key.tp_src, key.tp_dst) = Default::default();
    }
    key
}

/// The fields in which two keys differ, a line each.
fn differences(ours: &FlowKey, reference: &FlowKey) -> String {
    let mut out = String::new();
    macro_rules! fields {
        ($($field:ident)+) => {$(
            if ours.$field != reference.$field {
                let _ = writeln!(out, "    {}: {:x?}, reference {:x?}", stringify!($field), ours.$field, reference.$field);
            }
        )+};
    }
    fields!(in_port eth_dst eth_src eth_type vlan cvlan ip_proto ip_tos ip_ttl ip_frag tcp_flags tp_src tp_dst ipv4_src
        ipv4_dst ipv6_label ipv6_src ipv6_dst nd_target arp_sha arp_tha mpls_labels mpls_lse nsh_path nsh_flags nsh_ttl
        nsh_mdtype nsh_np nsh_context);
    out
}

fn text(key: &FlowKey) -> String {
    dpif::odp::Style::default().key(key, None)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
