//! Actions of the kernel's `openvswitch` module on the wire: flows that `dpctl/add-flow` puts, frames in by host 1, frames out at
//! hosts 2 and 3. Run by `cargo xtask test-vm`.

mod common;

use std::time::Duration;

use common::{Daemon, Network};
use testkit::{Need, RawSocket};

/// What is expected comes in no time; an emulated machine may take longer.
const SOON: Duration = Duration::from_secs(10);
/// For what should not come.
const A_WHILE: Duration = Duration::from_millis(150);

const TO: [u8; 6] = [2, 0, 0, 0, 0, 2];
const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];

struct Wires {
    network: Network,
    daemon: Daemon,
    hosts: Vec<RawSocket>,
}

impl Wires {
    fn new() -> Wires {
        let network = Network::new(3);
        let ports = "--port br0:v1 --port br0:v2 --port br0:v3";
        // Nothing in the tables asks for these flows: nobody may look at them.
        let line = format!("--datapath netlink --bridge br0,fail-mode=secure {ports} --max-revalidator 600000");
        let daemon = network.start(&line);
        daemon.ask("revalidator/wait");
        daemon.ask("revalidator/pause");
        let hosts = network.hosts.iter().map(|host| RawSocket::open(host, "eth0").unwrap()).collect();
        Wires { network, daemon, hosts }
    }

    fn add(&self, key: &str, actions: &str) {
        let added = self.daemon.call("dpctl/add-flow", &[key, actions]);
        assert_eq!(added, Ok(String::new()), "{key} {actions}");
    }

    fn clear(&self) {
        // The command has the threads begin anew; they should look at nothing this time either.
        for line in self.daemon.ask("dpctl/dump-flows -m").lines() {
            let ufid = line.split_once(',').unwrap().0;
            self.daemon.call("dpctl/del-flow", &[ufid]).unwrap();
        }
    }

    /// A frame from host 1 comes out like that at hosts 2 and 3, or not at all.
    fn expect(&self, what: &str, sent: &[u8], expected: [Option<&[u8]>; 2]) {
        self.hosts[0].send(sent).unwrap();
        for (host, expected) in self.hosts[1..].iter().zip(expected) {
            match expected {
                Some(expected) => {
                    let frame = host.recv(SOON).unwrap().unwrap_or_else(|| panic!("{what}: nothing comes"));
                    assert_eq!(hex(&frame.bytes), hex(expected), "{what}");
                }
                None => {
                    let frame = host.recv(A_WHILE).unwrap();
                    assert!(frame.is_none(), "{what}: {}", frame.map(|frame| hex(&frame.bytes)).unwrap_or_default());
                }
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An IPv4 packet with UDP (without its checksum) in an Ethernet frame of `len` bytes.
fn udp(src: [u8; 4], dst: [u8; 4], ports: [u16; 2], ttl: u8, len: usize) -> Vec<u8> {
    let mut frame = [TO, FROM].concat();
    frame.extend([8, 0]);
    let total = (len - 14) as u16;
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 1, 0x40, 0, ttl, 17, 0, 0]);
    header.extend(src.into_iter().chain(dst));
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    frame.extend((total - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((frame.len()..len).map(|i| i as u8));
    frame
}

fn plain(len: usize) -> Vec<u8> {
    udp([10, 0, 0, 1], [10, 0, 0, 2], [1000, 2000], 64, len)
}

/// The frame with these bytes put in at `at`.
fn with(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    [&frame[..at], bytes, &frame[at..]].concat()
}

const IPV4: &str = "recirc_id(0),in_port(v1),eth(),eth_type(0x0800),ipv4(proto=17,frag=no)";

#[test]
fn every_action_has_its_effect_on_the_wire() {
    const NAME: &str = "every_action_has_its_effect_on_the_wire";
    if !testkit::skip::have(NAME, &[Need::OvsModule, Need::Namespaces]) {
        return;
    }
    let wires = Wires::new();
    let frame = plain(100);
    let tagged = with(&frame, 12, &[0x81, 0, 0, 7]);
    let labelled = {
        let mut labelled = with(&frame, 14, &[0, 6, 0x43, 64]);
        labelled[12..14].copy_from_slice(&[0x88, 0x47]);
        labelled
    };
    let ttl = |ttl| udp([10, 0, 0, 1], [10, 0, 0, 2], [1000, 2000], ttl, 100);
    let to_port = udp([10, 0, 0, 1], [10, 0, 0, 2], [1000, 99], 64, 100);
    let to_other = [&[2, 0, 0, 0, 0, 9][..], &frame[6..]].concat();
    let nsh = {
        let header = [0x0f, 0xc6, 1, 3, 0, 0x12, 0x34, 255, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4];
        [&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x89, 0x4f][..], &header, &frame].concat()
    };
    let mut seen = Vec::new();
    type Case<'a> = (&'a str, Option<&'a [u8]>, Option<&'a [u8]>);
    let cases: [Case<'_>; 20] = [
        ("v2", Some(&frame[..]), None),
        ("v2,v3", Some(&frame), Some(&frame)),
        ("drop", None, None),
        ("push_vlan(vid=7,pcp=0),v2,pop_vlan,v3", Some(&tagged), Some(&frame)),
        (
            "push_mpls(label=100,tc=1,ttl=64,bos=1,eth_type=0x8847),v2,pop_mpls(eth_type=0x800),v3",
            Some(&labelled),
            Some(&frame),
        ),
        ("set(ipv4(ttl=9)),v2", Some(&ttl(9)), None),
        ("set(ipv4(ttl=0x3/0x3)),v2", Some(&ttl(67)), None),
        ("set(udp(dst=99)),v2", Some(&to_port), None),
        ("set(eth(dst=02:00:00:00:00:09)),v2", Some(&to_other), None),
        ("trunc(64),v2,v3", Some(&frame[..64]), Some(&frame)),
        ("clone(push_vlan(vid=7,pcp=0),v3),v2", Some(&frame), Some(&tagged)),
        ("sample(sample=100.0%,actions(push_vlan(vid=7,pcp=0),v3)),v2", Some(&frame), Some(&tagged)),
        ("sample(sample=0.0%,actions(v3)),v2", Some(&frame), None),
        ("check_pkt_len(size=90,gt(v3),le(v2))", None, Some(&frame)),
        ("check_pkt_len(size=200,gt(v3),le(v2))", Some(&frame), None),
        ("dec_ttl(le_1(v3)),v2", Some(&ttl(63)), None),
        ("pop_eth,push_eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:09),v2", Some(&to_other), None),
        (
            "push_nsh(flags=0,ttl=63,mdtype=1,np=3,spi=0x1234,si=255,c1=0x1,c2=0x2,c3=0x3,c4=0x4),\
             push_eth(src=02:00:00:00:00:08,dst=02:00:00:00:00:09),v2",
            Some(&nsh),
            None,
        ),
        ("hash(l4(0)),recirc(0x7)", Some(&frame), None),
        ("ct(zone=9),ct_clear,v2", Some(&frame), None),
    ];
    for (actions, two, three) in cases {
        wires.add("recirc_id(0x7),in_port(v1),eth(),eth_type(0x0800),ipv4(frag=no)", "v2");
        wires.add(IPV4, actions);
        wires.expect(actions, &frame, [two, three]);
        let flows = wires.daemon.ask("dpctl/dump-flows");
        assert!(flows.lines().any(|line| line.contains("recirc_id(0)") && line.contains("packets:1,")), "{flows}");
        seen.push(actions);
        wires.clear();
    }
    // What comes off is what a flow has matched.
    let nsh_key = "eth_type(0x894f),nsh(flags=0,mdtype=1,np=3,spi=0x1234,si=255)";
    for (key, actions, sent) in [
        ("eth_type(0x8100),vlan(vid=7),encap(eth_type(0x0800),ipv4(frag=no))", "pop_vlan,v2", &tagged),
        ("eth_type(0x8847),mpls(label=100,tc=1,ttl=64,bos=1)", "pop_mpls(eth_type=0x800),v2", &labelled),
        (nsh_key, "pop_eth,pop_nsh(),v2", &nsh),
    ] {
        wires.add(&format!("recirc_id(0),in_port(v1),eth(),{key}"), actions);
        wires.expect(actions, sent, [Some(&frame), None]);
        seen.push(actions);
        wires.clear();
    }
    let drops = wires.daemon.call("dpctl/add-flow", &[IPV4, "lb_output(1)"]).unwrap_err();
    assert!(drops.starts_with("parsing actions ("), "{drops}");
    wires.daemon.ask("exit --cleanup");
    assert_eq!(wires.daemon.ended(), Some(0));
    assert_eq!(wires.network.left(), [""; 0]);
    println!("{} lists of actions", seen.len());
}

#[test]
fn connections_are_translated_shown_limited_and_flushed() {
    const NAME: &str = "connections_are_translated_shown_limited_and_flushed";
    if !testkit::skip::have(NAME, &[Need::OvsModule, Need::Namespaces]) {
        return;
    }
    let wires = Wires::new();
    let ask = |line: &str| wires.daemon.ask(line);
    wires.add(IPV4, "ct(commit,zone=3,mark=0x5/0xff,nat(src=10.9.9.9)),recirc(0x8)");
    wires.add("recirc_id(0x8),in_port(v1),ct_state(+trk+new),ct_mark(0x5),eth(),eth_type(0x0800),ipv4(frag=no)", "v2");
    let back = "in_port(v2),eth(),eth_type(0x0800),ipv4(frag=no)";
    wires.add(&format!("recirc_id(0),{back}"), "ct(zone=3,nat),recirc(0x9)");
    wires.add(&format!("recirc_id(0x9),ct_state(+trk+est+rpl),{back}"), "v1");
    let there = udp([10, 9, 9, 9], [10, 0, 0, 2], [1000, 2000], 64, 100);
    wires.expect("there", &plain(100), [Some(&there), None]);
    wires.hosts[1].send(&udp([10, 0, 0, 2], [10, 9, 9, 9], [2000, 1000], 64, 100)).unwrap();
    let home = wires.hosts[0].recv(SOON).unwrap().expect("nothing comes back");
    assert_eq!(hex(&home.bytes), hex(&udp([10, 0, 0, 2], [10, 0, 0, 1], [2000, 1000], 64, 100)));

    let entry = "udp,orig=(src=10.0.0.1,dst=10.0.0.2,sport=1000,dport=2000),\
                 reply=(src=10.0.0.2,dst=10.9.9.9,sport=2000,dport=1000),zone=3,mark=5\n";
    assert_eq!(ask("dpctl/dump-conntrack"), entry);
    assert_eq!(ask("dpctl/dump-conntrack zone=3"), entry);
    assert_eq!(ask("dpctl/dump-conntrack zone=4"), "");
    assert!(ask("dpctl/dump-conntrack -m -s").contains(",timeout="), "{}", ask("dpctl/dump-conntrack -m -s"));
    assert_eq!(ask("dpctl/ct-get-nconns"), "1\n");
    assert_eq!(ask("dpctl/ct-stats-show"), "Connections Stats:\n    Total: 1\n  UDP: 1\n");

    ask("dpctl/ct-set-limits default=10 zone=3,limit=7");
    let limits = ask("dpctl/ct-get-limits zone=3");
    assert!(limits.starts_with("default limit=10\nzone=3,limit=7,count="), "{limits}");
    ask("dpctl/ct-del-limits zone=3");
    assert!(ask("dpctl/ct-get-limits zone=3").starts_with("default limit=10\nzone=3,limit=10,"));

    assert_eq!(ask("dpctl/flush-conntrack zone=4"), "");
    assert_eq!(ask("dpctl/ct-get-nconns"), "1\n");
    assert_eq!(ask("dpctl/flush-conntrack zone=3"), "");
    assert_eq!(ask("dpctl/ct-get-nconns"), "0\n");
    // By what it is, one direction or both, its mark; and nothing that is something else.
    let tuple = "ct_nw_src=10.0.0.1,ct_nw_dst=10.0.0.2,ct_nw_proto=17,ct_tp_src=1000,ct_tp_dst=2000";
    for (other, this) in [
        (tuple.replace("2000", "2001"), tuple.to_owned()),
        ("ct_nw_proto=6".into(), "zone=3 ct_nw_proto=17".into()),
        ("mark=0x4/0xff".into(), "mark=0x1/0x3".into()),
        ("labels=0x1".into(), "zone=3 mark=5 labels=0".into()),
        (format!("zone=4 {tuple}"), format!("{tuple} ct_nw_dst=10.9.9.9")),
    ] {
        wires.expect(&this, &plain(100), [Some(&there), None]);
        for (which, left) in [(&other, "1\n"), (&this, "0\n")] {
            assert_eq!(ask(&format!("dpctl/flush-conntrack {which}")), "");
            assert_eq!(ask("dpctl/ct-get-nconns"), left, "{which}");
        }
    }
    assert_eq!(ask("dpctl/ct-bkts"), "Command is available for UserSpace ConnTracker only.\n");
    wires.expect("again", &plain(100), [Some(&there), None]);
    ask("dpctl/flush-conntrack");
    assert_eq!(ask("dpctl/dump-conntrack"), "");
    ask("exit --cleanup");
    assert_eq!(wires.daemon.ended(), Some(0));
}

#[test]
fn ports_and_caches_are_changed_by_hand() {
    const NAME: &str = "ports_and_caches_are_changed_by_hand";
    if !testkit::skip::have(NAME, &[Need::OvsModule, Need::Namespaces]) {
        return;
    }
    let wires = Wires::new();
    let call = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        wires.daemon.call(words[0], &words[1..])
    };
    wires.network.netns.ip("link add v7 type veth peer name v8").unwrap();
    assert_eq!(call("dpctl/add-if ovs-system v7,port_no=77 i7,type=internal"), Ok(String::new()));
    let show = call("dpctl/show").unwrap();
    assert!(show.contains("  port 77: v7\n") && show.contains(": i7 (internal)\n"), "{show}");
    assert!(call("dpctl/add-if ovs-system v7").unwrap_err().starts_with("adding v7 to ovs-system failed (port v7: "));
    assert_eq!(
        call("dpctl/del-if ovs-system v1").unwrap_err(),
        "port v1 belongs to bridge br0: change the configuration\n"
    );
    assert_eq!(call("dpctl/del-if ovs-system 77 i7"), Ok(String::new()));
    assert_eq!(call("dpctl/del-if ovs-system v7").unwrap_err(), "no port named v7\n");
    assert_eq!(call("dpctl/cache-get-size").unwrap(), "system@ovs-system:\n  caches:\n    masks-cache: size:256\n");
    let set = call("dpctl/cache-set-size ovs-system masks-cache 1024");
    assert_eq!(set.unwrap(), "Setting cache size successful, new size 1024\n");
    assert!(call("dpctl/show").unwrap().contains("  caches:\n    masks-cache: size:1024\n"));
    let unknown = call("dpctl/cache-set-size ovs-system emc 1024").unwrap_err();
    assert_eq!(unknown, "Cache name \"emc\" not found on dpif\n");
    call("exit --cleanup").unwrap();
}
