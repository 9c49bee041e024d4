//! Datapaths: `dpctl/show`, `dpctl/dump-dps`, `dpif/show`.

use std::fmt::Write;
use std::sync::Arc;

use dpif::{DpStats, PortInfo, PortKind, PortStats, ProgramState, SlotStats, UpcallStats, XdpState};
use serde_json::{Value, json};

use super::options::{Options, find};
use super::say;
use crate::switch::shared::Shared;
use crate::unixctl::{Format, Registry, Reply, Request};

pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) {
    for name in ["dpctl/dump-dps", "dpif/dump-dps"] {
        let all = Arc::clone(shared);
        registry.register_any(name, "", 0, 0, move |request| Ok(dump_dps(&all, request)));
    }
    let all = Arc::clone(shared);
    registry.register_any("dpctl/show", "[-s] [DP...]", 0, usize::MAX, move |request| show(&all, request));
    let all = Arc::clone(shared);
    registry.register("dpif/show", "", 0, 0, move |_| all.switches().iter().map(|switch| dpif_show(switch)).collect());
}

fn dump_dps(shared: &Shared, request: Request<'_>) -> Reply {
    let names: Vec<String> = shared.switches().iter().map(|switch| switch.dpif_name()).collect();
    match request.format {
        Format::Json => Reply::Json(json!(names)),
        Format::Text => Reply::Text(names.iter().map(|name| format!("{name}\n")).collect()),
    }
}

fn show(shared: &Shared, request: Request<'_>) -> Result<Reply, String> {
    let options = Options::read(request.args)?;
    let switches = match options.rest.as_slice() {
        [] => shared.switches(),
        names => names.iter().map(|name| find(shared, name)).collect::<Result<_, _>>()?,
    };
    match request.format {
        Format::Text => {
            switches.iter().map(|switch| text(switch, options.statistics)).collect::<Result<_, _>>().map(Reply::Text)
        }
        Format::Json => switches.iter().map(|switch| value(switch)).collect::<Result<_, _>>().map(Reply::Json),
    }
}

fn text(switch: &ofproto::Switch, statistics: bool) -> Result<String, String> {
    let dpif = switch.dpif();
    let stats = dpif.stats().map_err(say)?;
    let DpStats { hit, missed, lost, flows, masks, mask_hit, cache_hit, .. } = stats;
    let lookups = hit + missed;
    let share = |n: u64| if lookups == 0 { 0.0 } else { n as f64 / lookups as f64 };
    let mut out = format!(
        "{}:\n  lookups: hit:{hit} missed:{missed} lost:{lost}\n  flows: {flows}\n  \
         masks: hit:{mask_hit} total:{masks} hit/pkt:{:.2}\n",
        switch.dpif_name(),
        share(mask_hit)
    );
    // The userspace datapath has no cache in front of its table.
    if dpif.engine() != "userspace" {
        let _ = writeln!(out, "  cache: hit:{cache_hit} hit-rate:{:.2}%", share(cache_hit) * 100.0);
    }
    out.push_str(&super::datapaths::caches(switch));
    out.push_str(&more(&stats));
    if let Some(program) = dpif.program() {
        out.push_str(&running(&program));
    }
    for port in dpif.ports().map_err(say)? {
        let _ = writeln!(out, "  port {}: {}{}{}", port.port, port.name, remark(&port), xdp(dpif.port_xdp(port.port)));
        if statistics {
            match dpif.port_stats(port.port) {
                Ok(stats) => out.push_str(&port_statistics(&stats)),
                Err(error) => {
                    let _ = writeln!(out, "    could not retrieve stats ({error})");
                }
            }
        }
    }
    Ok(out)
}

/// What the field's lines don't say, as far as the engine counts it.
fn more(stats: &DpStats) -> String {
    let mut out = String::new();
    if let Some(UpcallStats { misses, actions, lost_misses, lost_actions, discarded }) = stats.upcalls {
        let _ = writeln!(
            out,
            "  upcalls: misses:{misses} lost:{lost_misses} actions:{actions} lost:{lost_actions} discarded:{discarded} \
             recirculated lookups:{}",
            stats.recirculated
        );
    }
    if let Some(SlotStats { used, resting }) = stats.slots {
        let _ = writeln!(out, "  slots: used:{used} resting:{resting}");
    }
    out
}

/// Which program runs, and why.
fn running(program: &ProgramState) -> String {
    let ProgramState { serves, why, swaps, refused } = program;
    let name = match serves.as_deref() {
        None => "general".into(),
        Some([]) => "specialised in forwarding".into(),
        Some(serves) => format!("specialised in {}", serves.join(",")),
    };
    format!("  program: {name} ({why}) swaps:{swaps} refused:{refused}\n")
}

/// What stands behind a port's name.
fn remark(port: &PortInfo) -> String {
    let kind = match port.kind {
        PortKind::System => String::new(),
        PortKind::Internal => " (internal)".into(),
        PortKind::Tunnel(tunnel) => {
            let options: String = tunnel.options().iter().map(|option| format!("{option}, ")).collect();
            format!(" ({}: {options}packet_type=ptap)", port.kind)
        }
    };
    match &port.error {
        Some(error) => format!("{kind} (error: {error})"),
        None => kind,
    }
}

/// That the XDP hook meets a port's frames, if it does.
fn xdp(state: dpif::Result<XdpState>) -> String {
    match state {
        Ok(state @ (XdpState::Native | XdpState::Generic)) => format!(" (xdp: {state})"),
        Ok(XdpState::Off(_)) | Err(_) => String::new(),
    }
}

/// A port's statistics in the field's five lines; what isn't counted is a question mark there.
fn port_statistics(stats: &PortStats) -> String {
    let PortStats { rx_packets, rx_bytes, tx_packets, tx_bytes, rx_dropped, tx_dropped, .. } = stats;
    format!(
        "    RX packets:{rx_packets} errors:? dropped:{rx_dropped} overruns:? frame:?\n    \
         TX packets:{tx_packets} errors:? dropped:{tx_dropped} aborted:? carrier:?\n    collisions:?\n    \
         RX bytes:{rx_bytes}{}  TX bytes:{tx_bytes}{}\n",
        human(*rx_bytes),
        human(*tx_bytes)
    )
}

/// Bytes in the largest fitting binary unit, in parentheses; nothing below one KiB.
fn human(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(shift, _)| bytes >= 1 << shift);
    unit.map_or_else(String::new, |(shift, unit)| format!(" ({:.1} {unit})", bytes as f64 / (1u64 << shift) as f64))
}

fn value(switch: &ofproto::Switch) -> Result<Value, String> {
    let dpif = switch.dpif();
    let stats = dpif.stats().map_err(say)?;
    let port = |port: PortInfo| {
        let mac = port.mac.map(|byte| format!("{byte:02x}")).join(":");
        let stats = dpif.port_stats(port.port).map(|stats| port_value(&stats)).unwrap_or(Value::Null);
        json!({
            "port": port.port.0, "name": port.name, "type": port.kind.to_string(), "mtu": port.mtu, "mac": mac,
            "xdp": dpif.port_xdp(port.port).ok().map(|state| state.to_string()),
            "error": port.error, "statistics": stats,
        })
    };
    Ok(json!({
        "name": switch.dpif_name(),
        "engine": dpif.engine(),
        "lookups": {"hit": stats.hit, "missed": stats.missed, "lost": stats.lost},
        "flows": stats.flows,
        "max-flows": stats.max_flows,
        "masks": {"hit": stats.mask_hit, "total": stats.masks},
        "cache": {"hit": stats.cache_hit},
        "recirculated-lookups": stats.recirculated,
        "upcalls": stats.upcalls.map(|upcalls| json!({
            "misses": upcalls.misses, "misses-lost": upcalls.lost_misses,
            "actions": upcalls.actions, "actions-lost": upcalls.lost_actions,
            "discarded": upcalls.discarded,
        })),
        "slots": stats.slots.map(|slots| json!({"used": slots.used, "resting": slots.resting})),
        "program": dpif.program().map(|program| json!({
            "specialised-in": program.serves, "why": program.why,
            "swaps": program.swaps, "refused": program.refused,
        })),
        "ports": dpif.ports().map_err(say)?.into_iter().map(port).collect::<Vec<_>>(),
    }))
}

fn port_value(stats: &PortStats) -> Value {
    json!({
        "rx-packets": stats.rx_packets, "rx-bytes": stats.rx_bytes, "rx-dropped": stats.rx_dropped,
        "tx-packets": stats.tx_packets, "tx-bytes": stats.tx_bytes, "tx-dropped": stats.tx_dropped,
        "upcalls": stats.upcalls, "upcalls-lost": stats.upcall_lost,
    })
}

/// `dpif/show`, with an error behind each port that is out of work.
fn dpif_show(switch: &ofproto::Switch) -> Result<String, String> {
    let text = switch.dpif_show().map_err(say)?;
    let ports = switch.dpif().ports().map_err(say)?;
    let with_error = |line: &str| {
        let name = line.strip_prefix("    ").and_then(|line| line.split(' ').next());
        let port = name.and_then(|name| ports.iter().find(|port| port.name == name));
        match port.and_then(|port| port.error.as_ref()) {
            Some(error) => format!("{line} (error: {error})\n"),
            None => format!("{line}\n"),
        }
    };
    Ok(text.lines().map(with_error).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_the_largest_unit_that_fits() {
        for (bytes, text) in
            [(0, ""), (1023, ""), (1024, " (1.0 KiB)"), (1536 << 10, " (1.5 MiB)"), (1 << 41, " (2.0 TiB)")]
        {
            assert_eq!(human(bytes), text);
        }
    }
}
