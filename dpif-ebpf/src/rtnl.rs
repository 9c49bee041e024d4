//! Network devices over rtnetlink: the few requests that ports need, and the news about devices.
//!
//! Requests are built with typed messages; of answers and notifications only the handful of attributes that matter are taken,
//! so that a kernel that says more, or says it differently, changes nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NlasIterator,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
/// Bytes of `struct ifinfomsg`, before the attributes.
const HEADER: usize = 16;
/// Bytes of `struct tcmsg`, before the attributes.
const TC_HEADER: usize = 20;
/// Room for one datagram of answers.
const BUFFER: usize = 64 * 1024;
/// Room for notifications that wait: device changes come in bursts.
const MONITOR_BUFFER: usize = 1 << 20;

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Link {
    /// Its number in its namespace.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: String,
    /// Its MTU.
    pub(crate) mtu: u32,
    /// Its Ethernet address.
    pub(crate) mac: [u8; 6],
    /// `IFF_*`.
    pub(crate) flags: u32,
    /// `ARPHRD_*`.
    pub(crate) hardware: u16,
    /// The device that it is a port of, such as a kernel bridge.
    pub(crate) master: Option<u32>,
    /// `veth`, `tun`, …; empty for most hardware.
    pub(crate) kind: String,
    /// The device it lies on; of a veth its other end.
    pub(crate) lower: Option<u32>,
}

/// What happened to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum News {
    /// It is new or has changed.
    Changed(u32),
    /// It is gone from this namespace.
    Gone(u32),
    /// It went to another namespace.
    Moved(u32),
    /// Some news were lost: look at all devices.
    Lost,
}

/// The device of this name.
pub(crate) fn by_name(name: &str) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    get(message)
}

/// The device with this index.
pub(crate) fn by_index(index: u32) -> io::Result<Option<Link>> {
    get(about(index))
}

/// Makes a veth pair, both ends down.
pub(crate) fn add_veth(name: &str, peer: &str) -> io::Result<()> {
    let mut other = LinkMessage::default();
    other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
    ]));
    request(RouteNetlinkMessage::NewLink(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// Deletes a device.
pub(crate) fn delete(index: u32) -> io::Result<()> {
    request(RouteNetlinkMessage::DelLink(about(index)), NLM_F_ACK).map(drop)
}

/// Sets the MTU of a device.
pub(crate) fn set_mtu(index: u32, mtu: u32) -> io::Result<()> {
    let mut message = about(index);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    set(message)
}

/// Brings a device up.
pub(crate) fn set_up(index: u32) -> io::Result<()> {
    set_flag(index, LinkFlags::Up, true)
}

/// Switches a device's promiscuous mode.
pub(crate) fn set_promiscuous(index: u32, on: bool) -> io::Result<()> {
    set_flag(index, LinkFlags::Promisc, on)
}

/// Makes a device one without address resolution, so that the stack sends nothing to it by itself.
pub(crate) fn set_no_arp(index: u32) -> io::Result<()> {
    set_flag(index, LinkFlags::Noarp, true)
}

/// Keeps a device without IPv6 addresses, so that the stack has nothing to say there. Nothing in a kernel without IPv6.
pub(crate) fn set_no_ipv6_address(index: u32) -> io::Result<()> {
    let mut message = about(index);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
        In6AddrGenMode::None,
    )])]));
    match set(message) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
        result => result,
    }
}

/// Where a clsact qdisc keeps the filters of received frames (`TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`).
const CLSACT_INGRESS: u32 = 0xffff_fff2;
/// Where it keeps those of sent frames.
const CLSACT_EGRESS: u32 = 0xffff_fff3;

/// Names of the filters of a device's clsact qdisc, both directions; empty for filters that aren't BPF programs.
pub(crate) fn clsact_filters(index: u32) -> io::Result<Vec<String>> {
    const TCA_BPF_NAME: u16 = 7;
    let mut names = Vec::new();
    for parent in [CLSACT_INGRESS, CLSACT_EGRESS] {
        let answers = match request(RouteNetlinkMessage::GetTrafficFilter(about_tc(index, parent)), NLM_F_DUMP) {
            // Without the qdisc there is nothing to list.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => continue,
            answers => answers?,
        };
        for (_, payload) in answers {
            let options = attributes(payload.get(TC_HEADER..).unwrap_or_default())
                .find(|(kind, _)| *kind == libc::TCA_OPTIONS)
                .map(|(_, options)| options);
            // Each priority has an entry of its own, without options, beside its filters.
            let Some(options) = options else { continue };
            names.extend(
                attributes(&options)
                    .find(|(kind, _)| *kind == TCA_BPF_NAME)
                    .map(|(_, name)| text(&name))
                    .or(Some(String::new())),
            );
        }
    }
    Ok(names)
}

/// Adds a BPF program as a filter of received frames that decides by itself (`direct-action`).
pub(crate) fn add_clsact_filter(
    index: u32,
    priority: u16,
    handle: u32,
    program: BorrowedFd<'_>,
    name: &str,
) -> io::Result<()> {
    let mut message = about_filter(index, priority, handle);
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request(RouteNetlinkMessage::NewTrafficFilter(message), flags).map(drop)
}

/// Removes a filter of received frames.
pub(crate) fn delete_clsact_filter(index: u32, priority: u16, handle: u32) -> io::Result<()> {
    request(RouteNetlinkMessage::DelTrafficFilter(about_filter(index, priority, handle)), NLM_F_ACK).map(drop)
}

/// Gives a device its clsact qdisc.
pub(crate) fn add_clsact(index: u32) -> io::Result<()> {
    let mut message = about_clsact(index);
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request(RouteNetlinkMessage::NewQueueDiscipline(message), flags).map(drop)
}

/// Removes a device's clsact qdisc with all its filters.
pub(crate) fn delete_clsact(index: u32) -> io::Result<()> {
    request(RouteNetlinkMessage::DelQueueDiscipline(about_clsact(index)), NLM_F_ACK).map(drop)
}

/// A device's clsact qdisc itself (`TC_H_CLSACT`).
fn about_clsact(index: u32) -> TcMessage {
    let mut message = about_tc(index, CLSACT_INGRESS & 0xffff_0000 | 0xfff1);
    message.header.handle = TcHandle::from(0xffff_0000);
    message
}

/// A filter of received frames, of any protocol.
fn about_filter(index: u32, priority: u16, handle: u32) -> TcMessage {
    let mut message = about_tc(index, CLSACT_INGRESS);
    message.header.handle = TcHandle::from(handle);
    message.header.info = u32::from(priority) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
    message
}

fn about_tc(index: u32, parent: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = TcHandle::from(parent);
    message
}

/// News about the devices of the namespace in which it was opened.
pub(crate) struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Monitor {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // More than the limit for everybody if the privilege is there, else as much as the limit allows.
        let _ = socket.set_rx_buf_sz(MONITOR_BUFFER as libc::c_int);
        socket.bind(&SocketAddr::new(0, libc::RTMGRP_LINK as u32))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// What has been said since the last call. Doesn't block.
    pub(crate) fn news(&mut self) -> io::Result<Vec<News>> {
        let mut news = Vec::new();
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(0) => return Ok(news),
                Ok(_) => news.extend(messages(&self.buffer).filter_map(|(kind, payload)| parse_news(kind, payload))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(news),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => news.push(News::Lost),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn about(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Unspec;
    message.header.index = index;
    message
}

fn get(message: LinkMessage) -> io::Result<Option<Link>> {
    match request(RouteNetlinkMessage::GetLink(message), 0) {
        Ok(answers) => Ok(answers.iter().find_map(|(_, payload)| parse_link(payload))),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn set(message: LinkMessage) -> io::Result<()> {
    request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK).map(drop)
}

fn set_flag(index: u32, flag: LinkFlags, on: bool) -> io::Result<()> {
    let mut message = about(index);
    message.header.change_mask = flag;
    message.header.flags = if on { flag } else { LinkFlags::empty() };
    set(message)
}

/// Sends a request and collects its answers: type and payload.
fn request(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        for (kind, payload) in messages(&buffer) {
            match kind {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => match i32_at(payload, 0) {
                    Some(0) => return Ok(answers),
                    errno => return Err(io::Error::from_raw_os_error(-errno.unwrap_or(-libc::EPROTO))),
                },
                _ => answers.push((kind, payload.to_vec())),
            }
        }
        // A single device is answered without an end.
        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 && !answers.is_empty() {
            return Ok(answers);
        }
    }
}

/// The messages of a datagram: type and payload. One that is cut off ends them.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let buffer = NetlinkBuffer::new_checked(bytes).ok()?;
        let message = (buffer.message_type(), buffer.payload());
        bytes = bytes.get((buffer.length() as usize).next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// `struct ifinfomsg` and the attributes of a device.
fn parse_link(payload: &[u8]) -> Option<Link> {
    let mut link = Link {
        hardware: u16::from_ne_bytes(*payload.get(2..)?.first_chunk()?),
        index: i32_at(payload, 4)?.cast_unsigned(),
        flags: i32_at(payload, 8)?.cast_unsigned(),
        ..Link::default()
    };
    for (kind, value) in attributes(payload.get(HEADER..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(&value),
            libc::IFLA_MTU => link.mtu = i32_at(&value, 0)?.cast_unsigned(),
            libc::IFLA_ADDRESS => link.mac = value.first_chunk().copied().unwrap_or_default(),
            libc::IFLA_MASTER => link.master = i32_at(&value, 0).map(i32::cast_unsigned),
            libc::IFLA_LINK => link.lower = i32_at(&value, 0).map(i32::cast_unsigned),
            libc::IFLA_LINKINFO => {
                let kind = attributes(&value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                link.kind = kind.map(|(_, name)| text(&name)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_news(kind: u16, payload: &[u8]) -> Option<News> {
    /// In the farewell of a device that goes to another namespace.
    const IFLA_NEW_IFINDEX: u16 = 49;
    // A bridge speaks of its ports under its own family; they come and go there without doing so here.
    if payload.first() == Some(&(libc::AF_BRIDGE as u8)) {
        return None;
    }
    let index = i32_at(payload, 4)?.cast_unsigned();
    match kind {
        libc::RTM_NEWLINK => Some(News::Changed(index)),
        libc::RTM_DELLINK => {
            let moved = attributes(payload.get(HEADER..)?)
                .any(|(kind, _)| kind == IFLA_NEW_IFINDEX || kind == libc::IFLA_NEW_NETNSID);
            Some(if moved { News::Moved(index) } else { News::Gone(index) })
        }
        _ => None,
    }
}

fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> + '_ {
    NlasIterator::new(bytes).map_while(|attribute| attribute.ok()).map(|nla| (nla.kind(), nla.value().to_vec()))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_by_name_and_index() {
        let link = by_name("lo").unwrap().unwrap();
        assert_eq!((link.name.as_str(), link.hardware), ("lo", libc::ARPHRD_LOOPBACK));
        assert_ne!(link.flags & libc::IFF_LOOPBACK as u32, 0);
        assert_eq!(by_index(link.index).unwrap(), Some(link.clone()));
    }

    #[test]
    fn a_device_that_is_not_there_is_no_error() {
        assert_eq!(by_name("no-such-device").unwrap(), None);
        assert_eq!(by_index(0x7fff_fff0).unwrap(), None);
    }

    #[test]
    fn cut_off_messages_end_the_walk() {
        let mut whole = Vec::new();
        whole.extend_from_slice(&(16u32 + 4).to_ne_bytes());
        whole.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
        whole.extend_from_slice(&[0; 10]);
        whole.extend_from_slice(&(-libc::EEXIST).to_ne_bytes());
        assert_eq!(messages(&whole).count(), 1);
        for len in 0..whole.len() {
            assert_eq!(messages(&whole[..len]).count(), 0, "{len}");
        }
        for len in 0..HEADER {
            assert_eq!(parse_link(&vec![0; len]), None, "{len}");
            assert_eq!(parse_news(libc::RTM_DELLINK, &vec![0; len]), None, "{len}");
        }
    }
}
