//! Text to the header that `push_nsh(…)` puts in front (RFC 8300).

use super::cursor::{Cursor, ParseError};

/// Bytes of the header before its context.
const BASE: usize = 8;
/// Longest context of metadata type 2: what a length of six bits, in words, can say.
const MD2_MAX: usize = 0x3f * 4 - BASE;

/// `(flags=…,ttl=…,mdtype=…,np=…,spi=…,si=…,c1=…,…)`, or `md2=0x…` instead of the contexts.
pub(super) fn parse(text: &mut Cursor<'_>) -> Result<Vec<u8>, ParseError> {
    let (mut flags, mut ttl, mut mdtype, mut np, mut spi, mut si) = (0u16, 63u16, 1u8, 3u8, 0u32, 255u32);
    let (mut contexts, mut md2): ([u32; 4], Vec<u8>) = ([0; 4], Vec::new());
    text.expect("(")?;
    let mut first = true;
    while !text.eat(")") {
        if !std::mem::take(&mut first) {
            text.expect(",")?;
        }
        let start = text.clone();
        let name = text.name();
        text.expect("=")?;
        match name {
            "flags" => flags = text.number(3)? as u16,
            "ttl" => ttl = text.number(63)? as u16,
            "mdtype" => {
                let at = text.clone();
                mdtype = text.number(2)? as u8;
                if mdtype == 0 {
                    return Err(at.expected("metadata type 1 or 2"));
                }
            }
            "np" => np = text.number(255)? as u8,
            "spi" => spi = text.number(0xff_ffff)? as u32,
            "si" => si = text.number(255)? as u32,
            "c1" | "c2" | "c3" | "c4" => {
                let value = text.number(u32::MAX.into())? as u32;
                let at = name.as_bytes().last().map_or(0, |digit| usize::from(digit - b'1'));
                if let Some(context) = contexts.get_mut(at) {
                    *context = value;
                }
            }
            "md2" => md2 = text.token("bytes in hexadecimal, whole words", context)?,
            _ => return Err(start.expected("flags, ttl, mdtype, np, spi, si, c1, c2, c3, c4 or md2")),
        }
    }
    let context = if mdtype == 1 { contexts.iter().flat_map(|word| word.to_be_bytes()).collect() } else { md2 };
    let words = ((BASE + context.len()) / 4) as u16;
    let mut header = Vec::with_capacity(BASE + context.len());
    header.extend((flags << 12 | ttl << 6 | words).to_be_bytes());
    header.extend([mdtype, np]);
    header.extend((spi << 8 | si).to_be_bytes());
    header.extend(context);
    Ok(header)
}

/// Hexadecimal digits as bytes, filled up in front to whole words; what is shown has no zeros in front.
fn context(token: &str) -> Option<Vec<u8>> {
    let digits = token.strip_prefix("0x").or((token == "0").then_some(""))?;
    let digits = format!("{}{digits}", "0".repeat(digits.len().next_multiple_of(8) - digits.len()));
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
    bytes.filter(|bytes| bytes.len() <= MD2_MAX)
}
