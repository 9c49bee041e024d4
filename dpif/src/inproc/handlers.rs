//! The queues through which upcalls reach their handlers.
//!
//! They behave like the rings of the eBPF datapath: one per handler, chosen by the packet's hash; a limit on what one port may
//! have outstanding in each, so that its storm leaves room for the others; and a limit in bytes over all. Upcalls are
//! accounted by the size that their record would have in a ring. Ports are served in [turns](Turns).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use datapath_common::UpcallHeader;
use datapath_common::maps::{MAX_HANDLERS, PORT_CREDIT_BYTES, RING_BYTES};
use datapath_common::op::DropReason;
use datapath_common::upcall::SIZE_CLASSES;
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use crate::Result;
use crate::error::DpifError;
use crate::port::OdpPort;
use crate::turns::Turns;
use crate::upcall::{Upcall, UpcallBatch};

/// The queues of all handlers that there may be.
pub(super) struct Handlers {
    /// Handlers that receive; the queues from here on are empty.
    count: AtomicU32,
    credit: u64,
    queues: Vec<Handler>,
}

struct Handler {
    queue: Mutex<Queue>,
    /// Made when somebody first asks. Written and read only under the queue's lock: readable exactly while there are upcalls.
    event: OnceLock<EventFd>,
}

#[derive(Default)]
struct Queue {
    upcalls: Turns<Queued>,
    bytes: u64,
    outstanding: HashMap<u32, Outstanding>,
    /// Upcalls that found no room, by port.
    lost: HashMap<u32, u64>,
}

struct Queued {
    upcall: Upcall,
    record_bytes: u64,
}

#[derive(Default)]
struct Outstanding {
    records: u64,
    bytes: u64,
}

/// Bytes that an upcall of a packet of `packet_len` bytes takes in a ring, or why it doesn't fit.
pub(super) fn record_bytes(packet_len: usize) -> Result<u64, DropReason> {
    let class = SIZE_CLASSES.iter().find(|class| packet_len <= **class).ok_or(DropReason::UpcallTooLarge)?;
    Ok((size_of::<UpcallHeader>() + class) as u64)
}

impl Handlers {
    pub(super) fn new(credit: u64) -> Self {
        let handler = || Handler { queue: Mutex::default(), event: OnceLock::new() };
        Self { count: AtomicU32::new(0), credit, queues: (0..MAX_HANDLERS).map(|_| handler()).collect() }
    }

    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Sets the number of handlers and says how many upcalls were lost with those that are gone.
    pub(super) fn set_count(&self, count: u32) -> Result<usize> {
        if count as usize > self.queues.len() {
            return Err(DpifError::Invalid(format!(
                "{count} handlers are more than the {MAX_HANDLERS} that there may be"
            )));
        }
        self.count.store(count, Ordering::Release);
        Ok(self.queues.iter().skip(count as usize).map(Handler::purge).sum())
    }

    /// Queues an upcall for the handler that its hash chooses, or says why it is lost. `packet_len`: bytes of the packet
    /// without an accelerated tag.
    pub(super) fn push(&self, upcall: Upcall, packet_len: usize) -> Result<(), DropReason> {
        let count = self.count();
        let handler = upcall
            .hash
            .checked_rem(count)
            .and_then(|h| self.queues.get(h as usize))
            .ok_or(DropReason::UpcallNoHandler)?;
        let mut queue = handler.queue.lock();
        // Under the lock, so that whoever makes the handlers fewer finds what is queued.
        if self.count() != count {
            return Err(DropReason::UpcallNoHandler);
        }
        handler.push(&mut queue, upcall, packet_len, self.credit)
    }

    pub(super) fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        batch.clear();
        Ok(self.handler(handler)?.recv(batch))
    }

    pub(super) fn purge(&self, handler: u32) -> Result<usize> {
        Ok(self.handler(handler)?.purge())
    }

    pub(super) fn fd(&self, handler: u32) -> Result<BorrowedFd<'_>> {
        self.handler(handler)?.fd()
    }

    /// Upcalls that were lost for want of credit or room, by port and handler.
    pub(super) fn lost(&self) -> Vec<(OdpPort, u32, u64)> {
        let mut lost = Vec::new();
        // Those that there are no more have lost what they have lost.
        for (handler, number) in self.queues.iter().zip(0..) {
            lost.extend(handler.queue.lock().lost.iter().map(|(port, n)| (OdpPort(*port), number, *n)));
        }
        lost
    }

    fn handler(&self, handler: u32) -> Result<&Handler> {
        let count = self.count();
        self.queues
            .get(handler as usize)
            .filter(|_| handler < count)
            .ok_or_else(|| DpifError::Invalid(format!("there is no handler {handler}, the datapath has {count}")))
    }
}

impl Handler {
    fn push(&self, queue: &mut Queue, upcall: Upcall, packet_len: usize, credit: u64) -> Result<(), DropReason> {
        let in_port = upcall.key.in_port;
        let queued = self.queue(queue, upcall, packet_len, credit);
        if queued.is_err() {
            *queue.lost.entry(in_port).or_default() += 1;
        }
        queued
    }

    fn queue(&self, queue: &mut Queue, upcall: Upcall, packet_len: usize, credit: u64) -> Result<(), DropReason> {
        let (total, port) = (queue.bytes, queue.outstanding.entry(upcall.key.in_port).or_default());
        if port.records >= credit || port.bytes >= PORT_CREDIT_BYTES {
            return Err(DropReason::UpcallCredit);
        }
        let record_bytes = record_bytes(packet_len)?;
        if total + record_bytes > RING_BYTES as u64 {
            return Err(DropReason::UpcallRingFull);
        }
        port.records += 1;
        port.bytes += record_bytes;
        queue.bytes += record_bytes;
        if queue.upcalls.is_empty() {
            self.signal();
        }
        queue.upcalls.push(upcall.key.in_port, Queued { upcall, record_bytes });
        Ok(())
    }

    fn recv(&self, batch: &mut UpcallBatch) -> usize {
        let mut queue = self.queue.lock();
        while !queue.upcalls.is_empty() {
            let Some(slot) = batch.next_slot() else { break };
            match queue.pop() {
                Some(upcall) => *slot = upcall,
                None => batch.cancel_slot(),
            }
        }
        if queue.upcalls.is_empty() {
            self.unsignal();
        }
        batch.upcalls().len()
    }

    fn purge(&self) -> usize {
        let mut queue = self.queue.lock();
        let n = queue.upcalls.len();
        let lost = std::mem::take(&mut queue.lost);
        *queue = Queue { lost, ..Queue::default() };
        self.unsignal();
        n
    }

    fn fd(&self) -> Result<BorrowedFd<'_>> {
        let queue = self.queue.lock();
        if self.event.get().is_none() {
            let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
                .map_err(|e| DpifError::Io("making an eventfd for upcalls".into(), e.into()))?;
            // Can't be set meanwhile: we hold the lock.
            let _ = self.event.set(event);
            if !queue.upcalls.is_empty() {
                self.signal();
            }
        }
        let event = self.event.get().ok_or_else(|| DpifError::Invalid("no eventfd for upcalls".into()))?;
        Ok(event.as_fd())
    }

    /// Makes the descriptor readable. An eventfd that holds 1 takes another 1, so this can't fail.
    fn signal(&self) {
        if let Some(event) = self.event.get() {
            let _ = event.write(1);
        }
    }

    /// Makes the descriptor unreadable; fails with `EAGAIN` where it is already.
    fn unsignal(&self) {
        if let Some(event) = self.event.get() {
            let _ = event.read();
        }
    }
}

impl Queue {
    fn pop(&mut self) -> Option<Upcall> {
        let (_, Queued { upcall, record_bytes }) = self.upcalls.pop()?;
        self.bytes -= record_bytes;
        if let Some(port) = self.outstanding.get_mut(&upcall.key.in_port) {
            port.records -= 1;
            port.bytes -= record_bytes;
            if port.records == 0 {
                self.outstanding.remove(&upcall.key.in_port);
            }
        }
        Some(upcall)
    }
}
