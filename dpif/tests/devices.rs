//! The in-process datapath on network devices, with real traffic between namespaces.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use dpif::inproc::{InprocDatapath, Options, PortBackend};
use dpif::odp::{parse_actions, parse_flow_key};
use dpif::*;
use testkit::{Need, Netns, RawSocket, require, veth_pair, wait_until};

/// A switch in a namespace of its own: the datapath lives where its devices are.
struct Switch {
    netns: Netns,
    dp: InprocDatapath,
}

impl Switch {
    fn new() -> Self {
        let netns = Netns::new("switch").unwrap();
        netns.silence().unwrap();
        let options = Options { backend: PortBackend::Devices, ..Options::new("dp0") };
        let dp = netns.run(|| InprocDatapath::with_options(options)).unwrap();
        Self { netns, dp }
    }

    fn add(&self, name: &str, kind: PortKind) -> Result<OdpPort> {
        let spec = PortSpec { name: name.into(), kind, request: None };
        self.netns.run(|| self.dp.port_add(&spec)).unwrap()
    }

    /// A host on a wire whose end in the switch is a port.
    fn host(&self, name: &str, address: &str) -> (Netns, OdpPort) {
        let host = Netns::new(name).unwrap();
        veth_pair(&host, "eth0", &self.netns, name).unwrap();
        host.ip(&format!("addr add {address} dev eth0")).unwrap();
        (host, self.add(name, PortKind::System).unwrap())
    }

    fn flow(&self, ufid: u128, key: &str, actions: &str) {
        let (key, mask) = parse_flow_key(key, None).unwrap();
        let actions = parse_actions(actions, None).unwrap();
        self.dp
            .flow_put(&FlowPut { mode: PutMode::CreateOrModify, ufid: Ufid(ufid), key, mask, actions: actions.into() })
            .unwrap();
    }
}

/// Bytes that differ everywhere, so that a wrong or missing one shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_be_bytes()).take(len).collect()
}

/// Sends bytes over TCP and says how long it took.
fn tcp(from: &Netns, to: &Netns, address: &str, bytes: &[u8]) -> Duration {
    let ip: IpAddr = address.parse().unwrap();
    let listener = to.run(|| TcpListener::bind(SocketAddr::new(ip, 0))).unwrap().unwrap();
    let target = listener.local_addr().unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            got
        });
        let mut stream =
            from.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(10))).unwrap().expect("connects");
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream);
        assert!(receiver.join().unwrap() == bytes, "the bytes arrive as they were sent");
    });
    start.elapsed()
}

#[test]
fn hosts_talk_over_system_ports() {
    require!("hosts_talk_over_system_ports"; Need::Namespaces);
    let switch = Switch::new();
    let (a, pa) = switch.host("va", "10.0.0.1/24");
    let (b, pb) = switch.host("vb", "10.0.0.2/24");
    switch.flow(1, &format!("in_port({pa})"), &pb.to_string());
    switch.flow(2, &format!("in_port({pb})"), &pa.to_string());
    a.exec("ping -c 2 -i 0.05 -W 5 10.0.0.2").unwrap();
    let bytes = pattern(64 << 20);
    let took = tcp(&a, &b, "10.0.0.2", &bytes);
    println!("{:.2} Gbit/s", bytes.len() as f64 * 8.0 / took.as_nanos() as f64);
    let stats = switch.dp.port_stats(pb).unwrap();
    // Super-packets stay whole.
    assert!(stats.tx_bytes / stats.tx_packets > 3000, "{stats:?}");
}

#[test]
fn the_host_talks_over_an_internal_port_whose_addresses_are_rewritten() {
    require!("the_host_talks_over_an_internal_port_whose_addresses_are_rewritten"; Need::Namespaces);
    let switch = Switch::new();
    let (a, pa) = switch.host("va", "10.0.0.1/24");
    let local = switch.add("dp0", PortKind::Internal).unwrap();
    assert_eq!(local, OdpPort(0));
    let netns = &switch.netns;
    netns.ip("addr add 10.0.0.9/24 dev dp0").unwrap();
    netns.ip("link set dp0 up").unwrap();
    // The host is 10.0.0.9 to itself and 10.0.0.2 to others.
    let arp = "eth_type(0x0806),arp";
    let ip = "eth(),eth_type(0x0800),ipv4(frag=no)";
    switch.flow(1, &format!("in_port({pa}),eth(),{arp}()"), &format!("set(arp(tip=10.0.0.9)),{local}"));
    switch.flow(2, &format!("in_port({local}),eth(),{arp}(sip=10.0.0.9)"), &format!("set(arp(sip=10.0.0.2)),{pa}"));
    switch.flow(3, &format!("in_port({pa}),{ip}"), &format!("set(ipv4(dst=10.0.0.9)),{local}"));
    switch.flow(4, &format!("in_port({local}),{ip}"), &format!("set(ipv4(src=10.0.0.2)),{pa}"));
    a.exec("ping -c 2 -i 0.05 -W 5 10.0.0.2").unwrap();
    // Rewritten checksums, complete and partial ones, in both directions.
    let echo = netns.run(|| UdpSocket::bind("10.0.0.9:7000")).unwrap().unwrap();
    let client = a.run(|| UdpSocket::bind("10.0.0.1:7001")).unwrap().unwrap();
    for socket in [&echo, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    client.send_to(b"question", "10.0.0.2:7000").unwrap();
    let mut buffer = [0; 64];
    let (n, from) = echo.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"question");
    echo.send_to(b"answer", from).unwrap();
    let (n, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..n], from.to_string().as_str()), (b"answer".as_slice(), "10.0.0.2:7000"));

    let listener = netns.run(|| TcpListener::bind("10.0.0.9:7002")).unwrap().unwrap();
    let bytes = pattern(8 << 20);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut got = vec![0; bytes.len()];
            stream.read_exact(&mut got).unwrap();
            stream.write_all(&got).unwrap();
            got
        });
        let target = "10.0.0.2:7002".parse().unwrap();
        let mut stream = a.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(10))).unwrap().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(receiver.join().unwrap() == bytes && back == bytes);
    });
}

#[test]
fn tags_cross_devices_wherever_they_are_held() {
    require!("tags_cross_devices_wherever_they_are_held"; Need::Namespaces);
    let switch = Switch::new();
    let (a, pa) = switch.host("va", "10.0.0.1/24");
    let (b, pb) = switch.host("vb", "10.0.0.2/24");
    let (wire_a, wire_b) = (RawSocket::open(&a, "eth0").unwrap(), RawSocket::open(&b, "eth0").unwrap());
    let plain: Vec<u8> = [&[2; 12][..], &[0x12, 0x34], &[7; 50]].concat();
    let tagged = |tags: &[[u8; 4]]| [&plain[..12], &tags.concat(), &plain[12..]].concat();
    let [outer, inner] = [[0x88, 0xa8, 0x20, 5], [0x81, 0, 0, 9]];
    let key = |tag: &str| format!("in_port({pa}),eth(),{tag}");
    for (name, key, actions, sent, expected) in [
        ("through", key("eth_type(0x8100),vlan(vid=9)"), "", tagged(&[inner]), tagged(&[inner])),
        ("push", key("eth_type(0x1234)"), "push_vlan(vid=9,pcp=0),", plain.clone(), tagged(&[inner])),
        ("pop", key("eth_type(0x8100),vlan(vid=9)"), "pop_vlan,", tagged(&[inner]), plain.clone()),
        (
            "push on a tag",
            key("eth_type(0x8100),vlan(vid=9)"),
            "push_vlan(tpid=0x88a8,vid=5,pcp=1),",
            tagged(&[inner]),
            tagged(&[outer, inner]),
        ),
        ("pop of two", key("eth_type(0x88a8),vlan(vid=5)"), "pop_vlan,", tagged(&[outer, inner]), tagged(&[inner])),
    ] {
        switch.dp.flow_flush().unwrap();
        switch.flow(1, &key, &format!("{actions}{pb}"));
        wire_a.send(&sent).unwrap();
        let got = wire_b.recv_where(Duration::from_secs(5), |f| f.bytes[..12] == plain[..12]).unwrap();
        assert_eq!(got.map(|f| f.bytes), Some(expected), "{name}");
    }
}

#[test]
fn what_happens_to_a_device_is_said_and_what_cannot_be_a_port_is_refused() {
    require!("what_happens_to_a_device_is_said_and_what_cannot_be_a_port_is_refused"; Need::Namespaces);
    let switch = Switch::new();
    let (_a, pa) = switch.host("va", "10.0.0.1/24");
    let (_b, pb) = switch.host("vb", "10.0.0.2/24");
    let refused = |name: &str, kind| switch.add(name, kind).unwrap_err().to_string();
    assert!(refused("nonesuch", PortKind::System).contains("no network device nonesuch"));
    assert!(refused("va", PortKind::System).contains("va is a port of datapath dp0 already"));
    assert_eq!(refused("lo", PortKind::System), "lo is no Ethernet device");
    assert!(refused("lo", PortKind::Internal).contains("a network device lo exists already"));

    assert_eq!(switch.dp.port_events(), []);
    switch.netns.ip("link set va mtu 1400").unwrap();
    assert_eq!(switch.dp.port_events(), [PortEvent::Changed(pa)]);
    assert_eq!(switch.dp.ports().unwrap()[0].mtu, 1400);
    switch.netns.ip("link set va down").unwrap();
    switch.netns.ip("link set va name renamed").unwrap();
    switch.netns.ip("link del vb").unwrap();
    let events = switch.dp.port_events();
    assert_eq!(
        events,
        [
            PortEvent::Detached(pa, "device va was renamed to renamed".into()),
            PortEvent::Detached(pb, "device vb was deleted or moved to another network namespace".into())
        ]
    );
    assert_eq!(switch.dp.port_events(), []);
    assert!(switch.dp.ports().unwrap()[0].error.is_some());
    switch.dp.port_del(pa).unwrap();
    switch.dp.port_del(pb).unwrap();

    // An internal port takes its device along.
    let local = switch.add("dp0", PortKind::Internal).unwrap();
    assert!(switch.netns.ip("link show dev dp0").is_ok());
    switch.dp.port_del(local).unwrap();
    // It stays until a child of another test, between its birth and its program, has closed it as well.
    assert!(wait_until(Duration::from_secs(5), || switch.netns.ip("link show dev dp0").is_err()));
    // A system port leaves its device as it was.
    let port = switch.add("renamed", PortKind::System).unwrap();
    assert!(switch.netns.ip("-d link show dev renamed").unwrap().contains("promiscuity 1"));
    switch.dp.port_del(port).unwrap();
    let quiet = || switch.netns.ip("-d link show dev renamed").unwrap().contains("promiscuity 0");
    assert!(wait_until(Duration::from_secs(2), quiet));
    switch.dp.destroy().unwrap();
}
