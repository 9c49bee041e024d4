//! Batches of operations: as many requests as fit go in one send, and the kernel runs them in order.

use dpif::{DpifError, DpifOp, FlowStats, Result};
use nix::errno::Errno;

use crate::attr::Writer;
use crate::codec;
use crate::datapath::{EXECUTE, execute_error, flow_error, refuse_unsayable, unreadable};
use crate::error::{self, Failed};
use crate::families::Family;
use crate::flow;
use crate::kernel::Kernel;
use crate::message::{self, F_ECHO, Target};
use crate::packet;
use crate::socket::{Answer, Channel};
use crate::transmit::Transmitted;
use crate::uapi::cmd;

/// Bytes of requests that go in one send: more than the kernel's socket buffers take may not.
const BATCH_BYTES: usize = 64 << 10;
/// Requests in one send: what the kernel says of them waits in our receive buffer.
const BATCH_REQUESTS: usize = 128;

/// The datapath that operations are for.
pub(crate) struct Operator<'a> {
    pub(crate) kernel: &'a Kernel,
    /// Its ifindex.
    pub(crate) datapath: i32,
    /// The kernel knows `ipv6_exthdrs`.
    pub(crate) exthdrs: bool,
    /// The socket for what flows and packets of a port send up.
    pub(crate) pid_of: &'a dyn Fn(u32) -> u32,
    /// What sends packets that only have to be sent, if there is such a thing.
    pub(crate) transmit: &'a dyn for<'b> Fn(&[DpifOp<'b>]) -> Transmitted<'b>,
}

/// A request that was sent.
struct Sent {
    /// The operation that it belongs to.
    op: usize,
    /// What the kernel says of it; until then, that it went well.
    how: Result<(), Errno>,
}

impl Operator<'_> {
    /// Runs operations; each holds its result. Packets that only have to be sent go first, before flows that would let others
    /// overtake them.
    pub(crate) fn operate(&self, ops: &mut [DpifOp<'_>]) {
        let Transmitted { done, left } = (self.transmit)(ops);
        for (op, _) in ops.iter_mut().zip(&done).filter(|(_, done)| **done) {
            if let DpifOp::Execute { result, .. } = op {
                *result = Ok(());
            }
        }
        if !left.is_empty() {
            let again = left.iter().map(|(_, execute)| DpifOp::Execute { execute: *execute, result: Ok(()) });
            let mut again: Vec<_> = again.collect();
            self.request_all(&mut again, &[]);
            for ((op, _), again) in left.iter().zip(again) {
                if let (Some(op), DpifOp::Execute { result: Err(error), .. }) = (ops.get_mut(*op), again) {
                    refuse(op, error);
                }
            }
        }
        self.request_all(ops, &done);
    }

    /// Asks the kernel for the operations that are not done.
    fn request_all(&self, ops: &mut [DpifOp<'_>], done: &[bool]) {
        if done.len() == ops.len() && done.iter().all(|done| *done) {
            return;
        }
        let mut sent = Vec::with_capacity(BATCH_REQUESTS.min(2 * ops.len()));
        let mut next = 0;
        let work = |channel: &mut Channel| -> Result<((), bool), Failed> {
            while next < ops.len() {
                next = self.write_batch(channel, ops, done, next, &mut sent);
                if let Some(count) = u32::try_from(sent.len()).ok().filter(|count| *count != 0) {
                    let first = channel.next_seqs(count);
                    channel.transact(first, count, |index, answer| hear(answer, index, ops, &mut sent))?;
                }
                settle(ops, &mut sent);
            }
            Ok(((), true))
        };
        if let Err(Failed(error)) = self.kernel.pool.with(work) {
            // What became of those that were sent last nobody knows, and the rest was not sent.
            let (why, count) = (error.to_string(), ops.len());
            let waiting = (next..count).filter(|op| done.get(*op) != Some(&true));
            for op in sent.iter().map(|one| one.op).chain(waiting) {
                if let Some(op) = ops.get_mut(op) {
                    refuse(op, DpifError::Kernel(why.clone()));
                }
            }
        }
    }

    /// Writes requests of operations from number `next` on until a send is full; what can't be said is refused. Returns the
    /// number of the first operation that has to wait.
    fn write_batch(
        &self,
        channel: &mut Channel,
        ops: &mut [DpifOp<'_>],
        done: &[bool],
        mut next: usize,
        sent: &mut Vec<Sent>,
    ) -> usize {
        let seq = channel.seq();
        let out = &mut channel.out;
        out.clear();
        let mut last = 0;
        // A put may take two requests.
        while out.bytes().len() < BATCH_BYTES && sent.len() + 2 <= BATCH_REQUESTS {
            let Some(op) = ops.get_mut(next) else { break };
            if done.get(next) == Some(&true) {
                next += 1;
                continue;
            }
            let (start, had) = (out.bytes().len(), sent.len());
            let mut batch = Batch { out, sent, op: next, seq, last };
            match self.write(op, &mut batch) {
                Ok(()) => last = batch.last,
                Err(error) => {
                    out.truncate(start);
                    out.forget_too_long();
                    sent.truncate(had);
                    refuse(op, error);
                }
            }
            next += 1;
        }
        if !sent.is_empty() {
            message::ask_for_ack(out, last);
        }
        next
    }

    /// Writes an operation's requests. What it gives back is what it is to have if the kernel says nothing of it.
    fn write(&self, op: &mut DpifOp<'_>, batch: &mut Batch<'_>) -> Result<()> {
        let families = &self.kernel.families;
        match op {
            DpifOp::FlowPut { put, .. } => {
                let pid = (self.pid_of)(put.key.in_port);
                for (cmd, flags) in flow::put_commands(put.mode) {
                    self.request(batch, families.flow, (*cmd, *flags), |to| flow::write(put, pid, self.exthdrs, to))?;
                }
                Ok(())
            }
            DpifOp::FlowDel { ufid, result } => {
                *result = Ok(FlowStats::default());
                self.request(batch, families.flow, (cmd::DEL, F_ECHO), |to| {
                    flow::put_ufid(*ufid, to);
                    flow::put_terse(to);
                    Ok(())
                })
            }
            DpifOp::FlowGet { ufid, result } => {
                *result = Err(DpifError::NoSuchFlow);
                self.request(batch, families.flow, (cmd::GET, 0), |to| {
                    flow::put_ufid(*ufid, to);
                    Ok(())
                })
            }
            DpifOp::Execute { execute, .. } => {
                refuse_unsayable(execute)?;
                let pid = (self.pid_of)(execute.key.in_port);
                self.request(batch, families.packet, (EXECUTE, 0), |to| packet::write_execute(execute, pid, to))
            }
        }
    }

    fn request(
        &self,
        batch: &mut Batch<'_>,
        family: Family,
        (cmd, flags): (u8, u16),
        attrs: impl FnOnce(&mut Writer) -> codec::Result<()>,
    ) -> Result<()> {
        let Batch { out, sent, op, seq, last } = batch;
        *last = out.bytes().len();
        // The first has the number behind the channel's.
        let seq = seq.wrapping_add(1 + sent.len() as u32);
        let open = message::begin(out, Target { family: family.id, version: family.version, cmd, flags }, seq);
        out.raw(&self.datapath.to_ne_bytes());
        attrs(out).map_err(|error| error::codec(&error))?;
        message::end(out, open);
        if out.is_too_long() {
            out.forget_too_long();
            let error = codec::CodecError::Inexpressible("an attribute of more than 65,535 bytes");
            return Err(error::codec(&error));
        }
        sent.push(Sent { op: *op, how: Ok(()) });
        Ok(())
    }
}

/// Requests that are being written.
struct Batch<'a> {
    out: &'a mut Writer,
    sent: &'a mut Vec<Sent>,
    /// The operation at hand.
    op: usize,
    /// The sequence number before the first.
    seq: u32,
    /// Where the last request begins.
    last: usize,
}

/// The kernel says something of a request.
fn hear(answer: Answer<'_>, index: u32, ops: &mut [DpifOp<'_>], sent: &mut [Sent]) {
    let Some(one) = sent.get_mut(index as usize) else { return };
    match answer {
        Answer::End(how) => one.how = how,
        Answer::Data(message) => {
            if let (Some(op), Some((_, _, attrs))) = (ops.get_mut(one.op), message.ovs()) {
                read(op, attrs);
            }
        }
    }
}

/// What was asked for.
fn read(op: &mut DpifOp<'_>, attrs: &[u8]) {
    match op {
        DpifOp::FlowDel { result, .. } => {
            *result = Ok(flow::ufid_and_stats(attrs).map(|(_, stats)| stats).unwrap_or_default());
        }
        DpifOp::FlowGet { result, .. } => {
            *result = flow::read(attrs).map(|(_, flow)| Box::new(flow)).map_err(|error| unreadable(&error));
        }
        DpifOp::FlowPut { .. } | DpifOp::Execute { .. } => {}
    }
}

/// The requests that were sent have ended.
fn settle(ops: &mut [DpifOp<'_>], sent: &mut Vec<Sent>) {
    let mut before = None;
    for Sent { op: index, how } in sent.drain(..) {
        let Some(op) = ops.get_mut(index) else { continue };
        match (op, how) {
            (DpifOp::FlowPut { result, .. }, Ok(())) => *result = Ok(()),
            // Of a put's requests the first that succeeds counts.
            (DpifOp::FlowPut { result: Ok(()), .. }, Err(_)) if before == Some(index) => {}
            (DpifOp::FlowPut { result, .. }, Err(errno)) => *result = Err(flow_error(errno, "can't put a flow")),
            // What was asked for has been read.
            (DpifOp::FlowDel { .. } | DpifOp::FlowGet { .. }, Ok(())) => {}
            (DpifOp::FlowDel { result, .. }, Err(errno)) => *result = Err(flow_error(errno, "can't delete a flow")),
            (DpifOp::FlowGet { result, .. }, Err(errno)) => *result = Err(flow_error(errno, "can't ask for a flow")),
            (DpifOp::Execute { result, .. }, how) => *result = how.map_err(execute_error),
        }
        before = Some(index);
    }
}

fn refuse(op: &mut DpifOp<'_>, error: DpifError) {
    match op {
        DpifOp::FlowPut { result, .. } | DpifOp::Execute { result, .. } => *result = Err(error),
        DpifOp::FlowDel { result, .. } => *result = Err(error),
        DpifOp::FlowGet { result, .. } => *result = Err(error),
    }
}
