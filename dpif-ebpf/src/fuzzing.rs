//! The readers of what the programs send that are nobody else's business, for the fuzzers of the `fuzz` crate.

use dpif::{Packet, Upcall};

/// Reads a record of a handler's ring, as the handler does; whether it is one.
pub fn upcall(record: &[u8], to: &mut Upcall) -> bool {
    crate::upcalls::read(record, to).is_some()
}

/// Whose credit a record holds, and how many bytes.
pub fn credit(record: &[u8]) -> Option<(u32, u64)> {
    crate::upcalls::Used::of(record).map(|used| (used.port, used.bytes))
}

/// The `struct virtio_net_hdr` of a packet.
pub fn vnet_header(packet: &Packet) -> [u8; crate::offload::VNET_HEADER] {
    crate::offload::vnet_header(packet)
}
