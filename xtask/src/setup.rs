//! Setting the machine up: what a task needs and does not find, it installs, and says so.
//!
//! Everything here may be called again and again: what is present is not touched. System packages are installed only
//! on Debian and its descendants and only as root; elsewhere one line says what to install. What can live inside the
//! tree lies under `.cache/`.

use std::{
    env, error, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use testkit::tools::{self, find};

use crate::cmd;

/// The one version of the linker that the objects are tested with.
const BPF_LINKER: &str = "0.13.0";

/// Programs that tests use, and the Debian packages they come in.
const TEST_TOOLS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
    ("bpftool", "bpftool"),
];
/// The programs that `cargo xtask run` uses.
const RUN_TOOLS: [&str; 3] = ["ip", "ping", "bpftool"];
/// The reference switch's programs, and the packages they and their libraries come in beside what is installed.
const OVS_TOOLS: [&str; 6] = ["ovs-appctl", "ovs-ofctl", "ovs-vsctl", "ovs-vswitchd", "ovsdb-server", "ovsdb-tool"];
const OVS_PACKAGES: [&str; 2] = ["openvswitch-switch", "openvswitch-common"];

/// What this machine can't have without its owner's doing. Other errors of this module mean that a set-up went wrong.
#[derive(Debug)]
pub(crate) struct NotHere(String);

/// The eBPF toolchain: `rust-src`, LLVM's development files and `bpf-linker`. Returns the linker's path.
pub(crate) fn ebpf_toolchain() -> Result<PathBuf> {
    rust_src()?;
    bpf_linker()
}

/// The programs that tests use. One that can't be had costs only the tests that name it, so it is told and passed over.
pub(crate) fn test_tools() {
    for (tool, package) in TEST_TOOLS {
        if find(tool).is_none()
            && let Err(error) = debian_packages(&[package], "the tests")
        {
            println!("    without {tool}: {error:#}");
        }
    }
    if let Err(error) = reference_switch() {
        println!("    without the reference switch: {error:#}");
    }
}

/// The programs that `cargo xtask run` uses.
pub(crate) fn run_tools() -> Result<()> {
    let wanted = TEST_TOOLS.iter().filter(|(tool, _)| RUN_TOOLS.contains(tool) && find(tool).is_none());
    let packages: Vec<&str> = wanted.map(|(_, package)| *package).collect();
    debian_packages(&packages, "cargo xtask run")
}

/// The reference switch's programs, unpacked under `.cache/ovs`: installing the package would start its daemon.
pub(crate) fn reference_switch() -> Result<()> {
    if OVS_TOOLS.iter().all(|tool| find(tool).is_some()) {
        return Ok(());
    }
    if !is_debian() {
        return not_here("install Open vSwitch (ovs-appctl, ovs-vswitchd …) with your system's package manager".into());
    }
    let step = cmd::step("unpacking the reference switch's tools into .cache/ovs");
    let packages = unpack(&tools::ovs_folder(), || not_installed(&OVS_PACKAGES), |_| Ok(()))?;
    for tool in OVS_TOOLS {
        let mut command = tools::command(tool).with_context(|| format!("{tool} is in none of the packages"))?;
        cmd::output(command.arg("--version"))?;
    }
    step.done(packages.join(", "));
    Ok(())
}

/// Makes `folder` of the Debian packages that `packages` names, which are not installed, and of what `finish` changes in it. It is
/// whole or not there.
pub(crate) fn unpack(
    folder: &Path,
    mut packages: impl FnMut() -> Result<Vec<String>>,
    finish: impl FnOnce(&Path) -> Result<()>,
) -> Result<Vec<String>> {
    let (download, unfinished) = (folder.with_extension("download"), folder.with_extension("new"));
    for scratch in [&download, &unfinished] {
        let _ = fs::remove_dir_all(scratch);
        fs::create_dir_all(scratch).with_context(|| format!("can't make {}", scratch.display()))?;
    }
    let packages = with_fresh_lists(|| {
        let packages = packages()?;
        cmd::output(apt_get().arg("download").args(&packages).current_dir(&download))?;
        Ok(packages)
    })?;
    for file in fs::read_dir(&download)? {
        cmd::output(Command::new("dpkg").arg("-x").arg(file?.path()).arg(&unfinished))?;
    }
    finish(&unfinished)?;
    let _ = fs::remove_dir_all(folder);
    fs::rename(&unfinished, folder).with_context(|| format!("can't make {}", folder.display()))?;
    let _ = fs::remove_dir_all(&download);
    Ok(packages)
}

/// Installs those Debian packages of `packages` that are missing. `purpose` completes "… is needed for".
pub(crate) fn debian_packages(packages: &[&str], purpose: &str) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_debian() {
        return not_here(format!("{purpose} needs what Debian calls {list}: install it with your package manager"));
    }
    if !nix::unistd::geteuid().is_root() {
        return not_here(format!("{purpose} needs {list}: run `apt-get install {list}` as root"));
    }
    let step = cmd::step(format!("installing {list} for {purpose}"));
    apt_install(&missing).with_context(|| format!("{purpose} needs {list}, which apt-get could not install"))?;
    step.done("installed");
    Ok(())
}

/// The source of `core`, which is compiled for the bpf target.
fn rust_src() -> Result<()> {
    let sysroot = cmd::output(Command::new("rustc").current_dir(cmd::root()).args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        return Ok(());
    }
    if find("rustup").is_none() {
        return not_here(format!(
            "the compiler in {} has no rust-src, and no rustup to add it: add it",
            sysroot.trim()
        ));
    }
    let step = cmd::step("adding rust-src to the toolchain");
    cmd::run(Command::new("rustup").current_dir(cmd::root()).args(["component", "add", "rust-src"]))
        .context("can't add rust-src: check the network, then `rustup component add rust-src`")?;
    step.done("added");
    Ok(())
}

/// `bpf-linker` of the pinned version, in the tree's own folder so that no other project's choice matters.
fn bpf_linker() -> Result<PathBuf> {
    let folder = cmd::root().join(".cache/bpf-linker");
    let linker = folder.join("bin/bpf-linker");
    if runs(&linker) {
        return Ok(linker);
    }
    let major = rustc_llvm_major()?;
    let prefix = llvm_prefix(major)?;
    let step = cmd::step(format!("building bpf-linker {BPF_LINKER} with LLVM {major} (one to two minutes)"));
    let mut install = cmd::cargo();
    install
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{major}"), "--root"])
        .arg(&folder)
        // Its own build folder: the tree's target folder is for the tree.
        .env("CARGO_TARGET_DIR", cmd::root().join("target/bpf-linker"))
        .env("LLVM_PREFIX", &prefix);
    cmd::run(&mut install).context("can't build bpf-linker")?;
    if !runs(&linker) {
        bail!("bpf-linker was built but {} does not run", linker.display());
    }
    // Some hundred megabytes that nothing needs again.
    let _ = fs::remove_dir_all(cmd::root().join("target/bpf-linker"));
    step.done("built");
    Ok(linker)
}

/// Whether this linker is there, of the pinned version, and finds its libraries.
fn runs(linker: &Path) -> bool {
    let version = Command::new(linker).arg("--version").output();
    version.is_ok_and(|out| out.status.success() && String::from_utf8_lossy(&out.stdout).trim().ends_with(BPF_LINKER))
}

/// The linker reads the compiler's bitcode, so its LLVM must not be older than the compiler's.
fn rustc_llvm_major() -> Result<u32> {
    let version = cmd::output(Command::new("rustc").current_dir(cmd::root()).arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
        .context("`rustc -vV` names no LLVM version: use the toolchain that rust-toolchain.toml pins")
}

/// Where LLVM's development files lie, after installing them if they are missing.
fn llvm_prefix(major: u32) -> Result<PathBuf> {
    if let Some(prefix) = env::var_os("LLVM_PREFIX") {
        return Ok(prefix.into());
    }
    let package = format!("llvm-{major}-dev");
    debian_packages(&[&package, "zlib1g-dev", "libzstd-dev", "libxml2-dev"], "bpf-linker").or_else(|error| {
        // Another system may have the files without Debian's package names.
        if installed_llvm(major).is_some() { Ok(()) } else { Err(error) }
    })?;
    installed_llvm(major).with_context(|| {
        format!("no LLVM {major} found: install it with its development files and set LLVM_PREFIX to its folder")
    })
}

fn installed_llvm(major: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if debian.join("bin/llvm-config").is_file() {
        return Some(debian);
    }
    [format!("llvm-config-{major}"), "llvm-config".into()].iter().find_map(|program| {
        let ask = |what| cmd::output(Command::new(find(program)?).arg(what)).ok();
        let fits = ask("--version")?.split('.').next()?.parse() == Ok(major);
        fits.then(|| ask("--prefix")).flatten().map(|prefix| prefix.trim().into())
    })
}

fn is_debian() -> bool {
    find("apt-get").is_some() && find("dpkg-query").is_some()
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]).output();
    query.is_ok_and(|out| out.status.success() && out.stdout == b"installed")
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let mut install = apt_get();
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    with_fresh_lists(|| cmd::output(&mut install).map(drop))
}

/// The packages, and those they depend on, that apt would install now. Dependencies that are not libraries serve
/// the package's scripts, which don't run here.
fn not_installed(packages: &[&str]) -> Result<Vec<String>> {
    let plan = cmd::output(apt_get().args(["install", "--simulate", "--no-install-recommends"]).args(packages))?;
    let planned = plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    Ok(planned.filter(|name| name.starts_with("lib") || packages.contains(name)).map(String::from).collect())
}

/// Tries with apt's package lists as they are and, if that fails and root does it, with fresh ones: the lists of an
/// old image name files that are gone.
fn with_fresh_lists<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let root = nix::unistd::geteuid().is_root();
    let update = || cmd::output(apt_get().args(["update", "-qq"]));
    if root && !have_lists() {
        update()?;
        return attempt();
    }
    attempt().or_else(|error| {
        if !root {
            return Err(error);
        }
        println!("    trying again with fresh package lists");
        update()?;
        attempt()
    })
}

/// Whether apt knows any packages; a minimal image has no lists.
fn have_lists() -> bool {
    let lists = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    lists.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().contains("_Packages"))
}

/// `apt-get` that asks nothing and waits for another one to finish.
fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    apt
}

fn not_here<T>(what: String) -> Result<T> {
    Err(NotHere(what).into())
}

/// What the machine's owner has to do.
pub(crate) fn missing(what: impl Into<String>) -> NotHere {
    NotHere(what.into())
}

impl error::Error for NotHere {}

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
