//! Writing actions, in the reference's forms.

use std::fmt::{self, Display};

use super::{Action, Controller, PacketInReason};
use crate::field::{FieldText, MacText};
use crate::matching::CHex;
use crate::port::{OfPort, PortNames};

/// The text of an action list, as after `actions=`: `drop` if it is empty. Interface names are used where `names` has
/// them.
pub fn display_actions<'a>(actions: &'a [Action], names: &'a dyn PortNames) -> impl Display + 'a {
    ActionsText { actions, names }
}

struct ActionsText<'a> {
    actions: &'a [Action],
    names: &'a dyn PortNames,
}

impl Display for ActionsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.actions.is_empty() {
            return f.write_str("drop");
        }
        for (n, action) in self.actions.iter().enumerate() {
            f.write_str(if n > 0 { "," } else { "" })?;
            write_action(f, action, self.names)?;
        }
        Ok(())
    }
}

fn write_action(f: &mut fmt::Formatter<'_>, action: &Action, names: &dyn PortNames) -> fmt::Result {
    match action {
        Action::Output(OfPort::CONTROLLER) => write_controller(f, &Controller::default()),
        Action::Output(port) if *port < OfPort::MAX => write!(f, "output:{}", port.display(names)),
        Action::Output(port) => write!(f, "{port}"),
        Action::OutputTrunc { port, max_len } => write!(f, "output(port={},max_len={max_len})", port.display(names)),
        Action::OutputReg(src) => write!(f, "output:{src}"),
        Action::Controller(controller) => write_controller(f, controller),
        Action::SetField { field, value, mask } => {
            write!(f, "set_field:{}->{field}", FieldText { field: *field, value: *value, mask: *mask, names })
        }
        Action::Load { value, dst } => write!(f, "load:{}->{dst}", CHex(*value)),
        Action::Move { src, dst } => write!(f, "move:{src}->{dst}"),
        Action::SetVlanVid { vid, push: true } => write!(f, "mod_vlan_vid:{vid}"),
        Action::SetVlanVid { vid, push: false } => write!(f, "set_vlan_vid:{vid}"),
        Action::SetVlanPcp { pcp, push: true } => write!(f, "mod_vlan_pcp:{pcp}"),
        Action::SetVlanPcp { pcp, push: false } => write!(f, "set_vlan_pcp:{pcp}"),
        Action::StripVlan => f.write_str("strip_vlan"),
        Action::PopVlan => f.write_str("pop_vlan"),
        Action::PushVlan(ethertype) => write!(f, "push_vlan:{ethertype:#x}"),
        Action::ModDlSrc(mac) => write!(f, "mod_dl_src:{}", MacText { value: *mac, mask: [0xff; 6] }),
        Action::ModDlDst(mac) => write!(f, "mod_dl_dst:{}", MacText { value: *mac, mask: [0xff; 6] }),
        Action::ModNwSrc(address) => write!(f, "mod_nw_src:{address}"),
        Action::ModNwDst(address) => write!(f, "mod_nw_dst:{address}"),
        Action::ModNwTos(tos) => write!(f, "mod_nw_tos:{tos}"),
        Action::ModNwEcn(ecn) => write!(f, "mod_nw_ecn:{ecn}"),
        Action::ModNwTtl(ttl) => write!(f, "mod_nw_ttl:{ttl}"),
        Action::DecTtl(ids) if *ids == [0] => f.write_str("dec_ttl"),
        Action::DecTtl(ids) => write!(f, "dec_ttl({})", join(ids, ",", u16::to_string)),
        Action::ModTpSrc(port) => write!(f, "mod_tp_src:{port}"),
        Action::ModTpDst(port) => write!(f, "mod_tp_dst:{port}"),
        Action::SetTunnel { id, wide } => {
            let name = if *wide || *id > u32::MAX.into() { "set_tunnel64" } else { "set_tunnel" };
            write!(f, "{name}:{}", CHex(*id))
        }
        Action::Resubmit { port: Some(port), table: None } => write!(f, "resubmit:{}", port.display(names)),
        Action::Resubmit { port, table } => {
            f.write_str("resubmit(")?;
            if let Some(port) = port {
                write!(f, "{}", port.display(names))?;
            }
            f.write_str(",")?;
            if let Some(table) = table {
                write!(f, "{table}")?;
            }
            f.write_str(")")
        }
        Action::Conjunction { id, clause, clauses } => write!(f, "conjunction({id},{clause}/{clauses})"),
        Action::Note(bytes) => write!(f, "note:{}", hex_bytes(bytes)),
        Action::Exit => f.write_str("exit"),
        Action::DebugRecirc => f.write_str("debug_recirc"),
        Action::ClearActions => f.write_str("clear_actions"),
        Action::WriteActions(actions) => write!(f, "write_actions({})", ActionsText { actions, names }),
        Action::WriteMetadata { value, mask: u64::MAX } => write!(f, "write_metadata:{}", CHex(*value)),
        Action::WriteMetadata { value, mask } => write!(f, "write_metadata:{}/{}", CHex(*value), CHex(*mask)),
        Action::GotoTable(table) => write!(f, "goto_table:{table}"),
    }
}

/// The short form says how many bytes go to the controllers; anything else about it needs the long form.
fn write_controller(f: &mut fmt::Formatter<'_>, controller: &Controller) -> fmt::Result {
    let Controller { max_len, reason, id, userdata } = controller;
    if *reason == PacketInReason::Action && *id == 0 && userdata.is_empty() {
        return write!(f, "CONTROLLER:{max_len}");
    }
    let mut items = Vec::new();
    if *reason != PacketInReason::Action {
        items.push(format!("reason={}", reason.name()));
    }
    if *max_len != u16::MAX {
        items.push(format!("max_len={max_len}"));
    }
    if *id != 0 {
        items.push(format!("id={id}"));
    }
    if !userdata.is_empty() {
        items.push(format!("userdata={}", hex_bytes(userdata)));
    }
    write!(f, "controller({})", items.join(","))
}

fn hex_bytes(bytes: &[u8]) -> String {
    join(bytes, ".", |byte| format!("{byte:02x}"))
}

fn join<T>(items: &[T], separator: &str, write: impl Fn(&T) -> String) -> String {
    items.iter().map(write).collect::<Vec<_>>().join(separator)
}
