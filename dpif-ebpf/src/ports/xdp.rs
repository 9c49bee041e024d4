//! The XDP hook of a port.
//!
//! The hook sees a frame before the kernel has made a buffer of it, and nothing of what lies beside a frame: a VLAN tag that the
//! device took off, a checksum that the sender left to the device. So a port has it by itself only at hardware, by the driver,
//! and receive VLAN offload is off as long. An operator who knows the sender may ask for it elsewhere.
//!
//! Frames that the hook redirects arrive only at devices that can send them, which depends on the driver, and at a veth on the
//! receiving end: without a program or GRO there, all of them would vanish while everything says that they were sent. The kernel
//! knows and is asked; a device that doesn't take such frames gets its frames from the TC hook.

use std::io;
use std::os::fd::AsFd as _;

use datapath_common::maps::{PortRecord, SAVED_RXVLAN};
use dpif::{DpifError, OdpPort, Result, XdpMode, XdpState};

use super::{Port, Ports, SYSTEM, text};
use crate::kernel::io_error;
use crate::pins::Hook;
use crate::rtnl;
use crate::sys::{bpf, device};
use crate::xdp_features;

/// `PortRecord::xdp`.
const NATIVE: u16 = 1;
const GENERIC: u16 = 2;
/// At which no driver refuses a program.
const SMALL_MTU: u32 = 1500;

impl Ports {
    /// Chooses the mode of a port. Whatever it had before it has no more.
    pub(crate) fn set_xdp(&self, number: OdpPort, mode: XdpMode) -> Result<XdpState> {
        self.inside(|| {
            let state = &mut *self.state.lock();
            let port = state.ports.get_mut(&number.0).ok_or(DpifError::NoSuchPort(number))?;
            if let Some(error) = &port.error {
                return Err(DpifError::Invalid(format!("port {number} is detached: {error}")));
            }
            port.xdp = XdpState::Off("it failed".into());
            port.xdp = self.choose_xdp(number.0, port, mode)?;
            Ok(port.xdp.clone())
        })
    }

    /// What meets the frames of a port first.
    pub(crate) fn xdp(&self, number: OdpPort) -> Result<XdpState> {
        let state = self.state.lock();
        state.ports.get(&number.0).map(|port| port.xdp.clone()).ok_or(DpifError::NoSuchPort(number))
    }

    /// Attaches a port's entry to the hook, or takes it off.
    pub(super) fn choose_xdp(&self, number: u32, port: &mut Port, mode: XdpMode) -> Result<XdpState> {
        self.leave_xdp(number, port)?;
        let chosen = match mode {
            XdpMode::Off => return Ok(XdpState::Off("switched off".into())),
            XdpMode::Auto => match self.is_hardware(&port.record)? {
                true => self.enter_xdp(number, port, true),
                false => {
                    return Ok(XdpState::Off("auto: a virtual device leaves checksums and tags beside frames".into()));
                }
            },
            XdpMode::Native => self.enter_xdp(number, port, true),
            XdpMode::Generic => self.enter_xdp(number, port, false),
        };
        match chosen {
            Ok(()) if mode == XdpMode::Generic => Ok(XdpState::Generic),
            Ok(()) => Ok(XdpState::Native),
            Err(error) => {
                self.leave_xdp(number, port)?;
                if mode != XdpMode::Auto {
                    return Err(error);
                }
                tracing::info!("{}: {} goes without XDP: {error}", self.datapath, port.name);
                Ok(XdpState::Off(format!("auto: {error}")))
            }
        }
    }

    fn enter_xdp(&self, number: u32, port: &mut Port, native: bool) -> Result<()> {
        let name = port.name.clone();
        if let Some(why) = &self.maps.no_xdp {
            return Err(DpifError::Unsupported(format!("XDP at {name} ({why})"), self.datapath.clone()));
        }
        if port.record.kind != SYSTEM {
            let what = format!("XDP at internal port {name}: the host leaves checksums to the device");
            return Err(DpifError::Unsupported(what, self.datapath.clone()));
        }
        if !self.is_hardware(&port.record)? {
            tracing::warn!(
                "{}: XDP at {name}, a virtual device: what the sender leaves beside a frame is not seen there. Frames with \
                 partial checksums or tags need `ethtool -K PEER tx off txvlan off` at the sender",
                self.datapath
            );
        }
        self.show_tags(number, port)?;
        let objects = self.options.objects.as_deref();
        let link = super::entry::attach_xdp(&self.pins, objects, number, port.record.ifindex, native)?
            .map_err(|error| refused(&name, port.mtu, native, error))?;
        self.pins.pin_link(number, Hook::Xdp, &link)?;
        port.record.xdp = if native { NATIVE } else { GENERIC };
        self.write_record(number, &port.record);
        let how = if native { "driver" } else { "generic hook" };
        tracing::info!("{}: {name} has its frames met by XDP in the {how}", self.datapath);
        self.set_entry(number, port)
    }

    /// Enters the driver's hook again, at a new MTU. Drivers look at it when a program comes, and not all do when it changes: under
    /// a program that they would refuse they drop long frames. A port that they refuse it for goes on without.
    pub(super) fn retry_xdp(&self, number: u32, port: &mut Port) -> Result<()> {
        if port.record.xdp != NATIVE {
            return Ok(());
        }
        self.inside(|| {
            self.leave_xdp(number, port)?;
            port.xdp = match self.enter_xdp(number, port, true) {
                Ok(()) => XdpState::Native,
                Err(error) => {
                    self.leave_xdp(number, port)?;
                    tracing::warn!("{}: {} goes on without XDP: {error}", self.datapath, port.name);
                    XdpState::Off(format!("since its MTU changed: {error}"))
                }
            };
            Ok(())
        })
    }

    /// Switches receive VLAN offload off, so that the hook sees tags.
    fn show_tags(&self, number: u32, port: &mut Port) -> Result<()> {
        let name = &port.name;
        let failed =
            |error| io_error(format!("can't switch off receive VLAN offload of {name}, which XDP needs"), error);
        if !device::flag(name, device::FLAG_RXVLAN).map_err(failed)? {
            return Ok(());
        }
        port.record.saved |= SAVED_RXVLAN;
        self.write_record(number, &port.record);
        device::set_flag(name, device::FLAG_RXVLAN, false).map_err(failed)?;
        if device::flag(name, device::FLAG_RXVLAN).map_err(failed)? {
            let error = io::Error::other("the driver keeps it on");
            return Err(failed(error));
        }
        Ok(())
    }

    /// Takes a port's program off the hook.
    ///
    /// Before Linux 6.3 `virtio_net` refuses even that at an MTU that it would refuse a program for. The kernel, which counts on drivers
    /// to let programs go, believes it gone then, while it runs on and drops long frames. So the MTU is small for that moment.
    pub(super) fn remove_xdp(&self, number: u32, record: &PortRecord) -> Result<()> {
        let set_mtu = |mtu| {
            if let Err(error) = rtnl::set_mtu(record.ifindex, mtu) {
                tracing::warn!("{}: can't set the MTU of {} to {mtu}: {error}", self.datapath, text(&record.name));
            }
        };
        let large = if record.xdp == NATIVE && self.is_here(record) { large_mtu(record.ifindex) } else { None };
        if large.is_some() {
            set_mtu(SMALL_MTU);
        }
        let removed = self.pins.remove_link(number, Hook::Xdp);
        if let Some(mtu) = large {
            set_mtu(mtu);
        }
        removed
    }

    /// Takes a port's entry off the hook; the device gets its offload back.
    pub(super) fn leave_xdp(&self, number: u32, port: &mut Port) -> Result<()> {
        self.remove_xdp(number, &port.record)?;
        if port.record.saved & SAVED_RXVLAN != 0 {
            if let Err(error) = device::set_flag(&port.name, device::FLAG_RXVLAN, true) {
                tracing::warn!("{}: can't switch receive VLAN offload on again: {error}", port.name);
            }
            port.record.saved &= !SAVED_RXVLAN;
        }
        port.record.xdp = 0;
        self.write_record(number, &port.record);
        self.set_entry(number, port)
    }

    /// What an earlier process left in the hook of a port.
    pub(super) fn adopted_xdp(&self, number: u32, record: &PortRecord) -> Result<XdpState> {
        let link = self.pins.link(number, Hook::Xdp)?;
        let info = link.map(|link| bpf::link_info(link.as_fd())).transpose();
        let info = info.map_err(|error| io_error(format!("can't ask for the XDP link of port {number}"), error))?;
        Ok(match (info, record.xdp) {
            (Some(info), NATIVE) if info.ifindex == record.ifindex => XdpState::Native,
            (Some(info), GENERIC) if info.ifindex == record.ifindex => XdpState::Generic,
            _ => XdpState::Off("not attached by the process before".into()),
        })
    }

    /// Whether there is anything of a port in the XDP hook, or said to be there: a process may have died between the two.
    pub(super) fn is_in_xdp(&self, number: u32, record: &PortRecord) -> Result<bool> {
        Ok(record.xdp != 0 || self.pins.link(number, Hook::Xdp)?.is_some())
    }

    /// Whether the device of a port sends frames that the hook redirects, entered where the hook looks for it.
    pub(super) fn takes_xdp(&self, number: u32, ifindex: u32, port: &Port) -> bool {
        if self.maps.no_xdp.is_some() || port.record.kind != SYSTEM {
            return false;
        }
        let takes = match xdp_features::sends(ifindex) {
            Ok(takes) => takes,
            // Before Linux 6.3 nobody says. A driver that runs programs sends frames too; of a veth that is not enough.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                port.record.xdp == NATIVE && self.is_hardware(&port.record).unwrap_or(false)
            }
            Err(error) => {
                tracing::debug!("{}: can't tell whether {} takes XDP frames: {error}", self.datapath, port.name);
                false
            }
        };
        match self.maps.set_device(number, if takes { ifindex } else { 0 }) {
            Ok(()) => takes,
            Err(error) => {
                tracing::debug!("{}: {} takes no XDP frames: {error}", self.datapath, port.name);
                false
            }
        }
    }

    fn is_hardware(&self, record: &PortRecord) -> Result<bool> {
        let link = rtnl::by_index(record.ifindex)
            .map_err(|error| io_error(format!("can't ask for device {}", text(&record.name)), error))?;
        Ok(record.kind == SYSTEM && link.is_some_and(|link| link.kind.is_empty()))
    }
}

/// The MTU of a device that might not let a program go as it is.
fn large_mtu(ifindex: u32) -> Option<u32> {
    let is_old = xdp_features::sends(ifindex).is_err_and(|error| error.kind() == io::ErrorKind::Unsupported);
    let mtu = || rtnl::by_index(ifindex).ok().flatten().map(|link| link.mtu);
    if is_old { mtu().filter(|mtu| *mtu > SMALL_MTU) } else { None }
}

/// What the kernel's refusal of a program means.
fn refused(name: &str, mtu: u32, native: bool, error: io::Error) -> DpifError {
    let hook = if native { "native XDP" } else { "generic XDP" };
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => DpifError::Unsupported(hook.into(), format!("{name}, whose driver has none,")),
        Some(libc::EBUSY | libc::EEXIST) => {
            DpifError::Exists(format!("{name} has an XDP program of someone else's already; take that one off first"))
        }
        Some(libc::ERANGE | libc::EINVAL | libc::E2BIG) => DpifError::Invalid(format!(
            "{name} takes no {hook} as it is ({error}): with many drivers an MTU of {mtu} is too large, or a ring or an \
             offload stands in the way"
        )),
        _ => io_error(format!("can't attach the datapath to the XDP hook of {name}"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_stands_in_the_way() {
        for (errno, native, part) in [
            (libc::EOPNOTSUPP, true, "driver has none"),
            (libc::EBUSY, true, "someone else"),
            (libc::EEXIST, false, "someone else"),
            (libc::ERANGE, true, "an MTU of 9000 is too large"),
            (libc::ENODEV, true, "XDP hook of eth7"),
        ] {
            let error = refused("eth7", 9000, native, io::Error::from_raw_os_error(errno));
            assert!(error.to_string().contains(part) && error.to_string().contains("eth7"), "{error}");
        }
    }
}
