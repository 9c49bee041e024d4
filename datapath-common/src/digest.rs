//! The digest of a masked key: two independent lanes of NH.
//!
//! The lookup table maps a digest to a slot, so that one small key serves every mask; the whole key is compared in the slot.
//! NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, 1999) adds a secret to each half of a word and sums the products of the
//! halves. With secret seeds two different keys of one mask collide in a lane with a probability of at most 2⁻³², whatever
//! an attacker chooses, so in both with 2⁻⁶⁴. Each word costs two multiplications that don't wait for each other.

use crate::key::{FlowKey, KEY_WORDS};
use crate::mask::MaskEntry;

/// The secret of a datapath: one word per lane and key word.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DigestSeeds {
    /// Seeds of the first and the second lane, in turn: word i of the key uses entries 2 i and 2 i + 1.
    pub lanes: [u64; KEY_WORDS * 2],
    /// Seed of the hash that chooses the upcall handler and of the hash action.
    pub hash: u64,
    /// Unused, zero.
    pub reserved: u64,
}

/// The key of the lookup table.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Digest {
    /// Both lanes.
    pub lanes: [u64; 2],
    /// Number of the mask.
    pub mask_id: u32,
    /// Unused, zero.
    pub reserved: u32,
}

/// Adds one masked word to both lanes.
#[inline(always)]
pub fn mix(lanes: &mut [u64; 2], word: u64, seed0: u64, seed1: u64) {
    lanes[0] = lanes[0].wrapping_add(nh(word, seed0));
    lanes[1] = lanes[1].wrapping_add(nh(word, seed1));
}

#[inline(always)]
fn nh(word: u64, seed: u64) -> u64 {
    let low = (word as u32).wrapping_add(seed as u32);
    let high = ((word >> 32) as u32).wrapping_add((seed >> 32) as u32);
    u64::from(low).wrapping_mul(u64::from(high))
}

/// The digest of `key` under `mask`. The eBPF program computes the same with bounds that its verifier accepts.
pub fn digest(key: &FlowKey, mask: &MaskEntry, seeds: &DigestSeeds) -> Digest {
    let words = key.words();
    let mut lanes = [0; 2];
    for (i, (word, m)) in words.iter().zip(&mask.hot).enumerate().filter(|(_, (_, m))| **m != 0) {
        mix(&mut lanes, word & m, seeds.lanes[2 * i], seeds.lanes[2 * i + 1]);
    }
    for (index, m) in mask.cold_index.iter().zip(&mask.cold).take(mask.n_cold as usize) {
        let i = usize::from(*index).min(KEY_WORDS - 1);
        mix(&mut lanes, words[i] & m, seeds.lanes[2 * i], seeds.lanes[2 * i + 1]);
    }
    Digest { lanes, mask_id: mask.id, reserved: 0 }
}

/// Whether the (masked) key in a slot is the key of this packet under `mask`.
pub fn equal_masked(slot_key: &FlowKey, packet: &FlowKey, mask: &MaskEntry) -> bool {
    let (s, p) = (slot_key.words(), packet.words());
    let mut diff = 0;
    for ((slot, packet), m) in s.iter().zip(p).zip(&mask.hot) {
        diff |= (packet & m) ^ slot;
    }
    for (index, m) in mask.cold_index.iter().zip(&mask.cold).take(mask.n_cold as usize) {
        let i = usize::from(*index).min(KEY_WORDS - 1);
        diff |= (p[i] & m) ^ s[i];
    }
    diff == 0
}

/// The packet's symmetric-free 5-tuple hash, the same in every engine: chooses the upcall handler and feeds the hash action
/// (`OVS_HASH_ALG_L4`). Metadata and rewrites of the Ethernet header don't change it.
#[inline(always)]
pub fn flow_hash(key: &FlowKey, seed: u64) -> u32 {
    let w = key.words();
    // `ip_tos`, `ip_ttl` and `ip_frag` are masked out: all packets of a connection hash alike.
    const PROTO_AND_PORTS: u64 = u64::from_ne_bytes([0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let mut h = seed;
    h = step(h, w[crate::key::word::IPV4]);
    h = step(h, w[crate::key::word::IP] & PROTO_AND_PORTS);
    h = step(h, w[13] ^ w[14].rotate_left(24));
    h = step(h, w[15] ^ w[16].rotate_left(24));
    if key.ip_proto == 0 {
        h = step(h, w[crate::key::word::ETH_DST]);
        h = step(h, w[crate::key::word::ETH_SRC]);
    }
    h ^= h >> 29;
    (h >> 7) as u32
}

#[inline(always)]
fn step(h: u64, word: u64) -> u64 {
    let x = (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 32)
}

/// `OVS_ACTION_ATTR_HASH`: the packet's hash mixed with the action's basis, never 0.
#[inline(always)]
pub fn action_hash(key: &FlowKey, seed: u64, basis: u32) -> u32 {
    let h = step(u64::from(flow_hash(key, seed)), u64::from(basis));
    let h = (h ^ (h >> 32)) as u32;
    if h == 0 { 1 } else { h }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seeds() -> DigestSeeds {
        let mut x = 0x1234_5678_9abc_def1u64;
        let mut lanes = [0; KEY_WORDS * 2];
        for lane in &mut lanes {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            *lane = x;
        }
        DigestSeeds { lanes, hash: x, reserved: 0 }
    }

    fn key_strategy() -> impl Strategy<Value = FlowKey> {
        prop::collection::vec(any::<u64>(), KEY_WORDS).prop_map(|v| {
            let mut words = [0; KEY_WORDS];
            words.copy_from_slice(&v);
            FlowKey::from_words(&words)
        })
    }

    fn mask_strategy() -> impl Strategy<Value = FlowKey> {
        (key_strategy(), any::<u64>()).prop_map(|(mut k, keep)| {
            for (i, w) in k.words_mut().iter_mut().enumerate() {
                if keep >> i & 1 == 0 {
                    *w = 0;
                }
            }
            k
        })
    }

    proptest! {
        #[test]
        fn packets_that_agree_in_the_masked_bits_share_a_digest(a in key_strategy(), b in key_strategy(), m in mask_strategy()) {
            let entry = MaskEntry::new(7, &m);
            prop_assert_eq!(entry.to_key(), m);
            let mut c = b;
            for ((c, a), m) in c.words_mut().iter_mut().zip(a.words()).zip(m.words()) {
                *c = (*c & !m) | (a & m);
            }
            prop_assert_eq!(digest(&a, &entry, &seeds()), digest(&c, &entry, &seeds()));
            prop_assert!(equal_masked(&a.masked(&m), &c, &entry));
            prop_assert_eq!(equal_masked(&a.masked(&m), &b, &entry), a.masked(&m).matches(&m, &b));
        }

        #[test]
        fn a_flipped_masked_bit_changes_the_digest(a in key_strategy(), m in mask_strategy(), bit in 0usize..KEY_WORDS * 64) {
            prop_assume!(m.words()[bit / 64] >> (bit % 64) & 1 == 1);
            let entry = MaskEntry::new(1, &m);
            let mut b = a;
            b.words_mut()[bit / 64] ^= 1 << (bit % 64);
            prop_assert_ne!(digest(&a, &entry, &seeds()).lanes, digest(&b, &entry, &seeds()).lanes);
            prop_assert!(!equal_masked(&a.masked(&m), &b, &entry));
        }
    }
}
