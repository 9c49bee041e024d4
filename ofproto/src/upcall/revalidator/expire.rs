//! Rules and learned addresses whose time is over.

use std::sync::Arc;

use crate::backer::Backer;

/// Lets them go.
pub(super) fn expire(backer: &Backer) {
    let now = backer.clock.now_ms();
    let config = backer.config();
    for (name, bridge) in &config.bridges {
        if bridge.macs.expire(now) {
            backer.learned();
        }
        if bridge.tables.has_expired(now) {
            // An error can't be: the change has none.
            let _ = backer.update(|config| {
                if let Some(bridge) = config.bridges.get_mut(name) {
                    let expired = Arc::make_mut(bridge).tables.expire(now);
                    coverage::inc!("rev_flow_table");
                    coverage::add!("ofproto_dpif_expired", expired as u64);
                }
                Ok::<_, std::convert::Infallible>(())
            });
        }
    }
}
