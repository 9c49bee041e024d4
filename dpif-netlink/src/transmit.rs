//! Packets that only have to be sent.
//!
//! What a handler executes mostly goes out by one port or some, unchanged. The module copies such a packet, reads its headers
//! again, makes a flow for it and takes that apart: a packet socket sends a batch of them in one system call, for a third of the
//! instructions. The module's port of an Ethernet device does nothing but hand the packet to it, as the socket does, and has no
//! counters but the device's. Everything else goes the module's way: other actions and kinds of ports, packets with metadata that
//! a device sees, and what the socket can't send, which the module then counts as it always does.
//!
//! Which device a port is, is asked for once, and again after each change of a port that the module tells of.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use datapath_common::key::MAC_PROTO_ETHERNET;
use dpif::{Action, DpifOp, Execute, OdpPort, Result};
use netdev::device::Namespace;
use netdev::packet_sender::{Outgoing, PacketSender};
use nix::errno::Errno;
use parking_lot::Mutex;

use crate::datapath::refuse_unsayable;
use crate::error;
use crate::kernel::Kernel;
use crate::socket::Socket;
use crate::vport::{VportType, Which};

/// No `struct virtio_net_hdr` has anything to say of what the module sent up.
const FINISHED: [u8; netdev::vnet::HEADER] = [0; netdev::vnet::HEADER];
/// An Ethernet header.
const SHORTEST: usize = 14;

/// The socket, and the ports' devices.
pub(crate) struct Transmitter {
    sender: PacketSender,
    ports: Mutex<Ports>,
    /// Frames that were sent.
    count: AtomicU64,
}

struct Ports {
    /// Hears of changes.
    changes: Socket,
    /// The device of each port that was asked for; `None`: its packets go the module's way.
    devices: BTreeMap<OdpPort, Option<u32>>,
}

/// What has become of a batch.
#[derive(Default)]
pub(crate) struct Transmitted<'a> {
    /// By operation, whether it is done; behind the end none is.
    pub(crate) done: Vec<bool>,
    /// What was not sent of those that are: the operation, and the packet with one output.
    pub(crate) left: Vec<(usize, Execute<'a>)>,
}

/// A frame of a batch.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Its operation.
    op: usize,
    /// The packet with this output alone.
    execute: Execute<'a>,
}

impl Transmitter {
    /// For the devices of the caller's network namespace. `group`: the multicast group of vports.
    pub(crate) fn new(group: u32) -> Result<Self> {
        let failed = |error| error::io(error, || "can't open a packet socket".into());
        let changes = Socket::new().and_then(|socket| socket.join(group).map(|()| socket)).map_err(failed)?;
        let sender = PacketSender::open().map_err(failed)?;
        let ports = Mutex::new(Ports { changes, devices: BTreeMap::new() });
        Ok(Self { sender, ports, count: AtomicU64::new(0) })
    }

    /// Frames that were sent.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Sends those packets of a batch that only have to be sent.
    pub(crate) fn transmit<'a>(
        &self,
        kernel: &Kernel,
        datapath: i32,
        namespace: &Namespace,
        ops: &[DpifOp<'a>],
    ) -> Transmitted<'a> {
        let mut sent = Transmitted::default();
        if !ops.iter().any(|op| plain(op).is_some()) {
            return sent;
        }
        let (mut frames, mut places) = (Vec::with_capacity(ops.len()), Vec::with_capacity(ops.len()));
        sent.done.resize(ops.len(), false);
        let mut ports = self.ports.lock();
        ports.hear();
        for (op, (one, done)) in ops.iter().zip(&mut sent.done).enumerate() {
            let Some(execute) = plain(one) else { continue };
            let (before, mut outputs) = (frames.len(), execute.actions.chunks(1));
            *done = outputs.all(|actions| {
                let [Action::Output(port)] = actions else { return false };
                let Some(ifindex) = ports.device(*port, kernel, datapath, namespace) else { return false };
                frames.push(Outgoing { header: FINISHED, data: &execute.packet.data, ifindex });
                places.push(Place { op, execute: Execute { actions, ..execute } });
                true
            });
            if !*done {
                frames.truncate(before);
                places.truncate(before);
            }
        }
        drop(ports);
        self.send(&frames, &places, &mut sent.left);
        sent
    }

    fn send<'a>(&self, frames: &[Outgoing<'a>], places: &[Place<'a>], left: &mut Vec<(usize, Execute<'a>)>) {
        let mut at = 0;
        while let Some(rest) = frames.get(at..).filter(|rest| !rest.is_empty()) {
            match self.sender.send(rest) {
                Ok(sent) if sent > 0 => {
                    at += sent;
                    self.count.fetch_add(sent as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    left.extend(places.get(at).map(|place| (place.op, place.execute)));
                    at += 1;
                }
            }
        }
    }
}

impl Ports {
    /// After a change nothing is known.
    fn hear(&mut self) {
        let mut buffer = [0; 64];
        loop {
            let error = self.changes.receive(&mut buffer, false).err();
            if error.as_ref().is_some_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
                return;
            }
            self.devices.clear();
            // Besides a message there may be one that is longer than the buffer, and one that was lost.
            let lost = Some(Errno::ENOBUFS as i32);
            if error.and_then(|error| error.raw_os_error()).is_some_and(|errno| Some(errno) != lost) {
                return;
            }
        }
    }

    fn device(&mut self, port: OdpPort, kernel: &Kernel, datapath: i32, namespace: &Namespace) -> Option<u32> {
        let ask = || {
            let vport = kernel.vport_get(datapath, Which::Port(port)).ok()?;
            let device = namespace.device(&vport.name).ok()?;
            (vport.kind == VportType::Netdev && device.is_ethernet && vport.ifindex == device.index)
                .then_some(device.index)
        };
        *self.devices.entry(port).or_insert_with(ask)
    }
}

/// A packet that a device may get as it is, whatever port it is to go to.
fn plain<'a>(op: &DpifOp<'a>) -> Option<Execute<'a>> {
    let DpifOp::Execute { execute, .. } = op else { return None };
    let (packet, key) = (execute.packet, execute.key);
    let sends = !execute.actions.is_empty() && execute.actions.iter().all(|one| matches!(one, Action::Output(_)));
    // A socket has no place for what other hooks of the kernel may look at, and cuts nothing.
    let is_plain = key.skb_mark == 0 && key.skb_priority == 0 && packet.mru == 0 && packet.data.len() >= SHORTEST;
    (sends && is_plain && key.mac_proto == MAC_PROTO_ETHERNET && refuse_unsayable(execute).is_ok()).then_some(*execute)
}
