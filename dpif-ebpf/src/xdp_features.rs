//! What the kernel says of a device and XDP: the generic netlink family `netdev` (Linux 6.3, `linux/netdev.h`).

use std::io;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// `GENL_ID_CTRL`, the family that knows the numbers of the others.
const CONTROL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_NDO_XMIT`.
const SENDS: u64 = 1 << 2;
/// Bytes of `struct genlmsghdr`.
const HEADER: usize = 4;
/// Room for an answer.
const BUFFER: usize = 16 * 1024;

/// Whether the device sends frames that XDP programs redirect to it. [`io::ErrorKind::Unsupported`]: this kernel doesn't say.
pub(crate) fn sends(ifindex: u32) -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let family = ask(&socket, CONTROL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0")
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => io::ErrorKind::Unsupported.into(),
            _ => error,
        })
        .map(|answer| attribute(&answer, CTRL_ATTR_FAMILY_ID, |value| Some(u16::from_ne_bytes(*value.first_chunk()?))))?
        .ok_or(io::ErrorKind::InvalidData)?;
    let answer = ask(&socket, family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes())?;
    let features =
        attribute(&answer, NETDEV_A_DEV_XDP_FEATURES, |value| Some(u64::from_ne_bytes(*value.first_chunk()?)));
    Ok(features.unwrap_or_default() & SENDS != 0)
}

/// Sends a command with one attribute, and gives the payload of the answer.
fn ask(socket: &Socket, family: u16, command: u8, kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 16];
    message.extend([command, 1, 0, 0]);
    message.extend((value.len() as u16 + 4).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message[4..6].copy_from_slice(&family.to_ne_bytes());
    message[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    socket.send(&message, 0)?;

    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let answer = NetlinkBuffer::new_checked(buffer.as_slice()).map_err(io::Error::other)?;
    if answer.message_type() == libc::NLMSG_ERROR as u16 {
        let errno = answer.payload().first_chunk().map_or(-libc::EPROTO, |errno| i32::from_ne_bytes(*errno));
        return Err(io::Error::from_raw_os_error(-errno));
    }
    Ok(answer.payload().to_vec())
}

fn attribute<T>(answer: &[u8], kind: u16, read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let attributes = NlasIterator::new(answer.get(HEADER..)?).map_while(|attribute| attribute.ok());
    attributes.filter(|attribute| attribute.kind() == kind).find_map(|attribute| read(attribute.value()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_sends_no_redirected_frames() {
        match sends(1) {
            Ok(takes) => assert!(!takes),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}"),
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        assert!(sends(0x7fff_fff0).is_err());
    }
}
