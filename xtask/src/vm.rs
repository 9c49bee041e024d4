//! `cargo xtask vm -- COMMAND`: one command in a virtual machine with one of Debian's kernels.
//!
//! The switch's kernel module and older kernels are not what a developer's machine runs. Here they come as packages
//! ([`packages`]), are never installed, and boot in QEMU by software emulation ([`machine`]), with a file system in memory
//! ([`image`]) that holds the command and what it needs of this machine ([`programs`]) and of the kernel ([`modules`]). The
//! guest's first process is `vm-init` (`src/bin/vm-init.rs`); what it says to the host is in [`protocol`].
//!
//! A machine that dies is started once more; a command that fails never is.

pub(crate) mod bench;
mod console;
mod cpio;
mod image;
mod machine;
mod modules;
mod packages;
mod plain;
mod programs;
mod protocol;
pub(crate) mod suite;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{
    image::{Base, Job},
    machine::{Ended, Machine},
    packages::{Kernel, Qemu},
};
use crate::cmd;

/// Exit code of a command that took too long, as `timeout(1)` has it.
const TIMED_OUT: u8 = 124;
/// From power-on to the command, on a machine that does other things too.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// The guest says once a second that it lives.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

const KERNEL: &str = "6.1";
const OUT: &str = "target/vm/out";
const TIMEOUT: Duration = Duration::from_secs(600);
const CPUS: u32 = 2;
/// MiB.
const MEMORY: u32 = 768;

/// Options of `vm`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Version of the kernel: the newest of Debian's that begins with it
    #[arg(long, default_value = KERNEL, value_name = "VERSION")]
    kernel: String,
    /// Take this file, folder, or program (with its libraries, by path or by name) along; may be repeated
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Load this module beside the usual ones; may be repeated
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Set this in the command's environment; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Where files that the command leaves in $VM_OUT go
    #[arg(long, default_value = OUT, value_name = "FOLDER")]
    out: PathBuf,
    /// End the command after this many seconds
    #[arg(long, default_value_t = TIMEOUT.as_secs(), value_name = "SECONDS")]
    timeout: u64,
    /// Take a machine for dead that gives no sign of life for so many seconds, or needs twice as many to start
    #[arg(long, default_value_t = SILENCE_TIMEOUT.as_secs(), value_name = "SECONDS")]
    patience: u64,
    /// Processors of the machine
    #[arg(long, default_value_t = CPUS)]
    cpus: u32,
    /// Its memory in MiB
    #[arg(long, default_value_t = MEMORY, value_name = "MIB")]
    memory: u32,
    /// Another option of QEMU; may be repeated
    #[arg(long = "qemu", value_name = "OPTION", allow_hyphen_values = true)]
    qemu_args: Vec<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A command and the machine that it is to run in.
pub(crate) struct Run<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) command: &'a [String],
    pub(crate) files: &'a [PathBuf],
    pub(crate) modules: &'a [String],
    pub(crate) env: &'a [String],
    pub(crate) out: &'a Path,
    pub(crate) timeout: Duration,
    pub(crate) boot_timeout: Duration,
    pub(crate) silence_timeout: Duration,
    pub(crate) cpus: u32,
    pub(crate) memory: u32,
    pub(crate) qemu_args: &'a [String],
}

impl Default for Run<'_> {
    fn default() -> Self {
        Self {
            kernel: KERNEL,
            command: &[],
            files: &[],
            modules: &[],
            env: &[],
            out: Path::new(OUT),
            timeout: TIMEOUT,
            boot_timeout: BOOT_TIMEOUT,
            silence_timeout: SILENCE_TIMEOUT,
            cpus: CPUS,
            memory: MEMORY,
            qemu_args: &[],
        }
    }
}

/// A run whose image is made.
pub(crate) struct Prepared<'a> {
    run: &'a Run<'a>,
    qemu: Qemu,
    kernel: Kernel,
    image: tempfile::NamedTempFile,
    took: Duration,
}

/// Runs the command in a machine; returns its exit code.
pub(crate) fn run(options: &Options) -> Result<u8> {
    let run = Run {
        kernel: &options.kernel,
        command: &options.command,
        files: &options.files,
        modules: &options.modules,
        env: &options.env,
        out: &options.out,
        timeout: Duration::from_secs(options.timeout),
        cpus: options.cpus,
        memory: options.memory,
        qemu_args: &options.qemu_args,
        silence_timeout: Duration::from_secs(options.patience),
        boot_timeout: Duration::from_secs(options.patience) * 2,
    };
    prepare(&run)?.boot()
}

/// Gets what every machine with this kernel needs, into the cache.
pub(crate) fn fetch(kernel: &str) -> Result<()> {
    let cache = cmd::root().join(".cache/vm");
    let _lock = packages::lock(&cache)?;
    packages::qemu(&cache)?;
    packages::kernel(&cache, kernel).map(drop)
}

/// Gets what is missing (which may take a minute the first time) and makes the image.
pub(crate) fn prepare<'a>(run: &'a Run<'a>) -> Result<Prepared<'a>> {
    let started = Instant::now();
    let cache = cmd::root().join(".cache/vm");
    let lock = packages::lock(&cache)?;
    let qemu = packages::qemu(&cache)?;
    let kernel = packages::kernel(&cache, run.kernel)?;
    let init = build_init()?;
    let base = Base::get(&cache, &kernel, &init)?;
    drop(lock);
    let job = Job { command: run.command, files: run.files, env: run.env, modules: run.modules };
    let mut image = tempfile::NamedTempFile::new().context("can't make a temporary file")?;
    image.write_all(&base.with_job(&kernel, &job)?)?;
    Ok(Prepared { run, qemu, kernel, image, took: started.elapsed() })
}

impl Prepared<'_> {
    /// Boots; once more where the machine died. Returns the command's exit code.
    pub(crate) fn boot(&self) -> Result<u8> {
        let folder = cmd::root().join("target/vm");
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let out = cmd::root().join(self.run.out);
        // Only the folder that is ours alone is emptied.
        if self.run.out == Path::new(OUT) {
            let _ = fs::remove_dir_all(&out);
        }
        let log = folder.join(format!("console-{}.log", std::process::id()));
        let machine = Machine {
            qemu: &self.qemu,
            kernel: &self.kernel,
            image: self.image.path(),
            cpus: self.run.cpus,
            memory: self.run.memory,
            qemu_args: self.run.qemu_args,
            boot_timeout: self.run.boot_timeout,
            silence_timeout: self.run.silence_timeout,
            timeout: self.run.timeout,
            out: &out,
            log: &log,
        };
        let mut code = boot(&machine, self.took)?;
        if code.is_none() {
            eprintln!("    starting the machine once more");
            code = boot(&machine, self.took)?;
        }
        let Some(code) = code else {
            bail!("the machine died twice; all that its console said is in {}", log.display());
        };
        let _ = fs::remove_file(&log);
        Ok(code)
    }
}

/// Boots once; the exit code, or none where the machine died.
fn boot(machine: &Machine<'_>, prepared: Duration) -> Result<Option<u8>> {
    match machine.run()? {
        Ended::Exited { code, boot, ran, files } => {
            let files =
                if files == 0 { String::new() } else { format!(", {files} files in {}", machine.out.display()) };
            eprintln!(
                "    {}: exit code {code}; prepared in {}, booted in {}, ran for {}{files}",
                machine.kernel.release,
                cmd::seconds(prepared),
                cmd::seconds(boot),
                cmd::seconds(ran),
            );
            Ok(Some(u8::try_from(code).unwrap_or(u8::MAX)))
        }
        Ended::TimedOut => {
            eprintln!("    stopped: the command ran for {}", cmd::seconds(machine.timeout));
            Ok(Some(TIMED_OUT))
        }
        Ended::Fault(why) => bail!("the machine could not run the command: {why}"),
        Ended::Died(why) => {
            eprintln!("    the machine died: {why}");
            Ok(None)
        }
    }
}

/// Builds the guest's first process.
fn build_init() -> Result<PathBuf> {
    let mut build = cmd::cargo();
    build.args(["build", "--quiet", "--package", "xtask", "--bin", "vm-init"]).env_remove("CARGO_TARGET_DIR");
    cmd::run(&mut build)?;
    Ok(cmd::root().join("target/debug/vm-init"))
}
