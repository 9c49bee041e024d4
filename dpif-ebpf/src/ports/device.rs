//! Taking a device over, and giving it back.
//!
//! A device that is a port hands every frame to the datapath, so it must receive every frame: promiscuous, and not joined by
//! large receive offload, which can't be undone at output. What is changed is noted in the port's record before it is
//! changed, and only that is changed back: a device that was promiscuous before stays so.

use std::io;

use datapath_common::maps::{PortRecord, SAVED_CLSACT, SAVED_LRO, SAVED_PROMISC, SAVED_RXVLAN};
use dpif::{DpifError, Result};

use crate::kernel::io_error;
use crate::ports::entry;
use crate::rtnl::{self, Link};
use crate::sys::device;

/// The device of a new system port, if it can be one.
pub(super) fn find(name: &str) -> Result<Link> {
    let failed = |error| io_error(format!("can't ask for device {name}"), error);
    let link = rtnl::by_name(name).map_err(failed)?.ok_or_else(|| DpifError::NoSuchDevice(name.to_owned()))?;
    if link.flags & libc::IFF_LOOPBACK as u32 != 0 {
        return Err(DpifError::Invalid(format!("{name} is a loopback device, which can't be a port")));
    }
    if link.hardware != libc::ARPHRD_ETHER {
        return Err(DpifError::Invalid(format!("{name} is no Ethernet device, so it can't be a port")));
    }
    if let Some(master) = link.master {
        let master = rtnl::by_index(master).ok().flatten().map_or_else(|| format!("device {master}"), |link| link.name);
        return Err(DpifError::Exists(format!("{name} is a port of {master} already; take it out there first")));
    }
    if entry::is_attached(name, link.index) {
        return Err(DpifError::Exists(format!(
            "{name} is attached to an eBPF datapath already; remove the port there first"
        )));
    }
    Ok(link)
}

/// What taking over will change: `SAVED_*`.
pub(super) fn to_change(link: &Link) -> u32 {
    let promiscuous = link.flags & libc::IFF_PROMISC as u32 != 0;
    let lro = device::flag(&link.name, device::FLAG_LRO).unwrap_or_else(|error| {
        tracing::debug!("{}: can't tell whether large receive offload is on: {error}", link.name);
        false
    });
    (if promiscuous { 0 } else { SAVED_PROMISC }) | (if lro { SAVED_LRO } else { 0 })
}

/// Changes the device.
pub(super) fn take_over(link: &Link, changes: u32) -> Result<()> {
    if changes & SAVED_PROMISC != 0 {
        rtnl::set_promiscuous(link.index, true)
            .map_err(|error| io_error(format!("can't make {} promiscuous", link.name), error))?;
    }
    if changes & SAVED_LRO != 0 {
        device::set_flag(&link.name, device::FLAG_LRO, false)
            .map_err(|error| io_error(format!("can't switch off large receive offload of {}", link.name), error))?;
    }
    Ok(())
}

/// Changes the device back, if it is still there. What fails is logged: a device half given back is better than a port that
/// can't be removed.
pub(super) fn give_back(record: &PortRecord) {
    if record.ifindex == 0 {
        return;
    }
    let link = match rtnl::by_index(record.ifindex) {
        Ok(Some(link)) => link,
        Ok(None) => return,
        Err(error) => return tracing::warn!("can't ask for device {}: {error}", record.ifindex),
    };
    let undo = |bit, what: &str, change: &dyn Fn() -> io::Result<()>| {
        if record.saved & bit != 0
            && let Err(error) = change()
        {
            tracing::warn!("{}: can't {what}: {error}", link.name);
        }
    };
    undo(SAVED_PROMISC, "end promiscuous mode", &|| rtnl::set_promiscuous(link.index, false));
    undo(SAVED_LRO, "switch large receive offload on again", &|| device::set_flag(&link.name, device::FLAG_LRO, true));
    undo(SAVED_RXVLAN, "switch receive VLAN offload on again", &|| {
        device::set_flag(&link.name, device::FLAG_RXVLAN, true)
    });
    undo(SAVED_CLSACT, "remove the clsact qdisc", &|| entry::remove_clsact(link.index));
}
