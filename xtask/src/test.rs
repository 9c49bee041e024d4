//! `cargo xtask test`: everything that must hold, and a count at the end.
//!
//! Checks (formatting, lints, documentation, the eBPF build) count as one each, tests one by one. What this machine
//! can't run is skipped by name: tests report it themselves through `testkit::require!`, which returns early and notes
//! the reason in a file; since the harness sees such a test pass, they are taken out of the passed ones here.
//! Then `cargo xtask run --short` has to pass: what users see first, without the rates, which a loaded machine changes.
//! What needs another kernel runs in virtual machines at the end, one check each for the tests and for what packets cost.
//! The last line is `N passed, N failed, N skipped`.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{build_ebpf, cmd, run as demonstration, setup, vm};

/// What is built for the machine it runs on.
const USERSPACE: [&str; 3] = ["--workspace", "--exclude", "datapath-ebpf"];

/// Options of `test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run the tests only: no formatting, lints, documentation
    #[arg(long)]
    no_checks: bool,
    /// Stop the tests, as failed, after this many minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 20)]
    timeout: u64,
    /// For `cargo test` instead of the whole workspace, such as `-p dpif -- name`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// What was run and what became of it.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    /// Name and reason.
    skipped: BTreeMap<String, String>,
}

/// Runs it all; whether nothing failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let started = Instant::now();
    let mut tally = Tally::default();
    setup::test_tools();
    let ebpf = ebpf(&mut tally);
    if !options.no_checks {
        checks(&mut tally, ebpf);
    }
    tests(&mut tally, options)?;
    if options.args.is_empty() {
        shown(&mut tally, ebpf);
        machines(&mut tally, ebpf);
    }
    tally.report(started.elapsed());
    Ok(tally.failed.is_empty())
}

/// Builds the eBPF programs; whether the machine has their toolchain.
fn ebpf(tally: &mut Tally) -> bool {
    const NAME: &str = "build-ebpf";
    if let Err(error) = setup::ebpf_toolchain() {
        let can_not = error.downcast_ref::<setup::NotHere>().is_some();
        if can_not {
            println!("    no eBPF toolchain: {error:#}");
            tally.skip(NAME, &format!("{error:#}"));
        } else {
            tally.check(NAME, Err(error));
        }
        return false;
    }
    tally.check(NAME, build_ebpf::run(&build_ebpf::Options::default()).map(drop))
}

fn checks(tally: &mut Tally, ebpf: bool) {
    let cargo = |args: &[&str]| {
        let mut cargo = cmd::cargo();
        cargo.args(args);
        cargo
    };
    let mut check = |name: &str, what: &str, work: &mut dyn FnMut() -> Result<()>| {
        let step = cmd::step(what);
        if tally.check(name, work()) {
            step.done("passed");
        }
    };
    check("fmt", "formatting", &mut || cmd::run(&mut cargo(&["fmt", "--all", "--check"])));
    check("clippy", "lints", &mut || {
        cmd::run(cargo(&["clippy"]).args(USERSPACE).args(["--all-targets", "--", "-D", "warnings"]))
    });
    if ebpf {
        check("clippy datapath-ebpf", "lints of the eBPF programs", &mut build_ebpf::clippy);
    }
    check("doc", "documentation", &mut || {
        cmd::run(cargo(&["doc", "--no-deps"]).args(USERSPACE).env("RUSTDOCFLAGS", "-Dwarnings"))
    });
}

/// What `cargo xtask run` shows, but for the rates. A process of its own: it removes all it made, also if this one is interrupted.
fn shown(tally: &mut Tally, ebpf: bool) {
    const NAME: &str = "cargo xtask run --short";
    const TIMEOUT: Duration = Duration::from_secs(300);
    let missing = demonstration::missing().or_else(|| (!ebpf).then(|| "the eBPF programs are not built".into()));
    if let Some(reason) = missing {
        tally.skip(NAME, &reason);
        return;
    }
    let step = cmd::step("the switch at work (cargo xtask run shows more)");
    let ran = std::env::current_exe()
        .context("can't find this program")
        .and_then(|program| follow(Command::new(program).args(["run", "--short"]), TIMEOUT, |line| println!("{line}")));
    if tally.check(NAME, ran) {
        step.done("passed");
    }
}

/// What runs in virtual machines: a core of the tests on the stock module, and the cost of packets beside the reference's.
fn machines(tally: &mut Tally, ebpf: bool) {
    const CORE: &str = "tests on the stock module";
    const GATE: &str = "instructions per packet";
    let started = Instant::now();
    if let Err(error) = vm::fetch(vm::bench::KERNEL) {
        let reason = format!("no virtual machine: {error:#}");
        [CORE, GATE].iter().for_each(|name| tally.skip(name, &reason));
        return;
    }
    let step = cmd::step("a core of the tests on the stock module (cargo xtask test-vm runs all)");
    if tally.check(CORE, vm::suite::core()) {
        step.done("passed");
    }
    let missing = vm::bench::missing().or_else(|| (!ebpf).then(|| "the eBPF programs are not built".into()));
    if let Some(reason) = missing {
        tally.skip(GATE, &reason);
        return;
    }
    let step = cmd::step("instructions per packet (cargo xtask bench vm measures more)");
    if tally.check(GATE, vm::bench::gate()) {
        step.done("passed");
    }
    println!("    virtual machines: {}", cmd::seconds(started.elapsed()));
}

fn tests(tally: &mut Tally, options: &Options) -> Result<()> {
    println!("==> tests");
    let skips = tempfile::NamedTempFile::new().context("can't make a temporary file")?;
    let mut cargo = cmd::cargo();
    cargo.args(["test", "--no-fail-fast"]);
    if options.args.is_empty() {
        cargo.args(USERSPACE);
    }
    cargo.args(&options.args).env(testkit::skip::SKIP_LOG, skips.path());

    let before = tally.failed.len();
    let ended = follow(&mut cargo, Duration::from_secs(60 * options.timeout), |line| tally.line(line));
    if tally.failed.len() == before {
        // What did not build or died without a word has no line of its own.
        if let Err(error) = ended {
            tally.check("cargo test", Err(error));
        }
    }
    tally.read_skips(skips.path())
}

/// Runs a command, hands over each line of its output, and ends it with all its descendants when its time is over.
fn follow(command: &mut Command, timeout: Duration, mut line: impl FnMut(&str)) -> Result<()> {
    let name = cmd::show(command);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("can't run {name}"))?;
    let output = child.stdout.take().with_context(|| format!("{name} has no output"))?;
    let pid = child.id();
    let (ended, end) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        let late = end.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            kill_tree(pid);
        }
        late
    });
    for text in BufReader::new(output).split(b'\n') {
        line(&String::from_utf8_lossy(&text.with_context(|| format!("can't read the output of {name}"))?));
    }
    let status = child.wait().with_context(|| format!("can't wait for {name}"))?;
    drop(ended);
    if watchdog.join().unwrap_or(false) {
        anyhow::bail!("stopped after {}", cmd::seconds(timeout));
    }
    anyhow::ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

/// Kills a process and all that it started, children first.
fn kill_tree(pid: u32) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.split_whitespace().filter_map(|child| child.parse().ok()).for_each(kill_tree);
    }
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL);
}

impl Tally {
    /// Counts a check; whether it passed.
    fn check(&mut self, name: &str, result: Result<()>) -> bool {
        match result {
            Ok(()) => {
                self.passed += 1;
                true
            }
            Err(error) => {
                eprintln!("    FAILED {name}: {error:#}");
                self.failed.push(name.into());
                false
            }
        }
    }

    fn skip(&mut self, name: &str, reason: &str) {
        self.skipped.insert(name.into(), reason.into());
    }

    /// Takes in a line of the test harness and shows it, unless it only says that one more test passed.
    fn line(&mut self, line: &str) {
        if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            match outcome {
                "ok" => {
                    self.passed += 1;
                    return;
                }
                "FAILED" => self.failed.push(name.into()),
                _ => {
                    if let Some(reason) = outcome.strip_prefix("ignored") {
                        let reason = reason.trim_start_matches(", ");
                        self.skip(name, if reason.is_empty() { "marked as ignored" } else { reason });
                        return;
                    }
                }
            }
        }
        if !line.is_empty() && !line.starts_with("running ") {
            println!("{line}");
        }
    }

    /// The tests that reported themselves as skipped, which the harness took for passed ones.
    fn read_skips(&mut self, log: &Path) -> Result<()> {
        let log = fs::read_to_string(log).context("can't read the list of skipped tests")?;
        for (name, reason) in log.lines().filter_map(|line| line.split_once('\t')) {
            if self.skipped.insert(name.into(), reason.into()).is_none() {
                self.passed = self.passed.saturating_sub(1);
            }
        }
        Ok(())
    }

    fn report(&self, time: Duration) {
        println!("==> done in {}", cmd::seconds(time));
        for (name, reason) in &self.skipped {
            println!("    skipped {name}: {reason}");
        }
        for name in &self.failed {
            println!("    failed {name}");
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_the_harness_says() {
        let mut tally = Tally::default();
        let lines = [
            "running 4 tests",
            "test wire::a ... ok",
            "test wire::b ... FAILED",
            "test wire::c ... ignored, takes an hour",
            "test testkit/src/lib.rs - (line 16) - compile ... ok",
            "test needs_root ... ok",
            "test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.07s",
            "some words ... of a test",
        ];
        lines.iter().for_each(|line| tally.line(line));
        let log = tempfile::NamedTempFile::new().unwrap();
        fs::write(log.path(), "needs_root\tneeds root\nneeds_root\tneeds root\n").unwrap();
        tally.read_skips(log.path()).unwrap();

        assert_eq!((tally.passed, tally.failed.as_slice()), (2, &["wire::b".to_owned()][..]));
        let skipped: Vec<_> = tally.skipped.iter().map(|(name, why)| (name.as_str(), why.as_str())).collect();
        assert_eq!(skipped, [("needs_root", "needs root"), ("wire::c", "takes an hour")]);
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_its_children() {
        let mut hangs = Command::new("sh");
        hangs.args(["-c", "echo started; sleep 60 && echo never"]);
        let started = Instant::now();
        let mut lines = Vec::new();
        let error = follow(&mut hangs, Duration::from_millis(300), |line| lines.push(line.to_owned())).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), lines.as_slice()),
            ("stopped after 0.3 s", &["started".to_owned()][..])
        );
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
