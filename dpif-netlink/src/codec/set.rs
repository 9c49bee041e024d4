//! Set actions: `OVS_ACTION_ATTR_SET` and `OVS_ACTION_ATTR_SET_MASKED`.
//!
//! A masked set holds one key attribute whose payload is the value and, behind it, the mask. The kernel gives back an unmasked
//! set as it came. Tunnel keys are set as a whole only.

use datapath_common::{Be32, FlowKey};
use dpif::{Action, KeyAttr, SetAction};

use super::tunnel::{self, TunnelOptions};
use super::{CodecError, Fitness, Result, fields, nsh};
use crate::attr::{Attrs, Writer};
use crate::uapi::{action, key};

/// Set actions and the key attributes that they hold.
const ATTRS: [(KeyAttr, u16); 15] = [
    (KeyAttr::Priority, key::PRIORITY),
    (KeyAttr::SkbMark, key::SKB_MARK),
    (KeyAttr::Ethernet, key::ETHERNET),
    (KeyAttr::Ipv4, key::IPV4),
    (KeyAttr::Ipv6, key::IPV6),
    (KeyAttr::Tcp, key::TCP),
    (KeyAttr::Udp, key::UDP),
    (KeyAttr::Sctp, key::SCTP),
    (KeyAttr::Icmp, key::ICMP),
    (KeyAttr::Icmpv6, key::ICMPV6),
    (KeyAttr::Arp, key::ARP),
    (KeyAttr::Nd, key::ND),
    (KeyAttr::Mpls, key::MPLS),
    (KeyAttr::Tunnel, key::TUNNEL),
    (KeyAttr::Nsh, key::NSH),
];

pub(super) fn encode(set: &SetAction, to: &mut Writer) -> Result<()> {
    let kind = ATTRS.iter().find(|(attr, _)| *attr == set.attr).map(|(_, kind)| *kind);
    let kind = kind.ok_or(CodecError::Inexpressible("a set of this attribute"))?;
    if set.attr == KeyAttr::Tunnel {
        if set.value.tun_flags & tunnel::OPTION_FLAGS != 0 {
            return Err(CodecError::Inexpressible("a set of tunnel options without the options"));
        }
        let nest = to.begin_nest(action::SET);
        tunnel::put(to, &set.value, set.value.tun_proto, &TunnelOptions::NONE);
        to.end(nest);
        return Ok(());
    }
    let nest = to.begin_nest(action::SET_MASKED);
    match kind {
        key::MPLS => {
            let ([value, ..], [mask, ..]) = (set.value.mpls_lse, set.mask.mpls_lse);
            to.put_parts(kind, &[&value.0.to_ne_bytes(), &mask.0.to_ne_bytes()]);
        }
        key::NSH => nsh::put_masked(to, &set.value, &set.mask),
        _ => {
            // The value and then the mask, in one attribute.
            let both = to.begin_plain_nest(kind);
            if !(fields::put_raw(to, kind, &set.value) && fields::put_raw(to, kind, &set.mask)) {
                return Err(CodecError::Inexpressible("a set of this attribute"));
            }
            to.end(both);
        }
    }
    to.end(nest);
    Ok(())
}

pub(super) fn decode(payload: &[u8], masked: bool) -> Result<Action> {
    let mut attrs = Attrs::new(payload);
    let (kind, bytes) = attrs.next().ok_or(CodecError::Length("set", 0))??;
    if attrs.next().is_some() {
        return Err(CodecError::Contradiction("a set of two attributes"));
    }
    let attr = ATTRS.iter().find(|(_, of)| *of == kind).map(|(attr, _)| *attr);
    let attr = attr.ok_or(CodecError::Contradiction("a set of an attribute that isn't known"))?;
    let mut set = SetAction { attr, value: FlowKey::ZERO, mask: FlowKey::ZERO };
    match kind {
        key::TUNNEL if masked => return Err(CodecError::Contradiction("a masked set of a tunnel")),
        key::TUNNEL => {
            let mut options = TunnelOptions::NONE;
            if tunnel::get(bytes, &mut set.value, &mut options, false)? != Fitness::Perfect {
                return Err(CodecError::Contradiction("a set of a tunnel key that isn't understood"));
            }
            set.mask = exact_tunnel(&set.value);
        }
        key::NSH if masked => nsh::get_masked(bytes, &mut set.value, &mut set.mask)?,
        key::NSH => {
            nsh::get(bytes, &mut set.value, true)?;
            set.mask = exact_nsh();
        }
        _ => {
            let (value, mask) = if masked { bytes.split_at(bytes.len() / 2) } else { (bytes, &[][..]) };
            read(kind, value, &mut set.value)?;
            if masked {
                read(kind, mask, &mut set.mask)?;
            } else {
                // A mask of ones has the value's length.
                let ones = [u8::MAX; fields::MAX_STRUCT];
                read(kind, ones.get(..value.len()).unwrap_or_default(), &mut set.mask)?;
            }
        }
    }
    Ok(Action::Set(Box::new(set)))
}

fn read(kind: u16, bytes: &[u8], to: &mut FlowKey) -> Result<()> {
    if kind == key::MPLS {
        let lse: [u8; 4] = super::fixed(bytes, "mpls")?;
        to.mpls_lse[0] = Be32(u32::from_ne_bytes(lse));
    } else if !fields::from_struct(kind, bytes, to)? {
        return Err(CodecError::Contradiction("a set of an attribute that isn't known"));
    }
    Ok(())
}

/// A tunnel key is set whole.
fn exact_tunnel(value: &FlowKey) -> FlowKey {
    let mut mask = FlowKey { tun_proto: u8::MAX, tun_flags: u16::MAX, ..FlowKey::ZERO };
    (mask.tun_id, mask.tun_tos, mask.tun_ttl) = (datapath_common::Be64::MAX, u8::MAX, u8::MAX);
    (mask.tun_tp_src, mask.tun_tp_dst) = (datapath_common::Be16::MAX, datapath_common::Be16::MAX);
    if value.tun_proto == tunnel::AF_INET {
        (mask.tun_ipv4_src, mask.tun_ipv4_dst) = (Be32::MAX, Be32::MAX);
    } else {
        (mask.tun_ipv6_src, mask.tun_ipv6_dst) = ([u8::MAX; 16], [u8::MAX; 16]);
    }
    mask
}

fn exact_nsh() -> FlowKey {
    FlowKey {
        nsh_flags: u8::MAX,
        nsh_ttl: u8::MAX,
        nsh_mdtype: u8::MAX,
        nsh_np: u8::MAX,
        nsh_path: Be32::MAX,
        nsh_context: [Be32::MAX; 4],
        ..FlowKey::ZERO
    }
}
