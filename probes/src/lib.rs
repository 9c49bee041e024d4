//! Tracing probes (USDT) under the names that the field's tools attach to.
//!
//! A probe is one `nop` in the code and a note in the ELF file (`.note.stapsdt`) that says where it is and in which registers
//! its arguments are; a tracer replaces the `nop` while it looks. So a probe costs nothing unless somebody traces it. They are
//! listed by `bpftrace -l 'usdt:PATH/TO/vswitchd:*'` or `readelf -n`.
//!
//! Providers, names and the order of arguments are those of Open vSwitch (`Documentation/topics/usdt-probes.rst`). Numbers and
//! strings and packets mean what they mean there. What is a pointer to a C structure there is a pointer to ours here: it tells
//! one object from another, but a script must not look into it.
//!
//! This crate is all of the process that needs inline assembly for it; each function is a probe, inlined where it is called.

use std::ffi::CStr;

/// What stands for an object: where it is.
#[inline(always)]
fn at<T: ?Sized>(object: &T) -> isize {
    std::ptr::from_ref(object).cast::<u8>().addr() as isize
}

/// `main:run_start`: the main loop begins a turn.
#[inline(always)]
pub fn run_start() {
    probe::probe!(main, run_start);
}

/// `main:poll_block`: the main loop is about to sleep.
#[inline(always)]
pub fn poll_block() {
    probe::probe!(main, poll_block);
}

/// `dpif_recv:recv_upcall`: name of the datapath, kind (0: a miss, 1: an action), packet and its length, key and its length.
/// The key is the datapath's, not netlink's.
#[inline(always)]
pub fn recv_upcall<K>(dpif: &CStr, kind: u32, packet: &[u8], key: &K) {
    let name = dpif.as_ptr().addr();
    probe::probe!(dpif_recv, recv_upcall, name, kind, at(packet), packet.len(), at(key), size_of::<K>());
}

/// `dpif_netlink_operate__:op_flow_put`: datapath, operation, flow. Like its sisters it means an operation of any datapath.
#[inline(always)]
pub fn op_flow_put<D: ?Sized, P>(dpif: &D, put: &P) {
    probe::probe!(dpif_netlink_operate__, op_flow_put, at(dpif), at(put), at(put), 0);
}

/// `dpif_netlink_operate__:op_flow_del`: datapath, operation, flow.
#[inline(always)]
pub fn op_flow_del<D: ?Sized, F>(dpif: &D, flow: &F) {
    probe::probe!(dpif_netlink_operate__, op_flow_del, at(dpif), at(flow), at(flow), 0);
}

/// `dpif_netlink_operate__:op_flow_get`: datapath, operation, flow.
#[inline(always)]
pub fn op_flow_get<D: ?Sized, F>(dpif: &D, flow: &F) {
    probe::probe!(dpif_netlink_operate__, op_flow_get, at(dpif), at(flow), at(flow), 0);
}

/// `dpif_netlink_operate__:op_flow_execute`: datapath, operation, packet and its length.
#[inline(always)]
pub fn op_flow_execute<D: ?Sized, E>(dpif: &D, execute: &E, packet: &[u8]) {
    probe::probe!(dpif_netlink_operate__, op_flow_execute, at(dpif), at(execute), at(packet), packet.len(), 0);
}

/// `udpif_revalidator:start_dump`: engine, flows.
#[inline(always)]
pub fn start_dump<U>(udpif: &U, flows: usize) {
    probe::probe!(udpif_revalidator, start_dump, at(udpif), flows);
}

/// `udpif_revalidator:sweep_done`: engine, flows when the round began, milliseconds from the beginning of one round to the
/// next at most.
#[inline(always)]
pub fn sweep_done<U>(udpif: &U, flows: usize, interval_ms: u64) {
    probe::probe!(udpif_revalidator, sweep_done, at(udpif), flows, interval_ms);
}

/// `revalidate_ukey__:entry`: engine, ukey, TCP flags; the other three are ours to find out, and 0.
#[inline(always)]
pub fn revalidate_ukey_entry<U, K>(udpif: &U, ukey: &K, tcp_flags: u16) {
    probe::probe!(revalidate_ukey__, entry, at(udpif), at(ukey), tcp_flags, 0, 0, 0);
}

/// `revalidate_ukey__:exit`: engine, ukey, result (0: keep, 1: delete, 2: modify).
#[inline(always)]
pub fn revalidate_ukey_exit<U, K>(udpif: &U, ukey: &K, result: u32) {
    probe::probe!(revalidate_ukey__, exit, at(udpif), at(ukey), result);
}

/// `revalidate:flow_result`: engine, ukey, result (as above), reason of a deletion (`enum flow_del_reason`).
#[inline(always)]
pub fn flow_result<U, K>(udpif: &U, ukey: &K, result: u32, reason: u32) {
    probe::probe!(revalidate, flow_result, at(udpif), at(ukey), result, reason);
}

/// `revalidator_sweep__:flow_sweep_result`: as [`flow_result`].
#[inline(always)]
pub fn flow_sweep_result<U, K>(udpif: &U, ukey: &K, result: u32, reason: u32) {
    probe::probe!(revalidator_sweep__, flow_sweep_result, at(udpif), at(ukey), result, reason);
}
