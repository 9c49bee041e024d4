//! What an engine can do, found out by trying.
//!
//! A probe is a flow with the key or the action in question. Whoever knows the engine says whether it would take it: the kernel's
//! module by being asked, our own engines by compiling it. So what an engine learns later shows here without being listed.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use datapath_common::extract::{eth_type, ip_proto};
use datapath_common::key::{MAC_PROTO_ETHERNET, VLAN_PRESENT};
use datapath_common::{Be16, Be32, FlowKey, Vlan};

use crate::action::{Action, CtAction, HashAlg, KeyAttr, NatAction, NatDirection, SetAction};
use crate::port::OdpPort;

/// A recirculation id that is not given to anybody: no packet can match a probe.
pub const NOBODYS_RECIRC_ID: u32 = u32::MAX;
/// Deepest nest of samples that is tried (`FLOW_MAX_SAMPLE_NESTING`).
const MAX_SAMPLE_NESTING: usize = 10;
/// Connection state bits (`OVS_CS_F_*`): new, tracked, source translated.
const CT_NEW: u32 = 0x01;
const CT_TRACKED: u32 = 0x20;
const CT_SRC_NAT: u32 = 0x40;

/// What an engine can do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// VLAN tags that it extracts.
    pub max_vlan_headers: usize,
    /// MPLS labels that it extracts.
    pub max_mpls_depth: usize,
    /// Recirculation.
    pub recirc: bool,
    /// Sets of single bits.
    pub masked_set: bool,
    /// Sets of ARP's fields.
    pub set_arp: bool,
    /// Sets of ICMP's type and code, of both versions.
    pub set_icmp: bool,
    /// Flows by an id that userspace chooses.
    pub ufid: bool,
    /// `Action::Trunc`.
    pub trunc: bool,
    /// `Action::Clone`.
    pub clone: bool,
    /// `Action::Sample` nesting.
    pub sample_nesting: usize,
    /// `Action::CheckPktLen`.
    pub check_pkt_len: bool,
    /// `Action::Drop`.
    pub explicit_drop: bool,
    /// `Action::DecTtl`.
    pub dec_ttl: bool,
    /// `Action::AddMpls`.
    pub add_mpls: bool,
    /// `Action::Psample`.
    pub psample: bool,
    /// Hash algorithms beyond `HashAlg::L4`: the symmetric one.
    pub hash_sym_l4: bool,
    /// `Action::Ct`: connection tracking.
    pub ct: bool,
    /// `Action::CtClear`.
    pub ct_clear: bool,
    /// `CtAction::event_mask`.
    pub ct_eventmask: bool,
    /// `CtAction::timeout`.
    pub ct_timeout: bool,
    /// Translation to no address in particular, which only avoids collisions of ports.
    pub ct_zero_snat: bool,
    /// Connection fields in keys: state, zone, mark, label, state of translation, tuples of both families.
    pub ct_keys: CtKeys,
    /// IPv6 extension headers in keys.
    pub ipv6_exthdrs: bool,
    /// Lists of actions are programs: what [`program::compile`](crate::program::compile) refuses, the engine refuses.
    pub compiles: bool,
    /// Number of handlers that the backend insists on, if it does.
    pub required_handlers: Option<u32>,
    /// Most handlers that the backend serves, if there is such a number.
    pub max_handlers: Option<u32>,
}

/// Connection fields that keys may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CtKeys {
    /// `ct_state`.
    pub state: bool,
    /// `ct_zone`.
    pub zone: bool,
    /// `ct_mark`.
    pub mark: bool,
    /// `ct_label`.
    pub label: bool,
    /// The bits of `ct_state` about translation.
    pub state_nat: bool,
    /// `ct_orig_*` of IPv4.
    pub orig_tuple: bool,
    /// `ct_orig_*` of IPv6.
    pub orig_tuple6: bool,
}

impl Features {
    /// Tries everything. `accepts` says whether the engine would take a flow with this key, mask and actions.
    ///
    /// # Errors
    /// The first of `accepts`, which means that it could not be found out.
    pub fn probe<E>(mut accepts: impl FnMut(&FlowKey, &FlowKey, &[Action]) -> Result<bool, E>) -> Result<Self, E> {
        let mut key = |key: &FlowKey| accepts(key, &mask_of(key), &[]);
        let mut max_vlan_headers = 0;
        while max_vlan_headers < 2 && key(&vlan(max_vlan_headers + 1))? {
            max_vlan_headers += 1;
        }
        let mut max_mpls_depth = 0;
        while max_mpls_depth < 3 && key(&mpls(max_mpls_depth + 1))? {
            max_mpls_depth += 1;
        }
        let ipv6 = FlowKey { eth_type: Be16::new(eth_type::IPV6), ..ipv4() };
        let mut label = [0; 16];
        label[0] = 1;
        let ct_keys = CtKeys {
            state: key(&FlowKey { ct_state: CT_TRACKED | CT_NEW, ..ipv4() })?,
            zone: key(&FlowKey { ct_zone: 1, ..ipv4() })?,
            mark: key(&FlowKey { ct_mark: 1, ..ipv4() })?,
            label: key(&FlowKey { ct_label: label, ..ipv4() })?,
            state_nat: key(&FlowKey { ct_state: CT_TRACKED | CT_SRC_NAT, ..ipv4() })?,
            orig_tuple: key(&FlowKey { ct_orig_proto: 1, ct_state: CT_TRACKED, ..ipv4() })?,
            orig_tuple6: key(&FlowKey { ct_orig_proto: 1, ct_state: CT_TRACKED, ..ipv6 })?,
        };
        let recirc = key(&FlowKey { dp_hash: 1, ..ipv4() })?;
        let ipv6_exthdrs = key(&FlowKey { ipv6_exthdrs: 1, ..ipv6 })?;
        let ufid = key(&ipv4())?;

        let mut sets = |key: &FlowKey, attr, mask: FlowKey| {
            let set = SetAction { attr, value: FlowKey::ZERO, mask };
            accepts(key, &mask_of(key), &[Action::Set(Box::new(set))])
        };
        let icmp = |eth_type, ip_proto| FlowKey { eth_type: Be16::new(eth_type), ip_proto, ..ipv4() };
        let code = FlowKey { tp_dst: Be16::new(0xff), ..FlowKey::ZERO };
        let set_arp = sets(&arp(), KeyAttr::Arp, FlowKey { arp_sha: [0xff; 6], ..FlowKey::ZERO })?;
        let set_icmp = sets(&icmp(eth_type::IPV4, ip_proto::ICMP), KeyAttr::Icmp, code)?
            && sets(&icmp(eth_type::IPV6, ip_proto::ICMPV6), KeyAttr::Icmpv6, code)?;

        let mut takes = |actions: &[Action]| accepts(&ipv4(), &mask_of(&ipv4()), actions);
        let mut sample_nesting = 0;
        while sample_nesting < MAX_SAMPLE_NESTING && takes(&[sample(sample_nesting + 1)])? {
            sample_nesting += 1;
        }
        let ct = |ct: CtAction| [Action::Ct(ct)];
        let commit = CtAction { commit: true, ..CtAction::default() };
        let zero = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let zero_snat =
            NatAction { direction: Some(NatDirection::Src), addresses: Some((zero, zero)), ..NatAction::default() };
        let lists = || vec![Action::Output(OdpPort(0))];
        let ttl = FlowKey { ip_ttl: 0x53 & 0x7f, ..FlowKey::ZERO };
        let of_ttl = FlowKey { ip_ttl: 0x7f, ..FlowKey::ZERO };
        let set = SetAction { attr: KeyAttr::Ipv4, value: ttl, mask: of_ttl };
        let (lse, mpls) = (Be32::new(0x140), Be16::new(eth_type::MPLS));
        Ok(Self {
            max_vlan_headers,
            max_mpls_depth,
            recirc: recirc && takes(&[Action::Recirc(1)])?,
            masked_set: takes(&[Action::Set(Box::new(set))])?,
            set_arp,
            set_icmp,
            ufid,
            trunc: takes(&[Action::Trunc(64), Action::Output(OdpPort(0))])?,
            clone: takes(&[Action::Clone(Vec::new())])?,
            sample_nesting,
            check_pkt_len: takes(&[Action::CheckPktLen { pkt_len: 64, if_greater: lists(), if_less_equal: lists() }])?,
            explicit_drop: takes(&[Action::Drop(0)])?,
            dec_ttl: takes(&[Action::DecTtl(Vec::new())])?,
            add_mpls: takes(&[Action::AddMpls { lse, eth_type: mpls, flags: 1 }])?,
            psample: takes(&[Action::Psample { group: 10, cookie: vec![0x5a; 16] }])?,
            hash_sym_l4: takes(&[Action::Hash { alg: HashAlg::SymL4, basis: 0 }])?,
            ct: takes(&ct(CtAction::default()))?,
            ct_clear: takes(&[Action::CtClear])?,
            ct_eventmask: takes(&ct(CtAction { event_mask: Some(1), ..commit.clone() }))?,
            ct_timeout: takes(&ct(CtAction { timeout: Some("ovs_test_tp".into()), ..commit.clone() }))?,
            ct_zero_snat: takes(&ct(CtAction { nat: Some(zero_snat), ..commit }))?,
            ct_keys,
            ipv6_exthdrs,
            compiles: false,
            required_handlers: None,
            max_handlers: None,
        })
    }

    /// What was found out, in the field's words and order, one line each; `name` is the datapath's, `TYPE@NAME`.
    pub fn report(&self, name: &str) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |text: std::fmt::Arguments<'_>| {
            let mut line = format!("{name}: ");
            let _ = line.write_fmt(text);
            lines.push(line);
        };
        let can = |can: bool| if can { "supports" } else { "does not support" };
        say(format_args!("Datapath {} recirculation", can(self.recirc)));
        say(format_args!("VLAN header stack length probed as {}", self.max_vlan_headers));
        say(format_args!("MPLS label stack length probed as {}", self.max_mpls_depth));
        if !self.masked_set {
            say(format_args!("datapath does not support masked set action feature."));
        }
        say(format_args!("Datapath {} truncate action", can(self.trunc)));
        say(format_args!("Datapath {} unique flow ids", can(self.ufid)));
        say(format_args!("Datapath {} clone action", can(self.clone)));
        say(format_args!("Max sample nesting level probed as {}", self.sample_nesting));
        say(format_args!("Datapath {} eventmask in conntrack action", can(self.ct_eventmask)));
        say(format_args!("Datapath {} ct_clear action", can(self.ct_clear)));
        say(format_args!("Max dp_hash algorithm probed to be {}", u8::from(self.hash_sym_l4)));
        say(format_args!("Datapath {} check_pkt_len action", can(self.check_pkt_len)));
        say(format_args!("Datapath {} timeout policy in conntrack action", can(self.ct_timeout)));
        say(format_args!("Datapath {} explicit drop action", can(self.explicit_drop)));
        say(format_args!("Datapath {} ct_zero_snat", can(self.ct_zero_snat)));
        say(format_args!("Datapath {} add_mpls action", can(self.add_mpls)));
        say(format_args!("Datapath {} psample action", can(self.psample)));
        let keys = &self.ct_keys;
        for (field, there) in [
            ("ct_state", keys.state),
            ("ct_zone", keys.zone),
            ("ct_mark", keys.mark),
            ("ct_label", keys.label),
            ("ct_state_nat", keys.state_nat),
            ("ct_orig_tuple", keys.orig_tuple),
            ("ct_orig_tuple6", keys.orig_tuple6),
            // The kernel's interface has no such field.
            ("IPv6 ND Extensions", false),
        ] {
            say(format_args!("Datapath {} {field}", can(there)));
        }
        lines
    }
}

/// Exact where the key says something, and in what a probe always says.
fn mask_of(key: &FlowKey) -> FlowKey {
    let mut mask = FlowKey { recirc_id: u32::MAX, eth_type: Be16::MAX, ..FlowKey::ZERO };
    mask.words_mut().iter_mut().zip(key.words()).for_each(|(mask, key)| *mask |= key);
    mask
}

fn sample(depth: usize) -> Action {
    let innermost = Action::Sample { probability: u32::MAX, actions: vec![Action::Output(OdpPort(0))] };
    (1..depth).fold(innermost, |inner, _| Action::Sample { probability: u32::MAX, actions: vec![inner] })
}

fn ipv4() -> FlowKey {
    FlowKey {
        recirc_id: NOBODYS_RECIRC_ID,
        mac_proto: MAC_PROTO_ETHERNET,
        eth_type: Be16::new(eth_type::IPV4),
        ip_proto: 255,
        ..FlowKey::ZERO
    }
}

fn arp() -> FlowKey {
    FlowKey { eth_type: Be16::new(eth_type::ARP), ip_proto: 1, ..ipv4() }
}

fn mpls(labels: usize) -> FlowKey {
    let eth_type = Be16::new(eth_type::MPLS);
    let mut key = FlowKey { recirc_id: NOBODYS_RECIRC_ID, mac_proto: MAC_PROTO_ETHERNET, eth_type, ..FlowKey::ZERO };
    for (i, lse) in key.mpls_lse.iter_mut().take(labels).enumerate() {
        *lse = Be32::new(if i + 1 == labels { 0x1140 } else { 0x1040 });
    }
    key.mpls_labels = (1 << labels) - 1;
    key
}

fn vlan(tags: usize) -> FlowKey {
    let tag = |there| {
        if there { Vlan { tpid: Be16::new(eth_type::VLAN), tci: Be16::new(VLAN_PRESENT | 1) } } else { Vlan::default() }
    };
    FlowKey { vlan: tag(tags >= 1), cvlan: tag(tags >= 2), ..ipv4() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_found_where_everything_is_taken() {
        let features = Features::probe(|_, _, _| Ok::<_, ()>(true)).unwrap();
        assert_eq!((features.max_vlan_headers, features.max_mpls_depth, features.sample_nesting), (2, 3, 10));
        let lines = features.report("system@dp");
        assert_eq!(lines.first().map(String::as_str), Some("system@dp: Datapath supports recirculation"));
        let no: Vec<_> = lines.iter().filter(|line| line.contains("not support")).collect();
        assert_eq!(no, ["system@dp: Datapath does not support IPv6 ND Extensions"]);
    }

    #[test]
    fn nothing_is_found_where_nothing_is_taken() {
        let features = Features::probe(|_, _, _| Ok::<_, ()>(false)).unwrap();
        assert_eq!(features, Features::default());
        let lines = features.report("netdev@dp");
        assert!(lines.contains(&"netdev@dp: datapath does not support masked set action feature.".to_owned()));
        assert!(lines.contains(&"netdev@dp: Max sample nesting level probed as 0".to_owned()));
        assert_eq!(lines.iter().filter(|line| line.contains(" supports ")).count(), 0);
    }

    #[test]
    fn a_probe_that_can_not_be_asked_is_no_answer() {
        assert_eq!(Features::probe(|_, _, _| Err("gone")), Err("gone"));
    }

    #[test]
    fn our_own_engines_say_what_they_compile() {
        let features = crate::program::features();
        assert!(features.recirc && features.trunc && features.masked_set && features.ufid && features.explicit_drop);
        assert_eq!((features.max_vlan_headers, features.max_mpls_depth), (2, 3));
        // What can't be tracked can't be matched either.
        assert_eq!(features.ct, features.ct_keys.state);
    }
}
