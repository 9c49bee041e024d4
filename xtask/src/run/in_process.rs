//! Without root or BPF: the same switch on the datapath that runs in a process, its ports in memory.

use anyhow::{Result, bail};

use crate::cmd;

/// The crate and its example that sends the traffic.
const PACKAGE: &str = "ofproto";
const EXAMPLE: &str = "memory_switch";

/// Says why it is this and not the eBPF datapath, and shows what can be shown; whether all of it passed.
pub(super) fn run(reason: &str, devices: bool) -> Result<bool> {
    if devices {
        bail!("real devices need the eBPF datapath: {reason}");
    }
    println!("The eBPF datapath can't run here: {reason}. This is the in-process datapath.");
    let step = cmd::step("building the switch with ports in memory");
    cmd::run(cmd::cargo().args(["build", "--release", "--package", PACKAGE, "--example", EXAMPLE]))?;
    step.done("built");
    let mut example = cmd::cargo();
    example.args(["run", "--quiet", "--release", "--package", PACKAGE, "--example", EXAMPLE]);
    Ok(example.status()?.success())
}
