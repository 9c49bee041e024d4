//! The attributes that are plain structures (`struct ovs_key_ipv4` and its like), one place for both directions. A mask and
//! the halves of a masked set have the same shape as the key.

use datapath_common::{Be16, Be32, FlowKey};

use super::{CodecError, Result, fixed, take};
use crate::attr::Writer;
use crate::uapi::key as attr;

/// The longest structure: the IPv6 tuple of connection tracking.
pub(super) const MAX_STRUCT: usize = 40;

/// Writes attribute `kind` with the structure of a key's fields. `false`, and nothing, where it is no plain structure.
pub(super) fn put(to: &mut Writer, kind: u16, key: &FlowKey) -> bool {
    with(kind, key, Put { to, kind }).is_some()
}

/// As [`put`], but for a structure of zeros, which is left out.
pub(super) fn put_some(to: &mut Writer, kind: u16, key: &FlowKey) {
    let _ = with(kind, key, PutSome(Put { to, kind }));
}

/// Writes the structure alone. `false` where the attribute is none.
pub(super) fn put_raw(to: &mut Writer, kind: u16, key: &FlowKey) -> bool {
    with(kind, key, Raw(to)).is_some()
}

/// What is done with a structure. Its length is known where it is made, so that copying it takes few instructions.
trait Sink {
    fn take<const N: usize>(self, bytes: [u8; N]);
}

struct Put<'a> {
    to: &'a mut Writer,
    kind: u16,
}

impl Sink for Put<'_> {
    #[inline]
    fn take<const N: usize>(self, bytes: [u8; N]) {
        self.to.put_fixed(self.kind, bytes);
    }
}

struct PutSome<'a>(Put<'a>);

impl Sink for PutSome<'_> {
    #[inline]
    fn take<const N: usize>(self, bytes: [u8; N]) {
        if bytes != [0; N] {
            self.0.take(bytes);
        }
    }
}

struct Raw<'a>(&'a mut Writer);

impl Sink for Raw<'_> {
    #[inline]
    fn take<const N: usize>(self, bytes: [u8; N]) {
        self.0.raw(&bytes);
    }
}

/// Pieces in a row; they have `N` bytes together.
#[inline(always)]
fn row<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let mut rest = &mut out[..];
    for part in parts {
        let Some((place, behind)) = std::mem::take(&mut rest).split_at_mut_checked(part.len()) else { break };
        place.copy_from_slice(part);
        rest = behind;
    }
    out
}

/// Gives the structure of attribute `kind` from a key's fields to `sink`; `None` where the attribute is no plain structure.
#[inline]
fn with(kind: u16, key: &FlowKey, sink: impl Sink) -> Option<()> {
    let be16 = |value: Be16| value.0.to_ne_bytes();
    let be32 = |value: Be32| value.0.to_ne_bytes();
    match kind {
        attr::PRIORITY => sink.take(key.skb_priority.to_ne_bytes()),
        attr::IN_PORT => sink.take(key.in_port.to_ne_bytes()),
        attr::ETHERNET => sink.take::<12>(row(&[&key.eth_src, &key.eth_dst])),
        attr::IPV4 => sink.take::<12>(row(&[
            &be32(key.ipv4_src),
            &be32(key.ipv4_dst),
            &[key.ip_proto, key.ip_tos, key.ip_ttl, key.ip_frag],
        ])),
        attr::IPV6 => sink.take::<40>(row(&[
            &key.ipv6_src,
            &key.ipv6_dst,
            &be32(key.ipv6_label),
            &[key.ip_proto, key.ip_tos, key.ip_ttl, key.ip_frag],
        ])),
        attr::TCP | attr::UDP | attr::SCTP => sink.take::<4>(row(&[&be16(key.tp_src), &be16(key.tp_dst)])),
        attr::ICMP | attr::ICMPV6 => sink.take([key.tp_src.get() as u8, key.tp_dst.get() as u8]),
        attr::ARP => sink.take::<24>(row(&[
            &be32(key.ipv4_src),
            &be32(key.ipv4_dst),
            &[0, key.ip_proto],
            &key.arp_sha,
            &key.arp_tha,
            &[0; 2],
        ])),
        attr::ND => sink.take::<28>(row(&[&key.nd_target, &key.arp_sha, &key.arp_tha])),
        attr::SKB_MARK => sink.take(key.skb_mark.to_ne_bytes()),
        attr::TCP_FLAGS => sink.take(be16(key.tcp_flags)),
        attr::DP_HASH => sink.take(key.dp_hash.to_ne_bytes()),
        attr::RECIRC_ID => sink.take(key.recirc_id.to_ne_bytes()),
        attr::CT_STATE => sink.take(key.ct_state.to_ne_bytes()),
        attr::CT_ZONE => sink.take(key.ct_zone.to_ne_bytes()),
        attr::CT_MARK => sink.take(key.ct_mark.to_ne_bytes()),
        attr::CT_LABELS => sink.take(key.ct_label),
        attr::CT_ORIG_TUPLE_IPV4 => sink.take::<16>(row(&[
            &be32(key.ct_orig_ipv4_src),
            &be32(key.ct_orig_ipv4_dst),
            &be16(key.ct_orig_tp_src),
            &be16(key.ct_orig_tp_dst),
            &[key.ct_orig_proto, 0, 0, 0],
        ])),
        attr::CT_ORIG_TUPLE_IPV6 => sink.take::<40>(row(&[
            &key.ct_orig_ipv6_src,
            &key.ct_orig_ipv6_dst,
            &be16(key.ct_orig_tp_src),
            &be16(key.ct_orig_tp_dst),
            &[key.ct_orig_proto, 0, 0, 0],
        ])),
        attr::IPV6_EXTHDRS => sink.take(key.ipv6_exthdrs.to_ne_bytes()),
        _ => return None,
    }
    Some(())
}

/// Reads the structure of attribute `kind` into a key's fields. Whether there was such a structure.
pub(super) fn from_struct(kind: u16, bytes: &[u8], key: &mut FlowKey) -> Result<bool> {
    match kind {
        attr::PRIORITY => key.skb_priority = u32::from_ne_bytes(fixed(bytes, "skb_priority")?),
        attr::IN_PORT => key.in_port = u32::from_ne_bytes(fixed(bytes, "in_port")?),
        attr::ETHERNET => {
            let all: [u8; 12] = fixed(bytes, "eth")?;
            let mut rest = &all[..];
            (key.eth_src, key.eth_dst) = (take(&mut rest), take(&mut rest));
        }
        attr::IPV4 => {
            let all: [u8; 12] = fixed(bytes, "ipv4")?;
            let mut rest = &all[..];
            (key.ipv4_src, key.ipv4_dst) = (be32(&mut rest), be32(&mut rest));
            [key.ip_proto, key.ip_tos, key.ip_ttl, key.ip_frag] = take(&mut rest);
        }
        attr::IPV6 => {
            let all: [u8; 40] = fixed(bytes, "ipv6")?;
            let mut rest = &all[..];
            (key.ipv6_src, key.ipv6_dst, key.ipv6_label) = (take(&mut rest), take(&mut rest), be32(&mut rest));
            [key.ip_proto, key.ip_tos, key.ip_ttl, key.ip_frag] = take(&mut rest);
        }
        attr::TCP | attr::UDP | attr::SCTP => {
            let all: [u8; 4] = fixed(bytes, "the transport ports")?;
            let mut rest = &all[..];
            (key.tp_src, key.tp_dst) = (be16(&mut rest), be16(&mut rest));
        }
        attr::ICMP | attr::ICMPV6 => {
            let [kind, code] = fixed(bytes, "icmp")?;
            (key.tp_src, key.tp_dst) = (Be16::new(kind.into()), Be16::new(code.into()));
        }
        attr::ARP => {
            let all: [u8; 24] = fixed(bytes, "arp")?;
            let mut rest = &all[..];
            (key.ipv4_src, key.ipv4_dst) = (be32(&mut rest), be32(&mut rest));
            // The operation's high byte is for the caller: a key can't have one, a mask's means nothing.
            let [_, operation] = take(&mut rest);
            key.ip_proto = operation;
            (key.arp_sha, key.arp_tha) = (take(&mut rest), take(&mut rest));
        }
        attr::ND => {
            let all: [u8; 28] = fixed(bytes, "nd")?;
            let mut rest = &all[..];
            (key.nd_target, key.arp_sha, key.arp_tha) = (take(&mut rest), take(&mut rest), take(&mut rest));
        }
        attr::SKB_MARK => key.skb_mark = u32::from_ne_bytes(fixed(bytes, "skb_mark")?),
        attr::TCP_FLAGS => key.tcp_flags = Be16(u16::from_ne_bytes(fixed(bytes, "tcp_flags")?)),
        attr::DP_HASH => key.dp_hash = u32::from_ne_bytes(fixed(bytes, "dp_hash")?),
        attr::RECIRC_ID => key.recirc_id = u32::from_ne_bytes(fixed(bytes, "recirc_id")?),
        attr::CT_STATE => key.ct_state = u32::from_ne_bytes(fixed(bytes, "ct_state")?),
        attr::CT_ZONE => key.ct_zone = u16::from_ne_bytes(fixed(bytes, "ct_zone")?),
        attr::CT_MARK => key.ct_mark = u32::from_ne_bytes(fixed(bytes, "ct_mark")?),
        attr::CT_LABELS => key.ct_label = fixed(bytes, "ct_label")?,
        attr::CT_ORIG_TUPLE_IPV4 => {
            let all: [u8; 16] = fixed(bytes, "ct_tuple4")?;
            let mut rest = &all[..];
            (key.ct_orig_ipv4_src, key.ct_orig_ipv4_dst) = (be32(&mut rest), be32(&mut rest));
            tuple_ports(&mut rest, key);
        }
        attr::CT_ORIG_TUPLE_IPV6 => {
            let all: [u8; 40] = fixed(bytes, "ct_tuple6")?;
            let mut rest = &all[..];
            (key.ct_orig_ipv6_src, key.ct_orig_ipv6_dst) = (take(&mut rest), take(&mut rest));
            tuple_ports(&mut rest, key);
        }
        attr::IPV6_EXTHDRS => key.ipv6_exthdrs = u16::from_ne_bytes(fixed(bytes, "ipv6_exthdrs")?),
        _ => return Ok(false),
    }
    Ok(true)
}

fn tuple_ports(rest: &mut &[u8], key: &mut FlowKey) {
    (key.ct_orig_tp_src, key.ct_orig_tp_dst) = (be16(rest), be16(rest));
    [key.ct_orig_proto] = take(rest);
}

/// The label stack entries of an attribute, the outermost first, into a key; how many there are.
pub(super) fn read_mpls(bytes: &[u8], key: &mut FlowKey) -> Result<usize> {
    let (entries, rest) = bytes.as_chunks::<4>();
    // A masked key, as a flow's is, has no labels where none are matched.
    if !rest.is_empty() {
        return Err(CodecError::Length("mpls", bytes.len()));
    }
    for (lse, entry) in key.mpls_lse.iter_mut().zip(entries) {
        *lse = Be32(u32::from_ne_bytes(*entry));
    }
    Ok(entries.len())
}

pub(super) fn be16(rest: &mut &[u8]) -> Be16 {
    Be16(u16::from_ne_bytes(take(rest)))
}

pub(super) fn be32(rest: &mut &[u8]) -> Be32 {
    Be32(u32::from_ne_bytes(take(rest)))
}
