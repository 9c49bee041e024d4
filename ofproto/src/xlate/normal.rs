//! NORMAL: the bridge as a learning switch with VLANs (IEEE 802.1Q).

use std::sync::Arc;

use datapath_common::extract::eth_type;
use datapath_common::key::VLAN_PRESENT;
use datapath_common::{Be16, Vlan};

use openflow::OfPort;

use super::Effect;
use super::context::Context;
use crate::bridge::Bridge;
use crate::flow::is_present;
use crate::port::Port;

const VID: u16 = 0x0fff;

impl<'a> Context<'a> {
    pub(super) fn normal(&mut self) {
        let bridge: &'a Arc<Bridge> = self.bridge;
        let wildcards = &mut self.wildcards.key;
        (wildcards.eth_src, wildcards.eth_dst) = ([0xff; 6], [0xff; 6]);
        wildcards.vlan.tci = wildcards.vlan.tci | Be16::new(VID | VLAN_PRESENT);

        let Some(in_port) = bridge.ports.get(&self.flow.in_port()) else { return };
        let key = &self.flow.key;
        let vid = if is_present(key.vlan) { key.vlan.tci.get() & VID } else { 0 };
        let Some(vlan) = in_port.vlan.of_received(vid) else { return };
        let (src, dst) = (key.eth_src, key.eth_dst);
        if is_reserved(dst) {
            return;
        }
        if src[0] & 1 == 0 {
            let macs = Arc::clone(&bridge.macs);
            self.effects.push(Effect::Learn { macs, vlan, mac: src, port: in_port.number });
        }
        let known = if dst[0] & 1 == 0 { self.station(bridge, vlan, dst) } else { None };
        match known.and_then(|number| bridge.ports.get(&number)) {
            // A packet doesn't go back where it came from.
            Some(port) if port.number == in_port.number => {}
            Some(port) => self.output_vlan(port, vlan),
            None => {
                for port in bridge.ports.values().filter(|port| port.number != in_port.number) {
                    self.output_vlan(port, vlan);
                }
            }
        }
    }

    /// The port that a station is behind: what this packet itself teaches counts already.
    fn station(&self, bridge: &Bridge, vlan: u16, mac: [u8; 6]) -> Option<OfPort> {
        let taught = self.effects.iter().rev().find_map(|effect| match effect {
            Effect::Learn { macs, vlan: on, mac: of, port } => {
                (Arc::ptr_eq(macs, &bridge.macs) && (*on, *of) == (vlan, mac)).then_some(*port)
            }
            _ => None,
        });
        taught.or_else(|| bridge.macs.lookup(vlan, mac))
    }

    /// Sends the packet out of a port of its VLAN, with the tag that the port wants.
    fn output_vlan(&mut self, port: &Port, vlan: u16) {
        if !port.vlan.carries(vlan) {
            return;
        }
        let before = (self.flow.key.vlan, self.flow.key.cvlan);
        let vid = port.vlan.to_send(vlan);
        if !is_present(self.flow.key.vlan) && vid != 0 {
            self.look_at_vlans_taken_off();
        }
        let tag = &mut self.flow.key.vlan;
        if vid == 0 {
            self.pop_vlan();
        } else if !is_present(*tag) {
            *tag = Vlan { tpid: Be16::new(eth_type::VLAN), tci: Be16::new(vid | VLAN_PRESENT) };
        } else if tag.tci.get() & VID != vid {
            tag.tci = Be16::new((tag.tci.get() & !VID) | vid);
        }
        self.output_port(port.number);
        (self.flow.key.vlan, self.flow.key.cvlan) = before;
    }
}

/// Addresses that no bridge forwards: those of IEEE 802.1D (table 7-10), and those that makers of switches use among themselves, as
/// `forward-bpdu` in `ovs-vswitchd.conf.db(5)` lists them.
fn is_reserved(mac: [u8; 6]) -> bool {
    matches!(
        mac,
        [0x01, 0x80, 0xc2, 0x00, 0x00, 0x00..=0x0f]
            // Extreme: discovery (EDP), automatic protection (EAPS).
            | [0x00, 0xe0, 0x2b, 0x00, 0x00, 0x00 | 0x04 | 0x06]
            // Cisco: ISL; CDP, VTP, DTP, PAgP and UDLD; PVST+; uplink fast; CFM.
            | [0x01, 0x00, 0x0c, 0x00, 0x00, 0x00]
            | [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc | 0xcd | 0xc0..=0xc7]
            | [0x01, 0x00, 0x0c, 0xcd, 0xcd, 0xcd]
    )
}
