//! Conjunctive flows: "one of these sources and one of those ports" as a sum of rules rather than a product.
//!
//! A rule with `conjunction(ID, K/N)` actions is an alternative of clause K of the conjunctive flow ID. Where a packet matches
//! alternatives of all N clauses, all of one priority, it is looked up once more with `conj_id=ID`, and the rule found is the
//! answer. So a match of such a rule (a *soft* one) decides nothing alone: a lookup collects these, and settles at its end
//! whether one of them is worth more than the best rule that matches by itself (the *hard* one).

use std::sync::Arc;

use super::subtable::Head;
use super::{Classifier, Find};
use crate::flow::Flow;
use crate::rule::Rule;

/// A rule's part in a conjunctive flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conjunction {
    /// The conjunctive flow.
    pub id: u32,
    /// Of which clause the rule is an alternative, from 1.
    pub clause: u8,
    /// How many clauses there are, 2 to 64.
    pub clauses: u8,
}

/// A soft match: of the rules with this match, the one whose turn it is.
pub(super) struct Soft<'a> {
    head: &'a Head,
    turn: usize,
}

impl<'a> Soft<'a> {
    pub(super) fn new(head: &'a Head) -> Self {
        Self { head, turn: 0 }
    }

    fn rule(&self) -> Option<&'a Arc<Rule>> {
        self.head.rules().nth(self.turn)
    }
}

/// The answer, where there are soft matches above the hard one.
pub(super) fn settle<'a>(
    classifier: &'a Classifier,
    flow: &Flow,
    find: &mut impl Find,
    mut hard: Option<&'a Arc<Rule>>,
    mut soft: Vec<Soft<'a>>,
) -> Option<&'a Arc<Rule>> {
    loop {
        let matters =
            |soft: &Soft<'_>| soft.rule().is_some_and(|rule| hard.is_none_or(|hard| rule.priority > hard.priority));
        let mut at = 0;
        while let Some(next) = soft.get(at) {
            if matters(next) {
                at += 1;
            } else {
                soft.swap_remove(at);
            }
        }
        let priorities = soft.iter().filter_map(Soft::rule).map(|rule| rule.priority);
        let Some(priority) = priorities.clone().max() else { return hard };
        let n = priorities.filter(|other| *other == priority).count();

        let mut clauses = Clauses::default();
        let highest = soft.iter().filter_map(Soft::rule).filter(|rule| rule.priority == priority);
        for id in highest.flat_map(|rule| clauses.complete(&rule.conjunctions, n)) {
            let mut flow = *flow;
            flow.set_conj_id(id);
            let found = classifier.search(&flow, find, false);
            if found.is_some() {
                return found;
            }
        }

        // None of the highest is part of anything that matches: what has the same match and a lower priority is next.
        for soft in soft.iter_mut().filter(|soft| soft.rule().is_some_and(|rule| rule.priority == priority)) {
            soft.turn += 1;
            if let Some(rule) = soft.rule().filter(|rule| rule.conjunctions.is_empty()) {
                if hard.is_none_or(|hard| rule.priority > hard.priority) {
                    hard = Some(rule);
                }
                // A rule that matches by itself ends the list.
                soft.turn = usize::MAX;
            }
        }
    }
}

/// Which clauses of which conjunctive flows were met.
#[derive(Default)]
struct Clauses(Vec<(u32, u64)>);

impl Clauses {
    /// Adds what a rule is an alternative of, and says which conjunctive flows have all their clauses by that. `n` rules are
    /// there, so flows of more clauses needn't be looked at.
    fn complete(&mut self, conjunctions: &[Conjunction], n: usize) -> Vec<u32> {
        let mut complete = Vec::new();
        for conjunction in conjunctions.iter().filter(|conjunction| usize::from(conjunction.clauses) <= n) {
            let missing = u64::MAX.checked_shr(u64::BITS.saturating_sub(conjunction.clauses.into())).unwrap_or(0);
            let at = self.0.iter().position(|(id, _)| *id == conjunction.id).unwrap_or_else(|| {
                self.0.push((conjunction.id, missing));
                self.0.len() - 1
            });
            let Some((id, missing)) = self.0.get_mut(at) else { continue };
            let before = *missing;
            *missing &= !1u64.checked_shl(u32::from(conjunction.clause).saturating_sub(1)).unwrap_or(0);
            if before != 0 && *missing == 0 {
                complete.push(*id);
            }
        }
        complete
    }
}
