//! Caps on what one port may have of the datapath's table, and the alarm when one holds.
//!
//! Over a cap packets are executed, and no flow is installed for them: each comes up. So whoever makes flows or masks come
//! without end pays with the share of the upcalls that his port has, and nobody else's lookups get slower. What was refused for
//! want of a mask gets one when masks of least use are evicted ([`Census::make_room`](super::ukey::Census::make_room)).

use datapath_common::FlowKey;
use dpif::OdpPort;

use super::stats::{Counters, count};
use super::ukey::{Caps, Counted, Hints, Over, PortFlows};
use crate::backer::Backer;
use crate::xlate::Effect;

/// What a datapath port has of the megaflows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMegaflows {
    /// Its name; empty where it is on no bridge.
    pub name: String,
    /// The bridge that it is on; empty where it is on none.
    pub bridge: String,
    /// Its number in the datapath.
    pub port: u32,
    /// Megaflows that match on it.
    pub flows: usize,
    /// Masks that they have.
    pub masks: usize,
    /// Megaflows that it did not get because of a cap.
    pub refused: u64,
}

/// A place among a port's flows, unless there is none.
pub(super) fn enter(
    backer: &Backer,
    counters: &Counters,
    hints: &mut Hints,
    caps: Caps,
    port: u32,
    mask: &FlowKey,
    effects: &[Effect],
) -> Option<Counted> {
    match backer.census.enter(hints, port, mask, caps) {
        Ok(counted) => Some(counted),
        Err(over) => {
            refuse(backer, counters, port, over, effects);
            None
        }
    }
}

/// All ports that have or had megaflows.
pub(crate) fn ports(backer: &Backer) -> Vec<PortMegaflows> {
    let config = backer.config();
    let named = |PortFlows { port, flows, masks, refused }| {
        let at = config.port_of(OdpPort(port));
        let (bridge, name) = at.map_or((String::new(), String::new()), |(b, p)| (b.name.to_string(), p.name.clone()));
        PortMegaflows { name, bridge, port, flows, masks, refused }
    };
    backer.census.ports().into_iter().map(named).collect()
}

fn refuse(backer: &Backer, counters: &Counters, port: u32, over: Over, effects: &[Effect]) {
    match over {
        Over::PortFlows => {
            coverage::inc!("upcall_port_flow_limit_hit");
            count(&counters.port_flow_limit);
        }
        Over::PortMasks | Over::Masks | Over::Evicted => {
            coverage::inc!("upcall_mask_limit_hit");
            count(&counters.mask_limit);
        }
    }
    // That was said when the cap was met.
    if over == Over::Evicted {
        return;
    }
    let allowed = backer.warnings.caps.lock().entry(port).or_default().allow(backer.clock.now_ms());
    let Some(before) = allowed else { return };
    let PortFlows { flows, masks, .. } = backer.census.port(port);
    let all = backer.census.n_masks();
    let caps = backer.limits().caps;
    let config = backer.config();
    let what = match config.port_of(OdpPort(port)) {
        Some((bridge, named)) => format!("bridge {}: port {} ({port})", bridge.name, named.name),
        None => format!("datapath port {port}, which is on no bridge,"),
    };
    let limit = match over {
        Over::PortFlows => format!("as many flows as a port may have (port-flow-limit {})", caps.port_flows),
        Over::PortMasks => format!("as many masks as a port may have (port-mask-limit {})", caps.port_masks),
        Over::Masks | Over::Evicted => {
            format!("flows that need another mask, with {all} there already (mask-limit {})", caps.masks)
        }
    };
    let table = responsible(&config, effects).map_or_else(String::new, |(bridge, table, subtables)| {
        format!("; most masks come of table {table} of bridge {bridge}, whose rules have {subtables}")
    });
    tracing::warn!(
        "{what} has {limit}: its packets are executed without a flow (flows {flows}, masks {masks}{table}) \
         ({before} more before)"
    );
}

/// Of the tables that a packet has gone through, the one whose rules have the most masks.
fn responsible<'a>(config: &crate::bridge::Config, effects: &'a [Effect]) -> Option<(&'a str, u8, usize)> {
    let tables = effects.iter().filter_map(|effect| match effect {
        Effect::Rule { tables, table, .. } | Effect::TableMiss { tables, table } => Some((tables.bridge(), *table)),
        _ => None,
    });
    let with_masks = tables.filter_map(|(bridge, table)| {
        let rules = config.bridges.get(bridge)?.tables.table(table)?;
        Some((bridge, table, rules.n_subtables()))
    });
    with_masks.max_by_key(|(_, _, masks)| *masks)
}
