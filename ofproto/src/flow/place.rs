//! Where fields lie that are whole bits of one word: most, and those that actions work on most often.

use std::mem::offset_of;

use datapath_common::FlowKey;
use datapath_common::key::KEY_WORDS;
use openflow::{FieldId, Subfield};

use super::Flow;

/// The word of a [`Flow`] that its key begins with.
const KEY: usize = offset_of!(Flow, key) / 8;
/// That the registers begin with.
const REGS: usize = KEY + KEY_WORDS;

/// Where a field lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    word: u8,
    /// The bit of the word, read in the field's byte order, that is the field's least significant one.
    shift: u8,
    /// The word is read in network byte order.
    network: bool,
    /// The bits that the field can have.
    bits: u64,
    /// The bits that are its own: those that it can't have are 0.
    owned: u64,
}

impl Place {
    /// A field of `N` bytes of the key at `offset`, in network byte order.
    const fn wire(offset: usize, bytes: usize, bits: u64) -> Option<Self> {
        let shift = 64 - 8 * (offset % 8 + bytes);
        let owned = u64::MAX >> (64 - 8 * bytes);
        Some(Self { word: (KEY + offset / 8) as u8, shift: shift as u8, network: true, bits, owned })
    }

    /// A field of four bytes of the key at `offset`, in the machine's byte order.
    const fn host(offset: usize, bits: u64) -> Option<Self> {
        let shift = 8 * (offset % 8);
        Some(Self { word: (KEY + offset / 8) as u8, shift: shift as u8, network: false, bits, owned: u32::MAX as u64 })
    }

    /// Register `n`.
    const fn register(n: usize) -> Option<Self> {
        let (shift, bits) = (if n.is_multiple_of(2) { 32 } else { 0 }, u32::MAX as u64);
        Some(Self { word: (REGS + n / 2) as u8, shift, network: false, bits, owned: bits })
    }

    /// The place of a field; `None` if it isn't whole bits of one word.
    #[inline]
    pub(super) fn of(field: FieldId) -> Option<Self> {
        use FieldId as F;
        /// Fields with what their places are.
        macro_rules! places {
            ($($field:ident: $place:expr,)*) => {
                match field {
                    $(F::$field => const { $place },)*
                    _ => None,
                }
            };
        }
        macro_rules! at {
            ($field:ident) => {
                offset_of!(FlowKey, $field)
            };
        }
        const MAC: u64 = 0xffff_ffff_ffff;
        const WORD: u64 = 0xffff_ffff;
        places! {
            Reg0: Self::register(0),
            Reg1: Self::register(1),
            Reg2: Self::register(2),
            Reg3: Self::register(3),
            Reg4: Self::register(4),
            Reg5: Self::register(5),
            Reg6: Self::register(6),
            Reg7: Self::register(7),
            Reg8: Self::register(8),
            Reg9: Self::register(9),
            Reg10: Self::register(10),
            Reg11: Self::register(11),
            Reg12: Self::register(12),
            Reg13: Self::register(13),
            Reg14: Self::register(14),
            Reg15: Self::register(15),
            PktMark: Self::host(at!(skb_mark), WORD),
            EthSrc: Self::wire(at!(eth_src), 6, MAC),
            EthDst: Self::wire(at!(eth_dst), 6, MAC),
            EthType: Self::wire(at!(eth_type), 2, 0xffff),
            IpSrc: Self::wire(at!(ipv4_src), 4, WORD),
            IpDst: Self::wire(at!(ipv4_dst), 4, WORD),
            ArpSpa: Self::wire(at!(ipv4_src), 4, WORD),
            ArpTpa: Self::wire(at!(ipv4_dst), 4, WORD),
            ArpOp: Self::wire(at!(ip_proto), 1, 0xff),
            ArpSha: Self::wire(at!(arp_sha), 6, MAC),
            ArpTha: Self::wire(at!(arp_tha), 6, MAC),
            NdSll: Self::wire(at!(arp_sha), 6, MAC),
            NdTll: Self::wire(at!(arp_tha), 6, MAC),
            IpProto: Self::wire(at!(ip_proto), 1, 0xff),
            IpTtl: Self::wire(at!(ip_ttl), 1, 0xff),
            TcpSrc: Self::wire(at!(tp_src), 2, 0xffff),
            UdpSrc: Self::wire(at!(tp_src), 2, 0xffff),
            SctpSrc: Self::wire(at!(tp_src), 2, 0xffff),
            TcpDst: Self::wire(at!(tp_dst), 2, 0xffff),
            UdpDst: Self::wire(at!(tp_dst), 2, 0xffff),
            SctpDst: Self::wire(at!(tp_dst), 2, 0xffff),
            IcmpType: Self::wire(at!(tp_src), 2, 0xff),
            Icmpv6Type: Self::wire(at!(tp_src), 2, 0xff),
            IcmpCode: Self::wire(at!(tp_dst), 2, 0xff),
            Icmpv6Code: Self::wire(at!(tp_dst), 2, 0xff),
        }
    }

    /// The field's bits of a flow.
    #[inline]
    pub(super) fn get(self, flow: &Flow) -> u64 {
        (self.read(flow) >> self.shift) & self.bits
    }

    /// The field's bits of a flow become these; those beyond its width are cut off.
    #[inline]
    pub(super) fn set(self, flow: &mut Flow, bits: u64) {
        let word = (self.read(flow) & !(self.owned << self.shift)) | ((bits & self.bits) << self.shift);
        self.write(flow, word);
    }

    /// Adds bits of the field.
    #[inline]
    pub(super) fn add(self, flow: &mut Flow, bits: u64) {
        let word = self.read(flow) | ((bits & self.bits) << self.shift);
        self.write(flow, word);
    }

    #[inline]
    fn read(self, flow: &Flow) -> u64 {
        let word = flow.word(self.word.into());
        if self.network { u64::from_be(word) } else { word }
    }

    #[inline]
    fn write(self, flow: &mut Flow, word: u64) {
        if let Some(place) = flow.words_mut().get_mut(usize::from(self.word)) {
            *place = if self.network { word.to_be() } else { word };
        }
    }
}

/// Bits of a field that are in one word.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    place: Place,
    offset: u32,
    /// As they are in the field.
    mask: u64,
}

impl Part {
    /// The part of a field; `None` if the field [has no place](Place::of), or the part leads out of it.
    #[inline]
    pub(crate) fn of(part: Subfield) -> Option<Self> {
        let place = Place::of(part.field)?;
        let (offset, end) = (part.offset, part.offset.saturating_add(part.bits));
        if part.bits == 0 || end > place.bits.count_ones() {
            return None;
        }
        Some(Self { place, offset, mask: (u64::MAX >> (64 - part.bits)) << offset })
    }
}

impl Flow {
    /// The bits of a part, the least significant one first.
    #[inline]
    pub(crate) fn part(&self, part: Part) -> u64 {
        (part.place.get(self) & part.mask) >> part.offset
    }

    /// The bits of a part become these; those beyond its width are cut off.
    #[inline]
    pub(crate) fn set_part(&mut self, part: Part, bits: u64) {
        let field = part.place.get(self) & !part.mask | (bits << part.offset) & part.mask;
        part.place.set(self, field);
    }

    /// In a mask: adds the bits of a part.
    #[inline]
    pub(crate) fn look_at_part(&mut self, part: Part) {
        part.place.add(self, part.mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::FromBytes as _;

    proptest! {
        #[test]
        fn a_part_of_a_field_is_that_of_the_whole_field(
            bytes in prop::collection::vec(any::<u8>(), size_of::<Flow>()),
            (offset, bits) in (0u32..64, 1u32..65),
            value: u64,
        ) {
            let flow = Flow::read_from_bytes(&bytes).expect("a flow's bytes");
            for field in FieldId::all() {
                let Some(sub) = Subfield::new(field, offset, bits) else {
                    prop_assert!(Part::of(Subfield { field, offset, bits }).is_none(), "{}", field);
                    continue;
                };
                let Some(part) = Part::of(sub) else {
                    prop_assert!(Place::of(field).is_none() || field == FieldId::ArpOp, "{}", field);
                    continue;
                };
                prop_assert_eq!(u128::from(flow.part(part)), sub.extract(flow.get(field)), "{}", field);
                let (mut by_part, mut whole) = (flow, flow);
                by_part.set_part(part, value);
                whole.set(field, sub.insert(flow.get(field), value.into()));
                prop_assert_eq!(by_part, whole, "{}", field);
                let (mut by_part, mut whole) = (flow, flow);
                by_part.look_at_part(part);
                whole.look_at(field, sub.mask());
                prop_assert_eq!(by_part, whole, "{}", field);
            }
        }
    }
}
