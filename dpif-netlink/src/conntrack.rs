//! Tracked connections, which the kernel keeps for all who ask: netfilter's netlink (`linux/netfilter/nfnetlink_conntrack.h`), and
//! the limits of zones, which are the module's own (`OVS_CT_LIMIT_*`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dpif::ct::{CtEntry, CtLimits, CtMatch, CtTuple, CtZoneLimit, TcpState};
use dpif::{DpifError, Result};
use neli::consts::socket::NlFamily;
use nix::errno::Errno;

use crate::attr::{Attrs, Writer, array, str_of, u8_of};
use crate::error::{self, ENGINE};
use crate::families::Family;
use crate::kernel::{Kernel, Request};
use crate::message::{self, F_ACK, F_DUMP, Target};
use crate::socket::{Answer, Pool};
use crate::uapi::{ct_limit, ctnl};

/// Writes who a message of netfilter is for: its header is as long as generic netlink's, the family of addresses in the command's
/// place.
fn target(message: u8, flags: u16, family: u8) -> Target {
    Target { family: u16::from(ctnl::SUBSYSTEM) << 8 | u16::from(message), version: 0, cmd: family, flags }
}

/// A connection with what names it to the kernel.
pub(crate) struct Found {
    pub(crate) entry: CtEntry,
    family: u8,
    /// The original direction as the kernel wrote it.
    tuple: Vec<u8>,
}

/// The way to netfilter.
pub(crate) struct Conntrack {
    pool: Pool,
}

impl Conntrack {
    pub(crate) fn new() -> Self {
        Self { pool: Pool::of(NlFamily::Netfilter) }
    }

    /// All connections, or those of a zone.
    pub(crate) fn dump(&self, zone: Option<u16>) -> Result<Vec<CtEntry>> {
        Ok(self.find(zone)?.into_iter().map(|found| found.entry).collect())
    }

    /// Forgets the connections that match. One that is gone by itself meanwhile is as well.
    pub(crate) fn flush(&self, which: &CtMatch) -> Result<()> {
        if *which == CtMatch::default() {
            return self.delete(0, |_| {});
        }
        for Found { entry, family, tuple } in self.find(which.zone)? {
            if !which.matches(&entry) {
                continue;
            }
            self.delete(family, |to| {
                to.put(ctnl::TUPLE_ORIG, &tuple);
                to.put(ctnl::ZONE, &entry.zone.to_be_bytes());
                to.put(ctnl::ID, &entry.id.to_be_bytes());
            })?;
        }
        Ok(())
    }

    fn find(&self, zone: Option<u16>) -> Result<Vec<Found>> {
        let mut all = Vec::new();
        let dumped = self.pool.with(|channel| {
            let seq = channel.next_seq();
            let open = message::begin(&mut channel.out, target(ctnl::GET, F_DUMP, 0), seq);
            message::end(&mut channel.out, open);
            channel.dump(seq, |message| {
                all.extend(message.generic().and_then(|(family, attrs)| read(family, attrs)));
                true
            })?;
            Ok::<_, std::io::Error>(((), true))
        });
        dumped.map_err(|error| error::io(error, || "can't list connections".into()))?;
        all.retain(|found| zone.is_none_or(|zone| found.entry.zone == zone));
        Ok(all)
    }

    fn delete(&self, family: u8, attrs: impl FnOnce(&mut Writer)) -> Result<()> {
        let deleted = self.pool.with(|channel| {
            let seq = channel.next_seq();
            let open = message::begin(&mut channel.out, target(ctnl::DELETE, F_ACK, family), seq);
            attrs(&mut channel.out);
            message::end(&mut channel.out, open);
            let mut result = Ok(());
            channel.transact(seq, 1, |_, answer| {
                if let Answer::End(how) = answer {
                    result = how;
                }
            })?;
            match result {
                Ok(()) | Err(Errno::ENOENT) => Ok::<_, std::io::Error>(((), true)),
                Err(errno) => Err(errno.into()),
            }
        });
        deleted.map_err(|error| error::io(error, || "can't delete connections".into()))
    }
}

pub(crate) fn read(family: u8, attrs: &[u8]) -> Option<Found> {
    let attrs = Attrs::new(attrs);
    let part = |kind| attrs.clone().find(kind);
    let be32 = |kind| part(kind).and_then(array).map_or(0, u32::from_be_bytes);
    let counters = |kind| {
        let counters = Attrs::new(part(kind).unwrap_or_default());
        let number = |kind| counters.clone().find(kind).and_then(array).map_or(0, u64::from_be_bytes);
        (number(ctnl::PACKETS), number(ctnl::BYTES))
    };
    let tuple = part(ctnl::TUPLE_ORIG)?;
    let tcp = part(ctnl::PROTOINFO).and_then(|info| Attrs::new(info).find(ctnl::PROTOINFO_TCP));
    let tcp = tcp.and_then(|tcp| Attrs::new(tcp).find(ctnl::TCP_STATE)).and_then(u8_of).map(tcp_state);
    let helper = part(ctnl::HELP).and_then(|help| Attrs::new(help).find(ctnl::HELP_NAME)).and_then(str_of);
    let mut label = [0; 16];
    for (to, from) in label.iter_mut().zip(part(ctnl::LABELS).unwrap_or_default()) {
        *to = *from;
    }
    let entry = CtEntry {
        orig: read_tuple(tuple)?,
        reply: read_tuple(part(ctnl::TUPLE_REPLY)?)?,
        counters: [counters(ctnl::COUNTERS_ORIG), counters(ctnl::COUNTERS_REPLY)],
        id: be32(ctnl::ID),
        zone: part(ctnl::ZONE).and_then(array).map_or(0, u16::from_be_bytes),
        timeout: be32(ctnl::TIMEOUT),
        mark: be32(ctnl::MARK),
        label,
        tcp,
        helper: helper.map(str::to_owned),
    };
    Some(Found { entry, family, tuple: tuple.to_vec() })
}

fn read_tuple(attrs: &[u8]) -> Option<CtTuple> {
    let (ip, proto) = (Attrs::new(attrs).find(ctnl::TUPLE_IP)?, Attrs::new(attrs).find(ctnl::TUPLE_PROTO)?);
    let address = |v4, v6| {
        let ip = Attrs::new(ip);
        let found = ip.clone().find(v4).and_then(array::<4>).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
        found.or_else(|| Some(IpAddr::V6(Ipv6Addr::from(ip.find(v6).and_then(array::<16>)?))))
    };
    let proto = Attrs::new(proto);
    let port = |kinds: &[u16]| {
        let found = kinds.iter().find_map(|kind| proto.clone().find(*kind));
        found.and_then(array).map_or(0, u16::from_be_bytes)
    };
    let byte =
        |kinds: &[u16]| u16::from(kinds.iter().find_map(|kind| proto.clone().find(*kind)).and_then(u8_of).unwrap_or(0));
    let number = proto.clone().find(ctnl::PROTO_NUM).and_then(u8_of)?;
    let (src_port, dst_port) = match number {
        1 | 58 => {
            let (kind, code) =
                (byte(&[ctnl::ICMP_TYPE, ctnl::ICMPV6_TYPE]), byte(&[ctnl::ICMP_CODE, ctnl::ICMPV6_CODE]));
            (port(&[ctnl::ICMP_ID, ctnl::ICMPV6_ID]), kind << 8 | code)
        }
        _ => (port(&[ctnl::SRC_PORT]), port(&[ctnl::DST_PORT])),
    };
    let (src, dst) = (address(ctnl::V4_SRC, ctnl::V6_SRC)?, address(ctnl::V4_DST, ctnl::V6_DST)?);
    Some(CtTuple { src, dst, proto: number, src_port, dst_port })
}

/// `enum tcp_conntrack`.
fn tcp_state(state: u8) -> TcpState {
    match state {
        1 | 9 => TcpState::SynSent,
        2 => TcpState::SynRecv,
        3 => TcpState::Established,
        4 => TcpState::FinWait1,
        5 => TcpState::CloseWait,
        6 => TcpState::LastAck,
        7 => TcpState::TimeWait,
        8 => TcpState::Closing,
        _ => TcpState::Closed,
    }
}

/// `struct ovs_zone_limit`: zone (-1: the default), limit, count.
const ZONE_LIMIT: usize = 12;
const DEFAULT_ZONE: i32 = -1;

/// Adds the limits that an answer has.
pub(crate) fn read_limits(attrs: &[u8], limits: &mut CtLimits) {
    let list = Attrs::new(attrs).find(ct_limit::ZONE_LIMIT).unwrap_or_default();
    for entry in list.as_chunks::<ZONE_LIMIT>().0 {
        let [z0, z1, z2, z3, l0, l1, l2, l3, c0, c1, c2, c3] = *entry;
        let (zone, limit) = (i32::from_ne_bytes([z0, z1, z2, z3]), u32::from_ne_bytes([l0, l1, l2, l3]));
        let count = u32::from_ne_bytes([c0, c1, c2, c3]);
        match u16::try_from(zone) {
            Ok(zone) => limits.zones.push(CtZoneLimit { zone, limit, count }),
            Err(_) => limits.default = limit,
        }
    }
}

impl Kernel {
    /// Limits of these zones, or of all that have one.
    pub(crate) fn ct_limits(&self, zones: &[u16]) -> Result<CtLimits> {
        let asked: Vec<(i32, u32)> = zones.iter().map(|zone| (i32::from(*zone), 0)).collect();
        // The default has to be asked for where anything is.
        let default = (!asked.is_empty()).then_some((DEFAULT_ZONE, 0));
        let asked: Vec<_> = default.into_iter().chain(asked).collect();
        let mut limits = CtLimits::default();
        self.ct_limit_request(ct_limit::GET, &asked, |attrs| read_limits(attrs, &mut limits))?;
        Ok(limits)
    }

    pub(crate) fn ct_limits_set(&self, default: Option<u32>, zones: &[(u16, u32)]) -> Result<()> {
        let zones = zones.iter().map(|(zone, limit)| (i32::from(*zone), *limit));
        let list: Vec<_> = default.map(|limit| (DEFAULT_ZONE, limit)).into_iter().chain(zones).collect();
        self.ct_limit_request(ct_limit::SET, &list, |_| {})
    }

    pub(crate) fn ct_limits_del(&self, default: bool, zones: &[u16]) -> Result<()> {
        let zones = zones.iter().map(|zone| (i32::from(*zone), 0));
        let list: Vec<_> = default.then_some((DEFAULT_ZONE, 0)).into_iter().chain(zones).collect();
        self.ct_limit_request(ct_limit::DEL, &list, |_| {})
    }

    fn ct_limit_request(&self, cmd: u8, zones: &[(i32, u32)], mut reply: impl FnMut(&[u8])) -> Result<()> {
        let missing = || DpifError::Unsupported("limiting connections".into(), ENGINE.into());
        let family: Family = self.families.ct_limit.ok_or_else(missing)?;
        let attrs = |to: &mut Writer| {
            if !zones.is_empty() || cmd != ct_limit::GET {
                let nest = to.begin_nest(ct_limit::ZONE_LIMIT);
                for (zone, limit) in zones {
                    to.raw(&zone.to_ne_bytes());
                    to.raw(&limit.to_ne_bytes());
                    to.raw(&0u32.to_ne_bytes());
                }
                to.end(nest);
            }
            Ok(())
        };
        let request = Request { family, cmd, flags: 0, attrs: &attrs };
        // Limits are the network namespace's, not a datapath's.
        let how = self.request(0, &request, |_, attrs| reply(attrs))?;
        how.map_err(|errno| error::of(errno, || "can't ask about limits of connections".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(to: &mut Writer, kind: u16, proto: u8, ports: [u16; 2]) {
        let whole = to.begin_nest(kind);
        let ip = to.begin_nest(ctnl::TUPLE_IP);
        to.put(ctnl::V4_SRC, &[10, 0, 0, 1]);
        to.put(ctnl::V4_DST, &[10, 0, 0, 2]);
        to.end(ip);
        let nest = to.begin_nest(ctnl::TUPLE_PROTO);
        to.put(ctnl::PROTO_NUM, &[proto]);
        to.put(ctnl::SRC_PORT, &ports[0].to_be_bytes());
        to.put(ctnl::DST_PORT, &ports[1].to_be_bytes());
        to.end(nest);
        to.end(whole);
    }

    #[test]
    fn a_connection_is_read_and_what_is_cut_off_is_not() {
        let mut to = Writer::default();
        tuple(&mut to, ctnl::TUPLE_ORIG, 6, [1, 80]);
        tuple(&mut to, ctnl::TUPLE_REPLY, 6, [80, 1]);
        let info = to.begin_nest(ctnl::PROTOINFO);
        let tcp = to.begin_nest(ctnl::PROTOINFO_TCP);
        to.put(ctnl::TCP_STATE, &[3]);
        to.end(tcp);
        to.end(info);
        to.put(ctnl::ZONE, &5u16.to_be_bytes());
        to.put(ctnl::MARK, &9u32.to_be_bytes());
        let entry = read(2, to.bytes()).unwrap().entry;
        assert_eq!((entry.zone, entry.mark, entry.tcp), (5, 9, Some(TcpState::Established)));
        assert_eq!((entry.orig.src_port, entry.reply.src_port, entry.orig.proto), (1, 80, 6));
        assert!(entry.text(false, false).starts_with("tcp,orig=(src=10.0.0.1,dst=10.0.0.2,sport=1,dport=80)"));
        for len in 0..to.bytes().len() {
            // Whatever is missing, nothing panics.
            let _ = read(2, &to.bytes()[..len]);
        }
        assert!(read(2, &to.bytes()[..40]).is_none());
    }
}
