//! The reference's text of a flow with wildcards, read as the mask of our key.

use std::net::{Ipv4Addr, Ipv6Addr};

use datapath_common::{Be16, Be32, FlowKey};

/// What a `Megaflow: ` line looks at. A field with a value is looked at whole, unless a mask follows. The presence of a tag is
/// among the bits of its id; what says that there is none is not in the text.
pub(crate) fn parse_mask(text: &str) -> Result<FlowKey, String> {
    let mut mask = FlowKey::ZERO;
    for field in text.split(',') {
        set(&mut mask, field).ok_or_else(|| format!("unknown field {field} in {text}"))?;
    }
    Ok(mask)
}

fn set(mask: &mut FlowKey, field: &str) -> Option<()> {
    let (name, value) = field.split_once('=').unwrap_or((field, ""));
    let (value, bits) = value.split_once('/').unwrap_or((value, ""));
    match name {
        "eth" => {}
        // In the pipeline only: no datapath is told of these.
        "conj_id" | "metadata" => {}
        _ if name.starts_with("reg") => {}
        "ip" | "ipv6" | "arp" | "rarp" | "mpls" | "mplsm" | "dl_type" => mask.eth_type = Be16::MAX,
        "icmp" | "icmp6" | "tcp" | "tcp6" | "udp" | "udp6" | "sctp" | "sctp6" => {
            (mask.eth_type, mask.ip_proto) = (Be16::MAX, u8::MAX);
        }
        "recirc_id" => mask.recirc_id = u32::MAX,
        "in_port" => mask.in_port = u32::MAX,
        "pkt_mark" => mask.skb_mark = number(bits, u32::MAX)?,
        "tun_id" => mask.tun_id = datapath_common::Be64::new(u64::MAX),
        "vlan_tci" => mask.vlan.tci = Be16::new(number(bits, 0xffff)? as u16),
        "vlan_tci1" => mask.cvlan.tci = Be16::new(number(bits, 0xffff)? as u16),
        "dl_vlan" => mask.vlan.tci = mask.vlan.tci | Be16::new(0x1fff),
        "dl_vlan1" => mask.cvlan.tci = mask.cvlan.tci | Be16::new(0x1fff),
        "dl_vlan_pcp" => mask.vlan.tci = mask.vlan.tci | Be16::new(0xf000),
        "dl_vlan_pcp1" => mask.cvlan.tci = mask.cvlan.tci | Be16::new(0xf000),
        "dl_src" => mask.eth_src = mac(bits)?,
        "dl_dst" => mask.eth_dst = mac(bits)?,
        "nw_src" | "arp_spa" => mask.ipv4_src = ipv4(bits)?,
        "nw_dst" | "arp_tpa" => mask.ipv4_dst = ipv4(bits)?,
        "ipv6_src" => mask.ipv6_src = ipv6(bits)?,
        "ipv6_dst" => mask.ipv6_dst = ipv6(bits)?,
        "ipv6_label" => mask.ipv6_label = Be32::new(number(bits, 0xf_ffff)?),
        "nw_proto" | "arp_op" => mask.ip_proto = u8::MAX,
        "nw_tos" => mask.ip_tos |= 0xfc,
        "nw_ecn" => mask.ip_tos |= 0x03,
        "nw_ttl" => mask.ip_ttl = u8::MAX,
        "nw_frag" => mask.ip_frag = matches!(value, "no" | "first" | "later").then_some(u8::MAX)?,
        "tp_src" | "icmp_type" => mask.tp_src = Be16::new(number(bits, 0xffff)? as u16),
        "tp_dst" | "icmp_code" => mask.tp_dst = Be16::new(number(bits, 0xffff)? as u16),
        "tcp_flags" => mask.tcp_flags = Be16::new(tcp_flags(value)?),
        "arp_sha" | "nd_sll" => mask.arp_sha = mac(bits)?,
        "arp_tha" | "nd_tll" => mask.arp_tha = mac(bits)?,
        "nd_target" => mask.nd_target = ipv6(bits)?,
        _ => return None,
    }
    Some(())
}

fn number(text: &str, whole: u32) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.is_empty().then_some(whole),
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0xff; 6];
    if text.is_empty() {
        return Some(mac);
    }
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// `/24`, `/255.0.0.255`.
fn ipv4(text: &str) -> Option<Be32> {
    if text.is_empty() {
        return Some(Be32::MAX);
    }
    let bits = match text.parse::<u32>() {
        Ok(len) => u32::MAX.checked_shl(32 - len)?,
        Err(_) => text.parse::<Ipv4Addr>().ok()?.to_bits(),
    };
    Some(Be32::new(bits))
}

fn ipv6(text: &str) -> Option<[u8; 16]> {
    if text.is_empty() {
        return Some([0xff; 16]);
    }
    match text.parse::<u32>() {
        Ok(len) => Some(u128::MAX.checked_shl(128 - len)?.to_be_bytes()),
        Err(_) => Some(text.parse::<Ipv6Addr>().ok()?.octets()),
    }
}

/// `+syn-ack` looks at two flags, `syn|ack` at all.
fn tcp_flags(text: &str) -> Option<u16> {
    const NAMES: [&str; 9] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"];
    if !text.starts_with(['+', '-']) {
        return Some(0xfff);
    }
    let names = text.split(['+', '-']).filter(|name| !name.is_empty());
    names.map(|name| NAMES.iter().position(|known| *known == name)).try_fold(0, |bits, n| Some(bits | 1 << n?))
}
