//! Ports that another version of this program has left: what no link holds is given back here, before its folder goes.

use datapath_common::maps::PortRecord;

use super::{Attached, INTERNAL, SYSTEM, device, entry, internal, text};
use crate::netns::Netns;

/// Gives back what these records speak of, as far as its devices are in this network namespace. What fails is logged: the names and
/// devices may be in use by others by now, and the datapath can be had without them.
pub(crate) fn give_back_left(records: &[PortRecord]) {
    let netns = match Netns::current() {
        Ok(netns) => netns,
        Err(error) => return tracing::warn!("can't tell the network namespace: {error}"),
    };
    for record in records.iter().filter(|record| record.netns == netns.cookie()) {
        let name = text(&record.name);
        tracing::info!("giving back {name}, a port of the datapath of another version");
        if record.attach == Attached::Clsact as u16
            && let Err(error) = entry::detach_clsact(record.ifindex)
        {
            tracing::warn!("{name}: can't detach the datapath of another version: {error}");
        }
        if record.kind == SYSTEM {
            device::give_back(record);
        }
        if record.kind == INTERNAL {
            let indexes = [record.host_ifindex, record.ifindex];
            if let Err(error) = internal::remove(&name, &text(&record.peer), indexes) {
                tracing::warn!("{error}");
            }
        }
    }
}
