//! What a rule may do: whatever translation can't carry out is refused here, by name.

use datapath_common::extract::ip_proto;
use openflow::{Action, FieldId, FlowMatch, FlowMod, check_actions};

/// Checks an addition or a modification.
pub(super) fn check(flow_mod: &FlowMod) -> Result<(), String> {
    // A modification without a table is checked against each rule that it changes.
    check_rule(&flow_mod.r#match, flow_mod.table, &flow_mod.actions)
}

/// Checks the actions of a rule in `table`.
pub(super) fn check_rule(r#match: &FlowMatch, table: Option<u8>, actions: &[Action]) -> Result<(), String> {
    check_actions(r#match, table, actions).map_err(|error| error.to_string())?;
    actions.iter().try_for_each(|action| match action {
        Action::WriteActions(set) => set.iter().try_for_each(|action| check_in_set(r#match, action)),
        action => check_action(r#match, action),
    })
}

fn check_action(r#match: &FlowMatch, action: &Action) -> Result<(), String> {
    let unsupported = || Err(format!("action {action} is not supported yet"));
    match action {
        Action::Output(_)
        | Action::OutputTrunc { .. }
        | Action::OutputReg(_)
        | Action::Controller(_)
        | Action::SetVlanVid { .. }
        | Action::SetVlanPcp { .. }
        | Action::StripVlan
        | Action::PopVlan
        | Action::PushVlan(_)
        | Action::ModDlSrc(_)
        | Action::ModDlDst(_)
        | Action::ModNwSrc(_)
        | Action::ModNwDst(_)
        | Action::ModNwTos(_)
        | Action::ModNwEcn(_)
        | Action::ModNwTtl(_)
        | Action::DecTtl(_)
        | Action::SetTunnel { .. }
        | Action::Resubmit { .. }
        | Action::Note(_)
        | Action::Conjunction { .. }
        | Action::Exit
        | Action::DebugRecirc
        | Action::ClearActions
        | Action::WriteMetadata { .. }
        | Action::GotoTable(_) => Ok(()),
        Action::ModTpSrc(_) | Action::ModTpDst(_) if r#match.value.nw_proto == ip_proto::SCTP => unsupported(),
        Action::ModTpSrc(_) | Action::ModTpDst(_) => Ok(()),
        Action::SetField { field, .. } => check_writable(action, *field),
        Action::Load { dst, .. } | Action::Move { dst, .. } => check_writable(action, dst.field),
        _ => unsupported(),
    }
}

/// Fields that no datapath of this version can write.
fn check_writable(action: &Action, field: FieldId) -> Result<(), String> {
    match field {
        FieldId::SctpSrc | FieldId::SctpDst | FieldId::NdTarget | FieldId::NdSll | FieldId::NdTll => {
            Err(format!("action {action} is not supported yet: field {field} can't be written"))
        }
        _ => Ok(()),
    }
}

/// The action set takes what OpenFlow 1.1 and later define for it (section 5.10 of version 1.3).
fn check_in_set(r#match: &FlowMatch, action: &Action) -> Result<(), String> {
    match action {
        Action::OutputReg(_)
        | Action::OutputTrunc { .. }
        | Action::Controller(_)
        | Action::Resubmit { .. }
        | Action::Note(_)
        | Action::Exit
        | Action::DebugRecirc
        | Action::ClearActions
        | Action::WriteActions(_)
        | Action::WriteMetadata { .. }
        | Action::GotoTable(_) => Err(format!("action {action} is not supported inside write_actions")),
        action => check_action(r#match, action),
    }
}
