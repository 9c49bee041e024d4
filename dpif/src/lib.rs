//! The datapath interface: what userspace may ask of a datapath, whichever engine runs it.
//!
//! A *datapath* has ports and a flow table. A flow is a megaflow: a key, a mask that says which bits of the key a packet must
//! agree with, and a list of actions. A packet that matches no flow goes up to userspace (an *upcall*), which answers by
//! installing a flow and by executing the packet. Two flows of one datapath never overlap: userspace sees to that, so a
//! datapath may take the first match it finds.
//!
//! [`Dpif`] is that contract. `dpif-ebpf` implements it on eBPF programs; [`inproc`] in this process,
//! without privileges, from the same shared code. [`action`] is the vocabulary of actions, [`program`] turns a list of them
//! into the operations that the engines run, [`odp`] reads and writes keys and actions as text.
#![forbid(unsafe_code)]

pub mod action;
pub mod ct;
pub mod error;
pub mod features;
pub mod flow;
pub mod inproc;
pub mod interface;
pub mod layer;
pub mod meter;
pub mod observed;
pub mod odp;
pub mod offload;
pub mod packet;
pub mod port;
pub mod program;
pub mod turns;
pub mod upcall;

pub use action::{Action, CtAction, HashAlg, KeyAttr, NatAction, NatDirection, SetAction, UserspaceAction};
pub use datapath_common::{Be16, Be32, Be64, FlowKey, Vlan};
pub use error::DpifError;
pub use features::{CtKeys, Features};
pub use flow::{DatapathFlow, FlowPut, FlowStats, PutMode, Ufid, UfidHasher, UfidHashing};
pub use interface::{DpStats, Dpif, DpifOp, Execute, ProgramState, SlotStats, UpcallStats};
pub use meter::{BandStats, MeterBand, MeterConfig, MeterFeatures, MeterStats, MeterUnit};
pub use observed::Observed;
pub use packet::Packet;
pub use port::{OdpPort, PortEvent, PortInfo, PortKind, PortSpec, PortStats, Tunnel, XdpMode, XdpState};
pub use upcall::{Upcall, UpcallBatch, UpcallKind};

/// The result of a datapath operation.
pub type Result<T, E = DpifError> = core::result::Result<T, E>;
