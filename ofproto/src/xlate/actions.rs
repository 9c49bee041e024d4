//! OpenFlow actions, one by one.

use datapath_common::extract::{eth_type, ip_proto};
use datapath_common::key::VLAN_PRESENT;
use datapath_common::{Be16, Vlan};
use openflow::{Action, Controller, FieldId, OfPort, PacketInReason, Prerequisite, Subfield};

use super::XlateError;
use super::context::Context;
use crate::flow::{Part, is_present};

impl Context<'_> {
    /// Carries out a rule's actions.
    pub(super) fn run_actions(&mut self, actions: &[Action]) {
        let mut rest = actions;
        while let Some((action, behind)) = rest.split_first() {
            rest = behind;
            if self.is_over() || !self.run_action(action) || self.leave(rest) {
                return;
            }
        }
    }

    /// Carries out one action. `false`: the rest of the list is not.
    pub(super) fn run_action(&mut self, action: &Action) -> bool {
        use FieldId as F;
        match action {
            Action::Output(port) => self.output(*port, None),
            Action::OutputTrunc { port, max_len } => self.output(*port, Some(*max_len)),
            Action::OutputReg(src) => {
                if let Some(Ok(port)) = self.read_part(*src).map(u16::try_from) {
                    self.output(OfPort(port), None);
                }
            }
            Action::Controller(controller) => self.controller(controller),
            Action::SetField { field, value, mask } => self.set(*field, *value, *mask),
            Action::Load { value, dst } => self.set(dst.field, dst.insert(0, (*value).into()), dst.mask()),
            Action::Move { src, dst } => self.move_part(*src, *dst),
            Action::SetVlanVid { vid, push } => self.set_tag(F::DlVlan, (*vid).into(), *push),
            Action::SetVlanPcp { pcp, push } => self.set_tag(F::DlVlanPcp, (*pcp).into(), *push),
            Action::StripVlan | Action::PopVlan => self.pop_vlan(),
            Action::PushVlan(tpid) => {
                self.push_vlan(Vlan { tpid: Be16::new(*tpid), tci: Be16::new(VLAN_PRESENT) });
            }
            Action::ModDlSrc(mac) => self.write_whole(F::EthSrc, mac_bits(*mac)),
            Action::ModDlDst(mac) => self.write_whole(F::EthDst, mac_bits(*mac)),
            Action::ModNwSrc(addr) => self.write_whole(F::IpSrc, u32::from(*addr).into()),
            Action::ModNwDst(addr) => self.write_whole(F::IpDst, u32::from(*addr).into()),
            Action::ModNwTos(tos) => self.write_whole(F::IpTos, (*tos).into()),
            Action::ModNwEcn(ecn) => self.write_whole(F::IpEcn, (*ecn).into()),
            Action::ModNwTtl(ttl) => self.write_whole(F::IpTtl, (*ttl).into()),
            Action::DecTtl(controllers) => return self.dec_ttl(controllers),
            Action::ModTpSrc(port) => self.set_port(true, *port),
            Action::ModTpDst(port) => self.set_port(false, *port),
            Action::SetTunnel { id, .. } => self.write_whole(F::TunId, (*id).into()),
            Action::Resubmit { port, table } => {
                let table = table.unwrap_or(self.table);
                self.table_lookup(table, port.unwrap_or(self.flow.in_port()), table <= self.table);
            }
            Action::Exit => self.exit = true,
            Action::DebugRecirc => self.freeze(),
            Action::ClearActions => self.set.clear(),
            Action::WriteActions(actions) => self.set.extend_from_slice(actions),
            Action::WriteMetadata { value, mask } => self.write(F::Metadata, (*value).into(), (*mask).into()),
            Action::GotoTable(table) => self.table_lookup(*table, self.flow.in_port(), *table <= self.table),
            // `Note` says nothing to us; what else there may be was refused when the rule was added.
            _ => {}
        }
        true
    }

    /// What [`Self::read_part`] and [`Self::write`] do, in fewer steps where both fields lie in one word each.
    fn move_part(&mut self, src: Subfield, dst: Subfield) {
        if let (Some(from), Some(to)) = (Part::of(src), Part::of(dst)) {
            if self.meets(src.field.info().prerequisite) {
                self.wildcards.look_at_part(from);
                let value = self.flow.part(from);
                if self.meets(dst.field.info().prerequisite) {
                    self.wildcards.look_at_part(to);
                    self.flow.set_part(to, value);
                }
            }
        } else if let Some(value) = self.read_part(src) {
            self.write(dst.field, dst.insert(0, value), dst.mask());
        }
    }

    /// What is in a part of a field; `None` in packets without the field.
    fn read_part(&mut self, src: Subfield) -> Option<u128> {
        self.meets(src.field.info().prerequisite).then(|| src.extract(self.read(src.field, src.mask())))
    }

    fn write_whole(&mut self, field: FieldId, value: u128) {
        self.set(field, value, field.full_mask());
    }

    /// As [`Self::write`], for values that the table has. The IP protocol or ARP operation counts as looked at, since it is part
    /// of the datapath's attribute that is set.
    fn set(&mut self, field: FieldId, value: u128, mask: u128) {
        use FieldId as F;
        let ip = [F::IpSrc, F::IpDst, F::Ipv6Src, F::Ipv6Dst, F::Ipv6Label, F::IpTos, F::IpDscp, F::IpEcn, F::IpTtl];
        let arp = [F::ArpOp, F::ArpSha, F::ArpTha, F::ArpSpa, F::ArpTpa];
        let in_attribute = self.flow.is_ip() && ip.contains(&field)
            || self.flow.key.eth_type.get() == eth_type::ARP && arp.contains(&field);
        if in_attribute && self.meets(field.info().prerequisite) {
            self.wildcards.key.ip_proto = u8::MAX;
        }
        self.write(field, value, mask);
    }

    /// Bits `mask` of a field become those of `value`, in packets that have the field.
    fn write(&mut self, field: FieldId, value: u128, mask: u128) {
        let prerequisite = match field {
            // To match it can mean "no tag"; to write it needs one.
            FieldId::VlanVid => Prerequisite::VlanVid,
            _ => field.info().prerequisite,
        };
        if !self.meets(prerequisite) {
            return;
        }
        self.wildcards.look_at(field, mask);
        let new = (self.flow.get(field) & !mask) | (value & mask);
        match field {
            FieldId::VlanTci | FieldId::DlVlan | FieldId::VlanVid | FieldId::DlVlanPcp | FieldId::VlanPcp => {
                self.write_tag(field, new);
            }
            _ => self.flow.set(field, new),
        }
    }

    /// Changes the outer tag, which may make one or remove it.
    fn write_tag(&mut self, field: FieldId, value: u128) {
        let had = self.count_vlans();
        if had == 0 {
            self.look_at_vlans_taken_off();
        }
        self.flow.set(field, value);
        let vlan = &mut self.flow.key.vlan;
        if is_present(*vlan) {
            if vlan.tpid.is_zero() {
                vlan.tpid = Be16::new(eth_type::VLAN);
            }
        } else {
            self.flow.key.vlan = Vlan::default();
            if had > 1 {
                self.look_at_vlans(2);
                self.flow.key.vlan = std::mem::take(&mut self.flow.key.cvlan);
            }
        }
    }

    /// `mod_vlan_*` (with `push`) and `set_vlan_*`.
    fn set_tag(&mut self, field: FieldId, value: u128, push: bool) {
        self.wildcards.look_at(field, field.full_mask());
        if self.has_vlan() || push {
            self.write_tag(field, value);
        }
    }

    fn set_port(&mut self, source: bool, port: u16) {
        if !self.meets(Prerequisite::Ip) {
            return;
        }
        self.wildcards.key.ip_frag = u8::MAX;
        if self.flow.is_later_fragment() {
            return;
        }
        self.wildcards.key.ip_proto = u8::MAX;
        let port = match self.flow.key.ip_proto {
            ip_proto::TCP | ip_proto::UDP => port,
            ip_proto::SCTP => return self.give_up(XlateError::SctpPorts),
            _ if self.flow.is_icmp() => port & 0xff,
            _ => return,
        };
        let (key, wildcards) = (&mut self.flow.key, &mut self.wildcards.key);
        match source {
            true => (key.tp_src, wildcards.tp_src) = (Be16::new(port), Be16::MAX),
            false => (key.tp_dst, wildcards.tp_dst) = (Be16::new(port), Be16::MAX),
        }
    }

    /// `false`: the packet has come to its end, of which these controllers are told.
    fn dec_ttl(&mut self, controllers: &[u16]) -> bool {
        // As in the reference, of other packets as well.
        (self.wildcards.key.ip_ttl, self.wildcards.key.ip_proto) = (u8::MAX, u8::MAX);
        if !self.meets(Prerequisite::Ip) {
            return true;
        }
        if self.flow.key.ip_ttl <= 1 {
            for id in controllers {
                let reason = PacketInReason::InvalidTtl;
                self.controller(&Controller { id: *id, reason, ..Controller::default() });
            }
            return false;
        }
        self.flow.key.ip_ttl -= 1;
        true
    }
}

fn mac_bits(mac: [u8; 6]) -> u128 {
    mac.iter().fold(0, |bits, byte| (bits << 8) | u128::from(*byte))
}
