//! What the upcall engine tells who traces it.

use crate::backer::Backer;

use super::revalidator::Outcome;
use super::ukey::Ukey;

/// A round begins, with so many flows.
pub(super) fn start_dump(backer: &Backer, flows: usize) {
    probes::start_dump(backer, flows);
}

/// A round has ended; the next begins at the latest `interval_ms` after it began.
pub(super) fn sweep_done(backer: &Backer, flows: usize, interval_ms: u64) {
    probes::sweep_done(backer, flows, interval_ms);
}

/// A flow is about to be translated again.
pub(super) fn revalidate_entry(backer: &Backer, ukey: &Ukey, tcp_flags: u16) {
    probes::revalidate_ukey_entry(backer, ukey, tcp_flags);
}

/// It has been.
pub(super) fn revalidate_exit(backer: &Backer, ukey: &Ukey, outcome: &Outcome) {
    probes::revalidate_ukey_exit(backer, ukey, numbers(outcome).0);
}

/// What became of a flow that was dumped.
pub(super) fn flow_result(backer: &Backer, ukey: &Ukey, outcome: &Outcome) {
    let (result, reason) = numbers(outcome);
    probes::flow_result(backer, ukey, result, reason);
}

/// What became of a flow that was swept.
pub(super) fn flow_sweep_result(backer: &Backer, ukey: &Ukey, outcome: &Outcome) {
    let (result, reason) = numbers(outcome);
    probes::flow_sweep_result(backer, ukey, result, reason);
}

/// An outcome by the field's numbers: `enum reval_result`, `enum flow_del_reason`.
fn numbers(outcome: &Outcome) -> (u32, u32) {
    match outcome {
        Outcome::Keep => (0, 0),
        Outcome::Delete(reason) => (1, reason.code() as u32),
        Outcome::Modify => (2, 0),
    }
}
