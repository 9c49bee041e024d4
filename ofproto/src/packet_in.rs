//! Packets for the OpenFlow controllers, on their way from the handlers to whoever has the connections.
//!
//! A handler must not wait for a controller, so it hands packets to a [`PacketInSink`] that takes them or drops them at once;
//! [`PacketInQueue`] is one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use datapath_common::FlowKey;
use openflow::{OfPort, PacketInReason};
use parking_lot::{Condvar, Mutex};

/// A packet for the controllers (OpenFlow 1.3, section A.4.1). Super-packets have been cut and checksums completed: it is as on
/// the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketIn {
    /// The bridge that sends it.
    pub bridge: Arc<str>,
    /// Why.
    pub reason: PacketInReason,
    /// The reason is an action, and it stands in a table-miss rule, which OpenFlow 1.3 and later call "no match".
    pub is_table_miss: bool,
    /// The table of the rule that sent it.
    pub table: u8,
    /// The cookie of the rule; all ones where there is none.
    pub cookie: u64,
    /// Which controllers.
    pub controller_id: u16,
    /// Bytes that were asked for at most; 65535 is all.
    pub max_len: u16,
    /// Length of the packet.
    pub total_len: usize,
    /// The packet, at most `max_len` bytes of it.
    pub data: Vec<u8>,
    /// The port by which it came in.
    pub in_port: OfPort,
    /// The OpenFlow metadata.
    pub metadata: u64,
    /// The registers.
    pub regs: [u32; 16],
    /// The datapath's key: tunnel, connection state and mark are read from it. `in_port` is the datapath's.
    pub key: Box<FlowKey>,
    /// Bytes that the action gives along.
    pub userdata: Vec<u8>,
}

/// Takes packets for controllers.
pub trait PacketInSink: Send + Sync {
    /// Takes a packet or drops it, without waiting.
    fn packet_in(&self, packet_in: PacketIn);
}

/// A queue of packets for controllers. What doesn't fit is dropped and counted.
#[derive(Debug)]
pub struct PacketInQueue {
    queue: Mutex<VecDeque<PacketIn>>,
    arrived: Condvar,
    capacity: usize,
    dropped: AtomicU64,
}

impl PacketInQueue {
    /// A queue for so many packets.
    pub fn new(capacity: usize) -> Self {
        Self { queue: Mutex::default(), arrived: Condvar::new(), capacity, dropped: AtomicU64::new(0) }
    }

    /// The packet that waits longest, if any does.
    pub fn pop(&self) -> Option<PacketIn> {
        self.queue.lock().pop_front()
    }

    /// As [`PacketInQueue::pop`], but waits for one.
    pub fn pop_within(&self, at_most: Duration) -> Option<PacketIn> {
        let mut queue = self.queue.lock();
        if queue.is_empty() {
            self.arrived.wait_for(&mut queue, at_most);
        }
        queue.pop_front()
    }

    /// Packets that wait.
    pub fn len(&self) -> usize {
        self.queue.lock().len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Packets that found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl PacketInSink for PacketInQueue {
    fn packet_in(&self, packet_in: PacketIn) {
        let mut queue = self.queue.lock();
        if queue.len() >= self.capacity {
            coverage::inc!("packet_in_overflow");
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.push_back(packet_in);
        drop(queue);
        self.arrived.notify_one();
    }
}
