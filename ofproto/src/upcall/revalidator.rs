//! The revalidator: are the megaflows still right, are they still used, and whose statistics are theirs?

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dpif::{Action, DatapathFlow, DpifError, DpifOp, FlowPut, FlowStats, PutMode, Ufid};

use super::handler::{exact_mask, failed};
use super::ukey::{DelReason, MaskedKey, Phase, State, Ukey};
use crate::backer::Backer;
use crate::bridge::Config;
use crate::xlate::{Effect, Xlate, translate};

/// Operations in one batch.
const BATCH: usize = 50;
/// Passes that may miss a flow in the datapath before it is taken for gone.
const MAX_MISSED: u32 = 4;
/// Milliseconds that a flow may be idle when there are more flows than allowed.
const CROWDED_IDLE_MS: u64 = 100;
/// Between two passes, however much changes.
const PAUSE: Duration = Duration::from_millis(5);

/// What lasts from pass to pass.
#[derive(Default)]
pub(crate) struct PassState {
    number: u64,
    /// The flows that were in the datapath are known: any other is a stranger's.
    adopted: bool,
}

/// What the revalidator's thread does until it is to end.
pub(super) fn run(backer: &Backer) {
    while backer.wait_for_pass(Duration::from_millis(backer.limits().max_revalidator_ms)) {
        revalidate(backer);
        std::thread::sleep(PAUSE);
    }
}

/// One pass over all megaflows.
pub(crate) fn revalidate(backer: &Backer) {
    let mut pass = backer.pass.lock();
    if !pass.adopted {
        return expire(backer);
    }
    pass.number += 1;
    let began = Instant::now();

    let mut seen = Vec::with_capacity(backer.ukeys.len());
    let dumped = backer.dpif.flow_dump_stats(&mut |ufid, stats| {
        seen.push((ufid, stats));
        true
    });
    if let Err(error) = &dumped {
        failed(backer, &format!("dumping the datapath's flows: {error}"));
    }
    let mut strangers = Vec::new();
    let mut used = HashMap::with_capacity(seen.len());
    for (ufid, stats) in seen {
        match backer.ukeys.get(ufid) {
            Some(ukey) => {
                let mut state = ukey.state.lock();
                (state.seen_in_pass, state.missed) = (pass.number, 0);
                push(backer, &mut state, &stats);
                used.insert(ufid, stats.used_ms);
            }
            None => strangers.push(ufid),
        }
    }
    expire(backer);

    let look = Look::new(backer, pass.number, dumped.is_ok());
    let mut changes = Vec::new();
    for ukey in backer.ukeys.all() {
        let idle_since = used.get(&ukey.ufid).copied().unwrap_or(0).max(ukey.created_ms);
        changes.extend(look.at(&ukey, idle_since).map(|what| (ukey, what)));
    }
    for batch in changes.chunks(BATCH) {
        carry_out(backer, batch);
    }
    for batch in strangers.chunks(BATCH) {
        let mut ops: Vec<_> = batch.iter().map(|ufid| delete(*ufid)).collect();
        backer.dpif.operate(&mut ops);
    }
    let (dump_ms, most) = (began.elapsed().as_millis() as u64, backer.limits().flow_limit);
    backer.adapted_limit.pass_ended(dump_ms, backer.ukeys.len(), most);
}

/// Deletes all flows, pushing their statistics.
pub(crate) fn flush(backer: &Backer) -> dpif::Result<()> {
    let _pass = backer.pass.lock();
    let changes: Vec<_> =
        backer.ukeys.all().into_iter().filter(purge).map(|u| (u, Change::Delete(DelReason::Purge))).collect();
    for batch in changes.chunks(BATCH) {
        carry_out(backer, batch);
    }
    backer.dpif.flow_flush()
}

/// Makes ukeys of the flows that are in the datapath already, to be translated again before anything else. What they counted
/// so far belongs to rules of the past.
pub(super) fn adopt(backer: &Backer) -> dpif::Result<()> {
    let mut pass = backer.pass.lock();
    let now = backer.clock.now_ms();
    let mut foreign = Vec::new();
    backer.dpif.flow_dump(&mut |flow| {
        if backer.ukeys.get(flow.ufid).is_some() {
            // From before the threads were stopped.
            return true;
        }
        if recirculates(flow) {
            foreign.push(flow.ufid);
            return true;
        }
        let masked = MaskedKey::new(&flow.key, &flow.mask);
        let ukey = Ukey::new(flow.ufid, masked, now, 0, Arc::clone(&flow.actions), Box::default());
        ukey.state.lock().pushed = flow.stats;
        // There is none with its id: it was looked for above, and no handler runs.
        let _ = backer.ukeys.adopt(ukey);
        true
    })?;
    for ufid in foreign {
        let _ = backer.dpif.flow_del(ufid);
    }
    pass.adopted = true;
    backer.wake_revalidator();
    Ok(())
}

/// Recirculation ids mean nothing to another process.
fn recirculates(flow: &DatapathFlow) -> bool {
    flow.key.recirc_id != 0 || flow.actions.iter().any(|action| matches!(action, Action::Recirc(_)))
}

/// What is to be done with a flow.
enum Change {
    Delete(DelReason),
    /// Its packets do something else now.
    Modify {
        actions: Arc<[Action]>,
        effects: Vec<Effect>,
        generation: u64,
    },
    /// It is gone from the datapath.
    Forget,
    /// It was deleted, and its ukey could not be taken out then.
    Sweep,
}

/// How a pass looks at flows.
struct Look<'a> {
    backer: &'a Backer,
    pass: u64,
    /// Whether the dump was complete.
    dumped: bool,
    now: u64,
    max_idle_ms: u64,
    /// There are so many flows that all have to go.
    all: bool,
    generation: u64,
    config: Arc<Config>,
}

impl<'a> Look<'a> {
    fn new(backer: &'a Backer, pass: u64, dumped: bool) -> Self {
        let (n, limit) = (backer.ukeys.len(), backer.flow_limit());
        let max_idle_ms = if n > limit { CROWDED_IDLE_MS } else { backer.limits().max_idle_ms };
        // In this order: what is read behind the generation is not older than it says.
        let generation = backer.generation();
        let config = backer.config();
        let now = backer.clock.now_ms();
        Self { backer, pass, dumped, now, max_idle_ms, all: n > 2 * limit, generation, config }
    }

    fn at(&self, ukey: &Arc<Ukey>, idle_since: u64) -> Option<Change> {
        let mut state = ukey.state.lock();
        match state.phase() {
            Phase::Operational => {}
            Phase::Evicted => return Some(Change::Sweep),
            _ => return None,
        }
        let change = self.judge(ukey, &mut state, idle_since)?;
        match change {
            Change::Delete(reason) if !state.begin_to_evict(reason) => return None,
            Change::Forget if !state.begin_to_evict(DelReason::MissingInDatapath) => return None,
            _ => {}
        }
        Some(change)
    }

    fn judge(&self, ukey: &Ukey, state: &mut State, idle_since: u64) -> Option<Change> {
        if self.dumped && state.seen_in_pass != self.pass {
            state.missed += 1;
            if state.missed >= MAX_MISSED {
                return Some(Change::Forget);
            }
        }
        if self.all {
            return Some(Change::Delete(DelReason::FlowLimit));
        }
        if self.now.saturating_sub(idle_since) >= self.max_idle_ms {
            return Some(Change::Delete(DelReason::Idle));
        }
        if state.generation == self.generation {
            return None;
        }
        coverage::inc!("revalidate_flow");
        // Bits that the flow doesn't match on are 0 here. If they matter now, the new mask has them, and the flow goes.
        let key = ukey.flow.key();
        let Some(xlate) = translate(&self.config, &key) else { return Some(Change::Delete(DelReason::NoOfproto)) };
        let mask = if self.backer.limits().megaflows { xlate.mask } else { exact_mask(&key) };
        if !ukey.flow.covers(&mask) {
            return Some(Change::Delete(DelReason::Wildcarded));
        }
        let actions = xlate.flow_actions();
        if *actions != *state.actions {
            let actions = actions.into();
            return Some(Change::Modify { actions, effects: xlate.effects, generation: self.generation });
        }
        state.effects = xlate.effects.into();
        state.generation = self.generation;
        None
    }
}

fn carry_out(backer: &Backer, changes: &[(Arc<Ukey>, Change)]) {
    let puts: Vec<_> = changes.iter().map(|(ukey, change)| modification(ukey, change)).collect();
    let mut ops = Vec::with_capacity(changes.len());
    for ((ukey, change), put) in changes.iter().zip(&puts) {
        match (change, put) {
            (Change::Modify { .. }, Some(put)) => ops.push(DpifOp::FlowPut { put, result: Err(DpifError::NoSuchFlow) }),
            (Change::Delete(_), _) => ops.push(delete(ukey.ufid)),
            _ => {}
        }
    }
    backer.dpif.operate(&mut ops);
    let mut results = ops.into_iter();
    for (ukey, change) in changes {
        let result = if matches!(change, Change::Forget | Change::Sweep) { None } else { results.next() };
        match (change, result) {
            (Change::Modify { actions, effects, generation }, Some(DpifOp::FlowPut { result, .. })) => {
                coverage::inc!("revalidate_modified");
                let mut state = ukey.state.lock();
                match result {
                    Ok(()) => {
                        state.actions = Arc::clone(actions);
                        state.effects = effects.as_slice().into();
                        state.generation = *generation;
                    }
                    Err(error) => {
                        // It can't stay as it is.
                        failed(backer, &format!("modifying a flow: {error}"));
                        state.becomes_inconsistent();
                        state.begin_to_evict(DelReason::UpdateFailed);
                        drop(state);
                        let _ = backer.dpif.flow_del(ukey.ufid);
                        ukey.state.lock().is_evicted();
                        backer.ukeys.remove(ukey);
                    }
                }
            }
            (Change::Delete(_), Some(DpifOp::FlowDel { result, .. })) => {
                coverage::inc!("revalidate_deleted");
                match result {
                    Ok(stats) => push(backer, &mut ukey.state.lock(), &stats),
                    Err(DpifError::NoSuchFlow) => {}
                    Err(error) => failed(backer, &format!("deleting a flow: {error}")),
                }
                ukey.state.lock().is_evicted();
                backer.ukeys.remove(ukey);
            }
            _ => {
                ukey.state.lock().is_evicted();
                backer.ukeys.remove(ukey);
            }
        }
    }
}

fn modification(ukey: &Ukey, change: &Change) -> Option<FlowPut> {
    let Change::Modify { actions, .. } = change else { return None };
    let (key, mask) = (ukey.flow.key(), ukey.flow.mask());
    Some(FlowPut { mode: PutMode::Modify, ufid: ukey.ufid, key, mask, actions: Arc::clone(actions) })
}

fn delete<'a>(ufid: Ufid) -> DpifOp<'a> {
    DpifOp::FlowDel { ufid, result: Err(DpifError::NoSuchFlow) }
}

fn purge(ukey: &Arc<Ukey>) -> bool {
    ukey.state.lock().begin_to_evict(DelReason::Purge)
}

/// Gives what a flow counted since the last time to whom it belongs.
fn push(backer: &Backer, state: &mut State, stats: &FlowStats) {
    let packets = stats.packets.saturating_sub(state.pushed.packets);
    let bytes = stats.bytes.saturating_sub(state.pushed.bytes);
    state.pushed = *stats;
    if packets > 0 && Xlate::apply_effects(&state.effects, packets, bytes, stats.used_ms) {
        backer.changed();
    }
}

/// Lets rules and learned addresses go whose time is over.
fn expire(backer: &Backer) {
    let now = backer.clock.now_ms();
    let config = backer.config();
    for (name, bridge) in &config.bridges {
        if bridge.macs.expire(now) {
            backer.changed();
        }
        if bridge.tables.rules().any(|(_, rule)| rule.is_expired(now)) {
            // An error can't be: the change has none.
            let _ = backer.update(|config| {
                if let Some(bridge) = config.bridges.get_mut(name) {
                    Arc::make_mut(bridge).tables.expire(now);
                }
                Ok::<_, std::convert::Infallible>(())
            });
        }
    }
}
