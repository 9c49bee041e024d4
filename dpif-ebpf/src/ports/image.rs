//! Loading a port's entry: the object's program, with the port's number in it.
//!
//! aya's own loader reads the kernel's whole BTF each time, some tens of milliseconds in which the kernel's part of the work is one. The
//! entries ask for nothing that is in there, and a host may have a thousand ports. So the object is read, put together and loaded here,
//! with the parts that aya has for this.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use aya::maps::MapData;
use aya_obj::generated::{bpf_attach_type, bpf_prog_type};
use aya_obj::{Object, ProgramSection};
use datapath_common::blanks::{DIRECT, Direct, Filling};
use datapath_common::maps::{Lane, MAX_LANES, name};
use dpif::{DpifError, Result};

use crate::kernel::{map_error, refused};
use crate::pins::Pins;
use crate::programs::possible_cpus;
use crate::sys::bpf;

/// Loads a program of the object of the port entries, as the entry of port `port`.
pub(super) fn load(pins: &Pins, objects: Option<&Path>, program: &str, port: u32) -> Result<OwnedFd> {
    let what = || format!("can't load eBPF program {program}");
    let wrong = |error: &dyn std::error::Error| DpifError::Kernel(format!("{}: {error}", what()));
    let bytes = crate::object::Object::PortEntry.bytes(objects)?;
    let lane = MapData::from_pin(pins.path(name::LANE)).map_err(|error| map_error(what(), error))?;
    let size = lane.info().map_err(|error| map_error(what(), error))?.value_size();
    // All but the last are CPUs'. What the entries don't ask for is nothing.
    let lanes = (size as usize / size_of::<Lane>()).saturating_sub(1) as u32;
    let mut maps = [(-1, 0); DIRECT];
    maps[Direct::Lane as usize] = (lane.fd().as_fd().as_raw_fd(), lanes);
    let filling = Filling { serves: 0, shared: possible_cpus() > MAX_LANES, slots: 0, port, maps };
    let mut bytes = bytes;
    if filling.fill(bytes.to_mut()).is_none() {
        return Err(DpifError::Kernel(format!("{}: the object is of another layout", what())));
    }
    let mut object = Object::parse(&bytes).map_err(|error| wrong(&error))?;

    let maps = std::mem::take(&mut object.maps);
    let mut fds = Vec::with_capacity(maps.len());
    for (name, map) in &maps {
        fds.push((name.as_str(), pins.get(name)?, map));
    }
    let text = object.functions.keys().map(|(section, _)| *section).collect::<HashSet<_>>();
    let relocated = object.relocate_maps(fds.iter().map(|(name, fd, map)| (*name, fd.as_raw_fd(), *map)), &text);
    relocated.and_then(|()| object.relocate_calls(&text)).map_err(|error| wrong(&error))?;

    let found = object.programs.get(program);
    let found = found.and_then(|found| Some((found, object.functions.get(&found.function_key())?)));
    let (found, function) =
        found.ok_or_else(|| DpifError::Kernel(format!("{}: the object has none of this name", what())))?;
    let (kind, attach_type, flags) = match found.section {
        ProgramSection::SchedClassifier => (bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, None, 0),
        // Programs in one array have the same of both.
        ProgramSection::Xdp { frags, .. } => (
            bpf_prog_type::BPF_PROG_TYPE_XDP,
            Some(bpf_attach_type::BPF_XDP),
            if frags { bpf::XDP_HAS_FRAGS } else { 0 },
        ),
        _ => return Err(DpifError::Kernel(format!("{}: it is no program of a hook", what()))),
    };
    let name = CString::new(program).map_err(|error| wrong(&error))?;
    let code = bpf::Code {
        kind,
        attach_type,
        name: &name,
        license: &found.license,
        instructions: &function.instructions,
        flags,
    };
    bpf::load(&code).map_err(|(error, log)| refused(&what(), error, &log))
}
