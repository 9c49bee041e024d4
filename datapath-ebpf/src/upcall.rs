//! Sending a packet to userspace.
//!
//! Each handler has its ring, and each port has credit in each ring: records that it may have outstanding, in number and in
//! bytes. The credit is looked at before the reservation, so a port whose packets nobody answers fills its share and no more.
//! The verifier wants to know a reservation's size, so there are size classes.

use core::ffi::c_void;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{
    bpf_ktime_get_ns, bpf_ringbuf_discard, bpf_ringbuf_reserve, bpf_ringbuf_submit, bpf_skb_load_bytes,
};
use datapath_common::digest::flow_hash;
use datapath_common::key::KEY_WORDS;
use datapath_common::maps::{Credit, LAYOUT_VERSION, MAX_HANDLERS, MAX_PORTS};
use datapath_common::op::{DropReason, MAX_COOKIE, SLOT_OPS};
use datapath_common::packet::PacketRead;
use datapath_common::upcall::{MAX_UPCALL_PACKET, SIZE_CLASSES, UpcallHeader, UpcallKind};

use crate::maps::{CONTROL, CREDITS, RINGS, SEEDS, SLOTS, Scratch};
use crate::skb::Skb;
use crate::stats;

/// Bytes of a record's fixed part.
const HEADER: usize = size_of::<UpcallHeader>();

/// Sends the packet up. `cookie_at`: index of the first `Data` operation in the running slot; `cookie_len`: bytes of cookie,
/// 0 for a miss. Whatever goes wrong is counted as lost.
#[inline(never)]
pub fn upcall(skb: *mut __sk_buff, s: &mut Scratch, kind: u32, cookie_at: u32, cookie_len: u32) -> i64 {
    if let Err(reason) = send(Skb(skb), s, kind, cookie_at, cookie_len) {
        // The deepest function of all: another one below it would be one too many for the stack.
        stats::drop_here(s, reason as u32);
        // SAFETY: the maps' elements.
        unsafe {
            let dp = stats::datapath(s);
            stats::add(&raw mut (*dp).lost, 1);
            if kind == UpcallKind::Action as u32 {
                stats::add(&raw mut (*dp).lost_actions, 1);
            }
            if let Some(port) = stats::port(s, s.in_port) {
                stats::add(&raw mut (*port).upcall_lost, 1);
            }
        }
    }
    0
}

#[inline(always)]
fn send(skb: Skb, s: &mut Scratch, kind: u32, cookie_at: u32, cookie_len: u32) -> Result<(), DropReason> {
    let (Some(control), Some(seeds)) = (CONTROL.get_ptr(0), SEEDS.get(0)) else {
        return Err(DropReason::UpcallNoHandler);
    };
    // SAFETY: the map's element, which userspace may change meanwhile.
    let n_handlers = unsafe { core::ptr::read_volatile(&raw const (*control).n_handlers) };
    if n_handlers == 0 || n_handlers > MAX_HANDLERS as u32 {
        return Err(DropReason::UpcallNoHandler);
    }
    let hash = flow_hash(s.key(), seeds.hash);
    let handler = hash % n_handlers;
    // A packet that userspace executes may have come from no port; port 0, which no device has, lends it credit.
    let credit_port = if s.in_port < MAX_PORTS as u32 { s.in_port } else { 0 };
    let Some(credit) = CREDITS.get_ptr_mut(handler * MAX_PORTS as u32 + credit_port) else {
        return Err(DropReason::UnknownInPort);
    };
    // SAFETY: the maps' elements; userspace writes what is consumed.
    unsafe {
        let used = (*credit).produced.wrapping_sub(core::ptr::read_volatile(&raw const (*credit).consumed));
        let bytes =
            (*credit).produced_bytes.wrapping_sub(core::ptr::read_volatile(&raw const (*credit).consumed_bytes));
        if used >= (*control).credit || bytes >= (*control).credit_bytes {
            stats::atomic_add(&raw mut (*credit).lost, 1);
            return Err(DropReason::UpcallCredit);
        }
    }

    let orig_len = skb.len();
    let len = if s.trunc != 0 && s.trunc < orig_len { s.trunc } else { orig_len };
    let mut record = Record { skb, s, credit, credit_port, handler, kind, hash, len, orig_len, cookie_at, cookie_len };
    let len = len as usize;
    if len <= SIZE_CLASSES[0] {
        record.write::<{ SIZE_CLASSES[0] }>()
    } else if len <= SIZE_CLASSES[1] {
        record.write::<{ SIZE_CLASSES[1] }>()
    } else if len <= SIZE_CLASSES[2] {
        record.write::<{ SIZE_CLASSES[2] }>()
    } else if len <= SIZE_CLASSES[3] {
        record.write::<{ SIZE_CLASSES[3] }>()
    } else if len <= MAX_UPCALL_PACKET {
        record.write::<MAX_UPCALL_PACKET>()
    } else {
        Err(DropReason::UpcallTooLarge)
    }
}

struct Record<'a> {
    skb: Skb,
    s: &'a mut Scratch,
    credit: *mut Credit,
    credit_port: u32,
    handler: u32,
    kind: u32,
    hash: u32,
    len: u32,
    orig_len: u32,
    cookie_at: u32,
    cookie_len: u32,
}

impl Record<'_> {
    #[inline(always)]
    fn write<const CLASS: usize>(&mut self) -> Result<(), DropReason> {
        let Some(ring) = RINGS.get(self.handler) else { return Err(DropReason::UpcallNoHandler) };
        // SAFETY: the size is a constant; the record is submitted or discarded on every way out.
        unsafe {
            let ring = core::ptr::from_ref(ring).cast_mut().cast::<c_void>();
            let memory = bpf_ringbuf_reserve(ring, (HEADER + CLASS) as u64, 0).cast::<u8>();
            if memory.is_null() {
                stats::atomic_add(&raw mut (*self.credit).lost, 1);
                return Err(DropReason::UpcallRingFull);
            }
            self.fill(memory.cast());
            // The helper refuses a length of 0. Before Linux 6.8 the verifier learns nothing of "not 0", so the length is made from
            // one less: it lies between 1 and 65,536 whatever the packet says, and 0, which no frame has, becomes too long.
            let len = (crate::opaque(self.len.wrapping_sub(1)) & 0xffff) + 1;
            if len > CLASS as u64
                || bpf_skb_load_bytes(self.skb.0.cast(), 0, memory.add(HEADER).cast(), len as u32) != 0
            {
                bpf_ringbuf_discard(memory.cast(), 0);
                return Err(DropReason::UpcallTooLarge);
            }
            stats::atomic_add(&raw mut (*self.credit).produced, 1);
            stats::atomic_add(&raw mut (*self.credit).produced_bytes, (HEADER + CLASS) as u64);
            if let Some(port) = stats::port(self.s, self.s.in_port) {
                stats::add(&raw mut (*port).upcalls, 1);
            }
            let dp = stats::datapath(self.s);
            if self.kind == UpcallKind::Action as u32 {
                stats::add(&raw mut (*dp).queued_actions, 1);
            } else {
                stats::add(&raw mut (*dp).queued_misses, 1);
            }
            bpf_ringbuf_submit(memory.cast(), 0);
        }
        Ok(())
    }

    /// # Safety
    /// `header` points to reserved memory.
    #[inline(always)]
    unsafe fn fill(&mut self, header: *mut UpcallHeader) {
        // SAFETY: the caller's promise; each field is written, so that no stale memory goes up.
        unsafe {
            (*header).layout = LAYOUT_VERSION;
            (*header).kind = self.kind;
            (*header).packet_len = self.len;
            (*header).orig_len = self.orig_len;
            (*header).arrival_ns = bpf_ktime_get_ns();
            (*header).credit_port = self.credit_port;
            (*header).hash = self.hash;
            (*header).vlan = self.skb.accelerated_vlan();
            (*header).gso_size = (*self.skb.0).gso_size as u16;
            (*header).gso_segs = (*self.skb.0).gso_segs as u16;
            (*header).cookie_len = self.cookie_len;
            (*header).mru = 0;
            (*header).stats_id = if self.kind == UpcallKind::Miss as u32 { u32::MAX } else { self.s.stats_id };
            (*header).reserved = 0;
            crate::copy_words::<KEY_WORDS>(self.s.words.as_ptr(), (&raw mut (*header).key).cast());
            self.cookie((&raw mut (*header).cookie).cast());
        }
    }

    /// Copies the cookie out of the `Data` operations.
    ///
    /// # Safety
    /// `to` points to the header's cookie.
    #[inline(always)]
    unsafe fn cookie(&mut self, to: *mut u64) {
        let slot = if self.cookie_len != 0 { SLOTS.get(self.s.slot) } else { None };
        let mut i = 0;
        while i < MAX_COOKIE / 16 {
            let (mut a, mut b) = (0, 0);
            let at = crate::opaque(self.cookie_at.wrapping_add(i as u32)) as usize;
            if let Some(slot) = slot
                && (i * 16) < self.cookie_len as usize
                && at < SLOT_OPS
            {
                (a, b) = (slot.ops[at].a, slot.ops[at].b);
            }
            // SAFETY: the caller's promise.
            unsafe {
                to.add(2 * i).write_volatile(a);
                to.add(2 * i + 1).write_volatile(b);
            }
            i += 1;
        }
    }
}
