//! Network devices from userspace: what the in-process datapath has instead of a hook in the kernel.
//!
//! An existing device is read and written through a packet socket ([`PacketSocket`]), a device of our own is a TAP device
//! ([`Tap`]). Both speak in [`vnet`] headers: a frame may be a super-packet of up to 64 KiB whose checksum and segments the
//! kernel finishes on the way out, so that bulk traffic costs one pass through userspace for some forty frames of the wire.
//! [`device`] asks for and changes what a device is.
//!
//! The calls that the standard library and `nix` don't have are made here with `libc`; all unsafe code of the userspace
//! datapath is in this crate.

pub mod device;
pub mod packet_sender;
pub mod packet_socket;
pub mod schedule;
pub mod tap;
pub mod vnet;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

pub use device::DeviceInfo;
pub use packet_socket::PacketSocket;
pub use tap::Tap;

/// The largest frame that is read: 64 KiB of IP and what stands before it.
pub const MAX_FRAME: usize = 65_536 + 256;

/// Memory for one received frame, to be used again and again.
#[derive(Debug)]
pub struct Buffer(Box<[u8]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; vnet::HEADER + MAX_FRAME].into())
    }
}

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// Its bytes from the Ethernet header on.
    pub bytes: &'a [u8],
    /// The VLAN tag that is not in the bytes, host order.
    pub vlan: Option<Tag>,
    /// Segment size of a super-packet, else 0.
    pub gso_size: u16,
    /// The layer-4 checksum holds only the sum of the pseudo-header.
    pub partial_checksum: bool,
}

/// A VLAN tag, host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 or 0x88a8.
    pub tpid: u16,
    /// Priority, drop-eligible bit, VLAN id.
    pub tci: u16,
}

/// Either kind of device.
#[derive(Debug)]
pub enum Link {
    /// An existing device.
    Socket(PacketSocket),
    /// A device of our own.
    Tap(Tap),
}

impl Link {
    /// The next frame, `None` if there is none now. An error may be passing (`ENETDOWN`) or the end of the device.
    pub fn recv<'a>(&self, buffer: &'a mut Buffer) -> io::Result<Option<Received<'a>>> {
        match self {
            Self::Socket(socket) => socket.recv(buffer),
            Self::Tap(tap) => tap.recv(buffer),
        }
    }

    /// Frames that came since this was last asked, and that were lost because nobody took those before them. The kernel counts those
    /// of a device of our own as the device's.
    pub fn overruns(&self) -> io::Result<u64> {
        match self {
            Self::Socket(socket) => socket.overruns(),
            Self::Tap(_) => Ok(0),
        }
    }

    /// Sends a frame, its VLAN tags in the bytes. Doesn't wait: where there is no room the error is `WouldBlock`.
    pub fn send(&self, bytes: &[u8], gso_size: u16, partial_checksum: bool) -> io::Result<()> {
        let header = vnet::Header::of(bytes, gso_size, partial_checksum).encode();
        let parts = [io::IoSlice::new(&header), io::IoSlice::new(bytes)];
        let fd = self.as_fd();
        let sent = nix::sys::uio::writev(fd, &parts)?;
        if sent == header.len() + bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(socket) => socket.as_fd(),
            Self::Tap(tap) => tap.as_fd(),
        }
    }
}
