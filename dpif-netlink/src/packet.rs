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
    /// Number of the socket that the kernel sent it to, where it says so.
    pub upcall_pid: Option<u32>,
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
            upcall_pid: None,
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
                packet::UPCALL_PID => upcall.upcall_pid = Some(u32_of(bytes)?),
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
    /// It is for another datapath, or no upcall at all.
    NotOurs,
    /// Its key can't be read, or lacks what its types ask for.
    Key,
}

/// Reads a message into a slot, whose buffers are kept.
pub(crate) fn receive(message: &Message<'_>, datapath: i32, now: u64, to: &mut Upcall) -> Result<(), NoUpcall> {
    let (command, ifindex, attrs) = message.ovs().ok_or(NoUpcall::NotOurs)?;
    if ifindex != datapath {
        return Err(NoUpcall::NotOurs);
    }
    let upcall = PacketUpcall::read(command, attrs).ok_or(NoUpcall::NotOurs)?;
    let mut options = TunnelOptions::NONE;
    match codec::decode_key(upcall.key, &mut to.key, &mut options) {
        Ok(Fitness::Perfect | Fitness::TooMuch) => {}
        Ok(Fitness::TooLittle) | Err(_) => return Err(NoUpcall::Key),
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
    to.hash = upcall.hash as u32;
    to.arrival_ns = now;
    Ok(())
}

/// Writes a packet that is to be executed. `pid` is where it goes if an action sends it up and names no socket.
pub(crate) fn write_execute(execute: &Execute<'_>, pid: u32, to: &mut Writer) -> codec::Result<()> {
    to.put(packet::PACKET, &execute.packet.data);
    let nest = to.begin_nest(packet::KEY);
    codec::encode_metadata(execute.key, to);
    to.end(nest);
    let nest = to.begin_nest(packet::ACTIONS);
    codec::encode_actions_for(execute.actions, pid, to)?;
    to.end(nest);
    if execute.packet.mru != 0 {
        to.put(packet::MRU, &execute.packet.mru.to_ne_bytes());
    }
    Ok(())
}
