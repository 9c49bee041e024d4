//! The XDP hook and the in-process datapath are one datapath, as far as the hook goes: what it finishes it finishes as the twin
//! does, bytes, keys and statistics; what it doesn't it leaves untouched and uncounted.
//!
//! Frames and tables are generated as in `differential`, and run through the entry program of a port under
//! `BPF_PROG_TEST_RUN`. `SLUICE_DIFF_CASES` and `SLUICE_DIFF_SEED` say how many, and where to begin.

#[path = "differential/compare.rs"]
mod compare;
#[path = "differential/frames.rs"]
mod frames;
#[path = "differential/rig.rs"]
mod rig;
#[path = "differential/tables.rs"]
mod tables;

use std::env;

use compare::{Pair, hex, twin};
use dpif::{Action, Be16, Be32, Dpif as _, FlowKey, FlowPut, KeyAttr, OdpPort, PutMode, SetAction, Ufid, Vlan};
use fastrand::Rng;
use rig::{Arrival, MTUS, Rig, XDP_DROP, XDP_PASS, XDP_REDIRECT};
use tables::Shape;

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn what_the_hook_finishes_is_what_the_twin_does() {
    testkit::require_root_and_bpf!("what_the_hook_finishes_is_what_the_twin_does");
    compare(false);
}

#[test]
fn what_specialised_programs_finish_is_what_the_twin_does() {
    testkit::require_root_and_bpf!("what_specialised_programs_finish_is_what_the_twin_does");
    compare(true);
}

fn compare(special: bool) {
    // Making programs takes most of the time.
    let cases = number("SLUICE_DIFF_CASES", 25_000) / if special { 5 } else { 1 };
    let (compared, finished, variants, found) = Rig::with("xdp", |rig| {
        rig.enable_xdp();
        let mut pair = Pair::new(rig);
        let mut rng = Rng::with_seed(number("SLUICE_DIFF_SEED", 0x5eed) ^ 4 << 32);
        let (mut finished, mut found) = (0, Vec::new());
        while pair.compared < cases && found.is_empty() {
            finished += table(&mut pair, &mut rng, &mut found, special);
        }
        (pair.compared, finished, pair.variants, found)
    });
    println!("{compared} frames, {finished} of them finished in the hook, by {} programs", variants.len().max(1));
    assert!(found.is_empty(), "the engines differ:\n{}", found.join("\n"));
    // Where no port takes frames from the hook it can only drop.
    let one_in = if testkit::Need::XdpToVeth.missing().is_none() { 20 } else { 100 };
    assert!(finished * one_in > compared, "only {finished} of {compared} frames were finished in the hook");
    // Few cases are for slow machines.
    let wanted = if cases < 5000 { 1 } else { 10 };
    assert!(!special || variants.len() > wanted, "only {variants:?} were tried");
}

/// One table with its frames. Returns how many were finished.
fn table(pair: &mut Pair<'_>, rng: &mut Rng, found: &mut Vec<String>, special: bool) -> u64 {
    let arrivals: Vec<_> = (0..rng.usize(10..50))
        .map(|_| {
            let bytes = match rng.u8(..4) {
                1.. if special => tables::plain_frame(rng),
                1.. => frames::valid(rng),
                0 => frames::frame(rng),
            };
            // The kernel takes no shorter one for a test run.
            let mut bytes = bytes[..bytes.len().min(rig::LONGEST)].to_vec();
            bytes.resize(bytes.len().max(14), 0);
            Arrival { port: rng.u32(1..=MTUS.len() as u32), bytes, wire: true, ..Arrival::default() }
        })
        .collect();
    let shape = match rng.u8(..4) {
        1.. if special => Shape::plain(rng),
        1.. => Shape::OneOutput,
        0 => Shape::Any,
    };
    let flows = {
        let rig = &*pair.rig;
        tables::table(rng, || twin(rig), &arrivals, shape)
    };
    found.extend(pair.install(flows).err());
    if special {
        pair.variants.insert(pair.rig.specialise(true));
    }
    let mut finished = 0;
    // The second time from the cache.
    for arrival in arrivals.iter().chain(&arrivals) {
        let agreed = pair.xdp_frame(arrival).and_then(|here| pair.statistics().map(|()| here));
        match agreed {
            Ok(here) => finished += u64::from(here),
            Err(text) => {
                let actions: Vec<_> = pair.flows.iter().map(|flow| &flow.actions).collect();
                found.push(format!("port {} {}\n{text}\nactions {actions:?}", arrival.port, hex(&arrival.bytes)));
                break;
            }
        }
    }
    finished
}

fn udp(len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0];
    frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 90, 0, 30, 0, 0]);
    frame.resize(len, 0);
    frame
}

fn flow(recirc_id: u32, actions: Vec<Action>) -> FlowPut {
    let key = FlowKey { in_port: 1, recirc_id, ..FlowKey::ZERO };
    let mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO };
    FlowPut { mode: PutMode::CreateOrModify, ufid: Ufid(recirc_id.into()), key, mask, actions: actions.into() }
}

fn output(port: u32) -> Action {
    Action::Output(OdpPort(port))
}

#[test]
fn the_hook_finishes_what_needs_little_and_passes_the_rest_on() {
    testkit::require_root_and_bpf!("the_hook_finishes_what_needs_little_and_passes_the_rest_on");
    testkit::require!("the_hook_finishes_what_needs_little_and_passes_the_rest_on"; testkit::Need::XdpToVeth);
    let address = |attr, change: fn(&mut FlowKey)| {
        let (mut value, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
        change(&mut value);
        change(&mut mask);
        Action::Set(Box::new(SetAction { attr, value, mask }))
    };
    let nat = address(KeyAttr::Ipv4, |key| key.ipv4_src = Be32::MAX);
    let push = Action::PushVlan(Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1005) });
    let userspace = Action::Userspace(dpif::UserspaceAction::default());
    let cases: Vec<(&str, Vec<Action>, usize, u32)> = vec![
        ("one output", vec![output(2)], 100, XDP_REDIRECT),
        ("back to where it came from", vec![output(1)], 100, XDP_REDIRECT),
        ("a rewrite and an output", vec![nat.clone(), output(2)], 100, XDP_REDIRECT),
        ("a rewrite of a frame that is too short for it", vec![nat, output(2)], 50, XDP_PASS),
        ("a drop", vec![], 100, XDP_DROP),
        ("a recirculation to a flow that is finished here", vec![Action::Recirc(1)], 100, XDP_REDIRECT),
        ("a recirculation to a flow that is not", vec![Action::Recirc(2)], 100, XDP_PASS),
        ("a recirculation to no flow", vec![Action::Recirc(3)], 100, XDP_PASS),
        ("recirculations without end", vec![Action::Recirc(4)], 100, XDP_PASS),
        ("several outputs of differing bytes", vec![output(2), push.clone(), output(3)], 100, XDP_PASS),
        ("a tag", vec![push.clone(), output(2)], 100, XDP_PASS),
        ("userspace", vec![userspace], 100, XDP_PASS),
        ("no such port", vec![output(77)], 100, XDP_PASS),
        ("more than the output's MTU", vec![output(3)], 1000, XDP_PASS),
    ];
    for special in [false, true] {
        Rig::with("xdp-cases", |rig| {
            rig.enable_xdp();
            rig.specialise(special);
            // Outputs of the same bytes would be finished here, as soon as their ports are made a group.
            let not_here = vec![push.clone(), output(2)];
            for (id, actions) in [(1, vec![output(2)]), (2, not_here), (4, vec![Action::Recirc(4)])] {
                rig.dpif.flow_put(&flow(id, actions)).expect("a flow");
            }
            let counters = |rig: &Rig| {
                let stats = rig.dpif.stats().expect("statistics");
                (stats.hit, stats.missed, rig.dpif.port_stats(OdpPort(1)).expect("statistics").rx_packets)
            };
            for (name, actions, len, verdict) in cases.clone() {
                rig.dpif.flow_put(&flow(0, actions)).expect("a flow");
                let arrival = Arrival { port: 1, bytes: udp(len), ..Arrival::default() };
                // What a specialised program doesn't know yet the general one tells it.
                if special {
                    rig.specialise(true);
                    rig.run_xdp(&arrival, 2);
                }
                let before = counters(rig);
                let ran = rig.run_xdp(&arrival, 1);
                assert_eq!(ran.verdict, verdict, "{name}");
                assert!(verdict != XDP_PASS || ran.bytes == arrival.bytes, "{name}");
                assert_eq!(counters(rig) == before, verdict == XDP_PASS, "{name}");
            }
            // A miss is the TC hook's to count and to send up.
            let before = counters(rig);
            let arrival = Arrival { port: 2, bytes: udp(100), ..Arrival::default() };
            assert_eq!(rig.run_xdp(&arrival, 1).verdict, XDP_PASS);
            assert_eq!(counters(rig), before);
        });
    }
}
