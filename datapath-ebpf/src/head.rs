//! The first bytes of a packet, known to be there and in one piece: loads and stores at constant offsets, without a look at the
//! end for each.

use datapath_common::extract::HEAD;
use datapath_common::key::Vlan;
use datapath_common::packet::{PacketHead, PacketRead};

use crate::loads::read_by_load;

/// The first bytes of a packet.
#[derive(Clone, Copy)]
pub struct Head<P> {
    at: *const u8,
    packet: P,
}

impl<P> Head<P> {
    /// The bytes from `at` on, which the caller has compared with the end.
    #[inline(always)]
    pub fn new(at: *const u8, packet: P) -> Self {
        Self { at, packet }
    }

    #[inline(always)]
    fn load<T: Copy>(&self, offset: u32) -> Option<T> {
        if offset + size_of::<T>() as u32 > HEAD {
            return None;
        }
        // SAFETY: in front of the end, which was compared; unaligned as in `loads!`.
        Some(unsafe { self.at.add(offset as usize).cast::<T>().read_volatile() })
    }

    /// Changes the packet. The kernel sees to it, before a program that does this begins, that nobody else has these bytes.
    #[inline(always)]
    fn put<T: Copy>(&self, offset: u32, value: T) {
        if offset + size_of::<T>() as u32 <= HEAD {
            // SAFETY: as in `load`.
            unsafe { self.at.cast_mut().add(offset as usize).cast::<T>().write_volatile(value) };
        }
    }
}

impl<P: PacketRead> PacketRead for Head<P> {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.packet.len()
    }
    #[inline(always)]
    fn accelerated_vlan(&self) -> Vlan {
        self.packet.accelerated_vlan()
    }
    #[inline(always)]
    fn has_accelerated_vlan(&self) -> bool {
        self.packet.has_accelerated_vlan()
    }
    read_by_load!();
    #[inline(always)]
    fn is_ufo(&self) -> bool {
        self.packet.is_ufo()
    }
}

impl<P: PacketRead> PacketHead for Head<P> {
    #[inline(always)]
    fn put_u8(&mut self, offset: u32, value: u8) {
        self.put(offset, value);
    }
    #[inline(always)]
    fn put_u16(&mut self, offset: u32, value: u16) {
        self.put(offset, value);
    }
    #[inline(always)]
    fn put_u32(&mut self, offset: u32, value: u32) {
        self.put(offset, value);
    }
    #[inline(always)]
    fn put_u64(&mut self, offset: u32, value: u64) {
        self.put(offset, value);
    }
}
