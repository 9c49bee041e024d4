//! A masked key with its mask, small.
//!
//! Both have 38 words, of which a flow matches on five or so. What is kept is a bitmap of the words that the mask has, then
//! those words of the key, then those of the mask, in one allocation.

use datapath_common::FlowKey;
use datapath_common::key::KEY_WORDS;

/// Words that it takes at most: the bitmap, and all words of key and mask.
const MOST: usize = 1 + 2 * KEY_WORDS;
const _: () = assert!(KEY_WORDS <= 64);

/// A masked key and its mask in a form of its own, on the stack: to hash, to compare, to keep.
pub(crate) struct MaskedWords {
    words: [u64; MOST],
    len: usize,
}

impl Default for MaskedWords {
    fn default() -> Self {
        Self { words: [0; MOST], len: 1 }
    }
}

impl MaskedWords {
    /// The words of `key & mask` and `mask`.
    pub(crate) fn new(key: &FlowKey, mask: &FlowKey) -> Self {
        let mut words = Self::default();
        words.set(key, mask);
        words
    }

    /// Becomes the words of `key & mask` and `mask`.
    pub(crate) fn set(&mut self, key: &FlowKey, mask: &FlowKey) {
        let map = mask.words().iter().enumerate().fold(0u64, |map, (at, mask)| map | u64::from(*mask != 0) << at);
        let n = map.count_ones() as usize;
        self.len = 1 + 2 * n;
        let Some((first, rest)) = self.words.split_first_mut() else { return };
        *first = map;
        let (keys, masks) = rest.split_at_mut(n.min(KEY_WORDS));
        let mut left = map;
        for (to_key, to_mask) in keys.iter_mut().zip(masks) {
            // Few words of a mask have bits, so they are gone through by the bitmap.
            let at = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            let (Some(key), Some(mask)) = (key.words().get(at), mask.words().get(at)) else { return };
            (*to_key, *to_mask) = (key & mask, *mask);
        }
    }

    /// As [`MaskedWords::set`], in fewer steps.
    #[allow(dead_code)]
    pub(crate) fn set_under(&mut self, key: &FlowKey, shape: &MaskShape) {
        let n = shape.words.len();
        self.len = 1 + 2 * n;
        let Some((first, rest)) = self.words.split_first_mut() else { return };
        *first = shape.map;
        let (keys, masks) = rest.split_at_mut(n.min(KEY_WORDS));
        let mut left = shape.map;
        for ((to_key, to_mask), mask) in keys.iter_mut().zip(masks).zip(&shape.words) {
            let Some(key) = key.words().get(left.trailing_zeros() as usize) else { return };
            left &= left.wrapping_sub(1);
            (*to_key, *to_mask) = (key & mask, *mask);
        }
    }

    /// They are the same exactly for the same masked key under the same mask.
    pub(crate) fn words(&self) -> &[u64] {
        self.words.get(..self.len).unwrap_or_default()
    }

    /// To keep.
    pub(crate) fn to_key(&self) -> MaskedKey {
        MaskedKey(self.words().into())
    }
}

/// A mask, taken apart for keys that are put under it.
#[allow(dead_code)]
pub(crate) struct MaskShape {
    mask: FlowKey,
    /// The words that it has bits in, and these words.
    map: u64,
    words: Box<[u64]>,
}

#[allow(dead_code)]
impl MaskShape {
    /// The parts of a mask.
    pub(crate) fn new(mask: &FlowKey) -> Self {
        let words = mask.words().iter().copied();
        let map = words.clone().enumerate().fold(0, |map, (at, word)| map | u64::from(word != 0) << at);
        Self { mask: *mask, map, words: words.filter(|word| *word != 0).collect() }
    }

    /// The mask.
    pub(crate) fn mask(&self) -> &FlowKey {
        &self.mask
    }
}

/// A masked key and its mask.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct MaskedKey(Box<[u64]>);

impl MaskedKey {
    /// `key & mask` under `mask`.
    pub(crate) fn new(key: &FlowKey, mask: &FlowKey) -> Self {
        MaskedWords::new(key, mask).to_key()
    }

    /// Whether `words` are this key and this mask.
    pub(crate) fn is(&self, words: &MaskedWords) -> bool {
        *self.0 == *words.words()
    }

    /// The masked key.
    pub(crate) fn key(&self) -> FlowKey {
        self.spread(|(key, _)| key)
    }

    /// The mask.
    pub(crate) fn mask(&self) -> FlowKey {
        self.spread(|(_, mask)| mask)
    }

    /// Bytes on the heap.
    #[allow(dead_code)]
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.0)
    }

    fn spread(&self, part: impl Fn((u64, u64)) -> u64) -> FlowKey {
        let mut out = FlowKey::ZERO;
        let Some((map, words)) = self.0.split_first() else { return out };
        let (keys, masks) = words.split_at(words.len() / 2);
        let mut map = *map;
        for pair in keys.iter().copied().zip(masks.iter().copied()) {
            if let Some(word) = out.words_mut().get_mut(map.trailing_zeros() as usize) {
                *word = part(pair);
            }
            map &= map.wrapping_sub(1);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_common::Be16;

    #[test]
    fn what_is_kept_is_the_masked_key_and_the_mask() {
        let key = FlowKey {
            in_port: 7,
            eth_type: Be16::new(0x800),
            tp_src: Be16::new(1000),
            ipv6_src: [9; 16],
            ..FlowKey::ZERO
        };
        let mask = FlowKey { in_port: u32::MAX, tp_src: Be16::new(0xff00), tp_dst: Be16::MAX, ..FlowKey::ZERO };
        let small = MaskedKey::new(&key, &mask);
        assert_eq!(small.mask(), mask);
        assert_eq!(small.key(), key.masked(&mask));
        assert_eq!(small.heap_bytes(), 8 * (1 + 2 * 2));

        let all = FlowKey::from_words(&[u64::MAX; KEY_WORDS]);
        let whole = MaskedKey::new(&key, &all);
        assert_eq!((whole.key(), whole.mask()), (key, all));
        let none = MaskedKey::new(&key, &FlowKey::ZERO);
        assert_eq!((none.key(), none.mask()), (FlowKey::ZERO, FlowKey::ZERO));
    }

    #[test]
    fn a_mask_taken_apart_makes_the_same_words() {
        let key = FlowKey::from_words(&std::array::from_fn(|at| 0x0123_4567_89ab_cdef_u64.rotate_left(at as u32)));
        let all = FlowKey::from_words(&[u64::MAX; KEY_WORDS]);
        let some =
            FlowKey { in_port: u32::MAX, tp_dst: Be16::MAX, ipv6_dst: [0xff; 16], tun_opts_len: 1, ..FlowKey::ZERO };
        // The words are overwritten, whatever was there.
        let mut words = MaskedWords::default();
        for mask in [all, FlowKey::ZERO, some, all] {
            let shape = MaskShape::new(&mask);
            words.set_under(&key, &shape);
            assert_eq!(words.words(), MaskedWords::new(&key, &mask).words());
            assert_eq!(*shape.mask(), mask);
        }
    }

    #[test]
    fn keys_that_differ_under_the_mask_are_different_and_others_are_not() {
        let mask = FlowKey { in_port: u32::MAX, ipv6_dst: [0xff; 16], ..FlowKey::ZERO };
        let key = FlowKey { in_port: 7, skb_mark: 1, ..FlowKey::ZERO };
        let kept = MaskedKey::new(&key, &mask);
        assert!(kept.is(&MaskedWords::new(&FlowKey { skb_mark: 2, ..key }, &mask)));
        assert!(!kept.is(&MaskedWords::new(&FlowKey { in_port: 8, ..key }, &mask)));
        assert!(!kept.is(&MaskedWords::new(&key, &FlowKey { ipv6_dst: [0; 16], ..mask })));
        // The same words at other places.
        let one = MaskedWords::new(&FlowKey { dp_hash: 5, ..FlowKey::ZERO }, &FlowKey { dp_hash: 7, ..FlowKey::ZERO });
        let other = FlowKey { skb_mark: 5, ..FlowKey::ZERO };
        assert!(!MaskedKey::new(&other, &FlowKey { skb_mark: 7, ..FlowKey::ZERO }).is(&one));
    }

    #[test]
    fn a_mask_covers_masks_with_fewer_bits() {
        let mask = FlowKey { in_port: u32::MAX, ip_ttl: 0xff, ..FlowKey::ZERO };
        let kept = MaskedKey::new(&FlowKey::ZERO, &mask);
        assert!(kept.mask().covers(&mask) && kept.mask().covers(&FlowKey { in_port: 1, ..FlowKey::ZERO }));
        assert!(!kept.mask().covers(&FlowKey { ip_tos: 1, ..mask }));
    }
}
