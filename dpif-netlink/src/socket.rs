//! Sockets and transactions.
//!
//! A request is answered by data messages, if it asks for any, and then by an acknowledgement, which says how it went. Many
//! requests can go in one send; the kernel runs them in order and answers each under its sequence number. Only the last asks to
//! be acknowledged: the kernel tells of each that fails, asked or not, so those before it that it says nothing of went well. An
//! answer that there is no room for is told by the socket, as `ENOBUFS`, and ends the transaction.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use neli::consts::socket::NlFamily;
use neli::socket::NlSocket;
use neli::utils::Groups;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use parking_lot::Mutex;

use crate::attr::Writer;
use crate::message::{F_DUMP_INTR, Message, Messages, NLMSG_DONE, NLMSG_ERROR};

/// Bytes that a socket may hold for us.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Longest datagram: a packet of 64 KiB with its attributes, or a page of a dump.
pub(crate) const MAX_DATAGRAM: usize = (64 << 10) + (16 << 10);

/// A netlink socket.
pub(crate) struct Socket {
    inner: NlSocket,
    pid: u32,
}

impl Socket {
    /// A socket of generic netlink that no multicast reaches.
    pub(crate) fn new() -> io::Result<Self> {
        Self::of(NlFamily::Generic)
    }

    fn of(family: NlFamily) -> io::Result<Self> {
        let inner = NlSocket::connect(family, None, Groups::empty())?;
        let pid = inner.pid()?;
        let socket = Self { inner, pid };
        // Past the system's limit where that is allowed.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        Ok(socket)
    }

    /// Hears a multicast group.
    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        self.inner.add_mcast_membership(Groups::new_groups(&[group]))
    }

    /// The number by which the kernel sends to it.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = retry(|| send(self.inner.as_raw_fd(), bytes, MsgFlags::empty()))?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("a message was sent in part")) }
    }

    /// The next datagram; waits for one unless told not to.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut [u8], wait: bool) -> io::Result<&'a [u8]> {
        let flags = if wait { MsgFlags::MSG_TRUNC } else { MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT };
        let len = retry(|| recv(self.inner.as_raw_fd(), buffer, flags))?;
        buffer.get(..len).ok_or_else(|| io::Error::other(format!("a datagram of {len} bytes")))
    }

    /// Throws away the datagrams that are there, and says how many.
    pub(crate) fn drain(&self) -> u64 {
        let (mut buffer, mut count) = ([0; 64], 0);
        loop {
            match self.receive(&mut buffer, false) {
                Ok(_) => count += 1,
                // It was longer than the buffer.
                Err(error) if error.raw_os_error().is_none() => count += 1,
                // What did not fit is the kernel's to count.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {}
                Err(_) => return count,
            }
        }
    }
}

impl AsFd for Socket {
    #[allow(unsafe_code)]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `inner` owns the descriptor and closes it when dropped, which the borrow of `self` rules out.
        unsafe { BorrowedFd::borrow_raw(self.inner.as_raw_fd()) }
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// A socket for requests, with its buffers.
pub(crate) struct Channel {
    socket: Socket,
    seq: u32,
    /// Requests to send.
    pub(crate) out: Writer,
    buffer: Vec<u8>,
}

impl Channel {
    fn new(family: NlFamily) -> io::Result<Self> {
        Ok(Self { socket: Socket::of(family)?, seq: 0, out: Writer::default(), buffer: vec![0; MAX_DATAGRAM] })
    }

    /// A sequence number for the next request.
    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// The sequence number that was given last.
    pub(crate) fn seq(&self) -> u32 {
        self.seq
    }

    /// Sequence numbers for so many requests: the first, from which on they go up by one.
    pub(crate) fn next_seqs(&mut self, count: u32) -> u32 {
        let first = self.seq.wrapping_add(1);
        self.seq = self.seq.wrapping_add(count);
        first
    }

    /// Sends what is in `out`: `count` requests, the last of which asks for an acknowledgement, numbered on from `first`. Calls
    /// `visit` with the index of a request and what came of it, in order: data messages, and how each ended.
    pub(crate) fn transact(
        &mut self,
        first: u32,
        count: u32,
        mut visit: impl FnMut(u32, Answer<'_>),
    ) -> io::Result<()> {
        if self.out.is_too_long() {
            return Err(Errno::EMSGSIZE.into());
        }
        self.socket.send(self.out.bytes())?;
        let mut open = 0;
        while open < count {
            let bytes = self.socket.receive(&mut self.buffer, true)?;
            for message in Messages(bytes) {
                let index = message.seq.wrapping_sub(first);
                // An answer to an earlier request that was given up.
                if index >= count {
                    continue;
                }
                while open < index {
                    visit(open, Answer::End(Ok(())));
                    open += 1;
                }
                if message.kind == NLMSG_ERROR {
                    visit(index, Answer::End(result(message.errno())));
                    open = index + 1;
                } else {
                    visit(index, Answer::Data(message));
                }
            }
        }
        Ok(())
    }

    /// Sends what is in `out`, a request for a dump with number `seq`, and calls `visit` with its messages until it says
    /// `false`. Says whether the dump was consistent and whether it was read to its end.
    pub(crate) fn dump(&mut self, seq: u32, mut visit: impl FnMut(Message<'_>) -> bool) -> io::Result<Dumped> {
        self.socket.send(self.out.bytes())?;
        let mut dumped = Dumped { consistent: true, whole: true };
        loop {
            let bytes = self.socket.receive(&mut self.buffer, true)?;
            for message in Messages(bytes).filter(|message| message.seq == seq) {
                dumped.consistent &= message.flags & F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        result(message.errno())?;
                        return Ok(dumped);
                    }
                    _ if !visit(message) => return Ok(Dumped { whole: false, ..dumped }),
                    _ => {}
                }
            }
        }
    }
}

/// What the kernel says of a request.
pub(crate) enum Answer<'a> {
    /// Something that was asked for.
    Data(Message<'a>),
    /// It is done.
    End(Result<(), Errno>),
}

/// How a dump went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dumped {
    /// Nothing changed meanwhile.
    pub(crate) consistent: bool,
    /// It was read to its end.
    pub(crate) whole: bool,
}

fn result(errno: i32) -> Result<(), Errno> {
    if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno)) }
}

/// Channels that are not in use. Each request takes one, so that requests of many threads, and those from within a dump, don't
/// wait for each other.
pub(crate) struct Pool {
    family: NlFamily,
    free: Mutex<Vec<Channel>>,
}

impl Pool {
    /// No channels yet of this protocol.
    pub(crate) fn of(family: NlFamily) -> Self {
        Self { family, free: Mutex::default() }
    }

    /// Runs `work` with a channel whose `out` is empty. One that failed may still get answers: it is not used again.
    pub(crate) fn with<T, E: From<io::Error>>(
        &self,
        work: impl FnOnce(&mut Channel) -> Result<(T, bool), E>,
    ) -> Result<T, E> {
        let free = self.free.lock().pop();
        let mut channel = match free {
            Some(channel) => channel,
            None => Channel::new(self.family)?,
        };
        channel.out.clear();
        let (value, clean) = work(&mut channel)?;
        if clean {
            self.free.lock().push(channel);
        }
        Ok(value)
    }
}
