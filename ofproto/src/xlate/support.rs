//! What the datapath can't do, and what becomes of it: what it can't run, userspace runs; what it can't see, no megaflow matches.

use datapath_common::key::VLAN_PRESENT;
use datapath_common::{Be16, Be32, FlowKey, Vlan};
use dpif::{Action, Features, KeyAttr};

/// Why the datapath can't run these actions, if so. `metered`: there may be meters in front of what goes to controllers, which a
/// datapath that has meters has with its samples, whatever it compiles.
pub(super) fn obstacle(actions: &[Action], features: &Features, metered: bool) -> Option<String> {
    if let Some(name) = missing(actions, features, 0) {
        return Some(format!("action {name}"));
    }
    if !features.compiles {
        return None;
    }
    let checked = match metered {
        false => dpif::program::check(actions),
        true => dpif::program::check(&super::controller::unmetered(actions)),
    };
    checked.err().map(|error| error.to_string())
}

/// The first action that the datapath doesn't have.
fn missing(actions: &[Action], features: &Features, depth: usize) -> Option<&'static str> {
    actions.iter().find_map(|action| match action {
        Action::Trunc(_) => (!features.trunc).then_some("trunc"),
        Action::Recirc(_) => (!features.recirc).then_some("recirc"),
        Action::Set(set) => match set.attr {
            KeyAttr::Arp => (!features.set_arp).then_some("set(arp)"),
            KeyAttr::Icmp | KeyAttr::Icmpv6 => (!features.set_icmp).then_some("set(icmp)"),
            _ => None,
        },
        Action::Sample { actions, .. } if depth < features.sample_nesting => missing(actions, features, depth + 1),
        Action::Sample { .. } => Some("sample"),
        _ => None,
    })
}

/// Takes out of a key (or a mask) what no key of the datapath says and no translation looks at: IPv6 extension headers, inner
/// labels; and out of a mask, the tags that it doesn't see. A packet that has such a tag [doesn't fit](fits) its key, and those of a
/// megaflow, which has the Ethernet type behind the last tag, have none.
pub(crate) fn forget_unsayable(key: &mut FlowKey, features: &Features) {
    forget_unread(key, features);
    if features.max_vlan_headers < 2 {
        key.cvlan = Vlan::default();
    }
    if features.max_vlan_headers < 1 {
        key.vlan = Vlan::default();
    }
}

fn forget_unread(key: &mut FlowKey, features: &Features) {
    if !features.ipv6_exthdrs {
        key.ipv6_exthdrs = 0;
    }
    // The outermost label is looked at: a datapath without it has keys that lack something.
    for (n, lse) in key.mpls_lse.iter_mut().enumerate().skip(features.max_mpls_depth.max(1)) {
        *lse = Be32::ZERO;
        key.mpls_labels &= !(1 << n);
    }
}

/// Whether the datapath can tell packets with this key from all others that translation tells from them. The key loses what
/// [neither looks at](forget_unsayable).
pub(crate) fn fits(key: &mut FlowKey, features: &Features) -> bool {
    forget_unread(key, features);
    let tags = [key.vlan, key.cvlan].iter().filter(|tag| !(tag.tci & Be16::new(VLAN_PRESENT)).is_zero()).count();
    tags <= features.max_vlan_headers
}
