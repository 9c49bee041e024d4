//! Frames to look for differences with: valid ones of every kind that the key knows, cut off, and damaged.
//!
//! A field's value is drawn so that its edges come up often. What a frame says of its own lengths is true unless the frame is
//! then damaged; checksums are right where the frame is valid and whole.

use fastrand::Rng;

use super::rig::LONGEST;

/// Bytes of an Ethernet header: nothing shorter arrives.
pub(crate) const SHORTEST: usize = 14;

/// A frame of any kind.
pub(crate) fn frame(rng: &mut Rng) -> Vec<u8> {
    let mut frame = valid(rng);
    match rng.u8(..16) {
        0..6 => {}
        6..9 => cut(rng, &mut frame),
        9..13 => damage(rng, &mut frame),
        13 => {
            damage(rng, &mut frame);
            cut(rng, &mut frame);
        }
        // Nothing but an Ethernet type that promises something.
        14 => frame[SHORTEST..].fill_with(|| rng.u8(..)),
        _ => {
            frame.extend((0..rng.usize(0..80)).map(|_| 0));
            let at = rng.usize(12..frame.len());
            frame[at] = edge(rng);
        }
    }
    frame.resize(frame.len().clamp(SHORTEST, LONGEST), 0);
    frame
}

/// A frame whose headers are whole and right.
pub(crate) fn valid(rng: &mut Rng) -> Vec<u8> {
    let mut frame = Vec::with_capacity(256);
    frame.extend(mac(rng));
    frame.extend(mac(rng));
    for _ in 0..[0, 0, 0, 1, 1, 2, 2, 3][rng.usize(..8)] {
        frame.extend(if rng.bool() { [0x81, 0] } else { [0x88, 0xa8] });
        frame.extend(rng.u16(..).to_be_bytes());
    }
    let (eth_type, payload) = network(rng);
    match rng.u8(..12) {
        // 802.3 with a length: SNAP with that type, other LLC, or no LLC that anybody knows.
        0 => {
            frame.extend((payload.len().min(1500) as u16 + 8).to_be_bytes());
            frame.extend([0xaa, 0xaa, 3, 0, 0, if rng.u8(..8) == 0 { 1 } else { 0 }]);
            frame.extend(if rng.u8(..8) == 0 { rng.u16(..0x600) } else { eth_type }.to_be_bytes());
        }
        1 => {
            frame.extend(rng.u16(..0x600).to_be_bytes());
            frame.extend([edge(rng), edge(rng), 3]);
        }
        _ => frame.extend(eth_type.to_be_bytes()),
    }
    frame.extend(payload);
    frame
}

fn network(rng: &mut Rng) -> (u16, Vec<u8>) {
    match rng.u8(..20) {
        0..7 => (0x0800, ipv4(rng)),
        7..14 => (0x86dd, ipv6(rng)),
        14 | 15 => (if rng.bool() { 0x0806 } else { 0x8035 }, arp(rng)),
        16 => (if rng.bool() { 0x8847 } else { 0x8848 }, mpls(rng)),
        17 | 18 => (0x894f, nsh(rng)),
        _ => (rng.u16(0x600..), bytes(rng, 40)),
    }
}

fn ipv4(rng: &mut Rng) -> Vec<u8> {
    let options = if rng.u8(..4) == 0 { rng.usize(1..=10) } else { 0 };
    let fragment: u16 = match rng.u8(..8) {
        0 => 0x2000,
        1 => rng.u16(1..0x2000),
        2 => 0x2000 | rng.u16(1..0x2000),
        3 => 0x4000,
        _ => 0,
    };
    let (src, dst) = (word(rng), word(rng));
    let (proto, mut segment) = transport(rng, false);
    let mut packet = vec![0x45 + options as u8, rng.u8(..)];
    packet.extend((20 + options as u16 * 4 + segment.len() as u16).to_be_bytes());
    packet.extend(rng.u16(..).to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([edge(rng), proto, 0, 0]);
    packet.extend(src);
    packet.extend(dst);
    packet.extend((0..options * 4).map(|_| rng.u8(..)));
    let sum = checksum(&packet, 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    if fragment & 0x3fff == 0 {
        let pseudo = [src, dst].concat();
        finish(rng, &pseudo, proto, &mut segment);
    }
    packet.extend(segment);
    packet
}

fn ipv6(rng: &mut Rng) -> Vec<u8> {
    let (src, dst) = (address6(rng), address6(rng));
    let (proto, mut segment) = transport(rng, true);
    let mut chain: Vec<(u8, Vec<u8>)> = Vec::new();
    if rng.bool() {
        // Mostly short chains, some longer than is walked.
        let n = if rng.u8(..16) == 0 { rng.usize(5..20) } else { rng.usize(0..5) };
        chain.extend((0..n).map(|_| extension(rng)));
        if rng.bool() {
            const ORDER: [u8; 5] = [0, 60, 43, 44, 51];
            chain.sort_by_key(|(kind, _)| ORDER.iter().position(|k| k == kind));
        }
    }
    let last = if rng.u8(..24) == 0 { 59 } else { proto };
    let mut body = Vec::new();
    for (i, (_, header)) in chain.iter().enumerate() {
        body.push(chain.get(i + 1).map_or(last, |next| next.0));
        body.extend(&header[1..]);
    }
    let pseudo = [src, dst].concat();
    finish(rng, &pseudo, proto, &mut segment);
    body.extend(segment);
    let mut packet = ((6 << 28) | (u32::from(rng.u8(..)) << 20) | rng.u32(..0x10_0000)).to_be_bytes().to_vec();
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([chain.first().map_or(last, |first| first.0), edge(rng)]);
    packet.extend(src);
    packet.extend(dst);
    packet.extend(body);
    packet
}

/// An extension header, the place of the next header's number zero.
fn extension(rng: &mut Rng) -> (u8, Vec<u8>) {
    let kind = [0, 43, 44, 51, 60][rng.usize(..5)];
    let units = rng.u8(..3);
    let mut header = match kind {
        44 => {
            // A whole packet, a first and later fragments.
            let fragment: u16 = [0, 0, 1, 8, 0x101][rng.usize(..5)];
            let [high, low] = fragment.to_be_bytes();
            return (kind, vec![0, edge(rng), high, low, 0, 0, 0, rng.u8(..)]);
        }
        51 => vec![0; (usize::from(units) + 3) * 4],
        _ => vec![0; (usize::from(units) + 1) * 8],
    };
    header[1] = if kind == 51 { units + 1 } else { units };
    header[2..].fill_with(|| rng.u8(..));
    if kind == 43 {
        header[3] = rng.u8(..2);
    }
    (kind, header)
}

fn transport(rng: &mut Rng, v6: bool) -> (u8, Vec<u8>) {
    let (src, dst) = (rng.u16(..).to_be_bytes(), half(rng).to_be_bytes());
    let payload = if rng.u8(..24) == 0 { bytes(rng, LONGEST) } else { bytes(rng, 60) };
    let header: Vec<u8>;
    let proto = match rng.u8(..16) {
        0..5 => {
            let options = if rng.bool() { rng.u8(0..=10) } else { 0 };
            let mut tcp = [src, dst].concat();
            tcp.extend(rng.u64(..).to_be_bytes());
            tcp.extend((u16::from(5 + options) << 12 | rng.u16(..0x1000)).to_be_bytes());
            tcp.extend([0xff, 0xff, 0, 0, 0, 0]);
            tcp.extend((0..options * 4).map(|_| rng.u8(..)));
            header = tcp;
            6
        }
        5..9 => {
            header = [src, dst, (8 + payload.len() as u16).to_be_bytes(), [0, 0]].concat();
            17
        }
        9 => {
            header = [src.to_vec(), dst.to_vec(), vec![0; 8]].concat();
            132
        }
        10..13 if !v6 => {
            header = vec![edge(rng), edge(rng), 0, 0, 0, 1, 0, 2];
            1
        }
        10..15 if v6 => {
            header = icmpv6(rng);
            58
        }
        _ => {
            header = vec![];
            rng.u8(..)
        }
    };
    (proto, [header, payload].concat())
}

/// ICMPv6, mostly neighbour discovery with options.
fn icmpv6(rng: &mut Rng) -> Vec<u8> {
    let kind = [135, 136, 135, 136, 128, 133][rng.usize(..6)];
    let mut message = vec![kind, if rng.u8(..8) == 0 { 1 } else { 0 }, 0, 0, 0, 0, 0, 0];
    message.extend(address6(rng));
    let n = if rng.u8(..16) == 0 { rng.usize(10..24) } else { rng.usize(..4) };
    for _ in 0..n {
        let units = [1, 1, 1, 1, 2, 3, 0][rng.usize(..7)];
        message.extend([[1, 2, 1, 2, 5, 3][rng.usize(..6)], units]);
        // An address of zeros is as if there was none.
        let zero = rng.u8(..8) == 0;
        message.extend((2..usize::from(units) * 8).map(|_| if zero { 0 } else { rng.u8(..) }));
    }
    message
}

fn arp(rng: &mut Rng) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend([if rng.u8(..8) == 0 { 1 } else { 0 }, edge(rng)]);
    packet.extend(mac(rng));
    packet.extend(word(rng));
    packet.extend(mac(rng));
    packet.extend(word(rng));
    packet
}

fn mpls(rng: &mut Rng) -> Vec<u8> {
    let n = if rng.u8(..8) == 0 { rng.usize(10..20) } else { rng.usize(1..10) };
    let mut packet = Vec::new();
    for i in 0..n {
        let bottom = u32::from(i + 1 == n && rng.u8(..8) != 0) << 8;
        packet.extend((rng.u32(..) & !0x100 | bottom).to_be_bytes());
    }
    packet.extend(bytes(rng, 40));
    packet
}

fn nsh(rng: &mut Rng) -> Vec<u8> {
    let (kind, words) = if rng.u8(..3) != 0 { (1, 6) } else { (2, rng.u8(2..20)) };
    let first = u16::from(rng.u8(..4)) << 12 | u16::from(rng.u8(..64)) << 6 | u16::from(words);
    let mut packet = first.to_be_bytes().to_vec();
    packet.extend([kind, rng.u8(1..6)]);
    packet.extend((4..usize::from(words) * 4).map(|_| rng.u8(..)));
    packet.extend(bytes(rng, 40));
    packet
}

/// Writes the checksum of a segment that has one. UDP has none now and then.
fn finish(rng: &mut Rng, addresses: &[u8], proto: u8, segment: &mut [u8]) {
    let at = match proto {
        6 if segment.len() >= 20 => 16,
        17 if segment.len() >= 8 && rng.u8(..5) != 0 => 6,
        1 | 58 if segment.len() >= 8 => 2,
        _ => return,
    };
    let pseudo = if proto == 1 {
        0
    } else {
        sum(addresses) + u32::from(proto) + (segment.len() as u32 & 0xffff) + (segment.len() as u32 >> 16)
    };
    let value = checksum(segment, pseudo);
    let value = if proto == 17 && value == 0 { 0xffff } else { value };
    segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut total = start + sum(bytes);
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn cut(rng: &mut Rng, frame: &mut Vec<u8>) {
    if frame.len() > SHORTEST {
        // The headers are where a cut tells.
        let end = if rng.u8(..4) == 0 { frame.len() } else { frame.len().min(130) };
        frame.truncate(rng.usize(SHORTEST..=end));
    }
}

fn damage(rng: &mut Rng, frame: &mut [u8]) {
    for _ in 0..rng.u8(1..5) {
        let end = if rng.u8(..4) == 0 { frame.len() } else { frame.len().min(90) };
        let at = rng.usize(12.min(end - 1)..end);
        match rng.u8(..3) {
            0 => frame[at] ^= 1 << rng.u8(..8),
            1 => frame[at] = rng.u8(..),
            _ => frame[at] = edge(rng),
        }
    }
}

/// A byte, often one at an edge.
pub(crate) fn edge(rng: &mut Rng) -> u8 {
    match rng.u8(..4) {
        0 => [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, 0x40][rng.usize(..8)],
        _ => rng.u8(..),
    }
}

fn half(rng: &mut Rng) -> u16 {
    if rng.u8(..8) == 0 { [0, 0xffff][rng.usize(..2)] } else { rng.u16(..) }
}

fn word(rng: &mut Rng) -> [u8; 4] {
    match rng.u8(..12) {
        0 => [0; 4],
        1 => [0xff; 4],
        2 => [224, 0, 0, rng.u8(..)],
        _ => [10, rng.u8(..2), rng.u8(..), rng.u8(..)],
    }
}

fn address6(rng: &mut Rng) -> [u8; 16] {
    let mut address = rng.u128(..).to_be_bytes();
    match rng.u8(..8) {
        0 => address = [0; 16],
        1 => address[..13].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]),
        _ => address[0] = 0xfd,
    }
    address
}

fn mac(rng: &mut Rng) -> [u8; 6] {
    match rng.u8(..12) {
        0 => [0xff; 6],
        1 => [0; 6],
        2 => [1, 0x80, 0xc2, 0, 0, rng.u8(..)],
        _ => [2, 0, 0, 0, rng.u8(..4), rng.u8(..)],
    }
}

/// Up to `most` bytes, seldom many.
fn bytes(rng: &mut Rng, most: usize) -> Vec<u8> {
    let n = rng.usize(0..=most);
    let mut bytes = vec![0; n];
    rng.fill(&mut bytes);
    bytes
}
