//! Which rule does a packet match? Tuple space search, and what it looked at.
//!
//! Rules with the same mask are a *subtable*: a hash map from the masked fields to the rules. A lookup tries one subtable after
//! the other, those with the highest priority first, and stops where no subtable left could have a better rule.
//!
//! **Un-wildcarding.** The answer depends on the fields that were looked at: the masks of all subtables tried, whether they had
//! a match or not. A lookup adds these to the caller's wildcards, and nothing else. Because every subtable costs width, a miss
//! is told as early as possible: the fields of a mask are looked at in four *stages* (metadata, layer 2, layer 3, layer 4), and
//! a subtable that knows of no rule with the packet's fields up to a stage has looked no further. So a table full of rules on
//! TCP ports doesn't make the megaflows of ARP packets any narrower than "not these Ethernet types".
//!
//! **Versions.** A classifier is a persistent data structure: a clone is cheap, shares everything, and can be changed without
//! the original noticing. Readers keep a version as long as they like and never wait for a writer.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use rpds::HashTrieMapSync;

use crate::flow::{FLOW_WORDS, Flow};
use crate::rule::Rule;

mod stage;

use stage::{N_STAGES, stage_masks};

type Map<K, V> = HashTrieMapSync<K, V, ahash::RandomState>;

/// Rules, to be searched by packet.
#[derive(Clone, Debug, Default)]
pub struct Classifier {
    /// By highest priority, descending.
    subtables: Vec<Arc<Subtable>>,
    n_rules: usize,
}

/// The rules of one mask.
#[derive(Clone, Debug)]
struct Subtable {
    mask: Flow,
    /// The mask's words that aren't zero: index and bits.
    words: Arc<[(u8, u64)]>,
    /// The priorities of its rules with their numbers.
    priorities: rpds::RedBlackTreeMapSync<u16, usize>,
    /// For each stage but the last that has fields: the mask of the fields up to there, and the hashes of the rules' fields
    /// under it with the number of rules.
    stages: Vec<Stage>,
    hasher: ahash::RandomState,
    /// The rules by their masked words, each list by priority, descending.
    rules: Map<Box<[u64]>, Arc<[Arc<Rule>]>>,
}

#[derive(Clone, Debug)]
struct Stage {
    mask: Flow,
    words: Arc<[(u8, u64)]>,
    hashes: Map<u64, usize>,
}

impl Classifier {
    /// The rule of the highest priority that matches `flow`. Adds to `wildcards` what had to be looked at to know.
    pub fn lookup(&self, flow: &Flow, wildcards: &mut Flow) -> Option<&Arc<Rule>> {
        let mut best: Option<&Arc<Rule>> = None;
        for subtable in &self.subtables {
            if best.is_some_and(|best| best.priority >= subtable.max_priority()) {
                break;
            }
            if let Some(found) = subtable.lookup(flow, wildcards)
                && best.is_none_or(|best| found.priority > best.priority)
            {
                best = Some(found);
            }
        }
        best
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.n_rules
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
        self.subtables.iter().flat_map(|subtable| subtable.rules.values().flat_map(|rules| rules.iter()))
    }

    /// The rule with exactly this match and priority.
    pub fn find(&self, value: &Flow, mask: &Flow, priority: u16) -> Option<&Arc<Rule>> {
        let subtable = self.subtables.iter().find(|subtable| subtable.mask == *mask)?;
        let rules = subtable.rules.get(&*words_of(value, &subtable.words))?;
        rules.iter().find(|rule| rule.priority == priority)
    }

    /// The rules whose packets a match of this value and mask covers all.
    pub fn covered_by(&self, value: &Flow, mask: &Flow) -> Vec<Arc<Rule>> {
        let subtables = self.subtables.iter().filter(|subtable| subtable.mask.covers(mask));
        let rules = subtables.flat_map(|subtable| subtable.rules.values().flat_map(|rules| rules.iter()));
        rules.filter(|rule| rule.is_covered_by(value, mask)).cloned().collect()
    }

    /// Adds a rule. One with the same match and priority is replaced and returned.
    pub fn insert(&mut self, rule: Arc<Rule>) -> Option<Arc<Rule>> {
        let at = match self.subtables.iter().position(|subtable| subtable.mask == rule.mask) {
            Some(at) => at,
            None => {
                self.subtables.push(Arc::new(Subtable::new(&rule.mask)));
                self.subtables.len() - 1
            }
        };
        let replaced = self.subtables.get_mut(at).and_then(|subtable| Arc::make_mut(subtable).insert(rule));
        if replaced.is_none() {
            self.n_rules += 1;
        }
        self.sort();
        replaced
    }

    /// Removes the rule with the match and priority of `rule`.
    pub fn remove(&mut self, rule: &Rule) -> Option<Arc<Rule>> {
        let at = self.subtables.iter().position(|subtable| subtable.mask == rule.mask)?;
        let subtable = Arc::make_mut(self.subtables.get_mut(at)?);
        let removed = subtable.remove(rule)?;
        if subtable.rules.is_empty() {
            self.subtables.remove(at);
        }
        self.n_rules -= 1;
        self.sort();
        Some(removed)
    }

    fn sort(&mut self) {
        // Stable and nearly sorted already.
        self.subtables.sort_by_key(|subtable| std::cmp::Reverse(subtable.max_priority()));
    }
}

impl Subtable {
    fn new(mask: &Flow) -> Self {
        let hasher = ahash::RandomState::new();
        let mut stages = Vec::new();
        let mut so_far = Flow::ZERO;
        for stage in stage_masks().iter().take(N_STAGES - 1) {
            let fields = mask.masked(stage);
            if fields == Flow::ZERO {
                continue;
            }
            so_far.add(&fields);
            if so_far == *mask {
                // The rules themselves answer for the whole mask.
                break;
            }
            let hashes = Map::new_with_hasher_and_ptr_kind(hasher.clone());
            stages.push(Stage { mask: so_far, words: set_words(&so_far), hashes });
        }
        Self {
            mask: *mask,
            words: set_words(mask),
            priorities: rpds::RedBlackTreeMapSync::new_sync(),
            stages,
            rules: Map::new_with_hasher_and_ptr_kind(hasher.clone()),
            hasher,
        }
    }

    fn max_priority(&self) -> u16 {
        self.priorities.last().map_or(0, |(priority, _)| *priority)
    }

    fn lookup(&self, flow: &Flow, wildcards: &mut Flow) -> Option<&Arc<Rule>> {
        for stage in &self.stages {
            // A hash that two fields share only lets the search go on, and look at more.
            if !stage.hashes.contains_key(&hash(&self.hasher, flow, &stage.words)) {
                wildcards.add(&stage.mask);
                return None;
            }
        }
        wildcards.add(&self.mask);
        let mut words = [0; FLOW_WORDS];
        let mut n = 0;
        for ((index, bits), slot) in self.words.iter().zip(&mut words) {
            *slot = flow.word((*index).into()) & bits;
            n += 1;
        }
        self.rules.get(words.get(..n)?)?.first()
    }

    fn insert(&mut self, rule: Arc<Rule>) -> Option<Arc<Rule>> {
        let words = words_of(&rule.value, &self.words);
        let mut rules = self.rules.get(&*words).map_or_else(Vec::new, |rules| rules.to_vec());
        let at = rules.partition_point(|other| other.priority > rule.priority);
        if let Some(same) = rules.get_mut(at)
            && same.priority == rule.priority
        {
            let old = std::mem::replace(same, rule);
            self.rules.insert_mut(words, rules.into());
            return Some(old);
        }
        for stage in &mut self.stages {
            let hash = hash(&self.hasher, &rule.value, &stage.words);
            add(&mut stage.hashes, hash);
        }
        let n = self.priorities.get(&rule.priority).copied().unwrap_or(0);
        self.priorities.insert_mut(rule.priority, n + 1);
        rules.insert(at, rule);
        self.rules.insert_mut(words, rules.into());
        None
    }

    fn remove(&mut self, rule: &Rule) -> Option<Arc<Rule>> {
        let words = words_of(&rule.value, &self.words);
        let mut rules = self.rules.get(&*words)?.to_vec();
        let at = rules.iter().position(|other| other.priority == rule.priority)?;
        let removed = rules.remove(at);
        if rules.is_empty() {
            self.rules.remove_mut(&*words);
        } else {
            self.rules.insert_mut(words, rules.into());
        }
        for stage in &mut self.stages {
            let hash = hash(&self.hasher, &rule.value, &stage.words);
            subtract(&mut stage.hashes, hash);
        }
        match self.priorities.get(&rule.priority).copied() {
            Some(n) if n > 1 => self.priorities.insert_mut(rule.priority, n - 1),
            _ => {
                self.priorities.remove_mut(&rule.priority);
            }
        }
        Some(removed)
    }
}

fn set_words(mask: &Flow) -> Arc<[(u8, u64)]> {
    mask.words().enumerate().filter(|(_, bits)| *bits != 0).map(|(index, bits)| (index as u8, bits)).collect()
}

fn words_of(flow: &Flow, words: &[(u8, u64)]) -> Box<[u64]> {
    words.iter().map(|(index, bits)| flow.word((*index).into()) & bits).collect()
}

fn hash(hasher: &ahash::RandomState, flow: &Flow, words: &[(u8, u64)]) -> u64 {
    let mut hasher = hasher.build_hasher();
    for (index, bits) in words {
        hasher.write_u64(flow.word((*index).into()) & bits);
    }
    hasher.finish()
}

fn add(counts: &mut Map<u64, usize>, hash: u64) {
    let n = counts.get(&hash).copied().unwrap_or(0);
    counts.insert_mut(hash, n + 1);
}

fn subtract(counts: &mut Map<u64, usize>, hash: u64) {
    match counts.get(&hash).copied() {
        Some(n) if n > 1 => counts.insert_mut(hash, n - 1),
        _ => {
            counts.remove_mut(&hash);
        }
    }
}
