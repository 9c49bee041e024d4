//! Generated frames, by class: valid ones of each protocol, and each way that is known to break one.

/// Frames of each class.
pub(crate) const PER_CLASS: usize = 220;

/// A class of frames.
pub(crate) struct Class {
    pub(crate) name: &'static str,
    /// Something in it is cut off, contradicts itself or is not what its place asks for.
    pub(crate) malformed: bool,
    pub(crate) make: fn(&mut Rng) -> Vec<u8>,
}

const fn valid(name: &'static str, make: fn(&mut Rng) -> Vec<u8>) -> Class {
    Class { name, malformed: false, make }
}

const fn broken(name: &'static str, make: fn(&mut Rng) -> Vec<u8>) -> Class {
    Class { name, malformed: true, make }
}

#[rustfmt::skip]
pub(crate) const CLASSES: &[Class] = &[
    valid("TCP over IPv4", |r| { let p = tcp(r); ip4_frame(r, 6, p) }),
    valid("UDP over IPv4", |r| { let p = udp(r); ip4_frame(r, 17, p) }),
    valid("SCTP over IPv4", |r| { let p = r.some(12, 40); ip4_frame(r, 132, p) }),
    valid("ICMP over IPv4", |r| { let p = r.some(8, 40); ip4_frame(r, 1, p) }),
    valid("IGMP over IPv4", |r| { let p = r.some(8, 24); ip4_frame(r, 2, p) }),
    valid("any protocol over IPv4", |r| { let (n, p) = (r.byte(), r.some(0, 60)); ip4_frame(r, n, p) }),
    valid("IPv4 with options", |r| { let p = tcp(r); let o = r.below(11) as usize; let p = ip4_options(r, 6, o, &p); frame(r, 0x0800, &p) }),
    valid("IPv4 with padding", |r| { let p = udp(r); let mut f = ip4_frame(r, 17, p); f.extend(r.some(1, 30)); f }),
    valid("first fragment of IPv4", |r| ip4_fragment(r, 0x2000)),
    valid("later fragment of IPv4", |r| { let bits = (r.half() & 0xe000) | (1 + r.below(0x1fff) as u16); ip4_fragment(r, bits) }),
    valid("IPv4 that must not be fragmented", |r| ip4_fragment(r, 0x4000)),
    valid("TCP over IPv6", |r| { let p = tcp(r); ip6_frame(r, 6, &p) }),
    valid("UDP over IPv6", |r| { let p = udp(r); ip6_frame(r, 17, &p) }),
    valid("SCTP over IPv6", |r| { let p = r.some(12, 40); ip6_frame(r, 132, &p) }),
    valid("ICMPv6", |r| { let p = r.some(8, 60); ip6_frame(r, 58, &p) }),
    valid("any protocol over IPv6", |r| { let (n, p) = (r.byte(), r.some(0, 60)); ip6_frame(r, n, &p) }),
    valid("IPv6 extension headers", |r| { let n = 1 + r.below(5) as usize; extended(r, n, None) }),
    valid("IPv6 without next header", |r| { let n = r.below(3) as usize; let p = r.some(0, 20); chain_frame(r, n, 59, &p) }),
    valid("first fragment of IPv6", |r| ip6_fragment(r, 1, None)),
    valid("later fragment of IPv6", |r| { let bits = later(r); ip6_fragment(r, bits, None) }),
    valid("IPv6 fragment header without fragment", |r| ip6_fragment(r, 0, None)),
    valid("neighbour discovery", |r| nd_frame(r, |r| { let mut o = option(1, 1, r); if r.chance(2) { o.extend(option(2, 1, r)); } o })),
    valid("neighbour discovery without options", |r| nd_frame(r, |_| vec![])),
    valid("neighbour discovery with other options", |r| nd_frame(r, |r| { let mut o = vec![]; for _ in 0..r.below(6) { let (k, l) = (3 + r.below(20) as u8, 1 + r.below(3) as u8); o.extend(option(k, l, r)); } o })),
    valid("ARP", |r| { let p = arp(r); frame(r, 0x0806, &p) }),
    valid("RARP", |r| { let p = arp(r); frame(r, 0x8035, &p) }),
    valid("MPLS", |r| { let n = 1 + r.below(3) as usize; mpls(r, n, true) }),
    valid("MPLS with more labels than the key", |r| { let n = 4 + r.below(8) as usize; mpls(r, n, true) }),
    valid("NSH type 1", |r| { let p = nsh(r, 6, 1, 24); frame(r, 0x894f, &p) }),
    valid("NSH type 2", |r| { let n = 2 + r.below(20) as u8; let p = nsh(r, n, 2, usize::from(n) * 4); frame(r, 0x894f, &p) }),
    valid("other Ethernet types", |r| { let (t, p) = (0x600 | r.half(), r.some(0, 60)); frame(r, t, &p) }),
    valid("Ethernet header alone", |r| { let t = r.half(); frame(r, t, &[]) }),
    valid("802.3 with LLC", |r| { let p = r.some(3, 60); frame(r, p.len() as u16, &p) }),
    valid("802.3 with SNAP", |r| { let p = snapped(r, 3); frame(r, p.len() as u16, &p) }),
    valid("one tag", |r| { let p = udp(r); let p = ip4(r, 17, &p); let t = tags(r, 1); ethernet(r, &t, 0x0800, &p) }),
    valid("two tags", |r| { let p = udp(r); let p = ip4(r, 17, &p); let t = tags(r, 2); ethernet(r, &t, 0x0800, &p) }),

    broken("shorter than Ethernet", |r| r.some(0, 13)),
    broken("IPv4 header cut off", |r| { let p = ip4(r, 6, &[]); cut(r, 0x0800, &p, 19) }),
    broken("IPv4 header length below five words", |r| { let mut p = udp_in_ip4(r); p[0] = 0x40 | r.below(5) as u8; frame(r, 0x0800, &p) }),
    broken("IPv4 header longer than the frame", |r| { let p = r.some(0, 8); let mut p = ip4(r, 17, &p); p[0] = 0x4f; frame(r, 0x0800, &p) }),
    broken("IPv4 of another version", |r| { let mut p = udp_in_ip4(r); p[0] = (r.byte() & 0xf0) | 5; frame(r, 0x0800, &p) }),
    broken("IPv4 total length beyond the frame", |r| { let mut p = udp_in_ip4(r); let n = p.len() as u16 + 1 + r.below(2000) as u16; put(&mut p, 2, n); frame(r, 0x0800, &p) }),
    broken("IPv4 total length below the header", |r| { let mut p = udp_in_ip4(r); let n = r.below(20) as u16; put(&mut p, 2, n); frame(r, 0x0800, &p) }),
    broken("IPv4 total length within the transport header", |r| { let t = tcp(r); let mut p = ip4(r, 6, &t); let n = 20 + r.below(20) as u16; put(&mut p, 2, n); frame(r, 0x0800, &p) }),
    broken("TCP header cut off", |r| { let p = tcp(r); upper_cut(r, 6, &p, 20) }),
    broken("UDP header cut off", |r| { let p = udp(r); upper_cut(r, 17, &p, 8) }),
    broken("SCTP header cut off", |r| { let p = r.bytes(12); upper_cut(r, 132, &p, 12) }),
    broken("ICMP header cut off", |r| { let p = r.bytes(8); upper_cut(r, 1, &p, 8) }),
    broken("ICMPv6 header cut off", |r| { let p = r.bytes(8); upper_cut(r, 58, &p, 8) }),
    broken("TCP data offset below five words", |r| { let mut p = tcp(r); p[12] = (p[12] & 0xf) | (r.below(5) as u8) << 4; either(r, 6, &p) }),
    broken("TCP data offset beyond the packet", |r| { let mut p = tcp(r); p.truncate(20); p[12] = (p[12] & 0xf) | (6 + r.below(10) as u8) << 4; either(r, 6, &p) }),
    broken("IPv6 header cut off", |r| { let p = ip6(r, 6, &[]); cut(r, 0x86dd, &p, 39) }),
    broken("IPv6 of another version", |r| { let t = udp(r); let mut p = ip6(r, 17, &t); p[0] = r.byte(); frame(r, 0x86dd, &p) }),
    broken("IPv6 payload length beyond the frame", |r| { let t = udp(r); let mut p = ip6(r, 17, &t); let n = t.len() as u16 + 1 + r.below(2000) as u16; put(&mut p, 4, n); frame(r, 0x86dd, &p) }),
    broken("IPv6 payload length within the transport header", |r| { let t = tcp(r); let mut p = ip6(r, 6, &t); let n = 1 + r.below(19) as u16; put(&mut p, 4, n); frame(r, 0x86dd, &p) }),
    broken("IPv6 payload length zero", |r| { let t = tcp(r); let mut p = ip6(r, 6, &t); put(&mut p, 4, 0); frame(r, 0x86dd, &p) }),
    broken("IPv6 payload length within an extension header", |r| { let mut p = chain(r, 2, 17, &[0; 8]); let n = 1 + r.below(15) as u16; put(&mut p, 4, n); frame(r, 0x86dd, &p) }),
    broken("IPv6 extension header cut off", |r| { let n = 1 + r.below(4) as usize; let p = chain(r, n, 17, &[]); let keep = 40 + r.below(p.len() as u64 - 40) as usize; ip6_ending(r, &p, keep) }),
    broken("IPv6 extension header longer than the packet", |r| { let mut p = chain(r, 1, 17, &[0; 8]); p[41] = 8 + r.below(240) as u8; frame(r, 0x86dd, &p) }),
    broken("IPv6 extension headers repeated and out of order", |r| extended(r, 8, Some(&[0, 43, 51, 60, 44]))),
    broken("more IPv6 extension headers than are walked", |r| { let n = 17 + r.below(10) as usize; extended(r, n, Some(&[0, 43, 60, 44])) }),
    broken("IPv6 fragment header cut off", |r| { let b = r.half(); let p = fragment(r, b, 17, &[]); let keep = 40 + r.below(8) as usize; ip6_ending(r, &p, keep) }),
    broken("later IPv6 fragment of an extension header", |r| { let bits = later(r); let next = r.pick(&[0, 43, 44, 51, 60]); ip6_fragment(r, bits, Some(next)) }),
    broken("IPv6 fragment header with reserved bits", |r| { let bits = (r.below(3) as u16 + 1) << 1; ip6_fragment(r, bits, None) }),
    broken("ICMPv6 over IPv4", |r| { let mut p = r.some(8, 40); if r.chance(2) { p[0] = 135; p[1] = 0; } ip4_frame(r, 58, p) }),
    broken("ICMP over IPv6", |r| { let p = r.some(8, 40); ip6_frame(r, 1, &p) }),
    broken("802.3 shorter than SNAP", |r| { let mut p = vec![0xaa, 0xaa, 3, 0, 0, 0, 8]; p.truncate(r.below(8) as usize); frame(r, p.len() as u16, &p) }),
    broken("SNAP of another organisation", |r| { let mut p = snapped(r, 3); let at = 3 + r.below(3) as usize; p[at] = 1 | r.byte(); frame(r, p.len() as u16, &p) }),
    broken("SNAP with another control field", |r| { let c = r.byte(); let p = snapped(r, c); frame(r, p.len() as u16, &p) }),
    broken("SNAP with a length for a type", |r| { let mut p = snapped(r, 3); let t = r.below(0x600) as u16; put(&mut p, 6, t); frame(r, p.len() as u16, &p) }),
    broken("tag cut off", |r| { let n = r.below(4) as usize; let p = r.bytes(n); let t = r.pick(&[0x8100, 0x88a8]); ethernet(r, &[], t, &p) }),
    broken("inner tag cut off", |r| { let n = r.below(4) as usize; let p = r.bytes(n); let (o, t) = (tags(r, 1), r.pick(&[0x8100, 0x88a8])); ethernet(r, &o, t, &p) }),
    broken("three tags", |r| { let p = udp(r); let p = ip4(r, 17, &p); let t = tags(r, 3); ethernet(r, &t, 0x0800, &p) }),
    broken("ARP cut off", |r| { let p = arp(r); let t = r.pick(&[0x0806, 0x8035]); cut(r, t, &p, 27) }),
    broken("ARP of other hardware", |r| arp_with(r, 0, 1)),
    broken("ARP of another protocol", |r| arp_with(r, 2, 0x0800)),
    broken("ARP with other address lengths", |r| arp_with(r, 4, 0x0604)),
    broken("ARP opcode above 255", |r| { let mut p = arp(r); p[6] = 1 | r.byte(); frame(r, 0x0806, &p) }),
    broken("MPLS without bottom", |r| { let n = r.below(12) as usize; mpls(r, n, false) }),
    broken("MPLS label cut off", |r| { let n = r.below(4) as usize; let mut f = mpls(r, n, false); let tail = 1 + r.below(3) as usize; f.extend(r.bytes(tail)); f }),
    broken("more MPLS labels than are walked", |r| { let n = 17 + r.below(8) as usize; mpls(r, n, true) }),
    broken("neighbour discovery cut off", |r| { let p = nd(r, &[]); let p = ip6(r, 58, &p); let keep = 48 + r.below(16) as usize; ip6_ending(r, &p, keep) }),
    broken("neighbour discovery with another code", |r| { let o = option(1, 1, r); let mut p = nd(r, &o); p[1] = 1 | r.byte(); ip6_frame(r, 58, &p) }),
    broken("neighbour discovery option of length zero", |r| nd_frame(r, |r| { let mut o = option(1, 1, r); let mut z = option(2, 1, r); z[1] = 0; o.extend(z); o.extend(option(2, 1, r)); o })),
    broken("neighbour discovery option longer than the message", |r| nd_frame(r, |r| { let mut o = option(2, 1, r); let mut z = option(1, 1, r); z[1] = 2 + r.byte() / 2; o.extend(z); o })),
    broken("neighbour discovery option cut off", |r| nd_frame(r, |r| { let mut o = option(2, 1, r); o.extend(option(1, 1, r)); o.truncate(r.below(16) as usize); o })),
    broken("neighbour discovery address twice", |r| nd_frame(r, |r| { let k = 1 + r.below(2) as u8; let mut o = option(3 - k, 1, r); o.extend(option(k, 1, r)); o.extend(option(k, 1, r)); o })),
    broken("neighbour discovery address of zeros twice", |r| nd_frame(r, |r| { let k = 1 + r.below(2) as u8; let mut o = vec![k, 1, 0, 0, 0, 0, 0, 0]; o.extend(option(k, 1, r)); o })),
    broken("neighbour discovery address of another length", |r| nd_frame(r, |r| { let k = 1 + r.below(2) as u8; let mut o = option(k, 2, r); if r.chance(2) { o.extend(option(k, 1, r)); } o })),
    broken("more neighbour discovery options than are walked", |r| nd_frame(r, |r| { let mut o = vec![]; for _ in 0..12 + r.below(8) { o.extend(option(14, 1, r)); } o.extend(option(1, 1, r)); if r.chance(3) { o.extend(option(1, 1, r)); } o.extend(option(2, 1, r)); o })),
    broken("NSH cut off", |r| { let p = nsh(r, 6, 1, 24); cut(r, 0x894f, &p, 23) }),
    broken("NSH of another version", |r| { let mut p = nsh(r, 6, 1, 24); p[0] |= 0x40 << r.below(2); frame(r, 0x894f, &p) }),
    broken("NSH type 1 of another length", |r| { let n = r.pick(&[0, 1, 2, 3, 4, 5, 7, 8, 9]); let p = nsh(r, n, 1, 36); frame(r, 0x894f, &p) }),
    broken("NSH type 2 shorter than its base", |r| { let n = r.below(2) as u8; let p = nsh(r, n, 2, 24); frame(r, 0x894f, &p) }),
    broken("NSH of unknown type", |r| { let (n, t) = (r.below(8) as u8, r.byte()); let p = nsh(r, n, if matches!(t, 1 | 2) { 3 } else { t }, 24); frame(r, 0x894f, &p) }),
    broken("random behind an Ethernet type", |r| { let t = r.pick(&[0x0800, 0x86dd, 0x0806, 0x8035, 0x8847, 0x8848, 0x894f, 0x8100, 0x88a8, 0x0040]); let p = r.some(0, 90); frame(r, t, &p) }),
    broken("bytes changed", |r| { let mut f = any(r); change(r, &mut f); f }),
    broken("bytes changed, again", |r| { let mut f = any(r); change(r, &mut f); f }),
    broken("end cut off", |r| { let mut f = any(r); let n = 14 + r.below(f.len().saturating_sub(13) as u64) as usize; f.truncate(n); f }),
    broken("end cut off and bytes changed", |r| { let mut f = any(r); let n = 14 + r.below(f.len().saturating_sub(13) as u64) as usize; f.truncate(n); change(r, &mut f); f }),
];

/// A frame of any class before those that change frames of others.
fn any(r: &mut Rng) -> Vec<u8> {
    let plain = CLASSES.len() - 4;
    let make = CLASSES[r.below(plain as u64) as usize].make;
    make(r)
}

/// Changes a few bytes behind the addresses; mostly where headers are.
fn change(r: &mut Rng, frame: &mut [u8]) {
    for _ in 0..1 + r.below(4) {
        let end = if r.chance(2) { frame.len().min(64) } else { frame.len() } as u64;
        if end > 12 {
            let at = 12 + r.below(end - 12) as usize;
            frame[at] = match r.below(3) {
                0 => frame[at] ^ 1 << r.below(8),
                1 => r.pick(&[0, 1, 2, 0xff, 0x7f, 0x80]),
                _ => r.byte(),
            };
        }
    }
}

fn ethernet(r: &mut Rng, tags: &[u8], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = r.bytes(12);
    // Neither address is a group's.
    f[0] &= 0xfe;
    f[6] &= 0xfe;
    f.extend(tags);
    f.extend(kind.to_be_bytes());
    f.extend(payload);
    f
}

/// In a frame with at most two tags, mostly none.
fn frame(r: &mut Rng, kind: u16, payload: &[u8]) -> Vec<u8> {
    let n = r.pick(&[0, 0, 0, 0, 0, 1, 1, 2]);
    let tags = tags(r, n);
    ethernet(r, &tags, kind, payload)
}

fn tags(r: &mut Rng, n: usize) -> Vec<u8> {
    let mut tags = vec![];
    for _ in 0..n {
        tags.extend(r.pick(&[0x8100_u16, 0x88a8]).to_be_bytes());
        tags.extend(r.half().to_be_bytes());
    }
    tags
}

/// A frame that ends within the first `most + 1` bytes of its payload.
fn cut(r: &mut Rng, kind: u16, payload: &[u8], most: u64) -> Vec<u8> {
    let keep = r.below(most + 1) as usize;
    frame(r, kind, &payload[..keep])
}

fn ip4_options(r: &mut Rng, proto: u8, words: usize, payload: &[u8]) -> Vec<u8> {
    let mut p = r.bytes(20 + words * 4);
    p[0] = 0x45 + words as u8;
    p[9] = proto;
    put(&mut p, 6, 0);
    let total = (p.len() + payload.len()) as u16;
    put(&mut p, 2, total);
    p.extend(payload);
    p
}

fn ip4(r: &mut Rng, proto: u8, payload: &[u8]) -> Vec<u8> {
    ip4_options(r, proto, 0, payload)
}

fn ip4_frame(r: &mut Rng, proto: u8, payload: Vec<u8>) -> Vec<u8> {
    let p = ip4(r, proto, &payload);
    frame(r, 0x0800, &p)
}

fn udp_in_ip4(r: &mut Rng) -> Vec<u8> {
    let p = udp(r);
    ip4(r, 17, &p)
}

fn ip4_fragment(r: &mut Rng, bits: u16) -> Vec<u8> {
    let (proto, upper) = upper(r);
    let mut p = ip4(r, proto, &upper);
    put(&mut p, 6, bits);
    frame(r, 0x0800, &p)
}

fn ip6(r: &mut Rng, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = r.bytes(40);
    p[0] = 0x60 | p[0] & 0xf;
    put(&mut p, 4, payload.len() as u16);
    p[6] = next;
    p.extend(payload);
    p
}

fn ip6_frame(r: &mut Rng, next: u8, payload: &[u8]) -> Vec<u8> {
    let p = ip6(r, next, payload);
    frame(r, 0x86dd, &p)
}

/// An IPv6 packet that is cut off and says so in its length.
fn ip6_ending(r: &mut Rng, packet: &[u8], keep: usize) -> Vec<u8> {
    let mut p = packet[..keep.min(packet.len())].to_vec();
    let length = p.len() as u16 - 40;
    put(&mut p, 4, length);
    frame(r, 0x86dd, &p)
}

/// An IPv6 packet with `n` extension headers of hop, routing, destination and authentication, then `next`.
fn chain(r: &mut Rng, n: usize, next: u8, payload: &[u8]) -> Vec<u8> {
    let kinds: Vec<u8> = (0..n).map(|_| r.pick(&[0, 43, 60, 51])).collect();
    chain_of(r, &kinds, next, payload)
}

fn chain_frame(r: &mut Rng, n: usize, next: u8, payload: &[u8]) -> Vec<u8> {
    let p = chain(r, n, next, payload);
    frame(r, 0x86dd, &p)
}

fn chain_of(r: &mut Rng, kinds: &[u8], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![];
    for (i, kind) in kinds.iter().enumerate() {
        let following = kinds.get(i + 1).copied().unwrap_or(next);
        let length = r.pick(&[0, 0, 0, 1, 2]);
        let mut header = match kind {
            51 => r.bytes((usize::from(length) + 2) * 4),
            44 => r.bytes(8),
            _ => r.bytes((usize::from(length) + 1) * 8),
        };
        header[0] = following;
        header[1] = length;
        if *kind == 44 {
            let bits = r.pick(&[0, 0, 0, 1, 1, 6, 8]);
            put(&mut header, 2, bits);
        }
        p.extend(header);
    }
    p.extend(payload);
    ip6(r, kinds.first().copied().unwrap_or(next), &p)
}

/// A frame with `n` extension headers of these kinds before some upper layer.
fn extended(r: &mut Rng, n: usize, kinds: Option<&[u8]>) -> Vec<u8> {
    let kinds: Vec<u8> = (0..n).map(|_| r.pick(kinds.unwrap_or(&[0, 43, 60, 51]))).collect();
    let (proto, upper) = upper(r);
    let p = chain_of(r, &kinds, proto, &upper);
    frame(r, 0x86dd, &p)
}

/// Fragment bits with an offset.
fn later(r: &mut Rng) -> u16 {
    r.half() | 8 << r.below(13)
}

fn fragment(r: &mut Rng, bits: u16, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = r.bytes(8);
    p[0] = next;
    put(&mut p, 2, bits);
    p.extend(payload);
    ip6(r, 44, &p)
}

fn ip6_fragment(r: &mut Rng, bits: u16, next: Option<u8>) -> Vec<u8> {
    let (proto, upper) = upper(r);
    let p = fragment(r, bits, next.unwrap_or(proto), &upper);
    frame(r, 0x86dd, &p)
}

/// Some upper layer with its number.
fn upper(r: &mut Rng) -> (u8, Vec<u8>) {
    match r.below(5) {
        0 => (6, tcp(r)),
        1 => (17, udp(r)),
        2 => (132, r.some(12, 30)),
        3 => (58, r.some(8, 30)),
        _ => (1, r.some(8, 30)),
    }
}

/// Over IPv4 or IPv6.
fn either(r: &mut Rng, proto: u8, payload: &[u8]) -> Vec<u8> {
    if r.chance(2) { ip4_frame(r, proto, payload.to_vec()) } else { ip6_frame(r, proto, payload) }
}

/// A transport header that ends before `whole` bytes.
fn upper_cut(r: &mut Rng, proto: u8, payload: &[u8], whole: u64) -> Vec<u8> {
    let keep = r.below(whole) as usize;
    either(r, proto, &payload[..keep])
}

fn tcp(r: &mut Rng) -> Vec<u8> {
    let words = r.pick(&[5, 5, 5, 6, 8, 15]);
    let mut p = r.bytes(usize::from(words) * 4);
    p[12] = words << 4 | p[12] & 0xf;
    p.extend(r.some(0, 20));
    p
}

fn udp(r: &mut Rng) -> Vec<u8> {
    r.some(8, 40)
}

fn nd(r: &mut Rng, options: &[u8]) -> Vec<u8> {
    let mut p = r.bytes(24);
    p[0] = r.pick(&[135, 136]);
    p[1] = 0;
    p.extend(options);
    p
}

fn nd_frame(r: &mut Rng, options: fn(&mut Rng) -> Vec<u8>) -> Vec<u8> {
    let options = options(r);
    let p = nd(r, &options);
    ip6_frame(r, 58, &p)
}

fn option(kind: u8, length: u8, r: &mut Rng) -> Vec<u8> {
    let mut p = r.bytes(usize::from(length) * 8);
    p[..2].copy_from_slice(&[kind, length]);
    p
}

fn arp(r: &mut Rng) -> Vec<u8> {
    let mut p = vec![0, 1, 8, 0, 6, 4, 0, r.pick(&[0, 1, 2, 3, 4, 8, 9, 255])];
    p.extend(r.some(20, 40));
    p
}

/// With any other number at `at`.
fn arp_with(r: &mut Rng, at: usize, right: u16) -> Vec<u8> {
    let mut p = arp(r);
    let wrong = right ^ (1 << r.below(16));
    put(&mut p, at, wrong);
    frame(r, 0x0806, &p)
}

fn mpls(r: &mut Rng, n: usize, bottom: bool) -> Vec<u8> {
    let mut p = vec![];
    for i in 0..n {
        let mut lse = r.bytes(4);
        lse[2] = lse[2] & 0xfe | u8::from(bottom && i + 1 == n);
        p.extend(lse);
    }
    if bottom {
        p.extend(r.some(0, 30));
    }
    let kind = r.pick(&[0x8847, 0x8848]);
    frame(r, kind, &p)
}

/// `words`: length as the header says it. `bytes` of header and context, then some more.
fn nsh(r: &mut Rng, words: u8, kind: u8, bytes: usize) -> Vec<u8> {
    let mut p = r.bytes(bytes.max(8));
    p[0] &= 0x3f;
    p[1] = p[1] & 0xc0 | words;
    p[2] = kind;
    p.extend(r.some(0, 30));
    p
}

/// An LLC and SNAP header with a payload that fits its type.
fn snapped(r: &mut Rng, control: u8) -> Vec<u8> {
    let (kind, payload) = match r.below(4) {
        0 => (0x0800, udp_in_ip4(r)),
        1 => (0x0806, arp(r)),
        2 => (0x894f, r.some(0, 30)),
        _ => (0x600 | r.half(), r.some(0, 30)),
    };
    let mut p = vec![0xaa, 0xaa, control, 0, 0, 0];
    p.extend(u16::to_be_bytes(kind));
    p.extend(payload);
    p
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// SplitMix64: the same frames for the same seed, wherever it runs.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn half(&mut self) -> u16 {
        self.next() as u16
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.byte()).collect()
    }

    /// `least` to `most` random bytes.
    fn some(&mut self, least: u64, most: u64) -> Vec<u8> {
        let n = least + self.below(most - least + 1);
        self.bytes(n as usize)
    }
}
