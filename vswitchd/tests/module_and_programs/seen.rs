//! What was compared, and whether it was enough.

use std::collections::BTreeMap;

use crate::{Programs, actions, straight};

/// What was compared.
#[derive(Default, Debug)]
pub(crate) struct Seen {
    pub(crate) frames: usize,
    pub(crate) equal_keys: usize,
    pub(crate) refused: usize,
    pub(crate) chains: usize,
    pub(crate) flows: usize,
    pub(crate) outputs: usize,
    pub(crate) upcalls: usize,
    pub(crate) recirculated: usize,
    /// Keys of packets as they were before a tag was pushed or popped.
    pub(crate) stale: usize,
    pub(crate) actions: BTreeMap<&'static str, usize>,
    /// Frames that met a flow, by what the program that ran serves.
    pub(crate) programs: BTreeMap<String, usize>,
    /// Frames that the XDP hook has finished.
    pub(crate) in_xdp: usize,
    pub(crate) differ: Vec<String>,
}

impl Seen {
    pub(crate) fn print(&self) {
        let Self { frames, equal_keys, refused, chains, flows, outputs, upcalls, recirculated, stale, .. } = self;
        let Self { actions, programs, in_xdp, differ, .. } = self;
        println!(
            "{frames} frames: {equal_keys} keys equal, {refused} refused by both, {chains} broken chains; {flows} times met a flow: \
             {outputs} frames out, {upcalls} packets up, {recirculated} of them recirculated, {stale} with the key from before, \
             {in_xdp} finished in XDP; {} differ; actions: {actions:?}; flows by program: {programs:?}",
            differ.len()
        );
    }

    pub(crate) fn check(&self, which: Programs, old: bool) {
        assert!(self.differ.is_empty(), "{}", self.differ[..self.differ.len().min(10)].join("\n"));
        assert!(self.equal_keys >= 10_000 && self.flows >= 5_000, "{} keys, {} flows", self.equal_keys, self.flows);
        assert!(self.outputs > 5_000 && self.recirculated > 200, "{} out, {} again", self.outputs, self.recirculated);
        if which != Programs::Specialised {
            let least = if which == Programs::General { 100 } else { 50 };
            for name in actions::NAMES {
                assert!(self.actions.get(name).is_some_and(|n| *n > least), "{name}: {:?}", self.actions);
            }
        }
        if which == Programs::General {
            assert!(self.programs.keys().eq(["general"]) && self.recirculated > 1_000, "{self:?}");
        } else {
            for wanted in straight::WANTED {
                let program = format!("[{}]", straight::names(wanted).join(","));
                assert!(self.programs.get(&program).is_some_and(|n| *n > 100), "{program}: {:?}", self.programs);
            }
        }
        // To a veth the hook sends only where the kernel says which take frames, which it does since 6.3: before, it only drops.
        let least = match which {
            Programs::BehindXdp if old => 20,
            Programs::BehindXdp => 2_000,
            _ => 0,
        };
        assert!(self.in_xdp >= least, "{} finished in XDP", self.in_xdp);
    }
}
