//! What a network device is, and its settings. All of the caller's network namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub index: u32,
    /// Its MTU.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// It is an Ethernet device.
    pub is_ethernet: bool,
    /// It is up.
    pub is_up: bool,
}

/// The network namespace that this was made in, wherever its user goes.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Ok(Self(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?))
    }

    /// The device of this name; `NotFound` if there is none.
    pub fn device(&self, name: &str) -> io::Result<DeviceInfo> {
        let mut request = Request::new(name)?;
        // SAFETY: the call fills the member of the union that is read then.
        let index = unsafe {
            request.call(self.0.as_fd(), libc::SIOCGIFINDEX)?;
            request.0.ifr_ifru.ifru_ifindex
        };
        // SAFETY: as above.
        let mtu = unsafe {
            request.call(self.0.as_fd(), libc::SIOCGIFMTU)?;
            request.0.ifr_ifru.ifru_mtu
        };
        // SAFETY: as above.
        let flags = unsafe {
            request.call(self.0.as_fd(), libc::SIOCGIFFLAGS)?;
            request.0.ifr_ifru.ifru_flags
        };
        // SAFETY: as above.
        let address = unsafe {
            request.call(self.0.as_fd(), libc::SIOCGIFHWADDR)?;
            request.0.ifr_ifru.ifru_hwaddr
        };
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(address.sa_data) {
            *to = from as u8;
        }
        Ok(DeviceInfo {
            index: index.cast_unsigned(),
            mtu: mtu.cast_unsigned(),
            mac,
            is_ethernet: address.sa_family == libc::ARPHRD_ETHER,
            is_up: i32::from(flags) & libc::IFF_UP != 0,
        })
    }

    /// The name of the device with this number; `None` if there is none any more.
    pub fn name_of(&self, index: u32) -> io::Result<Option<String>> {
        let mut request = Request::new("")?;
        request.0.ifr_ifru.ifru_ifindex = index.cast_signed();
        // SAFETY: a request that the kernel reads the number from and writes the name to.
        match unsafe { request.call(self.0.as_fd(), libc::SIOCGIFNAME) } {
            Ok(()) => Ok(Some(request.name())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets a device up or down.
    pub fn set_up(&self, name: &str, up: bool) -> io::Result<()> {
        let mut request = Request::new(name)?;
        // SAFETY: the calls read and write the flags.
        unsafe {
            request.call(self.0.as_fd(), libc::SIOCGIFFLAGS)?;
            let flags = request.0.ifr_ifru.ifru_flags;
            let bit = libc::IFF_UP as libc::c_short;
            request.0.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
            request.call(self.0.as_fd(), libc::SIOCSIFFLAGS)
        }
    }

    /// Switches large receive offload on or off and says how it was. A device that has none says `false`.
    ///
    /// Such a device merges frames into packets that can't be sent on as they came.
    pub fn set_lro(&self, name: &str, on: bool) -> io::Result<bool> {
        const GET_FLAGS: u32 = 0x25;
        const SET_FLAGS: u32 = 0x26;
        const LRO: u32 = 1 << 15;
        let mut flags = match self.ethtool(name, GET_FLAGS, 0) {
            Ok(flags) => flags,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(false),
            Err(error) => return Err(error),
        };
        let was = flags & LRO != 0;
        if was != on {
            flags ^= LRO;
            self.ethtool(name, SET_FLAGS, flags)?;
        }
        Ok(was)
    }

    /// One of the calls of `ethtool` whose argument and result are one number (`struct ethtool_value`).
    fn ethtool(&self, name: &str, command: u32, data: u32) -> io::Result<u32> {
        const SIOCETHTOOL: libc::c_ulong = 0x8946;
        let mut value = [command, data];
        let mut request = Request::new(name)?;
        request.0.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the kernel reads and writes the two words of `value`, which lives.
        unsafe { request.call(self.0.as_fd(), SIOCETHTOOL)? };
        Ok(value[1])
    }
}

/// `struct ifreq`.
pub(crate) struct Request(pub(crate) libc::ifreq);

impl Request {
    /// A request about the device `name`, which is refused if it can't be a name.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        // SAFETY: all-zero is a value of this plain C struct.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() || name.contains('\0') {
            return Err(io::ErrorKind::NotFound.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self(request))
    }

    pub(crate) fn name(&self) -> String {
        let bytes: Vec<u8> = self.0.ifr_name.iter().map(|c| *c as u8).take_while(|b| *b != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Makes the call.
    ///
    /// # Safety
    /// `code` is an ioctl that takes a `struct ifreq`, and a pointer in it, where the call uses one, is what the call wants.
    pub(crate) unsafe fn call(&mut self, fd: BorrowedFd<'_>, code: libc::c_ulong) -> io::Result<()> {
        // SAFETY: the pointer is to the live request; the rest is the caller's promise.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), code as _, &raw mut self.0) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        Err(if error.raw_os_error() == Some(libc::ENODEV) { not_found(error) } else { error })
    }
}

/// `ENODEV` has no kind of its own.
fn not_found(error: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_known_and_no_ethernet() {
        let here = Namespace::current().unwrap();
        let lo = here.device("lo").unwrap();
        assert!(lo.index != 0 && lo.mtu >= 1500 && !lo.is_ethernet);
        assert_eq!(here.name_of(lo.index).unwrap().as_deref(), Some("lo"));
        assert_eq!(here.name_of(u32::MAX >> 1).unwrap(), None);
        for name in ["nonesuch0", "a-name-that-is-too-long", ""] {
            assert_eq!(here.device(name).unwrap_err().kind(), io::ErrorKind::NotFound, "{name}");
        }
    }
}
