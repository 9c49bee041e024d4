//! Packets that were sampled, on their way to whoever exports them: sFlow, and IPFIX of bridges and of flows.

use std::sync::Arc;

use datapath_common::{Be16, FlowKey};
use dpif::{Action, OdpPort, Packet};
use openflow::OfPort;

/// A packet that was sampled.
#[derive(Clone, Debug)]
pub struct Sample<'a> {
    /// For what.
    pub kind: SampleKind,
    /// The bridge that sampled it.
    pub bridge: &'a str,
    /// The port by which it came in there, as the datapath's flow says.
    pub in_port: OfPort,
    /// The packet. A super-packet is one, and its checksum may be left to the device.
    pub packet: &'a Packet,
    /// Its fields as the datapath had them when it sampled it; `in_port` is the datapath's.
    pub key: &'a FlowKey,
    /// The key under which a tunnel sends the packet, its tunnel fields only, where it is sampled for a tunnel's port.
    pub egress_tunnel: Option<&'a FlowKey>,
    /// What the datapath's flow does with the packet, which the record says if the action asks for it. Else the flow is looked
    /// for: `None` where it is gone by now, or was left by an earlier process.
    pub actions: Option<Arc<[Action]>>,
}

/// What a packet is sampled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SampleKind {
    /// sFlow.
    SFlow {
        /// VLAN tag that the packet leaves with.
        vlan_tci: Be16,
        /// sFlow's encoding of the outputs.
        output: u32,
    },
    /// A sample action of a rule.
    Flow {
        /// Probability in 2¹⁶.
        probability: u16,
        /// IPFIX collector set.
        collector_set_id: u32,
        /// IPFIX observation domain.
        obs_domain_id: u32,
        /// IPFIX observation point.
        obs_point_id: u32,
        /// The port that the packet is sampled for; none where it is sampled for itself.
        output_port: Option<OdpPort>,
        /// On its way in, or out; the action may leave that open.
        direction: Option<Direction>,
    },
    /// IPFIX of a bridge.
    Ipfix {
        /// The port that the packet leaves by; none where it is sampled on its way in.
        output_port: Option<OdpPort>,
    },
}

/// Which way a packet is sampled on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// In.
    Ingress,
    /// Out.
    Egress,
}

/// Takes sampled packets. Called by handlers, of which there are several, so it must not wait.
pub trait Exporter: Send + Sync {
    /// Takes one.
    fn export(&self, sample: &Sample<'_>);
}
