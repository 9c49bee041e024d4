//! `cargo xtask build-ebpf`: the programs that run in the kernel.
//!
//! The crate `datapath-ebpf` is compiled by the same pinned stable compiler as everything else; the bpf target has no
//! prebuilt `core`, so `core` is built from source, which the stable compiler allows only under `RUSTC_BOOTSTRAP=1`.
//! BTF needs full debug information (profile `bpf`) *and* the linker's `--btf`. Every `[[bin]]` of the crate becomes
//! one object `target/bpf/NAME.o`, rewritten only when its bytes changed, so that what embeds it isn't rebuilt for
//! nothing.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{cmd, setup};

const PACKAGE: &str = "datapath-ebpf";
const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "bpf";

/// Options of `build-ebpf`.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Only say what was built; no progress of the compiler
    #[arg(short, long)]
    quiet: bool,
}

/// One object file of the kernel side.
pub(crate) struct Object {
    /// Name of the `[[bin]]`.
    pub(crate) name: String,
    /// Where it lies: `target/bpf/NAME.o`.
    pub(crate) path: PathBuf,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// Builds all objects, after setting up the toolchain they need.
pub(crate) fn run(options: &Options) -> Result<Vec<Object>> {
    let started = Instant::now();
    let linker = setup::ebpf_toolchain()?;
    let ready = started.elapsed();
    let bins = bins()?;

    let mut build = cargo("build", &linker);
    build.arg("--bins");
    if options.quiet {
        build.arg("--quiet");
    }
    println!("==> building {PACKAGE} for {TARGET}");
    cmd::run(&mut build)?;

    let mut objects = Vec::new();
    for name in bins {
        let from = target_dir().join(TARGET).join(PROFILE).join(&name);
        objects.push(publish(name, &from)?);
    }
    report(&objects, started.elapsed() - ready, ready);
    Ok(objects)
}

/// Lints the kernel side with the target and flags it is built with.
pub(crate) fn clippy() -> Result<()> {
    let linker = setup::ebpf_toolchain()?;
    let mut clippy = cargo("clippy", &linker);
    clippy.args(["--quiet", "--", "-D", "warnings"]);
    cmd::run(&mut clippy)
}

/// The folder of the finished objects.
pub(crate) fn objects_dir() -> PathBuf {
    cmd::root().join("target/bpf")
}

/// `cargo SUBCOMMAND` on the kernel side.
fn cargo(subcommand: &str, linker: &Path) -> Command {
    let mut cargo = cmd::cargo();
    cargo
        .args([subcommand, "--package", PACKAGE, "--target", TARGET, "--profile", PROFILE, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(target_dir())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags().join("\x1f"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_TARGET_DIR");
    cargo
}

fn flags() -> Vec<String> {
    vec![
        "-Cdebuginfo=2".into(),
        // 32-bit registers: without them each 32-bit value costs two shifts. Kernels have had them since 5.1.
        "-Ctarget-cpu=v3".into(),
        "-Clink-arg=--btf".into(),
        // aya-ebpf reads registers of the machine that the programs will run on.
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
    ]
}

/// A target folder of its own: the flags differ from those of userspace, sharing one would rebuild everything in turn.
fn target_dir() -> PathBuf {
    cmd::root().join("target/ebpf")
}

/// The names of all `[[bin]]`s of the crate.
fn bins() -> Result<Vec<String>> {
    let metadata = cmd::output(cmd::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("can't read `cargo metadata`")?;
    let is_bin = |target: &&serde_json::Value| {
        target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind.as_str() == Some("bin")))
    };
    let bins: Vec<String> = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|package| package["name"].as_str() == Some(PACKAGE))
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(is_bin)
        .filter_map(|target| Some(target["name"].as_str()?.to_owned()))
        .collect();
    if bins.is_empty() {
        bail!("{PACKAGE} has no [[bin]] to build");
    }
    Ok(bins)
}

/// Copies a linked object to where userspace looks for it.
fn publish(name: String, from: &Path) -> Result<Object> {
    let bytes = fs::read(from).with_context(|| format!("the build left no object at {}", from.display()))?;
    let path = objects_dir().join(format!("{name}.o"));
    if fs::read(&path).ok().as_ref() != Some(&bytes) {
        fs::create_dir_all(objects_dir()).with_context(|| format!("can't make {}", objects_dir().display()))?;
        // Whoever reads it meanwhile sees the old object or the new one, never half of it.
        let unfinished = path.with_extension("o.new");
        fs::write(&unfinished, &bytes)
            .and_then(|()| fs::rename(&unfinished, &path))
            .with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(Object { name, path, size: bytes.len() as u64 })
}

fn report(objects: &[Object], build: Duration, ready: Duration) {
    let root = cmd::root();
    for object in objects {
        let path = object.path.strip_prefix(&root).unwrap_or(&object.path);
        println!("    {:<12} {:>9} bytes  {}", object.name, object.size, path.display());
    }
    let setup = if ready > Duration::from_secs(5) {
        format!(", after {} of setting up", cmd::seconds(ready))
    } else {
        String::new()
    };
    println!("    built in {}{setup}", cmd::seconds(build));
}
