//! An existing device through a packet socket (`packet(7)`).

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::device::DeviceInfo;
use crate::{Buffer, Received, Tag, vnet};

/// A packet socket on one device, which it keeps promiscuous as long as it is open.
///
/// It sees what arrives at the device and not what the host sends there. What arrives is also seen by the host's own stack:
/// a device whose frames are to belong to the datapath alone should have no addresses.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

/// Bytes that the kernel may hold for us: some hundred super-packets.
const RECEIVE_BUFFER: libc::c_int = 16 << 20;

const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;

/// Room for one control message with a `tpacket_auxdata`, aligned as one.
type Control = [u64; 8];

impl PacketSocket {
    /// Opens a socket on `device`. Needs `CAP_NET_RAW`.
    pub fn open(device: &DeviceInfo) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Without a protocol it receives nothing until it is bound: no frame of another device gets in.
        // SAFETY: no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: a new descriptor that nothing else owns.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } };
        for option in [libc::PACKET_AUXDATA, libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
            socket.set(libc::SOL_PACKET, option, &1)?;
        }
        // Beyond the system's limit where we may.
        if socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER).is_err() {
            socket.set(libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER)?;
        }
        let membership = libc::packet_mreq {
            mr_ifindex: device.index.cast_signed(),
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        socket.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;

        // SAFETY: all-zero is a value of this plain C struct.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = device.index.cast_signed();
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: pointer and length are those of the live `address`.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), len) })?;
        Ok(socket)
    }

    /// Frames that came since this was last asked, and for which the socket had no room.
    pub fn overruns(&self) -> io::Result<u64> {
        // SAFETY: all-zero is a value of this plain C struct.
        let mut stats: libc::tpacket_stats = unsafe { zeroed() };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        let option = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
        let fd = self.fd.as_raw_fd();
        // SAFETY: pointer and length are those of the live `stats`, which is what the option gives.
        check(unsafe { libc::getsockopt(fd, option.0, option.1, (&raw mut stats).cast(), &raw mut len) })?;
        Ok(stats.tp_drops.into())
    }

    /// The next frame, `None` if there is none now.
    pub fn recv<'a>(&self, buffer: &'a mut Buffer) -> io::Result<Option<Received<'a>>> {
        let mut control: Control = [0; 8];
        let Some((len, has_control)) = self.recv_message(&mut buffer.0, &mut control)? else { return Ok(None) };
        let bytes = buffer.0.get(..len).unwrap_or_default();
        let Some((header, bytes)) = bytes.split_first_chunk() else { return Ok(None) };
        let header = vnet::Header::decode(header);
        Ok(Some(Received {
            bytes,
            vlan: if has_control { tag(&control) } else { None },
            gso_size: header.segment_size(),
            partial_checksum: header.needs_checksum(),
        }))
    }

    /// Bytes received and whether there is a control message. A frame that doesn't fit, or whose offloads can't be said, is
    /// skipped.
    fn recv_message(&self, buffer: &mut [u8], control: &mut Control) -> io::Result<Option<(usize, bool)>> {
        loop {
            let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            // SAFETY: all-zero is a value of this plain C struct.
            let mut message: libc::msghdr = unsafe { zeroed() };
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of::<Control>() as _;
            // SAFETY: the message points to live memory of the lengths that it says.
            let received = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, 0) };
            let cut_off = message.msg_flags & libc::MSG_TRUNC != 0;
            if received >= 0 && !cut_off && !is_fragmentation(buffer) {
                return Ok(Some((received.cast_unsigned(), message.msg_controllen > 0)));
            }
            if received < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    // `EINVAL`: segments of a kind that the header has no word for.
                    Some(libc::EINTR | libc::EINVAL) => {}
                    _ => return Err(error),
                }
            }
        }
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: pointer and length are those of the live `value`; the callers give each option the type that it wants.
        check(unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) })?;
        Ok(())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn is_fragmentation(buffer: &[u8]) -> bool {
    buffer.first_chunk().is_some_and(|header| vnet::Header::decode(header).is_fragmentation())
}

/// The VLAN tag in a control message, if there is one.
fn tag(control: &Control) -> Option<Tag> {
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    // `struct cmsghdr`: length, level, type; then `struct tpacket_auxdata`: status, len, snaplen, mac, net, tci, tpid.
    let header = size_of::<libc::cmsghdr>();
    let ours = word(header - 8)? == libc::SOL_PACKET.cast_unsigned()
        && word(header - 4)? == libc::PACKET_AUXDATA.cast_unsigned();
    let status = word(header)?;
    if !ours || status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tpid = if status & TP_STATUS_VLAN_TPID_VALID != 0 { half(header + 18)? } else { 0x8100 };
    Some(Tag { tpid, tci: half(header + 16)? })
}

pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
