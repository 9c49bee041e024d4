//! A packet on its way between a datapath and userspace.

/// A packet with what a kernel buffer says beside its bytes. VLAN tags are in the bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Packet {
    /// The frame from its Ethernet header on, without frame check sequence.
    pub data: Vec<u8>,
    /// Segment size in bytes where the packet is a GSO super-packet, else 0.
    pub gso_size: u16,
    /// The layer-4 checksum holds only the sum of the pseudo-header; the sender expects the device to complete it.
    pub partial_checksum: bool,
    /// Maximum receive unit of a packet that was reassembled from IP fragments: the longest of them, as the datapath is to cut it
    /// again where it leaves. Else 0.
    pub mru: u16,
    /// The kernel's hash of the packet (lower half) and its kind (upper half), which it is executed with, so that actions that
    /// choose by it choose the same again; 0 where there is none or it isn't said.
    pub hash: u64,
    /// The netlink socket that it came up to, where what comes up of its execution is to go too; else 0. Backends with rings
    /// don't use it.
    pub upcall_pid: u32,
    /// Options that a tunnel brought with it: Geneve's, or others that the key's `tun_flags` name; `tun_opts_len` bytes of them.
    pub tunnel_options: Vec<u8>,
}

impl Packet {
    /// A packet of these bytes, complete in itself.
    pub fn new(data: impl Into<Vec<u8>>) -> Self {
        Self { data: data.into(), ..Self::default() }
    }
}
