//! Text to datapath keys.
//!
//! An attribute that is not there is not matched, with the exceptions that the kernel makes: `recirc_id` is always matched
//! exactly, and an Ethernet frame without `vlan(…)` is one without a tag. Attributes that need another one (`tcp(…)` needs a
//! TCP packet) are refused without it: they share their place in the key with others.

use datapath_common::extract::{eth_type, ip_proto};
use datapath_common::key::{MAC_PROTO_NONE, VLAN_PRESENT};
use datapath_common::{Be16, Be32, FlowKey, Vlan};

use super::attr::{self, Attr};
use super::cursor::{Cursor, ParseError};
use super::{PortNumbers, flags, key::TUNNEL_FLAGS};
use crate::port::OdpPort;

/// Parses a key; the cursor is at the end then.
pub(super) fn parse_key(text: &mut Cursor<'_>, numbers: PortNumbers<'_>) -> Result<(FlowKey, FlowKey), ParseError> {
    let mut parser = Parser { key: FlowKey::ZERO, mask: FlowKey::ZERO, seen: Vec::new(), numbers };
    skip_ufid(text)?;
    let level = parser.level(text, 0)?;
    if !text.is_at_end() {
        return Err(text.expected("an attribute such as in_port(1)"));
    }
    parser.finish(&level)?;
    Ok((parser.key, parser.mask))
}

/// Parses the one attribute of a set action, its name being read already and `(` being next. Says which it was; `None` is an
/// unknown one.
pub(super) fn parse_settable(name: &str, text: &mut Cursor<'_>) -> Result<Option<(FlowKey, FlowKey)>, ParseError> {
    let mut parser = Parser { key: FlowKey::ZERO, mask: FlowKey::ZERO, seen: Vec::new(), numbers: None };
    let known = parser.attribute(name, text)?;
    Ok(known.then_some((parser.key, parser.mask)))
}

struct Parser<'a, 'n> {
    key: FlowKey,
    mask: FlowKey,
    /// Attributes with the place where each stands and how many tags it is in.
    seen: Vec<(&'static str, Cursor<'a>, usize)>,
    numbers: PortNumbers<'n>,
}

/// What stands in one pair of parentheses of `encap`, or outside of all.
#[derive(Default)]
struct Level {
    eth_type: Option<(Be16, Be16)>,
    vlan: Option<Vlan>,
    vlan_mask: Vlan,
    inner: Option<Box<Level>>,
}

/// All attributes of fields.
static ATTRS: [&Attr; 13] = [
    &attr::ETH,
    &attr::IPV4,
    &attr::IPV6,
    &attr::TCP,
    &attr::UDP,
    &attr::SCTP,
    &attr::ICMP,
    &attr::ICMPV6,
    &attr::ARP,
    &attr::ND,
    &attr::CT_TUPLE4,
    &attr::CT_TUPLE6,
    &attr::TUNNEL,
];

/// Attributes that are one hexadecimal number of the key, with its bits.
const NUMBERS: [(&str, u128); 9] = [
    ("recirc_id", u32::MAX as u128),
    ("dp_hash", u32::MAX as u128),
    ("skb_priority", u32::MAX as u128),
    ("skb_mark", u32::MAX as u128),
    ("ct_zone", u16::MAX as u128),
    ("ct_mark", u32::MAX as u128),
    ("ct_label", u128::MAX),
    ("ipv6_exthdrs", u16::MAX as u128),
    ("in_port", u32::MAX as u128),
];

impl<'a> Parser<'a, '_> {
    /// Attributes up to a closing parenthesis or the end.
    fn level(&mut self, text: &mut Cursor<'a>, depth: usize) -> Result<Level, ParseError> {
        let mut level = Level::default();
        loop {
            text.skip_separators();
            if text.is_at_end() || (depth > 0 && text.rest().starts_with(')')) {
                return Ok(level);
            }
            let start = text.clone();
            let name = text.name();
            let place = self.seen.len();
            match name {
                "eth_type" => {
                    text.expect("(")?;
                    let (value, mask) = text.masked_number(0xffff)?;
                    text.expect(")")?;
                    self.note("eth_type", start.clone(), depth)?;
                    level.eth_type = Some((Be16::new(value as u16), Be16::new(mask as u16)));
                }
                "vlan" => {
                    self.note("vlan", start.clone(), depth)?;
                    if depth >= 2 {
                        return Err(start.expected("at most two vlan attributes"));
                    }
                    let (tci, mask) = parse_tci(text)?;
                    level.vlan = Some(Vlan { tpid: Be16::ZERO, tci });
                    level.vlan_mask = Vlan { tpid: Be16::ZERO, tci: mask };
                }
                "encap" => {
                    self.note("encap", start.clone(), depth)?;
                    text.expect("(")?;
                    let before = self.seen.len();
                    let inner = self.level(text, depth + 1)?;
                    // Of a frame that ends in its tag there is nothing to match behind it.
                    if level.vlan.is_none() && (level.eth_type.is_none() || self.seen.len() != before) {
                        return Err(start.expected("vlan(…) before encap(…)"));
                    }
                    level.inner = Some(Box::new(inner));
                    text.expect(")")?;
                }
                _ => {
                    if !self.attribute(name, text)? {
                        return Err(start.expected("an attribute such as in_port(1)"));
                    }
                    // `attribute` has noted its name; it stands where the name begins.
                    if let Some(seen) = self.seen.get_mut(place) {
                        (seen.1, seen.2) = (start.clone(), depth);
                    }
                    if self.seen.iter().take(place).any(|s| Some(s.0) == self.seen.get(place).map(|s| s.0)) {
                        return Err(start.expected("each attribute only once"));
                    }
                }
            }
        }
    }

    fn note(&mut self, name: &'static str, at: Cursor<'a>, depth: usize) -> Result<(), ParseError> {
        if self.seen.iter().any(|(n, _, d)| *n == name && *d == depth) {
            return Err(at.expected("each attribute only once"));
        }
        self.seen.push((name, at, depth));
        Ok(())
    }

    /// One attribute but for those of `level`. `false` if the name is unknown.
    fn attribute(&mut self, name: &str, text: &mut Cursor<'a>) -> Result<bool, ParseError> {
        let start = text.clone();
        if let Some(attr) = ATTRS.iter().find(|attr| attr.name == name) {
            self.seen.push((attr.name, start, 0));
            text.expect("(")?;
            self.fields(attr, text)?;
            text.expect(")")?;
        } else if let Some((name, max)) = NUMBERS.iter().find(|(n, _)| *n == name) {
            self.seen.push((name, start, 0));
            text.expect("(")?;
            self.number(name, *max, text)?;
            text.expect(")")?;
        } else {
            let name = match name {
                "ct_state" => "ct_state",
                "tcp_flags" => "tcp_flags",
                "mpls" => "mpls",
                "nsh" => "nsh",
                "packet_type" => "packet_type",
                _ => return Ok(false),
            };
            self.seen.push((name, start, 0));
            text.expect("(")?;
            match name {
                "ct_state" => (self.key.ct_state, self.mask.ct_state) = flags::CT_STATE.parse(text)?,
                "tcp_flags" => {
                    let (value, mask) = flags::TCP.parse(text)?;
                    self.key.tcp_flags = Be16::new(value as u16);
                    self.mask.tcp_flags = Be16::new(mask as u16);
                }
                "mpls" => self.mpls(text)?,
                "nsh" => self.nsh(text)?,
                _ => self.packet_type(text)?,
            }
            text.expect(")")?;
        }
        Ok(true)
    }

    fn fields(&mut self, attr: &'static Attr, text: &mut Cursor<'a>) -> Result<(), ParseError> {
        let tunnel = std::ptr::eq(attr, &attr::TUNNEL);
        let mut first = true;
        while !text.rest().starts_with(')') {
            if !std::mem::take(&mut first) {
                text.expect(",")?;
            }
            let start = text.clone();
            let name = text.name();
            if tunnel && name == "flags" {
                text.expect("(")?;
                let (value, mask) = flags::TUNNEL.parse(text)?;
                text.expect(")")?;
                let bits = |shown: u32| TUNNEL_FLAGS.iter().filter(|(_, s)| shown & s != 0).map(|(bit, _)| bit).sum();
                (self.key.tun_flags, self.mask.tun_flags) = (bits(value), bits(mask));
                continue;
            }
            // The two spellings of the original tuple's ports.
            let name = match (attr.name, name) {
                ("ct_tuple6", "tp_src") => "src_port",
                ("ct_tuple6", "tp_dst") => "dst_port",
                _ => name,
            };
            let Some(field) = attr.field(name) else {
                let names: Vec<_> = attr.fields.iter().map(|f| f.name).collect();
                return Err(start.expected(&format!("a field of {}: {}", attr.name, names.join(", "))));
            };
            text.expect("=")?;
            field.parse(text, &mut self.key, &mut self.mask)?;
        }
        if tunnel {
            // The family follows from the addresses.
            let ipv6 = self.mask.tun_ipv6_src != [0; 16] || self.mask.tun_ipv6_dst != [0; 16];
            self.key.tun_proto = if ipv6 { AF_INET6 } else { AF_INET };
            self.mask.tun_proto = u8::MAX;
        }
        Ok(())
    }

    fn number(&mut self, name: &str, max: u128, text: &mut Cursor<'a>) -> Result<(), ParseError> {
        if name == "in_port"
            && let Some(numbers) = self.numbers
            && !text.rest().starts_with(|c: char| c.is_ascii_digit())
        {
            let port = text.token("a port's name or number", numbers)?;
            (self.key.in_port, self.mask.in_port) = (port.0, u32::MAX);
            return Ok(());
        }
        let (value, mask) = text.masked_number(max)?;
        let (key, key_mask) = (&mut self.key, &mut self.mask);
        match name {
            "recirc_id" => (key.recirc_id, key_mask.recirc_id) = (value as u32, u32::MAX),
            "dp_hash" => (key.dp_hash, key_mask.dp_hash) = (value as u32, mask as u32),
            "skb_priority" => (key.skb_priority, key_mask.skb_priority) = (value as u32, mask as u32),
            "skb_mark" => (key.skb_mark, key_mask.skb_mark) = (value as u32, mask as u32),
            "ct_zone" => (key.ct_zone, key_mask.ct_zone) = (value as u16, mask as u16),
            "ct_mark" => (key.ct_mark, key_mask.ct_mark) = (value as u32, mask as u32),
            "ct_label" => (key.ct_label, key_mask.ct_label) = (value.to_le_bytes(), mask.to_le_bytes()),
            "ipv6_exthdrs" => (key.ipv6_exthdrs, key_mask.ipv6_exthdrs) = (value as u16, mask as u16),
            _ => (key.in_port, key_mask.in_port) = (value as u32, mask as u32),
        }
        Ok(())
    }

    fn mpls(&mut self, text: &mut Cursor<'a>) -> Result<(), ParseError> {
        let mut n = 0;
        while !text.rest().starts_with(')') {
            if n != 0 {
                text.expect(",")?;
            }
            let start = text.clone();
            let (Some(key), Some(mask)) = (self.key.mpls_lse.get_mut(n), self.mask.mpls_lse.get_mut(n)) else {
                return Err(start.expected("at most three labels"));
            };
            let (value, bits) = parse_lse(text)?;
            (*key, *mask) = (Be32::new(value), Be32::new(bits));
            n += 1;
        }
        // Labels up to the bottom of the stack, as far as the key holds them.
        self.key.mpls_labels = (1 << n) - 1;
        self.mask.mpls_labels = self.key.mpls_labels;
        Ok(())
    }

    fn nsh(&mut self, text: &mut Cursor<'a>) -> Result<(), ParseError> {
        let (key, mask) = (&mut self.key, &mut self.mask);
        let mut first = true;
        while !text.rest().starts_with(')') {
            if !std::mem::take(&mut first) {
                text.expect(",")?;
            }
            let start = text.clone();
            let name = text.name();
            text.expect("=")?;
            let max = match name {
                "flags" | "ttl" | "mdtype" | "np" | "si" => 0xff,
                "spi" => 0xff_ffff,
                "c1" | "c2" | "c3" | "c4" => u128::from(u32::MAX),
                _ => return Err(start.expected("a field of nsh: flags, ttl, mdtype, np, spi, si, c1, c2, c3, c4")),
            };
            let (value, bits) = text.masked_number(max)?;
            let (byte, byte_mask) = (value as u8, bits as u8);
            let (word, word_mask) = (value as u32, bits as u32);
            match name {
                "flags" => (key.nsh_flags, mask.nsh_flags) = (byte, byte_mask),
                "ttl" => (key.nsh_ttl, mask.nsh_ttl) = (byte, byte_mask),
                "mdtype" => (key.nsh_mdtype, mask.nsh_mdtype) = (byte, byte_mask),
                "np" => (key.nsh_np, mask.nsh_np) = (byte, byte_mask),
                "spi" => {
                    key.nsh_path = key.nsh_path | Be32::new(word << 8);
                    mask.nsh_path = mask.nsh_path | Be32::new(word_mask << 8);
                }
                "si" => {
                    key.nsh_path = key.nsh_path | Be32::new(word);
                    mask.nsh_path = mask.nsh_path | Be32::new(word_mask);
                }
                _ => {
                    let at = match name {
                        "c1" => 0,
                        "c2" => 1,
                        "c3" => 2,
                        _ => 3,
                    };
                    if let (Some(key), Some(mask)) = (key.nsh_context.get_mut(at), mask.nsh_context.get_mut(at)) {
                        (*key, *mask) = (Be32::new(word), Be32::new(word_mask));
                    }
                }
            }
        }
        Ok(())
    }

    /// `ns=0,id=0` is Ethernet; `ns=1` a packet without a link layer.
    fn packet_type(&mut self, text: &mut Cursor<'a>) -> Result<(), ParseError> {
        text.expect("ns=")?;
        let start = text.clone();
        let (ns, mask) = text.masked_number(0xffff)?;
        text.expect(",id=")?;
        text.masked_number(0xffff)?;
        match ns {
            0 => {}
            1 if mask == 0 => {}
            1 => self.key.mac_proto = MAC_PROTO_NONE,
            _ => return Err(start.expected("packet type 0 or 1")),
        }
        self.mask.mac_proto = if mask == 0 { 0 } else { u8::MAX };
        Ok(())
    }

    /// Puts the tags and the type where they belong, and checks that everything has what it needs.
    fn finish(&mut self, outer: &Level) -> Result<(), ParseError> {
        let ethernet = self.seen.iter().any(|(name, ..)| matches!(*name, "eth" | "packet_type" | "vlan"))
            && self.key.mac_proto != MAC_PROTO_NONE;
        let tags = [(&mut self.key.vlan, &mut self.mask.vlan), (&mut self.key.cvlan, &mut self.mask.cvlan)];
        let mut level = Some(outer);
        for (key, mask) in tags {
            match level.and_then(|l| l.vlan.map(|vlan| (l, vlan))) {
                Some((outside, vlan)) if vlan.tci.get() & VLAN_PRESENT != 0 => {
                    let (tpid, tpid_mask) = outside.eth_type.unwrap_or_default();
                    *key = Vlan { tpid, ..vlan };
                    *mask = Vlan { tpid: tpid_mask, ..outside.vlan_mask };
                    level = outside.inner.as_deref();
                }
                // No tag, or one that ends with the packet, whose tpid is the packet's type.
                _ => {
                    if ethernet && level.is_some() {
                        mask.tci = Be16::MAX;
                    }
                    break;
                }
            }
        }
        if let Some((value, mask)) = level.and_then(|l| l.eth_type) {
            // A frame without an Ethernet type has no type in the text of the key and an exact one in that of the mask.
            let none = value.is_zero() && mask == Be16::MAX;
            self.key.eth_type = if none { Be16::new(eth_type::NONE) } else { value };
            self.mask.eth_type = mask;
        }
        self.check()
    }

    fn check(&self) -> Result<(), ParseError> {
        for (name, at, _) in &self.seen {
            // One of which nothing is matched needs the types in the key only: a verbose text has it, however little of them is
            // matched.
            let wild = ATTRS.iter().any(|attr| attr.name == *name && !attr.is_matched(&self.mask));
            let exact_type = (wild || self.mask.eth_type == Be16::MAX).then_some(self.key.eth_type.get());
            let proto = (wild || self.mask.ip_proto == u8::MAX).then_some(self.key.ip_proto);
            let ip = matches!(exact_type, Some(eth_type::IPV4 | eth_type::IPV6));
            let (fits, needed) = match *name {
                "eth" | "vlan" => (self.key.mac_proto != MAC_PROTO_NONE, "an Ethernet packet"),
                "ipv4" | "ct_tuple4" => (exact_type == Some(eth_type::IPV4), "eth_type(0x0800)"),
                "ipv6" | "ct_tuple6" | "ipv6_exthdrs" => (exact_type == Some(eth_type::IPV6), "eth_type(0x86dd)"),
                "arp" => {
                    (matches!(exact_type, Some(eth_type::ARP | eth_type::RARP)), "eth_type(0x0806) or eth_type(0x8035)")
                }
                "mpls" => (
                    matches!(exact_type, Some(eth_type::MPLS | eth_type::MPLS_MC)),
                    "eth_type(0x8847) or eth_type(0x8848)",
                ),
                "nsh" => (exact_type == Some(eth_type::NSH), "eth_type(0x894f)"),
                "tcp" | "tcp_flags" => (ip && proto == Some(ip_proto::TCP), "an IP packet with proto=6"),
                "udp" => (ip && proto == Some(ip_proto::UDP), "an IP packet with proto=17"),
                "sctp" => (ip && proto == Some(ip_proto::SCTP), "an IP packet with proto=132"),
                "icmp" => {
                    (exact_type == Some(eth_type::IPV4) && proto == Some(ip_proto::ICMP), "an IPv4 packet with proto=1")
                }
                "nd" => (
                    exact_type == Some(eth_type::IPV6)
                        && proto == Some(ip_proto::ICMPV6)
                        && (wild || self.mask.tp_src.get() & 0xff == 0xff)
                        && matches!(self.key.tp_src.get(), 135 | 136),
                    "an ICMPv6 packet of type 135 or 136",
                ),
                "icmpv6" => (
                    exact_type == Some(eth_type::IPV6) && proto == Some(ip_proto::ICMPV6),
                    "an IPv6 packet with proto=58",
                ),
                _ => continue,
            };
            if !fits {
                return Err(at.expected(&format!("{needed}, which {name} needs")));
            }
        }
        Ok(())
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `(vid=…,pcp=…,cfi=…)`: the tag is present unless `cfi=0`, and that is always matched.
fn parse_tci(text: &mut Cursor<'_>) -> Result<(Be16, Be16), ParseError> {
    text.expect("(")?;
    let (mut tci, mut mask) = (VLAN_PRESENT, VLAN_PRESENT);
    let mut first = true;
    while !text.eat(")") {
        if !std::mem::take(&mut first) {
            text.expect(",")?;
        }
        let start = text.clone();
        let (shift, max) = match text.name() {
            "vid" => (0, 0xfff),
            "pcp" => (13, 7),
            "cfi" => (12, 1),
            _ => return Err(start.expected("vid, pcp or cfi")),
        };
        text.expect("=")?;
        let (value, bits) = text.masked_number(max)?;
        let field = (max as u16) << shift;
        tci = tci & !field | (value as u16) << shift;
        mask |= (bits as u16) << shift;
    }
    Ok((Be16::new(tci), Be16::new(mask)))
}

/// `label=…,tc=…,ttl=…,bos=…`, host order, with the mask.
pub(super) fn parse_lse(text: &mut Cursor<'_>) -> Result<(u32, u32), ParseError> {
    let (mut lse, mut mask) = (0, 0);
    for (i, (name, shift, max)) in
        [("label=", 12, 0xf_ffff), ("tc=", 9, 7), ("ttl=", 0, 0xff), ("bos=", 8, 1)].into_iter().enumerate()
    {
        if i != 0 {
            text.expect(",")?;
        }
        text.expect(name)?;
        let value = text.number(max)? as u32;
        // The masks of the short fields are written without the 0x that they are meant with.
        let bits = if text.eat("/") {
            let hex = |t: &str| u32::from_str_radix(t.strip_prefix("0x").unwrap_or(t), 16).ok();
            text.token("a hexadecimal mask", |t| hex(t).filter(|m| u128::from(*m) <= max))?
        } else {
            max as u32
        };
        lse |= (value & bits) << shift;
        mask |= bits << shift;
    }
    Ok((lse, mask))
}

/// A flow's id can stand in front of its key.
fn skip_ufid(text: &mut Cursor<'_>) -> Result<(), ParseError> {
    text.skip_separators();
    if text.eat("ufid:") {
        let start = text.clone();
        let id = text.until(", ");
        if id.len() != 36 || !id.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            return Err(start.expected("a flow's id of 32 hexadecimal digits"));
        }
    }
    Ok(())
}

/// The number of a port by its number or name.
pub(super) fn parse_port(text: &mut Cursor<'_>, numbers: PortNumbers<'_>) -> Result<OdpPort, ParseError> {
    let by_name = |token: &str| numbers.and_then(|numbers| numbers(token));
    text.token("a port's number or name", |token| match Cursor::new(token).number(u32::MAX.into()) {
        Ok(number) => Some(OdpPort(number as u32)),
        Err(_) => by_name(token),
    })
}
