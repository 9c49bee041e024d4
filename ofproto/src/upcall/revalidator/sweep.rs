//! The second phase of a round: our ukeys, shard by shard.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Round;
use super::dump::carry_out;
use super::judge::{Judge, Verdict};
use super::ops::{MANY, Ops};
use crate::backer::Backer;
use crate::upcall::probes;
use crate::upcall::ukey::{DelReason, Phase, State, Ukey};

/// Dumps in a row that may miss a flow before it is taken for gone.
const MAX_MISSED: u32 = 4;

/// Works on parts of the ukeys until none is left. A purge lets every flow go.
pub(super) fn work(backer: &Backer, round: &Round, purge: bool) {
    let judge = Judge { backer, round };
    let (mut ops, mut sweep) = (Ops::new(backer), Sweep::default());
    while let Some(part) = round.take(backer.ukeys.shards()) {
        sweep.part(&judge, &mut ops, part, purge);
    }
    sweep.finish(backer, &mut ops);
}

/// A sweep in progress.
#[derive(Default)]
pub(super) struct Sweep {
    /// Ukeys whose flows are gone, or will be when the operations that wait have run.
    gone: Vec<Arc<Ukey>>,
}

impl Sweep {
    /// Looks at each ukey of a part.
    pub(super) fn part(&mut self, judge: &Judge<'_>, ops: &mut Ops<'_>, part: usize, purge: bool) {
        let backer = judge.backer;
        backer.ukeys.with_part(part, |ukeys| {
            for ukey in ukeys.iter() {
                // A handler has it while it installs its flow.
                let Some(mut state) = ukey.state.try_lock() else {
                    coverage::inc!("upcall_ukey_contention");
                    continue;
                };
                match state.phase() {
                    Phase::Operational | Phase::Inconsistent => {
                        let verdict = look(judge, ukey, &mut state, purge);
                        probes::flow_sweep_result(backer, ukey, &verdict.outcome());
                        if matches!(verdict, Verdict::Delete(_)) {
                            self.gone.push(Arc::clone(ukey));
                        }
                        carry_out(ops, ukey, &mut state, verdict);
                    }
                    Phase::Evicting if state.deletion_failed => {
                        ops.delete_again(ukey, &mut state);
                        self.gone.push(Arc::clone(ukey));
                    }
                    // Deleted in the dump, by an operation that has run or waits to.
                    Phase::Evicting | Phase::Evicted => self.gone.push(Arc::clone(ukey)),
                    _ => {}
                }
            }
        });
        if self.gone.len() >= MANY {
            self.finish(backer, ops);
        }
    }

    /// Carries out what waits, and takes out the ukeys whose flows are gone.
    pub(super) fn finish(&mut self, backer: &Backer, ops: &mut Ops<'_>) {
        ops.run();
        for ukey in self.gone.drain(..) {
            // Where it isn't evicted (somebody holds it, a modification failed), the next sweep finds it.
            backer.ukeys.remove(&ukey);
        }
    }
}

fn look(judge: &Judge<'_>, ukey: &Ukey, state: &mut State, purge: bool) -> Verdict {
    let round = judge.round;
    if purge {
        return Verdict::Delete(DelReason::Purge);
    }
    if state.phase() == Phase::Inconsistent {
        return Verdict::Delete(DelReason::UpdateFailed);
    }
    if state.seen_in_pass == round.number {
        return Verdict::Keep;
    }
    // One that is installed after its part was dumped has been translated in time.
    let verdict = if state.generation == round.generation {
        Verdict::Keep
    } else {
        coverage::inc!("revalidate_missed_dp_flow");
        let known = state.pushed;
        judge.revalidate(ukey, state, &known)
    };
    if !round.incomplete.load(Ordering::Relaxed) {
        state.missed += 1;
        if state.missed >= MAX_MISSED {
            coverage::inc!("revalidate_missing_dp_flow");
            return Verdict::Delete(DelReason::MissingInDatapath);
        }
    }
    verdict
}
