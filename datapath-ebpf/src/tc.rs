//! The datapath's programs of the TC hook.
#![no_std]
#![no_main]
// The attribute macro wraps each program in a function without documentation.
#![allow(missing_docs)]

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use datapath_ebpf::interpret;

/// The datapath: a frame arrived at port `skb->cb[0]`.
#[classifier]
pub(crate) fn sluice_tc(ctx: TcContext) -> i32 {
    interpret::receive(ctx.skb.skb)
}

/// Userspace runs a program on a packet.
#[classifier]
pub(crate) fn sluice_execute(ctx: TcContext) -> i32 {
    interpret::execute(ctx.skb.skb)
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier would refuse a program in which this can be reached.
    unsafe { core::hint::unreachable_unchecked() }
}
