//! A host with a datapath of its own: a network namespace, neighbours on wires, and pins that go with it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use dpif::{Action, Dpif, FlowKey, FlowPut, OdpPort, PortKind, PortSpec, PutMode, Ufid};
use dpif_ebpf::{EbpfDpif, Options};
use testkit::{Netns, RawSocket, veth_pair};

/// How long something that must come may take.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// How long is waited for something that must not come.
pub(crate) const QUIET: Duration = Duration::from_millis(200);

pub(crate) struct Host {
    pub(crate) netns: Netns,
    pub(crate) name: String,
    pub(crate) options: Options,
}

/// Pins apart from those of a real switch on the same machine, and few slots, not as many as a power of two.
pub(crate) fn options() -> Options {
    Options { bpffs: "/run/sluice-test/bpf".into(), slots: 5000, ..Options::default() }
}

/// A neighbour on a wire.
pub(crate) struct Neighbour {
    pub(crate) netns: Netns,
    pub(crate) socket: RawSocket,
}

impl Host {
    pub(crate) fn new(label: &str) -> Self {
        static REAP: Once = Once::new();
        REAP.call_once(remove_abandoned_pins);
        let netns = Netns::new(label).expect("a network namespace");
        netns.silence().expect("a quiet network namespace");
        // `slx-PID-N-LABEL`: unique, but longer than a datapath's name may be.
        let mut words = netns.name().split('-').skip(1);
        let name = format!("t{}-{}", words.next().unwrap_or_default(), words.next().unwrap_or_default());
        Self { netns, name, options: options() }
    }

    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).expect("to enter the namespace")
    }

    /// Opens the datapath in the host's namespace.
    pub(crate) fn open(&self) -> EbpfDpif {
        self.run(|| EbpfDpif::open(&self.name, &self.options)).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.options.bpffs.join(format!("sluice/v{}", datapath_common::maps::LAYOUT_VERSION)).join(&self.name)
    }

    pub(crate) fn assert_no_pins(&self) {
        assert!(!self.pins().exists(), "{} is left", self.pins().display());
    }

    /// So many devices are there but `lo`, as others had made them. A TAP device stays until everyone has closed it, also a child of
    /// another test that has not yet become the program that it is to be.
    pub(crate) fn assert_devices(&self, n: usize) {
        let devices = || self.netns.ip("-br link show").unwrap();
        let left = || devices().lines().count() == 1 + n && !devices().contains("PROMISC");
        assert!(testkit::wait_until(Duration::from_secs(5), left), "{}", devices());
    }

    /// A neighbour whose wire ends in device `device` of the host.
    pub(crate) fn neighbour(&self, device: &str) -> Neighbour {
        let netns = Netns::new(device).expect("a network namespace");
        netns.silence().expect("a quiet network namespace");
        veth_pair(&self.netns, device, &netns, "eth0").expect("a wire");
        let socket = RawSocket::open(&netns, "eth0").expect("a raw socket");
        Neighbour { netns, socket }
    }

    /// A flag of a device, as `ip link` shows them between angle brackets or beside.
    pub(crate) fn shows(&self, device: &str, what: &str) -> bool {
        self.netns.ip(&format!("-d link show dev {device}")).is_ok_and(|text| text.contains(what))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Whatever the test has left.
        remove_pins(&self.pins());
    }
}

fn remove_pins(folder: &Path) {
    for folder in [folder.join("links"), folder.to_owned()] {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        let _ = fs::remove_dir(folder);
    }
}

/// Removes the pins of test processes that were killed.
fn remove_abandoned_pins() {
    for entry in fs::read_dir(options().bpffs.join(format!("sluice/v{}", datapath_common::maps::LAYOUT_VERSION)))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix('t')?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_pins(&entry.path());
        }
    }
}

impl Neighbour {
    /// The next frame's bytes.
    pub(crate) fn recv(&self) -> Option<Vec<u8>> {
        self.socket.recv(SOON).expect("to receive").map(|frame| frame.bytes)
    }

    pub(crate) fn assert_quiet(&self) {
        let frame = self.socket.recv(QUIET).expect("to receive");
        assert!(frame.is_none(), "an unexpected frame: {frame:?}");
    }
}

pub(crate) fn system(name: &str) -> PortSpec {
    PortSpec { name: name.into(), kind: PortKind::System, request: None }
}

pub(crate) fn internal(name: &str) -> PortSpec {
    PortSpec { name: name.into(), kind: PortKind::Internal, request: None }
}

pub(crate) fn output(port: OdpPort) -> Action {
    Action::Output(port)
}

/// A flow of all packets of a port.
pub(crate) fn flow_of_port(port: OdpPort, actions: Vec<Action>) -> FlowPut {
    let (mut key, mut mask) = (FlowKey::ZERO, FlowKey::ZERO);
    key.in_port = port.0;
    mask.in_port = u32::MAX;
    FlowPut {
        mode: PutMode::CreateOrModify,
        ufid: Ufid(u128::from(port.0) << 64 | 1),
        key,
        mask,
        actions: actions.into(),
    }
}

/// A datapath whose port 1 is `left` and whose port 2 is `right`.
pub(crate) fn two_ports(host: &Host) -> (EbpfDpif, Neighbour, Neighbour) {
    let (left, right) = (host.neighbour("left"), host.neighbour("right"));
    let dpif = host.open();
    assert_eq!(dpif.port_add(&system("left")).unwrap(), OdpPort(1));
    assert_eq!(dpif.port_add(&system("right")).unwrap(), OdpPort(2));
    (dpif, left, right)
}

/// An Ethernet frame with a UDP packet: `len` bytes in all, checksum absent.
pub(crate) fn udp(len: usize, source_port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let ip = (len - 14) as u16;
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&ip.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(&source_port.to_be_bytes());
    frame.extend_from_slice(&[0, 53]);
    frame.extend_from_slice(&(ip - 20).to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend((frame.len()..len).map(|i| i as u8));
    frame
}

/// A TCP super-packet whose checksum field holds the pseudo-header's sum, as the local stack sends it.
pub(crate) fn tcp_super_packet(len: usize) -> Vec<u8> {
    let mut frame = udp(len, 1000);
    frame[23] = 6;
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[38..54].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = frame[26..34].to_vec();
    pseudo.extend_from_slice(&[0, 6]);
    pseudo.extend_from_slice(&((len - 34) as u16).to_be_bytes());
    let sum = !checksum(&pseudo);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    frame
}

pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Lets the other end of a neighbour's wire take frames that an XDP program redirects to it, or not.
pub(crate) fn takes_redirected(neighbour: &Neighbour, on: bool) {
    let state = if on { "on" } else { "off" };
    neighbour.netns.exec(&format!("ethtool -K eth0 gro {state}")).expect("to switch GRO");
}

/// Whether the kernel says which devices take redirected frames (Linux 6.3). Where it doesn't, a veth is sent none.
pub(crate) fn kernel_knows() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0u32));
    (numbers.next(), numbers.next()) >= (Some(6), Some(3))
}

/// Waits for upcalls of handler 0.
pub(crate) fn wait_for_upcalls(dpif: &EbpfDpif, batch: &mut dpif::UpcallBatch) -> usize {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let fd = dpif.recv_fd(0).unwrap();
    let mut wait = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut wait, PollTimeout::try_from(SOON).unwrap()).unwrap();
    dpif.recv(0, batch).unwrap()
}
