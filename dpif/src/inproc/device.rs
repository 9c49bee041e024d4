//! Ports that are network devices.
//!
//! A system port is an existing device behind a packet socket, an internal port a TAP device that the datapath makes. Each
//! has a thread that takes what arrives through the datapath, frame by frame; sending happens on whichever thread has the
//! packet. The devices lie in the network namespace in which the datapath was made.
//!
//! Other than the eBPF datapath this one can't take a device away from the host: what arrives is also seen by the host's own
//! stack, which answers for the addresses that the device has.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use datapath_common::op::DropReason;
use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, Vlan};
use netdev::device::Namespace;
use netdev::{Buffer, DeviceInfo, Link, PacketSocket, Received, Tap};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::Shared;
use super::run::Frame;
use crate::Result;
use crate::error::DpifError;
use crate::packet::Packet;
use crate::port::{OdpPort, PortKind};

/// A device that is a port.
pub(super) struct DeviceWire {
    link: Arc<Link>,
    namespace: Arc<Namespace>,
    name: String,
    index: u32,
    /// Large receive offload was on and is to be again.
    restore_lro: AtomicBool,
    stop: Arc<EventFd>,
    receiver: Mutex<Option<JoinHandle<()>>>,
}

impl DeviceWire {
    /// Opens or makes the device.
    pub(super) fn open(namespace: &Arc<Namespace>, name: &str, kind: PortKind) -> Result<(Self, DeviceInfo)> {
        let failed = |what: &str, error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => DpifError::NoSuchDevice(name.into()),
            io::ErrorKind::PermissionDenied => DpifError::Permission(format!("{what} {name}")),
            _ => DpifError::Io(format!("{what} {name}"), error),
        };
        let stop = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| DpifError::Io("making an eventfd".into(), e.into()))?;
        let link = match kind {
            PortKind::System => None,
            PortKind::Tunnel(_) => {
                return Err(DpifError::Unsupported(format!("a port of type {kind}"), "userspace".into()));
            }
            PortKind::Internal => Some(Link::Tap(Tap::create(name).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => DpifError::Exists(format!(
                    "a network device {name} exists already: delete or rename it, or choose another name"
                )),
                io::ErrorKind::NotFound => DpifError::Kernel("the kernel has no TAP devices (/dev/net/tun)".into()),
                _ => failed("making the TAP device", error),
            })?)),
        };
        let device = namespace.device(name).map_err(|e| failed("looking at the device", e))?;
        let mut restore_lro = false;
        let link = match link {
            Some(tap) => tap,
            None if !device.is_ethernet => {
                return Err(DpifError::Invalid(format!("{name} is no Ethernet device")));
            }
            None => {
                let socket = PacketSocket::open(&device).map_err(|e| failed("opening a packet socket on", e))?;
                restore_lro =
                    namespace.set_lro(name, false).map_err(|e| failed("switching large receive offload off on", e))?;
                Link::Socket(socket)
            }
        };
        let wire = Self {
            link: Arc::new(link),
            namespace: Arc::clone(namespace),
            name: name.into(),
            index: device.index,
            restore_lro: AtomicBool::new(restore_lro),
            stop: Arc::new(stop),
            receiver: Mutex::default(),
        };
        Ok((wire, device))
    }

    /// Starts to receive for `port`, which must be in the table by now.
    pub(super) fn start(&self, dp: &Arc<Shared>, port: OdpPort) -> Result<()> {
        let receiver =
            Receiver { link: Arc::clone(&self.link), stop: Arc::clone(&self.stop), dp: Arc::downgrade(dp), port };
        let thread = std::thread::Builder::new()
            .name(format!("rx-{}", self.name))
            .spawn(move || receiver.run())
            .map_err(|e| DpifError::Io(format!("starting a thread for {}", self.name), e))?;
        *self.receiver.lock() = Some(thread);
        Ok(())
    }

    /// Ends the receiver and waits for it, and gives the device back its settings.
    pub(super) fn stop(&self) {
        self.end();
        let thread = self.receiver.lock().take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }

    /// Tells the receiver to end.
    fn end(&self) {
        // An eventfd that holds less than 2⁶⁴ - 2 takes another 1.
        let _ = self.stop.write(1);
        if self.restore_lro.swap(false, Ordering::Relaxed) && self.namespace.set_lro(&self.name, true).is_err() {
            tracing::warn!("{}: large receive offload can't be switched on again", self.name);
        }
    }

    pub(super) fn send(&self, packet: &Packet) -> Result<(), DropReason> {
        self.link.send(&packet.data, packet.gso_size, packet.partial_checksum).map_err(|_| DropReason::Output)
    }

    /// Frames lost since this was last asked because the receiver didn't keep up.
    pub(super) fn overruns(&self) -> u64 {
        self.link.overruns().unwrap_or_else(|error| {
            tracing::debug!("asking {} for overruns: {error}", self.name);
            0
        })
    }

    /// How the device is now, or what became of it.
    pub(super) fn look(&self) -> Result<DeviceInfo, String> {
        let name =
            self.namespace.name_of(self.index).map_err(|e| format!("device {} can't be asked: {e}", self.name))?;
        match name {
            None => Err(format!("device {} was deleted or moved to another network namespace", self.name)),
            Some(name) if name != self.name => Err(format!("device {} was renamed to {name}", self.name)),
            Some(name) => self.namespace.device(&name).map_err(|e| format!("device {} can't be asked: {e}", self.name)),
        }
    }
}

impl Drop for DeviceWire {
    fn drop(&mut self) {
        // No wait here: the last reference can be any receiver's, in the middle of a packet.
        self.end();
    }
}

/// The thread of a port.
struct Receiver {
    link: Arc<Link>,
    stop: Arc<EventFd>,
    dp: Weak<Shared>,
    port: OdpPort,
}

impl Receiver {
    fn run(&self) {
        let mut buffer = Buffer::default();
        while self.wait() {
            // Many frames for each wait, but not so many that a stop waits long.
            for _ in 0..256 {
                match self.link.recv(&mut buffer) {
                    Ok(Some(received)) => {
                        let Some(dp) = self.dp.upgrade() else { return };
                        dp.receive(self.port, frame(&received));
                    }
                    Ok(None) => break,
                    // The device went down or away: the first passes, of the second the datapath hears elsewhere.
                    Err(error) => {
                        tracing::debug!("receiving from port {}: {error}", self.port);
                        break;
                    }
                }
            }
        }
    }

    /// Waits for frames. `false`: it is time to stop.
    fn wait(&self) -> bool {
        let mut fds =
            [PollFd::new(self.link.as_fd(), PollFlags::POLLIN), PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => return true,
            Err(_) => return false,
            Ok(_) => {}
        }
        let [link, stop] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        if link.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            // A device that is gone stays in error: look seldom.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        stop.is_empty()
    }
}

fn frame(received: &Received<'_>) -> Frame {
    let vlan = received.vlan.map(|tag| Vlan { tpid: Be16::new(tag.tpid), tci: Be16::new(tag.tci) });
    let packet = SlicePacket {
        bytes: received.bytes.to_vec(),
        vlan: vlan.unwrap_or_default(),
        partial_checksum: received.partial_checksum,
    };
    Frame { packet, gso_size: received.gso_size, ..Frame::default() }
}
