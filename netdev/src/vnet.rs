//! `struct virtio_net_hdr` (`linux/virtio_net.h`): what is left to do on a frame.
//!
//! It stands before each frame that crosses a packet socket with `PACKET_VNET_HDR` or a TAP device with `IFF_VNET_HDR`. On
//! receipt it says whether the checksum and the segments are still to be made. On sending it must also say where: that follows
//! from the frame's headers as they are then, whatever was pushed or popped meanwhile.

/// Bytes of the header.
pub const HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside the kind where the TCP header has CWR.
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The header's fields, host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    /// The header for a frame that is sent.
    pub fn of(frame: &[u8], gso_size: u16, partial_checksum: bool) -> Self {
        if gso_size == 0 && !partial_checksum {
            return Self::default();
        }
        let Some(transport) = Transport::of(frame) else { return Self::default() };
        let mut header = Self::default();
        if partial_checksum {
            header.flags = NEEDS_CSUM;
            header.csum_start = transport.offset;
            header.csum_offset = if transport.proto == TCP { 16 } else { 6 };
        }
        if gso_size != 0 {
            header.gso_type = match (transport.proto, transport.ipv6) {
                (TCP, false) => GSO_TCPV4,
                (TCP, true) => GSO_TCPV6,
                _ => GSO_UDP_L4,
            };
            if transport.cwr {
                header.gso_type |= GSO_ECN;
            }
            header.gso_size = gso_size;
            header.hdr_len = transport.offset.saturating_add(transport.len);
        }
        header
    }

    /// From the bytes before a received frame.
    pub fn decode(bytes: &[u8; HEADER]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        let half = |a, b| u16::from_ne_bytes([a, b]);
        Self {
            flags,
            gso_type,
            hdr_len: half(h0, h1),
            gso_size: half(g0, g1),
            csum_start: half(s0, s1),
            csum_offset: half(o0, o1),
        }
    }

    /// The bytes to stand before a frame.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (i, half) in [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].into_iter().enumerate() {
            bytes[2 + 2 * i..4 + 2 * i].copy_from_slice(&half.to_ne_bytes());
        }
        bytes
    }

    /// The checksum is still to be computed.
    pub fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// Segment size, 0 for a packet that stays whole.
    pub fn segment_size(&self) -> u16 {
        if self.gso_type == 0 { 0 } else { self.gso_size }
    }

    /// The packet is to be cut into IP fragments, which a datapath can't say of a packet.
    pub fn is_fragmentation(&self) -> bool {
        self.gso_type & !GSO_ECN == GSO_UDP
    }
}

/// Where a frame's TCP or UDP header is, the whole of it: the kernel refuses a frame whose header points outside.
struct Transport {
    proto: u8,
    ipv6: bool,
    offset: u16,
    len: u16,
    cwr: bool,
}

impl Transport {
    fn of(frame: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
        let mut at = 12;
        while matches!(half(at)?, 0x8100 | 0x88a8) {
            at += 4;
        }
        let l3 = at + 2;
        let (proto, ipv6, offset) = match half(at)? {
            0x0800 => (*frame.get(l3 + 9)?, false, l3 + usize::from(frame.get(l3)? & 0xf) * 4),
            0x86dd => {
                let mut next = *frame.get(l3 + 6)?;
                let mut offset = l3 + 40;
                // Hop-by-hop, routing, destination options. A fragment has no checksum of its own.
                while matches!(next, 0 | 43 | 60) {
                    next = *frame.get(offset)?;
                    offset += (usize::from(*frame.get(offset + 1)?) + 1) * 8;
                }
                (next, true, offset)
            }
            _ => return None,
        };
        let (len, cwr) = match proto {
            TCP => (u16::from(frame.get(offset + 12)? >> 4) * 4, frame.get(offset + 13)? & 0x80 != 0),
            UDP => (8, false),
            _ => return None,
        };
        let shortest = if proto == TCP { 20 } else { 8 };
        if len < shortest || frame.len() < offset + usize::from(len) {
            return None;
        }
        Some(Self { proto, ipv6, offset: u16::try_from(offset).ok()?, len, cwr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: usize, ipv6: bool, proto: u8) -> Vec<u8> {
        let mut f = vec![0; 12];
        for _ in 0..tags {
            f.extend([0x81, 0, 0, 5]);
        }
        if ipv6 {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 60, 64]);
            f.extend([0; 32]);
            f.extend([proto, 0, 0, 0, 0, 0, 0, 0]);
        } else {
            f.extend([8, 0, 0x46, 0, 0, 0, 0, 0, 0, 0, 64, proto]);
            f.extend([0; 14]);
        }
        f.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 0x80, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
        f
    }

    #[test]
    fn a_header_says_where_the_checksum_and_the_segments_begin() {
        for (tags, ipv6, proto, gso_size, expected) in [
            (0, false, TCP, 0, Header { flags: 1, csum_start: 38, csum_offset: 16, ..Header::default() }),
            (1, false, UDP, 0, Header { flags: 1, csum_start: 42, csum_offset: 6, ..Header::default() }),
            (
                2,
                true,
                TCP,
                1400,
                Header {
                    flags: 1,
                    gso_type: GSO_TCPV6 | GSO_ECN,
                    hdr_len: 94,
                    gso_size: 1400,
                    csum_start: 70,
                    csum_offset: 16,
                },
            ),
            (
                0,
                false,
                UDP,
                1000,
                Header { flags: 1, gso_type: GSO_UDP_L4, hdr_len: 46, gso_size: 1000, csum_start: 38, csum_offset: 6 },
            ),
        ] {
            let header = Header::of(&frame(tags, ipv6, proto), gso_size, true);
            assert_eq!(header, expected);
            assert_eq!(Header::decode(&header.encode()), header);
        }
        assert_eq!(Header::of(&frame(0, false, TCP), 0, false), Header::default());
    }

    #[test]
    fn a_header_never_points_outside_of_the_frame() {
        for (tags, ipv6) in [(0, false), (1, true), (3, false)] {
            let whole = frame(tags, ipv6, TCP);
            for len in 0..whole.len() {
                let header = Header::of(&whole[..len], 100, true);
                assert!(usize::from(header.csum_start) <= len, "{header:?} {len}");
            }
        }
    }

    #[test]
    fn a_transport_header_that_is_not_whole_is_none() {
        for (ipv6, proto) in [(false, TCP), (false, UDP), (true, TCP), (true, UDP)] {
            let whole = frame(0, ipv6, proto);
            let complete = Header::of(&whole, 100, true);
            assert!(complete.needs_checksum());
            for len in 0..usize::from(complete.hdr_len) {
                assert_eq!(Header::of(&whole[..len], 100, true), Header::default(), "{len} of {}", complete.hdr_len);
            }
        }
        // Less than the least that TCP has.
        let mut short = frame(0, false, TCP);
        short[38 + 12] = 0x40;
        assert_eq!(Header::of(&short, 100, true), Header::default());
    }
}
