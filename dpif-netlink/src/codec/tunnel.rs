//! Tunnel keys: the nest `OVS_KEY_ATTR_TUNNEL`, for packets that came through a tunnel and for those that are to go.

use datapath_common::{Be16, Be32, Be64, FlowKey};

use super::{CodecError, Fitness, Result, fixed};
use crate::attr::{Attrs, Writer};
use crate::uapi::{key, tun_flag, tunnel as attr, vport_option};

pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// Flags that stand for attributes without payload, and the one of the id.
pub(super) const FLAGS: u16 = tun_flag::KEY | tun_flag::DONT_FRAGMENT | tun_flag::CSUM | tun_flag::OAM;
/// Flags that say which kind of options there is.
pub(super) const OPTION_FLAGS: u16 = tun_flag::GENEVE_OPT | tun_flag::VXLAN_OPT | tun_flag::ERSPAN_OPT;

/// The options of a tunnel key (or their mask), which lie outside [`FlowKey`]: Geneve options, the group policy of VXLAN
/// (4 bytes, the machine's order) or the metadata of ERSPAN. `FlowKey::tun_flags` says which, `tun_opts_len` how many bytes.
#[derive(Clone, Copy)]
pub struct TunnelOptions {
    /// What is behind `len` means nothing.
    bytes: [u8; 255],
    len: u8,
}

impl TunnelOptions {
    /// None.
    pub const NONE: Self = Self { bytes: [0; 255], len: 0 };

    /// These bytes; `None` where they are more than 255, or no multiple of four.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let len = u8::try_from(bytes.len()).ok().filter(|len| len % 4 == 0)?;
        let mut options = Self { len, ..Self::NONE };
        options.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(options)
    }

    /// Becomes none.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl PartialEq for TunnelOptions {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for TunnelOptions {}

impl Default for TunnelOptions {
    fn default() -> Self {
        Self::NONE
    }
}

impl std::fmt::Debug for TunnelOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TunnelOptions").field(&self.as_bytes()).finish()
    }
}

/// Writes the nest. `fields` are the key's or the mask's, `proto` is the key's family: a mask's says nothing.
pub(super) fn put(to: &mut Writer, fields: &FlowKey, proto: u8, options: &TunnelOptions) {
    let nest = to.begin_nest(key::TUNNEL);
    let put_be16 = |to: &mut Writer, kind, value: Be16| {
        if !value.is_zero() {
            to.put(kind, &value.0.to_ne_bytes());
        }
    };
    let put_be32 = |to: &mut Writer, kind, value: Be32| {
        if !value.is_zero() {
            to.put(kind, &value.0.to_ne_bytes());
        }
    };
    if fields.tun_flags & tun_flag::KEY != 0 {
        to.put(attr::ID, &fields.tun_id.0.to_ne_bytes());
    }
    if proto == AF_INET {
        put_be32(to, attr::IPV4_SRC, fields.tun_ipv4_src);
        put_be32(to, attr::IPV4_DST, fields.tun_ipv4_dst);
    }
    if proto == AF_INET6 {
        for (kind, address) in [(attr::IPV6_SRC, fields.tun_ipv6_src), (attr::IPV6_DST, fields.tun_ipv6_dst)] {
            if address != [0; 16] {
                to.put(kind, &address);
            }
        }
    }
    if fields.tun_tos != 0 {
        to.put_u8(attr::TOS, fields.tun_tos);
    }
    to.put_u8(attr::TTL, fields.tun_ttl);
    for (flag, kind) in FLAG_ATTRS {
        if fields.tun_flags & flag != 0 {
            to.put_flag(kind);
        }
    }
    put_be16(to, attr::TP_SRC, fields.tun_tp_src);
    put_be16(to, attr::TP_DST, fields.tun_tp_dst);
    // Without the options themselves their flag says nothing: such a flow looks at none.
    if options.as_bytes().is_empty() {
    } else if fields.tun_flags & tun_flag::GENEVE_OPT != 0 {
        to.put(attr::GENEVE_OPTS, options.as_bytes());
    } else if fields.tun_flags & tun_flag::VXLAN_OPT != 0 {
        let extension = to.begin_nest(attr::VXLAN_OPTS);
        to.put(vport_option::VXLAN_GBP, options.as_bytes());
        to.end(extension);
    } else if fields.tun_flags & tun_flag::ERSPAN_OPT != 0 {
        to.put(attr::ERSPAN_OPTS, options.as_bytes());
    }
    to.end(nest);
}

const FLAG_ATTRS: [(u16, u16); 3] =
    [(tun_flag::DONT_FRAGMENT, attr::DONT_FRAGMENT), (tun_flag::CSUM, attr::CSUM), (tun_flag::OAM, attr::OAM)];

/// Reads a tunnel key that stands alone.
pub fn decode_tunnel(payload: &[u8]) -> Result<(FlowKey, TunnelOptions)> {
    let (mut key, mut options) = (FlowKey::ZERO, TunnelOptions::NONE);
    get(payload, &mut key, &mut options, false)?;
    Ok((key, options))
}

/// Reads the nest into a key's (or a mask's) fields.
pub(super) fn get(payload: &[u8], to: &mut FlowKey, options: &mut TunnelOptions, is_mask: bool) -> Result<Fitness> {
    let mut fitness = Fitness::Perfect;
    let (mut seen, mut v4, mut v6) = (0u32, false, false);
    for attr in Attrs::new(payload) {
        let (kind, bytes) = attr?;
        if let Some(bit) = 1u32.checked_shl(kind.into()) {
            if seen & bit != 0 && kind != attr::PAD {
                return Err(CodecError::Duplicate(kind));
            }
            seen |= bit;
        }
        match kind {
            attr::ID => {
                to.tun_id = Be64(u64::from_ne_bytes(fixed(bytes, "tun_id")?));
                to.tun_flags |= tun_flag::KEY;
            }
            attr::IPV4_SRC => (v4, to.tun_ipv4_src) = (true, Be32(u32::from_ne_bytes(fixed(bytes, "tunnel src")?))),
            attr::IPV4_DST => (v4, to.tun_ipv4_dst) = (true, Be32(u32::from_ne_bytes(fixed(bytes, "tunnel dst")?))),
            attr::IPV6_SRC => (v6, to.tun_ipv6_src) = (true, fixed(bytes, "tunnel ipv6_src")?),
            attr::IPV6_DST => (v6, to.tun_ipv6_dst) = (true, fixed(bytes, "tunnel ipv6_dst")?),
            attr::TOS => [to.tun_tos] = fixed(bytes, "tunnel tos")?,
            attr::TTL => [to.tun_ttl] = fixed(bytes, "tunnel ttl")?,
            attr::TP_SRC => to.tun_tp_src = Be16(u16::from_ne_bytes(fixed(bytes, "tunnel tp_src")?)),
            attr::TP_DST => to.tun_tp_dst = Be16(u16::from_ne_bytes(fixed(bytes, "tunnel tp_dst")?)),
            attr::DONT_FRAGMENT | attr::CSUM | attr::OAM => {
                let [] = fixed(bytes, "a tunnel flag")?;
                to.tun_flags |= FLAG_ATTRS.iter().find(|(_, of)| *of == kind).map_or(0, |(flag, _)| *flag);
            }
            attr::GENEVE_OPTS => set_options(to, options, tun_flag::GENEVE_OPT, bytes)?,
            attr::ERSPAN_OPTS => set_options(to, options, tun_flag::ERSPAN_OPT, bytes)?,
            attr::VXLAN_OPTS => {
                let policy = Attrs::new(bytes).next().ok_or(CodecError::Length("vxlan options", 0))??;
                match policy {
                    (vport_option::VXLAN_GBP, policy) => {
                        let policy: [u8; 4] = fixed(policy, "vxlan group policy")?;
                        set_options(to, options, tun_flag::VXLAN_OPT, &policy)?;
                    }
                    _ => fitness = Fitness::TooMuch,
                }
            }
            attr::PAD => {}
            _ => fitness = Fitness::TooMuch,
        }
    }
    if v4 && v6 {
        return Err(CodecError::Contradiction("a tunnel has addresses of two families"));
    }
    if seen & (1 << attr::TTL) == 0 && !is_mask {
        return Ok(Fitness::TooLittle);
    }
    if !is_mask {
        // A flow that matches no address of its tunnel doesn't say the family; most tunnels are of IPv4.
        to.tun_proto = if v6 { AF_INET6 } else { AF_INET };
    }
    Ok(fitness)
}

fn set_options(to: &mut FlowKey, options: &mut TunnelOptions, flag: u16, bytes: &[u8]) -> Result<()> {
    // None are none: the flag goes with the options.
    if bytes.is_empty() {
        return Ok(());
    }
    if to.tun_flags & OPTION_FLAGS != 0 {
        return Err(CodecError::Contradiction("a tunnel has options of two kinds"));
    }
    *options = TunnelOptions::new(bytes).ok_or(CodecError::Length("tunnel options", bytes.len()))?;
    to.tun_flags |= flag;
    to.tun_opts_len = options.len;
    Ok(())
}
