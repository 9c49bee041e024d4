//! The action that tracks connections.

use std::net::IpAddr;

use dpif::{CtAction, NatAction, NatDirection};

use super::{CodecError, Result, fixed, take};
use crate::attr::{Attrs, Writer, str_of};
use crate::uapi::{action, ct as attr, nat};

pub(super) fn encode(ct: &CtAction, to: &mut Writer) {
    let nest = to.begin_nest(action::CT);
    if ct.commit {
        to.put_flag(if ct.force { attr::FORCE_COMMIT } else { attr::COMMIT });
    }
    to.put_u16(attr::ZONE, ct.zone);
    if let Some((value, mask)) = ct.mark {
        to.put_parts(attr::MARK, &[&value.to_ne_bytes(), &mask.to_ne_bytes()]);
    }
    if let Some((value, mask)) = &ct.label {
        to.put_parts(attr::LABELS, &[value, mask]);
    }
    if let Some(helper) = &ct.helper {
        to.put_str(attr::HELPER, helper);
    }
    if let Some(timeout) = &ct.timeout {
        to.put_str(attr::TIMEOUT, timeout);
    }
    if let Some(nat) = &ct.nat {
        encode_nat(nat, to);
    }
    if let Some(mask) = ct.event_mask {
        to.put_u32(attr::EVENTMASK, mask);
    }
    to.end(nest);
}

fn encode_nat(action: &NatAction, to: &mut Writer) {
    let nest = to.begin_nest(attr::NAT);
    match action.direction {
        Some(NatDirection::Src) => to.put_flag(nat::SRC),
        Some(NatDirection::Dst) => to.put_flag(nat::DST),
        None => {}
    }
    let mut address = |kind, address: IpAddr| match address {
        IpAddr::V4(address) => to.put(kind, &address.octets()),
        IpAddr::V6(address) => to.put(kind, &address.octets()),
    };
    if let Some((first, last)) = action.addresses {
        address(nat::IP_MIN, first);
        if last != first {
            address(nat::IP_MAX, last);
        }
    }
    if let Some((first, last)) = action.ports {
        to.put_u16(nat::PROTO_MIN, first);
        if last != first {
            to.put_u16(nat::PROTO_MAX, last);
        }
    }
    for (set, kind) in
        [(action.persistent, nat::PERSISTENT), (action.hash, nat::PROTO_HASH), (action.random, nat::PROTO_RANDOM)]
    {
        if set {
            to.put_flag(kind);
        }
    }
    to.end(nest);
}

pub(super) fn decode(payload: &[u8]) -> Result<CtAction> {
    let mut ct = CtAction::default();
    for one in Attrs::new(payload) {
        let (kind, bytes) = one?;
        match kind {
            attr::COMMIT => ct.commit = true,
            attr::FORCE_COMMIT => (ct.commit, ct.force) = (true, true),
            attr::ZONE => ct.zone = u16::from_ne_bytes(fixed(bytes, "ct zone")?),
            attr::MARK => {
                let both: [u8; 8] = fixed(bytes, "ct mark")?;
                let mut rest = &both[..];
                ct.mark = Some((u32::from_ne_bytes(take(&mut rest)), u32::from_ne_bytes(take(&mut rest))));
            }
            attr::LABELS => {
                let both: [u8; 32] = fixed(bytes, "ct label")?;
                let mut rest = &both[..];
                ct.label = Some((take(&mut rest), take(&mut rest)));
            }
            attr::HELPER => ct.helper = Some(name(bytes)?),
            attr::TIMEOUT => ct.timeout = Some(name(bytes)?),
            attr::NAT => ct.nat = Some(decode_nat(bytes)?),
            attr::EVENTMASK => ct.event_mask = Some(u32::from_ne_bytes(fixed(bytes, "ct event mask")?)),
            _ => return Err(CodecError::Contradiction("ct has a part that isn't known")),
        }
    }
    Ok(ct)
}

fn decode_nat(payload: &[u8]) -> Result<NatAction> {
    let mut action = NatAction::default();
    let (mut first, mut last) = (None, None);
    let (mut first_port, mut last_port) = (None, None);
    for one in Attrs::new(payload) {
        let (kind, bytes) = one?;
        match kind {
            nat::SRC => action.direction = Some(NatDirection::Src),
            nat::DST => action.direction = Some(NatDirection::Dst),
            nat::IP_MIN => first = Some(address(bytes)?),
            nat::IP_MAX => last = Some(address(bytes)?),
            nat::PROTO_MIN => first_port = Some(u16::from_ne_bytes(fixed(bytes, "nat port")?)),
            nat::PROTO_MAX => last_port = Some(u16::from_ne_bytes(fixed(bytes, "nat port")?)),
            nat::PERSISTENT => action.persistent = true,
            nat::PROTO_HASH => action.hash = true,
            nat::PROTO_RANDOM => action.random = true,
            _ => return Err(CodecError::Contradiction("nat has a part that isn't known")),
        }
    }
    action.addresses = first.map(|first| (first, last.unwrap_or(first)));
    action.ports = first_port.map(|first| (first, last_port.unwrap_or(first)));
    if action.addresses.is_some_and(|(first, last)| first.is_ipv4() != last.is_ipv4()) {
        return Err(CodecError::Contradiction("nat has addresses of two families"));
    }
    Ok(action)
}

fn address(bytes: &[u8]) -> Result<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    Ok(IpAddr::from(fixed::<16>(bytes, "nat address")?))
}

fn name(bytes: &[u8]) -> Result<String> {
    str_of(bytes).map(String::from).ok_or(CodecError::Contradiction("a name in ct is not text"))
}
