//! The daemon does not move: what of the switch still does?
//!
//! SIGSTOP takes every thread of the daemon off the processors, as a daemon that is overloaded, in a debugger or being replaced
//! is. Established flows are the kernel's business and go on at their rate; a flow that the datapath has no megaflow for
//! waits until the daemon runs again, and then begins.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{
    address::{SWITCHED, v4},
    daemon::Daemon,
    interrupt,
    lab::{Host, Lab},
    report::{Pairs, Report, median},
    traffic::{Pair, ping},
};
use crate::cmd;

/// The share of its rate that an established flow must keep.
const TARGET: f64 = 0.95;
/// Turns with the daemon running and stopped, each, in a round.
const TURNS: usize = 15;
/// Rounds at most.
const ROUNDS: usize = 6;
/// How long a turn is, and how long after a signal it begins.
const TURN: Duration = Duration::from_millis(200);
const SETTLE: Duration = Duration::from_millis(50);
/// Packets of a flow that waits, and the time between two of them.
const PACKETS: u8 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// The daemon, stopped; goes on when dropped.
struct Stopped<'a>(&'a Daemon);

/// Shows it; the rates only if it need not be `short`.
pub(super) fn run(lab: &Lab, daemon: &Daemon, short: bool, report: &mut Report) -> Result<()> {
    cmd::step("the daemon stopped by SIGSTOP");
    if !short {
        report.check("established flow goes on", || established(lab, daemon))?;
    }
    report.check("new flow waits", || new(lab, daemon))
}

/// One TCP stream throughout; its rate while the daemon runs and while it is stopped, in turns.
fn established(lab: &Lab, daemon: &Daemon) -> Result<String> {
    let address = v4(SWITCHED, lab.two.number);
    let stream = Pair { from: &lab.one.netns, to: &lab.two.netns, address }.stream()?;
    stream.rate(Duration::from_secs(1))?;
    let mut pairs = Pairs::default();
    for _ in 0..ROUNDS {
        for _ in 0..TURNS {
            pairs.others.push(stream.rate(TURN)?);
            let stop = Stopped::stop(daemon)?;
            interrupt::sleep(SETTLE)?;
            pairs.ours.push(stream.rate(TURN)?);
            drop(stop);
            interrupt::sleep(SETTLE)?;
        }
        if pairs.ratio() >= TARGET {
            break;
        }
    }
    stream.finish()?;
    let (ratio, during, before) = (pairs.ratio(), median(&pairs.ours), median(&pairs.others));
    let text = format!(
        "{during:.1} Gbit/s while stopped, {before:.1} while running: {ratio:.2} of it (medians of {} turns)",
        pairs.ours.len()
    );
    ensure!(ratio >= TARGET, "{text}; {TARGET} is the least");
    Ok(text)
}

/// Packets to a host that nobody has talked to yet.
fn new(lab: &Lab, daemon: &Daemon) -> Result<String> {
    let (one, late) = (&lab.one, &lab.late);
    // The hosts know each other's Ethernet addresses: the packet itself is the flow's first.
    introduce(one, late)?;
    introduce(late, one)?;
    let address = v4(SWITCHED, late.number);
    let (client, server) = Pair { from: &one.netns, to: &late.netns, address }.udp()?;

    let stop = Stopped::stop(daemon)?;
    for number in 0..PACKETS {
        client.send(&[number]).context("can't send")?;
        interrupt::sleep(PAUSE)?;
    }
    let mut early = [0; 16];
    if let Ok(n) = server.recv(&mut early) {
        bail!("a packet of a new flow got through a stopped daemon: {:02x?}", early.get(..n));
    }
    let resumed = Instant::now();
    drop(stop);
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut first = [0; 16];
    let n = server.recv(&mut first).context("the flow does not begin after SIGCONT")?;
    let after = resumed.elapsed();
    ensure!(first.get(..n) == Some(&[0]), "the first packet after SIGCONT is not the first that was sent");
    ping(&one.netns, address, 5).context("after SIGCONT")?;
    Ok(format!(
        "{PACKETS} packets in {:.1} s: none arrived until SIGCONT, the first one {:.1} ms after",
        PAUSE.as_secs_f64() * f64::from(PACKETS),
        after.as_secs_f64() * 1e3
    ))
}

/// Tells a host the other one's Ethernet address.
fn introduce(host: &Host, other: &Host) -> Result<()> {
    let mac = other.mac()?.map(|byte| format!("{byte:02x}")).join(":");
    let address = v4(SWITCHED, other.number);
    host.netns.ip(&format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent"))?;
    Ok(())
}

impl<'a> Stopped<'a> {
    fn stop(daemon: &'a Daemon) -> Result<Self> {
        daemon.signal(Signal::SIGSTOP)?;
        let stopped = Self(daemon);
        let status = format!("/proc/{}/stat", daemon.pid());
        let is_stopped = || {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            // The state stands behind the name, which is in parentheses.
            text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        ensure!(testkit::wait_until(Duration::from_secs(5), is_stopped), "vswitchd goes on after SIGSTOP");
        Ok(stopped)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        // It fails only if the daemon has ended, which the next command says.
        let _ = self.0.signal(Signal::SIGCONT);
    }
}
