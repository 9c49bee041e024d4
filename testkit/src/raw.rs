//! Frames as a network card would see them: a packet socket that neither loses nor invents anything.
//!
//! A plain packet socket hides two things that matter to the test of a switch. The kernel takes the VLAN tag out of a
//! received frame and hands it over beside the bytes; here it is put back. And a frame may be unfinished, its checksum
//! still to be computed or its payload still to be cut into segments, as the local TCP leaves it to the card; here
//! that is told with the frame ([`Offload`]) and can be sent too, so that a test plays a stack with offloads.

use std::{
    cell::RefCell,
    io,
    mem::{size_of, zeroed},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Netns;

/// The largest frame: 64 KiB of IP and what stands before it.
const MAX_FRAME: usize = 65_536 + 256;
/// `struct virtio_net_hdr`, which stands before each frame of a socket with `PACKET_VNET_HDR`.
const VNET_HDR: usize = 10;
/// Bytes of the two MAC addresses, after which a VLAN tag stands.
const MACS: usize = 12;

const PACKET_AUXDATA: libc::c_int = 8;
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

const VNET_F_NEEDS_CSUM: u8 = 1;
const VNET_GSO_TCPV4: u8 = 1;
const VNET_GSO_UDP_L4: u8 = 5;
const VNET_GSO_TCPV6: u8 = 4;

/// A packet socket on one device.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
}

/// A frame from the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// From the Ethernet destination on, VLAN tags included, without a frame check sequence.
    pub bytes: Vec<u8>,
    /// What the sender has left to the card.
    pub offload: Offload,
}

/// Work on a frame that is left to the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The checksum still to be computed: from which byte of the frame on, and how far behind that byte its field is.
    /// The field holds the sum of the pseudo-header.
    pub checksum: Option<(u16, u16)>,
    /// The payload still to be cut into segments.
    pub gso: Option<Gso>,
}

/// How a super-packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// What kind of packet it is.
    pub kind: GsoKind,
    /// Payload bytes of each segment.
    pub size: u16,
    /// Bytes of all headers, the Ethernet header included.
    pub headers: u16,
}

/// The kinds of super-packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either, one datagram a segment.
    UdpL4,
    /// Any other, by its number in `virtio_net.h`.
    Other(u8),
}

impl RawSocket {
    /// Opens a socket on a device of a namespace.
    pub fn open(namespace: &Netns, device: &str) -> io::Result<Self> {
        namespace.run(|| Self::open_here(device))?
    }

    /// Opens a socket on a device of the caller's namespace.
    pub fn open_here(device: &str) -> io::Result<Self> {
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("packet socket on {device}: {error}"));
        Self::bind(device).map_err(failed)
    }

    fn bind(device: &str) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(device)?;
        // Without a protocol it receives nothing until it is bound: no frame of another device gets in.
        // SAFETY: socket(2) takes no pointers.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the call returned a new descriptor that nothing else owns.
        let socket = Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } };
        for option in [PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] {
            set_option(fd, libc::SOL_PACKET, option, 1)?;
        }
        // Room for some hundred super-packets; refused without the capability, which root has.
        set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20)?;

        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the pointer and length are those of the live `address`.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) })?;
        Ok(socket)
    }

    /// Sends a finished frame: Ethernet destination first, VLAN tags included, checksums right or wrong as they are.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.send_offloaded(frame, Offload::default())
    }

    /// Sends a frame as a local stack does that leaves work to the card.
    pub fn send_offloaded(&self, frame: &[u8], offload: Offload) -> io::Result<()> {
        let mut bytes = offload.to_header().to_vec();
        bytes.extend_from_slice(frame);
        // SAFETY: the pointer and length are those of the live `bytes`.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            let error = io::Error::last_os_error();
            return Err(io::Error::new(error.kind(), format!("can't send {} bytes: {error}", frame.len())));
        }
        Ok(())
    }

    /// The next frame that arrives at the device (what it sends itself is not seen); `None` if none does in time.
    pub fn recv(&self, timeout: Duration) -> io::Result<Option<Frame>> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a wait of under a millisecond is not a busy loop.
            let wait = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            let mut polled = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, wait) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match self.receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received.map(Some),
            }
        }
    }

    /// The next frame that `wanted` accepts; others are passed over. `None` if none comes in time.
    pub fn recv_where(&self, timeout: Duration, wanted: impl Fn(&Frame) -> bool) -> io::Result<Option<Frame>> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.recv(deadline.saturating_duration_since(Instant::now()))? {
                Some(frame) if !wanted(&frame) => {}
                result => return Ok(result),
            }
        }
    }

    /// All frames that have arrived already, and those that arrive until `quiet` has passed without one.
    pub fn recv_all(&self, quiet: Duration) -> io::Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.recv(quiet)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn receive(&self) -> io::Result<Frame> {
        thread_local! {
            // To make it for every frame costs more than the frame.
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; VNET_HDR + MAX_FRAME]);
        }
        BUFFER.with_borrow_mut(|buffer| self.receive_into(buffer))
    }

    fn receive_into(&self, bytes: &mut [u8]) -> io::Result<Frame> {
        // Aligned as `struct cmsghdr` asks for.
        let mut control = [0u64; 16];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: all pointers of `message` are to live buffers of the given lengths.
        let received = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        if received < 0 {
            return Err(io::Error::last_os_error());
        }
        if message.msg_flags & libc::MSG_TRUNC != 0 {
            return Err(io::Error::other(format!("a frame longer than {MAX_FRAME} bytes")));
        }
        let received = bytes.get(..received.cast_unsigned()).and_then(|bytes| bytes.split_first_chunk::<VNET_HDR>());
        let (header, bytes) = received.ok_or_else(|| io::Error::other("a frame without its offload header"))?;
        let mut frame = Frame { bytes: bytes.to_vec(), offload: Offload::from_header(*header) };
        if let Some(tag) = vlan_tag(&message) {
            frame.put_back(tag);
        }
        Ok(frame)
    }
}

impl Frame {
    /// Inserts the VLAN tag that the kernel took out, and moves the offsets behind it.
    fn put_back(&mut self, tag: [u8; 4]) {
        let at = MACS.min(self.bytes.len());
        self.bytes.splice(at..at, tag);
        if let Some((start, _)) = &mut self.offload.checksum {
            *start += 4;
        }
        if let Some(gso) = &mut self.offload.gso {
            gso.headers += 4;
        }
    }
}

impl Offload {
    fn to_header(self) -> [u8; VNET_HDR] {
        let mut header = [0; VNET_HDR];
        if let Some((start, offset)) = self.checksum {
            header[0] = VNET_F_NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_ne_bytes());
            header[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Some(gso) = self.gso {
            header[1] = gso.kind.number();
            header[2..4].copy_from_slice(&gso.headers.to_ne_bytes());
            header[4..6].copy_from_slice(&gso.size.to_ne_bytes());
        }
        header
    }

    fn from_header(header: [u8; VNET_HDR]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        Self {
            checksum: (header[0] & VNET_F_NEEDS_CSUM != 0).then(|| (word(6), word(8))),
            gso: (header[1] != 0).then(|| Gso {
                kind: GsoKind::from_number(header[1]),
                size: word(4),
                headers: word(2),
            }),
        }
    }
}

impl GsoKind {
    fn number(self) -> u8 {
        match self {
            Self::Tcp4 => VNET_GSO_TCPV4,
            Self::Tcp6 => VNET_GSO_TCPV6,
            Self::UdpL4 => VNET_GSO_UDP_L4,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            VNET_GSO_TCPV4 => Self::Tcp4,
            VNET_GSO_TCPV6 => Self::Tcp6,
            VNET_GSO_UDP_L4 => Self::UdpL4,
            other => Self::Other(other),
        }
    }
}

/// The tag (TPID, TCI) that the kernel hands over beside a frame.
fn vlan_tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: `message` was filled by recvmsg(2) and its control buffer is live.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return headers that lie wholly in the control buffer.
        let kind = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if kind == (libc::SOL_PACKET, PACKET_AUXDATA) {
            // SAFETY: the kernel wrote a `tpacket_auxdata` behind a header of this kind; it may be unaligned.
            let data: libc::tpacket_auxdata =
                unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            if data.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
                return None;
            }
            let tpid = if data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 { data.tp_vlan_tpid } else { 0x8100 };
            let (tpid, tci) = (tpid.to_be_bytes(), data.tp_vlan_tci.to_be_bytes());
            return Some([tpid[0], tpid[1], tci[0], tci[1]]);
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

fn set_option(fd: RawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer and length are those of the live `value`.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size_of_val(&value) as u32) })?;
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
