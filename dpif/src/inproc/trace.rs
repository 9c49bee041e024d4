//! What happened to one packet, for tests that compare engines.

use datapath_common::FlowKey;
use datapath_common::op::DropReason;

use super::handlers::record_bytes;
use super::run::Sink;
use crate::flow::Ufid;
use crate::packet::Packet;
use crate::port::OdpPort;
use crate::upcall::Upcall;

/// One thing that happened to a packet.
#[derive(Clone, Debug)]
pub enum Event {
    /// It was looked up.
    Lookup {
        /// Its key.
        key: Box<FlowKey>,
        /// Masks looked at.
        masks: u32,
        /// The flow found.
        ufid: Option<Ufid>,
    },
    /// It was sent to a port. VLAN tags are in the bytes.
    Output(OdpPort, Packet),
    /// It was sent to userspace.
    Upcall(Box<Upcall>),
    /// It, or the one output or upcall in question, was dropped.
    Drop(DropReason),
}

/// Everything that happened to a packet, in order.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The events.
    pub events: Vec<Event>,
}

impl Trace {
    /// The key of the packet as it came in, unless it was malformed.
    pub fn key(&self) -> Option<&FlowKey> {
        self.events.iter().find_map(|e| match e {
            Event::Lookup { key, .. } => Some(&**key),
            _ => None,
        })
    }

    /// Where the packet was sent and how it looked then.
    pub fn outputs(&self) -> Vec<(OdpPort, &[u8])> {
        self.select(|e| match e {
            Event::Output(port, packet) => Some((*port, packet.data.as_slice())),
            _ => None,
        })
    }

    /// The upcalls.
    pub fn upcalls(&self) -> Vec<&Upcall> {
        self.select(|e| match e {
            Event::Upcall(upcall) => Some(&**upcall),
            _ => None,
        })
    }

    /// The drops.
    pub fn drops(&self) -> Vec<DropReason> {
        self.select(|e| match e {
            Event::Drop(reason) => Some(*reason),
            _ => None,
        })
    }

    fn select<'a, T>(&'a self, choose: impl Fn(&'a Event) -> Option<T>) -> Vec<T> {
        self.events.iter().filter_map(choose).collect()
    }
}

impl Sink for Trace {
    fn looked_up(&mut self, key: &FlowKey, masks: u32, ufid: Option<Ufid>) {
        self.events.push(Event::Lookup { key: Box::new(*key), masks, ufid });
    }

    fn output(&mut self, port: &super::port::Port, packet: Packet) -> Result<(), DropReason> {
        self.events.push(Event::Output(port.number, packet));
        Ok(())
    }

    fn upcall(&mut self, upcall: Upcall, packet_len: usize) -> Result<(), DropReason> {
        record_bytes(packet_len)?;
        self.events.push(Event::Upcall(Box::new(upcall)));
        Ok(())
    }

    fn dropped(&mut self, reason: DropReason) {
        self.events.push(Event::Drop(reason));
    }
}
