//! The configuration that packets are translated against: the bridges of a datapath, their ports and tables.
//!
//! A [`Config`] is a version that never changes once it is published. Its parts are shared with the versions before and after
//! it, so that making the next one costs what changed. What changes with every packet (counters, learned addresses) lies
//! beside it, shared by all versions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dpif::{Features, OdpPort};
use openflow::{OfPort, PortNames};

use crate::mac_learning::{DEFAULT_AGING_S, DEFAULT_MAX_ENTRIES, MacTable};
use crate::port::{Port, PortKind, PortVlan};
use crate::protocol::{Attached, SlowPaths};
use crate::recirc::RecircTable;
use crate::table::{TableStats, Tables};

/// All bridges of a datapath.
#[derive(Clone, Debug)]
pub struct Config {
    /// By name.
    pub bridges: BTreeMap<String, Arc<Bridge>>,
    /// Which bridge's port is a datapath port?
    by_odp: Arc<HashMap<OdpPort, PortRef, ahash::RandomState>>,
    /// Translations that go on later. Shared by all versions.
    pub recirc: Arc<RecircTable>,
    /// The other end of each patch port that is connected.
    peers: Arc<HashMap<PortRef, PortRef, ahash::RandomState>>,
    /// Why and how packets come up beside misses.
    pub slow_paths: Arc<SlowPaths>,
    /// What the datapath can do. That of our own engines, unless said otherwise.
    pub features: Arc<Features>,
}

/// A port of a bridge, by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PortRef {
    /// The bridge.
    pub bridge: Arc<str>,
    /// The port.
    pub port: OfPort,
}

/// A bridge.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// Its name.
    pub name: Arc<str>,
    /// What was asked for.
    pub settings: BridgeSettings,
    /// Its ports by number, `LOCAL` included.
    pub ports: BTreeMap<OfPort, Arc<Port>>,
    /// Its flow tables.
    pub tables: Tables,
    /// Their counters.
    pub table_stats: Arc<TableStats>,
    /// Its learned addresses.
    pub macs: Arc<MacTable>,
}

/// What of a bridge can be changed while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSettings {
    /// What it does without a controller.
    pub fail_mode: FailMode,
    /// Seconds after which a learned address that was not seen is forgotten.
    pub mac_aging_s: u32,
    /// How many addresses it learns.
    pub mac_table_size: u32,
    /// What its `LOCAL` port does with VLANs.
    pub local_vlan: PortVlan,
}

impl Default for BridgeSettings {
    fn default() -> Self {
        Self {
            fail_mode: FailMode::Standalone,
            mac_aging_s: DEFAULT_AGING_S,
            mac_table_size: DEFAULT_MAX_ENTRIES,
            local_vlan: PortVlan::default(),
        }
    }
}

/// What a bridge does without a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    /// It is a learning switch: its first flow is `priority=0,actions=NORMAL`.
    Standalone,
    /// It forwards only what its flows say, and begins without one.
    Secure,
}

impl Bridge {
    /// A number that stands for the bridge in cookies: a hash of its name, so that it outlives the process.
    pub fn id(&self) -> u128 {
        // FNV-1a of 128 bits, by eight bytes: no secret, only the same in every process.
        let step = |hash: u128, chunk: &[u8]| {
            let word = chunk.iter().rev().fold(0, |word: u128, byte| word << 8 | u128::from(*byte));
            (hash ^ word).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        };
        self.name.as_bytes().chunks(8).fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, step)
    }

    /// The port called `name`.
    pub fn port_by_name(&self, name: &str) -> Option<&Arc<Port>> {
        self.ports.values().find(|port| port.name == name)
    }

    /// The lowest number that no port has.
    pub fn free_number(&self) -> Option<OfPort> {
        (1..OfPort::MAX.0).map(OfPort).find(|number| !self.ports.contains_key(number))
    }
}

impl PortNames for Bridge {
    fn port_by_name(&self, name: &str) -> Option<OfPort> {
        Bridge::port_by_name(self, name).map(|port| port.number)
    }

    fn name_of_port(&self, port: OfPort) -> Option<std::borrow::Cow<'_, str>> {
        self.ports.get(&port).map(|port| port.name.as_str().into())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::of(Arc::new(dpif::program::features()))
    }
}

impl Config {
    /// No bridges, over a datapath that can do this.
    pub fn of(features: Arc<Features>) -> Self {
        Self {
            bridges: BTreeMap::new(),
            by_odp: Arc::default(),
            recirc: RecircTable::new(),
            peers: Arc::default(),
            slow_paths: Arc::default(),
            features,
        }
    }

    /// The bridge and the port that a datapath port belongs to.
    pub fn port_of(&self, odp: OdpPort) -> Option<(&Arc<Bridge>, &Arc<Port>)> {
        self.resolve(self.by_odp.get(&odp)?)
    }

    /// The bridge and the port at the other end of a patch port.
    pub fn peer_of(&self, bridge: &Bridge, port: OfPort) -> Option<(&Arc<Bridge>, &Arc<Port>)> {
        self.resolve(self.peers.get(&PortRef { bridge: Arc::clone(&bridge.name), port })?)
    }

    /// Brings the indexes up to date with the bridges.
    pub fn index(&mut self) {
        let mut by_odp = HashMap::default();
        let mut peers = HashMap::default();
        let mut patches: HashMap<&str, (&str, PortRef)> = HashMap::new();
        for bridge in self.bridges.values() {
            for port in bridge.ports.values() {
                let this = PortRef { bridge: Arc::clone(&bridge.name), port: port.number };
                if let Some(odp) = port.odp {
                    by_odp.insert(odp, this);
                } else if let PortKind::Patch { peer } = &port.kind {
                    patches.insert(&port.name, (peer, this));
                }
            }
        }
        for (name, (peer, this)) in &patches {
            if let Some((back, other)) = patches.get(peer)
                && back == name
                && other != this
            {
                peers.insert(this.clone(), other.clone());
            }
        }
        let is_gone = |attached: &Attached| {
            let bridge = self.bridges.get(&*attached.bridge);
            bridge.is_none_or(|bridge| attached.port.is_some_and(|port| !bridge.ports.contains_key(&port)))
        };
        if self.slow_paths.protocols.iter().any(is_gone) {
            Arc::make_mut(&mut self.slow_paths).protocols.retain(|attached| !is_gone(attached));
        }
        self.by_odp = Arc::new(by_odp);
        self.peers = Arc::new(peers);
    }

    fn resolve(&self, at: &PortRef) -> Option<(&Arc<Bridge>, &Arc<Port>)> {
        let bridge = self.bridges.get(&*at.bridge)?;
        Some((bridge, bridge.ports.get(&at.port)?))
    }
}
