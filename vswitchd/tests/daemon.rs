//! The daemon's life: how it starts, what it refuses, what signals and the control socket do, how it ends. With the
//! field's own `ovs-appctl` where there is one.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use testkit::process::run_bounded;
use testkit::{Need, Process, wait_until};
use vswitchd::unixctl::call;

use common::{Daemon, TIMEOUT, vswitchd};

/// Starts a daemon and waits until it serves.
fn start(args: &[&str]) -> (TempDir, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let daemon = start_in(&directory, args);
    (directory, daemon)
}

fn start_in(directory: &TempDir, args: &[&str]) -> Daemon {
    Daemon::start(directory.path(), vswitchd(directory.path(), args))
}

fn outcome(directory: &Path, args: &[&str]) -> (Option<i32>, String) {
    common::outcome(&mut vswitchd(directory, args))
}

#[test]
fn it_has_a_pidfile_and_a_socket_while_it_lives() {
    let (_directory, daemon) = start(&[]);
    assert_eq!(daemon.read("vswitchd.pid"), format!("{}\n", daemon.process.pid()));
    let version = format!("vswitchd (Sluice) {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(daemon.call("version", &[]), Ok(version));
    let start = Instant::now();
    assert_eq!(daemon.call("exit", &[]), Ok(String::new()));
    assert_eq!(daemon.ended(), Some(0));
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

#[test]
fn signals_end_it_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (_directory, mut daemon) = start(&["--log-file"]);
        daemon.process.signal(signal).unwrap();
        let log = daemon.path("vswitchd.log");
        let kept = tempfile::NamedTempFile::new().unwrap();
        fs::hard_link(&log, kept.path().with_extension("log")).unwrap();
        assert_eq!(daemon.ended(), Some(0), "{signal}");
        let text = fs::read_to_string(kept.path().with_extension("log")).unwrap();
        fs::remove_file(kept.path().with_extension("log")).unwrap();
        assert!(text.lines().last().unwrap().ends_with("|vswitchd|INFO|exiting"), "{text}");
    }
}

#[test]
fn a_second_one_is_refused_and_the_first_goes_on() {
    let (_directory, daemon) = start(&[]);
    let (code, error) = outcome(&daemon.directory, &["-vconsole:off"]);
    let pidfile = daemon.path("vswitchd.pid");
    let pid = daemon.process.pid();
    assert_eq!((code, error), (Some(1), format!("vswitchd: {}: already running as pid {pid}\n", pidfile.display())));
    let socket = daemon.socket();
    let (code, error) = outcome(&daemon.directory, &["-vconsole:off", "--unixctl", socket.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(error.starts_with(&format!("vswitchd: {}: a running process listens", socket.display())), "{error}");
    assert!(daemon.call("version", &[]).is_ok());
    assert!(pidfile.exists());
}

#[test]
fn what_a_killed_one_left_is_replaced() {
    let (directory, mut daemon) = start(&[]);
    daemon.process.signal(Signal::SIGKILL).unwrap();
    daemon.process.wait(TIMEOUT).unwrap();
    assert!(daemon.socket().exists() && daemon.path("vswitchd.pid").exists());
    let next = start_in(&directory, &[]);
    assert_eq!(next.read("vswitchd.pid"), format!("{}\n", next.process.pid()));
}

#[test]
fn a_relative_socket_is_in_the_run_directory() {
    let directory = tempfile::tempdir().unwrap();
    let mut process =
        Process::spawn(vswitchd(directory.path(), &["--unixctl=my.ctl", "--pidfile=my.pid"]).stderr(Stdio::null()))
            .unwrap();
    let socket = directory.path().join("my.ctl");
    assert!(wait_until(TIMEOUT, || call(&socket, "version", &[], TIMEOUT).is_ok()));
    assert!(directory.path().join("my.pid").exists());
    call(&socket, "exit", &["--cleanup"], TIMEOUT).unwrap().unwrap();
    assert!(process.wait(TIMEOUT).unwrap().unwrap().success());
    assert!(!socket.exists() && !directory.path().join("my.pid").exists());
}

#[test]
fn what_is_wrong_is_told_in_one_line_with_its_code() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let unknown_key = write("unknown.toml", "[[bridge]]\nname = \"br0\"\nfoo = 1\n");
    let bad_rule = write("rule.toml", "[[bridge]]\nname = \"a-name-that-is-too-long\"\n");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--nonsense"], 2, "unexpected argument '--nonsense' found"),
        (&["--bridge", "br0", "--port", "br1:a"], 2, "port a: there is no bridge br1"),
        (&["--bridge", "br0", "--port", "br0:a", "--port", "br0:a"], 2, "port a is given twice on bridge br0"),
        (&["--config", &unknown_key], 2, &format!("{unknown_key}:3:1: unknown field `foo`")),
        (&["--config", &bad_rule], 2, "bridge a-name-that-is-too-long: the name is 23 bytes long"),
        (&["--config", "/nonexistent.toml"], 2, "/nonexistent.toml: No such file"),
        (&["--check", "--config", &bad_rule], 2, "bridge a-name-that-is-too-long"),
        (&["-vnonsense"], 2, "processing \"nonsense\": no destination, level, or module \"nonsense\""),
        (&["--syslog-method", "pigeon"], 2, "unsupported syslog method 'pigeon'"),
        (&["-vconsole:off", "--log-file=/nonexistent/log"], 1, "/nonexistent/log: failed to open for logging"),
        (&["-vconsole:off", "--unixctl=/nonexistent/ctl"], 1, "/nonexistent/ctl: could not initialize control socket"),
        (&["-vconsole:off", "--pidfile=/nonexistent/pid"], 1, "/nonexistent/pid: could not make the pidfile"),
    ];
    for (args, code, expected) in cases {
        let (actual, error) = outcome(directory.path(), args);
        assert_eq!(actual, Some(*code), "{args:?}: {error}");
        assert!(error.starts_with(&format!("vswitchd: {expected}")), "{args:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    }
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_check_ends_with_0_and_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(outcome(directory.path(), &["--check", "--bridge", "br0"]), (Some(0), String::new()));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_log_has_the_fields_lines_and_is_rotated() {
    let (_directory, mut daemon) = start(&["--log-file", "-vconsole:off"]);
    assert_eq!(daemon.read("stderr"), "");
    let line = daemon.read("vswitchd.log").lines().next().unwrap().to_owned();
    let path = daemon.path("vswitchd.log");
    let head = line.strip_suffix(path.to_str().unwrap()).unwrap_or(&line);
    let shape: String = head.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z|00000|vlog|INFO|opened log file ");

    fs::rename(&path, daemon.path("old.log")).unwrap();
    daemon.process.signal(Signal::SIGHUP).unwrap();
    assert!(wait_until(TIMEOUT, || daemon.read("vswitchd.log").contains("opened log file")));
    assert!(daemon.read("old.log").ends_with("|vlog|INFO|closing log file\n"), "{}", daemon.read("old.log"));

    fs::rename(&path, daemon.path("older.log")).unwrap();
    daemon.call("vlog/reopen", &[]).unwrap();
    daemon.call("vlog/message", &["hello"]).unwrap();
    assert!(daemon.read("vswitchd.log").ends_with("|vlog(unixctl)|INFO|user-message: hello\n"));
    daemon.call("vlog/set", &["vlog:file:off"]).unwrap();
    daemon.call("vlog/message", &["not logged"]).unwrap();
    assert!(!daemon.read("vswitchd.log").contains("not logged"));
    daemon.call("vlog/set", &["unixctl:file:dbg"]).unwrap();
    daemon.call("version", &[]).unwrap();
    assert!(daemon.read("vswitchd.log").contains("|unixctl(unixctl)|DBG|received request version[], id=0\n"));
}

#[test]
fn the_configuration_can_be_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("switch.toml");
    fs::write(&path, "[options]\nmax-idle = 1000\n").unwrap();
    let daemon = start_in(&directory, &["--config", path.to_str().unwrap()]);
    assert!(daemon.call("config/show", &[]).unwrap().contains("max-idle = 1000\n"));
    assert_eq!(daemon.call("config/reload", &[]), Ok("0 changes\n".to_owned()));
    fs::write(&path, "[options]\nmax-idle = 2000\n").unwrap();
    assert_eq!(daemon.call("config/reload", &[]), Ok("1 changes\n".to_owned()));
    assert!(daemon.call("config/show", &[]).unwrap().contains("max-idle = 2000\n"));
    fs::write(&path, "[options]\nmax-idle = 1\n").unwrap();
    assert_eq!(daemon.call("config/reload", &[]), Err("max-idle is 1, it must be at least 500\n".to_owned()));
    assert!(daemon.call("config/show", &[]).unwrap().contains("max-idle = 2000\n"));
    assert_eq!(daemon.call("exit", &["--clean"]), Err("unknown option \"--clean\"\n".to_owned()));
}

#[test]
fn the_fields_tool_talks_to_it() {
    testkit::require!("the_fields_tool_talks_to_it"; Need::Tool("ovs-appctl"));
    let (_directory, daemon) = start(&["-vconsole:off", "--log-file"]);
    let appctl = |args: &[&str]| -> Output {
        let mut command = testkit::tools::command("ovs-appctl").unwrap();
        run_bounded(command.env("OVS_RUNDIR", &daemon.directory).args(["-T", "20"]).args(args), TIMEOUT).unwrap()
    };
    let socket = daemon.socket();
    let socket = socket.to_str().unwrap();
    let stdout = |args: &[&str]| {
        let output = appctl(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // By the path of the socket, and by name, which needs the pidfile and its lock.
    let version = format!("vswitchd (Sluice) {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&["-t", socket, "version"]), version);
    assert_eq!(stdout(&["-t", "vswitchd", "version"]), version);
    let list = stdout(&["-t", "vswitchd", "list-commands"]);
    assert!(list.starts_with("The available commands are:\n  bridge/dump-flows       BRIDGE\n"), "{list}");
    assert!(list.contains("  exit                    [--cleanup]\n"), "{list}");
    assert_eq!(stdout(&["-t", "vswitchd", "help"]), list);
    let coverage = stdout(&["-t", "vswitchd", "coverage/show"]);
    assert!(coverage.starts_with("Event coverage, avg rate over last: 5 seconds, last minute"), "{coverage}");
    assert!(coverage.contains("\nunixctl_received  "), "{coverage}");
    let received: u64 =
        stdout(&["-t", "vswitchd", "coverage/read-counter", "unixctl_received"]).trim().parse().unwrap();
    assert!(received >= 5, "{received}");
    assert_eq!(stdout(&["-t", "vswitchd", "vlog/set", "unixctl:console:warn", "bridge:dbg"]), "");
    let levels = stdout(&["-t", "vswitchd", "vlog/list"]);
    assert!(levels.contains("\nunixctl           WARN       INFO       INFO\n"), "{levels}");
    assert!(levels.contains("\nbridge             DBG        DBG        DBG\n"), "{levels}");
    assert_eq!(stdout(&["-t", "vswitchd", "memory/show"]).trim(), "");
    for (args, error) in [
        (
            &["nonsense"][..],
            "\"nonsense\" is not a valid command (use \"list-commands\" to see a list of valid commands)",
        ),
        (&["version", "x"], "\"version\" command takes at most 0 arguments"),
        (&["coverage/read-counter"], "\"coverage/read-counter\" command requires at least 1 arguments"),
        (&["coverage/read-counter", "nonsense"], "No such counter"),
        (&["vlog/set", "nonsense"], "no destination, level, or module \"nonsense\""),
    ] {
        let output = appctl(&[&["-t", "vswitchd"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr, format!("{error}\novs-appctl: vswitchd: server returned an error\n"));
    }
    assert_eq!(stdout(&["-t", "vswitchd", "exit", "--cleanup"]), "");
    assert_eq!(daemon.ended(), Some(0));
}
