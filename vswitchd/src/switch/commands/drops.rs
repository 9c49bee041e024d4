//! `datapath/drops`: packets that a datapath dropped, by reason.

use std::sync::Arc;

use serde_json::{Value, json};

use super::say;
use crate::switch::shared::Shared;
use crate::unixctl::{Format, Registry, Reply, Request};

pub(super) fn register(registry: &Registry, shared: &Arc<Shared>) {
    let all = Arc::clone(shared);
    registry.register_any("datapath/drops", "", 0, 0, move |request| drops(&all, request));
}

fn drops(shared: &Shared, request: Request<'_>) -> Result<Reply, String> {
    let mut text = String::new();
    let mut values = Vec::new();
    for switch in shared.switches() {
        let drops = switch.dpif().stats().map_err(say)?.drops;
        let name = switch.dpif_name();
        text.push_str(&format!("{name}:\n"));
        text.extend(drops.iter().map(|(reason, packets)| format!("  {reason}: {packets}\n")));
        let reasons: serde_json::Map<String, Value> = drops.iter().map(|(r, n)| ((*r).into(), json!(n))).collect();
        values.push(json!({"name": name, "drops": reasons}));
    }
    Ok(match request.format {
        Format::Text => Reply::Text(text),
        Format::Json => Reply::Json(values.into()),
    })
}
