//! The upcall record: what the datapath writes into a handler's ring.
//!
//! A record is an [`UpcallHeader`] followed by the packet's bytes. It is reserved in size classes (the verifier wants a constant
//! size), so `packet_len` says how much of what follows is packet. The accelerated VLAN tag is in the header, not in the bytes.

use crate::key::{FlowKey, Vlan};
use crate::op::MAX_COOKIE;

/// Fixed part of an upcall record.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct UpcallHeader {
    /// [`crate::LAYOUT_VERSION`] of the program that wrote it.
    pub layout: u32,
    /// [`UpcallKind`] as a number.
    pub kind: u32,
    /// Bytes of packet that follow.
    pub packet_len: u32,
    /// Length of the packet before truncation.
    pub orig_len: u32,
    /// `CLOCK_MONOTONIC` at the reservation, in nanoseconds: how long an answer took is counted from here.
    pub arrival_ns: u64,
    /// Datapath port whose credit this record holds.
    pub credit_port: u32,
    /// Hash that chose the handler.
    pub hash: u32,
    /// Accelerated VLAN tag, to be inserted after the Ethernet addresses; zero where there is none.
    pub vlan: Vlan,
    /// Segment size where the packet is a GSO super-packet, else 0.
    pub gso_size: u16,
    /// Segments of a GSO super-packet.
    pub gso_segs: u16,
    /// Bytes of `cookie`.
    pub cookie_len: u32,
    /// Maximum receive unit of a reassembled packet, else 0.
    pub mru: u32,
    /// Number of the flow's statistics where a flow's action sent the packet up, else `u32::MAX`.
    pub stats_id: u32,
    /// Unused, zero.
    pub reserved: u32,
    /// The packet's key.
    pub key: FlowKey,
    /// Cookie of the userspace action.
    pub cookie: [u8; MAX_COOKIE],
}

impl UpcallHeader {
    /// All fields zero.
    // SAFETY: all fields are integers or arrays of integers.
    pub const ZERO: Self = unsafe { core::mem::zeroed() };
}

/// Why a packet goes to userspace.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpcallKind {
    /// No flow matches (`OVS_PACKET_CMD_MISS`).
    Miss = 0,
    /// A userspace action (`OVS_PACKET_CMD_ACTION`).
    Action = 1,
}

/// Bytes of packet that fit the size classes of a record.
pub const SIZE_CLASSES: [usize; 5] = [256, 1024, 4096, 16384, MAX_UPCALL_PACKET];
/// The largest packet that an upcall carries.
pub const MAX_UPCALL_PACKET: usize = 65536;
