//! Sets of named bits: TCP flags, connection states, tunnel flags, slow-path reasons.

use std::fmt::Write;

use super::cursor::{Cursor, ParseError};

/// The names of the bits, lowest first; an empty name is a bit without one.
pub(super) struct Flags {
    names: &'static [&'static str],
    /// The bits that there are: the mask of an exact match.
    pub(super) all: u32,
    what: &'static str,
}

pub(super) static TCP: Flags = Flags {
    names: &["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"],
    all: 0xfff,
    what: "TCP flags such as syn|ack or +syn-ack",
};
pub(super) static CT_STATE: Flags = Flags {
    names: &["new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat"],
    all: u32::MAX,
    what: "connection states such as est|trk or +trk-new",
};
/// In the order of the reference, which is not that of the key's bits.
pub(super) static TUNNEL: Flags =
    Flags { names: &["oam", "df", "csum", "key"], all: 0xf, what: "tunnel flags such as df|key or +df-csum" };
pub(super) static SLOW_PATH: Flags = Flags {
    names: &["cfm", "bfd", "lacp", "stp", "lldp", "action", "match"],
    // Another daemon may know more; its dump is read all the same.
    all: u32::MAX,
    what: "reasons such as action",
};

impl Flags {
    /// The names of the bits that are set, with `separator` between them; 0 where there are none.
    pub(super) fn write(&self, out: &mut String, flags: u32, separator: char) {
        if flags == 0 {
            out.push('0');
            return;
        }
        let start = out.len();
        let mut unnamed = 0;
        for bit in bits(flags) {
            match self.name(bit) {
                Some(name) => {
                    if out.len() != start {
                        out.push(separator);
                    }
                    out.push_str(name);
                }
                None => unnamed |= bit,
            }
        }
        if unnamed != 0 {
            if out.len() != start {
                out.push(separator);
            }
            let _ = write!(out, "{unnamed:#x}");
        }
    }

    /// `+set-unset` of the bits in the mask, or the set ones where the mask is exact.
    pub(super) fn write_masked(&self, out: &mut String, flags: u32, mask: u32) {
        let mask = mask & self.all;
        if mask == self.all {
            return self.write(out, flags, '|');
        }
        if mask == 0 {
            out.push_str("0/0");
        }
        for bit in bits(mask) {
            out.push(if flags & bit != 0 { '+' } else { '-' });
            out.push_str(self.name(bit).unwrap_or("[Unknown]"));
        }
    }

    /// Flags and mask: `a|b`, `+a-b`, `0x12`, `0x12/0xff`.
    pub(super) fn parse(&self, text: &mut Cursor<'_>) -> Result<(u32, u32), ParseError> {
        let start = text.clone();
        let token = text.until(")");
        // Separators can stand inside a list of reasons.
        let parsed = if token.starts_with(['+', '-']) { self.signed(token) } else { self.plain(token) };
        parsed.ok_or_else(|| start.expected(self.what))
    }

    fn signed(&self, mut rest: &str) -> Option<(u32, u32)> {
        let (mut flags, mut mask) = (0, 0);
        while let Some(sign) = rest.chars().next() {
            rest = rest.get(1..)?;
            let (name, after) = rest.split_at(rest.find(['+', '-']).unwrap_or(rest.len()));
            let bit = self.bit(name).filter(|bit| mask & bit == 0)?;
            mask |= bit;
            match sign {
                '+' => flags |= bit,
                '-' => {}
                _ => return None,
            }
            rest = after;
        }
        Some((flags, mask))
    }

    fn plain(&self, text: &str) -> Option<(u32, u32)> {
        if let Some((flags, mask)) = text.split_once('/') {
            let (flags, mask) = (number(flags)?, number(mask)?);
            // Bits one by one have to have names: else they could not be written.
            let named = !u32::MAX.checked_shl(self.names.len() as u32).unwrap_or(0);
            return (mask == self.all || mask & !named == 0).then_some((flags & mask, mask));
        }
        let mut flags = 0;
        for name in text.split(['|', ',']) {
            flags |= self.bit(name).or_else(|| number(name))?;
        }
        (flags & !self.all == 0).then_some((flags, self.all))
    }

    fn name(&self, bit: u32) -> Option<&'static str> {
        self.names.get(bit.trailing_zeros() as usize).copied()
    }

    fn bit(&self, name: &str) -> Option<u32> {
        self.names.iter().position(|n| *n == name).map(|at| 1 << at)
    }
}

fn number(text: &str) -> Option<u32> {
    Cursor::new(text).number(u32::MAX.into()).ok().map(|n| n as u32)
}

fn bits(flags: u32) -> impl Iterator<Item = u32> {
    (0..32).map(|i| 1 << i).filter(move |bit| flags & bit != 0)
}

/// TCP flags as `tcpdump` writes them: what a flow's statistics show.
pub(super) fn write_tcp_short(out: &mut String, flags: u16) {
    const LETTERS: [(u16, &str); 12] = [
        (0x002, "S"),
        (0x001, "F"),
        (0x008, "P"),
        (0x004, "R"),
        (0x020, "U"),
        (0x010, "."),
        (0x040, "E"),
        (0x080, "C"),
        (0x100, "N"),
        (0x200, "[200]"),
        (0x400, "[400]"),
        (0x800, "[800]"),
    ];
    if flags == 0 {
        out.push_str("none");
    }
    for (_, letter) in LETTERS.iter().filter(|(flag, _)| flags & flag != 0) {
        out.push_str(letter);
    }
}
