//! The state of a translation, and its way through the tables.

use std::sync::Arc;

use datapath_common::key::VLAN_PRESENT;
use datapath_common::{Be16, FlowKey, Vlan};
use dpif::Action;
use dpif::odp::SlowPath;
use openflow::{FieldId, OfPort, Prerequisite};

use super::{Effect, MAX_ACTIONS, MAX_DEPTH, MAX_RESUBMITS, Origin, Taken, Xlate, XlateError, support};
use crate::bridge::{Bridge, Config};
use crate::flow::Flow;
use crate::recirc::{FrozenTunnel, Rest};

/// The state of a translation.
pub(super) struct Context<'a> {
    pub(super) config: &'a Config,
    pub(super) bridge: &'a Arc<Bridge>,
    origin: Origin,
    /// The packet as it came in.
    pub(super) packet: &'a Flow,
    /// Bits that had better be looked at than others.
    prefer: Option<&'a Flow>,
    /// Bits that such packets can have.
    pub(super) present: FlowKey,
    /// The packet as the tables see it now.
    pub(super) flow: Flow,
    /// What became of the fields of its tunnel; the id is in `flow`.
    pub(super) tunnel: FrozenTunnel,
    /// The packet as the datapath has it after the actions so far.
    pub(super) base: Flow,
    /// What was looked at of the packet as it came in.
    pub(super) wildcards: Flow,
    pub(super) actions: Vec<Action>,
    pub(super) effects: Vec<Effect>,
    /// The action set (`write_actions`).
    pub(super) set: Vec<openflow::Action>,
    pub(super) table: u8,
    /// The cookie of the rule at hand; all ones where there is none.
    pub(super) rule_cookie: u64,
    /// The rule at hand is for packets that no other matches (OpenFlow 1.3, section 5.4).
    pub(super) table_miss: bool,
    pub(super) depth: u32,
    resubmits: u32,
    /// The most that outputs may send, and how many VLAN tags the packet had when that was said.
    pub(super) trunc: Option<(u32, usize)>,
    /// An `exit` was met.
    pub(super) exit: bool,
    /// The translation is being frozen: what is left of the lists so far.
    pub(super) frozen: Option<Vec<Rest>>,
    error: Option<XlateError>,
    /// Why the packets have to come up, apart from their actions (`SlowPath` bits).
    pub(super) slow_path: u32,
    pub(super) taken: Vec<Taken>,
}

impl<'a> Context<'a> {
    pub(super) fn new(config: &'a Config, bridge: &'a Arc<Bridge>, packet: &'a Flow, actions: Vec<Action>) -> Self {
        let meter = config.slow_paths.slow_path_meter;
        Self {
            config,
            bridge,
            origin: Origin {
                bridge: bridge.id(),
                in_port: packet.in_port(),
                meter,
                samples: config.features.sample_nesting > 0,
            },
            packet,
            prefer: None,
            present: packet.present_fields(),
            flow: *packet,
            tunnel: FrozenTunnel::AsItCame,
            base: *packet,
            wildcards: Flow::ZERO,
            actions,
            // Most packets match one rule, and the list is kept as long as their flow.
            effects: Vec::with_capacity(1),
            set: Vec::new(),
            table: 0,
            rule_cookie: u64::MAX,
            table_miss: false,
            depth: 0,
            resubmits: 0,
            trunc: None,
            exit: false,
            frozen: None,
            error: None,
            slow_path: 0,
            taken: Vec::new(),
        }
    }

    /// Where several bits tell the same, those in `prefer` are looked at.
    pub(super) fn prefer(&mut self, prefer: Option<&'a Flow>) {
        self.prefer = prefer;
    }

    /// The packet goes through the pipeline of the bridge that it came in by.
    pub(super) fn run(&mut self) {
        if !self.is_special() {
            self.pipeline();
        }
    }

    /// The translation. Leaves nothing of it here; what is as large as this is not moved for it.
    pub(super) fn finish(&mut self) -> Xlate {
        let mut mask = self.wildcards.datapath_mask(self.packet, &self.present);
        support::forget_unsayable(&mut mask, &self.config.features);
        if self.error.is_some() {
            self.actions.clear();
        }
        let metered = self.config.slow_paths.controller_meter.is_some();
        let slow = support::obstacle(&self.actions, &self.config.features, metered);
        let slow_path = self.slow_path | if slow.is_some() { SlowPath::ACTION } else { 0 };
        Xlate {
            odp_actions: std::mem::take(&mut self.actions),
            mask,
            slow,
            slow_path,
            origin: self.origin,
            error: self.error,
            effects: std::mem::take(&mut self.effects),
            taken: std::mem::take(&mut self.taken),
        }
    }

    /// Table 0 of the current bridge, and what is in the action set at the end.
    pub(super) fn pipeline(&mut self) {
        self.table_lookup(0, self.flow.in_port(), true);
        self.finish_pipeline();
    }

    /// Looks the packet up in a table as if it had come in by `in_port`, and carries out what is found.
    pub(super) fn table_lookup(&mut self, table: u8, in_port: OfPort, deepens: bool) {
        self.resubmits += 1;
        if self.resubmits > MAX_RESUBMITS {
            return self.give_up(XlateError::TooManyResubmits);
        }
        if deepens && !self.descend() {
            return;
        }
        let before = (std::mem::replace(&mut self.table, table), self.rule_cookie, self.table_miss);
        let bridge: &'a Arc<Bridge> = self.bridge;
        let prefer = self.prefer;
        let rule = bridge.tables.table(table).and_then(|rules| {
            if in_port == self.flow.in_port() && !self.flow.is_fragment() && prefer.is_none() {
                return rules.lookup(&self.flow, &mut self.wildcards);
            }
            // The port is changed for the lookup only: what IN_PORT and NORMAL mean doesn't change with it.
            let mut flow = self.flow;
            flow.set_in_port(in_port);
            // Rules on ports don't match fragments, lest the first one goes another way than the rest (OFPC_FRAG_NORMAL, OpenFlow
            // 1.3, section A.3.2). The kind of fragment is in all megaflows of IP packets.
            if flow.is_fragment() {
                (flow.key.tp_src, flow.key.tp_dst) = (Be16::ZERO, Be16::ZERO);
            }
            match prefer {
                None => rules.lookup(&flow, &mut self.wildcards),
                Some(prefer) => rules.lookup_preferring(&flow, prefer, &mut self.wildcards),
            }
        });
        let tables = Arc::clone(&bridge.table_stats);
        match rule {
            Some(rule) => {
                self.effects.push(Effect::Rule { rule: Arc::clone(rule), tables, table });
                (self.rule_cookie, self.table_miss) = (rule.cookie, rule.priority == 0 && rule.mask == Flow::ZERO);
                // Each lookup may nest in the one before, and the operator writes how deep: some thousand levels are legal.
                stacker::maybe_grow(64 << 10, 1 << 20, || self.run_actions(&rule.actions));
            }
            None => self.effects.push(Effect::TableMiss { tables, table }),
        }
        (self.table, self.rule_cookie, self.table_miss) = before;
        self.depth -= u32::from(deepens);
    }

    /// One level deeper, unless that is too deep. Whoever descends takes the level off `depth` again.
    pub(super) fn descend(&mut self) -> bool {
        if self.depth >= MAX_DEPTH {
            self.give_up(XlateError::TooDeep);
            return false;
        }
        self.depth += 1;
        true
    }

    /// The packet is given up: nothing more happens, and nothing of what was decided so far.
    pub(super) fn give_up(&mut self, error: XlateError) {
        self.error.get_or_insert(error);
    }

    /// Whether no more actions are to be carried out.
    pub(super) fn is_over(&self) -> bool {
        self.exit || self.error.is_some()
    }

    pub(super) fn emit(&mut self, action: Action) {
        if self.actions.len() >= MAX_ACTIONS {
            return self.give_up(XlateError::TooManyActions);
        }
        self.actions.push(action);
    }

    /// Whether the packet has what is asked for.
    pub(super) fn meets(&mut self, prerequisite: Prerequisite) -> bool {
        self.flow.meets(prerequisite, &mut self.wildcards)
    }

    /// Bits of a field.
    pub(super) fn read(&mut self, field: FieldId, bits: u128) -> u128 {
        self.wildcards.look_at(field, bits);
        self.flow.get(field)
    }

    /// Whether the packet has a VLAN tag.
    pub(super) fn has_vlan(&mut self) -> bool {
        self.meets(Prerequisite::VlanVid)
    }

    /// How many VLAN tags the packet has.
    pub(super) fn count_vlans(&mut self) -> usize {
        if self.has_vlan() {
            let inner = &mut self.wildcards.key.cvlan;
            inner.tci = inner.tci | Be16::new(VLAN_PRESENT);
        }
        self.flow.n_vlans()
    }

    /// The first `n` VLAN tags were looked at, all of them.
    pub(super) fn look_at_vlans(&mut self, n: usize) {
        let key = &mut self.wildcards.key;
        for tag in [&mut key.vlan, &mut key.cvlan].into_iter().take(n) {
            *tag = Vlan { tpid: Be16::MAX, tci: Be16::MAX };
        }
    }

    /// Removes the outer tag, if any. The inner one takes its place, so it counts as looked at; the outer one does only if the
    /// packet leaves without it.
    pub(super) fn pop_vlan(&mut self) {
        if self.count_vlans() > 1 {
            self.wildcards.key.cvlan = Vlan { tpid: Be16::MAX, tci: Be16::MAX };
        }
        self.flow.key.vlan = std::mem::take(&mut self.flow.key.cvlan);
    }

    /// A tag comes to be where there is none. Where one was taken off before, it depends on that one whether the packet has
    /// changed at all.
    pub(super) fn look_at_vlans_taken_off(&mut self) {
        self.look_at_vlans(self.base.n_vlans());
    }

    /// Adds a tag; those before change places.
    pub(super) fn push_vlan(&mut self, vlan: Vlan) {
        let n = self.count_vlans();
        self.look_at_vlans(n);
        if n == 0 {
            self.look_at_vlans_taken_off();
        }
        if n > 1 {
            return self.give_up(XlateError::TooManyVlans);
        }
        self.flow.key.cvlan = std::mem::replace(&mut self.flow.key.vlan, vlan);
    }
}
