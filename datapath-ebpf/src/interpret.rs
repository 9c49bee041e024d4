//! Running a packet: extraction, passes through the flow table, and the operations of the flow found.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_clone_redirect, bpf_csum_update, bpf_loop, bpf_redirect, bpf_skb_change_tail};
use datapath_common::apply::set_word;
use datapath_common::digest::action_hash;
use datapath_common::extract::{self, clear_packet_fields};
use datapath_common::key::{KEY_WORDS, Vlan, word};
use datapath_common::maps::{MAX_LOOKUPS, MAX_PORTS};
use datapath_common::op::{DropReason, MAX_PROGRAM_OPS, SLOT_OPS, kind};
use datapath_common::packet::{PacketEdit, PacketRead};
use datapath_common::slot::SlotUse;
use datapath_common::upcall::UpcallKind;
use datapath_common::{Be16, Op, seen, straight};

use crate::lookup::{cache_hash, lookup};
use crate::maps::{Cpu, PORTS, SCRATCH, SEEDS, SLOTS, Scratch};
use crate::skb::{Skb, payload_len};
use crate::{debug, stats, upcall};

/// What a callback of `bpf_loop` gets.
struct Run {
    skb: *mut __sk_buff,
    s: *mut Scratch,
}

/// A frame that arrived at port `skb->cb[0]`.
#[inline(always)]
pub fn receive(skb: *mut __sk_buff) -> i32 {
    nested(|cpu, s| {
        // SAFETY: the context is the kernel's.
        let (in_port, serves, len) = unsafe { ((*skb).cb[0], (*skb).cb[1], (*skb).len) };
        begin(skb, s, in_port);
        s.serves = serves;
        if let Some(port) = stats::port(s, in_port) {
            // SAFETY: the map's element.
            unsafe {
                stats::add(&raw mut (*port).rx_packets, 1);
                stats::add(&raw mut (*port).rx_bytes, len.into());
            }
        } else {
            stats::drop(s, DropReason::UnknownInPort);
            return;
        }
        if extract_and_hash(skb, s) != 0 {
            if let Some(port) = stats::port(s, in_port) {
                // SAFETY: the map's element.
                unsafe { stats::add(&raw mut (*port).rx_dropped, 1) };
            }
            stats::drop(s, DropReason::Malformed);
            return;
        }
        pass(skb, cpu, s, false);
        recirculate(skb, cpu, s);
    })
}

/// A packet that userspace wrote to queue `skb->queue_mapping - 1` of the execute device: runs the program in the slot of that
/// number, with the metadata that lies in the slot's key.
#[inline(always)]
pub fn execute(skb: *mut __sk_buff) -> i32 {
    nested(|cpu, s| {
        // SAFETY: the context is the kernel's.
        let queue = unsafe { (*skb).queue_mapping }.wrapping_sub(1);
        begin(skb, s, 0);
        s.serves = 0;
        let Some(slot) = SLOTS.get(queue) else {
            stats::drop(s, DropReason::Execute);
            return;
        };
        if queue >= datapath_common::maps::EXECUTE_SLOTS as u32 || slot.usage != SlotUse::Execute as u32 {
            stats::drop(s, DropReason::Execute);
            return;
        }
        // SAFETY: both have the words of a key.
        unsafe { crate::copy_words::<KEY_WORDS>(slot.key.words().as_ptr(), s.words.as_mut_ptr()) };
        clear_packet_fields(s.key());
        s.in_port = s.key().in_port;
        // SAFETY: both fields are writable in a TC program.
        unsafe {
            (*skb).priority = s.key().skb_priority;
            (*skb).mark = s.key().skb_mark;
        }
        if extract(skb, s) != 0 {
            stats::drop(s, DropReason::Malformed);
            return;
        }
        s.hash = cache_hash(&s.words);
        s.slot = queue;
        s.stats_id = u32::MAX;
        run_program(skb, s, slot.straight, slot.arg);
        recirculate(skb, cpu, s);
    })
}

/// Runs `f` with the working memory of this CPU and nesting level.
#[inline(always)]
fn nested(f: impl FnOnce(*mut Cpu, &mut Scratch)) -> i32 {
    let Some(cpu) = SCRATCH.get_ptr_mut(0) else { return TC_ACT_SHOT };
    // SAFETY: the map's element, of this CPU alone; a program that runs inside this one takes the next level.
    unsafe {
        let level = crate::opaque((*cpu).nesting);
        if level >= u64::from(datapath_common::maps::MAX_NESTING) {
            let s = &mut *(&raw mut (*cpu).levels).cast::<Scratch>();
            stats::drop(s, DropReason::Nesting);
            return TC_ACT_SHOT;
        }
        (*cpu).nesting = level as u32 + 1;
        let s = &mut *(&raw mut (*cpu).levels).cast::<Scratch>().add(level as usize);
        f(cpu, s);
        (*cpu).nesting = level as u32;
        s.verdict as i32
    }
}

#[inline(always)]
fn begin(skb: *mut __sk_buff, s: &mut Scratch, in_port: u32) {
    // SAFETY: the context is the kernel's.
    let (priority, mark) = unsafe { ((*skb).priority, (*skb).mark) };
    s.begin(stats::lane(), in_port, priority, mark);
    s.pc = 0;
    s.trunc = 0;
    s.stale = 0;
    s.verdict = TC_ACT_SHOT as u32;
    s.again = 0;
}

/// Fills the key and its hash from a packet that has just arrived. 0 = done.
#[inline(always)]
fn extract_and_hash(skb: *mut __sk_buff, s: &mut Scratch) -> i32 {
    if extract_plain(skb, s) {
        s.extracted_plain();
        return 0;
    }
    // SAFETY: the working memory is ours.
    let failed = unsafe { extract_any(skb, s) };
    s.extracted();
    failed
}

/// Fills the key from the packet. 0 = done.
#[inline(always)]
fn extract(skb: *mut __sk_buff, s: &mut Scratch) -> i32 {
    // SAFETY: the working memory is ours.
    if extract_plain(skb, s) { 0 } else { unsafe { extract_any(skb, s) } }
}

/// As [`extract`], of what is IPv4 and has no tag. False, and nothing done, for any other packet.
#[inline(always)]
fn extract_plain(skb: *mut __sk_buff, s: &mut Scratch) -> bool {
    // SAFETY: the key and the layers are different fields of the working memory.
    let layers = unsafe { &mut *(&raw mut s.layers) };
    Skb(skb).head().is_some_and(|head| extract::extract_plain_ipv4(&head, s.key(), layers))
}

/// As [`extract`], for any packet. A global function: the verifier looks at it once, not once for each caller.
///
/// # Safety
/// `s` is null or points to working memory (the verifier makes every caller prove it).
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn extract_any(skb: *mut __sk_buff, s: *mut Scratch) -> i32 {
    if s.is_null() {
        return 1;
    }
    // SAFETY: the caller's working memory, of which the key and the layers are different fields.
    let (s, layers) = unsafe { (&mut *s, &mut *(&raw mut (*s).layers)) };
    i32::from(extract::extract_into(&Skb(skb), s.key(), layers).is_err())
}

/// One pass: lookup, then the flow's program or an upcall. `again`: not the first one.
#[inline(always)]
fn pass(skb: *mut __sk_buff, cpu: *mut Cpu, s: &mut Scratch, again: bool) {
    s.again = 0;
    s.lookups = s.lookups.wrapping_add(1);
    let slot = lookup(s, again);
    debug::lookup(skb, s, slot.is_some());
    let Some(slot) = slot else {
        s.trunc = 0;
        upcall::upcall(skb, s, UpcallKind::Miss as u32, 0, 0);
        return;
    };
    s.stats_id = slot.stats_id;
    let tcp_flags = s.key().tcp_flags.get();
    // SAFETY: a field of the working memory.
    let clock = || Some(unsafe { &raw mut (*cpu).clock });
    stats::flow(clock, stats::is_shared(), s.lane, slot.stats_id, Skb(skb).len(), tcp_flags);
    run_program(skb, s, slot.straight, slot.arg);
}

/// Further passes, as long as a recirculation asks for one.
#[inline(always)]
fn recirculate(skb: *mut __sk_buff, cpu: *mut Cpu, s: &mut Scratch) {
    let mut left = MAX_LOOKUPS;
    while s.again != 0 {
        // The packets that userspace executes have not been looked up before.
        if left == 0 || s.lookups >= MAX_LOOKUPS {
            stats::drop(s, DropReason::RecircLimit);
            return;
        }
        left -= 1;
        // SAFETY: the working memory is ours.
        unsafe { pass_again(skb, cpu, s) };
    }
}

/// A pass behind the first. A global function: the verifier looks at it once, not once for each pass.
///
/// # Safety
/// `cpu` and `s` are null or point to working memory (the verifier makes every caller prove it).
#[unsafe(no_mangle)]
#[inline(never)]
pub unsafe extern "C" fn pass_again(skb: *mut __sk_buff, cpu: *mut Cpu, s: *mut Scratch) -> i32 {
    if !cpu.is_null() && !s.is_null() {
        // SAFETY: the caller's working memory.
        pass(skb, cpu, unsafe { &mut *s }, true);
    }
    0
}

/// Runs the program of slot `s.slot`, whose straight form begins with this: straight through if it has that form and the form fits the
/// packet.
#[inline(always)]
fn run_program(skb: *mut __sk_buff, s: &mut Scratch, flags: u16, arg: u32) {
    let flags = u32::from(flags);
    // One output is what most flows have, and its way the shortest.
    if flags == straight::OUTPUT {
        output_here(skb, s, arg, 0, true);
        return;
    }
    let Some(slot) = SLOTS.get(s.slot) else { return };
    if flags == 0 || (flags & straight::REWRITE != 0 && !rewrite_here(Skb(skb), s, &slot.rewrite)) {
        interpret(skb, s);
        return;
    }
    if flags & straight::RECIRC != 0 {
        if flags & straight::REWRITE == 0 {
            s.hash = s.hash.wrapping_add(seen::rehash(s.words[word::IN_PORT], arg));
            s.key().recirc_id = arg;
        } else {
            s.key().recirc_id = arg;
            s.hash = cache_hash(&s.words);
        }
        s.again = 1;
    } else if flags & straight::OUTPUT == 0 {
        stats::drop(s, DropReason::Flow);
    } else if flags & (straight::PUSH_VLAN | straight::POP_VLAN) != 0 && !tag_here(Skb(skb), flags, slot.vlan) {
        stats::drop(s, DropReason::Action);
        debug::dropped(skb, s, DropReason::Action as u32);
    } else {
        output_here(skb, s, arg, 0, true);
    }
}

/// Rewrites the packet in place. False: it is as it was, and the operations are to do it.
#[inline(always)]
fn rewrite_here(skb: Skb, s: &mut Scratch, rewrite: &[u64; 8]) -> bool {
    // SAFETY: the context is the kernel's.
    if unsafe { (*skb.0).gso_size } != 0 {
        return false;
    }
    let Some(mut head) = skb.head() else { return false };
    // SAFETY: the words and the layers are different fields of the working memory.
    let layers = unsafe { &*(&raw const s.layers) };
    let complete = straight::rewrite(&mut head, s.hot_words(), layers, rewrite);
    if complete == straight::UNFIT {
        return false;
    }
    if complete != 0 {
        // It fails where the device has not summed up the packet, and then there is nothing to change.
        // SAFETY: a helper call on the kernel's context.
        unsafe { bpf_csum_update(skb.0.cast(), complete as u32) };
    }
    true
}

/// Pushes or pops a tag.
#[inline(always)]
fn tag_here(mut skb: Skb, flags: u32, vlan: u32) -> bool {
    if flags & straight::PUSH_VLAN != 0 { skb.push_vlan(tag(vlan)).is_ok() } else { skb.pop_vlan().is_ok() }
}

#[inline(always)]
fn tag(vlan: u32) -> Vlan {
    Vlan { tpid: Be16::from_raw(vlan as u16), tci: Be16::from_raw((vlan >> 16) as u16) }
}

/// Runs the operations of slot `s.slot`. (Not a function of its own: all that run inside each other share 512 bytes of stack.)
#[inline(always)]
fn interpret(skb: *mut __sk_buff, s: &mut Scratch) {
    s.pc = 0;
    s.trunc = 0;
    s.cold_used = 1;
    let mut run = Run { skb, s };
    // SAFETY: the callback gets the context that is given here.
    unsafe {
        bpf_loop(MAX_PROGRAM_OPS as u32 + 256, next_op as *mut c_void, core::ptr::from_mut(&mut run).cast(), 0);
    }
}

/// Runs the operation at `s.pc`. 1 = the program has ended.
extern "C" fn next_op(_: u32, run: *mut Run) -> i64 {
    // SAFETY: the context of the loop.
    let (skb, s) = unsafe { ((*run).skb, &mut *(*run).s) };
    let Some(slot) = SLOTS.get(s.slot) else { return 1 };
    let pc = crate::opaque(s.pc) as usize;
    if pc >= SLOT_OPS {
        return 1;
    }
    let op = &slot.ops[pc];
    s.pc = s.pc.wrapping_add(1);
    match step(skb, s, op) {
        Step::Next => 0,
        Step::Stop => 1,
        Step::Fail(reason) => {
            stats::drop(s, reason);
            debug::dropped(skb, s, reason as u32);
            1
        }
    }
}

enum Step {
    Next,
    Stop,
    Fail(DropReason),
}

#[inline(always)]
fn step(skb: *mut __sk_buff, s: &mut Scratch, op: &Op) -> Step {
    // The headers moved: whoever reads the key or writes a header needs them found again.
    if s.stale != 0 && matches!(op.kind, kind::SET_WORD | kind::USERSPACE | kind::HASH | kind::RECIRC) {
        s.stale = 0;
        clear_packet_fields(s.key());
        if extract(skb, s) != 0 {
            return Step::Fail(DropReason::Malformed);
        }
    }
    match op.kind {
        kind::OUTPUT => {
            output(skb, s, op.arg, op.is_last());
            s.trunc = 0;
            if op.is_last() { Step::Stop } else { Step::Next }
        }
        kind::SET_WORD => {
            if apply_set(skb, s, op.arg, op.a, op.b) == 0 {
                Step::Next
            } else {
                Step::Fail(DropReason::Action)
            }
        }
        kind::USERSPACE => {
            upcall::upcall(skb, s, UpcallKind::Action as u32, s.pc, op.arg & 0xff);
            s.trunc = 0;
            Step::Next
        }
        kind::DATA => Step::Next,
        kind::PUSH_VLAN => {
            s.stale = 1;
            if Skb(skb).push_vlan(tag(op.arg)).is_ok() { Step::Next } else { Step::Fail(DropReason::Action) }
        }
        kind::POP_VLAN => {
            s.stale = 1;
            if Skb(skb).pop_vlan().is_ok() { Step::Next } else { Step::Fail(DropReason::Action) }
        }
        kind::RECIRC => {
            s.key().recirc_id = op.arg;
            s.hash = cache_hash(&s.words);
            s.again = 1;
            Step::Stop
        }
        kind::HASH => {
            let Some(seeds) = SEEDS.get(0) else { return Step::Fail(DropReason::Action) };
            let hash = action_hash(s.key(), seeds.hash, op.arg);
            s.key().dp_hash = hash;
            Step::Next
        }
        kind::TRUNC => {
            s.trunc = op.arg;
            Step::Next
        }
        kind::CONTINUE => {
            s.slot = op.arg;
            s.pc = 0;
            Step::Next
        }
        kind::DROP => Step::Fail(DropReason::Flow),
        kind::END => Step::Stop,
        _ => Step::Fail(DropReason::UnknownOp),
    }
}

/// A set. 0 = done.
#[inline(never)]
fn apply_set(skb: *mut __sk_buff, s: &mut Scratch, index: u32, value: u64, mask: u64) -> i64 {
    let index = crate::opaque(index) as usize;
    if index >= KEY_WORDS {
        return 1;
    }
    let layers = s.layers;
    i64::from(set_word(&mut Skb(skb), s.key(), &layers, index, value, mask).is_err())
}

/// Sends the packet, or a copy of it, to a port. What can't be sent is counted.
#[inline(never)]
fn output(skb: *mut __sk_buff, s: &mut Scratch, port: u32, last: bool) -> i64 {
    let trunc = s.trunc;
    output_here(skb, s, port, trunc, last)
}

/// As [`output`], without the call.
#[inline(always)]
fn output_here(skb: *mut __sk_buff, s: &mut Scratch, port: u32, trunc: u32, last: bool) -> i64 {
    if let Err(reason) = transmit(Skb(skb), s, port, trunc, last) {
        stats::drop(s, reason);
        if let Some(stats) = stats::port(s, port) {
            // SAFETY: the map's element.
            unsafe { stats::add(&raw mut (*stats).tx_dropped, 1) };
        }
    }
    0
}

#[inline(always)]
fn transmit(skb: Skb, s: &mut Scratch, port: u32, trunc: u32, last: bool) -> Result<(), DropReason> {
    let entry = if port < MAX_PORTS as u32 { Some(PORTS.get(port)) } else { None };
    let Some(entry) = entry else { return Err(DropReason::NoPort) };
    let (ifindex, mtu) = (entry.ifindex, entry.mtu);
    if ifindex == 0 {
        return Err(DropReason::NoPort);
    }
    // SAFETY: the context is the kernel's; helpers that take it.
    unsafe {
        if trunc != 0 && trunc < skb.len() && bpf_skb_change_tail(skb.0.cast(), trunc, 0) != 0 {
            return Err(DropReason::Action);
        }
        if (*skb.0).gso_size == 0 && payload_len(skb) > mtu {
            return Err(DropReason::Mtu);
        }
        let len = skb.len();
        if last {
            s.verdict = bpf_redirect(ifindex, 0) as u32;
        } else if bpf_clone_redirect(skb.0.cast(), ifindex, 0) != 0 {
            return Err(DropReason::Output);
        }
        if let Some(stats) = stats::port(s, port) {
            stats::add(&raw mut (*stats).tx_packets, 1);
            stats::add(&raw mut (*stats).tx_bytes, len.into());
        }
    }
    Ok(())
}
