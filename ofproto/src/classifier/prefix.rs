//! The fields that a classifier keeps prefix tries of, and what a lookup has learned from them.

use datapath_common::extract::eth_type;
use datapath_common::{Be32, FlowKey};

use super::trie::{Prefixes, Trie, bit_of};
use crate::flow::Flow;

/// A field whose prefixes are in a trie: `prefixes` of the table `Flow_Table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixField {
    /// `ip_dst`.
    Ipv4Dst,
    /// `ip_src`.
    Ipv4Src,
    /// `ipv6_dst`.
    Ipv6Dst,
    /// `ipv6_src`.
    Ipv6Src,
}

/// At most so many fields of a classifier have tries.
pub const MAX_PREFIX_FIELDS: usize = 4;

impl PrefixField {
    /// The reference's default (version 3.5 and later; before, those of IPv4 only).
    pub const DEFAULT: [Self; MAX_PREFIX_FIELDS] = [Self::Ipv4Dst, Self::Ipv4Src, Self::Ipv6Dst, Self::Ipv6Src];

    pub(super) fn width(self) -> u32 {
        match self {
            Self::Ipv4Dst | Self::Ipv4Src => 32,
            Self::Ipv6Dst | Self::Ipv6Src => 128,
        }
    }

    /// The field's bits, the first one the most significant.
    pub(super) fn bits(self, flow: &Flow) -> u128 {
        let key = &flow.key;
        match self {
            Self::Ipv4Dst => u128::from(key.ipv4_dst.get()) << 96,
            Self::Ipv4Src => u128::from(key.ipv4_src.get()) << 96,
            Self::Ipv6Dst => u128::from_be_bytes(key.ipv6_dst),
            Self::Ipv6Src => u128::from_be_bytes(key.ipv6_src),
        }
    }

    /// How long a prefix a mask looks at; 0 if it is none.
    pub(super) fn prefix_len(self, mask: &Flow) -> u32 {
        let bits = self.bits(mask);
        let len = bits.leading_ones();
        if bits.count_ones() == len { len } else { 0 }
    }

    /// Whether the packet has the field. ARP has its addresses in the same place, and no prefix of them says anything.
    fn is_in(self, flow: &Flow) -> bool {
        let ether = match self {
            Self::Ipv4Dst | Self::Ipv4Src => eth_type::IPV4,
            Self::Ipv6Dst | Self::Ipv6Src => eth_type::IPV6,
        };
        flow.key.eth_type.get() == ether
    }

    fn add_to(self, len: u32, wildcards: &mut Flow) {
        let bits = u128::MAX.checked_shl(u128::BITS - len).unwrap_or(0);
        let add4 = |mask: &mut Be32| *mask = Be32::new(mask.get() | (bits >> 96) as u32);
        let add6 = |mask: &mut [u8; 16]| *mask = (u128::from_be_bytes(*mask) | bits).to_be_bytes();
        let FlowKey { ipv4_src, ipv4_dst, ipv6_src, ipv6_dst, .. } = &mut wildcards.key;
        match self {
            Self::Ipv4Dst => add4(ipv4_dst),
            Self::Ipv4Src => add4(ipv4_src),
            Self::Ipv6Dst => add6(ipv6_dst),
            Self::Ipv6Src => add6(ipv6_src),
        }
    }
}

/// A prefix that a mask looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefix {
    /// Which of the classifier's tries has the field.
    pub(super) trie: usize,
    /// 1 or more.
    pub(super) len: u32,
    /// The bit that stands for this length in [`Prefixes`].
    bit: u128,
}

impl Prefix {
    /// None of length 0.
    pub(super) fn new(trie: usize, len: u32) -> Option<Self> {
        (len != 0).then(|| Self { trie, len, bit: bit_of(len) })
    }
}

/// The tries of a classifier, and what they said in this lookup: each is asked at most once, when it is needed.
pub(super) struct Asked<'a> {
    tries: &'a [(PrefixField, Trie)],
    answers: [Option<Prefixes>; MAX_PREFIX_FIELDS],
}

impl<'a> Asked<'a> {
    #[inline]
    pub(super) fn new(tries: &'a [(PrefixField, Trie)]) -> Self {
        Self { tries, answers: [None; MAX_PREFIX_FIELDS] }
    }

    /// Whether the tries tell that no rule with these prefixes matches, with no more bits looked at
    /// than the rules themselves look at, or the lookup has looked at already. If so, these bits are in `wildcards`.
    #[inline]
    pub(super) fn rule_out(&mut self, prefixes: &[Prefix], flow: &Flow, wildcards: &mut Flow) -> bool {
        // Nearly always there may be such a rule, for all that the tries know.
        prefixes.iter().any(|prefix| {
            let answer = match self.answers.get(prefix.trie) {
                Some(Some(answer)) => *answer,
                _ => self.ask(prefix.trie, flow),
            };
            answer.lens & prefix.bit == 0 && self.is_enough(prefix, answer.looked_at, wildcards)
        })
    }

    #[inline(never)]
    fn ask(&mut self, trie: usize, flow: &Flow) -> Prefixes {
        let answer = match self.tries.get(trie) {
            Some((field, trie)) if field.is_in(flow) => trie.lookup(field.bits(flow), field.width()),
            _ => Prefixes::ANY,
        };
        if let Some(place) = self.answers.get_mut(trie) {
            *place = Some(answer);
        }
        answer
    }

    /// Whether that no rule has this prefix is told by few enough bits. If so, they are in `wildcards`.
    #[inline(never)]
    fn is_enough(&self, prefix: &Prefix, looked_at: u32, wildcards: &mut Flow) -> bool {
        let Some((field, _)) = self.tries.get(prefix.trie) else { return false };
        // The trie is that of all rules: it may have looked at bits which matter only for rules of other kinds of packets.
        if looked_at <= prefix.len {
            field.add_to(looked_at, wildcards);
            return true;
        }
        field.bits(wildcards).leading_ones() >= looked_at
    }
}
