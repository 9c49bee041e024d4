//! What the switch should be.
//!
//! There is one type for it, [`DesiredState`]: bridges, their ports, and the knobs of the engine. It is complete and
//! plain data: defaults are filled in, texts are parsed, and nothing in it depends on where it came from. The command
//! line and a TOML file both make [`Parts`] of it, of which [`Parts::build`] makes the whole, so that every source
//! obeys the same [rules](validate()). What the switch should be is compared with what it is by
//! [`plan`](crate::plan::plan).

mod file;
mod flows;
mod parts;
mod spec;
mod validate;
mod vlan;

use std::fmt;
use std::str::FromStr;

/// Whether a port's frames are met in the XDP hook.
pub use dpif::XdpMode;
pub use file::{FileError, from_toml, read_toml, to_toml};
pub use flows::{FlowFile, FlowFileError};
pub use parts::{BridgePart, ConfigError, FlowsPart, OptionsPart, Parts, PortPart};
pub use spec::SpecError;
pub use validate::{Invalid, validate};
pub use vlan::{EffectiveVlan, PortVlan, Vlan, VlanError, VlanMode, VlanSet};

/// The whole of what the switch should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredState {
    /// What holds for all bridges.
    pub options: Options,
    /// The bridges, in the order in which they were given.
    pub bridges: Vec<BridgeConfig>,
}

impl DesiredState {
    /// The bridge called `name`.
    pub fn bridge(&self, name: &str) -> Option<&BridgeConfig> {
        self.bridges.iter().find(|bridge| bridge.name == name)
    }
}

/// A bridge. It always has an internal port of its own name, the OpenFlow port `LOCAL`, which is not among `ports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Its name, which is that of its `LOCAL` port's network device too.
    pub name: String,
    /// The engine that forwards its packets. To change it is to make the bridge anew.
    pub datapath_type: DatapathType,
    /// What can be changed while it runs.
    pub settings: BridgeSettings,
    /// Its ports besides `LOCAL`, in the order in which they were given. Automatic OpenFlow port numbers follow it.
    pub ports: Vec<PortConfig>,
    /// The flows it starts with. `None` is the default of its fail mode.
    pub flows: Option<FlowFile>,
}

impl BridgeConfig {
    /// The port called `name`, `LOCAL` excluded.
    pub fn port(&self, name: &str) -> Option<&PortConfig> {
        self.ports.iter().find(|port| port.name == name)
    }
}

/// What of a bridge can be changed while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeSettings {
    /// What it does without a controller.
    pub fail_mode: FailMode,
    /// Seconds after which a learned MAC address that was not seen is forgotten.
    pub mac_aging_time: u32,
    /// How many MAC addresses it learns.
    pub mac_table_size: u32,
    /// What its `LOCAL` port has to do with VLANs.
    pub local_vlan: PortVlan,
}

impl Default for BridgeSettings {
    fn default() -> BridgeSettings {
        BridgeSettings {
            fail_mode: FailMode::default(),
            mac_aging_time: 300,
            mac_table_size: 8192,
            local_vlan: PortVlan::default(),
        }
    }
}

/// A port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Its name: that of the network device behind it, if there is one.
    pub name: String,
    /// What is behind it.
    pub kind: PortKind,
    /// What it has to do with VLANs.
    pub vlan: PortVlan,
    /// The OpenFlow port number it should have, 1 to [`OFPORT_MAX`]; `None` lets the bridge choose.
    pub ofport_request: Option<u16>,
    /// Whether its frames are met in the XDP hook; `None` leaves that as the datapath has it.
    pub xdp: Option<XdpMode>,
}

/// The largest OpenFlow port number that a port can ask for; those above are reserved.
pub const OFPORT_MAX: u16 = 0xfeff;

/// What is behind a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortKind {
    /// A network device of the system, which the port takes over.
    System,
    /// A network device that the switch makes for the host.
    Internal,
    /// The patch port `peer`, maybe of another bridge.
    Patch {
        /// The name of the port at the other end.
        peer: String,
    },
}

impl PortKind {
    /// The name of the kind, without what belongs to it.
    pub fn name(&self) -> &'static str {
        match self {
            PortKind::System => "system",
            PortKind::Internal => "internal",
            PortKind::Patch { .. } => "patch",
        }
    }

    /// Whether there is a network device behind the port.
    pub fn has_device(&self) -> bool {
        !matches!(self, PortKind::Patch { .. })
    }
}

/// Which engine forwards a bridge's packets. In text the field's names are understood as well as ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DatapathType {
    /// eBPF programs in the kernel: `ebpf`, the field's `system`.
    #[default]
    Ebpf,
    /// The datapath in this process: `userspace`, the field's `netdev`.
    Userspace,
    /// The kernel's own `openvswitch` module: `netlink`.
    Netlink,
}

/// What a bridge does without a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FailMode {
    /// It forwards as a learning switch.
    #[default]
    Standalone,
    /// It forwards only what its flows say.
    Secure,
}

/// A name that means none of the values it could.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a {what}: expected {expected}")]
pub struct UnknownName {
    what: &'static str,
    given: String,
    expected: &'static str,
}

impl FromStr for DatapathType {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<DatapathType, UnknownName> {
        match text {
            "ebpf" | "system" => Ok(DatapathType::Ebpf),
            "userspace" | "netdev" => Ok(DatapathType::Userspace),
            "netlink" => Ok(DatapathType::Netlink),
            _ => Err(UnknownName { what: "datapath", given: text.to_owned(), expected: "ebpf, userspace or netlink" }),
        }
    }
}

impl fmt::Display for DatapathType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DatapathType::Ebpf => "ebpf",
            DatapathType::Userspace => "userspace",
            DatapathType::Netlink => "netlink",
        })
    }
}

impl FromStr for FailMode {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<FailMode, UnknownName> {
        match text {
            "standalone" => Ok(FailMode::Standalone),
            "secure" => Ok(FailMode::Secure),
            _ => Err(UnknownName { what: "fail mode", given: text.to_owned(), expected: "standalone or secure" }),
        }
    }
}

impl fmt::Display for FailMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FailMode::Standalone => "standalone",
            FailMode::Secure => "secure",
        })
    }
}

/// What holds for all bridges: the knobs of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The most datapath flows that revalidators keep; the actual limit adapts below it.
    pub flow_limit: u32,
    /// The most datapath flows of one port; 0 is no cap.
    pub port_flow_limit: u32,
    /// The most masks that the datapath flows of one port have; 0 is no cap.
    pub port_mask_limit: u32,
    /// The most masks that all datapath flows have; 0 is no cap but the datapath's.
    pub mask_limit: u32,
    /// Milliseconds without a packet after which a datapath flow goes.
    pub max_idle: u32,
    /// Milliseconds between two revalidations at most.
    pub max_revalidator: u32,
    /// Packets a second above which a flow is always revalidated and never just deleted.
    pub min_revalidate_pps: u32,
    /// Threads that handle upcalls; `None` goes by the number of CPUs.
    pub n_handlers: Option<u16>,
    /// Threads that revalidate; `None` goes by the number of CPUs.
    pub n_revalidators: Option<u16>,
    /// Room for datapath flows in the datapath's own tables; `None` is the datapath's default.
    pub max_flows: Option<u32>,
    /// Whether a program that is made for what the flows need runs in front of the eBPF datapath's general one.
    pub specialise: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            flow_limit: 200_000,
            port_flow_limit: 0,
            port_mask_limit: 128,
            mask_limit: 0,
            max_idle: 10_000,
            max_revalidator: 500,
            min_revalidate_pps: 5,
            n_handlers: None,
            n_revalidators: None,
            max_flows: None,
            specialise: true,
        }
    }
}
