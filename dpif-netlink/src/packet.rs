//! Packets on their way up, and down again.

use datapath_common::FlowKey;
use dpif::{Execute, Upcall, UpcallKind};

use crate::attr::{Attrs, Writer, u16_of, u32_of, u64_of};
use crate::codec::{self, Fitness, TunnelOptions};
use crate::message::Message;
use crate::uapi::{packet, packet_cmd};

/// An upcall as the kernel sent it: all attributes, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct PacketUpcall<'a> {
    /// Miss or action.
    pub kind: UpcallKind,
    /// The frame from its Ethernet header on.
    pub packet: &'a [u8],
    /// The key as attributes.
    pub key: &'a [u8],
    /// Cookie of the userspace action.
    pub userdata: &'a [u8],
    /// The key under which a tunnel would send the packet, as attributes; where the action asked for it.
    pub egress_tunnel_key: Option<&'a [u8]>,
    /// The flow's actions, where the action asked for them.
    pub actions: Option<&'a [u8]>,
    /// Maximum receive unit of a reassembled packet, else 0.
    pub mru: u16,
    /// Length before truncation.
    pub orig_len: u32,
    /// The kernel's hash of the packet (lower half) and its kind (upper half).
    pub hash: u64,
}

impl<'a> PacketUpcall<'a> {
    /// Reads the attributes behind the module's header. `None` for a command that is no upcall, or without packet or key.
    pub fn read(command: u8, attrs: &'a [u8]) -> Option<Self> {
        let kind = match command {
            packet_cmd::MISS => UpcallKind::Miss,
            packet_cmd::ACTION => UpcallKind::Action,
            _ => return None,
        };
        let (mut data, mut key) = (None, None);
        let mut upcall = Self {
            kind,
            packet: &[],
            key: &[],
            userdata: &[],
            egress_tunnel_key: None,
            actions: None,
            mru: 0,
            orig_len: 0,
            hash: 0,
        };
        let mut whole = None;
        for attr in Attrs::new(attrs) {
            let (kind, bytes) = attr.ok()?;
            match kind {
                packet::PACKET => data = Some(bytes),
                packet::KEY => key = Some(bytes),
                packet::USERDATA => upcall.userdata = bytes,
                packet::EGRESS_TUN_KEY => upcall.egress_tunnel_key = Some(bytes),
                packet::ACTIONS => upcall.actions = Some(bytes),
                packet::MRU => upcall.mru = u16_of(bytes)?,
                packet::LEN => whole = Some(u32_of(bytes)?),
                packet::HASH => upcall.hash = u64_of(bytes)?,
                // A kernel may say more than we know.
                _ => {}
            }
        }
        (upcall.packet, upcall.key) = (data?, key?);
        upcall.orig_len = whole.unwrap_or(upcall.packet.len() as u32);
        Some(upcall)
    }

    /// The key under which a tunnel would send the packet, and its options.
    pub fn egress_tunnel(&self) -> Option<codec::Result<(FlowKey, TunnelOptions)>> {
        self.egress_tunnel_key.map(codec::decode_tunnel)
    }
}

/// Why a datagram gave no upcall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoUpcall {
    /// It is for another datapath.
    NotOurs,
    /// It is no upcall, or cut off, or its key can't be read or lacks what its types ask for.
    Unreadable,
}

/// Where upcalls come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// Number of the family of packets.
    pub(crate) family: u16,
    /// The datapath's ifindex.
    pub(crate) datapath: i32,
    /// The socket that the kernel chose by the CPU, else 0.
    pub(crate) pid: u32,
}

/// Reads a message into a slot, whose buffers are kept. `arrival_ns`: since when it may have waited.
pub(crate) fn receive(message: &Message<'_>, from: Origin, arrival_ns: u64, to: &mut Upcall) -> Result<(), NoUpcall> {
    let (command, ifindex, attrs) =
        message.ovs().filter(|_| message.kind == from.family).ok_or(NoUpcall::Unreadable)?;
    if ifindex != from.datapath {
        return Err(NoUpcall::NotOurs);
    }
    let upcall = PacketUpcall::read(command, attrs).ok_or(NoUpcall::Unreadable)?;
    let mut options = TunnelOptions::NONE;
    match codec::decode_key(upcall.key, &mut to.key, &mut options) {
        Ok(Fitness::Perfect | Fitness::TooMuch) => {}
        Ok(Fitness::TooLittle) | Err(_) => return Err(NoUpcall::Unreadable),
    }
    to.kind = upcall.kind;
    to.packet.data.clear();
    to.packet.data.extend_from_slice(upcall.packet);
    // The kernel cuts super-packets and completes checksums before it sends packets up.
    (to.packet.gso_size, to.packet.partial_checksum) = (0, false);
    to.cookie.clear();
    to.cookie.extend_from_slice(upcall.userdata);
    to.orig_len = upcall.orig_len;
    to.packet.mru = upcall.mru;
    // What can't be read is missing; the packet is an upcall all the same.
    to.egress_tunnel = upcall.egress_tunnel().and_then(Result::ok).map(|(key, _)| Box::new(key));
    to.actions = upcall.actions.and_then(|bytes| codec::decode_actions(bytes).ok()).map(Into::into);
    to.packet.tunnel_options.clear();
    to.packet.tunnel_options.extend_from_slice(options.as_bytes());
    (to.hash, to.packet.hash) = (upcall.hash as u32, upcall.hash);
    to.packet.upcall_pid = from.pid;
    to.arrival_ns = arrival_ns;
    Ok(())
}

/// Writes a packet that is to be executed. `pid` is where it goes if an action sends it up and names no socket.
pub(crate) fn write_execute(execute: &Execute<'_>, pid: u32, to: &mut Writer) -> codec::Result<()> {
    to.put(packet::PACKET, &execute.packet.data);
    let nest = to.begin_nest(packet::KEY);
    let options = &execute.packet.tunnel_options;
    let options = TunnelOptions::new(options).ok_or(codec::CodecError::Length("tunnel options", options.len()))?;
    codec::encode_metadata(execute.key, &options, to);
    to.end(nest);
    let nest = to.begin_nest(packet::ACTIONS);
    codec::encode_actions_for(execute.actions, pid, to)?;
    to.end(nest);
    if execute.packet.mru != 0 {
        to.put(packet::MRU, &execute.packet.mru.to_ne_bytes());
    }
    if execute.packet.hash != 0 {
        to.put(packet::HASH, &execute.packet.hash.to_ne_bytes());
    }
    // Since Linux 6.3; where upcalls go by the port, it would hinder that.
    if execute.packet.upcall_pid != 0 {
        to.put_u32(packet::UPCALL_PID, execute.packet.upcall_pid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{self, Messages, Target};

    const FROM: Origin = Origin { family: 30, datapath: 5, pid: 9 };

    /// A miss of a family and a datapath, with these attributes beside the packet.
    fn miss(family: u16, datapath: i32, more: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut to = Writer::default();
        let open = message::begin(&mut to, Target { family, version: 1, cmd: packet_cmd::MISS, flags: 0 }, 0);
        to.raw(&datapath.to_ne_bytes());
        to.put(packet::PACKET, &[0; 60]);
        more(&mut to);
        message::end(&mut to, open);
        to.bytes().to_vec()
    }

    fn key(to: &mut Writer) {
        let nest = to.begin_nest(packet::KEY);
        let key = FlowKey { in_port: 3, eth_type: datapath_common::Be16::new(0x88b5), ..FlowKey::ZERO };
        codec::encode_key(&key, &TunnelOptions::NONE, true, to);
        to.end(nest);
    }

    #[test]
    fn what_is_no_upcall_of_ours_is_told_apart_from_what_cannot_be_read() {
        let mut slot = Upcall::default();
        let mut read = |bytes: &[u8]| receive(&Messages(bytes).next().unwrap(), FROM, 1, &mut slot);
        assert_eq!(read(&miss(30, 5, key)), Ok(()));
        assert_eq!(read(&miss(30, 6, key)), Err(NoUpcall::NotOurs));
        assert_eq!(read(&miss(31, 5, key)), Err(NoUpcall::Unreadable), "another family");
        assert_eq!(read(&miss(30, 5, |_| {})), Err(NoUpcall::Unreadable), "no key");
        let long_mru = |to: &mut Writer| {
            key(to);
            to.put_u32(packet::MRU, 1);
        };
        assert_eq!(read(&miss(30, 5, long_mru)), Err(NoUpcall::Unreadable));
    }
}
