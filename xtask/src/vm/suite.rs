//! `cargo xtask test-vm`: the tests that need the stock module, on each kernel.
//!
//! The test programs are built here and run there, so what they print and count is what the harness says; the last line sums
//! it up over all kernels.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{Run, prepare};
use crate::cmd;

/// Programs of tests that run in the machine: package and test.
const TESTS: [(&str, &str); 1] = [("dpif-netlink", "kernel")];
/// Kernels that they run on.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// Options of `test-vm`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run on this kernel only; may be repeated
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// End the tests of a kernel after this many seconds
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    timeout: u64,
    /// For the test programs, such as a test's name
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// Runs them; whether all passed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let started = Instant::now();
    let programs = build()?;
    let kernels: Vec<String> =
        if options.kernels.is_empty() { KERNELS.map(String::from).to_vec() } else { options.kernels.clone() };
    let mut failed = Vec::new();
    for kernel in &kernels {
        for program in &programs {
            let step = cmd::step(format!("tests on {kernel}"));
            let path = program.to_str().context("the test program's path is not text")?;
            let mut command = vec![path.to_owned(), "--test-threads=1".into(), "--nocapture".into()];
            command.extend(options.args.iter().cloned());
            let run =
                Run { kernel, command: &command, timeout: Duration::from_secs(options.timeout), ..Run::default() };
            match prepare(&run)?.boot()? {
                0 => step.done("passed"),
                code => {
                    step.done(format!("FAILED with exit code {code}"));
                    failed.push(kernel.clone());
                }
            }
        }
    }
    let kernels = kernels.len();
    println!("==> done in {}: {} of {kernels} kernels passed", cmd::seconds(started.elapsed()), kernels - failed.len());
    Ok(failed.is_empty())
}

/// Builds the test programs, and finds out where they are.
fn build() -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for (package, test) in TESTS {
        let mut cargo = cmd::cargo();
        cargo.args(["test", "--no-run", "--quiet", "--package", package, "--test", test, "--message-format", "json"]);
        let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("can't run cargo")?;
        if !output.status.success() {
            bail!("test {test} of {package} does not build");
        }
        let found = executable(&String::from_utf8_lossy(&output.stdout), test);
        programs.push(found.with_context(|| format!("cargo does not say where test {test} of {package} is"))?);
    }
    Ok(programs)
}

/// Where cargo's messages say that the program of a test is.
fn executable(messages: &str, test: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    messages
        .filter(|message| message["target"]["name"].as_str() == Some(test))
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_a_test_is_found_in_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"kernel\"},\"executable\":null}\n",
            "no json\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"other\"},\"executable\":\"/t/other-1\"}\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"kernel\"},\"executable\":\"/t/kernel-1\"}\n",
        );
        assert_eq!(executable(messages, "kernel"), Some(PathBuf::from("/t/kernel-1")));
        assert_eq!(executable(messages, "nothing"), None);
    }
}
