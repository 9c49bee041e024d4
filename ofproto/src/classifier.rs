//! Which rule does a packet match? Tuple space search, and what it looked at.
//!
//! Rules with the same mask are a *subtable*: a hash map from the masked fields to the rules. A lookup tries one subtable after
//! the other, those with the highest priority first, and stops where no subtable left could have a better rule.
//!
//! **Un-wildcarding.** The answer depends on the fields that were looked at: the masks of all subtables tried, whether they had
//! a match or not. A lookup adds these to the caller's wildcards, and nothing else. Because every subtable costs width, a miss
//! is told as early as possible and from as few bits as possible:
//!
//! - *Stages.* The fields of a mask are looked at in four stages (metadata, layer 2, layer 3, layer 4), and a subtable that
//!   knows of no rule with the packet's fields up to a stage has looked no further. So a table full of rules on TCP ports
//!   doesn't make the megaflows of ARP packets any narrower than "not these Ethernet types".
//! - *Prefix tries.* A trie of the address prefixes of all rules says which lengths a matching prefix can have, and how many
//!   bits it took to know. A subtable with another length is passed over for these bits.
//! - *Port tries.* Where only the ports were left to differ, the trie of the subtable's ports says how many of their bits tell
//!   that no rule has them.
//!
//! These, their order and their units are the reference's, so that megaflows come out as wide as there. Which fields have
//! prefix tries is a setting, as there.
//!
//! **Versions.** A classifier is a persistent data structure: a clone is cheap, shares everything, and can be changed without
//! the original noticing. Readers keep a version as long as they like and never wait for a writer.

use std::sync::Arc;

use crate::flow::Flow;
use crate::rule::Rule;

mod conjunction;
mod known;
mod map;
mod prefix;
mod shape;
mod stage;
mod subtable;
mod trie;

pub use conjunction::Conjunction;
use conjunction::Soft;
use prefix::Asked;
pub use prefix::{MAX_PREFIX_FIELDS, PrefixField};
use subtable::{Head, Subtable};
use trie::Trie;

/// Rules, to be searched by packet.
#[derive(Clone, Debug)]
pub struct Classifier {
    /// By highest priority, descending; of equal ones, that which had it first.
    subtables: Vec<Entry>,
    tries: Vec<(PrefixField, Trie)>,
    n_rules: usize,
    /// Those of them that go by themselves some day.
    n_timed: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    max_priority: u16,
    mask_hash: u64,
    subtable: Arc<Subtable>,
}

/// The best rule so far that matches by itself.
struct Hard<'a> {
    rule: Option<&'a Arc<Rule>>,
    /// Below all while there is none.
    priority: i32,
}

impl Default for Hard<'_> {
    fn default() -> Self {
        Self { rule: None, priority: -1 }
    }
}

/// How a subtable is searched.
trait Find {
    /// The rules of a subtable that `flow` matches.
    fn find<'s>(&mut self, subtable: &'s Subtable, flow: &Flow) -> Option<&'s Head>;
}

/// Just the answer.
struct Plain;

impl Find for Plain {
    #[inline(always)]
    fn find<'s>(&mut self, subtable: &'s Subtable, flow: &Flow) -> Option<&'s Head> {
        subtable.find(flow)
    }
}

/// The answer and what it depends on.
struct Wildcarding<'a> {
    asked: Asked<'a>,
    wildcards: &'a mut Flow,
}

impl Find for Wildcarding<'_> {
    #[inline(always)]
    fn find<'s>(&mut self, subtable: &'s Subtable, flow: &Flow) -> Option<&'s Head> {
        subtable.find_wildcarding(flow, &mut self.asked, self.wildcards)
    }
}

/// As [`Wildcarding`], preferring some bits to others.
struct Preferring<'a> {
    asked: Asked<'a>,
    prefer: &'a Flow,
    wildcards: &'a mut Flow,
}

impl Find for Preferring<'_> {
    fn find<'s>(&mut self, subtable: &'s Subtable, flow: &Flow) -> Option<&'s Head> {
        subtable.find_preferring(flow, &mut self.asked, self.prefer, self.wildcards)
    }
}

impl Default for Classifier {
    fn default() -> Self {
        Self::new(&PrefixField::DEFAULT)
    }
}

impl Classifier {
    /// An empty classifier with prefix tries of these fields, of which the first [`MAX_PREFIX_FIELDS`] count.
    pub fn new(fields: &[PrefixField]) -> Self {
        let tries = fields.iter().take(MAX_PREFIX_FIELDS).map(|field| (*field, Trie::default())).collect();
        Self { subtables: Vec::new(), tries, n_rules: 0, n_timed: 0 }
    }

    /// The rule of the highest priority that matches `flow`. Adds to `wildcards` what had to be looked at to know.
    pub fn lookup(&self, flow: &Flow, wildcards: &mut Flow) -> Option<&Arc<Rule>> {
        let asked = Asked::new(&self.tries);
        self.search(flow, &mut Wildcarding { asked, wildcards }, true)
    }

    /// As [`Self::lookup`]. That a rule doesn't match is often told by more than one thing; where one of them takes no bits but those
    /// in `prefer`, that one is looked at. Slower.
    pub fn lookup_preferring(&self, flow: &Flow, prefer: &Flow, wildcards: &mut Flow) -> Option<&Arc<Rule>> {
        let asked = Asked::new(&self.tries);
        self.search(flow, &mut Preferring { asked, prefer, wildcards }, true)
    }

    /// As [`Self::lookup`], for callers that don't make a megaflow of the answer.
    pub fn lookup_plain(&self, flow: &Flow) -> Option<&Arc<Rule>> {
        self.search(flow, &mut Plain, true)
    }

    /// The best rule for `flow`; those of conjunctive flows count only if `conjunctive`.
    #[inline]
    fn search<'a>(&'a self, flow: &Flow, find: &mut impl Find, conjunctive: bool) -> Option<&'a Arc<Rule>> {
        let mut hard = Hard::default();
        let mut subtables = self.subtables.iter();
        while let Some(Entry { max_priority, subtable, .. }) = subtables.next() {
            if i32::from(*max_priority) <= hard.priority {
                break;
            }
            let Some(head) = find.find(subtable, flow).filter(|head| i32::from(head.priority) > hard.priority) else {
                continue;
            };
            if head.is_soft {
                return self.search_on(flow, find, conjunctive, hard, head, subtables.as_slice());
            }
            hard = Hard { rule: Some(&head.first), priority: head.priority.into() };
        }
        hard.rule
    }

    /// The same where some head is soft: this is the first, found behind `hard`, and these subtables are left.
    #[inline(never)]
    fn search_on<'a>(
        &'a self,
        flow: &Flow,
        find: &mut impl Find,
        conjunctive: bool,
        mut hard: Hard<'a>,
        first: &'a Head,
        left: &'a [Entry],
    ) -> Option<&'a Arc<Rule>> {
        let mut soft = Vec::new();
        let mut hidden: Option<&Arc<Rule>> = None;
        let mut next = Some(first);
        let mut left = left.iter();
        loop {
            match next.filter(|head| i32::from(head.priority) > hard.priority) {
                None => {}
                Some(head) if !head.is_soft => {
                    hard = Hard { rule: Some(&head.first), priority: head.priority.into() };
                }
                Some(head) if conjunctive => soft.push(Soft::new(head)),
                // Below a clause of the same match. It doesn't end the search, and of equal priority others are before it: the
                // reference doesn't see it at all.
                Some(head) => hidden = hidden.into_iter().chain(head.first_hard()).max_by_key(|rule| rule.priority),
            }
            match left.next().filter(|entry| i32::from(entry.max_priority) > hard.priority) {
                Some(entry) => next = find.find(&entry.subtable, flow),
                None => break,
            }
        }
        if let Some(rule) = hidden.filter(|rule| i32::from(rule.priority) > hard.priority) {
            hard.rule = Some(rule);
        }
        match soft.is_empty() {
            true => hard.rule,
            false => conjunction::settle(self, flow, find, hard.rule, soft),
        }
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.n_rules
    }

    /// Whether some rule goes by itself some day.
    pub fn has_timeouts(&self) -> bool {
        self.n_timed > 0
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.n_rules == 0
    }

    /// Number of different masks.
    pub fn n_subtables(&self) -> usize {
        self.subtables.len()
    }

    /// All rules, in no order.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.subtables.iter().flat_map(|entry| entry.subtable.rules())
    }

    /// The rule with exactly this match and priority.
    pub fn find(&self, value: &Flow, mask: &Flow, priority: u16) -> Option<&Arc<Rule>> {
        self.subtables.get(self.position(mask)?)?.subtable.get(value, priority)
    }

    /// The rules whose packets a match of this value and mask covers all.
    pub fn covered_by(&self, value: &Flow, mask: &Flow) -> Vec<Arc<Rule>> {
        let subtables = self.subtables.iter().filter(|entry| entry.subtable.mask.covers(mask));
        let rules = subtables.flat_map(|entry| entry.subtable.rules());
        rules.filter(|rule| rule.is_covered_by(value, mask)).cloned().collect()
    }

    /// Adds a rule. One with the same match and priority is replaced and returned.
    pub fn insert(&mut self, rule: Arc<Rule>) -> Option<Arc<Rule>> {
        let at = match self.position(&rule.mask) {
            Some(at) => at,
            None => {
                let subtable = Arc::new(Subtable::new(&rule.mask, &self.tries));
                self.subtables.push(Entry { max_priority: 0, mask_hash: mask_hash(&rule.mask), subtable });
                self.subtables.len() - 1
            }
        };
        let entry = self.subtables.get_mut(at)?;
        self.n_timed += usize::from(rule.has_timeout());
        let replaced = Arc::make_mut(&mut entry.subtable).insert(rule, &mut self.tries);
        match &replaced {
            Some(replaced) => self.n_timed -= usize::from(replaced.has_timeout()),
            None => self.n_rules += 1,
        }
        self.reorder(at);
        replaced
    }

    /// Removes the rule with the match and priority of `rule`.
    pub fn remove(&mut self, rule: &Rule) -> Option<Arc<Rule>> {
        let at = self.position(&rule.mask)?;
        let entry = self.subtables.get_mut(at)?;
        // Looked for first: what isn't there needs no copies.
        entry.subtable.get(&rule.value, rule.priority)?;
        let removed = Arc::make_mut(&mut entry.subtable).remove(rule, &mut self.tries)?;
        self.n_rules -= 1;
        self.n_timed -= usize::from(removed.has_timeout());
        if entry.subtable.is_empty() {
            // As in the reference, where the last one takes its place before the order is made: which of two subtables of one
            // priority is tried first shows in megaflows.
            self.subtables.swap_remove(at);
            self.sort();
        } else {
            self.reorder(at);
        }
        Some(removed)
    }

    fn position(&self, mask: &Flow) -> Option<usize> {
        let hash = mask_hash(mask);
        self.subtables.iter().position(|entry| entry.mask_hash == hash && *entry.subtable.mask == *mask)
    }

    /// The subtable's priorities have changed.
    fn reorder(&mut self, at: usize) {
        let Some(entry) = self.subtables.get_mut(at) else { return };
        let priority = entry.subtable.max_priority();
        if std::mem::replace(&mut entry.max_priority, priority) != priority || at + 1 == self.subtables.len() {
            self.sort();
        }
    }

    fn sort(&mut self) {
        // Stable and nearly sorted already.
        self.subtables.sort_by_key(|entry| std::cmp::Reverse(entry.max_priority));
    }
}

fn mask_hash(mask: &Flow) -> u64 {
    // It needs no secret: masks are the operator's, and are compared.
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    mask.words()
        .iter()
        .enumerate()
        .filter(|(_, word)| **word != 0)
        .fold(0, |hash, entry| hasher.hash_one((hash, entry)))
}
