//! Prefixes, and how many bits of a value say which of them it begins with.

use std::sync::Arc;

/// A persistent set of prefixes of values of up to 128 bits, as a binary tree that skips over bits without a choice. Bits are
/// counted from the most significant one of the `u128`, so shorter values are shifted up.
#[derive(Clone, Debug, Default)]
pub(super) struct Trie {
    root: Option<Arc<Node>>,
}

#[derive(Clone, Debug)]
struct Node {
    /// The bits between the parent and here; 0 behind the first `len`.
    bits: u128,
    len: u32,
    /// How often the prefix that ends here was inserted.
    count: usize,
    /// By the next bit.
    children: [Option<Arc<Node>>; 2],
}

/// What a trie says of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefixes {
    /// So many bits of the value had to be looked at.
    pub(super) looked_at: u32,
    /// Which lengths the prefixes have that the value begins with: length 1 is the most significant bit.
    pub(super) lens: u128,
}

impl Prefixes {
    /// Nothing is known: there may be prefixes of any length.
    pub(super) const ANY: Self = Self { looked_at: 0, lens: u128::MAX };
}

impl Trie {
    /// The prefixes that `value`, of `width` bits, begins with. Other values that agree in the bits looked at begin with the
    /// same ones.
    pub(super) fn lookup(&self, value: u128, width: u32) -> Prefixes {
        // Half the bits are less than half the work, and enough for all but IPv6.
        if width <= u64::BITS { self.walk::<u64>(value, width) } else { self.walk::<u128>(value, width) }
    }

    fn walk<B: Bits>(&self, value: u128, width: u32) -> Prefixes {
        let mut rest = B::upper(value);
        let mut lens = B::default();
        let mut depth = 0;
        let mut parent: Option<&Node> = None;
        let mut next = self.root.as_deref();
        while let Some(node) = next {
            let same = rest.common(B::upper(node.bits)).min(node.len);
            depth += same;
            if same < node.len {
                // The bit that differed was looked at, too.
                return Prefixes { looked_at: depth + 1, lens: lens.widen() };
            }
            if node.count > 0 {
                lens = lens.with(depth);
            }
            if depth >= width {
                return Prefixes { looked_at: width, lens: lens.widen() };
            }
            rest = rest.skip(same);
            parent = Some(node);
            next = node.child(rest.is_one());
        }
        // That there is no way on is told by the next bit, unless there is no way on for any value.
        let chose = parent.is_some_and(|node| node.children.iter().any(Option::is_some));
        Prefixes { looked_at: depth + u32::from(chose), lens: lens.widen() }
    }

    /// Adds the first `len` bits of `value`, at least one.
    pub(super) fn insert(&mut self, value: u128, len: u32) {
        insert(&mut self.root, first(value, len), len);
    }

    /// Takes away a prefix once.
    pub(super) fn remove(&mut self, value: u128, len: u32) {
        remove(&mut self.root, first(value, len), len);
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.root.is_none()
    }
}

impl Node {
    fn leaf(bits: u128, len: u32) -> Arc<Self> {
        Arc::new(Self { bits, len, count: 1, children: [None, None] })
    }

    /// The way on by the next bit.
    fn child(&self, is_one: bool) -> Option<&Self> {
        // No branch: which way it is nobody can guess.
        self.children[usize::from(is_one)].as_deref()
    }

    fn child_mut(&mut self, bits: u128) -> &mut Option<Arc<Self>> {
        let [zero, one] = &mut self.children;
        if bits.is_one() { one } else { zero }
    }
}

fn insert(slot: &mut Option<Arc<Node>>, bits: u128, len: u32) {
    let Some(node) = slot else {
        *slot = Some(Node::leaf(bits, len));
        return;
    };
    let same = node.bits.common(bits).min(node.len).min(len);
    if same < node.len {
        let mut parent = Node { bits: first(bits, same), len: same, count: 0, children: [None, None] };
        let lower = Arc::make_mut(node);
        lower.bits <<= same;
        lower.len -= same;
        let branch = lower.bits;
        *parent.child_mut(branch) = slot.take();
        if same == len {
            parent.count = 1;
        } else {
            let rest = bits << same;
            *parent.child_mut(rest) = Some(Node::leaf(rest, len - same));
        }
        *slot = Some(Arc::new(parent));
    } else if same == len {
        Arc::make_mut(node).count += 1;
    } else {
        let rest = bits << same;
        insert(Arc::make_mut(node).child_mut(rest), rest, len - same);
    }
}

fn remove(slot: &mut Option<Arc<Node>>, bits: u128, len: u32) {
    let Some(shared) = slot else { return };
    if shared.len > len || shared.bits.common(bits) < shared.len {
        return;
    }
    let node = Arc::make_mut(shared);
    if node.len == len {
        node.count = node.count.saturating_sub(1);
    } else {
        let (rest, left) = (bits << node.len, len - node.len);
        remove(node.child_mut(rest), rest, left);
    }
    if node.count > 0 {
        return;
    }
    // A node without a prefix of its own is there for a choice between two.
    match &mut node.children {
        [None, None] => *slot = None,
        [Some(_), Some(_)] => {}
        [only, None] | [None, only] => {
            if let Some(mut child) = only.take() {
                let lower = Arc::make_mut(&mut child);
                lower.bits = node.bits | lower.bits.checked_shr(node.len).unwrap_or(0);
                lower.len += node.len;
                *slot = Some(child);
            }
        }
    }
}

/// Bits of a value, the first one the most significant; of a narrower type only the upper ones.
trait Bits: Copy + Default {
    fn upper(bits: u128) -> Self;
    fn widen(self) -> u128;
    /// How many of the first bits are the same.
    fn common(self, other: Self) -> u32;
    /// What is behind the first `n` bits, fewer than there are.
    fn skip(self, n: u32) -> Self;
    fn is_one(self) -> bool;
    /// With the bit that stands for a length, 1 or more.
    fn with(self, len: u32) -> Self;
}

macro_rules! bits {
    ($($type:ty),*) => {$(
        impl Bits for $type {
            #[inline]
            fn upper(bits: u128) -> Self {
                (bits >> (u128::BITS - Self::BITS)) as Self
            }

            #[inline]
            fn widen(self) -> u128 {
                u128::from(self) << (u128::BITS - Self::BITS)
            }

            #[inline]
            fn common(self, other: Self) -> u32 {
                (self ^ other).leading_zeros()
            }

            #[inline]
            fn skip(self, n: u32) -> Self {
                self.checked_shl(n).unwrap_or(0)
            }

            #[inline]
            fn is_one(self) -> bool {
                self >> (Self::BITS - 1) != 0
            }

            #[inline]
            fn with(self, len: u32) -> Self {
                const { (1 as $type).rotate_right(1) }.checked_shr(len.saturating_sub(1)).unwrap_or(0) | self
            }
        }
    )*};
}

bits!(u64, u128);

/// The first `len` bits, 0 behind them.
fn first(bits: u128, len: u32) -> u128 {
    bits & u128::MAX.checked_shl(u128::BITS.saturating_sub(len)).unwrap_or(0)
}

/// The bit that stands for a length of 1 to 128.
pub(super) fn bit_of(len: u32) -> u128 {
    1u128.checked_shl(u128::BITS.saturating_sub(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same from a list: a bit has to be looked at as long as some prefix goes on behind the bits before it.
    fn slowly(list: &[(u128, u32)], value: u128, width: u32) -> Prefixes {
        let goes_on = |depth| list.iter().any(|(bits, len)| *len > depth && first(*bits, depth) == first(value, depth));
        let looked_at = (0..width).find(|depth| !goes_on(*depth)).unwrap_or(width);
        let matching = list.iter().filter(|(bits, len)| first(*bits, *len) == first(value, *len));
        Prefixes { looked_at, lens: matching.fold(0, |lens, (_, len)| lens | bit_of(*len)) }
    }

    proptest! {
        #[test]
        fn a_trie_says_what_a_list_says(
            width in prop::sample::select(vec![3u32, 32, 128]),
            changes in prop::collection::vec((any::<u8>(), any::<u8>(), 1u32..=128, any::<bool>()), 1..60),
            values in prop::collection::vec((any::<u8>(), any::<u8>()), 20),
        ) {
            // Bits at both ends, so that prefixes have much in common.
            let value = |(high, low): (u8, u8)| first(u128::from(high & 0x93) << 120 | u128::from(low & 0x13) << (128 - width), width);
            let (mut trie, mut list) = (Trie::default(), Vec::new());
            for (high, low, len, adds) in changes {
                let len = len.min(width);
                if adds || list.is_empty() {
                    let bits = value((high, low));
                    trie.insert(bits, len);
                    list.push((bits, len));
                } else {
                    let (bits, len) = list.swap_remove(usize::from(high) % list.len());
                    trie.remove(bits, len);
                }
            }
            for seed in values {
                let value = value(seed);
                prop_assert_eq!(trie.lookup(value, width), slowly(&list, value, width));
            }
            for (bits, len) in list.drain(..) {
                trie.remove(bits, len);
            }
            prop_assert!(trie.is_empty());
        }
    }
}
