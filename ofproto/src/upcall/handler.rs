//! A handler: receives upcalls and answers them, batch by batch.
//!
//! For each upcall of a batch: what is it ([`classify`](super::classify)); has a flow been installed meanwhile that answers it
//! ([`recent`](super::recent)); does the datapath's key say what the packet says ([`fitness`](super::fitness)); translate; make
//! the flow and put its ukey into the table. Then the datapath carries out one batch of operations: each packet right behind
//! its flow, so that the packets after it find the flow, and none overtakes it. A packet that comes alone is executed as soon as
//! it is translated: somebody waits for it, and there is nothing that it would have to be sent with.
//!
//! All buffers are kept from batch to batch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use datapath_common::FlowKey;
use dpif::odp::SlowPath;
use dpif::{Action, DpifError, DpifOp, Execute, Features, FlowPut, PutMode, Ufid, Upcall, UpcallBatch};

use super::classify::UpcallClass;
use super::fitness::{Fitness, extract_again, says_all};
use super::latch::{Latch, Sleep};
use super::moderation::Moderation;
use super::recent::RecentFlows;
use super::stats::{HandlerStats, Split, count};
use super::ukey::{Hints, Installation, Phase, Refused, Ukey};
use super::{cap, packet_in, sample, slow};
use crate::backer::{Backer, Limits};
use crate::bridge::Config;
use crate::xlate::{Effect, Xlate, XlateError, forget_unsayable, translate_into};

/// Of so many batches one is timed in detail.
const SAMPLED: u64 = 16;
/// A turn that takes longer is reported.
const LONG_POLL_MS: u64 = 1_000;
pub(super) const NS_PER_MS: u64 = 1_000_000;
/// After the datapath has failed to receive, a handler waits so long before it tries again.
const RETRY: Duration = Duration::from_millis(100);

/// A handler.
pub(super) struct Handler<'a> {
    backer: &'a Backer,
    id: u32,
    stats: &'a HandlerStats,
    batch: UpcallBatch,
    desk: Desk<'a>,
    moderation: Moderation,
}

impl<'a> Handler<'a> {
    pub(super) fn new(backer: &'a Backer, id: u32, stats: &'a HandlerStats) -> Self {
        let moderation = Moderation::new(backer.schedule);
        Self { backer, id, stats, batch: UpcallBatch::default(), desk: Desk::new(backer, stats), moderation }
    }

    /// What a handler's thread does until the latch says that it is to end.
    pub(super) fn run(&mut self, latch: &Latch) {
        loop {
            if latch.exits() {
                return;
            }
            match self.backer.dpif.recv_fd(self.id).map(|fd| Sleep::new(fd, latch)) {
                Ok(Ok(sleep)) => return self.serve(latch, &sleep),
                Ok(Err(error)) => {
                    failed(self.backer, format_args!("handler{} can't wait for upcalls: {error}", self.id))
                }
                Err(error) => failed(self.backer, format_args!("handler{} has no upcalls: {error}", self.id)),
            }
            std::thread::sleep(RETRY);
        }
    }

    fn serve(&mut self, latch: &Latch, sleep: &Sleep<'_>) {
        while !latch.exits() {
            let question = latch.question();
            let received = self.turn();
            let empty = matches!(received, Ok(0));
            latch.answer(question, empty);
            let slept = match received {
                Ok(_) if self.batch.is_full() => continue,
                Ok(_) if latch.is_asked() => continue,
                Ok(_) => sleep.wait(self.moderation.sleeps()),
                Err(error) => {
                    failed(self.backer, format_args!("handler{} receiving upcalls: {error}", self.id));
                    sleep.wait(Some(RETRY))
                }
            };
            if let Err(error) = slept {
                failed(self.backer, format_args!("handler{} waiting for upcalls: {error}", self.id));
                std::thread::sleep(RETRY);
            }
        }
    }

    /// Receives a batch and answers it. Says how many records there were.
    fn turn(&mut self) -> dpif::Result<usize> {
        let counters = &self.stats.counters;
        let mut timer = Timer::new(counters.batches.load(Ordering::Relaxed).is_multiple_of(SAMPLED));
        let received = self.backer.dpif.recv(self.id, &mut self.batch)?;
        let bad = self.batch.bad();
        if bad > 0 {
            coverage::add!("upcall_bad_record", bad as u64);
            counters.bad_record.fetch_add(bad as u64, Ordering::Relaxed);
        }
        if received > 0 {
            timer.lap(|split| &mut split.receive);
            timer.split.packets = received as u64;
            coverage::add!("upcall_received", received as u64);
            counters.received.fetch_add(received as u64, Ordering::SeqCst);
            count(&counters.batches);
            // Two readings of the clock for a batch: few packets may be all that there is to share what one costs.
            let began_ns = self.backer.clock.now_ns();
            let ended_ns = self.desk.answer(self.batch.upcalls(), began_ns, &mut timer);
            if timer.at.is_some() {
                self.stats.add_split(&timer.split);
            }
            super::loss::look(self.backer, ended_ns / NS_PER_MS);
            self.report_long_poll(began_ns, ended_ns);
            self.moderation.came(began_ns, received as u64);
        } else if self.moderation.sleeps().is_some() {
            self.moderation.none_came(self.backer.clock.now_ns());
        }
        Ok(received + bad)
    }

    fn report_long_poll(&self, began_ns: u64, ended_ns: u64) {
        let took = ended_ns.saturating_sub(began_ns) / NS_PER_MS;
        if took >= LONG_POLL_MS {
            coverage::inc!("long_poll_interval");
            count(&self.stats.counters.long_polls);
            if let Some(before) = self.backer.warnings.long_poll.allow(ended_ns / NS_PER_MS) {
                tracing::warn!("handler{}: unreasonably long {took}ms poll interval ({before} more before)", self.id);
            }
        }
    }
}

/// Where a sampled batch's time goes.
struct Timer {
    at: Option<Instant>,
    split: Split,
}

impl Timer {
    fn new(runs: bool) -> Self {
        Self { at: runs.then(Instant::now), split: Split::default() }
    }

    /// The time since the last lap was spent on `part`.
    fn lap(&mut self, part: impl FnOnce(&mut Split) -> &mut u64) {
        if let Some(at) = &mut self.at {
            let now = Instant::now();
            *part(&mut self.split) += (now - *at).as_nanos() as u64;
            *at = now;
        }
    }
}

/// What a handler answers with.
struct Desk<'a> {
    backer: &'a Backer,
    stats: &'a HandlerStats,
    limits: Cache<&'a ArcSwap<Limits>, Arc<Limits>>,
    /// Flows that were installed last.
    recent: RecentFlows<'a>,
    /// The configuration of a generation, until the batch is answered.
    config: Option<(u64, Arc<Config>)>,
    /// Where flows were counted last.
    hints: Hints,
    answers: Vec<Answer>,
    installations: Vec<Installation>,
    puts: Vec<FlowPut>,
    /// The actions that were translated last: of flows that do the same they are one list.
    actions: Arc<[Action]>,
    /// Empty; only its memory is kept.
    spare: Vec<Action>,
    /// The batch has one packet.
    alone: bool,
    /// When the batch was received, on both clocks: one reading for all its packets.
    now_ms: u64,
    now_ns: u64,
    /// Empty; only its memory is kept.
    ops: Vec<DpifOp<'static>>,
}

/// What is to be done for one upcall.
struct Answer {
    /// Which one.
    upcall: usize,
    /// A flow is installed, the next of the list.
    installs: bool,
    /// What to do with the packet.
    actions: Arc<[Action]>,
    by: By,
}

/// Who runs a packet's actions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Datapath,
    /// It has, as soon as they were known.
    DatapathAtOnce,
    /// No datapath can.
    Userspace,
    /// There are none.
    Nobody,
}

impl<'a> Desk<'a> {
    fn new(backer: &'a Backer, stats: &'a HandlerStats) -> Self {
        Self {
            backer,
            stats,
            limits: Cache::new(backer.limits_source()),
            recent: RecentFlows::new(&backer.recent),
            config: None,
            hints: Hints::default(),
            answers: Vec::new(),
            installations: Vec::new(),
            puts: Vec::new(),
            actions: Arc::default(),
            spare: Vec::new(),
            alone: false,
            now_ms: 0,
            now_ns: 0,
            ops: Vec::new(),
        }
    }

    /// Answers a batch of upcalls that was received at `now_ns`. Says when the datapath had carried out what was to be done.
    fn answer(&mut self, upcalls: &[Upcall], now_ns: u64, timer: &mut Timer) -> u64 {
        self.answers.clear();
        self.puts.clear();
        (self.now_ms, self.now_ns, self.alone) = (now_ns / NS_PER_MS, now_ns, upcalls.len() == 1);
        for (index, upcall) in upcalls.iter().enumerate() {
            if let Some((actions, by, installs)) = self.decide(upcall, timer) {
                self.answers.push(Answer { upcall: index, installs, actions, by });
            }
        }
        timer.lap(|split| &mut split.ukey);
        let mut ops = recycle(std::mem::take(&mut self.ops));
        let mut puts = self.puts.iter();
        for answer in &self.answers {
            let (Some(upcall), put) = (upcalls.get(answer.upcall), answer.installs.then(|| puts.next()).flatten())
            else {
                continue;
            };
            if let Some(put) = put {
                ops.push(DpifOp::FlowPut { put, result: Err(DpifError::NoSuchFlow) });
            }
            if answer.by == By::Datapath {
                let execute = Execute { packet: &upcall.packet, key: &upcall.key, actions: &answer.actions };
                ops.push(DpifOp::Execute { execute, result: Err(DpifError::NoSuchFlow) });
            }
        }
        if !ops.is_empty() {
            self.backer.dpif.operate(&mut ops);
        }
        timer.lap(|split| &mut split.operate);
        let now_ns = self.backer.clock.now_ns();
        self.recent.done(now_ns);
        finish(self.backer, self.stats, upcalls, &self.answers, &mut self.installations, &mut ops, now_ns);
        self.ops = recycle(ops);
        self.answers.clear();
        self.puts.clear();
        self.config = None;
        timer.lap(|split| &mut split.finish);
        now_ns
    }

    /// What to do with a packet, and whether its flow is the last of those to be installed now. `None`: nothing is to be done,
    /// for a reason that has been counted.
    fn decide(&mut self, upcall: &Upcall, timer: &mut Timer) -> Option<(Arc<[Action]>, By, bool)> {
        let counters = &self.stats.counters;
        let class = UpcallClass::of(upcall);
        class.count(counters);
        let missed = match class {
            UpcallClass::Miss => true,
            UpcallClass::Bad => return None,
            _ => false,
        };
        // In this order: what is read behind the generation is not older than it says.
        let generation = self.backer.generation();
        if missed && let Some(actions) = self.installed_meanwhile(upcall, generation) {
            count(&counters.hit_installed);
            let by = if actions.is_empty() { By::Nobody } else { By::Datapath };
            timer.lap(|split| &mut split.decode);
            return Some((actions, by, false));
        }
        let features = &self.backer.features;
        let mut again;
        let (fitness, key) = if says_all(&upcall.packet.data, &upcall.key) {
            (Some(Fitness::Perfect), &upcall.key)
        } else {
            again = FlowKey::ZERO;
            (extract_again(&upcall.packet.data, &upcall.key, features, &mut again), &again)
        };
        let Some(fitness) = fitness else {
            coverage::inc!("upcall_malformed");
            count(&counters.malformed);
            return None;
        };
        if fitness == Fitness::Error {
            coverage::inc!("upcall_key_differs");
            count(&counters.contradictory);
            return None;
        }
        match &class {
            UpcallClass::Miss | UpcallClass::SlowPath(_) | UpcallClass::Bad => {}
            UpcallClass::Sample(cookie) => {
                sample::export(self.backer, upcall, cookie, self.recent.words());
                count(&counters.exported);
                return None;
            }
            UpcallClass::Controller(cookie) => {
                packet_in::deliver(self.backer, self.stats, upcall, cookie);
                count(&counters.delivered);
                return None;
            }
        }
        timer.lap(|split| &mut split.decode);
        let decided = self.translate(upcall, key, missed, fitness, generation, timer);
        timer.lap(|split| &mut split.ukey);
        Some(decided)
    }

    /// What a flow does that has been installed since the packet came.
    fn installed_meanwhile(&mut self, upcall: &Upcall, generation: u64) -> Option<Arc<[Action]>> {
        let backer = self.backer;
        let ukey = self.recent.find(&backer.ukeys, &upcall.key, upcall.arrival_ns)?;
        let state = ukey.state.lock();
        let is_right = state.generation == generation && matches!(state.phase(), Phase::Visible | Phase::Operational);
        if !is_right || slow::sends_up(&state.actions) {
            return None;
        }
        // The datapath has not counted this packet for the flow.
        let (bytes, now) = (upcall.packet.data.len() as u64, self.now_ms);
        let changed = Xlate::apply_effects(&state.effects, 1, bytes, now);
        let actions = Arc::clone(&state.actions);
        drop(state);
        if changed {
            backer.learned();
        }
        coverage::inc!("upcall_hit_installed");
        Some(actions)
    }

    /// The published configuration, of this generation or a later one. Each batch looks anew, so that no handler that sleeps keeps
    /// an old one.
    fn config(&mut self, generation: u64) -> Arc<Config> {
        match &self.config {
            // What changes the configuration publishes it, and counts up then: so it was read after this generation.
            Some((of, config)) if *of == generation => Arc::clone(config),
            _ => Arc::clone(&self.config.insert((generation, self.backer.config())).1),
        }
    }

    /// A list with these actions: the last one, if it has them.
    fn shared(&mut self, actions: &[Action]) -> Arc<[Action]> {
        if *self.actions != *actions {
            self.actions = actions.into();
        }
        Arc::clone(&self.actions)
    }

    /// What to do with a packet whose fields are `key`, as [`Desk::decide`].
    fn translate(
        &mut self,
        upcall: &Upcall,
        key: &FlowKey,
        missed: bool,
        fitness: Fitness,
        generation: u64,
        timer: &mut Timer,
    ) -> (Arc<[Action]>, By, bool) {
        let (backer, counters) = (self.backer, &self.stats.counters);
        let now = self.now_ms;
        let config = self.config(generation);
        let xlate = translate_into(&config, key, std::mem::take(&mut self.spare));
        count(&counters.translated);
        let Some(xlate) = xlate else {
            count(&counters.unknown_port);
            if let Some(before) = backer.warnings.unknown_port.allow(now) {
                let port = key.in_port;
                tracing::warn!("a packet came by datapath port {port}, which is on no bridge ({before} more before)");
            }
            timer.lap(|split| &mut split.translate);
            let nothing: Arc<[Action]> = Arc::default();
            let installs = missed && self.install(upcall, &port_mask(), &nothing, Vec::new(), generation, now);
            return (nothing, By::Nobody, installs);
        };
        if xlate.error == Some(XlateError::NoRecirculationContext) {
            // What its id stood for is gone, and a flow for it would outlive the id's next meaning.
            coverage::inc!("xlate_no_recirculation_context");
            let (id, port) = (key.recirc_id, key.in_port);
            failed(backer, format_args!("recirculation id {id:#x} of a packet of port {port} stands for nothing"));
            timer.lap(|split| &mut split.translate);
            return (Arc::default(), By::Nobody, false);
        }
        if let Some(error) = xlate.error {
            coverage::inc!("xlate_failed");
            failed(backer, format_args!("translating a packet of port {}: {error}", key.in_port));
        }
        let (packets, bytes) = if missed { (1, upcall.packet.data.len() as u64) } else { (0, 0) };
        if Xlate::apply_effects(&xlate.effects, packets, bytes, now) {
            backer.learned();
        }
        slow::hand_over(&xlate.taken, &upcall.packet);
        timer.lap(|split| &mut split.translate);
        let slow = xlate.slow.is_some();
        let up = match fitness {
            Fitness::Perfect => xlate.slow_path,
            _ => SlowPath::MATCH,
        };
        let sends_up: Option<Arc<[Action]>> = (up != 0).then(|| xlate.slow_path_actions(up).into());
        let actions = self.shared(&xlate.odp_actions);
        self.spare = xlate.odp_actions;
        self.spare.clear();
        let by = match (actions.is_empty(), slow) {
            (true, _) => By::Nobody,
            (false, true) => By::Userspace,
            (false, false) if self.alone && missed => {
                execute_at_once(backer, self.stats, upcall, &actions);
                timer.lap(|split| &mut split.operate);
                By::DatapathAtOnce
            }
            (false, false) => By::Datapath,
        };
        let mut installs = false;
        if missed && fitness == Fitness::Perfect {
            let flow_actions = sends_up.unwrap_or_else(|| Arc::clone(&actions));
            let exact = if self.limits.load().megaflows { None } else { Some(exact_mask(key, &backer.features)) };
            let mask = exact.as_ref().unwrap_or(&xlate.mask);
            installs = self.install(upcall, mask, &flow_actions, xlate.effects, generation, now);
        } else if fitness != Fitness::Perfect {
            // The datapath can't tell this packet from others with its key. They all come up; not more than they, so that one
            // odd packet slows nobody else's down.
            coverage::inc!("upcall_key_unfit");
            count(&counters.unfit);
            if missed {
                let mask = exact_mask(&upcall.key, &backer.features);
                let sends_up = sends_up.unwrap_or_default();
                installs = self.install(upcall, &mask, &sends_up, xlate.effects, generation, now);
            }
        }
        (actions, by, installs)
    }

    /// Makes the flow to install, unless there is one or there are too many.
    fn install(
        &mut self,
        upcall: &Upcall,
        mask: &FlowKey,
        actions: &Arc<[Action]>,
        effects: Vec<Effect>,
        generation: u64,
        now: u64,
    ) -> bool {
        let (backer, counters) = (self.backer, &self.stats.counters);
        let limits = self.limits.load();
        if backer.ukeys.len() >= backer.adapted_limit.adapted().min(limits.flow_limit) {
            coverage::inc!("upcall_flow_limit_hit");
            count(&counters.flow_limit);
            return false;
        }
        let (caps, port) = (limits.caps, upcall.key.in_port);
        let Some(counted) = cap::enter(backer, counters, &mut self.hints, caps, port, mask, &effects) else {
            return false;
        };
        let (ufid, flow) = self.recent.flow(&backer.ukeys, &upcall.key, mask);
        let mut ukey = Ukey::new(ufid, flow, now, generation, Arc::clone(actions), effects.into());
        ukey.counted = Some(counted);
        match backer.ukeys.install(ukey) {
            Ok(installation) => {
                self.recent.installs(mask, self.now_ns);
                let (key, actions) = (upcall.key.masked(mask), Arc::clone(actions));
                self.puts.push(FlowPut { mode: PutMode::Create, ufid, key, mask: *mask, actions });
                self.installations.push(installation);
                true
            }
            Err(refused) => {
                not_installed(backer, self.stats, ufid, refused);
                false
            }
        }
    }
}

/// An empty list of operations in the memory of another.
fn recycle<'a>(mut ops: Vec<DpifOp<'_>>) -> Vec<DpifOp<'a>> {
    ops.clear();
    // Collected in place: the elements, of which there are none, have the same layout.
    ops.into_iter().map(|_| unreachable!("there are none")).collect()
}

/// Executes the only packet of a batch.
fn execute_at_once(backer: &Backer, stats: &HandlerStats, upcall: &Upcall, actions: &[Action]) {
    let execute = Execute { packet: &upcall.packet, key: &upcall.key, actions };
    let mut ops = [DpifOp::Execute { execute, result: Err(DpifError::NoSuchFlow) }];
    backer.dpif.operate(&mut ops);
    if let [DpifOp::Execute { result, .. }] = &ops {
        executed(backer, stats, result);
    }
    stats.latency.add(backer.clock.now_ns().saturating_sub(upcall.arrival_ns));
}

/// What came of the batch, with which the datapath was done at `now_ns`.
fn finish(
    backer: &Backer,
    stats: &HandlerStats,
    upcalls: &[Upcall],
    answers: &[Answer],
    installations: &mut Vec<Installation>,
    ops: &mut [DpifOp<'_>],
    now_ns: u64,
) {
    let mut results = ops.iter_mut();
    let mut installations = installations.drain(..);
    for answer in answers {
        if answer.installs
            && let Some(installation) = installations.next()
            && let Some(DpifOp::FlowPut { result, .. }) = results.next()
        {
            installed(backer, stats, installation, std::mem::replace(result, Ok(())));
        }
        let Some(upcall) = upcalls.get(answer.upcall) else { continue };
        match answer.by {
            By::Datapath => {
                if let Some(DpifOp::Execute { result, .. }) = results.next() {
                    executed(backer, stats, result);
                }
            }
            By::DatapathAtOnce => continue,
            By::Userspace => {
                let result = slow::execute(backer, &upcall.packet, &upcall.key, &answer.actions);
                executed(backer, stats, &result);
            }
            By::Nobody => count(&stats.counters.dropped),
        }
        let ended_ns = match answer.by {
            By::Userspace => backer.clock.now_ns(),
            _ => now_ns,
        };
        stats.latency.add(ended_ns.saturating_sub(upcall.arrival_ns));
    }
}

/// A packet was executed, or not.
fn executed<E: std::fmt::Display>(backer: &Backer, stats: &HandlerStats, result: &Result<(), E>) {
    match result {
        Ok(()) => count(&stats.counters.executed),
        Err(error) => {
            coverage::inc!("upcall_execute_failed");
            count(&stats.counters.execute_failed);
            failed(backer, format_args!("executing a packet: {error}"));
        }
    }
}

fn installed(backer: &Backer, stats: &HandlerStats, installation: Installation, result: dpif::Result<()>) {
    match result {
        Ok(()) => {
            count(&stats.counters.installed);
            let Some(ukey) = installation.succeeded() else { return };
            let stale = ukey.state.lock().generation != backer.generation();
            if stale {
                // The revalidator may have passed by before the flow was there.
                backer.wake_revalidator();
            }
        }
        Err(error) => {
            installation.failed(&backer.ukeys);
            match error {
                // Somebody was quicker, or a stranger's flow is in the way, which a revalidator removes.
                DpifError::FlowExists => count(&stats.counters.duplicate),
                error => {
                    coverage::inc!("upcall_flow_put_failed");
                    count(&stats.counters.put_failed);
                    if matches!(error, DpifError::TooManyMasks(_)) {
                        backer.census.datapath_is_full();
                    }
                    failed(backer, format_args!("installing a flow: {error}"));
                }
            }
        }
    }
}

fn not_installed(backer: &Backer, stats: &HandlerStats, ufid: Ufid, refused: Refused) {
    count(&stats.counters.duplicate);
    match refused {
        Refused::Duplicate => coverage::inc!("handler_duplicate_upcall"),
        Refused::Contended => coverage::inc!("ukey_replace_contention"),
        Refused::Conflict => {
            coverage::inc!("upcall_ukey_conflict");
            if let Some(before) = backer.warnings.conflict.allow(backer.clock.now_ms()) {
                tracing::warn!("two flows have the id {ufid}; the second is not installed ({before} more before)");
            }
        }
    }
}

/// The mask of a flow for a port that is on no bridge.
fn port_mask() -> FlowKey {
    FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO }
}

/// The mask of a flow for one packet's fields, as far as the datapath sees them.
pub(super) fn exact_mask(key: &FlowKey, features: &Features) -> FlowKey {
    let packet = crate::flow::Flow::from_key(key, openflow::OfPort::NONE);
    let mut mask = FlowKey { ip_frag: if packet.is_ip() { u8::MAX } else { 0 }, ..packet.present_fields() };
    forget_unsayable(&mut mask, features);
    mask
}

/// Something went wrong with a packet or a flow. The text is made only if it is going to be written.
pub(super) fn failed(backer: &Backer, what: std::fmt::Arguments<'_>) {
    if let Some(before) = backer.warnings.failed.allow(backer.clock.now_ms()) {
        tracing::warn!("{what} ({before} more failures before)");
    }
}
