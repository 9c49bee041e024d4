//! Making the switch what it should be, whole or not at all.
//!
//! The [`Reconciler`] knows what the switch is, because it made every change itself. Asked for another state it first
//! lets the switch check it, then walks the [`plan`]; where a step fails it goes the plan
//! back to where it started and reports the step. So a configuration with a mistake in it leaves the switch as it
//! was, and what did not change forwards on throughout.

use std::error::Error;
use std::fmt;

use crate::config::DesiredState;
use crate::plan::{Change, plan};
use crate::unixctl::Registry;

/// An error of a switch. Its text is one line; its sources are appended to it.
pub type SwitchError = Box<dyn Error + Send + Sync>;

/// What the daemon runs: bridges on datapaths. Made without touching the system; the first change may.
pub trait Switch {
    /// Registers the switch's control commands. Called once, before anything else. Commands run on the control
    /// socket's thread, so they work on what they share with the switch.
    fn register_commands(&mut self, registry: &Registry);

    /// Finds what is wrong with a state beyond the rules of [`validate`](crate::config::validate()), without changing
    /// anything: above all it parses the flow files.
    ///
    /// # Errors
    /// The first thing that is wrong.
    fn check(&self, desired: &DesiredState) -> Result<(), SwitchError>;

    /// Makes one change, or leaves everything as it was.
    ///
    /// # Errors
    /// Why the change can't be made.
    fn apply(&mut self, change: &Change) -> Result<(), SwitchError>;

    /// Begins to work as it was told: the changes since the last call are complete. What is in the system from an
    /// earlier process and belongs to the state was adopted, the rest goes now.
    ///
    /// # Errors
    /// Why it can't work.
    fn settle(&mut self) -> Result<(), SwitchError> {
        Ok(())
    }

    /// Leaves what was begun since the last [`settle`](Switch::settle) and not asked for any more, as it was found.
    fn give_up(&mut self) {}

    /// Does what has to be done from time to time on the main thread. Called about once a second, with milliseconds
    /// of a monotonic clock.
    fn run(&mut self, now_ms: u64) {
        let _ = now_ms;
    }

    /// What takes memory, by name and number, for `memory/show`.
    fn memory_usage(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// Ends. With `cleanup` nothing of the switch stays in the system; without, established flows go on.
    ///
    /// # Errors
    /// What could not be cleaned up.
    fn shutdown(&mut self, cleanup: bool) -> Result<(), SwitchError>;
}

/// Why the switch isn't what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReconcileError {
    /// The switch refuses the state; nothing was changed.
    #[error("{}", one_line(.0.as_ref()))]
    Refused(SwitchError),
    /// A step failed; the switch is as it was before.
    #[error("cannot {change}: {}", one_line(.error.as_ref()))]
    Failed {
        /// The step.
        change: String,
        /// Why.
        error: SwitchError,
    },
    /// A step failed, and so did the way back: the switch is somewhere between.
    #[error("cannot {change}: {}; then cannot {undo}: {}", one_line(.error.as_ref()), one_line(.undo_error.as_ref()))]
    Stuck {
        /// The step.
        change: String,
        /// Why.
        error: SwitchError,
        /// The first step back that failed.
        undo: String,
        /// Why.
        undo_error: SwitchError,
    },
}

/// The keeper of what the switch is.
#[derive(Debug, Default)]
pub struct Reconciler {
    current: DesiredState,
}

impl Reconciler {
    /// A switch without bridges.
    pub fn new() -> Reconciler {
        Reconciler::default()
    }

    /// What the switch is.
    pub fn current(&self) -> &DesiredState {
        &self.current
    }

    /// Makes `switch` what is desired. Returns how many changes that took.
    ///
    /// # Errors
    /// [`ReconcileError`] says what of it failed and where the switch is then.
    pub fn reconcile(&mut self, switch: &mut dyn Switch, desired: &DesiredState) -> Result<usize, ReconcileError> {
        switch.check(desired).map_err(ReconcileError::Refused)?;
        let changes = plan(&self.current, desired);
        let before = self.current.clone();
        for change in &changes {
            if let Err(error) = self.step(switch, change) {
                return Err(self.undo(switch, &before, change.to_string(), error));
            }
        }
        if let Err(error) = switch.settle() {
            return Err(self.undo(switch, &before, "start the switch".into(), error));
        }
        // The order of what is the same may differ.
        self.current = desired.clone();
        Ok(changes.len())
    }

    fn step(&mut self, switch: &mut dyn Switch, change: &Change) -> Result<(), SwitchError> {
        tracing::debug!("{change}");
        switch.apply(change)?;
        // It fits, because the plan was made from the current state.
        Ok(change.apply_to(&mut self.current)?)
    }

    fn undo(
        &mut self,
        switch: &mut dyn Switch,
        before: &DesiredState,
        change: String,
        error: SwitchError,
    ) -> ReconcileError {
        let mut stuck = None;
        for undo in plan(&self.current, before) {
            // A step back that fails doesn't stop the others: as much as possible returns.
            if let Err(undo_error) = self.step(switch, &undo) {
                tracing::error!("cannot {undo}: {}", one_line(undo_error.as_ref()));
                stuck.get_or_insert((undo.to_string(), undo_error));
            }
        }
        switch.give_up();
        match stuck {
            None => ReconcileError::Failed { change, error },
            Some((undo, undo_error)) => ReconcileError::Stuck { change, error, undo, undo_error },
        }
    }
}

/// An error with its sources in one line.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut text = OneLine(error.to_string());
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        // Some errors tell their source themselves.
        if !text.0.contains(&more) {
            text.0 = format!("{}: {more}", text.0);
        }
        source = error.source();
    }
    text.to_string()
}

struct OneLine(String);

impl fmt::Display for OneLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = self.0.lines().map(str::trim).filter(|line| !line.is_empty());
        f.write_str(lines.next().unwrap_or_default())?;
        lines.try_for_each(|line| write!(f, "; {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Parts;

    /// A switch that records what it is told and fails where it should.
    #[derive(Default)]
    struct Recorder {
        done: Vec<String>,
        fail: Vec<&'static str>,
        refuse: bool,
    }

    impl Switch for Recorder {
        fn register_commands(&mut self, _: &Registry) {}

        fn check(&self, _: &DesiredState) -> Result<(), SwitchError> {
            if self.refuse { Err("br0.flows:3:5: expected a field".into()) } else { Ok(()) }
        }

        fn apply(&mut self, change: &Change) -> Result<(), SwitchError> {
            let text = change.to_string();
            if self.fail.contains(&text.as_str()) {
                return Err("no such device".into());
            }
            self.done.push(text);
            Ok(())
        }

        fn shutdown(&mut self, _: bool) -> Result<(), SwitchError> {
            Ok(())
        }
    }

    fn state(bridges: &[&str], ports: &[&str]) -> DesiredState {
        let parts = Parts {
            bridges: bridges.iter().map(|text| text.parse().unwrap()).collect(),
            ports: ports.iter().map(|text| text.parse().unwrap()).collect(),
            ..Parts::default()
        };
        parts.build().unwrap()
    }

    #[test]
    fn a_second_run_of_the_same_state_does_nothing() {
        let (mut switch, mut reconciler) = (Recorder::default(), Reconciler::new());
        let desired = state(&["br0"], &["br0:a", "br0:b"]);
        assert_eq!(reconciler.reconcile(&mut switch, &desired).unwrap(), 3);
        assert_eq!(reconciler.reconcile(&mut switch, &desired).unwrap(), 0);
        assert_eq!(reconciler.current(), &desired);
    }

    #[test]
    fn a_step_that_fails_takes_the_others_back() {
        let (mut switch, mut reconciler) = (Recorder::default(), Reconciler::new());
        let before = state(&["br0"], &["br0:a"]);
        reconciler.reconcile(&mut switch, &before).unwrap();
        switch.done.clear();
        switch.fail = vec!["add port missing to bridge br1"];
        let desired = state(&["br0", "br1"], &["br1:b", "br1:missing"]);
        let error = reconciler.reconcile(&mut switch, &desired).unwrap_err();
        assert_eq!(error.to_string(), "cannot add port missing to bridge br1: no such device");
        assert_eq!(
            switch.done,
            [
                "remove port a from bridge br0",
                "add bridge br1 (ebpf)",
                "add port b to bridge br1",
                "remove port b from bridge br1",
                "remove bridge br1",
                "add port a to bridge br0",
            ]
        );
        assert_eq!(reconciler.current(), &before);
    }

    #[test]
    fn a_way_back_that_fails_is_told_and_the_rest_returns() {
        let (mut switch, mut reconciler) = (Recorder::default(), Reconciler::new());
        reconciler.reconcile(&mut switch, &state(&["br0"], &["br0:a", "br0:b"])).unwrap();
        switch.fail = vec!["add port x to bridge br0", "add port a to bridge br0"];
        let error = reconciler.reconcile(&mut switch, &state(&["br0"], &["br0:x"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot add port x to bridge br0: no such device; then cannot add port a to bridge br0: no such device"
        );
        // What the keeper believes is what the switch did.
        assert_eq!(reconciler.current(), &state(&["br0"], &["br0:b"]));
    }

    #[test]
    fn a_state_that_the_switch_refuses_changes_nothing() {
        let (mut switch, mut reconciler) = (Recorder { refuse: true, ..Recorder::default() }, Reconciler::new());
        let error = reconciler.reconcile(&mut switch, &state(&["br0"], &[])).unwrap_err();
        assert_eq!(error.to_string(), "br0.flows:3:5: expected a field");
        assert!(switch.done.is_empty());
        assert_eq!(reconciler.current(), &DesiredState::default());
    }

    #[test]
    fn an_error_of_many_lines_is_told_in_one() {
        let error: SwitchError = "the verifier rejected the program:\n  R1 invalid\n\n  at 5\n".into();
        assert_eq!(one_line(error.as_ref()), "the verifier rejected the program:; R1 invalid; at 5");
        let io = std::io::Error::other("outer");
        assert_eq!(one_line(&io), "outer");
    }
}
