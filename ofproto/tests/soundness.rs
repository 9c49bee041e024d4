//! Is a megaflow ever wider than what translation looked at?
//!
//! Two oracles over generated tables and packets, with prefixes, masked ports and conjunctive flows among the rules. The first changes bits that the megaflow wildcards, each alone and in random
//! sets, and translates again: the actions must be the same. The second lets packets of a small world meet each other's
//! megaflows: whatever matches must be what the packet's own translation says. `OFPROTO_SOUNDNESS_CASES` says how many bits or
//! sets are changed, `OFPROTO_SOUNDNESS_SEED` which tables and packets are made.

mod common;

use std::sync::Arc;

use common::{MACS, Rng, Side, env, key_of, random_flows, random_frame, two_bridges, with_recirculation};
use datapath_common::key::KEY_WORDS;
use datapath_common::{Be16, FlowKey};
use dpif::Action;
use ofproto::bridge::Config;
use ofproto::flow::{Flow, is_present};
use ofproto::table::Tables;
use ofproto::xlate::{translate, translate_again};
use ofproto::{PortVlan, Trunks};
use openflow::OfPort;

/// Two bridges with rules at random, which recirculate too.
fn config(rng: &mut Rng) -> Config {
    two_bridges([(); 2].map(|()| {
        let vlans = std::array::from_fn(|_| match rng.below(6) {
            0 => PortVlan::Access(10),
            1 => PortVlan::Trunk(Trunks::of([10, 20])),
            2 => PortVlan::NativeTagged(10, Trunks::of([20])),
            3 => PortVlan::NativeUntagged(20, Trunks::of([10])),
            _ => PortVlan::default(),
        });
        let mut tables = Tables::default();
        let mut flows = random_flows(rng, 25);
        with_recirculation(rng, &mut flows, 12);
        tables.apply(&flows, 0).unwrap();
        let station = |mac: &[u8; 6]| (rng.pick(&[0, 10, 20]), *mac, 1 + rng.below(4) as u16);
        Side { vlans, tables, stations: MACS[..3].iter().map(station).collect() }
    }))
}

fn packets(rng: &mut Rng, n: usize) -> Vec<FlowKey> {
    let mut keys = Vec::new();
    while keys.len() < n {
        let in_port = rng.pick(&[1, 1, 2, 3, 11, 12, 0]);
        keys.extend(key_of(&random_frame(rng), in_port));
    }
    keys
}

fn rules(config: &Config) -> String {
    let rule = |(table, rule): (u8, &Arc<ofproto::rule::Rule>)| {
        let actions = openflow::action::display_actions(&rule.actions, &openflow::NoPortNames).to_string();
        format!("table={table} {} {actions}\n", rule.r#match.display(rule.priority, &openflow::NoPortNames))
    };
    config
        .bridges
        .values()
        .map(|b| format!("{}:\n{}", b.name, b.tables.rules().map(rule).collect::<String>()))
        .collect()
}

fn bit(i: usize) -> FlowKey {
    let mut words = [0; KEY_WORDS];
    words[i / 64] = 1 << (i % 64);
    FlowKey::from_words(&words)
}

fn xor(a: &FlowKey, b: &FlowKey) -> FlowKey {
    let mut out = *a;
    for (word, b) in out.words_mut().iter_mut().zip(b.words()) {
        *word ^= b;
    }
    out
}

/// A flow that is translated again looks at nothing that it doesn't have, whatever is known of its packets.
fn stays(config: &Config, key: &FlowKey, mask: &FlowKey) {
    let again = translate_again(config, key, mask).unwrap();
    assert!(mask.covers(&again.mask), "\nkey {key:?}\nmask {mask:?}\nnew {:?}\n{}", again.mask, rules(config));
}

#[test]
fn bits_that_a_megaflow_wildcards_change_nothing() {
    let cases = env("OFPROTO_SOUNDNESS_CASES", 100_000);
    let mut rng = Rng(env("OFPROTO_SOUNDNESS_SEED", 1) as u64);
    let (mut done, mut with_actions, mut packets_done, mut narrower, mut recirculated) = (0, 0, 0, 0, 0);
    while done < cases {
        let config = config(&mut rng);
        let mut left: Vec<_> = packets(&mut rng, 12).into_iter().map(|key| (key, 0)).collect();
        // What is left to do after a recirculation lives as long as the translation that leads there.
        let mut translations = Vec::new();
        while let Some((key, passes)) = left.pop() {
            let Some(xlate) = translate(&config, &key) else { panic!("port {} is there", key.in_port) };
            packets_done += 1;
            let again = xlate.odp_actions.iter().filter_map(|action| match action {
                // Some come back for ever.
                Action::Recirc(id) if passes < 3 => Some((FlowKey { recirc_id: *id, ..key }, passes + 1)),
                _ => None,
            });
            left.extend(again);
            recirculated += usize::from(key.recirc_id != 0);
            translations.push(xlate.clone());
            with_actions += usize::from(!xlate.odp_actions.is_empty());
            stays(&config, &key.masked(&xlate.mask), &xlate.mask);
            // Fields that no such packet has can't differ.
            let present = Flow::from_key(&key, OfPort(1)).present_fields();
            let free: Vec<_> = (0..KEY_WORDS * 64)
                .filter(|i| present.words()[i / 64] & !xlate.mask.words()[i / 64] & (1 << (i % 64)) != 0)
                .collect();
            // Of most packets some bits, of a few all.
            let keep = if packets_done % 32 == 0 { 1 } else { 1 + free.len() / 16 };
            let alone: Vec<_> = free.iter().filter(|_| rng.one_in(keep)).map(|i| bit(*i)).collect();
            let sets: Vec<_> = (0..8)
                .map(|_| {
                    let keep = rng.pick(&[1, 2, 4, 16]);
                    free.iter().filter(|_| rng.one_in(keep)).fold(FlowKey::ZERO, |sum, i| xor(&sum, &bit(*i)))
                })
                .collect();
            for change in alone.iter().chain(&sets) {
                let change = *change;
                let mut other = xor(&key, &change);
                // Where there is no tag, there is none of its bits.
                for tag in [&mut other.vlan, &mut other.cvlan].into_iter().filter(|tag| !is_present(**tag)) {
                    tag.tci = Be16::ZERO;
                }
                let again = translate(&config, &other).unwrap();
                // The masks may differ: which of two prefix tries tells that a subtable has no match is as it happens.
                narrower += usize::from(xlate.mask != again.mask);
                stays(&config, &other, &xlate.mask);
                assert_eq!(
                    (&xlate.odp_actions, xlate.error),
                    (&again.odp_actions, again.error),
                    "\npacket {key:?}\nchange {change:?}\n{}",
                    rules(&config)
                );
                done += 1;
            }
        }
    }
    println!(
        "{done} changes of {packets_done} packets, {with_actions} of them forwarded, {recirculated} recirculated; \
         {narrower} gave another mask"
    );
    assert!(narrower * 10 < done, "the mask depends on what it doesn't have: {narrower} of {done}");
    assert!(with_actions * 4 > packets_done, "too few packets go anywhere for this to say much");
}

#[test]
fn packets_that_meet_anothers_megaflow_get_what_their_own_would_say() {
    let rounds = env("OFPROTO_SOUNDNESS_CASES", 100_000) / 1000;
    let mut rng = Rng(env("OFPROTO_SOUNDNESS_SEED", 1) as u64 ^ 0xabcd);
    let (mut hits, mut misses) = (0, 0);
    for _ in 0..rounds {
        let config = config(&mut rng);
        let mut megaflows: Vec<(FlowKey, FlowKey, Vec<dpif::Action>)> = Vec::new();
        let mut translations = Vec::new();
        let frames: Vec<_> = (0..12).map(|_| random_frame(&mut rng)).collect();
        for _ in 0..200 {
            // One byte of difference is what neighbours have.
            let mut frame = frames[rng.below(frames.len())].clone();
            let (at, value) = (rng.below(frame.len().min(60)), rng.next() as u8);
            frame[at] = rng.pick(&[value, 0, 1, 10, frame[at] ^ 1, frame[at]]);
            let Some(key) = key_of(&frame, rng.pick(&[1, 1, 2])) else { continue };
            let own = translate(&config, &key).unwrap();
            let mut found = false;
            for (flow, mask, actions) in &megaflows {
                if flow.matches(mask, &key) {
                    found = true;
                    assert_eq!(*actions, own.odp_actions, "packet {key:?} under {mask:?}");
                }
            }
            if found {
                hits += 1;
            } else {
                misses += 1;
                megaflows.push((key.masked(&own.mask), own.mask, own.odp_actions.clone()));
                translations.push(own);
            }
        }
    }
    println!("{hits} hits, {misses} misses");
    assert!(hits > misses, "too few packets meet another's megaflow for this to say much: {hits} of {misses}");
}
