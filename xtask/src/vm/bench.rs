//! `cargo xtask bench vm`: what a packet costs in instructions, beside the reference on the stock module.
//!
//! The measuring program (`vswitchd/examples/bench_vm`) runs in a machine of one processor whose clock counts instructions. The
//! count knows nothing of caches and of what an instruction takes, but it comes out the same on a busy host as on a quiet one,
//! and hardly differs from boot to boot.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use testkit::{
    report::{Relation, Results, figure},
    tools,
};

use super::{Run, prepare};
use crate::cmd;

/// The kernel, unless another is asked for.
pub(crate) const KERNEL: &str = "6.12";
/// How often it is measured; two show how far boots differ.
pub(crate) const BOOTS: u32 = 2;

/// The clock counts instructions, and jumps to the next timer where there is nothing to run. Each repetition of a string
/// instruction counts as one more, so that a kernel that clears memory byte by byte with one would seem slow: without the
/// features that make that fast on real processors, words are moved.
const QEMU: [&str; 4] = ["-icount", "shift=0,sleep=off", "-cpu", "max,erms=off,fsrm=off,fzrm=off,fsrs=off,fsrc=off"];
/// The kernel's packet generator.
const MODULE: &str = "pktgen";
/// MiB.
const MEMORY: u32 = 1536;
/// A second of the guest is a thousand million instructions, which take a busy host its time.
const PATIENCE: Duration = Duration::from_secs(300);
const TIMEOUT: Duration = Duration::from_secs(1200);
/// Folder below the root, and file in it, where the guest's results come to.
const OUT: &str = "target/vm/bench";
const RESULTS: &str = "results.json";
/// The reference switch's tools, which must be unpacked.
const TOOLS: [&str; 6] = ["ovs-appctl", "ovs-ofctl", "ovs-vsctl", "ovs-vswitchd", "ovsdb-server", "ovsdb-tool"];
/// What the switches look for beside their own programs.
const FILES: [&str; 3] = ["rust-toolchain.toml", "target/bpf", ".cache/ovs/usr/share/openvswitch/vswitch.ovsschema"];
/// The gate of `cargo xtask test`: rows and what they may come to at most. The bounds stand well above what is measured, and
/// the eBPF programs are the same in every build. The daemon isn't: what it costs is not held here.
const GATE: [(&str, f64); 2] = [("forward-ebpf-ratio", 0.6), ("forward-netlink-ratio", 1.1)];
/// How far the figures of two boots may lie apart, in percent.
const STEADY: f64 = 3.0;

/// Builds what is measured, and measures it in so many boots.
pub(crate) fn measure(kernel: &str, boots: u32) -> Result<Results> {
    build(&["--release"])?;
    let release = cmd::root().join("target/release");
    let (daemon, program) = (release.join("vswitchd"), release.join("examples/bench_vm"));
    let mut results = Vec::new();
    for boot in 1..=boots.max(1) {
        eprintln!("boot {boot} of {}, kernel {kernel}", boots.max(1));
        // Switches and parts, as the program names them.
        let only = std::env::var("SLUICE_BENCH_ONLY").unwrap_or_default();
        results.push(boot_once(kernel, &daemon, &program, &format!("whole {only}"))?);
    }
    Ok(merged(results))
}

/// Which of the reference switch's tools this machine lacks, if any.
pub(crate) fn missing() -> Option<String> {
    TOOLS.iter().find(|tool| tools::find(tool).is_none()).map(|tool| format!("{tool} is not installed"))
}

/// A small measurement with the daemon as it is built for tests; an error if it is over a bound.
pub(crate) fn gate() -> Result<()> {
    build(&[])?;
    let debug = cmd::root().join("target/debug");
    let results = boot_once(KERNEL, &debug.join("vswitchd"), &debug.join("examples/bench_vm"), "small")?;
    over(&results, &GATE)
}

/// An error that names what is over its bound, or was not measured.
fn over(results: &Results, bounds: &[(&str, f64)]) -> Result<()> {
    let mut over = Vec::new();
    for (id, most) in bounds {
        match results.rows.iter().find(|row| row.id == *id).and_then(|row| row.summary()) {
            Some(summary) if summary.median <= *most => println!("    {id} {} <= {most}", figure(summary.median)),
            Some(summary) => over.push(format!("{id} is {}, more than {most}", figure(summary.median))),
            None => over.push(format!("{id} was not measured")),
        }
    }
    if over.is_empty() { Ok(()) } else { bail!("{}", over.join("; ")) }
}

/// Builds the daemon and the program that measures.
fn build(options: &[&str]) -> Result<()> {
    let build = ["build", "--quiet", "--package", "vswitchd", "--bin", "vswitchd", "--example", "bench_vm"];
    cmd::run(cmd::cargo().args(build).args(options))
}

/// Boots a machine that measures; `size` is what the program takes.
fn boot_once(kernel: &str, daemon: &Path, program: &Path, size: &str) -> Result<Results> {
    let mut files: Vec<PathBuf> = FILES.iter().map(|file| cmd::root().join(file)).collect();
    for tool in TOOLS {
        files.push(tools::find(tool).with_context(|| format!("{tool} is not there: cargo xtask test unpacks it"))?);
    }
    files.extend([daemon.to_owned(), program.to_owned()]);
    let script = format!("exec {} {} {size} > $VM_OUT/{RESULTS}", program.display(), daemon.display());
    let command = ["sh".to_owned(), "-c".into(), script];
    let (modules, qemu_args) = ([MODULE.to_owned()], QEMU.map(String::from));
    let out = cmd::root().join(OUT);
    let file = out.join(RESULTS);
    let _ = fs::remove_file(&file);
    let run = Run {
        kernel,
        command: &command,
        files: &files,
        modules: &modules,
        out: &out,
        timeout: TIMEOUT,
        boot_timeout: PATIENCE,
        silence_timeout: PATIENCE,
        cpus: 1,
        memory: MEMORY,
        qemu_args: &qemu_args,
        ..Run::default()
    };
    match prepare(&run)?.boot()? {
        0 => {}
        code => bail!("the measuring program failed with exit code {code}"),
    }
    let text = fs::read_to_string(&file).with_context(|| format!("the machine left no {}", file.display()))?;
    serde_json::from_str(text.trim()).context("the measuring program printed wrong results")
}

/// The results of several boots as one: a sample from each, and how far they lie apart.
fn merged(boots: Vec<Results>) -> Results {
    let mut boots = boots.into_iter();
    let mut all = boots.next().unwrap_or_default();
    for boot in boots {
        for row in &mut all.rows {
            row.samples.extend(boot.rows.iter().filter(|other| other.id == row.id).flat_map(|other| &other.samples));
        }
    }
    let apart = |samples: &[f64]| {
        let (least, most) = samples.iter().fold((f64::MAX, f64::MIN), |(l, m), s| (l.min(*s), m.max(*s)));
        (samples.len() > 1 && least > 0.0).then(|| 100.0 * (most / least - 1.0))
    };
    let worst = all.rows.iter().filter_map(|row| Some((apart(&row.samples)?, row.id.clone())));
    if let Some((percent, row)) = worst.max_by(|a, b| a.0.total_cmp(&b.0)) {
        all.row("boot-to-boot", "%", [percent]).goal("vm-boot-to-boot", "boot-to-boot", Relation::AtMost, STEADY);
        all.note(format!("boot-to-boot: the most that the figures of two boots lie apart, of all rows; here {row}"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_become_samples_and_the_worst_row_says_how_steady_they_are() {
        let boot = |a: f64, b: f64| {
            let mut results = Results::default();
            results.row("a", "insns", [a]).row("b", "insns", [b]).goal("g", "a", Relation::AtMost, 1.0);
            results
        };
        let all = merged(vec![boot(100.0, 10.0), boot(101.0, 10.4), boot(100.0, 10.0)]);
        assert_eq!(all.rows[0].samples, [100.0, 101.0, 100.0]);
        let [percent] = all.rows[2].samples[..] else { panic!("{:?}", all.rows) };
        assert!((percent - 4.0).abs() < 1e-9, "{percent}");
        assert_eq!(all.goals.len(), 2);
        assert!(all.notes[0].ends_with("here b"), "{:?}", all.notes);
    }

    #[test]
    fn the_gate_names_what_is_over_its_bound() {
        let mut results = Results::default();
        results.row("a", "", [0.5]).row("b", "", [0.7]);
        assert!(over(&results, &[("a", 0.5), ("b", 0.7)]).is_ok());
        let error = over(&results, &[("a", 0.4), ("b", 0.7), ("c", 1.0)]).unwrap_err().to_string();
        assert_eq!(error, "a is 0.5, more than 0.4; c was not measured");
    }

    #[test]
    fn a_single_boot_says_nothing_of_others() {
        let mut results = Results::default();
        results.row("a", "insns", [1.0]);
        assert_eq!(merged(vec![results.clone()]), results);
    }
}
