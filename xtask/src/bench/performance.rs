//! `docs/performance.md`: written from what the last runs of the benchmarks have left under `target/bench`.
//!
//! A benchmark's part of the page stands between two comments and is replaced as a whole; what stands around it is written by
//! people. A row's name is CASE/PEER: cases are the table's lines, peers its columns. The plots lie beside the page.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;
use testkit::report::figure;

use super::plot::{Bar, Plot};
use crate::cmd;

const PAGE: &str = "docs/performance.md";

/// A part of the page.
struct Part {
    bench: &'static str,
    /// Its plot's title; the cases that are in it are those counted in frames per second.
    title: &'static str,
    /// The peers, in the order of columns and bars.
    peers: &'static [&'static str],
}

const PARTS: [Part; 3] = [
    Part {
        bench: "forward",
        title: "Forwarding",
        peers: &["tc-bare", "tc-ours", "bridge", "xdp-bare", "xdp-ours", "reference-af-packet", "reference-af-xdp"],
    },
    Part {
        bench: "masks",
        title: "Masks and flows",
        peers: &["tc-ours", "xdp-ours", "reference-af-packet", "reference-af-xdp"],
    },
    Part { bench: "tse", title: "Tuple-space explosion", peers: &["calm", "attacked"] },
];

/// Writes the parts of the page whose benchmarks have been run.
pub(super) fn write() -> Result<()> {
    let path = cmd::root().join(PAGE);
    let mut page = fs::read_to_string(&path).with_context(|| format!("can't read {PAGE}"))?;
    for part in &PARTS {
        let Ok(text) = fs::read_to_string(cmd::root().join(format!("target/bench/{}.json", part.bench))) else {
            continue;
        };
        let results: Value =
            serde_json::from_str(&text).with_context(|| format!("target/bench/{}.json", part.bench))?;
        page = replace(&page, part.bench, &part.section(&results))?;
        if let Some(svg) = part.plot(&results) {
            let file = format!("docs/performance-{}.svg", part.bench);
            fs::write(cmd::root().join(&file), svg).with_context(|| format!("can't write {file}"))?;
        }
    }
    fs::write(&path, page).with_context(|| format!("can't write {PAGE}"))
}

/// The page with another text between a benchmark's comments.
fn replace(page: &str, bench: &str, section: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- begin {bench} -->\n"), format!("<!-- end {bench} -->\n"));
    let parts = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.with_context(|| format!("{PAGE} has no place for the benchmark {bench}"))?;
    Ok(format!("{before}{begin}{section}{end}{after}"))
}

impl Part {
    fn section(&self, results: &Value) -> String {
        let machine = &results["machine"];
        let word = |name: &str| machine[name].as_str().unwrap_or("unknown").to_owned();
        let mut text =
            format!("Taken on {} CPUs ({}), Linux {}.\n\n", machine["cpus"], word("cpu"), kernel(&word("kernel")));
        let cases = self.cases(results);
        if !cases.is_empty() {
            let columns: Vec<_> = self.peers.iter().map(|peer| format!(" {peer} |")).collect();
            text += &format!("| |{}\n|---|{}\n", columns.concat(), "---:|".repeat(columns.len()));
            for (case, unit, rows) in &cases {
                let cells = self
                    .peers
                    .iter()
                    .map(|peer| rows.get(*peer).map_or(" – |".into(), |row| format!(" {} |", cell(row))));
                text += &format!("| {case}, {unit} |{}\n", cells.collect::<String>());
            }
            text.push('\n');
        }
        for row in rows(results).filter(|row| !id(row).contains('/')) {
            text += &format!("- {}: {}\n", id(row), cell(row));
        }
        for goal in results["goals"].as_array().into_iter().flatten() {
            let (value, target) =
                (goal["value"].as_f64().map_or("none".into(), figure), figure(goal["target"].as_f64().unwrap_or(0.0)));
            let met = if goal["met"] == Value::Bool(true) { "met" } else { "missed" };
            text += &format!(
                "- goal `{}`: {value} {} {target}, {met}\n",
                goal["id"].as_str().unwrap_or_default(),
                goal["relation"].as_str().unwrap_or_default()
            );
        }
        text.push('\n');
        results["notes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .for_each(|note| text += &format!("- {note}\n"));
        text
    }

    fn plot(&self, results: &Value) -> Option<String> {
        let bar = |row: &Value| {
            let figure = |name: &str| row["summary"][name].as_f64();
            Some(Bar { median: figure("median")?, p10: figure("p10")?, p90: figure("p90")? })
        };
        let group = |(case, _, rows): (String, String, BTreeMap<String, Value>)| {
            (case, self.peers.iter().map(|peer| rows.get(*peer).and_then(bar)).collect())
        };
        let cases = self.cases(results).into_iter().filter(|(_, unit, _)| unit == "frames/s");
        let plot = Plot { title: self.title, unit: "frames/s", series: self.peers, groups: cases.map(group).collect() };
        (!plot.groups.is_empty()).then(|| plot.svg())
    }

    /// Cases in the order of their measuring, with their unit and their rows by peer.
    fn cases(&self, results: &Value) -> Vec<(String, String, BTreeMap<String, Value>)> {
        let mut cases: Vec<(String, String, BTreeMap<String, Value>)> = Vec::new();
        for row in rows(results) {
            let Some((case, peer)) = id(row).split_once('/') else { continue };
            let unit = row["unit"].as_str().unwrap_or_default();
            match cases.iter_mut().find(|(name, ..)| name == case) {
                Some((_, _, rows)) => drop(rows.insert(peer.into(), row.clone())),
                None => cases.push((case.into(), unit.into(), BTreeMap::from([(peer.into(), row.clone())]))),
            }
        }
        cases
    }
}

fn rows(results: &Value) -> impl Iterator<Item = &Value> {
    results["rows"].as_array().into_iter().flatten()
}

fn id(row: &Value) -> &str {
    row["id"].as_str().unwrap_or_default()
}

/// Median and spread of a row.
fn cell(row: &Value) -> String {
    let summary = |name: &str| row["summary"][name].as_f64();
    match (summary("median"), summary("spread")) {
        (Some(median), Some(spread)) => format!("{} ± {:.0} %", figure(median), 50.0 * spread),
        _ => "none".into(),
    }
}

/// A kernel's version without what its builder has added to it.
fn kernel(release: &str) -> &str {
    release.split(['-', '+']).next().unwrap_or(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_page_is_replaced_and_the_rest_stays() {
        let page = "# a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n";
        assert_eq!(replace(page, "x", "new\n").unwrap(), "# a\n<!-- begin x -->\nnew\n<!-- end x -->\nb\n");
        assert!(replace(page, "y", "").is_err());
    }

    #[test]
    fn cases_are_lines_and_peers_are_columns() {
        let row = |id: &str, median: f64| serde_json::json!({"id": id, "unit": "frames/s", "summary": {"median": median, "spread": 0.1, "p10": median, "p90": median}});
        let results = serde_json::json!({
            "machine": {"cpus": 2, "cpu": "X", "kernel": "6.1.0-44-amd64"},
            "rows": [row("nat/tc-ours", 1500.0), row("nat/xdp-ours", 2500.0), row("ratio", 0.5)],
            "goals": [{"id": "g", "value": 0.5, "relation": ">=", "target": 0.9, "met": false}],
            "notes": ["n"],
        });
        let text = PARTS[1].section(&results);
        assert!(text.starts_with("Taken on 2 CPUs (X), Linux 6.1.0.\n"), "{text}");
        assert!(text.contains("| nat, frames/s | 1500 ± 5 % | 2500 ± 5 % | – | – |\n"), "{text}");
        assert!(text.contains("- ratio: 0.5 ± 5 %\n- goal `g`: 0.5 >= 0.9, missed\n\n- n\n"), "{text}");
        assert!(PARTS[1].plot(&results).is_some_and(|svg| svg.contains(">2500<")));
    }
}
