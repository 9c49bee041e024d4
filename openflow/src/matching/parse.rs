//! Reading a match.

use super::FlowMatch;
use super::proto::*;
use crate::error::{ParseError, ParseErrorKind, Parsed};
use crate::field::{
    FieldId, Maskable, Prerequisite, Subfield, ValueUse, is_unsupported_name, parse_field_value, parse_integer,
};
use crate::port::PortNames;
use crate::scan::{KeyValue, KeyValues, Span};

/// Words that stand for an ethertype and perhaps an IP protocol.
const PROTOCOLS: &[(&str, u16, Option<u8>)] = &[
    ("ip", ETH_IP, None),
    ("ipv4", ETH_IP, None),
    ("ip4", ETH_IP, None),
    ("icmp", ETH_IP, Some(IP_ICMP)),
    ("tcp", ETH_IP, Some(IP_TCP)),
    ("udp", ETH_IP, Some(IP_UDP)),
    ("sctp", ETH_IP, Some(IP_SCTP)),
    ("ipv6", ETH_IPV6, None),
    ("ip6", ETH_IPV6, None),
    ("icmp6", ETH_IPV6, Some(IP_ICMPV6)),
    ("tcp6", ETH_IPV6, Some(IP_TCP)),
    ("udp6", ETH_IPV6, Some(IP_UDP)),
    ("sctp6", ETH_IPV6, Some(IP_SCTP)),
    ("arp", ETH_ARP, None),
    ("rarp", ETH_RARP, None),
    ("mpls", ETH_MPLS, None),
    ("mplsm", ETH_MPLS_MCAST, None),
];

impl FlowMatch {
    /// Reads a match alone, without priority or other settings of a flow, e.g. `tcp,in_port=1,tp_dst=80`. As in the
    /// reference, of two settings of one field the later one holds.
    ///
    /// # Errors
    /// The first thing that is wrong, with its column.
    pub fn parse(text: &str, names: &dyn PortNames) -> Result<Self, ParseError> {
        let parse = || {
            let mut parser = MatchParser::new(names);
            let mut items = KeyValues::new(Span::new(text));
            while let Some(item) = items.next()? {
                if !parser.item(item)? {
                    return Err(item.key.fault(ParseErrorKind::UnknownKeyword(item.key.text.into())));
                }
            }
            parser.finish()
        };
        parse().map_err(|fault| fault.in_text(text))
    }
}

/// Collects a match item by item.
pub(crate) struct MatchParser<'a> {
    names: &'a dyn PortNames,
    flow: FlowMatch,
    /// Fields as written, to be checked when the whole match is known.
    used: Vec<(FieldId, Span<'a>, Span<'a>)>,
}

impl<'a> MatchParser<'a> {
    pub(crate) fn new(names: &'a dyn PortNames) -> Self {
        Self { names, flow: FlowMatch::catch_all(), used: Vec::new() }
    }

    /// Takes an item if it belongs to a match; false if its key means nothing here.
    pub(crate) fn item(&mut self, item: KeyValue<'a>) -> Parsed<bool> {
        let KeyValue { key, value, delimiter } = item;
        if let Some((word, dl_type, nw_proto)) = PROTOCOLS.iter().find(|(word, ..)| *word == key.text) {
            no_value(word, item)?;
            self.flow.set_exact(FieldId::EthType, (*dl_type).into());
            if let Some(proto) = nw_proto {
                self.flow.set_exact(FieldId::IpProto, (*proto).into());
                self.used.push((FieldId::IpProto, key, value));
            }
        } else if key.text == "eth" {
            // Packets of other types than Ethernet do not exist here.
            no_value("eth", item)?;
        } else if let Some(field) = FieldId::by_name(key.text) {
            if delimiter == Some('(') {
                return Err(value.bad_value(key.text, format!("{}=VALUE", key.text)));
            }
            let (value_bits, mask) = parse_field_value(field, key.text, value, self.names, ValueUse::Match)?;
            self.flow.set(field, value_bits, mask);
            self.used.push((field, key, value));
        } else if key.text.contains('[') {
            self.subfield(key, value)?;
        } else if is_unsupported_name(key.text) {
            return Err(key.fault(ParseErrorKind::UnsupportedField(key.text.into())));
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// The match, its prerequisites checked.
    pub(crate) fn finish(self) -> Parsed<FlowMatch> {
        for (field, name, value) in &self.used {
            if self.flow.mask.get(*field) == 0 {
                continue;
            }
            if matches!(name.text, "tp_src" | "tp_dst") {
                self.check_generic_port(*field, *name, *value)?;
            } else if let Some(needs) = self.flow.missing_prerequisite(*field) {
                let (what, needs) = (name.text.to_string(), needs.to_string());
                return Err(name.fault(ParseErrorKind::MissingPrerequisite { what, needs }));
            }
        }
        Ok(self.flow)
    }

    /// `reg0[3..5]=2` matches some bits of a field.
    fn subfield(&mut self, key: Span<'a>, value: Span<'a>) -> Parsed<()> {
        let sub = Subfield::parse(key)?;
        if sub.field.info().maskable == Maskable::Exact && sub != Subfield::whole(sub.field) {
            return Err(key.fault(ParseErrorKind::MaskNotAllowed(key.text.into())));
        }
        let bits = parse_integer(value.text)
            .filter(|bits| *bits <= sub.max() && sub.insert(0, *bits) & !sub.field.full_mask() == 0)
            .ok_or_else(|| value.bad_value(key.text, format!("a number from 0 to {:#x}", sub.max())))?;
        let (old_value, old_mask) = self.flow.get(sub.field);
        self.flow.set(sub.field, sub.insert(old_value, bits), old_mask | sub.mask());
        self.used.push((sub.field, key, value));
        Ok(())
    }

    /// `tp_src` and `tp_dst` are the ports of any transport protocol, or ICMP's type and code.
    fn check_generic_port(&self, field: FieldId, name: Span<'_>, value: Span<'_>) -> Parsed<()> {
        use Prerequisite as P;
        let met = |list: &[P]| list.iter().any(|prerequisite| self.flow.value.meets(*prerequisite));
        if met(&[P::Tcp, P::Udp, P::Sctp]) {
            return Ok(());
        }
        if !met(&[P::Icmp, P::Icmpv6]) {
            let needs = "tcp, udp, sctp, icmp or one of their IPv6 forms, and no ip_frag=later".to_string();
            return Err(name.fault(ParseErrorKind::MissingPrerequisite { what: name.text.into(), needs }));
        }
        let (bits, mask) = self.flow.get(field);
        if mask != field.full_mask() {
            return Err(value.fault(ParseErrorKind::MaskNotAllowed(format!("{} of ICMP", name.text))));
        }
        if bits > 0xff {
            return Err(value.bad_value(format!("{} of ICMP", name.text), "a number from 0 to 255"));
        }
        Ok(())
    }
}

fn no_value(word: &str, item: KeyValue<'_>) -> Parsed<()> {
    match item.delimiter {
        None => Ok(()),
        Some(_) => Err(item.value.fault(ParseErrorKind::BadValue {
            what: word.into(),
            value: item.value.text.into(),
            expected: format!("{word} alone, without a value"),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::NoPortNames;

    fn parse(text: &str) -> Result<FlowMatch, String> {
        FlowMatch::parse(text, &NoPortNames).map_err(|error| error.to_string())
    }

    #[test]
    fn a_match_without_its_prerequisite_names_it() {
        for (text, error) in [
            (
                "tp_src=80",
                "column 1: tp_src needs its prerequisite: add tcp, udp, sctp, icmp or one of their IPv6 forms",
            ),
            ("ip, tcp_dst=80", "column 5: tcp_dst needs its prerequisite: add tcp or tcp6"),
            ("udp,tcp_dst=80", "column 5: tcp_dst needs its prerequisite: add tcp or tcp6"),
            ("nw_src=10.0.0.1", "column 1: nw_src needs its prerequisite: add ip to the match"),
            ("ipv6,nw_src=10.0.0.1", "column 6: nw_src needs"),
            ("ip,arp_op=1", "column 4: arp_op needs its prerequisite: add arp or rarp"),
            ("icmp6,nd_target=::1", "column 7: nd_target needs its prerequisite: add icmp6,icmpv6_type=135 or"),
            ("icmp6,icmpv6_type=136,nd_sll=::1", "column 30: bad value"),
            (
                "icmp6,icmp_type=136,nd_sll=0:0:0:0:0:1",
                "column 21: nd_sll needs its prerequisite: add icmp6,icmpv6_type=135",
            ),
            ("tcp,ip_frag=later,tp_dst=80", "column 19: tp_dst needs"),
            ("nw_tos=4", "column 1: nw_tos needs its prerequisite: add ip or ipv6 to the match"),
            ("reg0=1,nw_proto=6", "column 8: nw_proto needs"),
            ("tcp_flags=+syn", "column 1: tcp_flags needs"),
            // What comes later wins, and takes the ground from under what came before.
            ("tcp,dl_type=0x1234", "column 1: tcp needs its prerequisite: add ip or ipv6 to the match"),
            ("icmp,tp_src=256", "column 13: bad value `256` for tp_src of ICMP: expected a number from 0 to 255"),
            ("icmp,tp_src=1/1", "column 13: tp_src of ICMP cannot be masked"),
        ] {
            let found = parse(text).unwrap_err();
            if text.contains("nd_sll=::1") {
                assert!(found.contains("bad value `::1` for nd_sll"), "{text}: {found}");
            } else {
                assert!(found.starts_with(error), "{text}: {found}");
            }
        }
    }

    #[test]
    fn shared_members_take_the_meaning_of_their_protocol() {
        assert_eq!(parse("arp,nw_src=10.0.0.1,nw_proto=1"), parse("arp,arp_spa=10.0.0.1,arp_op=1"));
        assert_eq!(parse("icmp,tp_src=8,tp_dst=0"), parse("icmp,icmp_type=8,icmp_code=0"));
        assert_eq!(parse("icmp6,icmp_type=135"), parse("icmp6,icmpv6_type=135"));
        assert_eq!(parse("tp_dst=80,nw_proto=6,dl_type=0x800"), parse("tcp,tcp_dst=80"));
        assert_eq!(parse("tcp,tp_dst=80,tp_dst=*"), parse("tcp"));
    }

    #[test]
    fn bits_of_a_field_are_matched_one_by_one() {
        let flow = parse("reg0[0..3]=5,reg0[31]=1,NXM_NX_REG1[]=7").unwrap();
        assert_eq!((flow.value.regs[0], flow.mask.regs[0]), (0x8000_0005, 0x8000_000f));
        assert_eq!((flow.value.regs[1], flow.mask.regs[1]), (7, u32::MAX));
        assert!(parse("reg0[0..3]=16").unwrap_err().contains("column 12: bad value `16` for reg0[0..3]"));
        assert!(parse("in_port[0..3]=1").unwrap_err().contains("cannot be masked"));
    }

    #[test]
    fn what_is_unknown_is_not_what_is_unsupported() {
        for name in ["ct_state", "mpls_label", "nsh_spi", "tun_src", "tun_metadata63", "nd_reserved"] {
            assert_eq!(parse(&format!("{name}=1")), Err(format!("column 1: field {name} is not supported yet")));
        }
        assert!(parse("ip,sport=1").unwrap_err().starts_with("column 4: unknown keyword `sport`"));
        assert!(parse("tcp=1").unwrap_err().contains("expected tcp alone"));
        assert_eq!(parse("eth,ip"), parse("ip"));
        assert_eq!(parse(""), Ok(FlowMatch::catch_all()));
    }
}
