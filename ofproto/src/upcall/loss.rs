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
    /// Lost by port and handler; no handler for those of which the datapath doesn't know whose they would have been.
    lost: HashMap<(OdpPort, Option<u32>), u64>,
}

impl State {
    /// What was lost since the last time, from what the ports count now and what was known of handlers a little later.
    fn grown(
        &mut self,
        ports: HashMap<OdpPort, PortUpcalls>,
        by_handler: Vec<(OdpPort, u32, u64)>,
    ) -> Vec<(OdpPort, Option<u32>, u64)> {
        let before = std::mem::replace(&mut self.ports, ports);
        // A number whose counter has gone back is another port's now.
        let is_new = |odp: &OdpPort| match (before.get(odp), self.ports.get(odp)) {
            (Some(before), Some(now)) => now.lost < before.lost,
            (Some(_), None) => !by_handler.iter().any(|(lost, ..)| lost == odp),
            (None, _) => false,
        };
        self.lost.retain(|(odp, _), _| !is_new(odp));
        let mut unexplained: HashMap<_, _> = self.ports.iter().map(|(odp, port)| (*odp, port.lost)).collect();
        for (odp, _, n) in &by_handler {
            unexplained.entry(*odp).and_modify(|left| *left = left.saturating_sub(*n));
        }
        let known = by_handler.into_iter().map(|(odp, handler, n)| (odp, Some(handler), n));
        let all = known.chain(unexplained.into_iter().map(|(odp, n)| (odp, None, n)));
        let more = all.filter_map(|(odp, handler, n)| {
            let before = self.lost.entry((odp, handler)).or_default();
            if handler.is_some() && n < *before {
                *before = 0;
            }
            let more = n.saturating_sub(*before);
            *before = n.max(*before);
            (more > 0).then_some((odp, handler, more))
        });
        more.collect()
    }
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
    let ports: Vec<_> = config
        .bridges
        .values()
        .flat_map(|bridge| bridge.ports.values())
        .map(|port| (port.odp, port.name.clone()))
        .collect();
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
    let mut lost = state.grown(ports, backer.dpif.upcalls_lost());
    if first {
        lost.clear();
    }
    for (odp, handler, n) in lost {
        coverage::add!("upcall_lost", n);
        let Some(before) = backer.warnings.lost.allow(now_ms) else { continue };
        let (datapath, name) = (backer.dpif.name(), state.ports.get(&odp).map_or("?", |port| &port.name));
        let whose = handler.map_or_else(String::new, |handler| format!(" on handler {handler}"));
        tracing::warn!("{datapath}: lost {n} packets of port {name} ({odp}){whose} ({before} more reports before)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_handler_accounts_for_is_told_once() {
        let mut state = State::default();
        let mut grown = |lost: u64, by_handler: &[u64]| {
            let port = PortUpcalls { name: "v1".into(), port: 1, upcalls: 0, lost, rate: 0, lost_rate: 0 };
            let ports = HashMap::from([(OdpPort(1), port)]);
            let known = (0..).zip(by_handler).map(|(handler, n)| (OdpPort(1), handler, *n)).collect();
            let mut grown: Vec<_> = state.grown(ports, known).into_iter().map(|(_, handler, n)| (handler, n)).collect();
            grown.sort_unstable();
            grown
        };
        assert_eq!(grown(7, &[3, 4]), [(Some(0), 3), (Some(1), 4)]);
        assert_eq!(grown(12, &[3, 5]), [(None, 4), (Some(1), 1)]);
        // Four more were lost between the two looks.
        assert_eq!(grown(12, &[7, 5]), [(Some(0), 4)]);
        assert_eq!(grown(16, &[7, 5]), []);
        assert_eq!(grown(17, &[7, 5]), [(None, 1)]);
        // Another port has the number.
        assert_eq!(grown(3, &[1, 0]), [(None, 2), (Some(0), 1)]);
        assert_eq!(grown(4, &[2, 0]), [(Some(0), 1)]);
    }
}
