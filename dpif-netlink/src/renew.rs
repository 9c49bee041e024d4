//! Flows that name sockets.
//!
//! Where upcalls go by the port, a flow that sends packets up says to which socket. When handlers come and go the ports get other
//! sockets, and nobody reads the ones that flows still name; so these flows are put again. Whoever put them need not know: for them
//! such an action names no socket.

use std::collections::BTreeSet;
use std::sync::Arc;

use dpif::{Action, Dpif, DpifError, DpifOp, FlowPut, PutMode, Result};

use crate::datapath::NetlinkDpif;
use crate::dispatch::NOBODY;

/// Flows that are put in one go.
const BATCH: usize = 64;

impl NetlinkDpif {
    /// Has flows that name one of these sockets, or nobody's, name those of their ports.
    pub(crate) fn renew_flows(&self, gone: &BTreeSet<u32>) -> Result<()> {
        let mut puts = Vec::new();
        self.flow_dump(&mut |flow| {
            let mut actions = flow.actions.to_vec();
            if forget(&mut actions, gone) {
                let (ufid, key, mask, actions) = (flow.ufid, flow.key, flow.mask, Arc::from(actions));
                puts.push(FlowPut { mode: PutMode::Modify, ufid, key, mask, actions });
            }
            true
        })?;
        let mut result = Ok(());
        for puts in puts.chunks(BATCH) {
            let mut ops: Vec<_> = puts.iter().map(|put| DpifOp::FlowPut { put, result: Ok(()) }).collect();
            self.operate(&mut ops);
            for op in ops {
                match op {
                    DpifOp::FlowPut { result: Err(error), .. } if !matches!(error, DpifError::NoSuchFlow) => {
                        result = Err(error);
                    }
                    _ => {}
                }
            }
        }
        result
    }
}

/// Takes these sockets out of actions; whether there were any.
fn forget(actions: &mut [Action], gone: &BTreeSet<u32>) -> bool {
    let mut any = false;
    for action in actions {
        any |= match action {
            Action::Userspace(userspace) => {
                let is_gone = userspace.pid == NOBODY || gone.contains(&userspace.pid);
                if is_gone {
                    userspace.pid = 0;
                }
                is_gone
            }
            Action::Clone(inner) | Action::DecTtl(inner) | Action::Sample { actions: inner, .. } => forget(inner, gone),
            Action::CheckPktLen { if_greater, if_less_equal, .. } => {
                forget(if_greater, gone) | forget(if_less_equal, gone)
            }
            _ => false,
        };
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpif::{OdpPort, UserspaceAction};

    #[test]
    fn only_sockets_that_are_gone_are_forgotten() {
        let up = |pid| {
            Action::Userspace(UserspaceAction { pid, cookie: vec![1], egress_tunnel_port: None, with_actions: false })
        };
        let list = |a, b, c| {
            let nested = Action::CheckPktLen { pkt_len: 100, if_greater: vec![up(b)], if_less_equal: vec![up(c)] };
            vec![Action::Output(OdpPort(1)), up(a), Action::Clone(vec![nested])]
        };
        let gone = BTreeSet::from([7, 8]);
        for (before, after) in [((7, 9, NOBODY), Some((0, 9, 0))), ((9, 8, 9), Some((9, 0, 9))), ((9, 9, 10), None)] {
            let mut actions = list(before.0, before.1, before.2);
            assert_eq!(forget(&mut actions, &gone), after.is_some());
            let after = after.unwrap_or(before);
            assert_eq!(actions, list(after.0, after.1, after.2));
        }
    }
}
