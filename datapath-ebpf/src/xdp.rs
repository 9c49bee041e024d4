//! The packet as the XDP hook shows it: a frame in one piece, its bytes in place.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_xdp_load_bytes;
use datapath_common::Be16;
use datapath_common::extract::HEAD;
use datapath_common::key::Vlan;
use datapath_common::packet::PacketRead;

use crate::head::Head;

/// A frame in an XDP program.
#[derive(Clone, Copy)]
pub struct Xdp(pub *mut xdp_md);

/// Offsets up to here are loaded directly; headers that lie deeper take the helper.
const DIRECT: u32 = 2047;

impl Xdp {
    /// The packet, if it has its first [`HEAD`] bytes.
    #[inline(always)]
    pub fn head(self) -> Option<Head<Self>> {
        // SAFETY: the context is the kernel's; the pointer is compared with the end.
        unsafe {
            let at = (*self.0).data as usize as *const u8;
            let end = (*self.0).data_end as usize as *const u8;
            if at.add(HEAD as usize) <= end { Some(Head::new(at, self)) } else { None }
        }
    }

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

    /// As [`Xdp::load`], 0 behind the end.
    #[inline(always)]
    fn load_or_zero<T: Copy>(self, offset: u32) -> T {
        if let Some(value) = self.load_direct(offset) {
            return value;
        }
        let mut value = 0u64;
        load_slow(self.0, offset, size_of::<T>() as u32, &mut value);
        // SAFETY: `T` is an integer of at most eight bytes.
        unsafe { *core::ptr::from_ref(&value).cast::<T>() }
    }

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
}

/// Up to eight bytes through the helper, into the first bytes of `value`, which stays zero where it fails. 0 = done.
#[inline(never)]
fn load_slow(xdp: *mut xdp_md, offset: u32, size: u32, value: &mut u64) -> i64 {
    // SAFETY: the context is the kernel's; `value` has eight bytes.
    unsafe {
        // Constant sizes: the verifier then knows what the helper writes.
        match size {
            1 => bpf_xdp_load_bytes(xdp, offset, core::ptr::from_mut(value).cast(), 1),
            2 => bpf_xdp_load_bytes(xdp, offset, core::ptr::from_mut(value).cast(), 2),
            4 => bpf_xdp_load_bytes(xdp, offset, core::ptr::from_mut(value).cast(), 4),
            8 => bpf_xdp_load_bytes(xdp, offset, core::ptr::from_mut(value).cast(), 8),
            _ => -1,
        }
    }
}

impl PacketRead for Xdp {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).data_end.wrapping_sub((*self.0).data) }
    }
    /// None: where a device takes tags off frames, the port has told it not to.
    #[inline(always)]
    fn accelerated_vlan(&self) -> Vlan {
        Vlan { tpid: Be16::ZERO, tci: Be16::ZERO }
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
