//! The classifier against a list that is searched from one end to the other.

mod common;

use std::sync::Arc;

use common::{Rng, key_of, random_flows, random_frame};
use ofproto::classifier::Classifier;
use ofproto::flow::{FLOW_WORDS, Flow};
use ofproto::rule::{Rule, RuleStats};
use openflow::{FlowMod, OfPort};

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
        actions: flow.actions.clone().into(),
        created_ms: 0,
        modified_ms: 0,
        stats: Arc::new(RuleStats::new(0)),
    }
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

#[test]
fn the_classifier_finds_what_a_list_finds_and_looks_at_what_decides() {
    let mut rng = Rng(7);
    for _ in 0..60 {
        let mut classifier = Classifier::default();
        let mut list: Vec<Rule> = Vec::new();
        for flow in random_flows(&mut rng, 60) {
            let new = rule(&flow);
            let same = list.iter().position(|old| old.is_strictly(&new.r#match, new.priority));
            assert_eq!(classifier.insert(Arc::new(new.clone())).is_some(), same.is_some());
            same.map(|at| list.remove(at));
            list.push(new);
            if rng.one_in(4) {
                let gone = list.remove(rng.below(list.len()));
                assert!(classifier.remove(&gone).is_some());
                assert!(classifier.remove(&gone).is_none());
            }
        }
        assert_eq!((classifier.len(), classifier.rules().count()), (list.len(), list.len()));
        let before = classifier.clone();
        for _ in 0..40 {
            let flow = packet(&mut rng);
            let best = list.iter().filter(|rule| flow.matches(&rule.value, &rule.mask)).map(|rule| rule.priority).max();
            let mut wildcards = Flow::ZERO;
            let found = classifier.lookup(&flow, &mut wildcards);
            assert_eq!(found.map(|rule| rule.priority), best);
            if let Some(found) = found {
                assert!(flow.matches(&found.value, &found.mask));
                assert!(wildcards.covers(&found.mask), "a rule's own fields are always looked at");
            }
            // Any other packet that agrees in what was looked at finds the same rule.
            for _ in 0..20 {
                let other = packet(&mut rng);
                let mut agreeing = Flow::ZERO;
                agreeing.add(&flow.masked(&wildcards));
                let mut rest = Flow::ZERO;
                for (i, word) in wildcards.words().enumerate() {
                    set_word(&mut rest, i, !word);
                }
                agreeing.add(&other.masked(&rest));
                let mut again = Flow::ZERO;
                let same = classifier.lookup(&agreeing, &mut again);
                assert_eq!(same.map(Arc::as_ptr), found.map(Arc::as_ptr));
                assert_eq!(again, wildcards);
            }
        }
        // A version stays what it was.
        for rule in &list {
            classifier.remove(rule);
        }
        assert!(classifier.is_empty() && classifier.n_subtables() == 0);
        assert_eq!(before.len(), list.len());
    }
}

fn set_word(flow: &mut Flow, index: usize, value: u64) {
    const KEY_WORDS: usize = datapath_common::key::KEY_WORDS;
    if index < KEY_WORDS {
        flow.key.words_mut()[index] = value;
    } else if index == KEY_WORDS {
        flow.set_metadata(value);
    } else if index < FLOW_WORDS {
        let n = 2 * (index - KEY_WORDS - 1);
        flow.set_reg(n, (value >> 32) as u32);
        flow.set_reg(n + 1, value as u32);
    }
}

#[test]
fn a_miss_is_told_before_the_transport_layer_is_looked_at() {
    let mut classifier = Classifier::default();
    for port in 1..200 {
        let text = format!("tcp,tp_dst={port},actions=drop");
        classifier.insert(Arc::new(rule(&FlowMod::parse(&text, &openflow::NoPortNames).unwrap())));
    }
    let arp = common::frame(common::MACS[0], common::MACS[1], &[], 0x0806, &[0; 28]);
    let mut wildcards = Flow::ZERO;
    let flow = Flow::from_key(&key_of(&arp, 0).unwrap(), OfPort(1));
    assert!(classifier.lookup(&flow, &mut wildcards).is_none());
    assert!(!wildcards.key.eth_type.is_zero());
    assert!(wildcards.key.tp_dst.is_zero() && wildcards.key.ip_proto == 0);
}
