//! What is to become of a flow.

use std::sync::Arc;

use datapath_common::FlowKey;
use dpif::{Action, FlowStats};

use super::Round;
use super::adopt::sends_to_bridges;
use super::push::push;
use crate::backer::Backer;
use crate::upcall::handler::exact_mask;
use crate::upcall::probes;
use crate::upcall::slow::sends_up_unfit;
use crate::upcall::ukey::{DelReason, Ukey};
use crate::xlate::{Effect, XlateError, translate, translate_again};

pub(super) use crate::upcall::ukey::State;

/// Milliseconds that a flow may be idle when there are more flows than allowed.
const CROWDED_IDLE_MS: u64 = 100;

/// What holds for a batch of flows.
pub(super) struct Batch {
    now_ms: u64,
    /// There are so many flows that all have to go.
    kill_all: bool,
    max_idle_ms: u64,
}

impl Batch {
    pub(super) fn new(now_ms: u64, kill_all: bool, crowded: bool, max_idle_ms: u64) -> Self {
        Self { now_ms, kill_all, max_idle_ms: if crowded { CROWDED_IDLE_MS } else { max_idle_ms } }
    }

    /// Why a flow that was used at `idle_since` has to go, whatever else there is to say of it.
    pub(super) fn end_of(&self, idle_since: u64) -> Option<DelReason> {
        let idle = self.now_ms.saturating_sub(idle_since) > self.max_idle_ms;
        match self.kill_all {
            true => Some(DelReason::FlowLimit),
            false => idle.then_some(DelReason::Idle),
        }
    }
}

/// What is to become of a flow.
pub(super) enum Verdict {
    /// It is right as it is.
    Keep,
    /// It goes.
    Delete(DelReason),
    /// Its packets do something else now.
    Modify(Arc<[Action]>, Box<[Effect]>),
}

/// A verdict as those see it who only look on.
pub(in crate::upcall) enum Outcome {
    Keep,
    Delete(DelReason),
    Modify,
}

impl Verdict {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Keep => Outcome::Keep,
            Self::Delete(reason) => Outcome::Delete(*reason),
            Self::Modify(..) => Outcome::Modify,
        }
    }
}

/// Looks at flows in a round.
pub(super) struct Judge<'a> {
    pub(super) backer: &'a Backer,
    pub(super) round: &'a Round,
}

/// What came of another translation.
enum Again {
    Delete(DelReason),
    /// It can't be translated, and nobody is led to it any more: it is for the packets that are under way.
    RunsOn,
    Same(Vec<Effect>),
    Differs(Vec<Action>, Vec<Effect>),
}

impl Again {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Delete(reason) => Outcome::Delete(*reason),
            Self::RunsOn | Self::Same(_) => Outcome::Keep,
            Self::Differs(..) => Outcome::Modify,
        }
    }
}

impl Judge<'_> {
    /// Pushes what an operational flow counted, and translates it again where the configuration has changed.
    ///
    /// What was counted goes to whom the flow belonged until now. The statistics of a flow that is to be deleted are pushed
    /// when it is.
    pub(super) fn revalidate(&self, ukey: &Ukey, state: &mut State, stats: &FlowStats) -> Verdict {
        if state.generation == self.round.generation {
            push(self.backer, ukey, state, stats);
            return Verdict::Keep;
        }
        if !self.is_worth_it(state, stats) {
            return Verdict::Delete(DelReason::TooExpensive);
        }
        probes::revalidate_entry(self.backer, ukey, stats.tcp_flags);
        let again = self.translate_again(ukey, state);
        probes::revalidate_exit(self.backer, ukey, &again.outcome());
        let (actions, effects) = match again {
            Again::Delete(reason) => return Verdict::Delete(reason),
            Again::Same(effects) => (None, effects),
            Again::RunsOn => {
                push(self.backer, ukey, state, stats);
                state.generation = self.round.generation;
                return Verdict::Keep;
            }
            Again::Differs(actions, effects) => (Some(actions), effects),
        };
        // A flow that was found was never translated: nobody else is there to count for. It has the ids of an earlier process
        // until its actions are replaced.
        if state.generation == 0 {
            let inherited = state.effects.iter().filter(|effect| matches!(effect, Effect::Inherit(_)));
            state.effects = inherited.chain(&effects).cloned().collect();
        }
        push(self.backer, ukey, state, stats);
        state.generation = self.round.generation;
        match actions {
            Some(actions) => Verdict::Modify(actions.into(), effects.into()),
            None => {
                state.effects = effects.into();
                Verdict::Keep
            }
        }
    }

    /// Whether a flow has so many packets that to translate it is worth more than to let it be set up anew. Only where rounds
    /// take long: else all can be translated.
    fn is_worth_it(&self, state: &State, stats: &FlowStats) -> bool {
        let limits = &self.round.limits;
        let pps = limits.min_revalidate_pps;
        // One that nothing is known of yet is always looked at.
        if pps == 0 || state.pushed.used_ms == 0 || state.generation == 0 {
            return true;
        }
        if self.round.last_ms < limits.max_revalidator_ms / 2 {
            return true;
        }
        let packets = stats.packets.saturating_sub(state.pushed.packets).max(1);
        let elapsed = self.backer.clock.now_ms().saturating_sub(state.pushed.used_ms);
        elapsed / packets < 1000 / pps
    }

    fn translate_again(&self, ukey: &Ukey, state: &State) -> Again {
        coverage::inc!("revalidate_flow");
        // What the datapath doesn't see of its packets, a translation of its key would not look at either.
        if sends_up_unfit(&state.actions) {
            return Again::Delete(DelReason::BadFit);
        }
        // Bits that the flow doesn't match on are 0 here. If they matter now, the new mask has them, and the flow goes.
        let (key, installed) = (ukey.flow.key(), ukey.flow.mask());
        let again = if self.round.limits.megaflows {
            translate_again(&self.round.config, &key, &installed)
        } else {
            translate(&self.round.config, &key)
        };
        let Some(xlate) = again else { return Again::Delete(DelReason::NoOfproto) };
        if xlate.error == Some(XlateError::NoRecirculationContext) {
            return self.without_context(&key, state);
        }
        let mask = if self.round.limits.megaflows { xlate.mask } else { exact_mask(&key, &self.backer.features) };
        if !installed.covers(&mask) {
            return Again::Delete(DelReason::Wildcarded);
        }
        let actions = xlate.flow_actions();
        if *actions == *state.actions {
            return Again::Same(xlate.effects);
        }
        Again::Differs(actions, xlate.effects)
    }

    /// A flow for packets with a recirculation id that stands for nothing.
    fn without_context(&self, key: &FlowKey, state: &State) -> Again {
        let config = &self.round.config;
        if !config.recirc.is_inherited(key.recirc_id) {
            return Again::Delete(DelReason::XlateError);
        }
        match sends_to_bridges(config, &state.actions) {
            true => Again::RunsOn,
            false => Again::Delete(DelReason::NoOfproto),
        }
    }
}
