//! Processes that end with the test, and commands that end in time.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait;

/// A running process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
}

impl Process {
    /// Starts `command`; where its output goes is as the caller has set it.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let text = describe(command);
        let child = command.spawn().map_err(|error| named(&text, &error))?;
        Ok(Self { child, command: text })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal, for instance `SIGSTOP` to see what goes on without the process.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if !self.is_running() {
            return Err(io::Error::other(format!("{} has ended already", self.command)));
        }
        // It has not been waited for, so the id is still its own.
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).map_err(io::Error::from)
    }

    /// Waits for the end; `None` if it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        wait::wait_for(timeout, || self.child.try_wait().transpose()).transpose()
    }

    /// Asks it to end by `SIGTERM`; an error if it takes longer than `timeout`, after which it is killed.
    pub fn stop(mut self, timeout: Duration) -> io::Result<ExitStatus> {
        if self.is_running() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait(timeout)?.ok_or_else(|| io::Error::other(format!("{} ignored SIGTERM for {timeout:?}", self.command)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail harmlessly when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end, at most for `timeout`, and returns its output. That it fails is not an error here.
pub fn run_bounded(command: &mut Command, timeout: Duration) -> io::Result<Output> {
    // Files, not pipes: a daemon that the command leaves behind may keep them open without blocking us.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut process = Process::spawn(command)?;
    let Some(status) = process.wait(timeout)? else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} ran for over {timeout:?}", process.command)));
    };
    Ok(Output { status, stdout: read_all(&mut stdout)?, stderr: read_all(&mut stderr)? })
}

/// Runs `command` as [`run_bounded`] does and returns what it wrote to standard output; a failure is an error that
/// shows what it wrote to standard error.
pub fn run_ok(command: &mut Command, timeout: Duration) -> io::Result<String> {
    let output = run_bounded(command, timeout)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = if said.trim().is_empty() { stdout.trim() } else { said.trim() };
    Err(io::Error::other(format!("{} failed ({}): {said}", describe(command), output.status)))
}

fn read_all(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy());
    format!("`{}`", words.collect::<Vec<_>>().join(" "))
}

fn named(command: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("can't run {command}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_ended() {
        let error = run_bounded(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_failure_shows_what_the_command_said() {
        let error =
            run_ok(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().ends_with("why"), "{error}");
    }

    #[test]
    fn stop_ends_a_process() {
        let process = Process::spawn(Command::new("sleep").arg("60")).unwrap();
        assert!(!process.stop(Duration::from_secs(5)).unwrap().success());
    }
}
