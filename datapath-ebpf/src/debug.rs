//! What the datapath says of single packets, for whoever hunts a fault in it.
//!
//! The global [`DEBUG`] is set at load. Where it is 0 the verifier finds the calls dead and leaves nothing of them.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;

use crate::maps::Scratch;
use crate::stats::global;

/// 1: say what happens to each packet.
#[unsafe(no_mangle)]
pub static DEBUG: u32 = 0;

/// A lookup found flow slot `s.slot`, or none.
#[inline(always)]
pub fn lookup(skb: *mut __sk_buff, s: &Scratch, found: bool) {
    if global(&DEBUG) != 0 {
        say_lookup(skb, s.in_port, if found { s.slot } else { u32::MAX });
    }
}

/// The packet was dropped.
#[inline(always)]
pub fn dropped(skb: *mut __sk_buff, s: &Scratch, reason: u32) {
    if global(&DEBUG) != 0 {
        say_dropped(skb, s.in_port, reason);
    }
}

#[inline(never)]
fn say_lookup(skb: *mut __sk_buff, in_port: u32, slot: u32) -> i64 {
    let ctx = TcContext::new(skb);
    if slot == u32::MAX {
        debug!(&ctx, "port {}, {} bytes: miss", in_port, ctx.len());
    } else {
        debug!(&ctx, "port {}, {} bytes: flow in slot {}", in_port, ctx.len(), slot);
    }
    0
}

#[inline(never)]
fn say_dropped(skb: *mut __sk_buff, in_port: u32, reason: u32) -> i64 {
    let ctx = TcContext::new(skb);
    debug!(&ctx, "port {}, {} bytes: dropped, reason {}", in_port, ctx.len(), reason);
    0
}
