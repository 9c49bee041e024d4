//! The control commands about bridges and datapaths, in the field's words.
//!
//! `dpctl/…` is about datapaths as such; the rest about bridges, what they learned, and the upcall engine between both.

mod bridges;
mod conntrack;
pub(crate) mod ct_match;
mod datapaths;
mod drops;
mod filter;
mod flow_files;
mod flows;
mod options;
mod show;
mod upcalls;

use std::sync::Arc;

use super::shared::Shared;
use crate::unixctl::Registry;

/// Registers all of them.
pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) {
    show::register(registry, shared);
    datapaths::register(registry, shared);
    conntrack::register(registry, shared);
    flows::register(registry, shared);
    flow_files::register(registry, shared);
    drops::register(registry, shared);
    bridges::register(registry, shared);
    upcalls::register(registry, shared);
    *shared.dpctl_commands.write() = registry.usages("dpctl/");
}

/// An error of many layers as a command's one line.
fn say(error: impl std::error::Error + 'static) -> String {
    crate::reconcile::one_line(&error)
}
