//! Ports whose devices come and go.
//!
//! A device can be deleted, renamed or moved away while it is a port; the datapath then detaches it and says so. The port
//! stays on its bridge, out of work, so that flows that name it keep their meaning. When a device of its name is there
//! again, it goes back to work with the number that it had.
//!
//! So does a port that a change of the configuration takes away and brings back, above all on the way back from one that failed.

use std::collections::BTreeMap;

use dpif::{PortEvent, XdpMode};
use openflow::OfPort;

use super::{port_kind, port_vlan};
use crate::config::{PortConfig, PortKind};
use crate::reconcile::{SwitchError, one_line};

/// The ports as they were asked for, by name.
#[derive(Default)]
pub(super) struct Ports {
    asked: BTreeMap<String, Asked>,
    /// Numbers of ports that went, by bridge and name, since the configuration was last complete. The first that a port had.
    before: BTreeMap<(String, String), OfPort>,
}

struct Asked {
    bridge: String,
    port: PortConfig,
    /// Whether its device is gone, and the number that it had.
    lost: Option<OfPort>,
}

/// Adds a port as it is asked for.
pub(super) fn add(
    switch: &ofproto::Switch,
    bridge: &str,
    port: &PortConfig,
    number: Option<OfPort>,
) -> Result<OfPort, SwitchError> {
    let number = switch.port_add(bridge, &port.name, port_kind(port), port_vlan(&port.vlan), number)?;
    if let Err(error) = set_xdp(switch, &port.name, port.xdp) {
        switch.port_del(bridge, &port.name)?;
        return Err(error);
    }
    Ok(number)
}

/// Has the XDP hook of a port's device as it is asked for; without a word it stays as it is.
fn set_xdp(switch: &ofproto::Switch, name: &str, mode: Option<XdpMode>) -> Result<(), SwitchError> {
    let Some(mode) = mode else { return Ok(()) };
    let dpif = switch.dpif();
    let failed = |error: dpif::DpifError| SwitchError::from(format!("{name}: can't set xdp to {mode}: {error}"));
    let port = dpif.port_by_name(name).map_err(failed)?;
    let port = port.ok_or_else(|| SwitchError::from(format!("{name}: it is no port of the datapath")))?;
    dpif.port_set_xdp(port.port, mode).map(drop).map_err(failed)
}

impl Ports {
    /// A port is on a bridge, or was changed there.
    pub(super) fn added(&mut self, bridge: &str, port: &PortConfig) {
        let lost = self.asked.get(&port.name).and_then(|asked| asked.lost);
        self.asked.insert(port.name.clone(), Asked { bridge: bridge.into(), port: port.clone(), lost });
    }

    /// Changes a port's place in the XDP hook if something else is asked for than before. Whoever says nothing any more means `auto`.
    pub(super) fn change_xdp(&self, switch: &ofproto::Switch, port: &PortConfig) -> Result<(), SwitchError> {
        let before = self.asked.get(&port.name).and_then(|asked| asked.port.xdp);
        match port.xdp {
            same if same == before => Ok(()),
            mode => set_xdp(switch, &port.name, mode.or(Some(XdpMode::Auto))),
        }
    }

    /// A port is on its bridge no more, on which it had this number; none where it was lost.
    pub(super) fn removed(&mut self, bridge: &str, name: &str, number: Option<OfPort>) {
        let asked = self.asked.remove(name);
        if let Some(number) = number.or(asked.and_then(|asked| asked.lost)) {
            self.before.entry((bridge.into(), name.into())).or_insert(number);
        }
    }

    /// The number to ask for: the port's, or the one that it had if that is free.
    pub(super) fn number(&self, switch: &ofproto::Switch, bridge: &str, port: &PortConfig) -> Option<OfPort> {
        let free = |number: &&OfPort| {
            switch.port_names(bridge).is_ok_and(|ports| ports.values().all(|taken| taken != *number))
        };
        let before = || self.before.get(&(bridge.into(), port.name.clone())).filter(free).copied();
        port.ofport_request.map(OfPort).or_else(before)
    }

    /// The configuration is complete: what ports had before doesn't matter any more.
    pub(super) fn settled(&mut self) {
        self.before.clear();
    }

    /// Hears what happened to the devices of a datapath, and tries to get lost ports back to work.
    pub(super) fn run(&mut self, switch: &ofproto::Switch) {
        let dpif = switch.dpif();
        for event in dpif.port_events() {
            let PortEvent::Detached(number, why) = event else { continue };
            let ports = dpif.ports().unwrap_or_default();
            let name = ports.into_iter().find(|port| port.port == number).map_or_else(String::new, |port| port.name);
            tracing::warn!("{}: port {number}, {name}, is out of work: {why}", switch.dpif_name());
            if let Some(asked) = self.asked.get_mut(&name) {
                asked.lost = switch.port_number(&asked.bridge, &name);
            }
        }
        let bridges = switch.bridges();
        for (name, asked) in self.asked.iter_mut().filter(|(_, asked)| bridges.contains(&asked.bridge)) {
            if let Some(number) = asked.lost
                && asked.port.kind == PortKind::System
                && nix::net::if_::if_nametoindex(name.as_str()).is_ok()
            {
                match restore(switch, asked, number) {
                    Ok(()) => {
                        tracing::info!("{}: port {name} is back at work", switch.dpif_name());
                        asked.lost = None;
                    }
                    Err(error) => tracing::debug!("port {name} stays out of work: {}", one_line(error.as_ref())),
                }
            }
        }
    }
}

/// Puts a port back on its bridge with the number that it had.
fn restore(switch: &ofproto::Switch, asked: &Asked, number: OfPort) -> Result<(), SwitchError> {
    let (bridge, name) = (&asked.bridge, &asked.port.name);
    // An attempt that failed half-way has left it on no bridge.
    if switch.port_number(bridge, name).is_some() {
        switch.port_del(bridge, name)?;
    }
    add(switch, bridge, &asked.port, Some(number)).map(drop)
}
