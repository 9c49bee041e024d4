//! What a sender left to the device: checksums to complete, super-packets to cut.
//!
//! A packet that a kernel's own stack sent may come up with a checksum that covers the pseudo-header only (`CHECKSUM_PARTIAL`),
//! and longer than any wire takes (GSO). Whoever sends it on through the datapath leaves both to the device. But a reader
//! outside the machine, such as a controller, has to see packets as they would be on the wire: [`complete_checksum`] and
//! [`Segments`] make them so. TCP and UDP over IPv4 and IPv6, with VLAN tags and extension headers; a UDP super-packet becomes
//! datagrams (`UDP_SEGMENT`), not IP fragments.

mod checksum;
mod segment;

use datapath_common::FlowKey;
use datapath_common::extract::{eth_type, extract, ip_proto};
use datapath_common::packet::Frame;

use crate::packet::Packet;

pub use self::segment::Segments;

/// Why a packet can't be made what a device would make of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// The headers are cut off, or say more bytes than there are.
    #[error("the packet's headers are cut off or don't fit its length")]
    Malformed,
    /// A protocol other than TCP and UDP.
    #[error("a packet that is neither TCP nor UDP has no checksum to complete and can't be cut")]
    Protocol,
    /// An IP fragment has no transport checksum of its own.
    #[error("an IP fragment's checksum can't be completed, and it can't be cut")]
    Fragment,
    /// The checksum is over an address that only the routing header knows.
    #[error("the checksum of a packet under an IPv6 routing header with segments left can't be completed")]
    Routing,
}

/// Completes the checksum of a packet whose sender left that to the device; other packets stay as they are.
///
/// # Errors
/// The packet is not one whose checksum a device completes. It is unchanged.
pub fn complete_checksum(packet: &mut Packet) -> Result<(), OffloadError> {
    if packet.partial_checksum {
        let headers = Headers::of(packet)?;
        headers.write_checksum(&mut packet.data)?;
        packet.partial_checksum = false;
    }
    Ok(())
}

/// The transport protocols that devices know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transport {
    Tcp,
    Udp,
}

/// Where the headers of a packet are.
#[derive(Clone, Copy, Debug)]
struct Headers {
    ipv6: bool,
    transport: Transport,
    /// Where the IP header begins.
    l3: usize,
    /// Where the transport header begins.
    l4: usize,
    /// Where its payload begins.
    payload: usize,
    /// Where the IP packet ends; padding may follow.
    end: usize,
}

/// Bytes of the IPv6 header, without extension headers.
const IPV6_HEADER: usize = 40;

impl Headers {
    fn of(packet: &Packet) -> Result<Self, OffloadError> {
        let bytes = &packet.data;
        let mut key = FlowKey::ZERO;
        let layers = extract(&Frame(bytes), &mut key).map_err(|_| OffloadError::Malformed)?;
        let ipv6 = match key.eth_type.get() {
            eth_type::IPV4 => false,
            eth_type::IPV6 => true,
            _ => return Err(OffloadError::Protocol),
        };
        if key.ip_frag != 0 {
            return Err(OffloadError::Fragment);
        }
        if layers.routing != 0 {
            return Err(OffloadError::Routing);
        }
        let (l3, l4) = (layers.l3 as usize, layers.l4 as usize);
        if l4 == 0 {
            return Err(OffloadError::Malformed);
        }
        let (transport, header) = match key.ip_proto {
            ip_proto::TCP => (Transport::Tcp, usize::from(byte(bytes, l4 + 12)? >> 4) * 4),
            ip_proto::UDP => (Transport::Udp, 8),
            _ => return Err(OffloadError::Protocol),
        };
        if transport == Transport::Tcp && header < 20 {
            return Err(OffloadError::Malformed);
        }
        let end = match (ipv6, half(bytes, l3 + if ipv6 { 4 } else { 2 })?) {
            // More than the field can say: all that is there.
            (_, 0) => bytes.len(),
            (false, total) => l3 + usize::from(total),
            (true, payload) => l3 + IPV6_HEADER + usize::from(payload),
        };
        let payload = l4 + header;
        if end > bytes.len() || payload > end {
            return Err(OffloadError::Malformed);
        }
        Ok(Self { ipv6, transport, l3, l4, payload, end })
    }
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, OffloadError> {
    bytes.get(at).copied().ok_or(OffloadError::Malformed)
}

fn half(bytes: &[u8], at: usize) -> Result<u16, OffloadError> {
    let half = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    half.map(|half| u16::from_be_bytes(*half)).ok_or(OffloadError::Malformed)
}

/// Writes at a place, as far as that is within the packet: the caller has compared with its length.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}
