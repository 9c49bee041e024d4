//! Attaching a port: its entry program on the ingress of its device.
//!
//! Each port gets a copy of the entry with its number in it. By a TCX link where the kernel has them, pinned before anything
//! else can fail; else by a clsact filter, which has no owner and stays by itself.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::programs::{SchedClassifier, TcAttachType};
use dpif::{DpifError, Result};

use super::image;
use crate::kernel::io_error;
use crate::options::Attach;
use crate::pins::Pins;
use crate::rtnl;
use crate::sys::bpf;

/// Name of a port's entry program, by which attachments are recognised.
const PORT: &str = "sluice_port";
/// Name of a port's entry in the XDP hook.
const XDP: &str = "sluice_xdp_port";
/// Name of the execute device's.
const EXECUTE: &str = "sluice_execute_entry";
/// What the kernel keeps of a program's name.
const NAME_LEN: usize = 15;
/// Place of our filters in a clsact qdisc: behind those that an operator puts first.
const PRIORITY: u16 = 0x5355;
const HANDLE: u16 = 1;

/// How a program is attached; the numbers are those of `PortRecord::attach`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Attached {
    Tcx = 1,
    Clsact = 2,
}

impl Attached {
    pub(crate) fn from_number(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Tcx),
            2 => Some(Self::Clsact),
            _ => None,
        }
    }
}

/// The entry of a port, to be attached.
pub(crate) struct Entry {
    program: OwnedFd,
    name: &'static str,
}

impl Entry {
    /// The entry of a port.
    pub(crate) fn of_port(pins: &Pins, objects: Option<&Path>, port: u32) -> Result<Self> {
        Ok(Self { program: image::load(pins, objects, PORT, port)?, name: PORT })
    }

    /// The entry of the execute device.
    pub(crate) fn of_execute(pins: &Pins, objects: Option<&Path>) -> Result<Self> {
        Ok(Self { program: image::load(pins, objects, EXECUTE, 0)?, name: EXECUTE })
    }

    /// Attaches by a TCX link. `None`: this kernel has none.
    pub(crate) fn attach_tcx(&self, device: &str, ifindex: u32) -> Result<Option<OwnedFd>> {
        match bpf::link_tcx(self.program.as_fd(), ifindex) {
            Ok(link) => Ok(Some(link)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(None),
            Err(error) => Err(attach_error(device, error)),
        }
    }

    /// Attaches by a clsact filter, which has no owner and stays by itself. The device has the qdisc.
    pub(crate) fn attach_clsact(&self, device: &str, ifindex: u32) -> Result<()> {
        rtnl::add_clsact_filter(ifindex, PRIORITY, HANDLE.into(), self.program.as_fd(), self.name)
            .map_err(|error| attach_error(device, error))
    }
}

/// Attaches the entry of a port to the XDP hook of its device. The outer error is ours, the inner one says why the device does
/// not take it.
pub(crate) fn attach_xdp(
    pins: &Pins,
    objects: Option<&Path>,
    port: u32,
    ifindex: u32,
    native: bool,
) -> Result<io::Result<OwnedFd>> {
    let program = image::load(pins, objects, XDP, port)?;
    Ok(bpf::link_xdp(program.as_fd(), ifindex, native))
}

/// Whether new attachments are tried by TCX first.
pub(crate) fn prefers_tcx(attach: Attach) -> bool {
    attach == Attach::Auto
}

/// Gives a device its clsact qdisc; false if it has one.
pub(crate) fn add_clsact(device: &str, ifindex: u32) -> Result<bool> {
    match rtnl::add_clsact(ifindex) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(attach_error(device, error)),
    }
}

/// Removes a port's filter from a device.
pub(crate) fn detach_clsact(ifindex: u32) -> io::Result<()> {
    match rtnl::delete_clsact_filter(ifindex, PRIORITY, HANDLE.into()) {
        // Not there, or no such qdisc, or no such device: what was asked for.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        result => result,
    }
}

/// Removes the clsact qdisc of a device unless someone has filters there.
pub(crate) fn remove_clsact(ifindex: u32) -> io::Result<()> {
    if rtnl::clsact_filters(ifindex)?.is_empty() {
        rtnl::delete_clsact(ifindex)?;
    }
    Ok(())
}

/// Whether a port entry is attached to a device by a clsact filter.
pub(crate) fn is_attached_clsact(ifindex: u32) -> io::Result<bool> {
    Ok(rtnl::clsact_filters(ifindex)?.iter().any(|filter| filter == PORT))
}

/// Whether an entry of this or another datapath is attached to a device.
pub(crate) fn is_attached(device: &str, ifindex: u32) -> bool {
    // A kernel without TCX has nothing attached by it.
    let programs = SchedClassifier::query_tcx(device, TcAttachType::Ingress).map(|(_, programs)| programs);
    let is_entry = |name: &str| {
        [PORT, EXECUTE].iter().any(|entry| name == entry.get(..NAME_LEN.min(entry.len())).unwrap_or_default())
    };
    programs.is_ok_and(|programs| programs.iter().any(|program| program.name_as_str().is_some_and(is_entry)))
        || is_attached_clsact(ifindex).unwrap_or(false)
}

fn attach_error(device: &str, error: io::Error) -> DpifError {
    match error.raw_os_error() {
        Some(libc::ENODEV) => DpifError::NoSuchDevice(device.to_owned()),
        _ => io_error(format!("can't attach the datapath to {device}"), error),
    }
}
