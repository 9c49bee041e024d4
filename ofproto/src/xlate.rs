//! Translation: what would the tables do with this packet, and which of its bits did they look at?
//!
//! [`translate`] walks a packet's fields through the tables of the bridge that it came in by, over patch ports through those of
//! other bridges, and gives a list of datapath actions and a mask. Any packet that agrees with this one under the mask would
//! have been walked in the same way: *that is the promise on which the datapath's flows rest*. It is kept by three rules:
//!
//! - Who reads a field un-wildcards it, whatever it is read for: a match, a move, a decision.
//! - Who writes a field un-wildcards the bits written, because what the datapath has to do about it depends on whether they
//!   change.
//! - Nothing else may decide: not the packet's payload, not the time. The configuration and the learned addresses may, because
//!   each change of them makes all translations be repeated.
//!
//! Actions are composed late. Translation keeps two flows, the packet as the tables see it and as the datapath has it by now
//! (`base`); the differences are committed only before an output. So changes that nobody sees cost nothing, and a packet that
//! goes out of three ports in three shapes is led from one shape to the next.
//!
//! Translation itself changes nothing. What a packet should change (counters, learned addresses) is among its result, to be
//! done for each packet that takes this way, by a handler for the first and by a revalidator for those that the datapath counted.

use std::sync::Arc;

use datapath_common::FlowKey;
use dpif::odp::{Cookie, CookieKind};
use dpif::{Action, OdpPort, UserspaceAction};
use openflow::OfPort;

use crate::bridge::Config;
use crate::flow::Flow;
use crate::mac_learning::MacTable;
use crate::port::PatchStats;
use crate::protocol::Protocol;
use crate::recirc::{Inherited, Recirc};
use crate::rule::Rule;
use crate::table::TableStats;

mod action_set;
mod actions;
mod commit;
mod context;
mod controller;
mod freeze;
mod normal;
mod output;
mod special;
mod support;

use context::Context;
pub(crate) use controller::EXPLICIT_MISS;
pub(crate) use support::{fits, forget_unsayable};

/// How deep resubmissions to the same or an earlier table may go.
pub const MAX_DEPTH: u32 = 64;
/// How many table lookups one packet may have.
pub const MAX_RESUBMITS: u32 = 4096;
/// How long a list of actions may be before the packet is given up.
pub const MAX_ACTIONS: usize = 16384;

/// A translation.
#[derive(Clone, Debug)]
pub struct Xlate {
    /// What becomes of the packet, as datapath actions; nothing drops.
    pub odp_actions: Vec<Action>,
    /// Which bits of the datapath's key this depends on.
    pub mask: FlowKey,
    /// Why no datapath can run the actions as they are, if so: every packet has to come up then.
    pub slow: Option<String>,
    /// Why every packet has to come up ([`SlowPath`](dpif::odp::SlowPath) bits); 0: none has to.
    pub slow_path: u32,
    /// Where the packet came in, for the cookies of packets that come up.
    pub origin: Origin,
    /// Why the packet was given up, if it was; there are no actions then.
    pub error: Option<XlateError>,
    /// What each packet changes.
    pub effects: Vec<Effect>,
    /// The protocols that get the packet.
    pub taken: Vec<Taken>,
}

/// Where a packet came in.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The [id](crate::bridge::Bridge::id) of the bridge.
    pub bridge: u128,
    /// The port there.
    pub in_port: OfPort,
    /// The datapath's meter under which packets come up that userspace has to handle, if there is one.
    pub meter: Option<u32>,
    /// Whether the datapath has samples, which keep a meter from dropping the rest of a list.
    pub samples: bool,
}

/// A protocol takes a packet.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The protocol.
    pub protocol: Arc<dyn Protocol>,
    /// The bridge on which it is spoken.
    pub bridge: Arc<str>,
    /// The port by which the packet came in there.
    pub port: OfPort,
}

/// Something that each packet of a translation changes.
#[derive(Clone, Debug)]
pub enum Effect {
    /// It matches a rule: the rule and its table count it.
    Rule {
        /// The rule.
        rule: Arc<Rule>,
        /// The counters of the bridge's tables.
        tables: Arc<TableStats>,
        /// The table.
        table: u8,
    },
    /// It matches no rule of a table, which counts that.
    TableMiss {
        /// The counters of the bridge's tables.
        tables: Arc<TableStats>,
        /// The table.
        table: u8,
    },
    /// Its source address is learned.
    Learn {
        /// The table.
        macs: Arc<MacTable>,
        /// The VLAN.
        vlan: u16,
        /// The station.
        mac: [u8; 6],
        /// Where it is.
        port: OfPort,
    },
    /// It leaves through a patch port.
    PatchSent(Arc<PatchStats>),
    /// It enters through a patch port.
    PatchReceived(Arc<PatchStats>),
    /// Nothing; what is left to do after a recirculation is kept as long as the flow that leads there, or comes from there.
    Hold(Arc<Recirc>),
    /// Nothing; a recirculation id of an earlier process is kept from being given out, for a flow that carries it.
    Inherit(Arc<Inherited>),
}

/// Why a packet was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XlateError {
    /// Tables resubmit to each other without end.
    #[error("more than {MAX_DEPTH} nested resubmissions")]
    TooDeep,
    /// Too many lookups for one packet.
    #[error("more than {MAX_RESUBMITS} resubmissions")]
    TooManyResubmits,
    /// A third VLAN tag.
    #[error("a packet can't have more than two VLAN tags pushed")]
    TooManyVlans,
    /// The list of actions grew too long.
    #[error("more than {MAX_ACTIONS} datapath actions")]
    TooManyActions,
    /// The packet comes back from a recirculation of which nothing is known (any more).
    #[error("no recirculation context")]
    NoRecirculationContext,
    /// The packet should recirculate, and the datapath can't.
    #[error("the datapath has no recirculation")]
    NoRecirculation,
    /// A field that no datapath can write.
    #[error("SCTP ports can't be written")]
    SctpPorts,
}

/// Translates a packet with the datapath's key `key`. `None`: its port belongs to no bridge.
pub fn translate(config: &Config, key: &FlowKey) -> Option<Xlate> {
    translate_into(config, key, Vec::new())
}

/// Translates anew for packets of a flow, of which nothing is known but the bits in its mask: all others are 0 in `key`.
///
/// The mask of the translation is within the flow's if nothing has changed, as a packet's own translation would have it: where
/// several things tell that a rule doesn't match, and which one a lookup takes hangs on bits that are not known, it takes one that
/// the flow has looked at.
pub fn translate_again(config: &Config, key: &FlowKey, mask: &FlowKey) -> Option<Xlate> {
    let first = translate(config, key)?;
    if mask.covers(&first.mask) {
        return Some(first);
    }
    coverage::inc!("revalidate_preferring");
    translate_with(config, key, Vec::new(), Some(&Flow::of_mask(mask)))
}

/// As [`translate`]; `actions`, an empty list, gives its memory for the actions.
pub(crate) fn translate_into(config: &Config, key: &FlowKey, actions: Vec<Action>) -> Option<Xlate> {
    translate_with(config, key, actions, None)
}

fn translate_with(config: &Config, key: &FlowKey, actions: Vec<Action>, prefer: Option<&Flow>) -> Option<Xlate> {
    let (bridge, port) = config.port_of(OdpPort(key.in_port))?;
    coverage::inc!("xlate_actions");
    if key.recirc_id == 0 {
        let packet = Flow::from_key(key, port.number);
        let mut context = Context::new(config, bridge, &packet, actions);
        context.prefer(prefer);
        context.run();
        return Some(context.finish());
    }
    let found = config.recirc.get(key.recirc_id);
    let Some((recirc, bridge)) = found.and_then(|recirc| {
        let bridge = config.bridges.get(&*recirc.state().bridge)?;
        Some((recirc, bridge))
    }) else {
        let packet = Flow::from_key(key, port.number);
        let mut context = Context::new(config, bridge, &packet, actions);
        context.give_up(XlateError::NoRecirculationContext);
        return Some(context.finish());
    };
    let packet = Flow::from_key(key, recirc.state().in_port);
    let mut context = Context::new(config, bridge, &packet, actions);
    context.prefer(prefer);
    context.thaw(recirc);
    Some(context.finish())
}

impl Xlate {
    /// The actions of a datapath flow: the translation's, or sending the packet up where no datapath can run these.
    pub fn flow_actions(&self) -> Vec<Action> {
        match self.slow_path {
            0 => self.odp_actions.clone(),
            reasons => self.slow_path_actions(reasons),
        }
    }

    /// The actions of a datapath flow whose packets all come up for these reasons ([`SlowPath`](dpif::odp::SlowPath) bits).
    pub fn slow_path_actions(&self, reasons: u32) -> Vec<Action> {
        let Origin { bridge, in_port, meter, samples } = self.origin;
        let cookie = Cookie { in_port: in_port.0.into(), bridge, kind: CookieKind::SlowPath(reasons) }.encode();
        let up = Action::Userspace(UserspaceAction { cookie, ..Default::default() });
        match meter {
            // Nothing else is in the list that the meter could drop.
            Some(id) if !samples => vec![Action::Meter(id), up],
            meter => vec![controller::metered(up, meter)],
        }
    }

    /// Lets each effect happen for `packets` packets, the last at `used_ms`. Says whether later translations may differ from
    /// this one because of it.
    pub fn apply_effects(effects: &[Effect], packets: u64, bytes: u64, used_ms: u64) -> bool {
        let mut changed = false;
        for effect in effects {
            match effect {
                Effect::Rule { rule, tables, table } => {
                    rule.stats.add(packets, bytes, used_ms);
                    tables.matched(*table, packets);
                }
                Effect::TableMiss { tables, table } => tables.missed(*table, packets),
                Effect::Learn { macs, vlan, mac, port } => changed |= macs.learn(*vlan, *mac, *port, used_ms),
                Effect::PatchSent(stats) => stats.sent(packets, bytes),
                Effect::PatchReceived(stats) => stats.received(packets, bytes),
                Effect::Hold(_) | Effect::Inherit(_) => {}
            }
        }
        changed
    }
}
