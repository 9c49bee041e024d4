//! The reference switch of a test: its database and its daemon with a dummy datapath, in a network namespace and a folder of
//! their own, gone when the guard is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use testkit::{Netns, Process, process, tools, wait_until};

use crate::unixctl::Unixctl;

/// How long starting, a command and stopping may take, each.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running switch with the bridge `br0` and the dummy port `p1`, number 1. Fields are dropped in this order.
pub(crate) struct Server {
    vswitchd: Process,
    ovsdb: Process,
    folder: TempDir,
    _namespace: Netns,
}

impl Server {
    /// Starts both daemons and waits until the port is there.
    pub(crate) fn start() -> Self {
        let namespace = Netns::new("reference").unwrap();
        let folder = tempfile::Builder::new().prefix("ovs").tempdir().unwrap();
        let (database, socket) = (folder.path().join("conf.db"), folder.path().join("db.sock"));
        let mut tool = tools::command("ovsdb-tool").unwrap();
        process::run_ok(tool.arg("create").arg(&database).arg(schema()), TIMEOUT).unwrap();

        let spawn = |program: &str, args: &[&str]| {
            let log = fs::File::create(folder.path().join(program)).unwrap();
            let mut command = namespace.command(tools::find(program).unwrap());
            command.args(args).envs(tools::ovs_environment()).stdin(Stdio::null());
            for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
                command.env(name, folder.path());
            }
            Process::spawn(command.stdout(log.try_clone().unwrap()).stderr(log)).unwrap()
        };
        let path = |path: &Path| path.display().to_string();
        let ovsdb = spawn("ovsdb-server", &[&format!("--remote=punix:{}", path(&socket)), &path(&database)]);
        assert!(wait_until(TIMEOUT, || socket.exists()), "ovsdb-server doesn't start");
        let control = folder.path().join("ctl");
        let remote = format!("unix:{}", path(&socket));
        let unixctl = format!("--unixctl={}", path(&control));
        let vswitchd = spawn("ovs-vswitchd", &["--enable-dummy", "--disable-system", &unixctl, &remote]);
        let server = Self { vswitchd, ovsdb, folder, _namespace: namespace };
        assert!(wait_until(TIMEOUT, || control.exists()), "ovs-vswitchd doesn't start: {}", server.log());

        // Both tags of a frame belong to the key, as in the kernel module; by default the reference reads one.
        let configuration = "--no-wait init -- set Open_vSwitch . other_config:vlan-limit=2 other_config:max-idle=60000 \
             -- add-br br0 -- set bridge br0 datapath_type=dummy fail-mode=secure \
             -- add-port br0 p1 -- set interface p1 type=dummy ofport_request=1";
        let mut tool = tools::command("ovs-vsctl").unwrap();
        process::run_ok(tool.arg(format!("--db={remote}")).args(configuration.split_whitespace()), TIMEOUT).unwrap();
        let ready = || server.unixctl().call("dpctl/show", &[]).is_ok_and(|text| text.contains("p1 (dummy)"));
        assert!(wait_until(TIMEOUT, ready), "the bridge doesn't come up: {}", server.log());
        server
    }

    /// A new connection to the daemon's control socket.
    pub(crate) fn unixctl(&self) -> Unixctl {
        Unixctl::connect(&self.folder.path().join("ctl")).unwrap()
    }

    /// Adds an OpenFlow flow to the bridge.
    #[allow(dead_code, reason = "not all tests with a reference switch use it")]
    pub(crate) fn add_flow(&self, flow: &str) {
        self.ofctl("br0", &["add-flow"], &[flow]);
    }

    /// Runs `ovs-ofctl COMMAND… BRIDGE ARGUMENTS…`.
    pub(crate) fn ofctl(&self, bridge: &str, command: &[&str], arguments: &[&str]) {
        let bridge = format!("unix:{}", self.folder.path().join(format!("{bridge}.mgmt")).display());
        let mut tool = tools::command("ovs-ofctl").unwrap();
        process::run_ok(tool.args(command).arg(bridge).args(arguments), TIMEOUT).unwrap();
    }

    /// Runs `ovs-vsctl` and waits until the daemon has done what it says.
    #[allow(dead_code, reason = "not all tests with a reference switch use it")]
    pub(crate) fn vsctl(&self, arguments: &[String]) {
        let remote = format!("--db=unix:{}", self.folder.path().join("db.sock").display());
        let mut tool = tools::command("ovs-vsctl").unwrap();
        process::run_ok(tool.arg(remote).args(arguments), TIMEOUT).unwrap();
    }

    /// Stops both daemons; an error if one doesn't end by itself.
    pub(crate) fn stop(self) {
        self.vswitchd.stop(TIMEOUT).unwrap();
        self.ovsdb.stop(TIMEOUT).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("ovs-vswitchd")).unwrap_or_default()
    }
}

/// The database's schema, which comes with the daemon.
fn schema() -> PathBuf {
    let unpacked = tools::ovs_folder().join("usr/share/openvswitch/vswitch.ovsschema");
    if unpacked.exists() { unpacked } else { "/usr/share/openvswitch/vswitch.ovsschema".into() }
}
