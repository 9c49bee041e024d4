//! Frames as lists of fields, and the bytes that they are.
//!
//! What an action does is said here on fields; the bytes are then written anew, each checksum summed from scratch. So nothing is
//! shared with the code under test, which changes bytes in place and adapts checksums by differences.

use testkit::raw::GsoKind;
use testkit::{Gso, Offload};

use crate::common::checksum;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// A frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) dst: [u8; 6],
    pub(crate) src: [u8; 6],
    /// VLAN tags from the outermost on: type and control information.
    pub(crate) tags: Vec<(u16, u16)>,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Arp(Arp),
    Ip4(Ip4, L4),
    Ip6(Ip6, L4),
}

#[derive(Clone, Debug)]
pub(crate) struct Arp {
    pub(crate) op: u16,
    pub(crate) sha: [u8; 6],
    pub(crate) spa: u32,
    pub(crate) tha: [u8; 6],
    pub(crate) tpa: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Ip4 {
    pub(crate) tos: u8,
    pub(crate) id: u16,
    pub(crate) ttl: u8,
    pub(crate) src: u32,
    pub(crate) dst: u32,
    pub(crate) options: Vec<u8>,
    /// A piece of the packet alone: from which byte of layer 4 on, how many, and whether more follows.
    pub(crate) fragment: Option<(usize, usize, bool)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Ip6 {
    pub(crate) tclass: u8,
    pub(crate) label: u32,
    pub(crate) hops: u8,
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
    /// Extension headers: type, and the bytes behind the first, which names the next header.
    pub(crate) headers: Vec<(u8, Vec<u8>)>,
    /// Where the packet goes in the end, if a routing header says so: the checksum covers this address.
    pub(crate) last_dst: Option<[u8; 16]>,
}

#[derive(Clone, Debug)]
pub(crate) struct L4 {
    pub(crate) proto: u8,
    /// Source port, or ICMP type.
    pub(crate) a: u16,
    /// Destination port, or ICMP code.
    pub(crate) b: u16,
    pub(crate) seq: u32,
    pub(crate) flags: u8,
    /// UDP without a checksum.
    pub(crate) bare: bool,
    pub(crate) payload: Vec<u8>,
}

/// How a frame is handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// As it would be on a cable.
    Complete,
    /// Its layer-4 checksum left to the device.
    Partial,
    /// A super-packet, to be cut into segments of so many bytes.
    Gso(u16),
}

impl Frame {
    pub(crate) fn l4(&mut self) -> &mut L4 {
        match &mut self.body {
            Body::Ip4(_, l4) | Body::Ip6(_, l4) => l4,
            Body::Arp(_) => panic!("ARP has no layer 4"),
        }
    }

    pub(crate) fn ip4(&mut self) -> &mut Ip4 {
        match &mut self.body {
            Body::Ip4(ip, _) => ip,
            _ => panic!("not IPv4"),
        }
    }

    pub(crate) fn ip6(&mut self) -> &mut Ip6 {
        match &mut self.body {
            Body::Ip6(ip, _) => ip,
            _ => panic!("not IPv6"),
        }
    }

    pub(crate) fn arp(&mut self) -> &mut Arp {
        match &mut self.body {
            Body::Arp(arp) => arp,
            _ => panic!("not ARP"),
        }
    }

    /// The bytes, complete.
    pub(crate) fn build(&self) -> Vec<u8> {
        self.write(true).0
    }

    /// The bytes as they are handed over, with what is left to the device.
    pub(crate) fn handed_over(&self, mode: Mode) -> (Vec<u8>, Offload) {
        if mode == Mode::Complete {
            return (self.build(), Offload::default());
        }
        let (bytes, start) = self.write(false);
        let (l4, v4) = match &self.body {
            Body::Ip4(_, l4) => (l4, true),
            Body::Ip6(_, l4) => (l4, false),
            Body::Arp(_) => panic!("ARP has no checksum"),
        };
        let (field, header, kind) = match (l4.proto, v4) {
            (TCP, true) => (16, 20, GsoKind::Tcp4),
            (TCP, false) => (16, 20, GsoKind::Tcp6),
            _ => (6, 8, GsoKind::UdpL4),
        };
        let gso = match mode {
            Mode::Gso(size) => Some(Gso { kind, size, headers: (start + header) as u16 }),
            _ => None,
        };
        (bytes, Offload { checksum: Some((start as u16, field)), gso })
    }

    /// The frames that a device makes of a super-packet.
    pub(crate) fn segments(&self, size: u16) -> Vec<Frame> {
        let mut whole = self.clone();
        let payload = std::mem::take(&mut whole.l4().payload);
        let chunks: Vec<_> = payload.chunks(size.into()).collect();
        let mut frames = Vec::new();
        for (i, chunk) in chunks.iter().enumerate() {
            let mut frame = whole.clone();
            if let Body::Ip4(ip, _) = &mut frame.body {
                ip.id = ip.id.wrapping_add(i as u16);
            }
            let l4 = frame.l4();
            l4.payload = chunk.to_vec();
            l4.seq = l4.seq.wrapping_add(i as u32 * u32::from(size));
            if i + 1 < chunks.len() {
                // PSH and FIN are for the end.
                l4.flags &= !9;
            }
            frames.push(frame);
        }
        frames
    }

    /// The bytes, and where layer 4 begins; the checksum field of TCP and UDP holds the pseudo-header's sum if the checksum is
    /// not complete.
    fn write(&self, complete: bool) -> (Vec<u8>, usize) {
        let mut out = self.dst.to_vec();
        out.extend(self.src);
        for (tpid, tci) in &self.tags {
            out.extend(tpid.to_be_bytes());
            out.extend(tci.to_be_bytes());
        }
        match &self.body {
            Body::Arp(arp) => {
                out.extend([8, 6, 0, 1, 8, 0, 6, 4]);
                out.extend(arp.op.to_be_bytes());
                out.extend(arp.sha);
                out.extend(arp.spa.to_be_bytes());
                out.extend(arp.tha);
                out.extend(arp.tpa.to_be_bytes());
                out.extend([0; 18]);
                (out, 0)
            }
            Body::Ip4(ip, l4) => {
                let pseudo = [ip.src.to_be_bytes(), ip.dst.to_be_bytes()].concat();
                let mut rest = l4.write(&pseudo, complete);
                let mut place = 0;
                if let Some((from, len, more)) = ip.fragment {
                    rest = rest[from..(from + len).min(rest.len())].to_vec();
                    place = (from / 8) as u16 | u16::from(more) << 13;
                }
                let words = 5 + ip.options.len() / 4;
                let mut head = vec![0x40 | words as u8, ip.tos];
                head.extend(((words * 4 + rest.len()) as u16).to_be_bytes());
                head.extend(ip.id.to_be_bytes());
                head.extend(place.to_be_bytes());
                head.extend([ip.ttl, l4.proto, 0, 0]);
                head.extend(pseudo);
                head.extend(&ip.options);
                let sum = checksum(&head);
                head[10..12].copy_from_slice(&sum.to_be_bytes());
                out.extend([8, 0]);
                out.extend(head);
                let start = out.len();
                out.extend(rest);
                (out, start)
            }
            Body::Ip6(ip, l4) => {
                let rest = l4.write(&[ip.src, ip.last_dst.unwrap_or(ip.dst)].concat(), complete);
                let mut headers = Vec::new();
                for (i, (_, bytes)) in ip.headers.iter().enumerate() {
                    headers.push(ip.headers.get(i + 1).map_or(l4.proto, |(next, _)| *next));
                    headers.extend(bytes);
                }
                out.extend([0x86, 0xdd]);
                out.extend((6 << 28 | u32::from(ip.tclass) << 20 | ip.label).to_be_bytes());
                out.extend(((headers.len() + rest.len()) as u16).to_be_bytes());
                out.extend([ip.headers.first().map_or(l4.proto, |(first, _)| *first), ip.hops]);
                out.extend(ip.src);
                out.extend(ip.dst);
                out.extend(headers);
                let start = out.len();
                out.extend(rest);
                (out, start)
            }
        }
    }
}

impl L4 {
    fn write(&self, addresses: &[u8], complete: bool) -> Vec<u8> {
        let (mut out, field) = match self.proto {
            TCP => {
                let mut out = [self.a.to_be_bytes(), self.b.to_be_bytes()].concat();
                out.extend(self.seq.to_be_bytes());
                out.extend([0x0a, 0x0b, 0x0c, 0x0d, 0x50, self.flags, 0x7f, 0xff, 0, 0, 0, 0]);
                (out, 16)
            }
            UDP => {
                let len = 8 + self.payload.len() as u16;
                ([self.a.to_be_bytes(), self.b.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat(), 6)
            }
            _ => (vec![self.a as u8, self.b as u8, 0, 0, 0x12, 0x34, 0, 1], 2),
        };
        out.extend(&self.payload);
        let mut covered = Vec::new();
        if self.proto != ICMP {
            covered.extend(addresses);
            covered.extend((out.len() as u32).to_be_bytes());
            covered.extend([0, 0, 0, self.proto]);
        }
        let sum = if complete {
            covered.extend(&out);
            match checksum(&covered) {
                0 if self.proto == UDP => 0xffff,
                sum => sum,
            }
        } else {
            !checksum(&covered)
        };
        if !self.bare {
            out[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        }
        out
    }
}

/// Computes the checksum that was left to the device.
pub(crate) fn complete(bytes: &mut [u8], (start, field): (u16, u16)) {
    let (start, field) = (usize::from(start), usize::from(start + field));
    let sum = match checksum(&bytes[start..]) {
        // The other zero, as devices send it.
        0 => 0xffff,
        sum => sum,
    };
    bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

pub(crate) const LEFT: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const RIGHT: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn l4(proto: u8, a: u16, b: u16) -> L4 {
    let payload = (0..61u8).map(|i| i.wrapping_mul(7)).collect();
    L4 { proto, a, b, seq: 0x0102_0304, flags: 0x18, bare: false, payload }
}

/// TCP, UDP or ICMP over IPv4.
pub(crate) fn over4(proto: u8) -> Frame {
    let (a, b) = if proto == ICMP { (8, 0) } else { (40000, 443) };
    let ip =
        Ip4 { tos: 0x28, id: 0xfffe, ttl: 64, src: 0x0a01_0203, dst: 0xc0a8_0a14, options: Vec::new(), fragment: None };
    Frame { dst: RIGHT, src: LEFT, tags: Vec::new(), body: Body::Ip4(ip, l4(proto, a, b)) }
}

/// TCP, UDP or ICMPv6 over IPv6.
pub(crate) fn over6(proto: u8) -> Frame {
    let (a, b) = if proto == ICMPV6 { (128, 0) } else { (40000, 443) };
    let address = |last| [0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, last];
    let ip = Ip6 {
        tclass: 0x28,
        label: 0x12345,
        hops: 64,
        src: address(1),
        dst: address(2),
        headers: Vec::new(),
        last_dst: None,
    };
    Frame { dst: RIGHT, src: LEFT, tags: Vec::new(), body: Body::Ip6(ip, l4(proto, a, b)) }
}

pub(crate) fn arp() -> Frame {
    let arp = Arp { op: 1, sha: LEFT, spa: 0x0a00_0001, tha: [0; 6], tpa: 0x0a00_0002 };
    Frame { dst: [255; 6], src: LEFT, tags: Vec::new(), body: Body::Arp(arp) }
}
