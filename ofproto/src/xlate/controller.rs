//! Packets for the controllers: the datapath sends them up as they are now, with a cookie that says why.
//!
//! What the cookie has no room for (metadata, registers, the bytes that go along) is frozen under a number, as for a
//! recirculation. The megaflow holds the number as long as it is there.

use datapath_common::Be64;
use dpif::odp::{Cookie, CookieKind};
use dpif::{Action, UserspaceAction};
use openflow::{Controller, PacketInReason};

use super::Effect;
use super::context::Context;
use crate::recirc::{Frozen, PacketInState};

/// The reason "an action of a table-miss rule" (`OFPR_EXPLICIT_MISS`): the reference's own, next to OpenFlow's six.
pub(crate) const EXPLICIT_MISS: u16 = 6;

impl Context<'_> {
    /// Sends the packet to controllers.
    pub(super) fn controller(&mut self, controller: &Controller) {
        let Controller { max_len, reason, id, userdata } = controller;
        self.commit();
        let packet_in = PacketInState { table: self.table, userdata: userdata.clone() };
        let state = Frozen { packet_in: Some(packet_in), ..self.pipeline_state() };
        let recirc = self.config.recirc.of(state);
        let reason = match reason {
            PacketInReason::Action if self.table_miss => EXPLICIT_MISS,
            reason => *reason as u16,
        };
        let kind = CookieKind::Controller {
            dont_send: false,
            continuation: false,
            reason,
            recirc_id: recirc.id(),
            rule_cookie: Be64::new(self.rule_cookie),
            controller_id: *id,
            max_len: *max_len,
        };
        let cookie = Cookie { in_port: self.flow.in_port().0.into(), bridge: self.bridge.id(), kind }.encode();
        // Without samples a meter would drop what else becomes of the packet, so there is none.
        let meter = self.config.slow_paths.controller_meter.filter(|_| self.config.features.sample_nesting > 0);
        self.emit(metered(Action::Userspace(UserspaceAction { cookie, ..Default::default() }), meter));
        self.effects.push(Effect::Hold(recirc));
    }
}

/// An action under a meter, if there is one. The meter must not drop what else becomes of the packet, so both get a copy.
pub(super) fn metered(action: Action, meter: Option<u32>) -> Action {
    match meter {
        None => action,
        Some(id) => Action::Sample { probability: u32::MAX, actions: vec![Action::Meter(id), action] },
    }
}

/// The list without the meters of [`metered`]: what it takes to run it apart from those, which a datapath that has one has too.
pub(super) fn unmetered(actions: &[Action]) -> Vec<Action> {
    let of = |action: &Action| match action {
        Action::Sample { probability: u32::MAX, actions } => match actions.as_slice() {
            [Action::Meter(_), up @ Action::Userspace(_)] => up.clone(),
            _ => action.clone(),
        },
        _ => action.clone(),
    };
    actions.iter().map(of).collect()
}
