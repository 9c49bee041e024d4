//! All ukeys of a switch, by their megaflows' ids.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use dpif::{Ufid, UfidHashing};

use super::{DelReason, Id, MaskedWords, Phase, State, Ukey};
use crate::sync::{AtomicU64, AtomicUsize, MutexGuard, Ordering, RwLock};

/// Parts of the table, each with a lock of its own.
pub(crate) const SHARDS: usize = 512;

/// All ukeys of a switch.
pub(crate) struct UkeyTable {
    shards: Box<[RwLock<Shard>]>,
    len: AtomicUsize,
    max: AtomicUsize,
    /// Megaflows deleted, by reason.
    deleted: [AtomicU64; DelReason::ALL.len()],
    /// Two independent secret hashes make an id.
    hashers: [ahash::RandomState; 2],
}

/// The ids are hashes with secret keys already.
type Shard = HashSet<Entry, UfidHashing>;

/// A ukey in a shard, found by its id.
struct Entry(Arc<Ukey>);

impl Borrow<Id> for Entry {
    fn borrow(&self) -> &Id {
        &self.0.id
    }
}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.ufid().hash(state);
    }
}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id.hash(state);
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Entry {}

/// Why a ukey can't be installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// The same flow is there already, or on its way.
    Duplicate,
    /// The same flow was there, and somebody is busy with what is left of it.
    Contended,
    /// A flow with another key or mask has this id.
    Conflict,
}

impl Default for UkeyTable {
    fn default() -> Self {
        Self::with_shards(SHARDS)
    }
}

impl UkeyTable {
    /// A table of so many parts.
    pub(crate) fn with_shards(shards: usize) -> Self {
        Self {
            shards: (0..shards.max(1)).map(|_| RwLock::new(Shard::default())).collect(),
            len: AtomicUsize::new(0),
            max: AtomicUsize::new(0),
            deleted: [const { AtomicU64::new(0) }; DelReason::ALL.len()],
            hashers: [ahash::RandomState::new(), ahash::RandomState::new()],
        }
    }

    /// The id of a megaflow.
    pub(crate) fn ufid(&self, flow: &MaskedWords) -> Ufid {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one(flow.words()));
        Ufid((u128::from(high) << 64) | u128::from(low))
    }

    /// Ukeys in the table.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The most that there were at a time.
    pub(crate) fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Megaflows that were deleted for a reason.
    #[allow(dead_code)]
    pub(crate) fn deleted(&self, reason: DelReason) -> u64 {
        self.deleted.get(reason as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// The ukey with an id.
    pub(crate) fn get(&self, ufid: Ufid) -> Option<Arc<Ukey>> {
        self.shard(ufid)?.read().get(&Id::from(ufid)).map(|entry| Arc::clone(&entry.0))
    }

    /// Puts a new ukey into the table: its flow may be put into the datapath now, and what came of it is told to the
    /// [`Installation`]. Nobody else touches the flow until then.
    ///
    /// # Errors
    /// The flow is not to be installed.
    pub(crate) fn install(&self, ukey: Ukey) -> Result<Installation, Refused> {
        let ukey = Arc::new(ukey);
        // Nobody else knows it.
        ukey.state.lock().advance(Phase::Visible);
        self.insert(&ukey)?;
        Ok(Installation(Some(ukey)))
    }

    /// Puts a ukey into the table whose flow is in the datapath already.
    ///
    /// # Errors
    /// There is one with its id.
    pub(crate) fn adopt(&self, ukey: Ukey) -> Result<Arc<Ukey>, Refused> {
        let ukey = Arc::new(ukey);
        {
            let mut state = ukey.state.lock();
            state.advance(Phase::Visible);
            state.advance(Phase::Operational);
        }
        self.insert(&ukey)?;
        Ok(ukey)
    }

    fn insert(&self, ukey: &Arc<Ukey>) -> Result<(), Refused> {
        let Some(shard) = self.shard(ukey.ufid()) else { return Err(Refused::Conflict) };
        let mut shard = shard.write();
        if let Some(Entry(old)) = shard.get(&ukey.id) {
            if old.flow != ukey.flow {
                return Err(Refused::Conflict);
            }
            // Its flow is gone, and it waits for the sweep: the new one takes its place at once.
            let Some(mut state) = old.state.try_lock() else { return Err(Refused::Contended) };
            if !state.advance(Phase::Deleted) {
                return Err(Refused::Duplicate);
            }
            self.count_deleted(&state);
            drop(state);
            coverage::inc!("upcall_ukey_replace");
            shard.replace(Entry(Arc::clone(ukey)));
            return Ok(());
        }
        shard.insert(Entry(Arc::clone(ukey)));
        let len = self.len.fetch_add(1, Ordering::Relaxed) + 1;
        self.max.fetch_max(len, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a ukey out whose flow is gone. `false`: it is not evicted, or another has taken its place.
    pub(crate) fn remove(&self, ukey: &Arc<Ukey>) -> bool {
        let Some(shard) = self.shard(ukey.ufid()) else { return false };
        let mut shard = shard.write();
        if !shard.get(&ukey.id).is_some_and(|Entry(there)| Arc::ptr_eq(there, ukey)) {
            return false;
        }
        // Whoever holds it is not done with it; the next sweep finds it again.
        let Some(mut state) = ukey.state.try_lock() else { return false };
        if !state.advance(Phase::Deleted) {
            return false;
        }
        self.count_deleted(&state);
        drop(state);
        shard.remove(&ukey.id);
        self.len.fetch_sub(1, Ordering::Relaxed);
        true
    }

    fn count_deleted(&self, state: &MutexGuard<'_, State>) {
        if let Some(count) = state.reason().and_then(|reason| self.deleted.get(reason as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Number of parts, for [`UkeyTable::shard_of`].
    #[allow(dead_code)]
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The ukeys of a part. Those that come or go meanwhile may be missed or among them.
    #[allow(dead_code)]
    pub(crate) fn shard_of(&self, index: usize) -> Vec<Arc<Ukey>> {
        let mut ukeys = Vec::new();
        self.collect(index, &mut ukeys);
        ukeys
    }

    /// All ukeys, as [`UkeyTable::shard_of`].
    pub(crate) fn all(&self) -> Vec<Arc<Ukey>> {
        let mut all = Vec::with_capacity(self.len());
        (0..self.shards.len()).for_each(|index| self.collect(index, &mut all));
        all
    }

    /// Looks into a part, under its lock: `look` doesn't wait for a ukey's lock and takes no other part's.
    pub(crate) fn with_part<T>(&self, index: usize, look: impl FnOnce(Part<'_>) -> T) -> Option<T> {
        self.shards.get(index).map(|shard| look(Part(&shard.read())))
    }

    /// Ukeys in a part.
    pub(crate) fn len_of(&self, index: usize) -> usize {
        self.shards.get(index).map_or(0, |shard| shard.read().len())
    }

    fn collect(&self, index: usize, into: &mut Vec<Arc<Ukey>>) {
        if let Some(shard) = self.shards.get(index) {
            into.extend(shard.read().iter().map(|Entry(ukey)| Arc::clone(ukey)));
        }
    }

    fn shard(&self, ufid: Ufid) -> Option<&RwLock<Shard>> {
        self.shards.get(ufid.0 as usize % self.shards.len())
    }
}

/// A part of the table, locked against changes. The ukeys with ids that are `index` modulo the number of parts are in part
/// `index`.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a>(&'a Shard);

impl<'a> Part<'a> {
    /// The ukey with an id.
    pub(crate) fn get(self, ufid: Ufid) -> Option<&'a Arc<Ukey>> {
        self.0.get(&Id::from(ufid)).map(|Entry(ukey)| ukey)
    }

    /// All of them.
    pub(crate) fn iter(self) -> impl Iterator<Item = &'a Arc<Ukey>> {
        self.0.iter().map(|Entry(ukey)| ukey)
    }
}

/// A ukey whose flow is being put into the datapath. Dropped without an answer (its handler died) it is taken for operational:
/// the flow may be there, and if it isn't, a revalidator finds out.
pub(crate) struct Installation(Option<Arc<Ukey>>);

impl Installation {
    /// The ukey.
    #[allow(dead_code)]
    pub(crate) fn ukey(&self) -> Option<&Arc<Ukey>> {
        self.0.as_ref()
    }

    /// The datapath took the flow.
    pub(crate) fn succeeded(mut self) -> Option<Arc<Ukey>> {
        let ukey = self.0.take()?;
        ukey.state.lock().advance(Phase::Operational);
        Some(ukey)
    }

    /// The datapath refused the flow: the ukey goes.
    pub(crate) fn failed(mut self, table: &UkeyTable) {
        let Some(ukey) = self.0.take() else { return };
        {
            let mut state = ukey.state.lock();
            state.reason = Some(DelReason::InstallFailed);
            state.advance(Phase::Evicted);
        }
        // Where that is not possible now, the sweep does it.
        table.remove(&ukey);
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if let Some(ukey) = self.0.take() {
            ukey.state.lock().advance(Phase::Operational);
        }
    }
}
