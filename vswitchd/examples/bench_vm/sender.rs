//! The devices, and the neighbour who sends packets of new flows.

use std::io::{Error, Result};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use testkit::bpf::{Attached, Hook, Program};
use testkit::live::Generator;
use testkit::live::frames::{Flow, SMALL};
use testkit::{Netns, veth_pair};

use crate::table::{FIRST_PORT, LEN, frame};

/// Where packets come in.
pub(crate) const IN: &str = "v1";
/// Where they go out: a device that does nothing but count them.
pub(crate) const OUT: &str = "out0";
/// Where they go out that the XDP hook sends: a wire to a neighbour whose program drops them.
pub(crate) const OUT_XDP: &str = "v2";
/// The neighbours' ends of the wires.
pub(crate) const NEIGHBOUR: &str = "eth0";
const SINK: &str = "eth1";
/// Packets sent in one call.
const BATCH: usize = 64;

/// A namespace for the switch, and one for its neighbour.
pub(crate) struct Wires {
    pub(crate) switch: Netns,
    pub(crate) neighbour: Netns,
    socket: OwnedFd,
    bursts: Generator,
    _sink: Attached,
}

impl Wires {
    pub(crate) fn new() -> Result<Self> {
        let (switch, neighbour) = (Netns::new("switch")?, Netns::new("neighbour")?);
        switch.silence()?;
        neighbour.silence()?;
        veth_pair(&switch, IN, &neighbour, NEIGHBOUR)?;
        switch.ip(&format!("link add {OUT} type dummy"))?;
        switch.ip(&format!("link set {OUT} up"))?;
        veth_pair(&switch, OUT_XDP, &neighbour, SINK)?;
        let socket = neighbour.run(|| socket(NEIGHBOUR))??;
        let drop = Program::verdict(Hook::Xdp, Hook::Xdp.drop_verdict())?;
        let sink = neighbour.run(|| drop.attach(nix::net::if_::if_nametoindex(SINK)?))??;
        let first = neighbour.run(|| nix::net::if_::if_nametoindex(NEIGHBOUR))??;
        let bursts = Generator::new(&[Flow::number(FIRST_PORT.into(), SMALL)], first)?;
        Ok(Self { switch, neighbour, socket, bursts, _sink: sink })
    }

    /// Sends so many packets to [`FORWARD_XDP`](crate::table::FORWARD_XDP) in bursts, of which the wire takes all at once.
    pub(crate) fn send_bursts(&self, count: u32) -> Result<()> {
        self.neighbour.run(|| self.bursts.send(count))?
    }

    /// Packets that went out.
    pub(crate) fn sent_out(&self) -> Result<u64> {
        // Bytes and packets received come first, and six other counters, then bytes and packets sent.
        counter(&self.switch, OUT, 9)
    }

    /// Packets that came where the XDP hook sends them.
    pub(crate) fn sunk(&self) -> Result<u64> {
        counter(&self.neighbour, SINK, 1)
    }

    /// Sends packets to these destinations from these UDP ports, a batch at a time, and lets the switch work off each.
    pub(crate) fn send(&self, packets: impl Iterator<Item = ([u8; 4], u16)>, pause: Duration) -> Result<()> {
        let mut frames: Vec<[u8; LEN]> = packets.map(|(dst, port)| frame(dst, port)).collect();
        for batch in frames.chunks_mut(BATCH) {
            self.send_batch(batch)?;
            std::thread::sleep(pause);
        }
        Ok(())
    }

    fn send_batch(&self, frames: &mut [[u8; LEN]]) -> Result<()> {
        let part = |frame: &mut [u8; LEN]| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: LEN };
        let mut parts: Vec<_> = frames.iter_mut().map(part).collect();
        let message = |part: &mut libc::iovec| {
            // SAFETY: all-zero is a valid value of this plain C struct.
            let mut message: libc::mmsghdr = unsafe { zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        };
        let mut messages: Vec<_> = parts.iter_mut().map(message).collect();
        let len = messages.len() as u32;
        // SAFETY: the messages point to parts, the parts to frames, all alive.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), len, 0) };
        match u32::try_from(sent) {
            Err(_) => Err(Error::last_os_error()),
            Ok(sent) if sent == len => Ok(()),
            Ok(sent) => Err(Error::other(format!("{sent} of {len} packets sent"))),
        }
    }
}

/// A counter of a device, by its place in `/proc/net/dev`.
fn counter(netns: &Netns, device: &str, place: usize) -> Result<u64> {
    let devices = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = devices.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    let packets = line.and_then(|line| line.split_whitespace().nth(place)?.parse().ok());
    packets.ok_or_else(|| Error::other(format!("no packets of {device} in {devices}")))
}

/// A packet socket that sends by a device and receives nothing.
fn socket(device: &str) -> Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(device)?;
    // SAFETY: socket(2) takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call returned a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index.cast_signed();
    // SAFETY: pointer and length are those of the live `address`.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) })?;
    Ok(socket)
}

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}
