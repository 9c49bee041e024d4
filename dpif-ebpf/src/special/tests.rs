//! No flow is there that the running program doesn't serve.

use std::sync::atomic::AtomicBool;
use std::thread;

use datapath_common::needs::{DROP, ETH_SRC, IP, IPV4, L4, RECIRC};
use dpif::DpifError;

use super::*;

/// Programs that are their own description.
#[derive(Default)]
struct Fake {
    /// What runs: 0 the general program.
    running: AtomicU16,
    refuses: Mutex<Vec<u16>>,
    loaded: Mutex<Vec<u16>>,
    stuck: AtomicBool,
}

impl Programs for Arc<Fake> {
    type Loaded = u16;

    fn load(&self, serves: u16) -> Result<u16> {
        self.loaded.lock().push(serves);
        if self.refuses.lock().contains(&serves) { Err(DpifError::Kernel("too complex".into())) } else { Ok(serves) }
    }

    fn install(&self, program: Option<&u16>) -> Result<()> {
        if self.stuck.load(Ordering::SeqCst) {
            return Err(DpifError::Kernel("stuck".into()));
        }
        self.running.store(program.map_or(0, |serves| FITS | serves), Ordering::SeqCst);
        Ok(())
    }
}

fn new(fake: &Arc<Fake>, hold: Duration) -> Specialiser<Arc<Fake>> {
    Specialiser::new(Arc::clone(fake), "dp", true, hold)
}

fn running(fake: &Fake) -> Option<u16> {
    let running = fake.running.load(Ordering::SeqCst);
    (running & FITS != 0).then_some(running & ALL)
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_program_widens_at_once_and_narrows_after_a_while() {
    let fake = Arc::new(Fake::default());
    let special = new(&fake, SECOND);
    let start = Instant::now();
    assert_eq!((running(&fake), special.describe(5).why.as_str()), (None, "none of 5 flows fits a specialised one"));
    // IPv6, say.
    special.added(0);
    assert_eq!(running(&fake), None);
    special.added(FITS | IPV4);
    assert_eq!(running(&fake), Some(ALL));
    assert_eq!(special.describe(2).why, "1 of 2 flows need ipv4");
    special.look(start);
    special.look(start + SECOND / 2);
    assert_eq!(running(&fake), Some(ALL));
    special.look(start + SECOND);
    assert_eq!(running(&fake), Some(IPV4));
    let state = special.describe(2);
    assert_eq!((state.serves, state.why.as_str()), (Some(vec!["ipv4"]), "as 1 of 2 flows need"));
    // What needs less or the same changes nothing.
    special.added(FITS);
    special.added(FITS | IPV4);
    assert_eq!(running(&fake), Some(IPV4));
    special.added(FITS | IPV4 | DROP);
    assert_eq!(running(&fake), Some(ALL));
    special.removed(FITS | IPV4 | DROP);
    let later = start + 100 * SECOND;
    special.look(later);
    special.look(later + 2 * SECOND);
    assert_eq!(running(&fake), Some(IPV4));
    // The last flow that fits is gone.
    for needs in [FITS, FITS | IPV4, FITS | IPV4] {
        special.removed(needs);
    }
    special.look(later + 3 * SECOND);
    special.look(later + 60 * SECOND);
    assert_eq!(running(&fake), None);
    // Each was loaded once.
    assert_eq!(*fake.loaded.lock(), [ALL, IPV4]);
    assert_eq!(special.describe(0).swaps, 5);
}

#[test]
fn a_program_that_finishes_few_packets_is_taken_away_and_tried_again() {
    let fake = Arc::new(Fake::default());
    let special = new(&fake, Duration::ZERO);
    special.added(FITS | IPV4);
    let mut now = Instant::now();
    special.look(now);
    assert_eq!(running(&fake), Some(IPV4));
    let mut found = Found::default();
    let mut go_on = |percent: u64, until: &dyn Fn() -> bool| {
        let start = now;
        while !until() && now - start < 10 * SECOND {
            now += SECOND / 4;
            (found.special, found.all) = (found.special + 500 * percent, found.all + 50_000);
            special.weigh(now, found);
            special.look(now);
        }
        (now - start).as_secs()
    };
    // As long as it finishes enough, nothing happens.
    assert_eq!(go_on(50, &|| running(&fake) != Some(IPV4)), 10);
    assert_eq!(go_on(10, &|| running(&fake).is_none()), 2);
    let why = || special.describe(1).why;
    assert_eq!(why(), "a specialised one finished 10 of 100 packets; it is tried again later");
    // Flows that come meanwhile don't bring it back.
    special.added(FITS | L4);
    special.removed(FITS | L4);
    assert_eq!(running(&fake), None);
    assert_eq!((go_on(0, &|| running(&fake).is_some()), running(&fake)), (4, Some(IPV4)));
    assert_eq!(why(), "as 1 of 1 flows need");
    // Its flow is gone when it would be tried again: the next one brings it.
    go_on(0, &|| running(&fake).is_none());
    special.removed(FITS | IPV4);
    assert_eq!((go_on(0, &|| running(&fake).is_some()), running(&fake)), (10, None));
    special.added(FITS | IPV4);
    assert_eq!(running(&fake), Some(ALL));
    // Who switches it on wants it now.
    special.look(Instant::now() + 1000 * SECOND);
    go_on(0, &|| running(&fake).is_none());
    special.set(true);
    assert_eq!(running(&fake), Some(ALL));
}

#[test]
fn a_program_that_the_kernel_refuses_is_not_tried_again() {
    let fake = Arc::new(Fake::default());
    fake.refuses.lock().push(IPV4);
    let special = new(&fake, Duration::ZERO);
    special.added(FITS | IPV4);
    for _ in 0..5 {
        special.look(Instant::now());
    }
    assert_eq!(running(&fake), Some(ALL));
    let state = special.describe(1);
    assert_eq!((state.refused, state.why.as_str()), (1, "one for ipv4 was refused by the kernel"));
    assert_eq!(*fake.loaded.lock(), [ALL, IPV4]);

    let fake = Arc::new(Fake::default());
    fake.refuses.lock().push(ALL);
    let special = new(&fake, Duration::ZERO);
    special.added(FITS | IPV4);
    special.look(Instant::now());
    assert_eq!(running(&fake), None);
    assert!(special.describe(1).why.starts_with("refused by the kernel: "), "{:?}", special.describe(1));
    assert_eq!(*fake.loaded.lock(), [ALL]);
}

#[test]
fn switched_off_the_general_program_runs_alone() {
    let fake = Arc::new(Fake::default());
    let special = new(&fake, Duration::ZERO);
    special.added(FITS | IP);
    special.set(false);
    assert_eq!((running(&fake), special.describe(1).why.as_str()), (None, "switched off"));
    special.added(FITS | L4);
    special.look(Instant::now());
    assert_eq!(running(&fake), None);
    special.set(true);
    assert_eq!(running(&fake), Some(ALL));
    special.look(Instant::now());
    assert_eq!(running(&fake), Some(IP | L4));
}

#[test]
fn a_swap_that_fails_leaves_what_is_there_and_is_tried_again() {
    let fake = Arc::new(Fake::default());
    let special = new(&fake, Duration::ZERO);
    fake.stuck.store(true, Ordering::SeqCst);
    special.added(FITS | IP);
    assert_eq!((running(&fake), special.describe(1).serves), (None, None));
    assert!(special.describe(1).why.starts_with("it can't be changed: "), "{:?}", special.describe(1));
    fake.stuck.store(false, Ordering::SeqCst);
    special.added(FITS | IP);
    assert_eq!((running(&fake), special.describe(2).why.as_str()), (Some(ALL), "2 of 2 flows need ip"));
}

#[test]
fn a_flow_that_needs_more_never_meets_a_narrower_program() {
    const SWAPS: u64 = 300;
    let fake = Arc::new(Fake::default());
    let special = new(&fake, Duration::ZERO);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|seed| {
                let (fake, special) = (&fake, &special);
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed);
                    let mut mine = Vec::new();
                    let start = Instant::now();
                    while special.state.lock().swaps < SWAPS && start.elapsed() < 20 * SECOND {
                        thread::yield_now();
                        let needs = match rng.u8(..4) {
                            0 => 0,
                            1 => FITS | [ETH_SRC, IP, RECIRC][seed as usize],
                            _ => FITS | rng.u16(..) & ALL,
                        };
                        special.added(needs);
                        mine.push(needs);
                        // Published from here on.
                        for needs in mine.iter().filter(|needs| **needs != 0) {
                            let running = fake.running.load(Ordering::SeqCst);
                            assert!(are_served(*needs, running), "{needs:#x} in {running:#x}");
                        }
                        while mine.len() > rng.usize(..4) {
                            special.removed(mine.swap_remove(rng.usize(..mine.len())));
                        }
                    }
                    mine.into_iter().for_each(|needs| special.removed(needs));
                })
            })
            .collect();
        let looking = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                special.look(Instant::now() + 1000 * SECOND);
            }
        });
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        stop.store(true, Ordering::SeqCst);
        looking.join().unwrap();
        results.into_iter().for_each(|result| result.unwrap());
    });
    assert!(special.describe(0).swaps >= SWAPS, "{:?}", special.describe(0));
    assert_eq!(special.census.needs(), None);
}
