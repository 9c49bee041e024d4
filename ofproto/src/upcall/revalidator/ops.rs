//! The datapath's part of a round, in batches: flows deleted and modified.

use std::sync::Arc;

use dpif::{Action, DpifError, DpifOp, FlowPut, PutMode, Ufid};

use super::push::push;
use crate::backer::Backer;
use crate::upcall::handler::failed;
use crate::upcall::ukey::{DelReason, State, Ukey};
use crate::xlate::Effect;

/// Operations of a batch, about: its deletions share one wait for the datapath's programs, which takes some milliseconds.
pub(super) const MANY: usize = 1024;

/// Operations that wait to be carried out.
pub(super) struct Ops<'a> {
    backer: &'a Backer,
    waiting: Vec<(Arc<Ukey>, What)>,
}

enum What {
    Delete,
    Modify(Arc<[Action]>, Box<[Effect]>),
}

impl<'a> Ops<'a> {
    pub(super) fn new(backer: &'a Backer) -> Self {
        Self { backer, waiting: Vec::new() }
    }

    /// A flow is to be deleted. Nothing where it isn't the caller's to delete.
    pub(super) fn delete(&mut self, ukey: &Arc<Ukey>, state: &mut State, reason: DelReason) {
        if state.begin_to_evict(reason) {
            count(reason);
            tracing::debug!("deleting {}: {reason}", ukey.ufid());
            self.waiting.push((Arc::clone(ukey), What::Delete));
        }
    }

    /// A flow whose deletion failed is to be deleted again.
    pub(super) fn delete_again(&mut self, ukey: &Arc<Ukey>, state: &mut State) {
        state.deletion_failed = false;
        self.waiting.push((Arc::clone(ukey), What::Delete));
    }

    /// An operational flow is to do something else with its packets, which then change something else.
    pub(super) fn modify(&mut self, ukey: &Arc<Ukey>, actions: Arc<[Action]>, effects: Box<[Effect]>) {
        self.waiting.push((Arc::clone(ukey), What::Modify(actions, effects)));
    }

    /// Carries them out when there are many.
    pub(super) fn run_if_many(&mut self) {
        if self.waiting.len() >= MANY {
            self.run();
        }
    }

    /// Carries them out. The ukeys of deleted flows stay in the table, evicted.
    pub(super) fn run(&mut self) {
        // They wait until all of it is done.
        let waiting = &self.waiting;
        let puts: Vec<_> = waiting.iter().map(|(ukey, what)| modification(ukey, what)).collect();
        let mut ops = Vec::with_capacity(waiting.len());
        for ((ukey, _), put) in waiting.iter().zip(&puts) {
            ops.push(match put {
                Some(put) => DpifOp::FlowPut { put, result: Err(DpifError::NoSuchFlow) },
                None => deletion(ukey.ufid()),
            });
        }
        if ops.is_empty() {
            return;
        }
        self.backer.dpif.operate(&mut ops);
        for ((ukey, what), op) in waiting.iter().zip(ops) {
            match (what, op) {
                (What::Modify(actions, effects), DpifOp::FlowPut { result, .. }) => {
                    self.modified(ukey, actions, effects, result);
                }
                (_, DpifOp::FlowDel { result, .. }) => self.deleted(ukey, result),
                _ => {}
            }
        }
        self.waiting.clear();
    }

    fn modified(&self, ukey: &Ukey, actions: &Arc<[Action]>, effects: &[Effect], result: dpif::Result<()>) {
        let mut state = ukey.state.lock();
        match result {
            Ok(()) => {
                coverage::inc!("revalidate_modified");
                state.actions = Arc::clone(actions);
                state.effects = effects.into();
            }
            Err(error) => {
                // What the datapath does with its packets is not known: the next sweep deletes it.
                state.becomes_inconsistent();
                drop(state);
                failed(self.backer, format_args!("modifying {}: {error}", ukey.ufid()));
            }
        }
    }

    fn deleted(&self, ukey: &Ukey, result: dpif::Result<dpif::FlowStats>) {
        let mut state = ukey.state.lock();
        match result {
            Ok(stats) => push(self.backer, ukey, &mut state, &stats),
            Err(DpifError::NoSuchFlow) => {}
            // What the flow holds, such as a recirculation id, it holds as long as it may be there: the next sweep deletes it.
            Err(error) => {
                state.deletion_failed = true;
                return failed(self.backer, format_args!("deleting {}: {error}", ukey.ufid()));
            }
        }
        state.is_evicted();
    }
}

/// What was not carried out, because of a panic, the next sweep does.
impl Drop for Ops<'_> {
    fn drop(&mut self) {
        for (ukey, what) in self.waiting.drain(..) {
            let mut state = ukey.state.lock();
            match what {
                What::Delete => state.deletion_failed = true,
                What::Modify(..) => {
                    state.becomes_inconsistent();
                }
            }
        }
    }
}

fn modification(ukey: &Ukey, what: &What) -> Option<FlowPut> {
    let What::Modify(actions, _) = what else { return None };
    let (key, mask) = (ukey.flow.key(), ukey.flow.mask());
    Some(FlowPut { mode: PutMode::Modify, ufid: ukey.ufid(), key, mask, actions: Arc::clone(actions) })
}

fn deletion<'a>(ufid: Ufid) -> DpifOp<'a> {
    DpifOp::FlowDel { ufid, result: Err(DpifError::NoSuchFlow) }
}

/// Counts a deletion by its reason.
fn count(reason: DelReason) {
    match reason {
        DelReason::AvoidCaching => coverage::inc!("upcall_flow_del_avoid_caching"),
        DelReason::BadFit => coverage::inc!("upcall_flow_del_bad_odp_fit"),
        DelReason::Idle => coverage::inc!("upcall_flow_del_idle_timeout"),
        DelReason::FlowLimit => coverage::inc!("upcall_flow_del_flow_limit"),
        DelReason::Wildcarded => coverage::inc!("upcall_flow_del_wildcarded"),
        DelReason::NoOfproto => coverage::inc!("upcall_flow_del_no_ofproto"),
        DelReason::Purge => coverage::inc!("upcall_flow_del_purge"),
        DelReason::TooExpensive => coverage::inc!("upcall_flow_del_too_expensive"),
        DelReason::UpdateFailed => coverage::inc!("upcall_flow_del_update_fail"),
        DelReason::XlateError => coverage::inc!("upcall_flow_del_xlation_error"),
        DelReason::MissingInDatapath => coverage::inc!("upcall_flow_del_missing_dp"),
        DelReason::InstallFailed => coverage::inc!("upcall_flow_del_install_failed"),
        DelReason::MaskEvicted => coverage::inc!("upcall_flow_del_mask_evicted"),
    }
}
