//! The flow tables of a bridge, and what flow mods do to them.
//!
//! [`Tables`] is a version: cheap to clone, changed without the original noticing. A list of flow mods is applied to a clone
//! that is published when all of them worked, so a list is seen whole or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use openflow::{Action, FlowCommand, FlowMod};

use crate::classifier::{Classifier, PrefixField};
use crate::flow::Flow;
use crate::rule::{Rule, RuleStats, conjunctions};

mod check;
mod stats;

pub use stats::TableStats;

/// The flow tables of a bridge, 0 to 254.
#[derive(Clone, Debug)]
pub struct Tables {
    tables: BTreeMap<u8, Classifier>,
    prefixes: Arc<[PrefixField]>,
}

impl Default for Tables {
    fn default() -> Self {
        Self::with_prefixes(&PrefixField::DEFAULT)
    }
}

/// The flow mod of a list that could not be carried out. Nothing of the list was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("flow {index}: {message}")]
pub struct FlowModError {
    /// Which, from 0.
    pub index: usize,
    /// Why.
    pub message: String,
}

impl Tables {
    /// No rules; tables will have prefix tries of these fields ([`Classifier::new`]).
    pub fn with_prefixes(prefixes: &[PrefixField]) -> Self {
        Self { tables: BTreeMap::new(), prefixes: prefixes.into() }
    }

    /// The rules of a table.
    pub fn table(&self, table: u8) -> Option<&Classifier> {
        self.tables.get(&table)
    }

    /// All rules with their tables, by table.
    pub fn rules(&self) -> impl Iterator<Item = (u8, &Arc<Rule>)> {
        self.tables.iter().flat_map(|(id, table)| table.rules().map(move |rule| (*id, rule)))
    }

    /// Number of rules.
    pub fn len(&self) -> usize {
        self.tables.values().map(Classifier::len).sum()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Carries out flow mods in order.
    ///
    /// # Errors
    /// The first that can't be; the tables are then somewhere between, and to be thrown away.
    pub fn apply(&mut self, flow_mods: &[FlowMod], now_ms: u64) -> Result<(), FlowModError> {
        for (index, flow_mod) in flow_mods.iter().enumerate() {
            self.apply_one(flow_mod, now_ms).map_err(|message| FlowModError { index, message })?;
        }
        Ok(())
    }

    /// Whether the timeout of some rule has run out. Tables without timeouts are not looked at.
    pub fn has_expired(&self, now_ms: u64) -> bool {
        let mut timed = self.tables.values().filter(|table| table.has_timeouts());
        timed.any(|table| table.rules().any(|rule| rule.is_expired(now_ms)))
    }

    /// Removes the rules whose timeouts have run out, and says how many.
    pub fn expire(&mut self, now_ms: u64) -> usize {
        let mut n = 0;
        for table in self.tables.values_mut().filter(|table| table.has_timeouts()) {
            let expired: Vec<_> = table.rules().filter(|rule| rule.is_expired(now_ms)).cloned().collect();
            n += expired.len();
            for rule in &expired {
                table.remove(rule);
            }
        }
        n
    }

    fn apply_one(&mut self, flow_mod: &FlowMod, now_ms: u64) -> Result<(), String> {
        if flow_mod.table == Some(255) {
            return Err("table 255 stands for all tables: expected 0 to 254".into());
        }
        if !flow_mod.command.is_delete() {
            check::check(flow_mod)?;
        }
        let (value, mask) = (Flow::from_match(&flow_mod.r#match.value), Flow::from_match(&flow_mod.r#match.mask));
        match flow_mod.command {
            FlowCommand::Add => self.add(flow_mod, value, mask, now_ms),
            FlowCommand::Modify | FlowCommand::ModifyStrict => self.modify(flow_mod, value, mask, now_ms),
            FlowCommand::Delete | FlowCommand::DeleteStrict => {
                for (id, rule) in self.select(flow_mod, &value, &mask) {
                    if let Some(table) = self.tables.get_mut(&id) {
                        table.remove(&rule);
                    }
                }
                self.tables.retain(|_, table| !table.is_empty());
                Ok(())
            }
            // A command that this version doesn't know.
            #[allow(unreachable_patterns)]
            other => Err(format!("command {} is not supported", other.name())),
        }
    }

    fn add(&mut self, flow_mod: &FlowMod, value: Flow, mask: Flow, now_ms: u64) -> Result<(), String> {
        let prefixes = &self.prefixes;
        let table = self.tables.entry(flow_mod.table.unwrap_or(0)).or_insert_with(|| Classifier::new(prefixes));
        if flow_mod.flags.check_overlap {
            let other = table.rules().find(|rule| {
                rule.priority == flow_mod.priority
                    && rule.overlaps(&value, &mask)
                    && !rule.is_strictly(&flow_mod.r#match, flow_mod.priority)
            });
            if let Some(other) = other {
                return Err(format!(
                    "overlaps with a flow of the same priority {}: {}",
                    other.priority,
                    other.r#match.display(other.priority, &openflow::NoPortNames)
                ));
            }
        }
        table.insert(Arc::new(Rule {
            r#match: flow_mod.r#match.clone(),
            value,
            mask,
            priority: flow_mod.priority,
            cookie: flow_mod.cookie.unwrap_or(0),
            idle_timeout: flow_mod.idle_timeout,
            hard_timeout: flow_mod.hard_timeout,
            importance: flow_mod.importance,
            flags: flow_mod.flags,
            conjunctions: conjunctions(&flow_mod.actions),
            actions: flow_mod.actions.clone().into(),
            created_ms: now_ms,
            modified_ms: now_ms,
            stats: Arc::new(RuleStats::new(now_ms)),
        }));
        Ok(())
    }

    fn modify(&mut self, flow_mod: &FlowMod, value: Flow, mask: Flow, now_ms: u64) -> Result<(), String> {
        let selected = self.select(flow_mod, &value, &mask);
        if selected.is_empty() && flow_mod.cookie_filter.is_none() {
            return self.add(flow_mod, value, mask, now_ms);
        }
        let actions: Arc<[Action]> = flow_mod.actions.clone().into();
        let conjunctions = conjunctions(&actions);
        for (id, rule) in selected {
            // A modification keeps timeouts and flags and, unless it says otherwise, cookie and counters.
            check::check_rule(&rule.r#match, Some(id), &actions)?;
            let mut changed = Rule {
                actions: Arc::clone(&actions),
                conjunctions: Arc::clone(&conjunctions),
                cookie: flow_mod.cookie.unwrap_or(rule.cookie),
                modified_ms: now_ms,
                ..(*rule).clone()
            };
            if flow_mod.flags.reset_counts {
                changed.stats = Arc::new(RuleStats::new(now_ms));
            }
            if let Some(table) = self.tables.get_mut(&id) {
                table.insert(Arc::new(changed));
            }
        }
        Ok(())
    }

    /// The rules that a modification or deletion is about.
    fn select(&self, flow_mod: &FlowMod, value: &Flow, mask: &Flow) -> Vec<(u8, Arc<Rule>)> {
        let strict = matches!(flow_mod.command, FlowCommand::ModifyStrict | FlowCommand::DeleteStrict);
        let mut selected = Vec::new();
        for id in self.ids(flow_mod.table) {
            let Some(table) = self.tables.get(&id) else { continue };
            let rules = match strict {
                true => table.find(value, mask, flow_mod.priority).cloned().into_iter().collect(),
                false => table.covered_by(value, mask),
            };
            selected.extend(rules.into_iter().filter(|rule| is_selected(rule, flow_mod)).map(|rule| (id, rule)));
        }
        selected
    }

    fn ids(&self, table: Option<u8>) -> Vec<u8> {
        self.tables.keys().copied().filter(|id| table.is_none_or(|table| table == *id)).collect()
    }
}

fn is_selected(rule: &Rule, flow_mod: &FlowMod) -> bool {
    flow_mod.cookie_filter.is_none_or(|cookie| rule.cookie & cookie.mask == cookie.value & cookie.mask)
        && flow_mod.out_port.is_none_or(|port| rule.outputs_to(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use openflow::NoPortNames;

    fn apply(tables: &mut Tables, texts: &[&str], now_ms: u64) -> Result<(), FlowModError> {
        let mods: Vec<_> = texts.iter().map(|text| FlowMod::parse(text, &NoPortNames).unwrap()).collect();
        tables.apply(&mods, now_ms)
    }

    /// Priorities of what is left, by table.
    fn left(tables: &Tables) -> Vec<(u8, u16)> {
        let mut left: Vec<_> = tables.rules().map(|(table, rule)| (table, rule.priority)).collect();
        left.sort_unstable();
        left
    }

    const FLOWS: &[&str] = &[
        "priority=1,actions=drop",
        "priority=2,ip,actions=output:1",
        "priority=3,ip,nw_dst=10.0.0.1,cookie=0x15,actions=output:2",
        "priority=4,table=1,tcp,actions=write_actions(output:1)",
    ];

    #[test]
    fn deletions_select_by_match_priority_table_cookie_and_output() {
        for (delete, expected) in [
            ("delete", vec![]),
            ("delete table=0", vec![(1, 4)]),
            ("delete ip", vec![(0, 1)]),
            ("delete ip,nw_dst=10.0.0.0/8", vec![(0, 1), (0, 2), (1, 4)]),
            ("delete_strict ip", vec![(0, 1), (0, 2), (0, 3), (1, 4)]),
            ("delete_strict priority=2,ip", vec![(0, 1), (0, 3), (1, 4)]),
            ("delete cookie=0x5/0xf", vec![(0, 1), (0, 2), (1, 4)]),
            ("delete out_port=1", vec![(0, 1), (0, 3)]),
            ("delete arp", vec![(0, 1), (0, 2), (0, 3), (1, 4)]),
        ] {
            let mut tables = Tables::default();
            apply(&mut tables, FLOWS, 0).unwrap();
            apply(&mut tables, &[delete], 0).unwrap();
            assert_eq!(left(&tables), expected, "{delete}");
        }
    }

    #[test]
    fn a_modification_changes_actions_and_keeps_the_rest() {
        let mut tables = Tables::default();
        apply(&mut tables, &["priority=7,idle_timeout=5,cookie=9,ip,actions=output:1"], 100).unwrap();
        tables.rules().next().unwrap().1.stats.add(3, 300, 150);
        apply(&mut tables, &["modify ip,actions=output:2"], 200).unwrap();
        let (_, rule) = tables.rules().next().unwrap();
        assert_eq!((rule.priority, rule.idle_timeout, rule.cookie, rule.created_ms), (7, 5, 9, 100));
        assert_eq!((rule.stats.packets(), rule.outputs_to(openflow::OfPort(2))), (3, true));
        // To add it again is to begin anew.
        apply(&mut tables, &["priority=7,ip,actions=output:2"], 300).unwrap();
        let (_, rule) = tables.rules().next().unwrap();
        assert_eq!((tables.len(), rule.stats.packets(), rule.created_ms, rule.cookie), (1, 0, 300, 0));
    }

    #[test]
    fn a_modification_of_nothing_adds_unless_it_looks_for_a_cookie() {
        let mut tables = Tables::default();
        apply(&mut tables, &["modify cookie=1/1,ip,actions=drop"], 0).unwrap();
        assert!(tables.is_empty());
        apply(&mut tables, &["modify_strict priority=3,ip,actions=drop"], 0).unwrap();
        assert_eq!(left(&tables), [(0, 3)]);
    }

    #[test]
    fn rules_with_timeouts_are_counted_and_go() {
        let mut tables = Tables::default();
        let timed = |tables: &Tables| tables.table(0).is_some_and(Classifier::has_timeouts);
        apply(&mut tables, &["priority=1,actions=drop", "priority=2,ip,idle_timeout=5,actions=drop"], 0).unwrap();
        assert!(timed(&tables) && !tables.has_expired(4_999) && tables.has_expired(5_000));
        // A rule takes its place, and has none.
        apply(&mut tables, &["priority=2,ip,actions=output:1"], 0).unwrap();
        assert!(!timed(&tables) && !tables.has_expired(5_000));
        apply(
            &mut tables,
            &["priority=2,ip,hard_timeout=1,actions=output:1", "priority=3,ip,hard_timeout=2,actions="],
            0,
        )
        .unwrap();
        assert_eq!((tables.expire(1_000), timed(&tables)), (1, true));
        assert_eq!((tables.expire(2_000), timed(&tables), tables.len()), (1, false, 1));
        apply(&mut tables, &["priority=3,ip,hard_timeout=2,actions=", "delete ip"], 0).unwrap();
        assert!(!timed(&tables));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (texts, index, message) in [
            (
                &["priority=1,actions=drop", "nd,actions=set_field:fe80::1->nd_target"][..],
                1,
                "field nd_target can't be written",
            ),
            (&["actions=write_actions(resubmit(,1))"][..], 0, "not supported inside write_actions"),
            (
                &["priority=1,ip,actions=drop", "check_overlap,priority=1,tcp,actions=drop"][..],
                1,
                "overlaps with a flow",
            ),
        ] {
            let parsed: Result<Vec<_>, _> = texts.iter().map(|text| FlowMod::parse(text, &NoPortNames)).collect();
            // What the parser refuses never comes here.
            let Ok(mods) = parsed else { continue };
            let error = Tables::default().apply(&mods, 0).unwrap_err();
            assert_eq!(error.index, index);
            assert!(error.message.contains(message), "{error}");
        }
    }
}
