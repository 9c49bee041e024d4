//! Frames of every kind that a switch tells apart, and what chance makes of them: for engines to agree about.

use fastrand::Rng;

/// Ethernet types whose packets are looked into.
const TYPES: [u16; 10] = [0x0800, 0x86dd, 0x0806, 0x8035, 0x8100, 0x88a8, 0x8847, 0x8848, 0x894f, 0x05dc];
/// IP protocols likewise, with IPv6's extension headers.
const PROTOCOLS: [u8; 13] = [0, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 132, 255];

/// A frame of one of the kinds that there are, and what chance makes of it: bytes changed, cut, longer, tagged, other types.
pub fn by_chance(rng: &mut Rng, kinds: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = kinds.get(rng.usize(..kinds.len())).cloned().unwrap_or_else(|| udp(1));
    for _ in 0..rng.usize(0..4) {
        match rng.u8(0..7) {
            0 => frame.truncate(rng.usize(14..=frame.len())),
            1 => frame.extend((0..rng.usize(0..64)).map(|_| rng.u8(..))),
            2 => {
                let tag: [u8; 4] = [if rng.bool() { 0x81 } else { 0x88 }, 0, rng.u8(..), rng.u8(..)];
                let tag = if tag[0] == 0x88 { [0x88, 0xa8, tag[2], tag[3]] } else { tag };
                frame.splice(12..12, tag);
            }
            3 => {
                let kind = TYPES[rng.usize(..TYPES.len())].to_be_bytes();
                frame[12..14].copy_from_slice(&kind);
            }
            4 => {
                // Where IPv4 and IPv6 have their protocol.
                let at = *rng.choice([20, 23, 54].iter()).unwrap_or(&23);
                if let Some(byte) = frame.get_mut(at) {
                    *byte = PROTOCOLS[rng.usize(..PROTOCOLS.len())];
                }
            }
            _ => {
                let at = rng.usize(12..frame.len().max(13));
                if let Some(byte) = frame.get_mut(at) {
                    *byte = if rng.bool() { rng.u8(..) } else { *byte ^ 1 << rng.u8(0..8) };
                }
            }
        }
    }
    frame
}

/// A UDP packet over IPv4 from this port on.
pub fn udp(port: u16) -> Vec<u8> {
    let port = port.to_be_bytes();
    ethernet(
        0x0800,
        &ipv4(17, &[0x10, 0, port[0], port[1], 0, 38, 0, 0].iter().copied().chain(0..30).collect::<Vec<_>>()),
    )
}

/// A frame of each kind, no two the same.
pub fn kinds() -> Vec<Vec<u8>> {
    let tcp = [0, 80, 1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x12, 255, 255, 0, 0, 0, 0];
    let nd: Vec<u8> =
        [135, 0, 0, 0, 0, 0, 0, 0].into_iter().chain(0x40..0x50).chain([1, 1, 2, 3, 4, 5, 6, 7]).collect();
    let hop_by_hop: Vec<u8> = [17, 0, 1, 4, 0, 0, 0, 0].into_iter().chain([0, 1, 0, 2, 0, 8, 0, 0]).collect();
    let mut fragment = ipv4(17, &[9; 16]);
    fragment[6..8].copy_from_slice(&[0, 3]);
    let arp: Vec<u8> = [0, 1, 8, 0, 6, 4, 0, 2].into_iter().chain(1..21).collect();
    let nsh: Vec<u8> = [0x0f, 0xc6, 1, 3, 0, 0, 7, 255].into_iter().chain(0..16).chain(udp(1)).collect();
    let tagged = |tags: &[[u8; 4]], frame: Vec<u8>| -> Vec<u8> {
        let mut frame = frame;
        frame.splice(12..12, tags.iter().flatten().copied());
        frame
    };
    let mut frames = vec![
        udp(1),
        ethernet(0x0800, &ipv4(6, &tcp)),
        ethernet(0x0800, &ipv4(1, &[8, 0, 0, 0, 0, 1, 0, 1])),
        ethernet(0x0800, &ipv4(132, &[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0])),
        ethernet(0x0800, &ipv4(89, &[0; 8])),
        ethernet(0x0800, &fragment),
        ethernet(0x86dd, &ipv6(17, &[0, 1, 0, 2, 0, 8, 0, 0])),
        ethernet(0x86dd, &ipv6(58, &nd)),
        ethernet(0x86dd, &ipv6(58, &[128, 0, 0, 0, 0, 0, 0, 0])),
        ethernet(0x86dd, &ipv6(0, &hop_by_hop)),
        ethernet(0x0806, &arp),
        ethernet(0x8847, &[0, 1, 0x20, 64, 0, 2, 0x31, 64, 1, 2, 3, 4]),
        ethernet(0x894f, &nsh),
        ethernet(0x88b5, &[1, 2, 3, 4]),
        ethernet(20, &[0xaa, 0xbb, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        tagged(&[[0x81, 0, 0xa0, 5]], udp(2)),
        tagged(&[[0x88, 0xa8, 0, 7], [0x81, 0, 0x20, 9]], udp(3)),
        ethernet(0x86dd, &ipv6(17, &[0; 8]))[..30].to_vec(),
    ];
    // A device may pad what is shorter; what is sent here stays as it is, so that it can be told again.
    frames.iter_mut().for_each(|frame| frame.resize(frame.len().max(64), 0));
    frames
}

fn ethernet(eth_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x50, 0x54, 0, 0, 0, 0x0a, 0x50, 0x54, 0, 0, 0, 0x09];
    frame.extend(eth_type.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(proto: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x45, 0x10, len[0], len[1], 0, 1, 0, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let sum = packet.chunks(2).map(|half| u32::from(half[0]) << 8 | u32::from(half[1])).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn ipv6(proto: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0x01, 0x23, 0x45, len[0], len[1], proto, 255];
    packet.extend((0..32).map(|i| 0x20 + i as u8));
    packet.extend(payload);
    packet
}
