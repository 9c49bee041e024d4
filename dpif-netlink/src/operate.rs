//! Batches of operations: as many requests as fit go in one send, and the kernel runs them in order.

use dpif::{DpifError, DpifOp, Result};
use nix::errno::Errno;

use crate::attr::Writer;
use crate::codec;
use crate::datapath::{EXECUTE, execute_error, flow_error, refuse_unsayable, unreadable};
use crate::flow;
use crate::kernel::{Kernel, Request};
use crate::message::F_ECHO;
use crate::packet;
use crate::uapi::cmd;

/// What writes a request's attributes.
type Write<'a> = Box<dyn Fn(&mut Writer) -> codec::Result<()> + 'a>;

struct Prepared<'a> {
    /// Of its operation.
    index: usize,
    execute: bool,
    cmd: u8,
    flags: u16,
    write: Write<'a>,
}

/// An operation's end.
enum End {
    Answer(Vec<u8>),
    Result(Result<Result<(), Errno>>),
}

/// Runs operations; each holds its result.
pub(crate) fn operate(
    kernel: &Kernel,
    datapath: i32,
    exthdrs: bool,
    pid_of: &dyn Fn(u32) -> u32,
    ops: &mut [DpifOp<'_>],
) {
    let mut prepared = Vec::with_capacity(ops.len());
    let mut refused = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        if let Err(error) = prepare(index, op, exthdrs, pid_of, &mut prepared) {
            refused.push((index, error));
        }
    }
    let requests: Vec<_> = prepared
        .iter()
        .map(|one| {
            let family = if one.execute { kernel.families.packet } else { kernel.families.flow };
            Request { family, cmd: one.cmd, flags: one.flags, attrs: &*one.write }
        })
        .collect();
    let requests: Vec<_> = requests.iter().collect();
    let mut ends: Vec<(usize, End)> = Vec::with_capacity(ops.len());
    let index = |at: usize| prepared.get(at).map_or(usize::MAX, |one| one.index);
    let ends_cell = std::cell::RefCell::new(&mut ends);
    let sent = kernel.batch(
        datapath,
        &requests,
        |at, _, attrs| ends_cell.borrow_mut().push((index(at), End::Answer(attrs.to_vec()))),
        |at, how| ends_cell.borrow_mut().push((index(at), End::Result(how))),
    );
    drop(requests);
    drop(prepared);
    let mut finished = vec![false; ops.len()];
    let mut answers: Vec<Option<Vec<u8>>> = vec![None; ops.len()];
    for (index, end) in ends {
        match end {
            End::Answer(attrs) => {
                if let Some(place) = answers.get_mut(index) {
                    *place = Some(attrs);
                }
            }
            End::Result(how) => {
                let answer = answers.get_mut(index).and_then(Option::take);
                if let (Some(op), Some(done)) = (ops.get_mut(index), finished.get_mut(index)) {
                    // Of a put's requests the first that succeeds counts.
                    if !(*done && matches!(op, DpifOp::FlowPut { result: Ok(()), .. })) {
                        finish(op, how, answer);
                        *done = true;
                    }
                }
            }
        }
    }
    for (index, error) in refused {
        if let (Some(op), Some(done)) = (ops.get_mut(index), finished.get_mut(index)) {
            fail(op, error);
            *done = true;
        }
    }
    // What was not sent for a socket's sake.
    let why = sent.err().map_or_else(|| "the kernel did not answer".into(), |error| error.to_string());
    for (op, _) in ops.iter_mut().zip(finished).filter(|(_, done)| !done) {
        fail(op, DpifError::Kernel(why.clone()));
    }
}

fn prepare<'a>(
    index: usize,
    op: &'a DpifOp<'_>,
    exthdrs: bool,
    pid_of: &dyn Fn(u32) -> u32,
    to: &mut Vec<Prepared<'a>>,
) -> Result<()> {
    let about = |ufid, terse| -> Write<'a> {
        Box::new(move |to: &mut Writer| {
            flow::put_ufid(ufid, to);
            if terse {
                flow::put_terse(to);
            }
            Ok(())
        })
    };
    to.push(match op {
        DpifOp::FlowPut { put, .. } => {
            let pid = pid_of(put.key.in_port);
            for (cmd, flags) in flow::put_commands(put.mode) {
                let write: Write<'a> = Box::new(move |to: &mut Writer| flow::write(put, pid, exthdrs, to));
                to.push(Prepared { index, execute: false, cmd: *cmd, flags: *flags, write });
            }
            return Ok(());
        }
        DpifOp::FlowDel { ufid, .. } => {
            Prepared { index, execute: false, cmd: cmd::DEL, flags: F_ECHO, write: about(*ufid, true) }
        }
        DpifOp::FlowGet { ufid, .. } => {
            Prepared { index, execute: false, cmd: cmd::GET, flags: 0, write: about(*ufid, false) }
        }
        DpifOp::Execute { execute, .. } => {
            refuse_unsayable(execute)?;
            let pid = pid_of(execute.key.in_port);
            let write: Write<'a> = Box::new(move |to: &mut Writer| packet::write_execute(execute, pid, to));
            Prepared { index, execute: true, cmd: EXECUTE, flags: 0, write }
        }
    });
    Ok(())
}

fn finish(op: &mut DpifOp<'_>, how: Result<Result<(), Errno>>, answer: Option<Vec<u8>>) {
    let how = match how {
        Ok(how) => how,
        Err(error) => return fail(op, error),
    };
    match op {
        DpifOp::FlowPut { result, .. } => *result = how.map_err(|errno| flow_error(errno, "can't put a flow")),
        DpifOp::FlowDel { result, .. } => {
            let stats = answer.and_then(|attrs| flow::ufid_and_stats(&attrs)).map(|(_, stats)| stats);
            *result = how.map(|()| stats.unwrap_or_default()).map_err(|errno| flow_error(errno, "can't delete a flow"));
        }
        DpifOp::FlowGet { result, .. } => {
            *result = how.map_err(|errno| flow_error(errno, "can't ask for a flow")).and_then(|()| {
                let attrs = answer.ok_or(DpifError::NoSuchFlow)?;
                flow::read(&attrs).map(|(_, flow)| Box::new(flow)).map_err(|error| unreadable(&error))
            });
        }
        DpifOp::Execute { result, .. } => *result = how.map_err(execute_error),
    }
}

fn fail(op: &mut DpifOp<'_>, error: DpifError) {
    match op {
        DpifOp::FlowPut { result, .. } | DpifOp::Execute { result, .. } => *result = Err(error),
        DpifOp::FlowDel { result, .. } => *result = Err(error),
        DpifOp::FlowGet { result, .. } => *result = Err(error),
    }
}
