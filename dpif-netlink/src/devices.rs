//! What happens to the ports' devices behind the datapath's back.
//!
//! The module lets go of a device that is deleted or moved away, and says so. One that is renamed it keeps, under the new name; for
//! the switch the port that it asked for is gone then, so it is taken out. Either way the port stays in the list, with an error,
//! until it is removed: its number means nothing else as long as somebody may believe in it.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};

use dpif::{OdpPort, PortEvent, PortInfo, PortKind, Result};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use crate::error;
use crate::kernel::Kernel;
use crate::message::Messages;
use crate::socket::{MAX_DATAGRAM, Socket};
use crate::uapi::cmd;
use crate::vport::{self, VportInfo};

/// `RTMGRP_LINK`: changes of devices.
const LINK_GROUP: u32 = 1;

/// The ports as they were seen last, and the ears for what changes them.
pub(crate) struct Devices {
    vports: Socket,
    links: OwnedFd,
    buffer: Vec<u8>,
    /// Names and kinds by number.
    known: BTreeMap<OdpPort, (String, PortKind)>,
    /// Ports whose device is gone and which nobody has removed yet.
    gone: BTreeMap<OdpPort, PortInfo>,
    /// Ports that were deleted here; nobody needs to be told.
    deleted: Vec<OdpPort>,
}

impl Devices {
    /// Listens from now on. `group`: the multicast group of vports.
    pub(crate) fn listen(group: u32) -> Result<Self> {
        let vports = Socket::new().and_then(|socket| socket.join(group).map(|()| socket));
        let vports = vports.map_err(|error| error::io(error, || "can't listen for changes of ports".into()))?;
        let links = links().map_err(|errno| error::of(errno, || "can't listen for changes of devices".into()))?;
        let (known, gone) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { vports, links, buffer: vec![0; MAX_DATAGRAM], known, gone, deleted: Vec::new() })
    }

    /// A port is there.
    pub(crate) fn added(&mut self, info: &VportInfo) {
        self.gone.remove(&info.port);
        self.known.insert(info.port, (info.name.clone(), info.kind.kind()));
    }

    /// A port is about to be deleted, or was not deleted after all.
    pub(crate) fn deleting(&mut self, port: OdpPort) {
        self.deleted.push(port);
    }

    pub(crate) fn not_deleted(&mut self, port: OdpPort) {
        self.deleted.retain(|of| *of != port);
    }

    /// A port was deleted.
    pub(crate) fn removed(&mut self, port: OdpPort) {
        self.known.remove(&port);
    }

    /// Removes a port whose device is gone; whether it was one.
    pub(crate) fn remove_gone(&mut self, port: OdpPort) -> bool {
        self.gone.remove(&port).is_some()
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
        let mut events = Vec::new();
        let mut look_again = self.links_changed();
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            let bytes = match self.vports.receive(&mut buffer, false) {
                Ok(bytes) => bytes,
                // Something was missed: all ports are looked at.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    tracing::warn!("changes of ports were lost");
                    look_again = true;
                    continue;
                }
                Err(_) => break,
            };
            for message in Messages(bytes) {
                let Some((command, ifindex, attrs)) = message.ovs() else { continue };
                let Some(info) = vport::read(attrs).filter(|_| ifindex == datapath) else { continue };
                match command {
                    cmd::NEW | cmd::SET => {
                        self.known.entry(info.port).or_insert((info.name, info.kind.kind()));
                        events.push(PortEvent::Changed(info.port));
                    }
                    cmd::DEL => match self.deleted.iter().position(|of| *of == info.port) {
                        Some(at) => {
                            self.deleted.swap_remove(at);
                        }
                        None => {
                            let known = self.known.remove(&info.port).unwrap_or((info.name, info.kind.kind()));
                            let what = "was deleted or taken out of the datapath";
                            events.push(self.lost(info.port, known, what.into()));
                        }
                    },
                    _ => {}
                }
            }
        }
        self.buffer = buffer;
        if look_again && let Ok(vports) = kernel.vports(datapath) {
            events.extend(self.compare(kernel, datapath, vports));
        }
        for event in &events {
            if let PortEvent::Detached(port, _) = event {
                forget(*port);
            }
        }
        events
    }

    /// Takes out what was renamed, and finds out what went unheard.
    fn compare(&mut self, kernel: &Kernel, datapath: i32, vports: Vec<VportInfo>) -> Vec<PortEvent> {
        let mut events = Vec::new();
        for info in &vports {
            let Some(known) = self.known.get(&info.port).filter(|(name, _)| *name != info.name).cloned() else {
                self.known.entry(info.port).or_insert_with(|| (info.name.clone(), info.kind.kind()));
                continue;
            };
            self.deleted.push(info.port);
            if let Err(error) = kernel.vport_del(datapath, info.port) {
                self.not_deleted(info.port);
                tracing::warn!("port {}, which is {} now, stays in the datapath: {error}", known.0, info.name);
                continue;
            }
            self.known.remove(&info.port);
            events.push(self.lost(info.port, known, format!("was renamed to {}", info.name)));
        }
        let is_there = |port: &OdpPort| vports.iter().any(|info| info.port == *port);
        let unheard: Vec<OdpPort> = self.known.keys().filter(|port| !is_there(port)).copied().collect();
        for port in unheard {
            if let Some(known) = self.known.remove(&port) {
                events.push(self.lost(port, known, "is not in the datapath any more".into()));
            }
        }
        events
    }

    fn lost(&mut self, port: OdpPort, (name, kind): (String, PortKind), what: String) -> PortEvent {
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
