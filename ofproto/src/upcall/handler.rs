//! A handler: receives upcalls and answers them, batch by batch.
//!
//! For each upcall of a batch: what is it ([`classify`](super::classify)); has a flow been installed meanwhile that answers it
//! ([`recent`](super::recent)); does the datapath's key say what the packet says ([`fitness`](super::fitness)); translate; make
//! the flow and put its ukey into the table. Then the datapath carries out one batch of operations: each packet right behind
//! its flow, so that the packets after it find the flow, and none overtakes it.
//!
//! All buffers are kept from batch to batch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use datapath_common::FlowKey;
use dpif::odp::SlowPath;
use dpif::{Action, DpifError, DpifOp, Execute, Features, FlowPut, PutMode, Ufid, Upcall, UpcallBatch};

use super::classify::UpcallClass;
use super::fitness::{Fitness, extract_again};
use super::latch::{Latch, Sleep};
use super::recent::Recent;
use super::stats::{HandlerStats, Split, count};
use super::ukey::{Hints, Installation, MaskedWords, Phase, Refused, Ukey};
use super::{cap, packet_in, sample, slow};
use crate::backer::Backer;
use crate::xlate::{Effect, Xlate, XlateError, forget_unsayable, translate};

/// Of so many batches one is timed in detail.
const SAMPLED: u64 = 16;
/// A turn that takes longer is reported.
const LONG_POLL_MS: u64 = 1_000;
/// After the datapath has failed to receive, a handler waits so long before it tries again.
const RETRY: Duration = Duration::from_millis(100);

/// A handler.
pub(super) struct Handler<'a> {
    backer: &'a Backer,
    id: u32,
    stats: &'a HandlerStats,
    batch: UpcallBatch,
    desk: Desk<'a>,
}

impl<'a> Handler<'a> {
    pub(super) fn new(backer: &'a Backer, id: u32, stats: &'a HandlerStats) -> Self {
        Self { backer, id, stats, batch: UpcallBatch::default(), desk: Desk::new(backer, stats) }
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
            let began = self.backer.clock.now_ms();
            let received = self.turn();
            self.report_long_poll(began);
            let empty = matches!(received, Ok(0));
            latch.answer(question, empty);
            let slept = match received {
                Ok(_) if self.batch.is_full() => continue,
                Ok(_) if latch.is_asked() => continue,
                Ok(_) => sleep.wait(None),
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
            counters.in_hand.store(received as u64, Ordering::Relaxed);
            counters.received.fetch_add(received as u64, Ordering::SeqCst);
            count(&counters.batches);
            self.desk.answer(self.batch.upcalls(), &mut timer);
            counters.in_hand.store(0, Ordering::Relaxed);
            if timer.at.is_some() {
                self.stats.add_split(&timer.split);
            }
            super::loss::look(self.backer);
        }
        Ok(received + bad)
    }

    fn report_long_poll(&self, began_ms: u64) {
        let took = self.backer.clock.now_ms().saturating_sub(began_ms);
        if took >= LONG_POLL_MS {
            coverage::inc!("long_poll_interval");
            count(&self.stats.counters.long_polls);
            if let Some(before) = self.backer.warnings.long_poll.allow(self.backer.clock.now_ms()) {
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
    /// Of the upcall at hand: the packet's fields, and the masked key of its flow.
    key: FlowKey,
    words: MaskedWords,
    /// Where flows were counted last.
    hints: Hints,
    answers: Vec<Answer>,
    installations: Vec<Installation>,
    puts: Vec<FlowPut>,
    /// The masks that something was installed with.
    recent: Vec<Arc<Recent>>,
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
            key: FlowKey::ZERO,
            words: MaskedWords::default(),
            hints: Hints::default(),
            answers: Vec::new(),
            installations: Vec::new(),
            puts: Vec::new(),
            recent: Vec::new(),
            now_ms: 0,
            now_ns: 0,
            ops: Vec::new(),
        }
    }

    /// Answers a batch of upcalls.
    fn answer(&mut self, upcalls: &[Upcall], timer: &mut Timer) {
        self.answers.clear();
        self.puts.clear();
        (self.now_ms, self.now_ns) = (self.backer.clock.now_ms(), self.backer.clock.now_ns());
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
        self.backer.dpif.operate(&mut ops);
        timer.lap(|split| &mut split.operate);
        let now_ns = self.backer.clock.now_ns();
        // Packets that have come meanwhile had no flow yet.
        self.recent.drain(..).for_each(|recent| recent.until(now_ns));
        finish(self.backer, self.stats, upcalls, &self.answers, &mut self.installations, &mut ops);
        self.ops = recycle(ops);
        self.answers.clear();
        timer.lap(|split| &mut split.finish);
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
        let Some(fitness) = extract_again(&upcall.packet.data, &upcall.key, features, &mut self.key) else {
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
                sample::export(self.backer, upcall, cookie, &mut self.words);
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
        let decided = self.translate(upcall, missed, fitness, generation, timer);
        timer.lap(|split| &mut split.ukey);
        Some(decided)
    }

    /// What a flow does that has been installed since the packet came.
    fn installed_meanwhile(&mut self, upcall: &Upcall, generation: u64) -> Option<Arc<[Action]>> {
        let backer = self.backer;
        let ukey = backer.recent.find(&backer.ukeys, &upcall.key, upcall.arrival_ns, &mut self.words)?;
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

    fn translate(
        &mut self,
        upcall: &Upcall,
        missed: bool,
        fitness: Fitness,
        generation: u64,
        timer: &mut Timer,
    ) -> (Arc<[Action]>, By, bool) {
        let (backer, counters) = (self.backer, &self.stats.counters);
        let now = self.now_ms;
        let config = backer.config();
        let xlate = translate(&config, &self.key);
        count(&counters.translated);
        let Some(xlate) = xlate else {
            count(&counters.unknown_port);
            if let Some(before) = backer.warnings.unknown_port.allow(now) {
                let port = self.key.in_port;
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
            let (id, port) = (self.key.recirc_id, self.key.in_port);
            failed(backer, format_args!("recirculation id {id:#x} of a packet of port {port} stands for nothing"));
            timer.lap(|split| &mut split.translate);
            return (Arc::default(), By::Nobody, false);
        }
        if let Some(error) = xlate.error {
            coverage::inc!("xlate_failed");
            failed(backer, format_args!("translating a packet of port {}: {error}", self.key.in_port));
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
        let actions: Arc<[Action]> = match fitness {
            Fitness::Perfect if up == 0 => xlate.odp_actions.into(),
            _ => xlate.odp_actions.as_slice().into(),
        };
        let mut installs = false;
        if missed && fitness == Fitness::Perfect {
            let flow_actions = sends_up.unwrap_or_else(|| Arc::clone(&actions));
            let exact = if backer.limits().megaflows { None } else { Some(exact_mask(&self.key, &backer.features)) };
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
        let by = match (actions.is_empty(), slow) {
            (true, _) => By::Nobody,
            (false, true) => By::Userspace,
            (false, false) => By::Datapath,
        };
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
        if backer.ukeys.len() >= backer.flow_limit() {
            coverage::inc!("upcall_flow_limit_hit");
            count(&counters.flow_limit);
            return false;
        }
        let Some(counted) = cap::enter(backer, counters, &mut self.hints, upcall.key.in_port, mask, &effects) else {
            return false;
        };
        self.words.set(&upcall.key, mask);
        let ufid = backer.ukeys.ufid(&self.words);
        let ukey = Ukey::new(ufid, self.words.to_key(), now, generation, Arc::clone(actions), effects.into());
        let ukey = Ukey { counted: Some(counted), ..ukey };
        match backer.ukeys.install(ukey) {
            Ok(installation) => {
                let recent = backer.recent.installs(mask, self.now_ns);
                if self.recent.last().is_none_or(|last| !Arc::ptr_eq(last, &recent)) {
                    self.recent.push(recent);
                }
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

/// What came of the batch.
fn finish(
    backer: &Backer,
    stats: &HandlerStats,
    upcalls: &[Upcall],
    answers: &[Answer],
    installations: &mut Vec<Installation>,
    ops: &mut [DpifOp<'_>],
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
            By::Datapath => match results.next() {
                Some(DpifOp::Execute { result: Err(error), .. }) => {
                    coverage::inc!("upcall_execute_failed");
                    count(&stats.counters.execute_failed);
                    failed(backer, format_args!("executing a packet: {error}"));
                }
                _ => count(&stats.counters.executed),
            },
            By::Userspace => {
                slow::execute(backer, &upcall.packet, &upcall.key, &answer.actions);
                count(&stats.counters.executed);
            }
            By::Nobody => count(&stats.counters.dropped),
        }
    }
    let now_ns = backer.clock.now_ns();
    for answer in answers {
        if let Some(upcall) = upcalls.get(answer.upcall) {
            stats.latency.add(now_ns.saturating_sub(upcall.arrival_ns));
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
