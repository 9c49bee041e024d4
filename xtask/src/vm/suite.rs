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
use crate::{cmd, setup};
use testkit::{cards, tools};

/// What runs in the machine: all that is about the module, and of the eBPF datapath's tests those that show that its programs are
/// taken and work, because loading them takes an emulated machine long.
const TESTS: [Test; 11] = [
    Test::of("dpif-netlink", "kernel"),
    Test::of("vswitchd", "netlink"),
    Test::of("vswitchd", "netlink_actions"),
    Test { datapath: "netlink", ..Test::of("vswitchd", "forwarding") },
    Test { only: &["on_the_module"], ..Test::of("vswitchd", "churn") },
    Test { only: &["our_programs_say_and_do_the_same"], ..Test::of("vswitchd", "module_and_programs") },
    Test { datapath: "ebpf", only: &["hosts_on_a_bridge"], ..Test::of("vswitchd", "forwarding") },
    Test { only: &["a_hash_chooses"], ..Test::of("dpif-ebpf", "actions_on_the_wire") },
    Test { only: &["a_port_forwards"], ..Test::of("dpif-ebpf", "xdp_ports") },
    Test { only: &["the_program_is_the_one"], ..Test::of("dpif-ebpf", "special") },
    Test::of("dpif-ebpf", CARDS),
];
/// The rest of the eBPF datapath's tests (`--all`), those that can be shorter so short that they end within minutes. Left out:
/// benchmarks in the form of tests, and the sudden ends of processes, whose times are those of a machine that is not emulated.
const REST: [Test; 12] = [
    // Older kernels know less, and look at more.
    Test { env: "SLUICE_EVERY=7", ..Test::of("dpif-ebpf", "verifier_budget") },
    Test::of("dpif-ebpf", "lifecycle"),
    Test::of("dpif-ebpf", "traffic"),
    Test::of("dpif-ebpf", "flow_cache"),
    Test::of("dpif-ebpf", "devices"),
    Test { env: "SLUICE_DIFF_KEYS=4000 SLUICE_DIFF_CASES=2000", ..Test::of("dpif-ebpf", "differential") },
    Test { env: "SLUICE_DIFF_CASES=2000", ..Test::of("dpif-ebpf", "xdp") },
    Test { env: "SLUICE_LIFE_CYCLE=20000", ..Test::of("dpif-ebpf", "slot_life_cycle") },
    Test::of("vswitchd", "rules"),
    Test::of("vswitchd", "slow_path"),
    Test { only: &["on_ebpf", "in_this_process"], ..Test::of("vswitchd", "churn") },
    Test { only: &["specialised_program", "behind_the_xdp_hook"], ..Test::of("vswitchd", "module_and_programs") },
];
/// Those that `cargo xtask test` runs: what goes up and down between daemon and module, and packets that pass.
const CORE: [Test; 2] = [
    Test {
        only: &["generated_flows_come_back", "upcalls_come_with_the_key", "a_packet_that_is_executed"],
        ..Test::of("dpif-netlink", "kernel")
    },
    Test {
        datapath: "netlink",
        only: &["hosts_on_a_bridge", "access_ports_of_two_vlans"],
        ..Test::of("vswitchd", "forwarding")
    },
];
/// The kernel of those.
const CORE_KERNEL: &str = "6.12";
const CORE_TIMEOUT: Duration = Duration::from_secs(480);

/// A program of tests.
struct Test {
    package: &'static str,
    test: &'static str,
    /// For tests that run on several.
    datapath: &'static str,
    /// Words in the names of tests that are wanted; none wants all.
    only: &'static [&'static str],
    /// More of its environment, as a shell has it.
    env: &'static str,
}

impl Test {
    const fn of(package: &'static str, test: &'static str) -> Self {
        Self { package, test, datapath: "netlink,ebpf", only: &[], env: "" }
    }
}

/// The tests that need [`cards`].
const CARDS: &str = "cards";
/// Programs and files that the tests look for.
const FILES: [&str; 3] = ["rust-toolchain.toml", "target/bpf/port-entry.o", "target/bpf/tc.o"];
/// The reference switch's tools, where they are unpacked.
const TOOLS: [&str; 6] = ["ovs-appctl", "ovs-dpctl", "ovs-vsctl", "ovs-vswitchd", "ovsdb-server", "ovsdb-tool"];
/// The reference switch's database has a schema.
const SCHEMA: &str = "usr/share/openvswitch/vswitch.ovsschema";
/// Kernels that they run on.
const KERNELS: [&str; 2] = ["6.1", "6.12"];
/// MiB: the image lies in memory twice for a while.
const MEMORY: u32 = 1536;

/// Options of `test-vm`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run on this kernel only; may be repeated
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// Run only what `cargo xtask test` runs: a core of the tests on 6.12, and what packets cost beside the reference
    #[arg(long, conflicts_with_all = ["kernels", "args", "all"])]
    short: bool,
    /// End the tests of a kernel after this many seconds
    #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
    timeout: u64,
    /// All of the eBPF datapath's own tests too, which takes half an hour for each kernel
    #[arg(long)]
    all: bool,
    /// For the test programs, such as a test's name
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// Runs them; whether all passed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let started = Instant::now();
    if options.short {
        core()?;
        super::bench::gate()?;
        println!("==> done in {}", cmd::seconds(started.elapsed()));
        return Ok(true);
    }
    if let Err(error) = setup::reference_switch() {
        println!("    without the reference switch: {error:#}");
    }
    let tests = TESTS.iter().chain(REST.iter().filter(|_| options.all));
    let programs = build(tests)?;
    let kernels: Vec<String> =
        if options.kernels.is_empty() { KERNELS.map(String::from).to_vec() } else { options.kernels.clone() };
    let mut failed = Vec::new();
    for kernel in &kernels {
        let step = cmd::step(format!("tests on {kernel}"));
        match boot(kernel, &programs, &options.args, Duration::from_secs(options.timeout))? {
            0 => step.done("passed"),
            code => {
                step.done(format!("FAILED with exit code {code}"));
                failed.push(kernel.clone());
            }
        }
    }
    let kernels = kernels.len();
    println!("==> done in {}: {} of {kernels} kernels passed", cmd::seconds(started.elapsed()), kernels - failed.len());
    Ok(failed.is_empty())
}

/// Runs the short core of them on one kernel.
pub(crate) fn core() -> Result<()> {
    match boot(CORE_KERNEL, &build(CORE.iter())?, &[], CORE_TIMEOUT)? {
        0 => Ok(()),
        code => bail!("tests on {CORE_KERNEL} failed with exit code {code}"),
    }
}

/// Runs the programs on a kernel; their exit code.
fn boot(kernel: &str, programs: &[Program], args: &[String], timeout: Duration) -> Result<u8> {
    let command = ["sh".to_owned(), "-c".into(), script(programs, args)];
    let files = files(programs)?;
    let mut run = Run { kernel, command: &command, files: &files, timeout, memory: MEMORY, ..Run::default() };
    let (modules, qemu_args) = (cards::MODULES.map(String::from), cards::machine_options());
    if programs.iter().any(|program| program.test.test == CARDS) {
        (run.modules, run.qemu_args) = (&modules, &qemu_args);
    }
    prepare(&run)?.boot()
}

/// What the shell in the machine is to do: all programs one after the other, and fail if one did.
fn script(programs: &[Program], args: &[String]) -> String {
    let mut script = String::from("code=0\n");
    for Program { file, test, .. } in programs {
        let only = if args.is_empty() { test.only.iter().map(ToString::to_string).collect() } else { args.to_vec() };
        let only = only.iter().map(|arg| format!(" '{}'", arg.replace('\'', r"'\''"))).collect::<String>();
        let (datapath, env, file) = (test.datapath, test.env, file.display());
        script += &format!("SLUICE_DATAPATHS={datapath} {env} '{file}' --test-threads=1 --nocapture{only} || code=1\n");
    }
    script + "exit $code\n"
}

/// What goes into the machine: the programs, the daemon that they run, and what else they look for.
fn files(programs: &[Program]) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = programs.iter().map(|program| program.file.clone()).collect();
    files.extend(programs.iter().filter_map(|program| program.daemon.clone()));
    files.extend(FILES.map(|file| cmd::root().join(file)).into_iter().filter(|file| file.is_file()));
    files.extend(Some(tools::ovs_folder().join(SCHEMA)).filter(|file| file.is_file()));
    files.extend(TOOLS.iter().filter_map(|tool| tools::find(tool)));
    Ok(files)
}

/// A program of tests that is built.
struct Program {
    file: PathBuf,
    /// The daemon beside it, where there is one.
    daemon: Option<PathBuf>,
    test: &'static Test,
}

/// Builds the test programs, and finds out where they are.
fn build(tests: impl Iterator<Item = &'static Test>) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for of in tests {
        let Test { package, test, .. } = of;
        let mut cargo = cmd::cargo();
        cargo.args(["test", "--no-run", "--quiet", "--package", package, "--test", test, "--message-format", "json"]);
        let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("can't run cargo")?;
        if !output.status.success() {
            bail!("test {test} of {package} does not build");
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let file = executable(&messages, test)
            .with_context(|| format!("cargo does not say where test {test} of {package} is"))?;
        programs.push(Program { file, daemon: executable(&messages, package), test: of });
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
