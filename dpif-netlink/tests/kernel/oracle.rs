//! Frames that nobody would send, for the module's extraction and ours to agree about.

use datapath_common::FlowKey;
use fastrand::Rng;

use crate::rig;

/// Ethernet types whose packets are looked into.
const TYPES: [u16; 10] = [0x0800, 0x86dd, 0x0806, 0x8035, 0x8100, 0x88a8, 0x8847, 0x8848, 0x894f, 0x05dc];
/// IP protocols likewise, with IPv6's extension headers.
const PROTOCOLS: [u8; 13] = [0, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 132, 255];

/// A frame of one of the kinds that there are, and what chance makes of it: bytes changed, cut, longer, tagged, other types.
pub(crate) fn frame(rng: &mut Rng, kinds: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = kinds.get(rng.usize(..kinds.len())).cloned().unwrap_or_else(|| rig::udp_frame(1));
    for _ in 0..rng.usize(0..4) {
        match rng.u8(0..7) {
            0 => frame.truncate(rng.usize(14..=frame.len())),
            1 => frame.extend((0..rng.usize(0..64)).map(|_| rng.u8(..))),
            2 => {
                let tag: [u8; 4] = [if rng.bool() { 0x81 } else { 0x88 }, 0, rng.u8(..), rng.u8(..)];
                let tag = if tag[0] == 0x88 { [0x88, 0xa8, tag[2], tag[3]] } else { tag };
                frame.splice(12..12, tag);
            }
            3 => {
                let kind = TYPES[rng.usize(..TYPES.len())].to_be_bytes();
                frame[12..14].copy_from_slice(&kind);
            }
            4 => {
                // Where IPv4 and IPv6 have their protocol.
                let at = *rng.choice([20, 23, 54].iter()).unwrap_or(&23);
                if let Some(byte) = frame.get_mut(at) {
                    *byte = PROTOCOLS[rng.usize(..PROTOCOLS.len())];
                }
            }
            _ => {
                let at = rng.usize(12..frame.len().max(13));
                if let Some(byte) = frame.get_mut(at) {
                    *byte = if rng.bool() { rng.u8(..) } else { *byte ^ 1 << rng.u8(0..8) };
                }
            }
        }
    }
    frame
}

/// A tag that is cut off: the kernel drops the frame before it gets to any datapath.
pub(crate) fn ends_before_the_switch(frame: &[u8]) -> bool {
    let tagged = matches!(frame.get(12..14), Some([0x81, 0] | [0x88, 0xa8]));
    tagged && frame.len() < 20
}

/// What docs/extraction.md and docs/kernels.md name: a stack of more labels than we walk, and a second tag that is cut off, whose
/// type an upcall doesn't say.
pub(crate) fn has_a_known_difference(frame: &[u8]) -> bool {
    const LABELS: usize = 16;
    let type_at = |at: usize| frame.get(at..at + 2).map_or(0, |kind| u16::from_be_bytes([kind[0], kind[1]]));
    let is_tag = |at: usize| matches!(type_at(at), 0x8100 | 0x88a8);
    if is_tag(12) && is_tag(16) && frame.len() < 24 {
        return true;
    }
    let at = if is_tag(12) { if is_tag(16) { 20 } else { 16 } } else { 12 };
    let labels = frame.get(at + 2..).unwrap_or_default().chunks_exact(4);
    matches!(type_at(at), 0x8847 | 0x8848) && labels.len() > LABELS && labels.take(LABELS).all(|lse| lse[2] & 1 == 0)
}

/// Whether two keys of an IPv6 packet are the same but for what follows the chain of extension headers, where the module says that
/// nothing does.
pub(crate) fn differ_in_a_broken_chain(ours: &FlowKey, theirs: &FlowKey) -> bool {
    const NOTHING: u8 = 59;
    let before = |key: &FlowKey| FlowKey {
        ip_proto: 0,
        ip_frag: 0,
        tcp_flags: Default::default(),
        tp_src: Default::default(),
        tp_dst: Default::default(),
        nd_target: [0; 16],
        arp_sha: [0; 6],
        arp_tha: [0; 6],
        ipv6_exthdrs: 0,
        ..*key
    };
    ours.eth_type.get() == 0x86dd && theirs.ip_proto == NOTHING && before(ours) == before(theirs)
}
