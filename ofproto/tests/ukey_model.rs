//! The life of ukeys under a model checker: handlers that install, replace and give up, revalidators that evict and sweep, in
//! every order that the checker thinks of. What is checked is the source of the crate itself, compiled against the checker's
//! locks and numbers.
//!
//! **What it catches.** Each of these, broken on purpose, makes it fail:
//!
//! - the table: an install that makes the ukey operational before its flow is put, or leaves it created; a look and an insertion
//!   under two locks; a new ukey in the place of one that is not evicted, that is not ended, or that has another key; a replacement
//!   that isn't counted as a deletion, or counts as one ukey more; a removal of a ukey that is not evicted, that is not ended, that
//!   another has replaced, or that isn't counted;
//! - what becomes of an installation: success that changes nothing; failure that doesn't evict, doesn't remove, or has no reason; a
//!   dead handler that leaves the ukey visible, or evicts it; an adopted ukey that stays visible;
//! - the table of states: each move that is missing; visible to evicting or deleted, operational to deleted, evicting to evicting,
//!   inconsistent or deleted, evicted to evicting, created to operational; a move that doesn't look at the table at
//!   all; an eviction without a reason, or that ends without having begun.
//!
//! Moves that nobody asks for (operational to evicted; back to operational; inconsistent or deleted twice) can't be seen here;
//! `a_life_goes_forward_only_and_every_way_ends` fails for those that go back or stay where they are.
#![allow(dead_code, unused_imports)]

use std::collections::HashMap;
use std::sync::Arc;

use datapath_common::FlowKey;
use dpif::Ufid;
use shuttle::thread;

/// What a thread does.
type Work = Box<dyn FnOnce(&World) + Send>;

/// The checker's types, with the interface of the ones they stand for.
mod sync {
    pub(crate) use shuttle::sync::MutexGuard;
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use shuttle::sync::{RwLockReadGuard, RwLockWriteGuard};

    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap()
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap()
        }
    }
}

/// What a flow's packets change doesn't matter here.
mod xlate {
    #[derive(Clone, Debug)]
    pub(crate) struct Effect;
}

#[path = "../src/upcall/ukey/mod.rs"]
mod ukey;

use ukey::{Caps, Census, DelReason, Hints, MaskedKey, MaskedWords, Phase, Refused, Ukey, UkeyTable};

/// A datapath: flows by id, each with the number of whoever put it.
///
/// Its lock is not the checker's: nobody may hold it where the checker changes threads.
struct Datapath {
    flows: std::sync::Mutex<HashMap<Ufid, usize>>,
    /// Flows that may be put before it is full.
    room: std::sync::Mutex<usize>,
}

impl Datapath {
    fn put(&self, ufid: Ufid, by: usize) -> bool {
        thread::yield_now();
        let (mut flows, mut room) = (self.flows.lock().unwrap(), self.room.lock().unwrap());
        if *room == 0 || flows.contains_key(&ufid) {
            return false;
        }
        *room -= 1;
        flows.insert(ufid, by);
        true
    }

    fn delete(&self, ufid: Ufid) -> bool {
        thread::yield_now();
        self.flows.lock().unwrap().remove(&ufid).is_some()
    }
}

struct World {
    table: UkeyTable,
    datapath: Datapath,
    /// Each ukey that ever was in the table.
    all: std::sync::Mutex<Vec<Arc<Ukey>>>,
}

impl World {
    fn new(room: usize) -> Arc<Self> {
        let datapath = Datapath { flows: Default::default(), room: room.into() };
        Arc::new(Self { table: UkeyTable::with_shards(2), datapath, all: std::sync::Mutex::default() })
    }

    /// An upcall for flow `number`: what a handler does with it.
    fn handle(&self, number: u32, by: usize, dies: bool) {
        let (ufid, ukey) = new_ukey(number);
        let Ok(installation) = self.table.install(ukey) else { return };
        let ukey = Arc::clone(installation.ukey().unwrap());
        self.all.lock().unwrap().push(Arc::clone(&ukey));
        let put = self.datapath.put(ufid, by);
        // Between the put and its end nobody may take the flow away.
        assert_eq!(ukey.state.lock().phase(), Phase::Visible);
        if dies {
            return;
        }
        if put {
            assert!(installation.succeeded().is_some());
            return;
        }
        installation.failed(&self.table);
        assert!(ukey.state.lock().phase() >= Phase::Evicted, "a flow that is not there can't be evicted");
    }

    /// A flow that somebody else has put into the datapath is found.
    fn adopt(&self, number: u32, by: usize) {
        let (ufid, ukey) = new_ukey(number);
        if !self.datapath.put(ufid, by) {
            return;
        }
        match self.table.adopt(ukey) {
            Ok(ukey) => {
                assert!(ukey.state.lock().phase() >= Phase::Operational);
                self.all.lock().unwrap().push(ukey);
            }
            // A handler was quicker with its ukey, but will be refused its flow.
            Err(_) => assert!(self.datapath.delete(ufid)),
        }
    }

    /// A pass of a revalidator that fails to modify all flows.
    fn fail_to_modify(&self) {
        for ukey in self.table.all() {
            let mut state = ukey.state.lock();
            let phase = state.phase();
            let was_operational = phase == Phase::Operational;
            if phase != Phase::Evicting {
                assert!(!state.is_evicted() && state.phase() == phase, "nobody has begun to evict it");
            }
            assert_eq!(state.becomes_inconsistent(), was_operational);
            assert!(!was_operational || !state.phase().is_in_use());
        }
    }

    /// A pass of a revalidator that wants to delete all flows.
    fn evict(&self) {
        for ukey in self.table.all() {
            if !ukey.state.lock().begin_to_evict(DelReason::Idle) {
                continue;
            }
            self.datapath.delete(ukey.ufid());
            assert!(ukey.state.lock().is_evicted(), "only who begins to evict a ukey ends it");
        }
    }

    fn sweep(&self) {
        for ukey in self.table.all() {
            let evicted = ukey.state.lock().phase() == Phase::Evicted;
            if evicted {
                self.table.remove(&ukey);
            }
        }
    }

    /// After all threads have ended: nothing is lost, nothing is there twice.
    fn check(&self) {
        let left = self.table.all();
        assert_eq!(left.len(), self.table.len());
        for ukey in &left {
            let phase = ukey.state.lock().phase();
            let is_at_rest = matches!(phase, Phase::Operational | Phase::Inconsistent | Phase::Evicted);
            assert!(is_at_rest, "{phase:?} at rest");
        }
        let has_flow =
            |ukey: &&Arc<Ukey>| matches!(ukey.state.lock().phase(), Phase::Operational | Phase::Inconsistent);
        for ufid in self.datapath.flows.lock().unwrap().keys() {
            let ukeys = left.iter().filter(|ukey| ukey.ufid() == *ufid).filter(has_flow).count();
            assert_eq!(ukeys, 1, "a flow without its ukey");
        }
        drop(left);
        // A last pass leaves nothing behind, and each ukey that ever was went one way.
        self.evict();
        self.sweep();
        assert!(self.datapath.flows.lock().unwrap().is_empty());
        assert_eq!((self.table.len(), self.table.all().len()), (0, 0));
        let all = self.all.lock().unwrap();
        assert!(all.iter().all(|ukey| ukey.state.lock().phase() == Phase::Deleted));
        assert!(all.iter().all(|ukey| ukey.state.lock().reason().is_some()));
        let deleted: u64 = DelReason::ALL.iter().map(|reason| self.table.deleted(*reason)).sum();
        assert_eq!(deleted, all.len() as u64);
        assert!(all.iter().all(|ukey| Arc::strong_count(ukey) == 1), "leaked");
    }
}

/// A flow that matches on its number. All have one of two ids, so that flow 0 and 2 are in each other's way.
fn new_ukey(number: u32) -> (Ufid, Ukey) {
    let ufid = Ufid(u128::from(number % 2));
    let key = FlowKey { in_port: number, ..FlowKey::ZERO };
    let flow = MaskedKey::new(&key, &FlowKey { in_port: u32::MAX, ..FlowKey::ZERO });
    (ufid, Ukey::new(ufid, flow, 0, 1, Arc::from([]), Box::default()))
}

fn run(world: &Arc<World>, threads: Vec<Work>) {
    let threads: Vec<_> = threads
        .into_iter()
        .map(|work| {
            let world = Arc::clone(world);
            thread::spawn(move || work(&world))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    world.check();
}

fn handles(number: u32, by: usize) -> Work {
    Box::new(move |world| world.handle(number, by, false))
}

/// Random orders, and those that switch threads seldom but at bad moments.
fn explore(test: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(test, 1000);
    shuttle::check_pct(test, 1000, 3);
}

#[test]
fn of_two_handlers_that_install_one_flow_one_does() {
    shuttle::check_dfs(
        || {
            let world = World::new(9);
            run(&world, vec![handles(1, 1), handles(1, 2)]);
            assert_eq!(world.all.lock().unwrap().len(), 1);
        },
        Some(200),
    );
}

#[test]
fn a_flow_that_is_evicted_and_comes_again_is_installed_again() {
    explore(|| {
        let world = World::new(9);
        let evicts: Work = Box::new(|world| {
            world.evict();
            world.sweep();
        });
        let twice: Work = Box::new(|world| {
            world.handle(1, 1, false);
            world.handle(1, 2, false);
        });
        run(&world, vec![twice, evicts, handles(1, 3)]);
    });
}

#[test]
fn two_revalidators_evict_a_flow_once() {
    explore(|| {
        let world = World::new(9);
        let pass = || -> Work {
            Box::new(|world| {
                world.evict();
                world.sweep();
            })
        };
        run(&world, vec![handles(1, 1), pass(), pass(), handles(1, 2)]);
    });
}

#[test]
fn a_flow_that_can_not_be_modified_is_evicted() {
    explore(|| {
        let world = World::new(9);
        let modifies: Work = Box::new(|world| world.fail_to_modify());
        let pass: Work = Box::new(|world| {
            world.evict();
            world.sweep();
        });
        run(&world, vec![handles(1, 1), modifies, pass, handles(1, 2)]);
    });
}

#[test]
fn a_flow_that_is_found_and_installed_at_once_has_one_ukey() {
    explore(|| {
        let world = World::new(9);
        let finds: Work = Box::new(|world| world.adopt(1, 7));
        let pass: Work = Box::new(|world| {
            world.evict();
            world.sweep();
        });
        run(&world, vec![finds, handles(1, 1), pass]);
    });
}

/// Where nobody else is at it, the ukey of a flow that the datapath refuses is gone at once.
#[test]
fn a_refused_ukey_is_gone_with_the_answer() {
    shuttle::check_random(
        || {
            let world = World::new(0);
            world.handle(1, 1, false);
            assert_eq!((world.table.len(), world.table.all().len()), (0, 0));
            world.check();
        },
        1,
    );
}

#[test]
fn a_datapath_that_refuses_leaves_no_ukey() {
    explore(|| {
        let world = World::new(1);
        let pass: Work = Box::new(|world| world.evict());
        run(&world, vec![handles(0, 1), handles(1, 2), handles(1, 3), pass]);
    });
}

#[test]
fn a_handler_that_dies_while_it_installs_leaves_no_stranger() {
    explore(|| {
        let world = World::new(9);
        let dies: Work = Box::new(|world| world.handle(1, 1, true));
        let pass: Work = Box::new(|world| world.evict());
        run(&world, vec![dies, handles(1, 2), pass]);
    });
}

#[test]
fn two_flows_with_one_id_are_not_both_installed() {
    explore(|| {
        let world = World::new(9);
        let pass: Work = Box::new(|world| {
            world.evict();
            world.sweep();
        });
        run(&world, vec![handles(0, 1), handles(2, 2), pass]);
    });
    shuttle::check_random(
        || {
            let table = UkeyTable::with_shards(1);
            let first = table.install(new_ukey(0).1).ok().and_then(|installation| installation.succeeded()).unwrap();
            assert_eq!(table.install(new_ukey(2).1).err(), Some(Refused::Conflict));
            assert_eq!(table.install(new_ukey(0).1).err(), Some(Refused::Duplicate));
            let busy = first.state.lock();
            assert_eq!(table.install(new_ukey(0).1).err(), Some(Refused::Contended));
            drop(busy);
        },
        1,
    );
}

/// A state that went back would be found by the assertions above only where it does harm: here each move is watched.
#[test]
fn no_state_goes_back() {
    explore(|| {
        let world = World::new(2);
        let seen: Arc<std::sync::Mutex<Vec<(Ufid, Phase)>>> = Arc::default();
        let (_, ukey) = new_ukey(1);
        let installation = world.table.install(ukey).ok().unwrap();
        let ukey = Arc::clone(installation.ukey().unwrap());
        world.all.lock().unwrap().push(Arc::clone(&ukey));
        assert!(world.datapath.put(ukey.ufid(), 0));
        let watch = {
            let (ukey, seen) = (Arc::clone(&ukey), Arc::clone(&seen));
            thread::spawn(move || {
                for _ in 0..6 {
                    let phase = ukey.state.lock().phase();
                    seen.lock().unwrap().push((ukey.ufid(), phase));
                    thread::yield_now();
                }
            })
        };
        let passes = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.evict();
                world.sweep();
            })
        };
        installation.succeeded();
        world.handle(1, 1, false);
        watch.join().unwrap();
        passes.join().unwrap();
        assert!(seen.lock().unwrap().is_sorted_by_key(|(_, phase)| *phase));
        drop(ukey);
        world.check();
    });
}

#[test]
fn ids_are_those_of_the_masked_key_and_the_mask() {
    shuttle::check_random(
        || {
            let table = UkeyTable::default();
            let mask = FlowKey { in_port: u32::MAX, ..FlowKey::ZERO };
            let key = FlowKey { in_port: 1, skb_mark: 3, ..FlowKey::ZERO };
            let id = |key: &FlowKey, mask: &FlowKey| table.ufid(&MaskedWords::new(key, mask));
            assert_eq!(id(&key, &mask), id(&FlowKey { skb_mark: 4, ..key }, &mask));
            assert_ne!(id(&key, &mask), id(&FlowKey { in_port: 2, ..key }, &mask));
            assert_ne!(id(&key, &mask), id(&key, &FlowKey { skb_mark: 1, ..mask }));
        },
        1,
    );
}

#[test]
fn what_is_counted_for_a_port_is_what_is_there_and_never_over_a_cap() {
    explore(|| {
        let census = Arc::new(Census::default());
        let masks = [1u32, 2].map(|skb_mark| FlowKey { in_port: u32::MAX, skb_mark, ..FlowKey::ZERO });
        let caps = Caps { port_flows: 3, port_masks: 0, masks: 1 };
        let enter = move |census: Arc<Census>, mask: FlowKey| {
            move || {
                let mut hints = Hints::default();
                drop(census.enter(&mut hints, 7, &mask, caps));
                let first = census.enter(&mut hints, 7, &mask, caps);
                let second = census.enter(&mut hints, 7, &mask, caps);
                assert!(census.port(7).flows <= 3 + 3, "each thread may have one on its way out again");
                assert!(census.n_masks() <= 1);
                drop(first);
                second.ok()
            }
        };
        let threads = [masks[0], masks[0], masks[1]].map(|mask| thread::spawn(enter(Arc::clone(&census), mask)));
        let left: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        let port = census.port(7);
        assert_eq!((port.flows, port.masks), (left.len(), usize::from(!left.is_empty())));
        drop(left);
        assert_eq!((census.port(7).flows, census.port(7).masks, census.n_masks()), (0, 0, 0));
        assert!(census.masks_of(7).is_empty());
    });
}
