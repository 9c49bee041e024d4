//! What the integration tests and benchmarks of all crates share.
//!
//! A test of a switch needs hosts and wires. Here a host is a network namespace ([`Netns`]), a wire is a veth pair
//! ([`veth_pair`]), a network card's view of it is a raw socket ([`RawSocket`]), and a command on a host is a bounded
//! process ([`Netns::exec`]). Everything is a guard: it is gone when the test ends, also when it panics, and what a
//! killed test left behind the next one removes.
//!
//! Such tests need root, a kernel with BPF, and tools. A test says so in its first line ([`require!`],
//! [`require_root_and_bpf!`]); where something is missing it returns at once and is *counted as skipped* with the
//! reason, never silently passed.
//!
//! ```no_run
//! use std::time::Duration;
//! use testkit::{Netns, RawSocket, veth_pair};
//!
//! # fn test() -> std::io::Result<()> {
//! testkit::require_root_and_bpf!("a frame crosses the wire", Ok(()));
//! let (left, right) = (Netns::new("left")?, Netns::new("right")?);
//! veth_pair(&left, "eth0", &right, "eth0")?;
//! let (tx, rx) = (RawSocket::open(&left, "eth0")?, RawSocket::open(&right, "eth0")?);
//! tx.send(&[0xff; 60])?;
//! assert!(rx.recv(Duration::from_secs(1))?.is_some());
//! # Ok(()) }
//! ```

pub mod bpf;
pub mod cards;
pub mod frames;
pub mod live;
pub mod netns;
pub mod process;
pub mod raw;
pub mod reference;
pub mod report;
pub mod skip;
pub mod tools;
pub mod wait;

use std::{
    env,
    path::{Path, PathBuf},
};

pub use self::{
    netns::{Netns, veth_pair},
    process::Process,
    raw::{Frame, Gso, Offload, RawSocket},
    reference::ReferenceSwitch,
    skip::Need,
    wait::wait_until,
};

/// The folder of the workspace's `Cargo.toml`.
pub fn workspace_root() -> PathBuf {
    // Cargo sets the variable at run time too: it stays right when the tree (and its target folder) has been moved.
    let package = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let root = package.ancestors().find(|folder| folder.join("rust-toolchain.toml").is_file());
    root.map(Path::to_path_buf).unwrap_or(package)
}
