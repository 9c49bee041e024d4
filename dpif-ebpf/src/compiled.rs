//! Programs of a batch of operations.

use dpif::Action;
use dpif::program::{CompileError, compile};

use datapath_common::Op;

/// The program of a list of actions.
pub(crate) type Program = Result<Vec<Op>, CompileError>;

/// Remembers the list that was compiled last: a new flow and the packet that follows it have the same.
#[derive(Default)]
pub(crate) struct Compiled<'a> {
    last: Option<(&'a [Action], Program)>,
}

impl<'a> Compiled<'a> {
    /// The program of a list.
    pub(crate) fn program(&mut self, actions: &'a [Action]) -> &Program {
        // The list is borrowed as long as this lives, so at its address is still the same one.
        let last = self.last.take().filter(|(last, _)| std::ptr::eq(*last, actions));
        &self.last.insert(last.unwrap_or_else(|| (actions, compile(actions)))).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpif::OdpPort;

    #[test]
    fn each_list_has_its_own_program() {
        let lists = [[Action::Output(OdpPort(1))], [Action::Output(OdpPort(2))]];
        let mut compiled = Compiled::default();
        for list in [&lists[0], &lists[0], &lists[1], &lists[0]] {
            assert_eq!(*compiled.program(list), compile(list));
        }
    }
}
