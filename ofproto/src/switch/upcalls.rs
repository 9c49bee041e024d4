//! What an operator may ask of the upcall engine.

use std::fmt::Write;

use dpif::{Ufid, odp};

use super::Switch;
use crate::upcall::{self, DelReason, HandlerReport, PortMegaflows, PortUpcalls, Summary};

impl Switch {
    /// The upcall engine (`upcall/show`): the field's lines, then ours, about why flows were deleted, what each handler did, what
    /// became of all upcalls, and how many each port has and loses.
    pub fn upcall_show(&self) -> String {
        let Summary { current, average, max, limit, dump_ms, .. } = Summary::of(&self.backer);
        let ufid = !self.backer.revalidation.has_whole_dumps();
        let mut text = format!(
            "{}:\n  flows         : (current {current}) (avg {average}) (max {max}) (limit {limit})\n  \
             dump duration : {dump_ms}ms\n  ufid enabled : {ufid}\n\n",
            self.dpif_name()
        );
        // Each has its share of the shards.
        let (n, shards) = (self.backer.revalidation.len(), self.backer.ukeys.shards());
        for id in 0..n {
            let keys: usize = (id..shards).step_by(n).map(|shard| self.backer.ukeys.len_of(shard)).sum();
            let _ = writeln!(text, "  {id}: (keys {keys})");
        }
        for reason in DelReason::ALL {
            let flows = self.backer.ukeys.deleted(reason);
            if flows > 0 {
                let _ = writeln!(text, "  deleted: {reason} (flows {flows})");
            }
        }
        for HandlerReport { id, received, installed, latency, .. } in self.handler_reports() {
            let [median, late] = [0.5, 0.99].map(|part| latency.quantile(part) / 1000);
            let _ = writeln!(
                text,
                "  handler {id}: (upcalls {received}) (flows {installed}) (latency p50 {median}us p99 {late}us)"
            );
        }
        let totals = self.upcall_totals();
        let _ = write!(text, "  upcalls: (received {})", totals.received);
        for (outcome, n) in totals
            .outcomes()
            .into_iter()
            .chain([("bad records", totals.bad_record), ("lost for controllers", totals.packet_in_lost)])
        {
            if n > 0 {
                let _ = write!(text, " ({outcome} {n})");
            }
        }
        text.push('\n');
        for PortUpcalls { name, port, upcalls, lost, rate, lost_rate } in self.port_upcalls() {
            if upcalls > 0 || lost > 0 {
                let _ = writeln!(
                    text,
                    "  port {port} {name}: (upcalls {upcalls}) (lost {lost}) (per second {rate}) (lost per second {lost_rate})"
                );
            }
        }
        self.show_kinds(&mut text);
        self.show_ports(&mut text);
        text
    }

    /// What came up, by kind, as far as anything did.
    fn show_kinds(&self, text: &mut String) {
        let totals = self.upcall_totals();
        let kinds = [
            ("miss", totals.missed),
            ("slow_path", totals.slow_path),
            ("controller", totals.controller),
            ("sflow", totals.sflow),
            ("flow_sample", totals.flow_sample),
            ("ipfix", totals.ipfix),
            ("bad", totals.bad_cookie),
        ];
        if kinds.iter().any(|(_, n)| *n > 0) {
            text.push_str("  kinds:");
            for (name, n) in kinds {
                let _ = write!(text, " ({name} {n})");
            }
            text.push('\n');
        }
    }

    /// What ports have of the megaflows, where a cap was met.
    fn show_ports(&self, text: &mut String) {
        let caps = self.backer.limits().caps;
        for PortMegaflows { name, bridge, port, flows, masks, refused } in self.port_megaflows() {
            if refused > 0 {
                let limits = [caps.port_flows, caps.port_masks].map(|cap| match cap {
                    0 => String::new(),
                    cap => format!(" of {cap}"),
                });
                let [flow_limit, mask_limit] = limits;
                let _ = writeln!(
                    text,
                    "  port {port} {name} of {bridge}: (flows {flows}{flow_limit}) (masks {masks}{mask_limit}) (refused {refused})"
                );
            }
        }
    }

    /// What each port has of the megaflows, and what it did not get.
    pub fn port_megaflows(&self) -> Vec<PortMegaflows> {
        upcall::port_megaflows(&self.backer)
    }

    /// Masks that all megaflows have.
    pub fn n_masks(&self) -> usize {
        self.backer.census.n_masks()
    }

    /// Waits until all upcalls that the datapath has queued are answered, as far as no more come, two seconds at most.
    pub fn await_upcalls(&self) {
        if let Some(engine) = &*self.engine.lock() {
            engine.drain();
        }
    }

    /// Packets that found a rule in a table of a bridge, and packets that found none.
    ///
    /// # Errors
    /// There is no such bridge.
    pub fn table_stats(&self, bridge: &str, table: u8) -> super::Result<(u64, u64)> {
        Ok(self.bridge(bridge)?.table_stats.get(table))
    }

    /// Deletes the megaflows that this switch has installed or found, pushing their statistics to the rules before
    /// (`revalidator/purge`).
    pub fn purge_flows(&self) {
        upcall::purge(&self.backer);
    }

    /// Lets no round of the revalidators begin by itself until [`Switch::resume_revalidators`]; returns when none is running.
    /// [`Switch::revalidate_now`] works all the same, and so does whatever needs a round to be safe.
    pub fn pause_revalidators(&self) {
        self.backer.revalidation.pause();
    }

    /// Ends that.
    pub fn resume_revalidators(&self) {
        self.backer.revalidation.resume();
        self.backer.wake_revalidator();
    }

    /// Whether the revalidators are paused.
    pub fn revalidators_are_paused(&self) -> bool {
        self.backer.revalidation.is_paused()
    }

    /// Sets the dynamic flow limit, which the revalidators go on to adapt from there (`upcall/set-flow-limit`).
    pub fn set_dynamic_flow_limit(&self, limit: usize) {
        self.backer.adapted_limit.set(limit);
    }

    /// Whether flows are installed as wide as translation allows, whatever the options say. All flows go, so that it holds at
    /// once.
    pub fn set_megaflows(&self, megaflows: bool) {
        self.backer.set_limits(crate::backer::Limits { megaflows, ..self.backer.limits() });
        self.purge_flows();
    }

    /// Whether the revalidators' dumps ask for statistics by id alone, as they do at first, or for whole flows.
    pub fn set_terse_dumps(&self, terse: bool) {
        self.backer.revalidation.set_whole_dumps(!terse);
    }

    /// What is known of each megaflow, one a line (`upcall/dump-ukeys`), ports written by `names`.
    pub fn dump_ukeys(&self, names: odp::PortNames<'_>) -> String {
        let style = odp::Style { names, verbose: false, packet_type: self.backer.dpif.datapath_type() == "netdev" };
        let now = self.backer.clock.now_ms();
        let mut text = String::new();
        for ukey in self.backer.ukeys.all() {
            let (key, mask) = (ukey.flow.key(), ukey.flow.mask());
            let state = ukey.state.lock();
            let _ = write!(text, "{}, {}, ", ukey.ufid(), style.key(&key, Some(&mask)));
            let _ = write!(text, "{}, ", odp::format_stats(&state.pushed, now));
            let _ = write!(text, "actions:{}, state:{}, ", style.actions(&state.actions), state.phase());
            if let Some(reason) = state.reason() {
                let _ = write!(text, "reason:{reason}, ");
            }
            let age = now.saturating_sub(ukey.created_ms);
            let current = state.generation == self.backer.generation();
            let _ = writeln!(
                text,
                "age:{}.{:03}s, {}, missed_dumps:{}",
                age / 1000,
                age % 1000,
                if current { "up to date" } else { "to be translated" },
                state.missed
            );
        }
        text
    }

    /// The chain of rules that packets of a megaflow take (`ofproto/detrace`), or why there is none.
    pub fn detrace(&self, ufid: Ufid) -> String {
        let Some(ukey) = self.backer.ukeys.get(ufid) else {
            return format!("UFID was not found for {}\n", self.dpif_name());
        };
        let state = ukey.state.lock();
        if !state.phase().is_in_use() || state.effects.is_empty() {
            return format!("Cache was not found for {}\n", self.dpif_name());
        }
        super::show::effects_text(&state.effects, self.backer.clock.now_ms())
    }
}
