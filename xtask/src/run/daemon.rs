//! The daemon as a process, and its control socket.

use std::{
    fs::File,
    io::Write as _,
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use testkit::{Netns, Process, wait::wait_for, wait_until};

use super::{lab::Lab, place::Place};

/// How long it may take to load its programs and to make its bridges.
const START: Duration = Duration::from_secs(60);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(10);
/// How long its end may take.
const END: Duration = Duration::from_secs(20);
/// How many of the last lines of its log are shown if it fails.
const LOG_LINES: usize = 12;

/// A running daemon; killed when dropped.
pub(super) struct Daemon {
    process: std::sync::Mutex<Process>,
    pid: u32,
    socket: PathBuf,
    log: PathBuf,
}

/// The first line of `dpctl/show`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) hit: u64,
    pub(super) missed: u64,
    pub(super) lost: u64,
}

impl Daemon {
    /// Starts the daemon in the network namespace `inside` (else in ours) and waits until it is configured.
    pub(super) fn start(program: &Path, place: &Place, inside: Option<&Netns>, options: &[String]) -> Result<Self> {
        let socket = place.socket();
        let log = place.folder().join("vswitchd.log");
        let output = File::create(&log).with_context(|| format!("can't make {}", log.display()))?;
        let mut command = Command::new(program);
        command
            .args(options)
            .args(["--datapath", "ebpf", "--unixctl"])
            .arg(&socket)
            .arg("--pidfile")
            .arg(place.folder().join("vswitchd.pid"))
            .env("SLUICE_BPFFS", place.bpffs())
            .env("OVS_RUNDIR", place.folder())
            .env("OVS_LOGDIR", place.folder())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C is for this process, which then ends the daemon with everything it has made.
            .process_group(0);
        // Only the network namespace is the switch's: with `ip netns exec` it would mount its own file systems.
        let process = match inside {
            Some(netns) => netns.run(|| Process::spawn(&mut command))??,
            None => Process::spawn(&mut command)?,
        };
        let pid = process.pid();
        let daemon = Self { process: process.into(), pid, socket, log };
        daemon.wait_until_configured().map_err(|error| daemon.with_log(error))?;
        Ok(daemon)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it still runs.
    pub(super) fn is_running(&self) -> bool {
        self.lock().is_running()
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(self.lock().signal(signal)?)
    }

    /// The answer to a control command.
    pub(super) fn ask(&self, command: &str, args: &[&str]) -> Result<String> {
        ask(&self.socket, command, args, COMMAND)
    }

    /// Its datapath's counters.
    pub(super) fn stats(&self) -> Result<Stats> {
        Stats::read(&self.ask("dpctl/show", &[])?)
    }

    /// Ends it by `exit --cleanup`, and looks that nothing is left in the switch's namespace or pinned.
    pub(super) fn end(self, lab: &Lab, place: &Place) -> Result<String> {
        self.exit()?;
        let devices = lab.switch.ip("-o -d link show")?;
        if devices.lines().any(|line| line.contains(" br0") || line.contains("promiscuity 1")) {
            bail!("the switch's namespace still has a bridge's device or a promiscuous port");
        }
        let pins = place.datapaths();
        if !pins.is_empty() {
            bail!("pins are left: {pins:?}");
        }
        Ok("exit --cleanup: no device, no pin, no promiscuous port is left".into())
    }

    /// Ends it by `exit --cleanup`.
    pub(super) fn exit(self) -> Result<()> {
        let ended = ask(&self.socket, "exit", &["--cleanup"], END).and_then(|_| {
            let status = self.lock().wait(END)?;
            match status {
                Some(status) if status.success() => Ok(()),
                Some(status) => bail!("vswitchd ended by itself with {status}"),
                None => bail!("vswitchd has answered to exit but still runs after {END:?}"),
            }
        });
        ended.map_err(|error| self.with_log(error))
    }

    /// Leaves it running.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }

    fn wait_until_configured(&self) -> Result<()> {
        let there =
            wait_for(START, || if self.socket.exists() { Some(true) } else { (!self.is_running()).then_some(false) });
        match there {
            Some(true) => {}
            Some(false) => bail!("vswitchd ended at once"),
            None => bail!("vswitchd has no control socket after {START:?}"),
        }
        // It answers when it is configured. If it ends before, the connection does.
        ask(&self.socket, "version", &[], START).map(drop).map_err(|error| {
            let ended = wait_until(Duration::from_secs(1), || !self.is_running());
            if ended { anyhow::anyhow!("vswitchd did not start") } else { error }
        })
    }

    /// The error, after showing the end of the log.
    fn with_log(&self, error: anyhow::Error) -> anyhow::Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).for_each(|line| eprintln!("    vswitchd: {line}"));
        error
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Stats {
    fn read(show: &str) -> Result<Self> {
        let line = show.lines().find_map(|line| line.trim().strip_prefix("lookups: "));
        let line = line.with_context(|| format!("dpctl/show has no line about lookups: {show:?}"))?;
        let number = |name: &str| {
            let text = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
            text.and_then(|text| text.parse().ok())
                .with_context(|| format!("dpctl/show says no number for {name}: {line}"))
        };
        Ok(Self { hit: number("hit")?, missed: number("missed")?, lost: number("lost")? })
    }

    /// What has been counted since.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            hit: self.hit.saturating_sub(before.hit),
            missed: self.missed.saturating_sub(before.missed),
            lost: self.lost.saturating_sub(before.lost),
        }
    }
}

/// One command over a control socket: a JSON-RPC request, its answer.
pub(super) fn ask(socket: &Path, command: &str, args: &[&str], timeout: Duration) -> Result<String> {
    let answer = || -> Result<serde_json::Value> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let request = serde_json::json!({"id": 0, "method": command, "params": args});
        stream.write_all(request.to_string().as_bytes())?;
        let answer = serde_json::Deserializer::from_reader(stream).into_iter().next();
        Ok(answer.context("the connection was closed")??)
    };
    let answer = answer().with_context(|| format!("no answer to {command}"))?;
    match (answer["result"].as_str(), answer["error"].as_str()) {
        (Some(text), _) => Ok(text.into()),
        (None, Some(error)) => bail!("{command}: {}", error.trim()),
        (None, None) => bail!("{command}: unexpected answer {answer}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_fields_text() {
        let show =
            "system@ovs-system:\n  lookups: hit:12 missed:3 lost:1\n  flows: 4\n  masks: hit:40 total:2 hit/pkt:2.67\n";
        let stats = Stats::read(show).unwrap();
        assert_eq!(stats, Stats { hit: 12, missed: 3, lost: 1 });
        assert_eq!(stats.since(Stats { hit: 2, missed: 3, lost: 0 }), Stats { hit: 10, missed: 0, lost: 1 });
        assert!(Stats::read("lookups: hit:1 missed:x lost:0").is_err() && Stats::read("").is_err());
    }
}
