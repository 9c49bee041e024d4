//! Ukeys: what userspace knows of each megaflow that it installed.
//!
//! A ukey is in the table before its flow is in the datapath, and leaves after it, so a flow without a ukey is a stranger's. Its
//! life goes forward only ([`Phase`]): while it is *visible* it belongs to the handler that is installing its flow and to nobody
//! else, from *operational* on to the revalidators. That is why no flow can be deleted between its handler's decision to
//! install it and the datapath's answer, and why none can be left behind.
//!
//! | from | to | by whom, and when |
//! | --- | --- | --- |
//! | created | visible | a handler: the ukey is in the table, its flow is about to be put |
//! | visible | operational | that handler: the datapath took the flow. Or it died in between, and nobody knows |
//! | visible | evicted | that handler: the datapath refused |
//! | operational | inconsistent | a revalidator: a modification failed, what the datapath does with the flow is not known |
//! | operational, inconsistent | evicting | a revalidator, with a [`DelReason`]: the flow is about to be deleted |
//! | evicting | evicted | that revalidator: the flow is gone |
//! | evicted | deleted | whoever takes it out of the table, or a handler that puts a new ukey in its place |
//!
//! **Locks.** A shard's lock comes before that of a ukey in it, and whoever holds a ukey's takes no shard's. Nobody waits for a
//! ukey's lock while holding a shard's.

use dpif::{Action, FlowStats, Ufid};
use std::sync::Arc;

use crate::sync::Mutex;
use crate::xlate::Effect;

mod census;
mod life;
mod masked;
mod table;

#[allow(unused_imports)]
pub(crate) use census::{Caps, Census, Counted, Hints, Over, PortFlows};
pub(crate) use life::{DelReason, Phase};
#[allow(unused_imports)]
pub(crate) use masked::MaskShape;
pub(crate) use masked::{MaskedKey, MaskedWords};
pub(crate) use table::{Installation, Refused, UkeyTable};

/// What userspace knows of a megaflow.
pub(crate) struct Ukey {
    id: Id,
    /// The masked key and the mask.
    pub(crate) flow: MaskedKey,
    /// When it was installed or found.
    pub(crate) created_ms: u64,
    /// It counts for its port as long as it is there.
    pub(crate) counted: Option<Counted>,
    pub(crate) state: Mutex<State>,
}

/// A flow's id in two halves, the upper one first. The allocator takes its long way, and a size more, for what is to lie where a
/// number of 128 bits may lie.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Id([u64; 2]);

impl Id {
    fn ufid(self) -> Ufid {
        let [upper, lower] = self.0;
        Ufid(u128::from(upper) << 64 | u128::from(lower))
    }
}

impl From<Ufid> for Id {
    fn from(Ufid(id): Ufid) -> Self {
        Self([(id >> 64) as u64, id as u64])
    }
}

const _: () = assert!(align_of::<Ukey>() <= 8, "the allocator's short way");

/// What of a ukey changes.
pub(crate) struct State {
    phase: Phase,
    reason: Option<DelReason>,
    /// The datapath refused to delete its flow: that is to be tried again.
    pub(crate) deletion_failed: bool,
    /// Passes since the last that saw the flow in the datapath.
    pub(crate) missed: u32,
    /// The last pass that saw it there.
    pub(crate) seen_in_pass: u64,
    /// The generation that it was translated from; 0: it never was.
    pub(crate) generation: u64,
    /// What the datapath does with its packets; shared with the datapath's own mirror.
    pub(crate) actions: Arc<[Action]>,
    /// What each of its packets changes.
    pub(crate) effects: Box<[Effect]>,
    /// Its statistics as far as they have been pushed.
    pub(crate) pushed: FlowStats,
}

impl Ukey {
    /// A ukey that is in no table yet.
    pub(crate) fn new(
        ufid: Ufid,
        flow: MaskedKey,
        now_ms: u64,
        generation: u64,
        actions: Arc<[Action]>,
        effects: Box<[Effect]>,
    ) -> Self {
        let state = State {
            phase: Phase::Created,
            reason: None,
            deletion_failed: false,
            missed: 0,
            seen_in_pass: 0,
            generation,
            actions,
            effects,
            pushed: FlowStats::default(),
        };
        Self { id: Id::from(ufid), flow, created_ms: now_ms, counted: None, state: Mutex::new(state) }
    }

    /// The flow's id.
    pub(crate) fn ufid(&self) -> Ufid {
        self.id.ufid()
    }
}

impl State {
    /// Where the ukey is in its life.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Why it was or is being deleted, if so.
    pub(crate) fn reason(&self) -> Option<DelReason> {
        self.reason
    }

    /// A modification of its flow failed. `false`: it is not operational.
    pub(crate) fn becomes_inconsistent(&mut self) -> bool {
        self.advance(Phase::Inconsistent)
    }

    /// Its flow is about to be deleted, by the caller. `false`: it is not the caller's to delete, because it isn't installed
    /// yet, or somebody else is at it or was before.
    pub(crate) fn begin_to_evict(&mut self, reason: DelReason) -> bool {
        let begins = self.advance(Phase::Evicting);
        if begins {
            self.reason = Some(reason);
        }
        begins
    }

    /// Its flow is gone; who began to evict it says so. `false`: nobody has begun.
    pub(crate) fn is_evicted(&mut self) -> bool {
        self.phase == Phase::Evicting && self.advance(Phase::Evicted)
    }

    fn advance(&mut self, to: Phase) -> bool {
        let may = self.phase.may_become(to);
        if may {
            self.phase = to;
        }
        may
    }
}
