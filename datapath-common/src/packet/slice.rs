//! A packet in memory.

use std::vec::Vec;

use super::{Balanced, Edit, EditFailed, L4Sum, PacketEdit, PacketHead, PacketRead};
use crate::be::Be16;
use crate::key::{VLAN_PRESENT, Vlan};

/// A frame of somebody else's bytes, its VLAN tags among them.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a>(pub &'a [u8]);

impl Frame<'_> {
    #[inline]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.get(offset as usize..)?.first_chunk().copied()
    }
}

impl PacketRead for Frame<'_> {
    #[inline]
    fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
    #[inline]
    fn accelerated_vlan(&self) -> Vlan {
        Vlan::default()
    }
    #[inline]
    fn u8(&self, offset: u32) -> Option<u8> {
        self.0.get(offset as usize).copied()
    }
    #[inline]
    fn u16(&self, offset: u32) -> Option<u16> {
        self.load(offset).map(u16::from_ne_bytes)
    }
    #[inline]
    fn u32(&self, offset: u32) -> Option<u32> {
        self.load(offset).map(u32::from_ne_bytes)
    }
    #[inline]
    fn u64(&self, offset: u32) -> Option<u64> {
        self.load(offset).map(u64::from_ne_bytes)
    }
}

/// A packet in a growable buffer, with the metadata that a kernel buffer has beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlicePacket {
    /// The frame from its Ethernet header on.
    pub bytes: Vec<u8>,
    /// Tag that was taken off the frame, its tci as on the wire; zero where there is none.
    pub vlan: Vlan,
    /// The layer-4 checksum holds only the pseudo-header's sum (`CHECKSUM_PARTIAL`).
    pub partial_checksum: bool,
}

impl SlicePacket {
    /// A packet of these bytes, its VLAN tags in the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), ..Self::default() }
    }

    /// Puts an accelerated tag back into the bytes.
    pub fn restore_vlan(&mut self) {
        if !self.vlan.tpid.is_zero() {
            let vlan = core::mem::take(&mut self.vlan);
            self.insert_tag(vlan);
        }
    }

    fn store(&mut self, offset: u32, bytes: &[u8]) -> Edit {
        let start = offset as usize;
        let end = start.checked_add(bytes.len()).ok_or(EditFailed)?;
        self.bytes.get_mut(start..end).ok_or(EditFailed)?.copy_from_slice(bytes);
        Ok(())
    }

    fn begins_with_tag(&self) -> bool {
        matches!(self.bytes.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]))
    }

    /// Takes the tag at the front of the bytes off; fails where it is cut off (`__skb_vlan_pop`).
    fn take_tag(&mut self) -> Result<Vlan, EditFailed> {
        let (tpid, tci) = (self.u16(12).ok_or(EditFailed)?, self.u16(14).ok_or(EditFailed)?);
        if self.bytes.len() < 18 {
            return Err(EditFailed);
        }
        self.bytes.drain(12..16);
        Ok(Vlan { tpid: Be16::from_raw(tpid), tci: Be16::from_raw(tci) })
    }

    fn insert_tag(&mut self, vlan: Vlan) {
        if self.bytes.len() >= 12 {
            let mut tag = [0; 4];
            tag[..2].copy_from_slice(&vlan.tpid.get().to_be_bytes());
            tag[2..].copy_from_slice(&vlan.tci.get().to_be_bytes());
            self.bytes.splice(12..12, tag);
        }
    }
}

impl PacketRead for SlicePacket {
    fn len(&self) -> u32 {
        Frame(&self.bytes).len()
    }
    fn accelerated_vlan(&self) -> Vlan {
        self.vlan
    }
    fn u8(&self, offset: u32) -> Option<u8> {
        Frame(&self.bytes).u8(offset)
    }
    fn u16(&self, offset: u32) -> Option<u16> {
        Frame(&self.bytes).u16(offset)
    }
    fn u32(&self, offset: u32) -> Option<u32> {
        Frame(&self.bytes).u32(offset)
    }
    fn u64(&self, offset: u32) -> Option<u64> {
        Frame(&self.bytes).u64(offset)
    }
}

impl PacketEdit for SlicePacket {
    fn store_u8(&mut self, offset: u32, value: u8, _: Balanced) -> Edit {
        self.store(offset, &[value])
    }
    fn store_u16(&mut self, offset: u32, value: u16, _: Balanced) -> Edit {
        self.store(offset, &value.to_ne_bytes())
    }
    fn store_u32(&mut self, offset: u32, value: u32, _: Balanced) -> Edit {
        self.store(offset, &value.to_ne_bytes())
    }
    fn store_6(&mut self, offset: u32, value: u64) -> Edit {
        self.store(offset, &value.to_ne_bytes()[..6])
    }
    fn store_u64(&mut self, offset: u32, value: u64, _: Balanced) -> Edit {
        self.store(offset, &value.to_ne_bytes())
    }

    fn l3_checksum(&mut self, offset: u32, from: u32, to: u32, bytes: u32) -> Edit {
        let sum = self.u16(offset).ok_or(EditFailed)?;
        self.store(offset, &replace(sum, from, to, bytes, bytes == 4).to_ne_bytes())
    }

    fn l4_checksum(&mut self, offset: u32, from: u32, to: u32, bytes: u32, sum: L4Sum, udp: bool) -> Edit {
        let old = self.u16(offset).ok_or(EditFailed)?;
        if udp && old == 0 && !self.partial_checksum {
            return Ok(());
        }
        if self.partial_checksum {
            // The field holds the pseudo-header's sum, not its complement, and the device adds the rest.
            return match sum {
                L4Sum::Covered => Ok(()),
                L4Sum::PseudoHeader => self.store(offset, &(!replace(!old, from, to, bytes, false)).to_ne_bytes()),
            };
        }
        let new = replace(old, from, to, bytes, true);
        let new = if udp && new == 0 { 0xffff } else { new };
        self.store(offset, &new.to_ne_bytes())
    }

    fn push_vlan(&mut self, vlan: Vlan) -> Edit {
        if self.bytes.len() < 14 {
            return Err(EditFailed);
        }
        // As `skb_vlan_push`: the tag that was accelerated goes into the bytes, the new one is accelerated.
        self.restore_vlan();
        self.vlan = Vlan { tpid: vlan.tpid, tci: vlan.tci & !Be16::new(VLAN_PRESENT) };
        Ok(())
    }

    fn pop_vlan(&mut self) -> Edit {
        // As `skb_vlan_pop`: the tag beside the bytes goes first; a tag that is outermost then is taken off the bytes. What
        // is beside the bytes counts in no length.
        if self.vlan.tpid.is_zero() {
            if !self.begins_with_tag() {
                return Ok(());
            }
            self.take_tag()?;
        }
        self.vlan = if self.begins_with_tag() { self.take_tag()? } else { Vlan::default() };
        Ok(())
    }

    // The key carries both in the engines that use this packet.
    fn set_metadata(&mut self, _priority: u32, _mark: u32) {}
}

// What is behind the end is not written, as the trait says.
impl PacketHead for SlicePacket {
    fn put_u8(&mut self, offset: u32, value: u8) {
        let _ = self.store(offset, &[value]);
    }
    fn put_u16(&mut self, offset: u32, value: u16) {
        let _ = self.store(offset, &value.to_ne_bytes());
    }
    fn put_u32(&mut self, offset: u32, value: u32) {
        let _ = self.store(offset, &value.to_ne_bytes());
    }
    fn put_u64(&mut self, offset: u32, value: u64) {
        let _ = self.store(offset, &value.to_ne_bytes());
    }
}

/// RFC 1624: the checksum after a covered field changed. All values in memory order; the one's complement sum doesn't mind.
/// Zero has two representations: as in `csum_replace4`, and unlike `csum_replace2`, a `wide` result is never 0xffff.
fn replace(sum: u16, from: u32, to: u32, bytes: u32, wide: bool) -> u16 {
    let halves = |v: u32| if bytes == 2 { v & 0xffff } else { (v & 0xffff) + (v >> 16) };
    let complement = |v: u32| if bytes == 2 { !v & 0xffff } else { (!v & 0xffff) + (!v >> 16) };
    let mut s = u32::from(!sum) + complement(from) + halves(to);
    if wide {
        // The upper half of the 32-bit complement.
        s += 0xffff;
    }
    while s >> 16 != 0 {
        s = (s & 0xffff) + (s >> 16);
    }
    !(s as u16)
}
