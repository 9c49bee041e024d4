//! The neighbour: sends packets of new flows and receives them again.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use testkit::{Netns, veth_pair};

/// The CPU that it runs on.
const CPU: usize = 0;
/// A packet that has not come after so long is lost.
const LOST: Duration = Duration::from_millis(100);
/// Packets sent or received in one call.
const BATCH: usize = 64;
/// Bytes of a packet.
const LEN: usize = 60;
/// Where the UDP source port, the destination port and the number of the packet are.
const PORTS: usize = 34;

/// The two ends of the wires, in a namespace of their own.
pub(crate) struct Wires {
    pub(crate) netns: Netns,
    pub(crate) send: &'static str,
    pub(crate) receive: &'static str,
}

impl Wires {
    /// Connects a new namespace for the neighbour with that of a switch, which calls its ends `v1` and `v2` too.
    pub(crate) fn to(switch: &Netns, name: &str) -> Self {
        let netns = Netns::new(name).expect("a network namespace");
        for namespace in [switch, &netns] {
            namespace.silence().expect("a quiet network namespace");
        }
        for name in ["v1", "v2"] {
            veth_pair(switch, name, &netns, name).expect("a wire");
        }
        Self { netns, send: "v1", receive: "v2" }
    }
}

/// What came of a run.
pub(crate) struct Run {
    pub(crate) received: u32,
    pub(crate) lost: u32,
    pub(crate) took: Duration,
}

pub(crate) struct Generator {
    send: OwnedFd,
    receive: OwnedFd,
    next: u32,
    frames: Vec<[u8; LEN]>,
}

impl Generator {
    pub(crate) fn new(wires: &Wires) -> Self {
        Self::between(&wires.netns, wires.send, wires.receive)
    }

    /// One that sends by one device of a namespace and receives by another.
    pub(crate) fn between(netns: &Netns, send: &str, receive: &str) -> Self {
        pin(CPU);
        let open = |device: &str, protocol: u16| {
            let open = || socket(device, protocol).unwrap_or_else(|error| panic!("{device}: {error}"));
            netns.run(open).expect("to enter the namespace")
        };
        let (send, receive) = (open(send, 0), open(receive, libc::ETH_P_IP as u16));
        Self { send, receive, next: 0, frames: vec![frame(); BATCH] }
    }

    /// Sends `n` packets of new flows, at most `window` of them on their way at a time.
    pub(crate) fn windowed(&mut self, n: u32, window: u32) -> Run {
        self.drain();
        let (mut sent, mut received, mut lost, began) = (0, 0, 0, Instant::now());
        let mut last = began;
        while received + lost < n {
            let in_flight = sent - received - lost;
            // In halves of a window, so that both sides have batches to work on.
            if sent < n && in_flight <= window / 2 {
                sent += self.send((window - in_flight).min(n - sent));
            }
            let got = self.receive();
            received += got;
            if got > 0 {
                last = Instant::now();
            } else if last.elapsed() > LOST {
                lost += in_flight;
                last = Instant::now();
            } else {
                yield_after(last);
            }
        }
        Run { received, lost, took: last - began }
    }

    /// Sends packets of new flows, each when the one before has come back. Says how long each took; 0.1 s for a lost one.
    pub(crate) fn one_by_one(&mut self, n: u32) -> Vec<Duration> {
        self.drain();
        let mut times = Vec::with_capacity(n as usize);
        for _ in 0..n {
            let began = Instant::now();
            self.send(1);
            while self.receive() == 0 && began.elapsed() < LOST {
                yield_after(began);
            }
            times.push(began.elapsed());
        }
        times
    }

    /// Sends packets of new flows at a steady rate per second.
    pub(crate) fn paced(&mut self, n: u32, rate: f64) -> Run {
        self.drain();
        let (mut sent, mut received, began) = (0, 0, Instant::now());
        let mut last = began;
        while received < n && last.elapsed() < LOST {
            let due = ((began.elapsed().as_secs_f64() * rate) as u32).min(n);
            if sent < due {
                sent += self.send((due - sent).min(BATCH as u32));
                last = Instant::now();
            }
            let got = self.receive();
            received += got;
            if got > 0 {
                last = Instant::now();
            } else {
                yield_after(last);
            }
        }
        Run { received, lost: n - received, took: last - began }
    }

    /// Sends packets of new flows and waits for none.
    pub(crate) fn fill(&mut self, n: u32) {
        let mut sent = 0;
        while sent < n {
            sent += self.send((n - sent).min(BATCH as u32));
        }
    }

    /// Receives until nothing has come for a moment. Says how many.
    pub(crate) fn drain(&mut self) -> u32 {
        let (mut n, mut last) = (0, Instant::now());
        while last.elapsed() < Duration::from_millis(5) {
            let got = self.receive();
            n += got;
            if got > 0 {
                last = Instant::now();
            }
        }
        n
    }

    fn send(&mut self, n: u32) -> u32 {
        let n = (n as usize).min(BATCH);
        for frame in self.frames.iter_mut().take(n) {
            self.next += 1;
            frame[PORTS..PORTS + 4].copy_from_slice(&self.next.to_be_bytes());
        }
        let mut parts: Vec<_> = self.frames.iter_mut().take(n).map(|frame| part(frame)).collect();
        let mut messages = messages(&mut parts);
        // SAFETY: the messages point to parts, the parts to frames, all alive.
        let sent = unsafe { libc::sendmmsg(self.send.as_raw_fd(), messages.as_mut_ptr(), n as u32, 0) };
        match sent {
            // The numbers of those that were not sent are used again.
            sent if sent >= 0 => {
                self.next -= n as u32 - sent as u32;
                sent as u32
            }
            _ => {
                self.next -= n as u32;
                0
            }
        }
    }

    fn receive(&mut self) -> u32 {
        let mut buffers = [[0u8; LEN]; BATCH];
        let mut parts: Vec<_> = buffers.iter_mut().map(|buffer| part(buffer)).collect();
        let mut messages = messages(&mut parts);
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: the messages point to parts, the parts to buffers, all alive; no timeout is given.
        let got = unsafe {
            libc::recvmmsg(self.receive.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, flags, std::ptr::null_mut())
        };
        let got = usize::try_from(got).unwrap_or(0);
        // Neighbour discovery and the like don't count.
        buffers.iter().take(got).filter(|frame| frame[..6] == DST && frame[23] == 17).count() as u32
    }
}

/// Lets the kernel's threads have the CPU where nothing has come for long.
fn yield_after(last: Instant) {
    if last.elapsed() > Duration::from_millis(2) {
        std::thread::sleep(Duration::from_micros(50));
    }
}

const DST: [u8; 6] = [0x50, 0x54, 0, 0, 0, 2];

/// An IPv4 UDP packet of 64 bytes with its check sequence.
fn frame() -> [u8; LEN] {
    let mut frame = [0; LEN];
    frame[..6].copy_from_slice(&DST);
    frame[6..12].copy_from_slice(&[0x50, 0x54, 0, 0, 0, 1]);
    frame[12..34].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0x66, 0xbd, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame[38..40].copy_from_slice(&26u16.to_be_bytes());
    frame
}

fn part(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

fn messages(parts: &mut [libc::iovec]) -> Vec<libc::mmsghdr> {
    parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all-zero is a valid value of this plain C struct.
            let mut message: libc::mmsghdr = unsafe { zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect()
}

/// A packet socket on a device, which receives frames of `protocol` (none for 0) that come in.
fn socket(device: &str, protocol: u16) -> io::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(device)?;
    // SAFETY: socket(2) takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call returned a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for (level, option, value) in
        [(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20), (libc::SOL_PACKET, 20 /* PACKET_QDISC_BYPASS */, 1)]
    {
        let (value, len): (libc::c_int, _) = (value, size_of::<libc::c_int>() as u32);
        // SAFETY: pointer and length are those of `value`.
        check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), len) })?;
    }
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: pointer and length are those of the live `address`.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) })?;
    Ok(socket)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Lets this thread, and those that it starts, run on one CPU.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        eprintln!("can't run on CPU {cpu} only: {error}");
    }
}
