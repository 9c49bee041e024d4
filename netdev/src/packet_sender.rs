//! Sending frames by any devices through one packet socket (`packet(7)`), many in one system call.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use crate::packet_socket::check;
use crate::vnet;

/// Frames of a system call at most.
pub const BATCH: usize = 32;
/// Bytes of frames that devices may still have to send.
const SEND_BUFFER: libc::c_int = 16 << 20;

/// A frame and the device that it is to leave by.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// `struct virtio_net_hdr`: what devices are to finish. Zeros: nothing.
    pub header: [u8; vnet::HEADER],
    /// The frame from its Ethernet header on.
    pub data: &'a [u8],
    /// The device's number.
    pub ifindex: u32,
}

/// A packet socket that receives nothing.
#[derive(Debug)]
pub struct PacketSender {
    socket: OwnedFd,
}

impl PacketSender {
    /// Opens one for the devices of the caller's network namespace. Needs `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Without a protocol it gets no frames.
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: a new descriptor that nothing else owns.
        let sender = Self { socket: unsafe { OwnedFd::from_raw_fd(fd) } };
        sender.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        // Beyond the system's limit where we may.
        sender
            .set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)
            .or_else(|_| sender.set(libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER))?;
        Ok(sender)
    }

    /// Sends the first [`BATCH`] of the frames, in their order, and waits for nothing. Says how many were sent; an error is that of
    /// the first one: its device is gone or down, has too much to send already, or an MTU that it is too long for.
    pub fn send(&self, frames: &[Outgoing<'_>]) -> io::Result<usize> {
        let frames = frames.get(..BATCH).unwrap_or(frames);
        // SAFETY: all-zero is a value of these plain C structs.
        let (mut messages, mut parts, mut addresses): (
            [libc::mmsghdr; BATCH],
            [[libc::iovec; 2]; BATCH],
            [libc::sockaddr_ll; BATCH],
        ) = unsafe { (zeroed(), zeroed(), zeroed()) };
        let part = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let rows = messages.iter_mut().zip(&mut parts).zip(&mut addresses);
        for (((message, parts), address), frame) in rows.zip(frames) {
            *parts = [part(&frame.header), part(frame.data)];
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = frame.ifindex.cast_signed();
            message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            message.msg_hdr.msg_iov = parts.as_mut_ptr();
            message.msg_hdr.msg_iovlen = parts.len() as _;
        }
        let fd = self.socket.as_raw_fd();
        // SAFETY: the first `frames.len()` messages point to live headers, frames and addresses of the lengths they say, which the
        // kernel only reads; it writes to the messages themselves.
        let sent = check(unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), frames.len() as libc::c_uint, 0) })?;
        Ok(usize::try_from(sent).unwrap_or_default())
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: pointer and length are those of the live `value`.
        check(unsafe { libc::setsockopt(self.socket.as_raw_fd(), level, option, (&raw const value).cast(), len) })?;
        Ok(())
    }
}
