//! Recirculation: translations that stop in the middle and go on when the packet comes back.
//!
//! Some actions need what only the datapath finds out (a hash, the headers behind a popped label, the state of a connection).
//! Translation stops there: what is left to do is *frozen*, the datapath is told to look the packet up again under a number,
//! and who gets a packet with that number *thaws* the state and goes on. The same state always has the same number, so that
//! translating a packet again gives the same actions.
//!
//! A number lives as long as somebody holds its [`Recirc`]: the flow that leads to it, and every flow that matches on it. It is
//! not given out again before all others have been, for packets may still be under way with it. Those find its state for a while
//! yet ([`RecircTable::expire`]): a packet whose flow was not installed, or is gone, comes back all the same.
//!
//! Flows that an earlier process left in the datapath may carry numbers too. What they stood for is not known any more; they are
//! [`Inherited`], and not given out as long as such a flow may be there.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use openflow::{Action, OfPort};
use parking_lot::RwLock;

/// For so long, in milliseconds, packets find the state of a number that nobody holds any more.
const LINGER_MS: u64 = 1_000;
/// Of so many such numbers; where there are more, the oldest go at once.
const MAX_LINGERING: usize = 65_536;

/// What is left to do for a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frozen {
    /// The bridge.
    pub bridge: Arc<str>,
    /// The port by which the packet came in there.
    pub in_port: OfPort,
    /// The OpenFlow metadata.
    pub metadata: u64,
    /// The registers.
    pub regs: [u32; 16],
    /// What became of the fields of its tunnel.
    pub tunnel: FrozenTunnel,
    /// The most that outputs may send, and how many VLAN tags the packet had when that was said.
    pub trunc: Option<(u32, usize)>,
    /// The action set.
    pub set: Vec<Action>,
    /// What is left of the lists of actions, the innermost first.
    pub rest: Vec<Rest>,
    /// Nothing is left to do: a packet goes to the controllers, and this is what they are told.
    pub packet_in: Option<PacketInState>,
}

/// The fields of a packet's tunnel, as a pipeline has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrozenTunnel {
    /// As the packet came.
    AsItCame,
    /// As it came, but for the id.
    Id(u64),
    /// Nothing but this id: on its way through a patch port it has left its tunnel.
    Left(u64),
}

/// What the controllers are told of a packet, beside the rest of its state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PacketInState {
    /// The table of the rule that sends it.
    pub table: u8,
    /// Bytes that the action gives along.
    pub userdata: Vec<u8>,
}

/// What is left of a list of actions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rest {
    /// The table that they stand in.
    pub table: u8,
    /// The cookie of their rule.
    pub cookie: u64,
    /// The actions.
    pub actions: Vec<Action>,
}

/// A number with its state, as long as it is held.
#[derive(Debug)]
pub struct Recirc {
    id: u32,
    state: Arc<Frozen>,
    table: Weak<RecircTable>,
}

impl Recirc {
    /// The number, not 0.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The state.
    pub fn state(&self) -> &Frozen {
        &self.state
    }
}

impl Drop for Recirc {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.release(self.id, &self.state);
        }
    }
}

/// A number of an earlier process, as long as a flow may carry it: it stands for nothing, and is nobody else's.
#[derive(Debug)]
pub struct Inherited {
    id: u32,
    table: Weak<RecircTable>,
}

impl Drop for Inherited {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            table.disinherit(self.id);
        }
    }
}

/// All numbers of a switch.
#[derive(Debug)]
pub struct RecircTable {
    itself: Weak<Self>,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// With their states: who has let the last [`Recirc`] go but not yet said so leaves another to be made.
    by_id: HashMap<u32, (Weak<Recirc>, Arc<Frozen>), ahash::RandomState>,
    by_state: HashMap<Arc<Frozen>, Weak<Recirc>, ahash::RandomState>,
    inherited: HashMap<u32, Weak<Inherited>, ahash::RandomState>,
    /// States of numbers that nobody holds any more, and the how many-th to be let go each was.
    lingering: HashMap<u32, (Arc<Frozen>, u64), ahash::RandomState>,
    /// All that were let go, in that order; some may be held again.
    order: VecDeque<LetGo>,
    n_let_go: u64,
    last: u32,
}

#[derive(Debug)]
struct LetGo {
    id: u32,
    /// The how many-th it was.
    number: u64,
    /// Until when it stays, once that is known.
    until_ms: Option<u64>,
}

impl RecircTable {
    /// Without numbers.
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|itself| Self { itself: Weak::clone(itself), inner: RwLock::default() })
    }

    /// The number of a state, a new one if it has none.
    pub fn of(&self, state: Frozen) -> Arc<Recirc> {
        if let Some(recirc) = self.inner.read().by_state.get(&state).and_then(Weak::upgrade) {
            return recirc;
        }
        let mut inner = self.inner.write();
        if let Some(recirc) = inner.by_state.get(&state).and_then(Weak::upgrade) {
            return recirc;
        }
        let state = Arc::new(state);
        let id = inner.next();
        let recirc = Arc::new(Recirc { id, state: Arc::clone(&state), table: Weak::clone(&self.itself) });
        inner.by_id.insert(id, (Arc::downgrade(&recirc), Arc::clone(&state)));
        inner.by_state.insert(state, Arc::downgrade(&recirc));
        recirc
    }

    /// The state of a number. `None`: nobody holds it, nor has lately.
    pub fn get(&self, id: u32) -> Option<Arc<Recirc>> {
        {
            let inner = self.inner.read();
            match inner.by_id.get(&id).map(|(held, _)| held.upgrade()) {
                Some(Some(held)) => return Some(held),
                None if !inner.lingering.contains_key(&id) => return None,
                Some(None) | None => {}
            }
        }
        let mut inner = self.inner.write();
        let state = match inner.by_id.get(&id).map(|(held, state)| (held.upgrade(), Arc::clone(state))) {
            Some((Some(held), _)) => return Some(held),
            Some((None, state)) => state,
            None => inner.lingering.remove(&id)?.0,
        };
        let recirc = Arc::new(Recirc { id, state: Arc::clone(&state), table: Weak::clone(&self.itself) });
        inner.by_id.insert(id, (Arc::downgrade(&recirc), Arc::clone(&state)));
        // It may have another number by now.
        if inner.by_state.get(&state).is_none_or(|other| other.strong_count() == 0) {
            inner.by_state.insert(state, Arc::downgrade(&recirc));
        }
        Some(recirc)
    }

    /// Forgets the states of numbers that nobody has held for a while. To be called now and then; `now_ms` goes up.
    pub fn expire(&self, now_ms: u64) {
        if self.inner.read().order.is_empty() {
            return;
        }
        let mut inner = self.inner.write();
        while let Some(oldest) = inner.order.pop_front_if(|of| of.until_ms.is_some_and(|until| until <= now_ms)) {
            inner.forget(&oldest);
        }
        let fresh = inner.order.iter_mut().rev().take_while(|of| of.until_ms.is_none());
        fresh.for_each(|of| of.until_ms = Some(now_ms.saturating_add(LINGER_MS)));
    }

    /// Keeps a number that flows of an earlier process have. No number up to it is given out before all others have been:
    /// packets may be under way with one that was in use between. `None`: it stands for something here.
    pub fn inherit(&self, id: u32) -> Option<Arc<Inherited>> {
        let mut inner = self.inner.write();
        if inner.by_id.get(&id).is_some_and(|(recirc, _)| recirc.strong_count() > 0) {
            return None;
        }
        inner.last = inner.last.max(id);
        if let Some(inherited) = inner.inherited.get(&id).and_then(Weak::upgrade) {
            return Some(inherited);
        }
        let inherited = Arc::new(Inherited { id, table: Weak::clone(&self.itself) });
        inner.inherited.insert(id, Arc::downgrade(&inherited));
        Some(inherited)
    }

    /// Whether flows of an earlier process have this number.
    pub fn is_inherited(&self, id: u32) -> bool {
        self.inner.read().inherited.get(&id).is_some_and(|inherited| inherited.strong_count() > 0)
    }

    /// How many numbers of an earlier process are held.
    pub fn n_inherited(&self) -> usize {
        self.inner.read().inherited.len()
    }

    /// How many numbers are held.
    pub fn len(&self) -> usize {
        self.inner.read().by_id.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn disinherit(&self, id: u32) {
        let mut inner = self.inner.write();
        // Somebody may have inherited it again since.
        if inner.inherited.get(&id).is_some_and(|inherited| inherited.strong_count() == 0) {
            inner.inherited.remove(&id);
        }
    }

    fn release(&self, id: u32, state: &Arc<Frozen>) {
        let mut inner = self.inner.write();
        // Somebody may hold it again since, who then lets it go.
        if inner.by_id.get(&id).is_some_and(|(recirc, _)| recirc.strong_count() == 0) {
            inner.by_id.remove(&id);
            inner.let_go(id, Arc::clone(state));
        }
        // Somebody may have given the state another number since.
        if inner.by_state.get(state).is_some_and(|recirc| recirc.strong_count() == 0) {
            inner.by_state.remove(state);
        }
    }
}

impl Inner {
    /// Nobody holds a number any more.
    fn let_go(&mut self, id: u32, state: Arc<Frozen>) {
        self.n_let_go += 1;
        let number = self.n_let_go;
        self.lingering.insert(id, (state, number));
        self.order.push_back(LetGo { id, number, until_ms: None });
        if self.order.len() > MAX_LINGERING
            && let Some(oldest) = self.order.pop_front()
        {
            self.forget(&oldest);
        }
    }

    /// Forgets a number's state, unless it was held again since it was let go.
    fn forget(&mut self, let_go: &LetGo) {
        if self.lingering.get(&let_go.id).is_some_and(|(_, number)| *number == let_go.number) {
            self.lingering.remove(&let_go.id);
        }
    }

    /// The next number that nobody holds. There are more numbers than flows, so there is one.
    fn next(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            let last = self.last;
            let is_taken = self.by_id.contains_key(&last) || self.lingering.contains_key(&last);
            if last != 0 && !is_taken && !self.inherited.contains_key(&last) {
                return last;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(metadata: u64) -> Frozen {
        let (bridge, set, rest) = ("br0".into(), Vec::new(), Vec::new());
        let tunnel = FrozenTunnel::AsItCame;
        Frozen { bridge, in_port: OfPort(1), metadata, regs: [0; 16], tunnel, trunc: None, set, rest, packet_in: None }
    }

    #[test]
    fn a_state_has_one_number_as_long_as_it_is_held() {
        let table = RecircTable::new();
        let (one, again, other) = (table.of(state(1)), table.of(state(1)), table.of(state(2)));
        assert_eq!(one.id(), again.id());
        assert_ne!(one.id(), other.id());
        assert_eq!(table.get(other.id()).unwrap().state(), &state(2));
        let id = one.id();
        drop(one);
        assert!(table.get(id).is_some());
        drop(again);
        assert_eq!(table.len(), 1);
        assert_ne!(table.of(state(1)).id(), id, "packets may be under way with the old number");
    }

    #[test]
    fn a_packet_that_is_under_way_finds_its_state_for_a_while() {
        let table = RecircTable::new();
        let id = table.of(state(1)).id();
        let now = 5_000;
        table.expire(now);
        table.expire(now + LINGER_MS - 1);
        assert_eq!(table.get(id).unwrap().state(), &state(1));
        assert_eq!(table.len(), 0, "nobody holds it");
        // Let go again, it lingers anew: the first time is over, the second isn't.
        table.expire(now + LINGER_MS - 1);
        let held = table.get(id).unwrap();
        table.expire(now + LINGER_MS);
        table.expire(now + 10 * LINGER_MS);
        assert_eq!((table.get(id).unwrap().id(), table.of(state(1)).id()), (id, id), "it is held");
        drop(held);
        table.expire(now + 11 * LINGER_MS);
        table.expire(now + 12 * LINGER_MS);
        assert!(table.get(id).is_none());
        assert!(table.inner.read().by_state.is_empty() && table.inner.read().order.is_empty());
        // With another number since, it keeps both.
        let first = table.of(state(2)).id();
        let second = table.of(state(2));
        let revived = table.get(first).unwrap();
        assert_ne!(second.id(), first);
        assert_eq!(table.of(state(2)).id(), second.id());
        drop(revived);
        assert_eq!(table.of(state(2)).id(), second.id());
        // There is an end to it.
        let ids: Vec<_> = (0..MAX_LINGERING as u64 + 9).map(|metadata| table.of(state(metadata + 10)).id()).collect();
        assert!(ids[..9].iter().all(|id| table.get(*id).is_none()) && table.get(ids[10]).is_some());
    }

    #[test]
    fn numbers_of_an_earlier_process_are_given_out_by_nobody_as_long_as_they_are_held() {
        let table = RecircTable::new();
        let old = [u32::MAX - 1, 2, 7].map(|id| table.inherit(id).unwrap());
        let ids: Vec<_> = (0..4).map(|metadata| table.of(state(metadata))).collect();
        assert_eq!(ids.iter().map(|recirc| recirc.id()).collect::<Vec<_>>(), [u32::MAX, 1, 3, 4], "2 is held");
        assert!(table.is_inherited(7) && !table.is_inherited(3) && table.get(7).is_none());
        assert!(table.inherit(3).is_none(), "it stands for something");
        let again = table.inherit(7).unwrap();
        drop(old);
        assert!(table.is_inherited(7) && !table.is_inherited(2));
        table.inner.write().last = 6;
        assert_eq!(table.of(state(9)).id(), 8);
        drop(again);
        assert_eq!(table.n_inherited(), 0);
        table.inner.write().last = 6;
        assert_eq!(table.of(state(10)).id(), 7, "nobody has it any more");
    }

    #[test]
    fn a_number_that_is_just_let_go_never_stands_for_nothing() {
        let table = RecircTable::new();
        let id = table.of(state(1)).id();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        assert_eq!(table.get(id).expect("a state").id(), id);
                    }
                });
            }
        });
        assert!(table.is_empty());
        let inner = table.inner.read();
        assert!(inner.by_state.is_empty() && inner.lingering.contains_key(&id));
    }

    #[test]
    fn threads_agree_on_a_number_and_the_last_one_frees_it() {
        let table = RecircTable::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..20_000u64 {
                        let one = table.of(state(round % 3));
                        let again = table.of(state(round % 3));
                        assert_eq!(one.id(), again.id());
                        assert_eq!(table.get(one.id()).unwrap().state(), &state(round % 3));
                    }
                });
            }
        });
        assert!(table.is_empty());
        assert!(table.inner.read().by_state.is_empty());
    }
}
