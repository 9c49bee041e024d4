//! Attaching a port: its entry program on the ingress of its device.
//!
//! Each port gets a copy of the entry with its number in it. By a TCX link where the kernel has them, pinned before anything
//! else can fail; else by a clsact filter, which has no owner and stays by itself.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::tc::{NlOptions, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, Xdp, tc};
use aya::{Ebpf, EbpfLoader};
use datapath_common::maps::name;
use dpif::{DpifError, Result};

use crate::kernel::{io_error, load_error, program_error};
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

/// Loads the object of the port entries, with the number of a port in it.
pub(crate) fn load_object(pins: &Pins, objects: Option<&Path>, port: u32) -> Result<Ebpf> {
    let bytes = crate::object::Object::PortEntry.bytes(objects)?;
    EbpfLoader::new()
        .override_global("PORT_NO", &port, true)
        .map_pin_path(name::PROGRAMS, pins.path(name::PROGRAMS))
        .map_pin_path(name::XDP_PROGRAMS, pins.path(name::XDP_PROGRAMS))
        .map_pin_path(name::XDP_PORT, pins.path(name::XDP_PORT))
        .load(&bytes)
        .map_err(|error| load_error("can't load the eBPF object of the port entries", error))
}

/// The entry of port `port`, to be attached.
pub(crate) struct Entry {
    object: Ebpf,
    program: &'static str,
}

impl Entry {
    /// The entry of a port.
    pub(crate) fn of_port(pins: &Pins, objects: Option<&Path>, port: u32) -> Result<Self> {
        Self::load(load_object(pins, objects, port)?, PORT)
    }

    /// The entry of the execute device.
    pub(crate) fn of_execute(pins: &Pins, objects: Option<&Path>) -> Result<Self> {
        Self::load(load_object(pins, objects, 0)?, EXECUTE)
    }

    fn load(object: Ebpf, program: &'static str) -> Result<Self> {
        let mut entry = Self { object, program };
        entry.program()?.load().map_err(|error| program_error(&format!("can't load eBPF program {program}"), error))?;
        Ok(entry)
    }

    fn program(&mut self) -> Result<&mut SchedClassifier> {
        let what = || format!("can't load eBPF program {}", self.program);
        self.object
            .program_mut(self.program)
            .ok_or_else(|| DpifError::Kernel(format!("{}: the object has none of this name", what())))?
            .try_into()
            .map_err(|error| program_error(&what(), error))
    }

    /// Attaches by a TCX link. `None`: this kernel has none.
    pub(crate) fn attach_tcx(&mut self, device: &str, ifindex: u32) -> Result<Option<std::os::fd::OwnedFd>> {
        let program = self.program()?;
        let fd = program.fd().map_err(|error| program_error("the entry program", error))?;
        match bpf::link_tcx(fd.as_fd(), ifindex) {
            Ok(link) => Ok(Some(link)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(None),
            Err(error) => Err(attach_error(device, error)),
        }
    }

    /// Attaches by a clsact filter. The device has the qdisc.
    pub(crate) fn attach_clsact(&mut self, device: &str) -> Result<()> {
        let program = self.program()?;
        let options = NlOptions { priority: PRIORITY, handle: TcHandle::new(0, HANDLE), classid: None };
        let link = program
            .attach_with_options(device, TcAttachType::Ingress, TcAttachOptions::Netlink(options))
            .and_then(|id| program.take_link(id))
            .map_err(|error| tc_error(device, error))?;
        // The filter belongs to the device; dropping the link would remove it.
        std::mem::forget(link);
        Ok(())
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
) -> Result<io::Result<std::os::fd::OwnedFd>> {
    let what = format!("can't load eBPF program {XDP}");
    let mut object = load_object(pins, objects, port)?;
    let program: &mut Xdp = object
        .program_mut(XDP)
        .ok_or_else(|| DpifError::Kernel(format!("{what}: the object has none of this name")))?
        .try_into()
        .map_err(|error| program_error(&what, error))?;
    program.load().map_err(|error| program_error(&what, error))?;
    let fd = program.fd().map_err(|error| program_error(&what, error))?;
    Ok(bpf::link_xdp(fd.as_fd(), ifindex, native))
}

/// Whether new attachments are tried by TCX first.
pub(crate) fn prefers_tcx(attach: Attach) -> bool {
    attach == Attach::Auto
}

/// Gives a device its clsact qdisc; false if it has one.
pub(crate) fn add_clsact(device: &str) -> Result<bool> {
    match tc::qdisc_add_clsact(device) {
        Ok(()) => Ok(true),
        Err(error) => match tc_io_error(error) {
            error if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            error => Err(attach_error(device, error)),
        },
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

fn tc_error(device: &str, error: ProgramError) -> DpifError {
    match error {
        ProgramError::TcError(error) => attach_error(device, tc_io_error(error)),
        ProgramError::NetlinkError(error) => attach_error(device, netlink_io_error(&error)),
        error => program_error(&format!("can't attach the datapath to {device}"), error),
    }
}

fn tc_io_error(error: TcError) -> io::Error {
    match error {
        TcError::IoError(error) => error,
        TcError::NetlinkError(error) => netlink_io_error(&error),
        error => io::Error::other(error),
    }
}

fn netlink_io_error(error: &aya::sys::NetlinkError) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
