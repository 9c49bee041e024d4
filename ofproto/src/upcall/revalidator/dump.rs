//! The first phase of a round: the datapath's statistics, flow by flow.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dpif::FlowStats;

use super::judge::{Batch, Judge, State, Verdict};
use super::ops::Ops;
use super::sweep::Sweep;
use super::{BATCH, Round, adopt};
use crate::backer::Backer;
use crate::upcall::probes;
use crate::upcall::ukey::{DelReason, Phase, Ukey};

/// Works on pieces of the dump until none is left.
pub(super) fn work(backer: &Backer, round: &Round) {
    let (mut flows, mut ops) = (Vec::new(), Ops::new(backer));
    let judge = Judge { backer, round };
    let pieces = round.source.pieces();
    while let Some(piece) = round.take(pieces) {
        round.source.read(backer, round, piece, &mut flows);
        for flows in flows.chunks(BATCH) {
            let batch = look(backer, round);
            for (ufid, stats) in flows {
                if let Some(ukey) = backer.ukeys.get(*ufid).or_else(|| adopt::adopt_one(backer, *ufid)) {
                    dumped(&judge, &mut ops, &batch, &ukey, stats);
                }
            }
            ops.run_if_many();
        }
    }
    ops.run();
}

/// Works on parts of datapath and ukeys, where both are cut in the same way, until none is left. What a part's dump shows and
/// misses is known when it ends, so its sweep follows at once, while its ukeys are in the processor's cache.
pub(super) fn work_both(backer: &Backer, round: &Round) {
    let (mut flows, mut unknown) = (Vec::new(), Vec::new());
    let (mut ops, mut sweep) = (Ops::new(backer), Sweep::default());
    let judge = Judge { backer, round };
    while let Some(part) = round.take(backer.ukeys.shards()) {
        round.source.read(backer, round, part, &mut flows);
        for flows in flows.chunks(BATCH) {
            let batch = look(backer, round);
            // Nobody puts a flow up while this runs, so it is for one batch at a time.
            backer.ukeys.with_part(part, |ukeys| {
                let mut known = [const { None }; BATCH];
                // To find a ukey is to wait for memory. Found one behind the other, before any of them is locked, the waits
                // overlap.
                for (to, (ufid, _)) in known.iter_mut().zip(flows) {
                    *to = ukeys.get(*ufid);
                }
                for ((ufid, stats), ukey) in flows.iter().zip(known) {
                    match ukey {
                        Some(ukey) => dumped(&judge, &mut ops, &batch, ukey, stats),
                        None => unknown.push((*ufid, *stats)),
                    }
                }
            });
            for (ufid, stats) in unknown.drain(..) {
                if let Some(ukey) = adopt::adopt_one(backer, ufid) {
                    dumped(&judge, &mut ops, &batch, &ukey, &stats);
                }
            }
            ops.run_if_many();
        }
        sweep.part(&judge, &mut ops, part, false);
    }
    sweep.finish(backer, &mut ops);
}

/// Looks at how many flows there are, which says how long an idle one may stay.
fn look(backer: &Backer, round: &Round) -> Batch {
    let (flows, limit) = (backer.ukeys.len(), round.flow_limit);
    if flows >= limit {
        coverage::inc!("upcall_flow_limit_hit");
    }
    let kill_all = flows > 2 * limit;
    if kill_all {
        coverage::inc!("upcall_flow_limit_kill");
        if !round.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "Number of datapath flows ({flows}) twice as high as current dynamic flow limit ({limit}).  \
                 Starting to delete flows unconditionally as an emergency measure."
            );
        }
    }
    let now_ms = backer.clock.now_ms();
    Batch::new(now_ms, kill_all, flows > limit, round.limits.max_idle_ms)
}

fn dumped(judge: &Judge<'_>, ops: &mut Ops<'_>, batch: &Batch, ukey: &Arc<Ukey>, stats: &FlowStats) {
    let (backer, round) = (judge.backer, judge.round);
    // Whoever has it looks after it.
    let Some(mut state) = ukey.state.try_lock() else {
        coverage::inc!("upcall_ukey_contention");
        return;
    };
    if state.seen_in_pass == round.number {
        coverage::inc!("dumped_duplicate_flow");
        return;
    }
    match state.phase() {
        Phase::Operational => {}
        Phase::Inconsistent => {
            coverage::inc!("dumped_inconsistent_flow");
            state.seen_in_pass = round.number;
            ops.delete(ukey, &mut state, DelReason::UpdateFailed);
            return;
        }
        // A handler's, until it knows what the datapath said; or somebody is deleting it.
        _ => return,
    }
    if state.seen_in_pass == 0 {
        coverage::inc!("dumped_new_flow");
    }
    (state.seen_in_pass, state.missed) = (round.number, 0);
    let idle_since = stats.used_ms.max(ukey.created_ms);
    let packets = stats.packets.saturating_sub(state.pushed.packets);
    let evicted = ukey.counted.as_ref().is_some_and(|counted| {
        counted.used(packets);
        counted.is_evicted()
    });
    let verdict = match batch.end_of(idle_since).or_else(|| evicted.then_some(DelReason::MaskEvicted)) {
        Some(reason) => Verdict::Delete(reason),
        None => judge.revalidate(ukey, &mut state, stats),
    };
    probes::flow_result(backer, ukey, &verdict.outcome());
    carry_out(ops, ukey, &mut state, verdict);
}

/// Has a verdict carried out with the next batch of operations.
pub(super) fn carry_out(ops: &mut Ops<'_>, ukey: &Arc<Ukey>, state: &mut State, verdict: Verdict) {
    match verdict {
        Verdict::Keep => {}
        Verdict::Delete(reason) => ops.delete(ukey, state, reason),
        Verdict::Modify(actions, effects) => ops.modify(ukey, actions, effects),
    }
}
