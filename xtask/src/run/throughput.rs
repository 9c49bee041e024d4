//! TCP through the switch and through a bridge of the kernel's, in turns: what a user of the one would miss or gain.
//!
//! Both ways join the same two hosts by the same kind of wires. The turns are short and many, so that what else the machine
//! does falls on both; the figures are medians. Where the target is missed more turns follow, and all of them count.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use super::{
    address::{BRIDGED, SWITCHED, v4},
    lab::Lab,
    report::{Pairs, Report, median},
    traffic::{Pair, Stream},
};

/// The switch's share of the bridge's throughput that must be reached.
pub(super) const TARGET: f64 = 0.8;
/// Turns of each in a round.
const TURNS: usize = 15;
/// Rounds at most.
const ROUNDS: usize = 6;
/// How long a turn is, after the time that a stream takes to find its pace.
const TURN: Duration = Duration::from_millis(200);
const SETTLE: Duration = Duration::from_millis(50);

/// Compares them.
pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    report.check("TCP against kernel bridge", || compare(lab))
}

fn compare(lab: &Lab) -> Result<String> {
    if let Err(error) = &lab.bridge {
        return Err(anyhow!("{error:#}"));
    }
    let stream = |network| {
        let pair = Pair { from: &lab.one.netns, to: &lab.two.netns, address: v4(network, lab.two.number) };
        let stream = pair.stream()?;
        stream.pause(true);
        anyhow::Ok(stream)
    };
    let streams = [stream(SWITCHED)?, stream(BRIDGED)?];
    let turn = |stream: &Stream| {
        stream.pause(false);
        stream.rate(SETTLE)?;
        let rate = stream.rate(TURN);
        stream.pause(true);
        rate
    };
    let mut pairs = Pairs::default();
    for _ in 0..ROUNDS {
        for _ in 0..TURNS {
            pairs.ours.push(turn(&streams[0])?);
            pairs.others.push(turn(&streams[1])?);
        }
        if pairs.ratio() >= TARGET {
            break;
        }
    }
    let mut bytes = 0;
    for stream in streams {
        bytes += stream.finish()?;
    }
    let (ratio, switch, bridge) = (pairs.ratio(), median(&pairs.ours), median(&pairs.others));
    let text = format!(
        "{switch:.1} Gbit/s, the kernel's bridge {bridge:.1}: {ratio:.2} of it (medians of {} turns; {:.1} GB, every byte \
         compared)",
        pairs.ours.len(),
        bytes as f64 * 1e-9
    );
    ensure!(ratio >= TARGET, "{text}; {TARGET} is the least");
    Ok(text)
}
