//! What the kernel half and the userspace half of the switch must agree on.
//!
//! Two kinds of things live here. The first is *layout*: [`FlowKey`], [`MaskEntry`], [`Slot`], the action program ([`Op`]),
//! the upcall record and the map names and sizes. They are `#[repr(C)]`, have no implicit padding, and carry one
//! [`LAYOUT_VERSION`] that a test guards. The second is *meaning*: how a packet becomes a key ([`extract`]), how a key is
//! masked and digested ([`digest`]), and what each action does to a packet ([`apply`]). It is written once, generic over how
//! packet bytes are read and written ([`packet`]), and runs as the TC program and in the in-process datapath.
//!
//! A packet meets the modules in this order: [`packet`] → [`extract`] → [`mask`]/[`digest`] → [`slot`] →
//! [`straight`] or [`op`]/[`apply`],
//! or, where no flow matches, [`upcall`].
#![no_std]
#![warn(missing_docs)]

#[cfg(any(test, feature = "user"))]
extern crate std;

pub mod apply;
pub mod be;
pub mod blanks;
pub mod digest;
pub mod extract;
pub mod key;
pub mod maps;
pub mod mask;
pub mod needs;
pub mod op;
pub mod packet;
pub mod seen;
pub mod slot;
pub mod straight;
pub mod table;
pub mod upcall;

pub use be::{Be16, Be32, Be64};
pub use digest::{Digest, DigestSeeds};
pub use extract::{Layers, Malformed};
pub use key::{FlowKey, Vlan};
pub use maps::LAYOUT_VERSION;
pub use mask::{MaskEntry, MaskList};
pub use op::{Op, OpKind};
pub use slot::{FlowStats, HotSlot, Slot, SlotRef};
pub use straight::Straight;
pub use table::Bucket;
pub use upcall::UpcallHeader;
