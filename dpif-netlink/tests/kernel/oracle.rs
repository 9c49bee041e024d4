//! Frames about which the module's extraction and ours are known to differ.

use datapath_common::FlowKey;

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
