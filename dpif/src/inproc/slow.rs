//! The obvious flow table: a list, looked through from the beginning. What the real tables are compared with.

use datapath_common::FlowKey;

use crate::flow::Ufid;

/// A linear list of flows.
#[derive(Clone, Debug, Default)]
pub struct SlowTable {
    flows: Vec<(Ufid, FlowKey, FlowKey)>,
}

impl SlowTable {
    /// Adds a flow, or replaces the one with this id.
    pub fn put(&mut self, ufid: Ufid, key: &FlowKey, mask: &FlowKey) {
        self.del(ufid);
        self.flows.push((ufid, key.masked(mask), *mask));
    }

    /// Removes a flow.
    pub fn del(&mut self, ufid: Ufid) {
        self.flows.retain(|flow| flow.0 != ufid);
    }

    /// All flows that `packet` matches: of a table without overlaps at most one.
    pub fn matches(&self, packet: &FlowKey) -> Vec<Ufid> {
        self.flows.iter().filter(|(_, key, mask)| key.matches(mask, packet)).map(|flow| flow.0).collect()
    }
}
