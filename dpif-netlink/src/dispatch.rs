//! Which socket an upcall goes to, and how handlers read theirs.
//!
//! | mode | sockets | since |
//! | --- | --- | --- |
//! | [`DispatchMode::PerCpu`] | one per handler; the kernel chooses by the CPU that it runs on | Linux 5.15 |
//! | [`DispatchMode::PerPort`] | one per port, in every handler's epoll; the kernel wakes one handler (`EPOLLEXCLUSIVE`) | 4.5 |
//! | [`DispatchMode::PerPortHandler`] | one per port and handler; the kernel chooses by the packet's hash | 3.17 |
//!
//! In the last two a storm on one port fills that port's sockets only; in the first the packets of one flow, which one CPU
//! handles, are never read by two handlers. A socket that overflows loses upcalls; the next read of it says so, is counted, and
//! reading goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dpif::{DpifError, OdpPort, Result, UpcallBatch};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, clock_gettime};
use parking_lot::{Mutex, RwLock};

use crate::error;
use crate::message::Messages;
use crate::packet::{self, NoUpcall, Origin};
use crate::socket::{AT_ONCE, Datagrams, Socket};

/// Most handlers of a datapath.
pub const MAX_HANDLERS: usize = 64;
/// Reads in one go that give no upcall before a handler returns to its caller.
const READ_TRIES: usize = 50;
/// Sockets that one look at an epoll names.
const EVENTS: usize = 64;
/// What stands for a handler's own socket where others are ports'.
const OWN: u64 = u64::MAX;
/// Between two reports that a socket overflowed.
const BETWEEN_REPORTS: Duration = Duration::from_secs(1);
/// A socket that nobody has: what is sent to it counts as lost.
pub(crate) const NOBODY: u32 = u32::MAX;

/// How upcalls are spread over handlers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DispatchMode {
    /// By the CPU.
    PerCpu,
    /// By the port; handlers share a port's socket.
    PerPort,
    /// By the port and the packet's hash.
    PerPortHandler,
}

/// Upcalls that a socket had no room for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Overflow {
    /// The handler that found out.
    pub handler: u32,
    /// Whose socket it was; `None` for that of a handler.
    pub port: Option<OdpPort>,
}

/// How often a socket overflowed.
#[derive(Default)]
struct Overflowed {
    times: u64,
    /// When that was last reported, and how often it had been then.
    told: Option<Instant>,
    told_times: u64,
}

/// A port's sockets: one per handler, or one for all.
pub(crate) type PortSockets = Box<[Arc<Socket>]>;

/// The sockets and the handlers that read them.
pub(crate) struct Dispatch {
    mode: DispatchMode,
    from: Origin,
    n: AtomicU32,
    handlers: [OnceLock<Handler>; MAX_HANDLERS],
    /// By port number.
    ports: RwLock<Vec<Option<PortSockets>>>,
    /// Ports' sockets that are no more, and that flows may name.
    gone: Mutex<BTreeSet<u32>>,
    overflows: Mutex<BTreeMap<Overflow, Overflowed>>,
    /// Datagrams that are no upcalls that can be read.
    unreadable: AtomicU64,
    /// Datagrams that nobody reads: their handler or their port is gone.
    discarded: AtomicU64,
}

/// Sockets that nobody is to read any more. When it is dropped, what is in them is counted, so that has to be after the kernel was
/// told to send there no more. A processor that was about to send may still do so then: it is waited for.
#[must_use = "what is in the sockets is counted as discarded when this is dropped"]
pub(crate) struct Retired<'a> {
    discarded: &'a AtomicU64,
    sockets: Vec<Arc<Socket>>,
}

impl Retired<'_> {
    /// Takes over what another has.
    pub(crate) fn merge(&mut self, mut other: Self) {
        self.sockets.append(&mut other.sockets);
    }
}

impl Drop for Retired<'_> {
    fn drop(&mut self) {
        if !self.sockets.is_empty() {
            grace_period();
            count_left(&self.sockets, self.discarded);
        }
    }
}

/// Counts what is in sockets that nobody sends to.
fn count_left(sockets: &[Arc<Socket>], discarded: &AtomicU64) {
    let left: u64 = sockets.iter().map(|socket| socket.drain()).sum();
    discarded.fetch_add(left, Ordering::Relaxed);
}

/// Waits until every packet that was on its way through the kernel has left it. A machine that refuses (`nohz_full`) may lose the
/// count of such a packet.
#[allow(unsafe_code)]
fn grace_period() {
    /// `MEMBARRIER_CMD_GLOBAL` (`linux/membarrier.h`), which waits as RCU does.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: a call without pointers, which changes nothing.
    unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
}

struct Handler {
    epoll: Epoll,
    reader: Mutex<Reader>,
}

struct Reader {
    /// Per CPU: the handler's socket.
    own: Option<Arc<Socket>>,
    datagrams: Datagrams,
    events: [EpollEvent; EVENTS],
    /// Those of `events` that are to be looked at.
    ready: std::ops::Range<usize>,
    /// Since when those may have waited that come next, as far as that is known: the last batch was full, so they were behind it.
    /// Else 0. The kernel doesn't say when it queued them.
    since_ns: u64,
}

impl Dispatch {
    pub(crate) fn new(mode: DispatchMode, from: Origin) -> Self {
        Self {
            mode,
            from,
            n: AtomicU32::new(0),
            handlers: [const { OnceLock::new() }; MAX_HANDLERS],
            ports: RwLock::default(),
            gone: Mutex::default(),
            overflows: Mutex::default(),
            unreadable: AtomicU64::new(0),
            discarded: AtomicU64::new(0),
        }
    }

    pub(crate) fn mode(&self) -> DispatchMode {
        self.mode
    }

    pub(crate) fn overflows(&self) -> Vec<(Overflow, u64)> {
        self.overflows.lock().iter().map(|(overflow, seen)| (*overflow, seen.times)).collect()
    }

    pub(crate) fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    pub(crate) fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// The numbers of ports' sockets that are no more since the last call.
    pub(crate) fn take_gone(&self) -> BTreeSet<u32> {
        std::mem::take(&mut self.gone.lock())
    }

    /// Sockets that are to be counted when the kernel knows.
    pub(crate) fn retire(&self, sockets: Vec<Arc<Socket>>) -> Retired<'_> {
        Retired { discarded: &self.discarded, sockets }
    }

    /// Sets the number of handlers. Sockets that are still wanted stay, with the upcalls that wait in them. Returns the numbers of
    /// the handlers' sockets (per CPU), and those that go.
    pub(crate) fn set_handlers(&self, n: u32) -> Result<(Vec<u32>, Retired<'_>)> {
        if n as usize > MAX_HANDLERS {
            return Err(DpifError::Invalid(format!("{n} handlers: a datapath has at most {MAX_HANDLERS}")));
        }
        let (mut pids, mut retired) = (Vec::new(), Vec::new());
        for (number, place) in self.handlers.iter().enumerate() {
            let wanted = number < n as usize;
            let handler = match place.get() {
                Some(handler) => handler,
                None if wanted => {
                    let made = Handler::new().map_err(|error| error::io(error, || "can't make a handler".into()))?;
                    place.get_or_init(|| made)
                }
                None => continue,
            };
            let mut reader = handler.reader.lock();
            reader.ready = 0..0;
            if !wanted || self.mode != DispatchMode::PerCpu {
                retired.extend(reader.own.take());
                continue;
            }
            let socket = match reader.own.take() {
                Some(socket) => socket,
                None => {
                    let socket = Arc::new(new_socket()?);
                    handler.watch(&socket, OWN, EpollFlags::EPOLLIN)?;
                    socket
                }
            };
            pids.push(socket.pid());
            reader.own = Some(socket);
        }
        self.n.store(n, Ordering::SeqCst);
        Ok((pids, self.retire(retired)))
    }

    /// Sockets for a port with the handlers that there are now, and their numbers: those that it has, as far as they are wanted,
    /// and new ones. The others go.
    pub(crate) fn sockets_for_known_port(&self, port: OdpPort) -> Result<(PortSockets, Vec<u32>, Retired<'_>)> {
        let mut ports = self.ports.write();
        let had = ports.get_mut(port.0 as usize).and_then(Option::take).unwrap_or_default();
        drop(ports);
        for handler in self.handlers.iter().filter_map(OnceLock::get) {
            had.iter().for_each(|socket| handler.forget(socket));
        }
        let mut sockets = had.into_vec();
        let retired = self.retire(sockets.split_off(sockets.len().min(self.sockets_of_a_port())));
        self.gone.lock().extend(retired.sockets.iter().map(|socket| socket.pid()));
        while sockets.len() < self.sockets_of_a_port() {
            sockets.push(Arc::new(new_socket()?));
        }
        let pids = sockets.iter().map(|socket| socket.pid()).collect();
        Ok((sockets.into(), pids, retired))
    }

    /// Sockets for a port that is to come, and their numbers. There are none without handlers, or where CPUs choose.
    pub(crate) fn sockets_for_port(&self) -> Result<(PortSockets, Vec<u32>)> {
        let count = self.sockets_of_a_port();
        let sockets = (0..count).map(|_| new_socket().map(Arc::new)).collect::<Result<PortSockets>>()?;
        let pids = sockets.iter().map(|socket| socket.pid()).collect();
        Ok((sockets, pids))
    }

    fn sockets_of_a_port(&self) -> usize {
        let n = self.n.load(Ordering::SeqCst) as usize;
        match self.mode {
            DispatchMode::PerCpu => 0,
            DispatchMode::PerPort => n.min(1),
            // The kernel refuses more sockets of a port than there are CPUs; handlers past that get nothing.
            DispatchMode::PerPortHandler => n.min(possible_cpus()),
        }
    }

    /// Handlers read these sockets as the port's from now on.
    pub(crate) fn watch_port(&self, port: OdpPort, sockets: PortSockets) -> Result<()> {
        if sockets.is_empty() {
            return Ok(());
        }
        let handlers = self.handlers.iter().take(self.n.load(Ordering::SeqCst) as usize);
        for (number, handler) in handlers.filter_map(OnceLock::get).enumerate() {
            match self.mode {
                DispatchMode::PerCpu => {}
                DispatchMode::PerPort => {
                    if let Some(socket) = sockets.first() {
                        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
                        handler.watch(socket, port.0.into(), flags)?;
                    }
                }
                DispatchMode::PerPortHandler => {
                    if let Some(socket) = sockets.get(number) {
                        handler.watch(socket, port.0.into(), EpollFlags::EPOLLIN)?;
                    }
                }
            }
        }
        let mut ports = self.ports.write();
        let index = port.0 as usize;
        if ports.len() <= index {
            ports.resize_with(index + 1, || None);
        }
        if let Some(place) = ports.get_mut(index) {
            *place = Some(sockets);
        }
        Ok(())
    }

    /// A port is gone, and what was not read of it.
    pub(crate) fn forget_port(&self, port: OdpPort) {
        let had = self.ports.write().get_mut(port.0 as usize).and_then(Option::take).unwrap_or_default();
        // The kernel has waited for its packets itself.
        count_left(&had, &self.discarded);
    }

    /// The socket that a userspace action of a packet of this port should name. It has to be a number, also where the kernel
    /// chooses by itself.
    pub(crate) fn pid_of(&self, port: u32) -> u32 {
        let ports = self.ports.read();
        let sockets = ports.get(port as usize).or_else(|| ports.first()).and_then(Option::as_ref);
        let socket = sockets.and_then(|sockets| sockets.get(port as usize % sockets.len().max(1)));
        socket.map_or(NOBODY, |socket| socket.pid())
    }

    /// Receives until the batch is full or nothing is left.
    pub(crate) fn recv(&self, number: u32, batch: &mut UpcallBatch) -> Result<usize> {
        batch.clear();
        let handler = self.handler(number)?;
        let mut guard = handler.reader.lock();
        let reader = &mut *guard;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64);
        let arrival = if reader.since_ns == 0 { now } else { reader.since_ns };
        let mut tries = 0;
        while tries < READ_TRIES && !batch.is_full() {
            // What has become ready meanwhile waits until this is answered: the caller comes back.
            if reader.ready.is_empty() && !batch.upcalls().is_empty() {
                break;
            }
            let Some(data) = handler.next_ready(reader)? else { break };
            let Some(socket) = self.socket(number, data, reader) else { continue };
            let pid = if self.mode == DispatchMode::PerCpu { socket.pid() } else { 0 };
            let from = Origin { pid, ..self.from };
            while tries < READ_TRIES && !batch.is_full() {
                let wanted = UpcallBatch::MAX - batch.upcalls().len();
                match socket.receive_many(&mut reader.datagrams, wanted) {
                    Ok(received) => {
                        tries +=
                            reader.datagrams.iter().filter(|bytes| !self.take(bytes, from, arrival, batch)).count();
                        // It had no more.
                        if received < wanted.min(AT_ONCE) {
                            break;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                        self.overflowed(number, data);
                        tries += 1;
                    }
                    Err(error) => return Err(error::io(error, || format!("handler {number} can't read upcalls"))),
                }
            }
            // The batch is full or the tries are used up. What is left here waits until the other sockets that are ready have had
            // their turn: a storm on one port doesn't keep the rest from being read.
        }
        reader.since_ns = if batch.is_full() { arrival } else { 0 };
        Ok(batch.upcalls().len())
    }

    /// Reads a datagram into the batch. `false`: it is no upcall.
    fn take(&self, bytes: &[u8], from: Origin, arrival_ns: u64, batch: &mut UpcallBatch) -> bool {
        let Some(slot) = batch.next_slot() else { return false };
        let read = Messages(bytes).next().ok_or(NoUpcall::Unreadable);
        let Err(why) = read.and_then(|message| packet::receive(&message, from, arrival_ns, slot)) else {
            return true;
        };
        batch.cancel_slot();
        if why == NoUpcall::Unreadable {
            self.unreadable.fetch_add(1, Ordering::Relaxed);
        }
        false
    }

    /// Throws away what a handler has not received.
    pub(crate) fn purge(&self, number: u32) -> Result<usize> {
        let mut batch = UpcallBatch::default();
        let mut purged = 0;
        loop {
            match self.recv(number, &mut batch)? {
                0 => {
                    self.discarded.fetch_add(purged as u64, Ordering::Relaxed);
                    return Ok(purged);
                }
                n => purged += n,
            }
        }
    }

    pub(crate) fn fd(&self, number: u32) -> Result<BorrowedFd<'_>> {
        Ok(self.handler(number)?.epoll.0.as_fd())
    }

    fn handler(&self, number: u32) -> Result<&Handler> {
        let there = number < self.n.load(Ordering::SeqCst);
        let handler = self.handlers.get(number as usize).filter(|_| there).and_then(OnceLock::get);
        handler.ok_or_else(|| DpifError::Invalid(format!("there is no handler {number}")))
    }

    fn socket(&self, number: u32, data: u64, reader: &Reader) -> Option<Arc<Socket>> {
        if data == OWN {
            return reader.own.clone();
        }
        let ports = self.ports.read();
        let sockets = ports.get(usize::try_from(data).ok()?)?.as_ref()?;
        let index = if self.mode == DispatchMode::PerPort { 0 } else { number as usize };
        sockets.get(index).cloned()
    }

    fn overflowed(&self, handler: u32, data: u64) {
        let port = u32::try_from(data).ok().map(OdpPort);
        let mut overflows = self.overflows.lock();
        let seen = overflows.entry(Overflow { handler, port }).or_default();
        seen.times += 1;
        // A storm overflows a socket as often as it is read.
        if seen.told.is_some_and(|told| told.elapsed() < BETWEEN_REPORTS) {
            return;
        }
        let times = seen.times - seen.told_times;
        (seen.told, seen.told_times) = (Some(Instant::now()), seen.times);
        let of = port.map_or_else(String::new, |port| format!(" of port {port}"));
        tracing::warn!("handler {handler}: its socket{of} overflowed, upcalls are lost (times: {times})");
    }
}

impl Handler {
    fn new() -> io::Result<Self> {
        let (datagrams, events) = (Datagrams::default(), [EpollEvent::empty(); EVENTS]);
        let reader = Reader { own: None, datagrams, events, ready: 0..0, since_ns: 0 };
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, reader: Mutex::new(reader) })
    }

    fn watch(&self, socket: &Socket, data: u64, flags: EpollFlags) -> Result<()> {
        let added = self.epoll.add(socket, EpollEvent::new(flags, data));
        added.map_err(|errno| error::of(errno, || "can't watch a socket".into()))
    }

    /// A socket that was not watched is fine.
    fn forget(&self, socket: &Socket) {
        let _ = self.epoll.delete(socket);
    }

    /// What the next socket with upcalls is of; asks anew where all that were known have been looked at.
    fn next_ready(&self, reader: &mut Reader) -> Result<Option<u64>> {
        if reader.ready.is_empty() {
            let ready = match self.epoll.wait(&mut reader.events, EpollTimeout::ZERO) {
                Err(Errno::EINTR) => 0,
                ready => ready.map_err(|errno| error::of(errno, || "can't wait for upcalls".into()))?,
            };
            reader.ready = 0..ready;
        }
        let next = reader.ready.next();
        Ok(next.and_then(|at| reader.events.get(at)).map(EpollEvent::data))
    }
}

/// CPUs that there may ever be: the kernel asks for a socket by a CPU's number.
pub(crate) fn possible_cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    let online = || std::thread::available_parallelism().map_or(1, usize::from);
    last.map_or_else(online, |last| last + 1)
}

fn new_socket() -> Result<Socket> {
    Socket::new().map_err(|error| error::io(error, || "can't make a socket for upcalls".into()))
}
