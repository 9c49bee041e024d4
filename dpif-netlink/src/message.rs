//! Netlink messages: headers written and read.
//!
//! A message is `struct nlmsghdr` (length, type, flags, sequence number, port), for generic netlink `struct genlmsghdr` (command,
//! version), for the module's families `struct ovs_header` (the datapath's ifindex), and attributes. Several messages may follow
//! each other in one buffer, each padded to four bytes.

use std::io;

use nix::errno::Errno;

use crate::attr::Writer;

/// Bytes of `struct nlmsghdr`.
pub(crate) const NLMSG: usize = 16;
/// Where in it the flags are.
const FLAGS: usize = 6;
/// Bytes of `struct genlmsghdr`.
pub(crate) const GENL: usize = 4;
/// Bytes of `struct ovs_header`.
pub(crate) const OVS: usize = 4;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

pub(crate) const F_REQUEST: u16 = 0x01;
pub(crate) const F_ACK: u16 = 0x04;
pub(crate) const F_ECHO: u16 = 0x08;
/// Of a message of a dump: what is dumped changed meanwhile.
pub(crate) const F_DUMP_INTR: u16 = 0x10;
pub(crate) const F_DUMP: u16 = 0x300;
pub(crate) const F_CREATE: u16 = 0x400;

/// A message that was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// What follows the header.
    pub(crate) body: &'a [u8],
}

/// Walks the messages in what was received in one go; ends at one that is cut off.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (header, _) = self.0.split_first_chunk::<NLMSG>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = self.0.get(NLMSG..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        let (kind, flags) = (u16::from_ne_bytes([k0, k1]), u16::from_ne_bytes([f0, f1]));
        Some(Message { kind, flags, seq: u32::from_ne_bytes([s0, s1, s2, s3]), body })
    }
}

impl Messages<'_> {
    /// Whether the walk has come to the end of what was received: who waits for an answer must not wait for one that was cut off.
    pub(crate) fn whole(&self) -> io::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::EPROTO.into()) }
    }
}

impl<'a> Message<'a> {
    /// The error number in an acknowledgement or at a dump's end; 0 for success. It is negative on the wire.
    pub(crate) fn errno(&self) -> i32 {
        self.body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes).saturating_neg())
    }

    /// Command and attributes of a generic netlink message.
    pub(crate) fn generic(&self) -> Option<(u8, &'a [u8])> {
        let ([cmd, ..], attrs) = self.body.split_first_chunk::<GENL>()?;
        Some((*cmd, attrs))
    }

    /// Command, datapath and attributes of a message of the module's families.
    pub(crate) fn ovs(&self) -> Option<(u8, i32, &'a [u8])> {
        let (cmd, rest) = self.generic()?;
        let (ifindex, attrs) = rest.split_first_chunk::<OVS>()?;
        Some((cmd, i32::from_ne_bytes(*ifindex), attrs))
    }
}

/// A message that is being written.
#[must_use = "a message has to be ended"]
pub(crate) struct Open {
    start: usize,
}

/// Who a message is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) family: u16,
    pub(crate) version: u8,
    pub(crate) cmd: u8,
    pub(crate) flags: u16,
}

/// Begins a generic netlink message.
pub(crate) fn begin(to: &mut Writer, target: Target, seq: u32) -> Open {
    let start = to.bytes().len();
    let ([k0, k1], [f0, f1]) = (target.family.to_ne_bytes(), (target.flags | F_REQUEST).to_ne_bytes());
    let [s0, s1, s2, s3] = seq.to_ne_bytes();
    to.raw(&[0, 0, 0, 0, k0, k1, f0, f1, s0, s1, s2, s3, 0, 0, 0, 0, target.cmd, target.version, 0, 0]);
    Open { start }
}

/// The message that begins at `start` asks to be acknowledged.
pub(crate) fn ask_for_ack(to: &mut Writer, start: usize) {
    let flags = to.bytes().get(start + FLAGS..).and_then(|bytes| bytes.first_chunk()).copied();
    if let Some(flags) = flags.map(u16::from_ne_bytes) {
        to.patch(start + FLAGS, &(flags | F_ACK).to_ne_bytes());
    }
}

/// Ends a message: its length is known.
pub(crate) fn end(to: &mut Writer, open: Open) {
    let len = (to.bytes().len() - open.start) as u32;
    to.patch(open.start, &len.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_one_buffer_are_walked() {
        let mut to = Writer::default();
        for seq in [7, 8] {
            let open = begin(&mut to, Target { family: 20, version: 1, cmd: 3, flags: F_ACK }, seq);
            to.raw(&5i32.to_ne_bytes());
            to.put_u8(1, 9);
            end(&mut to, open);
        }
        let all: Vec<_> = Messages(to.bytes()).collect();
        assert_eq!(all.iter().map(|m| (m.kind, m.flags, m.seq)).collect::<Vec<_>>(), [(20, 5, 7), (20, 5, 8)]);
        assert_eq!(all[1].ovs().map(|(cmd, ifindex, attrs)| (cmd, ifindex, attrs.len())), Some((3, 5, 8)));
    }

    #[test]
    fn what_is_cut_off_ends_the_walk() {
        let mut to = Writer::default();
        let open = begin(&mut to, Target { family: 20, version: 1, cmd: 3, flags: 0 }, 1);
        end(&mut to, open);
        let whole = to.bytes().to_vec();
        for len in 0..whole.len() {
            let mut messages = Messages(&whole[..len]);
            assert_eq!((messages.by_ref().count(), messages.whole().is_ok()), (0, len == 0), "{len}");
        }
        let mut messages = Messages(&whole);
        assert_eq!((messages.by_ref().count(), messages.whole().is_ok()), (1, true));
        let mut short = whole.clone();
        short[0] = 3;
        assert_eq!(Messages(&short).count(), 0);
    }

    #[test]
    fn any_number_is_an_error_number() {
        let errno = |number: i32| Message { kind: NLMSG_ERROR, flags: 0, seq: 0, body: &number.to_ne_bytes() }.errno();
        assert_eq!([-2, 0, 2, i32::MIN].map(errno), [2, 0, -2, i32::MAX]);
    }
}
