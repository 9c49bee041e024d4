//! `cargo xtask bench NAME…`: benchmarks, all in one shape.
//!
//! A benchmark is a program that measures and prints its [`Results`] as JSON (the contract stands in
//! `testkit::report`). Here they become a table with median and spread, a file `target/bench/NAME.json` with every
//! sample and the machine it was taken on, and one line per goal: `goal ID VALUE RELATION TARGET met|missed`. A missed
//! goal is a result, not a failure: the exit code tells only whether the measuring worked. What forwarding costs goes to
//! docs/performance.md too ([`performance`]), with plots ([`plot`]).

mod ovstest;
mod performance;
mod plot;

use std::{
    env, fs,
    process::{Command, Stdio},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use testkit::report::{Results, Row, Summary, figure};

use crate::{build_ebpf, cmd, setup, vm};

/// Options of `bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which to run, or `all`; none lists them
    names: Vec<String>,
    /// Kernel of the benchmark `vm`
    #[arg(long, default_value = vm::bench::KERNEL, value_name = "VERSION")]
    kernel: String,
    /// How often the benchmark `vm` boots its machine
    #[arg(long, default_value_t = vm::bench::BOOTS)]
    boots: u32,
    /// Fewer rounds of the benchmarks forward, masks and tse, whose figures then say little; docs/performance.md stays as it is
    #[arg(long)]
    short: bool,
}

/// A benchmark that can be run by its name.
struct Bench {
    name: &'static str,
    /// One line for the list.
    about: &'static str,
    /// Whether it is measured in virtual machines.
    vm: bool,
    /// The crate and its example that measures.
    package: &'static str,
    example: &'static str,
    /// What the example is told; one that is told anything knows `--short` too, and its results go to docs/performance.md.
    args: &'static [&'static str],
    /// Gets what it needs.
    set_up: fn() -> Result<()>,
}

const BENCHES: [Bench; 10] = [
    Bench {
        name: "datapath",
        about: "ns per packet of the eBPF datapath by the kernel's test run, and the verifier's cost",
        vm: false,
        package: "dpif-ebpf",
        example: "bench_datapath",
        args: &[],
        set_up: datapath,
    },
    Bench {
        name: "forward",
        about: "frames per second, latency and TCP bulk beside bare redirections, the kernel's bridge and the reference",
        vm: false,
        package: "dpif-ebpf",
        example: "bench_forward",
        args: &["forward"],
        set_up: datapath,
    },
    Bench {
        name: "masks",
        about: "frames per second over 1 to 200 masks and up to 60,000 flows, beside the reference",
        vm: false,
        package: "dpif-ebpf",
        example: "bench_forward",
        args: &["masks"],
        set_up: datapath,
    },
    Bench {
        name: "tse",
        about: "what packets that each make a new mask cost established flows",
        vm: false,
        package: "vswitchd",
        example: "bench_tse",
        args: &["tse"],
        set_up: datapath,
    },
    Bench {
        name: "classifier",
        about: "lookups per second in 1,000 rules of 30 masks, beside the reference, and changes of a table of 100,000 rules",
        vm: false,
        package: "ofproto",
        example: "bench_classifier",
        args: &[],
        set_up: classifier,
    },
    Bench {
        name: "upcall",
        about: "new flows per second, beside the reference's daemon, and what each part of an upcall costs",
        vm: false,
        package: "vswitchd",
        example: "bench_upcall",
        args: &[],
        set_up: datapath,
    },
    Bench {
        name: "storm",
        about: "what a storm of misses by one port costs connections of others",
        vm: false,
        package: "vswitchd",
        example: "bench_storm",
        args: &[],
        set_up: datapath,
    },
    Bench {
        name: "crr",
        about: "TCP connections per second through four rules, and the megaflows that they make, beside the reference",
        vm: false,
        package: "vswitchd",
        example: "bench_crr",
        args: &[],
        set_up: datapath,
    },
    Bench {
        name: "revalidate",
        about: "ms per round of the revalidators over 200,000 flows of the eBPF datapath, memory per flow",
        vm: false,
        package: "vswitchd",
        example: "bench_revalidate",
        args: &[],
        set_up: datapath,
    },
    Bench {
        name: "vm",
        about: "instructions per new flow and per packet in virtual machines, beside the reference on the kernel's module",
        vm: true,
        package: "vswitchd",
        example: "bench_vm",
        args: &[],
        set_up: datapath,
    },
];

/// The eBPF objects, and the peers' programs.
fn datapath() -> Result<()> {
    build_ebpf::run(&build_ebpf::Options::default())?;
    setup::test_tools();
    Ok(())
}

/// The reference's own measurement; where it can't be had, ours stands alone.
fn classifier() -> Result<()> {
    if let Err(error) = ovstest::build() {
        println!("    without the reference's classifier: {error:#}");
    }
    Ok(())
}

/// Runs the named benchmarks, each to its end even if an earlier one could not measure.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if options.names.is_empty() {
        println!("Benchmarks (cargo xtask bench NAME… or all):");
        BENCHES.iter().for_each(|bench| println!("  {:<12} {}", bench.name, bench.about));
        return Ok(true);
    }
    let chosen = choose(&options.names)?;
    let mut measured = true;
    for bench in chosen {
        if let Err(error) = bench.run(options) {
            eprintln!("error: benchmark {}: {error:#}", bench.name);
            measured = false;
        }
    }
    Ok(measured)
}

fn choose(names: &[String]) -> Result<Vec<&'static Bench>> {
    if names.iter().any(|name| name == "all") {
        return Ok(BENCHES.iter().collect());
    }
    let find = |name: &String| {
        let known = || BENCHES.iter().map(|bench| bench.name).collect::<Vec<_>>().join(", ");
        BENCHES.iter().find(|bench| bench.name == name).with_context(|| format!("no benchmark {name}: {}", known()))
    };
    names.iter().map(find).collect()
}

impl Bench {
    fn run(&self, options: &Options) -> Result<()> {
        (self.set_up)()?;
        let step = cmd::step(format!("benchmark {}", self.name));
        let results =
            if self.vm { vm::bench::measure(&options.kernel, options.boots)? } else { self.measure(options.short)? };
        println!();
        print!("{}", table(&results.rows));
        results.notes.iter().for_each(|note| println!("  {note}"));
        println!();
        results.verdicts().iter().for_each(|verdict| println!("{verdict}"));
        let file = self.save(&results)?;
        if !self.args.is_empty() && !options.short {
            performance::write()?;
        }
        step.done(file);
        Ok(())
    }

    /// Builds and runs the program; its progress on standard error is the user's to see.
    fn measure(&self, short: bool) -> Result<Results> {
        if self.package == "vswitchd" {
            cmd::run(cmd::cargo().args([
                "build",
                "--release",
                "--quiet",
                "--package",
                "vswitchd",
                "--bin",
                "vswitchd",
            ]))?;
        }
        let mut cargo = cmd::cargo();
        cargo.args(["run", "--release", "--package", self.package, "--example", self.example, "--"]);
        cargo.args(self.args);
        if short && !self.args.is_empty() {
            cargo.arg("--short");
        }
        let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("can't run cargo")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            print!("{text}");
            bail!("example {} of {} failed ({})", self.example, self.package, output.status);
        }
        let json = text.lines().rev().find(|line| line.starts_with('{'));
        let json = json.with_context(|| format!("example {} printed no results", self.example))?;
        serde_json::from_str(json).with_context(|| format!("example {} printed wrong results", self.example))
    }

    /// Writes `target/bench/NAME.json`; returns its path below the root.
    fn save(&self, results: &Results) -> Result<String> {
        let file = format!("target/bench/{}.json", self.name);
        let rows: Vec<_> = results
            .rows
            .iter()
            .map(|row| {
                let summary = row.summary();
                serde_json::json!({"id": row.id, "unit": row.unit, "summary": summary, "samples": row.samples})
            })
            .collect();
        let json = serde_json::json!({
            "bench": self.name,
            "machine": machine(),
            "rows": rows,
            "goals": results.verdicts(),
            "notes": results.notes,
        });
        let path = cmd::root().join(&file);
        fs::create_dir_all(cmd::root().join("target/bench"))
            .and_then(|()| fs::write(&path, format!("{json:#}\n")))
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(file)
    }
}

/// The table for people: one line a row, figures right-aligned.
fn table(rows: &[Row]) -> String {
    let head = ["", "median", "unit", "spread", "p10", "p90", "samples"].map(String::from);
    let line = |row: &Row| {
        let (id, unit, count) = (row.id.clone(), row.unit.clone(), row.samples.len().to_string());
        match row.summary() {
            None => [id, "none".into(), unit, String::new(), String::new(), String::new(), count],
            Some(Summary { median, p10, p90, spread }) => {
                [id, figure(median), unit, format!("{:.1} %", 100.0 * spread), figure(p10), figure(p90), count]
            }
        }
    };
    let lines: Vec<_> = std::iter::once(head).chain(rows.iter().map(line)).collect();
    let mut widths = [0; 7];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            // Words to the left, figures to the right.
            let cell = if matches!(column, 0 | 2) { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") };
            text.push_str(&cell);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// On what the figures were taken.
fn machine() -> serde_json::Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cpu = cpuinfo.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(cmd::root()).output().ok();
    let commit =
        commit.filter(|out| out.status.success()).map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    serde_json::json!({
        "arch": env::consts::ARCH,
        "commit": commit,
        "cpu": cpu,
        "cpus": thread::available_parallelism().map_or(0, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "unix_time": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_median_and_spread() {
        let row =
            |id: &str, unit: &str, samples: &[f64]| Row { id: id.into(), unit: unit.into(), samples: samples.to_vec() };
        let rows = [row("tc-one-mask", "ns", &[70.0, 71.0, 72.0]), row("tcp", "Gbit/s", &[]), row("ratio", "", &[0.5])];
        let expected = [
            "               median  unit    spread   p10   p90  samples",
            "  tc-one-mask      71  ns       2.3 %  70.2  71.8        3",
            "  tcp            none  Gbit/s                            0",
            "  ratio           0.5           0.0 %   0.5   0.5        1",
        ];
        assert_eq!(table(&rows).lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = choose(&["datapth".into()]).err().map(|error| error.to_string());
        let known =
            "no benchmark datapth: datapath, forward, masks, tse, classifier, upcall, storm, crr, revalidate, vm";
        assert_eq!(error.as_deref(), Some(known));
    }
}
