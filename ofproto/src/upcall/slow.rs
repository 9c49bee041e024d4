//! Actions that no datapath runs as they are, run by userspace: the packet is changed here, and each output is executed on its
//! own, on a copy of the packet as it is then.

use datapath_common::FlowKey;
use datapath_common::apply::set_word;
use datapath_common::extract::{Layers, clear_packet_fields, extract};
use datapath_common::packet::{PacketEdit, SlicePacket};
use dpif::odp::{Cookie, CookieKind, SlowPath};
use dpif::offload::complete_checksum;
use dpif::{Action, Execute, Packet, SetAction, UserspaceAction};

use crate::backer::Backer;
use crate::protocol::Received;
use crate::xlate::Taken;

/// Runs `actions` on a packet with the datapath's key `key`.
///
/// # Errors
/// What stood in the way, after which nothing more was done.
pub(super) fn execute(backer: &Backer, packet: &Packet, key: &FlowKey, actions: &[Action]) -> Result<(), String> {
    coverage::inc!("upcall_slow_path");
    let result = pieces(packet, key, actions, &mut |packet, key, output| {
        backer.dpif.execute(Execute { packet, key, actions: &[output] }).map_err(|error| error.to_string())
    });
    result.map_err(|error| format!("in userspace: {error}"))
}

/// Whether actions send packets up.
pub(super) fn sends_up(actions: &[Action]) -> bool {
    actions.iter().any(|action| match action {
        Action::Userspace(_) => true,
        Action::Sample { actions, .. } | Action::Clone(actions) => sends_up(actions),
        _ => false,
    })
}

/// Whether actions send packets up for the reason that the datapath's key says too little or too much of them.
pub(in crate::upcall) fn sends_up_unfit(actions: &[Action]) -> bool {
    actions.iter().any(|action| match action {
        Action::Userspace(UserspaceAction { cookie, .. }) => {
            let kind = Cookie::decode(cookie).map(|cookie| cookie.kind);
            matches!(kind, Some(CookieKind::SlowPath(reasons)) if reasons & SlowPath::MATCH != 0)
        }
        Action::Sample { actions, .. } => sends_up_unfit(actions),
        _ => false,
    })
}

/// Gives a packet to the protocols that take it.
pub(super) fn hand_over(taken: &[Taken], packet: &Packet) {
    if taken.is_empty() {
        return;
    }
    let mut packet = packet.clone();
    // One that can't be completed has none to complete, or is for the protocol to refuse.
    let _ = complete_checksum(&mut packet);
    for Taken { protocol, bridge, port } in taken {
        coverage::inc!("upcall_protocol");
        protocol.receive(&Received { bridge, port: *port, packet: &packet });
    }
}

/// Calls `output` with each output of the list and the packet as it is to leave. An output that fails doesn't stop the others.
pub(crate) fn pieces(
    packet: &Packet,
    key: &FlowKey,
    actions: &[Action],
    output: &mut dyn FnMut(&Packet, &FlowKey, Action) -> Result<(), String>,
) -> Result<(), String> {
    let mut work = Work::new(packet, key)?;
    let mut trunc = None;
    let mut result = Ok(());
    for action in actions {
        match action {
            Action::Output(_) => {
                let done = output(&work.finished(trunc.take()), &work.key, action.clone());
                result = result.and(done);
            }
            // The datapath looks the packet up again as it is now.
            Action::Recirc(_) => {
                let done = output(&work.finished(None), &work.key, action.clone());
                result = result.and(done);
            }
            // To send up, or to do what only the datapath does with a copy, is the datapath's.
            Action::Userspace(_) | Action::Sample { .. } | Action::Clone(_) => {
                let done = output(&work.finished(trunc.take()), &work.key, action.clone());
                result = result.and(done);
            }
            Action::Trunc(len) => trunc = Some(*len as usize),
            Action::Set(set) => work.set(set)?,
            Action::PushVlan(vlan) => {
                work.packet.push_vlan(*vlan).map_err(|_| "pushing a VLAN tag".to_string())?;
                work.extract()?;
            }
            Action::PopVlan => {
                work.packet.pop_vlan().map_err(|_| "popping a VLAN tag".to_string())?;
                work.extract()?;
            }
            other => return Err(format!("{other:?} can't be run in userspace")),
        }
    }
    result
}

struct Work {
    packet: SlicePacket,
    gso_size: u16,
    mru: u16,
    key: FlowKey,
    layers: Layers,
}

impl Work {
    fn new(packet: &Packet, key: &FlowKey) -> Result<Self, String> {
        let slice = SlicePacket {
            bytes: packet.data.clone(),
            vlan: Default::default(),
            partial_checksum: packet.partial_checksum,
        };
        let mut work =
            Self { packet: slice, gso_size: packet.gso_size, mru: packet.mru, key: *key, layers: Layers::default() };
        work.extract()?;
        Ok(work)
    }

    fn extract(&mut self) -> Result<(), String> {
        clear_packet_fields(&mut self.key);
        self.layers = extract(&self.packet, &mut self.key).map_err(|_| "the packet is malformed".to_string())?;
        Ok(())
    }

    fn set(&mut self, set: &SetAction) -> Result<(), String> {
        for (index, (value, mask)) in set.value.words().iter().zip(set.mask.words()).enumerate() {
            if *mask != 0 {
                set_word(&mut self.packet, &mut self.key, &self.layers, index, *value, *mask)
                    .map_err(|_| format!("set of {:?} doesn't fit the packet", set.attr))?;
            }
        }
        Ok(())
    }

    /// The packet as it leaves, cut to `len` bytes.
    fn finished(&self, len: Option<usize>) -> Packet {
        let mut copy = self.packet.clone();
        copy.restore_vlan();
        let cut = len.is_some_and(|len| len < copy.bytes.len());
        if let Some(len) = len {
            copy.bytes.truncate(len);
        }
        let gso_size = if cut { 0 } else { self.gso_size };
        Packet {
            data: copy.bytes,
            gso_size,
            partial_checksum: copy.partial_checksum,
            mru: self.mru,
            ..Packet::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_common::{Be16, Vlan};
    use dpif::OdpPort;

    #[test]
    fn each_output_gets_the_packet_as_it_is_then() {
        let packet = Packet::new([&[0u8; 12][..], &[0x08, 0x99], &[7; 50]].concat());
        let actions = [
            Action::Trunc(20),
            Action::Output(OdpPort(1)),
            Action::PushVlan(Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1005) }),
            Action::Output(OdpPort(2)),
            Action::PopVlan,
            Action::Output(OdpPort(3)),
        ];
        let mut sent = Vec::new();
        let mut output = |packet: &Packet, _: &FlowKey, action: Action| {
            sent.push((action, packet.data.clone()));
            Ok(())
        };
        pieces(&packet, &FlowKey::ZERO, &actions, &mut output).unwrap();
        let tagged = [&[0u8; 12][..], &[0x81, 0, 0, 5, 0x08, 0x99], &[7; 50]].concat();
        assert_eq!(
            sent,
            [
                (Action::Output(OdpPort(1)), packet.data[..20].to_vec()),
                (Action::Output(OdpPort(2)), tagged),
                (Action::Output(OdpPort(3)), packet.data.clone()),
            ]
        );
    }
}
