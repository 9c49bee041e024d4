//! Netlink attributes ↔ [`FlowKey`](datapath_common::FlowKey), masks and [`Action`](dpif::Action)s.
//!
//! **From the kernel.** A key may come from a kernel that knows more than we do, or less. How well it fits decides what may be
//! done with it ([`Fitness`]): an attribute that isn't known is skipped, one that the headers before it ask for and that is
//! missing is told, and what contradicts itself is an error. A mask is read in the light of its key, since its attributes mean
//! fields only through the key's types.
//!
//! **To the kernel.** The kernel can't express every mask: some fields it always matches exactly, and fields that a packet of
//! the key's types doesn't have are no attributes at all. [`encode_match`] narrows where the kernel would anyway ([`normalize`]
//! says how), leaves out what the exact types imply, and refuses the rest by name. It never widens.

mod action;
mod ct;
mod fields;
mod key;
mod mask;
mod nsh;
mod set;
mod shape;
mod tunnel;

pub use self::action::{decode_actions, encode_actions, encode_actions_for};
pub use self::key::{decode_key, encode_key, encode_metadata};
pub use self::mask::{decode_mask, encode_mask, encode_match, normalize};
pub use self::tunnel::{TunnelOptions, decode_tunnel};

use crate::attr::Truncated;

/// How well a key fits what is expected of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fitness {
    /// Everything that is there is known and expected, everything expected is there.
    Perfect,
    /// There is more than is known or expected: the packets differ in ways that we don't see.
    TooMuch,
    /// Something that the types ask for is missing.
    TooLittle,
}

/// Why attributes are no key, mask or actions, or can't be made of one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A list of attributes goes on after its last whole one.
    #[error("attributes are cut off")]
    Truncated,
    /// An attribute has a length that its kind can't have.
    #[error("{0} has a wrong length ({1} bytes)")]
    Length(&'static str, usize),
    /// An attribute is there twice.
    #[error("attribute {0} is there twice")]
    Duplicate(u16),
    /// Attributes contradict each other; how.
    #[error("{0}")]
    Contradiction(&'static str),
    /// An action of a number that isn't known.
    #[error("action {0} is not known")]
    UnknownAction(u16),
    /// Actions are nested too deeply.
    #[error("actions are nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// What the kernel's interface has no attribute for; what.
    #[error("the kernel module can't express {0}")]
    Inexpressible(&'static str),
}

impl From<Truncated> for CodecError {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// Nests of actions that are followed; the kernel allows 16.
pub const MAX_DEPTH: usize = 16;

/// The result of reading or writing attributes.
pub type Result<T, E = CodecError> = core::result::Result<T, E>;

/// A payload of a fixed length, or an error that names the attribute.
fn fixed<const N: usize>(payload: &[u8], name: &'static str) -> Result<[u8; N]> {
    crate::attr::array(payload).ok_or(CodecError::Length(name, payload.len()))
}

/// The first `N` bytes and what follows them. The caller has made sure of the length; were it short, bytes would be zero.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    match bytes.split_first_chunk::<N>() {
        Some((head, rest)) => {
            *bytes = rest;
            *head
        }
        None => {
            *bytes = &[];
            [0; N]
        }
    }
}
