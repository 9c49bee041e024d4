//! The flow table: a list of masks, each with a hash table of the flows under it.
//!
//! A lookup walks the masks in the order in which they came into use, digests the packet's key under each and, where the
//! digest is found, compares the whole key. That is the eBPF program's lookup without its cache: the number of masks looked at
//! is the same. Flows don't overlap (userspace sees to that), so the first match is the only one.
//!
//! Statistics are counted under the table's read lock and a flow is removed under its write lock, so the statistics that a
//! removal reports are final.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datapath_common::digest::{digest, equal_masked};
use datapath_common::{Digest, DigestSeeds, FlowKey, MaskEntry, Op};

use crate::Result;
use crate::action::Action;
use crate::error::DpifError;
use crate::flow::{DatapathFlow, FlowStats, PutMode, Ufid};

/// A flow as it lies in the table. Replaced whole when its actions change; the counters go along.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) ufid: Ufid,
    pub(super) key: FlowKey,
    pub(super) mask: FlowKey,
    pub(super) actions: Arc<[Action]>,
    pub(super) program: Vec<Op>,
    pub(super) counters: Arc<Counters>,
    digest: Digest,
}

impl Flow {
    pub(super) fn to_datapath_flow(&self) -> DatapathFlow {
        DatapathFlow {
            ufid: self.ufid,
            key: self.key,
            mask: self.mask,
            actions: self.actions.clone(),
            stats: self.counters.get(),
        }
    }
}

/// Statistics of a flow.
#[derive(Debug, Default)]
pub(super) struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    used_ns: AtomicU64,
    tcp_flags: AtomicU64,
}

impl Counters {
    fn add(&self, bytes: u64, tcp_flags: u16, now_ns: u64) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.used_ns.fetch_max(now_ns, Ordering::Relaxed);
        if tcp_flags != 0 {
            self.tcp_flags.fetch_or(tcp_flags.into(), Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> FlowStats {
        FlowStats {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            used_ms: self.used_ns.load(Ordering::Relaxed) / 1_000_000,
            tcp_flags: self.tcp_flags.load(Ordering::Relaxed) as u16,
        }
    }
}

/// What a lookup found.
pub(super) struct Found {
    /// The flow, if any matches.
    pub(super) flow: Option<Arc<Flow>>,
    /// Masks looked at.
    pub(super) masks: u32,
}

/// The flows under one mask.
struct Subtable {
    mask: FlowKey,
    entry: MaskEntry,
    flows: HashMap<Digest, Arc<Flow>, BuildHasherDefault<DigestHasher>>,
}

/// A digest is a keyed hash already: it needs none of its own.
#[derive(Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.0 = self.0.rotate_left(32) ^ word;
        }
    }

    // The length of the lanes, the number of the mask: the same for all digests of a table.
    fn write_usize(&mut self, _: usize) {}
    fn write_u32(&mut self, _: u32) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A flow to put, its actions compiled.
pub(super) struct NewFlow {
    pub(super) ufid: Ufid,
    pub(super) key: FlowKey,
    pub(super) mask: FlowKey,
    pub(super) actions: Arc<[Action]>,
    pub(super) program: Vec<Op>,
}

/// The table.
pub(super) struct Table {
    seeds: DigestSeeds,
    max_flows: usize,
    max_masks: usize,
    subtables: Vec<Subtable>,
    by_ufid: HashMap<Ufid, Arc<Flow>>,
    /// Number of the next new mask. Numbers are never used again: 2³² of them last.
    next_mask_id: u32,
}

impl Table {
    pub(super) fn new(seeds: DigestSeeds, max_flows: usize, max_masks: usize) -> Self {
        Self { seeds, max_flows, max_masks, subtables: Vec::new(), by_ufid: HashMap::new(), next_mask_id: 0 }
    }

    /// The flow that `key` matches; counts a packet of `bytes` bytes in it.
    pub(super) fn lookup(&self, key: &FlowKey, bytes: u64, now_ns: u64) -> Found {
        let mut masks = 0;
        for subtable in &self.subtables {
            masks += 1;
            if let Some(flow) = subtable.flows.get(&digest(key, &subtable.entry, &self.seeds))
                && equal_masked(&flow.key, key, &subtable.entry)
            {
                flow.counters.add(bytes, key.tcp_flags.get(), now_ns);
                return Found { flow: Some(Arc::clone(flow)), masks };
            }
        }
        Found { flow: None, masks }
    }

    pub(super) fn put(&mut self, mode: PutMode, new: NewFlow) -> Result<()> {
        match (self.by_ufid.get(&new.ufid), mode) {
            (Some(_), PutMode::Create) => Err(DpifError::FlowExists),
            (None, PutMode::Modify) => Err(DpifError::NoSuchFlow),
            (Some(old), _) => {
                let old = Arc::clone(old);
                if old.mask != new.mask || old.key != new.key.masked(&new.mask) {
                    return Err(DpifError::Invalid(format!("{} is the id of a flow with another key", new.ufid)));
                }
                self.replace(&old, new);
                Ok(())
            }
            (None, _) => self.insert(new),
        }
    }

    pub(super) fn get(&self, ufid: Ufid) -> Option<&Arc<Flow>> {
        self.by_ufid.get(&ufid)
    }

    /// Removes a flow. Its counters don't change any more.
    pub(super) fn remove(&mut self, ufid: Ufid) -> Option<Arc<Flow>> {
        let flow = self.by_ufid.remove(&ufid)?;
        if let Some(at) = self.subtables.iter().position(|s| s.entry.id == flow.digest.mask_id)
            && let Some(subtable) = self.subtables.get_mut(at)
        {
            subtable.flows.remove(&flow.digest);
            if subtable.flows.is_empty() {
                self.subtables.remove(at);
            }
        }
        Some(flow)
    }

    pub(super) fn clear(&mut self) {
        self.subtables.clear();
        self.by_ufid.clear();
    }

    /// All flows as of now.
    pub(super) fn snapshot(&self) -> Vec<Arc<Flow>> {
        self.by_ufid.values().cloned().collect()
    }

    pub(super) fn n_flows(&self) -> usize {
        self.by_ufid.len()
    }

    pub(super) fn n_masks(&self) -> usize {
        self.subtables.len()
    }

    fn insert(&mut self, new: NewFlow) -> Result<()> {
        if self.by_ufid.len() >= self.max_flows {
            return Err(DpifError::Full(format!("the datapath has its {} flows already", self.max_flows)));
        }
        let key = new.key.masked(&new.mask);
        let at = match self.subtables.iter().position(|s| s.mask == new.mask) {
            Some(at) => at,
            None if self.subtables.len() >= self.max_masks => {
                return Err(DpifError::TooManyMasks(self.max_masks));
            }
            None => {
                let entry = MaskEntry::new(self.next_mask_id, &new.mask);
                self.next_mask_id = self.next_mask_id.wrapping_add(1);
                self.subtables.push(Subtable { mask: new.mask, entry, flows: HashMap::default() });
                self.subtables.len() - 1
            }
        };
        // `at` is a position in the list.
        let Some(subtable) = self.subtables.get_mut(at) else { return Err(DpifError::NoSuchFlow) };
        let digest = digest(&key, &subtable.entry, &self.seeds);
        if let Some(other) = subtable.flows.get(&digest) {
            return Err(if other.key == key { DpifError::FlowExists } else { DpifError::DigestCollision });
        }
        let flow = Arc::new(Flow {
            ufid: new.ufid,
            key,
            mask: new.mask,
            actions: new.actions,
            program: new.program,
            counters: Arc::default(),
            digest,
        });
        subtable.flows.insert(digest, Arc::clone(&flow));
        self.by_ufid.insert(flow.ufid, flow);
        Ok(())
    }

    fn replace(&mut self, old: &Flow, new: NewFlow) {
        let flow = Arc::new(Flow {
            ufid: old.ufid,
            key: old.key,
            mask: old.mask,
            actions: new.actions,
            program: new.program,
            counters: Arc::clone(&old.counters),
            digest: old.digest,
        });
        if let Some(subtable) = self.subtables.iter_mut().find(|s| s.entry.id == flow.digest.mask_id) {
            subtable.flows.insert(flow.digest, Arc::clone(&flow));
        }
        self.by_ufid.insert(flow.ufid, flow);
    }
}
