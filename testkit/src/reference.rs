//! The reference switch on real devices, as a peer of benchmarks: its database and its daemon, in a
//! network namespace of the caller's, gone when the guard is dropped.

use std::fs::File;
use std::io::{self, Error};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use crate::{Netns, Process, process, tools, wait_until};

/// How long starting, a command and stopping may take, each.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running reference switch with the bridge `br0` (`fail-mode=secure`). The fields are dropped in this order.
pub struct ReferenceSwitch {
    vswitchd: Process,
    _ovsdb: Process,
    folder: TempDir,
}

impl ReferenceSwitch {
    /// Starts both daemons in `namespace` and puts its devices `ports` on the bridge, with the numbers 1, 2, …
    ///
    /// # Errors
    /// A program is missing, or does not start.
    pub fn start(namespace: &Netns, ports: &[&str]) -> io::Result<Self> {
        Self::start_on(namespace, "netdev", ports)
    }

    /// As [`ReferenceSwitch::start`], with the datapath of this type: `netdev`, or `system` for the kernel's module.
    ///
    /// # Errors
    /// As there.
    pub fn start_on(namespace: &Netns, datapath_type: &str, ports: &[&str]) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("ovs").tempdir()?;
        let (database, socket) = (folder.path().join("conf.db"), folder.path().join("db.sock"));
        process::run_ok(tool("ovsdb-tool")?.arg("create").arg(&database).arg(schema()), TIMEOUT)?;
        let ovsdb = spawn(
            namespace,
            folder.path(),
            "ovsdb-server",
            &[&format!("--remote=punix:{}", socket.display()), &database.display().to_string()],
        )?;
        if !wait_until(TIMEOUT, || socket.exists()) {
            return Err(Error::other("ovsdb-server doesn't start"));
        }
        let remote = format!("unix:{}", socket.display());
        let control = folder.path().join("ctl");
        let unixctl = format!("--unixctl={}", control.display());
        let mut args = vec![unixctl.as_str(), remote.as_str()];
        if datapath_type != "system" {
            // With what is for tests only, such as the action debug_recirc.
            args.splice(0..0, ["--disable-system", "--enable-dummy"]);
        }
        let vswitchd = spawn(namespace, folder.path(), "ovs-vswitchd", &args)?;
        if !wait_until(TIMEOUT, || control.exists()) {
            return Err(Error::other("ovs-vswitchd doesn't start"));
        }
        let switch = Self { vswitchd, _ovsdb: ovsdb, folder };
        let mut line = format!(
            "--db={remote} --no-wait init -- add-br br0 -- set bridge br0 datapath_type={datapath_type} fail-mode=secure"
        );
        for (i, port) in ports.iter().enumerate() {
            line += &format!(" -- add-port br0 {port} -- set interface {port} ofport_request={}", i + 1);
        }
        process::run_ok(tool("ovs-vsctl")?.args(line.split_whitespace()), TIMEOUT)?;
        let there = |text: String| ports.iter().all(|port| text.contains(&format!(": {port}")));
        if !wait_until(TIMEOUT, || switch.appctl(&["dpctl/show"]).is_ok_and(there)) {
            return Err(Error::other("the reference switch's ports don't come up"));
        }
        Ok(switch)
    }

    /// The process id of `ovs-vswitchd`.
    pub fn pid(&self) -> u32 {
        self.vswitchd.pid()
    }

    /// The answer to a control command.
    ///
    /// # Errors
    /// The daemon's, or it takes too long.
    pub fn appctl(&self, words: &[&str]) -> io::Result<String> {
        let control = self.folder.path().join("ctl");
        process::run_ok(tool("ovs-appctl")?.arg("-t").arg(control).args(words), TIMEOUT)
    }

    /// Runs `ovs-vsctl` on its database, with words split at blanks.
    ///
    /// # Errors
    /// What the tool says.
    pub fn vsctl(&self, words: &str) -> io::Result<String> {
        let remote = format!("--db=unix:{}", self.folder.path().join("db.sock").display());
        process::run_ok(tool("ovs-vsctl")?.arg(remote).args(words.split_whitespace()), TIMEOUT)
    }

    /// Deletes the bridge's flows, also those that [`ReferenceSwitch::replace_flows`] can't read back.
    ///
    /// # Errors
    /// What the tool says.
    pub fn delete_flows(&self) -> io::Result<()> {
        process::run_ok(tool("ovs-ofctl")?.arg("del-flows").arg(self.bridge()), TIMEOUT).map(drop)
    }

    /// Replaces the bridge's flows by these, in `ovs-ofctl`'s syntax, one a line.
    ///
    /// # Errors
    /// What the tool says.
    pub fn replace_flows(&self, flows: &str) -> io::Result<()> {
        let file = self.folder.path().join("flows");
        std::fs::write(&file, flows)?;
        process::run_ok(tool("ovs-ofctl")?.arg("replace-flows").arg(self.bridge()).arg(file), TIMEOUT)?;
        Ok(())
    }

    fn bridge(&self) -> String {
        format!("unix:{}", self.folder.path().join("br0.mgmt").display())
    }
}

fn tool(name: &str) -> io::Result<std::process::Command> {
    tools::command(name).ok_or_else(|| Error::other(format!("{name} is not there: cargo xtask setup unpacks it")))
}

fn spawn(namespace: &Netns, folder: &Path, program: &str, args: &[&str]) -> io::Result<Process> {
    let file = tools::find(program).ok_or_else(|| Error::other(format!("{program} is not there")))?;
    let log = File::create(folder.join(program))?;
    let mut command = namespace.command(file);
    command.args(args).envs(tools::ovs_environment()).stdin(Stdio::null());
    for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
        command.env(name, folder);
    }
    Process::spawn(command.stdout(log.try_clone()?).stderr(log))
}

/// The database's schema, which comes with the daemon.
fn schema() -> PathBuf {
    let unpacked = tools::ovs_folder().join("usr/share/openvswitch/vswitch.ovsschema");
    if unpacked.exists() { unpacked } else { "/usr/share/openvswitch/vswitch.ovsschema".into() }
}
