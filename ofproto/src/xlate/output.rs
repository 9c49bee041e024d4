//! Where packets go: ports by number and by reserved name, and over patch ports into other bridges.

use std::sync::Arc;

use dpif::{Action, OdpPort};
use openflow::{Controller, OfPort};

use super::Effect;
use super::context::Context;
use crate::bridge::Bridge;
use crate::port::{Port, PortKind};
use crate::recirc::FrozenTunnel;

impl<'a> Context<'a> {
    /// `output:PORT`, cut to `max_len` bytes where that is given.
    pub(super) fn output(&mut self, port: OfPort, max_len: Option<u32>) {
        let outer = self.trunc;
        if let Some(max_len) = max_len {
            let tags = self.count_vlans();
            let allowed = outer.map_or(u32::MAX, |(len, then)| adapted(len, then, tags));
            self.trunc = Some((max_len.min(allowed), tags));
        }
        self.output_to(port);
        self.trunc = outer;
    }

    fn output_to(&mut self, port: OfPort) {
        let in_port = self.flow.in_port();
        match port {
            OfPort::IN_PORT => self.output_port(in_port),
            OfPort::TABLE => self.table_lookup(0, in_port, true),
            OfPort::NORMAL => self.normal(),
            OfPort::FLOOD | OfPort::ALL => {
                let bridge: &'a Arc<Bridge> = self.bridge;
                for number in bridge.ports.keys().filter(|number| **number != in_port) {
                    self.output_port(*number);
                }
            }
            OfPort::CONTROLLER => self.controller(&Controller::default()),
            // A packet doesn't go back where it came from, unless IN_PORT says so.
            port if port == in_port => {}
            port => self.output_port(port),
        }
    }

    /// Sends the packet as it is now out of a port, be it the one it came in by. Nothing where the bridge has no such port.
    pub(super) fn output_port(&mut self, number: OfPort) {
        if self.is_over() {
            return;
        }
        let bridge: &'a Arc<Bridge> = self.bridge;
        let Some(port) = bridge.ports.get(&number) else { return };
        match (port.odp, &port.kind) {
            (Some(odp), _) => self.output_datapath(odp),
            (None, PortKind::Patch { .. }) => self.output_patch(port),
            (None, _) => {}
        }
    }

    fn output_datapath(&mut self, odp: OdpPort) {
        self.commit();
        if let Some((len, then)) = self.trunc {
            let now = self.count_vlans();
            self.emit(Action::Trunc(adapted(len, then, now)));
        }
        self.emit(Action::Output(odp));
    }

    /// The packet goes through the pipeline of the bridge at the other end, as if it had come in there by the peer. What
    /// happens to it there, this bridge doesn't see.
    fn output_patch(&mut self, port: &Port) {
        let config = self.config;
        let Some((peer_bridge, peer)) = config.peer_of(self.bridge, port.number) else { return };
        if !self.descend() {
            return;
        }
        self.effects.push(Effect::PatchSent(Arc::clone(&port.patch_stats)));
        self.effects.push(Effect::PatchReceived(Arc::clone(&peer.patch_stats)));
        let (flow, bridge, table, tunnel) = (self.flow, self.bridge, self.table, self.tunnel);
        let set = std::mem::take(&mut self.set);
        let exit = std::mem::take(&mut self.exit);
        self.bridge = peer_bridge;
        self.flow.set_in_port(peer.number);
        self.flow.clear_pipeline();
        // The tunnel that the packet came through, or is to go through, is the other bridge's matter.
        self.flow.clear_tunnel();
        self.tunnel = FrozenTunnel::Left(0);
        if !self.is_special() {
            self.pipeline();
        }
        (self.flow, self.bridge, self.table, self.tunnel) = (flow, bridge, table, tunnel);
        (self.set, self.exit) = (set, exit);
        self.depth -= 1;
    }
}

/// A length that was said when the packet had `then` tags, for a packet that has `now`. The datapath wants a whole Ethernet
/// header.
fn adapted(len: u32, then: usize, now: usize) -> u32 {
    (i64::from(len) + 4 * (now as i64 - then as i64)).clamp(14, u32::MAX.into()) as u32
}
