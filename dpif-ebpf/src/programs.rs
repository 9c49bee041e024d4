//! The datapath's programs: loaded against its maps, and put where the port entries call them.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use aya::programs::{Program, ProgramError, ProgramFd};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use datapath_common::blanks::{DIRECT, Filling};
use datapath_common::maps::{
    MAX_LANES, PROGRAM_EXECUTE, PROGRAM_TC, PROGRAM_TC_GENERAL, PROGRAM_XDP, PROGRAM_XDP_GENERAL, name,
};
use datapath_common::table::bucket_count;
use dpif::{DpifError, Result};

use crate::kernel::{io_error, load_error, program_error};
use crate::maps::{DIRECT_NAMES, ENTRIES, NOT_IN_OBJECT, PINNED, Shape};
use crate::object::Object;
use crate::options::Options;
use crate::pins::Pins;
use crate::special::Programs;
use crate::sys::bpf;

/// What loading takes.
pub(crate) struct Loader {
    pins: Arc<Pins>,
    options: Options,
    n_slots: u32,
    lanes: u32,
    /// The direct maps, and how many of their elements programs reach.
    direct: [(OwnedFd, u32); DIRECT],
}

impl Loader {
    /// For a datapath of this shape, whose direct maps are there.
    pub(crate) fn new(pins: &Arc<Pins>, options: &Options, shape: &Shape) -> Result<Self> {
        let (n_slots, lanes) = (shape.n_slots as u32, shape.lanes as u32);
        let [lane, hot_slots, ports] = DIRECT_NAMES.map(|map| pins.get(map));
        let [lanes_len, slots_len, ports_len] = shape.direct().map(|len| len as u32);
        // Behind those that programs reach is userspace's lane.
        let direct = [(lane?, lanes_len - 1), (hot_slots?, slots_len), (ports?, ports_len)];
        Ok(Self { pins: Arc::clone(pins), options: options.clone(), n_slots, lanes, direct })
    }

    /// Loads the object, and makes the maps that aren't pinned yet. `serves`: what its specialised programs are to serve.
    pub(crate) fn object(&self, serves: u16) -> Result<Ebpf> {
        let mut bytes = Object::Datapath.bytes(self.options.objects.as_deref())?;
        let (n_slots, lanes) = (self.n_slots, self.lanes);
        let maps = std::array::from_fn(|i| (self.direct[i].0.as_raw_fd(), self.direct[i].1));
        let filling = Filling { serves, shared: possible_cpus() > lanes as usize, slots: n_slots, port: 0, maps };
        if filling.fill(bytes.to_mut()).is_none() {
            return Err(DpifError::Kernel("the datapath's eBPF object is of another layout".into()));
        }
        let debug = u32::from(self.options.debug);
        let buckets = bucket_count(n_slots as usize) as u32;
        let bucket_mask = buckets - 1;
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)
            .override_global("LANES", &lanes, true)
            .override_global("BUCKET_MASK", &bucket_mask, true)
            .override_global("DEBUG", &debug, false)
            .map_max_entries(name::SLOTS, n_slots)
            .map_max_entries(name::FLOWS, buckets)
            .map_max_entries(name::FLOW_STATS, n_slots * lanes);
        for map in PINNED.into_iter().chain(ENTRIES).filter(|map| !NOT_IN_OBJECT.contains(map)) {
            loader.map_pin_path(map, self.pins.path(map));
        }
        loader.load(&bytes).map_err(|error| load_error("can't load the datapath's eBPF object", error))
    }

    /// Loads the general programs of `object` and lets the port entries call them. Returns why the one of the XDP hook is not
    /// there, if it isn't: all that it does the TC hook does too.
    pub(crate) fn install_general(&self, object: &mut Ebpf) -> Result<Option<String>> {
        let array = self.pins.get(name::PROGRAMS)?;
        for (index, program) in [(PROGRAM_TC_GENERAL, "sluice_tc"), (PROGRAM_EXECUTE, "sluice_execute")] {
            put(array.as_fd(), name::PROGRAMS, index, loaded(object, program)?.as_fd())?;
        }
        put(array.as_fd(), name::PROGRAMS, PROGRAM_TC, loaded(object, "sluice_tc")?.as_fd())?;
        let xdp = loaded(object, "sluice_xdp").and_then(|program| {
            let array = self.pins.get(name::XDP_PROGRAMS)?;
            put(array.as_fd(), name::XDP_PROGRAMS, PROGRAM_XDP_GENERAL, program.as_fd())?;
            put(array.as_fd(), name::XDP_PROGRAMS, PROGRAM_XDP, program.as_fd())
        });
        Ok(xdp.err().map(|error| {
            tracing::warn!("{}: no port can use the XDP hook: {error}", self.pins.name());
            error.to_string()
        }))
    }
}

/// Specialised programs for both hooks; in the XDP hook, if it has a program at all.
pub(crate) struct Specialised {
    tc: OwnedFd,
    xdp: Option<OwnedFd>,
}

/// The arrays of programs, and the general ones.
pub(crate) struct InKernel {
    loader: Loader,
    array: OwnedFd,
    xdp_array: OwnedFd,
    general: Specialised,
}

impl InKernel {
    /// For a datapath whose general programs, those of `object`, are installed.
    pub(crate) fn new(loader: Loader, object: &mut Ebpf, has_xdp: bool) -> Result<Self> {
        let (array, xdp_array) = (loader.pins.get(name::PROGRAMS)?, loader.pins.get(name::XDP_PROGRAMS)?);
        let xdp = if has_xdp { Some(owned(loaded(object, "sluice_xdp")?)?) } else { None };
        let general = Specialised { tc: owned(loaded(object, "sluice_tc")?)?, xdp };
        Ok(Self { loader, array, xdp_array, general })
    }
}

impl Programs for InKernel {
    type Loaded = Specialised;

    fn load(&self, serves: u16) -> Result<Specialised> {
        let mut object = self.loader.object(serves)?;
        let tc = owned(loaded(&mut object, "sluice_tc_s")?)?;
        let xdp = if self.general.xdp.is_some() { Some(owned(loaded(&mut object, "sluice_xdp_s")?)?) } else { None };
        Ok(Specialised { tc, xdp })
    }

    fn install(&self, program: Option<&Specialised>) -> Result<()> {
        let program = program.unwrap_or(&self.general);
        put(self.array.as_fd(), name::PROGRAMS, PROGRAM_TC, program.tc.as_fd())?;
        match &program.xdp {
            Some(xdp) => put(self.xdp_array.as_fd(), name::XDP_PROGRAMS, PROGRAM_XDP, xdp.as_fd()),
            None => Ok(()),
        }
    }
}

fn put(array: BorrowedFd<'_>, map: &str, index: u32, program: BorrowedFd<'_>) -> Result<()> {
    bpf::map_update(array, &index, &(program.as_raw_fd() as u32), 0)
        .map_err(|error| io_error(format!("can't put a program into {map}"), error))
}

fn owned(program: &ProgramFd) -> Result<OwnedFd> {
    program.as_fd().try_clone_to_owned().map_err(|error| io_error("can't keep a program", error))
}

/// A program of a hook, loaded if it isn't yet.
fn loaded<'a>(object: &'a mut Ebpf, program: &str) -> Result<&'a ProgramFd> {
    let what = format!("can't load eBPF program {program}");
    let once = |loaded| if matches!(loaded, Err(ProgramError::AlreadyLoaded)) { Ok(()) } else { loaded };
    let fd = match object.program_mut(program) {
        Some(Program::SchedClassifier(found)) => once(found.load()).and_then(|()| found.fd()),
        Some(Program::Xdp(found)) => once(found.load()).and_then(|()| found.fd()),
        _ => return Err(DpifError::Kernel(format!("{what}: the object has none of this name for a hook"))),
    };
    fd.map_err(|error| program_error(&what, error))
}

/// CPUs that there can be: one more than the highest number of one.
pub(crate) fn possible_cpus() -> usize {
    const FILE: &str = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(FILE);
    let cpus = text.as_deref().ok().and_then(last_cpu).map(|last| last + 1);
    cpus.unwrap_or_else(|| {
        tracing::warn!(
            "can't tell the number of CPUs ({FILE}: {text:?}); statistics are counted with atomic operations"
        );
        MAX_LANES + 1
    })
}

/// The last of a list of CPUs, such as `0-3,8-11`.
fn last_cpu(list: &str) -> Option<usize> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cpu_counts_not_how_many_there_are() {
        assert_eq!(["0\n", "0-1\n", "0-3,8-11\n", "0,2"].map(last_cpu), [Some(0), Some(1), Some(11), Some(2)]);
        assert_eq!(["", "0-", "x"].map(last_cpu), [None; 3]);
        let cpus = aya::util::nr_cpus().unwrap();
        assert!(possible_cpus() >= cpus, "{} CPUs, of which the last is before {cpus}", possible_cpus());
    }
}
