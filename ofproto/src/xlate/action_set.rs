//! The action set: what `write_actions` gathered is carried out at the pipeline's end, in OpenFlow's order rather than that in
//! which it was written (OpenFlow 1.3, section 5.10): tags off, tags on, TTL, other changes, output. Of each kind the last
//! counts; a set without an output does nothing.

use openflow::Action;

use super::context::Context;

impl Context<'_> {
    pub(super) fn run_action_set(&mut self) {
        let set = std::mem::take(&mut self.set);
        let last = |which: fn(&Action) -> bool| set.iter().rev().find(|action| which(action));
        let Some(output) = last(|action| matches!(action, Action::Output(_))) else { return };
        // `exit` ends the tables, not the packet.
        self.exit = false;
        let firsts = [
            last(|action| matches!(action, Action::StripVlan | Action::PopVlan)),
            last(|action| matches!(action, Action::PushVlan(_))),
            last(|action| matches!(action, Action::DecTtl(_))),
        ];
        let is_first = |action: &Action| {
            matches!(action, Action::StripVlan | Action::PopVlan | Action::PushVlan(_) | Action::DecTtl(_))
        };
        let changes = set.iter().filter(|action| !is_first(action) && !matches!(action, Action::Output(_)));
        for action in firsts.into_iter().flatten().chain(changes).chain([output]) {
            if self.is_over() || !self.run_action(action) {
                return;
            }
        }
    }
}
