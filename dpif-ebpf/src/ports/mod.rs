//! Datapath ports.
//!
//! A port is a number, a device, and a program on that device's ingress that knows the number. Adding one takes several steps
//! in several places, and a process may die between any two. So the first step writes a record (what the port is to be, and
//! what about the device will be changed) into pinned memory, and only the last one declares it ready:
//!
//! ```text
//! record "adding" → device made or taken over → PORTS entry → program attached and pinned → record "ready"
//! record "removing" → program detached → PORTS entry cleared → device given back or deleted → record cleared
//! ```
//!
//! Whoever opens the datapath next adopts the ports that are ready and whose device is still what it was, and undoes the rest.
//!
//! While it is a port a device can change: [`events`] watches, keeps MTUs in step, and detaches a port whose device was
//! deleted, renamed or moved away. Such a port stays listed with its error until it is removed.

pub(crate) mod device;
pub(crate) mod entry;
pub(crate) mod events;
mod image;
mod internal;
mod leftovers;
mod xdp;

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use datapath_common::maps::{
    Credit, MAX_HANDLERS, MAX_PORTS, PORT_TAKES_XDP, PortEntry, PortRecord, PortState, SAVED_CLSACT,
};
use dpif::{DpifError, OdpPort, PortEvent, PortInfo, PortKind, PortSpec, PortStats, Result, XdpMode, XdpState};
use parking_lot::Mutex;

use crate::kernel::io_error;
use crate::maps::Maps;
use crate::netns::Netns;
use crate::options::Options;
use crate::pins::{Hook, Pins};
use crate::rtnl::{self, Link};
use crate::sys::bpf;
use entry::{Attached, Entry};
pub(crate) use leftovers::give_back_left;

/// The first number that is given: 0 is the reference's own local port.
const FIRST: u32 = 1;
/// `PortRecord::kind`.
const SYSTEM: u32 = 0;
const INTERNAL: u32 = 1;

/// The ports of a datapath.
pub(crate) struct Ports {
    maps: Arc<Maps>,
    pins: Arc<Pins>,
    netns: Netns,
    options: Options,
    datapath: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ports: BTreeMap<u32, Port>,
    /// Where the search for a free number begins: numbers are not reused at once.
    next: u32,
    events: Vec<PortEvent>,
}

struct Port {
    name: String,
    kind: PortKind,
    record: PortRecord,
    mtu: u32,
    mac: [u8; 6],
    /// What meets its frames first.
    xdp: XdpState,
    error: Option<String>,
}

impl Ports {
    /// The ports of the datapath; those that an earlier process left are adopted or removed.
    pub(crate) fn open(maps: Arc<Maps>, pins: Arc<Pins>, options: &Options, datapath: &str) -> Result<Self> {
        let netns = Netns::current().map_err(|error| io_error("can't tell the network namespace", error))?;
        let state = Mutex::new(State { next: FIRST, ..State::default() });
        let ports = Self { maps, pins, netns, options: options.clone(), datapath: datapath.into(), state };
        if ports.maps.adopted {
            ports.adopt()?;
        }
        Ok(ports)
    }

    /// The namespace of the devices.
    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    fn adopt(&self) -> Result<()> {
        let state = &mut *self.state.lock();
        for number in 0..MAX_PORTS as u32 {
            let Some(record) = self.record(number) else { continue };
            if record.state == PortState::Free as u32 {
                continue;
            }
            match self.adoptable(number, &record)? {
                Ok(mut port) => {
                    if matches!(port.xdp, XdpState::Off(_)) && self.is_in_xdp(number, &port.record)? {
                        self.leave_xdp(number, &mut port)?;
                    }
                    // An MTU that nobody was there to see change.
                    if self.maps.port(number).is_some_and(|before| before.mtu != port.mtu) {
                        self.retry_xdp(number, &mut port)?;
                    }
                    self.set_entry(number, &port)?;
                    tracing::info!("{}: adopted port {number}, {}", self.datapath, port.name);
                    state.next = state.next.max(number + 1);
                    state.ports.insert(number, port);
                }
                Err(why) => {
                    tracing::info!("{}: removing port {number}, {}: {why}", self.datapath, text(&record.name));
                    self.tear_down(number, record)?;
                }
            }
        }
        for (number, hook) in self.pins.links()? {
            if !state.ports.contains_key(&number) {
                self.pins.remove_link(number, hook)?;
            }
        }
        Ok(())
    }

    /// The port of a record as it is now, or why it is none. An error if that can't be told: nothing is lost then, and who opens the
    /// datapath the next time asks again.
    fn adoptable(&self, number: u32, record: &PortRecord) -> Result<core::result::Result<Port, String>> {
        if record.state != PortState::Ready as u32 {
            return Ok(Err("it was being added or removed".into()));
        }
        if record.netns != self.netns.cookie() {
            return Ok(Err("its device is in another network namespace".into()));
        }
        let name = text(&record.name);
        let failed =
            |error| io_error(format!("can't look at port {number}, {name}, which an earlier process left"), error);
        let get = |index| rtnl::by_index(index).map_err(failed);
        let host = get(record.host_ifindex)?.filter(|link| link.name == name);
        let (Some(host), Some(inside)) = (host, get(record.ifindex)?) else {
            return Ok(Err("its device was deleted, renamed or moved".into()));
        };
        let attached = match Attached::from_number(record.attach) {
            Some(Attached::Tcx) => {
                let link = self.pins.link(number, Hook::Tcx)?;
                let info = link.map(|link| bpf::link_info(link.as_fd())).transpose().map_err(failed)?;
                info.is_some_and(|info| info.ifindex == inside.index)
            }
            Some(Attached::Clsact) => entry::is_attached_clsact(inside.index).map_err(failed)?,
            None => false,
        };
        if !attached {
            return Ok(Err("its program is not attached".into()));
        }
        let kind = if record.kind == INTERNAL { PortKind::Internal } else { PortKind::System };
        let xdp = self.adopted_xdp(number, record)?;
        Ok(Ok(Port { name, kind, record: *record, mtu: inside.mtu, mac: host.mac, xdp, error: None }))
    }

    /// Adds a port and says its number.
    pub(crate) fn add(&self, spec: &PortSpec) -> Result<OdpPort> {
        self.inside(|| {
            let state = &mut *self.state.lock();
            check_name(&spec.name)?;
            if let Some((number, port)) = state.ports.iter().find(|(_, port)| port.name == spec.name) {
                return Err(DpifError::Exists(match &port.error {
                    None => format!("{} is port {number} of datapath {} already", spec.name, self.datapath),
                    Some(error) => format!("{} is port {number} still, detached ({error}); remove it first", spec.name),
                }));
            }
            let number = number(state, spec.request)?;
            let mut port = match spec.kind {
                PortKind::System => self.add_system(number, &spec.name, state)?,
                PortKind::Internal => self.add_internal(number, &spec.name)?,
                PortKind::Tunnel(_) => {
                    return Err(DpifError::Unsupported(format!("a port of type {}", spec.kind), "ebpf".into()));
                }
            };
            match self.choose_xdp(number, &mut port, XdpMode::Auto) {
                Ok(chosen) => port.xdp = chosen,
                Err(error) => port = self.undone(number, port.record, Err(error))?,
            }
            state.ports.insert(number, port);
            state.next = if number + 1 < MAX_PORTS as u32 { number + 1 } else { FIRST };
            Ok(OdpPort(number))
        })
    }

    fn add_system(&self, number: u32, name: &str, state: &State) -> Result<Port> {
        let link = device::find(name)?;
        if let Some((other, _)) = state.ports.iter().find(|(_, p)| p.record.ifindex == link.index && p.error.is_none())
        {
            return Err(DpifError::Exists(format!("{name} belongs to port {other} of this datapath")));
        }
        let mut record = self.new_record(SYSTEM, name);
        (record.ifindex, record.host_ifindex) = (link.index, link.index);
        record.saved = device::to_change(&link);
        self.write_record(number, &record);
        let done =
            device::take_over(&link, record.saved).and_then(|()| self.attach(number, &mut record, &link, link.mac));
        self.undone(number, record, done)
    }

    fn add_internal(&self, number: u32, name: &str) -> Result<Port> {
        let peer = internal::peer_name(name);
        internal::check(name, &peer)?;
        let mut record = self.new_record(INTERNAL, name);
        record.peer = padded(&peer);
        self.write_record(number, &record);
        let done = internal::create(name, &peer).and_then(|(host, inside)| {
            (record.ifindex, record.host_ifindex) = (inside.index, host.index);
            self.write_record(number, &record);
            self.attach(number, &mut record, &inside, host.mac)
        });
        self.undone(number, record, done)
    }

    /// The result of an addition; one that failed is undone.
    fn undone(&self, number: u32, record: PortRecord, done: Result<Port>) -> Result<Port> {
        if done.is_err()
            && let Err(error) = self.tear_down(number, record)
        {
            tracing::warn!("{}: can't undo the addition of {}: {error}", self.datapath, text(&record.name));
        }
        done
    }

    /// The steps that all kinds of ports have in common.
    fn attach(&self, number: u32, record: &mut PortRecord, link: &Link, mac: [u8; 6]) -> Result<Port> {
        self.clear_stats(number);
        let entry = Entry::of_port(&self.pins, self.options.objects.as_deref(), number)?;
        let kind = if record.kind == INTERNAL { PortKind::Internal } else { PortKind::System };
        let xdp = XdpState::Off("not attached yet".into());
        let mut port = Port { name: text(&record.name), kind, record: *record, mtu: link.mtu, mac, xdp, error: None };
        self.set_entry(number, &port)?;

        let tcx =
            if entry::prefers_tcx(self.options.attach) { entry.attach_tcx(&link.name, link.index)? } else { None };
        if let Some(tcx) = tcx {
            self.pins.pin_link(number, Hook::Tcx, &tcx)?;
            record.attach = Attached::Tcx as u16;
        } else {
            // A filter has no owner: the record must name it before it is there.
            record.attach = Attached::Clsact as u16;
            record.saved |= SAVED_CLSACT;
            self.write_record(number, record);
            if !entry::add_clsact(&link.name, link.index)? {
                record.saved &= !SAVED_CLSACT;
                self.write_record(number, record);
            }
            entry.attach_clsact(&link.name, link.index)?;
        }
        record.state = PortState::Ready as u32;
        self.write_record(number, record);
        port.record = *record;
        Ok(port)
    }

    /// Removes a port; its device gets back the settings it had.
    pub(crate) fn del(&self, number: OdpPort) -> Result<()> {
        self.inside(|| {
            let state = &mut *self.state.lock();
            let port = state.ports.get(&number.0).ok_or(DpifError::NoSuchPort(number))?;
            self.tear_down(number.0, port.record)?;
            state.ports.remove(&number.0);
            Ok(())
        })
    }

    /// Removes all ports.
    pub(crate) fn del_all(&self) -> Result<()> {
        let numbers: Vec<u32> = self.state.lock().ports.keys().copied().collect();
        numbers.into_iter().try_for_each(|number| match self.del(OdpPort(number)) {
            Err(DpifError::NoSuchPort(_)) => Ok(()),
            result => result,
        })
    }

    /// Undoes all that a record speaks of, as far as it was done.
    fn tear_down(&self, number: u32, mut record: PortRecord) -> Result<()> {
        self.detach(number, &mut record)?;
        if record.kind == INTERNAL && self.is_here(&record) {
            internal::remove(&text(&record.name), &text(&record.peer), [record.host_ifindex, record.ifindex])?;
        }
        self.write_record(number, &PortRecord::default());
        Ok(())
    }

    /// Takes the program off the device and gives the device back. The record stays, to be cleared.
    fn detach(&self, number: u32, record: &mut PortRecord) -> Result<()> {
        record.state = PortState::Removing as u32;
        self.write_record(number, record);
        self.remove_xdp(number, record)?;
        self.pins.remove_link(number, Hook::Tcx)?;
        if record.attach == Attached::Clsact as u16
            && self.is_here(record)
            && let Err(error) = entry::detach_clsact(record.ifindex)
        {
            return Err(io_error(format!("can't detach the datapath from {}", text(&record.name)), error));
        }
        self.maps.set_port(number, &PortEntry::default())?;
        self.maps.set_device(number, 0)?;
        if record.kind == SYSTEM && self.is_here(record) {
            device::give_back(record);
        }
        record.saved = 0;
        Ok(())
    }

    /// Whether device numbers of the record are numbers of this namespace.
    fn is_here(&self, record: &PortRecord) -> bool {
        record.netns == self.netns.cookie()
    }

    /// All ports by number.
    pub(crate) fn list(&self) -> Vec<PortInfo> {
        let state = self.state.lock();
        let info = |(number, port): (&u32, &Port)| PortInfo {
            port: OdpPort(*number),
            name: port.name.clone(),
            kind: port.kind,
            mtu: port.mtu,
            mac: port.mac,
            error: port.error.clone(),
        };
        state.ports.iter().map(info).collect()
    }

    /// What has happened since the last call.
    pub(crate) fn take_events(&self) -> Vec<PortEvent> {
        std::mem::take(&mut self.state.lock().events)
    }

    /// Statistics of a port: the sum over the lanes.
    pub(crate) fn stats(&self, number: OdpPort) -> Result<PortStats> {
        if !self.state.lock().ports.contains_key(&number.0) {
            return Err(DpifError::NoSuchPort(number));
        }
        let mut sum = PortStats::default();
        for lane in 0..=self.maps.lanes {
            let Some(part) = self.maps.counters.port(lane, number.0) else { continue };
            sum.rx_packets += part.rx_packets;
            sum.rx_bytes += part.rx_bytes;
            sum.tx_packets += part.tx_packets;
            sum.tx_bytes += part.tx_bytes;
            sum.rx_dropped += part.rx_dropped;
            sum.tx_dropped += part.tx_dropped;
            sum.upcalls += part.upcalls;
            sum.upcall_lost += part.upcall_lost;
        }
        Ok(sum)
    }

    fn clear_stats(&self, number: u32) {
        for lane in 0..=self.maps.lanes {
            self.maps.counters.port_words(lane, number).iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        for handler in 0..MAX_HANDLERS {
            let index = handler * MAX_PORTS + number as usize;
            if let Some(word) = self.maps.credits.word(index, offset_of!(Credit, lost) / 8) {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn set_entry(&self, number: u32, port: &Port) -> Result<()> {
        let ifindex = port.record.ifindex;
        // The device first: a frame that goes there must find it.
        let takes = self.takes_xdp(number, ifindex, port);
        let flags = if takes { PORT_TAKES_XDP } else { 0 };
        self.maps.set_port(number, &PortEntry::new(ifindex, port.mtu, flags))
    }

    fn new_record(&self, kind: u32, name: &str) -> PortRecord {
        PortRecord {
            state: PortState::Adding as u32,
            kind,
            netns: self.netns.cookie(),
            name: padded(name),
            ..PortRecord::default()
        }
    }

    fn record(&self, number: u32) -> Option<PortRecord> {
        self.maps.records.read(number as usize)
    }

    /// Writes a record so that whatever part of it a reader finds after a sudden end is believed only with its state.
    fn write_record(&self, number: u32, record: &PortRecord) {
        let Some(state) = self.maps.records.word(number as usize, 0) else { return };
        let word = u64::from(record.state) | u64::from(record.kind) << 32;
        // A record that gets its first content has no state until the content is there; one that loses it has none before.
        if record.state == PortState::Free as u32 {
            state.store(word, Ordering::SeqCst);
        }
        let unpublished = PortRecord { state: state.load(Ordering::Relaxed) as u32, ..*record };
        self.maps.records.write(number as usize, &unpublished);
        state.store(word, Ordering::SeqCst);
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.netns.run(work).map_err(|error| io_error("can't enter the datapath's network namespace", error))?
    }
}

fn number(state: &State, request: Option<OdpPort>) -> Result<u32> {
    let free = |number: &u32| !state.ports.contains_key(number);
    let max = MAX_PORTS as u32;
    request
        .map(|port| port.0)
        .filter(|number| *number < max && free(number))
        .or_else(|| (state.next..max).chain(FIRST..state.next.min(max)).find(free))
        .ok_or_else(|| DpifError::Full(format!("the datapath has {} ports, as many as it takes", MAX_PORTS - 1)))
}

/// As the kernel's `dev_valid_name`.
fn check_name(name: &str) -> Result<()> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.chars().any(bad) {
        return Err(DpifError::Invalid(format!(
            "{name:?} is no name of a network device: 1 to 15 bytes without '/', ':' and blanks are"
        )));
    }
    Ok(())
}

fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    bytes
}

fn text(bytes: &[u8; 16]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(numbers: &[u32], next: u32) -> State {
        let port = || Port {
            name: String::new(),
            kind: PortKind::System,
            record: PortRecord::default(),
            mtu: 0,
            mac: [0; 6],
            xdp: XdpState::Native,
            error: None,
        };
        State { ports: numbers.iter().map(|n| (*n, port())).collect(), next, events: Vec::new() }
    }

    #[test]
    fn numbers_are_those_asked_for_or_the_next_ones() {
        for (used, next, request, expected) in [
            (&[][..], 1, None, 1),
            (&[1], 2, None, 2),
            (&[1], 2, Some(1), 2),
            (&[1], 2, Some(7), 7),
            (&[2], 2, None, 3),
            (&[4095], 4095, None, 1),
            (&[], 3, None, 3),
            (&[], 1, Some(4096), 1),
            (&[], 1, Some(0), 0),
        ] {
            assert_eq!(number(&state(used, next), request.map(OdpPort)).unwrap(), expected);
        }
        let all: Vec<u32> = (1..4096).collect();
        assert!(matches!(number(&state(&all, 1), None), Err(DpifError::Full(_))));
    }

    #[test]
    fn names_that_no_device_can_have_are_refused() {
        for name in ["", ".", "a/b", "a b", "a:b", "sixteen-letters-"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("eth0.100@x").is_ok());
    }
}
