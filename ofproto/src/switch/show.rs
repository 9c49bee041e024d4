//! What the switch says of itself, in the field's text.

use std::fmt::Write;

use dpif::DpStats;
use openflow::{Action, NoPortNames, OfPort, PortNames};

use super::{Result, Switch, SwitchError};
use crate::port::PortKind;
use crate::rule::Rule;
use crate::table::TableStats;
use crate::upcall::Summary;
use crate::xlate::Effect;

impl Switch {
    /// The learned addresses of a bridge (`fdb/show`).
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn fdb_show(&self, bridge: &str) -> Result<String> {
        let bridge = self.bridge(bridge)?;
        let now = self.backer.clock.now_ms();
        let mut text = String::from(" port  VLAN  MAC                Age\n");
        for entry in bridge.macs.entries() {
            let mac = entry.mac.map(|byte| format!("{byte:02x}")).join(":");
            let age = now.saturating_sub(entry.used_ms) / 1000;
            let _ = writeln!(text, "{:>5}  {:4}  {mac}  {age:3}", entry.port.to_string(), entry.vlan);
        }
        Ok(text)
    }

    /// Bridges and ports of the datapath (`dpif/show`).
    ///
    /// # Errors
    /// The datapath's.
    pub fn dpif_show(&self) -> Result<String> {
        let DpStats { hit, missed, .. } = self
            .backer
            .dpif
            .stats()
            .map_err(|error| SwitchError::Datapath("statistics of the datapath".into(), error))?;
        let mut text = format!("{}: hit:{hit} missed:{missed}\n", self.dpif_name());
        for bridge in self.config().bridges.values() {
            let _ = writeln!(text, "  {}:", bridge.name);
            let mut ports: Vec<_> = bridge.ports.values().collect();
            ports.sort_by(|a, b| a.name.cmp(&b.name));
            for port in ports {
                let odp = port.odp.map_or_else(|| "none".into(), |odp| odp.to_string());
                let more = match &port.kind {
                    PortKind::Patch { peer } => format!(": peer={peer}"),
                    _ => String::new(),
                };
                let _ = writeln!(text, "    {} {}/{odp}: ({}{more})", port.name, port.number.0, port.kind);
            }
        }
        Ok(text)
    }

    /// The flows of a bridge, one a line, by table and priority (`ovs-ofctl dump-flows`).
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn dump_flows(&self, bridge: &str) -> Result<String> {
        self.dump_flows_with(bridge, &NoPortNames)
    }

    /// As [`Switch::dump_flows`], with the names of ports where `names` has them.
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn dump_flows_with(&self, bridge: &str, names: &dyn PortNames) -> Result<String> {
        let bridge = self.bridge(bridge)?;
        let now = self.backer.clock.now_ms();
        let mut rules: Vec<_> = bridge.tables.rules().collect();
        rules.sort_by_key(|(table, rule)| (*table, std::cmp::Reverse(rule.priority), rule.created_ms));
        let mut text = String::new();
        for (table, rule) in rules {
            let _ = writeln!(text, " {}", rule_text(table, rule, now, names));
        }
        Ok(text)
    }

    /// `TYPE@NAME`, as the field writes a datapath.
    pub fn dpif_name(&self) -> String {
        format!("{}@{}", self.backer.dpif.datapath_type(), self.backer.dpif.name())
    }

    /// Packets and bytes of all rules of a bridge (`ovs-ofctl dump-aggregate`), and their number.
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn aggregate(&self, bridge: &str) -> Result<(u64, u64, usize)> {
        let bridge = self.bridge(bridge)?;
        let sum = |(packets, bytes, n), (_, rule): (u8, &std::sync::Arc<Rule>)| {
            (packets + rule.stats.packets(), bytes + rule.stats.bytes(), n + 1)
        };
        Ok(bridge.tables.rules().fold((0, 0, 0), sum))
    }

    /// How many flows the datapath has from this switch, and how it goes with them.
    pub fn upcall_summary(&self) -> Summary {
        Summary::of(&self.backer)
    }

    /// What takes memory, by the field's names (`memory/show`).
    pub fn memory_usage(&self) -> Vec<(String, u64)> {
        let config = self.config();
        let sum = |count: fn(&crate::bridge::Bridge) -> usize| config.bridges.values().map(|b| count(b) as u64).sum();
        vec![
            ("ports".into(), sum(|bridge| bridge.ports.len())),
            ("rules".into(), sum(|bridge| bridge.tables.len())),
            ("udpif keys".into(), Summary::of(&self.backer).current as u64),
        ]
    }

    /// The number and name of each port of a bridge.
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn ports(&self, bridge: &str) -> Result<Vec<(OfPort, String)>> {
        Ok(self.bridge(bridge)?.ports.values().map(|port| (port.number, port.name.clone())).collect())
    }
}

/// The rules that a translation went by, and the tables in which it found none: `ofproto/detrace`. The bridge is named where
/// it changes.
pub(super) fn effects_text(effects: &[Effect], now: u64) -> String {
    let mut text = String::new();
    let mut last: Option<&TableStats> = None;
    for effect in effects {
        let tables = match effect {
            Effect::Rule { tables, .. } | Effect::TableMiss { tables, .. } => tables.as_ref(),
            _ => continue,
        };
        if !last.is_some_and(|last| std::ptr::eq(last, tables)) {
            let _ = writeln!(text, "{}", tables.bridge());
            last = Some(tables);
        }
        match effect {
            Effect::Rule { rule, table, .. } => {
                let _ = writeln!(text, "  {}", rule_stats_text(*table, rule, now));
            }
            Effect::TableMiss { table, .. } => {
                let _ = writeln!(text, "  table_id={table}, no match");
            }
            _ => {}
        }
    }
    text
}

/// A rule with its counters as the field's debugging commands write it. No hardware takes packets off us.
fn rule_stats_text(table: u8, rule: &Rule, now: u64) -> String {
    let mut text = String::new();
    if rule.cookie != 0 {
        let _ = write!(text, "cookie={:#x}, ", rule.cookie);
    }
    if table != 0 {
        let _ = write!(text, "table_id={table}, ");
    }
    let _ = write!(
        text,
        "duration={}s, n_packets={}, n_bytes={}, n_offload_packets=0, n_offload_bytes=0, {},actions={}",
        now.saturating_sub(rule.created_ms) / 1000,
        rule.stats.packets(),
        rule.stats.bytes(),
        rule.r#match.display(rule.priority, &NoPortNames),
        openflow::action::display_actions(&rule.actions, &NoPortNames)
    );
    text
}

fn rule_text(table: u8, rule: &Rule, now: u64, names: &dyn PortNames) -> String {
    let duration = now.saturating_sub(rule.created_ms);
    let mut text = format!(
        "cookie={:#x}, duration={}.{:03}s, table={table}, n_packets={}, n_bytes={}, ",
        rule.cookie,
        duration / 1000,
        duration % 1000,
        rule.stats.packets(),
        rule.stats.bytes()
    );
    for (name, value) in [("idle_timeout", rule.idle_timeout), ("hard_timeout", rule.hard_timeout)] {
        if value != 0 {
            let _ = write!(text, "{name}={value}, ");
        }
    }
    for (word, _) in rule.flags.words().iter().filter(|(_, set)| *set) {
        let _ = write!(text, "{word} ");
    }
    if rule.importance != 0 {
        let _ = write!(text, "importance={}, ", rule.importance);
    }
    let _ = write!(text, "{}", rule.r#match.display(rule.priority, names));
    if !text.ends_with(' ') {
        text.push(' ');
    }
    let actions: &[Action] = &rule.actions;
    let _ = write!(text, "actions={}", openflow::action::display_actions(actions, names));
    text
}
