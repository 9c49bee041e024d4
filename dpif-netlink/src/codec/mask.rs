//! Masks: which bits of a key the kernel compares.
//!
//! A mask's attributes are those of its key (the kernel allows no others), so what can be said is: this field of this header,
//! under these bits. The types that say which headers there are (Ethernet types, the presence of a tag, the family of a
//! tunnel) the kernel matches exactly or not at all.

use datapath_common::key::{MAC_PROTO_ETHERNET, VLAN_PRESENT};
use datapath_common::{Be16, Be32, FlowKey, Vlan};

use super::key::{Found, METADATA, TUPLES, bit, label_count, put_headers, put_key, put_metadata, tuple};
use super::shape::{self, Network, Transport};
use super::tunnel::{self, AF_INET, AF_INET6, TunnelOptions};
use super::{CodecError, Fitness, Result, fields, fixed, nsh};
use crate::attr::Writer;
use crate::uapi::key as attr;

/// Connection states that there are.
const CT_STATES: u32 = 0xff;
const CT_TRACKED: u32 = 0x20;
const LABEL_BITS: u32 = 0x000f_ffff;
/// Both bits of a kind of fragment.
const FRAG_BITS: u8 = 3;
const BOTTOM_OF_STACK: u32 = 0x100;
const EXACT_VLAN: Vlan = Vlan { tpid: Be16::MAX, tci: Be16::MAX };

/// Writes key and mask of a flow, each with `put` as the nest of its attribute. Refuses a mask that would come out wider.
pub fn encode_match(
    key: &FlowKey,
    mask: &FlowKey,
    exthdrs: bool,
    (key_attr, mask_attr): (u16, u16),
    to: &mut Writer,
) -> Result<()> {
    let kernel = normalize(key, mask, exthdrs);
    expressible(key, mask, &kernel)?;
    let nest = to.begin_nest(key_attr);
    // What is not matched needs no value: the kernel keeps keys masked, and reads what it is sent.
    put_key(key, Some(&kernel), &TunnelOptions::NONE, exthdrs, to);
    to.end(nest);
    let nest = to.begin_nest(mask_attr);
    put_mask(key, &kernel, &TunnelOptions::NONE, exthdrs, to);
    to.end(nest);
    Ok(())
}

/// Writes the mask of a flow with this key. Bits that the kernel has no attribute for are left out: [`encode_match`] sees to
/// it that they are not needed.
pub fn encode_mask(key: &FlowKey, mask: &FlowKey, options: &TunnelOptions, exthdrs: bool, to: &mut Writer) {
    put_mask(key, &normalize(key, mask, exthdrs), options, exthdrs, to);
}

/// Writes a mask as the kernel has it. Attributes of zeros are left out: the kernel looks at each to pass over it.
fn put_mask(key: &FlowKey, mask: &FlowKey, options: &TunnelOptions, exthdrs: bool, to: &mut Writer) {
    put_metadata(to, mask, Some(mask), mask.in_port != 0);
    // One that is left out is said to be compared exactly.
    if mask.recirc_id == 0 {
        to.put_u32(attr::RECIRC_ID, 0);
    }
    // Also without a tunnel: else packets of tunnels would match.
    tunnel::put(to, mask, key.tun_proto, options);
    if shape::is_ethernet(key) {
        fields::put_some(to, attr::ETHERNET, mask);
    }
    let mut nests = [None; 2];
    for (nest, tag) in nests.iter_mut().zip([mask.vlan, mask.cvlan]).take(shape::tags(key)) {
        to.put(attr::ETHERTYPE, &tag.tpid.0.to_ne_bytes());
        to.put(attr::VLAN, &tag.tci.0.to_ne_bytes());
        *nest = Some(to.begin_nest(attr::ENCAP));
    }
    // What is behind a tag may not be nothing at all: such a nest counts as none.
    if !mask.eth_type.is_zero() || shape::tags(key) != 0 {
        to.put_fixed(attr::ETHERTYPE, mask.eth_type.0.to_ne_bytes());
    }
    put_headers(to, key, mask, exthdrs);
    nests.into_iter().rev().flatten().for_each(|nest| to.end(nest));
    if shape::has_ct_tuple(key) {
        fields::put_some(to, tuple(key), mask);
    }
}

/// The mask that the kernel has for a flow put with `key` and `mask`.
///
/// It always matches exactly: whether there is a link-layer header, the tunnel's family, the presence of tags, a tag's
/// protocol. It matches exactly or not at all: the port, the Ethernet type. It has no fields that packets of the key's types
/// don't have.
pub fn normalize(key: &FlowKey, mask: &FlowKey, exthdrs: bool) -> FlowKey {
    let exact = |bits: bool| if bits { u32::MAX } else { 0 };
    let mut out = FlowKey::ZERO;
    (out.mac_proto, out.tun_proto) = (u8::MAX, u8::MAX);
    // "No port" is the attribute's absence, which a mask can't ask for.
    out.in_port = exact(mask.in_port != 0 && key.in_port != u32::MAX);
    (out.recirc_id, out.dp_hash) = (mask.recirc_id, mask.dp_hash);
    (out.skb_priority, out.skb_mark) = (mask.skb_priority, mask.skb_mark);
    (out.ct_state, out.ct_zone) = (mask.ct_state & CT_STATES, mask.ct_zone);
    (out.ct_mark, out.ct_label) = (mask.ct_mark, mask.ct_label);
    if shape::is_ethernet(key) {
        (out.eth_src, out.eth_dst) = (mask.eth_src, mask.eth_dst);
    }
    out.eth_type = if mask.eth_type.is_zero() { Be16::ZERO } else { Be16::MAX };
    let tag = |mask: Vlan| Vlan { tpid: Be16::MAX, tci: mask.tci | Be16::new(VLAN_PRESENT) };
    (out.vlan, out.cvlan) = match shape::tags(key) {
        0 => (EXACT_VLAN, Vlan::default()),
        1 => (tag(mask.vlan), EXACT_VLAN),
        _ => (tag(mask.vlan), tag(mask.cvlan)),
    };
    normalize_tunnel(key, mask, &mut out);
    normalize_headers(key, mask, exthdrs, &mut out);
    if shape::has_ct_tuple(key) {
        out.ct_orig_proto = mask.ct_orig_proto;
        (out.ct_orig_tp_src, out.ct_orig_tp_dst) = (mask.ct_orig_tp_src, mask.ct_orig_tp_dst);
        if shape::network(key) == Network::Ipv4 {
            (out.ct_orig_ipv4_src, out.ct_orig_ipv4_dst) = (mask.ct_orig_ipv4_src, mask.ct_orig_ipv4_dst);
        } else {
            (out.ct_orig_ipv6_src, out.ct_orig_ipv6_dst) = (mask.ct_orig_ipv6_src, mask.ct_orig_ipv6_dst);
        }
    }
    out
}

fn normalize_tunnel(key: &FlowKey, mask: &FlowKey, out: &mut FlowKey) {
    if key.tun_proto == 0 {
        return;
    }
    out.tun_flags = mask.tun_flags & tunnel::FLAGS;
    if key.tun_proto == AF_INET {
        (out.tun_ipv4_src, out.tun_ipv4_dst) = (mask.tun_ipv4_src, mask.tun_ipv4_dst);
    } else {
        (out.tun_ipv6_src, out.tun_ipv6_dst) = (mask.tun_ipv6_src, mask.tun_ipv6_dst);
    }
    // The id is there only with its flag, in masks too.
    if !mask.tun_id.is_zero() {
        out.tun_flags |= crate::uapi::tun_flag::KEY;
        out.tun_id = mask.tun_id;
    }
    (out.tun_tos, out.tun_ttl) = (mask.tun_tos, mask.tun_ttl);
    (out.tun_tp_src, out.tun_tp_dst) = (mask.tun_tp_src, mask.tun_tp_dst);
}

fn normalize_headers(key: &FlowKey, mask: &FlowKey, exthdrs: bool, out: &mut FlowKey) {
    match shape::network(key) {
        Network::None => {}
        network @ (Network::Ipv4 | Network::Ipv6) => {
            (out.ip_proto, out.ip_tos) = (mask.ip_proto, mask.ip_tos);
            (out.ip_ttl, out.ip_frag) = (mask.ip_ttl, mask.ip_frag);
            if network == Network::Ipv4 {
                (out.ipv4_src, out.ipv4_dst) = (mask.ipv4_src, mask.ipv4_dst);
            } else {
                (out.ipv6_src, out.ipv6_dst) = (mask.ipv6_src, mask.ipv6_dst);
                out.ipv6_label = mask.ipv6_label & Be32::new(LABEL_BITS);
                out.ipv6_exthdrs = if exthdrs { mask.ipv6_exthdrs } else { 0 };
            }
        }
        Network::Arp => {
            (out.ipv4_src, out.ipv4_dst, out.ip_proto) = (mask.ipv4_src, mask.ipv4_dst, mask.ip_proto);
            (out.arp_sha, out.arp_tha) = (mask.arp_sha, mask.arp_tha);
        }
        Network::Mpls => {
            let count = label_count(key);
            let mut any = false;
            for (out, mask) in out.mpls_lse.iter_mut().zip(mask.mpls_lse).take(count) {
                *out = mask;
                any |= !mask.is_zero();
            }
            // An attribute of zeros is none.
            out.mpls_labels = if any { (1 << count) - 1 } else { 0 };
        }
        Network::Nsh => {
            (out.nsh_flags, out.nsh_ttl) = (mask.nsh_flags, mask.nsh_ttl);
            (out.nsh_mdtype, out.nsh_np, out.nsh_path) = (mask.nsh_mdtype, mask.nsh_np, mask.nsh_path);
            if key.nsh_mdtype == nsh::MD1 {
                out.nsh_context = mask.nsh_context;
            }
        }
    }
    match shape::transport(key) {
        Transport::None => {}
        Transport::Tcp => {
            (out.tp_src, out.tp_dst, out.tcp_flags) = (mask.tp_src, mask.tp_dst, mask.tcp_flags);
        }
        Transport::Udp | Transport::Sctp => (out.tp_src, out.tp_dst) = (mask.tp_src, mask.tp_dst),
        Transport::Icmp | Transport::Icmpv6 { .. } => {
            let byte = |mask: Be16| mask & Be16::new(0xff);
            (out.tp_src, out.tp_dst) = (byte(mask.tp_src), byte(mask.tp_dst));
        }
    }
    if shape::transport(key) == (Transport::Icmpv6 { nd: true }) {
        (out.nd_target, out.arp_sha, out.arp_tha) = (mask.nd_target, mask.arp_sha, mask.arp_tha);
    }
}

/// Reads the mask of a flow with this key. `mask` and `options` are overwritten. What the kernel leaves out it compares
/// exactly (recirculation id, tags) or not at all (everything else).
pub fn decode_mask(bytes: &[u8], key: &FlowKey, mask: &mut FlowKey, options: &mut TunnelOptions) -> Result<Fitness> {
    *mask = FlowKey::ZERO;
    options.clear();
    (mask.mac_proto, mask.recirc_id) = (u8::MAX, u32::MAX);
    let mut found = Found::read(bytes)?;
    let mut extra = false;
    let mut known = METADATA | TUPLES;
    found.read_structs(METADATA | TUPLES, mask)?;
    // The kernel's number is 16 bits long; it shows the upper half of its mask as ones.
    mask.in_port = if mask.in_port & 0xffff == 0 { 0 } else { u32::MAX };
    if let Some(payload) = found.get(attr::TUNNEL) {
        mask.tun_proto = u8::MAX;
        extra |= tunnel::get(payload, mask, options, true)? == Fitness::TooMuch;
        known |= bit(attr::TUNNEL);
    }
    if let Some(payload) = found.get(attr::ETHERNET) {
        fields::from_struct(attr::ETHERNET, payload, mask)?;
    }
    known |= bit(attr::ETHERNET);
    for tag in 0..shape::tags(key) {
        let level = bit(attr::ETHERTYPE) | bit(attr::VLAN) | bit(attr::ENCAP);
        extra |= found.present & !(known | level) != 0 || found.unknown;
        let half = |kind| found.get(kind).map(|payload| fixed(payload, "vlan")).transpose();
        let tpid = half(attr::ETHERTYPE)?.map_or(Be16::MAX, |bytes| Be16(u16::from_ne_bytes(bytes)));
        let tci = half(attr::VLAN)?.map_or(Be16::MAX, |bytes| Be16(u16::from_ne_bytes(bytes)));
        if tci.get() & VLAN_PRESENT == 0 || tpid != Be16::MAX {
            return Err(CodecError::Contradiction("a vlan tag that is there, and a mask by which it need not be"));
        }
        *(if tag == 0 { &mut mask.vlan } else { &mut mask.cvlan }) = Vlan { tpid, tci };
        let Some(encap) = found.get(attr::ENCAP) else {
            return Ok(if extra { Fitness::TooMuch } else { Fitness::Perfect });
        };
        found = Found::read(encap)?;
        known = 0;
    }
    match shape::tags(key) {
        0 => mask.vlan = EXACT_VLAN,
        1 => mask.cvlan = EXACT_VLAN,
        _ => {}
    }
    if let Some(payload) = found.get(attr::ETHERTYPE) {
        mask.eth_type = Be16(u16::from_ne_bytes(fixed(payload, "eth_type")?));
        if mask.eth_type != Be16::MAX && !mask.eth_type.is_zero() {
            return Err(CodecError::Contradiction("an eth_type that is matched in part"));
        }
    }
    known |= bit(attr::ETHERTYPE);
    extra |= decode_headers(&found, key, mask, &mut known)?;
    extra |= found.present & !known != 0 || found.unknown;
    Ok(if extra { Fitness::TooMuch } else { Fitness::Perfect })
}

fn decode_headers(found: &Found<'_>, key: &FlowKey, mask: &mut FlowKey, known: &mut u64) -> Result<bool> {
    let mut extra = false;
    let network = shape::network(key);
    let transport = shape::transport(key);
    let nd = transport == Transport::Icmpv6 { nd: true };
    let more = [
        (network == Network::Ipv6).then_some(attr::IPV6_EXTHDRS),
        transport.attr(),
        (transport == Transport::Tcp).then_some(attr::TCP_FLAGS),
        nd.then_some(attr::ND),
    ];
    for kind in network.attr().into_iter().chain(more.into_iter().flatten()) {
        *known |= bit(kind);
        let Some(payload) = found.get(kind) else { continue };
        match kind {
            attr::MPLS => {
                let count = fields::read_mpls(payload, mask)?;
                extra |= count > mask.mpls_lse.len();
                let any = mask.mpls_lse.iter().any(|lse| !lse.is_zero());
                mask.mpls_labels = if any { (1 << count.min(mask.mpls_lse.len())) - 1 } else { 0 };
            }
            attr::NSH => {
                extra |= nsh::get(payload, mask, true)? == Fitness::TooMuch;
                // The kernel shows a mask of context headers also where packets have none.
                if key.nsh_mdtype != nsh::MD1 {
                    mask.nsh_context = [Be32::ZERO; 4];
                }
            }
            _ => {
                fields::from_struct(kind, payload, mask)?;
            }
        }
    }
    Ok(extra)
}

/// Whether the kernel's flow would match no more packets than this one; `kernel` is the mask that it would have.
fn expressible(key: &FlowKey, mask: &FlowKey, kernel: &FlowKey) -> Result<()> {
    // Left out, as a frame's without a type is, it would mean such frames.
    if shape::is_ethernet(key) && key.eth_type.is_zero() && !kernel.eth_type.is_zero() {
        return Err(CodecError::Inexpressible("a match on Ethernet type 0, which no frame has"));
    }
    let left = mask.words().iter().zip(kernel.words()).map(|(mask, kernel)| mask & !kernel);
    if left.clone().fold(0, |all, left| all | left) == 0 {
        return Ok(());
    }
    let implied = implied(key, kernel);
    for ((left, implied), key) in left.zip(implied.words()).zip(key.words()) {
        // What a packet of the key's types doesn't have is zero in it.
        if left & !implied != 0 || left & key != 0 {
            return Err(CodecError::Inexpressible("a mask of fields that the key's packets need not have"));
        }
    }
    Ok(())
}

/// Bits that are zero in each packet that agrees with the key under the kernel's mask.
fn implied(key: &FlowKey, kernel: &FlowKey) -> FlowKey {
    let mut out = FlowKey::ZERO;
    (out.reserved0, out.reserved1) = (u32::MAX, u16::MAX);
    out.ct_state = !CT_STATES;
    imply_vlan(key, &mut out);
    imply_tunnel(key, &mut out);
    if key.mac_proto != MAC_PROTO_ETHERNET {
        (out.eth_src, out.eth_dst) = ([u8::MAX; 6], [u8::MAX; 6]);
    }
    if kernel.ct_state & CT_TRACKED != 0 && key.ct_state & CT_TRACKED == 0 {
        imply_tuple(&mut out);
    }
    if kernel.eth_type != Be16::MAX {
        return out;
    }
    imply_network(key, kernel, &mut out);
    let network = shape::network(key);
    let types_exact = kernel.ip_proto == u8::MAX && kernel.ip_frag & FRAG_BITS == FRAG_BITS;
    if !network.is_ip() || types_exact {
        imply_transport(key, kernel, &mut out);
    }
    out
}

fn imply_vlan(key: &FlowKey, out: &mut FlowKey) {
    match shape::tags(key) {
        0 => (out.vlan, out.cvlan) = (EXACT_VLAN, EXACT_VLAN),
        1 => out.cvlan = EXACT_VLAN,
        _ => {}
    }
}

fn imply_tunnel(key: &FlowKey, out: &mut FlowKey) {
    let (v4, v6) = (Be32::MAX, [u8::MAX; 16]);
    if key.tun_proto != AF_INET {
        (out.tun_ipv4_src, out.tun_ipv4_dst) = (v4, v4);
    }
    if key.tun_proto != AF_INET6 {
        (out.tun_ipv6_src, out.tun_ipv6_dst, out.tun_label) = (v6, v6, v4);
    }
    if key.tun_proto == 0 {
        (out.tun_id, out.tun_flags) = (datapath_common::Be64::MAX, u16::MAX);
        (out.tun_tos, out.tun_ttl, out.tun_opts_len) = (u8::MAX, u8::MAX, u8::MAX);
        (out.tun_tp_src, out.tun_tp_dst) = (Be16::MAX, Be16::MAX);
    }
}

fn imply_tuple(out: &mut FlowKey) {
    out.ct_orig_proto = u8::MAX;
    (out.ct_orig_ipv4_src, out.ct_orig_ipv4_dst) = (Be32::MAX, Be32::MAX);
    (out.ct_orig_ipv6_src, out.ct_orig_ipv6_dst) = ([u8::MAX; 16], [u8::MAX; 16]);
    (out.ct_orig_tp_src, out.ct_orig_tp_dst) = (Be16::MAX, Be16::MAX);
}

/// Network headers other than the key's.
fn imply_network(key: &FlowKey, kernel: &FlowKey, out: &mut FlowKey) {
    let network = shape::network(key);
    if !network.is_ip() {
        imply_tuple(out);
        (out.ip_tos, out.ip_ttl, out.ip_frag) = (u8::MAX, u8::MAX, u8::MAX);
        if network != Network::Arp {
            out.ip_proto = u8::MAX;
        }
    } else {
        out.ip_frag = !FRAG_BITS;
    }
    if !matches!(network, Network::Ipv4 | Network::Arp) {
        (out.ipv4_src, out.ipv4_dst) = (Be32::MAX, Be32::MAX);
    }
    match network {
        Network::Ipv4 => {
            (out.ct_orig_ipv6_src, out.ct_orig_ipv6_dst) = ([u8::MAX; 16], [u8::MAX; 16]);
        }
        Network::Ipv6 => (out.ct_orig_ipv4_src, out.ct_orig_ipv4_dst) = (Be32::MAX, Be32::MAX),
        _ => {}
    }
    if network == Network::Ipv6 {
        out.ipv6_label = Be32::new(!LABEL_BITS);
    } else {
        (out.ipv6_src, out.ipv6_dst, out.ipv6_label) = ([u8::MAX; 16], [u8::MAX; 16], Be32::MAX);
        out.ipv6_exthdrs = u16::MAX;
    }
    if network != Network::Nsh {
        (out.nsh_flags, out.nsh_ttl, out.nsh_mdtype, out.nsh_np) = (u8::MAX, u8::MAX, u8::MAX, u8::MAX);
        out.nsh_path = Be32::MAX;
    }
    if network != Network::Nsh || (kernel.nsh_mdtype == u8::MAX && key.nsh_mdtype != nsh::MD1) {
        out.nsh_context = [Be32::MAX; 4];
    }
    imply_labels(key, kernel, out);
}

/// Labels below the bottom of the stack.
fn imply_labels(key: &FlowKey, kernel: &FlowKey, out: &mut FlowKey) {
    if shape::network(key) != Network::Mpls {
        (out.mpls_lse, out.mpls_labels) = ([Be32::MAX; 3], u16::MAX);
        return;
    }
    let count = label_count(key);
    let bottom = |of: &FlowKey| of.mpls_lse.get(count - 1).is_some_and(|lse| lse.get() & BOTTOM_OF_STACK != 0);
    if bottom(key) && bottom(kernel) {
        out.mpls_lse.iter_mut().skip(count).for_each(|lse| *lse = Be32::MAX);
        out.mpls_labels = !((1 << count) - 1);
    } else if count == key.mpls_lse.len() {
        // There is room for no more.
        out.mpls_labels = !0b111;
    }
}

/// Transport headers other than the key's.
fn imply_transport(key: &FlowKey, kernel: &FlowKey, out: &mut FlowKey) {
    let transport = shape::transport(key);
    let byte = Be16::new(0xff);
    match transport {
        Transport::None => (out.tp_src, out.tp_dst) = (Be16::MAX, Be16::MAX),
        Transport::Icmp | Transport::Icmpv6 { .. } => (out.tp_src, out.tp_dst) = (!byte, !byte),
        _ => {}
    }
    if transport != Transport::Tcp {
        out.tcp_flags = Be16::MAX;
    } else {
        out.tcp_flags = Be16::new(0xf000);
    }
    let no_nd = match transport {
        Transport::Icmpv6 { nd } => !nd && kernel.tp_src & byte == byte,
        _ => true,
    };
    if no_nd {
        out.nd_target = [u8::MAX; 16];
        if shape::network(key) != Network::Arp {
            (out.arp_sha, out.arp_tha) = ([u8::MAX; 6], [u8::MAX; 6]);
        }
    }
}
