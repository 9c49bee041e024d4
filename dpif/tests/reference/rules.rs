//! The differences between the two extractions that are meant to be there.
//!
//! Each rule turns the key of the kernel module's extraction into the one that the reference's userspace extraction finds,
//! for the frames that it concerns, and leaves others alone. They are applied in this order, and what comes out must be the
//! reference's key in every field: no rule excuses a field, each says what becomes of it. `docs/extraction.md` explains them
//! in the same order.

use datapath_common::extract::{Layers, MAX_EXT_HEADERS, MAX_ND_OPTIONS, eth_type, extract_into, ip_proto};
use datapath_common::key::{FRAG_FIRST, FRAG_LATER, FRAG_NONE};
use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, FlowKey};

/// A frame, and what is known of it so far.
pub(crate) struct View {
    /// The frame, or as much as the extraction looks at.
    pub(crate) frame: Vec<u8>,
    pub(crate) key: FlowKey,
    pub(crate) layers: Layers,
    /// The kernel module drops the frame; `key` has what was found until then.
    pub(crate) dropped: bool,
}

/// One difference.
pub(crate) struct Rule {
    /// As in the documentation.
    pub(crate) name: &'static str,
    /// Changes the view if it concerns the frame.
    pub(crate) apply: fn(&mut View),
}

pub(crate) const RULES: &[Rule] = &[
    Rule { name: "LLC control field", apply: llc_control },
    Rule { name: "no Ethernet type", apply: no_ethernet_type },
    Rule { name: "NSH metadata of unknown type", apply: nsh_unknown_type },
    Rule { name: "NSH malformed", apply: nsh_malformed },
    Rule { name: "NSH type 2 shorter than its base", apply: nsh_type_2_short },
    Rule { name: "IPv4 total length impossible", apply: ipv4_length_impossible },
    Rule { name: "IPv4 total length ends the packet", apply: ipv4_length_ends_packet },
    Rule { name: "IPv6 payload length beyond the frame", apply: ipv6_length_beyond_frame },
    Rule { name: "IPv6 payload length zero", apply: ipv6_length_zero },
    Rule { name: "IPv6 payload length ends the packet", apply: ipv6_length_ends_packet },
    Rule { name: "many IPv6 extension headers", apply: many_extension_headers },
    Rule { name: "IPv6 fragment header without fragment", apply: atomic_fragment },
    Rule { name: "later IPv6 fragment of an extension header", apply: later_fragment_of_extension },
    Rule { name: "IPv6 extension header cut off", apply: extension_cut_off },
    Rule { name: "IPv6 extension headers broken", apply: extensions_broken },
    Rule { name: "many neighbour discovery options", apply: many_nd_options },
    Rule { name: "ICMP of the other IP version", apply: icmp_of_other_version },
    Rule { name: "IGMP type", apply: igmp_type },
];

impl View {
    pub(crate) fn new(frame: Vec<u8>) -> Self {
        let mut view = Self { frame, key: FlowKey::ZERO, layers: Layers::default(), dropped: false };
        view.extract();
        view
    }

    fn extract(&mut self) {
        (self.key, self.layers) = (FlowKey::ZERO, Layers::default());
        let packet = SlicePacket::new(self.frame.clone());
        self.dropped = extract_into(&packet, &mut self.key, &mut self.layers).is_err();
        // The reference's flow has no such fields.
        (self.key.ipv6_exthdrs, self.key.mpls_labels) = (0, 0);
    }

    /// From the network header on.
    fn l3(&self) -> &[u8] {
        self.frame.get(self.layers.l3 as usize..).unwrap_or_default()
    }

    /// From the transport header on, where there is one.
    fn l4(&self) -> &[u8] {
        let l4 = self.layers.l4 as usize;
        self.frame.get(l4..).filter(|_| l4 != 0).unwrap_or_default()
    }

    fn is(&self, kind: u16) -> bool {
        self.key.eth_type.get() == kind
    }

    /// Leaves the Ethernet header and the tags.
    fn blank_network(&mut self) {
        let FlowKey { eth_dst, eth_src, eth_type, vlan, cvlan, .. } = self.key;
        self.key = FlowKey { eth_dst, eth_src, eth_type, vlan, cvlan, ..FlowKey::ZERO };
        (self.layers.l4, self.dropped) = (0, false);
    }

    /// Leaves the IPv6 addresses too.
    fn blank_behind_addresses(&mut self) {
        let FlowKey { ipv6_src, ipv6_dst, .. } = self.key;
        self.blank_network();
        (self.key.ipv6_src, self.key.ipv6_dst) = (ipv6_src, ipv6_dst);
    }

    /// Does as if the frame ended `bytes` behind the network header's start.
    fn end_packet(&mut self, bytes: usize) {
        self.frame.truncate(self.layers.l3 as usize + bytes);
        self.extract();
    }

    /// The IPv4 header's length and the total length, where the header is whole.
    fn ipv4_lengths(&self) -> Option<(usize, usize)> {
        let l3 = self.l3();
        let header = usize::from(l3.first()? & 0xf) * 4;
        let whole = self.is(eth_type::IPV4) && header >= 20 && l3.len() >= header;
        whole.then(|| (header, be16(l3, 2).into()))
    }

    /// The IPv6 packet's length by its header, where that is whole.
    fn ipv6_length(&self) -> Option<usize> {
        (self.is(eth_type::IPV6) && self.l3().len() >= 40).then(|| 40 + usize::from(be16(self.l3(), 4)))
    }

    /// How the reference goes through the extension headers of a whole IPv6 header.
    fn walk(&self) -> Option<Walk> {
        self.ipv6_length()?;
        let l3 = self.l3();
        Some(walk(l3[6], &l3[40..]))
    }
}

fn llc_control(view: &mut View) {
    let l3 = view.layers.l3 as usize;
    let Some([t0, t1, 0xaa, 0xaa, control, 0, 0, 0, ..]) = l3.checked_sub(10).and_then(|at| view.frame.get(at..l3))
    else {
        return;
    };
    if u16::from_be_bytes([*t0, *t1]) < 0x600 && *control != 3 {
        view.key.eth_type = Be16::new(eth_type::NONE);
        view.blank_network();
    }
}

fn no_ethernet_type(view: &mut View) {
    if view.is(eth_type::NONE) {
        view.key.eth_type = Be16::new(0x05ff);
    }
}

fn nsh_unknown_type(view: &mut View) {
    let l3 = view.l3();
    if view.dropped && l3.len() >= 8 && l3[0] >> 6 == 0 && !matches!(l3[2], 1 | 2) {
        // The header is long enough: otherwise the extraction had stopped before the type.
        view.dropped = view.key.nsh_mdtype != l3[2] || l3.len() < usize::from(l3[1] & 0x3f) * 4;
    }
}

fn nsh_malformed(view: &mut View) {
    if view.dropped && view.is(eth_type::NSH) {
        view.blank_network();
    }
}

fn nsh_type_2_short(view: &mut View) {
    if view.is(eth_type::NSH) && view.key.nsh_mdtype == 2 && view.l3()[1] & 0x3f < 2 {
        view.blank_network();
    }
}

fn ipv4_length_impossible(view: &mut View) {
    if view.ipv4_lengths().is_some_and(|(header, total)| total < header || total > view.l3().len()) {
        view.blank_network();
    }
}

fn ipv4_length_ends_packet(view: &mut View) {
    // A key that is blank already stays so.
    if let Some((header, total)) = view.ipv4_lengths()
        && (header..view.l3().len()).contains(&total)
    {
        view.end_packet(total);
    }
}

fn ipv6_length_beyond_frame(view: &mut View) {
    if view.ipv6_length().is_some_and(|length| length > view.l3().len()) {
        view.blank_network();
    }
}

fn ipv6_length_zero(view: &mut View) {
    if view.ipv6_length() == Some(40) && view.l3().len() > 40 {
        view.end_packet(40);
    }
}

fn ipv6_length_ends_packet(view: &mut View) {
    if let Some(length) = view.ipv6_length()
        && length < view.l3().len()
    {
        view.end_packet(length);
    }
}

fn many_extension_headers(view: &mut View) {
    if view.layers.l4 == 0
        && let Some(walk) = view.walk()
        && walk.headers > MAX_EXT_HEADERS as usize
        && !is_blank(view)
    {
        // As without the headers, but for the fragment.
        match walk.end {
            End::Broken => {}
            End::Later => (view.key.ip_proto, view.key.ip_frag) = (ip_proto::FRAGMENT, FRAG_LATER),
            End::Upper { proto, offset } => {
                let start = view.layers.l3 as usize + 40;
                view.frame.drain(start..start + offset);
                view.frame[start - 34] = proto;
                view.extract();
                view.key.ip_frag = if walk.fragment == Fragment::Part { FRAG_FIRST } else { FRAG_NONE };
            }
        }
    }
}

fn atomic_fragment(view: &mut View) {
    if view.key.ip_frag == FRAG_FIRST
        && view.walk().is_some_and(|w| w.fragment == Fragment::Whole && matches!(w.end, End::Upper { .. }))
    {
        view.key.ip_frag = FRAG_NONE;
    }
}

fn later_fragment_of_extension(view: &mut View) {
    if view.key.ip_frag != FRAG_LATER && !is_blank(view) && view.walk().is_some_and(|w| w.end == End::Later) {
        (view.key.ip_proto, view.key.ip_frag) = (ip_proto::FRAGMENT, FRAG_LATER);
    }
}

fn extension_cut_off(view: &mut View) {
    let found = view.layers.l4 != 0 || view.key.ip_frag == FRAG_LATER;
    if found && view.walk().is_some_and(|w| w.end == End::Broken) {
        view.blank_behind_addresses();
    }
}

fn extensions_broken(view: &mut View) {
    if !is_blank(view) && view.walk().is_some_and(|w| w.end == End::Broken) {
        view.blank_behind_addresses();
    }
}

fn many_nd_options(view: &mut View) {
    let l4 = view.l4();
    if !view.is(eth_type::IPV6) || view.key.ip_proto != ip_proto::ICMPV6 || l4.len() < 24 {
        return;
    }
    if !matches!(l4[..2], [135 | 136, 0]) {
        return;
    }
    let (mut addresses, mut count, mut rest) = ([[0; 6]; 2], 0, &l4[24..]);
    while let [kind, length, a @ ..] = rest
        && let Some(address) = a.first_chunk::<6>()
        && let Some(behind) = rest.get(usize::from(*length) * 8..).filter(|_| *length != 0)
    {
        (count, rest) = (count + 1, behind);
        if *length == 1 && matches!(kind, 1 | 2) {
            let seen = &mut addresses[usize::from(*kind) - 1];
            if *seen != [0; 6] {
                (view.key.arp_sha, view.key.arp_tha, view.key.nd_target) = Default::default();
                return;
            }
            *seen = *address;
        }
    }
    if count > MAX_ND_OPTIONS {
        [view.key.arp_sha, view.key.arp_tha] = addresses;
    }
}

fn icmp_of_other_version(view: &mut View) {
    let other = (view.is(eth_type::IPV4) && view.key.ip_proto == ip_proto::ICMPV6)
        || (view.is(eth_type::IPV6) && view.key.ip_proto == ip_proto::ICMP);
    if other {
        type_and_code(view);
    }
}

fn igmp_type(view: &mut View) {
    const IGMP: u8 = 2;
    if (view.is(eth_type::IPV4) || view.is(eth_type::IPV6)) && view.key.ip_proto == IGMP {
        type_and_code(view);
    }
}

fn type_and_code(view: &mut View) {
    if let [kind, code, _, _, _, _, _, _, ..] = *view.l4() {
        (view.key.tp_src, view.key.tp_dst) = (Be16::new(kind.into()), Be16::new(code.into()));
    }
}

/// An IPv6 packet whose key was blanked by a rule before.
fn is_blank(view: &View) -> bool {
    let FlowKey { ip_proto, ip_tos, ip_ttl, .. } = view.key;
    [ip_proto, ip_tos, ip_ttl] == [0; 3] && view.key.ipv6_src == [0; 16]
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// What a chain of extension headers comes to.
struct Walk {
    headers: usize,
    end: End,
    fragment: Fragment,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum End {
    /// A header is not whole.
    Broken,
    /// A later fragment.
    Later,
    /// This protocol, so far behind the IPv6 header.
    Upper { proto: u8, offset: usize },
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Fragment {
    /// There is no fragment header.
    None,
    /// There are only such as say "offset 0, no more".
    Whole,
    /// The packet is a fragment.
    Part,
}

fn walk(mut proto: u8, payload: &[u8]) -> Walk {
    let mut walk = Walk { headers: 0, end: End::Broken, fragment: Fragment::None };
    let mut offset = 0;
    loop {
        if !matches!(proto, ip_proto::HOP | ip_proto::ROUTING | ip_proto::DEST | ip_proto::AUTH | ip_proto::FRAGMENT) {
            walk.end = End::Upper { proto, offset };
            return walk;
        }
        let Some(head) = payload.get(offset..offset + 8) else { return walk };
        walk.headers += 1;
        let length = usize::from(head[1]);
        offset += match proto {
            ip_proto::AUTH => (length + 2) * 4,
            ip_proto::FRAGMENT => 8,
            _ => (length + 1) * 8,
        };
        if offset > payload.len() {
            return walk;
        }
        if proto == ip_proto::FRAGMENT {
            let part = be16(head, 2);
            if part != 0 {
                walk.fragment = Fragment::Part;
            } else if walk.fragment == Fragment::None {
                walk.fragment = Fragment::Whole;
            }
            if part & !7 != 0 {
                walk.end = End::Later;
                return walk;
            }
        }
        proto = head[0];
    }
}
