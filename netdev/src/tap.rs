//! A device of our own: a TAP device (`Documentation/networking/tuntap.rst` of the kernel).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::device::Request;
use crate::packet_socket::check;
use crate::{Buffer, Received, vnet};

/// A TAP device. It goes away when this is dropped.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

/// `TUNSETOFFLOAD`: what the host may leave to us.
const CSUM: libc::c_uint = 0x01;
const TSO4: libc::c_uint = 0x02;
const TSO6: libc::c_uint = 0x04;
const TSO_ECN: libc::c_uint = 0x08;
const USO4: libc::c_uint = 0x20;
const USO6: libc::c_uint = 0x40;

impl Tap {
    /// Makes a TAP device. Needs `CAP_NET_ADMIN`; `AlreadyExists` if a device has this name.
    pub fn create(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let mut request = Request::new(name)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
        request.0.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the call takes a `struct ifreq` with the flags set.
        unsafe { request.call(file.as_fd(), libc::TUNSETIFF as libc::c_ulong) }.map_err(exists)?;
        let header = vnet::HEADER as libc::c_int;
        // SAFETY: the call reads an int, which lives.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const header) })?;
        let base = CSUM | TSO4 | TSO6 | TSO_ECN;
        let set = |offload| {
            // SAFETY: the call takes its argument by value.
            check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, offload as libc::c_ulong) })
        };
        // Kernels before 6.2 don't know the segmentation of UDP.
        set(base | USO4 | USO6).or_else(|_| set(base))?;
        Ok(Self { name: request.name(), file })
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next frame that the host sends, `None` if there is none now.
    pub fn recv<'a>(&self, buffer: &'a mut Buffer) -> io::Result<Option<Received<'a>>> {
        let len = match (&self.file).read(&mut buffer.0) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = buffer.0.get(..len).unwrap_or_default();
        let Some((header, bytes)) = bytes.split_first_chunk() else { return Ok(None) };
        let header = vnet::Header::decode(header);
        let (gso_size, partial_checksum) = (header.segment_size(), header.needs_checksum());
        Ok(Some(Received { bytes, vlan: None, gso_size, partial_checksum }))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A name that is taken is `EBUSY` or, if by another kind of device, `EINVAL`.
fn exists(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EINVAL | libc::EEXIST) => io::Error::new(io::ErrorKind::AlreadyExists, error),
        _ => error,
    }
}
