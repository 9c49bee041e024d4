//! Stopping a translation in the middle, and going on with it (see [`crate::recirc`]).
//!
//! Lists of actions nest by resubmission. When one of them asks for recirculation, each list on the way out leaves behind what
//! it has not carried out, the innermost first; the pipeline's end makes a state of it.

use std::sync::Arc;

use dpif::Action;

use super::context::Context;
use super::{Effect, XlateError};
use crate::recirc::{Frozen, Recirc, Rest};

impl Context<'_> {
    /// What is in the pipeline only, with nothing left to do.
    pub(super) fn pipeline_state(&self) -> Frozen {
        Frozen {
            bridge: Arc::clone(&self.bridge.name),
            in_port: self.flow.in_port(),
            metadata: self.flow.metadata(),
            regs: std::array::from_fn(|n| self.flow.reg(n)),
            trunc: None,
            set: Vec::new(),
            rest: Vec::new(),
            packet_in: None,
        }
    }

    /// The rest of all lists is to be done after a recirculation.
    pub(super) fn freeze(&mut self) {
        if !self.config.features.recirc {
            return self.give_up(XlateError::NoRecirculation);
        }
        self.frozen = Some(Vec::new());
    }

    /// A list ends here with these actions not carried out, if the translation is being frozen. Says whether it is.
    pub(super) fn leave(&mut self, rest: &[openflow::Action]) -> bool {
        let (table, cookie) = (self.table, self.rule_cookie);
        let Some(frozen) = &mut self.frozen else { return false };
        if !rest.is_empty() {
            frozen.push(Rest { table, cookie, actions: rest.to_vec() });
        }
        true
    }

    /// The end of a pipeline: the action set, or the recirculation after which it goes on.
    pub(super) fn finish_pipeline(&mut self) {
        if self.frozen.is_none() {
            self.run_action_set();
        }
        let Some(rest) = self.frozen.take().filter(|_| !self.is_over()) else { return };
        self.commit();
        let set = std::mem::take(&mut self.set);
        let state = Frozen { trunc: self.trunc, set, rest, ..self.pipeline_state() };
        let recirc = self.config.recirc.of(state);
        self.emit(Action::Recirc(recirc.id()));
        self.effects.push(Effect::Hold(recirc));
    }

    /// Goes on where a state was frozen.
    pub(super) fn thaw(&mut self, recirc: Arc<Recirc>) {
        let state = recirc.state();
        self.flow.set_metadata(state.metadata);
        state.regs.iter().enumerate().for_each(|(n, reg)| self.flow.set_reg(n, *reg));
        self.trunc = state.trunc;
        self.set.clone_from(&state.set);
        for (i, rest) in state.rest.iter().enumerate() {
            (self.table, self.rule_cookie) = (rest.table, rest.cookie);
            self.run_actions(&rest.actions);
            if let Some(frozen) = &mut self.frozen {
                frozen.extend(state.rest.iter().skip(i + 1).cloned());
                break;
            }
        }
        // A flow that matches on the number holds it.
        self.effects.push(Effect::Hold(Arc::clone(&recirc)));
        self.finish_pipeline();
    }
}
