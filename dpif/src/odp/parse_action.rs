//! Text to datapath actions.

use datapath_common::key::VLAN_PRESENT;
use datapath_common::{Be16, Be32, Vlan};

use super::PortNumbers;
use super::attr;
use super::cookie::Cookie;
use super::cursor::{Cursor, ParseError};
use super::parse_key::{parse_lse, parse_port, parse_settable};
use super::{parse_ct, parse_nsh};
use crate::action::{Action, HashAlg, KeyAttr, SetAction, UserspaceAction};

/// How deep lists may lie in lists.
const MAX_NESTING: usize = 32;

/// What the explicit drop of a text means; the text doesn't say.
const DROP_REASON: u32 = 0;

/// Parses a list of actions to the end of the text.
pub(super) fn parse_actions(text: &mut Cursor<'_>, numbers: PortNumbers<'_>) -> Result<Vec<Action>, ParseError> {
    let actions = list(text, numbers, 0)?;
    if text.is_at_end() { Ok(actions) } else { Err(text.expected("an action such as 1 or pop_vlan")) }
}

/// Actions up to a closing parenthesis or the end. `drop` alone is the empty list.
fn list(text: &mut Cursor<'_>, numbers: PortNumbers<'_>, depth: usize) -> Result<Vec<Action>, ParseError> {
    if depth > MAX_NESTING {
        return Err(text.expected("less nesting"));
    }
    let mut actions = Vec::new();
    loop {
        text.skip_separators();
        if text.is_at_end() || text.rest().starts_with(')') {
            break;
        }
        actions.push(action(text, numbers, depth)?);
        if !(text.is_at_end() || text.rest().starts_with([',', ' ', '\t', '\r', '\n', ')'])) {
            return Err(text.expected("a comma"));
        }
    }
    if actions == [Action::Drop(DROP_REASON)] {
        actions.clear();
    }
    Ok(actions)
}

fn action(text: &mut Cursor<'_>, numbers: PortNumbers<'_>, depth: usize) -> Result<Action, ParseError> {
    let start = text.clone();
    let name = text.name();
    let nested = text.rest().starts_with('(');
    Ok(match (name, nested) {
        ("userspace", true) => Action::Userspace(userspace(text, numbers)?),
        ("set", true) => set(text)?,
        ("push_vlan", true) => push_vlan(text)?,
        ("pop_vlan", false) => Action::PopVlan,
        ("recirc", true) => Action::Recirc(single(text)?),
        ("hash", true) => {
            text.expect("(")?;
            let at = text.clone();
            let alg = match text.name() {
                "l4" | "hash_l4" => HashAlg::L4,
                "sym_l4" | "hash_sym_l4" => HashAlg::SymL4,
                _ => return Err(at.expected("l4 or sym_l4")),
            };
            let basis = single(text)?;
            text.expect(")")?;
            Action::Hash { alg, basis }
        }
        ("trunc", true) => Action::Trunc(single(text)?),
        ("drop", false) => Action::Drop(DROP_REASON),
        ("sample", true) => sample(text, numbers, depth)?,
        ("ct", _) => Action::Ct(parse_ct::parse(text)?),
        ("ct_clear", false) => Action::CtClear,
        ("push_mpls" | "add_mpls", true) => {
            text.expect("(")?;
            let lse = Be32::new(parse_lse(text)?.0);
            text.expect(",")?;
            let eth_type = eth_type(text)?;
            if name == "push_mpls" {
                Action::PushMpls { lse, eth_type }
            } else {
                Action::AddMpls { lse, eth_type, flags: 0 }
            }
        }
        ("pop_mpls", true) => {
            text.expect("(")?;
            Action::PopMpls(eth_type(text)?)
        }
        ("push_eth", true) => {
            let at = text.clone();
            match parse_settable("eth", text)? {
                Some((key, mask)) if mask.eth_src == [255; 6] && mask.eth_dst == [255; 6] => {
                    Action::PushEth { src: key.eth_src, dst: key.eth_dst }
                }
                _ => return Err(at.expected("(src=…,dst=…)")),
            }
        }
        ("pop_eth", false) => Action::PopEth,
        ("pop_nsh", true) => {
            text.expect("()")?;
            Action::PopNsh
        }
        ("meter", true) => Action::Meter(single(text)?),
        ("clone", true) => Action::Clone(inner(text, numbers, depth)?),
        ("check_pkt_len", true) => {
            text.expect("(size=")?;
            let pkt_len = text.number(u16::MAX.into())? as u16;
            text.expect(",gt")?;
            let if_greater = inner(text, numbers, depth)?;
            text.expect(",le")?;
            let if_less_equal = inner(text, numbers, depth)?;
            text.expect(")")?;
            Action::CheckPktLen { pkt_len, if_greater, if_less_equal }
        }
        ("dec_ttl", true) => {
            text.expect("(le_1")?;
            let actions = inner(text, numbers, depth)?;
            text.expect(")")?;
            Action::DecTtl(actions)
        }
        ("psample", true) => {
            text.expect("(group=")?;
            let group = text.number(u32::MAX.into())? as u32;
            let cookie = if text.eat(",cookie=0x") { hex(text)? } else { Vec::new() };
            text.expect(")")?;
            Action::Psample { group, cookie }
        }
        ("push_nsh", true) => Action::PushNsh(parse_nsh::parse(text)?),
        ("lb_output" | "tnl_push" | "tnl_pop", true) => {
            return Err(start.expected(&format!("an action of this datapath, which has no {name} in text")));
        }
        _ => {
            // A port by number or name.
            *text = start;
            let at = text.clone();
            Action::Output(
                parse_port(text, numbers)
                    .map_err(|_| at.expected("an action such as 1, pop_vlan or set(eth(dst=…)), or a port's name"))?,
            )
        }
    })
}

/// `(list)`.
fn inner(text: &mut Cursor<'_>, numbers: PortNumbers<'_>, depth: usize) -> Result<Vec<Action>, ParseError> {
    text.expect("(")?;
    let actions = list(text, numbers, depth + 1)?;
    text.expect(")")?;
    Ok(actions)
}

/// `(number)`.
fn single(text: &mut Cursor<'_>) -> Result<u32, ParseError> {
    text.expect("(")?;
    let value = text.number(u32::MAX.into())? as u32;
    text.expect(")")?;
    Ok(value)
}

/// `eth_type=…)`.
fn eth_type(text: &mut Cursor<'_>) -> Result<Be16, ParseError> {
    text.expect("eth_type=")?;
    let value = text.number(0xffff)? as u16;
    text.expect(")")?;
    Ok(Be16::new(value))
}

fn userspace(text: &mut Cursor<'_>, numbers: PortNumbers<'_>) -> Result<UserspaceAction, ParseError> {
    text.expect("(pid=")?;
    let mut action = UserspaceAction { pid: text.number(u32::MAX.into())? as u32, ..UserspaceAction::default() };
    while text.eat(",") {
        let start = text.clone();
        match text.name() {
            "actions" => action.with_actions = true,
            "tunnel_out_port" => {
                text.expect("=")?;
                action.egress_tunnel_port = Some(parse_port(text, numbers)?);
            }
            "userdata" => {
                text.expect("(")?;
                action.cookie = hex(text)?;
                text.expect(")")?;
            }
            name => {
                text.expect("(")?;
                let cookie = Cookie::parse(name, text)?.ok_or_else(|| {
                    start.expected("userdata(…), slow_path(…), controller(…), actions or tunnel_out_port")
                })?;
                action.cookie = cookie.encode();
            }
        }
    }
    text.expect(")")?;
    Ok(action)
}

fn set(text: &mut Cursor<'_>) -> Result<Action, ParseError> {
    text.expect("(")?;
    let start = text.clone();
    let name = text.name();
    let attr = match name {
        "skb_priority" => KeyAttr::Priority,
        "skb_mark" => KeyAttr::SkbMark,
        "eth" => KeyAttr::Ethernet,
        "ipv4" => KeyAttr::Ipv4,
        "ipv6" => KeyAttr::Ipv6,
        "tcp" => KeyAttr::Tcp,
        "udp" => KeyAttr::Udp,
        "sctp" => KeyAttr::Sctp,
        "icmp" => KeyAttr::Icmp,
        "icmpv6" => KeyAttr::Icmpv6,
        "arp" => KeyAttr::Arp,
        "nd" => KeyAttr::Nd,
        "mpls" => KeyAttr::Mpls,
        "tunnel" => KeyAttr::Tunnel,
        "nsh" => KeyAttr::Nsh,
        _ => return Err(start.expected("what can be set: eth, ipv4, ipv6, tcp, udp, icmp, arp, skb_mark, …")),
    };
    let Some((mut value, mut mask)) = parse_settable(name, text)? else {
        return Err(start.expected("what can be set"));
    };
    match attr {
        // How many labels there are is not set.
        KeyAttr::Mpls => (value.mpls_labels, mask.mpls_labels) = (0, 0),
        // A tunnel is set as a whole.
        KeyAttr::Tunnel => {
            for field in attr::TUNNEL.fields {
                if field.get(&mask) != 0 {
                    field.set(&mut mask, u128::MAX);
                }
            }
            mask.tun_flags = value.tun_flags;
        }
        _ => {}
    }
    text.expect(")")?;
    Ok(Action::Set(Box::new(SetAction { attr, value, mask })))
}

fn push_vlan(text: &mut Cursor<'_>) -> Result<Action, ParseError> {
    text.expect("(")?;
    let (mut tpid, mut tci) = (0x8100, VLAN_PRESENT);
    let mut first = true;
    while !text.eat(")") {
        if !std::mem::take(&mut first) {
            text.expect(",")?;
        }
        let start = text.clone();
        let name = text.name();
        text.expect("=")?;
        match name {
            "tpid" => tpid = text.number(0xffff)? as u16,
            "vid" => tci = tci & !0xfff | text.number(0xfff)? as u16,
            "pcp" => tci = tci & 0x1fff | (text.number(7)? as u16) << 13,
            "cfi" => tci = tci & !VLAN_PRESENT | (text.number(1)? as u16) << 12,
            _ => return Err(start.expected("tpid, vid, pcp or cfi")),
        }
    }
    Ok(Action::PushVlan(Vlan { tpid: Be16::new(tpid), tci: Be16::new(tci) }))
}

fn sample(text: &mut Cursor<'_>, numbers: PortNumbers<'_>, depth: usize) -> Result<Action, ParseError> {
    text.expect("(sample=")?;
    let percent = text.token("a percentage such as 12.5%", |token| {
        let percent: f64 = token.strip_suffix('%')?.parse().ok()?;
        (0.0..=100.0).contains(&percent).then_some(percent)
    })?;
    text.expect(",actions")?;
    let actions = inner(text, numbers, depth)?;
    text.expect(")")?;
    // The conversion saturates.
    let probability = (f64::from(u32::MAX) * percent / 100.0 + 0.5).floor() as u32;
    Ok(Action::Sample { probability, actions })
}

/// Bytes in hexadecimal.
fn hex(text: &mut Cursor<'_>) -> Result<Vec<u8>, ParseError> {
    text.token("bytes in hexadecimal", |token| {
        let digits: Option<Vec<u8>> = token.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
        let digits = digits.filter(|d| d.len() % 2 == 0)?;
        Some(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
    })
}
