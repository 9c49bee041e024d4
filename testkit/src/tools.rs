//! Finding the programs that tests use beside our own.
//!
//! The reference switch's tools are not installed system-wide (its package starts a daemon): `cargo xtask test`
//! unpacks them under `.cache/ovs`, from where they run with their libraries.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::workspace_root;

/// Where the reference switch's packages are unpacked.
pub fn ovs_folder() -> PathBuf {
    workspace_root().join(".cache/ovs")
}

/// The name of the program of [`ovstest`].
pub const OVSTEST: &str = "ovstest";

/// Where the reference's own measurements are.
pub fn ovstest_folder() -> PathBuf {
    workspace_root().join(".cache/ovstest")
}

/// The reference's own measurements, which `cargo xtask bench classifier` builds.
pub fn ovstest() -> Option<PathBuf> {
    Some(ovstest_folder().join(OVSTEST)).filter(|file| file.is_file())
}

/// A program by its name: from PATH, the administrators' folders (which users often don't have in PATH), or
/// `.cache/ovs`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .chain(ovs_programs())
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A command that runs one of the reference switch's programs (`ovs-appctl`, `ovs-ofctl`, `ovsdb-server`,
/// `ovs-vswitchd` …) or any other that [`find`] finds, with its libraries. `None` if it is not there.
pub fn command(program: &str) -> Option<Command> {
    let file = find(program)?;
    let mut command = Command::new(&file);
    if file.starts_with(ovs_folder()) {
        command.envs(ovs_environment());
    }
    Some(command)
}

/// What the unpacked programs need in their environment; for commands that are put together otherwise, as those of
/// [`Netns::command`](crate::Netns::command).
pub fn ovs_environment() -> Vec<(&'static str, PathBuf)> {
    let folder = ovs_folder();
    let libraries = fs::read_dir(folder.join("usr/lib")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = libraries.filter(|path| is_multiarch(path)).collect();
    // Where the library for AF_XDP sockets looks for its program.
    let programs = paths.first().map(|folder| folder.join("bpf")).unwrap_or_default();
    paths.extend(env::var_os("LD_LIBRARY_PATH").iter().flat_map(env::split_paths));
    let paths = env::join_paths(paths).unwrap_or_default();
    vec![
        ("LD_LIBRARY_PATH", paths.into()),
        ("OVS_PKGDATADIR", folder.join("usr/share/openvswitch")),
        ("LIBXDP_OBJECT_PATH", programs),
    ]
}

fn ovs_programs() -> impl Iterator<Item = PathBuf> {
    let folder = ovs_folder();
    ["usr/bin", "usr/sbin", "usr/lib/openvswitch-switch"].map(|below| folder.join(below)).into_iter()
}

/// `usr/lib/x86_64-linux-gnu` and its like.
fn is_multiarch(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains("-linux-"))
}
