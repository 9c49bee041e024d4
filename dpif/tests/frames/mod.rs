//! Frames for the tests of this crate.

/// An IPv4 packet with a right header checksum around `payload`.
pub(crate) fn ipv4(proto: u8, src: [u8; 4], dst: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, proto, 0, 0];
    p.extend(src);
    p.extend(dst);
    let len = (20 + payload.len()) as u16;
    p[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = checksum(&p, 0);
    p[10..12].copy_from_slice(&sum.to_be_bytes());
    p.extend(payload);
    p
}

/// A UDP datagram with a right checksum.
pub(crate) fn udp(src: [u8; 4], dst: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut u = Vec::new();
    for half in [ports.0, ports.1, len, 0] {
        u.extend(half.to_be_bytes());
    }
    u.extend(payload);
    let sum = transport_checksum(17, src, dst, &u);
    u[6..8].copy_from_slice(&sum.to_be_bytes());
    u
}

/// A TCP segment with these flags and a right checksum.
pub(crate) fn tcp(src: [u8; 4], dst: [u8; 4], ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut t = Vec::new();
    t.extend(ports.0.to_be_bytes());
    t.extend(ports.1.to_be_bytes());
    t.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = transport_checksum(6, src, dst, &t);
    t[16..18].copy_from_slice(&sum.to_be_bytes());
    t
}

/// An Ethernet frame.
pub(crate) fn ethernet(eth_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![0x50, 0x54, 0, 0, 0, 0x0a, 0x50, 0x54, 0, 0, 0, 0x09];
    f.extend(eth_type.to_be_bytes());
    f.extend(payload);
    f
}

/// A UDP packet in a frame.
pub(crate) fn udp_frame(dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    ethernet(0x0800, &ipv4(17, src, dst, &udp(src, dst, (1000, dst_port), payload)))
}

/// A TCP segment in a frame.
pub(crate) fn tcp_frame(flags: u8) -> Vec<u8> {
    let (src, dst) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    ethernet(0x0800, &ipv4(6, src, dst, &tcp(src, dst, (1000, 80), flags)))
}

/// Whether the IPv4 header's and the TCP or UDP checksum of a frame without tags are right.
pub(crate) fn checksums_are_right(frame: &[u8]) -> bool {
    let ip = &frame[14..];
    let (src, dst) = (ip[12..16].try_into().unwrap(), ip[16..20].try_into().unwrap());
    checksum(&ip[..20], 0) == 0 && transport_checksum(ip[9], src, dst, &ip[20..]) == 0
}

fn transport_checksum(proto: u8, src: [u8; 4], dst: [u8; 4], segment: &[u8]) -> u16 {
    let pseudo: Vec<u8> = src.iter().chain(&dst).copied().chain([0, proto]).collect();
    let sum = pseudo.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum::<u32>();
    checksum(segment, sum + segment.len() as u32)
}

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
