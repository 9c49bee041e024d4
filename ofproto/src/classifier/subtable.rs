//! The rules of one mask.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use super::known::Known;
use super::map::{Map, hash};
use super::prefix::{Asked, Prefix, PrefixField};
use super::shape::Shape;
use super::stage::{LAYER3, N_STAGES, STAGES};
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
    /// The last stage with fields.
    last: usize,
    /// The sums of heads up to each stage before that.
    known: Known,
    /// The tries of the classifier that the mask has a prefix for, and its length.
    prefixes: Arc<[Prefix]>,
    ports: Ports,
    heads: Map<Head>,
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
        let last = STAGES.iter().rposition(|fields| mask.masked(fields) != Flow::ZERO).unwrap_or(0);
        let prefixes =
            tries.iter().enumerate().filter_map(|(trie, (field, _))| Prefix::new(trie, field.prefix_len(mask)));
        let ports = ports_of(mask);
        Self {
            mask: Arc::new(*mask),
            priorities: RedBlackTreeMapSync::new_sync(),
            last,
            known: Known::new(),
            prefixes: prefixes.collect(),
            ports: Ports { mask: ports, len: u32::BITS - ports.trailing_zeros(), trie: Trie::default() },
            heads: Map::new(),
            shape: Shape::new(mask),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads.len() == 0
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
    #[inline(always)]
    pub(super) fn find(&self, flow: &Flow) -> Option<&Head> {
        self.heads.find(hash(self.shape.sum(flow)), |head| self.shape.agree(&head.first.value, flow))
    }

    /// As [`Self::find`]; adds to `wildcards` what had to be looked at to know, which is the whole mask where there is a match.
    ///
    /// Whether there is a match is asked first, because only the answer "no" can be had from less.
    #[inline(always)]
    pub(super) fn find_wildcarding(&self, flow: &Flow, asked: &mut Asked<'_>, wildcards: &mut Flow) -> Option<&Head> {
        let found = self.find(flow);
        match found {
            Some(_) => self.shape.add_to(N_STAGES - 1, wildcards),
            None => self.look_at_miss(flow, asked, wildcards),
        }
        found
    }

    /// Adds to `wildcards` what tells that no rule matches.
    #[inline(never)]
    fn look_at_miss(&self, flow: &Flow, asked: &mut Asked<'_>, wildcards: &mut Flow) {
        // Up to the end of so many stages some rule has the packet's fields, and none has those of the next.
        let known = self.known.stages(&self.shape.stage_sums(flow));
        // The tries are asked where the addresses come into play, if the stages before don't tell.
        if known >= LAYER3 && asked.rule_out(&self.prefixes, flow, wildcards) {
            self.shape.add_to(LAYER3 - 1, wildcards);
        } else {
            self.look_at_stages(known, flow, wildcards);
        }
    }

    /// As [`Self::look_at_miss`], where the tries don't tell.
    #[inline(always)]
    fn look_at_stages(&self, known: usize, flow: &Flow, wildcards: &mut Flow) {
        if known == self.last && self.ports.len != 0 {
            self.look_at_ports(flow, wildcards);
        } else {
            self.shape.add_to(known, wildcards);
        }
    }

    /// As [`Self::find_wildcarding`]; where several things tell that no rule matches, takes one whose bits are all in `prefer`, if
    /// there is one.
    pub(super) fn find_preferring(
        &self,
        flow: &Flow,
        asked: &mut Asked<'_>,
        prefer: &Flow,
        wildcards: &mut Flow,
    ) -> Option<&Head> {
        let found = self.find(flow);
        if found.is_some() {
            self.shape.add_to(N_STAGES - 1, wildcards);
            return found;
        }
        let before = *wildcards;
        let is_preferred = |looked_at: &Flow| looked_at.is_within(&before, prefer);
        let known = self.known.stages(&self.shape.stage_sums(flow));
        let by_prefixes = if known >= LAYER3 { &*self.prefixes } else { &[] };
        for prefix in by_prefixes {
            if asked.rule_out(std::slice::from_ref(prefix), flow, wildcards) {
                self.shape.add_to(LAYER3 - 1, wildcards);
                if is_preferred(wildcards) {
                    return None;
                }
            }
            *wildcards = before;
        }
        self.look_at_stages(known, flow, wildcards);
        if !is_preferred(wildcards) {
            *wildcards = before;
            self.look_at_miss(flow, asked, wildcards);
        }
        None
    }

    /// As [`Self::look_at_miss`], where no stage before the ports' tells.
    fn look_at_ports(&self, flow: &Flow, wildcards: &mut Flow) {
        // Of the ports only what it takes to know that no rule has them, unless all was looked at before.
        let seen = ports_of(wildcards);
        let ports = (self.ports.mask & !seen != 0).then(|| seen | self.ports.needed(flow));
        self.shape.add_to(N_STAGES - 1, wildcards);
        if let Some(ports) = ports {
            set_ports(wildcards, ports);
        }
    }

    /// The rule with exactly this match and priority.
    pub(super) fn get(&self, value: &Flow, priority: u16) -> Option<&Arc<Rule>> {
        self.find(value)?.rules().find(|rule| rule.priority == priority)
    }

    /// Adds a rule. One with the same match and priority is replaced and returned.
    pub(super) fn insert(&mut self, rule: Arc<Rule>, tries: &mut [(PrefixField, Trie)]) -> Option<Arc<Rule>> {
        let (shape, priority) = (&self.shape, rule.priority);
        let hash = hash(shape.sum(&rule.value));
        if let Some(head) = self.heads.get_mut(hash, |head| shape.agree(&head.first.value, &rule.value)) {
            let replaced = head.insert(rule);
            if replaced.is_none() {
                self.count(priority);
            }
            return replaced;
        }
        self.index(&rule.value, tries, true);
        self.heads.insert(hash, Head::new(rule, &[]));
        self.count(priority);
        None
    }

    /// Removes the rule with the match and priority of `rule`.
    pub(super) fn remove(&mut self, rule: &Rule, tries: &mut [(PrefixField, Trie)]) -> Option<Arc<Rule>> {
        let removed = Arc::clone(self.get(&rule.value, rule.priority)?);
        let shape = &self.shape;
        let hash = hash(shape.sum(&rule.value));
        let is_it = |head: &Head| shape.agree(&head.first.value, &rule.value);
        let head = self.heads.get_mut(hash, is_it)?;
        let left: Vec<_> = head.rules().filter(|other| other.priority != rule.priority).cloned().collect();
        if left.is_empty() {
            self.heads.remove(hash, is_it);
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

    fn count(&mut self, priority: u16) {
        let n = self.priorities.get(&priority).copied().unwrap_or(0);
        self.priorities.insert_mut(priority, n + 1);
    }

    /// Adds a match to stages and tries, or takes it away.
    fn index(&mut self, value: &Flow, tries: &mut [(PrefixField, Trie)], adds: bool) {
        for (stage, sum) in self.shape.stage_sums(value).into_iter().enumerate().take(self.last) {
            if adds { self.known.add(stage, sum) } else { self.known.remove(stage, sum) }
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
