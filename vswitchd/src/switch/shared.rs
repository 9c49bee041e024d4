//! What the control commands, on their thread, share with the switch on the main thread.

use std::sync::Arc;

use parking_lot::RwLock;

use super::backer::Backer;

/// The datapaths in use, in the order in which they were opened.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) backers: RwLock<Vec<Backer>>,
}

impl Shared {
    /// The switches, to be asked without holding the lock: a question may take its time.
    pub(super) fn switches(&self) -> Vec<Arc<ofproto::Switch>> {
        self.backers.read().iter().map(|backer| Arc::clone(&backer.switch)).collect()
    }

    /// The switch that a bridge is on.
    pub(super) fn of_bridge(&self, bridge: &str) -> Option<Arc<ofproto::Switch>> {
        self.switches().into_iter().find(|switch| switch.bridges().iter().any(|name| name == bridge))
    }
}
