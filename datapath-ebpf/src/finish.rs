//! The XDP hook: frames that can be finished before the kernel makes a buffer of them.
//!
//! It takes a frame whose flows run straight through ([`datapath_common::straight`]) and end in one output, to a device that takes
//! frames from here, in several of the same bytes to such devices ([`flood`]), or in a drop. All others go on to the TC hook of the
//! same port as they came: no byte of them has been written, nothing counted, nothing sent up. So the whole chain of lookups is
//! walked first; only then are the flows counted and the frame rewritten. Who finishes a frame counts it.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::bpf_redirect_map;
use datapath_common::extract;
use datapath_common::key::word;
use datapath_common::maps::{Lane, MAX_LOOKUPS, MAX_PORTS};
use datapath_common::op::DropReason;
use datapath_common::packet::PacketRead;
use datapath_common::{HotSlot, seen, straight};

use crate::flood;
use crate::lookup::{in_cache, is_asked_for, search, tell};
use crate::maps::{DEVICES, HOT_SLOTS, LANE, PORTS, SLOTS, Scratch, XDP_SCRATCH, XdpCpu, arrived};
use crate::stats;
use crate::xdp::Xdp;

/// What comes behind a lookup: the frame is not to be finished here,
const NOT_HERE: i32 = 0;
/// it is to be looked up again,
const AGAIN: i32 = 1;
/// or that was the last, and its flow has slot `s.slot`.
const LAST: i32 = 2;

/// What the program is to return where no device takes the frame.
const PASS: u64 = xdp_action::XDP_PASS as u64;

/// Shorter frames go on: of those the kernel drops some (a tag that is cut off) before the TC hook.
const SHORTEST: u32 = 20;

/// A frame that [`arrived`].
#[inline(always)]
pub fn receive(xdp: *mut xdp_md) -> u32 {
    receive_here(xdp).unwrap_or(xdp_action::XDP_PASS)
}

/// `None`: it is not to be finished here.
#[inline(always)]
fn receive_here(xdp: *mut xdp_md) -> Option<u32> {
    let number = stats::lane();
    let (lane, x) = (LANE.at(number), XDP_SCRATCH.get_ptr_mut(0)?);
    // SAFETY: elements of this CPU alone.
    let (x, arrived) = unsafe { (&mut *x, *arrived(lane)?) };
    x.s.serves = arrived.serves;
    x.s.begin(number, arrived.port, 0, 0);
    let slot = last(xdp, x, lane, arrived.port)?;
    finish(xdp, x, lane, slot)
}

/// Walks the lookups of a frame, to its last flow. The flow's slot, whose number is `s.slot`; `None`: not to be finished here.
#[inline(always)]
fn last(xdp: *mut xdp_md, x: &mut XdpCpu, lane: *mut Lane, in_port: u32) -> Option<&'static HotSlot> {
    (x.cached, x.scanned) = (0, 0);
    if Xdp(xdp).len() < SHORTEST || in_port >= MAX_PORTS as u32 || extract(xdp, &mut x.s) != 0 {
        return None;
    }
    let slot = found(x, lane)?;
    let mut next = note(x, slot);
    if next == LAST {
        return Some(slot);
    }
    let mut left = MAX_LOOKUPS - 1;
    while next == AGAIN {
        if left == 0 {
            return None;
        }
        left -= 1;
        // SAFETY: the working memory is ours.
        next = unsafe { look_again(x) };
    }
    if next == LAST { Some(HOT_SLOTS.get(x.s.slot)) } else { None }
}

#[inline(always)]
fn extract(xdp: *mut xdp_md, s: &mut Scratch) -> i32 {
    // SAFETY: the key and the layers are different fields of the working memory.
    let layers = unsafe { &mut *(&raw mut s.layers) };
    if let Some(head) = Xdp(xdp).head()
        && extract::extract_plain_ipv4(&head, s.key(), layers)
    {
        s.extracted_plain();
        return 0;
    }
    // SAFETY: the working memory is ours.
    let failed = unsafe { extract_any_xdp(xdp, s) };
    s.extracted();
    failed
}

/// As [`extract`], for any frame. A global function: the verifier looks at it once.
///
/// # Safety
/// `s` is null or points to working memory (the verifier makes every caller prove it).
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn extract_any_xdp(xdp: *mut xdp_md, s: *mut Scratch) -> i32 {
    if s.is_null() {
        return 1;
    }
    // SAFETY: the caller's working memory, of which the key and the layers are different fields.
    let (s, layers) = unsafe { (&mut *s, &mut *(&raw mut (*s).layers)) };
    i32::from(extract::extract_into(&Xdp(xdp), s.key(), layers).is_err())
}

/// A lookup behind the first. A global function, as above.
///
/// # Safety
/// `x` is null or points to working memory (the verifier makes every caller prove it).
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn look_again(x: *mut XdpCpu) -> i32 {
    if x.is_null() {
        return NOT_HERE;
    }
    // SAFETY: the caller's working memory.
    let x = unsafe { &mut *x };
    match found(x, LANE.at(x.s.lane)) {
        Some(slot) => note(x, slot),
        None => NOT_HERE,
    }
}

/// The flow of a frame.
#[inline(always)]
fn found(x: &mut XdpCpu, lane: *mut Lane) -> Option<&'static HotSlot> {
    // SAFETY: the lane of this CPU.
    if let Some(slot) = unsafe { in_cache(&mut x.s, lane) } {
        x.cached += 1;
        if is_asked_for(&x.s, slot) {
            tell(&mut x.s);
        }
        return Some(slot);
    }
    let scanned = search(&mut x.s) as u32;
    x.scanned = x.scanned.wrapping_add(scanned);
    x.cached += u32::from(scanned == 0);
    if x.s.found != 0 { Some(HOT_SLOTS.get(x.s.slot)) } else { None }
}

/// Notes a flow that is to be counted, and says what is next.
#[inline(always)]
fn note(x: &mut XdpCpu, slot: &HotSlot) -> i32 {
    let at = crate::opaque(x.s.lookups) as usize;
    if at >= MAX_LOOKUPS as usize {
        return NOT_HERE;
    }
    x.flows[at] = slot.stats_id;
    x.s.lookups = at as u32 + 1;
    match u32::from(slot.straight) {
        straight::RECIRC => {
            x.s.hash = x.s.hash.wrapping_add(seen::rehash(x.s.words[word::IN_PORT], slot.arg));
            x.s.key().recirc_id = slot.arg;
            AGAIN
        }
        straight::OUTPUT | straight::DROP => LAST,
        flags if flags == straight::OUTPUT | straight::REWRITE => LAST,
        // Several outputs of the same bytes.
        0 if slot.group != 0 => LAST,
        _ => NOT_HERE,
    }
}

/// Does what the flow in slot `s.slot` says, unless the output stands in the way.
#[inline(always)]
fn finish(xdp: *mut xdp_md, x: &mut XdpCpu, lane: *mut Lane, slot: &HotSlot) -> Option<u32> {
    let frame = Xdp(xdp);
    // As the TC hook counts: there the outer tag is beside the bytes.
    let len = frame.len() - if x.s.key().vlan.tpid.is_zero() { 0 } else { 4 };
    let flags = u32::from(slot.straight);
    if flags == straight::DROP {
        count(x, lane, len, None);
        stats::drop(&x.s, DropReason::Flow);
        return Some(xdp_action::XDP_DROP);
    }
    if flags == 0 {
        if !flood::is_flooded(slot.group, len) {
            return None;
        }
        count(x, lane, len, None);
        flood::count(&x.s, slot.group, len);
        return Some(xdp_action::XDP_REDIRECT);
    }
    if !is_sent(slot.arg, len) || (flags & straight::REWRITE != 0 && !rewrite(frame, &mut x.s)) {
        return None;
    }
    count(x, lane, len, Some(slot.arg));
    Some(xdp_action::XDP_REDIRECT)
}

/// Whether a frame will be sent to a port if the program returns `XDP_REDIRECT`.
#[inline(always)]
pub fn is_sent(port: u32, len: u32) -> bool {
    // Of a number that is too high this is another port's, but no device has it.
    if len > PORTS.get(port).xdp_len {
        return false;
    }
    // SAFETY: a helper call on a map.
    let verdict = unsafe { bpf_redirect_map((&raw const DEVICES).cast_mut().cast(), port.into(), PASS) };
    verdict as u32 == xdp_action::XDP_REDIRECT
}

/// Rewrites the frame in place. False: it is as it was.
#[inline(always)]
fn rewrite(frame: Xdp, s: &mut Scratch) -> bool {
    let (Some(mut head), Some(slot)) = (frame.head(), SLOTS.get(s.slot)) else { return false };
    // SAFETY: the words and the layers are different fields of the working memory.
    let layers = unsafe { &*(&raw const s.layers) };
    straight::rewrite(&mut head, s.hot_words(), layers, &slot.rewrite) != straight::UNFIT
}

/// Counts the frame for its port, the datapath and the flows that it has met; for `out`, if it is sent to that port alone.
#[inline(always)]
fn count(x: &mut XdpCpu, lane: *mut Lane, len: u32, out: Option<u32>) {
    let s = &x.s;
    // SAFETY: the map's element.
    unsafe {
        let port = stats::port_of(lane, s.in_port);
        stats::add(&raw mut (*port).rx_packets, 1);
        stats::add(&raw mut (*port).rx_bytes, len.into());
        if let Some(out) = out {
            let port = stats::port_of(lane, out);
            stats::add(&raw mut (*port).tx_packets, 1);
            stats::add(&raw mut (*port).tx_bytes, len.into());
        }
        let stats = &raw mut (*lane).stats;
        stats::add(&raw mut (*stats).cache_hit, x.cached.into());
        if x.scanned != 0 {
            stats::add(&raw mut (*stats).hit, s.lookups.wrapping_sub(x.cached).into());
            stats::add(&raw mut (*stats).mask_hit, x.scanned.into());
        }
        if s.lookups > 1 {
            stats::add(&raw mut (*stats).recirculated, s.lookups.wrapping_sub(1).into());
        }
    }
    // Extraction put them there, and nothing has changed them.
    let tcp_flags = u16::from_be((s.words[word::ETH_SRC] >> 48) as u16);
    let (lane, clock) = (s.lane, &raw mut x.clock);
    stats::flow(|| Some(clock), stats::is_shared(), lane, x.flows[0], len, tcp_flags);
    let mut i = 1;
    while i < MAX_LOOKUPS as usize {
        if i as u32 >= x.s.lookups {
            break;
        }
        stats::flow(|| Some(clock), stats::is_shared(), lane, x.flows[i], len, tcp_flags);
        i += 1;
    }
}
