//! Sending frames by any devices through packet sockets (`packet(7)`), many in one system call.

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

/// Packet sockets that receive nothing.
#[derive(Debug)]
pub struct PacketSender {
    /// For frames that are finished, which most are: it takes them without a header.
    plain: OwnedFd,
    /// For frames that devices are to finish.
    offload: OwnedFd,
}

/// No device has anything to finish.
const FINISHED: [u8; vnet::HEADER] = [0; vnet::HEADER];

impl PacketSender {
    /// Opens them for the devices of the caller's network namespace. Needs `CAP_NET_RAW`.
    pub fn open() -> io::Result<Self> {
        let sender = Self { plain: socket()?, offload: socket()? };
        set(&sender.offload, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        Ok(sender)
    }

    /// Sends frames from the first on, [`BATCH`] of them at most and none behind one that goes by the other socket, in their order, and
    /// waits for nothing. Says how many were sent; an error is that of the first one: its device is gone or down, has too much to send
    /// already, or an MTU that it is too long for.
    pub fn send(&self, frames: &[Outgoing<'_>]) -> io::Result<usize> {
        let Some(is_finished) = frames.first().map(Outgoing::is_finished) else { return Ok(0) };
        let others = frames.iter().take(BATCH).position(|frame| frame.is_finished() != is_finished);
        let frames = frames.get(..others.unwrap_or(BATCH)).unwrap_or(frames);
        let (socket, skipped) = if is_finished { (&self.plain, 1) } else { (&self.offload, 0) };
        if frames.len() <= FEW { send::<FEW>(socket, frames, skipped) } else { send::<BATCH>(socket, frames, skipped) }
    }
}

/// So many frames are sent without making place for more.
const FEW: usize = 4;

/// Sends at most `N` frames, without the first `skipped` of their two parts, header and data.
fn send<const N: usize>(socket: &OwnedFd, frames: &[Outgoing<'_>], skipped: usize) -> io::Result<usize> {
    // SAFETY: all-zero is a value of these plain C structs.
    let (mut messages, mut parts, mut addresses): ([libc::mmsghdr; N], [[libc::iovec; 2]; N], [libc::sockaddr_ll; N]) =
        unsafe { (zeroed(), zeroed(), zeroed()) };
    let frames = frames.get(..N).unwrap_or(frames);
    let part = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let rows = messages.iter_mut().zip(&mut parts).zip(&mut addresses);
    for (((message, parts), address), frame) in rows.zip(frames) {
        *parts = [part(&frame.header), part(frame.data)];
        let parts = parts.get_mut(skipped..).unwrap_or_default();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = frame.ifindex.cast_signed();
        message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
        message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_hdr.msg_iov = parts.as_mut_ptr();
        message.msg_hdr.msg_iovlen = parts.len() as _;
    }
    // SAFETY: the first `frames.len()` messages point to live headers, frames and addresses of the lengths they say, which the
    // kernel only reads; it writes to the messages themselves.
    let sent =
        check(unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), frames.len() as libc::c_uint, 0) })?;
    Ok(usize::try_from(sent).unwrap_or_default())
}

impl Outgoing<'_> {
    fn is_finished(&self) -> bool {
        self.header == FINISHED
    }
}

fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Without a protocol it gets no frames.
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Beyond the system's limit where we may.
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)
        .or_else(|_| set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER))?;
    Ok(socket)
}

fn set(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: pointer and length are those of the live `value`.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) })?;
    Ok(())
}
