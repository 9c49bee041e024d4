//! `cargo xtask run`: the switch at work, on this machine, in a minute.
//!
//! Everything is set up and built, a small network is made of namespaces ([`lab`]), the daemon is started in one of them
//! ([`daemon`]) and real traffic is sent through it, kind by kind ([`kinds`]); then what happened is shown, what goes on while
//! the daemon is stopped ([`stopped`]), and what other tools see ([`counters`]). Each kind passes or fails, the [`report`] says
//! so, and everything is removed again, however the run ends.
//!
//! | | |
//! | --- | --- |
//! | `--keep` | leaves it all up ([`keep`]) and says how to look around; `--end` removes it |
//! | `--short` | only what a loaded machine can't change: nothing is compared by its rate. `cargo xtask test` runs this |
//! | `--port IFACE` | no namespaces: a bridge of real devices, until Ctrl-C ([`devices`]) |
//! | no root, no BPF | the same kinds of traffic through the datapath that runs in a process ([`in_process`]) |

mod address;
mod counters;
mod daemon;
mod devices;
mod in_process;
mod interrupt;
mod keep;
mod kinds;
mod lab;
mod place;
mod report;
mod stopped;
mod throughput;
mod traffic;
mod vlan;

use std::path::PathBuf;

use anyhow::Result;
use testkit::Need;

use self::{daemon::Daemon, lab::Lab, place::Place, report::Report};
use crate::{build_ebpf, cmd, setup};

/// Options of `run`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave the switch and its hosts up, and say how to look around
    #[arg(long, conflicts_with_all = ["ports", "end"])]
    keep: bool,
    /// Compare no rates, and use the daemon that the tests use, built with debugging
    #[arg(long, conflicts_with_all = ["keep", "ports", "end"])]
    short: bool,
    /// Remove what an earlier --keep left up
    #[arg(long, conflicts_with = "ports")]
    end: bool,
    /// Bridge this real device (with keys of vswitchd's --port, such as `eth1,tag=10`) until Ctrl-C; may be repeated
    #[arg(long = "port", value_name = "IFACE[,KEY=VALUE...]")]
    ports: Vec<String>,
}

/// Runs the switch; whether everything that was shown passed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if options.end {
        return keep::end();
    }
    if let Some(reason) = missing() {
        return in_process::run(&reason, !options.ports.is_empty());
    }
    if let Err(error) = setup::ebpf_toolchain() {
        if error.downcast_ref::<setup::NotHere>().is_some() {
            return in_process::run(&format!("{error:#}"), !options.ports.is_empty());
        }
        return Err(error);
    }
    devices::check(&options.ports)?;
    if options.keep {
        Place::nothing_kept()?;
        if let Err(error) = setup::reference_switch() {
            println!("    without ovs-appctl: {error:#}");
        }
    }
    build_ebpf::run(&build_ebpf::Options::default())?;
    let program = build_daemon(options.short)?;
    interrupt::install()?;
    if options.ports.is_empty() { show(options, program) } else { devices::run(&options.ports, program) }
}

/// Why the eBPF datapath can't run here; `None` if it can.
pub(crate) fn missing() -> Option<String> {
    let root = nix::unistd::geteuid().is_root();
    let tools = if root { setup::run_tools().err().map(|error| format!("{error:#}")) } else { None };
    tools.or_else(|| [Need::Namespaces, Need::Bpf].into_iter().find_map(Need::missing))
}

/// Builds the daemon, with the eBPF programs in it; returns where it is.
fn build_daemon(debug: bool) -> Result<PathBuf> {
    let step = cmd::step("building vswitchd");
    let mut build = cmd::cargo();
    build.args(["build", "--package", "vswitchd"]).env_remove("CARGO_TARGET_DIR");
    let program = if debug { "target/debug/vswitchd" } else { "target/release/vswitchd" };
    if !debug {
        build.arg("--release");
    }
    cmd::run(&mut build)?;
    step.done(program);
    Ok(cmd::root().join(program))
}

/// Lets this process's senders and receivers (not the daemon, which runs already) go before other work of the machine, whose
/// share would change from one turn of a measurement to the next. Without the program, figures are only less steady.
fn take_precedence() {
    let mut renice = std::process::Command::new("renice");
    renice.args(["-n", "-20", "-p", &std::process::id().to_string()]);
    if let Err(error) = testkit::process::run_ok(&mut renice, std::time::Duration::from_secs(5)) {
        println!("    figures may vary: {error}");
    }
}

fn show(options: &Options, program: PathBuf) -> Result<bool> {
    let step = cmd::step("making hosts, wires and a switch between them");
    // In this order, since they are dropped in the reverse one: daemon, network, the file system with its pins.
    let place = if options.keep { Place::to_keep()? } else { Place::new()? };
    let lab = Lab::new()?;
    let daemon = Daemon::start(&program, &place, Some(&lab.switch), &lab.switch_options())?;
    let before = daemon.stats()?;
    lab.connect()?;
    step.done(format!("{} hosts, vswitchd is process {}", lab.hosts().count(), daemon.pid()));

    if !options.short {
        take_precedence();
    }
    let mut report = Report::new();
    kinds::run(&lab, &mut report)?;
    vlan::run(&lab, &mut report)?;
    if !options.short {
        throughput::run(&lab, &mut report)?;
    }
    counters::show(&daemon, before, options.short, &mut report)?;
    stopped::run(&lab, &daemon, options.short, &mut report)?;
    counters::with_bpftool(&daemon, &place, &mut report)?;
    if !options.keep {
        report.check("clean-up", || daemon.end(&lab, &place))?;
        return Ok(report.summary());
    }
    let passed = report.summary();
    keep::keep(lab, daemon, place)?;
    Ok(passed)
}
