//! Protocols that userspace speaks on ports: connectivity fault management, link aggregation and their like.
//!
//! A protocol is attached to a port, or to all ports of a bridge. When a packet comes in there, it is asked first whether the
//! packet is one of its own; then the tables don't see it. Each of its packets has to come up, so their megaflow is a userspace
//! action that says why (`slow_path(cfm)`), and the protocol gets each packet from a handler.

use std::fmt;
use std::sync::Arc;

use dpif::Packet;
use dpif::odp::SlowPath;
use openflow::{FieldId, OfPort};

use crate::flow::Flow;

/// Which protocol: why its packets come up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolKind {
    /// Connectivity fault management (IEEE 802.1ag).
    Cfm,
    /// Bidirectional forwarding detection (RFC 5880).
    Bfd,
    /// Link aggregation control (IEEE 802.1AX).
    Lacp,
    /// Spanning tree (IEEE 802.1D), rapid or not.
    Stp,
    /// Link layer discovery (IEEE 802.1AB).
    Lldp,
}

impl ProtocolKind {
    /// Its bit of [`SlowPath`].
    pub fn slow_path(self) -> u32 {
        match self {
            Self::Cfm => SlowPath::CFM,
            Self::Bfd => SlowPath::BFD,
            Self::Lacp => SlowPath::LACP,
            Self::Stp => SlowPath::STP,
            Self::Lldp => SlowPath::LLDP,
        }
    }
}

/// A protocol.
pub trait Protocol: fmt::Debug + Send + Sync {
    /// Which one.
    fn kind(&self) -> ProtocolKind;

    /// Whether a packet that came in by `port` is the protocol's. The answer depends on nothing but what is [read](Look), and on
    /// what changes only when the protocol is detached and attached again: a megaflow comes of it.
    fn takes(&self, port: OfPort, look: &mut Look<'_>) -> bool;

    /// One of its packets came in. Called by a handler, of which there are several.
    fn receive(&self, received: &Received<'_>);
}

/// A look at a packet. What is read of it counts as looked at in the megaflow.
pub struct Look<'a> {
    flow: &'a Flow,
    wildcards: &'a mut Flow,
}

impl<'a> Look<'a> {
    pub(crate) fn new(flow: &'a Flow, wildcards: &'a mut Flow) -> Self {
        Self { flow, wildcards }
    }

    /// A field, its value in the low bits; `None` in packets that have no such field.
    pub fn field(&mut self, field: FieldId) -> Option<u128> {
        self.flow.meets(field.info().prerequisite, self.wildcards).then(|| {
            self.wildcards.look_at(field, field.full_mask());
            self.flow.get(field)
        })
    }
}

/// A packet that a protocol gets.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The bridge.
    pub bridge: &'a str,
    /// The port by which it came in there.
    pub port: OfPort,
    /// The packet as it came in by the datapath's port, its checksums complete.
    pub packet: &'a Packet,
}

/// A protocol where it is spoken.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The bridge.
    pub bridge: Arc<str>,
    /// The port; all of the bridge where there is none.
    pub port: Option<OfPort>,
    /// The protocol.
    pub protocol: Arc<dyn Protocol>,
}

/// Why and how packets come up beside misses: part of the configuration.
#[derive(Clone, Debug, Default)]
pub struct SlowPaths {
    /// The protocols, in the order in which they are asked.
    pub protocols: Vec<Attached>,
    /// The datapath's meter that limits packets which userspace has to handle, if there is one.
    pub slow_path_meter: Option<u32>,
    /// The datapath's meter that limits packets to controllers, if there is one.
    pub controller_meter: Option<u32>,
}
