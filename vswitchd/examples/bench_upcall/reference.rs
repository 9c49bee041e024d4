//! The reference's daemon with its userspace datapath, on a veth pair of the same kind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use testkit::process::run_ok;
use testkit::{Netns, Process, tools, wait_until};

use crate::generator::Wires;
use crate::{RULE, Subject};

/// The CPU that it runs on.
const CPU: &str = "1";
const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Reference {
    _vswitchd: Process,
    _ovsdb: Process,
    folder: TempDir,
    pub(crate) wires: Wires,
    _netns: Netns,
}

impl Reference {
    pub(crate) fn start() -> Self {
        let netns = Netns::new("bench-ref").expect("a network namespace");
        let wires = Wires::to(&netns, "bench-refh");
        let folder = tempfile::Builder::new().prefix("ovs").tempdir().expect("a folder");
        let (database, socket) = (folder.path().join("conf.db"), folder.path().join("db.sock"));
        let mut tool = tools::command("ovsdb-tool").expect("ovsdb-tool");
        run_ok(tool.arg("create").arg(&database).arg(schema()), TIMEOUT).expect("a database");
        let spawn = |program: &str, args: &[&str]| {
            let log = fs::File::create(folder.path().join(program)).expect("a log");
            let mut command = netns.command("taskset");
            command.args(["-c", CPU]).arg(tools::find(program).expect("an unpacked program"));
            command.args(args).envs(tools::ovs_environment()).stdin(Stdio::null());
            for name in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"] {
                command.env(name, folder.path());
            }
            Process::spawn(command.stdout(log.try_clone().expect("a log")).stderr(log)).expect("a daemon")
        };
        let text = |path: &Path| path.display().to_string();
        let ovsdb = spawn("ovsdb-server", &[&format!("--remote=punix:{}", text(&socket)), &text(&database)]);
        assert!(wait_until(TIMEOUT, || socket.exists()), "ovsdb-server doesn't start");
        let control = folder.path().join("ctl");
        let remote = format!("unix:{}", text(&socket));
        let vswitchd = spawn("ovs-vswitchd", &["--disable-system", &format!("--unixctl={}", text(&control)), &remote]);
        assert!(wait_until(TIMEOUT, || control.exists()), "ovs-vswitchd doesn't start");
        let configuration = "--no-wait init -- add-br br0 -- set bridge br0 datapath_type=netdev fail-mode=secure \
             -- add-port br0 v1 -- set interface v1 ofport_request=1 -- add-port br0 v2 -- set interface v2 ofport_request=2";
        let mut tool = tools::command("ovs-vsctl").expect("ovs-vsctl");
        run_ok(tool.arg(format!("--db={remote}")).args(configuration.split_whitespace()), TIMEOUT).expect("a bridge");
        let reference = Self { _vswitchd: vswitchd, _ovsdb: ovsdb, folder, wires, _netns: netns };
        assert!(wait_until(TIMEOUT, || reference.ask(&["dpctl/show"]).contains("v2")), "the ports don't come up");
        let bridge = format!("unix:{}", text(&reference.folder.path().join("br0.mgmt")));
        assert!(
            wait_until(TIMEOUT, || reference.folder.path().join("br0.mgmt").exists()),
            "the bridge doesn't come up"
        );
        let mut tool = tools::command("ovs-ofctl").expect("ovs-ofctl");
        run_ok(tool.args(["add-flow", &bridge, RULE]), TIMEOUT).expect("a rule");
        reference
    }

    fn ask(&self, words: &[&str]) -> String {
        let mut tool = tools::command("ovs-appctl").expect("ovs-appctl");
        let target = self.folder.path().join("ctl");
        run_ok(tool.arg("-t").arg(target).args(words), TIMEOUT).unwrap_or_default()
    }
}

impl Subject for Reference {
    fn flush(&mut self) {
        self.ask(&["revalidator/purge"]);
        assert!(wait_until(TIMEOUT, || self.flows() == 0), "flows stay");
    }

    fn name(&self) -> &'static str {
        "reference"
    }

    fn flows(&self) -> usize {
        let shown = self.ask(&["upcall/show"]);
        let current = shown.split("(current ").nth(1).and_then(|rest| rest.split(')').next());
        current.and_then(|number| number.parse().ok()).unwrap_or(usize::MAX)
    }
}

/// The database's schema, which comes with the daemon.
fn schema() -> PathBuf {
    let unpacked = tools::ovs_folder().join("usr/share/openvswitch/vswitch.ovsschema");
    if unpacked.exists() { unpacked } else { "/usr/share/openvswitch/vswitch.ovsschema".into() }
}
