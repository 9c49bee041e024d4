//! Flows that are in the datapath and that we have no ukey for: an earlier process installed them, or an operator.
//!
//! They get a ukey, and are translated before anything else: what fits stays and goes on without a packet lost, what doesn't
//! is modified or deleted. What they counted until then belongs to rules of the past.

use std::sync::Arc;

use dpif::{Action, DatapathFlow, DpifError, Ufid};

use crate::backer::Backer;
use crate::upcall::handler::failed;
use crate::upcall::ukey::{MaskedKey, Ukey};

/// Adopts all flows of the datapath; those that can't be are deleted.
pub(super) fn adopt_all(backer: &Backer) -> dpif::Result<()> {
    let mut foreign = Vec::new();
    backer.dpif.flow_dump(&mut |flow| {
        // Others are from before the threads were stopped.
        if backer.ukeys.get(flow.ufid).is_none() && adopt(backer, flow).is_none() {
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
        Err(error) => {
            failed(backer, format_args!("looking at the unexpected flow {ufid}: {error}"));
            return None;
        }
    };
    let adopted = adopt(backer, &flow);
    if adopted.is_none() {
        delete(backer, ufid);
    }
    adopted
}

fn adopt(backer: &Backer, flow: &DatapathFlow) -> Option<Arc<Ukey>> {
    if recirculates(flow) {
        tracing::debug!("flow {} can't be adopted: its recirculation id is another process's", flow.ufid);
        return None;
    }
    let masked = MaskedKey::new(&flow.key, &flow.mask);
    let ukey = Ukey::new(flow.ufid, masked, backer.clock.now_ms(), 0, Arc::clone(&flow.actions), Box::default());
    let ukey = Ukey { counted: backer.census.count(flow.key.in_port, &flow.mask), ..ukey };
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

/// Recirculation ids mean nothing to another process.
fn recirculates(flow: &DatapathFlow) -> bool {
    flow.key.recirc_id != 0 || flow.actions.iter().any(|action| matches!(action, Action::Recirc(_)))
}
