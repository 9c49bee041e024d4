//! OpenFlow flows as people write them: the flow syntax of `ovs-ofctl`.
//!
//! A flow is a [`FlowMatch`] (which packets), a list of [`Action`]s (what becomes of them) and a little bookkeeping
//! (table, priority, cookie, timeouts); a [`FlowMod`] is one line of a flow file that adds, changes or deletes flows.
//! This crate turns the text of ovs-ofctl(8), ovs-fields(7) and ovs-actions(7) into these types and back:
//!
//! ```
//! use openflow::{FlowMod, NoPortNames};
//!
//! let flow = FlowMod::parse("table=1, priority=100, tcp, nw_dst=10.0.0.0/8, tp_dst=80, actions=mod_vlan_vid:10,output:2", &NoPortNames)?;
//! assert_eq!(flow.priority, 100);
//! assert_eq!(flow.r#match.value.tp_dst, 80);
//! assert_eq!(flow.to_string(), "table=1 priority=100,tcp,nw_dst=10.0.0.0/8,tp_dst=80 actions=mod_vlan_vid:10,output:2");
//! # Ok::<(), openflow::ParseError>(())
//! ```
//!
//! **Values are host integers.** Ports, VLAN tags, IPv4 addresses and registers are plain integers in host order, IPv6
//! addresses are `u128` (the address read as one big-endian number), MAC addresses are byte arrays. Where code handles
//! "any field" ([`FieldId`]) its value is a `u128` holding the field's bits, least significant bit first, which is also
//! how subfields such as `reg0[3..5]` count.
//!
//! **Strictness.** Everything the reference refuses is refused. Beyond that, this parser refuses what the reference
//! takes and silently weakens: a match whose prerequisite is missing (`tp_dst=80` without `tcp`), values that don't fit
//! their field (`dl_vlan=5000`), trailing garbage after a number and unbalanced parentheses. What the syntax knows but
//! this crate does not implement yet is refused by name. Which OpenFlow version could carry a flow is not asked. Bits of
//! a value that its mask leaves out are set to 0, so that equal flows compare equal and have one text.
//!
//! | module | owns |
//! | --- | --- |
//! | [`port`] | OpenFlow port numbers, reserved names, name lookup |
//! | [`field`] | the table of fields: names, widths, masks, prerequisites |
//! | [`matching`] | what a flow matches |
//! | [`action`] | what a flow does |
//! | [`flow_mod`] | a whole flow; flow files |
//! | [`error`] | what can be wrong, and where |

#![forbid(unsafe_code)]

pub mod action;
pub mod error;
pub mod field;
pub mod flow_mod;
pub mod matching;
pub mod port;
mod scan;

pub use action::{Action, Controller, PacketInReason, check_actions, parse_actions};
pub use error::{FileError, ParseError, ParseErrorKind};
pub use field::{FieldId, FieldInfo, Prerequisite, Subfield};
pub use flow_mod::{FlowCommand, FlowFlags, FlowMod, MaskedCookie, parse_flow_file};
pub use matching::{FlowMatch, MatchFields};
pub use port::{NoPortNames, OfPort, PortNames};
