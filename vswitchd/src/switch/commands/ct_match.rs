//! The arguments of `dpctl/flush-conntrack`: `[zone=N] [mark=X[/M]] [labels=Y[/N]] [ORIG [REPLY]]`, tuples as
//! `ct_nw_src=A,ct_nw_dst=B,ct_nw_proto=P,ct_tp_src=N,ct_tp_dst=N` (`ct_ipv6_src`, `ct_ipv6_dst`; `icmp_id`, `icmp_type`, `icmp_code`).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use dpif::ct::{CtMatch, CtPart};

/// Reads them, in this order.
pub(crate) fn parse(args: &[&str]) -> Result<CtMatch, String> {
    let mut which = CtMatch::default();
    let mut rest = args;
    if let Some(text) = take(&mut rest, "zone=") {
        which.zone = Some(text.parse().map_err(|_| "failed to parse zone")?);
    }
    if let Some(text) = take(&mut rest, "mark=") {
        let (value, mask) = masked(text, u128::from(u32::MAX)).ok_or("failed to parse mark")?;
        which.mark = ((value & mask) as u32, mask as u32);
    }
    if let Some(text) = take(&mut rest, "labels=") {
        let (value, mask) = masked(text, u128::MAX).ok_or("failed to parse labels")?;
        which.label = (value & mask, mask);
    }
    let mut family = None;
    for part in [&mut which.orig, &mut which.reply] {
        let Some((text, behind)) = rest.split_first() else { break };
        tuple(text, part, &mut which.proto, &mut family)?;
        rest = behind;
    }
    match rest {
        [] => Ok(which),
        _ => Err("invalid arguments".into()),
    }
}

fn take<'a>(rest: &mut &[&'a str], prefix: &str) -> Option<&'a str> {
    let (first, behind) = rest.split_first()?;
    let text = first.strip_prefix(prefix)?;
    *rest = behind;
    Some(text)
}

/// `VALUE[/MASK]`, each decimal or hexadecimal and at most `max`.
fn masked(text: &str, max: u128) -> Option<(u128, u128)> {
    let (value, mask) = text.split_once('/').map_or((text, None), |(value, mask)| (value, Some(mask)));
    let number = |text: &str| {
        let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let number = hex.map_or_else(|| text.parse().ok(), |hex| u128::from_str_radix(hex, 16).ok());
        number.filter(|number| *number <= max)
    };
    Some((number(value)?, mask.map_or(Some(max), number)?))
}

/// `FIELD=VALUE,…` of one direction.
fn tuple(text: &str, part: &mut CtPart, proto: &mut Option<u8>, family: &mut Option<u8>) -> Result<(), String> {
    for field in text.split(',').map(str::trim).filter(|field| !field.is_empty()) {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        if value.is_empty() {
            return Err(format!("field {key} missing value"));
        }
        match key {
            "ct_nw_src" | "ct_nw_dst" | "ct_ipv6_src" | "ct_ipv6_dst" => {
                let (version, place) = match key {
                    "ct_nw_src" => (4, &mut part.src),
                    "ct_nw_dst" => (4, &mut part.dst),
                    "ct_ipv6_src" => (6, &mut part.src),
                    _ => (6, &mut part.dst),
                };
                if *family.get_or_insert(version) != version {
                    return Err(format!("the L3 protocol does not match {value}"));
                }
                let address = match version {
                    4 => number::<Ipv4Addr>(key, value)?.into(),
                    _ => number::<Ipv6Addr>(key, value)?.into(),
                };
                once(key, place, address)?;
            }
            "ct_nw_proto" => once(key, proto, number(key, value)?)?,
            "ct_tp_src" => once(key, &mut part.src_port, number(key, value)?)?,
            "ct_tp_dst" => once(key, &mut part.dst_port, number(key, value)?)?,
            "icmp_type" | "icmp_code" | "icmp_id" if !matches!(proto, Some(1 | 58)) => {
                return Err("invalid L4 fields".into());
            }
            "icmp_type" => once(key, &mut part.icmp_type, number(key, value)?)?,
            "icmp_code" => once(key, &mut part.icmp_code, number(key, value)?)?,
            "icmp_id" => once(key, &mut part.icmp_id, number(key, value)?)?,
            _ => return Err(format!("invalid conntrack tuple field: {key}")),
        }
    }
    if proto.is_none() && (part.src_port.is_some() || part.dst_port.is_some()) {
        return Err("port is set without protocol".into());
    }
    Ok(())
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("failed to parse field {key}"))
}

fn once<T>(key: &str, place: &mut Option<T>, value: T) -> Result<(), String> {
    match place.replace(value) {
        Some(_) => Err(format!("{key} is set multiple times")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_named_as_in_the_field() {
        let tuple = "ct_nw_src=10.0.0.1,ct_nw_dst=10.0.0.2,ct_nw_proto=17,ct_tp_src=1000,ct_tp_dst=2000";
        let which = parse(&["zone=3", "mark=0x5/0xff", "labels=0x100", tuple, "ct_nw_src=10.0.0.2"]).unwrap();
        let orig = CtPart {
            src: Some([10, 0, 0, 1].into()),
            dst: Some([10, 0, 0, 2].into()),
            src_port: Some(1000),
            dst_port: Some(2000),
            ..CtPart::default()
        };
        let reply = CtPart { src: Some([10, 0, 0, 2].into()), ..CtPart::default() };
        let (mark, label) = ((5, 0xff), (0x100, u128::MAX));
        assert_eq!(which, CtMatch { zone: Some(3), proto: Some(17), orig, reply, mark, label });
        assert_eq!(parse(&[]), Ok(CtMatch::default()));
        // Only the other direction.
        let reply = parse(&["", "ct_nw_proto=1,icmp_id=9,icmp_type=0"]).unwrap().reply;
        assert_eq!((reply.icmp_id, reply.icmp_type, reply.icmp_code), (Some(9), Some(0), None));
    }

    #[test]
    fn what_names_no_connection_is_refused_in_the_fields_words() {
        for (args, error) in [
            (&["zone=x"][..], "failed to parse zone"),
            (&["zone=65536"], "failed to parse zone"),
            (&["mark=0x1/"], "failed to parse mark"),
            (&["mark=0x100000000"], "failed to parse mark"),
            (&["labels=no"], "failed to parse labels"),
            (&["ct_nw_src"], "field ct_nw_src missing value"),
            (&["ct_nw_src=10.0.0"], "failed to parse field ct_nw_src"),
            (&["ct_nw_src=10.0.0.1,ct_ipv6_dst=::1"], "the L3 protocol does not match ::1"),
            (&["ct_nw_src=10.0.0.1", "ct_ipv6_dst=::1"], "the L3 protocol does not match ::1"),
            (&["ct_nw_src=10.0.0.1,ct_nw_src=10.0.0.1"], "ct_nw_src is set multiple times"),
            (&["ct_nw_proto=256"], "failed to parse field ct_nw_proto"),
            (&["ct_nw_proto=6,icmp_id=1"], "invalid L4 fields"),
            (&["ct_tp_src=1"], "port is set without protocol"),
            (&["tp_src=1"], "invalid conntrack tuple field: tp_src"),
            (&["ct_nw_proto=6", "", "ct_nw_proto=6"], "invalid arguments"),
        ] {
            assert_eq!(parse(args), Err(error.to_owned()), "{args:?}");
        }
    }
}
