//! The stages in which a subtable's fields are looked at.

use std::sync::OnceLock;

use datapath_common::key::KEY_WORDS;
use datapath_common::{Be16, Be32, FlowKey, Vlan};

use crate::flow::Flow;

/// Metadata, layer 2, layer 3, layer 4.
pub(super) const N_STAGES: usize = 4;
/// The stage of the network layer's addresses.
pub(super) const LAYER3: usize = 2;

/// The fields of each stage, divided as the reference divides them: MPLS goes with layer 2, what stands behind the IP header with
/// layer 4. Together they are all fields, and no two share a bit.
pub(super) fn stage_masks() -> &'static [Flow; N_STAGES] {
    static MASKS: OnceLock<[Flow; N_STAGES]> = OnceLock::new();
    MASKS.get_or_init(|| {
        let layer2 = FlowKey {
            eth_dst: [0xff; 6],
            eth_src: [0xff; 6],
            eth_type: Be16::MAX,
            vlan: Vlan { tpid: Be16::MAX, tci: Be16::MAX },
            cvlan: Vlan { tpid: Be16::MAX, tci: Be16::MAX },
            mac_proto: u8::MAX,
            mpls_lse: [Be32::MAX; 3],
            mpls_labels: u16::MAX,
            ..FlowKey::ZERO
        };
        let layer3 = FlowKey {
            ip_proto: u8::MAX,
            ip_tos: u8::MAX,
            ip_ttl: u8::MAX,
            ip_frag: u8::MAX,
            ipv4_src: Be32::MAX,
            ipv4_dst: Be32::MAX,
            ipv6_src: [0xff; 16],
            ipv6_dst: [0xff; 16],
            ipv6_label: Be32::MAX,
            ipv6_exthdrs: u16::MAX,
            ct_orig_ipv4_src: Be32::MAX,
            ct_orig_ipv4_dst: Be32::MAX,
            ct_orig_ipv6_src: [0xff; 16],
            ct_orig_ipv6_dst: [0xff; 16],
            ..FlowKey::ZERO
        };
        let layer4 = FlowKey {
            tp_src: Be16::MAX,
            tp_dst: Be16::MAX,
            tcp_flags: Be16::MAX,
            nd_target: [0xff; 16],
            arp_sha: [0xff; 6],
            arp_tha: [0xff; 6],
            nsh_path: Be32::MAX,
            nsh_flags: u8::MAX,
            nsh_ttl: u8::MAX,
            nsh_mdtype: u8::MAX,
            nsh_np: u8::MAX,
            nsh_context: [Be32::MAX; 4],
            ct_orig_tp_src: Be16::MAX,
            ct_orig_tp_dst: Be16::MAX,
            ..FlowKey::ZERO
        };
        let mut metadata = FlowKey::from_words(&[u64::MAX; KEY_WORDS]);
        for layer in [&layer2, &layer3, &layer4] {
            for (word, layer) in metadata.words_mut().iter_mut().zip(layer.words()) {
                *word &= !layer;
            }
        }
        let stage = |key| {
            let mut flow = Flow::ZERO;
            flow.key = key;
            flow
        };
        let mut first = Flow::pipeline_mask();
        first.key = metadata;
        [first, stage(layer2), stage(layer3), stage(layer4)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_one_stage() {
        let mut all = Flow::ZERO;
        for stage in stage_masks() {
            assert_eq!(all.masked(stage), Flow::ZERO);
            all.add(stage);
        }
        assert!(all.words().iter().all(|word| *word == u64::MAX));
    }
}
