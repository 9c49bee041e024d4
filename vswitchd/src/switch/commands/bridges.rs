//! Bridges and what they learned.

use std::sync::Arc;

use super::say;
use crate::switch::shared::Shared;
use crate::unixctl::Registry;

pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) {
    type Command = fn(&Shared, Option<&str>) -> Result<String, String>;
    for (name, usage, min_args, max_args, command) in [
        ("fdb/show", "BRIDGE", 1, 1, fdb_show as Command),
        ("fdb/flush", "[BRIDGE]", 0, 1, fdb_flush),
        ("bridge/dump-flows", "BRIDGE", 1, 1, dump_flows),
        ("ofproto/list", "", 0, 0, list),
    ] {
        let all = Arc::clone(shared);
        registry.register(name, usage, min_args, max_args, move |args| command(&all, args.first().map(String::as_str)));
    }
}

/// The switch that the bridge in the argument is on.
fn of_bridge<'a>(shared: &Shared, bridge: Option<&'a str>) -> Result<(Arc<ofproto::Switch>, &'a str), String> {
    let bridge = bridge.unwrap_or_default();
    shared.of_bridge(bridge).map(|switch| (switch, bridge)).ok_or_else(|| "no such bridge".into())
}

fn fdb_show(shared: &Shared, bridge: Option<&str>) -> Result<String, String> {
    let (switch, bridge) = of_bridge(shared, bridge)?;
    switch.fdb_show(bridge).map_err(say)
}

fn fdb_flush(shared: &Shared, bridge: Option<&str>) -> Result<String, String> {
    match bridge {
        Some(_) => {
            let (switch, bridge) = of_bridge(shared, bridge)?;
            switch.fdb_flush(Some(bridge)).map_err(say)?;
        }
        None => shared.switches().iter().try_for_each(|switch| switch.fdb_flush(None)).map_err(say)?,
    }
    Ok("table successfully flushed".into())
}

fn dump_flows(shared: &Shared, bridge: Option<&str>) -> Result<String, String> {
    let bridge = bridge.unwrap_or_default();
    shared.of_bridge(bridge).ok_or("Unknown bridge")?.dump_flows(bridge).map_err(say)
}

fn list(shared: &Shared, _: Option<&str>) -> Result<String, String> {
    let bridges = shared.switches().into_iter().flat_map(|switch| switch.bridges());
    Ok(bridges.map(|name| format!("{name}\n")).collect())
}
