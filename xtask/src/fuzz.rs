//! `cargo xtask fuzz [TARGET]`: looks for inputs that a reader of outside bytes doesn't survive.
//!
//! The targets are functions of the crate `fuzz`; libFuzzer makes inputs and learns from coverage which lead somewhere new. The
//! compiler is the pinned stable one: LLVM's coverage pass (`sancov-module`) is run by name, with counters and comparisons traced,
//! over everything that is linked but build scripts and the standard library. What is found grows in `target/fuzz/found`;
//! `--keep` puts what adds coverage, minimised, into the repository's corpus, which `cargo test -p fuzz` replays.

use std::{
    fs,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cmd, setup};

/// LLVM's coverage, and the checks that a release build leaves out.
const FLAGS: [&str; 9] = [
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions",
    "-Coverflow-checks",
];
/// Longest input in bytes, also of those that are kept.
const MAX_LEN: usize = 1024;
/// Inputs that a target's corpus may have.
const MAX_KEPT: usize = 200;
/// An input that takes longer is a finding.
const SLOWEST_SECONDS: u32 = 10;
const MEMORY_MB: u32 = 2048;

/// Options of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which target; all, one after the other, if not given
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// Put what adds coverage into fuzz/corpus, minimised
    #[arg(long)]
    keep: bool,
    /// Run this one input instead and show what becomes of it
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
}

/// Builds and runs; whether nothing was found.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let all = targets()?;
    let chosen = match &options.target {
        None => all,
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target {name}: it is one of {}", all.join(", ")),
    };
    setup::debian_packages(&["g++"], "libFuzzer")?;
    let driver = build()?;
    if let (Some(input), [target]) = (&options.input, &chosen[..]) {
        let input = input.canonicalize().with_context(|| format!("can't read {}", input.display()))?;
        return Ok(command(&driver, target).arg(input).status().context("can't run the fuzzer")?.success());
    }
    let mut found = 0;
    for target in &chosen {
        found += usize::from(!fuzz(&driver, target, options.seconds)?);
        if options.keep {
            keep(&driver, target)?;
        }
    }
    println!("==> {} of {} targets without a finding", chosen.len() - found, chosen.len());
    Ok(found == 0)
}

/// The targets have a folder each in the corpus.
fn targets() -> Result<Vec<String>> {
    let folder = corpus("");
    let entries = fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))?;
    let mut names =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn corpus(target: &str) -> PathBuf {
    cmd::root().join("fuzz/corpus").join(target)
}

/// A folder under `target/fuzz`, made if it isn't there.
fn scratch(kind: &str, target: &str) -> Result<PathBuf> {
    let folder = cmd::root().join("target/fuzz").join(kind).join(target);
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    Ok(folder)
}

/// The driver with all targets.
fn build() -> Result<PathBuf> {
    let step = cmd::step("building the fuzzers (the first time takes minutes)");
    let version = cmd::output(Command::new("rustc").current_dir(cmd::root()).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("`rustc -vV` names no host: use the toolchain that rust-toolchain.toml pins")?;
    // Its own folder, since the flags are others; and with a target named, build scripts do without them.
    let folder = cmd::root().join("target/fuzz");
    let mut build = cmd::cargo();
    build
        .args(["build", "--release", "--quiet", "-p", "fuzz", "--features", "libfuzzer", "--bin", "libfuzzer"])
        .args(["--target", host, "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", FLAGS.join(" "));
    cmd::run(&mut build).context("can't build the fuzzers")?;
    step.done("built");
    Ok(folder.join(host).join("release/libfuzzer"))
}

fn command(driver: &Path, target: &str) -> Command {
    let mut command = Command::new(driver);
    command.env("SLUICE_FUZZ_TARGET", target).args([
        format!("-max_len={MAX_LEN}"),
        format!("-timeout={SLOWEST_SECONDS}"),
        format!("-rss_limit_mb={MEMORY_MB}"),
    ]);
    command
}

/// Runs a target; whether nothing was found.
fn fuzz(driver: &Path, target: &str, seconds: u64) -> Result<bool> {
    let step = cmd::step(format!("{target} for {seconds} s"));
    let (found, crashes, log) = (scratch("found", target)?, scratch("crashes", target)?, log(target)?);
    let mut fuzz = command(driver, target);
    fuzz.args([format!("-max_total_time={seconds}"), "-print_final_stats=1".into()])
        .arg(format!("-artifact_prefix={}/", crashes.display()));
    let words = cmd::root().join("fuzz/dictionaries").join(format!("{target}.dict"));
    if words.is_file() {
        fuzz.arg(format!("-dict={}", words.display()));
    }
    fuzz.arg(&found).arg(corpus(target));
    let status = fuzz.stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?).status();
    let status = status.with_context(|| format!("can't run {}", cmd::show(&fuzz)))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let said = Said::of(&text);
    if status.success() {
        step.done(format!("{} executions, coverage {}, {} inputs", said.executions, said.coverage, said.inputs));
        return Ok(true);
    }
    for line in said.why {
        eprintln!("    {line}");
    }
    match said.crash {
        Some(path) => {
            eprintln!("    FAILED {target}: {path}");
            eprintln!("    again: cargo xtask fuzz {target} --input {path}");
        }
        None => eprintln!("    FAILED {target} without an input ({status}): {}", log.display()),
    }
    Ok(false)
}

fn log(target: &str) -> Result<PathBuf> {
    Ok(scratch("logs", "")?.join(format!("{target}.log")))
}

/// What libFuzzer said.
#[derive(Default, PartialEq, Eq, Debug)]
struct Said<'a> {
    executions: &'a str,
    /// Branches of the code that were taken.
    coverage: &'a str,
    inputs: &'a str,
    /// The input that was the end, and the lines that say why.
    crash: Option<&'a str>,
    why: Vec<&'a str>,
}

impl<'a> Said<'a> {
    fn of(text: &'a str) -> Self {
        /// Lines of a panic's message that are shown.
        const LINES: usize = 6;
        let mut said = Self::default();
        for line in text.lines() {
            let after = |what: &str| Some(line.split_once(what)?.1.split([' ', '/']).next().unwrap_or_default());
            said.coverage = after(" cov: ").unwrap_or(said.coverage);
            said.inputs = after(" corp: ").unwrap_or(said.inputs);
            said.executions = line.strip_prefix("stat::number_of_executed_units: ").unwrap_or(said.executions);
            said.crash = line.split_once("Test unit written to ").map(|(_, path)| path).or(said.crash);
        }
        let panic = text.lines().skip_while(|line| !line.contains(" panicked at "));
        said.why = panic.take(LINES).take_while(|line| !line.starts_with("stack backtrace")).collect();
        if said.why.is_empty() {
            said.why = text.lines().filter(|line| line.contains("ERROR: libFuzzer")).collect();
        }
        said
    }
}

/// Replaces a target's corpus by the fewest inputs, of it and of what was found, that cover as much.
fn keep(driver: &Path, target: &str) -> Result<()> {
    let (corpus, found) = (corpus(target), scratch("found", target)?);
    let kept = scratch("kept", target)?;
    fs::remove_dir_all(&kept)?;
    fs::create_dir_all(&kept)?;
    let log = log(target)?;
    let mut merge = command(driver, target);
    // Which branches are taken counts, not how often.
    merge.args(["-set_cover_merge=1", "-use_counters=0"]).arg(&kept).arg(&corpus).arg(&found);
    let status = merge.stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?).status();
    let status = status.with_context(|| format!("can't run {}", cmd::show(&merge)))?;
    ensure!(status.success(), "can't minimise the corpus of {target} ({status}): {}", log.display());

    let mut files = Vec::new();
    for entry in fs::read_dir(&kept)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    files.sort();
    let all = files.len();
    // Of too many, short ones and long ones: both lead somewhere.
    let files: Vec<_> = files.chunks(all.div_ceil(MAX_KEPT).max(1)).filter_map(<[_]>::first).collect();
    for entry in fs::read_dir(&corpus)? {
        fs::remove_file(entry?.path())?;
    }
    for (_, path) in &files {
        let name = path.file_name().context("a file without a name")?;
        fs::copy(path, corpus.join(name)).with_context(|| format!("can't copy {}", path.display()))?;
    }
    println!("    {} of {all} inputs that cover all are in fuzz/corpus/{target}", files.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_read() {
        let log = "INFO: Loaded 1 modules\n\
                   #2\tINITED cov: 16 ft: 17 corp: 1/1b exec/s: 0 rss: 42Mb\n\
                   #900\tDONE   cov: 120 ft: 300 corp: 45/912b lim: 1024 exec/s: 450 rss: 50Mb\n\
                   stat::number_of_executed_units: 900\n";
        let expected = Said { executions: "900", coverage: "120", inputs: "45", ..Said::default() };
        assert_eq!(Said::of(log), expected);

        let log = "thread '<unnamed>' (7) panicked at fuzz/src/targets/a.rs:1:2:\n\
                   assertion failed\nstack backtrace:\n   0: x\n\
                   ==7== ERROR: libFuzzer: deadly signal\n\
                   artifact_prefix='/x/'; Test unit written to /x/crash-1\n";
        let said = Said::of(log);
        assert_eq!((said.crash, said.why.len()), (Some("/x/crash-1"), 2));
        let log = "==7== ERROR: libFuzzer: timeout after 10 seconds\n";
        assert_eq!(Said::of(log).why, ["==7== ERROR: libFuzzer: timeout after 10 seconds"]);
    }
}
