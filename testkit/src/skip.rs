//! What a test needs of the machine, and how one that can't have it is counted.
//!
//! Rust's test harness knows "passed", "failed" and "ignored at compile time", but not "can't run here". So a test
//! names its needs in its first line; if one is missing it says `SKIPPED NAME: REASON`, appends the same to the file
//! that `SLUICE_SKIP_LOG` names, and returns. `cargo xtask test` reads that file and takes such tests out of the
//! passed ones.

use std::{env, fmt, fs::OpenOptions, io::Write as _, path::Path, sync::OnceLock};

use crate::{cards, netns::Netns, tools, workspace_root};

/// The environment variable that names the file for lines `NAME<tab>REASON`.
pub const SKIP_LOG: &str = "SLUICE_SKIP_LOG";

/// Something that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To make network namespaces and devices: root and iproute2.
    Namespaces,
    /// To load BPF programs: the right to, ring buffers, and the kernel's BTF.
    Bpf,
    /// Our own eBPF objects, built.
    EbpfObject,
    /// The kernel's `openvswitch` module, loaded.
    OvsModule,
    /// Network cards that are wired to each other.
    Cards,
    /// To send frames from the XDP hook to a veth, and to know that they arrive (Linux 6.3).
    XdpToVeth,
    /// A program of the system or of `.cache/`.
    Tool(&'static str),
}

/// Returns from the test, counted as skipped, unless the machine has all that is named.
///
/// `require!("name of the test"; Need::Namespaces, Need::Tool("ping"))`
#[macro_export]
macro_rules! require {
    ($name:expr; $($need:expr),+ $(,)?) => {
        if !$crate::skip::have($name, &[$($need),+]) {
            return;
        }
    };
}

/// Returns from the test, counted as skipped, unless namespaces can be made and our eBPF programs loaded. A second
/// argument is what the test returns then, if it returns something.
#[macro_export]
macro_rules! require_root_and_bpf {
    ($name:expr $(, $result:expr)?) => {
        if !$crate::skip::have($name, &[$crate::Need::Namespaces, $crate::Need::Bpf, $crate::Need::EbpfObject]) {
            return $($result)?;
        }
    };
}

/// Whether the machine has all of `needs`; if not, `test` is reported as skipped.
pub fn have(test: &str, needs: &[Need]) -> bool {
    match needs.iter().find_map(|need| need.missing()) {
        None => true,
        Some(reason) => {
            report(test, &reason);
            false
        }
    }
}

impl Need {
    /// Why the machine can't give this; `None` if it can.
    pub fn missing(self) -> Option<String> {
        static NAMESPACES: OnceLock<Option<String>> = OnceLock::new();
        static BPF: OnceLock<Option<String>> = OnceLock::new();
        // The first test finds them where they belong; those after it may find them on their way back.
        static CARDS: OnceLock<Option<String>> = OnceLock::new();
        match self {
            Self::Namespaces => NAMESPACES.get_or_init(no_namespaces).clone(),
            Self::Bpf => BPF.get_or_init(no_bpf).clone(),
            Self::EbpfObject => (!workspace_root().join("target/bpf/tc.o").is_file())
                .then(|| "the eBPF programs are not built (cargo xtask build-ebpf)".into()),
            Self::OvsModule => (!Path::new("/sys/module/openvswitch").is_dir())
                .then(|| "the openvswitch module is not loaded (cargo xtask test-vm runs such tests)".into()),
            Self::Cards => CARDS.get_or_init(no_cards).clone(),
            Self::XdpToVeth => linux_before((6, 3))
                .then(|| "Linux before 6.3 doesn't say whether a veth takes frames from the XDP hook".into()),
            Self::Tool(name) => tools::find(name).is_none().then(|| format!("{name} is not installed")),
        }
    }
}

/// Whether the kernel is older; what has no version that can be read is not.
fn linux_before(wanted: (u32, u32)) -> bool {
    let release = nix::sys::utsname::uname().ok().and_then(|name| name.release().to_str().map(str::to_owned));
    let mut numbers = release.iter().flat_map(|release| release.split(['.', '-', '+'])).map_while(|n| n.parse().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) < wanted)
}

fn no_namespaces() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    if tools::find("ip").is_none() {
        return Some("ip (iproute2) is not installed".into());
    }
    Netns::new("probe").err().map(|error| format!("can't make network namespaces: {error}"))
}

fn no_bpf() -> Option<String> {
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("the kernel has no BTF (/sys/kernel/btf/vmlinux)".into());
    }
    crate::bpf::ring_buffer().err().map(|error| match error.raw_os_error() {
        Some(libc::EPERM) => "not allowed to use BPF".into(),
        Some(libc::EINVAL) => "the kernel has no BPF ring buffers (Linux 5.8)".into(),
        _ => format!("the kernel refuses BPF: {error}"),
    })
}

fn no_cards() -> Option<String> {
    let none = cards::device(0, cards::End::Near).is_none();
    none.then(|| "there are no cards wired to each other (cargo xtask test-vm has some)".into())
}

fn report(test: &str, reason: &str) {
    // Each line in one write: tests of several processes append to the same file.
    let line = |separator: &dyn fmt::Display| format!("{test}{separator}{}\n", reason.replace('\n', " "));
    eprint!("SKIPPED {}", line(&": "));
    if let Some(log) = env::var_os(SKIP_LOG) {
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .and_then(|mut file| file.write_all(line(&'\t').as_bytes()));
        if let Err(error) = written {
            eprintln!("can't write {}: {error}", Path::new(&log).display());
        }
    }
}
