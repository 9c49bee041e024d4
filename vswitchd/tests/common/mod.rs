//! Daemons under test, and the networks they switch.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;
use testkit::process::run_bounded;
use testkit::{Netns, Process, veth_pair, wait_until};
use vswitchd::unixctl::call;

/// How long anything may take: generous, because an emulated machine takes a third of it to load the programs, and more if others
/// keep it busy.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(180);

/// A command that runs the daemon with `OVS_RUNDIR` and `OVS_LOGDIR` in `directory`.
pub(crate) fn vswitchd(directory: &Path, args: &[&str]) -> Command {
    prepared(Command::new(env!("CARGO_BIN_EXE_vswitchd")), directory, args)
}

fn prepared(mut command: Command, directory: &Path, args: &[&str]) -> Command {
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
    command.env("OVS_RUNDIR", directory).env("OVS_LOGDIR", directory).env("OVS_SYSLOG_METHOD", "null");
    command
}

/// Runs the daemon where it should end by itself; its exit code and what it said on standard error.
pub(crate) fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let output = run_bounded(command, TIMEOUT).unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A running daemon. Its standard error goes to the file `stderr` in its directory.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    pub(crate) directory: PathBuf,
}

impl Daemon {
    /// Starts one and waits until it serves.
    pub(crate) fn start(directory: &Path, mut command: Command) -> Daemon {
        let stderr = fs::File::create(directory.join("stderr")).unwrap();
        let process = Process::spawn(command.stderr(stderr)).unwrap();
        let mut daemon = Daemon { process, directory: directory.to_owned() };
        let served = wait_until(TIMEOUT, || {
            !daemon.process.is_running() || call(&daemon.socket(), "version", &[], TIMEOUT).is_ok()
        });
        assert!(served && daemon.process.is_running(), "{}", daemon.read("stderr"));
        daemon
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path(&format!("vswitchd.{}.ctl", self.process.pid()))
    }

    pub(crate) fn call(&self, command: &str, args: &[&str]) -> Result<String, String> {
        call(&self.socket(), command, args, TIMEOUT).unwrap()
    }

    /// The result of a command that must succeed, its words split at blanks.
    pub(crate) fn ask(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or_default();
        self.call(command, &words.collect::<Vec<_>>()).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    /// Waits for the end, checks that it left no files behind, and returns its exit code.
    pub(crate) fn ended(mut self) -> Option<i32> {
        let status = self.process.wait(TIMEOUT).unwrap().expect("it did not end");
        assert!(!self.socket().exists() && !self.path("vswitchd.pid").exists());
        status.code()
    }
}

/// A host with a switch of its own, and other hosts on wires: host N has the address 10.0.0.N and is wired to `vN`.
pub(crate) struct Network {
    pub(crate) netns: Netns,
    pub(crate) hosts: Vec<Netns>,
    directory: TempDir,
    bpffs: Option<PathBuf>,
}

impl Network {
    /// Makes `n_hosts` hosts that know each other's Ethernet addresses, so that no neighbour entry goes stale under a
    /// test that counts.
    pub(crate) fn new(n_hosts: usize) -> Network {
        let netns = Netns::new("switch").unwrap();
        netns.silence().unwrap();
        let mut hosts = Vec::new();
        for n in 1..=n_hosts {
            let host = Netns::new(&format!("host{n}")).unwrap();
            host.silence().unwrap();
            veth_pair(&netns, &format!("v{n}"), &host, "eth0").unwrap();
            host.ip(&format!("link set eth0 address 02:00:00:00:00:{n:02x}")).unwrap();
            host.ip(&format!("addr add 10.0.0.{n}/24 dev eth0")).unwrap();
            hosts.push(host);
        }
        for (from, host) in hosts.iter().enumerate() {
            for to in (1..=n_hosts).filter(|to| *to != from + 1) {
                host.ip(&format!("neigh add 10.0.0.{to} lladdr 02:00:00:00:00:{to:02x} dev eth0 nud permanent"))
                    .unwrap();
            }
        }
        let directory = tempfile::tempdir().unwrap();
        // Mounted here, because a mount of the daemon's own would go with it.
        let bpffs = directory.path().join("bpf");
        fs::create_dir(&bpffs).unwrap();
        let mounted = mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).is_ok();
        Network { netns, hosts, directory, bpffs: mounted.then_some(bpffs) }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command that runs the daemon on the switch's host, with words split at blanks.
    pub(crate) fn vswitchd(&self, line: &str) -> Command {
        let command = self.netns.command(env!("CARGO_BIN_EXE_vswitchd"));
        let args: Vec<&str> = line.split_whitespace().collect();
        let mut command = prepared(command, self.directory(), &args);
        command.env("SLUICE_BPFFS", self.directory().join("bpf"));
        command
    }

    pub(crate) fn start(&self, line: &str) -> Daemon {
        Daemon::start(self.directory(), self.vswitchd(&format!("{line} -vconsole:off --log-file")))
    }

    /// Gives the switch's own host, which is behind `bridge`, the address 10.0.0.254 and its neighbours.
    pub(crate) fn join(&self, bridge: &str) {
        self.netns.ip(&format!("link set {bridge} address 02:00:00:00:00:fe")).unwrap();
        self.netns.ip(&format!("addr add 10.0.0.254/24 dev {bridge}")).unwrap();
        self.netns.ip(&format!("link set {bridge} up")).unwrap();
        for (n, host) in (1..).zip(&self.hosts) {
            host.ip("neigh add 10.0.0.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent").unwrap();
            let there = format!("neigh add 10.0.0.{n} lladdr 02:00:00:00:00:{n:02x} dev {bridge} nud permanent");
            self.netns.ip(&there).unwrap();
        }
    }

    /// Whether `count` pings of host `from` to `to` (0 is the switch's own host) are all answered.
    pub(crate) fn pings(&self, from: usize, to: usize, count: usize) -> bool {
        // However slow the machine is; who is answered doesn't wait.
        let said = self.ping(from, to, count, 10);
        let answered = said.as_ref().is_ok_and(|said| said.contains(&format!(" {count} received")));
        if !answered {
            eprintln!("ping from {from} to {to}: {said:?}");
        }
        answered
    }

    /// Whether none of `count` pings is answered.
    pub(crate) fn are_apart(&self, from: usize, to: usize, count: usize) -> bool {
        self.ping(from, to, count, 1).is_err()
    }

    fn ping(&self, from: usize, to: usize, count: usize, wait_s: u32) -> std::io::Result<String> {
        let to = if to == 0 { 254 } else { to };
        self.hosts[from - 1].exec(&format!("ping -q -c {count} -i 0.05 -W {wait_s} 10.0.0.{to}"))
    }

    /// What the switch has left on its host: devices that it made, programs on others, pins.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for line in self.netns.ip("-o link show").unwrap().lines() {
            let name = line.split(": ").nth(1).unwrap_or_default().split('@').next().unwrap_or_default();
            if name != "lo" && !name.starts_with('v') || line.contains("PROMISC") || line.contains("clsact") {
                left.push(line.to_owned());
            }
        }
        let tcx = self.netns.exec("bpftool net show").unwrap_or_default();
        left.extend(tcx.lines().filter(|line| line.contains("tcx")).map(str::to_owned));
        if self.pins().exists() {
            left.push(self.pins().display().to_string());
        }
        left
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.directory().join("bpf/sluice")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(bpffs) = &self.bpffs {
            // With it go the pins and all that they hold.
            let _ = umount2(bpffs, MntFlags::MNT_DETACH);
        }
    }
}
