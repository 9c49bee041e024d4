//! A run of bits within a field, as `reg0[3..5]`.

use std::fmt;

use super::{FieldId, FieldInfo, is_unsupported_name};
use crate::error::{Fault, ParseErrorKind, Parsed};
use crate::scan::Span;

/// Bits `offset` to `offset + bits - 1` of a field, 0 being the least significant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subfield {
    /// The field.
    pub field: FieldId,
    /// The first bit.
    pub offset: u32,
    /// How many bits, at least 1; `offset + bits` is at most the field's width.
    pub bits: u32,
}

impl Subfield {
    /// The whole field.
    pub fn whole(field: FieldId) -> Self {
        Self { field, offset: 0, bits: field.info().bits }
    }

    /// `bits` bits from `offset` on; `None` if that is no bit or exceeds the field.
    pub fn new(field: FieldId, offset: u32, bits: u32) -> Option<Self> {
        let end = offset.checked_add(bits)?;
        (bits > 0 && end <= field.info().bits).then_some(Self { field, offset, bits })
    }

    /// The mask of the subfield within the field.
    #[inline]
    pub fn mask(&self) -> u128 {
        low_bits(self.bits).checked_shl(self.offset).unwrap_or(0)
    }

    /// The greatest value the subfield can hold.
    #[inline]
    pub fn max(&self) -> u128 {
        low_bits(self.bits)
    }

    /// The subfield's value within the field's.
    #[inline]
    pub fn extract(&self, field_bits: u128) -> u128 {
        field_bits.checked_shr(self.offset).unwrap_or(0) & self.max()
    }

    /// The field's value with the subfield replaced.
    #[inline]
    pub fn insert(&self, field_bits: u128, value: u128) -> u128 {
        (field_bits & !self.mask()) | ((value & self.max()).checked_shl(self.offset).unwrap_or(0))
    }

    /// Reads `NAME`, `NAME[]`, `NAME[BIT]` or `NAME[FIRST..LAST]`, NAME being a field's or a header's name.
    pub(crate) fn parse(text: Span<'_>) -> Parsed<Self> {
        let (name, range) = match text.text.find('[') {
            Some(at) => text.split_at(at),
            None => (text, text.tail()),
        };
        let field = field_of_name(name)?;
        let FieldInfo { bits: width, .. } = *field.info();
        if range.text.is_empty() || range.text == "[]" {
            return Ok(Self::whole(field));
        }
        range
            .text
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'))
            .and_then(|inner| {
                let (first, last) = inner.split_once("..").unwrap_or((inner, inner));
                let (first, last) = (bit_number(first)?, bit_number(last)?);
                Self::new(field, first, last.checked_sub(first)?.checked_add(1)?)
            })
            .ok_or_else(|| {
                let field = name.text.to_string();
                Fault::new(range.at, ParseErrorKind::BadSubfield { field, text: range.text.into(), last: width - 1 })
            })
    }
}

impl fmt::Display for Subfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FieldInfo { name, header_names, bits, .. } = *self.field.info();
        f.write_str(header_names.first().copied().unwrap_or(name))?;
        if *self == Self::whole(self.field) {
            f.write_str("[]")
        } else if self.bits == 1 {
            write!(f, "[{}]", self.offset)
        } else {
            debug_assert!(self.offset + self.bits <= bits);
            write!(f, "[{}..{}]", self.offset, u64::from(self.offset) + u64::from(self.bits) - 1)
        }
    }
}

fn field_of_name(name: Span<'_>) -> Parsed<FieldId> {
    // `_W` once marked a header that carries a mask; the reference still reads it.
    let header = name.text.strip_suffix("_W").unwrap_or(name.text);
    FieldId::by_header_name(header).or_else(|| FieldId::by_name(name.text)).ok_or_else(|| {
        let text = name.text.to_string();
        let kind = if is_unsupported_name(header) {
            ParseErrorKind::UnsupportedField(text)
        } else {
            ParseErrorKind::UnknownField(text)
        };
        Fault::new(name.at, kind)
    })
}

fn bit_number(text: &str) -> Option<u32> {
    text.starts_with(|c: char| c.is_ascii_digit()).then(|| text.parse().ok())?
}

#[inline]
fn low_bits(bits: u32) -> u128 {
    if bits >= 128 { u128::MAX } else { (1 << bits) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        Subfield::parse(Span::new(text)).map(|s| s.to_string()).map_err(|fault| fault.in_text(text).to_string())
    }

    #[test]
    fn text_of_bits_is_read_and_written() {
        for (text, written) in [
            ("reg0", "NXM_NX_REG0[]"),
            ("reg0[]", "NXM_NX_REG0[]"),
            ("reg0[0..31]", "NXM_NX_REG0[]"),
            ("NXM_NX_REG1[3..5]", "NXM_NX_REG1[3..5]"),
            ("NXM_NX_REG1_W[3]", "NXM_NX_REG1[3]"),
            ("eth_dst[40]", "NXM_OF_ETH_DST[40]"),
            ("OXM_OF_ETH_DST[]", "NXM_OF_ETH_DST[]"),
            ("metadata[63]", "OXM_OF_METADATA[63]"),
            ("dl_vlan", "dl_vlan[]"),
            ("xxreg0[64..127]", "NXM_NX_XXREG0[64..127]"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(written), "{text}");
        }
    }

    #[test]
    fn bits_outside_the_field_are_refused() {
        for text in [
            "reg0[32]",
            "reg0[5..3]",
            "reg0[0..32]",
            "reg0[",
            "reg0[a]",
            "reg0[1..]",
            "reg0[]x",
            "reg0[-1]",
            "reg0[+1]",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("column 5: bad bits"), "{text}: {error}");
            assert!(error.ends_with("within 0..31"), "{text}: {error}");
        }
        assert_eq!(parse("ct_mark[0]"), Err("column 1: field ct_mark is not supported yet".into()));
        assert!(parse("reg16").unwrap_err().contains("unknown field `reg16`"));
    }

    #[test]
    fn bits_go_in_and_out() {
        let sub = Subfield::new(FieldId::Reg0, 4, 8).unwrap();
        assert_eq!(sub.mask(), 0xff0);
        assert_eq!(sub.insert(0xffff_ffff, 0x12), 0xffff_f12f);
        assert_eq!(sub.extract(0xffff_f12f), 0x12);
        assert_eq!(Subfield::whole(FieldId::Xxreg0).mask(), u128::MAX);
        assert_eq!(Subfield::new(FieldId::Reg0, 0, 0), None);
        assert_eq!(Subfield::new(FieldId::Reg0, u32::MAX, 2), None);
    }
}
