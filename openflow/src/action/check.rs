//! Whether a flow's actions go with its match.
//!
//! An action on a field makes sense only for packets that have the field: setting `tcp_dst` asks for a flow that matches
//! TCP. The check follows what the actions before did to the packet's VLAN tags, since pushing and popping decides what
//! the next action finds.

use super::Action;
use crate::error::{Fault, ParseErrorKind, Parsed};
use crate::field::{Access, FieldId, Prerequisite, Subfield};
use crate::matching::proto::VLAN_PRESENT;
use crate::matching::{FlowMatch, MatchFields};
use crate::port::OfPort;

/// Checks that a flow's actions can be carried out on the packets it matches. `table` is the flow's own, against which
/// `goto_table` is checked; `None` if it is not known.
///
/// # Errors
/// [`ParseErrorKind::MissingPrerequisite`], [`ParseErrorKind::ReadOnlyField`] or [`ParseErrorKind::InvalidAction`] for the
/// first action that can't.
pub fn check_actions(flow: &FlowMatch, table: Option<u8>, actions: &[Action]) -> Result<(), ParseErrorKind> {
    check_conjunctions(actions.iter())?;
    let mut packet = Packet::new(flow, table);
    actions.iter().try_for_each(|action| packet.apply(action))
}

/// A flow with a conjunction is nothing else: beside it only notes may stand.
fn check_conjunctions<'a>(actions: impl Iterator<Item = &'a Action> + Clone) -> Result<(), ParseErrorKind> {
    if !actions.clone().any(|action| matches!(action, Action::Conjunction { .. })) {
        return Ok(());
    }
    match actions.into_iter().find(|action| !matches!(action, Action::Conjunction { .. } | Action::Note(_))) {
        Some(other) => Err(ParseErrorKind::InvalidAction(format!(
            "{other} stands beside a conjunction: expected nothing but notes there"
        ))),
        None => Ok(()),
    }
}

/// As [`check_actions`], with the place of each action.
pub(crate) fn check_located(flow: &FlowMatch, table: Option<u8>, actions: &[(usize, Action)]) -> Parsed<()> {
    if let Some((at, _)) = actions.first() {
        check_conjunctions(actions.iter().map(|(_, action)| action)).map_err(|kind| Fault::new(*at, kind))?;
    }
    let mut packet = Packet::new(flow, table);
    actions.iter().try_for_each(|(at, action)| packet.apply(action).map_err(|kind| Fault::new(*at, kind)))
}

/// What is known of a packet while actions change it.
#[derive(Clone)]
struct Packet {
    fields: MatchFields,
    /// Whether a second VLAN tag is known to be there; the first one is in `fields`.
    inner_tag: bool,
    table: Option<u8>,
}

impl Packet {
    fn new(flow: &FlowMatch, table: Option<u8>) -> Self {
        Self { fields: flow.value.clone(), inner_tag: false, table }
    }

    fn apply(&mut self, action: &Action) -> Result<(), ParseErrorKind> {
        match action {
            Action::Output(port) | Action::OutputTrunc { port, .. } => check_port(*port),
            Action::OutputReg(src) => self.needs(action, src.field),
            Action::SetField { field, value, .. } => self.write(action, *field, *value),
            Action::Load { value, dst } => self.write(action, dst.field, dst.insert(0, (*value).into())),
            Action::Move { src, dst } => {
                if src.bits != dst.bits {
                    return Err(ParseErrorKind::WidthMismatch { source_field: *src, destination: *dst });
                }
                self.needs(action, src.field)?;
                self.write_part(action, *dst)
            }
            Action::SetVlanVid { .. } | Action::SetVlanPcp { .. } => {
                self.fields.vlan_tci |= VLAN_PRESENT;
                Ok(())
            }
            Action::StripVlan | Action::PopVlan => {
                self.fields.vlan_tci = if self.inner_tag { VLAN_PRESENT } else { 0 };
                self.inner_tag = false;
                Ok(())
            }
            Action::PushVlan(_) => {
                if self.inner_tag {
                    let text = format!("{action} would be the third VLAN tag: expected at most two");
                    return Err(ParseErrorKind::InvalidAction(text));
                }
                self.inner_tag = self.fields.vlan_tci & VLAN_PRESENT != 0;
                self.fields.vlan_tci = VLAN_PRESENT;
                Ok(())
            }
            Action::WriteActions(actions) => {
                if let Some(inner) = actions.iter().find(|action| matches!(action, Action::Conjunction { .. })) {
                    let text = format!("{inner} is not possible within write_actions: expected it in the flow's list");
                    return Err(ParseErrorKind::InvalidAction(text));
                }
                let mut packet = self.clone();
                actions.iter().try_for_each(|action| packet.apply(action))
            }
            Action::GotoTable(to) => match self.table {
                Some(from) if *to <= from => {
                    let text = format!("goto_table:{to} does not lead on from table {from}: expected a later table");
                    Err(ParseErrorKind::InvalidAction(text))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn write(&mut self, action: &Action, field: FieldId, value: u128) -> Result<(), ParseErrorKind> {
        self.write_part(action, Subfield::whole(field))?;
        match field {
            // May add or remove the tag.
            FieldId::VlanTci => self.fields.set(field, value),
            // Reads as "no tag" where there is none, and can't be written there.
            FieldId::VlanVid => self.meets(action, Prerequisite::VlanVid)?,
            _ => {}
        }
        Ok(())
    }

    fn write_part(&self, action: &Action, dst: Subfield) -> Result<(), ParseErrorKind> {
        if dst.field.info().access == Access::ReadOnly {
            return Err(ParseErrorKind::ReadOnlyField(dst.field.name().into()));
        }
        self.needs(action, dst.field)
    }

    fn needs(&self, action: &Action, field: FieldId) -> Result<(), ParseErrorKind> {
        self.meets(action, field.info().prerequisite)
    }

    fn meets(&self, action: &Action, prerequisite: Prerequisite) -> Result<(), ParseErrorKind> {
        if self.fields.meets(prerequisite) {
            return Ok(());
        }
        Err(ParseErrorKind::MissingPrerequisite { what: action.to_string(), needs: prerequisite.to_string() })
    }
}

fn check_port(port: OfPort) -> Result<(), ParseErrorKind> {
    if port < OfPort::MAX || (OfPort::IN_PORT..=OfPort::LOCAL).contains(&port) {
        Ok(())
    } else {
        Err(ParseErrorKind::InvalidAction(format!(
            "output to port {port} is not possible: expected a port of the bridge"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::parse_actions;
    use crate::port::NoPortNames;

    fn check(flow: &str, actions: &str) -> Result<(), String> {
        let flow = FlowMatch::parse(flow, &NoPortNames).unwrap();
        let actions = parse_actions(actions, &NoPortNames).unwrap();
        check_actions(&flow, Some(3), &actions).map_err(|kind| kind.to_string())
    }

    #[test]
    fn actions_need_a_flow_that_has_their_fields() {
        for (flow, actions) in [
            ("tcp", "set_field:80->tcp_dst"),
            ("tcp6", "load:80->NXM_OF_TCP_DST[]"),
            ("", "load:5->reg0,move:reg0->reg1,output:reg0"),
            ("ip", "set_field:10.0.0.1->nw_src,set_field:3->ip_dscp"),
            ("dl_vlan=5", "set_field:4097->vlan_vid"),
            ("", "push_vlan:0x8100,set_field:4097->vlan_vid"),
            ("", "mod_vlan_vid:3,set_field:1->vlan_pcp"),
            ("", "set_field:0x1005->vlan_tci,set_field:1->vlan_pcp"),
            ("dl_vlan=5", "push_vlan:0x88a8,pop_vlan,push_vlan:0x88a8"),
            ("arp", "move:arp_sha->arp_tha,load:2->arp_op"),
            ("icmp6,icmpv6_type=136", "set_field:00:00:00:00:00:01->nd_tll"),
            ("", "goto_table:4"),
            ("", "conjunction(1,1/2),note:00,conjunction(2,2/3)"),
            ("", "write_actions(push_vlan:0x8100,set_field:4097->vlan_vid),goto_table:9"),
        ] {
            assert_eq!(check(flow, actions), Ok(()), "{flow} {actions}");
        }
    }

    #[test]
    fn actions_without_their_prerequisite_are_refused() {
        for (flow, actions, error) in [
            ("", "set_field:80->tcp_dst", "set_field:80->tcp_dst needs its prerequisite: add tcp or tcp6"),
            ("udp", "load:80->NXM_OF_TCP_DST[]", "load:0x50->NXM_OF_TCP_DST[] needs its prerequisite"),
            ("ipv6", "move:ip_src->reg0", "add ip to the match"),
            ("", "output:arp_spa[0..15]", "add arp or rarp"),
            ("", "set_field:4097->vlan_vid", "add a VLAN tag"),
            ("dl_vlan=5", "pop_vlan,set_field:4097->vlan_vid", "add a VLAN tag"),
            ("", "set_field:0x1005->vlan_tci,set_field:0->vlan_tci,set_field:1->vlan_pcp", "add a VLAN tag"),
            ("dl_vlan=5", "push_vlan:0x8100,push_vlan:0x8100", "third VLAN tag"),
            ("", "goto_table:3", "expected a later table"),
            ("", "output:0xffff", "output to port ANY is not possible"),
            ("", "conjunction(1,1/2),output:1", "output:1 stands beside a conjunction"),
            ("", "note:00,conjunction(1,1/2),goto_table:9", "goto_table:9 stands beside a conjunction"),
            ("", "write_actions(conjunction(1,1/2))", "conjunction(1,1/2) is not possible within write_actions"),
            ("", "output:UNSET", "output to port UNSET is not possible"),
            ("", "write_actions(set_field:80->tcp_dst)", "add tcp or tcp6"),
        ] {
            // 0xffff is written in decimal in port syntax.
            let found = check(flow, &actions.replace("0xffff", "65535")).unwrap_err();
            assert!(found.contains(error), "{flow} {actions}: {found}");
        }
    }
}
