//! The words that a mask looks at, stage by stage, and their hash.
//!
//! The hash of some words begins as a sum of one product a word (multilinear hashing): the terms don't wait for each other, and a
//! later stage goes on from the sum of the one before. Keys are random, new in each process, and odd, so that two keys of which
//! only one word differs never have the same sum.

use std::sync::{Arc, OnceLock};

use super::stage::{N_STAGES, stage_masks};
use crate::flow::{FLOW_WORDS, Flow};

/// A word of a flow, of which some bits are looked at.
#[derive(Clone, Copy, Debug)]
struct Word {
    bits: u64,
    key: u64,
    index: u32,
    /// The stage, of those that have fields.
    stage: u32,
}

impl Word {
    #[inline]
    fn of(&self, flow: &Flow) -> u64 {
        flow.word(self.index as usize) & self.bits
    }

    /// What the word adds to a sum.
    #[inline]
    fn product(&self, flow: &Flow) -> u64 {
        self.of(flow).wrapping_mul(self.key)
    }
}

/// The words of a mask that aren't zero, by stage.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    words: Arc<[Word]>,
    /// Where in `words` each stage that has fields ends, and which stage that is.
    stages: Arc<[(usize, usize)]>,
}

impl Shape {
    pub(super) fn new(mask: &Flow) -> Self {
        let mut words = Vec::new();
        let mut stages = Vec::new();
        for (stage, fields) in stage_masks().iter().enumerate() {
            let before = words.len();
            for (index, bits) in mask.masked(fields).words().iter().enumerate().filter(|(_, bits)| **bits != 0) {
                let key = keys().get(index).copied().unwrap_or(1);
                words.push(Word { bits: *bits, key, index: index as u32, stage: stages.len() as u32 });
            }
            if words.len() > before {
                stages.push((words.len(), stage));
            }
        }
        Self { words: words.into(), stages: stages.into() }
    }

    /// Number of words.
    #[inline]
    pub(super) fn width(&self) -> usize {
        self.words.len()
    }

    /// Where each stage with fields ends, and which of the [`N_STAGES`] it is.
    pub(super) fn stages(&self) -> &[(usize, usize)] {
        debug_assert!(self.stages.len() <= N_STAGES);
        &self.stages
    }

    /// The words' bits in a flow.
    pub(super) fn key(&self, flow: &Flow) -> Vec<u64> {
        self.words.iter().map(|word| word.of(flow)).collect()
    }

    /// Whether a flow has these bits.
    #[inline]
    pub(super) fn is_key(&self, key: &[u64], flow: &Flow) -> bool {
        self.words.iter().zip(key).all(|(word, key)| word.of(flow) == *key)
    }

    /// The sum of all words of a flow.
    #[inline]
    pub(super) fn sum(&self, flow: &Flow) -> u64 {
        self.words.iter().fold(0, |sum, word| sum.wrapping_add(word.product(flow)))
    }

    /// The sum of all words of a flow. At the place of each stage with fields, `sums` gets that of the words up to its end.
    #[inline]
    pub(super) fn sum_stages(&self, flow: &Flow, sums: &mut [u64; N_STAGES]) -> u64 {
        let mut sum = 0u64;
        for word in &*self.words {
            sum = sum.wrapping_add(word.product(flow));
            // One loop over the words takes fewer steps than one for each stage.
            sums[word.stage as usize % N_STAGES] = sum;
        }
        sum
    }

    /// Adds the bits of the first `n` words to a mask.
    #[inline]
    pub(super) fn add_to(&self, n: usize, wildcards: &mut Flow) {
        for word in self.words.get(..n).unwrap_or_default() {
            wildcards.add_word(word.index as usize, word.bits);
        }
    }
}

/// The hash that a sum stands for.
#[inline]
pub(super) fn hash(sum: u64) -> u64 {
    let product = u128::from(sum ^ 0x2d35_8dcc_aa6c_78a5) * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}

fn keys() -> &'static [u64; FLOW_WORDS] {
    static KEYS: OnceLock<[u64; FLOW_WORDS]> = OnceLock::new();
    KEYS.get_or_init(|| {
        let random = ahash::RandomState::new();
        std::array::from_fn(|index| random.hash_one(index) | 1)
    })
}
