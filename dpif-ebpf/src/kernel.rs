//! What the datapath needs of the kernel, and what the kernel's refusals mean.

use std::io;
use std::path::Path;

use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::util::KernelVersion;
use aya::{EbpfError, maps::MapData};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use dpif::{DpifError, Result};

/// The oldest kernel that has all that the datapath uses: values of maps that are larger than 4 MiB came last.
const OLDEST: &str = "the eBPF datapath needs Linux 6.0 or later with CONFIG_DEBUG_INFO_BTF";
/// Lines of a verifier log that are shown.
const LOG_LINES: usize = 8;

/// Says what the running kernel lacks, if it lacks something, before anything is made.
pub(crate) fn check() -> Result<()> {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(DpifError::Kernel(format!("the kernel has no BTF (/sys/kernel/btf/vmlinux is missing); {OLDEST}")));
    }
    // The smallest ring that every page size allows.
    let ring = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, 1 << 16, 0);
    match MapData::create(ring, "probe", None) {
        Ok(_) => {}
        Err(MapError::CreateError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EINVAL) => {
            return Err(DpifError::Kernel(format!("the kernel has no BPF ring buffers; {OLDEST}")));
        }
        Err(error) => return Err(map_error("opening an eBPF datapath", error)),
    }
    match KernelVersion::current() {
        Ok(version) if version < KernelVersion::new(6, 0, 0) => {
            Err(DpifError::Kernel(format!("the kernel ({version:?}) has no large map values; {OLDEST}")))
        }
        _ => Ok(()),
    }
}

/// An error of the operating system; a missing privilege is an error of its own.
pub(crate) fn io_error(what: impl Into<String>, error: io::Error) -> DpifError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => DpifError::Permission(what.into()),
        _ => DpifError::Io(what.into(), error),
    }
}

/// An error of a map operation.
pub(crate) fn map_error(what: impl Into<String>, error: MapError) -> DpifError {
    match error {
        MapError::CreateError { io_error: error, .. } => io_error(what, error),
        MapError::SyscallError(error) => io_error(what, error.io_error),
        MapError::PinError { error: aya::pin::PinError::SyscallError(error), .. } => io_error(what, error.io_error),
        MapError::IoError(error) => io_error(what, error),
        other => DpifError::Kernel(format!("{}: {other}", what.into())),
    }
}

/// An error of loading an object.
pub(crate) fn load_error(what: &str, error: EbpfError) -> DpifError {
    match error {
        EbpfError::MapError(error) => map_error(what, error),
        EbpfError::ProgramError(error) => program_error(what, error),
        other => DpifError::Kernel(format!("{what}: {}", chain(&other))),
    }
}

/// An error of loading a program. A rejection shows the end of the verifier's log.
pub(crate) fn program_error(what: &str, error: ProgramError) -> DpifError {
    match error {
        ProgramError::LoadError { io_error: error, verifier_log } => refused(what, error, &verifier_log.to_string()),
        ProgramError::SyscallError(error) => io_error(what, error.io_error),
        ProgramError::IOError(error) => io_error(what, error),
        ProgramError::MapError(error) => map_error(what, error),
        other => DpifError::Kernel(format!("{what}: {}", chain(&other))),
    }
}

/// An error of bpf(2) about a program, with what the verifier said.
pub(crate) fn refused(what: &str, error: io::Error, log: &str) -> DpifError {
    if error.raw_os_error() == Some(libc::EPERM) {
        return DpifError::Permission(what.to_owned());
    }
    DpifError::Kernel(format!("{what}: the kernel's verifier refuses it ({error}): {}", log_end(log)))
}

/// The last lines of a verifier log in one line, without the verifier's statistics behind them.
fn log_end(log: &str) -> String {
    let is_statistics = |line: &&str| {
        let line = line.trim_start();
        !["processed ", "verification time ", "stack depth "].iter().any(|start| line.starts_with(start))
    };
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).filter(is_statistics).collect();
    let end = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
    if end.is_empty() { "no log".into() } else { end.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" | ") }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_shows_the_end_of_the_log_without_statistics() {
        let mut log: String = (0..30).map(|i| format!("{i}: (95) call\n")).collect();
        log += "R1 invalid mem access 'scalar'\nverification time 10 usec\nstack depth 0\nprocessed 3 insns (limit 1000000)\n\n";
        let end = log_end(&log);
        assert!(end.ends_with("| 29: (95) call | R1 invalid mem access 'scalar'"), "{end}");
        assert_eq!(end.split(" | ").count(), LOG_LINES);
        assert_eq!(log_end(""), "no log");
    }

    #[test]
    fn a_missing_privilege_is_no_io_error() {
        let error = io_error("loading", io::Error::from_raw_os_error(libc::EPERM));
        assert!(matches!(error, DpifError::Permission(_)));
        assert!(matches!(io_error("loading", io::Error::from_raw_os_error(libc::EBUSY)), DpifError::Io(..)));
    }
}
