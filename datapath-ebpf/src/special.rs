//! The specialised programs, in front of the general ones.
//!
//! Such a program finishes the packets that it can finish with little: plain IPv4 ([`Seen`]), each of whose flows is in
//! the flow cache and runs straight through. It is loaded for what the flows at the time need ([`datapath_common::needs`]); what
//! they don't, the verifier prunes. Every other packet it hands over to the general program, untouched and uncounted, and
//! that one writes the flow that it finds where this one will look for it next time. A frame in the XDP hook whose output takes none from
//! there is the TC hook's at once.
//!
//! It has no working memory in maps: what it has seen of a packet stays in registers and on the stack.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_csum_update, bpf_redirect};
use datapath_common::blanks;
use datapath_common::extract::Layers;
use datapath_common::maps::{Lane, MAX_LOOKUPS, MAX_PORTS};
use datapath_common::needs::{self, FITS, Served};
use datapath_common::op::DropReason;
use datapath_common::packet::PacketRead;
use datapath_common::seen::{self, Seen};
use datapath_common::{HotSlot, straight};

use crate::blank;
use crate::finish::is_sent;
use crate::head::Head;
use crate::lookup::{cached_in, cached_in_row, cached_number, cached_slot_here};
use crate::maps::{CLOCK, LANE, PORTS, SLOTS, arrived};
use crate::skb::Skb;
use crate::stats;
use crate::xdp::Xdp;

/// What the program serves, as it is loaded ([`blanks`]).
#[derive(Clone, Copy)]
struct Serves;

impl Served for Serves {
    #[inline(always)]
    fn any<const NEEDS: u16>(self, at_hand: u64) -> bool {
        if NEEDS & (needs::ETH_SRC | needs::IP | needs::IPV4) != 0 {
            blank::serves::<NEEDS>(at_hand)
        } else {
            blank::even_serves::<NEEDS>(at_hand)
        }
    }

    #[inline(always)]
    fn add(self, mut sum: u64, term: u64) -> u64 {
        // SAFETY: changes a register.
        unsafe { core::arch::asm!("{0} += {1}", inout(reg) sum, in(reg) term, options(pure, nomem, nostack)) };
        sum
    }
}

/// What to tell the general program when the flow of a packet that is handed over isn't in the cache.
#[inline(always)]
fn handed_over() -> u32 {
    blank::value::<{ blanks::SERVED }>() as u32
}

/// A packet on its way.
struct Walk {
    seen: Seen,
    in_port: u32,
    len: u32,
    /// What this CPU writes.
    lane: *mut Lane,
    lane_number: u32,
}

/// Flows that recirculated the packet. Apart from the rest, which can stay in registers where nothing recirculates.
struct Passed {
    /// How many, where something recirculates.
    n: MaybeUninit<u32>,
    /// The numbers of their statistics.
    flows: [MaybeUninit<u32>; MAX_LOOKUPS as usize],
}

impl Passed {
    #[inline(always)]
    fn none() -> Self {
        Self { n: MaybeUninit::uninit(), flows: [MaybeUninit::uninit(); MAX_LOOKUPS as usize] }
    }
}

impl Walk {
    /// A packet that is all here: IPv4 without tags, options, or fragments.
    #[inline(always)]
    fn begin<P: PacketRead>(head: &Head<P>, in_port: u32, lane: *mut Lane, lane_number: u32) -> Option<Self> {
        Some(Self { seen: Seen::read(head, in_port, Serves)?, in_port, len: head.len(), lane, lane_number })
    }

    /// The flow that the packet ends in, and its slot: it is looked up as long as its flows recirculate it.
    #[inline(always)]
    fn last(&mut self, passed: &mut Passed) -> Option<(&'static HotSlot, u32)> {
        let mut hash = self.seen.hash(Serves);
        if !Serves.any::<{ needs::RECIRC }>(hash) {
            return self.find(hash);
        }
        let mut i = 0;
        while i < MAX_LOOKUPS {
            let (slot, number) = self.find(hash)?;
            if u32::from(slot.straight) != straight::RECIRC {
                passed.n.write(i);
                return Some((slot, number));
            }
            passed.flows[i as usize].write(slot.stats_id);
            hash = hash.wrapping_add(seen::rehash(self.seen.port, slot.arg));
            self.seen.port = u64::from(self.in_port) | u64::from(slot.arg) << 32;
            i += 1;
        }
        None
    }

    /// The flow that the cache has for the packet, and its slot.
    #[inline(always)]
    fn find(&self, hash: u64) -> Option<(&'static HotSlot, u32)> {
        // SAFETY: the map's element.
        let cached = unsafe { cached_in(self.lane, hash) };
        if let Some(slot) = self.run_by(cached) {
            return Some((slot, cached_number(cached)));
        }
        let cached = cached_in_row(self.lane_number, hash);
        Some((self.run_by(cached)?, cached_number(cached)))
    }

    /// The flow that a cached word names, if its slot still holds it, the program can run it, and the packet is one of its.
    #[inline(always)]
    fn run_by(&self, cached: u64) -> Option<&'static HotSlot> {
        let slot = cached_slot_here(cached)?;
        let is_served = u64::from(slot.needs) & blank::value::<{ blanks::UNSERVED }>() == u64::from(FITS);
        if is_served && self.seen.matches(&slot.key, &slot.hot_mask, Serves) { Some(slot) } else { None }
    }

    /// Rewrites the packet in place. The change of a whole packet's sum, or `straight::UNFIT`.
    #[inline(always)]
    fn rewrite<P: PacketRead>(&self, head: &mut Head<P>, number: u32) -> u64 {
        let Some(slot) = SLOTS.get(number) else { return straight::UNFIT };
        let layers = Layers { l3: 14, l4: 34, ..Layers::default() };
        straight::rewrite(head, &mut self.seen.words(), &layers, &slot.rewrite)
    }

    /// Counts the packet for its port, the datapath and its flows; for `out`, if it is sent there.
    #[inline(always)]
    fn count(&self, passed: &Passed, slot: &HotSlot, out: Option<u32>) {
        let (shared, lane, bytes) = (stats::is_shared(), self.lane, u64::from(self.len));
        // SAFETY: the maps' elements, and numbers that `last` has written.
        unsafe {
            let port = stats::port_of(lane, self.in_port);
            stats::add_in(shared, &raw mut (*port).rx_packets, 1);
            stats::add_in(shared, &raw mut (*port).rx_bytes, bytes);
            if let Some(out) = out {
                let port = stats::port_of(lane, out);
                stats::add_in(shared, &raw mut (*port).tx_packets, 1);
                stats::add_in(shared, &raw mut (*port).tx_bytes, bytes);
            }
            let stats = &raw mut (*lane).stats;
            let recirculates = Serves.any::<{ needs::RECIRC }>(bytes);
            let n = if recirculates { passed.n.assume_init() } else { 0 };
            let hits = if recirculates { u64::from(n) + 1 } else { 1 };
            stats::add_in(shared, &raw mut (*stats).special_hit, hits);
            if out.is_none() {
                stats::add_in(shared, (&raw mut (*stats).dropped).cast::<u64>().add(DropReason::Flow as usize), 1);
            }
            if recirculates {
                stats::add_in(shared, &raw mut (*stats).recirculated, n.into());
            }
            let tcp_flags = self.seen.tcp_flags;
            let (clock, lane) = (|| CLOCK.get_ptr_mut(0), self.lane_number);
            stats::flow(clock, shared, lane, slot.stats_id, self.len, tcp_flags);
            let mut i = 0;
            while recirculates && i < n && i < MAX_LOOKUPS {
                stats::flow(clock, shared, lane, passed.flows[i as usize].assume_init(), self.len, tcp_flags);
                i += 1;
            }
        }
    }
}

/// A frame that arrived at port `skb->cb[0]`. `None`: it is as it was, and for the general program.
#[inline(always)]
pub fn tc(skb: *mut __sk_buff) -> Option<i32> {
    // First, while nothing else has to outlive the calls.
    let number = stats::lane();
    let lane = LANE.at(number);
    let mut head = Skb(skb).head()?;
    // SAFETY: the context is the kernel's.
    let mut walk = Walk::begin(&head, unsafe { (*skb).cb[0] }, lane, number)?;
    let mut passed = Passed::none();
    let Some((slot, number)) = walk.last(&mut passed) else {
        // SAFETY: as above.
        unsafe { (*skb).cb[1] = handed_over() };
        return None;
    };
    let (flags, out) = (u32::from(slot.straight), slot.arg);
    if Serves.any::<{ needs::DROP }>(flags.into()) && flags == straight::DROP {
        walk.count(&passed, slot, None);
        return Some(TC_ACT_SHOT);
    }
    if out >= MAX_PORTS as u32 {
        return None;
    }
    let entry = PORTS.get(out);
    let ifindex = entry.ifindex;
    // There is an Ethernet header. SAFETY: the context is the kernel's.
    if ifindex == 0 || (walk.len.wrapping_sub(14) > entry.mtu && unsafe { (*skb).gso_size } == 0) {
        return None;
    }
    if Serves.any::<{ needs::REWRITE }>(flags.into()) && flags & straight::REWRITE != 0 {
        // SAFETY: as above.
        if unsafe { (*skb).gso_size } != 0 {
            return None;
        }
        let complete = walk.rewrite(&mut head, number);
        if complete == straight::UNFIT {
            return None;
        }
        if complete != 0 {
            // SAFETY: a helper call on the kernel's context.
            unsafe { bpf_csum_update(skb.cast(), complete as u32) };
        }
    }
    walk.count(&passed, slot, Some(out));
    // SAFETY: a helper call.
    Some(unsafe { bpf_redirect(ifindex, 0) } as i32)
}

/// A frame that arrived in the XDP hook of a port. `None`: it is as it was, and for the general program.
#[inline(always)]
pub fn xdp(xdp: *mut xdp_md) -> Option<u32> {
    let number = stats::lane();
    let lane = LANE.at(number);
    let mut head = Xdp(xdp).head()?;
    // SAFETY: the map's element.
    let arrived = unsafe { arrived(lane)? };
    // SAFETY: memory of this CPU.
    let mut walk = Walk::begin(&head, unsafe { (*arrived).port }, lane, number)?;
    let mut passed = Passed::none();
    let Some((slot, number)) = walk.last(&mut passed) else {
        // SAFETY: as above.
        unsafe { (*arrived).serves = handed_over() };
        return None;
    };
    let (flags, out) = (u32::from(slot.straight), slot.arg);
    if Serves.any::<{ needs::DROP }>(flags.into()) && flags == straight::DROP {
        walk.count(&passed, slot, None);
        return Some(xdp_action::XDP_DROP);
    }
    // Nothing has been done or counted: the hook of the TC sends it.
    if !is_sent(out, walk.len) {
        return Some(xdp_action::XDP_PASS);
    }
    if Serves.any::<{ needs::REWRITE }>(flags.into())
        && flags & straight::REWRITE != 0
        && walk.rewrite(&mut head, number) == straight::UNFIT
    {
        return None;
    }
    walk.count(&passed, slot, Some(out));
    Some(xdp_action::XDP_REDIRECT)
}
