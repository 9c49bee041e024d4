//! Sending a packet that only has to be sent.
//!
//! The packets that a handler executes mostly go out by one port or some, unchanged. Nothing of the datapath has to run for
//! that: a packet socket sends a batch of them in one system call, which takes half the time of a write to the execute device
//! for each. Whatever else an action list says, and what a device has to cut into segments, goes that way as before.
//!
//! What the program does at an output is done here: the port's device is looked up, the MTU compared, the frame counted, in
//! a lane of the statistics that is userspace's.

use datapath_common::extract::eth_type;
use datapath_common::op::{DropReason, kind};
use datapath_common::{FlowKey, Op};
use dpif::{Execute, Packet};
use netdev::packet_sender::{BATCH, Outgoing, PacketSender};

use crate::execute::SHORTEST;
use crate::maps::Maps;
use crate::offload::vnet_header;

/// Frames that are to be sent, in their order.
pub(crate) struct Outbox<'a> {
    maps: &'a Maps,
    sender: &'a PacketSender,
    frames: Vec<Outgoing<'a>>,
    /// The datapath port of each.
    ports: Vec<u32>,
}

impl<'a> Outbox<'a> {
    /// For about `n` frames.
    pub(crate) fn new(maps: &'a Maps, sender: &'a PacketSender, n: usize) -> Self {
        let n = n.min(BATCH);
        Self { maps, sender, frames: Vec::with_capacity(n), ports: Vec::with_capacity(n) }
    }

    /// Takes a packet whose program only sends it. False: it has to be executed.
    pub(crate) fn take(&mut self, execute: Execute<'a>, ops: &[Op]) -> bool {
        let packet = execute.packet;
        let sends = !ops.is_empty() && ops.iter().all(|op| op.kind == kind::OUTPUT);
        // A socket has no place for what other hooks of the kernel may look at.
        let FlowKey { skb_mark, skb_priority, .. } = execute.key;
        let is_plain = packet.gso_size == 0 && *skb_mark == 0 && *skb_priority == 0;
        if !sends || !is_plain || packet.data.len() < SHORTEST {
            return false;
        }
        // Beyond the MTU a packet socket takes no tag but 802.1Q's; the execute device takes what the programs do.
        let beyond =
            |op: &Op| self.maps.device(op.arg).is_some_and(|(_, mtu)| packet.data.len() > mtu as usize + SHORTEST);
        if outer_type(&packet.data) == eth_type::QINQ && ops.iter().any(beyond) {
            return false;
        }
        let header = vnet_header(packet);
        for op in ops {
            match self.device(op.arg, packet) {
                Ok(ifindex) => {
                    self.frames.push(Outgoing { header, data: &packet.data, ifindex });
                    self.ports.push(op.arg);
                }
                Err(reason) => self.maps.count_unsent(op.arg, reason),
            }
        }
        if self.frames.len() >= BATCH {
            self.send();
        }
        true
    }

    fn device(&self, port: u32, packet: &Packet) -> Result<u32, DropReason> {
        let (ifindex, mtu) = self.maps.device(port).ok_or(DropReason::NoPort)?;
        if payload_len(&packet.data) > mtu as usize { Err(DropReason::Mtu) } else { Ok(ifindex) }
    }

    /// Sends all that was taken.
    pub(crate) fn send(&mut self) {
        let mut at = 0;
        while let Some(frames) = self.frames.get(at..).filter(|frames| !frames.is_empty()) {
            let sent = match self.sender.send(frames) {
                Ok(sent) if sent > 0 => sent,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // The first one can't be sent: its device is down, or has too much to send already.
                Ok(_) | Err(_) => {
                    if let Some(port) = self.ports.get(at) {
                        self.maps.count_unsent(*port, DropReason::Output);
                    }
                    at += 1;
                    continue;
                }
            };
            let sent_by = frames.iter().zip(self.ports.get(at..).unwrap_or_default()).take(sent);
            // Many go out by one port: they are counted together.
            let mut run = (0, 0, 0);
            for (frame, port) in sent_by {
                if *port != run.0 {
                    self.maps.count_sent(run.0, run.1, run.2);
                    run = (*port, 0, 0);
                }
                // Of bytes the program doesn't count the outer tag either.
                run = (run.0, run.1 + 1, run.2 + (SHORTEST + payload_len(frame.data)) as u64);
            }
            self.maps.count_sent(run.0, run.1, run.2);
            at += sent;
        }
        self.frames.clear();
        self.ports.clear();
    }
}

impl Drop for Outbox<'_> {
    fn drop(&mut self) {
        self.send();
    }
}

fn outer_type(data: &[u8]) -> u16 {
    data.get(12..).and_then(|rest| rest.first_chunk()).map_or(0, |tpid| u16::from_be_bytes(*tpid))
}

/// Length behind the Ethernet header and an outer tag, which is what the MTU limits.
fn payload_len(data: &[u8]) -> usize {
    let tpid = outer_type(data);
    let header = if tpid == eth_type::VLAN || tpid == eth_type::QINQ { SHORTEST + 4 } else { SHORTEST };
    data.len().saturating_sub(header)
}
