//! The datapath's programs: those of the TC hook and of the XDP hook, and the specialised ones in front of them.
#![no_std]
#![no_main]
// The attribute macro wraps each program in a function without documentation.
#![allow(missing_docs)]

use aya_ebpf::bindings::{TC_ACT_SHOT, xdp_action};
use aya_ebpf::btf_maps::ProgramArray;
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use datapath_common::maps::{PROGRAM_TC_GENERAL, PROGRAM_XDP_GENERAL};
use datapath_ebpf::{finish, interpret, special};

/// The programs of the TC hook.
#[btf_map]
static PROGRAMS: ProgramArray<8> = ProgramArray::new();

/// Those of the XDP hook.
#[btf_map]
static XDP_PROGRAMS: ProgramArray<2> = ProgramArray::new();

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

/// The datapath's XDP hook: a frame arrived.
#[xdp]
pub(crate) fn sluice_xdp(ctx: XdpContext) -> u32 {
    finish::receive(ctx.ctx)
}

/// The specialised program in front of `sluice_tc`.
#[classifier]
pub(crate) fn sluice_tc_s(ctx: TcContext) -> i32 {
    if let Some(verdict) = special::tc(ctx.skb.skb) {
        return verdict;
    }
    // SAFETY: the context is the kernel's. A tail call that fails falls through.
    unsafe { PROGRAMS.tail_call(&ctx, PROGRAM_TC_GENERAL) };
    TC_ACT_SHOT
}

/// The specialised program in front of `sluice_xdp`.
#[xdp]
pub(crate) fn sluice_xdp_s(ctx: XdpContext) -> u32 {
    if let Some(verdict) = special::xdp(ctx.ctx) {
        return verdict;
    }
    // SAFETY: the context is the kernel's. A tail call that fails falls through.
    unsafe { XDP_PROGRAMS.tail_call(&ctx, PROGRAM_XDP_GENERAL) };
    xdp_action::XDP_PASS
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
