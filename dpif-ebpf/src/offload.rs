//! What a packet leaves to the device: a checksum to be completed, a payload to be cut into segments.
//!
//! Packets of the local stack travel unfinished through the kernel, and the datapath's record says of that only the segment
//! size. That a checksum is unfinished shows in its field, which then holds the sum of the pseudo-header (complete checksums
//! do so once in 65,536 packets, and completing them again gives the same checksum). Back into the kernel such a packet goes
//! with a `struct virtio_net_hdr` (`linux/virtio_net.h`) that says what is still to be done.

use datapath_common::extract::{HEAD, eth_type, extract, ip_proto};
use datapath_common::key::FRAG_NONE;
use datapath_common::packet::Frame;
use datapath_common::{FlowKey, Layers};
use dpif::Packet;

/// Bytes of `struct virtio_net_hdr`.
pub(crate) const VNET_HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// The transport header of a packet whose checksum a device can complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Transport {
    /// Where it begins.
    at: usize,
    /// TCP, else UDP.
    tcp: bool,
    ipv6: bool,
    /// Sum of the pseudo-header, folded, not complemented.
    pseudo_sum: u16,
}

/// What extraction says of a packet, as far as its checksum goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Headers {
    ip_proto: u8,
    eth_type: u16,
    ip_frag: u8,
    l3: u32,
    l4: u32,
}

impl Headers {
    fn of(data: &[u8]) -> Option<Self> {
        Self::plain(data).or_else(|| Self::extract(data))
    }

    fn extract(data: &[u8]) -> Option<Self> {
        let mut key = FlowKey::ZERO;
        let Layers { l3, l4, .. } = extract(&Frame(data), &mut key).ok()?;
        Some(Self { ip_proto: key.ip_proto, eth_type: key.eth_type.get(), ip_frag: key.ip_frag, l3, l4 })
    }

    /// The same of what most packets are, IPv4 without options that is no fragment, behind no tag. Each packet that comes up is
    /// asked.
    fn plain(data: &[u8]) -> Option<Self> {
        let head = data.first_chunk::<{ HEAD as usize }>()?;
        let u16_at = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let is_plain = u16_at(12) == eth_type::IPV4 && head[14] & 0xf == 5 && u16_at(20) & 0x3fff == 0;
        let (eth_type, ip_frag) = (eth_type::IPV4, FRAG_NONE);
        is_plain.then_some(Self { ip_proto: head[23], eth_type, ip_frag, l3: 14, l4: 34 })
    }
}

impl Transport {
    fn of(data: &[u8]) -> Option<Self> {
        let Headers { ip_proto, eth_type, ip_frag, l3, l4 } = Headers::of(data)?;
        let (tcp, ipv6) = match (ip_proto, eth_type) {
            (ip_proto::TCP, eth_type::IPV4) => (true, false),
            (ip_proto::TCP, eth_type::IPV6) => (true, true),
            (ip_proto::UDP, eth_type::IPV4) => (false, false),
            (ip_proto::UDP, eth_type::IPV6) => (false, true),
            _ => return None,
        };
        if l4 == 0 || ip_frag != FRAG_NONE {
            return None;
        }
        let (at, l3) = (l4 as usize, l3 as usize);
        let u16_at = |at: usize| data.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        // The length is the network header's: a frame may be padded.
        let len = if ipv6 {
            (l3 + 40 + usize::from(u16_at(l3 + 4)?)).checked_sub(at)?
        } else {
            usize::from(u16_at(l3 + 2)?).checked_sub(at - l3)?
        };
        let addresses = if ipv6 { l3 + 8..l3 + 40 } else { l3 + 12..l3 + 20 };
        // The sum of words of 32 bits folds into that of 16 bits.
        let words = data.get(addresses)?.as_chunks().0.iter().map(|word| u64::from(u32::from_be_bytes(*word)));
        let mut sum = words.sum::<u64>() + u64::from(ip_proto) + len as u64;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        Some(Self { at, tcp, ipv6, pseudo_sum: sum as u16 })
    }

    /// Where the checksum field is, from the header on.
    fn checksum_offset(self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    fn checksum(self, data: &[u8]) -> Option<u16> {
        data.get(self.at + self.checksum_offset()..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// Whether the header is there to its end: the kernel refuses a packet whose virtio header points outside.
    fn is_whole(self, data: &[u8]) -> bool {
        let (len, least) = (self.header_len(data), if self.tcp { 20 } else { 8 });
        len >= least && data.len() >= self.at + len
    }

    /// Bytes of the header.
    fn header_len(self, data: &[u8]) -> usize {
        if self.tcp { usize::from(data.get(self.at + 12).copied().unwrap_or_default() >> 4) * 4 } else { 8 }
    }
}

/// Whether the transport checksum of a packet from the datapath is still to be completed.
pub(crate) fn is_partial(data: &[u8], gso_size: u16) -> bool {
    Transport::of(data).is_some_and(|transport| gso_size != 0 || transport.checksum(data) == Some(transport.pseudo_sum))
}

/// The `struct virtio_net_hdr` of a packet, in the machine's byte order.
pub(crate) fn vnet_header(packet: &Packet) -> [u8; VNET_HEADER] {
    let mut header = [0; VNET_HEADER];
    if packet.gso_size == 0 && !packet.partial_checksum {
        return header;
    }
    // A packet whose transport header can't be found goes as it is.
    let Some(transport) = Transport::of(&packet.data).filter(|transport| transport.is_whole(&packet.data)) else {
        return header;
    };
    let mut put = |at: usize, value: usize| {
        let value = u16::try_from(value).unwrap_or_default().to_ne_bytes();
        header[at..at + 2].copy_from_slice(&value);
    };
    put(6, transport.at);
    put(8, transport.checksum_offset());
    let headers = transport.at + transport.header_len(&packet.data);
    if packet.gso_size != 0 {
        put(2, headers);
        put(4, packet.gso_size.into());
        header[1] = match (transport.tcp, transport.ipv6) {
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        };
    }
    header[0] = NEEDS_CSUM;
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ethernet frame with an IPv4 header for `proto` and `payload` bytes behind the transport header.
    fn ipv4(proto: u8, payload: usize, vlan: bool) -> Vec<u8> {
        let mut frame = vec![2; 12];
        if vlan {
            frame.extend_from_slice(&[0x81, 0, 0, 5]);
        }
        frame.extend_from_slice(&[8, 0]);
        let header = if proto == ip_proto::TCP { 20 } else { 8 };
        let len = (20 + header + payload) as u16;
        frame.extend_from_slice(&[0x45, 0]);
        frame.extend_from_slice(&len.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let mut transport = vec![0; header + payload];
        if proto == ip_proto::TCP {
            transport[12] = 0x50;
        }
        frame.extend_from_slice(&transport);
        frame
    }

    fn with_checksum(mut frame: Vec<u8>, at: usize, sum: u16) -> Vec<u8> {
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn a_checksum_that_equals_the_pseudo_header_sum_is_partial() {
        // 10.0.0.1 + 10.0.0.2 + 6 + 120, and with UDP's length and number.
        let tcp = with_checksum(ipv4(6, 100, false), 34 + 16, 0x0a00 + 1 + 0x0a00 + 2 + 6 + 120);
        let udp = with_checksum(ipv4(17, 100, true), 38 + 6, 0x0a00 + 1 + 0x0a00 + 2 + 17 + 108);
        assert!(is_partial(&tcp, 0) && is_partial(&udp, 0));
        assert!(!is_partial(&with_checksum(tcp.clone(), 50, 0x1234), 0));
        assert!(is_partial(&with_checksum(tcp, 50, 0x1234), 1460));
        assert!(!is_partial(&ipv4(1, 100, false), 0));
        assert!(!is_partial(&[0; 5], 1460));
    }

    #[test]
    fn padding_behind_the_packet_is_no_part_of_the_sum() {
        let mut frame = with_checksum(ipv4(17, 2, false), 34 + 6, 0x0a00 + 1 + 0x0a00 + 2 + 17 + 10);
        frame.resize(60, 0);
        assert!(is_partial(&frame, 0));
    }

    #[test]
    fn the_header_says_what_is_left_to_do() {
        let header = |packet: Packet| {
            let h = vnet_header(&packet);
            let word = |at: usize| u16::from_ne_bytes([h[at], h[at + 1]]);
            (h[0], h[1], word(2), word(4), word(6), word(8))
        };
        let packet =
            |data, gso_size, partial_checksum| Packet { data, gso_size, partial_checksum, ..Packet::default() };
        assert_eq!(header(packet(ipv4(6, 10, false), 0, false)), (0, 0, 0, 0, 0, 0));
        assert_eq!(header(packet(ipv4(6, 10, false), 0, true)), (1, 0, 0, 0, 34, 16));
        assert_eq!(header(packet(ipv4(6, 4000, true), 1400, true)), (1, GSO_TCPV4, 58, 1400, 38, 16));
        assert_eq!(header(packet(ipv4(17, 4000, false), 1400, true)), (1, GSO_UDP_L4, 42, 1400, 34, 6));
        assert_eq!(header(packet(vec![0; 20], 1400, true)), (0, 0, 0, 0, 0, 0));
    }

    #[test]
    fn what_is_told_without_extraction_is_what_extraction_tells() {
        let (tcp, tagged) = (ipv4(6, 40, false), ipv4(17, 40, true));
        let mut plain = 0;
        for (frame, at) in [&tcp, &tagged].into_iter().flat_map(|frame| (0..34).map(move |at| (frame, at))) {
            for byte in [0, 1, 6, 8, 17, 0x20, 0x3f, 0x40, 0x45, 0x46, 0x65, 0x80, 0xff] {
                let mut frame = frame.clone();
                frame[at] = byte;
                if let Some(headers) = Headers::plain(&frame) {
                    assert_eq!(Headers::extract(&frame), Some(headers), "{byte} at {at} of {frame:x?}");
                    plain += 1;
                }
            }
        }
        assert!(plain > 300, "{plain}");
        assert_eq!((Headers::plain(&tagged), Headers::plain(&tcp[..53])), (None, None));
    }

    #[test]
    fn a_transport_header_that_is_not_whole_is_none() {
        for (proto, end) in [(6, 54), (17, 42)] {
            let whole = ipv4(proto, 10, false);
            let header = |len: usize| {
                let data = whole[..len].to_vec();
                vnet_header(&Packet { data, gso_size: 100, partial_checksum: true, ..Packet::default() })
            };
            (0..end).for_each(|len| assert_eq!(header(len), [0; VNET_HEADER], "{len} of {end}"));
            assert_ne!(header(end), [0; VNET_HEADER]);
        }
    }
}
