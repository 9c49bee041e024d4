//! Groups of ports that the XDP hook floods frames to.
//!
//! A flow that sends the same bytes to several ports names a group in its slot: the ports that it sends to and the one that its packets
//! come from. The hook gives the frame to all devices of the group but the one that it came in by, in one call (a device map, and
//! `BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS`), so a bridge with n ports needs one group, not n. A group can be used while each of
//! its devices sends frames that are redirected to it; until then, and as soon as one doesn't any more, its frames go on to the TC hook.
//!
//! Making a group usable waits for a grace period, so a thread of its own does that. The number of a group that no flow names any more
//! rests for a grace period too, since a program may have read it in a slot.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::maps::MapData;
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_DEVMAP;
use datapath_common::maps::{Group, MAX_GROUP_PORTS, MAX_GROUPS, MAX_PORTS, PORT_TAKES_XDP, PortEntry, name};
use datapath_common::{Op, OpKind};
use dpif::Result;
use parking_lot::Mutex;

use crate::background::Background;
use crate::grace::{Grace, Ticket};
use crate::kernel::{io_error, map_error};
use crate::maps::Maps;
use crate::mmap::Mapping;
use crate::sys::bpf;

/// How often it is looked whether a group can be used.
const LOOK: Duration = Duration::from_millis(250);

/// The groups of a datapath.
pub(crate) struct Groups {
    /// By group.
    info: Mapping<Group>,
    /// Their devices, by group.
    devices: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By number.
    groups: Vec<Members>,
    by_ports: HashMap<Box<[u16]>, usize, ahash::RandomState>,
    /// The ports as the programs see them.
    ports: HashMap<u32, PortEntry, ahash::RandomState>,
    /// Where the versions of the next group begin.
    versions: u64,
}

/// A group.
struct Members {
    /// Ascending.
    ports: Box<[u16]>,
    /// Flows that name it.
    flows: usize,
    /// Without flows: when no program names it any more.
    rests: Option<Ticket>,
    /// It may have become usable.
    changed: bool,
    /// Goes up with everything that makes it another group, or its devices others.
    version: u64,
}

/// A group that is to become usable, as it was when it was looked at.
struct Wanted {
    number: usize,
    version: u64,
    ports: Box<[u16]>,
    entries: Vec<PortEntry>,
}

impl State {
    /// The first group from `number` on that has changed and can be used. `number` is moved behind it.
    fn next_changed(&mut self, number: &mut usize) -> Option<Wanted> {
        while let Some(group) = self.groups.get_mut(*number) {
            let at = *number;
            *number += 1;
            if !std::mem::take(&mut group.changed) {
                continue;
            }
            let entry = |port: &u16| self.ports.get(&u32::from(*port)).copied().filter(is_sent_to);
            if let Some(entries) = group.ports.iter().map(entry).collect() {
                return Some(Wanted { number: at, version: group.version, ports: group.ports.clone(), entries });
            }
        }
        None
    }
}

impl Groups {
    /// No groups. Those of an earlier process can't be used any more.
    pub(crate) fn new(info: Mapping<Group>, devices: OwnedFd) -> Self {
        let groups = Self { info, devices, state: Mutex::default() };
        (0..MAX_GROUPS).for_each(|number| groups.publish(number, 0, 0));
        groups
    }

    /// Starts the thread that makes groups usable. It belongs into the namespace of the ports.
    pub(crate) fn start(maps: &Arc<Maps>, datapath: &str) -> std::io::Result<Background> {
        let (maps, datapath) = (Arc::clone(maps), datapath.to_owned());
        Background::start("dpif-ebpf-groups", move |stop| {
            let mut told = String::new();
            while stop.sleep(LOOK)? {
                let error = maps.groups.refresh().err().map(|error| error.to_string()).unwrap_or_default();
                if !error.is_empty() && error != told {
                    tracing::warn!("{datapath}: frames to several ports are left to the TC hook: {error}");
                }
                told = error;
            }
            Ok(())
        })
    }

    /// What to write into the slot of one flow more that runs these operations on packets of a port: the number of its group plus 1, or 0
    /// if it needs none or there are too many.
    pub(crate) fn acquire(&self, in_port: u32, in_port_mask: u32, ops: &[Op], grace: &Grace) -> u32 {
        let Some(ports) = ports_of(in_port, in_port_mask, ops) else { return 0 };
        let state = &mut *self.state.lock();
        if let Some(number) = state.by_ports.get(&ports).copied() {
            if let Some(group) = state.groups.get_mut(number) {
                group.flows += 1;
                group.rests = None;
            }
            return number as u32 + 1;
        }
        let version = state.versions;
        state.versions += 1 << 32;
        let new = Members { ports: ports.clone(), flows: 1, rests: None, changed: true, version };
        let rested = |group: &Members| group.rests.is_some_and(|ticket| grace.passed(ticket));
        let number = if state.groups.len() < MAX_GROUPS {
            state.groups.push(new);
            state.groups.len() - 1
        } else if let Some((number, old)) = state.groups.iter_mut().enumerate().find(|(_, group)| rested(group)) {
            self.publish(number, 0, 0);
            state.by_ports.remove(&old.ports);
            *old = new;
            number
        } else {
            coverage::inc!("dpif_ebpf_groups_full");
            return 0;
        };
        state.by_ports.insert(ports, number);
        number as u32 + 1
    }

    /// One flow less, which the lookup table doesn't have any more and in whose slot this stands.
    pub(crate) fn release(&self, group: u32, grace: &Grace) {
        let Some(number) = (group as usize).checked_sub(1) else { return };
        let mut state = self.state.lock();
        if let Some(group) = state.groups.get_mut(number) {
            group.flows = group.flows.saturating_sub(1);
            if group.flows == 0 {
                group.rests = Some(grace.ticket());
            }
        }
    }

    /// A port is going to be as this says. Groups that it is in are not used until they have been looked at again.
    pub(crate) fn port_changes(&self, number: u32, entry: &PortEntry) {
        let state = &mut *self.state.lock();
        let before = state.ports.insert(number, *entry);
        if before == Some(*entry) {
            return;
        }
        for (at, group) in state.groups.iter_mut().enumerate() {
            if group.ports.iter().any(|port| u32::from(*port) == number) {
                self.publish(at, 0, 0);
                group.changed = true;
                group.version += 1;
            }
        }
    }

    /// Makes those groups usable that can be used. The kernel takes its time for each, in which nobody is kept waiting.
    fn refresh(&self) -> Result<()> {
        let (mut number, mut result) = (0, Ok(()));
        loop {
            let Some(wanted) = self.state.lock().next_changed(&mut number) else { return result };
            let made = self.make(&wanted);
            let mut state = self.state.lock();
            let Some(group) = state.groups.get_mut(wanted.number) else { continue };
            match made {
                // What has changed since is made anew.
                _ if group.version != wanted.version => {}
                Ok(()) => {
                    let mtu = wanted.entries.iter().map(|entry| entry.mtu).min().unwrap_or_default();
                    self.publish(wanted.number, wanted.ports.len() as u32, mtu);
                }
                // The others have their turn before it has the next.
                Err(error) => {
                    group.changed = true;
                    result = Err(error);
                }
            }
        }
    }

    /// Gives the programs a group's devices; that they are there is not said yet.
    fn make(&self, wanted: &Wanted) -> Result<()> {
        let number = wanted.number;
        let devices = device_map(&wanted.entries)?;
        let fd = devices.fd().as_fd().as_raw_fd() as u32;
        bpf::map_update(self.devices.as_fd(), &(number as u32), &fd, 0)
            .map_err(|error| io_error(format!("can't write group {number} to {}", name::GROUPS), error))?;
        let mut info = Group { count: 0, mtu: 0, ports: [0; MAX_GROUP_PORTS] };
        info.ports.iter_mut().zip(&wanted.ports).for_each(|(to, from)| *to = *from);
        self.info.write(number, &info);
        Ok(())
    }

    /// Says how many ports a group has, and how much they can send; 0: it can't be used.
    fn publish(&self, number: usize, count: u32, mtu: u32) {
        if let Some(word) = self.info.word(number, 0) {
            word.store(u64::from(count) | u64::from(mtu) << 32, Ordering::Release);
        }
    }
}

fn is_sent_to(entry: &PortEntry) -> bool {
    entry.ifindex != 0 && entry.flags & PORT_TAKES_XDP != 0
}

/// A device map of these ports and no others: the kernel walks all of it.
fn device_map(entries: &[PortEntry]) -> Result<MapData> {
    const WHAT: &str = "can't make a group of devices";
    let map = aya_obj::Map::new_from_params(BPF_MAP_TYPE_DEVMAP as u32, 4, 8, entries.len() as u32, 0);
    let map = MapData::create(map, "group", None).map_err(|error| map_error(WHAT, error))?;
    for (at, entry) in (0u32..).zip(entries) {
        // The device, and no program to run there.
        let value = [entry.ifindex, u32::MAX];
        bpf::map_update(map.fd().as_fd(), &at, &value, 0).map_err(|error| io_error(WHAT, error))?;
    }
    Ok(map)
}

/// The ports of a flow's group, ascending. `None` if it needs none: its packets come from several ports, or what it does isn't sending the
/// packet as it is to several others.
fn ports_of(in_port: u32, in_port_mask: u32, ops: &[Op]) -> Option<Box<[u16]>> {
    let (last, _) = ops.split_last()?;
    let outputs = ops.len() > 1 && last.is_last() && ops.iter().all(|op| op.kind == OpKind::Output as u16);
    if !outputs || in_port_mask != u32::MAX || ops.len() >= MAX_GROUP_PORTS {
        return None;
    }
    let all = || ops.iter().map(|op| op.arg).chain([in_port]);
    if all().any(|port| port as usize >= MAX_PORTS) {
        return None;
    }
    let mut ports: Vec<u16> = all().map(|port| port as u16).collect();
    ports.sort_unstable();
    ports.dedup();
    // Twice to the same port, or back to where the packet came from, is what a group can't do.
    (ports.len() == ops.len() + 1).then(|| ports.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpif::program::compile;
    use dpif::{Action, OdpPort};

    fn of(in_port: u32, mask: u32, text: &str) -> Option<Vec<u16>> {
        let actions = dpif::odp::parse_actions(text, None).unwrap();
        ports_of(in_port, mask, &compile(&actions).unwrap()).map(Vec::from)
    }

    #[test]
    fn flows_of_all_ports_of_a_bridge_share_a_group() {
        for (in_port, text) in [(1, "2,3"), (2, "3,1"), (3, "1,2")] {
            assert_eq!(of(in_port, u32::MAX, text), Some(vec![1, 2, 3]));
        }
    }

    #[test]
    fn what_a_group_cannot_do_has_none() {
        for text in ["2", "", "2,2", "1,2", "2,push_vlan(vid=5,pcp=0),3", "trunc(64),2,3", "2,recirc(0x1)", "2,5000"] {
            assert_eq!(of(1, u32::MAX, text), None, "{text}");
        }
        assert_eq!(of(1, 0, "2,3"), None);
        assert_eq!(of(u32::MAX, u32::MAX, "2,3"), None);
        let many: Vec<Action> = (2..40).map(|port| Action::Output(OdpPort(port))).collect();
        assert_eq!(ports_of(1, u32::MAX, &compile(&many).unwrap()), None);
    }
}
