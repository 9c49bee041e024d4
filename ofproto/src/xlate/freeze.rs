//! Stopping a translation in the middle, and going on with it (see [`crate::recirc`]).
//!
//! Lists of actions nest by resubmission. When one of them asks for recirculation, each list on the way out leaves behind what
//! it has not carried out, the innermost first; the pipeline's end makes a state of it.

use std::sync::Arc;

use datapath_common::Be64;
use dpif::Action;

use super::context::Context;
use super::{Effect, XlateError};
use crate::recirc::{Frozen, FrozenTunnel, Recirc, Rest};

impl Context<'_> {
    /// What is in the pipeline only, with nothing left to do.
    pub(super) fn pipeline_state(&mut self) -> Frozen {
        let id = self.flow.key.tun_id.get();
        // Whether the id is the packet's is known from what was written, which is looked at; the whole id is not.
        if self.tunnel == FrozenTunnel::AsItCame && self.flow.key.tun_id != self.packet.key.tun_id {
            self.wildcards.key.tun_id = Be64::new(u64::MAX);
            self.tunnel = FrozenTunnel::Id(id);
        }
        let tunnel = match self.tunnel {
            FrozenTunnel::AsItCame => FrozenTunnel::AsItCame,
            FrozenTunnel::Id(_) => FrozenTunnel::Id(id),
            FrozenTunnel::Left(_) => FrozenTunnel::Left(id),
        };
        Frozen {
            bridge: Arc::clone(&self.bridge.name),
            in_port: self.flow.in_port(),
            metadata: self.flow.metadata(),
            regs: std::array::from_fn(|n| self.flow.reg(n)),
            tunnel,
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
        self.tunnel = state.tunnel;
        match state.tunnel {
            FrozenTunnel::AsItCame => {}
            FrozenTunnel::Id(id) => self.flow.key.tun_id = Be64::new(id),
            FrozenTunnel::Left(id) => {
                self.flow.clear_tunnel();
                self.flow.key.tun_id = Be64::new(id);
            }
        }
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
