//! Sending frames and counting what arrives.

use std::io::{self, Error};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use crate::cases::Case;
use crate::switches::Peer;
use testkit::live::{Counter, Generator, Wires};

/// For how long a turn sends.
const SAMPLE: Duration = Duration::from_millis(40);
/// Frames of a turn that are made in the kernel, at the least and at the most. It is one call: each has a fixed cost.
const LIVE_FRAMES: (f64, f64) = (16_384.0, 262_144.0);
/// Frames that are sent by a socket at a time.
const SOCKET_CALL: usize = 64;
/// How long a daemon may take to get its flows.
const TEACHING: Duration = Duration::from_secs(20);
/// How long frames may be on their way.
const LATE: Duration = Duration::from_secs(2);

/// What a turn has shown.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    /// Frames received in a second.
    pub(crate) rate: f64,
    /// The share of the sent ones that never came, in percent.
    pub(crate) lost: f64,
}

/// Sends a case's frames into a switch.
pub(crate) enum Sender {
    /// Made in the kernel by a program that is run on them.
    Live {
        generator: Generator,
        frames: u32,
    },
    Socket {
        socket: OwnedFd,
        frames: Vec<Vec<u8>>,
        next: usize,
    },
}

impl Sender {
    pub(crate) fn new(wires: &Wires, case: &Case) -> io::Result<Self> {
        if !case.by_socket {
            let generator = Generator::new(&case.flows, wires.left.device)?;
            return Ok(Self::Live { generator, frames: 4 * LIVE_FRAMES.0 as u32 });
        }
        let socket = wires.left.netns.run(|| packet_socket(wires.left.device))??;
        let frames =
            case.flows.iter().cycle().take(case.flows.len().max(SOCKET_CALL)).map(|flow| flow.frame()).collect();
        Ok(Self::Socket { socket, frames, next: 0 })
    }

    /// Sends up to `most` frames; how many.
    fn send(&mut self, most: u32) -> io::Result<u64> {
        match self {
            Self::Live { generator, .. } => {
                generator.send(most)?;
                Ok(most.into())
            }
            Self::Socket { socket, frames, next } => {
                let n = SOCKET_CALL.min(most as usize).min(frames.len() - *next);
                let sent = send_all(socket, &mut frames[*next..*next + n])?;
                *next = (*next + sent) % frames.len();
                Ok(sent as u64)
            }
        }
    }

    /// One turn of a peer.
    pub(crate) fn turn(&mut self, peer: &Peer, counter: &Counter) -> io::Result<Turn> {
        peer.active(true)?;
        let turn = peer.wires.left.netns.run(|| {
            pin();
            self.measure(peer, counter)
        })?;
        peer.active(false)?;
        turn
    }

    fn measure(&mut self, peer: &Peer, counter: &Counter) -> io::Result<Turn> {
        counter.reset()?;
        let mut sent = 0;
        if let Self::Live { frames, .. } = self {
            let frames = *frames;
            sent = self.send(frames)?;
        } else {
            let began = Instant::now();
            while began.elapsed() < SAMPLE {
                sent += self.send(u32::MAX)?;
            }
        }
        settle(counter)?;
        let turn =
            Turn { rate: counter.rate()?, lost: (100.0 * (1.0 - counter.frames()? as f64 / sent as f64)).max(0.0) };
        // A daemon is sent more than it can do, so its rate says nothing of how many that takes.
        if let Self::Live { frames, .. } = self
            && !peer.is_daemon()
        {
            *frames = (turn.rate * SAMPLE.as_secs_f64()).clamp(LIVE_FRAMES.0, LIVE_FRAMES.1) as u32;
        }
        Ok(turn)
    }
}

/// Waits until nothing arrives any more.
fn settle(counter: &Counter) -> io::Result<()> {
    let began = Instant::now();
    let mut last = counter.frames()?;
    while began.elapsed() < LATE {
        std::thread::sleep(Duration::from_millis(2));
        let now = counter.frames()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(())
}

/// Sends one frame of a case and compares what comes out with what must.
pub(crate) fn check(peer: &Peer, case: &Case, sender: &mut Sender) -> io::Result<()> {
    let receiver = peer.wires.right.socket()?;
    let Some(flow) = case.flows.first() else { return Ok(()) };
    let expected = (case.out)(flow.frame());
    peer.active(true)?;
    // The first one may make a daemon install its flow; the generator's flows come in turn.
    let mut seen = None;
    let deadline = Instant::now() + LATE;
    while seen.is_none() && Instant::now() < deadline {
        let n = case.flows.len().min(256) as u32;
        peer.wires.left.netns.run(|| sender.send(n))??;
        seen = receiver.recv_where(Duration::from_millis(100), |frame| frame.bytes == expected)?;
    }
    peer.active(false)?;
    if seen.is_some() {
        return Ok(());
    }
    let others = receiver.recv_all(Duration::from_millis(1))?;
    let text = others.last().map_or_else(|| "nothing".into(), |frame| format!("{:02x?}", frame.bytes));
    Err(Error::other(format!("{}: {} should come out as {expected:02x?}, but there was {text}", peer.id, case.id)))
}

/// Sends a case's frames until a daemon has all flows for them.
pub(crate) fn teach(peer: &Peer, case: &Case, sender: &mut Sender) -> io::Result<()> {
    const CALL: u32 = 256;
    let deadline = Instant::now() + TEACHING;
    peer.active(true)?;
    while !peer.has(case)? {
        if Instant::now() > deadline {
            return Err(Error::other(format!(
                "{} doesn't get all {} flows in {TEACHING:?}",
                peer.id,
                case.flows.len()
            )));
        }
        for _ in 0..64 {
            peer.wires.left.netns.run(|| sender.send(CALL))??;
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    peer.active(false)
}

/// Microseconds that single frames take, one after the other.
pub(crate) fn one_by_one(peer: &Peer, case: &Case, n: usize) -> io::Result<Vec<f64>> {
    let (sender, receiver) = (peer.wires.left.socket()?, peer.wires.right.socket()?);
    let Some(flow) = case.flows.first() else { return Ok(Vec::new()) };
    let frame = flow.frame();
    peer.active(true)?;
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        let began = Instant::now();
        sender.send(&frame)?;
        if receiver.recv_where(Duration::from_millis(200), |received| received.bytes.len() == frame.len())?.is_none() {
            return Err(Error::other(format!("{}: a frame that came alone was lost", peer.id)));
        }
        times.push(began.elapsed().as_nanos() as f64 / 1e3);
    }
    peer.active(false)?;
    Ok(times)
}

/// A packet socket that sends past the queueing discipline and receives nothing.
fn packet_socket(device: u32) -> io::Result<OwnedFd> {
    const PACKET_QDISC_BYPASS: libc::c_int = 20;
    // SAFETY: socket(2) takes no pointers.
    let fd = check_call(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the call returned a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (one, len): (libc::c_int, _) = (1, size_of::<libc::c_int>() as u32);
    // SAFETY: pointer and length are those of `one`.
    check_call(unsafe { libc::setsockopt(fd, libc::SOL_PACKET, PACKET_QDISC_BYPASS, (&raw const one).cast(), len) })?;
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = device.cast_signed();
    // SAFETY: pointer and length are those of the live `address`.
    check_call(unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) })?;
    Ok(socket)
}

/// Sends frames in one call; how many it took.
fn send_all(socket: &OwnedFd, frames: &mut [Vec<u8>]) -> io::Result<usize> {
    let mut parts: Vec<_> = frames
        .iter_mut()
        .map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() })
        .collect();
    let mut messages: Vec<_> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all-zero is a valid value of this plain C struct.
            let mut message: libc::mmsghdr = unsafe { zeroed() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
            message
        })
        .collect();
    // SAFETY: the messages point to parts, the parts to frames, all alive.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as u32, 0) };
    match usize::try_from(sent) {
        Ok(sent) => Ok(sent),
        // The device's queue is full.
        Err(_) if Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
        Err(_) => Err(Error::last_os_error()),
    }
}

fn check_call(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// This thread sends from the last CPU: the reference polls on the first.
fn pin() {
    let last = std::thread::available_parallelism().map_or(0, |n| n.get() - 1);
    let mut cpus = nix::sched::CpuSet::new();
    let pinned = cpus.set(last).and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus));
    if let Err(error) = pinned {
        eprintln!("can't run on CPU {last} only: {error}");
    }
}
