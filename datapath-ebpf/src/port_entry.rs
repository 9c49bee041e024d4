//! What is attached to a port's device: it knows the port's number and calls the datapath's program of the moment.
//!
//! One copy is loaded for each port. The datapath's programs are behind an array, so replacing them is one write for all ports.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// The attribute macro wraps each program in a function without documentation.
#![allow(missing_docs)]

use aya_ebpf::bindings::{TC_ACT_SHOT, xdp_action};
use aya_ebpf::btf_maps::{PerCpuArray, ProgramArray};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use datapath_common::blanks::{Direct as Map, PORT, SHARED};
use datapath_common::maps::{Lane, PROGRAM_EXECUTE, PROGRAM_TC, PROGRAM_XDP, XdpFrame};

use crate::blank::Direct;

// The library has programs and maps of its own.
#[path = "blank.rs"]
#[allow(dead_code, unreachable_pub)]
mod blank;

/// The programs of the moment.
#[btf_map]
static PROGRAMS: ProgramArray<8> = ProgramArray::new();

/// Those of the XDP hook.
#[btf_map]
static XDP_PROGRAMS: ProgramArray<2> = ProgramArray::new();

/// Where the XDP program finds the port, for its context has no room for it: in what the CPU writes of its own,
// SAFETY: its elements are lanes.
static LANE: Direct<Lane, { Map::Lane as u32 }> = unsafe { Direct::new() };
/// or, where CPUs share that, here.
#[btf_map]
static XDP_PORT: PerCpuArray<XdpFrame, 1> = PerCpuArray::new();

/// Entry of a port.
#[classifier]
pub(crate) fn sluice_port(ctx: TcContext) -> i32 {
    // SAFETY: the context is the kernel's. A tail call that fails falls through.
    unsafe {
        (*ctx.skb.skb).cb[0] = blank::value::<PORT>() as u32;
        (*ctx.skb.skb).cb[1] = 0;
        PROGRAMS.tail_call(&ctx, PROGRAM_TC);
    }
    TC_ACT_SHOT
}

/// Entry of a port, in the XDP hook. Without a program behind it, everything goes on to the TC hook.
#[xdp]
pub(crate) fn sluice_xdp_port(ctx: XdpContext) -> u32 {
    if let Some(frame) = frame() {
        // SAFETY: memory of this CPU. A tail call that fails falls through.
        unsafe {
            // Its port, and behind that a zero, in one store.
            frame.cast::<u64>().write(blank::value::<PORT>());
            XDP_PROGRAMS.tail_call(&ctx, PROGRAM_XDP);
        }
    }
    xdp_action::XDP_PASS
}

/// Where the program finds the port.
#[inline(always)]
fn frame() -> Option<*mut XdpFrame> {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u32;
    if blank::value::<SHARED>() != 0 {
        return XDP_PORT.get_ptr_mut(0);
    }
    // SAFETY: a field of the map's element.
    Some(unsafe { &raw mut (*LANE.at(cpu)).frame })
}

/// Entry of the execute device.
#[classifier]
pub(crate) fn sluice_execute_entry(ctx: TcContext) -> i32 {
    // SAFETY: a tail call that fails falls through.
    unsafe { PROGRAMS.tail_call(&ctx, PROGRAM_EXECUTE) };
    TC_ACT_SHOT
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
