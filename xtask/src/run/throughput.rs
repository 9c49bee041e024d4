//! TCP through the switch and through a bridge of the kernel's, in turns: what a user of the one would miss or gain.
//!
//! Both ways join the same two hosts by the same kind of wires. The turns are short and many, so that what else the machine
//! does in this minute falls on both; the figures are medians. A ratio below the target is measured twice more, and all
//! turns count.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use super::{
    address::{BRIDGED, SWITCHED, v4},
    lab::Lab,
    report::{Report, median},
    traffic::Pair,
};

/// The switch's share of the bridge's throughput that must be reached.
pub(super) const TARGET: f64 = 0.8;
/// Turns of each at first.
const TURNS: usize = 7;
/// Rounds of turns at most.
const ROUNDS: usize = 3;
/// How long a turn is, after the time that a stream takes to find its pace.
const TURN: Duration = Duration::from_millis(600);
const WARM_UP: Duration = Duration::from_millis(200);

/// Compares them.
pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    report.check("TCP against kernel bridge", || compare(lab))
}

fn compare(lab: &Lab) -> Result<String> {
    if let Err(error) = &lab.bridge {
        return Err(anyhow!("{error:#}"));
    }
    let (mut switched, mut bridged, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        for _ in 0..TURNS {
            for (network, rates) in [(SWITCHED, &mut switched), (BRIDGED, &mut bridged)] {
                let pair = Pair { from: &lab.one.netns, to: &lab.two.netns, address: v4(network, lab.two.number) };
                let stream = pair.stream()?;
                stream.rate(WARM_UP)?;
                rates.push(stream.rate(TURN)?);
                bytes += stream.finish()?;
            }
        }
        if median(&switched) >= TARGET * median(&bridged) {
            break;
        }
    }
    let (switch, bridge) = (median(&switched), median(&bridged));
    let text = format!(
        "{switch:.1} Gbit/s, the kernel's bridge {bridge:.1}: {:.2} of it (medians of {}; {:.1} GB, every byte compared)",
        switch / bridge,
        switched.len(),
        bytes as f64 * 1e-9
    );
    ensure!(switch >= TARGET * bridge, "{text}; {TARGET} is the least");
    Ok(text)
}
