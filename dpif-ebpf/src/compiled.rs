//! Programs of a batch of operations.

use dpif::program::{CompileError, compile};
use dpif::{Action, DpifOp};

use datapath_common::Op;

/// The program of a list of actions.
pub(crate) type Program = Result<Vec<Op>, CompileError>;

/// The programs of some operations. A new flow and its packet have the same list, which is compiled once.
#[derive(Default)]
pub(crate) struct Compiled<'a> {
    programs: Vec<(&'a [Action], Program)>,
    /// For each operation the number of its program; anything where it has none.
    which: Vec<usize>,
}

impl<'a> Compiled<'a> {
    /// The programs of these operations.
    pub(crate) fn of(ops: &[DpifOp<'a>]) -> Self {
        let mut compiled = Self { programs: Vec::with_capacity(ops.len()), which: Vec::with_capacity(ops.len()) };
        for op in ops {
            match op {
                DpifOp::FlowPut { put, .. } => compiled.add(&put.actions),
                DpifOp::Execute { execute, .. } => compiled.add(execute.actions),
                DpifOp::FlowDel { .. } | DpifOp::FlowGet { .. } => {}
            }
            compiled.which.push(compiled.programs.len().saturating_sub(1));
        }
        compiled
    }

    fn add(&mut self, actions: &'a [Action]) {
        // Lists are borrowed as long as this lives, so at the address of one there is no other.
        if self.programs.last().is_none_or(|(last, _)| !std::ptr::eq(*last, actions)) {
            self.programs.push((actions, compile(actions)));
        }
    }

    /// The program of operation `index`, a flow or a packet.
    pub(crate) fn program(&self, index: usize) -> Option<&Program> {
        Some(&self.programs.get(*self.which.get(index)?)?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_common::FlowKey;
    use dpif::{DpifError, Execute, OdpPort, Packet, Ufid};

    #[test]
    fn each_list_has_its_own_program() {
        let lists = [[Action::Output(OdpPort(1))], [Action::Output(OdpPort(2))]];
        let packet = Packet { data: Vec::new(), ..Packet::default() };
        let execute = |actions| DpifOp::Execute {
            execute: Execute { packet: &packet, key: &FlowKey::ZERO, actions },
            result: Ok(()),
        };
        let delete = DpifOp::FlowDel { ufid: Ufid::default(), result: Err(DpifError::NoSuchFlow) };
        let order = [0, 0, 1, 0];
        let mut ops: Vec<_> = order.iter().map(|list| execute(&lists[*list])).collect();
        ops.insert(1, delete);
        let compiled = Compiled::of(&ops);
        for (op, list) in [(0, 0), (2, 0), (3, 1), (4, 0)] {
            assert_eq!(compiled.program(op), Some(&compile(&lists[list])));
        }
        assert_eq!(compiled.programs.len(), 3);
    }
}
