//! The datapath in the kernel: `ovs_dp_process_packet` as an eBPF program.
//!
//! A frame that arrives at a port meets the [port entry](../port_entry/index.html), which knows its datapath port and tail-calls
//! the program of the hook. That extracts the key ([`skb`] shows it the bytes), finds the flow's slot ([`lookup`]), counts
//! ([`stats`]), and runs the slot's operations ([`interpret`]); without a flow the packet goes up a ring ([`upcall`]).
//! In front of it, where a port has it, stands the XDP hook, which finishes frames that need little ([`finish`]).
//! What a header or an action *means* is not here but in `datapath_common`, where userspace runs the same code.
//!
//! The shape of the code is the verifier's. What changes from packet to packet lies in map memory ([`maps::Scratch`]), of
//! which the verifier knows nothing, so that its states converge; walks whose length the packet or a map chooses are
//! `bpf_loop`s, or short loops in functions of their own; pointers into the packet are taken anew for every load.
#![no_std]
#![feature(asm_experimental_arch)]
// The context pointer is the kernel's from the program's entry on, and the verifier checks every use of it.
#![allow(clippy::not_unsafe_ptr_arg_deref)]
// Field by field through raw pointers: a reference to a whole map element would claim what other CPUs don't keep.
#![allow(clippy::deref_addrof)]

pub mod blank;
pub mod debug;
pub mod finish;
pub mod flood;
pub mod head;
pub mod interpret;
mod loads;
pub mod lookup;
pub mod maps;
pub mod skb;
pub mod special;
pub mod stats;
pub mod upcall;
pub mod xdp;

/// Makes the compiler forget what it knows of a value, so that a bounds check that follows stays where the verifier sees it.
/// (An empty template would give two line records one address, which the kernel refuses.)
#[inline(always)]
pub fn opaque(value: u32) -> u64 {
    let mut value = u64::from(value);
    // SAFETY: moves a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
    value
}

/// Copies words one by one: the compiler's `memcpy` would be a call to a loop over bytes.
///
/// # Safety
/// `from` and `to` point to `N` words.
#[inline(always)]
pub unsafe fn copy_words<const N: usize>(from: *const u64, to: *mut u64) {
    let mut i = 0;
    while i < N {
        // SAFETY: the caller's promise.
        unsafe { to.add(i).write_volatile(from.add(i).read()) };
        i += 1;
    }
}

/// Clears words one by one, for the same reason.
///
/// # Safety
/// `at` points to `N` words.
#[inline(always)]
pub unsafe fn clear_words<const N: usize>(at: *mut u64) {
    let mut i = 0;
    while i < N {
        // SAFETY: the caller's promise.
        unsafe { at.add(i).write_volatile(0) };
        i += 1;
    }
}
