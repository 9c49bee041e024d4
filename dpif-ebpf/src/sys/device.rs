//! What network devices are asked by ioctl: TAP queues, offload flags. And the identity of a network namespace.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::check;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETSTEERINGEBPF: libc::Ioctl = 0x8004_54e0;
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
/// `ETH_FLAG_LRO`: packets that arrive are joined.
pub(crate) const FLAG_LRO: u32 = 1 << 15;
/// `ETH_FLAG_RXVLAN`: the outer VLAN tag is taken off frames that arrive.
pub(crate) const FLAG_RXVLAN: u32 = 1 << 8;
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Opens one more queue of the multi-queue TAP device `name`, or the first one of a new device if `name` holds a `%d`.
/// Each frame is preceded by a `struct virtio_net_hdr` of ten bytes. Returns the queue and the device's name.
pub(crate) fn tap_queue(name: &str) -> io::Result<(OwnedFd, String)> {
    // SAFETY: a literal path.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK) };
    check(fd)?;
    // SAFETY: a new descriptor that nothing else owns.
    let queue = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = request(name)?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes the live `request`.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    let name = request.ifr_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8(name).map(|name| (queue, name)).map_err(io::Error::other)
}

/// Lets `program` (a socket filter) choose the queue of what the device sends. Without one the device learns from each frame that
/// is written to it which queue its flow is to use, which takes longer than anything else that it does with the frame.
pub(crate) fn set_tap_steering(queue: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = program.as_raw_fd();
    // SAFETY: the kernel reads the live `program`.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETSTEERINGEBPF, &raw const program) }).map(drop)
}

/// Whether a feature of the device is on. A device that can't say doesn't have it.
pub(crate) fn flag(name: &str, flag: u32) -> io::Result<bool> {
    match ethtool(name, ETHTOOL_GFLAGS, 0) {
        Ok(flags) => Ok(flags & flag != 0),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Switches a feature.
pub(crate) fn set_flag(name: &str, flag: u32, on: bool) -> io::Result<()> {
    let flags = ethtool(name, ETHTOOL_GFLAGS, 0)?;
    let flags = if on { flags | flag } else { flags & !flag };
    ethtool(name, ETHTOOL_SFLAGS, flags).map(drop)
}

/// A number of the caller's network namespace that no other one ever has.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = datagram_socket()?;
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the pointers are to live variables of the given length.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    })?;
    Ok(cookie)
}

fn ethtool(name: &str, command: u32, data: u32) -> io::Result<u32> {
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let socket = datagram_socket()?;
    let mut value = Value { command, data };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads and writes the live `request` and the live `value` it points to.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(value.data)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero is a value of this plain C struct.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn datagram_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
