//! What happens to the ports' devices behind the datapath's back.
//!
//! The module lets go of a device that is deleted or moved away, and says so. One that is renamed it keeps, under the new name; for
//! the switch the port that it asked for is gone then, so it is taken out. Either way the port stays in the list, with an error,
//! until it is removed: its number means nothing else as long as somebody may believe in it.
//!
//! What the kernel says comes late: between a notification and its being read, a number may have got and lost other ports. So
//! notifications only say which ports to look at; what has happened to them is the difference between what the kernel has now and
//! what was known here.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd as _, OwnedFd};

use dpif::{DpifError, OdpPort, PortEvent, PortInfo, PortKind, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use crate::error;
use crate::kernel::Kernel;
use crate::message::Messages;
use crate::socket::{MAX_DATAGRAM, Socket};
use crate::uapi::cmd;
use crate::vport::{self, VportInfo, Which};

/// `RTMGRP_LINK`: changes of devices.
const LINK_GROUP: u32 = 1;
/// Where more ports have changed, the kernel is asked for all of them at once.
const ONE_BY_ONE: usize = 16;

/// What has become of a device whose port the kernel has no more.
const DELETED: &str = "was deleted or taken out of the datapath";

/// The ports as they were seen last, and the ears for what changes them.
pub(crate) struct Devices {
    vports: Socket,
    links: OwnedFd,
    buffer: Vec<u8>,
    /// Names and kinds by number.
    known: BTreeMap<OdpPort, (String, PortKind)>,
    /// Ports whose device is gone and which nobody has removed yet.
    gone: BTreeMap<OdpPort, PortInfo>,
    /// The kernel could not be asked the last time.
    look_again: bool,
    /// Losses found out in between, which nobody has been told of yet.
    untold: Vec<PortEvent>,
}

impl Devices {
    /// Listens from now on. `group`: the multicast group of vports.
    pub(crate) fn listen(group: u32) -> Result<Self> {
        let vports = Socket::new().and_then(|socket| socket.join(group).map(|()| socket));
        let vports = vports.map_err(|error| error::io(error, || "can't listen for changes of ports".into()))?;
        let links = links().map_err(|errno| error::of(errno, || "can't listen for changes of devices".into()))?;
        let (known, gone) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { vports, links, buffer: vec![0; MAX_DATAGRAM], known, gone, look_again: false, untold: Vec::new() })
    }

    /// A port is there.
    pub(crate) fn added(&mut self, info: &VportInfo) {
        self.gone.remove(&info.port);
        self.forget_untold(info.port);
        self.known.insert(info.port, (info.name.clone(), info.kind.kind()));
    }

    /// Whether there is such a port, as far as is known.
    pub(crate) fn knows(&self, port: OdpPort) -> bool {
        self.known.contains_key(&port)
    }

    /// The port of this name, as far as is known.
    pub(crate) fn known_as(&self, name: &str) -> Option<OdpPort> {
        self.known.iter().find(|(_, (known, _))| known == name).map(|(port, _)| *port)
    }

    /// A port was deleted.
    pub(crate) fn removed(&mut self, port: OdpPort) {
        self.known.remove(&port);
    }

    /// Whether a number that the kernel has given to a new port is still that of another one here, whose loss is noted then.
    pub(crate) fn was_lost(&mut self, port: OdpPort) -> bool {
        let Some(known) = self.known.remove(&port) else { return false };
        let lost = self.lost(port, known, DELETED);
        self.untold.push(lost);
        true
    }

    /// Removes a port whose device is gone; whether it was one.
    pub(crate) fn remove_gone(&mut self, port: OdpPort) -> bool {
        self.forget_untold(port);
        self.gone.remove(&port).is_some()
    }

    /// Nobody needs to be told of a port any more.
    fn forget_untold(&mut self, port: OdpPort) {
        self.untold.retain(|event| !matches!(event, PortEvent::Detached(of, _) if *of == port));
    }

    /// Ports whose device is gone.
    pub(crate) fn gone(&self) -> impl Iterator<Item = &PortInfo> {
        self.gone.values()
    }

    /// A number for a new port that means nothing yet; `None` leaves the choice to the kernel.
    pub(crate) fn free_number(&self, taken: &[VportInfo]) -> Option<OdpPort> {
        if self.gone.is_empty() {
            return None;
        }
        let is_free = |port: &OdpPort| !self.gone.contains_key(port) && taken.iter().all(|info| info.port != *port);
        (1..u32::from(u16::MAX)).map(OdpPort).find(is_free)
    }

    /// What has happened since the last call. `forget` is told of ports that are out of work.
    pub(crate) fn events(&mut self, kernel: &Kernel, datapath: i32, forget: impl Fn(OdpPort)) -> Vec<PortEvent> {
        let mut all = self.links_changed() | std::mem::take(&mut self.look_again);
        let changed = self.changed_ports(datapath, &mut all);
        let mut events = std::mem::take(&mut self.untold);
        if all || changed.len() > ONE_BY_ONE {
            match kernel.vports(datapath) {
                Ok(vports) => events.extend(self.compare(kernel, datapath, vports, &changed)),
                Err(error) => {
                    tracing::warn!("can't see what has become of the ports: {error}");
                    self.look_again = true;
                }
            }
        } else {
            for port in changed {
                match kernel.vport_get(datapath, Which::Port(port)) {
                    Ok(info) => events.extend(self.is_there(kernel, datapath, info, true)),
                    Err(DpifError::NoSuchPort(_)) => events.extend(self.is_not_there(port)),
                    Err(error) => {
                        tracing::warn!("can't see what has become of port {port}: {error}");
                        self.look_again = true;
                    }
                }
            }
        }
        for event in &events {
            if let PortEvent::Detached(port, _) = event {
                forget(*port);
            }
        }
        events
    }

    /// The ports that the kernel has said something of. `missed`: it has said more than could be heard.
    fn changed_ports(&mut self, datapath: i32, missed: &mut bool) -> BTreeSet<OdpPort> {
        let mut changed = BTreeSet::new();
        loop {
            let bytes = match self.vports.receive(&mut self.buffer, false) {
                Ok(bytes) => bytes,
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    tracing::warn!("changes of ports were lost");
                    *missed = true;
                    continue;
                }
                Err(_) => return changed,
            };
            for message in Messages(bytes) {
                let Some((cmd::NEW | cmd::SET | cmd::DEL, ifindex, attrs)) = message.ovs() else { continue };
                changed.extend(vport::read(attrs).filter(|_| ifindex == datapath).map(|info| info.port));
            }
        }
    }

    /// What became of all ports, where these are the datapath's now.
    fn compare(
        &mut self,
        kernel: &Kernel,
        datapath: i32,
        vports: Vec<VportInfo>,
        changed: &BTreeSet<OdpPort>,
    ) -> Vec<PortEvent> {
        let mut missing: BTreeSet<OdpPort> = self.known.keys().copied().collect();
        let mut events = Vec::new();
        for info in vports {
            missing.remove(&info.port);
            let has_changed = changed.contains(&info.port);
            events.extend(self.is_there(kernel, datapath, info, has_changed));
        }
        // A list that was made while ports went may lack one that is there.
        missing.retain(|port| matches!(kernel.vport_get(datapath, Which::Port(*port)), Err(DpifError::NoSuchPort(_))));
        events.extend(missing.into_iter().filter_map(|port| self.is_not_there(port)));
        events
    }

    /// The datapath has such a port. Takes it out if it was renamed.
    fn is_there(&mut self, kernel: &Kernel, datapath: i32, info: VportInfo, has_changed: bool) -> Option<PortEvent> {
        let (port, kind) = (info.port, info.kind.kind());
        let (known, _) = self.known.entry(port).or_insert_with(|| (info.name.clone(), kind));
        if *known == info.name {
            return has_changed.then_some(PortEvent::Changed(port));
        }
        if let Err(error) = kernel.vport_del(datapath, port) {
            tracing::warn!("port {known}, which is {} now, stays in the datapath: {error}", info.name);
            return None;
        }
        let known = self.known.remove(&port)?;
        Some(self.lost(port, known, &format!("was renamed to {}", info.name)))
    }

    /// The datapath has no such port.
    fn is_not_there(&mut self, port: OdpPort) -> Option<PortEvent> {
        let known = self.known.remove(&port)?;
        Some(self.lost(port, known, DELETED))
    }

    fn lost(&mut self, port: OdpPort, (name, kind): (String, PortKind), what: &str) -> PortEvent {
        let error = format!("device {name} {what}");
        self.gone.insert(port, PortInfo { port, name, kind, mtu: 0, mac: [0; 6], error: Some(error.clone()) });
        PortEvent::Detached(port, error)
    }

    /// Whether the kernel has said anything of devices; what, is asked for.
    fn links_changed(&mut self) -> bool {
        let mut changed = false;
        loop {
            match recv(self.links.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::ENOBUFS) => changed = true,
                Err(Errno::EINTR) => {}
                Err(_) => return changed,
            }
        }
    }
}

fn links() -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkRoute,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINK_GROUP))?;
    Ok(socket)
}
