//! A writer: takes its flows from state to state.
//!
//! Most changes are single calls, so that what a packet may see is known exactly. Deletions wait for a grace period each, so
//! they go in batches together with puts of other flows.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dpif::{Dpif, DpifError, DpifOp, FlowStats, PutMode};

use crate::plan::{self, FLOWS};
use crate::{Shared, StopAtEnd, WRITERS};

/// Deletions that go together.
const BATCH: usize = 128;

/// What a writer has done.
pub(crate) struct Written {
    pub(crate) created: u64,
    pub(crate) modified: u64,
    pub(crate) deletions: u64,
    /// Slots taken for programs.
    pub(crate) slots: u64,
    /// By flow: the sum of the statistics that the deletions gave.
    pub(crate) deleted: Vec<FlowStats>,
}

/// What comes next for a flow.
enum Next {
    Put(PutMode),
    Delete,
}

/// Changes those flows whose number is `writer` modulo [`WRITERS`] until all operations are done.
pub(crate) fn run(writer: usize, dpif: &dyn Dpif, shared: &Shared, limit: Duration) -> Written {
    let stop = StopAtEnd(shared);
    let started = Instant::now();
    let mut rng = fastrand::Rng::with_seed(1000 + writer as u64);
    let mut written =
        Written { created: 0, modified: 0, deletions: 0, slots: 0, deleted: vec![FlowStats::default(); FLOWS] };
    let mut leaving: Vec<usize> = Vec::new();
    while shared.operations.load(Ordering::SeqCst) < shared.wanted && !shared.stopped() && started.elapsed() < limit {
        let flow = plan::pick(&mut rng, writer, WRITERS);
        if leaving.contains(&flow) {
            continue;
        }
        let number = shared.done[flow].load(Ordering::SeqCst) + 1;
        match next(flow, number) {
            Next::Delete => leaving.push(flow),
            Next::Put(mode) => {
                shared.begun[flow].store(number, Ordering::SeqCst);
                let result = dpif.flow_put(&plan::put(flow, number, mode));
                written.put(shared, flow, number, mode, result);
            }
        }
        if leaving.len() == BATCH {
            written.batch(dpif, shared, &mut leaving, &mut rng);
        }
    }
    // The others end by themselves, each with its last operation.
    std::mem::forget(stop);
    written
}

fn next(flow: usize, number: u32) -> Next {
    match (plan::state(flow, number - 1), plan::state(flow, number)) {
        (_, None) => Next::Delete,
        (None, Some(_)) => Next::Put(if number.is_multiple_of(2) { PutMode::Create } else { PutMode::CreateOrModify }),
        (Some(_), Some(_)) => {
            Next::Put(if number.is_multiple_of(2) { PutMode::Modify } else { PutMode::CreateOrModify })
        }
    }
}

impl Written {
    /// Notes the result of a put.
    fn put(&mut self, shared: &Shared, flow: usize, number: u32, mode: PutMode, result: Result<(), DpifError>) {
        if let Err(error) = result {
            shared.report(format!("flow {flow} could not be put ({mode:?}) into state {number}: {error}"));
            shared.stop.store(true, Ordering::SeqCst);
            return;
        }
        shared.done[flow].store(number, Ordering::SeqCst);
        shared.operations.fetch_add(1, Ordering::SeqCst);
        self.slots += plan::slots(flow, number);
        match plan::state(flow, number - 1) {
            None => self.created += 1,
            Some(_) => self.modified += 1,
        }
    }

    /// Deletes the flows of `leaving`; between the deletions others are put.
    fn batch(&mut self, dpif: &dyn Dpif, shared: &Shared, leaving: &mut Vec<usize>, rng: &mut fastrand::Rng) {
        let mut puts = Vec::new();
        for flow in (leaving[0] % WRITERS..FLOWS).step_by(WRITERS).filter(|flow| !leaving.contains(flow)) {
            let number = shared.done[flow].load(Ordering::SeqCst) + 1;
            if let Next::Put(mode) = next(flow, number)
                && rng.u8(..4) == 0
            {
                puts.push((flow, number, plan::put(flow, number, mode)));
            }
        }
        let begin = |flow: usize| {
            let number = shared.done[flow].load(Ordering::SeqCst) + 1;
            shared.begun[flow].store(number, Ordering::SeqCst);
        };
        let mut ops = Vec::new();
        let mut rest = puts.iter();
        for flow in leaving.iter().copied() {
            begin(flow);
            ops.push(DpifOp::FlowDel { ufid: plan::ufid(flow), result: Err(DpifError::NoSuchFlow) });
            if let Some((flow, _, put)) = rest.next() {
                begin(*flow);
                ops.push(DpifOp::FlowPut { put, result: Err(DpifError::NoSuchFlow) });
            }
        }
        dpif.operate(&mut ops);
        let (mut leaving, mut puts) = (leaving.drain(..), puts.iter());
        for op in ops {
            match op {
                DpifOp::FlowDel { result, .. } => {
                    let Some(flow) = leaving.next() else { continue };
                    match result {
                        Ok(stats) => {
                            self.deleted[flow].packets += stats.packets;
                            self.deleted[flow].bytes += stats.bytes;
                            self.deletions += 1;
                            shared.done[flow].fetch_add(1, Ordering::SeqCst);
                            shared.operations.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) => {
                            shared.report(format!("flow {flow} could not be deleted: {error}"));
                            shared.stop.store(true, Ordering::SeqCst);
                        }
                    }
                }
                DpifOp::FlowPut { put, result } => {
                    if let Some((flow, number, _)) = puts.next() {
                        self.put(shared, *flow, *number, put.mode, result);
                    }
                }
                _ => {}
            }
        }
    }
}
