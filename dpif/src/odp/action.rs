//! Datapath actions to text.

use std::fmt::Write;
use std::net::IpAddr;

use datapath_common::{Be16, FlowKey, Vlan};

use super::attr::{self, Attr, Shown, write_hex};
use super::cookie::Cookie;
use super::key::{write_lse, write_tci, write_tunnel_flags};
use super::{Style, flags};
use crate::action::{Action, CtAction, HashAlg, KeyAttr, NatAction, NatDirection, SetAction, UserspaceAction};
use crate::port::OdpPort;

/// All fields, without masks.
const EXACT: Shown = Shown { verbose: true, exact: true, short_op: false };

/// Writes a list of actions; an empty one drops.
pub(super) fn write_actions(out: &mut String, style: &Style<'_>, actions: &[Action]) {
    if actions.is_empty() {
        out.push_str("drop");
    }
    for (i, action) in actions.iter().enumerate() {
        if i != 0 {
            out.push(',');
        }
        write_action(out, style, action);
    }
}

fn write_action(out: &mut String, style: &Style<'_>, action: &Action) {
    // Writing to a string can't fail.
    let _ = match action {
        Action::Output(port) => {
            style.write_port(out, *port);
            Ok(())
        }
        Action::Userspace(action) => write_userspace(out, style, action),
        Action::Set(set) => write_set(out, set),
        Action::PushVlan(Vlan { tpid, tci }) => {
            out.push_str("push_vlan(");
            if tpid.get() != 0x8100 {
                let _ = write!(out, "tpid={:#06x},", tpid.get());
            }
            write_tci(out, *tci, Be16::MAX, false);
            out.write_char(')')
        }
        Action::PopVlan => out.write_str("pop_vlan"),
        Action::Recirc(id) => {
            out.push_str("recirc(");
            let _ = write_hex(out, (*id).into());
            out.write_char(')')
        }
        Action::Hash { alg: HashAlg::L4, basis } => write!(out, "hash(l4({basis}))"),
        Action::Hash { alg: HashAlg::SymL4, basis } => write!(out, "hash(sym_l4({basis}))"),
        Action::Trunc(len) => write!(out, "trunc({len})"),
        Action::Drop(_) => out.write_str("drop"),
        Action::Sample { probability, actions } => {
            let percent = 100.0 * f64::from(*probability) / f64::from(u32::MAX);
            let _ = write!(out, "sample(sample={percent:.1}%,actions(");
            write_actions(out, style, actions);
            out.write_str("))")
        }
        Action::Ct(ct) => {
            out.push_str("ct");
            let parts = ct_parts(ct);
            if parts.is_empty() { Ok(()) } else { write!(out, "({})", parts.join(",")) }
        }
        Action::CtClear => out.write_str("ct_clear"),
        Action::PushMpls { lse, eth_type } => {
            out.push_str("push_mpls(");
            write_lse(out, lse.get(), None);
            write!(out, ",eth_type=0x{:x})", eth_type.get())
        }
        Action::AddMpls { lse, eth_type, flags: _ } => {
            out.push_str("add_mpls(");
            write_lse(out, lse.get(), None);
            write!(out, ",eth_type=0x{:x})", eth_type.get())
        }
        Action::PopMpls(eth_type) => write!(out, "pop_mpls(eth_type=0x{:x})", eth_type.get()),
        Action::PushEth { src, dst } => {
            let key = FlowKey { eth_src: *src, eth_dst: *dst, ..FlowKey::ZERO };
            out.push_str("push_eth(");
            attr::ETH.write(out, &key, &key, EXACT);
            out.write_char(')')
        }
        Action::PopEth => out.write_str("pop_eth"),
        Action::PushNsh(header) => write_push_nsh(out, header),
        Action::PopNsh => out.write_str("pop_nsh()"),
        Action::Meter(id) => write!(out, "meter({id})"),
        Action::Clone(actions) => {
            out.push_str("clone(");
            write_actions(out, style, actions);
            out.write_char(')')
        }
        Action::CheckPktLen { pkt_len, if_greater, if_less_equal } => {
            let _ = write!(out, "check_pkt_len(size={pkt_len},gt(");
            write_actions(out, style, if_greater);
            out.push_str("),le(");
            write_actions(out, style, if_less_equal);
            out.write_str("))")
        }
        Action::DecTtl(actions) => {
            out.push_str("dec_ttl(le_1(");
            write_actions(out, style, actions);
            out.write_str("))")
        }
        Action::Psample { group, cookie } => {
            let _ = write!(out, "psample(group={group}");
            if !cookie.is_empty() {
                let _ = write!(out, ",cookie=0x{}", hex(cookie));
            }
            out.write_char(')')
        }
    };
}

fn ct_parts(ct: &CtAction) -> Vec<String> {
    let flag = |set: bool, name: &str| set.then(|| name.to_owned());
    let label = |bytes: [u8; 16]| format!("{:#x}", u128::from_le_bytes(bytes));
    let nat = ct.nat.as_ref().map(|nat| {
        let parts = nat_parts(nat);
        if parts.is_empty() { "nat".into() } else { format!("nat({})", parts.join(",")) }
    });
    [
        flag(ct.commit && !ct.force, "commit"),
        flag(ct.force, "force_commit"),
        (ct.zone != 0).then(|| format!("zone={}", ct.zone)),
        ct.mark.map(|(value, mask)| format!("mark={value:#x}/{mask:#x}")),
        ct.label.map(|(value, mask)| format!("label={}/{}", label(value), label(mask))),
        ct.helper.as_ref().map(|name| format!("helper={name}")),
        ct.timeout.as_ref().map(|name| format!("timeout={name}")),
        nat,
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn nat_parts(nat: &NatAction) -> Vec<String> {
    let flag = |set: bool, name: &str| set.then(|| name.to_owned());
    let direction = nat.direction.map(|direction| {
        let mut text = String::from(if direction == NatDirection::Src { "src" } else { "dst" });
        if let Some((first, last)) = nat.addresses {
            // With ports behind it an IPv6 address stands in brackets.
            let address = |address: IpAddr| match address {
                IpAddr::V6(v6) if nat.ports.is_some() => format!("[{v6}]"),
                other => other.to_string(),
            };
            let _ = write!(text, "={}", address(first));
            if last != first {
                let _ = write!(text, "-{}", address(last));
            }
        }
        if let Some((first, last)) = nat.ports {
            text.push_str(if nat.addresses.is_some() { ":" } else { "=:" });
            let _ = write!(text, "{first}");
            if last != first {
                let _ = write!(text, "-{last}");
            }
        }
        text
    });
    let flags = [flag(nat.persistent, "persistent"), flag(nat.hash, "hash"), flag(nat.random, "random")];
    direction.into_iter().chain(flags.into_iter().flatten()).collect()
}

fn write_userspace(out: &mut String, style: &Style<'_>, action: &UserspaceAction) -> std::fmt::Result {
    let _ = write!(out, "userspace(pid={}", action.pid);
    let port = |port: u32| {
        let mut name = String::new();
        style.write_port(&mut name, OdpPort(port));
        name
    };
    if let Some(cookie) = Cookie::decode(&action.cookie) {
        out.push(',');
        cookie.write(out, port);
    } else if !action.cookie.is_empty() {
        let _ = write!(out, ",userdata({})", hex(&action.cookie));
    }
    if action.with_actions {
        out.push_str(",actions");
    }
    if let Some(egress) = action.egress_tunnel_port {
        let _ = write!(out, ",tunnel_out_port={}", port(egress.0));
    }
    out.write_char(')')
}

/// The attribute of fields that a set action changes, if it is one.
pub(super) fn attr_of(attr: KeyAttr) -> Option<&'static Attr> {
    Some(match attr {
        KeyAttr::Ethernet => &attr::ETH,
        KeyAttr::Ipv4 => &attr::IPV4,
        KeyAttr::Ipv6 => &attr::IPV6,
        KeyAttr::Tcp => &attr::TCP,
        KeyAttr::Udp => &attr::UDP,
        KeyAttr::Sctp => &attr::SCTP,
        KeyAttr::Icmp => &attr::ICMP,
        KeyAttr::Icmpv6 => &attr::ICMPV6,
        KeyAttr::Arp => &attr::ARP,
        KeyAttr::Nd => &attr::ND,
        _ => return None,
    })
}

fn write_set(out: &mut String, set: &SetAction) -> std::fmt::Result {
    let SetAction { attr, value, mask } = set;
    out.push_str("set(");
    if let Some(attr) = attr_of(*attr) {
        let _ = write!(out, "{}(", attr.name);
        attr.write(out, value, mask, Shown::default());
    } else {
        match attr {
            KeyAttr::Priority => write_number(out, "skb_priority", value.skb_priority, mask.skb_priority),
            KeyAttr::SkbMark => write_number(out, "skb_mark", value.skb_mark, mask.skb_mark),
            KeyAttr::Mpls => {
                let ([lse, ..], [bits, ..]) = (value.mpls_lse, mask.mpls_lse);
                out.push_str("mpls(");
                write_lse(out, lse.get(), (bits.get() != u32::MAX).then_some(bits.get()));
            }
            KeyAttr::Nsh => {
                out.push_str("nsh(");
                super::key::write_nsh(out, value, Some(mask));
            }
            _ => write_tunnel(out, value),
        }
    }
    out.write_str("))")
}

/// A tunnel is set as a whole; what it doesn't have is zero.
fn write_tunnel(out: &mut String, value: &FlowKey) {
    out.push_str("tunnel(");
    let start = out.len();
    for field in attr::TUNNEL.fields.iter().filter(|field| field.get(value) != 0) {
        field.write(out, value, value, EXACT);
        out.push(',');
    }
    if value.tun_flags != 0 {
        write_tunnel_flags(out, value);
    } else if out.len() > start {
        out.pop();
    }
}

fn write_number(out: &mut String, name: &str, value: u32, mask: u32) {
    let _ = write!(out, "{name}(");
    let _ = write_hex(out, value.into());
    if mask != u32::MAX {
        out.push('/');
        let _ = write_hex(out, mask.into());
    }
}

/// A network service header (RFC 8300), or what is there of it.
fn write_push_nsh(out: &mut String, header: &[u8]) -> std::fmt::Result {
    let Some((base, context)) = header.split_first_chunk::<8>() else {
        return write!(out, "push_nsh(<error: {} bytes of header>)", header.len());
    };
    let [b0, b1, mdtype, np, s0, s1, s2, si] = *base;
    let (flags, ttl) = (b0 >> 4 & 3, u16::from_be_bytes([b0, b1]) >> 6 & 0x3f);
    let (mdtype, spi) = (mdtype & 0xf, u32::from_be_bytes([0, s0, s1, s2]));
    let _ = write!(out, "push_nsh(flags={flags},ttl={ttl},mdtype={mdtype},np={np},spi=0x{spi:x},si={si}");
    match mdtype {
        1 => {
            for (i, word) in context.chunks_exact(4).take(4).enumerate() {
                let word = word.iter().fold(0u32, |w, b| w << 8 | u32::from(*b));
                let _ = write!(out, ",c{}=0x{word:x}", i + 1);
            }
        }
        2 => {
            let digits = hex(context);
            let digits = digits.trim_start_matches('0');
            let _ = if digits.is_empty() { write!(out, ",md2=0") } else { write!(out, ",md2=0x{digits}") };
        }
        _ => out.push_str(",<error: unknown mdtype>"),
    }
    out.write_char(')')
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Packets, bytes and the rest of a flow's statistics.
pub(super) fn write_stats(out: &mut String, stats: &crate::FlowStats, now_ms: u64) {
    let _ = write!(out, "packets:{}, bytes:{}, used:", stats.packets, stats.bytes);
    if stats.used_ms == 0 {
        out.push_str("never");
    } else {
        let age = now_ms.saturating_sub(stats.used_ms);
        let _ = write!(out, "{}.{:03}s", age / 1000, age % 1000);
    }
    if stats.tcp_flags != 0 {
        out.push_str(", flags:");
        flags::write_tcp_short(out, stats.tcp_flags);
    }
}
