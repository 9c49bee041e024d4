//! The text of field values: numbers, addresses, ports, flags.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::{FieldFormat, FieldId, Maskable};
use crate::error::{ParseErrorKind, Parsed};
use crate::matching::proto::{FRAG_ANY, FRAG_LATER};
use crate::matching::{CHex, mac_bits, mac_bytes};
use crate::port::{OfPort, PortNames};
use crate::scan::Span;

/// What a value is for; a match takes a few values that can't be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueUse {
    /// To be matched: `nw_tos` ignores its low two bits, `dl_vlan` has 0xffff for "no tag".
    Match,
    /// To be written by an action.
    Set,
}

/// Reads `VALUE`, `VALUE/MASK` or `*` for a field. Gives value and mask, both within the field's valid bits but for
/// `dl_vlan`'s 0xffff; the value is 0 where the mask is.
pub(crate) fn parse_field_value(
    field: FieldId,
    name: &str,
    text: Span<'_>,
    names: &dyn PortNames,
    value_use: ValueUse,
) -> Parsed<(u128, u128)> {
    let info = field.info();
    if text.text == "*" {
        return Ok((0, 0));
    }
    let storage = all_ones(info.storage_bits);
    let bad = || text.bad_value(name, expected(field, value_use));
    let (value, mask) = match info.format {
        FieldFormat::Decimal | FieldFormat::Hex => {
            let (value, mask) = masked(text, parse_integer).ok_or_else(bad)?;
            (value, mask.unwrap_or(storage))
        }
        FieldFormat::Mac => {
            let (value, mask) = masked(text, |part| parse_mac(part).map(mac_bits)).ok_or_else(bad)?;
            (value, mask.unwrap_or(storage))
        }
        FieldFormat::Ipv4 => parse_ipv4_masked(text.text).ok_or_else(bad)?,
        FieldFormat::Ipv6 => parse_ipv6_masked(text.text).ok_or_else(bad)?,
        FieldFormat::Port => match OfPort::parse(text.text, names) {
            Some(port) => (port.0.into(), storage),
            None if text.is_empty() => return Err(bad()),
            None => return Err(text.fault(ParseErrorKind::UnknownPort(text.text.into()))),
        },
        FieldFormat::Frag => {
            let form = FRAG_FORMS.iter().find(|form| form.0.eq_ignore_ascii_case(text.text)).ok_or_else(bad)?;
            (form.2.into(), form.1.into())
        }
        FieldFormat::TcpFlags => parse_tcp_flags(text.text).ok_or_else(bad)?,
    };
    if value > storage || mask > storage {
        return Err(bad());
    }
    // Ports and flag words have no masks of their own to judge.
    if info.maskable == Maskable::Exact && mask != 0 && mask != storage {
        return Err(text.fault(ParseErrorKind::MaskNotAllowed(name.into())));
    }
    if value_use == ValueUse::Match {
        match field {
            FieldId::IpTos => return Ok((value & info.valid & mask, mask & info.valid)),
            FieldId::DlVlan if value == 0xffff && mask != 0 => return Ok((value, info.valid)),
            _ => {}
        }
    }
    if value & mask & !info.valid != 0 {
        return Err(bad());
    }
    Ok((value & mask, mask & info.valid))
}

/// What a field's value may look like, for error messages.
fn expected(field: FieldId, value_use: ValueUse) -> String {
    let info = field.info();
    let masked = info.maskable == Maskable::Masked;
    let mut text = match info.format {
        FieldFormat::Mac => "an Ethernet address such as 00:11:22:33:44:55".to_string(),
        FieldFormat::Ipv4 => "an IPv4 address".to_string(),
        FieldFormat::Ipv6 => "an IPv6 address".to_string(),
        FieldFormat::Port => "a port's number or name".to_string(),
        FieldFormat::Frag => return "no, yes, first, later or not_later".to_string(),
        FieldFormat::TcpFlags => return "flags such as syn|ack or +syn-ack, or a number from 0 to 0xfff".to_string(),
        FieldFormat::Decimal | FieldFormat::Hex => match (field, value_use) {
            (FieldId::DlVlan, ValueUse::Match) => "a number from 0 to 4095, or 0xffff for no tag".to_string(),
            (FieldId::IpTos, ValueUse::Match) => "a number from 0 to 255".to_string(),
            (FieldId::IpTos, ValueUse::Set) => "a number from 0 to 252 whose low two bits are 0".to_string(),
            _ if info.format == FieldFormat::Hex => format!("a number from 0 to {:#x}", info.valid),
            _ => format!("a number from 0 to {}", info.valid),
        },
    };
    if masked {
        text.push_str(match info.format {
            FieldFormat::Ipv4 | FieldFormat::Ipv6 => ", or ADDRESS/PREFIX or ADDRESS/MASK",
            _ => ", or VALUE/MASK",
        });
    }
    text
}

/// Splits `VALUE[/MASK]` and reads both parts.
fn masked(text: Span<'_>, read: impl Fn(&str) -> Option<u128>) -> Option<(u128, Option<u128>)> {
    match text.text.split_once('/') {
        Some((value, mask)) => Some((read(value)?, Some(read(mask)?))),
        None => Some((read(text.text)?, None)),
    }
}

/// Reads a number as C does: decimal, `0x` hexadecimal or `0` octal, with an optional sign. A negative number counts
/// down from 2^64, so that `-1` is all ones of 64 bits. Only hexadecimal goes beyond 64 bits.
pub(crate) fn parse_integer(text: &str) -> Option<u128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let read = |digits: &str, radix| {
        // Rust would read a second sign here.
        let digits = digits.starts_with(|c: char| c.is_digit(radix)).then_some(digits)?;
        u128::from_str_radix(digits, radix).ok()
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return if negative { wrapping_minus(read(hex, 16)?) } else { read(hex, 16) };
    }
    let radix = if digits.len() > 1 && digits.starts_with('0') { 8 } else { 10 };
    let value = read(digits, radix).filter(|value| *value <= u64::MAX.into())?;
    if negative { wrapping_minus(value) } else { Some(value) }
}

/// Reads a number that is decimal even where it starts with 0.
pub(crate) fn parse_decimal<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse().ok())?
}

fn wrapping_minus(value: u128) -> Option<u128> {
    Some(u64::try_from(value).ok()?.wrapping_neg().into())
}

/// Reads six bytes of one or two hexadecimal digits, separated by colons.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() <= 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Reads a dotted quad of decimal numbers.
pub(crate) fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.len() <= 3 && part.bytes().all(|c| c.is_ascii_digit()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn parse_ipv4_masked(text: &str) -> Option<(u128, u128)> {
    let Some((address, mask)) = text.split_once('/') else {
        return Some((parse_ipv4(text)?.to_bits().into(), u32::MAX.into()));
    };
    let mask = match parse_prefix(mask, 32) {
        Some(prefix) => prefix >> 96,
        None => parse_ipv4(mask)?.to_bits().into(),
    };
    Some((u128::from(parse_ipv4(address)?.to_bits()), mask))
}

fn parse_ipv6_masked(text: &str) -> Option<(u128, u128)> {
    let address = |text: &str| text.parse::<Ipv6Addr>().ok().map(Ipv6Addr::to_bits);
    let Some((value, mask)) = text.split_once('/') else {
        return Some((address(text)?, u128::MAX));
    };
    Some((address(value)?, parse_prefix(mask, 128).or_else(|| address(mask))?))
}

/// A prefix length of at most `max` as a mask in the highest bits.
fn parse_prefix(text: &str, max: u32) -> Option<u128> {
    let length: u32 = parse_decimal(text)?;
    (length <= max).then(|| u128::MAX.checked_shl(128 - length).unwrap_or(0))
}

/// The words of `ip_frag` with mask and value; the first row of a word is what it is read as.
const FRAG_FORMS: &[(&str, u8, u8)] = &[
    ("no", FRAG_ANY | FRAG_LATER, 0),
    ("first", FRAG_ANY | FRAG_LATER, FRAG_ANY),
    ("later", FRAG_ANY | FRAG_LATER, FRAG_ANY | FRAG_LATER),
    ("no", FRAG_ANY, 0),
    ("yes", FRAG_ANY, FRAG_ANY),
    ("not_later", FRAG_LATER, 0),
    ("later", FRAG_LATER, FRAG_LATER),
];

/// The word for a match on fragments; a match that nothing meets has none and is called `<error>`, as the reference does.
pub(crate) fn frag_word(value: u8, mask: u8) -> &'static str {
    FRAG_FORMS.iter().find(|form| form.1 == mask && form.2 == value).map_or("<error>", |form| form.0)
}

/// TCP flags from the lowest bit on (RFC 9293, RFC 3540); the last three have no name of their own.
const TCP_FLAGS: [&str; 12] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"];

fn tcp_flag(name: &str) -> Option<u128> {
    TCP_FLAGS.iter().position(|flag| *flag == name).map(|bit| 1 << bit)
}

/// Reads `VALUE/MASK`, `+set-unset…` or `flag|flag…` (a number may stand for flags); the last matches all flags.
fn parse_tcp_flags(text: &str) -> Option<(u128, u128)> {
    let number = |text: &str| parse_integer(text).filter(|bits| *bits <= 0xfff);
    if let Some((value, mask)) = text.split_once('/') {
        return Some((number(value)?, number(mask)?));
    }
    if text.starts_with(['+', '-']) {
        let (mut value, mut mask) = (0, 0);
        let mut rest = text;
        while let Some(sign) = rest.chars().next() {
            let word = rest.strip_prefix(['+', '-'])?;
            let end = word.find(['+', '-']).unwrap_or(word.len());
            let (name, after) = word.split_at_checked(end)?;
            let bit = tcp_flag(name).filter(|bit| mask & bit == 0)?;
            mask |= bit;
            value |= if sign == '+' { bit } else { 0 };
            rest = after;
        }
        return Some((value, mask));
    }
    let flags = text.split('|').try_fold(0, |flags, word| Some(flags | tcp_flag(word).or_else(|| number(word))?))?;
    Some((flags, 0xfff))
}

/// `tcp_flags`' text.
pub(crate) struct TcpFlagsText {
    pub(crate) value: u16,
    pub(crate) mask: u16,
}

impl fmt::Display for TcpFlagsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = |bits: u16| (0..).zip(TCP_FLAGS).filter(move |(bit, _)| bits & (1 << bit) != 0);
        if self.mask == 0 {
            f.write_str("0/0")
        } else if self.mask & 0xfff != 0xfff {
            flags(self.mask).try_for_each(|(bit, name)| {
                let sign = if self.value & (1 << bit) != 0 { '+' } else { '-' };
                write!(f, "{sign}{name}")
            })
        } else if self.value == 0 {
            f.write_str("0")
        } else {
            flags(self.value).enumerate().try_for_each(|(n, (_, name))| {
                f.write_str(if n > 0 { "|" } else { "" })?;
                f.write_str(name)
            })
        }
    }
}

/// A masked Ethernet address' text.
pub(crate) struct MacText {
    pub(crate) value: [u8; 6],
    pub(crate) mask: [u8; 6],
}

impl fmt::Display for MacText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.value;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")?;
        if self.mask != [0xff; 6] {
            write!(f, "/{}", MacText { value: self.mask, mask: [0xff; 6] })?;
        }
        Ok(())
    }
}

/// A masked IPv4 address' text.
pub(crate) struct Ipv4Text {
    pub(crate) value: u32,
    pub(crate) mask: u32,
}

impl fmt::Display for Ipv4Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Ipv4Addr::from_bits(self.value))?;
        match self.mask {
            u32::MAX => Ok(()),
            mask if mask.leading_ones() + mask.trailing_zeros() == 32 => write!(f, "/{}", mask.leading_ones()),
            mask => write!(f, "/{}", Ipv4Addr::from_bits(mask)),
        }
    }
}

/// A masked IPv6 address' text.
pub(crate) struct Ipv6Text {
    pub(crate) value: u128,
    pub(crate) mask: u128,
}

impl fmt::Display for Ipv6Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_ipv6(f, self.value)?;
        match self.mask {
            u128::MAX => Ok(()),
            mask if mask.leading_ones() + mask.trailing_zeros() == 128 => write!(f, "/{}", mask.leading_ones()),
            mask => {
                f.write_str("/")?;
                write_ipv6(f, mask)
            }
        }
    }
}

/// As `inet_ntop` writes it: an address in `::/96` whose last word but one is not 0 ends in a dotted quad, which Rust's
/// own text does for mapped addresses only.
fn write_ipv6(f: &mut fmt::Formatter<'_>, bits: u128) -> fmt::Result {
    match u32::try_from(bits) {
        Ok(low) if low > 0xffff => write!(f, "::{}", Ipv4Addr::from_bits(low)),
        _ => write!(f, "{}", Ipv6Addr::from_bits(bits)),
    }
}

/// A field's value and mask as text, in the form that [`parse_field_value`] reads.
pub(crate) struct FieldText<'a> {
    pub(crate) field: FieldId,
    pub(crate) value: u128,
    pub(crate) mask: u128,
    pub(crate) names: &'a dyn PortNames,
}

impl fmt::Display for FieldText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, value, mask, names } = *self;
        let info = field.info();
        let exact = mask == info.valid;
        match info.format {
            FieldFormat::Mac => MacText { value: mac_bytes(value), mask: mac_bytes(mask) }.fmt(f),
            FieldFormat::Ipv4 => Ipv4Text { value: value as u32, mask: mask as u32 }.fmt(f),
            FieldFormat::Ipv6 => Ipv6Text { value, mask }.fmt(f),
            FieldFormat::Port => OfPort(value as u16).display(names).fmt(f),
            FieldFormat::Frag => f.write_str(frag_word(value as u8, mask as u8)),
            FieldFormat::TcpFlags => TcpFlagsText { value: value as u16, mask: mask as u16 }.fmt(f),
            FieldFormat::Hex if exact => CHex(value).fmt(f),
            FieldFormat::Decimal if exact => write!(f, "{value}"),
            FieldFormat::Hex => write!(f, "{}/{mask:#x}", CHex(value)),
            FieldFormat::Decimal => write!(f, "{value}/{mask:#x}"),
        }
    }
}

fn all_ones(bits: u32) -> u128 {
    u128::MAX.checked_shr(128 - bits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::NoPortNames;

    fn parse(field: FieldId, text: &str) -> Option<(u128, u128)> {
        parse_field_value(field, field.name(), Span::new(text), &NoPortNames, ValueUse::Match).ok()
    }

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        for (text, value) in [
            ("0", Some(0)),
            ("010", Some(8)),
            ("0x1F", Some(31)),
            ("+5", Some(5)),
            ("-1", Some(u128::from(u64::MAX))),
            ("0xffffffffffffffffffffffffffffffff", Some(u128::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("-", None),
            ("+-1", None),
            ("0x", None),
            ("0x+1", None),
            ("08", None),
            ("1a", None),
            ("1 ", None),
        ] {
            assert_eq!(parse_integer(text), value, "{text}");
        }
    }

    #[test]
    fn values_and_masks_are_cut_to_the_field() {
        use FieldId as F;
        for (field, text, result) in [
            (F::DlVlan, "4095", Some((4095, 0xfff))),
            (F::DlVlan, "0xffff", Some((0xffff, 0xfff))),
            (F::DlVlan, "4096", None),
            (F::DlVlan, "10/0xfff", None),
            (F::DlVlan, "10/0xffff", Some((10, 0xfff))),
            (F::DlVlan, "*", Some((0, 0))),
            (F::VlanVid, "0x1005/0x1000", Some((0x1000, 0x1000))),
            (F::IpTos, "255", Some((0xfc, 0xfc))),
            (F::IpDscp, "64", None),
            (F::Ipv6Label, "0x12345/0xffffffff", Some((0x12345, 0xfffff))),
            (F::Ipv6Label, "0x100000", None),
            (F::EthDst, "1:0:5e:0:0:0/ff:ff:ff:0:0:0", Some((0x0100_5e00_0000, 0xffff_ff00_0000))),
            (F::EthDst, "1:0:5e:0:0", None),
            (F::EthDst, "001:0:5e:0:0:0", None),
            (F::IpSrc, "10.1.2.3/8", Some((0x0a00_0000, 0xff00_0000))),
            (F::IpSrc, "10.1.2.3/0.0.0.255", Some((3, 255))),
            (F::IpSrc, "10.1.2.3/33", None),
            (F::IpSrc, "10.1.2.256", None),
            (F::IpSrc, "10.1.2", None),
            (F::Ipv6Src, "2001:db8::1/32", Some((0x2001_0db8 << 96, 0xffff_ffff << 96))),
            (F::Ipv6Src, "::1/::ff", Some((1, 0xff))),
            (F::Ipv6Src, "::1/129", None),
            (F::Reg0, "-1", None),
            (F::Metadata, "-1", Some((u64::MAX.into(), u64::MAX.into()))),
            (F::IpFrag, "LATER", Some((3, 3))),
            (F::IpFrag, "1", None),
            (F::TcpFlags, "+syn-ack", Some((2, 0x12))),
            (F::TcpFlags, "syn|ack", Some((0x12, 0xfff))),
            (F::TcpFlags, "0x10/0x12", Some((0x10, 0x12))),
            (F::TcpFlags, "0x1000", None),
            (F::TcpFlags, "+syn+syn", None),
            (F::TcpFlags, "+syn-", None),
            (F::TcpFlags, "syn|", None),
            (F::TcpFlags, "", None),
            (F::Reg0, "", None),
            (F::InPort, "LOCAL", Some((0xfffe, 0xffff))),
            (F::InPort, "eth0", None),
        ] {
            assert_eq!(parse(field, text), result, "{field}={text}");
        }
    }

    #[test]
    fn every_written_value_is_read_back() {
        for field in FieldId::all() {
            let info = field.info();
            for value in [0, 1, 0x5555_5555_5555_5555, u128::MAX].map(|value| value & info.valid) {
                let masks = match (info.maskable, info.format) {
                    (Maskable::Masked, FieldFormat::Frag) => continue,
                    (Maskable::Masked, _) => vec![info.valid, info.valid & 0xf0f0_00ff_0f0f],
                    (Maskable::Exact, _) => vec![info.valid],
                };
                for mask in masks.into_iter().filter(|mask| *mask != 0) {
                    let value = value & mask;
                    let text = FieldText { field, value, mask, names: &NoPortNames }.to_string();
                    assert_eq!(parse(field, &text), Some((value, mask)), "{field}={text}");
                }
            }
        }
    }

    #[test]
    fn addresses_are_written_as_the_c_library_writes_them() {
        let ipv6 = |value, mask| Ipv6Text { value, mask }.to_string();
        assert_eq!(ipv6(1, u128::MAX), "::1");
        assert_eq!(ipv6(0x1_0000, u128::MAX), "::0.1.0.0");
        assert_eq!(ipv6(0xffff_0102_0304, u128::MAX), "::ffff:1.2.3.4");
        assert_eq!(ipv6(0xfe80 << 112, u128::MAX << 64), "fe80::/64");
        assert_eq!(ipv6(1, 1), "::1/::1");
        assert_eq!(Ipv4Text { value: 0x0a00_0000, mask: 0xff00_0000 }.to_string(), "10.0.0.0/8");
        assert_eq!(Ipv4Text { value: 0x0a00_0001, mask: 0xff00_00ff }.to_string(), "10.0.0.1/255.0.0.255");
    }
}
