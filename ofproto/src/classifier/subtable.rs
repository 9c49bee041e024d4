//! The rules of one mask.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use super::map::Map;
use super::prefix::{Asked, Prefix, PrefixField};
use super::shape::{Shape, hash};
use super::stage::{LAYER3, N_STAGES};
use super::trie::Trie;
use crate::flow::Flow;
use crate::rule::Rule;

/// The rules of one mask.
#[derive(Clone, Debug)]
pub(super) struct Subtable {
    pub(super) mask: Arc<Flow>,
    shape: Shape,
    /// The priorities of its rules with their numbers.
    priorities: RedBlackTreeMapSync<u16, usize>,
    /// For each stage with fields but the last: how many heads have a hash of the fields up to there.
    stages: Vec<Stage>,
    /// How many stages come before that of the prefixes, and where these end.
    layer3: Option<(usize, usize)>,
    /// The tries of the classifier that the mask has a prefix for, and its length.
    prefixes: Arc<[Prefix]>,
    ports: Ports,
    heads: Map<Head>,
}

#[derive(Clone, Debug)]
struct Stage {
    end: usize,
    /// The hash is the key, too.
    hashes: Map<usize>,
}

impl Stage {
    #[inline]
    fn has(&self, hash: u64) -> bool {
        self.hashes.find(hash, 1, |key| key == [hash]).is_some()
    }

    fn count(&mut self, hash: u64, adds: bool) {
        match (adds, self.hashes.get_mut(hash, &[hash])) {
            (true, Some(n)) => *n += 1,
            (true, None) => self.hashes.insert(hash, &[hash], 1),
            (false, Some(n)) if *n > 1 => *n -= 1,
            (false, _) => {
                self.hashes.remove(hash, &[hash]);
            }
        }
    }
}

/// The transport ports: both as one number, the source in the upper half.
#[derive(Clone, Debug)]
struct Ports {
    mask: u32,
    /// Up to the last bit of `mask`.
    len: u32,
    trie: Trie,
}

/// The rules of one match, by priority, descending.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) priority: u16,
    /// Whether the first is part of a conjunctive flow.
    pub(super) is_soft: bool,
    pub(super) first: Arc<Rule>,
    rest: Option<Arc<[Arc<Rule>]>>,
}

impl Head {
    fn new(first: Arc<Rule>, rest: &[Arc<Rule>]) -> Self {
        let rest = (!rest.is_empty()).then(|| rest.into());
        Self { priority: first.priority, is_soft: !first.conjunctions.is_empty(), first, rest }
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        std::iter::once(&self.first).chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }

    /// The first that matches by itself.
    pub(super) fn first_hard(&self) -> Option<&Arc<Rule>> {
        self.rules().find(|rule| rule.conjunctions.is_empty())
    }

    /// Puts a rule in its place, or in that of the one with its priority.
    fn insert(&mut self, rule: Arc<Rule>) -> Option<Arc<Rule>> {
        let mut rules: Vec<_> = self.rules().cloned().collect();
        let at = rules.partition_point(|other| other.priority > rule.priority);
        let replaced = match rules.get_mut(at) {
            Some(same) if same.priority == rule.priority => Some(std::mem::replace(same, rule)),
            _ => {
                rules.insert(at, rule);
                None
            }
        };
        self.set(&rules);
        replaced
    }

    fn set(&mut self, rules: &[Arc<Rule>]) {
        if let [first, rest @ ..] = rules {
            *self = Self::new(Arc::clone(first), rest);
        }
    }
}

impl Subtable {
    pub(super) fn new(mask: &Flow, tries: &[(PrefixField, Trie)]) -> Self {
        let shape = Shape::new(mask);
        let stages = shape.stages();
        let before_layer3 = stages.iter().position(|(_, stage)| *stage == LAYER3);
        let end_of = |n: usize| n.checked_sub(1).and_then(|last| stages.get(last)).map_or(0, |(end, _)| *end);
        let layer3 = before_layer3.map(|n| (n, end_of(n)));
        let stages = stages.split_last().map_or(&[][..], |(_, before)| before);
        let stage = |&(end, _): &(usize, usize)| Stage { end, hashes: Map::new() };
        let prefixes =
            tries.iter().enumerate().filter_map(|(trie, (field, _))| Prefix::new(trie, field.prefix_len(mask)));
        let ports = ports_of(mask);
        Self {
            mask: Arc::new(*mask),
            priorities: RedBlackTreeMapSync::new_sync(),
            stages: stages.iter().map(stage).collect(),
            layer3,
            prefixes: prefixes.collect(),
            ports: Ports { mask: ports, len: u32::BITS - ports.trailing_zeros(), trie: Trie::default() },
            heads: Map::new(),
            shape,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// The highest priority of a rule.
    pub(super) fn max_priority(&self) -> u16 {
        self.priorities.last().map_or(0, |(priority, _)| *priority)
    }

    /// All rules, in no order.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.heads.items().flat_map(Head::rules)
    }

    /// The rules that `flow` matches.
    #[inline]
    pub(super) fn find(&self, flow: &Flow) -> Option<&Head> {
        self.heads.find(hash(self.shape.sum(flow)), self.shape.width(), |key| self.shape.is_key(key, flow))
    }

    /// As [`Self::find`]; adds to `wildcards` what had to be looked at to know, which is the whole mask where there is a match.
    ///
    /// Whether there is a match is asked first, because only the answer "no" can be had from less.
    #[inline]
    pub(super) fn find_wildcarding(&self, flow: &Flow, asked: &mut Asked<'_>, wildcards: &mut Flow) -> Option<&Head> {
        let shape = &self.shape;
        let mut sums = [0; N_STAGES];
        let sum = shape.sum_stages(flow, &mut sums);
        let width = shape.width();
        let found = self.heads.find(hash(sum), width, |key| shape.is_key(key, flow));
        match found {
            Some(_) => shape.add_to(width, wildcards),
            None => self.look_at_miss(&sums, flow, asked, wildcards),
        }
        found
    }

    /// Adds to `wildcards` what tells that no rule matches. `sums`: of the fields up to the end of each stage.
    fn look_at_miss(&self, sums: &[u64; N_STAGES], flow: &Flow, asked: &mut Asked<'_>, wildcards: &mut Flow) {
        let shape = &self.shape;
        let absent = self.first_absent(sums);
        // The tries are asked where the addresses come into play, if the stages before don't tell.
        if let Some((before, end)) = self.layer3
            && before <= absent
            && asked.rule_out(&self.prefixes, flow, wildcards)
        {
            return shape.add_to(end, wildcards);
        }
        if let Some(stage) = self.stages.get(absent) {
            return shape.add_to(stage.end, wildcards);
        }
        // Of the ports only what it takes to know that no rule has them, unless all was looked at before.
        let seen = ports_of(wildcards);
        let ports = (self.ports.mask & !seen != 0).then(|| seen | self.ports.needed(flow));
        shape.add_to(shape.width(), wildcards);
        if let Some(ports) = ports {
            set_ports(wildcards, ports);
        }
    }

    /// The first stage up to which no rule has the packet's fields; their number if some have them all.
    ///
    /// Who has the fields up to a stage has those up to each one before. Most packets that match no rule have the first fields in
    /// common with some, so the last stage is asked first. A hash that two fields share only lets the lookup look at more.
    #[inline]
    fn first_absent(&self, sums: &[u64; N_STAGES]) -> usize {
        let is_there = |(stage, sum): (&Stage, &u64)| stage.has(hash(*sum));
        let sums = sums.get(..self.stages.len()).unwrap_or_default();
        self.stages.iter().zip(sums).rposition(is_there).map_or(0, |last| last + 1)
    }

    /// The rule with exactly this match and priority.
    pub(super) fn get(&self, value: &Flow, priority: u16) -> Option<&Arc<Rule>> {
        self.find(value)?.rules().find(|rule| rule.priority == priority)
    }

    /// Adds a rule. One with the same match and priority is replaced and returned.
    pub(super) fn insert(&mut self, rule: Arc<Rule>, tries: &mut [(PrefixField, Trie)]) -> Option<Arc<Rule>> {
        let key = self.shape.key(&rule.value);
        let hash = self.hash(&rule.value);
        let priority = rule.priority;
        if let Some(head) = self.heads.get_mut(hash, &key) {
            let replaced = head.insert(rule);
            if replaced.is_none() {
                self.count(priority);
            }
            return replaced;
        }
        self.index(&rule.value, tries, true);
        self.heads.insert(hash, &key, Head::new(rule, &[]));
        self.count(priority);
        None
    }

    /// Removes the rule with the match and priority of `rule`.
    pub(super) fn remove(&mut self, rule: &Rule, tries: &mut [(PrefixField, Trie)]) -> Option<Arc<Rule>> {
        let removed = Arc::clone(self.get(&rule.value, rule.priority)?);
        let key = self.shape.key(&rule.value);
        let hash = self.hash(&rule.value);
        let head = self.heads.get_mut(hash, &key)?;
        let left: Vec<_> = head.rules().filter(|other| other.priority != rule.priority).cloned().collect();
        if left.is_empty() {
            self.heads.remove(hash, &key);
            self.index(&rule.value, tries, false);
        } else {
            head.set(&left);
        }
        match self.priorities.get(&rule.priority).copied() {
            Some(n) if n > 1 => self.priorities.insert_mut(rule.priority, n - 1),
            _ => {
                self.priorities.remove_mut(&rule.priority);
            }
        }
        Some(removed)
    }

    fn hash(&self, value: &Flow) -> u64 {
        hash(self.shape.sum(value))
    }

    fn count(&mut self, priority: u16) {
        let n = self.priorities.get(&priority).copied().unwrap_or(0);
        self.priorities.insert_mut(priority, n + 1);
    }

    /// Adds a match to stages and tries, or takes it away.
    fn index(&mut self, value: &Flow, tries: &mut [(PrefixField, Trie)], adds: bool) {
        let mut sums = [0; N_STAGES];
        self.shape.sum_stages(value, &mut sums);
        for (stage, sum) in self.stages.iter_mut().zip(sums) {
            stage.count(hash(sum), adds);
        }
        let change = |trie: &mut Trie, bits, len| if adds { trie.insert(bits, len) } else { trie.remove(bits, len) };
        for prefix in &*self.prefixes {
            if let Some((field, trie)) = tries.get_mut(prefix.trie) {
                change(trie, field.bits(value), prefix.len);
            }
        }
        if self.ports.len != 0 {
            let bits = u128::from(ports_of(value) & self.ports.mask) << 96;
            change(&mut self.ports.trie, bits, self.ports.len);
        }
    }
}

impl Ports {
    /// The bits of the ports that tell that no rule has them.
    fn needed(&self, flow: &Flow) -> u32 {
        let bits = u128::from(ports_of(flow) & self.mask) << 96;
        let looked_at = self.trie.lookup(bits, u32::BITS).looked_at;
        self.mask & u32::MAX.checked_shl(u32::BITS - looked_at).unwrap_or(0)
    }
}

fn ports_of(flow: &Flow) -> u32 {
    u32::from(flow.key.tp_src.get()) << 16 | u32::from(flow.key.tp_dst.get())
}

fn set_ports(flow: &mut Flow, ports: u32) {
    flow.key.tp_src = datapath_common::Be16::new((ports >> 16) as u16);
    flow.key.tp_dst = datapath_common::Be16::new(ports as u16);
}
