//! The attributes of a datapath key as text: which fields each has, what they are called, and how their values look.
//!
//! One table serves formatting and parsing, flow keys and set actions. A field is a place in [`FlowKey`] and a [`Kind`] of
//! value; a value is read as an integer of up to 128 bits, so that one function prints and one parses every field.

use std::fmt::Write;
use std::mem::offset_of;
use std::net::{Ipv4Addr, Ipv6Addr};

use datapath_common::FlowKey;

use super::cursor::{Cursor, ParseError};

/// An attribute that is a list of named fields: `name(field=value,…)`.
pub(super) struct Attr {
    pub(super) name: &'static str,
    pub(super) fields: &'static [Field],
}

/// A field of an attribute.
pub(super) struct Field {
    pub(super) name: &'static str,
    /// Offset in [`FlowKey`].
    at: usize,
    pub(super) kind: Kind,
}

/// How the value of a field looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Mac,
    Ipv4,
    Ipv6,
    /// One byte, decimal.
    Dec8,
    /// One byte, hexadecimal.
    Hex8,
    /// Two bytes, decimal.
    Dec16,
    /// An eight-bit value in two bytes (ICMP type and code), decimal.
    Icmp,
    /// An ARP opcode: two bytes in text, one in the key.
    ArpOp,
    /// An IPv6 flow label, hexadecimal.
    Label,
    /// Fragment type: `no`, `first`, `later`. All or nothing.
    Frag,
    /// Eight bytes, hexadecimal.
    Hex64,
}

macro_rules! attr {
    ($name:literal, $($field:literal $place:ident $kind:ident),*) => {
        Attr { name: $name, fields: &[
            $(Field { name: $field, at: offset_of!(FlowKey, $place), kind: Kind::$kind }),*
        ] }
    };
}

pub(super) static ETH: Attr = attr!("eth", "src" eth_src Mac, "dst" eth_dst Mac);
pub(super) static IPV4: Attr = attr!("ipv4", "src" ipv4_src Ipv4, "dst" ipv4_dst Ipv4, "proto" ip_proto Dec8,
    "tos" ip_tos Hex8, "ttl" ip_ttl Dec8, "frag" ip_frag Frag);
pub(super) static IPV6: Attr = attr!("ipv6", "src" ipv6_src Ipv6, "dst" ipv6_dst Ipv6, "label" ipv6_label Label,
    "proto" ip_proto Dec8, "tclass" ip_tos Hex8, "hlimit" ip_ttl Dec8, "frag" ip_frag Frag);
pub(super) static TCP: Attr = attr!("tcp", "src" tp_src Dec16, "dst" tp_dst Dec16);
pub(super) static UDP: Attr = attr!("udp", "src" tp_src Dec16, "dst" tp_dst Dec16);
pub(super) static SCTP: Attr = attr!("sctp", "src" tp_src Dec16, "dst" tp_dst Dec16);
pub(super) static ICMP: Attr = attr!("icmp", "type" tp_src Icmp, "code" tp_dst Icmp);
pub(super) static ICMPV6: Attr = attr!("icmpv6", "type" tp_src Icmp, "code" tp_dst Icmp);
pub(super) static ARP: Attr = attr!("arp", "sip" ipv4_src Ipv4, "tip" ipv4_dst Ipv4, "op" ip_proto ArpOp,
    "sha" arp_sha Mac, "tha" arp_tha Mac);
pub(super) static ND: Attr = attr!("nd", "target" nd_target Ipv6, "sll" arp_sha Mac, "tll" arp_tha Mac);
pub(super) static CT_TUPLE4: Attr = attr!("ct_tuple4", "src" ct_orig_ipv4_src Ipv4, "dst" ct_orig_ipv4_dst Ipv4,
    "proto" ct_orig_proto Dec8, "tp_src" ct_orig_tp_src Dec16, "tp_dst" ct_orig_tp_dst Dec16);
pub(super) static CT_TUPLE6: Attr = attr!("ct_tuple6", "src" ct_orig_ipv6_src Ipv6, "dst" ct_orig_ipv6_dst Ipv6,
    "proto" ct_orig_proto Dec8, "src_port" ct_orig_tp_src Dec16, "dst_port" ct_orig_tp_dst Dec16);
/// The tunnel's fields without its flags, which are written `flags(…)`.
pub(super) static TUNNEL: Attr = attr!("tunnel", "tun_id" tun_id Hex64, "src" tun_ipv4_src Ipv4,
    "dst" tun_ipv4_dst Ipv4, "ipv6_src" tun_ipv6_src Ipv6, "ipv6_dst" tun_ipv6_dst Ipv6, "tos" tun_tos Hex8,
    "ttl" tun_ttl Dec8, "tp_src" tun_tp_src Dec16, "tp_dst" tun_tp_dst Dec16);

/// Which fields are written, and how.
#[derive(Clone, Copy, Default)]
pub(super) struct Shown {
    /// Those that aren't matched as well.
    pub(super) verbose: bool,
    /// There is no mask: all is exact.
    pub(super) exact: bool,
    /// An exact ARP opcode has a mask, `op=1/0xff`, as in the kernel's dumps: it keeps eight of the opcode's sixteen bits.
    pub(super) short_op: bool,
}

impl Attr {
    /// Whether `mask` has a bit in any of the fields.
    pub(super) fn is_matched(&self, mask: &FlowKey) -> bool {
        self.fields.iter().any(|field| field.get(mask) != 0)
    }

    /// The field with this name.
    pub(super) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// `field=value/mask,…` of the fields that are to be shown.
    pub(super) fn write(&self, out: &mut String, key: &FlowKey, mask: &FlowKey, shown: Shown) {
        let start = out.len();
        for field in self.fields {
            if field.get(mask) != 0 || (shown.verbose && field.kind != Kind::Frag) {
                if out.len() != start {
                    out.push(',');
                }
                field.write(out, key, mask, shown);
            }
        }
    }
}

impl Field {
    /// The value, as an integer.
    pub(super) fn get(&self, key: &FlowKey) -> u128 {
        (self.at..self.at + self.kind.width()).fold(0, |value, at| value << 8 | u128::from(byte(key, at)))
    }

    /// Sets the value.
    pub(super) fn set(&self, key: &mut FlowKey, value: u128) {
        let end = self.at + self.kind.width();
        for (i, at) in (self.at..end).rev().enumerate() {
            set_byte(key, at, (value >> (8 * i)) as u8);
        }
    }

    /// `name=value/mask`.
    pub(super) fn write(&self, out: &mut String, key: &FlowKey, mask: &FlowKey, shown: Shown) {
        let (value, mask) = (self.get(key), self.get(mask));
        let full = if self.kind == Kind::ArpOp && !shown.short_op { 0xff } else { self.kind.full_mask() };
        if self.kind == Kind::Frag && mask & 3 != 3 {
            let _ = write!(out, "error: partial mask not supported for frag ({mask:#x})");
            return;
        }
        let _ = write!(out, "{}=", self.name);
        self.kind.write(out, value);
        if !shown.exact && mask & full != full && self.kind != Kind::Frag {
            out.push('/');
            self.kind.write_mask(out, mask);
        }
    }

    /// Parses `value` or `value/mask` into key and mask.
    pub(super) fn parse(&self, text: &mut Cursor<'_>, key: &mut FlowKey, mask: &mut FlowKey) -> Result<(), ParseError> {
        let value = self.kind.parse(text)?;
        let mask_value =
            if self.kind != Kind::Frag && text.eat("/") { self.kind.parse(text)? } else { self.kind.full_mask() };
        // Of an ARP opcode the key has the low byte.
        let fits = if self.kind == Kind::ArpOp { 0xff } else { u128::MAX };
        self.set(key, value & mask_value & fits);
        self.set(mask, mask_value & fits);
        Ok(())
    }
}

impl Kind {
    fn width(self) -> usize {
        match self {
            Self::Dec8 | Self::Hex8 | Self::ArpOp | Self::Frag => 1,
            Self::Dec16 | Self::Icmp => 2,
            Self::Ipv4 | Self::Label => 4,
            Self::Mac => 6,
            Self::Hex64 => 8,
            Self::Ipv6 => 16,
        }
    }

    /// The mask of an exact match.
    fn full_mask(self) -> u128 {
        match self {
            Self::Icmp => 0xff,
            Self::ArpOp => 0xffff,
            Self::Label => 0xf_ffff,
            Self::Ipv6 => u128::MAX,
            _ => (1 << (8 * self.width())) - 1,
        }
    }

    fn write(self, out: &mut String, value: u128) {
        // Writing to a string can't fail.
        let _ = match self {
            Self::Mac => {
                let [_, _, a, b, c, d, e, f] = (value as u64).to_be_bytes();
                write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
            }
            Self::Ipv4 => write!(out, "{}", Ipv4Addr::from_bits(value as u32)),
            Self::Ipv6 => write_ipv6(out, Ipv6Addr::from_bits(value)),
            Self::Dec8 | Self::Dec16 | Self::Icmp | Self::ArpOp => write!(out, "{value}"),
            Self::Hex8 | Self::Label => write_hex(out, value),
            Self::Frag => match value {
                0 => write!(out, "no"),
                1 => write!(out, "first"),
                2 => write!(out, "later"),
                _ => write!(out, "<error>"),
            },
            Self::Hex64 => write!(out, "{value:#x}"),
        };
    }

    fn write_mask(self, out: &mut String, mask: u128) {
        match self {
            Self::Mac | Self::Ipv4 | Self::Ipv6 => self.write(out, mask),
            _ => {
                let _ = write_hex(out, mask);
            }
        }
    }

    fn parse(self, text: &mut Cursor<'_>) -> Result<u128, ParseError> {
        match self {
            Self::Mac => text.token("an Ethernet address such as 50:54:00:00:00:09", parse_mac).map(u128::from),
            Self::Ipv4 => text
                .token("an IPv4 address such as 10.0.0.1", |t| t.parse::<Ipv4Addr>().ok())
                .map(|a| u128::from(a.to_bits())),
            Self::Ipv6 => {
                text.token("an IPv6 address such as fe80::1", |t| t.parse::<Ipv6Addr>().ok()).map(Ipv6Addr::to_bits)
            }
            Self::Frag => text.token("no, first or later", |t| match t {
                "no" => Some(0),
                "first" => Some(1),
                "later" => Some(2),
                _ => None,
            }),
            _ => text.number(self.full_mask()),
        }
    }
}

/// `%#x` of C: zero has no prefix.
pub(super) fn write_hex(out: &mut String, value: u128) -> std::fmt::Result {
    if value == 0 { out.write_char('0') } else { write!(out, "{value:#x}") }
}

/// `inet_ntop`, which writes the last 32 bits dotted where all before them are zero.
fn write_ipv6(out: &mut String, address: Ipv6Addr) -> std::fmt::Result {
    let bits = address.to_bits();
    if bits >> 32 == 0 && bits >> 16 != 0 {
        write!(out, "::{}", Ipv4Addr::from_bits(bits as u32))
    } else {
        write!(out, "{address}")
    }
}

fn parse_mac(text: &str) -> Option<u64> {
    let mut parts = text.split(':');
    let mut address = 0;
    for _ in 0..6 {
        let part = parts.next().filter(|p| matches!(p.len(), 1 | 2) && !p.starts_with('+'))?;
        address = address << 8 | u64::from(u8::from_str_radix(part, 16).ok()?);
    }
    parts.next().is_none().then_some(address)
}

fn byte(key: &FlowKey, at: usize) -> u8 {
    let word = key.words().get(at / 8).map_or([0; 8], |word| word.to_ne_bytes());
    word.get(at % 8).copied().unwrap_or(0)
}

fn set_byte(key: &mut FlowKey, at: usize, value: u8) {
    if let Some(word) = key.words_mut().get_mut(at / 8) {
        let mut bytes = word.to_ne_bytes();
        if let Some(byte) = bytes.get_mut(at % 8) {
            *byte = value;
        }
        *word = u64::from_ne_bytes(bytes);
    }
}
