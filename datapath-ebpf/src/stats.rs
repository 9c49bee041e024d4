//! Counters: monotonic, in lanes, read by userspace through the memory map.
//!
//! A CPU that has its lane to itself adds without a locked instruction: nothing else on that CPU runs a datapath program
//! between the load and the store, for both hooks run with bottom halves off. Where CPUs share lanes the additions are atomic.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_coarse_ns};
use datapath_common::blanks::{SHARED, SLOTS};
use datapath_common::maps::{DpStats, Lane, MAX_LANES, MAX_PORTS, PortStats};
use datapath_common::op::{DROP_REASONS, DropReason};

use crate::blank;
use crate::maps::{Clock, FLOW_STATS, LANE, Scratch};

/// Lanes in use, set at load.
#[unsafe(no_mangle)]
pub static LANES: u32 = 1;

/// Buckets of the lookup table less one, set at load.
#[unsafe(no_mangle)]
pub static BUCKET_MASK: u32 = datapath_common::table::bucket_count(datapath_common::maps::DEFAULT_SLOTS) as u32 - 1;

/// A global that is set at load: read as the verifier sees it, not as the compiler knows it.
#[inline(always)]
pub fn global(value: &u32) -> u32 {
    // SAFETY: a reference is readable.
    unsafe { core::ptr::read_volatile(value) }
}

/// Whether several CPUs share a lane.
#[inline(always)]
pub fn is_shared() -> bool {
    blank::value::<SHARED>() != 0
}

/// This CPU's lane.
#[inline(always)]
pub fn lane() -> u32 {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u32;
    let lane = if is_shared() { cpu % global(&LANES) } else { cpu };
    if lane < MAX_LANES as u32 { lane } else { 0 }
}

/// Adds to a counter.
///
/// # Safety
/// `counter` points into map memory.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, n: u64) {
    // SAFETY: the caller's promise.
    unsafe { add_in(is_shared(), counter, n) };
}

/// As [`add`], for who has asked already whether lanes are [shared](is_shared).
///
/// # Safety
/// `counter` points into map memory.
#[inline(always)]
pub unsafe fn add_in(shared: bool, counter: *mut u64, n: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        if shared {
            atomic_add(counter, n);
        } else {
            *counter = (*counter).wrapping_add(n);
        }
    }
}

/// `lock *(u64 *)counter += n`.
///
/// # Safety
/// `counter` points into map memory.
#[inline(always)]
pub unsafe fn atomic_add(counter: *mut u64, n: u64) {
    // SAFETY: the caller's promise; written as an instruction because the target has no atomic integer types.
    unsafe {
        core::arch::asm!("lock *(u64 *)({counter} + 0) += {n}", counter = in(reg) counter, n = in(reg) n, options(nostack));
    }
}

/// Counters of the datapath.
#[inline(always)]
pub fn datapath(s: &Scratch) -> *mut DpStats {
    // SAFETY: a field of the map's element.
    unsafe { &raw mut (*LANE.at(s.lane)).stats }
}

/// Counters of a port.
#[inline(always)]
pub fn port(s: &Scratch, port: u32) -> Option<*mut PortStats> {
    port_in(s.lane, port)
}

/// Counters of a port in a lane.
#[inline(always)]
fn port_in(lane: u32, port: u32) -> Option<*mut PortStats> {
    if port >= MAX_PORTS as u32 {
        return None;
    }
    // SAFETY: a map's element.
    Some(unsafe { port_of(LANE.at(lane), port) })
}

/// Counters of a port, in the lane that this points to. Of a number that is too high it is another port's.
///
/// # Safety
/// `lane` points to a lane.
#[inline(always)]
pub unsafe fn port_of(lane: *mut Lane, port: u32) -> *mut PortStats {
    // SAFETY: the caller's promise, and an index below the length.
    unsafe { (&raw mut (*lane).ports).cast::<PortStats>().add(crate::opaque(port) as usize % MAX_PORTS) }
}

/// Counts a packet of the flow whose statistics have this number. `clock` gives this CPU's.
#[inline(always)]
pub fn flow(
    clock: impl FnOnce() -> Option<*mut Clock>,
    shared: bool,
    lane: u32,
    stats_id: u32,
    bytes: u32,
    tcp_flags: u16,
) {
    let index = lane.wrapping_mul(blank::value::<SLOTS>() as u32).wrapping_add(stats_id);
    if let Some(stats) = FLOW_STATS.get_ptr_mut(index) {
        // SAFETY: the map's element, and helpers without arguments.
        unsafe {
            add_in(shared, &raw mut (*stats).packets, 1);
            add_in(shared, &raw mut (*stats).bytes, bytes.into());
            let ticks = bpf_jiffies64();
            let before = (*stats).seen;
            let seen = ticks << 16 | (before & 0xffff) | u64::from(tcp_flags);
            if seen != before {
                (*stats).seen = seen;
                // Where a CPU counts beside us in the same lane, the clock is the same.
                if let Some(clock) = clock() {
                    (*stats).used_ns = coarse_now(clock, ticks);
                }
            }
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds as of the last tick. The helper that says so is dear for every packet, but the number of
/// ticks is read without a call.
///
/// # Safety
/// `clock` points to this CPU's.
#[inline(always)]
unsafe fn coarse_now(clock: *mut Clock, ticks: u64) -> u64 {
    // SAFETY: the caller's promise; a helper without arguments.
    unsafe {
        if (*clock).ticks != ticks {
            (*clock).ticks = ticks;
            (*clock).coarse_ns = bpf_ktime_get_coarse_ns();
        }
        (*clock).coarse_ns
    }
}

/// Counts a drop.
#[inline(never)]
fn dropped(s: &Scratch, reason: u32) -> u32 {
    drop_here(s, reason);
    reason
}

/// As [`drop`], without the call.
#[inline(always)]
pub fn drop_here(s: &Scratch, reason: u32) {
    if reason < DROP_REASONS as u32 {
        // SAFETY: the map's element; the index is in range.
        unsafe {
            let counters = (&raw mut (*datapath(s)).dropped).cast::<u64>();
            add(counters.add(reason as usize), 1);
        }
    }
}

/// Counts a drop.
#[inline(always)]
pub fn drop(s: &Scratch, reason: DropReason) {
    dropped(s, reason as u32);
}
