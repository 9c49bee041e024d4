//! Lists of actions.

use datapath_common::{Be16, Be32, Vlan};
use dpif::{Action, HashAlg, OdpPort, UserspaceAction};

use super::fields::{be16, be32};
use super::{CodecError, MAX_DEPTH, Result, ct, fixed, nsh, set, take};
use crate::attr::{Attrs, Writer};
use crate::uapi::{DEC_TTL_ACTION, action, check_pkt_len, key, psample, sample, userspace};

/// Longest cookie of a psample action.
const PSAMPLE_COOKIE_MAX: usize = 16;

/// Writes actions. What was written is of no use after an error.
pub fn encode_actions(actions: &[Action], to: &mut Writer) -> Result<()> {
    encode_actions_for(actions, 0, to)
}

/// As [`encode_actions`]; what goes to userspace without a socket's number goes to `pid`.
pub fn encode_actions_for(actions: &[Action], pid: u32, to: &mut Writer) -> Result<()> {
    encode_list(actions, to, At { depth: 0, pid })
}

/// Where in the nests of actions one is, and where packets for userspace go.
#[derive(Clone, Copy)]
struct At {
    depth: usize,
    pid: u32,
}

fn encode_list(actions: &[Action], to: &mut Writer, at: At) -> Result<()> {
    if at.depth > MAX_DEPTH {
        return Err(CodecError::TooDeep);
    }
    actions.iter().try_for_each(|action| encode(action, to, at))
}

fn nested(kind: u16, actions: &[Action], to: &mut Writer, at: At) -> Result<()> {
    let nest = to.begin_nest(kind);
    encode_list(actions, to, At { depth: at.depth + 1, ..at })?;
    to.end(nest);
    Ok(())
}

fn encode(one: &Action, to: &mut Writer, at: At) -> Result<()> {
    match one {
        Action::Output(port) => to.put_u32(action::OUTPUT, port.0),
        Action::Userspace(to_userspace) => encode_userspace(to_userspace, at.pid, to),
        Action::Set(of) => set::encode(of, to)?,
        Action::PushVlan(Vlan { tpid, tci }) => {
            to.put_parts(action::PUSH_VLAN, &[&tpid.0.to_ne_bytes(), &tci.0.to_ne_bytes()]);
        }
        Action::PopVlan => to.put_flag(action::POP_VLAN),
        Action::Recirc(id) => to.put_u32(action::RECIRC, *id),
        Action::Hash { alg, basis } => {
            let alg: u32 = match alg {
                HashAlg::L4 => 0,
                HashAlg::SymL4 => 1,
            };
            to.put_parts(action::HASH, &[&alg.to_ne_bytes(), &basis.to_ne_bytes()]);
        }
        Action::Trunc(len) => to.put_u32(action::TRUNC, *len),
        Action::Drop(reason) => to.put_u32(action::DROP, *reason),
        Action::Sample { probability, actions } => {
            let nest = to.begin_nest(action::SAMPLE);
            to.put_u32(sample::PROBABILITY, *probability);
            nested(sample::ACTIONS, actions, to, at)?;
            to.end(nest);
        }
        Action::Ct(of) => ct::encode(of, to),
        Action::CtClear => to.put_flag(action::CT_CLEAR),
        Action::PushMpls { lse, eth_type } => encode_mpls(action::PUSH_MPLS, *lse, *eth_type, 0, to),
        Action::AddMpls { lse, eth_type, flags } => encode_mpls(action::ADD_MPLS, *lse, *eth_type, *flags, to),
        Action::PopMpls(eth_type) => to.put(action::POP_MPLS, &eth_type.0.to_ne_bytes()),
        Action::PushEth { src, dst } => to.put_parts(action::PUSH_ETH, &[src, dst]),
        Action::PopEth => to.put_flag(action::POP_ETH),
        Action::PushNsh(header) => {
            let nest = to.begin_nest(action::PUSH_NSH);
            nsh::put_header(to, header)?;
            to.end(nest);
        }
        Action::PopNsh => to.put_flag(action::POP_NSH),
        Action::Meter(id) => to.put_u32(action::METER, *id),
        Action::Clone(actions) => nested(action::CLONE, actions, to, at)?,
        Action::CheckPktLen { pkt_len, if_greater, if_less_equal } => {
            let nest = to.begin_nest(action::CHECK_PKT_LEN);
            to.put_u16(check_pkt_len::PKT_LEN, *pkt_len);
            nested(check_pkt_len::IF_GREATER, if_greater, to, at)?;
            nested(check_pkt_len::IF_LESS_EQUAL, if_less_equal, to, at)?;
            to.end(nest);
        }
        Action::DecTtl(actions) => {
            let nest = to.begin_nest(action::DEC_TTL);
            nested(DEC_TTL_ACTION, actions, to, at)?;
            to.end(nest);
        }
        Action::Psample { group, cookie } => {
            if cookie.len() > PSAMPLE_COOKIE_MAX {
                return Err(CodecError::Length("psample cookie", cookie.len()));
            }
            let nest = to.begin_nest(action::PSAMPLE);
            to.put_u32(psample::GROUP, *group);
            if !cookie.is_empty() {
                to.put(psample::COOKIE, cookie);
            }
            to.end(nest);
        }
        _ => return Err(CodecError::Inexpressible("this action")),
    }
    Ok(())
}

fn encode_userspace(of: &UserspaceAction, pid: u32, to: &mut Writer) {
    let nest = to.begin_nest(action::USERSPACE);
    to.put_u32(userspace::PID, if of.pid == 0 { pid } else { of.pid });
    if !of.cookie.is_empty() {
        to.put(userspace::USERDATA, &of.cookie);
    }
    if let Some(port) = of.egress_tunnel_port {
        to.put_u32(userspace::EGRESS_TUN_PORT, port.0);
    }
    if of.with_actions {
        to.put_flag(userspace::ACTIONS);
    }
    to.end(nest);
}

fn encode_mpls(kind: u16, lse: Be32, eth_type: Be16, flags: u16, to: &mut Writer) {
    to.put_parts(kind, &[&lse.0.to_ne_bytes(), &eth_type.0.to_ne_bytes(), &flags.to_ne_bytes()]);
}

/// Reads actions. One that isn't known is an error: without it the list would mean something else.
pub fn decode_actions(bytes: &[u8]) -> Result<Vec<Action>> {
    decode_list(bytes, 0)
}

fn decode_list(bytes: &[u8], depth: usize) -> Result<Vec<Action>> {
    if depth > MAX_DEPTH {
        return Err(CodecError::TooDeep);
    }
    Attrs::new(bytes).map(|one| decode(one?, depth)).collect()
}

fn decode((kind, bytes): (u16, &[u8]), depth: usize) -> Result<Action> {
    let number = |name| fixed(bytes, name).map(u32::from_ne_bytes);
    Ok(match kind {
        action::OUTPUT => Action::Output(OdpPort(number("output")?)),
        action::USERSPACE => Action::Userspace(decode_userspace(bytes)?),
        action::SET => set::decode(bytes, false)?,
        action::SET_MASKED => set::decode(bytes, true)?,
        action::PUSH_VLAN => {
            let both: [u8; 4] = fixed(bytes, "push_vlan")?;
            let mut rest = &both[..];
            Action::PushVlan(Vlan { tpid: be16(&mut rest), tci: be16(&mut rest) })
        }
        action::POP_VLAN => Action::PopVlan,
        action::RECIRC => Action::Recirc(number("recirc")?),
        action::HASH => {
            let both: [u8; 8] = fixed(bytes, "hash")?;
            let mut rest = &both[..];
            let alg = match u32::from_ne_bytes(take(&mut rest)) {
                0 => HashAlg::L4,
                1 => HashAlg::SymL4,
                _ => return Err(CodecError::Contradiction("a hash of an algorithm that isn't known")),
            };
            Action::Hash { alg, basis: u32::from_ne_bytes(take(&mut rest)) }
        }
        action::TRUNC => Action::Trunc(number("trunc")?),
        action::DROP => Action::Drop(number("drop")?),
        action::SAMPLE => decode_sample(bytes, depth)?,
        action::CT => Action::Ct(ct::decode(bytes)?),
        action::CT_CLEAR => Action::CtClear,
        action::PUSH_MPLS => {
            let (lse, eth_type, _) = decode_mpls(bytes)?;
            Action::PushMpls { lse, eth_type }
        }
        action::ADD_MPLS => {
            let (lse, eth_type, flags) = decode_mpls(bytes)?;
            Action::AddMpls { lse, eth_type, flags }
        }
        action::POP_MPLS => Action::PopMpls(Be16(u16::from_ne_bytes(fixed(bytes, "pop_mpls")?))),
        action::PUSH_ETH => {
            let both: [u8; 12] = fixed(bytes, "push_eth")?;
            let mut rest = &both[..];
            Action::PushEth { src: take(&mut rest), dst: take(&mut rest) }
        }
        action::POP_ETH => Action::PopEth,
        action::PUSH_NSH => {
            let (kind, header) = Attrs::new(bytes).next().ok_or(CodecError::Length("push_nsh", 0))??;
            if kind != key::NSH {
                return Err(CodecError::Contradiction("push_nsh of something else"));
            }
            Action::PushNsh(nsh::get_header(header)?)
        }
        action::POP_NSH => Action::PopNsh,
        action::METER => Action::Meter(number("meter")?),
        action::CLONE => Action::Clone(decode_list(bytes, depth + 1)?),
        action::CHECK_PKT_LEN => decode_check_pkt_len(bytes, depth)?,
        action::DEC_TTL => match Attrs::new(bytes).next().transpose()? {
            Some((DEC_TTL_ACTION, list)) => Action::DecTtl(decode_list(list, depth + 1)?),
            _ => return Err(CodecError::Contradiction("dec_ttl without its actions")),
        },
        action::PSAMPLE => decode_psample(bytes)?,
        other => return Err(CodecError::UnknownAction(other)),
    })
}

fn decode_userspace(bytes: &[u8]) -> Result<UserspaceAction> {
    let mut of = UserspaceAction::default();
    for one in Attrs::new(bytes) {
        match one? {
            (userspace::PID, bytes) => of.pid = u32::from_ne_bytes(fixed(bytes, "userspace pid")?),
            (userspace::USERDATA, bytes) => of.cookie = bytes.to_vec(),
            (userspace::EGRESS_TUN_PORT, bytes) => {
                of.egress_tunnel_port = Some(OdpPort(u32::from_ne_bytes(fixed(bytes, "tunnel_out_port")?)));
            }
            (userspace::ACTIONS, _) => of.with_actions = true,
            _ => return Err(CodecError::Contradiction("userspace has a part that isn't known")),
        }
    }
    Ok(of)
}

fn decode_sample(bytes: &[u8], depth: usize) -> Result<Action> {
    let (mut probability, mut actions) = (0, Vec::new());
    for one in Attrs::new(bytes) {
        match one? {
            (sample::PROBABILITY, bytes) => probability = u32::from_ne_bytes(fixed(bytes, "sample probability")?),
            (sample::ACTIONS, bytes) => actions = decode_list(bytes, depth + 1)?,
            _ => return Err(CodecError::Contradiction("sample has a part that isn't known")),
        }
    }
    Ok(Action::Sample { probability, actions })
}

fn decode_check_pkt_len(bytes: &[u8], depth: usize) -> Result<Action> {
    let (mut pkt_len, mut if_greater, mut if_less_equal) = (0, Vec::new(), Vec::new());
    for one in Attrs::new(bytes) {
        match one? {
            (check_pkt_len::PKT_LEN, bytes) => pkt_len = u16::from_ne_bytes(fixed(bytes, "check_pkt_len")?),
            (check_pkt_len::IF_GREATER, bytes) => if_greater = decode_list(bytes, depth + 1)?,
            (check_pkt_len::IF_LESS_EQUAL, bytes) => if_less_equal = decode_list(bytes, depth + 1)?,
            _ => return Err(CodecError::Contradiction("check_pkt_len has a part that isn't known")),
        }
    }
    Ok(Action::CheckPktLen { pkt_len, if_greater, if_less_equal })
}

fn decode_psample(bytes: &[u8]) -> Result<Action> {
    let (mut group, mut cookie) = (0, Vec::new());
    for one in Attrs::new(bytes) {
        match one? {
            (psample::GROUP, bytes) => group = u32::from_ne_bytes(fixed(bytes, "psample group")?),
            (psample::COOKIE, bytes) if bytes.len() <= PSAMPLE_COOKIE_MAX => cookie = bytes.to_vec(),
            (psample::COOKIE, bytes) => return Err(CodecError::Length("psample cookie", bytes.len())),
            _ => return Err(CodecError::Contradiction("psample has a part that isn't known")),
        }
    }
    Ok(Action::Psample { group, cookie })
}

fn decode_mpls(bytes: &[u8]) -> Result<(Be32, Be16, u16)> {
    let all: [u8; 8] = fixed(bytes, "an mpls label")?;
    let mut rest = &all[..];
    Ok((be32(&mut rest), be16(&mut rest), u16::from_ne_bytes(take(&mut rest))))
}
