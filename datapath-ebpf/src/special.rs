//! The specialised programs, in front of the general ones.
//!
//! Such a program finishes the packets that it can finish with little: plain IPv4 (`extract::plain_ipv4`), each of whose flows is in
//! the flow cache and runs straight through. It is loaded for what the flows at the time need ([`datapath_common::needs`]); what
//! they don't, the verifier prunes. Every other packet it hands over to the general program, untouched and uncounted, and
//! that one writes the flow that it finds where this one will look for it next time.
//!
//! It has no working memory in maps: a key of six words stays in registers and on the stack.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_csum_update, bpf_redirect};
use datapath_common::extract::{self, Layers};
use datapath_common::key::{HOT_WORDS, word};
use datapath_common::maps::{MAX_LOOKUPS, MAX_PORTS, XdpFrame};
use datapath_common::needs::{self, FITS};
use datapath_common::op::DropReason;
use datapath_common::packet::PacketRead;
use datapath_common::{HotSlot, straight};

use crate::finish::is_sent;
use crate::head::Head;
use crate::lookup::{cached_in_row, cached_number, cached_slot, place};
use crate::maps::{CLOCK, DP_STATS, PORTS, SLOTS};
use crate::skb::Skb;
use crate::stats;
use crate::xdp::Xdp;

/// What the program serves, set at load.
#[unsafe(no_mangle)]
pub static SERVES: u32 = 0;

#[inline(always)]
fn serves() -> u16 {
    stats::global(&SERVES) as u16
}

/// What to tell the general program when the flow of a packet that is handed over isn't in the cache.
#[inline(always)]
fn handed_over() -> u32 {
    u32::from(serves() | FITS)
}

/// A packet on its way.
struct Walk {
    words: [u64; HOT_WORDS],
    serves: u16,
    in_port: u32,
    len: u32,
    lane: u32,
}

/// Flows that recirculated the packet. Apart from the rest, which can stay in registers where nothing recirculates.
struct Passed {
    n: u32,
    /// The numbers of their statistics.
    flows: [MaybeUninit<u32>; MAX_LOOKUPS as usize],
}

impl Passed {
    #[inline(always)]
    fn none() -> Self {
        Self { n: 0, flows: [MaybeUninit::uninit(); MAX_LOOKUPS as usize] }
    }
}

impl Walk {
    /// A packet that is all here: IPv4 without tags, options, or fragments.
    #[inline(always)]
    fn begin<P: PacketRead>(head: &Head<P>, in_port: u32) -> Option<Self> {
        let serves = serves();
        if in_port >= MAX_PORTS as u32 {
            return None;
        }
        let mut words = extract::whole_ipv4(head, serves & needs::L4 != 0)?;
        words[word::IN_PORT] = in_port.into();
        Some(Self { words, serves, in_port, len: head.len(), lane: stats::lane() })
    }

    /// The flow that the packet ends in, and its slot: it is looked up as long as its flows recirculate it.
    #[inline(always)]
    fn last(&mut self, passed: &mut Passed) -> Option<(&'static HotSlot, u32)> {
        let mut hash = needs::hash(&self.words, self.serves);
        if self.serves & needs::RECIRC == 0 {
            return self.find(hash);
        }
        let mut i = 0;
        while i < MAX_LOOKUPS {
            let (slot, number) = self.find(hash)?;
            if u32::from(slot.straight) != straight::RECIRC {
                passed.n = i;
                return Some((slot, number));
            }
            passed.flows[i as usize].write(slot.stats_id);
            hash = hash.wrapping_add(needs::rehash(self.words[word::IN_PORT], slot.arg));
            self.words[word::IN_PORT] = u64::from(self.in_port) | u64::from(slot.arg) << 32;
            i += 1;
        }
        None
    }

    /// The flow that the cache has for the packet, and its slot.
    #[inline(always)]
    fn find(&self, hash: u64) -> Option<(&'static HotSlot, u32)> {
        // SAFETY: the map's element; a word that is read whole.
        let cached = unsafe { core::ptr::read_volatile(place(self.lane, hash)?) };
        if let Some(slot) = self.run_by(cached) {
            return Some((slot, cached_number(cached)));
        }
        let cached = cached_in_row(self.lane, hash);
        Some((self.run_by(cached)?, cached_number(cached)))
    }

    /// The flow that a cached word names, if its slot still holds it, the program can run it, and the packet is one of its.
    #[inline(always)]
    fn run_by(&self, cached: u64) -> Option<&'static HotSlot> {
        let slot = cached_slot(cached)?;
        let is_it = needs::are_served(slot.needs, self.serves)
            && needs::matches(&self.words, &slot.key, &slot.hot_mask, self.serves);
        if is_it { Some(slot) } else { None }
    }

    /// Rewrites the packet in place. The change of a whole packet's sum, or `straight::UNFIT`.
    #[inline(always)]
    fn rewrite<P: PacketRead>(&mut self, head: &mut Head<P>, number: u32) -> u64 {
        let Some(slot) = SLOTS.get(number) else { return straight::UNFIT };
        let layers = Layers { l3: 14, l4: 34, ..Layers::default() };
        straight::rewrite(head, &mut self.words, &layers, &slot.rewrite)
    }

    /// Counts the packet for its port, the datapath and its flows; for `out`, if it is sent there.
    #[inline(always)]
    fn count(&self, passed: &Passed, slot: &HotSlot, out: Option<u32>) {
        let (shared, lane, bytes) = (stats::is_shared(), self.lane, u64::from(self.len));
        // SAFETY: the maps' elements, and numbers that `last` has written.
        unsafe {
            if let Some(port) = stats::port_in(lane, self.in_port) {
                stats::add_in(shared, &raw mut (*port).rx_packets, 1);
                stats::add_in(shared, &raw mut (*port).rx_bytes, bytes);
            }
            if let Some(port) = out.and_then(|out| stats::port_in(lane, out)) {
                stats::add_in(shared, &raw mut (*port).tx_packets, 1);
                stats::add_in(shared, &raw mut (*port).tx_bytes, bytes);
            }
            let tcp_flags = u16::from_be((self.words[word::ETH_SRC] >> 48) as u16);
            let clock = || CLOCK.get_ptr_mut(0);
            stats::flow(clock, shared, lane, slot.stats_id, self.len, tcp_flags);
            if let Some(stats) = DP_STATS.get_ptr_mut(lane) {
                stats::add_in(shared, &raw mut (*stats).special_hit, u64::from(passed.n) + 1);
                if out.is_none() {
                    stats::add_in(shared, (&raw mut (*stats).dropped).cast::<u64>().add(DropReason::Flow as usize), 1);
                }
                if self.serves & needs::RECIRC != 0 {
                    stats::add_in(shared, &raw mut (*stats).recirculated, passed.n.into());
                }
            }
            let mut i = 0;
            while self.serves & needs::RECIRC != 0 && i < passed.n && i < MAX_LOOKUPS {
                stats::flow(clock, shared, lane, passed.flows[i as usize].assume_init(), self.len, tcp_flags);
                i += 1;
            }
        }
    }
}

/// A frame that arrived at port `skb->cb[0]`. `None`: it is as it was, and for the general program.
#[inline(always)]
pub fn tc(skb: *mut __sk_buff) -> Option<i32> {
    let mut head = Skb(skb).head()?;
    // SAFETY: the context is the kernel's.
    let mut walk = Walk::begin(&head, unsafe { (*skb).cb[0] })?;
    let mut passed = Passed::none();
    let Some((slot, number)) = walk.last(&mut passed) else {
        // SAFETY: as above.
        unsafe { (*skb).cb[1] = handed_over() };
        return None;
    };
    let (flags, out) = (u32::from(slot.straight), slot.arg);
    if walk.serves & needs::DROP != 0 && flags == straight::DROP {
        walk.count(&passed, slot, None);
        return Some(TC_ACT_SHOT);
    }
    let entry = if out < MAX_PORTS as u32 { PORTS.get(out)? } else { return None };
    let ifindex = entry.ifindex;
    // SAFETY: the context is the kernel's.
    if ifindex == 0 || (walk.len > entry.mtu.saturating_add(14) && unsafe { (*skb).gso_size } == 0) {
        return None;
    }
    if walk.serves & needs::REWRITE != 0 && flags & straight::REWRITE != 0 {
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
pub fn xdp(xdp: *mut xdp_md, arrived: &mut XdpFrame) -> Option<u32> {
    let mut head = Xdp(xdp).head()?;
    let mut walk = Walk::begin(&head, arrived.port)?;
    let mut passed = Passed::none();
    let Some((slot, number)) = walk.last(&mut passed) else {
        arrived.serves = handed_over();
        return None;
    };
    let (flags, out) = (u32::from(slot.straight), slot.arg);
    if walk.serves & needs::DROP != 0 && flags == straight::DROP {
        walk.count(&passed, slot, None);
        return Some(xdp_action::XDP_DROP);
    }
    if !is_sent(out, walk.len)
        || (walk.serves & needs::REWRITE != 0
            && flags & straight::REWRITE != 0
            && walk.rewrite(&mut head, number) == straight::UNFIT)
    {
        return None;
    }
    walk.count(&passed, slot, Some(out));
    Some(xdp_action::XDP_REDIRECT)
}
