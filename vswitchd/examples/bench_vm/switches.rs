//! The switches that are measured.

use std::fs::{self, File};
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use testkit::{Netns, Process, ReferenceSwitch, wait_until};
use vswitchd::unixctl::call;

use crate::sender::{IN, OUT, OUT_XDP};

/// Loading the eBPF programs is the longest.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The reference daemon takes a machine that is younger for one without processors.
const OLD_ENOUGH: f64 = 11.0;

/// What forwards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The reference's daemon on the kernel's module.
    Reference,
    /// Ours on the kernel's module.
    Netlink,
    /// Ours on eBPF.
    Ebpf,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Reference, Self::Netlink, Self::Ebpf];

    /// Name in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Netlink => "netlink",
            Self::Ebpf => "ebpf",
        }
    }
}

/// A running switch with [`IN`] as port 1, [`OUT`] as port 2 and [`OUT_XDP`] as port 3.
pub(crate) enum Switch {
    Theirs(ReferenceSwitch),
    Ours { daemon: Process, folder: PathBuf },
}

impl Switch {
    /// Starts it in the namespace with these rules. `folder` is for its files, `bpffs` for its pins.
    pub(crate) fn start(
        kind: Kind,
        netns: &Netns,
        rules: &str,
        daemon: &Path,
        folder: &Path,
        bpffs: &Path,
    ) -> Result<Self> {
        let switch = if kind == Kind::Reference {
            wait_until(TIMEOUT, || uptime() > OLD_ENOUGH);
            let switch = ReferenceSwitch::start_on(netns, "system", &[IN, OUT, OUT_XDP])?;
            switch.replace_flows(rules)?;
            Self::Theirs(switch)
        } else {
            Self::ours(kind, netns, rules, daemon, folder, bpffs)?
        };
        // What revalidators do goes by the time, not by the packets.
        switch.ask(&["revalidator/wait"])?;
        switch.ask(&["revalidator/pause"])?;
        switch.ask(&["upcall/set-flow-limit", "200000"])?;
        Ok(switch)
    }

    fn ours(kind: Kind, netns: &Netns, rules: &str, daemon: &Path, folder: &Path, bpffs: &Path) -> Result<Self> {
        let folder = folder.join(kind.name());
        fs::create_dir(&folder)?;
        let (flows, log) = (folder.join("flows"), folder.join("stderr"));
        fs::write(&flows, rules)?;
        let mut command = netns.command(daemon);
        command
            .args(["--datapath", kind.name(), "--bridge", "br0,fail-mode=secure", "-vconsole:off", "--log-file"])
            .args([IN, OUT, OUT_XDP].map(|port| format!("--port=br0:{port}")))
            .arg("--flows")
            .arg(&flows)
            .arg("--unixctl")
            .arg(folder.join("ctl"))
            .env("SLUICE_BPFFS", bpffs)
            .env("OVS_RUNDIR", &folder)
            .env("OVS_LOGDIR", &folder)
            .env("OVS_SYSLOG_METHOD", "null")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let switch = Self::Ours { daemon: Process::spawn(&mut command)?, folder };
        if !wait_until(TIMEOUT, || switch.ask(&["version"]).is_ok()) {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(Error::other(format!("{} doesn't start: {said}", kind.name())));
        }
        Ok(switch)
    }

    /// Forgets all flows.
    pub(crate) fn flush(&self) -> Result<()> {
        self.ask(&["revalidator/purge"])?;
        if wait_until(TIMEOUT, || self.number("flows:").is_ok_and(|flows| flows == 0)) {
            return Ok(());
        }
        Err(Error::other(format!("flows stay: {}", self.ask(&["dpctl/show"])?)))
    }

    /// Flows and masks in the datapath.
    pub(crate) fn flows_and_masks(&self) -> Result<(u64, u64)> {
        Ok((self.number("flows:")?, self.number("total:")?))
    }

    /// Puts the XDP hook in front of the input, in the driver, or takes it away.
    pub(crate) fn set_xdp(&self, on: bool) -> Result<()> {
        let show = self.ask(&["dpctl/show"])?;
        let datapath = show.split(':').next().unwrap_or_default();
        let mode = if on { "native" } else { "off" };
        self.ask(&["dpctl/set-if", datapath, &format!("{IN},xdp={mode}")]).map(drop)
    }

    /// Which program runs, and why, where the datapath says so.
    pub(crate) fn program(&self) -> Result<Option<String>> {
        let show = self.ask(&["dpctl/show"])?;
        Ok(show.lines().find_map(|line| line.trim().strip_prefix("program: ")).map(str::to_owned))
    }

    /// Waits until the program is the one that the flows need, where the datapath makes one.
    pub(crate) fn settle(&self) -> Result<()> {
        let is_settled = || match self.program() {
            Ok(Some(line)) => line.contains("flows need)") || line.contains("flows fits"),
            Ok(None) => true,
            Err(_) => false,
        };
        if !wait_until(TIMEOUT, is_settled) {
            return Err(Error::other(format!("the program stays another: {:?}", self.program()?)));
        }
        if let Some(line) = self.program()? {
            eprintln!("    program: {line}");
        }
        Ok(())
    }

    /// What has become of packets and their upcalls, as it is shown.
    pub(crate) fn accounts(&self) -> Result<String> {
        Ok([self.ask(&["dpctl/show"])?, self.ask(&["upcall/show"])?].join("\n"))
    }

    /// The number behind a word of `dpctl/show`.
    fn number(&self, word: &str) -> Result<u64> {
        let show = self.ask(&["dpctl/show"])?;
        let rest = show.split_once(word).map(|(_, rest)| rest.trim_start()).unwrap_or_default();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().map_err(|_| Error::other(format!("no {word} in {show}")))
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        match self {
            Self::Theirs(switch) => switch.appctl(words),
            Self::Ours { folder, .. } => {
                let (command, args) = words.split_first().unwrap_or((&"", &[]));
                call(&folder.join("ctl"), command, args, TIMEOUT).map_err(Error::other)?.map_err(Error::other)
            }
        }
    }

    /// Ends it and removes its datapath.
    pub(crate) fn stop(self) -> Result<()> {
        // Threads that wait to be resumed would not end.
        self.ask(&["revalidator/resume"])?;
        self.ask(&["exit", "--cleanup"])?;
        match self {
            Self::Theirs(switch) => {
                let process = format!("/proc/{}/exe", switch.pid());
                // A process that has ended has no program, even before somebody has waited for it.
                if !wait_until(TIMEOUT, || fs::read_link(&process).is_err()) {
                    return Err(Error::other("the reference daemon does not end"));
                }
            }
            Self::Ours { mut daemon, .. } => {
                if daemon.wait(TIMEOUT)?.is_none() {
                    return Err(Error::other("the daemon does not end"));
                }
            }
        }
        Ok(())
    }
}

/// Seconds since the machine was started.
fn uptime() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_whitespace().next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0)
}
