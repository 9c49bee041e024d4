//! The daemon on the kernel's own `openvswitch` module: run by `cargo xtask test-vm`, which boots kernels that have it. What
//! all datapaths have in common is in `forwarding.rs`.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use common::{Daemon, Network, TIMEOUT, outcome};
use nix::sys::signal::Signal;
use testkit::process::run_ok;
use testkit::{Need, RawSocket, ReferenceSwitch, frames, tools, wait_until};

const MODES: [&str; 3] = ["per-cpu", "per-port", "per-port-handler"];

/// Whether this machine has the module, and the tools beside it; the test counts as skipped if not.
fn have(name: &str, tools: &[&'static str]) -> bool {
    let mut needs = vec![Need::OvsModule, Need::Namespaces, Need::Tool("ping")];
    needs.extend(tools.iter().map(|tool| Need::Tool(tool)));
    testkit::skip::have(name, &needs)
}

/// What the real `ovs-dpctl` says in the switch's namespace.
fn dpctl(network: &Network, line: &str) -> String {
    let mut command = network.netns.command(tools::find("ovs-dpctl").unwrap());
    command.args(line.split_whitespace()).envs(tools::ovs_environment());
    run_ok(&mut command, TIMEOUT).unwrap()
}

/// Flows as they are without their counters.
fn without_counters(flows: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let (key, rest) = line.split_once(", packets:").unwrap_or((line, ""));
        let actions = rest.split_once("actions:").map_or("", |(_, actions)| actions);
        format!("{key} actions:{actions}")
    };
    flows.lines().map(line).collect()
}

/// Sends `len` bytes over a TCP connection from host 1 to host 2, and says how many came back.
fn echo_over_tcp(network: &Network, len: usize) -> usize {
    let listener = network.hosts[1].run(|| TcpListener::bind("10.0.0.2:7007").unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            std::io::copy(&mut peer.try_clone().unwrap(), &mut peer).unwrap();
        });
        let mut stream = network.hosts[0]
            .run(|| TcpStream::connect_timeout(&"10.0.0.2:7007".parse().unwrap(), TIMEOUT).unwrap())
            .unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut sender = stream.try_clone().unwrap();
        scope.spawn(move || {
            sender.write_all(&vec![7; len]).unwrap();
            sender.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back.iter().filter(|byte| **byte == 7).count()
    })
}

/// The lines of ports that `dpctl/show`, or `ovs-dpctl show`, says.
fn ports(show: &str) -> Vec<String> {
    show.lines().filter(|line| line.contains("port ")).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn pings_and_tcp_pass_in_every_dispatch_mode_and_the_fields_tool_agrees_about_the_flows() {
    const NAME: &str = "pings_and_tcp_pass_in_every_dispatch_mode_and_the_fields_tool_agrees_about_the_flows";
    if !have(NAME, &["ovs-dpctl"]) {
        return;
    }
    for mode in MODES {
        let network = Network::new(2);
        let line = format!("--datapath netlink --upcall-dispatch {mode} --bridge br0 --port br0:v1 --port br0:v2");
        let daemon = network.start(&format!("{line} --n-handlers 2 --max-idle 60000"));
        assert!(network.pings(1, 2, 5), "{mode}");
        assert_eq!(echo_over_tcp(&network, 1 << 20), 1 << 20, "{mode}");
        let log = daemon.read("vswitchd.log");
        for text in ["system@ovs-system: Datapath supports recirculation\n", "VLAN header stack length probed as 2\n"] {
            assert!(log.contains("|ofproto_dpif|INFO|") && log.contains(text), "{log}");
        }
        let verb = if mode == "per-cpu" { "overriding" } else { "setting" };
        assert!(log.contains(&format!("ovs-system: {verb} n-handler-threads to 2,")), "{mode}: {log}");

        daemon.ask("revalidator/wait");
        let ours = daemon.ask("dpctl/dump-flows");
        let theirs = dpctl(&network, "dump-flows");
        // The tool knows an attribute less, and says so.
        let known = |text: &str| without_counters(text).into_iter().filter(|l| !l.contains("key32")).collect();
        let (ours, theirs): (BTreeSet<_>, BTreeSet<_>) = (known(&ours), known(&theirs));
        assert_eq!(ours, theirs, "{mode}");
        assert!(ours.iter().any(|line| line.contains("eth_type(0x0800)") && line.ends_with("actions:2")), "{ours:?}");
        assert_eq!(ports(&daemon.ask("dpctl/show")), ports(&dpctl(&network, "show")), "{mode}");
        // The tool puts flows without an id; what nobody has asked for goes.
        daemon.ask("revalidator/pause");
        dpctl(&network, "add-flow system@ovs-system in_port(2),eth(),eth_type(0x1234) 1");
        assert!(dpctl(&network, "dump-flows").contains("eth_type(0x1234)"), "{mode}");
        daemon.ask("revalidator/resume");
        daemon.ask("revalidator/wait");
        let left = dpctl(&network, "dump-flows");
        assert!(!left.contains("eth_type(0x1234)") && left.contains("eth_type(0x0800)"), "{mode}: {left}");
        assert_eq!(daemon.ask("exit --cleanup"), "");
        assert_eq!(daemon.ended(), Some(0));
        assert_eq!(network.left(), [""; 0], "{mode}");
        assert_eq!(dpctl(&network, "dump-dps"), "", "{mode}");
    }
}

#[test]
fn tunnels_are_made_by_hand_and_the_fields_tool_sees_them() {
    const NAME: &str = "tunnels_are_made_by_hand_and_the_fields_tool_sees_them";
    if !have(NAME, &["ovs-dpctl"]) {
        return;
    }
    let network = Network::new(2);
    let daemon = network.start("--datapath netlink --bridge br0 --port br0:v1");
    let tunnels = "g0,type=gre,remote_ip=flow x0,type=vxlan,port_no=9 x1,type=vxlan,dst_port=4790,exts=gbp n0,type=geneve,key=flow";
    let call = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        daemon.call(words[0], &words[1..])
    };
    assert_eq!(call(&format!("dpctl/add-if ovs-system {tunnels}")), Ok(String::new()));
    let (ours, theirs) = (ports(&call("dpctl/show").unwrap()), ports(&dpctl(&network, "show")));
    assert!(ours.contains(&"port 9: x0 (vxlan: packet_type=ptap)".to_owned()), "{ours:?}");
    // The tool doesn't ask the kernel for options.
    let ours: Vec<_> = ours.iter().map(|line| line.replace("dst_port=4790, exts=gbp, ", "")).collect();
    assert_eq!(ours, theirs);
    let refused = call("dpctl/add-if ovs-system x2,type=vxlan").unwrap_err();
    assert!(refused.starts_with("adding x2 to ovs-system failed ("), "{refused}");
    assert_eq!(call("dpctl/del-if ovs-system g0 x0 x1 n0"), Ok(String::new()));
    assert!(!dpctl(&network, "show").contains("x0"));
    daemon.ask("exit --cleanup");
    assert_eq!(daemon.ended(), Some(0));
    assert_eq!(network.left(), [""; 0]);
}

#[test]
fn a_thousand_ports_are_made_forward_and_go() {
    const NAME: &str = "a_thousand_ports_are_made_forward_and_go";
    if !have(NAME, &[]) {
        return;
    }
    const PORTS: usize = 1000;
    let network = Network::new(2);
    let mut config = String::from("datapath = \"netlink\"\n[[bridge]]\nname = \"br0\"\n");
    for name in ["v1", "v2"].map(String::from).into_iter().chain((0..PORTS - 2).map(|n| format!("i{n}"))) {
        let kind = if name.starts_with('i') { "type = \"internal\"\n" } else { "" };
        write!(config, "[[bridge.port]]\nname = \"{name}\"\n{kind}").unwrap();
    }
    let path = network.directory().join("switch.toml");
    std::fs::write(&path, config).unwrap();
    // A socket for each port is what needs the most descriptors.
    let daemon = network.start(&format!("--config {} --upcall-dispatch per-port", path.display()));
    assert_eq!(daemon.ask("dpctl/show").matches("  port ").count(), PORTS + 2);
    // The first packets go out of every port, which takes an emulated machine its time.
    assert!(wait_until(TIMEOUT, || network.pings(1, 2, 5)) && network.pings(2, 1, 5));
    daemon.ask("exit --cleanup");
    assert_eq!(daemon.ended(), Some(0));
    assert_eq!(network.left(), [""; 0]);
}

#[test]
fn a_datapath_that_somebody_serves_is_left_to_them() {
    const NAME: &str = "a_datapath_that_somebody_serves_is_left_to_them";
    if !have(NAME, &["ovs-vswitchd", "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-dpctl"]) {
        return;
    }
    let network = Network::new(2);
    let line = "--datapath netlink --bridge br9 --port br9:v2 -vconsole:off";
    // The reference daemon takes a young machine for one without processors.
    assert!(wait_until(TIMEOUT, || uptime() > 11.0));
    let reference = ReferenceSwitch::start_on(&network.netns, "system", &["v1"]).unwrap();
    let (code, said) = outcome(&mut network.vswitchd(line));
    let expected = format!("is in use by ovs-vswitchd (process {})", reference.pid());
    assert!(code == Some(1) && said.contains(&expected) && said.lines().count() == 1, "{code:?} {said}");
    let show = dpctl(&network, "show");
    assert!(show.contains(": v1") && !show.contains(": v2") && !show.contains("br9"), "{show}");
    drop(reference);
    // What a daemon that is gone has left is taken over, and another of ours is refused like any other.
    let first = Daemon::start(network.directory(), network.vswitchd(line));
    assert!(!dpctl(&network, "show").contains(": v1"));
    let elsewhere = network.directory().join("other");
    std::fs::create_dir(&elsewhere).unwrap();
    let (code, said) = outcome(network.vswitchd(line).env("OVS_RUNDIR", &elsewhere));
    assert!(code == Some(1) && said.contains("is in use by vswitchd (process "), "{code:?} {said}");
    first.ask("exit --cleanup");
    assert_eq!(first.ended(), Some(0));
}

#[test]
fn without_the_module_the_error_says_how_to_get_it() {
    // Where it is there, the other tests run.
    if Need::OvsModule.missing().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let args = ["--datapath", "netlink", "--bridge", "br0", "-vconsole:off"];
    let (code, said) = outcome(&mut common::vswitchd(directory.path(), &args));
    let expected =
        "vswitchd: cannot add bridge br0 (netlink): the openvswitch module is not loaded: run `modprobe openvswitch`\n";
    assert_eq!((code, said.as_str()), (Some(1), expected));
}

#[test]
fn without_privilege_the_error_says_what_is_missing() {
    const NAME: &str = "without_privilege_the_error_says_what_is_missing";
    if !have(NAME, &[]) {
        return;
    }
    let network = Network::new(1);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(network.directory(), open).unwrap();
    let inside = network.netns.run(|| {
        let mut command = common::vswitchd(network.directory(), &["--datapath", "netlink", "--bridge", "br0"]);
        command.arg("-vconsole:off").uid(65534).gid(65534);
        outcome(&mut command)
    });
    let (code, said) = inside.unwrap();
    assert!(code == Some(1) && said.contains("permission denied") && said.contains("CAP_NET_ADMIN"), "{said}");
}

/// Whether no thread of a process runs: a signal's work is not done when it has been sent.
fn has_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut stats = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
    stats.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}

#[test]
fn a_burst_that_overflows_the_sockets_is_executed_or_counted_as_lost() {
    const NAME: &str = "a_burst_that_overflows_the_sockets_is_executed_or_counted_as_lost";
    if !have(NAME, &[]) {
        return;
    }
    const SENT: u64 = 12_000;
    for mode in MODES {
        let network = Network::new(2);
        let line = format!("--datapath netlink --upcall-dispatch {mode} --bridge br0 --port br0:v1 --port br0:v2");
        let mut daemon = network.start(&format!("{line} --n-handlers 1"));
        let [from, to] = [0, 1].map(|host| RawSocket::open(&network.hosts[host], "eth0").unwrap());
        let frame = frames::udp(1);
        // Nobody reads while it comes.
        daemon.process.signal(Signal::SIGSTOP).unwrap();
        assert!(wait_until(TIMEOUT, || has_stopped(daemon.process.pid())), "{mode}");
        (0..SENT).for_each(|_| from.send(&frame).unwrap());
        daemon.process.signal(Signal::SIGCONT).unwrap();

        let lookups = |daemon: &Daemon| {
            let show = daemon.ask("dpctl/show");
            let line = show.lines().find_map(|line| line.trim().strip_prefix("lookups: ")).unwrap().to_owned();
            ["missed:", "lost:"].map(|name| {
                let number = line.split(' ').find_map(|word| word.strip_prefix(name));
                number.unwrap().parse::<u64>().unwrap()
            })
        };
        let [missed, lost] = lookups(&daemon);
        assert!(missed == SENT && lost > 0, "{mode}: {missed} missed, {lost} lost");
        // Their station is not known: each that was not lost goes out of the other port. The switch's own port has its copy.
        let mut came = 0;
        while came < SENT - lost {
            let next = to.recv(TIMEOUT).unwrap().unwrap_or_else(|| panic!("{mode}: {came} came, {lost} lost"));
            came += u64::from(next.bytes == frame);
        }
        let told = format!("upcalls: (received {came}) (executed {came})");
        let show = || daemon.ask("upcall/show");
        assert!(wait_until(TIMEOUT, || show().contains(&told)), "{mode}: {told}: {}", show());
        assert_eq!(to.recv(Duration::from_millis(100)).unwrap(), None, "{mode}");
        assert_eq!(lookups(&daemon), [SENT, lost], "{mode}");
        let port = daemon.ask("dpctl/show").lines().find_map(|line| {
            let number = line.trim().strip_prefix("port ")?.strip_suffix(": v1")?;
            Some(number.to_owned())
        });
        let of_port = if mode == "per-cpu" { String::new() } else { format!(" of port {}", port.unwrap()) };
        let log = daemon.read("vswitchd.log");
        let lines: Vec<_> = log.lines().filter(|line| line.contains("overflowed")).collect();
        let told = format!(": its socket{of_port} overflowed, upcalls are lost (times: ");
        assert!(!lines.is_empty() && lines.iter().all(|line| line.contains(&told)), "{log}");
        assert!(lines.iter().all(|line| line.contains("|WARN|handler ")), "{lines:?}");
        // Which port's they were every kernel but the oldest counts.
        if show().contains(" v1: (upcalls ") {
            let told = format!("|WARN|ovs-system: lost {lost} packets of port v1 (");
            let is_told = || {
                show();
                daemon.read("vswitchd.log").contains(&told)
            };
            assert!(wait_until(TIMEOUT, is_told), "{told}: {}", daemon.read("vswitchd.log"));
        }
        daemon.ask("exit --cleanup");
        assert_eq!(daemon.ended(), Some(0));
    }
}

/// Seconds since the machine was started.
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}
