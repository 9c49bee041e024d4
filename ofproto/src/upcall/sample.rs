//! Upcalls for the exporters: sampled packets, with the flow, the tunnel and the actions that they were sampled in.

use std::sync::Arc;

use dpif::odp::{Cookie, CookieKind};
use dpif::{Action, OdpPort, Upcall};
use openflow::OfPort;

use super::ukey::MaskedWords;
use crate::backer::Backer;
use crate::export::{Direction, Sample, SampleKind};

/// Gives a sampled packet to the exporter, if there is one.
pub(super) fn export(backer: &Backer, upcall: &Upcall, cookie: &Cookie, words: &mut MaskedWords) {
    let sinks = backer.sinks();
    let Some(exporter) = &sinks.exporter else { return };
    let Some(kind) = kind(&cookie.kind) else { return };
    let config = backer.config();
    // A cookie that was written by hand names no bridge.
    let named = config.bridges.values().find(|bridge| bridge.id() == cookie.bridge);
    let Some(bridge) = named.or_else(|| config.port_of(OdpPort(upcall.key.in_port)).map(|(bridge, _)| bridge)) else {
        coverage::inc!("sample_no_bridge");
        return;
    };
    exporter.export(&Sample {
        kind,
        bridge: &bridge.name,
        in_port: OfPort(cookie.in_port as u16),
        packet: &upcall.packet,
        key: &upcall.key,
        egress_tunnel: upcall.egress_tunnel.as_deref(),
        actions: upcall.actions.clone().or_else(|| actions_of_flow(backer, upcall, words)),
    });
}

/// The actions of the flow that a packet with the upcall's key finds in the datapath, as far as we know it.
fn actions_of_flow(backer: &Backer, upcall: &Upcall, words: &mut MaskedWords) -> Option<Arc<[Action]>> {
    backer.census.masks_of(upcall.key.in_port).iter().find_map(|mask| {
        words.set(&upcall.key, mask);
        let ukey = backer.ukeys.get(backer.ukeys.ufid(words)).filter(|ukey| ukey.flow.is(words))?;
        let state = ukey.state.lock();
        state.phase().is_in_use().then(|| Arc::clone(&state.actions))
    })
}

fn kind(kind: &CookieKind) -> Option<SampleKind> {
    let port = |port: u32| Some(OdpPort(port)).filter(|port| *port != OdpPort::NONE);
    Some(match *kind {
        CookieKind::SFlow { vlan_tci, output } => SampleKind::SFlow { vlan_tci, output },
        CookieKind::Ipfix { output_port } => SampleKind::Ipfix { output_port: port(output_port) },
        CookieKind::FlowSample {
            probability,
            collector_set_id,
            obs_domain_id,
            obs_point_id,
            output_port,
            direction,
        } => SampleKind::Flow {
            probability,
            collector_set_id,
            obs_domain_id,
            obs_point_id,
            output_port: port(output_port),
            direction: match direction {
                1 => Some(Direction::Ingress),
                2 => Some(Direction::Egress),
                _ => None,
            },
        },
        CookieKind::SlowPath(_) | CookieKind::Controller { .. } => return None,
    })
}
