//! Which connections are meant: `dpctl/flush-conntrack`.

use std::net::IpAddr;

use super::{CtEntry, CtTuple};

/// Connections that agree with all that is said; by default all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CtMatch {
    /// The zone.
    pub zone: Option<u16>,
    /// The IP protocol.
    pub proto: Option<u8>,
    /// The direction of the first packet.
    pub orig: CtPart,
    /// The other one.
    pub reply: CtPart,
    /// Value and mask of the mark; no bit outside the mask.
    pub mark: (u32, u32),
    /// Value and mask of the label, likewise; the lowest bit is the lowest bit of its first byte.
    pub label: (u128, u128),
}

/// What is said of a direction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CtPart {
    /// Source.
    pub src: Option<IpAddr>,
    /// Destination.
    pub dst: Option<IpAddr>,
    /// Source port, host order.
    pub src_port: Option<u16>,
    /// Destination port, host order.
    pub dst_port: Option<u16>,
    /// Identifier of an ICMP message.
    pub icmp_id: Option<u16>,
    /// Type of an ICMP message.
    pub icmp_type: Option<u8>,
    /// Code of an ICMP message.
    pub icmp_code: Option<u8>,
}

impl CtMatch {
    /// Whether a connection is meant.
    pub fn matches(&self, entry: &CtEntry) -> bool {
        let Self { zone, proto, orig, reply, mark, label } = self;
        agrees(*zone, entry.zone)
            && agrees(*proto, entry.orig.proto)
            && orig.matches(&entry.orig)
            && reply.matches(&entry.reply)
            && entry.mark & mark.1 == mark.0
            && u128::from_le_bytes(entry.label) & label.1 == label.0
    }
}

impl CtPart {
    fn matches(&self, tuple: &CtTuple) -> bool {
        let Self { src, dst, src_port, dst_port, icmp_id, icmp_type, icmp_code } = self;
        let [kind, code] = tuple.dst_port.to_be_bytes();
        agrees(*src, tuple.src)
            && agrees(*dst, tuple.dst)
            && agrees(*src_port, tuple.src_port)
            && agrees(*dst_port, tuple.dst_port)
            && agrees(*icmp_id, tuple.src_port)
            && agrees(*icmp_type, kind)
            && agrees(*icmp_code, code)
    }
}

fn agrees<T: PartialEq>(wanted: Option<T>, there: T) -> bool {
    wanted.is_none_or(|wanted| wanted == there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_meant_if_it_agrees_in_all_that_is_said() {
        let tuple = |src: [u8; 4], dst: [u8; 4], src_port, dst_port| CtTuple {
            src: src.into(),
            dst: dst.into(),
            proto: 6,
            src_port,
            dst_port,
        };
        let mut label = [0; 16];
        label[1] = 0x0f;
        let entry = CtEntry {
            orig: tuple([10, 0, 0, 1], [10, 0, 0, 2], 5, 80),
            reply: tuple([10, 0, 0, 2], [10, 0, 0, 9], 80, 5),
            counters: [(0, 0); 2],
            id: 3,
            zone: 7,
            timeout: 0,
            mark: 0x15,
            label,
            tcp: None,
            helper: None,
        };
        let all = CtMatch::default();
        let orig = |part: CtPart| CtMatch { orig: part, ..CtMatch::default() };
        let none = CtPart::default();
        for (which, meant) in [
            (all.clone(), true),
            (CtMatch { zone: Some(7), proto: Some(6), ..all.clone() }, true),
            (CtMatch { zone: Some(0), ..all.clone() }, false),
            (CtMatch { proto: Some(17), ..all.clone() }, false),
            (CtMatch { mark: (0x10, 0xf0), ..all.clone() }, true),
            (CtMatch { mark: (0x10, 0xff), ..all.clone() }, false),
            (CtMatch { label: (0x0100, 0x0100), ..all.clone() }, true),
            (CtMatch { label: (0, 0x0100), ..all.clone() }, false),
            (orig(CtPart { src: Some([10, 0, 0, 1].into()), dst_port: Some(80), ..none.clone() }), true),
            (orig(CtPart { src: Some([10, 0, 0, 2].into()), ..none.clone() }), false),
            (orig(CtPart { src_port: Some(0), ..none.clone() }), false),
            (CtMatch { reply: CtPart { dst: Some([10, 0, 0, 9].into()), ..none.clone() }, ..all.clone() }, true),
            (CtMatch { reply: CtPart { src_port: Some(81), ..none.clone() }, ..all }, false),
        ] {
            assert_eq!(which.matches(&entry), meant, "{which:?}");
        }
        let ping = CtTuple { proto: 1, src_port: 9, dst_port: 0x0800, ..entry.orig };
        let echo =
            |icmp_type| CtPart { icmp_id: Some(9), icmp_type: Some(icmp_type), icmp_code: Some(0), ..none.clone() };
        assert!(echo(8).matches(&ping) && !echo(0).matches(&ping));
    }
}
