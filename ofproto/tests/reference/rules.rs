//! The differences between our megaflows and the reference's that are meant to be there.
//!
//! Each rule changes both masks to the same, where it concerns the packet, and leaves others alone. They are applied in this
//! order, and what comes out must be equal in every bit. `docs/megaflows.md` explains them in the same order.

use datapath_common::extract::eth_type;
use datapath_common::key::VLAN_PRESENT;
use datapath_common::{Be16, Be32, FlowKey, Vlan};
use ofproto::flow::Flow;
use openflow::OfPort;

/// A packet's key, and the masks of its megaflow.
pub(crate) struct View {
    pub(crate) key: FlowKey,
    pub(crate) mask: FlowKey,
    pub(crate) reference: FlowKey,
    /// A tag is taken off by the rules that the packet met, in the reference's words.
    pub(crate) tags_taken_off: bool,
}

/// One difference.
pub(crate) struct Rule {
    /// As in the documentation.
    pub(crate) name: &'static str,
    /// Changes the view if it concerns the packet.
    pub(crate) apply: fn(&mut View),
}

pub(crate) const RULES: &[Rule] = &[
    Rule { name: "how many tags there are", apply: tag_presence },
    Rule { name: "the types of tags", apply: tag_types },
    Rule { name: "an inner tag without the outer one", apply: hidden_inner_tag },
    Rule { name: "a tag in the place of one that was taken off", apply: tag_put_back },
    Rule { name: "fields that the packet doesn't have", apply: absent_fields },
    Rule { name: "gratuitous ARP", apply: gratuitous_arp },
    Rule { name: "priority tags out of NORMAL", apply: priority_tags },
    Rule { name: "fields of neighbour discovery", apply: neighbour_discovery },
];

/// The reference's datapaths always look at how many tags there are, so its masks needn't say it.
fn tag_presence(view: &mut View) {
    let present = Be16::new(VLAN_PRESENT);
    let same = |tag: Vlan, ours: &mut Vlan, theirs: &mut Vlan| {
        if tag.tci.get() & VLAN_PRESENT == 0 {
            *ours = Vlan::default();
        } else {
            (ours.tci, theirs.tci) = (ours.tci | present, theirs.tci | present);
        }
    };
    let View { key, mask, reference, .. } = view;
    same(key.vlan, &mut mask.vlan, &mut reference.vlan);
    same(key.cvlan, &mut mask.cvlan, &mut reference.cvlan);
}

/// Not in the reference's text.
fn tag_types(view: &mut View) {
    (view.mask.vlan.tpid, view.mask.cvlan.tpid) = (Be16::ZERO, Be16::ZERO);
}

/// The reference's text ends its tags with the first that was not looked at.
fn hidden_inner_tag(view: &mut View) {
    let View { mask, reference, .. } = view;
    let is_open = |tag: Vlan| tag.tci.get() & !VLAN_PRESENT == 0;
    if is_open(mask.vlan) && is_open(reference.vlan) && is_open(reference.cvlan) {
        mask.cvlan.tci = reference.cvlan.tci;
    }
}

/// Ours looks at the tags that were taken off as soon as another comes; the reference only if they turn out to differ.
fn tag_put_back(view: &mut View) {
    let View { key, mask, reference, tags_taken_off } = view;
    for (tag, ours, theirs) in
        [(key.vlan, &mut mask.vlan, &mut reference.vlan), (key.cvlan, &mut mask.cvlan, &mut reference.cvlan)]
    {
        let is_whole = ours.tci == Be16::MAX && tag.tci.get() & VLAN_PRESENT != 0;
        if is_whole && *tags_taken_off {
            theirs.tci = Be16::MAX;
        }
    }
}

/// The reference may look at fields which are zero in all packets of the kind.
fn absent_fields(view: &mut View) {
    view.reference = view.reference.masked(&Flow::from_key(&view.key, OfPort(1)).present_fields());
}

/// NORMAL of the reference looks whether a broadcast is a gratuitous ARP, for the sake of bonds.
fn gratuitous_arp(view: &mut View) {
    let View { key, mask, reference, .. } = view;
    let normal = |mask: &FlowKey| mask.eth_src == [0xff; 6] && mask.eth_dst == [0xff; 6];
    if key.eth_type.get() == eth_type::ARP && key.eth_dst == [0xff; 6] && normal(mask) && normal(reference) {
        for mask in [mask, reference] {
            mask.ip_proto = u8::MAX;
            if key.ip_proto == 1 {
                (mask.ipv4_src, mask.ipv4_dst) = (Be32::MAX, Be32::MAX);
            }
        }
    }
}

/// NORMAL of ours takes another of the tags of VLAN 0 off than the reference's; who changes tags has looked at all of them.
fn priority_tags(view: &mut View) {
    let View { key, mask, reference, .. } = view;
    let is_present = |tag: Vlan| tag.tci.get() & VLAN_PRESENT != 0;
    let is_priority = |tag: Vlan| tag.tci.get() & 0x1fff == VLAN_PRESENT;
    let is_whole =
        |mask: &FlowKey| mask.vlan.tci == Be16::MAX && (mask.cvlan.tci == Be16::MAX || !is_present(key.cvlan));
    if (is_priority(key.vlan) || is_priority(key.cvlan)) && (is_whole(mask) || is_whole(reference)) {
        for mask in [mask, reference] {
            mask.vlan.tci = Be16::MAX;
            if is_present(key.cvlan) {
                mask.cvlan.tci = Be16::MAX;
            }
        }
    }
}

/// Our masks with a field of neighbour discovery have type and code as well, which say that the field is there.
fn neighbour_discovery(view: &mut View) {
    let View { key, reference, .. } = view;
    let deep = reference.nd_target != [0; 16] || reference.arp_sha != [0; 6] || reference.arp_tha != [0; 6];
    if key.eth_type.get() == eth_type::IPV6 && deep {
        (reference.tp_src, reference.tp_dst) = (Be16::new(0xff), Be16::new(0xff));
    }
}
