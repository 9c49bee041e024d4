//! Every kind of traffic between two hosts that differ in how they are connected.

use anyhow::{Context as _, Result};
use testkit::Netns;

use super::{
    address::{SWITCHED, both, v4, v6},
    lab::{Lab, SWITCH},
    report::Report,
    traffic::{Pair, ping},
};
use crate::cmd;

/// Echoes of one `ping`.
const PINGS: u32 = 20;
/// Bytes of a checked transfer.
const BULK: usize = 64 << 20;
/// Bytes of one that only shows a way.
const SOME: usize = 8 << 20;
/// How many datagrams are sent.
const DATAGRAMS: usize = 600;

/// Shows them all.
pub(super) fn run(lab: &Lab, report: &mut Report) -> Result<()> {
    cmd::step("traffic");
    let (one, two) = (&lab.one.netns, &lab.two.netns);
    let pair = |address| Pair { from: one, to: two, address };
    let [four, six] = both(SWITCHED, lab.two.number);

    report.check("ping IPv4", || ping(one, four, PINGS))?;
    report.check("ping IPv6", || ping(one, six, PINGS))?;
    report.check("TCP bulk IPv4", || bulk(pair(four), BULK))?;
    report.check("TCP bulk IPv6", || bulk(pair(six), BULK))?;
    report.check("UDP", || {
        let sizes = datagram_sizes();
        pair(four).echo(&sizes).context("IPv4")?;
        pair(six).echo(&sizes).context("IPv6")?;
        let largest = sizes.iter().max().copied().unwrap_or_default();
        Ok(format!("{} datagrams of up to {largest} bytes came back unchanged", 2 * sizes.len()))
    })?;
    report.check("second bridge, patch port", || way(one, &lab.three.netns, lab.three.number))?;
    report.check("host over internal port", || {
        way(one, &lab.switch, SWITCH)?;
        way(&lab.switch, two, lab.two.number)
    })
}

/// Everything between two hosts in short.
fn way(from: &Netns, to: &Netns, number: u8) -> Result<String> {
    for address in both(SWITCHED, number) {
        ping(from, address, 3)?;
    }
    Pair { from, to, address: v6(SWITCHED, number) }.echo(&[0, 1, 100, 1000, 10_000])?;
    bulk(Pair { from, to, address: v4(SWITCHED, number) }, SOME).map(|bulk| format!("ping, ping6, UDP, TCP {bulk}"))
}

fn bulk(pair: Pair<'_>, len: usize) -> Result<String> {
    let checksum = pair.transfer(len)?;
    Ok(format!("{} MiB, checksum {checksum:016x} on both ends", len >> 20))
}

/// From empty to larger than a frame, which the hosts then cut into fragments.
fn datagram_sizes() -> Vec<usize> {
    (0..DATAGRAMS).map(|i| i * 5 + if i % 10 == 0 { 20_000 } else { 0 }).collect()
}
