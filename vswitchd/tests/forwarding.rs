//! The whole switch on real packets: the daemon in a network namespace, hosts on wires around it.

mod common;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Network, TIMEOUT, outcome};
use nix::sys::signal::Signal;
use testkit::process::run_ok;
use testkit::{Need, Process, wait_until};

/// Runs a test on each datapath that this machine has; `SLUICE_DATAPATHS` names others than all. The kernel's module is for
/// `cargo xtask test-vm`, so a machine without it skips nothing.
fn on_each_datapath(name: &str, test: impl Fn(&str)) {
    testkit::require!(name; Need::Namespaces, Need::Tool("ping"));
    if wanted("userspace") {
        test("userspace");
    }
    on_each_kernel_datapath(name, test);
}

/// Runs a test on the datapaths that outlive the daemon.
fn on_each_kernel_datapath(name: &str, test: impl Fn(&str)) {
    testkit::require!(name; Need::Namespaces, Need::Tool("ping"));
    if wanted("netlink") && Need::OvsModule.missing().is_none() {
        test("netlink");
    }
    if wanted("ebpf") {
        testkit::require_root_and_bpf!(name);
        test("ebpf");
    }
}

fn wanted(datapath: &str) -> bool {
    std::env::var("SLUICE_DATAPATHS").map_or(true, |names| names.split(',').any(|name| name == datapath))
}

/// The number that stands behind `what` in a text.
fn number(text: &str, what: &str) -> u64 {
    let rest = text.split_once(what).map(|(_, rest)| rest).unwrap_or_default();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no {what} in {text}"))
}

#[test]
fn hosts_on_a_bridge_reach_each_other_and_the_switchs_own() {
    on_each_datapath("hosts_on_a_bridge_reach_each_other_and_the_switchs_own", |datapath| {
        let network = Network::new(2);
        let daemon = network.start(&format!("--datapath {datapath} --bridge br0 --port br0:v1 --port br0:v2"));
        network.join("br0");
        assert!(network.pings(1, 2, 20), "{datapath}");
        assert!(network.pings(2, 1, 5), "{datapath}");
        assert!(network.pings(1, 0, 5) && network.pings(2, 0, 5), "{datapath}");

        let show = daemon.ask("dpctl/show");
        let dp = if datapath == "userspace" { "netdev@ovs-netdev" } else { "system@ovs-system" };
        assert!(show.starts_with(&format!("{dp}:\n  lookups: hit:")), "{show}");
        assert!(number(&show, "hit:") > 3 * number(&show, "missed:"), "{show}");
        assert_eq!(number(&show, "lost:"), 0, "{show}");
        if datapath == "ebpf" {
            let program = |word: &str| daemon.ask("dpctl/show").contains(&format!("\n  program: {word} "));
            assert!(wait_until(TIMEOUT, || program("specialised in")), "{show}");
            daemon.ask("dpctl/set-program system@ovs-system general");
            assert!(program("general (switched off)") && network.pings(1, 2, 2));
            daemon.ask("dpctl/set-program system@ovs-system specialised");
            assert!(wait_until(TIMEOUT, || program("specialised in")) && network.pings(1, 2, 2));
        }
        for port in ["br0 (internal)\n", ": v1\n", ": v2\n"] {
            assert!(show.contains(port), "{show}");
        }
        let bridge = daemon.ask("dpif/show");
        assert!(bridge.contains("\n  br0:\n    br0 65534/"), "{bridge}");
        assert!(bridge.contains("\n    v1 1/") && bridge.contains("\n    v2 2/"), "{bridge}");
        let learned = daemon.ask("fdb/show br0");
        assert!(learned.starts_with(" port  VLAN  MAC                Age\n"), "{learned}");
        assert!(learned.contains("    1     0  02:00:00:00:00:01  "), "{learned}");
        assert!(learned.contains("    2     0  02:00:00:00:00:02  "), "{learned}");

        let flows = daemon.ask("dpctl/dump-flows --names");
        let there = flows.lines().find(|line| {
            line.contains("in_port(v1)") && line.contains("dst=02:00:00:00:00:02)") && line.ends_with("actions:v2")
        });
        assert!(there.is_some_and(|line| number(line, "packets:") >= 15), "{flows}");
        let line = daemon.ask("dpctl/dump-flows -m --no-names").lines().last().unwrap().to_owned();
        let ufid = line.split(',').next().unwrap();
        assert!(daemon.ask(&format!("dpctl/get-flow {ufid}")).contains("actions:"), "{line}");
        assert_eq!(daemon.ask("dpctl/dump-flows type=offloaded"), "");
        assert!(daemon.ask("dpctl/dump-flows filter=icmp").contains("eth_type(0x0800)"));
        assert!(!daemon.ask("dpctl/dump-flows filter=ipv6").contains("eth_type(0x0800)"));
        assert!(daemon.ask("dpif/dump-flows br0").contains("eth_type(0x0800)"));
        assert!(daemon.ask("upcall/show").starts_with(&format!("{dp}:\n  flows         : (current ")));

        // What was counted by flows reaches the rules.
        daemon.ask("revalidator/wait");
        let rules = daemon.ask("bridge/dump-flows br0");
        assert!(number(&rules, "n_packets=") >= 70, "{rules}");
        assert!(rules.ends_with("priority=0 actions=NORMAL\n"), "{rules}");

        daemon.ask("revalidator/purge");
        assert!(daemon.ask("dpctl/dump-flows").lines().count() <= 3);
        assert!(network.pings(1, 2, 3));
        assert_eq!(daemon.ask("fdb/flush br0"), "table successfully flushed\n");
        assert_eq!(daemon.call("fdb/show", &["br1"]), Err("no such bridge\n".to_owned()));

        daemon.ask("exit --cleanup");
        assert_eq!(daemon.ended(), Some(0));
        assert_eq!(network.left(), [""; 0], "{datapath}");
    });
}

#[test]
fn specialising_is_switched_by_the_configuration() {
    const NAME: &str = "specialising_is_switched_by_the_configuration";
    testkit::require!(NAME; Need::Tool("ping"));
    testkit::require_root_and_bpf!(NAME);
    let network = Network::new(2);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("switch.toml");
    let write = |specialise: bool| {
        let ports = "[[bridge.port]]\nname = \"v1\"\n[[bridge.port]]\nname = \"v2\"\n";
        let text = format!("[options]\nspecialise = {specialise}\n[[bridge]]\nname = \"br0\"\n{ports}");
        fs::write(&path, text).unwrap();
    };
    write(false);
    let daemon = network.start(&format!("--config {}", path.display()));
    let program = |word: &str| daemon.ask("dpctl/show").contains(&format!("\n  program: {word} "));
    assert!(network.pings(1, 2, 5) && program("general (switched off)"));
    for specialise in [true, false] {
        write(specialise);
        assert_eq!(daemon.ask("config/reload"), "1 changes\n");
        assert!(network.pings(1, 2, 3));
        assert!(program(if specialise { "specialised in" } else { "general (switched off)" }));
    }
    daemon.ask("exit --cleanup");
}

#[test]
fn the_fields_tool_shows_flows_of_real_packets() {
    const NAME: &str = "the_fields_tool_shows_flows_of_real_packets";
    testkit::require!(NAME; Need::Tool("ping"), Need::Tool("ovs-appctl"));
    testkit::require_root_and_bpf!(NAME);
    let network = Network::new(2);
    let daemon = network.start("--bridge br0 --port br0:v1 --port br0:v2");
    assert!(network.pings(1, 2, 3));
    let appctl = |line: &str| {
        let mut command = testkit::tools::command("ovs-appctl").unwrap();
        command.arg("-t").arg(daemon.socket()).args(line.split_whitespace());
        run_ok(&mut command, TIMEOUT).unwrap()
    };
    for line in ["dpctl/show", "dpctl/show -s", "dpctl/dump-flows", "dpif/show", "fdb/show br0", "datapath/drops"] {
        assert!(appctl(line).lines().count() >= 2, "{line}");
    }
    assert_eq!(appctl("dpctl/dump-dps"), "system@ovs-system\n");
    assert_eq!(appctl("exit --cleanup"), "");
    assert_eq!(daemon.ended(), Some(0));
    assert_eq!(network.left(), [""; 0]);
}

#[test]
fn access_ports_of_two_vlans_are_apart_and_a_trunk_has_both() {
    on_each_datapath("access_ports_of_two_vlans_are_apart_and_a_trunk_has_both", |datapath| {
        let network = Network::new(3);
        let ports = "--port br0:v1,tag=10 --port br0:v2,tag=10 --port br0:v3,tag=20";
        let daemon = network.start(&format!("--datapath {datapath} --bridge br0 {ports} --cleanup-on-exit"));
        assert!(network.pings(1, 2, 3), "{datapath}");
        assert!(network.are_apart(1, 3, 2) && network.are_apart(3, 2, 2), "{datapath}");
        let learned = daemon.ask("fdb/show br0");
        assert!(learned.contains("    1    10  02:00:00:00:00:01"), "{learned}");
        assert!(learned.contains("    3    20  02:00:00:00:00:03"), "{learned}");
        // Frames leave the trunk with their tag.
        let flows = daemon.ask("dpctl/dump-flows --names filter=in_port=v3");
        assert!(flows.contains("actions:push_vlan(vid=20,pcp=0),br0"), "{flows}");
        daemon.process.stop(TIMEOUT).unwrap();
        assert_eq!(network.left(), [""; 0], "{datapath}");
    });
}

#[test]
fn a_packet_over_two_bridges_is_one_flow() {
    on_each_datapath("a_packet_over_two_bridges_is_one_flow", |datapath| {
        let network = Network::new(2);
        let bridges = "--bridge br0 --port br0:v1 --port br0:p0,type=patch,peer=p1 \
                       --bridge br1 --port br1:v2 --port br1:p1,type=patch,peer=p0";
        let daemon = network.start(&format!("--datapath {datapath} {bridges} --cleanup-on-exit"));
        assert!(network.pings(1, 2, 5), "{datapath}");
        let flows = daemon.ask("dpctl/dump-flows --names");
        let there = flows.lines().filter(|line| line.contains("in_port(v1)") && line.contains("eth_type(0x0800)"));
        assert!(there.clone().any(|line| line.ends_with("actions:v2")), "{flows}");
        assert!(daemon.ask("dpif/show").contains("    p0 2/none: (patch: peer=p1)\n"));
        assert!(daemon.ask("fdb/show br1").contains("    2     0  02:00:00:00:00:01"));
        daemon.process.stop(TIMEOUT).unwrap();
        assert_eq!(network.left(), [""; 0], "{datapath}");
    });
}

#[test]
fn flows_of_a_file_decide_and_can_be_changed_while_packets_flow() {
    on_each_datapath("flows_of_a_file_decide_and_can_be_changed_while_packets_flow", |datapath| {
        let network = Network::new(3);
        let file = network.directory().join("br0.flows");
        // v3 gets what is for host 2.
        fs::write(&file, "priority=10,in_port=v1,ip,nw_dst=10.0.0.2 actions=v3\npriority=0 actions=NORMAL\n").unwrap();
        let ports = "--port br0:v1 --port br0:v2 --port br0:v3";
        let line = format!("--datapath {datapath} --bridge br0 {ports} --flows {}", file.display());
        let daemon = network.start(&format!("{line} --cleanup-on-exit"));
        assert!(network.are_apart(1, 2, 2) && network.pings(1, 3, 2), "{datapath}");
        let flows = daemon.ask("dpctl/dump-flows --names filter=in_port=v1,ip,nw_dst=10.0.0.2");
        assert!(flows.lines().last().is_some_and(|line| line.ends_with("actions:v3")), "{flows}");

        // A mistake changes nothing.
        fs::write(&file, "priority=0 actions=NORMAL\nin_port=v4 actions=drop\n").unwrap();
        let error = daemon.call("config/reload", &[]).unwrap_err();
        assert!(error.starts_with(&format!("{}:2:9: ", file.display())), "{error}");
        assert!(network.are_apart(1, 2, 1));

        fs::write(&file, "priority=0 actions=NORMAL\n").unwrap();
        assert_eq!(daemon.ask("config/reload"), "1 changes\n");
        assert!(network.pings(1, 2, 3), "{datapath}");
        daemon.process.stop(TIMEOUT).unwrap();

        fs::write(&file, "priority=0 actions=NORMAL\n  ip,tcp_dst=80 actions=drop\n").unwrap();
        let (code, error) = outcome(&mut network.vswitchd(&format!("{line} -vconsole:off")));
        assert_eq!(code, Some(2));
        assert!(error.starts_with(&format!("vswitchd: {}:2:", file.display())), "{error}");
        assert_eq!((error.lines().count(), network.left()), (1, vec![]), "{error}");
    });
}

#[test]
fn established_flows_go_on_without_the_daemon_and_the_next_one_adopts_them() {
    on_each_kernel_datapath("established_flows_go_on_without_the_daemon_and_the_next_one_adopts_them", |datapath| {
        let network = Network::new(2);
        // A slow machine leaves flows idle for a while.
        let line = &format!("--datapath {datapath} --bridge br0 --port br0:v1 --port br0:v2 --max-idle 60000");
        let mut first = network.start(line);
        network.join("br0");
        assert!(network.pings(1, 2, 3) && network.pings(1, 0, 3));
        let is_it = |line: &&str| line.contains("in_port(v1)") && line.contains("dst=02:00:00:00:00:02");
        let has_served = || {
            let flows = first.ask("dpctl/dump-flows --names");
            flows.lines().find(is_it).is_some_and(|line| number(line, "packets:") > 0)
        };
        // A slow machine's first packets come before their flow.
        assert!(wait_until(TIMEOUT, || has_served() || (network.pings(1, 2, 1) && has_served())));
        first.process.signal(Signal::SIGKILL).unwrap();
        first.process.wait(TIMEOUT).unwrap();
        assert!(network.pings(1, 2, 5), "forwarding ended with the daemon");
        assert!(network.pings(1, 0, 5), "the internal port ended with the daemon");

        // A configuration that can't be leaves everything as it is.
        let (code, error) = outcome(&mut network.vswitchd(&format!("{line} --port br0:v9 -vconsole:off")));
        assert_eq!((code, error.lines().count()), (Some(1), 1), "{error}");
        assert!(error.starts_with("vswitchd: cannot add port v9 to bridge br0: "), "{error}");
        assert!(network.pings(1, 2, 5), "a start that failed ended forwarding");

        let second = network.start(line);
        assert!(second.read("vswitchd.log").contains("system@ovs-system: adopted\n"));
        let flows = second.ask("dpctl/dump-flows --names");
        let there = flows.lines().find(is_it);
        // Ten came after the first daemon's time; of its own, those that came when the flow was there.
        assert!(there.is_some_and(|line| number(line, "packets:") > 10), "{flows}");
        // The stations have to be learned again, from packets of adopted flows.
        assert!(network.pings(1, 2, 5));
        second.ask("revalidator/wait");
        let flows = second.ask("dpctl/dump-flows --names");
        assert!(flows.lines().any(|line| line.contains("in_port(v1)") && line.ends_with("actions:v2")), "{flows}");
        let missed = number(&second.ask("dpctl/show"), "missed:");
        assert!(network.pings(1, 2, 5));
        assert_eq!(number(&second.ask("dpctl/show"), "missed:"), missed, "adopted flows were not used");

        assert!(network.pings(1, 0, 2));
        // The end by signal leaves the datapath as well.
        assert!(second.process.stop(TIMEOUT).unwrap().success());
        assert!(network.pings(1, 2, 5) && network.pings(1, 0, 5));

        // Ports that the configuration no longer has go.
        let third = network.start(&format!("--datapath {datapath} --bridge br0 --port br0:v1"));
        let show = third.ask("dpctl/show");
        assert!(show.contains(": v1\n") && !show.contains(": v2\n"), "{show}");
        assert!(network.are_apart(1, 2, 1) && network.pings(1, 0, 3));
        third.ask("exit --cleanup");
        assert_eq!(third.ended(), Some(0));
        assert_eq!(network.left(), [""; 0]);
    });
}

/// `SLUICE_KILLS` asks for more rounds.
#[test]
fn a_daemon_killed_at_any_moment_of_its_start_loses_no_packet_of_an_established_flow() {
    const NAME: &str = "a_daemon_killed_at_any_moment_of_its_start_loses_no_packet_of_an_established_flow";
    on_each_kernel_datapath(NAME, |datapath| {
        let rounds: u32 = std::env::var("SLUICE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
        let network = Network::new(3);
        let line = &format!("--datapath {datapath} --bridge br0 --port br0:v1 --port br0:v2");
        // Sometimes there is a port to add, and then one to remove.
        let lines =
            [line.to_owned(), format!("{line} --port br0:v3 --bridge br1")].map(|line| format!("{line} -vconsole:off"));
        let started = Instant::now();
        let mut daemon = network.start(line);
        let whole = started.elapsed();
        assert!(network.pings(1, 2, 3));
        let said = network.directory().join("ping");
        let mut ping = network.hosts[0].command("ping");
        ping.args(["-q", "-i", "0.01", "10.0.0.2"]).stdout(fs::File::create(&said).unwrap());
        let mut ping = Process::spawn(&mut ping).unwrap();
        for round in 0..rounds {
            daemon.process.signal(Signal::SIGKILL).unwrap();
            daemon.process.wait(TIMEOUT).unwrap();
            let next = Process::spawn(network.vswitchd(&lines[round as usize % 2]).stderr(Stdio::null())).unwrap();
            daemon.process = next;
            // Spread over the time that a start takes, and a little after.
            std::thread::sleep(whole * (round * 13 % rounds) / rounds + whole / 10);
        }
        daemon.process.signal(Signal::SIGKILL).unwrap();
        daemon.process.wait(TIMEOUT).unwrap();
        let last = network.start(line);
        let ports = last.ask("dpctl/show");
        // The module's datapath has a port of its own beside.
        let own = usize::from(datapath == "netlink");
        assert_eq!(ports.matches("port ").count(), 3 + own, "{ports}");
        assert!(network.pings(2, 1, 3));
        ping.signal(Signal::SIGINT).unwrap();
        ping.wait(TIMEOUT).unwrap();
        let said = fs::read_to_string(said).unwrap();
        let (sent, received) = (number(&said, "statistics ---\n"), number(&said, "transmitted, "));
        // One may be under way at the end.
        assert!(sent > 100 && received + 1 >= sent, "{said}");
        last.ask("exit --cleanup");
        assert_eq!(last.ended(), Some(0));
        assert_eq!(network.left(), [""; 0]);
    });
}

#[test]
fn a_start_that_fails_leaves_nothing() {
    on_each_datapath("a_start_that_fails_leaves_nothing", |datapath| {
        let network = Network::new(1);
        network.netns.ip("link add v8 type veth peer name v9").unwrap();
        for (ports, error) in [
            ("--port br0:v1 --port br0:nonesuch", "cannot add port nonesuch to bridge br0: "),
            ("--port br0:lo", "cannot add port lo to bridge br0: "),
            ("--port br0:v1 --port br0:v8,type=internal", "cannot add port v8 to bridge br0: "),
        ] {
            let line = format!("--datapath {datapath} --bridge br0 {ports} -vconsole:off");
            let (code, said) = outcome(&mut network.vswitchd(&line));
            assert_eq!((code, said.lines().count()), (Some(1), 1), "{datapath} {ports}: {said}");
            assert!(said.starts_with(&format!("vswitchd: {error}")), "{datapath} {ports}: {said}");
            assert_eq!(network.left(), [""; 0], "{datapath} {ports}");
        }
    });
}

#[test]
fn a_port_whose_device_goes_says_so_and_works_again_when_it_is_back() {
    on_each_datapath("a_port_whose_device_goes_says_so_and_works_again_when_it_is_back", |datapath| {
        let network = Network::new(2);
        let line = format!("--datapath {datapath} --bridge br0 --port br0:v1 --port br0:v2 --cleanup-on-exit");
        let daemon = network.start(&line);
        assert!(network.pings(1, 2, 2), "{datapath}");
        network.netns.ip("link set v2 down").unwrap();
        network.netns.ip("link set v2 name vx").unwrap();
        let soon = Duration::from_secs(5);
        assert!(
            wait_until(soon, || daemon.ask("dpctl/show").contains(": v2 (error: ")),
            "{}",
            daemon.ask("dpctl/show")
        );
        assert!(daemon.ask("dpif/show").contains("(error: "), "{}", daemon.ask("dpif/show"));
        assert!(wait_until(soon, || daemon.read("vswitchd.log").contains("v2, is out of work: ")));
        assert!(network.are_apart(1, 2, 1));

        network.netns.ip("link set vx name v2").unwrap();
        network.netns.ip("link set v2 up").unwrap();
        assert!(wait_until(soon, || !network.are_apart(1, 2, 1)), "{datapath}: {}", daemon.ask("dpctl/show"));
        assert!(!daemon.ask("dpctl/show").contains("error"));
        assert!(daemon.ask("dpif/show").contains("    v2 2/"));
        daemon.process.stop(TIMEOUT).unwrap();
        assert_eq!(network.left(), [""; 0], "{datapath}");
    });
}

#[test]
fn a_configuration_says_where_ports_have_the_xdp_hook() {
    const NAME: &str = "a_configuration_says_where_ports_have_the_xdp_hook";
    testkit::require!(NAME; Need::Namespaces, Need::Tool("ping"));
    testkit::require_root_and_bpf!(NAME);
    if !wanted("ebpf") {
        return;
    }
    let network = Network::new(2);
    let path = network.directory().join("switch.toml");
    let write = |modes: [&str; 2]| {
        let mut text = "[[bridge]]\nname = \"br0\"\n".to_owned();
        for (n, mode) in (1..).zip(modes) {
            text += &format!("[[bridge.port]]\nname = \"v{n}\"\n{mode}\n");
        }
        fs::write(&path, text).unwrap();
    };
    // The mode of each port, as far as it is in the hook.
    let shown =
        |show: &str| [1, 2].map(|n| ["native", "generic"].map(|mode| show.contains(&format!(": v{n} (xdp: {mode})"))));
    let (none, native, generic) = ([false, false], [true, false], [false, true]);
    write(["xdp = \"generic\"", "xdp = \"off\""]);
    let daemon = network.start(&format!("--config {} --cleanup-on-exit", path.display()));
    assert_eq!(shown(&daemon.ask("dpctl/show")), [generic, none]);
    assert!(network.pings(1, 2, 3));
    write(["xdp = \"native\"", "xdp = \"generic\""]);
    assert_eq!(daemon.ask("config/reload"), "2 changes\n");
    assert_eq!(shown(&daemon.ask("dpctl/show")), [native, generic]);
    assert!(network.pings(1, 2, 3));
    // Who says nothing any more has what all begin with, and who never said anything keeps what it has.
    write(["", "xdp = \"generic\""]);
    assert_eq!(daemon.ask("config/reload"), "1 changes\n");
    assert_eq!(shown(&daemon.ask("dpctl/show")), [none, generic]);
    daemon.ask("dpctl/set-if system@ovs-system v1,xdp=native");
    write(["tag = 7", "xdp = \"generic\""]);
    daemon.ask("config/reload");
    assert_eq!(shown(&daemon.ask("dpctl/show")), [native, generic]);
    // What can't be changes nothing.
    write(["xdp = \"fast\"", "xdp = \"off\""]);
    assert!(daemon.call("config/reload", &[]).unwrap_err().contains("\"fast\" is no XDP mode"));
    assert_eq!(shown(&daemon.ask("dpctl/show")), [native, generic]);
    daemon.process.stop(TIMEOUT).unwrap();
    assert_eq!(network.left(), [""; 0]);
}

#[test]
fn bridges_come_and_go_by_a_changed_configuration() {
    on_each_datapath("bridges_come_and_go_by_a_changed_configuration", |datapath| {
        let network = Network::new(2);
        let path = network.directory().join("switch.toml");
        let write = |bridges: &[(&str, &[&str])]| {
            let mut text = format!("datapath = \"{datapath}\"\n");
            for (bridge, ports) in bridges {
                text.push_str(&format!("[[bridge]]\nname = \"{bridge}\"\n"));
                ports.iter().for_each(|port| text.push_str(&format!("[[bridge.port]]\nname = \"{port}\"\n")));
            }
            fs::write(&path, text).unwrap();
        };
        write(&[]);
        let daemon = network.start(&format!("--config {} --cleanup-on-exit", path.display()));
        assert_eq!(daemon.ask("dpctl/dump-dps"), "");
        write(&[("br0", &["v1", "v2"])]);
        assert_eq!(daemon.ask("config/reload"), "3 changes\n");
        assert!(network.pings(1, 2, 3), "{datapath}");
        // From one bridge to the other.
        write(&[("br0", &["v1"]), ("br1", &["v2"])]);
        daemon.ask("config/reload");
        assert_eq!(daemon.ask("ofproto/list"), "br0\nbr1\n");
        assert!(network.are_apart(1, 2, 2), "{datapath}");
        // What can't be changes nothing.
        write(&[("br0", &["v1", "v2", "v3"])]);
        let error = daemon.call("config/reload", &[]).unwrap_err();
        assert!(error.starts_with("cannot add port v3 to bridge br0: "), "{error}");
        assert_eq!(daemon.ask("ofproto/list"), "br0\nbr1\n");
        write(&[("br0", &["v1", "v2"])]);
        daemon.ask("config/reload");
        assert!(network.pings(1, 2, 3), "{datapath}");
        // The datapath goes with the last bridge.
        write(&[]);
        daemon.ask("config/reload");
        assert_eq!((daemon.ask("dpctl/dump-dps"), network.left()), (String::new(), vec![]), "{datapath}");
        daemon.process.stop(TIMEOUT).unwrap();
    });
}
