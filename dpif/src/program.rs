//! From a list of actions to the operations that an engine runs, and back.
//!
//! The engines run fixed-size operations ([`Op`]) over one packet that they may change but not copy. Three kinds of lists
//! need more than a translation one by one. *Truncated outputs* shrink the packet for good, so they go behind the whole ones,
//! the longest first; that changes no packet and no port's order. A *recirculation* ends the program, so outputs behind it
//! go before it. And where such a move would cross a change to the packet, the list is refused: the caller then runs it in
//! userspace, packet by packet.

use std::convert::Infallible;

use datapath_common::apply::settable;
use datapath_common::extract::{eth_type, ip_proto};
use datapath_common::key::KEY_WORDS;
use datapath_common::op::{HASH_ALG_L4, MAX_COOKIE, MAX_PROGRAM_OPS, OP_LAST};
use datapath_common::{Be16, FlowKey, Op, OpKind, Vlan};

use crate::action::{Action, CtAction, HashAlg, KeyAttr, SetAction, UserspaceAction};
use crate::features::Features;
use crate::port::OdpPort;

/// Why a list of actions has no program. The text names what is missing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompileError {
    /// An engine could do this, ours can't.
    #[error("action {0}")]
    Unsupported(String),
    /// No engine could.
    #[error("{0}")]
    Invalid(String),
}

/// What an engine can do that runs what [`compile`] makes.
pub fn features() -> Features {
    features_of(compile)
}

/// What an engine can do that runs what `compile` makes. Keys may have every field that extraction fills.
pub fn features_of(compile: impl Fn(&[Action]) -> Result<Vec<Op>, CompileError>) -> Features {
    let ct = compile(&[Action::Ct(CtAction::default())]).is_ok();
    let probed = Features::probe(|_, mask, actions| {
        let tracked = mask.ct_state != 0 || mask.ct_zone != 0 || mask.ct_mark != 0 || mask.ct_label != [0; 16];
        Ok::<_, Infallible>((ct || !tracked) && compile(actions).is_ok())
    });
    match probed {
        Ok(features) => Features { compiles: true, ..features },
        Err(never) => match never {},
    }
}

/// Compiles `actions`. The program has at most [`MAX_PROGRAM_OPS`] operations, the engine's slots permitting.
pub fn compile(actions: &[Action]) -> Result<Vec<Op>, CompileError> {
    if is_plain(actions) {
        return Ok(outputs(actions));
    }
    emit(&order(steps(actions)?)?)
}

/// Whether [`compile`] takes `actions`.
pub fn check(actions: &[Action]) -> Result<(), CompileError> {
    if is_plain(actions) { Ok(()) } else { compile(actions).map(drop) }
}

/// Whether a list only sends the packet, as most do.
fn is_plain(actions: &[Action]) -> bool {
    actions.len() <= MAX_PROGRAM_OPS && actions.iter().all(|action| matches!(action, Action::Output(_)))
}

/// What [`compile`] makes of such a list.
fn outputs(actions: &[Action]) -> Vec<Op> {
    let op = |action: &Action| match action {
        Action::Output(port) => Some(Op::new(OpKind::Output, port.0)),
        _ => None,
    };
    let mut ops: Vec<Op> = actions.iter().filter_map(op).collect();
    mark_last(&mut ops);
    ops
}

/// Compiles `actions` in the order in which they stand, for an engine that can copy the packet: a truncation shortens a copy,
/// and a recirculation without [`OP_LAST`] works on one.
pub fn compile_in_order(actions: &[Action]) -> Result<Vec<Op>, CompileError> {
    emit(&steps(actions)?)
}

fn emit(steps: &[Step<'_>]) -> Result<Vec<Op>, CompileError> {
    let mut ops = Vec::with_capacity(steps.len());
    for step in steps {
        step.emit(&mut ops);
    }
    if ops.len() > MAX_PROGRAM_OPS {
        return Err(CompileError::Invalid(format!(
            "the action list needs {} operations, more than the {MAX_PROGRAM_OPS} that a program may have",
            ops.len()
        )));
    }
    mark_last(&mut ops);
    Ok(ops)
}

/// The actions of a program, for flows that were installed by an earlier process. `key` is the flow's, which says what the
/// fields of a set are. `None` if the operations are no program.
pub fn decompile(ops: &[Op], key: &FlowKey) -> Option<Vec<Action>> {
    let mut actions = Vec::new();
    let mut iter = ops.iter().peekable();
    while let Some(op) = iter.next() {
        let kind = op.kind;
        if kind == OpKind::End as u16 {
            break;
        }
        let action = if kind == OpKind::Output as u16 {
            Action::Output(OdpPort(op.arg))
        } else if kind == OpKind::Userspace as u16 {
            let len = (op.arg & 0xff) as usize;
            let mut cookie = Vec::with_capacity(len);
            while cookie.len() < len {
                let data = iter.next().filter(|d| d.kind == OpKind::Data as u16)?;
                cookie.extend_from_slice(&data.a.to_ne_bytes());
                cookie.extend_from_slice(&data.b.to_ne_bytes());
            }
            cookie.truncate(len);
            let egress_tunnel_port = u32::try_from(op.b).ok().map(OdpPort);
            Action::Userspace(UserspaceAction {
                pid: op.a as u32,
                cookie,
                egress_tunnel_port,
                with_actions: op.arg & WITH_ACTIONS != 0,
            })
        } else if kind == OpKind::SetWord as u16 {
            let mut set = SetAction { attr: attr_of(op, key)?, value: FlowKey::ZERO, mask: FlowKey::ZERO };
            add_word(&mut set, op)?;
            // The compiler emits the words of one attribute in ascending order: a word that repeats begins another set.
            let mut last = op.arg;
            while let Some(next) =
                iter.next_if(|n| n.kind == OpKind::SetWord as u16 && n.arg > last && attr_of(n, key) == Some(set.attr))
            {
                last = next.arg;
                add_word(&mut set, next)?;
            }
            Action::Set(Box::new(set))
        } else if kind == OpKind::PushVlan as u16 {
            let tpid = Be16::from_raw(op.arg as u16);
            Action::PushVlan(Vlan { tpid, tci: Be16::from_raw((op.arg >> 16) as u16) })
        } else if kind == OpKind::PopVlan as u16 {
            Action::PopVlan
        } else if kind == OpKind::Recirc as u16 {
            Action::Recirc(op.arg)
        } else if kind == OpKind::Hash as u16 {
            Action::Hash { alg: HashAlg::L4, basis: op.arg }
        } else if kind == OpKind::Trunc as u16 {
            Action::Trunc(op.arg)
        } else if kind == OpKind::Drop as u16 {
            Action::Drop(op.arg)
        } else {
            return None;
        };
        actions.push(action);
    }
    Some(actions)
}

/// In `arg` of a `Userspace` operation.
const WITH_ACTIONS: u32 = 1 << 8;

/// One action on its way to its operations.
enum Step<'a> {
    /// Sends the packet as it is or truncated; changes nothing.
    Output { port: OdpPort, trunc: Option<u32> },
    /// Sends the packet up; changes nothing.
    Userspace { action: &'a UserspaceAction, trunc: Option<u32> },
    /// Changes packet or key.
    Change(Vec<Op>),
    /// Ends the program.
    Recirc(u32),
    /// Ends the program.
    Drop(u32),
}

impl Step<'_> {
    fn emit(&self, ops: &mut Vec<Op>) {
        match self {
            Self::Output { port, trunc } => {
                ops.extend(trunc.map(|len| Op::new(OpKind::Trunc, len)));
                ops.push(Op::new(OpKind::Output, port.0));
            }
            Self::Userspace { action, trunc } => {
                ops.extend(trunc.map(|len| Op::new(OpKind::Trunc, len)));
                let with_actions = if action.with_actions { WITH_ACTIONS } else { 0 };
                let mut op = Op::new(OpKind::Userspace, action.cookie.len() as u32 | with_actions);
                op.a = u64::from(action.pid);
                op.b = action.egress_tunnel_port.map_or(u64::MAX, |p| u64::from(p.0));
                ops.push(op);
                for chunk in action.cookie.chunks(16) {
                    let mut bytes = [0; 16];
                    bytes[..chunk.len()].copy_from_slice(chunk);
                    let [a, b] = [0, 8].map(|i| bytes[i..].first_chunk().map_or(0, |w| u64::from_ne_bytes(*w)));
                    ops.push(Op { kind: OpKind::Data as u16, flags: 0, arg: 0, a, b });
                }
            }
            Self::Change(change) => ops.extend_from_slice(change),
            Self::Recirc(id) => ops.push(Op::new(OpKind::Recirc, *id)),
            Self::Drop(reason) => ops.push(Op::new(OpKind::Drop, *reason)),
        }
    }
}

fn steps(actions: &[Action]) -> Result<Vec<Step<'_>>, CompileError> {
    let unsupported = |name: &str| Err(CompileError::Unsupported(name.into()));
    let mut steps = Vec::with_capacity(actions.len());
    let mut trunc = None;
    for action in actions {
        steps.push(match action {
            Action::Output(port) => Step::Output { port: *port, trunc: trunc.take() },
            Action::Userspace(action) => {
                if action.cookie.len() > MAX_COOKIE {
                    let len = action.cookie.len();
                    return Err(CompileError::Invalid(format!(
                        "a userspace action has a cookie of {len} bytes, more than {MAX_COOKIE}"
                    )));
                }
                Step::Userspace { action, trunc: trunc.take() }
            }
            Action::Trunc(len) => {
                if *len < 14 {
                    return Err(CompileError::Invalid(format!("trunc({len}) is shorter than an Ethernet header")));
                }
                trunc = Some(*len);
                continue;
            }
            Action::Set(set) => Step::Change(set_ops(set)?),
            Action::PushVlan(vlan) => {
                if !matches!(vlan.tpid.get(), eth_type::VLAN | eth_type::QINQ) {
                    return Err(CompileError::Invalid(format!("push_vlan with tpid {:?}", vlan.tpid)));
                }
                Step::Change(vec![Op::push_vlan(*vlan)])
            }
            Action::PopVlan => Step::Change(vec![Op::new(OpKind::PopVlan, 0)]),
            Action::Hash { alg: HashAlg::L4, basis } => {
                let mut op = Op::new(OpKind::Hash, *basis);
                op.flags = HASH_ALG_L4 << 8;
                Step::Change(vec![op])
            }
            Action::Hash { alg: HashAlg::SymL4, .. } => return unsupported("hash(sym_l4)"),
            Action::Recirc(id) => Step::Recirc(*id),
            Action::Drop(reason) => Step::Drop(*reason),
            Action::Sample { .. } => return unsupported("sample"),
            Action::Ct(_) => return unsupported("ct"),
            Action::CtClear => return unsupported("ct_clear"),
            Action::PushMpls { .. } => return unsupported("push_mpls"),
            Action::PopMpls(_) => return unsupported("pop_mpls"),
            Action::PushEth { .. } => return unsupported("push_eth"),
            Action::PopEth => return unsupported("pop_eth"),
            Action::PushNsh(_) => return unsupported("push_nsh"),
            Action::PopNsh => return unsupported("pop_nsh"),
            Action::Meter(_) => return unsupported("meter"),
            Action::Clone(_) => return unsupported("clone"),
            Action::CheckPktLen { .. } => return unsupported("check_pkt_len"),
            Action::AddMpls { .. } => return unsupported("add_mpls"),
            Action::DecTtl(_) => return unsupported("dec_ttl"),
            Action::Psample { .. } => return unsupported("psample"),
        });
    }
    Ok(steps)
}

fn set_ops(set: &SetAction) -> Result<Vec<Op>, CompileError> {
    let name = match set.attr {
        KeyAttr::Priority
        | KeyAttr::SkbMark
        | KeyAttr::Ethernet
        | KeyAttr::Ipv4
        | KeyAttr::Ipv6
        | KeyAttr::Tcp
        | KeyAttr::Udp
        | KeyAttr::Icmp
        | KeyAttr::Icmpv6
        | KeyAttr::Arp => None,
        KeyAttr::Sctp => Some("set(sctp)"),
        KeyAttr::Nd => Some("set(nd)"),
        KeyAttr::Mpls => Some("set(mpls)"),
        KeyAttr::Tunnel => Some("set(tunnel)"),
        KeyAttr::Nsh => Some("set(nsh)"),
    };
    if let Some(name) = name {
        return Err(CompileError::Unsupported(name.into()));
    }
    let mut ops = Vec::new();
    for (index, (value, mask)) in set.value.words().iter().zip(set.mask.words()).enumerate() {
        if mask & !settable(index) != 0 {
            return Err(CompileError::Invalid(format!("set of {:?} touches a field that can't be set", set.attr)));
        }
        if *mask != 0 {
            ops.push(Op::set_word(index, *value, *mask));
        }
    }
    Ok(ops)
}

/// Puts the steps in an order that one packet without copies can run, or says which action stands in the way.
fn order(mut steps: Vec<Step<'_>>) -> Result<Vec<Step<'_>>, CompileError> {
    // Nothing runs behind an explicit drop.
    if let Some(at) = steps.iter().position(|s| matches!(s, Step::Drop(_))) {
        steps.truncate(at + 1);
    }
    let changes_after = |steps: &[Step<'_>], at: usize| {
        steps.iter().skip(at + 1).any(|s| matches!(s, Step::Change(_) | Step::Recirc(_)))
    };
    if let Some(at) = steps.iter().position(|s| matches!(s, Step::Recirc(_))) {
        if changes_after(&steps, at) {
            return Err(CompileError::Unsupported("recirc before a change to the packet".into()));
        }
        let recirc = steps.remove(at);
        if matches!(steps.last(), Some(Step::Drop(_))) {
            steps.pop();
        }
        steps.push(recirc);
    }
    let first = steps.iter().position(|s| matches!(s, Step::Output { trunc: Some(_), .. }));
    if let Some(first) = first {
        if changes_after(&steps, first) {
            return Err(CompileError::Unsupported("trunc before a change to the packet".into()));
        }
        // Stable, so equal lengths and whole packets keep their order.
        steps[first..].sort_by_key(|s| match s {
            Step::Output { trunc: Some(len), .. } => (1, u32::MAX - len),
            Step::Drop(_) => (2, 0),
            _ => (0, 0),
        });
    }
    Ok(steps)
}

/// The last output may consume the packet.
fn mark_last(ops: &mut [Op]) {
    if let Some(op) = ops.last_mut()
        && (op.kind == OpKind::Output as u16 || op.kind == OpKind::Recirc as u16)
    {
        op.flags |= OP_LAST;
    }
}

fn add_word(set: &mut SetAction, op: &Op) -> Option<()> {
    let index = op.arg as usize;
    *set.value.words_mut().get_mut(index)? |= op.a;
    *set.mask.words_mut().get_mut(index)? |= op.b;
    Some(())
}

/// The attribute whose field a `SetWord` changes in packets of flow `key`.
fn attr_of(op: &Op, key: &FlowKey) -> Option<KeyAttr> {
    use datapath_common::key::word;
    let index = op.arg as usize;
    if index >= KEY_WORDS {
        return None;
    }
    let network = match key.eth_type.get() {
        eth_type::IPV4 => KeyAttr::Ipv4,
        eth_type::IPV6 => KeyAttr::Ipv6,
        eth_type::ARP | eth_type::RARP => KeyAttr::Arp,
        _ => KeyAttr::Ethernet,
    };
    Some(match index {
        word::ETH_DST | word::ETH_SRC => KeyAttr::Ethernet,
        word::DP_HASH => KeyAttr::Priority,
        word::SKB_MARK => KeyAttr::SkbMark,
        word::IP if op.b >> 32 != 0 => match key.ip_proto {
            ip_proto::TCP => KeyAttr::Tcp,
            ip_proto::UDP => KeyAttr::Udp,
            ip_proto::SCTP => KeyAttr::Sctp,
            ip_proto::ICMP => KeyAttr::Icmp,
            ip_proto::ICMPV6 => KeyAttr::Icmpv6,
            _ => return None,
        },
        _ => network,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(port: u32) -> Action {
        Action::Output(OdpPort(port))
    }

    fn kinds(actions: &[Action]) -> Vec<(u16, u32, bool)> {
        compile(actions).unwrap().iter().map(|op| (op.kind, op.arg, op.is_last())).collect()
    }

    const OUT: u16 = OpKind::Output as u16;
    const TRUNC: u16 = OpKind::Trunc as u16;

    #[test]
    fn the_last_output_consumes_the_packet() {
        assert_eq!(kinds(&[output(1), output(2)]), [(OUT, 1, false), (OUT, 2, true)]);
        assert_eq!(kinds(&[]), []);
    }

    #[test]
    fn truncated_outputs_go_behind_whole_ones_the_longest_first() {
        let list = [Action::Trunc(60), output(1), output(2), Action::Trunc(100), output(3)];
        assert_eq!(
            kinds(&list),
            [(OUT, 2, false), (TRUNC, 100, false), (OUT, 3, false), (TRUNC, 60, false), (OUT, 1, true)]
        );
    }

    #[test]
    fn a_truncated_output_before_a_change_is_refused_by_name() {
        let error = compile(&[Action::Trunc(60), output(1), Action::PopVlan, output(2)]).unwrap_err();
        assert!(error.to_string().contains("trunc before a change"), "{error}");
    }

    #[test]
    fn recirculation_ends_the_program() {
        let list = [Action::Recirc(7), output(2)];
        assert_eq!(kinds(&list), [(OUT, 2, false), (OpKind::Recirc as u16, 7, true)]);
        assert!(compile(&[Action::Recirc(7), Action::PopVlan, output(2)]).is_err());
    }

    #[test]
    fn a_program_gives_back_its_actions() {
        let mut key = FlowKey::ZERO;
        key.eth_type = Be16::new(eth_type::IPV4);
        key.ip_proto = ip_proto::TCP;
        let set = |attr, f: fn(&mut FlowKey, &mut FlowKey)| {
            let (mut value, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
            f(&mut value, &mut mask);
            Action::Set(Box::new(SetAction { attr, value, mask }))
        };
        let list = vec![
            set(KeyAttr::Ethernet, |v, m| {
                (v.eth_dst, m.eth_dst, v.eth_src, m.eth_src) = ([1; 6], [255; 6], [2; 6], [255; 6])
            }),
            set(KeyAttr::Ipv4, |v, m| (v.ip_ttl, m.ip_ttl) = (9, 255)),
            set(KeyAttr::Tcp, |v, m| (v.tp_dst, m.tp_dst) = (Be16::new(80), Be16::MAX)),
            Action::PushVlan(Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1005) }),
            Action::PopVlan,
            Action::Userspace(UserspaceAction { cookie: (0..40).collect(), ..Default::default() }),
            output(3),
            Action::Trunc(64),
            output(4),
        ];
        assert_eq!(decompile(&compile(&list).unwrap(), &key), Some(list));
    }

    #[test]
    fn what_no_engine_runs_yet_is_refused_by_name() {
        for (action, name) in [
            (Action::Meter(1), "meter"),
            (Action::CtClear, "ct_clear"),
            (Action::Clone(vec![]), "clone"),
            (Action::Sample { probability: 1, actions: vec![] }, "sample"),
            (Action::PopNsh, "pop_nsh"),
        ] {
            let error = compile(&[action]).unwrap_err();
            assert_eq!(error.to_string(), format!("action {name}"));
        }
    }
}
