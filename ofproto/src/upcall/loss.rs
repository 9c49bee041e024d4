//! Which ports' upcalls are lost, and how many come: looked at once a second while upcalls come, by whichever handler is there.

use std::collections::HashMap;

use dpif::OdpPort;
use parking_lot::Mutex;

use crate::backer::Backer;

/// Between two looks.
const INTERVAL_MS: u64 = 1_000;

/// Upcalls of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortUpcalls {
    /// The port's name.
    pub name: String,
    /// Its number in the datapath.
    pub port: u32,
    /// Upcalls queued so far.
    pub upcalls: u64,
    /// Upcalls lost so far.
    pub lost: u64,
    /// Upcalls queued per second, over the last interval that was looked at.
    pub rate: u64,
    /// Upcalls lost per second, likewise.
    pub lost_rate: u64,
}

/// What was seen at the last look.
#[derive(Default)]
pub(crate) struct LossWatch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked_ms: u64,
    ports: HashMap<OdpPort, PortUpcalls>,
    /// Lost by port and handler, as far as the datapath knows.
    lost: HashMap<(OdpPort, u32), u64>,
}

impl LossWatch {
    /// Looks at all ports if it is time to, and reports new losses.
    pub(crate) fn look(&self, backer: &Backer) {
        look(backer, backer.clock.now_ms());
    }

    /// The ports, by number.
    pub(crate) fn ports(&self) -> Vec<PortUpcalls> {
        let mut ports: Vec<_> = self.state.lock().ports.values().cloned().collect();
        ports.sort_by_key(|port| port.port);
        ports
    }
}

/// Looks at all ports if it is time to, and reports new losses.
pub(super) fn look(backer: &Backer, now: u64) {
    // Who comes while another looks has nothing to look at.
    let Some(mut state) = backer.losses.state.try_lock() else { return };
    let elapsed = now.saturating_sub(state.looked_ms);
    if elapsed < INTERVAL_MS {
        return;
    }
    let first = state.looked_ms == 0;
    state.looked_ms = now;
    let config = backer.config();
    let mut ports = HashMap::new();
    for port in config.bridges.values().flat_map(|bridge| bridge.ports.values()) {
        let Some(odp) = port.odp else { continue };
        let Ok(stats) = backer.dpif.port_stats(odp) else { continue };
        let before = state.ports.get(&odp).map_or((0, 0), |before| (before.upcalls, before.lost));
        let per_second = |now: u64, before: u64| now.saturating_sub(before) * 1000 / elapsed;
        let mut seen = PortUpcalls {
            name: port.name.clone(),
            port: odp.0,
            upcalls: stats.upcalls,
            lost: stats.upcall_lost,
            rate: per_second(stats.upcalls, before.0),
            lost_rate: per_second(stats.upcall_lost, before.1),
        };
        if first {
            // What came before is of no known time.
            (seen.rate, seen.lost_rate) = (0, 0);
        }
        ports.insert(odp, seen);
    }
    state.ports = ports;
    let mut lost = Vec::new();
    for (odp, handler, n) in backer.dpif.upcalls_lost() {
        let before = state.lost.insert((odp, handler), n).unwrap_or(0);
        if n > before && !first {
            lost.push((odp, handler, n - before));
        }
    }
    for (odp, handler, n) in lost {
        coverage::add!("upcall_lost", n);
        let Some(before) = backer.warnings.lost.allow(now) else { continue };
        let (datapath, name) = (backer.dpif.name(), state.ports.get(&odp).map_or("?", |port| &port.name));
        tracing::warn!(
            "{datapath}: lost {n} packets of port {name} ({odp}) on handler {handler} ({before} more reports before)"
        );
    }
}
