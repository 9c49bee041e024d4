//! Flows that are in the datapath and that we have no ukey for: an earlier process installed them, or an operator.
//!
//! They get a ukey, and are translated before anything else: what fits stays and goes on without a packet lost, what doesn't
//! is modified or deleted. What they counted until then belongs to rules of the past.
//!
//! **Recirculation ids** of an earlier process stand for nothing any more. A flow that leads to one is translated again like
//! others, and gets an id of ours. A flow that matches on one can't be translated; it runs on as it is, for the packets that are
//! under way, until it is idle, or sends to a port that is on no bridge any more. Nobody else gets such an id before. That is for
//! flows that are there at the first start: who puts such a flow later is a stranger, and it is deleted.

use std::sync::Arc;

use dpif::odp::{Cookie, CookieKind};
use dpif::{Action, DatapathFlow, DpifError, Ufid, UserspaceAction};

use crate::backer::Backer;
use crate::bridge::Config;
use crate::upcall::handler::failed;
use crate::upcall::ukey::{MaskedKey, Ukey};
use crate::xlate::Effect;

/// Adopts all flows of the datapath; those that can't be are deleted. `first`: an earlier process left them, ids included.
pub(super) fn adopt_all(backer: &Backer, first: bool) -> dpif::Result<()> {
    let mut foreign = Vec::new();
    backer.dpif.flow_dump(&mut |flow| {
        // Others are from before the threads were stopped.
        if backer.ukeys.get(flow.ufid).is_none() && adopt(backer, flow, first).is_none() {
            foreign.push(flow.ufid);
        }
        true
    })?;
    foreign.into_iter().for_each(|ufid| delete(backer, ufid));
    Ok(())
}

/// Adopts a flow that turned up; if it can't be, it is deleted.
pub(super) fn adopt_one(backer: &Backer, ufid: Ufid) -> Option<Arc<Ukey>> {
    let flow = match backer.dpif.flow_get(ufid) {
        Ok(flow) => flow,
        Err(DpifError::NoSuchFlow) => return None,
        // What nobody can read nobody can keep.
        Err(error) => {
            failed(backer, format_args!("looking at the unexpected flow {ufid}, which goes: {error}"));
            delete(backer, ufid);
            return None;
        }
    };
    let adopted = adopt(backer, &flow, false);
    if adopted.is_none() {
        delete(backer, ufid);
    }
    adopted
}

fn adopt(backer: &Backer, flow: &DatapathFlow, inherits: bool) -> Option<Arc<Ukey>> {
    let mut ids = Vec::new();
    recirculations(&flow.actions, &mut ids);
    ids.extend((flow.key.recirc_id != 0).then_some(flow.key.recirc_id));
    if !ids.is_empty() && !inherits {
        tracing::debug!("flow {} can't be adopted: its recirculation id is not ours", flow.ufid);
        return None;
    }
    let config = backer.config();
    let holds = ids.iter().filter_map(|id| config.recirc.inherit(*id)).map(Effect::Inherit).collect();
    let masked = MaskedKey::new(&flow.key, &flow.mask);
    let mut ukey = Ukey::new(flow.ufid, masked, backer.clock.now_ms(), 0, Arc::clone(&flow.actions), holds);
    ukey.counted = backer.census.count(flow.key.in_port, &flow.mask);
    ukey.state.lock().pushed = flow.stats;
    let adopted = backer.ukeys.adopt(ukey).ok();
    if adopted.is_some() {
        coverage::inc!("upcall_flow_adopted");
    }
    adopted
}

fn delete(backer: &Backer, ufid: Ufid) {
    coverage::inc!("upcall_unexpected_flow_deleted");
    match backer.dpif.flow_del(ufid) {
        Ok(_) | Err(DpifError::NoSuchFlow) => {}
        Err(error) => failed(backer, format_args!("deleting the unexpected flow {ufid}: {error}")),
    }
}

/// Recirculation ids that actions lead to, or under which they say what the controllers are told.
fn recirculations(actions: &[Action], ids: &mut Vec<u32>) {
    for_each(actions, &mut |action| match action {
        Action::Recirc(id) => ids.push(*id),
        Action::Userspace(UserspaceAction { cookie, .. }) => {
            if let Some(CookieKind::Controller { recirc_id, .. }) = Cookie::decode(cookie).map(|cookie| cookie.kind) {
                ids.extend((recirc_id != 0).then_some(recirc_id));
            }
        }
        _ => {}
    });
}

/// Whether all ports that actions send to are on a bridge.
pub(super) fn sends_to_bridges(config: &Config, actions: &[Action]) -> bool {
    let mut all = true;
    for_each(actions, &mut |action| {
        if let Action::Output(port) = action {
            all &= config.port_of(*port).is_some();
        }
    });
    all
}

/// Calls `visit` with each action, those within others included.
fn for_each(actions: &[Action], visit: &mut dyn FnMut(&Action)) {
    for action in actions {
        visit(action);
        match action {
            Action::Clone(inner) | Action::DecTtl(inner) | Action::Sample { actions: inner, .. } => {
                for_each(inner, visit);
            }
            Action::CheckPktLen { if_greater, if_less_equal, .. } => {
                for_each(if_greater, visit);
                for_each(if_less_equal, visit);
            }
            _ => {}
        }
    }
}
