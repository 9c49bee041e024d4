//! The flow table, as userspace writes it.
//!
//! Each flow has an entry here, the mirror of what lies in the maps, so that a dump reads this process's memory and the
//! memory-mapped maps and makes no system call. What the flow's slot holds (its key, its digest) is not held a second time.
//! The mirror is cut into shards by flow id; whoever changes a flow holds its shard's lock, so the operations on one flow
//! follow each other, and those on others go on. A dump of statistics goes shard by shard, and several threads can share it.
//!
//! So a dump misses no flow that this process has put and not deleted: a flow that it doesn't show is gone for certain.
//!
//! The order of steps is what makes a flow appear and disappear whole, and what lets a later process make sense of the maps
//! wherever this one ends:
//!
//! * put: mask published → slot written → program widened, if the flow needs it → reference published in the lookup table;
//! * modify: new slot written → reference replaced → old slot rests;
//! * delete: reference removed → slot invalidated → grace period → final statistics read → slot and statistics free.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datapath_common::digest::digest;
use datapath_common::{Digest, FlowKey, Op, SlotRef};
use dpif::program::{CompileError, compile};
use dpif::{Action, DatapathFlow, DpifError, FlowPut, FlowStats, PutMode, Result, Ufid, UfidHashing};
use parking_lot::Mutex;

use crate::compiled::Program;
use crate::grace::Grace;
use crate::kernel::io_error;
use crate::maps::Maps;
use crate::masks::{Mask, Masks};
use crate::prefetch::fetch;
use crate::programs::InKernel;
use crate::slots::{Chain, FlowHeader, Slots};
use crate::special::Specialiser;
use crate::table::TableError;

/// Shards of the mirror.
pub(crate) const SHARDS: usize = 512;

/// A flow. Its slot has the rest: masked key and digest. There may be many, so this is kept small.
pub(crate) struct Flow {
    pub(crate) mask: Arc<Mask>,
    pub(crate) actions: Arc<[Action]>,
    pub(crate) chain: Chain,
    pub(crate) stats_id: u32,
}

/// A flow that the datapath doesn't find any more, on its way out.
pub(crate) struct Removed(Flow);

type Shard = HashMap<Ufid, Flow, UfidHashing>;

/// The flows of a datapath.
pub(crate) struct Flows {
    maps: Arc<Maps>,
    grace: Arc<Grace>,
    slots: Arc<Slots>,
    masks: Arc<Masks>,
    special: Arc<Specialiser<InKernel>>,
    shards: Box<[Mutex<Shard>]>,
    len: AtomicUsize,
    datapath: String,
}

impl Flows {
    /// The flow table of a datapath in which `adopted` are installed.
    pub(crate) fn new(
        maps: Arc<Maps>,
        grace: Arc<Grace>,
        slots: Arc<Slots>,
        masks: Arc<Masks>,
        special: Arc<Specialiser<InKernel>>,
        adopted: Vec<(Ufid, Flow)>,
        datapath: &str,
    ) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (len, datapath) = (AtomicUsize::new(0), datapath.into());
        let flows = Self { maps, grace, slots, masks, special, shards, len, datapath };
        for (ufid, flow) in adopted {
            let head = flow.chain.head();
            flows.special.added(flows.slots.needs(head));
            let ops = compile(&flow.actions).unwrap_or_default();
            let (in_port, mask) = (flows.slots.in_port(head), flow.mask.key.in_port);
            flows.slots.set_group(head, flows.maps.groups.acquire(in_port, mask, &ops, &flows.grace));
            flows.insert(&mut flows.shard(ufid).lock(), ufid, flow);
        }
        flows
    }

    /// Number of flows.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Number of masks.
    pub(crate) fn n_masks(&self) -> usize {
        self.masks.in_use()
    }

    /// A flow with this id is going to be put.
    pub(crate) fn prepare(&self, ufid: Ufid) {
        fetch(self.shard(ufid));
    }

    /// Installs or modifies a flow whose actions have this program. Doesn't wait for a grace period unless slots or masks have
    /// run short.
    pub(crate) fn put(&self, put: &FlowPut, program: &Program) -> Result<()> {
        let ops = program.as_ref().map_err(|error| compile_error(error, &self.datapath))?;
        let key = put.key.masked(&put.mask);
        let mut shard = self.shard(put.ufid).lock();
        match (shard.get_mut(&put.ufid), put.mode) {
            (Some(_), PutMode::Create) => Err(DpifError::FlowExists),
            (None, PutMode::Modify) => Err(DpifError::NoSuchFlow),
            // The id stands for another flow: what is there is not what the caller thinks it changes.
            (Some(old), _) if old.mask.key != put.mask || self.slots.key(old.chain.head()) != key => {
                Err(DpifError::FlowExists)
            }
            (Some(old), _) => self.replace(old, put, &key, ops),
            (None, _) => {
                let flow = self.create(put, &key, ops)?;
                self.insert(&mut shard, put.ufid, flow);
                Ok(())
            }
        }
    }

    fn insert(&self, shard: &mut Shard, ufid: Ufid, flow: Flow) {
        shard.insert(ufid, flow);
        self.len.fetch_add(1, Ordering::Relaxed);
    }

    fn create(&self, put: &FlowPut, key: &FlowKey, ops: &[Op]) -> Result<Flow> {
        let (chain, stats_id) = self.slots.take_with_stats(ops)?;
        let undo = |chain, error| {
            self.slots.give_back(chain);
            self.slots.give_back_stats(stats_id);
            Err(error)
        };
        let mask = match self.masks.acquire(&put.mask, key.in_port) {
            Ok(mask) => mask,
            Err(error) => return undo(chain, error),
        };
        let digest = digest(key, &mask.entry, &self.maps.seeds);
        self.maps.flows.prepare(&digest);
        let group = self.maps.groups.acquire(key.in_port, put.mask.in_port, ops, &self.grace);
        let header = FlowHeader { stats_id, digest: &digest, ufid: put.ufid, key, mask: &mask.entry, group };
        let (reference, needs) = self.slots.write_flow(&chain, &header, ops);
        self.special.added(needs);
        let digest_of = |found: SlotRef| Some(self.maps.slots.read(found.slot as usize)?.digest);
        if let Err(error) = self.maps.flows.insert(&digest, reference, digest_of) {
            self.special.removed(needs);
            self.maps.groups.release(group, &self.grace);
            self.masks.release(&mask, key.in_port);
            return undo(chain, self.publish_error(error, &digest, key));
        }
        Ok(Flow { mask, actions: Arc::clone(&put.actions), chain, stats_id })
    }

    fn replace(&self, flow: &mut Flow, put: &FlowPut, key: &FlowKey, ops: &[Op]) -> Result<()> {
        let chain = self.slots.take(ops)?;
        let digest = self.slots.digest(flow.chain.head());
        let group = self.maps.groups.acquire(key.in_port, put.mask.in_port, ops, &self.grace);
        let (stats_id, mask) = (flow.stats_id, &flow.mask.entry);
        let header = FlowHeader { stats_id, digest: &digest, ufid: put.ufid, key, mask, group };
        let (reference, needs) = self.slots.write_flow(&chain, &header, ops);
        self.special.added(needs);
        if self.maps.flows.replace(&digest, reference).is_err() {
            self.special.removed(needs);
            self.maps.groups.release(group, &self.grace);
            self.slots.give_back(chain);
            return Err(DpifError::NoSuchFlow);
        }
        let old = std::mem::replace(&mut flow.chain, chain);
        flow.actions = Arc::clone(&put.actions);
        self.special.removed(self.slots.needs(old.head()));
        let group = self.slots.group(old.head());
        self.slots.invalidate(&old);
        // The number rests from when no program finds it any more.
        self.maps.groups.release(group, &self.grace);
        self.slots.retire(old);
        Ok(())
    }

    fn publish_error(&self, error: TableError, digest: &Digest, key: &FlowKey) -> DpifError {
        match error {
            TableError::Occupied(found) => {
                let slot = self.maps.slots.read(found.slot as usize);
                // The same masked key under the same mask is the same flow under another id.
                if slot.is_some_and(|slot| slot.key == *key && slot.digest == *digest) {
                    DpifError::FlowExists
                } else {
                    coverage::inc!("dpif_ebpf_digest_collision");
                    DpifError::DigestCollision
                }
            }
            TableError::Full | TableError::Missing => DpifError::Full("the datapath's lookup table is full".into()),
        }
    }

    /// The flow with this id.
    pub(crate) fn get(&self, ufid: Ufid) -> Result<DatapathFlow> {
        let shard = self.shard(ufid).lock();
        let flow = shard.get(&ufid).ok_or(DpifError::NoSuchFlow)?;
        Ok(self.describe(ufid, flow))
    }

    /// Takes a flow out of the datapath's sight; [`Flows::finish`] does the rest.
    pub(crate) fn remove(&self, ufid: Ufid) -> Result<Removed> {
        let mut shard = self.shard(ufid).lock();
        let flow = shard.get(&ufid).ok_or(DpifError::NoSuchFlow)?;
        self.maps.flows.remove(&self.slots.digest(flow.chain.head())).map_err(|_| DpifError::NoSuchFlow)?;
        let flow = shard.remove(&ufid).ok_or(DpifError::NoSuchFlow)?;
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.special.removed(self.slots.needs(flow.chain.head()));
        let group = self.slots.group(flow.chain.head());
        self.slots.invalidate(&flow.chain);
        self.maps.groups.release(group, &self.grace);
        self.masks.release(&flow.mask, self.slots.in_port(flow.chain.head()));
        Ok(Removed(flow))
    }

    /// Waits until no packet counts for the removed flows any more, and gives their final statistics in the same order.
    pub(crate) fn finish(&self, removed: Vec<Removed>) -> Result<Vec<FlowStats>> {
        if removed.is_empty() {
            return Ok(Vec::new());
        }
        // Without the grace period the slots and numbers stay taken: lost until the datapath is adopted, but never shared.
        self.grace.wait().map_err(|error| io_error("waiting for a grace period", error))?;
        let mut stats = Vec::with_capacity(removed.len());
        for Removed(flow) in removed {
            stats.push(self.slots.stats(flow.stats_id));
            self.slots.give_back(flow.chain);
            self.slots.give_back_stats(flow.stats_id);
        }
        self.slots.reclaim();
        self.masks.tidy();
        Ok(stats)
    }

    /// Deletes all flows.
    pub(crate) fn flush(&self) -> Result<()> {
        let mut removed = Vec::new();
        for shard in &self.shards {
            let ufids: Vec<Ufid> = shard.lock().keys().copied().collect();
            for ufid in ufids {
                match self.remove(ufid) {
                    Ok(flow) => removed.push(flow),
                    Err(DpifError::NoSuchFlow) => {}
                    Err(error) => {
                        self.finish(removed)?;
                        return Err(error);
                    }
                }
            }
        }
        self.finish(removed).map(drop)
    }

    /// Calls `visit` with each flow until it says `false`.
    pub(crate) fn dump(&self, visit: &mut dyn FnMut(&DatapathFlow) -> bool) {
        for shard in &self.shards {
            // Slot and counters belong to the flow as long as the lock is held; `visit` may call back.
            let flows: Vec<DatapathFlow> = shard.lock().iter().map(|(ufid, flow)| self.describe(*ufid, flow)).collect();
            if !flows.iter().all(&mut *visit) {
                return;
            }
        }
    }

    /// Calls `visit` with the id and the statistics of each flow until it says `false`.
    pub(crate) fn dump_stats(&self, visit: &mut dyn FnMut(Ufid, FlowStats) -> bool) {
        let mut flows = Vec::new();
        for part in 0..SHARDS {
            self.dump_stats_part(part, &mut flows);
            if !flows.drain(..).all(|(ufid, stats)| visit(ufid, stats)) {
                return;
            }
        }
    }

    /// Appends the id and the statistics of each flow of a shard to `flows`.
    pub(crate) fn dump_stats_part(&self, shard: usize, flows: &mut Vec<(Ufid, FlowStats)>) {
        if let Some(shard) = self.shards.get(shard) {
            let shard = shard.lock();
            flows.extend(shard.iter().map(|(ufid, flow)| (*ufid, self.slots.stats(flow.stats_id))));
        }
    }

    fn describe(&self, ufid: Ufid, flow: &Flow) -> DatapathFlow {
        DatapathFlow {
            ufid,
            key: self.slots.key(flow.chain.head()),
            mask: flow.mask.key,
            actions: Arc::clone(&flow.actions),
            stats: self.slots.stats(flow.stats_id),
        }
    }

    fn shard(&self, ufid: Ufid) -> &Mutex<Shard> {
        // Ids are hashes or random: any bits do. These are those that a part of a dump goes by.
        &self.shards[(ufid.0 % SHARDS as u128) as usize]
    }
}

/// A refusal of the compiler as that of a datapath.
pub(crate) fn compile_error(error: &CompileError, datapath: &str) -> DpifError {
    match error {
        CompileError::Unsupported(_) => DpifError::Unsupported(error.to_string(), datapath.into()),
        CompileError::Invalid(text) => DpifError::Invalid(text.clone()),
    }
}
