//! Datapath keys to text.
//!
//! Which attributes a key has follows from the key: an IPv4 packet has `ipv4(…)`, a tagged one `vlan(…)` and the rest inside
//! `encap(…)`. Of those, only what the mask matches is shown, unless everything is asked for.

use std::fmt::Write;

use datapath_common::extract::{eth_type, ip_proto};
use datapath_common::key::{FRAG_LATER, MAC_PROTO_ETHERNET, VLAN_PRESENT};
use datapath_common::{Be16, FlowKey, Vlan};

use super::attr::{self, Attr, Shown, write_hex};
use super::{Style, flags};
use crate::port::OdpPort;

/// Bits of `FlowKey::tun_flags` (the kernel's `TUNNEL_*`) with the bit of [`flags::TUNNEL`] that stands for each.
pub(super) const TUNNEL_FLAGS: [(u16, u32); 4] = [(0x0200, 1), (0x0100, 2), (0x0001, 4), (0x0004, 8)];

/// Labels that a key holds.
const MAX_LABELS: usize = 3;

/// Writes a key. Without a mask everything is exact and shown.
pub(super) fn write_key(out: &mut String, style: &Style<'_>, key: &FlowKey, mask: Option<&FlowKey>) {
    let all = FlowKey::from_words(&[u64::MAX; datapath_common::key::KEY_WORDS]);
    let exact = mask.is_none();
    let verbose = style.verbose || exact;
    let mut writer = Writer { out, style, key, mask: mask.unwrap_or(&all), exact, verbose, first: true };
    writer.metadata();
    writer.link_layer();
}

/// Writes one attribute of a key: what a set action changes.
pub(super) fn write_tunnel_flags(out: &mut String, key: &FlowKey) {
    out.push_str("flags(");
    flags::TUNNEL.write(out, tunnel_flags(key), '|');
    out.push(')');
}

struct Writer<'a> {
    out: &'a mut String,
    style: &'a Style<'a>,
    key: &'a FlowKey,
    mask: &'a FlowKey,
    exact: bool,
    verbose: bool,
    /// Nothing stands before in this pair of parentheses.
    first: bool,
}

impl Writer<'_> {
    fn metadata(&mut self) {
        if self.style.packet_type {
            self.skb_priority();
            self.tunnel();
            self.skb_mark();
            self.connection();
            self.recirculation();
            self.in_port();
            self.packet_type();
        } else {
            self.recirculation();
            self.skb_priority();
            self.tunnel();
            self.in_port();
            self.skb_mark();
            self.connection();
        }
    }

    fn recirculation(&mut self) {
        self.hex32("recirc_id", self.key.recirc_id, self.mask.recirc_id);
        self.hex32("dp_hash", self.key.dp_hash, self.mask.dp_hash);
    }

    fn skb_priority(&mut self) {
        self.hex32("skb_priority", self.key.skb_priority, self.mask.skb_priority);
    }

    fn skb_mark(&mut self) {
        self.hex32("skb_mark", self.key.skb_mark, self.mask.skb_mark);
    }

    fn in_port(&mut self) {
        let (port, mask) = (self.key.in_port, self.mask.in_port);
        if port == u32::MAX || (!self.verbose && mask == 0) {
            return;
        }
        self.open("in_port");
        if mask == u32::MAX {
            self.style.write_port(self.out, OdpPort(port));
        } else {
            let _ = write!(self.out, "{port}/");
            let _ = write_hex(self.out, mask.into());
        }
        self.out.push(')');
    }

    fn packet_type(&mut self) {
        if !self.verbose && self.mask.mac_proto == 0 {
            return;
        }
        self.open("packet_type");
        if self.mask.mac_proto == 0 {
            self.out.push_str("ns=0/0,id=0/0)");
        } else if self.key.mac_proto == MAC_PROTO_ETHERNET {
            self.out.push_str("ns=0,id=0)");
        } else {
            let _ = write!(self.out, "ns=1,id={:#x})", self.key.eth_type.get());
        }
    }

    fn tunnel(&mut self) {
        if self.key.tun_proto == 0 {
            return;
        }
        self.open("tunnel");
        let start = self.out.len();
        for field in attr::TUNNEL.fields {
            // What the tunnel doesn't have is shown only if that is matched. It always has a TTL.
            let matched = !self.exact && field.get(self.mask) != 0;
            if matched || (self.verbose && (field.get(self.key) != 0 || field.name == "ttl")) {
                field.write(self.out, self.key, self.mask, self.shown());
                self.out.push(',');
            }
        }
        let mask = tunnel_flags(self.mask);
        if self.exact {
            write_tunnel_flags(self.out, self.key);
        } else if self.verbose || mask != 0 {
            self.out.push_str("flags(");
            flags::TUNNEL.write_masked(self.out, tunnel_flags(self.key), mask);
            self.out.push(')');
        } else if self.out.len() > start {
            self.out.pop();
        }
        self.out.push(')');
    }

    fn connection(&mut self) {
        let (key, mask) = (self.key, self.mask);
        if self.verbose {
            self.hex32("ct_state", key.ct_state, mask.ct_state);
        } else if mask.ct_state != 0 {
            self.open("ct_state");
            flags::CT_STATE.write_masked(self.out, key.ct_state, mask.ct_state);
            self.out.push(')');
        }
        self.hex("ct_zone", key.ct_zone.into(), mask.ct_zone.into(), u16::MAX.into());
        self.hex32("ct_mark", key.ct_mark, mask.ct_mark);
        // The label is a number whose lowest byte comes first.
        self.hex("ct_label", u128::from_le_bytes(key.ct_label), u128::from_le_bytes(mask.ct_label), u128::MAX);
        let tuple = match key.eth_type.get() {
            eth_type::IPV4 => &attr::CT_TUPLE4,
            eth_type::IPV6 => &attr::CT_TUPLE6,
            _ => return,
        };
        // Every connection has a protocol; a match on one without is shown all the same.
        if key.ct_orig_proto != 0 || !self.exact && tuple.is_matched(mask) {
            self.attr(tuple);
        }
    }

    fn link_layer(&mut self) {
        if self.key.mac_proto == MAC_PROTO_ETHERNET {
            if !self.verbose && !attr::ETH.is_matched(self.mask) {
                // That there is an Ethernet header goes without saying only where the packet type says it.
                if !self.style.packet_type || self.mask.mac_proto == 0 {
                    self.open("eth");
                    self.out.push(')');
                }
            } else {
                self.attr(&attr::ETH);
            }
            self.tagged(&[(self.key.vlan, self.mask.vlan), (self.key.cvlan, self.mask.cvlan)]);
        } else {
            self.network();
        }
    }

    /// The VLAN tags from here on, and what is in them.
    fn tagged(&mut self, tags: &[(Vlan, Vlan)]) {
        let is_tag = |t: Be16| matches!(t.get(), eth_type::VLAN | eth_type::QINQ);
        let Some(((vlan, mask), inner)) = tags.split_first() else { return self.network() };
        let cut_off = vlan.tci.is_zero();
        if cut_off && !is_tag(self.key.eth_type) {
            return self.network();
        }
        if cut_off {
            // A tag that ends with the packet has no tci, and its tpid is the packet's type.
            self.eth_type(self.key.eth_type, self.mask.eth_type);
        } else {
            self.eth_type(vlan.tpid, mask.tpid);
        }
        if self.verbose || !mask.tci.is_zero() {
            self.open("vlan");
            write_tci(self.out, vlan.tci, if self.exact { Be16::MAX } else { mask.tci }, self.verbose);
            self.out.push(')');
        }
        self.open("encap");
        self.first = true;
        if !cut_off {
            self.tagged(inner);
        }
        self.out.push(')');
        self.first = false;
    }

    /// Everything from the last Ethernet type on.
    fn network(&mut self) {
        let (kind, mask) = (self.key.eth_type, self.mask.eth_type);
        if kind.get() == eth_type::NONE {
            if !self.exact && !mask.is_zero() {
                self.separate();
                let _ = write!(self.out, "eth_type(0/{:#06x})", mask.get());
            }
            return;
        }
        self.eth_type(kind, mask);
        match kind.get() {
            eth_type::IPV4 => self.attr(&attr::IPV4),
            eth_type::IPV6 => {
                self.attr(&attr::IPV6);
                if self.mask.ipv6_exthdrs != 0 && !self.exact {
                    let (value, mask) = (self.key.ipv6_exthdrs.into(), self.mask.ipv6_exthdrs.into());
                    self.hex("ipv6_exthdrs", value, mask, u16::MAX.into());
                }
            }
            eth_type::ARP | eth_type::RARP => self.attr(&attr::ARP),
            eth_type::MPLS | eth_type::MPLS_MC => self.mpls(),
            eth_type::NSH => self.nsh(),
            _ => {}
        }
        if matches!(kind.get(), eth_type::IPV4 | eth_type::IPV6) && self.key.ip_frag != FRAG_LATER {
            self.transport(kind.get() == eth_type::IPV6);
        }
    }

    fn transport(&mut self, ipv6: bool) {
        match self.key.ip_proto {
            ip_proto::TCP => {
                self.attr(&attr::TCP);
                let (flags, mask) = (self.key.tcp_flags.get() & 0xfff, self.mask.tcp_flags.get() & 0xfff);
                if (self.verbose && !self.style.packet_type) || mask != 0 {
                    self.open("tcp_flags");
                    flags::TCP.write_masked(self.out, flags.into(), mask.into());
                    self.out.push(')');
                }
            }
            ip_proto::UDP => self.attr(&attr::UDP),
            ip_proto::SCTP => self.attr(&attr::SCTP),
            ip_proto::ICMP if !ipv6 => self.attr(&attr::ICMP),
            ip_proto::ICMPV6 if ipv6 => {
                self.attr(&attr::ICMPV6);
                if matches!(self.key.tp_src.get(), 135 | 136) {
                    self.attr(&attr::ND);
                }
            }
            _ => {}
        }
    }

    fn mpls(&mut self) {
        let (key, mask) = (&self.key.mpls_lse, &self.mask.mpls_lse);
        let matched = mask.iter().rposition(|lse| !lse.is_zero()).map_or(0, |at| at + 1);
        let matched = if self.exact { 0 } else { matched };
        let n = (self.key.mpls_labels.count_ones() as usize).max(matched).clamp(1, MAX_LABELS);
        let (key, mask) = (key.iter().take(n), mask.iter().take(n));
        if !self.verbose && matched == 0 {
            return;
        }
        let full = mask.clone().all(|m| m.get() == u32::MAX);
        self.open("mpls");
        for (i, (lse, mask)) in key.zip(mask).enumerate() {
            if i != 0 {
                self.out.push(',');
            }
            write_lse(self.out, lse.get(), (!full).then_some(mask.get()));
        }
        self.out.push(')');
    }

    fn nsh(&mut self) {
        self.open("nsh");
        write_nsh(self.out, self.key, if self.exact { None } else { Some(self.mask) });
        self.out.push(')');
    }

    fn eth_type(&mut self, value: Be16, mask: Be16) {
        if !self.verbose && mask.is_zero() {
            return;
        }
        self.open("eth_type");
        let _ = write!(self.out, "{:#06x}", value.get());
        if mask != Be16::MAX {
            let _ = write!(self.out, "/{:#06x}", mask.get());
        }
        self.out.push(')');
    }

    /// An attribute of fields, if any is matched.
    fn attr(&mut self, attr: &Attr) {
        if self.verbose || attr.is_matched(self.mask) {
            self.open(attr.name);
            attr.write(self.out, self.key, self.mask, self.shown());
            self.out.push(')');
        }
    }

    fn shown(&self) -> Shown {
        Shown { verbose: self.verbose, exact: self.exact, short_op: !self.style.packet_type }
    }

    fn hex32(&mut self, name: &str, value: u32, mask: u32) {
        self.hex(name, value.into(), mask.into(), u32::MAX.into());
    }

    /// An attribute that is one hexadecimal number, if it is matched.
    fn hex(&mut self, name: &str, value: u128, mask: u128, full: u128) {
        if !self.verbose && mask == 0 {
            return;
        }
        self.open(name);
        let _ = write_hex(self.out, value);
        if mask & full != full {
            self.out.push('/');
            let _ = write_hex(self.out, mask);
        }
        self.out.push(')');
    }

    fn open(&mut self, name: &str) {
        self.separate();
        self.out.push_str(name);
        self.out.push('(');
    }

    fn separate(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
    }
}

fn tunnel_flags(key: &FlowKey) -> u32 {
    TUNNEL_FLAGS.iter().filter(|(bit, _)| key.tun_flags & bit != 0).map(|(_, shown)| shown).sum()
}

/// `vid=…,pcp=…` of the parts that are matched or set.
pub(super) fn write_tci(out: &mut String, tci: Be16, mask: Be16, verbose: bool) {
    let parts = |tci: u16| (tci & 0xfff, tci >> 13);
    let ((vid, pcp), (vid_mask, pcp_mask)) = (parts(tci.get()), parts(mask.get()));
    let start = out.len();
    let mut part = |name: &str, value: u16, mask: u16, full: u16| {
        if !verbose && value == 0 && mask == 0 {
            return;
        }
        if out.len() != start {
            out.push(',');
        }
        let _ = write!(out, "{name}={value}");
        if mask != full {
            let _ = write!(out, "/0x{mask:x}");
        }
    };
    part("vid", vid, vid_mask, 0xfff);
    part("pcp", pcp, pcp_mask, 7);
    if tci.get() & VLAN_PRESENT == 0 {
        if out.len() != start {
            out.push(',');
        }
        out.push_str("cfi=0");
    }
}

/// `label=…,tc=…,ttl=…,bos=…` of an MPLS label stack entry, host order.
pub(super) fn write_lse(out: &mut String, lse: u32, mask: Option<u32>) {
    let parts = |lse: u32| (lse >> 12, lse >> 9 & 7, lse & 0xff, lse >> 8 & 1);
    let (label, tc, ttl, bos) = parts(lse);
    let _ = match mask.map(parts) {
        None => write!(out, "label={label},tc={tc},ttl={ttl},bos={bos}"),
        Some((label_mask, tc_mask, ttl_mask, bos_mask)) => {
            write!(
                out,
                "label={label}/0x{label_mask:x},tc={tc}/{tc_mask:x},ttl={ttl}/0x{ttl_mask:x},bos={bos}/{bos_mask:x}"
            )
        }
    };
}

/// The fields of a network service header.
pub(super) fn write_nsh(out: &mut String, key: &FlowKey, mask: Option<&FlowKey>) {
    let (spi, si) = (key.nsh_path.get() >> 8, key.nsh_path.get() & 0xff);
    let Some(mask) = mask else {
        let (flags, ttl, mdtype, np) = (key.nsh_flags, key.nsh_ttl, key.nsh_mdtype, key.nsh_np);
        let _ = write!(out, "flags={flags},ttl={ttl},mdtype={mdtype},np={np},spi=0x{spi:x},si={si}");
        if mdtype == 1 {
            for (i, context) in key.nsh_context.iter().enumerate() {
                let _ = write!(out, ",c{}=0x{:x}", i + 1, context.get());
            }
        }
        return;
    };
    let start = out.len();
    let mut part = |name: &str, value: u32, mask: u32, full: u32| {
        if mask == 0 {
            return;
        }
        if out.len() != start {
            out.push(',');
        }
        let _ = match (full, mask == full) {
            (0xff, true) => write!(out, "{name}={value}"),
            (0xff, false) => write!(out, "{name}={value:#04x}/{mask:#04x}"),
            (_, true) => write!(out, "{name}={value:#x}"),
            (_, false) => write!(out, "{name}={value:#x}/{mask:#010x}"),
        };
    };
    part("flags", key.nsh_flags.into(), mask.nsh_flags.into(), 0xff);
    part("ttl", key.nsh_ttl.into(), mask.nsh_ttl.into(), 0xff);
    part("mdtype", key.nsh_mdtype.into(), mask.nsh_mdtype.into(), 0xff);
    part("np", key.nsh_np.into(), mask.nsh_np.into(), 0xff);
    part("spi", spi, mask.nsh_path.get() >> 8, 0xff_ffff);
    part("si", si, mask.nsh_path.get() & 0xff, 0xff);
    for ((name, context), mask) in ["c1", "c2", "c3", "c4"].iter().zip(&key.nsh_context).zip(&mask.nsh_context) {
        part(name, context.get(), mask.get(), u32::MAX);
    }
}
