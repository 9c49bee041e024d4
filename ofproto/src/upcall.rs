//! The upcall engine (being built).
use crate::backer::Backer;
use std::sync::Arc;

/// What userspace knows of each megaflow.
#[derive(Default)]
pub(crate) struct UkeyTable;
/// State of a pass.
#[derive(Default)]
pub(crate) struct PassState;
/// The threads.
pub(crate) struct Engine;
impl Engine {
    pub(crate) fn start(_: &Arc<Backer>, _: u32) -> crate::switch::Result<Self> {
        Ok(Self)
    }
    pub(crate) fn stop(self, _: &Backer) {}
    pub(crate) fn drain(&self, _: &Backer) {}
}
pub(crate) fn revalidate(_: &Backer) {}
pub(crate) fn flush(backer: &Backer) -> dpif::Result<()> {
    backer.dpif.flow_flush()
}
/// Numbers of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Megaflows installed.
    pub current: usize,
    /// On average.
    pub average: usize,
    /// At most.
    pub max: usize,
    /// Allowed.
    pub limit: usize,
    /// Milliseconds that the last pass took.
    pub dump_ms: u64,
}
impl Summary {
    pub(crate) fn of(_: &Backer) -> Self {
        Self::default()
    }
}
