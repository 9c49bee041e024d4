//! Running other programs: the tree's root, clear errors, progress lines and times.
//!
//! A task says what it is about to do ([`step`]), does it, and says how long it took. A command that fails becomes one
//! line that names the command and how it ended; the output of a captured command is shown only then.

use std::{
    env, fmt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How many of the last lines of a failed command's captured output are shown.
const SHOWN_LINES: usize = 30;

/// The folder of the workspace's `Cargo.toml`.
pub(crate) use testkit::workspace_root as root;

/// `cargo` in the workspace's root, freed of the variables that describe the running xtask: build scripts that watch
/// them would rerun at each change between a plain `cargo build` and one from here.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|prefix| text.starts_with(prefix))
        {
            cargo.env_remove(&name);
        }
    }
    cargo.current_dir(root());
    cargo
}

/// Runs a command whose output the user sees.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("can't run {}", show(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", show(command));
    }
    Ok(())
}

/// Runs a command quietly and returns its standard output; its output is shown if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("can't run {}", show(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let all = stdout + &String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = all.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES)) {
            eprintln!("    {line}");
        }
        bail!("{} failed ({})", show(command), output.status);
    }
    Ok(stdout)
}

/// Announces what is about to be done; [`Step::done`] closes it with the time it took.
pub(crate) fn step(what: impl fmt::Display) -> Step {
    println!("==> {what}");
    Step { started: Instant::now() }
}

/// A piece of work that has been announced.
pub(crate) struct Step {
    started: Instant,
}

impl Step {
    /// Says what came out, and the time since the announcement.
    pub(crate) fn done(self, result: impl fmt::Display) {
        println!("    {result} ({})", seconds(self.started.elapsed()));
    }
}

/// A duration as people read it: `0.3 s`, `2 min 05 s`.
pub(crate) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

/// The command as one would type it, without its environment.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy());
    format!("`{}`", words.collect::<Vec<_>>().join(" "))
}
