//! Ukeys: what userspace knows of each megaflow, by the megaflow's id.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use datapath_common::FlowKey;
use dpif::{Action, FlowStats, Ufid};
use parking_lot::{Mutex, RwLock};

use super::Summary;
use super::rate::RateLimit;
use crate::xlate::Effect;

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 64;

/// Flows that there may be at first.
const FIRST_LIMIT: usize = 10_000;
/// Flows that there may be however long a pass takes.
const LEAST_LIMIT: usize = 1_000;

/// What userspace knows of a megaflow.
pub(crate) struct Ukey {
    pub(super) ufid: Ufid,
    /// The masked key.
    pub(super) key: FlowKey,
    pub(super) mask: FlowKey,
    pub(super) created_ms: u64,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// What the datapath does with its packets.
    pub(super) actions: Vec<Action>,
    /// What each of its packets changes.
    pub(super) effects: Vec<Effect>,
    /// The generation that it was translated from.
    pub(super) generation: u64,
    /// Its statistics as far as they have been pushed.
    pub(super) pushed: FlowStats,
    /// The last pass that saw it in the datapath.
    pub(super) seen_in_pass: u64,
    /// Passes since then that didn't.
    pub(super) missed: u32,
}

/// The life of a ukey, forward only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Phase {
    /// A handler is about to install its flow.
    Created,
    /// The flow is in the datapath.
    Operational,
    /// The flow is being deleted.
    Evicting,
}

/// All ukeys of a switch.
pub(crate) struct UkeyTable {
    shards: Vec<RwLock<HashMap<Ufid, Arc<Ukey>, ahash::RandomState>>>,
    len: AtomicUsize,
    max: AtomicUsize,
    average: AtomicUsize,
    dump_ms: AtomicU64,
    limit: AtomicUsize,
    /// Two independent secret hashes make an id.
    hashers: [ahash::RandomState; 2],
    pub(super) unknown_port: RateLimit,
    pub(super) failed: RateLimit,
}

impl Default for UkeyTable {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            len: AtomicUsize::new(0),
            max: AtomicUsize::new(0),
            average: AtomicUsize::new(0),
            dump_ms: AtomicU64::new(0),
            limit: AtomicUsize::new(FIRST_LIMIT),
            hashers: [ahash::RandomState::new(), ahash::RandomState::new()],
            unknown_port: RateLimit::default(),
            failed: RateLimit::default(),
        }
    }
}

impl UkeyTable {
    /// The id of a megaflow.
    pub(super) fn ufid(&self, key: &FlowKey, mask: &FlowKey) -> Ufid {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one((key.words(), mask.words())));
        Ufid((u128::from(high) << 64) | u128::from(low))
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, ufid: Ufid) -> Option<Arc<Ukey>> {
        self.shard(ufid)?.read().get(&ufid).cloned()
    }

    /// Adds a ukey unless its id is taken.
    pub(super) fn insert(&self, ukey: Ukey) -> Option<Arc<Ukey>> {
        let mut shard = self.shard(ukey.ufid)?.write();
        if shard.contains_key(&ukey.ufid) {
            return None;
        }
        let ukey = Arc::new(ukey);
        shard.insert(ukey.ufid, Arc::clone(&ukey));
        let len = self.len.fetch_add(1, Ordering::Relaxed) + 1;
        self.max.fetch_max(len, Ordering::Relaxed);
        Some(ukey)
    }

    pub(super) fn remove(&self, ukey: &Arc<Ukey>) {
        let Some(shard) = self.shard(ukey.ufid) else { return };
        let mut shard = shard.write();
        if shard.get(&ukey.ufid).is_some_and(|there| Arc::ptr_eq(there, ukey)) {
            shard.remove(&ukey.ufid);
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// All ukeys. Those that come or go meanwhile may be missed or among them.
    pub(super) fn all(&self) -> Vec<Arc<Ukey>> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            all.extend(shard.read().values().cloned());
        }
        all
    }

    /// How many flows the revalidator copes with.
    pub(crate) fn adapted_limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// A pass of the revalidator has ended. One that takes long lowers the number of flows that there may be, one that would
    /// do with more flows in a second raises it.
    pub(super) fn pass_ended(&self, dump_ms: u64, most: usize) {
        let limit = self.adapted_limit();
        let per_second = self.len() as u64 * 1000 / dump_ms.max(1);
        let adapted = match dump_ms {
            2001.. => limit / (dump_ms as usize / 1000),
            1301.. => limit / 4 * 3,
            0..1000 if (limit as u64) < per_second => limit + 1000,
            _ => limit,
        };
        self.limit.store(adapted.max(LEAST_LIMIT).min(most.max(LEAST_LIMIT)), Ordering::Relaxed);
        self.dump_ms.store(dump_ms, Ordering::Relaxed);
        let average = self.average.load(Ordering::Relaxed);
        self.average.store((average + self.len()) / 2, Ordering::Relaxed);
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            current: self.len(),
            average: self.average.load(Ordering::Relaxed),
            max: self.max.load(Ordering::Relaxed),
            limit: 0,
            dump_ms: self.dump_ms.load(Ordering::Relaxed),
        }
    }

    fn shard(&self, ufid: Ufid) -> Option<&RwLock<HashMap<Ufid, Arc<Ukey>, ahash::RandomState>>> {
        self.shards.get(ufid.0 as usize % SHARDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_that_take_long_lower_the_limit_and_quick_ones_raise_it() {
        let table = UkeyTable::default();
        table.len.store(20_000, Ordering::Relaxed);
        for (dump_ms, limit) in
            [(10, 11_000), (999, 12_000), (1_100, 12_000), (1_400, 9_000), (3_100, 3_000), (9_000, 1_000), (10, 2_000)]
        {
            table.pass_ended(dump_ms, 200_000);
            assert_eq!(table.adapted_limit(), limit, "after {dump_ms} ms");
        }
    }
}
