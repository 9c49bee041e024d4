//! How the shared code reads and writes packet bytes.
//!
//! [`PacketRead`] and [`PacketEdit`] are implemented by the TC program (direct packet access with helper fall-backs) and by
//! `SlicePacket` and `Frame` (feature `user`) for userspace. Offsets count from the first byte of the Ethernet
//! header. Multi-byte loads return the bytes in memory order, ready for [`Be16::from_raw`](crate::Be16::from_raw).

use crate::key::Vlan;

/// Read access to a packet. A load beyond the end is `None`, never an error of its own.
pub trait PacketRead {
    /// Length in bytes, without an accelerated VLAN tag.
    fn len(&self) -> u32;
    /// Whether the packet has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The VLAN tag that the device took off the frame (`skb_vlan_tag_get`), its tci as on the wire; a zero `tpid` says that
    /// there is none.
    fn accelerated_vlan(&self) -> Vlan;
    /// Whether there is one.
    #[inline(always)]
    fn has_accelerated_vlan(&self) -> bool {
        !self.accelerated_vlan().tpid.is_zero()
    }
    /// One byte.
    fn u8(&self, offset: u32) -> Option<u8>;
    /// Two bytes, memory order.
    fn u16(&self, offset: u32) -> Option<u16>;
    /// Four bytes, memory order.
    fn u32(&self, offset: u32) -> Option<u32>;
    /// Eight bytes, memory order.
    fn u64(&self, offset: u32) -> Option<u64>;
    /// One byte; 0 beyond the end.
    #[inline(always)]
    fn u8_or_zero(&self, offset: u32) -> u8 {
        self.u8(offset).unwrap_or(0)
    }
    /// Two bytes, memory order; 0 beyond the end. For whoever has compared with the length already.
    #[inline(always)]
    fn u16_or_zero(&self, offset: u32) -> u16 {
        self.u16(offset).unwrap_or(0)
    }
    /// Four bytes likewise.
    #[inline(always)]
    fn u32_or_zero(&self, offset: u32) -> u32 {
        self.u32(offset).unwrap_or(0)
    }
    /// Eight bytes likewise.
    #[inline(always)]
    fn u64_or_zero(&self, offset: u32) -> u64 {
        self.u64(offset).unwrap_or(0)
    }
    /// Whether the packet is one that hardware or the stack still has to cut into UDP fragments (`SKB_GSO_UDP`).
    fn is_ufo(&self) -> bool {
        false
    }
}

/// The edit did not succeed; the packet is to be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EditFailed;

/// The result of an edit.
pub type Edit = Result<(), EditFailed>;

/// Whether some checksum in the packet makes up for a change, so that the sum over the whole packet stays (of interest where
/// the device has summed up the packet, `CHECKSUM_COMPLETE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Balanced {
    /// A checksum changes with the bytes, or the device's sum doesn't cover them (Ethernet header).
    Yes,
    /// Nothing makes up for it, as in IPv6's header.
    No,
}

/// How a layer-4 checksum relates to a changed field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum L4Sum {
    /// The field is covered as payload or header (ports, ICMP type).
    Covered,
    /// The field is part of the pseudo-header (addresses): a partial checksum changes too.
    PseudoHeader,
}

/// Write access to a packet, shaped after the kernel's helpers so that checksum offload stays right: the checksum functions
/// know whether the packet's checksum is complete, partial (to be finished by the device) or absent.
pub trait PacketEdit: PacketRead {
    /// Overwrites one byte.
    fn store_u8(&mut self, offset: u32, value: u8, balanced: Balanced) -> Edit;
    /// Overwrites two bytes, memory order.
    fn store_u16(&mut self, offset: u32, value: u16, balanced: Balanced) -> Edit;
    /// Overwrites four bytes, memory order.
    fn store_u32(&mut self, offset: u32, value: u32, balanced: Balanced) -> Edit;
    /// Overwrites six bytes of the Ethernet header or of ARP: the first six of `value` in memory.
    fn store_6(&mut self, offset: u32, value: u64) -> Edit;
    /// Overwrites eight bytes, memory order.
    fn store_u64(&mut self, offset: u32, value: u64, balanced: Balanced) -> Edit;
    /// Adapts the IPv4 header checksum at `offset` to a field that changes from `from` to `to` (memory order; 16-bit fields
    /// in the low half).
    fn l3_checksum(&mut self, offset: u32, from: u32, to: u32, bytes: u32) -> Edit;
    /// Adapts the layer-4 checksum at `offset` likewise. With `udp` a zero checksum stays (none), and a result of zero becomes
    /// 0xffff.
    fn l4_checksum(&mut self, offset: u32, from: u32, to: u32, bytes: u32, sum: L4Sum, udp: bool) -> Edit;
    /// Pushes a VLAN tag as the outermost. `VLAN_PRESENT` in the tci is not part of the tag.
    fn push_vlan(&mut self, vlan: Vlan) -> Edit;
    /// Removes the outermost VLAN tag; nothing where there is none.
    fn pop_vlan(&mut self) -> Edit;
    /// Sets the metadata that the packet carries beside its bytes (`skb->priority`, `skb->mark`).
    fn set_metadata(&mut self, priority: u32, mark: u32);
}

/// The first [`HEAD`](crate::extract::HEAD) bytes of a packet, which nobody else has: they can be changed in place. A store
/// behind them is none.
pub trait PacketHead: PacketRead {
    /// Overwrites one byte.
    fn put_u8(&mut self, offset: u32, value: u8);
    /// Overwrites two bytes, memory order.
    fn put_u16(&mut self, offset: u32, value: u16);
    /// Overwrites four bytes, memory order.
    fn put_u32(&mut self, offset: u32, value: u32);
    /// Overwrites eight bytes, memory order.
    fn put_u64(&mut self, offset: u32, value: u64);
}

#[cfg(any(test, feature = "user"))]
pub use slice::{Frame, SlicePacket};

#[cfg(any(test, feature = "user"))]
mod slice;
