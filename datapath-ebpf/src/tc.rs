//! The datapath's programs: those of the TC hook, and the one of the XDP hook.
#![no_std]
#![no_main]
// The attribute macro wraps each program in a function without documentation.
#![allow(missing_docs)]

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use datapath_ebpf::{finish, interpret};

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

/// The datapath's XDP hook: a frame arrived at the port that `XDP_PORT` names.
#[xdp]
pub(crate) fn sluice_xdp(ctx: XdpContext) -> u32 {
    finish::receive(ctx.ctx)
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
