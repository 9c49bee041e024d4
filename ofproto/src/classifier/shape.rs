//! The words that a mask looks at, stage by stage, and their sum, which tables take for a hash.
//!
//! Each word adds a product (multilinear hashing): the terms don't wait for each other, and the sum up to the end of a stage is
//! part of that of all. Keys are random, new in each process, and odd, so that two flows of which only one word differs never have the
//! same sum.
//!
//! The product of a word's upper bits, where the last bytes of addresses and ports are, has upper bits only, and two such products
//! easily cancel each other out. So products are turned, each by another number of bytes than those of words nearby.
//!
//! The words of a flow's first cache line are multiplied all, also those that the mask has no bits of: eight products without a
//! branch take less time than a loop over some of them, whose end a processor guesses wrong. Masks seldom have other words.

use std::sync::{Arc, OnceLock};

use super::stage::{FIRST_LINES, N_STAGES, STAGES};
use crate::flow::{FLOW_WORDS, Flow, LINE_WORDS};

/// A word of a flow behind the first line, of which some bits are looked at.
#[derive(Clone, Copy, Debug)]
struct Word {
    bits: u64,
    key: u64,
    turn: u32,
    index: u16,
    stage: u16,
}

impl Word {
    /// What the word adds to a sum.
    #[inline]
    fn product(&self, flow: &Flow) -> u64 {
        product(flow.word(self.index.into()) & self.bits, self.key, self.turn)
    }
}

/// The bits of a mask, by stage.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Of the first line: the bits of each stage and those before.
    lines: Lines,
    /// By stage.
    others: Arc<[Word]>,
    keys: &'static [u64; LINE_WORDS],
}

#[repr(align(64))]
#[derive(Clone, Debug)]
struct Lines([[u64; LINE_WORDS]; N_STAGES]);

impl Shape {
    pub(super) fn new(mask: &Flow) -> Self {
        let mut lines = Lines([[0; LINE_WORDS]; N_STAGES]);
        let mut before = Flow::ZERO;
        let mut others = Vec::new();
        for (stage, (fields, line)) in STAGES.iter().zip(&mut lines.0).enumerate() {
            let fields = mask.masked(fields);
            before.add(&fields);
            *line = *before.first_line();
            let words = fields.words().iter().zip(keys()).enumerate().skip(LINE_WORDS);
            let words = words.filter(|(_, (bits, _))| **bits != 0);
            others.extend(words.map(|(index, (bits, key))| Word {
                bits: *bits,
                key: *key,
                turn: (index * 8) as u32 % u64::BITS,
                index: index as u16,
                stage: stage as u16,
            }));
        }
        Self { lines, others: others.into(), keys: keys().first_chunk().unwrap_or(&[1; LINE_WORDS]) }
    }

    /// Whether two flows have the same bits here.
    // Inlined, half of it would be done before it is known that it has to be.
    #[inline(never)]
    pub(super) fn agree(&self, a: &Flow, b: &Flow) -> bool {
        let words = a.first_line().iter().zip(b.first_line()).zip(self.all());
        let differ = words.fold(0, |differ, ((a, b), bits)| differ | (a ^ b) & bits);
        differ == 0
            && self.others.iter().all(|Word { bits, index, .. }| {
                let index = usize::from(*index);
                (a.word(index) ^ b.word(index)) & bits == 0
            })
    }

    /// The sum of all words of a flow.
    #[inline(always)]
    pub(super) fn sum(&self, flow: &Flow) -> u64 {
        let words = flow.first_line().iter().zip(self.all()).zip(self.keys).zip(&TURNS);
        let first =
            words.fold(0u64, |sum, (((word, bits), key), turn)| sum.wrapping_add(product(word & bits, *key, *turn)));
        self.others.iter().fold(first, |sum, word| sum.wrapping_add(word.product(flow)))
    }

    /// The sums of the words of a flow up to the end of each stage but the last, of which [`Self::sum`] would be that.
    #[inline(always)]
    pub(super) fn stage_sums(&self, flow: &Flow) -> [u64; N_STAGES - 1] {
        let metadata = self.first_sum::<0>(flow);
        let layer2 = metadata.wrapping_add(self.first_sum::<1>(flow));
        let layer3 = layer2.wrapping_add(self.first_sum::<2>(flow));
        self.others.iter().fold([metadata, layer2, layer3], |[metadata, layer2, layer3], word| {
            let product = word.product(flow);
            let up_to = |stage| if word.stage <= stage { product } else { 0 };
            [metadata.wrapping_add(up_to(0)), layer2.wrapping_add(up_to(1)), layer3.wrapping_add(up_to(2))]
        })
    }

    /// The sum of what the first words of a flow have of a stage.
    #[inline(always)]
    fn first_sum<const STAGE: usize>(&self, flow: &Flow) -> u64 {
        // The fields are known when this is compiled, and a word mostly has all or none of them.
        let words = flow.first_line().iter().zip(self.all()).zip(self.keys).zip(&FIRST_LINES[STAGE]).zip(&TURNS);
        words.fold(0u64, |sum, ((((word, bits), key), fields), turn)| {
            sum.wrapping_add(product(word & bits & fields, *key, *turn))
        })
    }

    /// Adds the bits of a stage and those before to a mask.
    #[inline(never)]
    pub(super) fn add_to(&self, stage: usize, wildcards: &mut Flow) {
        wildcards.add_first_line(&self.lines.0[stage % N_STAGES]);
        for word in &*self.others {
            wildcards.add_word(word.index.into(), if usize::from(word.stage) <= stage { word.bits } else { 0 });
        }
    }

    /// All bits of the first line.
    #[inline]
    fn all(&self) -> &[u64; LINE_WORDS] {
        let [.., all] = &self.lines.0;
        all
    }
}

/// By how many bits a word's product is turned. Not those of words that have fields of two stages: their products have to be the
/// sums of those of their parts.
const TURNS: [u32; LINE_WORDS] = [56, 48, 40, 32, 0, 24, 0, 16];

#[inline]
fn product(word: u64, key: u64, turn: u32) -> u64 {
    word.wrapping_mul(key).rotate_left(turn)
}

fn keys() -> &'static [u64; FLOW_WORDS] {
    static KEYS: OnceLock<[u64; FLOW_WORDS]> = OnceLock::new();
    KEYS.get_or_init(|| {
        let random = ahash::RandomState::new();
        std::array::from_fn(|index| random.hash_one(index) | 1)
    })
}

#[cfg(test)]
mod tests {
    use super::super::map::hash;
    use super::*;
    use datapath_common::{Be16, Be32};
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn words_with_fields_of_two_stages_are_not_turned() {
        for (word, turn) in TURNS.iter().enumerate() {
            let stages = FIRST_LINES.iter().filter(|fields| fields[word] != 0).count();
            assert_eq!(*turn == 0, stages > 1, "word {word}");
        }
    }

    #[test]
    fn hosts_and_ports_that_count_up_have_sums_of_their_own() {
        let mut host_and_port = Flow::ZERO;
        (host_and_port.key.ipv4_dst, host_and_port.key.tp_dst) = (Be32::MAX, Be16::MAX);
        count_up(&Shape::new(&host_and_port), |flow, host, port| {
            flow.key.ipv4_dst = Be32::new(0x0a00_0000 + u32::from(host));
            flow.key.tp_dst = Be16::new(port.into());
        });
        let mut two_hosts = Flow::ZERO;
        (two_hosts.key.ipv6_src, two_hosts.key.ipv6_dst) = ([0xff; 16], [0xff; 16]);
        count_up(&Shape::new(&two_hosts), |flow, one, other| {
            (flow.key.ipv6_src[15], flow.key.ipv6_dst[15]) = (one, other);
        });
    }

    fn count_up(shape: &Shape, set: fn(&mut Flow, u8, u8)) {
        let mut flow = Flow::ZERO;
        let mut hashes = HashSet::new();
        for one in 0..=u8::MAX {
            for other in 0..=u8::MAX {
                set(&mut flow, one, other);
                hashes.insert(hash(shape.sum(&flow)));
            }
        }
        assert_eq!(hashes.len(), 256 * 256);
        // The bits by which maps choose.
        for (shift, bits) in [(0, 8), (56, 8), (24, 16)] {
            let parts: HashSet<_> = hashes.iter().map(|hash| hash >> shift & ((1 << bits) - 1)).collect();
            assert!(parts.len() > (1 << bits) / 2, "{} of {bits} bits from {shift}", parts.len());
        }
    }

    fn flow(words: &[u64]) -> Flow {
        let mut flow = Flow::ZERO;
        words.iter().enumerate().for_each(|(index, bits)| flow.add_word(index, *bits));
        flow
    }

    proptest! {
        #[test]
        fn a_sum_is_of_the_bits_up_to_its_stage(
            words in prop::collection::vec(any::<u64>(), FLOW_WORDS),
            mask in prop::collection::vec(prop_oneof![Just(0), any::<u64>(), Just(u64::MAX)], FLOW_WORDS),
            flipped in 0..64 * FLOW_WORDS,
        ) {
            let mut bit = vec![0; FLOW_WORDS];
            bit[flipped / 64] = 1 << (flipped % 64);
            let others: Vec<_> = words.iter().zip(&bit).map(|(word, bit)| word ^ bit).collect();
            let (one, other, mask, bit) = (flow(&words), flow(&others), flow(&mask), flow(&bit));
            let agree = |mask: &Flow| mask.masked(&bit) == Flow::ZERO;

            let shape = Shape::new(&mask);
            prop_assert_eq!(shape.agree(&one, &other), agree(&mask));
            prop_assert_eq!(shape.sum(&one) == shape.sum(&other), agree(&mask));
            let (sums, others) = (shape.stage_sums(&one), shape.stage_sums(&other));
            let mut upto = Flow::ZERO;
            for (stage, fields) in STAGES.iter().enumerate() {
                upto.add(&mask.masked(fields));
                if let (Some(sum), Some(other)) = (sums.get(stage), others.get(stage)) {
                    prop_assert_eq!(sum == other, agree(&upto));
                    prop_assert_eq!(*sum, Shape::new(&upto).sum(&one));
                }
                let mut added = Flow::ZERO;
                shape.add_to(stage, &mut added);
                prop_assert_eq!(added, upto);
            }
        }
    }
}
