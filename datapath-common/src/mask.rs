//! The mask of a megaflow in the shape in which the datapath walks it.
//!
//! The hot words are always there and are read without a branch. Of the cold words only those that the mask touches are
//! listed, so a mask costs what it matches on and not what a key could hold.
//!
//! A packet is not tried under all masks, but under those that have flows of its port, and behind them under those that have flows of
//! no port in particular ([`MaskList`]).

use crate::key::{COLD_WORDS, FlowKey, HOT_WORDS};
use crate::maps::{ANY_PORT, MAX_MASKS, MAX_PORTS};

/// The masks that packets are tried under, one after the other.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaskList {
    /// How many there are.
    pub count: u32,
    /// Unused, zero.
    pub reserved: u32,
    /// Their places in the buffer of masks.
    pub index: [u8; MAX_MASKS],
}

const _: () = assert!(MAX_MASKS == 1 << u8::BITS);

/// The list that has the masks of flows whose key and mask have this in `in_port`.
pub fn list_of(in_port: u32, mask: u32) -> u32 {
    if mask == u32::MAX { list_of_packets(in_port) } else { ANY_PORT }
}

/// The first list that packets of a port are looked up by; the other one is [`ANY_PORT`].
#[inline(always)]
pub fn list_of_packets(in_port: u32) -> u32 {
    if in_port < MAX_PORTS as u32 { in_port } else { ANY_PORT }
}

/// One mask of the list that the datapath scans.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaskEntry {
    /// Number of the mask, part of the lookup key. Not reused while a flow or a cache may name it.
    pub id: u32,
    /// How many entries of `cold_index` and `cold` are used.
    pub n_cold: u32,
    /// Masks of the hot words.
    pub hot: [u64; HOT_WORDS],
    /// Word numbers (in the key) of the masked cold words, ascending.
    pub cold_index: [u8; COLD_WORDS],
    /// Masks of those words.
    pub cold: [u64; COLD_WORDS],
}

impl MaskEntry {
    /// No mask.
    pub const EMPTY: Self =
        Self { id: 0, n_cold: 0, hot: [0; HOT_WORDS], cold_index: [0; COLD_WORDS], cold: [0; COLD_WORDS] };

    /// The entry of `mask` with number `id`.
    pub fn new(id: u32, mask: &FlowKey) -> Self {
        let mut entry = Self { id, ..Self::EMPTY };
        let words = mask.words();
        entry.hot.copy_from_slice(&words[..HOT_WORDS]);
        let mut n = 0;
        for (i, w) in words.iter().enumerate().skip(HOT_WORDS) {
            if *w != 0 {
                entry.cold_index[n] = i as u8;
                entry.cold[n] = *w;
                n += 1;
            }
        }
        entry.n_cold = n as u32;
        entry
    }

    /// The mask as a key.
    pub fn to_key(&self) -> FlowKey {
        let mut mask = FlowKey::ZERO;
        let words = mask.words_mut();
        words[..HOT_WORDS].copy_from_slice(&self.hot);
        for (i, m) in self.cold_index.iter().zip(&self.cold).take(self.n_cold as usize) {
            if let Some(w) = words.get_mut(usize::from(*i)) {
                *w = *m;
            }
        }
        mask
    }
}
