//! OpenFlow ports of a bridge, and what they have to do with VLANs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dpif::{OdpPort, PortStats};
use openflow::OfPort;

/// A port of a bridge.
#[derive(Debug)]
pub struct Port {
    /// Its name, which is that of the network device behind it, if there is one.
    pub name: String,
    /// Its number in the bridge.
    pub number: OfPort,
    /// What is behind it.
    pub kind: PortKind,
    /// Its number in the datapath; `None` for a patch port.
    pub odp: Option<OdpPort>,
    /// What it does with VLANs.
    pub vlan: PortVlan,
    /// What went through it, of a patch port.
    pub patch_stats: Arc<PatchStats>,
}

/// What is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A network device of the system.
    System,
    /// A network device made for the host.
    Internal,
    /// A patch port, maybe of another bridge of the same datapath. The two are connected when each names the other.
    Patch {
        /// Name of the port at the other end.
        peer: String,
    },
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "system",
            Self::Internal => "internal",
            Self::Patch { .. } => "patch",
        })
    }
}

/// Counters of a patch port, which no datapath knows.
#[derive(Debug, Default)]
pub struct PatchStats {
    rx: [AtomicU64; 2],
    tx: [AtomicU64; 2],
}

impl PatchStats {
    /// Packets came in.
    pub fn received(&self, packets: u64, bytes: u64) {
        self.rx[0].fetch_add(packets, Ordering::Relaxed);
        self.rx[1].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Packets went out.
    pub fn sent(&self, packets: u64, bytes: u64) {
        self.tx[0].fetch_add(packets, Ordering::Relaxed);
        self.tx[1].fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counters.
    pub fn get(&self) -> PortStats {
        let [rx_packets, rx_bytes] = [0, 1].map(|i: usize| self.rx[i].load(Ordering::Relaxed));
        let [tx_packets, tx_bytes] = [0, 1].map(|i: usize| self.tx[i].load(Ordering::Relaxed));
        PortStats { rx_packets, rx_bytes, tx_packets, tx_bytes, ..PortStats::default() }
    }
}

/// What a port does with VLANs. VLAN 0 is the frames without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortVlan {
    /// One VLAN, untagged on the wire.
    Access(u16),
    /// Several VLANs, tagged on the wire.
    Trunk(Trunks),
    /// A trunk whose untagged frames belong to the native VLAN, which leaves tagged.
    NativeTagged(u16, Trunks),
    /// A trunk whose untagged frames belong to the native VLAN, which leaves untagged.
    NativeUntagged(u16, Trunks),
}

impl Default for PortVlan {
    fn default() -> Self {
        Self::Trunk(Trunks::All)
    }
}

/// The VLANs of a trunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trunks {
    /// All.
    All,
    /// These: bit n of the set is VLAN n.
    Set(Box<[u64; 64]>),
}

impl Trunks {
    /// The trunk of these VLANs; none means all, as in the field's configuration.
    pub fn of(vlans: impl IntoIterator<Item = u16>) -> Self {
        let mut set = Box::new([0u64; 64]);
        for vlan in vlans {
            if let Some(word) = set.get_mut(usize::from(vlan / 64)) {
                *word |= 1 << (vlan % 64);
            }
        }
        if set.iter().all(|word| *word == 0) { Self::All } else { Self::Set(set) }
    }

    /// Whether the trunk has the VLAN.
    pub fn contains(&self, vlan: u16) -> bool {
        match self {
            Self::All => true,
            Self::Set(set) => set.get(usize::from(vlan / 64)).is_some_and(|word| word >> (vlan % 64) & 1 == 1),
        }
    }
}

impl PortVlan {
    /// Whether the port belongs to the VLAN.
    pub fn carries(&self, vlan: u16) -> bool {
        match self {
            Self::Access(tag) => *tag == vlan,
            Self::Trunk(trunks) => trunks.contains(vlan),
            Self::NativeTagged(tag, trunks) | Self::NativeUntagged(tag, trunks) => {
                *tag == vlan || trunks.contains(vlan)
            }
        }
    }

    /// The VLAN of a frame that comes in with VLAN id `vid` in its tag, 0 where it has no tag or only a priority. `None`: the
    /// port doesn't take such frames.
    pub fn of_received(&self, vid: u16) -> Option<u16> {
        match self {
            Self::Access(tag) => (vid == 0).then_some(*tag),
            Self::NativeTagged(tag, _) | Self::NativeUntagged(tag, _) if vid == 0 => Some(*tag),
            _ => self.carries(vid).then_some(vid),
        }
    }

    /// The VLAN id in the tag of a frame of `vlan` that leaves, 0 for no tag.
    pub fn to_send(&self, vlan: u16) -> u16 {
        match self {
            Self::Access(_) => 0,
            Self::NativeUntagged(tag, _) if *tag == vlan => 0,
            _ => vlan,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_ports_take_and_send_tags_as_the_field_defines() {
        let trunks = || Trunks::of([10, 20]);
        // Received id, VLAN it means, id it leaves with.
        for (vlan, cases) in [
            (PortVlan::Access(10), [(0, Some(10)), (10, None), (20, None)]),
            (PortVlan::Trunk(trunks()), [(0, None), (10, Some(10)), (30, None)]),
            (PortVlan::default(), [(0, Some(0)), (10, Some(10)), (4095, Some(4095))]),
            (PortVlan::NativeTagged(5, trunks()), [(0, Some(5)), (5, Some(5)), (6, None)]),
            (PortVlan::NativeUntagged(5, trunks()), [(0, Some(5)), (10, Some(10)), (6, None)]),
        ] {
            for (vid, meant) in cases {
                assert_eq!(vlan.of_received(vid), meant, "{vlan:?} {vid}");
            }
        }
        assert_eq!(PortVlan::Access(10).to_send(10), 0);
        assert_eq!(PortVlan::NativeTagged(5, trunks()).to_send(5), 5);
        assert_eq!(PortVlan::NativeUntagged(5, trunks()).to_send(5), 0);
        assert_eq!(PortVlan::NativeUntagged(5, trunks()).to_send(10), 10);
    }
}
