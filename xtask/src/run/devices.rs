//! `--port IFACE`: a bridge of real devices, in the machine's own network namespace, until Ctrl-C.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};

use super::{daemon::Daemon, interrupt, keep, place::Place};
use crate::cmd;

/// How often the counters are printed.
const PERIOD: Duration = Duration::from_secs(10);

/// An error if one of the devices is not there.
pub(super) fn check(ports: &[String]) -> Result<()> {
    for port in ports {
        let device = port.split(',').next().unwrap_or_default();
        if nix::net::if_::if_nametoindex(device).is_err() {
            bail!("there is no network device {device}: `ip link` lists those that are");
        }
    }
    Ok(())
}

/// Bridges the devices until somebody asks for the end; whether the daemon ran until then.
pub(super) fn run(ports: &[String], program: PathBuf) -> Result<bool> {
    let step = cmd::step("starting vswitchd");
    let place = Place::new()?;
    let mut options = vec!["--bridge".to_owned(), "br0".into()];
    for port in ports {
        options.extend(["--port".into(), format!("br0:{port}")]);
    }
    let daemon = Daemon::start(&program, &place, None, &options)?;
    step.done(format!("bridge br0 has {}, and the host is on it through the device br0", ports.join(" ")));
    println!("    {} dpctl/dump-flows", keep::appctl(&place)?);
    println!("    Ctrl-C ends it and gives the devices back");
    while interrupt::sleep(PERIOD).is_ok() {
        if !daemon.is_running() {
            bail!("vswitchd has ended by itself; its last words are in {}", place.folder().display());
        }
        let stats = daemon.stats()?;
        println!("    hit:{} missed:{} lost:{}", stats.hit, stats.missed, stats.lost);
    }
    let step = cmd::step("ending vswitchd");
    daemon.exit()?;
    step.done("the devices are as before");
    Ok(true)
}
