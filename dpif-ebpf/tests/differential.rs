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
use dpif::{Dpif as _, FlowKey, FlowPut, PutMode};
use fastrand::Rng;
use rig::{Arrival, MTUS, Rig};

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

/// The shortest beginning of the frame that still differs, and how.
fn shrink(pair: &mut Pair<'_>, arrival: &Arrival, mut said: String) -> String {
    let mut shortest = arrival.clone();
    for len in (frames::SHORTEST..arrival.bytes.len()).rev() {
        let shorter = Arrival { bytes: arrival.bytes[..len].to_vec(), ..arrival.clone() }.fit();
        if let Err(text) = pair.frame(&shorter) {
            (shortest, said) = (shorter, text);
        }
    }
    format!("frame {} ({shortest:?})\n{said}", hex(&shortest.bytes))
}

#[test]
fn both_engines_extract_the_same_key_from_any_frame() {
    testkit::require_root_and_bpf!("both_engines_extract_the_same_key_from_any_frame");
    let cases = number("SLUICE_DIFF_KEYS", 200_000);
    let found = Rig::with("keys", |rig| {
        let mut pair = Pair::new(rig);
        let (mut rng, mut found, mut run) = (rng(1), Vec::new(), 0);
        let mut check = |pair: &mut Pair<'_>, arrival: Arrival| {
            if let Err(said) = pair.frame(&arrival) {
                found.push(shrink(pair, &arrival, said));
            }
            run += 1;
            run < cases && found.len() < ENOUGH
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
        println!("{run} frames");
        found
    });
    assert!(found.is_empty(), "the engines differ:\n{}", found.join("\n"));
}

#[test]
fn both_engines_do_the_same_with_any_flow_table() {
    testkit::require_root_and_bpf!("both_engines_do_the_same_with_any_flow_table");
    let cases = number("SLUICE_DIFF_CASES", 60_000);
    let found = Rig::with("tables", |rig| {
        let mut pair = Pair::new(rig);
        let (mut rng, mut found, mut run, mut tables) = (rng(2), Vec::new(), 0, 0);
        // What counters differ in once they differ in for good.
        while run < cases && found.is_empty() {
            tables += 1;
            run += table(&mut pair, &mut rng, &mut found);
        }
        println!("{run} cases in {tables} tables: {:?}", pair.twin.stats().expect("statistics"));
        found
    });
    assert!(found.is_empty(), "the engines differ:\n{}", found.join("\n"));
}

/// One table with its frames, each of them twice, flows being changed in between. Returns how many frames.
fn table(pair: &mut Pair<'_>, rng: &mut Rng, found: &mut Vec<String>) -> u64 {
    let arrivals: Vec<_> = (0..rng.usize(10..50))
        .map(|_| {
            // Valid frames go further.
            let bytes = if rng.u8(..3) != 0 { frames::valid(rng) } else { frames::frame(rng) };
            let bytes = bytes[..bytes.len().min(rig::LONGEST)].to_vec();
            arrival(rng, bytes)
        })
        .collect();
    let flows = {
        let rig = &*pair.rig;
        tables::table(rng, || twin(rig), &arrivals)
    };
    let mut said: Vec<String> = pair.install(flows).err().into_iter().collect();
    for round in 0..2 {
        for arrival in &arrivals {
            let agreed = pair.frame(arrival).map_err(|text| shrink(pair, arrival, text)).and_then(|_| {
                pair.statistics().map_err(|text| format!("{text}\nafter {arrival:?} {}\n", hex(&arrival.bytes)))
            });
            if let Err(text) = agreed {
                found.push(format!("{text}in the table {}", describe(pair)));
                return 0;
            }
        }
        if round == 0 && !pair.flows.is_empty() {
            let at = rng.usize(..pair.flows.len());
            said.extend(pair.del(at).err());
            for at in 0..pair.flows.len() / 2 {
                let mut put = pair.flows[at].clone();
                put.mode = PutMode::Modify;
                put.actions = tables::actions(rng, &put.key);
                said.extend(pair.put(put).err());
            }
        }
    }
    // One of a table tells what is wrong.
    found.extend(said.into_iter().next());
    arrivals.len() as u64 * 2
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
