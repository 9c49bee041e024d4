//! An OpenFlow flow in a table, called a rule to tell it from the datapath's flows.
//!
//! A rule never changes: to modify one is to replace it by another that counts in the same [`RuleStats`]. So whoever holds a
//! snapshot of the tables sees each rule as it was when the snapshot was taken, while its counters go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openflow::{Action, FlowFlags, FlowMatch, OfPort};

use crate::classifier::Conjunction;
use crate::flow::Flow;

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which packets, as it was asked for.
    pub r#match: FlowMatch,
    /// The same as values.
    pub value: Flow,
    /// The same as a mask.
    pub mask: Flow,
    /// Greater wins.
    pub priority: u16,
    /// The controller's mark.
    pub cookie: u64,
    /// Seconds without a packet after which it expires; 0 is never.
    pub idle_timeout: u16,
    /// Seconds after which it expires; 0 is never.
    pub hard_timeout: u16,
    /// Of flows that have to make room, the less important go first.
    pub importance: u16,
    /// Flags.
    pub flags: FlowFlags,
    /// What it is a part of; then it does nothing by itself.
    pub conjunctions: Arc<[Conjunction]>,
    /// What it does.
    pub actions: Arc<[Action]>,
    /// When it was added.
    pub created_ms: u64,
    /// When it was added or last modified: hard timeouts count from here.
    pub modified_ms: u64,
    /// Its counters.
    pub stats: Arc<RuleStats>,
}

/// Counters of a rule.
#[derive(Debug)]
pub struct RuleStats {
    packets: AtomicU64,
    bytes: AtomicU64,
    used_ms: AtomicU64,
}

impl RuleStats {
    /// Counters at zero of a rule that counts as used now.
    pub fn new(now_ms: u64) -> Self {
        Self { packets: AtomicU64::new(0), bytes: AtomicU64::new(0), used_ms: AtomicU64::new(now_ms) }
    }

    /// Counts packets, the last of them at `used_ms`.
    pub fn add(&self, packets: u64, bytes: u64, used_ms: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.used_ms.fetch_max(used_ms, Ordering::Relaxed);
    }

    /// Packets.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When the last packet came, or the rule was added.
    pub fn used_ms(&self) -> u64 {
        self.used_ms.load(Ordering::Relaxed)
    }
}

/// The conjunctions among a rule's actions.
pub fn conjunctions(actions: &[Action]) -> Arc<[Conjunction]> {
    let conjunction = |action: &Action| match action {
        Action::Conjunction { id, clause, clauses } => {
            Some(Conjunction { id: *id, clause: *clause, clauses: *clauses })
        }
        _ => None,
    };
    actions.iter().filter_map(conjunction).collect()
}

impl Rule {
    /// Whether the rule's match and priority are these.
    pub fn is_strictly(&self, r#match: &FlowMatch, priority: u16) -> bool {
        self.priority == priority && self.r#match == *r#match
    }

    /// Whether all packets of the rule are covered by a match of this value and mask.
    pub fn is_covered_by(&self, value: &Flow, mask: &Flow) -> bool {
        self.mask.covers(mask) && self.value.matches(value, mask)
    }

    /// Whether some packet could match both.
    pub fn overlaps(&self, value: &Flow, mask: &Flow) -> bool {
        self.value.matches(value, &self.mask.masked(mask))
    }

    /// Whether an action outputs to `port`.
    pub fn outputs_to(&self, port: OfPort) -> bool {
        outputs_to(&self.actions, port)
    }

    /// Whether it goes by itself some day.
    pub fn has_timeout(&self) -> bool {
        self.idle_timeout != 0 || self.hard_timeout != 0
    }

    /// Whether a timeout has run out.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        let over = |since: u64, seconds: u16| seconds != 0 && now_ms.saturating_sub(since) >= u64::from(seconds) * 1000;
        over(self.modified_ms, self.hard_timeout) || over(self.stats.used_ms(), self.idle_timeout)
    }
}

fn outputs_to(actions: &[Action], port: OfPort) -> bool {
    actions.iter().any(|action| match action {
        Action::Output(to) | Action::OutputTrunc { port: to, .. } => *to == port,
        Action::Controller(_) => port == OfPort::CONTROLLER,
        Action::WriteActions(actions) => outputs_to(actions, port),
        _ => false,
    })
}
