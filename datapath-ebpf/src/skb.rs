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
use datapath_common::extract::HEAD;
use datapath_common::key::{VLAN_PRESENT, Vlan};
use datapath_common::packet::{Balanced, Edit, EditFailed, L4Sum, PacketEdit, PacketRead};

use crate::head::Head;

/// A socket buffer in a TC program.
#[derive(Clone, Copy)]
pub struct Skb(pub *mut __sk_buff);

/// Offsets up to here are loaded directly; headers that lie deeper take the helper.
const DIRECT: u32 = 2047;

impl Skb {
    /// The packet, if its first [`HEAD`] bytes are linear.
    #[inline(always)]
    pub fn head(self) -> Option<Head<Self>> {
        // SAFETY: the context is the kernel's; the pointer is compared with the end.
        unsafe {
            let at = (*self.0).data as usize as *const u8;
            let end = (*self.0).data_end as usize as *const u8;
            if at.add(HEAD as usize) <= end { Some(Head::new(at, self)) } else { None }
        }
    }

    /// Loads a `T` from packet bytes.
    #[inline(always)]
    fn load<T: Copy>(self, offset: u32) -> Option<T> {
        if let Some(value) = self.load_direct(offset) {
            return Some(value);
        }
        let mut value = 0u64;
        if load_slow(self.0, offset, size_of::<T>() as u32, &mut value) == 0 {
            // SAFETY: `T` is an integer of at most eight bytes.
            return Some(unsafe { *core::ptr::from_ref(&value).cast::<T>() });
        }
        None
    }

    /// As [`Skb::load`], 0 behind the end: no branch for what the caller has excluded.
    #[inline(always)]
    fn load_or_zero<T: Copy>(self, offset: u32) -> T {
        if let Some(value) = self.load_direct(offset) {
            return value;
        }
        let mut value = 0u64;
        // The helper clears what it can't fill.
        load_slow(self.0, offset, size_of::<T>() as u32, &mut value);
        // SAFETY: `T` is an integer of at most eight bytes.
        unsafe { *core::ptr::from_ref(&value).cast::<T>() }
    }

    /// As [`Skb::load`], from the linear part alone.
    #[inline(always)]
    fn load_direct<T: Copy>(self, offset: u32) -> Option<T> {
        if offset > DIRECT {
            return None;
        }
        // SAFETY: the context is the kernel's; the pointer is compared with the end before it is read, and unaligned reads
        // are what the architectures that the verifier lets do this do.
        unsafe {
            let at = ((*self.0).data as usize + offset as usize) as *const u8;
            let end = (*self.0).data_end as usize as *const u8;
            if at.add(size_of::<T>()) <= end { Some(at.cast::<T>().read_volatile()) } else { None }
        }
    }

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

/// Up to eight bytes through the helper, into the first bytes of `value`. 0 = done.
#[inline(never)]
fn load_slow(skb: *mut __sk_buff, offset: u32, size: u32, value: &mut u64) -> i64 {
    // SAFETY: the context is the kernel's; `value` has eight bytes.
    unsafe {
        if size > 8 || size == 0 {
            return -1;
        }
        // Constant sizes: the verifier then knows what the helper writes.
        match size {
            1 => bpf_skb_load_bytes(skb.cast(), offset, core::ptr::from_mut(value).cast(), 1) as i64,
            2 => bpf_skb_load_bytes(skb.cast(), offset, core::ptr::from_mut(value).cast(), 2) as i64,
            4 => bpf_skb_load_bytes(skb.cast(), offset, core::ptr::from_mut(value).cast(), 4) as i64,
            _ => bpf_skb_load_bytes(skb.cast(), offset, core::ptr::from_mut(value).cast(), 8) as i64,
        }
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
    fn u8(&self, offset: u32) -> Option<u8> {
        self.load(offset)
    }
    #[inline(always)]
    fn u16(&self, offset: u32) -> Option<u16> {
        self.load(offset)
    }
    #[inline(always)]
    fn u32(&self, offset: u32) -> Option<u32> {
        self.load(offset)
    }
    #[inline(always)]
    fn u64(&self, offset: u32) -> Option<u64> {
        self.load(offset)
    }
    #[inline(always)]
    fn u16_or_zero(&self, offset: u32) -> u16 {
        self.load_or_zero(offset)
    }
    #[inline(always)]
    fn u32_or_zero(&self, offset: u32) -> u32 {
        self.load_or_zero(offset)
    }
    #[inline(always)]
    fn u64_or_zero(&self, offset: u32) -> u64 {
        self.load_or_zero(offset)
    }
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
