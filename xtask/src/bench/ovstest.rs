//! The reference's own measurement of its classifier, built of its Debian source package.
//!
//! Its packages of programs hold no tests, so this one is compiled here, once: some minutes. Only the program is kept.

use std::{fs, path::Path, process::Command, thread};

use anyhow::{Context as _, Result};
use testkit::tools;

use crate::{cmd, setup};

const SOURCE: &str = "openvswitch-source";
/// What its build takes.
const BUILD_PACKAGES: [&str; 4] = ["gcc", "libc6-dev", "make", "python3"];
/// Where the package has the source, and the folder in it.
const ARCHIVE: &str = "usr/src/openvswitch/openvswitch.tar.gz";
const TREE: &str = "openvswitch";
const PROGRAM: &str = "tests/ovstest";

/// Builds the program, if that wasn't done yet.
pub(super) fn build() -> Result<()> {
    if tools::ovstest().is_some() {
        return Ok(());
    }
    setup::debian_packages(&BUILD_PACKAGES, "the reference's classifier")?;
    let folder = tools::ovstest_folder();
    let step = cmd::step("building the reference's measurement of its classifier in .cache/ovstest (some minutes)");
    setup::unpack(&folder, || Ok(vec![SOURCE.into()]), compile)?;
    step.done("built");
    Ok(())
}

/// Leaves the program in `folder`, and nothing else.
fn compile(folder: &Path) -> Result<()> {
    let tree = folder.join(TREE);
    cmd::output(Command::new("tar").arg("-xzf").arg(folder.join(ARCHIVE)).arg("-C").arg(folder))?;
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    // As Debian builds it, but for TLS, which a measurement needs no library of.
    cmd::output(Command::new("sh").args(["./configure", "--disable-ssl", "CFLAGS=-O2 -g"]).current_dir(&tree))?;
    // Only the default target makes the generated headers first, and that makes all programs, too. A recipe knows the makefile's
    // variables, a list of prerequisites that stands before it does not.
    let headers = ["--eval=headers: ; $(MAKE) $(BUILT_SOURCES)", "headers"];
    cmd::output(Command::new("make").args(headers).current_dir(&tree))?;
    cmd::output(Command::new("make").arg(format!("-j{jobs}")).arg(PROGRAM).current_dir(&tree))?;
    let program = folder.join(tools::OVSTEST);
    fs::copy(tree.join(PROGRAM), &program).with_context(|| format!("can't make {}", program.display()))?;
    for scratch in [TREE, "usr"] {
        let scratch = folder.join(scratch);
        fs::remove_dir_all(&scratch).with_context(|| format!("can't remove {}", scratch.display()))?;
    }
    Ok(())
}
