//! What happened, by the daemon's word and by the kernel's.

use std::{
    mem::{offset_of, size_of},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use datapath_common::maps::{DpStats, Lane, name};
use testkit::{process::run_ok, tools};

use super::{
    daemon::{Daemon, Stats},
    interrupt,
    place::Place,
    report::Report,
};
use crate::cmd;

/// How many hits there must be for each miss; and where no stream has run for long.
const HITS_PER_MISS: u64 = 100;
const HITS_PER_MISS_SHORT: u64 = 5;
/// How many megaflows are shown.
const SHOWN_FLOWS: usize = 8;
/// Columns of a line of them.
const COLUMNS: usize = 200;
/// How often the counters are compared while packets that nobody asked for keep changing them.
const ATTEMPTS: usize = 50;

/// Shows counters, megaflows and learned addresses since `before`; after a `short` run or a long one.
pub(super) fn show(daemon: &Daemon, before: Stats, short: bool, report: &mut Report) -> Result<()> {
    let hits_per_miss = if short { HITS_PER_MISS_SHORT } else { HITS_PER_MISS };
    cmd::step("what happened");
    report.check("hits and misses", || {
        let Stats { hit, missed, lost } = daemon.stats()?.since(before);
        let share = 100.0 * hit as f64 / (hit + missed).max(1) as f64;
        let text = format!("{hit} hits, {missed} misses (upcalls), {lost} lost: {share:.3} % never left the kernel");
        ensure!(lost == 0 && hit >= hits_per_miss * missed.max(1), "{text}");
        Ok(text)
    })?;
    report.check("megaflows", || {
        let flows = daemon.ask("dpctl/dump-flows", &[])?;
        let mut lines: Vec<&str> = flows.lines().filter(|line| line.contains("actions:")).collect();
        ensure!(!lines.is_empty(), "no megaflow is installed: {flows:?}");
        lines.sort_by_key(|line| std::cmp::Reverse(packets(line)));
        lines.iter().take(SHOWN_FLOWS).for_each(|line| println!("      {}", shortened(line)));
        Ok(format!("{} installed", lines.len()))
    })?;
    report.check("learned addresses", || {
        let mut learned = 0;
        for bridge in ["br0", "br1"] {
            let table = daemon.ask("fdb/show", &[bridge])?;
            println!("      {bridge}:");
            table.lines().for_each(|line| println!("        {line}"));
            learned += table.lines().count().saturating_sub(1);
        }
        ensure!(learned > 0, "no address was learned");
        Ok(format!("{learned} in br0 and br1"))
    })
}

/// Compares the daemon's counters with those that `bpftool` reads from the pinned map.
pub(super) fn with_bpftool(daemon: &Daemon, place: &Place, report: &mut Report) -> Result<()> {
    report.check("bpftool", || {
        let datapaths = place.datapaths();
        let [datapath] = datapaths.as_slice() else { bail!("expected the pins of one datapath: {datapaths:?}") };
        let map = datapath.join(name::LANE);
        let bpftool = tools::find("bpftool").context("bpftool is not installed")?;
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let first = daemon.stats()?;
            let mut command = Command::new(&bpftool);
            command.args(["--json", "map", "dump", "pinned"]).arg(&map);
            let dump = sum(&run_ok(&mut command, Duration::from_secs(10))?)?;
            let second = daemon.stats()?;
            if first == second {
                ensure!(dump == first, "bpftool sees {dump:?}, dpctl/show says {first:?}");
                let Stats { hit, missed, lost } = dump;
                return Ok(format!("{} has hit:{hit} missed:{missed} lost:{lost}, as dpctl/show", name::LANE));
            }
            last = Some((first, second));
            interrupt::sleep(Duration::from_millis(100))?;
        }
        bail!("the counters don't come to rest: {last:?}")
    })
}

/// Adds up the lanes in a dump of `LANE`, which are all in one value. Each has its counters in front of a megabyte of other things, so
/// it is read as text.
fn sum(json: &str) -> Result<Stats> {
    let (mut sum, mut lanes) = (Stats::default(), 0);
    let (_, value) = json.split_once("\"value\":[").context("bpftool printed no value")?;
    let digits = |byte: &str| u8::from_str_radix(byte.split_once("0x")?.1.get(..2)?, 16).ok();
    let mut rest = value.split(',').peekable();
    while rest.peek().is_some() {
        // The counters of this lane, and what is behind them.
        let lane = rest.by_ref().take(size_of::<Lane>()).enumerate();
        let counters = offset_of!(Lane, stats)..offset_of!(Lane, stats) + size_of::<DpStats>();
        let bytes: Vec<u8> =
            lane.filter(|(at, _)| counters.contains(at)).filter_map(|(_, byte)| digits(byte)).collect();
        lanes += 1;
        let word = |offset: usize| {
            let word = bytes.get(offset..).and_then(|rest| rest.first_chunk());
            word.map(|word| u64::from_ne_bytes(*word)).context("bpftool printed a short value")
        };
        // What the cache answers is counted apart.
        let hits = [offset_of!(DpStats, hit), offset_of!(DpStats, cache_hit), offset_of!(DpStats, special_hit)];
        for offset in hits {
            sum.hit += word(offset)?;
        }
        sum.missed += word(offset_of!(DpStats, missed))?;
        sum.lost += word(offset_of!(DpStats, lost))?;
    }
    ensure!(lanes > 0, "bpftool printed no lanes");
    Ok(sum)
}

fn packets(flow: &str) -> u64 {
    let text = flow.split_once("packets:").map_or("", |(_, rest)| rest);
    text.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

fn shortened(line: &str) -> String {
    if line.chars().count() <= COLUMNS {
        return line.into();
    }
    // The end, with the counters and actions, says more than the middle.
    let start: String = line.chars().take(COLUMNS / 2).collect();
    let end: String = line.chars().skip(line.chars().count() - COLUMNS / 2).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_added_up() {
        let lane = |hit: u8, missed: u8, lost: u8, cache_hit: u8, special_hit: u8| {
            let words = [hit, missed, lost, 77, cache_hit, special_hit].map(|low| {
                let mut word = [0; 8];
                word[if cfg!(target_endian = "little") { 0 } else { 7 }] = low;
                word
            });
            let mut bytes = vec![0; offset_of!(Lane, stats)];
            bytes.extend(words.concat());
            bytes.resize(size_of::<Lane>(), 0xff);
            bytes
        };
        let bytes = [lane(250, 2, 0, 5, 1), lane(0, 3, 4, 1, 9)].concat();
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("0x{byte:02x}")).collect();
        let dump = serde_json::json!([{"key": ["0x00"], "value": bytes}]).to_string();
        assert_eq!(sum(&dump).unwrap(), Stats { hit: 266, missed: 5, lost: 4 });
        assert!(sum("[{\"key\": []}]").is_err() && sum("").is_err());
    }

    #[test]
    fn a_long_flow_keeps_both_ends() {
        let line = format!("in_port(1),{}, packets:12, actions:2", "x".repeat(300));
        let text = shortened(&line);
        assert!(text.starts_with("in_port(1)") && text.ends_with("packets:12, actions:2") && text.contains('…'));
        assert_eq!((packets(&line), packets("none")), (12, 0));
    }
}
