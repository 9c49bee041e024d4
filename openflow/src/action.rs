//! What a flow does with a packet: OpenFlow actions and instructions.
//!
//! A flow has one list. Its actions are carried out in order as they come (`apply_actions` is the default); the
//! instructions [`Action::ClearActions`], [`Action::WriteActions`], [`Action::WriteMetadata`] and [`Action::GotoTable`]
//! stand after them, in that order, each at most once. An empty list drops.

use std::fmt;
use std::net::Ipv4Addr;

use crate::field::{FieldId, Subfield};
use crate::port::{NoPortNames, OfPort, PortNames};

mod check;
mod format;
mod parse;

pub use check::check_actions;
pub(crate) use check::check_located;
pub use format::display_actions;
pub(crate) use parse::parse_action_list;
pub use parse::parse_actions;

/// One action or instruction (ovs-actions(7)).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Sends the packet to a port, which may be a reserved one: IN_PORT, TABLE, NORMAL, FLOOD, ALL, LOCAL. Text for
    /// CONTROLLER is read as [`Action::Controller`].
    Output(OfPort),
    /// Sends the packet to a port, cut to `max_len` bytes (at least 14): `output(port=P,max_len=N)`.
    OutputTrunc {
        /// An ordinary port, LOCAL or IN_PORT.
        port: OfPort,
        /// Bytes to send at most.
        max_len: u32,
    },
    /// Sends the packet to the port whose number the subfield holds.
    OutputReg(Subfield),
    /// Sends the packet to the controllers.
    Controller(Controller),
    /// Sets a field's bits under a mask: `set_field:VALUE[/MASK]->FIELD`.
    SetField {
        /// The field, a writable one.
        field: FieldId,
        /// The bits; 0 outside the mask.
        value: u128,
        /// Bits to set, at least one; [`FieldId::full_mask`] for all.
        mask: u128,
    },
    /// Sets a subfield of at most 64 bits: `load:VALUE->SUBFIELD`. Text that loads more is read as several loads.
    Load {
        /// The value, which fits the subfield.
        value: u64,
        /// Where to, writable.
        dst: Subfield,
    },
    /// Copies one subfield to another of the same width.
    Move {
        /// Where from.
        src: Subfield,
        /// Where to, writable.
        dst: Subfield,
    },
    /// Sets the outer tag's VLAN id.
    SetVlanVid {
        /// The id, 0 to 4095.
        vid: u16,
        /// Whether a packet without a tag gets one (`mod_vlan_vid`) or stays as it is (`set_vlan_vid`).
        push: bool,
    },
    /// Sets the outer tag's priority.
    SetVlanPcp {
        /// The priority, 0 to 7.
        pcp: u8,
        /// Whether a packet without a tag gets one (`mod_vlan_pcp`) or stays as it is (`set_vlan_pcp`).
        push: bool,
    },
    /// Removes the outer tag, if any (`strip_vlan`, OpenFlow 1.0's name).
    StripVlan,
    /// Removes the outer tag, if any (`pop_vlan`, OpenFlow 1.1's name).
    PopVlan,
    /// Adds a tag with this ethertype, 0x8100 or 0x88a8.
    PushVlan(u16),
    /// Sets the Ethernet source.
    ModDlSrc([u8; 6]),
    /// Sets the Ethernet destination.
    ModDlDst([u8; 6]),
    /// Sets the IPv4 source.
    ModNwSrc(Ipv4Addr),
    /// Sets the IPv4 destination.
    ModNwDst(Ipv4Addr),
    /// Sets the DSCP; the value is in the place of the TOS byte, its low two bits 0.
    ModNwTos(u8),
    /// Sets the ECN, 0 to 3.
    ModNwEcn(u8),
    /// Sets the TTL or hop limit.
    ModNwTtl(u8),
    /// Decrements the TTL or hop limit; of a packet that is at its end, tells the controllers with these ids. `dec_ttl`
    /// alone is id 0.
    DecTtl(Vec<u16>),
    /// Sets the transport source port.
    ModTpSrc(u16),
    /// Sets the transport destination port.
    ModTpDst(u16),
    /// Sets the tunnel key.
    SetTunnel {
        /// The key.
        id: u64,
        /// Whether it was written `set_tunnel64`; keys above 32 bits always are.
        wide: bool,
    },
    /// Looks the packet up again and carries out what is found, then goes on.
    Resubmit {
        /// The input port to look up with; `None` keeps it.
        port: Option<OfPort>,
        /// The table to look up in; `None` is the current one. At least one of the two is given.
        table: Option<u8>,
    },
    /// Makes the flow one of the alternatives of a clause of a conjunctive flow: `conjunction(ID,K/N)`. Where a packet
    /// matches alternatives of the same priority of all N clauses, it is looked up again with `conj_id=ID`.
    Conjunction {
        /// The conjunctive flow.
        id: u32,
        /// Which clause, from 1 to `clauses`.
        clause: u8,
        /// How many clauses the conjunctive flow has, 2 to 64.
        clauses: u8,
    },
    /// Does nothing, for the bytes to be found in the flow.
    Note(Vec<u8>),
    /// Ends the packet's way through the tables.
    Exit,
    /// Lets the datapath look the packet up again before it goes on, for nothing but to test that (`debug_recirc`).
    DebugRecirc,
    /// Instruction: empties the action set.
    ClearActions,
    /// Instruction: adds to the action set.
    WriteActions(Vec<Action>),
    /// Instruction: sets bits of the metadata.
    WriteMetadata {
        /// The bits; 0 outside the mask.
        value: u64,
        /// Bits to set.
        mask: u64,
    },
    /// Instruction: goes on in a later table.
    GotoTable(u8),
}

/// How a packet goes to the controllers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    /// Bytes to send at most; 65535 sends all.
    pub max_len: u16,
    /// Why it is sent.
    pub reason: PacketInReason,
    /// Which controllers.
    pub id: u16,
    /// Bytes that go along.
    pub userdata: Vec<u8>,
}

impl Default for Controller {
    fn default() -> Self {
        Self { max_len: u16::MAX, reason: PacketInReason::Action, id: 0, userdata: Vec::new() }
    }
}

/// Why a packet goes to the controllers (OpenFlow 1.5, `ofp_packet_in_reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PacketInReason {
    /// No flow matched.
    NoMatch,
    /// An action said so.
    Action,
    /// The TTL has run out.
    InvalidTtl,
    /// The action set said so.
    ActionSet,
    /// A group said so.
    Group,
    /// A packet-out said so.
    PacketOut,
}

impl PacketInReason {
    /// All reasons with their words.
    pub(crate) const WORDS: &'static [(Self, &'static str)] = &[
        (Self::NoMatch, "no_match"),
        (Self::Action, "action"),
        (Self::InvalidTtl, "invalid_ttl"),
        (Self::ActionSet, "action_set"),
        (Self::Group, "group"),
        (Self::PacketOut, "packet_out"),
    ];

    /// The reason's word.
    pub fn name(self) -> &'static str {
        Self::WORDS.iter().find(|(reason, _)| *reason == self).map_or("", |(_, word)| word)
    }
}

impl Action {
    /// The text with interface names where `names` has them.
    pub fn display<'a>(&'a self, names: &'a dyn PortNames) -> impl fmt::Display + 'a {
        display_actions(std::slice::from_ref(self), names)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.display(&NoPortNames).fmt(f)
    }
}
