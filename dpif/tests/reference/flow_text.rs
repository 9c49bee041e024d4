//! What the reference says about a packet, read into our key.

use std::net::{Ipv4Addr, Ipv6Addr};

use datapath_common::key::{FRAG_FIRST, FRAG_LATER, FRAG_NONE, VLAN_PRESENT};
use datapath_common::{Be16, Be32, FlowKey};
use dpif::odp::{ParseError, parse_flow_key};

/// The key of an OpenFlow flow in text, as `ofproto/trace` shows it behind `Flow: `. A tag's tpid is not in there.
pub(crate) fn parse_trace(text: &str) -> Result<FlowKey, String> {
    let line = text.lines().next().and_then(|line| line.strip_prefix("Flow: ")).ok_or("no flow in the answer")?;
    let mut key = FlowKey::ZERO;
    for field in line.split(',') {
        set(&mut key, field).ok_or_else(|| format!("unknown field {field} in {line}"))?;
    }
    Ok(key)
}

/// Sets what a word such as `tcp` or `nw_ttl=64` says; `None` if it is unknown.
fn set(key: &mut FlowKey, field: &str) -> Option<()> {
    let (name, value) = field.split_once('=').unwrap_or((field, ""));
    match name {
        "ip" | "icmp" | "tcp" | "udp" | "sctp" => key.eth_type = Be16::new(0x0800),
        "ipv6" | "icmp6" | "tcp6" | "udp6" | "sctp6" => key.eth_type = Be16::new(0x86dd),
        "arp" => key.eth_type = Be16::new(0x0806),
        "rarp" => key.eth_type = Be16::new(0x8035),
        "mpls" => key.eth_type = Be16::new(0x8847),
        "mplsm" => key.eth_type = Be16::new(0x8848),
        "dl_type" => key.eth_type = Be16::new(number(value)? as u16),
        _ => {}
    }
    match name {
        "icmp" => key.ip_proto = 1,
        "tcp" | "tcp6" => key.ip_proto = 6,
        "udp" | "udp6" => key.ip_proto = 17,
        "icmp6" => key.ip_proto = 58,
        "sctp" | "sctp6" => key.ip_proto = 132,
        "ip" | "ipv6" | "arp" | "rarp" | "mpls" | "mplsm" | "dl_type" => {}
        "in_port" => key.in_port = number(value)?,
        "vlan_tci" | "vlan_tci1" => return (value == "0x0000").then_some(()),
        "dl_vlan" => key.vlan.tci = Be16::new(VLAN_PRESENT | number(value)? as u16),
        "dl_vlan_pcp" => key.vlan.tci = key.vlan.tci | Be16::new((number(value)? as u16) << 13),
        "dl_vlan1" => key.cvlan.tci = Be16::new(VLAN_PRESENT | number(value)? as u16),
        "dl_vlan_pcp1" => key.cvlan.tci = key.cvlan.tci | Be16::new((number(value)? as u16) << 13),
        "dl_src" => key.eth_src = mac(value)?,
        "dl_dst" => key.eth_dst = mac(value)?,
        "nw_src" | "arp_spa" => key.ipv4_src = ipv4(value)?,
        "nw_dst" | "arp_tpa" => key.ipv4_dst = ipv4(value)?,
        "ipv6_src" => key.ipv6_src = value.parse::<Ipv6Addr>().ok()?.octets(),
        "ipv6_dst" => key.ipv6_dst = value.parse::<Ipv6Addr>().ok()?.octets(),
        "ipv6_label" => key.ipv6_label = Be32::new(number(value)?),
        "nw_proto" | "arp_op" => key.ip_proto = number(value)? as u8,
        "nw_tos" | "nw_ecn" => key.ip_tos |= number(value)? as u8,
        "nw_ttl" => key.ip_ttl = number(value)? as u8,
        "nw_frag" => {
            key.ip_frag = match value {
                "no" => FRAG_NONE,
                "first" => FRAG_FIRST,
                "later" => FRAG_LATER,
                _ => return None,
            }
        }
        "tp_src" | "icmp_type" => key.tp_src = Be16::new(number(value)? as u16),
        "tp_dst" | "icmp_code" => key.tp_dst = Be16::new(number(value)? as u16),
        "tcp_flags" => key.tcp_flags = Be16::new(tcp_flags(value)?),
        "arp_sha" | "nd_sll" => key.arp_sha = mac(value)?,
        "arp_tha" | "nd_tll" => key.arp_tha = mac(value)?,
        "nd_target" => key.nd_target = value.parse::<Ipv6Addr>().ok()?.octets(),
        // Fields that the kernel's key doesn't have.
        "nd_reserved" | "nd_options_type" | "igmp_group_ip4" => {}
        "mpls_label" => add_lse(key, number(value)? << 12),
        "mpls_tc" => add_lse(key, number(value)? << 9),
        "mpls_bos" => add_lse(key, number(value)? << 8),
        "mpls_ttl" => add_lse(key, number(value)?),
        "mpls_lse1" => key.mpls_lse[1] = Be32::new(number(value)?),
        "mpls_lse2" => key.mpls_lse[2] = Be32::new(number(value)?),
        "nsh_flags" => key.nsh_flags = number(value)? as u8,
        "nsh_ttl" => key.nsh_ttl = number(value)? as u8,
        "nsh_mdtype" => key.nsh_mdtype = number(value)? as u8,
        "nsh_np" => key.nsh_np = number(value)? as u8,
        "nsh_spi" => key.nsh_path = key.nsh_path | Be32::new(number(value)? << 8),
        "nsh_si" => key.nsh_path = key.nsh_path | Be32::new(number(value)?),
        "nsh_c1" => key.nsh_context[0] = Be32::new(number(value)?),
        "nsh_c2" => key.nsh_context[1] = Be32::new(number(value)?),
        "nsh_c3" => key.nsh_context[2] = Be32::new(number(value)?),
        "nsh_c4" => key.nsh_context[3] = Be32::new(number(value)?),
        _ => return None,
    }
    Some(())
}

fn add_lse(key: &mut FlowKey, bits: u32) {
    key.mpls_lse[0] = key.mpls_lse[0] | Be32::new(bits);
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn ipv4(text: &str) -> Option<Be32> {
    Some(Be32::new(text.parse::<Ipv4Addr>().ok()?.to_bits()))
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// `syn|ack`; a bit without a name is `[800]`.
fn tcp_flags(text: &str) -> Option<u16> {
    const NAMES: [&str; 9] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns"];
    if text == "0" {
        return Some(0);
    }
    text.split('|').try_fold(0, |flags, name| {
        let bit = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            Some(hex) => u16::from_str_radix(hex, 16).ok()?,
            None => 1 << NAMES.iter().position(|known| *known == name)?,
        };
        Some(flags | bit)
    })
}

/// The source address in a line of `dpctl/dump-flows -m`; `None` where the line is no flow.
pub(crate) fn source_of_dump(line: &str) -> Option<[u8; 6]> {
    let (_, rest) = line.split_once("eth(src=")?;
    mac(rest.split(',').next()?)
}

/// The key of such a line, all of it, also what the flow doesn't match.
pub(crate) fn parse_dump(line: &str) -> Result<FlowKey, ParseError> {
    let key = line.split(", packets:").next().unwrap_or_default();
    // A label stack without bottom and label is written so.
    let key = without_masks(key).replace("mpls((bad key length 0)", "mpls()");
    let number = |name: &str| (name == "p1").then_some(dpif::OdpPort(1));
    parse_flow_key(&key, Some(&number)).map(|(key, _)| key)
}

/// The text with all masks taken out: every value counts as exact. That a frame has no Ethernet type is said by a mask, which
/// stays.
fn without_masks(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('/') {
        out.push_str(before);
        if out.ends_with("eth_type(0") {
            out.push('/');
            rest = after;
        } else {
            rest = after.get(after.find([',', ')']).unwrap_or(after.len())..).unwrap_or_default();
        }
    }
    out + rest
}
