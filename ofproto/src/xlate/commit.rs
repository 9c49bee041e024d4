//! From the packet as the datapath has it to the packet as it should be, by datapath actions.
//!
//! A set names the bits of a field that were looked at, if the field has changed: those that were written are among them, and
//! the others have the packet's own value, which is known. So the list is the same for all packets of the megaflow.

use datapath_common::extract::{eth_type, ip_proto};
use datapath_common::{Be16, Be32, FlowKey};
use dpif::{Action, KeyAttr, SetAction};

use super::context::Context;
use crate::flow::Flow;

impl Context<'_> {
    /// Emits the actions that make the datapath's packet the tables' packet.
    pub(super) fn commit(&mut self) {
        if self.flow.key == self.base.key {
            return;
        }
        self.commit_fields(
            KeyAttr::Ethernet,
            &[FlowKey { eth_src: [0xff; 6], ..FlowKey::ZERO }, FlowKey { eth_dst: [0xff; 6], ..FlowKey::ZERO }],
        );
        let ip = [FlowKey { ip_tos: u8::MAX, ..FlowKey::ZERO }, FlowKey { ip_ttl: u8::MAX, ..FlowKey::ZERO }];
        let addresses =
            [FlowKey { ipv4_src: Be32::MAX, ..FlowKey::ZERO }, FlowKey { ipv4_dst: Be32::MAX, ..FlowKey::ZERO }];
        match self.base.key.eth_type.get() {
            eth_type::IPV4 => {
                let [tos, ttl] = ip;
                let [src, dst] = addresses;
                self.commit_fields(KeyAttr::Ipv4, &[src, dst, tos, ttl]);
            }
            eth_type::IPV6 => {
                let [tos, ttl] = ip;
                self.commit_fields(
                    KeyAttr::Ipv6,
                    &[
                        FlowKey { ipv6_src: [0xff; 16], ..FlowKey::ZERO },
                        FlowKey { ipv6_dst: [0xff; 16], ..FlowKey::ZERO },
                        FlowKey { ipv6_label: Be32::MAX, ..FlowKey::ZERO },
                        tos,
                        ttl,
                    ],
                );
            }
            eth_type::ARP | eth_type::RARP => {
                let [spa, tpa] = addresses;
                self.commit_fields(
                    KeyAttr::Arp,
                    &[
                        spa,
                        tpa,
                        FlowKey { ip_proto: u8::MAX, ..FlowKey::ZERO },
                        FlowKey { arp_sha: [0xff; 6], ..FlowKey::ZERO },
                        FlowKey { arp_tha: [0xff; 6], ..FlowKey::ZERO },
                    ],
                );
            }
            _ => {}
        }
        if self.base.is_ip() && !self.base.is_later_fragment() {
            let attr = match self.base.key.ip_proto {
                ip_proto::TCP => Some(KeyAttr::Tcp),
                ip_proto::UDP => Some(KeyAttr::Udp),
                ip_proto::ICMP if self.base.is_icmp() => Some(KeyAttr::Icmp),
                ip_proto::ICMPV6 if self.base.is_icmp() => Some(KeyAttr::Icmpv6),
                _ => None,
            };
            if matches!(attr, Some(KeyAttr::Icmp | KeyAttr::Icmpv6)) && self.ports_differ() {
                // Type and code are set together.
                let key = &mut self.wildcards.key;
                (key.tp_src, key.tp_dst) = (Be16::MAX, Be16::MAX);
            }
            if let Some(attr) = attr {
                self.commit_fields(
                    attr,
                    &[FlowKey { tp_src: Be16::MAX, ..FlowKey::ZERO }, FlowKey { tp_dst: Be16::MAX, ..FlowKey::ZERO }],
                );
            }
        }
        self.commit_vlans();
        self.commit_fields(KeyAttr::SkbMark, &[FlowKey { skb_mark: u32::MAX, ..FlowKey::ZERO }]);
    }

    fn ports_differ(&self) -> bool {
        let ports = |flow: &Flow| (flow.key.tp_src, flow.key.tp_dst);
        ports(&self.flow) != ports(&self.base)
    }

    /// One set for the fields of an attribute that have changed, if any: for all of them where the datapath can't set bits, which
    /// makes all of them count as looked at.
    fn commit_fields(&mut self, attr: KeyAttr, fields: &[FlowKey]) {
        let differs = |field: &&FlowKey| self.flow.key.masked(field) != self.base.key.masked(field);
        let whole = !self.config.features.masked_set && fields.iter().any(|field| differs(&field));
        let mut mask = FlowKey::ZERO;
        for field in fields.iter().filter(|field| whole || differs(field)) {
            if whole {
                self.wildcards.add_key(field);
            }
            let looked_at = self.wildcards.key.masked(&self.present).masked(field);
            for (word, looked_at) in mask.words_mut().iter_mut().zip(looked_at.words()) {
                *word |= looked_at;
            }
        }
        if mask == FlowKey::ZERO {
            return;
        }
        let value = self.flow.key.masked(&mask);
        for ((base, value), mask) in self.base.key.words_mut().iter_mut().zip(value.words()).zip(mask.words()) {
            *base = (*base & !mask) | value;
        }
        self.emit(Action::Set(Box::new(SetAction { attr, value, mask })));
    }

    /// Tags that are not the same are popped and pushed anew, the inner ones that are the same stay.
    fn commit_vlans(&mut self) {
        let (have, want) = (tags(&self.base), tags(&self.flow));
        if have == want {
            return;
        }
        let kept = have.iter().rev().zip(want.iter().rev()).take_while(|(a, b)| a == b).count();
        let popped = have.len() - kept;
        self.look_at_vlans(popped);
        for _ in 0..popped {
            self.emit(Action::PopVlan);
        }
        let missing = want.len() - kept;
        for vlan in want.iter().take(missing).rev() {
            self.emit(Action::PushVlan(*vlan));
        }
        (self.base.key.vlan, self.base.key.cvlan) = (self.flow.key.vlan, self.flow.key.cvlan);
    }
}

/// The tags, the outer one first.
fn tags(flow: &Flow) -> Vec<datapath_common::Vlan> {
    [flow.key.vlan, flow.key.cvlan].into_iter().take(flow.n_vlans()).collect()
}
