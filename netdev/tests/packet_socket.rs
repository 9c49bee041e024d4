//! Packet sockets on real devices.

use netdev::device::Namespace;
use netdev::{Buffer, PacketSocket};
use testkit::{Need, Netns, RawSocket, require, veth_pair, wait_until};

#[test]
fn frames_that_the_socket_has_no_room_for_are_counted() {
    require!("frames_that_the_socket_has_no_room_for_are_counted"; Need::Namespaces);
    let (ours, theirs) = (Netns::new("ours").unwrap(), Netns::new("theirs").unwrap());
    ours.silence().unwrap();
    theirs.silence().unwrap();
    veth_pair(&theirs, "eth0", &ours, "v0").unwrap();
    let socket =
        ours.run(|| PacketSocket::open(&Namespace::current().unwrap().device("v0").unwrap()).unwrap()).unwrap();
    let sender = RawSocket::open(&theirs, "eth0").unwrap();

    let (mut sent, mut overruns) = (0, 0);
    let frame = [0xff; 1000];
    while overruns == 0 {
        assert!(sent < 1_000_000, "the socket holds them all");
        (0..1000).for_each(|_| sent += u64::from(sender.send(&frame).is_ok()));
        overruns += socket.overruns().unwrap();
    }
    let (mut received, mut buffer) = (0, Buffer::default());
    let all = wait_until(std::time::Duration::from_secs(10), || {
        while socket.recv(&mut buffer).unwrap().is_some() {
            received += 1;
        }
        overruns += socket.overruns().unwrap();
        received + overruns >= sent
    });
    assert!(all && received > 0, "{sent} sent, {received} received, {overruns} lost");
    assert_eq!(received + overruns, sent);
}
