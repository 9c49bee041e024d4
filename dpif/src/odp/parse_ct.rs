//! Text to `ct(…)`, with what it sets on a connection and how it translates addresses.

use std::net::IpAddr;

use super::cursor::{Cursor, ParseError};
use crate::action::{CtAction, NatAction, NatDirection};

/// What stands behind the name `ct`: nothing, or a list in parentheses.
pub(super) fn parse(text: &mut Cursor<'_>) -> Result<CtAction, ParseError> {
    let mut ct = CtAction::default();
    parts(text, |text| {
        let start = text.clone();
        match text.name() {
            "commit" => ct.commit = true,
            "force_commit" => (ct.commit, ct.force) = (true, true),
            "zone" => {
                text.expect("=")?;
                ct.zone = text.number(u16::MAX.into())? as u16;
            }
            "mark" => {
                text.expect("=")?;
                let (value, mask) = text.masked_number(u32::MAX.into())?;
                ct.mark = Some((value as u32, mask as u32));
            }
            "label" => {
                text.expect("=")?;
                let (value, mask) = text.masked_number(u128::MAX)?;
                ct.label = Some((value.to_le_bytes(), mask.to_le_bytes()));
            }
            "helper" => ct.helper = Some(name(text)?),
            "timeout" => ct.timeout = Some(name(text)?),
            "nat" => ct.nat = Some(nat(text)?),
            _ => {
                let all = "commit, force_commit, zone, mark, label, helper, timeout or nat";
                return Err(start.expected(all));
            }
        }
        Ok(())
    })?;
    Ok(ct)
}

/// A list in parentheses, if there is one.
fn parts<'a>(
    text: &mut Cursor<'a>,
    mut part: impl FnMut(&mut Cursor<'a>) -> Result<(), ParseError>,
) -> Result<(), ParseError> {
    if !text.eat("(") {
        return Ok(());
    }
    let mut first = true;
    while !text.eat(")") {
        if !std::mem::take(&mut first) {
            text.expect(",")?;
        }
        part(text)?;
    }
    Ok(())
}

/// `=NAME`, as short as the kernel keeps names.
fn name(text: &mut Cursor<'_>) -> Result<String, ParseError> {
    text.expect("=")?;
    text.token("a name of 1 to 31 bytes", |name| (1..32).contains(&name.len()).then(|| name.to_owned()))
}

fn nat(text: &mut Cursor<'_>) -> Result<NatAction, ParseError> {
    let mut nat = NatAction::default();
    parts(text, |text| {
        let start = text.clone();
        match text.name() {
            side @ ("src" | "dst") => {
                if nat.direction.is_some() {
                    return Err(start.expected("either src or dst, once"));
                }
                nat.direction = Some(if side == "src" { NatDirection::Src } else { NatDirection::Dst });
                if text.eat("=") {
                    let what = "an address or two, and :PORT or :FIRST-LAST";
                    (nat.addresses, nat.ports) = text.token(what, range)?;
                }
            }
            "persistent" => nat.persistent = true,
            "hash" => nat.hash = true,
            "random" => nat.random = true,
            _ => return Err(start.expected("src, dst, persistent, hash or random")),
        }
        Ok(())
    })?;
    Ok(nat)
}

type Range = (Option<(IpAddr, IpAddr)>, Option<(u16, u16)>);

/// `A`, `A-B`, `A:P`, `A-B:P-Q`, `:P-Q`; an IPv6 address with ports behind it stands in brackets.
fn range(text: &str) -> Option<Range> {
    // Colons are in IPv6 addresses too, which have brackets around them then.
    let ports_at = match text.rfind(']') {
        Some(end) => text.get(end..)?.find(':').map(|at| end + at),
        None if text.contains('.') || text.starts_with(':') && !text.starts_with("::") => text.find(':'),
        None => None,
    };
    let (addresses, ports) = match ports_at {
        Some(at) => (text.get(..at)?, Some(text.get(at + 1..)?)),
        None => (text, None),
    };
    let both = |text: &str| {
        text.split_once('-').map_or_else(|| (text.to_owned(), text.to_owned()), |(a, b)| (a.into(), b.into()))
    };
    let address = |text: String| text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    let addresses = match addresses {
        "" => None,
        text => {
            let (first, last) = both(text);
            let (first, last) = (address(first)?, address(last)?);
            (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(())?;
            Some((first, last))
        }
    };
    let ports = match ports {
        None => None,
        Some(text) => {
            let (first, last) = both(text);
            let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
            (first <= last).then_some((first, last))?;
            Some((first, last))
        }
    };
    (addresses.is_some() || ports.is_some()).then_some((addresses, ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_addresses_and_ports() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (a, b) = (ip("10.0.0.1"), ip("10.0.0.9"));
        let (c, d) = (ip("fd00::1"), ip("fd00::9"));
        for (text, expected) in [
            ("10.0.0.1", Some((Some((a, a)), None))),
            ("10.0.0.1-10.0.0.9", Some((Some((a, b)), None))),
            ("10.0.0.1:5", Some((Some((a, a)), Some((5, 5))))),
            ("10.0.0.1-10.0.0.9:5-7", Some((Some((a, b)), Some((5, 7))))),
            ("fd00::1-fd00::9", Some((Some((c, d)), None))),
            ("[fd00::1]-[fd00::9]:5-7", Some((Some((c, d)), Some((5, 7))))),
            ("[fd00::1]:5", Some((Some((c, c)), Some((5, 5))))),
            (":5-7", Some((None, Some((5, 7))))),
            ("", None),
            ("10.0.0.9-10.0.0.1", None),
            ("10.0.0.1-fd00::1", None),
            ("10.0.0.1:7-5", None),
            ("10.0.0.1:70000", None),
            ("10.0.0", None),
        ] {
            assert_eq!(range(text), expected, "{text}");
        }
    }
}
