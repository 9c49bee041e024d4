//! The flow tables of a bridge, and what flow mods do to them.
//!
//! [`Tables`] is a version: cheap to clone, changed without the original noticing. A list of flow mods is applied to a clone
//! that is published when all of them worked, so a list is seen whole or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use openflow::{Action, FlowCommand, FlowMod};

use crate::classifier::Classifier;
use crate::flow::Flow;
use crate::rule::{Rule, RuleStats};

mod check;

/// The flow tables of a bridge, 0 to 254.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    tables: BTreeMap<u8, Classifier>,
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

    /// Removes the rules whose timeouts have run out, and says how many.
    pub fn expire(&mut self, now_ms: u64) -> usize {
        let mut n = 0;
        for id in self.ids(None) {
            let Some(table) = self.tables.get_mut(&id) else { continue };
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
        let table = self.tables.entry(flow_mod.table.unwrap_or(0)).or_default();
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
        for (id, rule) in selected {
            // A modification keeps timeouts and, unless it says otherwise, cookie and counters.
            check::check_rule(&rule.r#match, Some(id), &actions)?;
            let mut changed = Rule {
                actions: Arc::clone(&actions),
                cookie: flow_mod.cookie.unwrap_or(rule.cookie),
                flags: flow_mod.flags,
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
