//! The classifier against a list that is searched from one end to the other.
//!
//! `OFPROTO_CLASSIFIER_CASES` says how many packets are looked up, `OFPROTO_CLASSIFIER_SEED` which rules and packets are made.

mod common;

use std::sync::Arc;

use common::{Rng, accepted, env, key_of, random_conjunction, random_flows, random_frame};
use ofproto::classifier::{Classifier, PrefixField};
use ofproto::flow::{FLOW_WORDS, Flow};
use ofproto::rule::{Rule, RuleStats, conjunctions};
use openflow::{FlowMod, NoPortNames, OfPort};

fn rule(flow: &FlowMod) -> Rule {
    Rule {
        r#match: flow.r#match.clone(),
        value: Flow::from_match(&flow.r#match.value),
        mask: Flow::from_match(&flow.r#match.mask),
        priority: flow.priority,
        cookie: 0,
        idle_timeout: 0,
        hard_timeout: 0,
        importance: 0,
        flags: flow.flags,
        conjunctions: conjunctions(&flow.actions),
        actions: flow.actions.clone().into(),
        created_ms: 0,
        modified_ms: 0,
        stats: Arc::new(RuleStats::new(0)),
    }
}

fn classifier(flows: &[&str]) -> Classifier {
    let mut classifier = Classifier::default();
    for flow in flows {
        classifier.insert(Arc::new(rule(&FlowMod::parse(flow, &NoPortNames).unwrap())));
    }
    classifier
}

/// The rules of the highest priority that match by themselves.
fn hard<'a>(list: &'a [Arc<Rule>], flow: &Flow) -> Vec<&'a Arc<Rule>> {
    let matching: Vec<_> = list.iter().filter(|rule| flow.matches(&rule.value, &rule.mask)).collect();
    let hard = || matching.iter().copied().filter(|rule| rule.conjunctions.is_empty());
    let best = hard().map(|rule| rule.priority).max();
    hard().filter(|rule| Some(rule.priority) == best).collect()
}

/// All rules that could be the answer; more than one where the tables leave it open.
fn slowly<'a>(list: &'a [Arc<Rule>], flow: &Flow) -> Vec<&'a Arc<Rule>> {
    let hard_rules = hard(list, flow);
    let lowest = hard_rules.first().map_or(-1, |rule| i32::from(rule.priority));
    let soft: Vec<_> = list
        .iter()
        .filter(|rule| !rule.conjunctions.is_empty() && flow.matches(&rule.value, &rule.mask))
        .filter(|rule| i32::from(rule.priority) > lowest)
        .collect();
    let mut priorities: Vec<_> = soft.iter().map(|rule| rule.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    for priority in priorities.into_iter().rev() {
        let parts: Vec<_> =
            soft.iter().filter(|rule| rule.priority == priority).flat_map(|rule| rule.conjunctions.iter()).collect();
        let whole = |id: u32| {
            let clauses = parts.iter().find(|part| part.id == id).unwrap().clauses;
            (1..=clauses).all(|clause| parts.iter().any(|part| part.id == id && part.clause == clause))
        };
        let mut found = Vec::new();
        for id in parts.iter().map(|part| part.id).filter(|id| whole(*id)) {
            let mut flow = *flow;
            flow.set_conj_id(id);
            found.extend(hard(list, &flow));
        }
        if !found.is_empty() {
            return found;
        }
    }
    hard_rules
}

fn packet(rng: &mut Rng) -> Flow {
    loop {
        if let Some(key) = key_of(&random_frame(rng), 0) {
            let mut flow = Flow::from_key(&key, OfPort(rng.pick(&[1, 2, 3])));
            flow.set_reg(0, rng.pick(&[0, 1, 0x10]));
            return flow;
        }
    }
}

/// `flow` where `mask` is 1, `other` where it is 0.
fn mixed(flow: &Flow, other: &Flow, mask: &Flow) -> Flow {
    let mut mixed = Flow::ZERO;
    let words = flow.words().iter().zip(other.words()).zip(mask.words());
    for (i, ((flow, other), mask)) in words.enumerate() {
        mixed.add_word(i, (flow & mask) | (other & !mask));
    }
    mixed
}

fn check(classifier: &Classifier, list: &[Arc<Rule>], rng: &mut Rng, conjunctive: &mut usize) {
    let flow = packet(rng);
    let expected = slowly(list, &flow);
    let mut wildcards = Flow::ZERO;
    let found = classifier.lookup(&flow, &mut wildcards);
    assert_eq!(found.is_some(), !expected.is_empty());
    assert_eq!(classifier.lookup_plain(&flow).map(Arc::as_ptr), found.map(Arc::as_ptr));
    if let Some(found) = found {
        assert!(expected.iter().any(|rule| Arc::ptr_eq(rule, found)), "{found:?} is none of {expected:?}");
        let mut mask = found.mask;
        if found.mask.conj_id() != 0 {
            *conjunctive += 1;
            // What was looked up is not what the packet has.
            let mut conj = Flow::ZERO;
            conj.set_conj_id(u32::MAX);
            mask = mixed(&Flow::ZERO, &mask, &conj);
        }
        assert!(wildcards.covers(&mask), "a rule's own fields are always looked at");
    }
    // Any other packet that agrees in what was looked at finds the same rule.
    for n in 0..12 {
        let other = if n == 0 { mixed(&Flow::ZERO, &flow, &wildcards) } else { packet(rng) };
        // It can't have the id of a conjunctive flow.
        let mut agreeing = mixed(&flow, &other, &wildcards);
        agreeing.set_conj_id(0);
        let same = classifier.lookup(&agreeing, &mut Flow::ZERO.clone());
        assert_eq!(same.map(Arc::as_ptr), found.map(Arc::as_ptr), "{flow:?} and {agreeing:?} under {wildcards:?}");
    }
}

#[test]
fn the_classifier_finds_what_a_list_finds_and_looks_at_what_decides() {
    let mut rng = Rng(env("OFPROTO_CLASSIFIER_SEED", 7) as u64);
    let (cases, mut done, mut conjunctive) = (env("OFPROTO_CLASSIFIER_CASES", 4000), 0, 0);
    while done < cases {
        let fields = match rng.below(4) {
            0 => &[][..],
            1 => &[PrefixField::Ipv6Src, PrefixField::Ipv4Src],
            _ => &PrefixField::DEFAULT,
        };
        let mut classifier = Classifier::new(fields);
        let mut list: Vec<Arc<Rule>> = Vec::new();
        let n_rules = rng.pick(&[1, 8, 60, 60, 300]);
        let mut versions = Vec::new();
        // Some tables are all about conjunctive flows.
        let flows = match rng.one_in(4) {
            true => (0..n_rules).filter_map(|_| accepted(&random_conjunction(&mut rng))).collect(),
            false => random_flows(&mut rng, n_rules),
        };
        for flow in flows {
            let new = Arc::new(rule(&flow));
            let same = list.iter().position(|old| old.is_strictly(&new.r#match, new.priority));
            assert_eq!(classifier.insert(Arc::clone(&new)).is_some(), same.is_some());
            same.map(|at| list.remove(at));
            list.push(new);
            if rng.one_in(4) && !list.is_empty() {
                let gone = list.remove(rng.below(list.len()));
                assert!(classifier.remove(&gone).is_some());
                assert!(classifier.remove(&gone).is_none());
            }
            if rng.one_in(40) {
                versions.push((classifier.clone(), list.clone()));
            }
        }
        versions.push((classifier.clone(), list.clone()));
        for rule in &list {
            assert!(Arc::ptr_eq(classifier.find(&rule.value, &rule.mask, rule.priority).unwrap(), rule));
            classifier.remove(rule);
        }
        assert!(classifier.is_empty() && classifier.n_subtables() == 0);
        // Each version is still what it was when it was taken.
        for (version, list) in &versions {
            assert_eq!((version.len(), version.rules().count()), (list.len(), list.len()));
            for _ in 0..20 {
                check(version, list, &mut rng, &mut conjunctive);
                done += 1;
            }
        }
    }
    println!("{done} packets, {conjunctive} of them found the end of a conjunctive flow");
    assert!(conjunctive * 100 > done, "too few conjunctive matches for this to say much: {conjunctive} of {done}");
}

#[test]
fn a_flow_has_all_its_words() {
    let mut all = Flow::ZERO;
    for i in 0..FLOW_WORDS + 1 {
        all.add_word(i, u64::MAX);
    }
    assert!(*all.words() == [u64::MAX; FLOW_WORDS]);
}

fn udp_packet(src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16) -> Flow {
    let packet = common::ipv4(17, src, dst, 64, 0, 0, &common::udp(sport, dport, &[]));
    let frame = common::frame(common::MACS[0], common::MACS[1], &[], 0x0800, &packet);
    Flow::from_key(&key_of(&frame, 0).unwrap(), OfPort(1))
}

fn looked_at(classifier: &Classifier, flow: &Flow) -> (Option<u16>, Flow) {
    let mut wildcards = Flow::ZERO;
    (classifier.lookup(flow, &mut wildcards).map(|rule| rule.priority), wildcards)
}

#[test]
fn a_miss_is_told_before_the_transport_layer_is_looked_at() {
    let flows: Vec<_> = (1..200).map(|port| format!("tcp,tp_dst={port},actions=drop")).collect();
    let classifier = classifier(&flows.iter().map(String::as_str).collect::<Vec<_>>());
    let arp = common::frame(common::MACS[0], common::MACS[1], &[], 0x0806, &[0; 28]);
    let (found, wildcards) = looked_at(&classifier, &Flow::from_key(&key_of(&arp, 0).unwrap(), OfPort(1)));
    assert_eq!(found, None);
    assert!(!wildcards.key.eth_type.is_zero());
    assert!(wildcards.key.tp_dst.is_zero() && wildcards.key.ip_proto == 0);
}

#[test]
fn a_prefix_trie_looks_at_no_more_bits_than_tell() {
    let classifier = classifier(&[
        "priority=3,ip,nw_dst=10.0.0.0/8,actions=drop",
        "priority=2,ip,nw_dst=10.1.2.0/24,actions=drop",
        "priority=1,ip,nw_dst=192.0.0.1,actions=drop",
    ]);
    for (dst, found, bits) in [
        // The first bit tells 10.x from 192.x; the second, that it's neither.
        ([64, 0, 0, 1], None, 0xc000_0000),
        ([10, 9, 9, 9], Some(3), 0xff00_0000),
        ([192, 0, 0, 1], Some(1), 0xffff_ffff),
        ([192, 128, 0, 1], None, 0xff80_0000),
    ] {
        let (priority, wildcards) = looked_at(&classifier, &udp_packet([1, 1, 1, 1], dst, 1, 2));
        assert_eq!((priority, wildcards.key.ipv4_dst.get()), (found, bits), "{dst:?}");
    }
}

#[test]
fn a_port_trie_looks_at_no_more_bits_than_tell() {
    let classifier = classifier(&["priority=2,udp,tp_src=0x8000/0x8000,actions=drop", "udp,tp_src=80,actions=drop"]);
    for (port, bits) in [(80, 0xffff), (0x8001, 0x8000), (81, 0xffff), (0x4000, 0xc000)] {
        let (_, wildcards) = looked_at(&classifier, &udp_packet([1, 1, 1, 1], [2, 2, 2, 2], port, 2));
        assert_eq!((wildcards.key.tp_src.get(), wildcards.key.tp_dst.get()), (bits, 0), "{port}");
    }
}

#[test]
fn conjunctions_are_settled_by_priority() {
    let clauses = [
        "priority=10,ip,nw_src=10.0.0.0/24,actions=conjunction(1,1/2)",
        "priority=10,udp,tp_dst=80,actions=conjunction(1,2/2)",
        "priority=10,udp,tp_dst=81,actions=conjunction(1,2/2)",
        "priority=9,udp,tp_dst=81,actions=drop",
    ];
    let packets = [80, 81, 82].map(|port| udp_packet([10, 0, 0, 7], [1, 1, 1, 1], 5, port));
    for (more, expected) in [
        // Without its end a conjunctive flow is nothing.
        (&[][..], [None, Some(9), None]),
        (&["priority=3,conj_id=1,actions=drop"], [Some(3), Some(9), None]),
        (&["priority=12,conj_id=1,actions=drop"], [Some(12), Some(12), None]),
        // The end may ask for more.
        (&["priority=3,conj_id=1,icmp,actions=drop"], [None, Some(9), None]),
        // Of equal priority, what matches by itself wins; so does what is above.
        (&["priority=3,conj_id=1,actions=drop", "priority=10,ip,actions=drop"], [Some(10), Some(10), Some(10)]),
        (&["priority=3,conj_id=1,actions=drop", "priority=4,actions=drop"], [Some(4), Some(9), Some(4)]),
        // Nor does a rule hide below a clause of the same match.
        (&["priority=3,conj_id=1,actions=drop", "priority=5,udp,tp_dst=80,actions=drop"], [Some(5), Some(9), None]),
        // Another priority is another set of clauses.
        (
            &["priority=11,udp,tp_dst=82,actions=conjunction(1,2/2)", "conj_id=1,actions=drop"],
            [Some(0x8000), Some(0x8000), None],
        ),
    ] {
        let classifier = classifier(&[&clauses[..], more].concat());
        assert_eq!(packets.map(|packet| looked_at(&classifier, &packet).0), expected, "{more:?}");
    }
}

#[test]
fn a_conjunctive_flow_may_have_64_clauses() {
    let mut flows: Vec<_> = (1..=64)
        .map(|clause| format!("priority=10,udp,tp_dst={:#x}/{:#x},actions=conjunction(5,{clause}/64)", 80, 0xffff))
        .collect();
    // One field for each clause, so that no rule replaces another.
    for (n, flow) in flows.iter_mut().enumerate() {
        *flow = flow.replace("udp", &format!("udp,reg{}=0/{:#x}", n % 16, 1 << (n / 16)));
    }
    flows.push("conj_id=5,actions=drop".into());
    let all: Vec<_> = flows.iter().map(String::as_str).collect();
    let packet = udp_packet([1, 1, 1, 1], [2, 2, 2, 2], 5, 80);
    assert_eq!(looked_at(&classifier(&all), &packet).0, Some(0x8000));
    assert_eq!(looked_at(&classifier(&all[1..]), &packet).0, None);
}
