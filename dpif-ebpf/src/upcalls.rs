//! Receiving upcalls: one ring per handler.
//!
//! A ring is made when the first handler of its number is asked for, and stays with the datapath. The handler copies each
//! record into the buffers of the caller's batch, releases it, and only then gives the port its credit back, through the
//! memory-mapped counters that the datapath checks before it reserves.
//!
//! A ring is in the order of arrival. Where more waits in it than a batch takes, it is emptied into an [inbox](Inbox), in which
//! ports take turns; who waits there keeps the credit that it took.

use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use aya::maps::{MapData, RingBuf};
use datapath_common::key::Vlan;
use datapath_common::maps::{Credit, LAYOUT_VERSION, MAX_HANDLERS, MAX_PORTS, RING_BYTES};
use datapath_common::{Be16, FlowKey, UpcallHeader};
use dpif::turns::Turns;
use dpif::{DpifError, Result, Upcall, UpcallBatch, UpcallKind};
use parking_lot::Mutex;

use crate::grace::Grace;
use crate::kernel::io_error;
use crate::maps::Maps;
use crate::offload::is_partial;
use crate::pins::Pins;

/// Bytes of the two addresses, behind which a VLAN tag stands.
const ADDRESSES: usize = 12;
/// Upcalls, and bytes of their records, that an inbox takes; the ring keeps the rest.
const MOST_WAITING: usize = 8192;
const MOST_WAITING_BYTES: u64 = 2 * RING_BYTES as u64;
/// Unused upcalls that an inbox keeps for their memory, none with a larger packet.
const MOST_SPARE: usize = 1024;
const MOST_SPARE_BYTES: usize = 4096;

/// The rings of a datapath.
pub(crate) struct Upcalls {
    maps: Arc<Maps>,
    pins: Arc<Pins>,
    grace: Arc<Grace>,
    handlers: [OnceLock<Handler>; MAX_HANDLERS],
    /// Upcalls that were thrown away.
    discarded: AtomicU64,
}

struct Handler {
    /// Of the ring's map, beside the lock.
    fd: OwnedFd,
    inbox: Mutex<Inbox>,
}

/// A ring, and what was taken out of it and waits for its turn.
struct Inbox {
    ring: RingBuf<MapData>,
    waiting: Turns<Waiting>,
    waiting_bytes: u64,
    /// The last batch took no more: there may be too many for the next one too.
    crowded: bool,
    #[expect(clippy::vec_box, reason = "they move between here and what waits")]
    spare: Vec<Box<Upcall>>,
}

struct Waiting {
    upcall: Box<Upcall>,
    used: Used,
}

impl Upcalls {
    pub(crate) fn new(maps: Arc<Maps>, pins: Arc<Pins>, grace: Arc<Grace>) -> Self {
        Self { maps, pins, grace, handlers: Default::default(), discarded: AtomicU64::new(0) }
    }

    /// Upcalls that were queued and thrown away by this process, other than those that it found.
    pub(crate) fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// Throws away what an earlier process left in the rings, and says how many records: nobody waits for an answer to these
    /// packets any more. No handler is set, and no program is in the middle of a record.
    pub(crate) fn purge_all(&self) -> Result<usize> {
        let mut discarded = 0;
        for number in 0..MAX_HANDLERS as u32 {
            if self.pins.path(&format!("ring{number}")).exists() {
                self.open(number)?;
                discarded += self.throw_away(number)?;
            }
        }
        coverage::add!("dpif_ebpf_upcall_discarded", discarded as u64);
        // A process that died between releasing a record and giving the credit back has taken that credit with it.
        for index in 0..self.maps.credits.len() {
            let word = |offset| self.maps.credits.word(index, offset / 8);
            for (consumed, produced) in [
                (offset_of!(Credit, consumed), offset_of!(Credit, produced)),
                (offset_of!(Credit, consumed_bytes), offset_of!(Credit, produced_bytes)),
            ] {
                if let (Some(consumed), Some(produced)) = (word(consumed), word(produced)) {
                    consumed.store(produced.load(Ordering::Acquire), Ordering::Release);
                }
            }
        }
        Ok(discarded)
    }

    /// Sets how many handlers receive.
    pub(crate) fn set_handlers(&self, n: u32) -> Result<()> {
        if n as usize > MAX_HANDLERS {
            return Err(DpifError::Invalid(format!("{n} handlers: an eBPF datapath has at most {MAX_HANDLERS}")));
        }
        for number in 0..n {
            self.open(number)?;
        }
        let before = self.maps.n_handlers().swap(n, Ordering::SeqCst);
        if before > n {
            // Programs that have read the number before finish their records.
            self.grace.wait().map_err(|error| io_error("waiting for a grace period", error))?;
        }
        // What others had not received is lost with them.
        for number in n..MAX_HANDLERS as u32 {
            if self.handler(number).is_ok() {
                let discarded = self.purge(number)?;
                coverage::add!("dpif_ebpf_upcall_discarded", discarded as u64);
            }
        }
        Ok(())
    }

    fn open(&self, number: u32) -> Result<()> {
        let Some(place) = self.handlers.get(number as usize) else { return Err(no_handler(number)) };
        if place.get().is_none() {
            let ring = self.maps.ring(&self.pins, number)?;
            let fd =
                ring.as_fd().try_clone_to_owned().map_err(|error| io_error("can't duplicate a descriptor", error))?;
            // Of two who come first at once one's ring is dropped, which is the same ring.
            let (waiting, spare) = (Turns::default(), Vec::new());
            let inbox = Mutex::new(Inbox { ring, waiting, waiting_bytes: 0, crowded: false, spare });
            let _ = place.set(Handler { fd, inbox });
        }
        Ok(())
    }

    fn handler(&self, number: u32) -> Result<&Handler> {
        self.handlers.get(number as usize).and_then(OnceLock::get).ok_or_else(|| no_handler(number))
    }

    /// Readable when there are upcalls.
    pub(crate) fn fd(&self, handler: u32) -> Result<BorrowedFd<'_>> {
        Ok(self.handler(handler)?.fd.as_fd())
    }

    /// Receives until the batch is full or nothing is left.
    pub(crate) fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        batch.clear();
        let mut inbox = self.handler(handler)?.inbox.lock();
        if inbox.crowded {
            self.sort(handler, &mut inbox, batch);
            self.take_turns(handler, &mut inbox, batch);
        } else {
            self.take_in_order(handler, &mut inbox, batch);
        }
        inbox.crowded = batch.is_full() || !inbox.waiting.is_empty();
        Ok(batch.upcalls().len())
    }

    fn take_in_order(&self, handler: u32, inbox: &mut Inbox, batch: &mut UpcallBatch) {
        while !batch.is_full() {
            let Some(record) = inbox.ring.next() else { break };
            if let Some(upcall) = batch.next_slot()
                && read(&record, upcall).is_none()
            {
                coverage::inc!("dpif_ebpf_bad_upcall");
                batch.cancel_slot();
                batch.count_bad();
            }
            let used = Used::of(&record);
            drop(record);
            self.give_credit(handler, used);
        }
    }

    /// Empties the ring into the inbox.
    fn sort(&self, handler: u32, inbox: &mut Inbox, batch: &mut UpcallBatch) {
        while inbox.waiting.len() < MOST_WAITING && inbox.waiting_bytes < MOST_WAITING_BYTES {
            let Some(record) = inbox.ring.next() else { break };
            let mut upcall = inbox.spare.pop().unwrap_or_default();
            let (read, used) = (read(&record, &mut upcall), Used::of(&record));
            drop(record);
            match (read, used) {
                (Some(()), Some(used)) => {
                    inbox.waiting_bytes += used.bytes;
                    inbox.waiting.push(used.port, Waiting { upcall, used });
                }
                (_, used) => {
                    coverage::inc!("dpif_ebpf_bad_upcall");
                    batch.count_bad();
                    self.give_credit(handler, used);
                }
            }
        }
    }

    fn take_turns(&self, handler: u32, inbox: &mut Inbox, batch: &mut UpcallBatch) {
        while !batch.is_full() {
            let Some((_, Waiting { mut upcall, used })) = inbox.waiting.pop() else { break };
            inbox.waiting_bytes = inbox.waiting_bytes.saturating_sub(used.bytes);
            if let Some(slot) = batch.next_slot() {
                std::mem::swap(slot, &mut *upcall);
            }
            if inbox.spare.len() < MOST_SPARE && upcall.packet.data.capacity() <= MOST_SPARE_BYTES {
                inbox.spare.push(upcall);
            }
            self.give_credit(handler, Some(used));
        }
    }

    /// Throws away what waits for a handler, and says how many.
    pub(crate) fn purge(&self, handler: u32) -> Result<usize> {
        let n = self.throw_away(handler)?;
        self.discarded.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn throw_away(&self, handler: u32) -> Result<usize> {
        let mut inbox = self.handler(handler)?.inbox.lock();
        let mut n = 0;
        while let Some((_, waiting)) = inbox.waiting.pop() {
            self.give_credit(handler, Some(waiting.used));
            n += 1;
        }
        (inbox.waiting_bytes, inbox.crowded) = (0, false);
        while let Some(record) = inbox.ring.next() {
            let used = Used::of(&record);
            drop(record);
            self.give_credit(handler, used);
            n += 1;
        }
        Ok(n)
    }

    /// Records that a port lost in the ring of a handler.
    pub(crate) fn lost(&self, port: u32, handler: u32) -> u64 {
        let index = handler as usize * MAX_PORTS + port as usize;
        let word = self.maps.credits.word(index, offset_of!(Credit, lost) / 8);
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn give_credit(&self, handler: u32, used: Option<Used>) {
        let Some(used) = used.filter(|used| (used.port as usize) < MAX_PORTS) else { return };
        let index = handler as usize * MAX_PORTS + used.port as usize;
        // The inbox's lock is held: nobody else counts here.
        for (offset, n) in [(offset_of!(Credit, consumed), 1), (offset_of!(Credit, consumed_bytes), used.bytes)] {
            if let Some(word) = self.maps.credits.word(index, offset / 8) {
                word.store(word.load(Ordering::Relaxed).wrapping_add(n), Ordering::Release);
            }
        }
    }
}

fn no_handler(number: u32) -> DpifError {
    DpifError::Invalid(format!("there is no handler {number}; handlers_set says how many there are"))
}

/// Whose credit a record holds, and how much.
pub(crate) struct Used {
    pub(crate) port: u32,
    pub(crate) bytes: u64,
}

impl Used {
    pub(crate) fn of(record: &[u8]) -> Option<Self> {
        Some(Self { port: u32_at(record, offset_of!(UpcallHeader, credit_port))?, bytes: record.len() as u64 })
    }
}

/// Reads a record into an upcall, whose buffers are reused. `None`: it is no record of this layout.
pub(crate) fn read(record: &[u8], upcall: &mut Upcall) -> Option<()> {
    if u32_at(record, offset_of!(UpcallHeader, layout))? != LAYOUT_VERSION {
        return None;
    }
    upcall.kind = match u32_at(record, offset_of!(UpcallHeader, kind))? {
        0 => UpcallKind::Miss,
        1 => UpcallKind::Action,
        _ => return None,
    };
    let len = u32_at(record, offset_of!(UpcallHeader, packet_len))? as usize;
    let packet = record.get(size_of::<UpcallHeader>()..)?.get(..len)?;
    let vlan = offset_of!(UpcallHeader, vlan);
    let vlan = Vlan { tpid: Be16(u16_at(record, vlan)?), tci: Be16(u16_at(record, vlan + 2)?) };
    let tag = restore(packet, vlan, &mut upcall.packet.data);
    upcall.orig_len = u32_at(record, offset_of!(UpcallHeader, orig_len))?.saturating_add(tag);
    upcall.packet.gso_size = u16_at(record, offset_of!(UpcallHeader, gso_size))?;
    upcall.packet.partial_checksum = is_partial(&upcall.packet.data, upcall.packet.gso_size);

    let key: &[u8; size_of::<FlowKey>()] = record.get(offset_of!(UpcallHeader, key)..)?.first_chunk()?;
    for (word, bytes) in upcall.key.words_mut().iter_mut().zip(key.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    let cookie_len = u32_at(record, offset_of!(UpcallHeader, cookie_len))? as usize;
    let cookie = record.get(offset_of!(UpcallHeader, cookie)..size_of::<UpcallHeader>())?.get(..cookie_len)?;
    upcall.cookie.clear();
    upcall.cookie.extend_from_slice(cookie);
    upcall.packet.mru = u32_at(record, offset_of!(UpcallHeader, mru))?.try_into().ok()?;
    upcall.hash = u32_at(record, offset_of!(UpcallHeader, hash))?;
    let arrival = record.get(offset_of!(UpcallHeader, arrival_ns)..)?.first_chunk()?;
    upcall.arrival_ns = u64::from_ne_bytes(*arrival);
    Some(())
}

/// Copies a packet, with the tag that the device took off put back. Returns the bytes that this adds.
fn restore(packet: &[u8], vlan: Vlan, to: &mut Vec<u8>) -> u32 {
    to.clear();
    match packet.split_at_checked(ADDRESSES) {
        Some((addresses, rest)) if !vlan.tpid.is_zero() => {
            to.extend_from_slice(addresses);
            to.extend_from_slice(&vlan.tpid.0.to_ne_bytes());
            to.extend_from_slice(&vlan.tci.0.to_ne_bytes());
            to.extend_from_slice(rest);
            4
        }
        _ => {
            to.extend_from_slice(packet);
            0
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(packet: &[u8]) -> Vec<u8> {
        let mut record = vec![0; size_of::<UpcallHeader>() + 256];
        let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
        put(offset_of!(UpcallHeader, layout), &LAYOUT_VERSION.to_ne_bytes());
        put(offset_of!(UpcallHeader, kind), &1u32.to_ne_bytes());
        put(offset_of!(UpcallHeader, packet_len), &(packet.len() as u32).to_ne_bytes());
        put(offset_of!(UpcallHeader, orig_len), &200u32.to_ne_bytes());
        put(offset_of!(UpcallHeader, credit_port), &7u32.to_ne_bytes());
        put(offset_of!(UpcallHeader, vlan), &[0x88, 0xa8, 0x20, 0x05]);
        put(offset_of!(UpcallHeader, cookie_len), &3u32.to_ne_bytes());
        put(offset_of!(UpcallHeader, cookie), b"abc");
        put(offset_of!(UpcallHeader, key), &9u32.to_ne_bytes());
        put(size_of::<UpcallHeader>(), packet);
        record
    }

    #[test]
    fn a_record_becomes_an_upcall_with_its_tag_restored() {
        let packet: Vec<u8> = (0..100).collect();
        let mut upcall = Upcall { cookie: vec![9; 40], ..Upcall::default() };
        read(&record(&packet), &mut upcall).unwrap();
        assert_eq!(upcall.kind, UpcallKind::Action);
        assert_eq!(upcall.packet.data[..18], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x88, 0xa8, 0x20, 5, 12, 13]);
        assert_eq!((upcall.packet.data.len(), upcall.orig_len), (104, 204));
        assert_eq!((upcall.cookie.as_slice(), upcall.key.in_port), (&b"abc"[..], 9));
        assert_eq!(Used::of(&record(&packet)).unwrap().port, 7);
    }

    #[test]
    fn records_that_lie_about_themselves_are_refused() {
        let good = record(&[0; 60]);
        for len in 0..size_of::<UpcallHeader>() + 60 {
            assert_eq!(read(&good[..len], &mut Upcall::default()), None, "{len}");
        }
        for (at, value) in [
            (offset_of!(UpcallHeader, layout), LAYOUT_VERSION + 1),
            (offset_of!(UpcallHeader, kind), 2),
            (offset_of!(UpcallHeader, packet_len), 257),
            (offset_of!(UpcallHeader, packet_len), u32::MAX),
            (offset_of!(UpcallHeader, cookie_len), 129),
        ] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            assert_eq!(read(&bad, &mut Upcall::default()), None, "{at} {value}");
        }
    }
}
