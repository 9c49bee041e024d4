//! `--keep` and `--end`: a switch that stays up after the run.
//!
//! The namespaces get names without the number of this process, since those are removed once the process is gone: a namespace
//! is named by a file that it is mounted on, so a second name is a second mount.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use testkit::{Netns, process::run_ok, tools, wait_until};

use super::{
    daemon::{self, Daemon},
    lab::Lab,
    place::Place,
};
use crate::cmd;

/// Where `ip netns` looks.
const FOLDER: &str = "/run/netns";
/// What the names of kept namespaces begin with.
const PREFIX: &str = "sluice-";

/// Leaves everything up and says how to look around and how to end it.
pub(super) fn keep(lab: Lab, daemon: Daemon, place: Place) -> Result<()> {
    let Lab { switch, bridge, one, two, three, late, access1, access2, other, trunk } = lab;
    let hosts = [one, two, three, late, access1, access2, other, trunk];
    let mut names = Vec::new();
    let namespaces = hosts.into_iter().map(|host| host.netns).chain(bridge.ok());
    for netns in namespaces {
        names.push(rename(netns)?);
    }
    let switch = rename(switch)?;
    let pid = daemon.pid();
    daemon.keep();
    let appctl = appctl(&place)?;
    let folder = place.folder().to_path_buf();
    place.keep();

    println!("==> vswitchd (process {pid}) stays up; its files are in {}", folder.display());
    println!("    the switch is in namespace {switch}, hosts are in {}", names.join(", "));
    for ask in ["dpctl/show", "dpctl/dump-flows", "fdb/show br0", "dpif/show", "upcall/show", "list-commands"] {
        println!("      {appctl} {ask}");
    }
    println!("      ip netns exec {PREFIX}one ping 10.0.0.2");
    println!("      ip -n {switch} link");
    println!("      bpftool link; ls {}/bpf/sluice/*/*", folder.display());
    println!("    and to end it:");
    println!("      cargo xtask run --end");
    Ok(())
}

/// Ends what was kept; whether there is nothing left of it.
pub(super) fn end() -> Result<bool> {
    let Some(place) = Place::kept() else {
        println!("nothing was kept");
        return Ok(true);
    };
    let step = cmd::step("ending the switch that was kept");
    if let Err(error) = daemon::ask(&place.socket(), "exit", &["--cleanup"], Duration::from_secs(20)) {
        // It may have been ended by hand; what keeps its namespace is ended below.
        println!("    vswitchd: {error:#}");
    }
    let names = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with(PREFIX)) {
        let ip = |words: &[&str]| run_ok(std::process::Command::new("ip").args(words), Duration::from_secs(10));
        let pids = || ip(&["netns", "pids", &name]).unwrap_or_default();
        if !wait_until(Duration::from_secs(5), || pids().trim().is_empty()) {
            for pid in pids().split_whitespace().filter_map(|pid| pid.parse().ok()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        ip(&["netns", "del", &name])?;
    }
    drop(place);
    step.done("ended");
    Ok(true)
}

/// Gives a namespace a name that outlives this process.
fn rename(netns: Netns) -> Result<String> {
    let label = netns.name().rsplit('-').next().unwrap_or_default();
    let name = format!("{PREFIX}{label}");
    let path = Path::new(FOLDER).join(&name);
    File::create_new(&path).with_context(|| format!("can't make {}", path.display()))?;
    mount(Some(&netns.path()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("can't mount {} on {}", netns.path().display(), path.display()))?;
    // Only the old name goes: no process is asked to leave, nothing is removed.
    run_ok(std::process::Command::new("ip").args(["netns", "del", &netns.keep()]), Duration::from_secs(10))?;
    Ok(name)
}

/// What one types to ask the daemon: a script where `ovs-appctl` is not installed but unpacked with its libraries.
pub(super) fn appctl(place: &Place) -> Result<String> {
    let (program, socket) = (tools::find("ovs-appctl"), place.socket());
    let (Some(program), socket) = (program.filter(|path| path.starts_with(tools::ovs_folder())), socket.display())
    else {
        return Ok(format!("ovs-appctl -t {}", place.socket().display()));
    };
    let environment: Vec<String> =
        tools::ovs_environment().iter().map(|(name, value)| format!("{name}='{}'", value.display())).collect();
    let text = format!("#!/bin/sh\n{} exec '{}' -t {socket} \"$@\"\n", environment.join(" "), program.display());
    let script = place.folder().join("appctl");
    fs::write(&script, text)
        .and_then(|()| fs::set_permissions(&script, Permissions::from_mode(0o755)))
        .with_context(|| format!("can't write {}", script.display()))?;
    Ok(script.display().to_string())
}
