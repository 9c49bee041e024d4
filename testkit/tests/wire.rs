//! The helpers against the real kernel: what is sent over a wire comes out of it, whole.

use std::{path::Path, time::Duration};

use testkit::{Frame, Gso, Need, Netns, Offload, RawSocket, raw::GsoKind, require, veth_pair, wait_until};

const SECOND: Duration = Duration::from_secs(1);

struct Wire {
    tx: RawSocket,
    rx: RawSocket,
    _hosts: [Netns; 2],
}

fn wire() -> Wire {
    let hosts = [Netns::new("a").unwrap(), Netns::new("b").unwrap()];
    hosts.iter().for_each(|host| host.silence().unwrap());
    veth_pair(&hosts[0], "eth0", &hosts[1], "eth0").unwrap();
    let open = |host| RawSocket::open(host, "eth0").unwrap();
    Wire { tx: open(&hosts[0]), rx: open(&hosts[1]), _hosts: hosts }
}

/// A broadcast frame with `tags` between the addresses and the EtherType.
fn frame(tags: &[[u8; 4]], ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], tags.as_flattened(), &ethertype, payload].concat()
}

#[test]
fn frames_arrive_with_their_vlan_tags() {
    require!("frames_arrive_with_their_vlan_tags"; Need::Namespaces);
    let wire = wire();
    let (c, s) = ([0x81, 0x00, 0x20, 0x64], [0x88, 0xa8, 0x00, 0xc8]);
    for tags in [&[][..], &[c], &[s], &[s, c]] {
        let sent = frame(tags, [0x88, 0xb5], &[7; 60]);
        wire.tx.send(&sent).unwrap();
        let received = wire.rx.recv(SECOND).unwrap();
        assert_eq!(received, Some(Frame { bytes: sent, offload: Offload::default() }));
    }
    assert_eq!(wire.rx.recv_all(Duration::from_millis(20)).unwrap(), [], "nothing else is on the wire");
}

#[test]
fn a_super_packet_crosses_the_wire_whole() {
    require!("a_super_packet_crosses_the_wire_whole"; Need::Namespaces);
    let wire = wire();
    let payload = vec![0x5a; 60_000];
    let length = (20 + 20 + payload.len()) as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    let tcp = [0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    let sent = frame(&[], [8, 0], &[&ip[..], &tcp, &payload].concat());
    let offload =
        Offload { checksum: Some((34, 16)), gso: Some(Gso { kind: GsoKind::Tcp4, size: 1448, headers: 14 + 20 + 20 }) };
    wire.tx.send_offloaded(&sent, offload).unwrap();
    assert_eq!(wire.rx.recv(SECOND).unwrap(), Some(Frame { bytes: sent, offload }));
}

#[test]
fn a_namespace_is_gone_after_a_panic_with_what_ran_in_it() {
    require!("a_namespace_is_gone_after_a_panic_with_what_ran_in_it"; Need::Namespaces);
    let (path, pid) = std::thread::spawn(|| {
        let host = Netns::new("panics").unwrap();
        let process = host.spawn("sleep 60").unwrap();
        let pid = process.pid().to_string();
        let inside = || host.ip(&format!("netns pids {}", host.name())).unwrap().lines().any(|line| line == pid);
        assert!(wait_until(SECOND, inside));
        let seen = (host.path(), process.pid());
        std::mem::forget(process);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _host = host;
            std::panic::resume_unwind(Box::new("on purpose"));
        }));
        assert!(caught.is_err());
        seen
    })
    .join()
    .unwrap();
    assert!(!path.exists());
    let stat = || std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    let ended = || stat().is_empty() || stat().contains(") Z");
    assert!(wait_until(SECOND, ended), "still runs: {}", stat());
}

#[test]
fn run_works_inside_the_namespace() {
    require!("run_works_inside_the_namespace"; Need::Namespaces);
    let host = Netns::new("inside").unwrap();
    host.ip("link add one type veth peer name two").unwrap();
    let inside = host.run(|| nix::net::if_::if_nametoindex("one").is_ok()).unwrap();
    assert!(inside && nix::net::if_::if_nametoindex("one").is_err());
    assert!(host.exec("ip -o link").unwrap().contains("one@two"));
}
