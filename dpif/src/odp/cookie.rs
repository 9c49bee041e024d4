//! The cookie of a userspace action: why a packet is sent up, in the reference's shape (`struct user_action_cookie`), so that
//! tools show it as they always have.
//!
//! A cookie has 48 bytes whatever it holds: u16 kind, u16 unused, u32 OpenFlow port of arrival, 16 bytes id of the bridge, 24
//! bytes of the kind. Integers are in host order but for the VLAN tag and the rule's cookie.

use std::fmt::Write;

use datapath_common::{Be16, Be64};

use super::cursor::{Cursor, ParseError};
use super::flags;

/// Bytes of every cookie.
pub const COOKIE_LEN: usize = 48;

/// OpenFlow port "none".
const OFPP_NONE: u32 = 0xffff;

/// What a userspace action tells userspace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cookie {
    /// OpenFlow port on which the packet came in, `0xffff` for none.
    pub in_port: u32,
    /// Id of the bridge.
    pub bridge: u128,
    /// Why the packet is sent up.
    pub kind: CookieKind,
}

/// Why a packet is sent to userspace by an action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CookieKind {
    /// An sFlow sample.
    SFlow {
        /// VLAN tag that the packet leaves with.
        vlan_tci: Be16,
        /// sFlow's encoding of the outputs.
        output: u32,
    },
    /// Userspace must handle each packet of the flow: [`SlowPath`] bits.
    SlowPath(u32),
    /// An OpenFlow sample action.
    FlowSample {
        /// Probability in 2¹⁶.
        probability: u16,
        /// IPFIX collector set.
        collector_set_id: u32,
        /// IPFIX observation domain.
        obs_domain_id: u32,
        /// IPFIX observation point.
        obs_point_id: u32,
        /// Datapath port that the packet is sampled for.
        output_port: u32,
        /// 0 default, 1 ingress, 2 egress.
        direction: u32,
    },
    /// An IPFIX sample of a bridge.
    Ipfix {
        /// Datapath port.
        output_port: u32,
    },
    /// The packet goes to a controller.
    Controller {
        /// It was only counted.
        dont_send: bool,
        /// With a continuation.
        continuation: bool,
        /// `OFPR_*`.
        reason: u16,
        /// Recirculation id that holds the rest of the state.
        recirc_id: u32,
        /// Cookie of the rule.
        rule_cookie: Be64,
        /// Which controllers.
        controller_id: u16,
        /// Bytes of the packet to send.
        max_len: u16,
    },
}

/// Bits of [`CookieKind::SlowPath`].
#[derive(Clone, Copy, Debug)]
pub struct SlowPath;

impl SlowPath {
    /// Connectivity fault management.
    pub const CFM: u32 = 1 << 0;
    /// Bidirectional forwarding detection.
    pub const BFD: u32 = 1 << 1;
    /// Link aggregation control.
    pub const LACP: u32 = 1 << 2;
    /// Spanning tree.
    pub const STP: u32 = 1 << 3;
    /// Link layer discovery.
    pub const LLDP: u32 = 1 << 4;
    /// Actions that the datapath doesn't have.
    pub const ACTION: u32 = 1 << 5;
    /// The datapath can't match specifically enough.
    pub const MATCH: u32 = 1 << 6;
}

const SFLOW: u16 = 1;
const SLOW_PATH: u16 = 2;
const FLOW_SAMPLE: u16 = 3;
const IPFIX: u16 = 4;
const CONTROLLER: u16 = 5;

impl Cookie {
    /// A cookie without port and bridge.
    pub fn new(kind: CookieKind) -> Self {
        Self { in_port: OFPP_NONE, bridge: 0, kind }
    }

    /// The bytes that go along with the action.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; 4];
        b.extend(self.in_port.to_ne_bytes());
        b.extend(self.bridge.to_be_bytes());
        let kind = match self.kind {
            CookieKind::SFlow { vlan_tci, output } => {
                b.extend(vlan_tci.0.to_ne_bytes());
                b.extend([0; 2]);
                b.extend(output.to_ne_bytes());
                SFLOW
            }
            CookieKind::SlowPath(reasons) => {
                b.extend([0; 4]);
                b.extend(reasons.to_ne_bytes());
                SLOW_PATH
            }
            CookieKind::FlowSample {
                probability,
                collector_set_id,
                obs_domain_id,
                obs_point_id,
                output_port,
                direction,
            } => {
                b.extend(probability.to_ne_bytes());
                b.extend([0; 2]);
                for value in [collector_set_id, obs_domain_id, obs_point_id, output_port, direction] {
                    b.extend(value.to_ne_bytes());
                }
                FLOW_SAMPLE
            }
            CookieKind::Ipfix { output_port } => {
                b.extend(output_port.to_ne_bytes());
                IPFIX
            }
            CookieKind::Controller {
                dont_send,
                continuation,
                reason,
                recirc_id,
                rule_cookie,
                controller_id,
                max_len,
            } => {
                b.extend([u8::from(dont_send), u8::from(continuation)]);
                b.extend(reason.to_ne_bytes());
                b.extend(recirc_id.to_ne_bytes());
                b.extend(rule_cookie.0.to_ne_bytes());
                b.extend(controller_id.to_ne_bytes());
                b.extend(max_len.to_ne_bytes());
                CONTROLLER
            }
        };
        b.resize(COOKIE_LEN, 0);
        b.splice(..2, kind.to_ne_bytes());
        b
    }

    /// The cookie in these bytes. `None` if they are no cookie of a known kind.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; COOKIE_LEN] = bytes.try_into().ok()?;
        let u16_at = |at| get(bytes, at).map(u16::from_ne_bytes);
        let u32_at = |at| get(bytes, at).map(u32::from_ne_bytes);
        let kind = match u16_at(0)? {
            SFLOW => CookieKind::SFlow { vlan_tci: Be16::from_raw(u16_at(24)?), output: u32_at(28)? },
            SLOW_PATH => CookieKind::SlowPath(u32_at(28)?),
            FLOW_SAMPLE => CookieKind::FlowSample {
                probability: u16_at(24)?,
                collector_set_id: u32_at(28)?,
                obs_domain_id: u32_at(32)?,
                obs_point_id: u32_at(36)?,
                output_port: u32_at(40)?,
                direction: u32_at(44)?,
            },
            IPFIX => CookieKind::Ipfix { output_port: u32_at(24)? },
            CONTROLLER => CookieKind::Controller {
                dont_send: get(bytes, 24)? != [0],
                continuation: get(bytes, 25)? != [0],
                reason: u16_at(26)?,
                recirc_id: u32_at(28)?,
                rule_cookie: Be64::from_raw(u64::from_ne_bytes(get(bytes, 32)?)),
                controller_id: u16_at(40)?,
                max_len: u16_at(42)?,
            },
            _ => return None,
        };
        Some(Self { in_port: u32_at(4)?, bridge: u128::from_be_bytes(get(bytes, 8)?), kind })
    }

    /// `slow_path(action)` and the like.
    pub(super) fn write(&self, out: &mut String, port: impl Fn(u32) -> String) {
        let _ = match self.kind {
            CookieKind::SFlow { vlan_tci, output } => {
                let tci = vlan_tci.get();
                write!(out, "sFlow(vid={},pcp={},output={output})", tci & 0xfff, tci >> 13)
            }
            CookieKind::SlowPath(reasons) => {
                out.push_str("slow_path(");
                flags::SLOW_PATH.write(out, reasons, ',');
                out.write_char(')')
            }
            CookieKind::FlowSample {
                probability,
                collector_set_id,
                obs_domain_id,
                obs_point_id,
                output_port,
                direction,
            } => {
                let direction = match direction {
                    1 => ",ingress",
                    2 => ",egress",
                    _ => "",
                };
                write!(
                    out,
                    "flow_sample(probability={probability},collector_set_id={collector_set_id},obs_domain_id={obs_domain_id},\
                     obs_point_id={obs_point_id},output_port={}{direction})",
                    port(output_port)
                )
            }
            CookieKind::Ipfix { output_port } => write!(out, "ipfix(output_port={})", port(output_port)),
            CookieKind::Controller {
                dont_send,
                continuation,
                reason,
                recirc_id,
                rule_cookie,
                controller_id,
                max_len,
            } => {
                let _ = write!(
                    out,
                    "controller(reason={reason},dont_send={},continuation={},recirc_id={recirc_id},rule_cookie=",
                    u8::from(dont_send),
                    u8::from(continuation)
                );
                let _ = super::attr::write_hex(out, rule_cookie.get().into());
                write!(out, ",controller_id={controller_id},max_len={max_len})")
            }
        };
    }

    /// What [`Self::write`] writes, its name being read already: `name(` … `)`.
    pub(super) fn parse(name: &str, text: &mut Cursor<'_>) -> Result<Option<Self>, ParseError> {
        let mut first = true;
        let mut number = |text: &mut Cursor<'_>, name: &str, max: u64| {
            if !std::mem::take(&mut first) {
                text.expect(",")?;
            }
            text.expect(name)?;
            text.expect("=")?;
            text.number(max.into()).map(|n| n as u64)
        };
        let (u8_max, u16_max, u32_max) = (u64::from(u8::MAX), u64::from(u16::MAX), u64::from(u32::MAX));
        let kind = match name {
            "sFlow" => {
                let vid = number(text, "vid", 0xfff)? as u16;
                let pcp = number(text, "pcp", 7)? as u16;
                let tci = vid | pcp << 13;
                let vlan_tci = Be16::new(if tci == 0 { 0 } else { tci | 0x1000 });
                CookieKind::SFlow { vlan_tci, output: number(text, "output", u32_max)? as u32 }
            }
            "slow_path" => CookieKind::SlowPath(flags::SLOW_PATH.parse(text)?.0),
            "flow_sample" => CookieKind::FlowSample {
                probability: number(text, "probability", u16_max)? as u16,
                collector_set_id: number(text, "collector_set_id", u32_max)? as u32,
                obs_domain_id: number(text, "obs_domain_id", u32_max)? as u32,
                obs_point_id: number(text, "obs_point_id", u32_max)? as u32,
                output_port: number(text, "output_port", u32_max)? as u32,
                direction: match () {
                    () if text.eat(",ingress") => 1,
                    () if text.eat(",egress") => 2,
                    () => 0,
                },
            },
            "ipfix" => CookieKind::Ipfix { output_port: number(text, "output_port", u32_max)? as u32 },
            "controller" => CookieKind::Controller {
                reason: number(text, "reason", u16_max)? as u16,
                dont_send: number(text, "dont_send", u8_max)? != 0,
                continuation: number(text, "continuation", u8_max)? != 0,
                recirc_id: number(text, "recirc_id", u32_max)? as u32,
                rule_cookie: Be64::new(number(text, "rule_cookie", u64::MAX)?),
                controller_id: number(text, "controller_id", u16_max)? as u16,
                max_len: number(text, "max_len", u16_max)? as u16,
            },
            _ => return Ok(None),
        };
        text.expect(")")?;
        Ok(Some(Self::new(kind)))
    }
}

fn get<const N: usize>(bytes: &[u8; COOKIE_LEN], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
