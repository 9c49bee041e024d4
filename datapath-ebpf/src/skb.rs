//! The packet as the TC hook shows it.
//!
//! Loads go straight to the linear part; bytes behind it come through a helper. Stores and checksums go through helpers, which
//! unshare the buffer and know how its checksum is offloaded.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skb_vlan_pop,
    bpf_skb_vlan_push,
};
use datapath_common::Be16;
use datapath_common::key::{VLAN_PRESENT, Vlan};
use datapath_common::packet::{Balanced, Edit, EditFailed, L4Sum, PacketEdit, PacketRead};

use crate::loads::{loads, read_by_load};

/// A socket buffer in a TC program.
#[derive(Clone, Copy)]
pub struct Skb(pub *mut __sk_buff);

loads!(Skb, __sk_buff, bpf_skb_load_bytes);

impl Skb {
    #[inline(always)]
    fn store(self, offset: u32, bytes: *const u8, len: u32, flags: u64) -> Edit {
        // SAFETY: `bytes` points to `len` bytes of the caller.
        check(unsafe { bpf_skb_store_bytes(self.0.cast(), offset, bytes.cast(), len, flags) } as i64)
    }
}

#[inline(always)]
fn check(result: i64) -> Edit {
    if result == 0 { Ok(()) } else { Err(EditFailed) }
}

#[inline(always)]
fn flags(balanced: Balanced) -> u64 {
    match balanced {
        Balanced::Yes => 0,
        Balanced::No => u64::from(BPF_F_RECOMPUTE_CSUM),
    }
}

impl PacketRead for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn accelerated_vlan(&self) -> Vlan {
        // SAFETY: the context is the kernel's.
        unsafe {
            if (*self.0).vlan_present == 0 {
                return Vlan { tpid: Be16::ZERO, tci: Be16::ZERO };
            }
            Vlan { tpid: Be16::from_raw((*self.0).vlan_proto as u16), tci: Be16::new((*self.0).vlan_tci as u16) }
        }
    }

    #[inline(always)]
    fn has_accelerated_vlan(&self) -> bool {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).vlan_present != 0 }
    }

    read_by_load!(or_zero);
}

impl PacketEdit for Skb {
    #[inline(always)]
    fn store_u8(&mut self, offset: u32, value: u8, balanced: Balanced) -> Edit {
        self.store(offset, &value, 1, flags(balanced))
    }
    #[inline(always)]
    fn store_u16(&mut self, offset: u32, value: u16, balanced: Balanced) -> Edit {
        self.store(offset, core::ptr::from_ref(&value).cast(), 2, flags(balanced))
    }
    #[inline(always)]
    fn store_u32(&mut self, offset: u32, value: u32, balanced: Balanced) -> Edit {
        self.store(offset, core::ptr::from_ref(&value).cast(), 4, flags(balanced))
    }
    #[inline(always)]
    fn store_6(&mut self, offset: u32, value: u64) -> Edit {
        self.store(offset, core::ptr::from_ref(&value).cast(), 6, 0)
    }
    #[inline(always)]
    fn store_u64(&mut self, offset: u32, value: u64, balanced: Balanced) -> Edit {
        self.store(offset, core::ptr::from_ref(&value).cast(), 8, flags(balanced))
    }

    #[inline(always)]
    fn l3_checksum(&mut self, offset: u32, from: u32, to: u32, bytes: u32) -> Edit {
        // SAFETY: a helper call on the kernel's context.
        check(unsafe { bpf_l3_csum_replace(self.0.cast(), offset, from.into(), to.into(), bytes.into()) } as i64)
    }

    #[inline(always)]
    fn l4_checksum(&mut self, offset: u32, from: u32, to: u32, bytes: u32, sum: L4Sum, udp: bool) -> Edit {
        let mut flags = u64::from(bytes);
        if sum == L4Sum::PseudoHeader {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if udp {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        // SAFETY: a helper call on the kernel's context.
        check(unsafe { bpf_l4_csum_replace(self.0.cast(), offset, from.into(), to.into(), flags) } as i64)
    }

    #[inline(always)]
    fn push_vlan(&mut self, vlan: Vlan) -> Edit {
        let tci = vlan.tci.get() & !VLAN_PRESENT;
        // SAFETY: a helper call on the kernel's context.
        check(unsafe { bpf_skb_vlan_push(self.0.cast(), vlan.tpid.0, tci) } as i64)
    }

    #[inline(always)]
    fn pop_vlan(&mut self) -> Edit {
        // SAFETY: a helper call on the kernel's context.
        check(unsafe { bpf_skb_vlan_pop(self.0.cast()) } as i64)
    }

    #[inline(always)]
    fn set_metadata(&mut self, priority: u32, mark: u32) {
        // SAFETY: both fields are writable in a TC program.
        unsafe {
            (*self.0).priority = priority;
            (*self.0).mark = mark;
        }
    }
}

/// Length behind the Ethernet header and an outer tag, as the module compares it with the MTU (`packet_length`).
#[inline(always)]
pub fn payload_len(skb: Skb) -> u32 {
    // SAFETY: the context is the kernel's.
    let (len, tagged) = unsafe {
        let protocol = (*skb.0).protocol as u16;
        let in_bytes = (*skb.0).vlan_present == 0 && (protocol == 0x8100u16.to_be() || protocol == 0x88a8u16.to_be());
        ((*skb.0).len, in_bytes)
    };
    let header = if tagged { 18 } else { 14 };
    len.saturating_sub(header)
}
