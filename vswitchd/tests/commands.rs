//! What the commands about bridges and datapaths say, without privileges: ports are queues in memory.

mod common;

use common::{Daemon, TIMEOUT, outcome, vswitchd};
use serde_json::{Value, json};
use tempfile::TempDir;

const SWITCH: &str = "--memory-ports --datapath userspace --bridge br0 --port br0:a --port br0:b,tag=7,ofport=9 \
                      --bridge br1 --port br1:c -vconsole:off";

fn start(line: &str) -> (TempDir, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let args: Vec<&str> = line.split_whitespace().collect();
    let daemon = Daemon::start(directory.path(), vswitchd(directory.path(), &args));
    (directory, daemon)
}

/// The result of a command as JSON.
fn json(daemon: &Daemon, command: &str, args: &[&str]) -> Value {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut result = Value::Null;
    for (method, params) in [("set-options", &["--format", "json"][..]), (command, args)] {
        write!(stream, "{}", json!({"id": 0, "method": method, "params": params})).unwrap();
        let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
        result = loop {
            let n = stream.read(&mut chunk).unwrap();
            assert_ne!(n, 0, "{}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&chunk[..n]);
            if let Ok(value) = serde_json::from_slice::<Value>(&text) {
                break value["result"].clone();
            }
        };
    }
    result
}

#[test]
fn a_switch_shows_its_bridges_and_ports() {
    let (_directory, daemon) = start(SWITCH);
    // Ports that ask for a number come first.
    assert_eq!(
        daemon.ask("dpctl/show"),
        "netdev@ovs-netdev:\n  lookups: hit:0 missed:0 lost:0\n  flows: 0\n  masks: hit:0 total:0 hit/pkt:0.00\n  \
         upcalls: misses:0 lost:0 actions:0 lost:0 discarded:0 recirculated lookups:0\n  \
         port 1: br0 (internal)\n  port 2: br1 (internal)\n  port 3: b\n  port 4: a\n  port 5: c\n"
    );
    let show = daemon.ask("dpif/show");
    for line in ["netdev@ovs-netdev: hit:0 missed:0\n", "  br0:\n    a 1/", "    b 9/", "    br0 65534/", "  br1:\n"] {
        assert!(show.contains(line), "{show}");
    }
    assert_eq!(daemon.ask("dpctl/dump-dps"), "netdev@ovs-netdev\n");
    assert_eq!(daemon.ask("ofproto/list"), "br0\nbr1\n");
    let rules = daemon.ask("bridge/dump-flows br0");
    assert!(rules.ends_with("n_packets=0, n_bytes=0, priority=0 actions=NORMAL\n"), "{rules}");
    let statistics = daemon.ask("dpctl/show -s netdev@ovs-netdev");
    assert!(statistics.contains("\n    RX packets:0 errors:? dropped:0 overruns:? frame:?\n"), "{statistics}");
    assert!(daemon.ask("datapath/drops").contains("\n  malformed: 0\n"));
    assert!(daemon.ask("memory/show").contains("netdev@ovs-netdev-ports:5"), "{}", daemon.ask("memory/show"));
    assert!(daemon.ask("upcall/show").starts_with("netdev@ovs-netdev:\n  flows         : (current 0)"));

    let value = json(&daemon, "dpctl/show", &[]);
    assert_eq!(value[0]["name"], "netdev@ovs-netdev");
    assert_eq!(value[0]["ports"][0]["name"], "br0");
    assert_eq!(value[0]["ports"][0]["type"], "internal");
    assert_eq!(json(&daemon, "datapath/drops", &[])[0]["drops"]["malformed"], 0);
    assert_eq!(json(&daemon, "dpctl/dump-dps", &[]), json!(["netdev@ovs-netdev"]));
}

#[test]
fn what_a_datapath_lacks_is_refused_by_name_and_listed_all_the_same() {
    let (_directory, daemon) = start(SWITCH);
    let list = daemon.ask("dpctl/list-commands");
    assert!(list.starts_with("The available commands are:\n"), "{list}");
    for name in ["add-if", "dump-flows", "cache-get-size", "dump-conntrack", "ct-set-limits", "ipf-get-status"] {
        assert!(list.contains(&format!("\n  dpctl/{name:<23} ")), "{list}");
    }
    let by = "is not supported by datapath";
    for (line, error) in [
        ("dpctl/dump-conntrack", format!("starting conntrack dump (connection tracking {by} userspace)")),
        ("dpctl/flush-conntrack", format!("failed to flush conntrack (connection tracking {by} userspace)")),
        (
            "dpctl/ct-set-limits default=3",
            format!("failed to set conntrack limit (limiting connections {by} userspace)"),
        ),
        ("dpctl/ct-get-maxconns", format!("a limit of all connections {by} netdev@ovs-netdev")),
        ("dpctl/ipf-set-enabled v4", format!("putting fragments together {by} netdev@ovs-netdev")),
        (
            "dpctl/cache-set-size netdev@ovs-netdev x 1",
            format!("Setting caches not supported (sizing a cache {by} userspace)"),
        ),
        ("dpctl/ct-set-limits zone=x,limit=1", "invalid zone \"x\"".to_owned()),
        ("dpctl/flush-conntrack mark=1", format!("failed to flush conntrack (connection tracking {by} userspace)")),
        ("dpctl/flush-conntrack netdev@ovs-netdev mark=x", "failed to parse mark (Invalid argument)".to_owned()),
        ("dpctl/flush-conntrack ct_tp_src=1", "port is set without protocol (Invalid argument)".to_owned()),
        ("dpctl/ct-bkts gt=3", format!("starting conntrack dump (connection tracking {by} userspace)")),
        ("dpctl/ct-stats-show verbose", format!("starting conntrack dump (connection tracking {by} userspace)")),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(daemon.call(words[0], &words[1..]), Err(error + "\n"), "{line}");
    }
    assert_eq!(daemon.ask("dpctl/add-if netdev@ovs-netdev x,port_no=40"), "");
    assert!(daemon.ask("dpctl/show").contains("  port 40: x\n"));
    for (port, error) in [
        ("x", None),
        ("x,type=system,port_no=40,key=", None),
        ("x,type=internal", Some("x: can't change type from system to internal")),
        ("x,port_no=41", Some("x: can't change port number from 40 to 41")),
        ("x,key=1", Some("x: key=… is not supported for ports of a datapath")),
        ("y", Some("y: failed to query port in netdev@ovs-netdev (No such device)")),
        ("x,xdp=auto", None),
        ("x,xdp=fast", Some("\"fast\" is no XDP mode: auto, native, generic and off are")),
    ] {
        let said = daemon.call("dpctl/set-if", &["netdev@ovs-netdev", port]);
        assert_eq!(said, error.map_or(Ok(String::new()), |error| Err(format!("{error}\n"))), "{port}");
    }
    assert_eq!(daemon.ask("dpctl/del-if netdev@ovs-netdev x"), "");
    assert!(!daemon.ask("dpctl/show").contains(": x\n"));
}

#[test]
fn datapath_flows_are_added_changed_shown_and_deleted_by_hand() {
    // The revalidator deletes flows that nothing in the tables asks for: not during this test.
    let (_directory, daemon) = start(&format!("{SWITCH} --max-revalidator 600000"));
    // The pass that follows the configuration has its turn first.
    daemon.ask("revalidator/wait");
    let call = |line: &[&str]| daemon.call(line[0], &line[1..]);
    let key =
        "recirc_id(0),in_port(1),eth(dst=02:00:00:00:00:01),eth_type(0x0800),ipv4(src=10.0.0.0/255.0.0.0,frag=no)";
    assert_eq!(call(&["dpctl/add-flow", key, "2"]), Ok(String::new()));
    let header = "flow-dump from the main thread:\n";
    let dump = daemon.ask("dpctl/dump-flows");
    assert!(dump.starts_with(&format!("{header}recirc_id(0),in_port(1),")), "{dump}");
    assert!(dump.ends_with(", packets:0, bytes:0, used:never, actions:2\n"), "{dump}");
    assert_eq!(daemon.ask("dpctl/dump-flows filter=ip,nw_src=10.1.2.3").lines().count(), 2);
    assert_eq!(daemon.ask("dpctl/dump-flows filter=ip,nw_src=11.0.0.0"), "");
    assert_eq!(daemon.ask("dpctl/dump-flows filter=in_port=br0").lines().count(), 2);
    assert_eq!(daemon.ask("dpctl/dump-flows filter=arp"), "");
    assert_eq!(daemon.ask("dpctl/dump-flows netdev@ovs-netdev type=ovs --names").matches("in_port(br0)").count(), 1);

    let value = json(&daemon, "dpctl/dump-flows", &[]);
    assert_eq!(
        (&value[0]["packets"], &value[0]["actions"], &value[0]["used-ms"]),
        (&json!(0), &json!("2"), &Value::Null)
    );
    let ufid = format!("ufid:{}", value[0]["ufid"].as_str().unwrap());
    assert!(daemon.ask(&format!("dpctl/get-flow {ufid}")).ends_with("actions:2\n"));

    assert_eq!(call(&["dpctl/mod-flow", key, "3,2"]), Ok(String::new()));
    assert!(daemon.ask("dpctl/dump-flows").ends_with("actions:3,2\n"));
    assert_eq!(call(&["dpctl/del-flow", key]), Ok(String::new()));
    assert_eq!(daemon.ask("dpctl/dump-flows"), "");
    assert_eq!(call(&["dpctl/add-flow", &format!("ufid:1234,{key}"), "drop"]), Ok(String::new()));
    let dump = daemon.ask("dpctl/dump-flows -m");
    assert!(dump.contains("ufid:00000000-0000-0000-0000-000000001234, skb_priority(0/0)"), "{dump}");
    daemon.ask("dpctl/del-flows");
    assert_eq!(daemon.ask("dpctl/dump-flows"), "");

    for (line, error) in [
        (&["dpctl/add-flow", "in_port(", "2"][..], "parsing flow key (column 9: expected "),
        (&["dpctl/add-flow", key, "2,nonsense"], "parsing actions (column 3: expected "),
        (&["dpctl/mod-flow", key, "2"], "updating flow table ("),
        (&["dpctl/del-flow", key], "deleting flow (No such file or directory)"),
        (&["dpctl/get-flow", "ufid:xyz"], "parsing flow ufid"),
        (&["dpctl/get-flow", "ufid:77"], "getting flow ("),
        (&["dpctl/dump-flows", "filter=nonsense"], "Failed to parse filter (column 1: "),
        (&["dpctl/dump-flows", "type=x"], "Failed to parse type (x)\n"),
        (&["dpctl/dump-flows", "--nonsense"], "unrecognized option '--nonsense'\n"),
        (&["dpctl/dump-flows", "a", "b"], "unexpected argument \"b\"\n"),
        (&["dpctl/show", "nonesuch"], "opening datapath nonesuch failed (No such device)\n"),
        (&["dpctl/set-program", "netdev@ovs-netdev", "fast"], "fast: a datapath's program is general or specialised\n"),
        (&["dpctl/set-program", "netdev@ovs-netdev", "general"], "a specialised program is not supported by datapath "),
        (&["dpif/dump-flows", "nonesuch"], "no such bridge\n"),
        (&["fdb/show", "nonesuch"], "no such bridge\n"),
        (&["fdb/flush", "nonesuch"], "no such bridge\n"),
        (&["bridge/dump-flows", "nonesuch"], "Unknown bridge\n"),
    ] {
        let said = call(line).unwrap_err();
        assert!(said.starts_with(error) && said.lines().count() == 1, "{line:?}: {said}");
    }
}

#[test]
fn datapath_flows_come_and_go_by_files() {
    let (directory, daemon) = start(&format!("{SWITCH} --max-revalidator 600000"));
    daemon.ask("revalidator/wait");
    daemon.ask("revalidator/pause");
    let path = directory.path().join("flows");
    let path = path.to_str().unwrap();
    let file = |text: &str| std::fs::write(path, text).unwrap();
    let key = |port: u32| format!("recirc_id(0),in_port({port}),eth(),eth_type(0x0800),ipv4(frag=no)");
    let shown = || -> Vec<String> {
        let flows = daemon.ask("dpctl/dump-flows");
        let mut flows: Vec<_> = flows
            .lines()
            .filter_map(|line| {
                Some(format!("{}{}", line.split_once("in_port(")?.1.split_once(')')?.0, line.split_once("actions:")?.1))
            })
            .collect();
        flows.sort();
        flows
    };
    file(&format!("# ports\n{} 2\n\nadd {} 3 # behind it\nadd {} drop\n", key(1), key(2), key(3)));
    assert_eq!(daemon.call("dpctl/add-flows", &[path]), Ok(String::new()));
    assert_eq!(shown(), ["12", "23", "3drop"]);
    // What goes wrong is told, and the others are carried out.
    file(&format!("{} 4\n{}\nnonsense( 2\ndelete {}\n{} 5\nmodify {} 7\n", key(1), key(2), key(3), key(4), key(2)));
    let said = daemon.call("dpctl/mod-flows", &["netdev@ovs-netdev", path]).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, "Failed parsing line number 2, skipped!"), "{said}");
    assert!(lines[1].starts_with("parsing flow key (") && lines[2].starts_with("updating flow table ("), "{said}");
    assert_eq!(shown(), ["14", "27"]);
    file(&format!("{}\nadd {} 6\n{}\n", key(1), key(5), key(9)));
    let said = daemon.call("dpctl/del-flows", &[path]).unwrap();
    assert_eq!(said, "deleting flow (No such file or directory); perhaps you need to specify a UFID?\n");
    assert_eq!(shown(), ["27", "56"]);
    let error = daemon.call("dpctl/add-flows", &["/nonesuch"]).unwrap_err();
    assert!(error.starts_with("Opening file \"/nonesuch\" failed (No such file or directory"), "{error}");
    assert_eq!(daemon.call("dpctl/del-flows", &["netdev@ovs-netdev"]), Ok(String::new()));
    assert_eq!(shown(), [""; 0]);
    let actions = ["set(eth(dst=02:00:00:00:00:09)),2", "push_vlan(vid=7,pcp=0),3"];
    assert_eq!(daemon.call("dpctl/parse-actions", &actions).unwrap(), actions.map(|text| format!("{text}\n")).concat());
    assert!(
        daemon
            .call("dpctl/parse-actions", &["nonsense(2)"])
            .unwrap_err()
            .starts_with("odp_actions_from_string (column ")
    );
}

#[test]
fn a_secure_bridge_begins_without_flows() {
    let (_directory, daemon) = start("--memory-ports --datapath userspace --bridge br0,fail-mode=secure");
    assert_eq!(daemon.ask("bridge/dump-flows br0"), "");
}

#[test]
fn a_bridge_gets_the_flows_of_another_fail_mode_when_that_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("switch.toml");
    let write = |fail_mode: &str| {
        let text = format!("datapath = \"userspace\"\n[[bridge]]\nname = \"br0\"\nfail-mode = \"{fail_mode}\"\n");
        std::fs::write(&path, text).unwrap();
    };
    write("standalone");
    let (_directory, daemon) = start(&format!("--memory-ports --config {}", path.display()));
    let rules = || daemon.ask("bridge/dump-flows br0");
    assert!(rules().ends_with("actions=NORMAL\n"), "{}", rules());
    write("secure");
    assert_eq!((daemon.ask("config/reload").as_str(), rules().as_str()), ("2 changes\n", ""));
    write("standalone");
    assert_eq!(daemon.ask("config/reload"), "2 changes\n");
    assert!(rules().ends_with("actions=NORMAL\n"), "{}", rules());
}

#[test]
fn the_way_back_from_a_reload_that_fails_leads_to_the_flows_that_there_were() {
    let directory = tempfile::tempdir().unwrap();
    let (path, flows) = (directory.path().join("switch.toml"), directory.path().join("br1.flows"));
    let write = |rest: &str| {
        let text = format!("datapath = \"userspace\"\n[[bridge]]\nname = \"br0\"\n{rest}");
        std::fs::write(&path, text).unwrap();
    };
    let br1 = "[[bridge]]\nname = \"br1\"\nflows = \"br1.flows\"\n";
    write(br1);
    std::fs::write(&flows, "priority=1 actions=drop\n").unwrap();
    let (_directory, daemon) = start(&format!("--memory-ports --config {}", path.display()));
    let rules = || daemon.ask("bridge/dump-flows br1");
    assert!(rules().contains("priority=1 actions=drop"), "{}", rules());
    // The bridge goes, its file changes, and a port can't be had: the bridge comes back with what it had.
    write("[[bridge.port]]\nname = \"x\"\nxdp = \"native\"\n");
    std::fs::write(&flows, "priority=2 actions=drop\n").unwrap();
    let error = daemon.call("config/reload", &[]).unwrap_err();
    assert!(error.starts_with("cannot add port x to bridge br0: x: can't set xdp to native"), "{error}");
    assert!(!error.contains("then cannot") && rules().contains("priority=1 actions=drop"), "{error}{}", rules());
    // It is known not to be what the file says now.
    write(br1);
    assert_eq!(daemon.ask("config/reload"), "1 changes\n");
    assert!(rules().contains("priority=2 actions=drop"), "{}", rules());
}

#[test]
fn flows_of_a_file_follow_the_numbers_of_the_ports_that_they_name() {
    let directory = tempfile::tempdir().unwrap();
    let (path, flows) = (directory.path().join("switch.toml"), directory.path().join("br0.flows"));
    let write = |ports: &[&str]| {
        let mut text = "datapath = \"userspace\"\n[[bridge]]\nname = \"br0\"\nflows = \"br0.flows\"\n".to_owned();
        ports.iter().for_each(|port| text.push_str(&format!("[[bridge.port]]\nname = {port}\n")));
        std::fs::write(&path, text).unwrap();
    };
    write(&["\"a\""]);
    std::fs::write(&flows, "in_port=a,actions=drop\n").unwrap();
    let (_directory, daemon) = start(&format!("--memory-ports --config {}", path.display()));
    let rules = || daemon.ask("bridge/dump-flows br0");
    let age = || {
        let rules = rules();
        rules.split_once("duration=").and_then(|(_, rest)| rest.split_once("s,")?.0.parse::<f64>().ok()).unwrap()
    };
    std::fs::write(&flows, "in_port=a,actions=output:b\n").unwrap();
    write(&["\"b\"", "\"a\""]);
    assert_eq!(daemon.ask("config/reload"), "2 changes\n");
    assert!(rules().ends_with("in_port=1 actions=output:2\n"), "{}", rules());
    // Another number.
    write(&["\"b\"\nofport = 7", "\"a\""]);
    assert_eq!(daemon.ask("config/reload"), "3 changes\n");
    assert!(rules().ends_with("in_port=1 actions=output:7\n"), "{}", rules());
    // A port that they don't name leaves them alone.
    std::thread::sleep(std::time::Duration::from_millis(50));
    write(&["\"b\"\nofport = 7", "\"c\"", "\"a\""]);
    let before = age();
    daemon.ask("config/reload");
    assert!(age() >= before, "{before} {}", rules());
    // Both go and one more can't be had: the numbers and what the flows mean are those of before, not those by the order.
    write(&["\"b\"", "\"a\"\ntype = \"internal\"", "\"x\"\nxdp = \"native\""]);
    let error = daemon.call("config/reload", &[]).unwrap_err();
    assert!(error.starts_with("cannot add port x to bridge br0: ") && !error.contains("then cannot"), "{error}");
    assert!(rules().ends_with("in_port=1 actions=output:7\n"), "{}", rules());
    let show = daemon.ask("dpif/show");
    assert!(show.contains("    a 1/") && show.contains("    b 7/") && show.contains("    c 2/"), "{show}");
}

#[test]
fn options_change_while_bridges_run_but_for_the_datapaths_size() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("switch.toml");
    let write = |options: &str| {
        let text = format!("datapath = \"userspace\"\n[options]\n{options}\n[[bridge]]\nname = \"br0\"\n");
        std::fs::write(&path, text).unwrap();
    };
    write("flow-limit = 5000\nn-handlers = 1");
    let (_directory, daemon) = start(&format!("--memory-ports --config {}", path.display()));
    assert!(daemon.ask("upcall/show").contains("(limit 5000)"), "{}", daemon.ask("upcall/show"));
    write("flow-limit = 4000\nn-handlers = 3");
    assert_eq!(daemon.ask("config/reload"), "1 changes\n");
    assert!(daemon.ask("upcall/show").contains("(limit 4000)"), "{}", daemon.ask("upcall/show"));
    write("flow-limit = 4000\nn-handlers = 3\nmax-flows = 1000");
    let error = daemon.call("config/reload", &[]).unwrap_err();
    assert!(error.starts_with("max-flows can't change while there are bridges"), "{error}");
}

#[test]
fn what_this_version_cannot_do_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let flows = directory.path().join("br0.flows");
    std::fs::write(&flows, "priority=0 actions=NORMAL\nactions=ct(commit)\n").unwrap();
    let bad_flows = format!("--bridge br0 --flows {}", flows.display());
    for (line, error) in [(&bad_flows, &format!("{}:2:", flows.display()))] {
        for mode in ["--check", "-vconsole:off"] {
            let args: Vec<&str> = line.split_whitespace().chain([mode]).collect();
            let (code, said) = outcome(&mut vswitchd(directory.path(), &args));
            assert_eq!((code, said.lines().count()), (Some(2), 1), "{args:?}: {said}");
            assert!(said.starts_with(&format!("vswitchd: {error}")), "{args:?}: {said}");
        }
    }
}

#[test]
fn the_upcall_engine_answers_in_the_fields_words() {
    let (_directory, daemon) = start(&format!("{SWITCH} --n-revalidator-threads 2 --min-revalidate-pps 0"));
    let show = daemon.ask("upcall/show");
    let expected = "netdev@ovs-netdev:\n  flows         : (current 0) (avg 0) (max 0) (limit ";
    assert!(show.starts_with(expected), "{show}");
    assert!(
        show.contains("\n  ufid enabled : true\n\n  0: (keys 0)\n  1: (keys 0)\n  handler 0: (upcalls 0)"),
        "{show}"
    );
    for (command, answer) in [
        ("upcall/disable-megaflows", "megaflows disabled"),
        ("upcall/enable-megaflows", "megaflows enabled"),
        ("upcall/disable-ufid", "Datapath dumping tersely using UFID disabled"),
        ("upcall/enable-ufid", "Datapath dumping tersely using UFID enabled for supported datapaths"),
        ("upcall/set-flow-limit 1234", "set flow_limit to 1234\n"),
        ("upcall/dump-ukeys", "netdev@ovs-netdev:\n"),
        ("revalidator/wait", ""),
        ("revalidator/purge", ""),
        ("revalidator/pause", ""),
        ("revalidator/resume", ""),
        ("ofproto/detrace ufid:1", "UFID was not found for netdev@ovs-netdev\n"),
        ("ofproto/detrace ufid:1 pmd=3", "UFID was not found for netdev@ovs-netdev\n"),
    ] {
        assert_eq!(daemon.ask(command).trim_end(), answer.trim_end(), "{command}");
    }
    daemon.ask("revalidator/pause");
    for (command, args, error) in [
        ("revalidator/wait", &[][..], "the revalidators are paused"),
        ("ofproto/detrace", &["1"], "failed to parse ufid"),
        ("ofproto/detrace", &["ufid:1", "7"], "Invalid pmd argument format. Expecting 'pmd=PMD-ID'"),
        ("upcall/set-flow-limit", &["many"], "\"many\" is not a number of flows"),
    ] {
        let answer = daemon.call(command, args).unwrap_err();
        assert!(answer.contains(error), "{command}: {answer}");
    }
}

#[test]
fn operations_of_a_datapath_are_logged_where_somebody_asks() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let (_directory, daemon) = start(&format!("{SWITCH} --max-revalidator 600000 --log-file={}", log.display()));
    let put = |mac: &str| {
        let flow = format!("in_port(4),eth(src={mac}),eth_type(0x0800),ipv4(frag=no)");
        daemon.call("dpctl/add-flow", &[&flow, "3"]).unwrap();
    };
    put("50:54:00:00:00:01");
    daemon.ask("vlog/set dpif:file:dbg");
    put("50:54:00:00:00:02");
    daemon.ask("revalidator/wait");
    daemon.ask("vlog/set ofproto_dpif_upcall:file:dbg");
    daemon.ask("revalidator/purge");
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("|dpif|") || line.contains("|dpif(")).collect();
    let puts: Vec<_> = lines.iter().filter(|line| line.contains("|DBG|netdev@ovs-netdev: put[create] ufid:")).collect();
    // Of the first nobody wanted to know.
    let [put] = puts.as_slice() else { panic!("{text}") };
    assert!(put.contains("eth(src=50:54:00:00:00:02,dst=") && put.contains(", actions:3"), "{put}");
    assert!(lines.iter().any(|line| line.contains(" flow_del ufid:") && line.contains(", packets:0,")), "{text}");
}
