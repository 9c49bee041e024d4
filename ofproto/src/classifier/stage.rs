//! The stages in which a subtable's fields are looked at.

use datapath_common::key::KEY_WORDS;
use datapath_common::{Be16, Be32, FlowKey, Vlan};

use crate::flow::{Flow, LINE_WORDS};

/// Metadata, layer 2, layer 3, layer 4.
pub(super) const N_STAGES: usize = 4;
/// The stage of the network layer's addresses.
pub(super) const LAYER3: usize = 2;

/// The fields of each stage, divided as the reference divides them: MPLS goes with layer 2, what stands behind the IP header with
/// layer 4. Together they are all fields, and no two share a bit.
pub(super) static STAGES: [Flow; N_STAGES] = {
    let mut metadata = Flow::pipeline_mask();
    let mut word = 0;
    while word < KEY_WORDS {
        let later = LAYER2_FIELDS.words()[word] | LAYER3_FIELDS.words()[word] | LAYER4_FIELDS.words()[word];
        metadata.key.words_mut()[word] = !later;
        word += 1;
    }
    [metadata, in_key(LAYER2_FIELDS), in_key(LAYER3_FIELDS), in_key(LAYER4_FIELDS)]
};

/// The same of a flow's first words.
pub(super) const FIRST_LINES: [[u64; LINE_WORDS]; N_STAGES] =
    [*STAGES[0].first_line(), *STAGES[1].first_line(), *STAGES[2].first_line(), *STAGES[3].first_line()];

const fn in_key(key: FlowKey) -> Flow {
    let mut flow = Flow::ZERO;
    flow.key = key;
    flow
}

const LAYER2_FIELDS: FlowKey = FlowKey {
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

const LAYER3_FIELDS: FlowKey = FlowKey {
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

const LAYER4_FIELDS: FlowKey = FlowKey {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_one_stage() {
        let mut all = Flow::ZERO;
        for stage in &STAGES {
            assert_eq!(all.masked(stage), Flow::ZERO);
            all.add(stage);
        }
        assert!(all.words().iter().all(|word| *word == u64::MAX));
    }
}
