//! Tracked connections, as an operator sees them: `dpctl/dump-conntrack`.

mod matching;

use std::fmt::Write as _;
use std::net::IpAddr;

pub use self::matching::{CtMatch, CtPart};

/// One direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CtTuple {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// IP protocol.
    pub proto: u8,
    /// Source port, or the identifier of an ICMP message; host order.
    pub src_port: u16,
    /// Destination port, or type (upper byte) and code of an ICMP message; host order.
    pub dst_port: u16,
}

/// State of a TCP connection, in the field's numbers and names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs)]
pub enum TcpState {
    Closed,
    Listen,
    SynSent,
    SynRecv,
    Established,
    CloseWait,
    FinWait1,
    Closing,
    LastAck,
    FinWait2,
    TimeWait,
}

impl TcpState {
    /// Its name. The kernel and userspace see some states differently, so those are shown as one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "CLOSED",
            Self::Listen => "LISTEN",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv | Self::Established => "ESTABLISHED",
            Self::CloseWait => "CLOSE_WAIT",
            Self::FinWait1 => "FIN_WAIT_1",
            Self::Closing => "CLOSING",
            Self::LastAck => "LAST_ACK",
            Self::FinWait2 | Self::TimeWait => "TIME_WAIT",
        }
    }
}

/// A tracked connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CtEntry {
    /// The direction of its first packet.
    pub orig: CtTuple,
    /// The other one, translated.
    pub reply: CtTuple,
    /// Packets and bytes of both; 0 where they are not counted.
    pub counters: [(u64, u64); 2],
    /// Its number.
    pub id: u32,
    /// Its zone.
    pub zone: u16,
    /// Seconds until it is forgotten.
    pub timeout: u32,
    /// Its mark.
    pub mark: u32,
    /// Its label.
    pub label: [u8; 16],
    /// State of a TCP connection.
    pub tcp: Option<TcpState>,
    /// Name of its helper.
    pub helper: Option<String>,
}

/// How many connections a zone may have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CtLimits {
    /// The limit of zones that have none of their own; 0 is none.
    pub default: u32,
    /// Zones with their limits and how many connections each has now.
    pub zones: Vec<CtZoneLimit>,
}

/// A zone's limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CtZoneLimit {
    /// The zone.
    pub zone: u16,
    /// Connections that it may have; 0 is no limit.
    pub limit: u32,
    /// Connections that it has.
    pub count: u32,
}

/// The name of an IP protocol, or its number.
pub fn protocol(number: u8) -> String {
    let name = match number {
        1 => "icmp",
        2 => "igmp",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        58 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        other => return other.to_string(),
    };
    name.into()
}

impl CtTuple {
    fn write(&self, out: &mut String) {
        let Self { src, dst, proto, src_port, dst_port } = self;
        let _ = match proto {
            1 | 58 => {
                let (kind, code) = (dst_port >> 8, dst_port & 0xff);
                write!(out, "src={src},dst={dst},id={src_port},type={kind},code={code}")
            }
            _ => write!(out, "src={src},dst={dst},sport={src_port},dport={dst_port}"),
        };
    }
}

impl CtEntry {
    /// The entry on one line; `statistics` shows counters and time too, `more` its number.
    pub fn text(&self, more: bool, statistics: bool) -> String {
        let mut out = protocol(self.orig.proto);
        for ((name, tuple), (packets, bytes)) in
            [("orig", &self.orig), ("reply", &self.reply)].into_iter().zip(self.counters)
        {
            let _ = write!(out, ",{name}=(");
            tuple.write(&mut out);
            if statistics && (packets != 0 || bytes != 0) {
                let _ = write!(out, ",packets={packets},bytes={bytes}");
            }
            out.push(')');
        }
        if more {
            let _ = write!(out, ",id={}", self.id);
        }
        if self.zone != 0 {
            let _ = write!(out, ",zone={}", self.zone);
        }
        if statistics {
            let _ = write!(out, ",timeout={}", self.timeout);
        }
        if self.mark != 0 {
            let _ = write!(out, ",mark={}", self.mark);
        }
        let label = u128::from_le_bytes(self.label);
        if label != 0 {
            let _ = write!(out, ",labels={label:#x}");
        }
        if let Some(state) = self.tcp {
            let _ = write!(out, ",protoinfo=(state={})", state.name());
        }
        if let Some(helper) = &self.helper {
            let _ = write!(out, ",helper={helper}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_told_in_the_fields_words() {
        let tuple = |src: [u8; 4], dst: [u8; 4], src_port, dst_port| CtTuple {
            src: src.into(),
            dst: dst.into(),
            proto: 6,
            src_port,
            dst_port,
        };
        let mut label = [0; 16];
        label[1] = 1;
        let entry = CtEntry {
            orig: tuple([10, 0, 0, 1], [10, 0, 0, 2], 5, 80),
            reply: tuple([10, 0, 0, 2], [10, 0, 0, 9], 80, 5),
            counters: [(1, 60), (0, 0)],
            id: 3,
            zone: 7,
            timeout: 100,
            mark: 9,
            label,
            tcp: Some(TcpState::SynRecv),
            helper: None,
        };
        let tuples = "tcp,orig=(src=10.0.0.1,dst=10.0.0.2,sport=5,dport=80";
        let reply = "),reply=(src=10.0.0.2,dst=10.0.0.9,sport=80,dport=5)";
        let rest = ",mark=9,labels=0x100,protoinfo=(state=ESTABLISHED)";
        assert_eq!(entry.text(false, false), format!("{tuples}{reply},zone=7{rest}"));
        let long = format!("{tuples},packets=1,bytes=60{reply},id=3,zone=7,timeout=100{rest}");
        assert_eq!(entry.text(true, true), long);
        let ping = CtTuple { proto: 1, dst_port: 0x800, ..entry.orig };
        let text = CtEntry { orig: ping, ..entry }.text(false, false);
        assert!(text.starts_with("icmp,orig=(src=10.0.0.1,dst=10.0.0.2,id=5,type=8,code=0)"), "{text}");
    }
}
