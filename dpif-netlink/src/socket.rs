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
use nix::libc;
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

    /// The next datagrams, [`AT_ONCE`] of them and `most` at most; how many. Waits for none.
    #[allow(unsafe_code)]
    pub(crate) fn receive_many(&self, to: &mut Datagrams, most: usize) -> io::Result<usize> {
        to.lens.clear();
        // SAFETY: all-zero is a value of these plain C structs.
        let (mut messages, mut parts): ([libc::mmsghdr; AT_ONCE], [libc::iovec; AT_ONCE]) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let places = to.bytes.chunks_exact_mut(MAX_DATAGRAM);
        for ((message, part), place) in messages.iter_mut().zip(&mut parts).zip(places) {
            *part = libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
        }
        let (fd, most) = (self.inner.as_raw_fd(), most.min(AT_ONCE) as libc::c_uint);
        let received = retry(|| {
            // SAFETY: each message points to a part, each part to its own place of the buffer, all alive; there are `AT_ONCE` of them.
            let received = unsafe {
                libc::recvmmsg(
                    fd,
                    messages.as_mut_ptr(),
                    most,
                    libc::MSG_DONTWAIT | libc::MSG_TRUNC,
                    std::ptr::null_mut(),
                )
            };
            Errno::result(received)
        })?;
        let received = usize::try_from(received).unwrap_or_default();
        to.lens.extend(messages.iter().take(received).map(|message| message.msg_len as usize));
        Ok(received)
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

/// Datagrams that are received in one go.
pub(crate) const AT_ONCE: usize = 8;

/// Datagrams that were received, and room for the next.
pub(crate) struct Datagrams {
    bytes: Box<[u8]>,
    /// Of each that was received, however much of it there was room for.
    lens: Vec<usize>,
}

impl Default for Datagrams {
    fn default() -> Self {
        Self { bytes: vec![0; AT_ONCE * MAX_DATAGRAM].into(), lens: Vec::with_capacity(AT_ONCE) }
    }
}

impl Datagrams {
    /// Those that were received last; of one that was too long there is nothing.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(MAX_DATAGRAM).zip(&self.lens).map(|(place, len)| place.get(..*len).unwrap_or_default())
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
            let mut messages = Messages(self.socket.receive(&mut self.buffer, true)?);
            for message in messages.by_ref() {
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
            messages.whole()?;
        }
        Ok(())
    }

    /// Sends what is in `out`, a request for a dump with number `seq`, and calls `visit` with its messages until it says
    /// `false`. Says whether the dump was consistent and whether it was read to its end.
    pub(crate) fn dump(&mut self, seq: u32, mut visit: impl FnMut(Message<'_>) -> bool) -> io::Result<Dumped> {
        self.socket.send(self.out.bytes())?;
        let mut dumped = Dumped { consistent: true, whole: false };
        while dumped.take(self.socket.receive(&mut self.buffer, true)?, seq, &mut visit)? {}
        if !dumped.consistent {
            // Where that matters it is asked again; the flows that are missing are seen by the next round.
            coverage::inc!("netlink_dump_interrupted");
        }
        Ok(dumped)
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

impl Dumped {
    /// Takes what came in one datagram. Says whether more is to come.
    fn take(&mut self, bytes: &[u8], seq: u32, mut visit: impl FnMut(Message<'_>) -> bool) -> io::Result<bool> {
        let mut messages = Messages(bytes);
        for message in messages.by_ref().filter(|message| message.seq == seq) {
            self.consistent &= message.flags & F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE | NLMSG_ERROR => {
                    result(message.errno())?;
                    self.whole = true;
                    return Ok(false);
                }
                _ if !visit(message) => return Ok(false),
                _ => {}
            }
        }
        messages.whole()?;
        Ok(true)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{self, Target};

    #[test]
    fn datagrams_are_received_together_in_their_order() {
        /// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_NAME` (`linux/genetlink.h`): something that every kernel answers.
        const CONTROL: Target = Target { family: 16, version: 1, cmd: 3, flags: 0 };
        const NAME: u16 = 2;
        let socket = Socket::new().unwrap();
        let mut datagrams = Datagrams::default();
        let mut receive = |most| {
            let received = socket.receive_many(&mut datagrams, most);
            let seqs = datagrams.iter().map(|bytes| Messages(bytes).next().unwrap().seq).collect::<Vec<_>>();
            (received.map_err(|error| error.kind()), seqs)
        };
        assert_eq!(receive(AT_ONCE), (Err(io::ErrorKind::WouldBlock), vec![]));
        let sent = AT_ONCE as u32 + 3;
        for seq in 1..=sent {
            let mut out = Writer::default();
            let open = message::begin(&mut out, CONTROL, seq);
            out.put_str(NAME, "nlctrl");
            message::end(&mut out, open);
            socket.send(out.bytes()).unwrap();
        }
        assert_eq!(receive(2), (Ok(2), vec![1, 2]));
        assert_eq!(receive(100), (Ok(AT_ONCE), (3..sent).collect::<Vec<_>>()[..AT_ONCE].to_vec()));
        assert_eq!(receive(AT_ONCE), (Ok(1), vec![sent]));
        assert_eq!(receive(AT_ONCE), (Err(io::ErrorKind::WouldBlock), vec![]));
    }

    #[test]
    fn a_dump_says_whether_it_was_interrupted_and_whether_it_was_whole() {
        let message = |kind: u16, flags: u16, seq: u32, body: &[u8]| {
            let len = (message::NLMSG + body.len()) as u32;
            let head = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &seq.to_ne_bytes(), &[0; 4]];
            [&head.concat(), body].concat()
        };
        let data = |flags| message(30, flags, 7, &[0; 8]);
        let end = |flags| message(NLMSG_DONE, flags, 7, &[0; 4]);
        let other = message(30, F_DUMP_INTR, 6, &[0; 8]);
        for (datagrams, wanted) in [
            (vec![[data(0), data(0)].concat(), end(0)], (true, true, 2)),
            (vec![[data(0), other, data(0), end(0)].concat()], (true, true, 2)),
            (vec![data(F_DUMP_INTR), data(0), end(0)], (false, true, 2)),
            (vec![data(0), end(F_DUMP_INTR)], (false, true, 1)),
            // Whoever looks at it wants no more than four.
            (vec![data(0), data(0), data(0), data(0), data(F_DUMP_INTR), end(0)], (true, false, 4)),
        ] {
            let (mut dumped, mut seen) = (Dumped { consistent: true, whole: false }, 0);
            let mut visit = |_: Message<'_>| {
                seen += 1;
                seen < 4
            };
            let mut rest = datagrams.iter();
            while dumped.take(rest.next().unwrap(), 7, &mut visit).unwrap() {}
            assert_eq!((dumped.consistent, dumped.whole, seen), wanted);
        }
        let mut dumped = Dumped { consistent: true, whole: false };
        let refused = message(NLMSG_ERROR, 0, 7, &(-(Errno::ENODEV as i32)).to_ne_bytes());
        assert_eq!(dumped.take(&refused, 7, |_| true).unwrap_err().raw_os_error(), Some(Errno::ENODEV as i32));
        assert!(dumped.take(&end(0)[..18], 7, |_| true).is_err(), "cut off");
    }

    #[test]
    fn of_a_datagram_that_was_too_long_there_is_nothing() {
        let mut datagrams = Datagrams::default();
        datagrams.lens.extend([3, MAX_DATAGRAM + 1, MAX_DATAGRAM]);
        assert_eq!(datagrams.iter().map(<[u8]>::len).collect::<Vec<_>>(), [3, 0, MAX_DATAGRAM]);
    }
}
