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
    /// The ports, by number: their counts as they are now, their rates as last looked at (none before the second look).
    pub(crate) fn ports(&self, backer: &Backer) -> Vec<PortUpcalls> {
        look(backer, backer.clock.now_ms());
        let mut ports: Vec<_> = counted(backer).collect();
        let state = self.state.lock();
        for port in &mut ports {
            if let Some(seen) = state.ports.get(&OdpPort(port.port)) {
                (port.rate, port.lost_rate) = (seen.rate, seen.lost_rate);
            }
        }
        ports.sort_by_key(|port| port.port);
        ports
    }
}

/// What the datapath counts of the bridges' ports, without rates.
fn counted(backer: &Backer) -> impl Iterator<Item = PortUpcalls> {
    let config = backer.config();
    let ports: Vec<_> =
        config.bridges.values().flat_map(|bridge| bridge.ports.values()).map(|port| (port.odp, port.name.clone())).collect();
    ports.into_iter().filter_map(|(odp, name)| {
        let odp = odp?;
        let stats = backer.dpif.port_stats(odp).ok()?;
        let (upcalls, lost) = (stats.upcalls, stats.upcall_lost);
        Some(PortUpcalls { name, port: odp.0, upcalls, lost, rate: 0, lost_rate: 0 })
    })
}

/// Looks at all ports if it is time to, and reports new losses.
pub(super) fn look(backer: &Backer, now_ms: u64) {
    // Who comes while another looks has nothing to look at.
    let Some(mut state) = backer.losses.state.try_lock() else { return };
    let elapsed = now_ms.saturating_sub(state.looked_ms);
    if elapsed < INTERVAL_MS {
        return;
    }
    let first = state.looked_ms == 0;
    state.looked_ms = now_ms;
    let mut ports = HashMap::new();
    for mut port in counted(backer) {
        let odp = OdpPort(port.port);
        // What came before the first look is of no known time.
        if !first {
            let before = state.ports.get(&odp).map_or((0, 0), |before| (before.upcalls, before.lost));
            let per_second = |now: u64, before: u64| now.saturating_sub(before) * 1000 / elapsed;
            (port.rate, port.lost_rate) = (per_second(port.upcalls, before.0), per_second(port.lost, before.1));
        }
        ports.insert(odp, port);
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
        let Some(before) = backer.warnings.lost.allow(now_ms) else { continue };
        let (datapath, name) = (backer.dpif.name(), state.ports.get(&odp).map_or("?", |port| &port.name));
        tracing::warn!(
            "{datapath}: lost {n} packets of port {name} ({odp}) on handler {handler} ({before} more reports before)"
        );
    }
}
