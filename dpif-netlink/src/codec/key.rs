//! Keys of packets and flows.

use datapath_common::key::{MAC_PROTO_ETHERNET, MAC_PROTO_NONE, VLAN_PRESENT};
use datapath_common::{Be16, FlowKey, Vlan};

use super::shape::{self, ETH_802_2, ETH_MIN, Network, Transport, is_vlan_type};
use super::tunnel::{self, TunnelOptions};
use super::{CodecError, Fitness, Result, fields, fixed, nsh};
use crate::attr::{Attrs, HEADER, Writer};
use crate::uapi::key as attr;

/// What a key says where the kernel names no port.
const NO_PORT: u32 = u32::MAX;
/// More tags than a key has room for.
const MAX_TAGS: usize = 2;
/// A fragment is none, the first, or a later one.
const MAX_FRAG: u8 = 2;

/// Attributes of one level by their number.
pub(super) struct Found<'a> {
    bytes: &'a [u8],
    /// Where in `bytes` the payload of each begins, and its length.
    by_kind: [(u16, u16); attr::MAX as usize + 1],
    /// Those that are there.
    pub(super) present: u64,
    /// Whether there are attributes of higher numbers.
    pub(super) unknown: bool,
}

impl<'a> Found<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > usize::from(u16::MAX) {
            return Err(CodecError::Length("a key", bytes.len()));
        }
        let mut found = Self { bytes, by_kind: [(0, 0); attr::MAX as usize + 1], present: 0, unknown: false };
        let mut attrs = Attrs::new(bytes);
        let mut at = HEADER;
        while let Some(one) = attrs.next() {
            let (kind, payload) = one?;
            match found.by_kind.get_mut(usize::from(kind)) {
                None => found.unknown = true,
                Some(_) if found.present & bit(kind) != 0 => return Err(CodecError::Duplicate(kind)),
                Some(place) => {
                    *place = (at as u16, payload.len() as u16);
                    found.present |= bit(kind);
                }
            }
            at = HEADER + bytes.len() - attrs.left();
        }
        Ok(found)
    }

    pub(super) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        if self.present & bit(kind) == 0 {
            return None;
        }
        let (at, len) = *self.by_kind.get(usize::from(kind))?;
        self.bytes.get(usize::from(at)..usize::from(at) + usize::from(len))
    }

    /// Reads the plain structures of those of `kinds` that are there.
    pub(super) fn read_structs(&self, kinds: u64, key: &mut FlowKey) -> Result<()> {
        let mut left = self.present & kinds;
        while left != 0 {
            let kind = left.trailing_zeros() as u16;
            fields::from_struct(kind, self.get(kind).unwrap_or_default(), key)?;
            left &= left - 1;
        }
        Ok(())
    }
}

/// The bit of an attribute; none for numbers that a key has no attribute of.
pub(super) const fn bit(kind: u16) -> u64 {
    if kind < u64::BITS as u16 { 1 << kind } else { 0 }
}

/// Attributes that any key may have, and none must.
pub(super) const METADATA: u64 = bit(attr::RECIRC_ID)
    | bit(attr::DP_HASH)
    | bit(attr::PRIORITY)
    | bit(attr::IN_PORT)
    | bit(attr::SKB_MARK)
    | bit(attr::CT_STATE)
    | bit(attr::CT_ZONE)
    | bit(attr::CT_MARK)
    | bit(attr::CT_LABELS);
/// The original direction's tuple of a connection.
pub(super) const TUPLES: u64 = bit(attr::CT_ORIG_TUPLE_IPV4) | bit(attr::CT_ORIG_TUPLE_IPV6);

/// Counts what is missing and what is too much, level by level.
struct Fit {
    missing: bool,
    extra: bool,
}

impl Fit {
    /// `expected` has to be there, `allowed` may.
    fn level(&mut self, found: &Found<'_>, expected: u64, allowed: u64) {
        self.missing |= expected & !found.present != 0;
        self.extra |= found.present & !(expected | allowed) != 0 || found.unknown;
    }

    fn fitness(&self) -> Fitness {
        if self.missing {
            Fitness::TooLittle
        } else if self.extra {
            Fitness::TooMuch
        } else {
            Fitness::Perfect
        }
    }
}

/// Reads the key of a packet or flow. `key` and `options` are overwritten.
pub fn decode_key(bytes: &[u8], key: &mut FlowKey, options: &mut TunnelOptions) -> Result<Fitness> {
    let fitness = decode_levels(bytes, key, options)?;
    Ok(if forget_strange_tuple(key) { fitness.max(Fitness::TooMuch) } else { fitness })
}

/// Takes out an original direction's tuple that packets of the key's types don't have; whether there was one.
fn forget_strange_tuple(key: &mut FlowKey) -> bool {
    // Most packets have none.
    let none = key.ct_orig_proto == 0
        && (key.ct_orig_tp_src, key.ct_orig_tp_dst) == Default::default()
        && (key.ct_orig_ipv4_src, key.ct_orig_ipv4_dst) == Default::default()
        && (key.ct_orig_ipv6_src, key.ct_orig_ipv6_dst) == ([0; 16], [0; 16]);
    if none {
        return false;
    }
    let before = *key;
    let (v4, v6) = match (shape::has_ct_tuple(key), shape::network(key)) {
        (false, _) => (false, false),
        (true, Network::Ipv4) => (true, false),
        (true, _) => (false, true),
    };
    if !v4 {
        (key.ct_orig_ipv4_src, key.ct_orig_ipv4_dst) = Default::default();
    }
    if !v6 {
        (key.ct_orig_ipv6_src, key.ct_orig_ipv6_dst) = Default::default();
    }
    if !v4 && !v6 {
        (key.ct_orig_proto, key.ct_orig_tp_src, key.ct_orig_tp_dst) = Default::default();
    }
    *key != before
}

fn decode_levels(bytes: &[u8], key: &mut FlowKey, options: &mut TunnelOptions) -> Result<Fitness> {
    *key = FlowKey::ZERO;
    options.clear();
    key.in_port = NO_PORT;
    let mut found = Found::read(bytes)?;
    let mut fit = Fit { missing: false, extra: false };
    let mut allowed = METADATA | TUPLES;
    found.read_structs(METADATA | TUPLES, key)?;
    if let Some(payload) = found.get(attr::TUNNEL) {
        match tunnel::get(payload, key, options, false)? {
            Fitness::Perfect => {}
            Fitness::TooMuch => fit.extra = true,
            Fitness::TooLittle => fit.missing = true,
        }
        allowed |= bit(attr::TUNNEL);
    }
    let mut expected = 0;
    key.mac_proto = match found.get(attr::ETHERNET) {
        Some(payload) => {
            fields::from_struct(attr::ETHERNET, payload, key)?;
            expected |= bit(attr::ETHERNET);
            MAC_PROTO_ETHERNET
        }
        None => {
            expected |= bit(attr::ETHERTYPE);
            MAC_PROTO_NONE
        }
    };
    let mut tag = 0;
    loop {
        let eth_type = eth_type(&found, key)?;
        let has_tag = found.present & (bit(attr::VLAN) | bit(attr::ENCAP)) != 0;
        if !is_vlan_type(eth_type) || !has_tag || tag == MAX_TAGS {
            key.eth_type = Be16::new(eth_type);
            break;
        }
        fit.level(&found, expected | bit(attr::VLAN) | bit(attr::ENCAP), allowed | bit(attr::ETHERTYPE));
        let (Some(tci), Some(encap)) = (found.get(attr::VLAN), found.get(attr::ENCAP)) else {
            key.eth_type = Be16::new(eth_type);
            return Ok(fit.fitness());
        };
        let tci = Be16(u16::from_ne_bytes(fixed(tci, "vlan")?));
        if tci.get() & VLAN_PRESENT == 0 {
            // A tag that the frame ends in: there is nothing behind it.
            if !tci.is_zero() {
                return Err(CodecError::Contradiction("a vlan tag without the bit that says it is present"));
            }
            key.eth_type = Be16::new(eth_type);
            fit.extra |= !encap.is_empty();
            return Ok(fit.fitness());
        }
        let vlan = Vlan { tpid: Be16::new(eth_type), tci };
        *(if tag == 0 { &mut key.vlan } else { &mut key.cvlan }) = vlan;
        tag += 1;
        found = Found::read(encap)?;
        (expected, allowed) = (0, 0);
    }
    allowed |= bit(attr::ETHERTYPE);
    decode_network(&found, key, &mut fit, expected, allowed)?;
    Ok(fit.fitness())
}

/// The Ethernet type of a level. The absence says that the frame has a length there.
fn eth_type(found: &Found<'_>, key: &FlowKey) -> Result<u16> {
    let Some(payload) = found.get(attr::ETHERTYPE) else {
        return Ok(if shape::is_ethernet(key) { ETH_802_2 } else { 0 });
    };
    let eth_type = Be16(u16::from_ne_bytes(fixed(payload, "eth_type")?)).get();
    // A masked key, as a flow's is, has nothing where nothing is matched.
    if eth_type < ETH_MIN && eth_type != 0 {
        return Err(CodecError::Contradiction("an eth_type that is a length"));
    }
    Ok(eth_type)
}

fn decode_network(
    found: &Found<'_>,
    key: &mut FlowKey,
    fit: &mut Fit,
    mut expected: u64,
    mut allowed: u64,
) -> Result<()> {
    let network = shape::network(key);
    if let Some(kind) = network.attr() {
        expected |= bit(kind);
        if let Some(payload) = found.get(kind) {
            match network {
                Network::Mpls => {
                    let count = fields::read_mpls(payload, key)?;
                    key.mpls_labels = ((1u32 << count.min(key.mpls_lse.len())) - 1) as u16;
                    fit.extra |= count > key.mpls_lse.len();
                }
                Network::Nsh => match nsh::get(payload, key, false)? {
                    Fitness::Perfect => {}
                    Fitness::TooMuch => fit.extra = true,
                    Fitness::TooLittle => fit.missing = true,
                },
                _ => {
                    fields::from_struct(kind, payload, key)?;
                }
            }
            if network == Network::Arp && payload.get(8).is_some_and(|high| *high != 0) {
                return Err(CodecError::Contradiction("an arp operation that a key has no room for"));
            }
            if network.is_ip() && key.ip_frag > MAX_FRAG {
                return Err(CodecError::Contradiction("a kind of fragment that there isn't"));
            }
        }
    }
    if network == Network::Ipv6 {
        allowed |= bit(attr::IPV6_EXTHDRS);
        if let Some(payload) = found.get(attr::IPV6_EXTHDRS) {
            fields::from_struct(attr::IPV6_EXTHDRS, payload, key)?;
        }
    }
    if found.present & expected == expected {
        decode_transport(found, key, &mut expected, &mut allowed)?;
    }
    fit.level(found, expected, allowed);
    Ok(())
}

fn decode_transport(found: &Found<'_>, key: &mut FlowKey, expected: &mut u64, allowed: &mut u64) -> Result<()> {
    let Some(kind) = shape::transport(key).attr() else { return Ok(()) };
    *expected |= bit(kind);
    if let Some(payload) = found.get(kind) {
        fields::from_struct(kind, payload, key)?;
    }
    match shape::transport(key) {
        Transport::Tcp => {
            // Kernels before the attribute had TCP flows too.
            *allowed |= bit(attr::TCP_FLAGS);
            if let Some(payload) = found.get(attr::TCP_FLAGS) {
                fields::from_struct(attr::TCP_FLAGS, payload, key)?;
            }
        }
        Transport::Icmpv6 { nd: true } => {
            *expected |= bit(attr::ND);
            if let Some(payload) = found.get(attr::ND) {
                fields::from_struct(attr::ND, payload, key)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Writes the key of a flow or of a packet that is to be executed. With `exthdrs`, the kernel knows `ipv6_exthdrs`.
pub fn encode_key(key: &FlowKey, options: &TunnelOptions, exthdrs: bool, to: &mut Writer) {
    put_key(key, None, options, exthdrs, to);
}

/// As [`encode_key`]; of the metadata only those that `wanted`, a mask, has bits of.
pub(super) fn put_key(
    key: &FlowKey,
    wanted: Option<&FlowKey>,
    options: &TunnelOptions,
    exthdrs: bool,
    to: &mut Writer,
) {
    // The kernel says "no port" by the absence.
    put_metadata(to, key, wanted, key.in_port != NO_PORT);
    if key.tun_proto != 0 {
        tunnel::put(to, key, key.tun_proto, options);
    }
    if shape::is_ethernet(key) {
        put(to, attr::ETHERNET, key);
    }
    let mut nests = [None; MAX_TAGS];
    let tags = [key.vlan, key.cvlan];
    for (nest, tag) in nests.iter_mut().zip(tags).take(shape::tags(key)) {
        to.put(attr::ETHERTYPE, &tag.tpid.0.to_ne_bytes());
        to.put(attr::VLAN, &tag.tci.0.to_ne_bytes());
        *nest = Some(to.begin_nest(attr::ENCAP));
    }
    let eth_type = key.eth_type.get();
    if !shape::is_ethernet(key) || (eth_type != ETH_802_2 && eth_type != 0) {
        to.put(attr::ETHERTYPE, &key.eth_type.0.to_ne_bytes());
    }
    put_headers(to, key, key, exthdrs);
    nests.into_iter().rev().flatten().for_each(|nest| to.end(nest));
    if shape::has_ct_tuple(key) {
        put(to, tuple(key), key);
    }
}

/// Writes what a packet's bytes don't say: the metadata of a packet that is to be executed, and its tunnel's options.
pub fn encode_metadata(key: &FlowKey, options: &TunnelOptions, to: &mut Writer) {
    put_metadata(to, key, Some(key), key.in_port != NO_PORT);
    if key.tun_proto != 0 {
        tunnel::put(to, key, key.tun_proto, options);
    }
    if shape::has_ct_tuple(key) {
        put(to, tuple(key), key);
    }
    if !shape::is_ethernet(key) {
        to.put(attr::ETHERTYPE, &key.eth_type.0.to_ne_bytes());
    }
}

/// Writes the metadata that `wanted` has bits of, or all, and the port if `port`.
pub(super) fn put_metadata(to: &mut Writer, from: &FlowKey, wanted: Option<&FlowKey>, port: bool) {
    if port {
        to.put_u32(attr::IN_PORT, from.in_port);
    }
    let mut put_u32 = |kind, field: fn(&FlowKey) -> u32| {
        if wanted.is_none_or(|wanted| field(wanted) != 0) {
            to.put_u32(kind, field(from));
        }
    };
    put_u32(attr::RECIRC_ID, |key| key.recirc_id);
    put_u32(attr::DP_HASH, |key| key.dp_hash);
    put_u32(attr::PRIORITY, |key| key.skb_priority);
    put_u32(attr::SKB_MARK, |key| key.skb_mark);
    put_u32(attr::CT_STATE, |key| key.ct_state);
    put_u32(attr::CT_MARK, |key| key.ct_mark);
    if wanted.is_none_or(|wanted| wanted.ct_zone != 0) {
        to.put_u16(attr::CT_ZONE, from.ct_zone);
    }
    if wanted.is_none_or(|wanted| wanted.ct_label != [0; 16]) {
        to.put_fixed(attr::CT_LABELS, from.ct_label);
    }
}

/// Which attribute has the original direction's tuple of packets like these.
pub(super) fn tuple(key: &FlowKey) -> u16 {
    if shape::network(key) == Network::Ipv4 { attr::CT_ORIG_TUPLE_IPV4 } else { attr::CT_ORIG_TUPLE_IPV6 }
}

/// Writes the headers behind the Ethernet type that packets like `key` have, with the values of `from` (key or mask).
pub(super) fn put_headers(to: &mut Writer, key: &FlowKey, from: &FlowKey, exthdrs: bool) {
    match shape::network(key) {
        Network::Mpls => put_mpls(to, key, from),
        // The kernel passes over masks of zeros, but not over a nest with zeros in it.
        Network::Nsh if std::ptr::eq(key, from) || !nsh::is_zero(from) => nsh::put(to, from, key.nsh_mdtype),
        _ => {}
    }
    for kind in plain_headers(key, exthdrs) {
        if std::ptr::eq(key, from) {
            put(to, kind, from);
        } else {
            fields::put_some(to, kind, from);
        }
    }
}

/// Attributes of the headers behind the Ethernet type that are plain structures.
fn plain_headers(key: &FlowKey, exthdrs: bool) -> impl Iterator<Item = u16> {
    let (network, transport) = (shape::network(key), shape::transport(key));
    let of_network = network.attr().filter(|_| !matches!(network, Network::Mpls | Network::Nsh));
    let behind = match transport {
        Transport::Tcp => Some(attr::TCP_FLAGS),
        Transport::Icmpv6 { nd: true } => Some(attr::ND),
        _ => None,
    };
    let extensions = (exthdrs && network == Network::Ipv6).then_some(attr::IPV6_EXTHDRS);
    [of_network, extensions, transport.attr(), behind].into_iter().flatten()
}

fn put_mpls(to: &mut Writer, key: &FlowKey, from: &FlowKey) {
    let [a, b, c] = from.mpls_lse.map(|lse| lse.0.to_ne_bytes());
    let all = [a, b, c];
    let count = label_count(key);
    to.put(attr::MPLS, all.as_flattened().get(..4 * count).unwrap_or_default());
}

/// Labels that a key has.
pub(super) fn label_count(key: &FlowKey) -> usize {
    (key.mpls_labels.trailing_ones() as usize).clamp(1, key.mpls_lse.len())
}

/// Writes a plain structure.
pub(super) fn put(to: &mut Writer, kind: u16, from: &FlowKey) {
    fields::put(to, kind, from);
}
