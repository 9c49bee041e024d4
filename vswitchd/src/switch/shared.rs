//! What the control commands, on their thread, share with the switch on the main thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::backer::Backer;
use crate::config::Options;

/// The datapaths in use, in the order in which they were opened.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) backers: RwLock<Vec<Backer>>,
    /// An operator wants flows for one packet's fields exactly, on datapaths to come too.
    pub(super) exact_flows: AtomicBool,
    /// An operator wants the revalidators to dump whole flows, on datapaths to come too.
    pub(super) whole_dumps: AtomicBool,
    /// The commands `dpctl/…` with their usage, for the one that lists them.
    pub(super) dpctl_commands: RwLock<Vec<(String, String)>>,
}

impl Shared {
    /// The switches, to be asked without holding the lock: a question may take its time.
    pub(super) fn switches(&self) -> Vec<Arc<ofproto::Switch>> {
        self.backers.read().iter().map(|backer| Arc::clone(&backer.switch)).collect()
    }

    /// The options of a switch: what is configured, and what an operator wants for a while.
    pub(super) fn switch_options(&self, options: &Options) -> ofproto::Options {
        ofproto::Options {
            n_handlers: threads(options.n_handlers),
            n_revalidators: threads(options.n_revalidators),
            flow_limit: options.flow_limit as usize,
            port_flow_limit: options.port_flow_limit as usize,
            port_mask_limit: options.port_mask_limit as usize,
            mask_limit: options.mask_limit as usize,
            max_idle_ms: options.max_idle.into(),
            max_revalidator_ms: options.max_revalidator.into(),
            min_revalidate_pps: options.min_revalidate_pps.into(),
            megaflows: !self.exact_flows.load(Ordering::SeqCst),
            schedule,
            ..ofproto::Options::default()
        }
    }

    /// The switch that a bridge is on.
    pub(super) fn of_bridge(&self, bridge: &str) -> Option<Arc<ofproto::Switch>> {
        self.switches().into_iter().find(|switch| switch.bridges().iter().any(|name| name == bridge))
    }
}

/// How a handler is scheduled.
fn schedule(lets_others_finish: bool) {
    match netdev::schedule::let_others_finish(lets_others_finish) {
        Ok(_) => coverage::inc!("handler_moderation"),
        Err(error) => tracing::debug!("a handler is scheduled as before: {error}"),
    }
}

/// A number of threads; 0 lets the switch choose, as none does.
fn threads(n: Option<u16>) -> Option<u32> {
    n.filter(|n| *n > 0).map(u32::from)
}
