//! Revalidators: are the megaflows still right, are they still used, and whose statistics are theirs?
//!
//! They work in **rounds**. A round has two phases, and in each all revalidators share the work piece by piece:
//!
//! 1. *Dump*: the datapath says the statistics of its flows. Each goes to its ukey, which is [judged](judge): delete the flow,
//!    modify it, or keep it. What it counted goes to the rules, tables, addresses and ports that its translation went by.
//! 2. *Sweep*: each ukey is looked at. Those of deleted flows go; those of flows that the dump has not shown are judged by the
//!    last statistics known, and are given up when four dumps in a row have missed them.
//!
//! No ukey is taken out before its flow was dumped, so no flow's statistics can be counted twice. Where the datapath's dump comes
//! in the parts that the ukeys lie in, each part is swept as soon as it was dumped; else a barrier lies between. The leader (whoever begins the round: as
//! a rule the thread `revalidator0`) decides when, then measures how long it took, and adapts the flow limit to that.
//!
//! Why a flow was deleted is counted (`upcall_flow_del_…`), logged at level `dbg`, and told to who traces (probe
//! `revalidate:flow_result`).
//!
//! **Four missed dumps** mean something on datapaths whose dump can miss a flow that is there: a kernel's hash table that is
//! changed while it is walked. The eBPF datapath's dump is its own mirror and misses none; there a flow without a dump is one
//! that somebody deleted behind our back, and the rule only says how long its ukey stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dpif::{FlowStats, Ufid};
use parking_lot::{Condvar, Mutex};

use super::handler::failed;
use crate::backer::{Backer, Limits};
use crate::bridge::Config;

mod adopt;
mod crew;
mod dump;
mod expire;
mod judge;
mod ops;
mod push;
mod sweep;

pub(crate) use crew::follow;
pub(in crate::upcall) use judge::Outcome;

/// Between the beginnings of two rounds at least, however much changes.
const LEAST_INTERVAL: Duration = Duration::from_millis(5);
/// Flows that are looked at between two looks at the limits.
const BATCH: usize = 50;

/// What the revalidators of a switch share.
#[derive(Default)]
pub(crate) struct Revalidation {
    /// Held during a round.
    rounds: Mutex<Rounds>,
    crew: crew::Crew,
    /// No round begins by itself.
    paused: AtomicBool,
    /// Dumps are to say whole flows, not only their statistics.
    whole_dumps: AtomicBool,
    /// Rounds that have ended.
    ended: Mutex<u64>,
    has_ended: Condvar,
    /// Microseconds that the last round took.
    last_us: AtomicU64,
}

/// What lasts from round to round.
#[derive(Default)]
struct Rounds {
    number: u64,
    /// The flows that were in the datapath are known.
    adopted: bool,
}

/// A round: what all who work on it go by.
struct Round {
    number: u64,
    generation: u64,
    config: Arc<Config>,
    limits: Limits,
    /// Flows that there may be.
    flow_limit: usize,
    /// Milliseconds that the round before took.
    last_ms: u64,
    source: Source,
    /// Pieces of the phase's work that somebody has taken.
    taken: AtomicUsize,
    /// The dump failed somewhere: what it doesn't show may be there all the same.
    incomplete: AtomicBool,
    warned: AtomicBool,
}

/// Where the statistics of a round come from.
enum Source {
    /// From the datapath, in so many parts.
    Parts(usize),
    /// They are here already.
    Whole(Vec<(Ufid, FlowStats)>),
}

/// Which work of a round.
#[derive(Clone, Copy)]
enum Phase {
    Dump,
    Sweep,
    /// Both at once.
    Both,
    /// As the sweep, but every flow goes.
    Purge,
}

impl Phase {
    /// Does pieces of the work until none is left.
    fn work(self, backer: &Backer, round: &Round) {
        match self {
            Self::Dump => dump::work(backer, round),
            Self::Sweep => sweep::work(backer, round, false),
            Self::Both => dump::work_both(backer, round),
            Self::Purge => sweep::work(backer, round, true),
        }
    }
}

/// What the leader's thread does until it is to end.
pub(crate) fn lead(backer: &Backer) {
    let mut wait = Duration::ZERO;
    while backer.wait_for_pass(wait) {
        let began = Instant::now();
        if !backer.revalidation.paused.load(Ordering::SeqCst) {
            revalidate(backer);
        }
        // As often as asked for, counted from the beginning.
        let limits = backer.limits();
        let interval = Duration::from_millis(limits.max_idle_ms.min(limits.max_revalidator_ms));
        wait = interval.saturating_sub(began.elapsed());
        std::thread::sleep(LEAST_INTERVAL.saturating_sub(began.elapsed()));
    }
}

/// A round over all megaflows.
pub(crate) fn revalidate(backer: &Backer) {
    let shared = &backer.revalidation;
    let mut rounds = shared.rounds.lock();
    if !rounds.adopted {
        return expire::expire(backer);
    }
    rounds.number += 1;
    let flows = backer.ukeys.len();
    let (began, began_ms) = (Instant::now(), backer.clock.now_ms());
    let round = Arc::new(Round::new(backer, rounds.number));
    super::probes::start_dump(backer, flows);
    if matches!(round.source, Source::Parts(parts) if parts == backer.ukeys.shards()) {
        shared.crew.work(backer, Phase::Both, &round);
    } else {
        shared.crew.work(backer, Phase::Dump, &round);
        shared.crew.work(backer, Phase::Sweep, &round);
    }
    shared.last_us.store(began.elapsed().as_micros() as u64, Ordering::Relaxed);

    if backer.census.make_room(round.limits.caps, backer.clock.now_ms()) > 0 {
        coverage::inc!("upcall_mask_evicted");
    }

    let duration = backer.clock.now_ms().saturating_sub(began_ms).max(1);
    backer.adapted_limit.round_ended(duration, flows, round.limits.flow_limit);
    if duration > 2000 {
        tracing::warn!("Spent an unreasonably long {duration}ms dumping flows");
    }
    super::probes::sweep_done(backer, flows, round.limits.max_idle_ms.min(round.limits.max_revalidator_ms));
    expire::expire(backer);
    backer.config().recirc.expire(backer.clock.now_ms());
    *shared.ended.lock() += 1;
    shared.has_ended.notify_all();
}

/// Deletes all flows that we know, pushing their statistics.
pub(crate) fn purge(backer: &Backer) {
    let mut rounds = backer.revalidation.rounds.lock();
    rounds.number += 1;
    let round = Arc::new(Round { source: Source::Whole(Vec::new()), ..Round::new(backer, rounds.number) });
    backer.revalidation.crew.work(backer, Phase::Purge, &round);
}

/// Deletes all flows of the datapath, pushing the statistics of those that we know.
pub(crate) fn flush(backer: &Backer) -> dpif::Result<()> {
    purge(backer);
    // No round may find the flows of others half gone.
    let _rounds = backer.revalidation.rounds.lock();
    backer.dpif.flow_flush()
}

/// Makes ukeys of the flows that are in the datapath already, to be translated before anything else.
pub(crate) fn adopt(backer: &Backer) -> dpif::Result<()> {
    let mut rounds = backer.revalidation.rounds.lock();
    adopt::adopt_all(backer, !rounds.adopted)?;
    rounds.adopted = true;
    backer.wake_revalidator();
    Ok(())
}

impl Revalidation {
    /// Lets no round begin by itself any more. Returns when none is running.
    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        drop(self.rounds.lock());
    }

    /// Ends the pause.
    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    /// Whether there is a pause.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Whether dumps say whole flows, not only their statistics.
    pub(crate) fn set_whole_dumps(&self, whole: bool) {
        self.whole_dumps.store(whole, Ordering::Relaxed);
    }

    /// Whether they do.
    pub(crate) fn has_whole_dumps(&self) -> bool {
        self.whole_dumps.load(Ordering::Relaxed)
    }

    /// Microseconds that the last round took.
    pub(crate) fn last_us(&self) -> u64 {
        self.last_us.load(Ordering::Relaxed)
    }

    /// Says how many revalidators there are going to be beside the leader.
    pub(crate) fn hire(&self, followers: u32) {
        self.crew.hire(followers as usize);
    }

    /// Ends the threads of those.
    pub(crate) fn dismiss(&self) {
        self.crew.dismiss();
    }

    /// Revalidators, the leader among them.
    pub(crate) fn len(&self) -> usize {
        self.crew.len() + 1
    }
}

impl Round {
    fn new(backer: &Backer, number: u64) -> Self {
        // In this order: what is read behind the generation is not older than it says.
        let generation = backer.generation();
        let config = backer.config();
        let (source, complete) = Source::open(backer);
        Self {
            number,
            generation,
            config,
            limits: backer.limits(),
            flow_limit: backer.flow_limit(),
            last_ms: backer.adapted_limit.dump_ms(),
            source,
            taken: AtomicUsize::new(0),
            incomplete: AtomicBool::new(!complete),
            warned: AtomicBool::new(false),
        }
    }

    /// The number of a piece that nobody else works on, if one of `of` is left.
    fn take(&self, of: usize) -> Option<usize> {
        Some(self.taken.fetch_add(1, Ordering::Relaxed)).filter(|piece| *piece < of)
    }
}

impl Source {
    /// The source of a round; whether it has all flows comes with it.
    fn open(backer: &Backer) -> (Self, bool) {
        let mut flows = Vec::new();
        let result = if backer.revalidation.has_whole_dumps() {
            backer.dpif.flow_dump(&mut |flow| {
                flows.push((flow.ufid, flow.stats));
                true
            })
        } else {
            match backer.dpif.flow_dump_parts() {
                // In pieces it can be shared all the same.
                0 | 1 => backer.dpif.flow_dump_stats_part(0, &mut flows),
                parts => return (Self::Parts(parts), true),
            }
        };
        if let Err(error) = &result {
            failed(backer, format_args!("dumping the datapath's flows: {error}"));
        }
        (Self::Whole(flows), result.is_ok())
    }

    /// Pieces that it comes in.
    fn pieces(&self) -> usize {
        match self {
            Self::Parts(parts) => *parts,
            Self::Whole(flows) => flows.len().div_ceil(BATCH),
        }
    }

    /// Puts a piece into `flows` in place of what is there.
    fn read(&self, backer: &Backer, round: &Round, piece: usize, flows: &mut Vec<(Ufid, FlowStats)>) {
        flows.clear();
        match self {
            Self::Parts(_) => {
                if let Err(error) = backer.dpif.flow_dump_stats_part(piece, flows) {
                    round.incomplete.store(true, Ordering::Relaxed);
                    failed(backer, format_args!("dumping the datapath's flows: {error}"));
                }
            }
            Self::Whole(all) => flows.extend(all.chunks(BATCH).nth(piece).unwrap_or_default()),
        }
    }
}
