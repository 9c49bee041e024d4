//! A handler: receives upcalls and answers them.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datapath_common::FlowKey;
use dpif::{Action, DpifError, DpifOp, Execute, FlowPut, PutMode, Ufid, Upcall, UpcallBatch, UpcallKind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::slow;
use super::ukey::{Installation, MaskedWords, Refused, Ukey};
use crate::backer::Backer;
use crate::flow::extract_again;
use crate::xlate::{Effect, Xlate, is_slow_path, translate};

/// What a handler's thread does until `exit` is readable.
pub(super) fn run(backer: &Backer, id: u32, exit: &EventFd, idle: &AtomicBool) {
    let mut batch = UpcallBatch::default();
    loop {
        idle.store(true, Ordering::SeqCst);
        let ended = wait(backer, id, exit);
        idle.store(false, Ordering::SeqCst);
        match ended {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                failed(backer, &format!("waiting for upcalls: {error}"));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        match backer.dpif.recv(id, &mut batch) {
            Ok(_) => answer(backer, batch.upcalls()),
            Err(error) => {
                failed(backer, &format!("receiving upcalls: {error}"));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Sleeps until there are upcalls, or (`true`) the thread is to end.
fn wait(backer: &Backer, id: u32, exit: &EventFd) -> Result<bool, DpifError> {
    let upcalls = backer.dpif.recv_fd(id)?;
    let mut fds = [PollFd::new(upcalls, PollFlags::POLLIN), PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(DpifError::Io("poll".into(), errno.into())),
    }
    let [_, exit] = fds;
    Ok(exit.any().unwrap_or(false))
}

/// What is to be done for one upcall.
struct Answer<'a> {
    upcall: &'a Upcall,
    key: FlowKey,
    /// The flow to install.
    install: Option<(Installation, FlowPut)>,
    /// What to do with the packet.
    actions: Vec<Action>,
    /// No datapath can run the actions.
    slow: bool,
}

/// Answers a batch of upcalls.
pub(super) fn answer(backer: &Backer, upcalls: &[Upcall]) {
    coverage::add!("upcall_received", upcalls.len() as u64);
    let answers: Vec<_> = upcalls.iter().filter_map(|upcall| decide(backer, upcall)).collect();
    let not_run = || Err(DpifError::Invalid("not run".into()));
    let mut ops = Vec::with_capacity(answers.len() * 2);
    for answer in &answers {
        if let Some((_, put)) = &answer.install {
            ops.push(DpifOp::FlowPut { put, result: not_run() });
        }
        if !answer.slow && !answer.actions.is_empty() {
            let execute = Execute { packet: &answer.upcall.packet, key: &answer.key, actions: &answer.actions };
            ops.push(DpifOp::Execute { execute, result: not_run() });
        }
    }
    backer.dpif.operate(&mut ops);
    let mut results = ops.into_iter();
    let mut puts = Vec::new();
    for answer in &answers {
        if answer.install.is_some()
            && let Some(DpifOp::FlowPut { result, .. }) = results.next()
        {
            puts.push(result);
        }
        if answer.slow {
            slow::execute(backer, &answer.upcall.packet, &answer.key, &answer.actions);
        } else if !answer.actions.is_empty()
            && let Some(DpifOp::Execute { result: Err(error), .. }) = results.next()
        {
            coverage::inc!("upcall_execute_failed");
            failed(backer, &format!("executing a packet: {error}"));
        }
    }
    for ((installation, _), result) in answers.into_iter().filter_map(|answer| answer.install).zip(puts) {
        installed(backer, installation, result);
    }
}

fn installed(backer: &Backer, installation: Installation, result: dpif::Result<()>) {
    match result {
        Ok(()) => {
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
                // Somebody was quicker.
                DpifError::FlowExists => {}
                error => {
                    coverage::inc!("upcall_flow_put_failed");
                    failed(backer, &format!("installing a flow: {error}"));
                }
            }
        }
    }
}

/// Translates the packet of an upcall. `None`: nothing is to be done.
fn decide<'a>(backer: &Backer, upcall: &'a Upcall) -> Option<Answer<'a>> {
    let missed = match upcall.kind {
        UpcallKind::Miss => true,
        UpcallKind::Action if is_slow_path(&upcall.cookie) => false,
        UpcallKind::Action => {
            coverage::inc!("upcall_unknown_cookie");
            return None;
        }
    };
    let Some((key, same)) = extract_again(&upcall.packet, &upcall.key) else {
        coverage::inc!("upcall_malformed");
        return None;
    };
    if !same {
        coverage::inc!("upcall_key_differs");
    }
    let now = backer.clock.now_ms();
    // In this order: what is read behind the generation is not older than it says.
    let generation = backer.generation();
    let config = backer.config();
    let mut answer = Answer { upcall, key, install: None, actions: Vec::new(), slow: false };
    let (flow_actions, mask, effects) = match translate(&config, &key) {
        Some(xlate) => {
            if let Some(error) = xlate.error {
                coverage::inc!("xlate_failed");
                failed(backer, &format!("translating a packet of port {}: {error}", key.in_port));
            }
            let (packets, bytes) = if missed { (1, upcall.packet.data.len() as u64) } else { (0, 0) };
            if Xlate::apply_effects(&xlate.effects, packets, bytes, now) {
                backer.changed();
            }
            let flow_actions = xlate.flow_actions();
            let mask = if backer.limits().megaflows { xlate.mask } else { exact_mask(&key) };
            answer.slow = xlate.slow.is_some();
            answer.actions = xlate.odp_actions;
            (flow_actions, mask, xlate.effects)
        }
        None => {
            if let Some(before) = backer.warnings.unknown_port.allow(now) {
                let port = key.in_port;
                tracing::warn!("a packet came by datapath port {port}, which is on no bridge ({before} more before)");
            }
            (Vec::new(), port_mask(), Vec::new())
        }
    };
    if missed && same {
        answer.install = prepare(backer, &key, mask, flow_actions, effects, generation, now);
    }
    Some(answer)
}

/// The flow to install, unless there is one or there are too many.
fn prepare(
    backer: &Backer,
    key: &FlowKey,
    mask: FlowKey,
    actions: Vec<Action>,
    effects: Vec<Effect>,
    generation: u64,
    now: u64,
) -> Option<(Installation, FlowPut)> {
    if backer.ukeys.len() >= backer.flow_limit() {
        coverage::inc!("upcall_flow_limit_hit");
        return None;
    }
    let key = key.masked(&mask);
    let flow = MaskedWords::new(&key, &mask);
    let ufid = backer.ukeys.ufid(&flow);
    let actions: Arc<[Action]> = actions.into();
    let ukey = Ukey::new(ufid, flow.to_key(), now, generation, Arc::clone(&actions), effects.into());
    match backer.ukeys.install(ukey) {
        Ok(installation) => Some((installation, FlowPut { mode: PutMode::Create, ufid, key, mask, actions })),
        Err(refused) => {
            not_installed(backer, ufid, refused);
            None
        }
    }
}

fn not_installed(backer: &Backer, ufid: Ufid, refused: Refused) {
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

/// The mask of a flow for one packet's fields.
pub(super) fn exact_mask(key: &FlowKey) -> FlowKey {
    let packet = crate::flow::Flow::from_key(key, openflow::OfPort::NONE);
    FlowKey { ip_frag: if packet.is_ip() { u8::MAX } else { 0 }, ..packet.present_fields() }
}

pub(super) fn failed(backer: &Backer, what: &str) {
    if let Some(before) = backer.warnings.failed.allow(backer.clock.now_ms()) {
        tracing::warn!("{what} ({before} more failures before)");
    }
}
