//! Numbers of the kernel's interface (`linux/openvswitch.h`), named as there without their prefix.
#![allow(missing_docs)]

/// Genetlink families.
pub mod family {
    pub const DATAPATH: &str = "ovs_datapath";
    pub const VPORT: &str = "ovs_vport";
    pub const FLOW: &str = "ovs_flow";
    pub const PACKET: &str = "ovs_packet";
    pub const METER: &str = "ovs_meter";
    pub const CT_LIMIT: &str = "ovs_ct_limit";
}

/// `OVS_*_CMD_*`: datapaths, vports and flows number them alike.
pub mod cmd {
    pub const NEW: u8 = 1;
    pub const DEL: u8 = 2;
    pub const GET: u8 = 3;
    pub const SET: u8 = 4;
}

/// `OVS_PACKET_CMD_*`.
pub mod packet_cmd {
    pub const MISS: u8 = 1;
    pub const ACTION: u8 = 2;
    pub const EXECUTE: u8 = 3;
}

/// `OVS_DP_ATTR_*`.
pub mod dp {
    pub const NAME: u16 = 1;
    pub const UPCALL_PID: u16 = 2;
    pub const STATS: u16 = 3;
    pub const MEGAFLOW_STATS: u16 = 4;
    pub const USER_FEATURES: u16 = 5;
    pub const MASKS_CACHE_SIZE: u16 = 7;
    pub const PER_CPU_PIDS: u16 = 8;
}

/// `OVS_DP_F_*`.
pub mod feature {
    pub const UNALIGNED: u32 = 1 << 0;
    pub const VPORT_PIDS: u32 = 1 << 1;
    pub const TC_RECIRC_SHARING: u32 = 1 << 2;
    pub const DISPATCH_UPCALL_PER_CPU: u32 = 1 << 3;
}

/// `OVS_VPORT_ATTR_*`.
pub mod vport {
    pub const PORT_NO: u16 = 1;
    pub const TYPE: u16 = 2;
    pub const NAME: u16 = 3;
    pub const OPTIONS: u16 = 4;
    pub const UPCALL_PID: u16 = 5;
    pub const STATS: u16 = 6;
    pub const IFINDEX: u16 = 8;
    pub const NETNSID: u16 = 9;
    pub const UPCALL_STATS: u16 = 10;
}

/// `OVS_VPORT_UPCALL_ATTR_*`.
pub mod vport_upcall {
    pub const SUCCESS: u16 = 0;
    pub const FAIL: u16 = 1;
}

/// `OVS_VPORT_TYPE_*`.
pub mod vport_type {
    pub const NETDEV: u32 = 1;
    pub const INTERNAL: u32 = 2;
    pub const GRE: u32 = 3;
    pub const VXLAN: u32 = 4;
    pub const GENEVE: u32 = 5;
}

/// `OVS_TUNNEL_ATTR_*`: a tunnel vport's options.
pub mod vport_option {
    pub const DST_PORT: u16 = 1;
    pub const EXTENSION: u16 = 2;
    /// `OVS_VXLAN_EXT_GBP`, within the extension and within a tunnel key.
    pub const VXLAN_GBP: u16 = 1;
}

/// `OVS_FLOW_ATTR_*`.
pub mod flow {
    pub const KEY: u16 = 1;
    pub const ACTIONS: u16 = 2;
    pub const STATS: u16 = 3;
    pub const TCP_FLAGS: u16 = 4;
    pub const USED: u16 = 5;
    pub const CLEAR: u16 = 6;
    pub const MASK: u16 = 7;
    pub const PROBE: u16 = 8;
    pub const UFID: u16 = 9;
    pub const UFID_FLAGS: u16 = 10;
    /// `OVS_UFID_F_OMIT_*`: key, mask, actions.
    pub const OMIT_ALL: u32 = 7;
}

/// `OVS_PACKET_ATTR_*`.
pub mod packet {
    pub const PACKET: u16 = 1;
    pub const KEY: u16 = 2;
    pub const ACTIONS: u16 = 3;
    pub const USERDATA: u16 = 4;
    pub const EGRESS_TUN_KEY: u16 = 5;
    pub const PROBE: u16 = 8;
    pub const MRU: u16 = 9;
    pub const LEN: u16 = 10;
    pub const HASH: u16 = 11;
    pub const UPCALL_PID: u16 = 12;
}

/// `OVS_KEY_ATTR_*`.
pub mod key {
    pub const ENCAP: u16 = 1;
    pub const PRIORITY: u16 = 2;
    pub const IN_PORT: u16 = 3;
    pub const ETHERNET: u16 = 4;
    pub const VLAN: u16 = 5;
    pub const ETHERTYPE: u16 = 6;
    pub const IPV4: u16 = 7;
    pub const IPV6: u16 = 8;
    pub const TCP: u16 = 9;
    pub const UDP: u16 = 10;
    pub const ICMP: u16 = 11;
    pub const ICMPV6: u16 = 12;
    pub const ARP: u16 = 13;
    pub const ND: u16 = 14;
    pub const SKB_MARK: u16 = 15;
    pub const TUNNEL: u16 = 16;
    pub const SCTP: u16 = 17;
    pub const TCP_FLAGS: u16 = 18;
    pub const DP_HASH: u16 = 19;
    pub const RECIRC_ID: u16 = 20;
    pub const MPLS: u16 = 21;
    pub const CT_STATE: u16 = 22;
    pub const CT_ZONE: u16 = 23;
    pub const CT_MARK: u16 = 24;
    pub const CT_LABELS: u16 = 25;
    pub const CT_ORIG_TUPLE_IPV4: u16 = 26;
    pub const CT_ORIG_TUPLE_IPV6: u16 = 27;
    pub const NSH: u16 = 28;
    pub const IPV6_EXTHDRS: u16 = 32;
    /// The highest that is known here.
    pub const MAX: u16 = 32;
}

/// `OVS_TUNNEL_KEY_ATTR_*`.
pub mod tunnel {
    pub const ID: u16 = 0;
    pub const IPV4_SRC: u16 = 1;
    pub const IPV4_DST: u16 = 2;
    pub const TOS: u16 = 3;
    pub const TTL: u16 = 4;
    pub const DONT_FRAGMENT: u16 = 5;
    pub const CSUM: u16 = 6;
    pub const OAM: u16 = 7;
    pub const GENEVE_OPTS: u16 = 8;
    pub const TP_SRC: u16 = 9;
    pub const TP_DST: u16 = 10;
    pub const VXLAN_OPTS: u16 = 11;
    pub const IPV6_SRC: u16 = 12;
    pub const IPV6_DST: u16 = 13;
    pub const PAD: u16 = 14;
    pub const ERSPAN_OPTS: u16 = 15;
    pub const IPV4_INFO_BRIDGE: u16 = 16;
}

/// `OVS_NSH_KEY_ATTR_*`.
pub mod nsh {
    pub const BASE: u16 = 1;
    pub const MD1: u16 = 2;
    pub const MD2: u16 = 3;
}

/// `OVS_ACTION_ATTR_*`.
pub mod action {
    pub const OUTPUT: u16 = 1;
    pub const USERSPACE: u16 = 2;
    pub const SET: u16 = 3;
    pub const PUSH_VLAN: u16 = 4;
    pub const POP_VLAN: u16 = 5;
    pub const SAMPLE: u16 = 6;
    pub const RECIRC: u16 = 7;
    pub const HASH: u16 = 8;
    pub const PUSH_MPLS: u16 = 9;
    pub const POP_MPLS: u16 = 10;
    pub const SET_MASKED: u16 = 11;
    pub const CT: u16 = 12;
    pub const TRUNC: u16 = 13;
    pub const PUSH_ETH: u16 = 14;
    pub const POP_ETH: u16 = 15;
    pub const CT_CLEAR: u16 = 16;
    pub const PUSH_NSH: u16 = 17;
    pub const POP_NSH: u16 = 18;
    pub const METER: u16 = 19;
    pub const CLONE: u16 = 20;
    pub const CHECK_PKT_LEN: u16 = 21;
    pub const ADD_MPLS: u16 = 22;
    pub const DEC_TTL: u16 = 23;
    pub const DROP: u16 = 24;
    pub const PSAMPLE: u16 = 25;
}

/// `OVS_USERSPACE_ATTR_*`.
pub mod userspace {
    pub const PID: u16 = 1;
    pub const USERDATA: u16 = 2;
    pub const EGRESS_TUN_PORT: u16 = 3;
    pub const ACTIONS: u16 = 4;
}

/// `OVS_SAMPLE_ATTR_*`.
pub mod sample {
    pub const PROBABILITY: u16 = 1;
    pub const ACTIONS: u16 = 2;
}

/// `OVS_CHECK_PKT_LEN_ATTR_*`.
pub mod check_pkt_len {
    pub const PKT_LEN: u16 = 1;
    pub const IF_GREATER: u16 = 2;
    pub const IF_LESS_EQUAL: u16 = 3;
}

/// `OVS_DEC_TTL_ATTR_ACTION`.
pub const DEC_TTL_ACTION: u16 = 1;

/// `OVS_PSAMPLE_ATTR_*`.
pub mod psample {
    pub const GROUP: u16 = 1;
    pub const COOKIE: u16 = 2;
}

/// `OVS_CT_ATTR_*`.
pub mod ct {
    pub const COMMIT: u16 = 1;
    pub const ZONE: u16 = 2;
    pub const MARK: u16 = 3;
    pub const LABELS: u16 = 4;
    pub const HELPER: u16 = 5;
    pub const NAT: u16 = 6;
    pub const FORCE_COMMIT: u16 = 7;
    pub const EVENTMASK: u16 = 8;
    pub const TIMEOUT: u16 = 9;
}

/// `OVS_NAT_ATTR_*`.
pub mod nat {
    pub const SRC: u16 = 1;
    pub const DST: u16 = 2;
    pub const IP_MIN: u16 = 3;
    pub const IP_MAX: u16 = 4;
    pub const PROTO_MIN: u16 = 5;
    pub const PROTO_MAX: u16 = 6;
    pub const PERSISTENT: u16 = 7;
    pub const PROTO_HASH: u16 = 8;
    pub const PROTO_RANDOM: u16 = 9;
}

/// Bits of `FlowKey::tun_flags` (`TUNNEL_*`, `net/ip_tunnels.h`).
pub mod tun_flag {
    pub const CSUM: u16 = 0x0001;
    pub const KEY: u16 = 0x0004;
    pub const DONT_FRAGMENT: u16 = 0x0100;
    pub const OAM: u16 = 0x0200;
    pub const GENEVE_OPT: u16 = 0x0800;
    pub const VXLAN_OPT: u16 = 0x1000;
    pub const ERSPAN_OPT: u16 = 0x4000;
}

/// `OVS_METER_CMD_*`, `OVS_METER_ATTR_*`, `OVS_BAND_ATTR_*`.
pub mod meter {
    pub const FEATURES: u8 = 1;
    pub const SET: u8 = 2;
    pub const DEL: u8 = 3;
    pub const GET: u8 = 4;
    pub const ID: u16 = 1;
    pub const KBPS: u16 = 2;
    pub const STATS: u16 = 3;
    pub const BANDS: u16 = 4;
    pub const MAX_METERS: u16 = 7;
    pub const MAX_BANDS: u16 = 8;
    pub const BAND_TYPE: u16 = 1;
    pub const BAND_RATE: u16 = 2;
    pub const BAND_BURST: u16 = 3;
    pub const BAND_STATS: u16 = 4;
    /// `OVS_METER_BAND_TYPE_DROP`.
    pub const BAND_DROP: u32 = 1;
}

/// `OVS_CT_LIMIT_CMD_*`, `OVS_CT_LIMIT_ATTR_*`.
pub mod ct_limit {
    pub const SET: u8 = 1;
    pub const DEL: u8 = 2;
    pub const GET: u8 = 3;
    pub const ZONE_LIMIT: u16 = 1;
}

/// `IPCTNL_MSG_CT_*`, `CTA_*` (`linux/netfilter/nfnetlink_conntrack.h`).
pub mod ctnl {
    /// `NFNL_SUBSYS_CTNETLINK`.
    pub const SUBSYSTEM: u8 = 1;
    pub const GET: u8 = 1;
    pub const DELETE: u8 = 2;
    pub const TUPLE_ORIG: u16 = 1;
    pub const TUPLE_REPLY: u16 = 2;
    pub const PROTOINFO: u16 = 4;
    pub const HELP: u16 = 5;
    pub const TIMEOUT: u16 = 7;
    pub const MARK: u16 = 8;
    pub const COUNTERS_ORIG: u16 = 9;
    pub const COUNTERS_REPLY: u16 = 10;
    pub const ID: u16 = 12;
    pub const ZONE: u16 = 18;
    pub const LABELS: u16 = 22;
    pub const TUPLE_IP: u16 = 1;
    pub const TUPLE_PROTO: u16 = 2;
    pub const V4_SRC: u16 = 1;
    pub const V4_DST: u16 = 2;
    pub const V6_SRC: u16 = 3;
    pub const V6_DST: u16 = 4;
    pub const PROTO_NUM: u16 = 1;
    pub const SRC_PORT: u16 = 2;
    pub const DST_PORT: u16 = 3;
    pub const ICMP_ID: u16 = 4;
    pub const ICMP_TYPE: u16 = 5;
    pub const ICMP_CODE: u16 = 6;
    pub const ICMPV6_ID: u16 = 7;
    pub const ICMPV6_TYPE: u16 = 8;
    pub const ICMPV6_CODE: u16 = 9;
    pub const PROTOINFO_TCP: u16 = 1;
    pub const TCP_STATE: u16 = 1;
    pub const PACKETS: u16 = 1;
    pub const BYTES: u16 = 2;
    pub const HELP_NAME: u16 = 1;
}
