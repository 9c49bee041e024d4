//! What is left to a device, done here: checksums completed and super-packets cut. An independent reader of packets (smoltcp)
//! looks at what comes out.

use dpif::Packet;
use dpif::offload::{OffloadError, Segments, complete_checksum};
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, Ipv6Address, Ipv6Packet, Ipv6Repr, TcpPacket,
    TcpSeqNumber, UdpPacket,
};

const SRC4: Ipv4Address = Ipv4Address::new(10, 0, 0, 1);
const DST4: Ipv4Address = Ipv4Address::new(10, 0, 0, 2);
const SRC6: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const DST6: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// A packet to cut.
#[derive(Clone, Debug)]
struct Case {
    tags: Vec<u16>,
    ipv6: bool,
    /// IPv6: destination options of eight bytes each before the transport header.
    options: usize,
    tcp: bool,
    /// TCP: words of options.
    tcp_options: usize,
    flags: u8,
    sequence: u32,
    id: u16,
    payload: Vec<u8>,
    gso_size: u16,
    /// UDP over IPv4 without a checksum.
    no_checksum: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let bits = (any::<bool>(), any::<bool>(), 0..3usize, 0..11usize, any::<bool>());
    let tags = prop::collection::vec(prop::sample::select(vec![0x8100u16, 0x88a8]), 0..3);
    let payload = prop::collection::vec(any::<u8>(), 0..9000);
    (tags, bits, any::<u8>(), any::<u32>(), any::<u16>(), payload, 1..3000u16).prop_map(
        |(tags, (ipv6, tcp, options, tcp_options, no_checksum), flags, sequence, id, payload, gso_size)| {
            // Segments of a byte each would be thousands.
            let gso_size = gso_size.max(payload.len() as u16 / 50);
            let no_checksum = no_checksum && !tcp && !ipv6;
            Case {
                tags,
                ipv6,
                options,
                tcp,
                tcp_options,
                flags,
                sequence,
                id,
                payload,
                gso_size: gso_size.max(1),
                no_checksum,
            }
        },
    )
}

impl Case {
    fn headers(&self) -> usize {
        let ip = if self.ipv6 { 40 + 8 * self.options } else { 20 };
        14 + 4 * self.tags.len() + ip + if self.tcp { 20 + 4 * self.tcp_options } else { 8 }
    }

    /// The super-packet as a sender hands it over: the checksum field has the pseudo-header's sum.
    fn packet(&self) -> Packet {
        let mut data = vec![2; 12];
        for tag in &self.tags {
            data.extend(tag.to_be_bytes());
            data.extend([0x20, 5]);
        }
        data.extend(if self.ipv6 { [0x86, 0xdd] } else { [8, 0] });
        let protocol = if self.tcp { 6 } else { 17 };
        let l4 = self.headers() - data.len() - if self.ipv6 { 40 } else { 20 } + self.payload.len();
        if self.ipv6 {
            data.extend([0x60, 0, 0, 7]);
            data.extend((l4 as u16).to_be_bytes());
            data.extend([if self.options > 0 { 60 } else { protocol }, 64]);
            data.extend(SRC6.octets());
            data.extend(DST6.octets());
            for left in (0..self.options).rev() {
                data.extend([if left > 0 { 60 } else { protocol }, 0, 1, 4, 0, 0, 0, 0]);
            }
        } else {
            data.extend([0x45, 0]);
            data.extend((20 + l4 as u16).to_be_bytes());
            data.extend(self.id.to_be_bytes());
            data.extend([0x40, 0, 64, protocol, 0, 0]);
            data.extend(SRC4.octets());
            data.extend(DST4.octets());
        }
        data.extend([3, 232, 0, 80]);
        if self.tcp {
            data.extend(self.sequence.to_be_bytes());
            data.extend([0, 0, 0, 9, (5 + self.tcp_options as u8) << 4, self.flags, 1, 0, 0xaa, 0xaa, 0, 0]);
            data.extend(vec![1; 4 * self.tcp_options]);
        } else {
            data.extend((8 + self.payload.len() as u16).to_be_bytes());
            data.extend(if self.no_checksum { [0, 0] } else { [0xaa, 0xaa] });
        }
        assert_eq!(data.len(), self.headers());
        data.extend(&self.payload);
        Packet { data, gso_size: self.gso_size, partial_checksum: !self.no_checksum, mru: 1400, ..Packet::default() }
    }

    /// The transport header and payload of a segment, everything around it looked at. `index`: which one.
    fn transport<'a>(&self, segment: &'a Packet, index: usize) -> (&'a [u8], IpAddress, IpAddress) {
        let l3 = 14 + 4 * self.tags.len();
        let (ethernet, ip) = segment.data.split_at(l3);
        assert_eq!(ethernet, &self.packet().data[..l3]);
        if self.ipv6 {
            let packet = Ipv6Packet::new_checked(ip).unwrap();
            Ipv6Repr::parse(&packet).unwrap();
            assert_eq!(packet.total_len(), ip.len());
            (&ip[40 + 8 * self.options..], SRC6.into(), DST6.into())
        } else {
            let packet = Ipv4Packet::new_checked(ip).unwrap();
            Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).expect("the header's checksum is right");
            assert_eq!((packet.total_len() as usize, packet.ident()), (ip.len(), self.id.wrapping_add(index as u16)));
            assert_eq!(packet.next_header(), if self.tcp { IpProtocol::Tcp } else { IpProtocol::Udp });
            (&ip[20..], SRC4.into(), DST4.into())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn segments_are_the_payload_in_packets_that_are_right(case in cases()) {
        let packet = case.packet();
        let segments: Vec<_> = Segments::new(&packet).unwrap().collect();
        prop_assert_eq!(segments.len(), case.payload.len().div_ceil(case.gso_size.into()).max(1));
        let mut payload = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            prop_assert_eq!((segment.gso_size, segment.partial_checksum, segment.mru), (0, false, 1400));
            let (transport, src, dst) = case.transport(segment, index);
            let (first, last) = (index == 0, index + 1 == segments.len());
            if case.tcp {
                let tcp = TcpPacket::new_checked(transport).unwrap();
                prop_assert!(tcp.verify_checksum(&src, &dst));
                prop_assert_eq!(tcp.seq_number(), TcpSeqNumber(case.sequence.wrapping_add(payload.len() as u32) as i32));
                let keeps = |at_end: u8| if last { at_end } else { 0 };
                let expected = case.flags & !0x89 | keeps(case.flags & 0x09) | if first { case.flags & 0x80 } else { 0 };
                prop_assert_eq!(transport[13], expected);
                prop_assert_eq!(tcp.options(), vec![1; 4 * case.tcp_options]);
                payload.extend_from_slice(tcp.payload());
            } else {
                let udp = UdpPacket::new_checked(transport).unwrap();
                prop_assert_eq!(udp.len() as usize, transport.len());
                prop_assert!(case.no_checksum && udp.checksum() == 0 || udp.verify_checksum(&src, &dst) && udp.checksum() != 0);
                payload.extend_from_slice(udp.payload());
            }
            let wanted = if last { case.payload.len() - payload.len() } else { 0 };
            prop_assert_eq!(wanted, 0);
            prop_assert!(last || segment.data.len() == case.headers() + usize::from(case.gso_size));
        }
        prop_assert_eq!(payload, case.payload);
    }

    #[test]
    fn a_checksum_is_completed_and_nothing_else_changes(case in cases()) {
        let sent = Packet { gso_size: 0, ..case.packet() };
        let mut packet = sent.clone();
        complete_checksum(&mut packet).unwrap();
        let at = case.headers() - if case.tcp { 4 * case.tcp_options + 4 } else { 2 };
        prop_assert!(!packet.partial_checksum);
        prop_assert_eq!((&packet.data[..at], &packet.data[at + 2..]), (&sent.data[..at], &sent.data[at + 2..]));
        let (transport, src, dst) = (&packet.data[case.headers() - if case.tcp { 20 + 4 * case.tcp_options } else { 8 }..], SRC4, DST4);
        let (src, dst): (IpAddress, IpAddress) = if case.ipv6 { (SRC6.into(), DST6.into()) } else { (src.into(), dst.into()) };
        if case.tcp {
            prop_assert!(TcpPacket::new_unchecked(transport).verify_checksum(&src, &dst));
        } else {
            prop_assert!(UdpPacket::new_unchecked(transport).verify_checksum(&src, &dst));
        }
        let single: Vec<_> = Segments::new(&sent).unwrap().collect();
        prop_assert_eq!(single, vec![packet]);
    }

    /// Whatever the bytes are: no panic, no endless list, and nothing is lost of what is cut.
    #[test]
    fn bytes_at_random_are_cut_or_refused(case in cases(), cut in any::<prop::sample::Index>(), changes in prop::collection::vec((0..200usize, any::<u8>()), 0..6)) {
        let mut packet = case.packet();
        packet.data.truncate(cut.index(packet.data.len()) + 1);
        for (at, byte) in changes {
            if let Some(to) = packet.data.get_mut(at) {
                *to = byte;
            }
        }
        let _ = complete_checksum(&mut packet.clone());
        if let Ok(segments) = Segments::new(&packet) {
            let total: usize = segments.take(10_000).map(|segment| segment.data.len()).sum();
            prop_assert!(total > 0);
        }
    }
}

#[test]
fn what_needs_no_device_is_left_alone() {
    let packet = Packet::new(vec![7; 60]);
    assert_eq!(Segments::new(&packet).unwrap().collect::<Vec<_>>(), vec![packet.clone()]);
    let mut same = packet.clone();
    complete_checksum(&mut same).unwrap();
    assert_eq!(same, packet);
}

#[test]
fn padding_behind_the_ip_packet_is_not_summed_up_and_not_cut() {
    let case = Case {
        tags: vec![],
        ipv6: false,
        options: 0,
        tcp: true,
        tcp_options: 0,
        flags: 0x18,
        sequence: u32::MAX,
        id: 0xffff,
        payload: vec![1, 2, 3],
        gso_size: 2,
        no_checksum: false,
    };
    let mut packet = case.packet();
    packet.data.extend([9; 5]);
    let segments: Vec<_> = Segments::new(&packet).unwrap().collect();
    assert_eq!(segments.iter().map(|s| s.data.len()).collect::<Vec<_>>(), [56, 55]);
    let (second, src, dst) = case.transport(&segments[1], 1);
    assert!(TcpPacket::new_unchecked(second).verify_checksum(&src, &dst), "sequence number and identification wrap");
    let mut alone = Packet { gso_size: 0, ..packet };
    complete_checksum(&mut alone).unwrap();
    assert_eq!(alone.data.len(), 62);
    assert!(TcpPacket::new_unchecked(&alone.data[34..57]).verify_checksum(&src, &dst));
}

#[test]
fn what_no_device_does_is_refused_by_name() {
    let base = Case {
        tags: vec![],
        ipv6: false,
        options: 0,
        tcp: false,
        tcp_options: 0,
        flags: 0,
        sequence: 0,
        id: 0,
        payload: vec![1; 100],
        gso_size: 10,
        no_checksum: false,
    }
    .packet();
    let change = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = base.clone();
        change(&mut packet.data);
        (Segments::new(&packet).err(), complete_checksum(&mut packet).err())
    };
    for (what, error) in [
        (change(&|data| data[23] = 132), OffloadError::Protocol),
        (change(&|data| data[12] = 0x99), OffloadError::Protocol),
        (change(&|data| data[20] = 0x20), OffloadError::Fragment),
        (change(&|data| data.truncate(60)), OffloadError::Malformed),
        (change(&|data| data[17] = 20), OffloadError::Malformed),
    ] {
        assert_eq!(what, (Some(error), Some(error)));
    }
}
