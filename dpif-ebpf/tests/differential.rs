//! The TC program and the in-process datapath are one datapath: the same frames give the same keys, verdicts, bytes, upcalls
//! and statistics.
//!
//! Frames and flow tables are generated from a seed ([`frames`], [`tables`]) and run through both ([`compare`]): through the
//! real backend with its program under `BPF_PROG_TEST_RUN` ([`rig`]), and through `dpif::inproc`. Both engines share the code
//! that extracts and edits, so what this finds is what they don't share: how bytes are reached and written, what the kernel's
//! helpers do, the interpreter, lookup, accounting. A difference is printed with the shortest frame that still shows it; when
//! it has been mended it stays here as a named case.
//!
//! `SLUICE_DIFF_KEYS` and `SLUICE_DIFF_CASES` say how many frames and how many (table, frame) pairs, `SLUICE_DIFF_SEED` where
//! to begin.

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
use dpif::{Action, Be16, Be32, Dpif as _, FlowKey, FlowPut, KeyAttr, OdpPort, PutMode, SetAction, Ufid};
use fastrand::Rng;
use rig::{Arrival, MTUS, Rig};
use tables::Shape;

/// Differences that are reported before a test gives up.
const ENOUGH: usize = 4;

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn rng(test: u64) -> Rng {
    Rng::with_seed(number("SLUICE_DIFF_SEED", 0x5eed) ^ test << 32)
}

fn arrival(rng: &mut Rng, bytes: Vec<u8>) -> Arrival {
    let metadata = |rng: &mut Rng| if rng.u8(..4) == 0 { rng.u32(..) } else { 0 };
    Arrival {
        port: rng.u32(1..=MTUS.len() as u32),
        bytes,
        priority: metadata(rng),
        mark: metadata(rng),
        gso_size: 0,
        wire: rng.u8(..8) == 0,
    }
    .fit()
}

/// The frame cut down as long as it still differs, and how it does.
fn shrink(pair: &mut Pair<'_>, arrival: &Arrival, mut said: String) -> String {
    let mut shortest = arrival.clone();
    for len in (frames::SHORTEST..arrival.bytes.len()).rev() {
        let shorter = Arrival { bytes: arrival.bytes[..len].to_vec(), ..arrival.clone() }.fit();
        match pair.frame(&shorter) {
            Err(text) => (shortest, said) = (shorter, text),
            Ok(_) => break,
        }
    }
    let Arrival { port, bytes, priority, mark, gso_size, wire } = &shortest;
    format!("frame {} port {port} priority {priority} mark {mark} gso {gso_size} wire {wire}\n{said}", hex(bytes))
}

#[test]
fn both_engines_extract_the_same_key_from_any_frame() {
    testkit::require_root_and_bpf!("both_engines_extract_the_same_key_from_any_frame");
    let cases = number("SLUICE_DIFF_KEYS", 120_000);
    let found = Rig::with("keys", |rig| {
        let mut pair = Pair::new(rig);
        let (mut rng, mut found) = (rng(1), Vec::new());
        let mut check = |pair: &mut Pair<'_>, arrival: Arrival| {
            if let Err(said) = pair.frame(&arrival) {
                found.push(shrink(pair, &arrival, said));
            }
            pair.compared < cases && found.len() < ENOUGH
        };
        // A tenth of the frames are valid ones cut at each place.
        let mut cuts = 0;
        while cuts < cases / 10 {
            let frame = frames::valid(&mut rng);
            for len in frames::SHORTEST..frame.len().min(160) {
                cuts += 1;
                check(&mut pair, arrival(&mut rng, frame[..len].to_vec()));
            }
        }
        loop {
            let frame = frames::frame(&mut rng);
            if !check(&mut pair, arrival(&mut rng, frame)) {
                break;
            }
        }
        if let Err(said) = pair.statistics() {
            found.push(said);
        }
        println!("{} frames", pair.compared);
        found
    });
    assert!(found.is_empty(), "the engines differ:\n{}", found.join("\n"));
}

#[test]
fn both_engines_do_the_same_with_any_flow_table() {
    testkit::require_root_and_bpf!("both_engines_do_the_same_with_any_flow_table");
    let cases = number("SLUICE_DIFF_CASES", 25_000);
    let found = Rig::with("tables", |rig| {
        let mut pair = Pair::new(rig);
        let (mut rng, mut found, mut tables) = (rng(2), Vec::new(), 0);
        // What counters differ in once they differ in for good.
        while pair.compared < cases && found.is_empty() {
            tables += 1;
            table(&mut pair, &mut rng, &mut found, false);
        }
        println!("{} cases in {tables} tables: {:?}", pair.compared, pair.twin.stats().expect("statistics"));
        found
    });
    assert!(found.is_empty(), "the engines differ:\n{}", found.join("\n"));
}

#[test]
fn specialised_programs_do_as_the_twin_does() {
    testkit::require_root_and_bpf!("specialised_programs_do_as_the_twin_does");
    // Making programs takes most of the time.
    let cases = number("SLUICE_DIFF_CASES", 25_000) / 5;
    let (variants, found) = Rig::with("special", |rig| {
        let mut pair = Pair::new(rig);
        let (mut rng, mut found) = (rng(5), Vec::new());
        while pair.compared < cases && found.is_empty() {
            table(&mut pair, &mut rng, &mut found, true);
        }
        (pair.variants, found)
    });
    println!("{} programs: {variants:?}", variants.len());
    assert!(found.is_empty(), "the engines differ:\n{}", found.join("\n"));
    // Few cases are for slow machines.
    let wanted = if cases < 5000 { 1 } else { 10 };
    assert!(variants.len() > wanted, "only {variants:?} were tried");
}

/// What has differed once.
#[test]
fn what_differed_before_differs_no_more() {
    testkit::require_root_and_bpf!("what_differed_before_differs_no_more");
    let output = || Action::Output(OdpPort(1));
    let set = |attr, change: fn(&mut FlowKey)| {
        let mut mask = FlowKey::ZERO;
        change(&mut mask);
        Action::Set(Box::new(SetAction { attr, value: FlowKey::ZERO, mask }))
    };
    let ports = |mask: &mut FlowKey| (mask.tp_src, mask.tp_dst) = (Be16::MAX, Be16::MAX);
    let type_code = |mask: &mut FlowKey| (mask.tp_src, mask.tp_dst) = (Be16::new(0xff), Be16::new(0xff));
    let address = |mask: &mut FlowKey| mask.ipv4_src = Be32::MAX;
    const MACS: &str = "020000000002020000000001";
    let cases: [(&str, &str, u16, Vec<Action>); 7] = [
        (
            "the tag that a pop uncovers is beside the bytes and counts in no length",
            "88a8 000a 8100 000b 0800 45000018 00000000 4011 0000 00000000 00000000 0001 0002 0008 0000",
            0,
            vec![Action::PopVlan, Action::Recirc(1)],
        ),
        (
            "a truncation does not count the tag that a pop uncovers",
            "88a8 000a 8100 000b 0800 45000018 00000000 4011 0000 00000000 00000000 0001 0002 0008 0000",
            0,
            vec![Action::PopVlan, Action::Trunc(20), output()],
        ),
        ("a tag that is cut off can't be popped", "8100 000a 08", 0, vec![Action::PopVlan, output()]),
        (
            "a TCP checksum never becomes 0xffff",
            "0800 45000028 00000000 4006 0000 00000000 00000000 ffff ffff 00000000 00000000 5000 ffff ffff 0000",
            0,
            vec![set(KeyAttr::Tcp, ports), output()],
        ),
        (
            "an ICMP checksum never becomes 0xffff",
            "0800 4500001c 00000000 4001 0000 00000000 00000000 ffff ffff 00000000",
            0,
            vec![set(KeyAttr::Icmp, type_code), output()],
        ),
        (
            "an IPv4 checksum never becomes 0xffff by an address",
            "0800 45000014 00000000 4006 ffff ffffffff 00000000",
            0,
            vec![set(KeyAttr::Ipv4, address), output()],
        ),
        (
            "a super-packet that is truncated is one no more",
            "0800 45000028 00000000 4006 0000 00000000 00000000 ffff ffff 00000000 00000000 5000 ffff ffff 0000",
            1000,
            vec![Action::Trunc(700), Action::Output(OdpPort(3))],
        ),
    ];
    let found = Rig::with("before", |rig| {
        let mut pair = Pair::new(rig);
        let mut found = Vec::new();
        for (name, rest, gso_size, actions) in cases {
            let key = FlowKey { in_port: 2, ..FlowKey::ZERO };
            let mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO };
            let first = FlowPut { mode: PutMode::Create, ufid: Ufid(1), key, mask, actions: actions.into() };
            let key = FlowKey { recirc_id: 1, ..key };
            let second = FlowPut { ufid: Ufid(2), key, actions: [output()].into(), ..first.clone() };
            let mut bytes = unhex(&format!("{MACS}{rest}"));
            if gso_size != 0 {
                bytes.resize(1000, 0);
            }
            let arrival = Arrival { port: 2, bytes, gso_size, ..Arrival::default() }.fit();
            let run = pair.install(vec![first, second]).and_then(|()| pair.frame(&arrival).map(drop));
            found.extend(run.and_then(|()| pair.statistics()).err().map(|text| format!("{name}: {text}")));
        }
        found
    });
    assert!(found.is_empty(), "the engines differ:\n{}", found.join("\n"));
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("a digit") as u8;
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

#[test]
fn both_engines_lose_the_same_upcalls() {
    testkit::require_root_and_bpf!("both_engines_lose_the_same_upcalls");
    let found = Rig::with("lost", |rig| {
        let mut pair = Pair::new(rig);
        let (mut rng, mut found) = (rng(3), Vec::new());
        // Nobody reads: small packets use up the number of records, large ones the bytes.
        for size in [60, 900, 3000] {
            for i in 0..1500u16 {
                let mut bytes = vec![0; size];
                bytes[..6].copy_from_slice(&[2, 0, 0, 0, 0, rng.u8(..)]);
                bytes[12..16].copy_from_slice(&[0x88, 0xb5, (i >> 8) as u8, i as u8]);
                pair.storm(&Arrival { port: 1, bytes, ..Arrival::default() });
            }
            found.extend(pair.statistics().err());
            found.extend(pair.counters_agree().err());
            found.extend(pair.purge().err());
        }
        // Nobody is there to read.
        pair.handlers(0);
        for _ in 0..10 {
            let frame = frames::valid(&mut rng);
            pair.storm(&Arrival { port: 2, bytes: frame, ..Arrival::default() }.fit());
        }
        pair.handlers(1);
        // A frame for a port that there can't be.
        pair.storm(&Arrival { port: 70_000, bytes: vec![0; 60], ..Arrival::default() });
        found.extend(pair.statistics().err());
        found.extend(pair.counters_agree().err());
        found
    });
    assert!(found.is_empty(), "the engines differ:\n{}", found.join("\n"));
}

/// One table with its frames, each of them twice, flows being changed in between.
fn table(pair: &mut Pair<'_>, rng: &mut Rng, found: &mut Vec<String>, special: bool) {
    let shape = match rng.u8(..4) {
        1.. if special => Shape::plain(rng),
        0 if !special => Shape::OneOutput,
        _ => Shape::Any,
    };
    let arrivals: Vec<_> = (0..rng.usize(10..50))
        .map(|_| {
            // Valid frames go further.
            let bytes = match rng.u8(..3) {
                1.. if special => tables::plain_frame(rng),
                1.. => frames::valid(rng),
                0 => frames::frame(rng),
            };
            let bytes = bytes[..bytes.len().min(rig::LONGEST)].to_vec();
            let mut arrival = arrival(rng, bytes);
            if shape == Shape::OneOutput && rng.bool() {
                (arrival.wire, arrival.gso_size) = (false, rng.u16(1..1500));
            }
            arrival.fit()
        })
        .collect();
    let flows = {
        let rig = &*pair.rig;
        tables::table(rng, || twin(rig), &arrivals, shape)
    };
    let mut said: Vec<String> = pair.install(flows).err().into_iter().collect();
    for round in 0..2 {
        if special {
            pair.variants.insert(pair.rig.specialise(true));
        }
        for arrival in &arrivals {
            let agreed = pair.frame(arrival).map_err(|text| shrink(pair, arrival, text)).and_then(|_| {
                pair.statistics().map_err(|text| format!("{text}\nafter {arrival:?} {}\n", hex(&arrival.bytes)))
            });
            if let Err(text) = agreed {
                found.push(format!("{text}in the table {}", describe(pair)));
                return;
            }
        }
        if round == 0 && !pair.flows.is_empty() {
            let at = rng.usize(..pair.flows.len());
            said.extend(pair.del(at).err());
            for at in 0..pair.flows.len() / 2 {
                let mut put = pair.flows[at].clone();
                put.mode = PutMode::Modify;
                put.actions = tables::actions(rng, &put.key, shape).into();
                said.extend(pair.put(put).err());
            }
        }
    }
    // One of a table tells what is wrong.
    found.extend(said.into_iter().next());
}

/// The flows, of keys and masks the words that are not zero.
fn describe(pair: &Pair<'_>) -> String {
    let words = |key: &FlowKey| {
        let words = key.words().iter().enumerate().filter(|(_, word)| **word != 0);
        words.map(|(i, word)| format!(" {i}:{word:x}")).collect::<String>()
    };
    let line = |flow: &FlowPut| {
        format!("\n  {} key{} mask{} actions {:?}", flow.ufid, words(&flow.key), words(&flow.mask), flow.actions)
    };
    pair.flows.iter().map(line).collect()
}
