//! A frame's key, found the obvious way: a second reading beside `datapath_common::extract`, from `docs/extraction.md`.
//!
//! It is slow and has nothing in common with the first but the type of the result: headers are cut off the front of a slice, a header
//! that isn't whole ends the reading.

#[path = "../../dpif/tests/reference/twin.rs"]
mod twin;

use datapath_common::extract::{MAX_EXT_HEADERS, MAX_LABELS, MAX_ND_OPTIONS};
use datapath_common::{Be16, Be32, FlowKey, Vlan};

const HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTH: u8 = 51;
const NO_NEXT: u8 = 59;
const DEST: u8 = 60;

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> Be32 {
    Be32::new(u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

/// The key of a frame with its tags in its bytes; `None` where the module drops it.
pub(crate) fn key(frame: &[u8]) -> Option<FlowKey> {
    if frame.len() < 14 {
        return None;
    }
    let mut key = FlowKey::ZERO;
    key.eth_dst.copy_from_slice(&frame[..6]);
    key.eth_src.copy_from_slice(&frame[6..12]);
    let mut rest = &frame[12..];
    for tag in [&mut key.vlan, &mut key.cvlan] {
        if !matches!(be16(rest, 0), 0x8100 | 0x88a8) || rest.len() < 6 {
            break;
        }
        *tag = Vlan { tpid: Be16::new(be16(rest, 0)), tci: Be16::new(be16(rest, 2) | 0x1000) };
        rest = &rest[4..];
    }
    let (mut eth_type, mut l3) = (be16(rest, 0), &rest[2..]);
    if eth_type < 0x600 {
        eth_type = 4;
        if let [0xaa, 0xaa, _, 0, 0, 0, t0, t1, behind @ ..] = l3 {
            let snap = u16::from_be_bytes([*t0, *t1]);
            if snap >= 0x600 {
                eth_type = snap;
            }
            l3 = behind;
        }
    }
    key.eth_type = Be16::new(eth_type);
    match eth_type {
        0x0800 => ipv4(l3, &mut key),
        0x86dd => ipv6(l3, &mut key),
        0x0806 | 0x8035 => arp(l3, &mut key),
        0x8847 | 0x8848 => mpls(l3, &mut key),
        0x894f => nsh(l3, &mut key)?,
        _ => {}
    }
    Some(key)
}

fn ipv4(l3: &[u8], key: &mut FlowKey) {
    if l3.len() < 20 {
        return;
    }
    let header = usize::from(l3[0] & 0xf) * 4;
    if header < 20 || l3.len() < header {
        return;
    }
    (key.ip_tos, key.ip_ttl, key.ip_proto) = (l3[1], l3[8], l3[9]);
    (key.ipv4_src, key.ipv4_dst) = (be32(l3, 12), be32(l3, 16));
    let fragment = be16(l3, 6);
    key.ip_frag = match (fragment & 0x1fff, fragment & 0x2000) {
        (0, 0) => 0,
        (0, _) => 1,
        _ => 2,
    };
    if key.ip_frag != 2 {
        transport(&l3[header..], key, 1);
    }
}

/// `icmp`: the protocol number of this IP version's ICMP.
fn transport(l4: &[u8], key: &mut FlowKey, icmp: u8) {
    let whole = match key.ip_proto {
        6 if l4.len() >= 20 => {
            let header = usize::from(l4[12] >> 4) * 4;
            if header < 20 || l4.len() < header {
                return;
            }
            key.tcp_flags = Be16::new(be16(l4, 12) & 0xfff);
            20
        }
        6 => return,
        17 => 8,
        132 => 12,
        other if other == icmp => {
            if l4.len() >= 8 {
                (key.tp_src, key.tp_dst) = (Be16::new(l4[0].into()), Be16::new(l4[1].into()));
            }
            return;
        }
        _ => return,
    };
    if l4.len() >= whole {
        (key.tp_src, key.tp_dst) = (Be16::new(be16(l4, 0)), Be16::new(be16(l4, 2)));
    }
}

fn ipv6(l3: &[u8], key: &mut FlowKey) {
    if l3.len() < 40 {
        return;
    }
    key.ipv6_src.copy_from_slice(&l3[8..24]);
    key.ipv6_dst.copy_from_slice(&l3[24..40]);
    let first = u32::from_be_bytes([l3[0], l3[1], l3[2], l3[3]]);
    (key.ip_tos, key.ip_ttl) = ((first >> 20) as u8, l3[7]);
    key.ipv6_label = Be32::new(first & 0xf_ffff);
    key.ipv6_exthdrs = twin::extension_bits(l3);
    key.ip_proto = NO_NEXT;
    let is_extension = |kind| matches!(kind, HOP | ROUTING | FRAGMENT | AUTH | DEST);
    let (mut kind, mut rest, mut walked) = (l3[6], Some(&l3[40..]), 0);
    while is_extension(kind) {
        walked += 1;
        // What is stepped over need not be there; what is read must.
        let Some([next, length, behind @ ..]) = rest else { return };
        let whole = rest.unwrap_or_default();
        let length = usize::from(*length);
        let step = match kind {
            AUTH => (length + 2) * 4,
            FRAGMENT => {
                key.ip_frag = 1;
                let [o0, o1, ..] = behind else { return };
                if u16::from_be_bytes([*o0, *o1]) & !7 != 0 {
                    if !is_extension(*next) {
                        (key.ip_frag, key.ip_proto) = (2, FRAGMENT);
                    }
                    return;
                }
                8
            }
            ROUTING if whole.len() < 4 => return,
            _ => (length + 1) * 8,
        };
        (kind, rest) = (*next, whole.get(step..));
        // The walk's bound is met in front of what would be the next header of any kind.
        if walked == MAX_EXT_HEADERS {
            return;
        }
    }
    key.ip_proto = kind;
    let l4 = rest.unwrap_or_default();
    transport(l4, key, 58);
    if kind == 58 && l4.len() >= 24 && matches!(l4[..2], [135 | 136, 0]) {
        neighbour_discovery(l4, key);
    }
}

fn neighbour_discovery(l4: &[u8], key: &mut FlowKey) {
    let (mut addresses, mut rest) = ([[0; 6]; 2], &l4[24..]);
    for _ in 0..MAX_ND_OPTIONS {
        let [kind, length, a0, a1, a2, a3, a4, a5, ..] = *rest else { break };
        let Some(behind) = rest.get(usize::from(length) * 8..).filter(|_| length != 0) else { break };
        if length == 1 && matches!(kind, 1 | 2) {
            let address = &mut addresses[usize::from(kind) - 1];
            if *address != [0; 6] {
                return;
            }
            *address = [a0, a1, a2, a3, a4, a5];
        }
        rest = behind;
    }
    key.nd_target.copy_from_slice(&l4[8..24]);
    [key.arp_sha, key.arp_tha] = addresses;
}

fn arp(l3: &[u8], key: &mut FlowKey) {
    if l3.len() < 28 || l3[..6] != [0, 1, 8, 0, 6, 4] {
        return;
    }
    key.ip_proto = u8::try_from(be16(l3, 6)).unwrap_or(0);
    (key.ipv4_src, key.ipv4_dst) = (be32(l3, 14), be32(l3, 24));
    key.arp_sha.copy_from_slice(&l3[8..14]);
    key.arp_tha.copy_from_slice(&l3[18..24]);
}

fn mpls(l3: &[u8], key: &mut FlowKey) {
    let labels: Vec<&[u8]> = l3.chunks_exact(4).take(MAX_LABELS as usize).collect();
    let bottom = labels.iter().position(|label| label[2] & 1 != 0);
    let shown = bottom.map_or(labels.len(), |bottom| bottom + 1);
    for (to, label) in key.mpls_lse.iter_mut().zip(&labels[..shown]) {
        *to = be32(label, 0);
    }
    key.mpls_labels = twin::label_bits(l3);
}

fn nsh(l3: &[u8], key: &mut FlowKey) -> Option<()> {
    if l3.len() < 8 {
        return None;
    }
    let first = be16(l3, 0);
    let length = usize::from(first & 0x3f) * 4;
    if first >> 14 != 0 || l3.len() < length {
        return None;
    }
    (key.nsh_flags, key.nsh_ttl) = ((first >> 12 & 3) as u8, (first >> 6 & 0x3f) as u8);
    (key.nsh_mdtype, key.nsh_np, key.nsh_path) = (l3[2], l3[3], be32(l3, 4));
    match (l3[2], length) {
        (1, 24) => {
            for (i, context) in key.nsh_context.iter_mut().enumerate() {
                *context = be32(l3, 8 + 4 * i);
            }
            Some(())
        }
        (2, _) => Some(()),
        _ => None,
    }
}
