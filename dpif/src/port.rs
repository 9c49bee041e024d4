//! Datapath ports.

use core::fmt;

/// Number of a port in a datapath, not to be confused with a bridge's OpenFlow port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct OdpPort(pub u32);

impl OdpPort {
    /// No port (`ODPP_NONE`).
    pub const NONE: Self = Self(u32::MAX);
}

impl fmt::Display for OdpPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What kind of device is behind a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PortKind {
    /// An existing network device, taken over completely while it is a port.
    System,
    /// A device made by the datapath, through which the host itself is reached.
    Internal,
    /// A device made by the datapath that wraps and unwraps packets; each says in its tunnel fields where it goes to or comes from.
    Tunnel(Tunnel),
}

/// A kind of tunnel, and what all of its packets have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Tunnel {
    /// GRE (RFC 2784, RFC 2890).
    Gre,
    /// VXLAN (RFC 7348).
    Vxlan {
        /// UDP port.
        dst_port: u16,
        /// Whether packets carry a group policy.
        gbp: bool,
    },
    /// Geneve (RFC 8926).
    Geneve {
        /// UDP port.
        dst_port: u16,
    },
}

impl Tunnel {
    /// UDP port of VXLAN that nobody has to ask for.
    pub const VXLAN_PORT: u16 = 4789;
    /// UDP port of Geneve, likewise.
    pub const GENEVE_PORT: u16 = 6081;

    /// What differs from a tunnel of its type that was asked for without options: `dst_port=4790`, `exts=gbp`.
    pub fn options(self) -> Vec<String> {
        let port = |port: u16, usual: u16| (port != usual).then(|| format!("dst_port={port}"));
        let options = match self {
            Self::Gre => [None, None],
            Self::Vxlan { dst_port, gbp } => [port(dst_port, Self::VXLAN_PORT), gbp.then(|| "exts=gbp".to_owned())],
            Self::Geneve { dst_port } => [port(dst_port, Self::GENEVE_PORT), None],
        };
        options.into_iter().flatten().collect()
    }
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "system",
            Self::Internal => "internal",
            Self::Tunnel(Tunnel::Gre) => "gre",
            Self::Tunnel(Tunnel::Vxlan { .. }) => "vxlan",
            Self::Tunnel(Tunnel::Geneve { .. }) => "geneve",
        })
    }
}

/// A port to add.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortSpec {
    /// Name of the network device, at most 15 bytes.
    pub name: String,
    /// Kind of the device.
    pub kind: PortKind,
    /// The number it should get, if free.
    pub request: Option<OdpPort>,
}

/// A port of a datapath.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Its number.
    pub port: OdpPort,
    /// Name of the network device.
    pub name: String,
    /// Kind of the device.
    pub kind: PortKind,
    /// MTU of the device.
    pub mtu: u32,
    /// Ethernet address of the device (of an internal port: of its host end).
    pub mac: [u8; 6],
    /// Why the port doesn't work any more (its device was deleted, renamed, moved), if it doesn't.
    pub error: Option<String>,
}

/// Whether a port's frames are met in the XDP hook, before the kernel makes a buffer of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum XdpMode {
    /// By the driver where nothing is lost by it: never at virtual devices, which leave checksums and tags beside the frame.
    #[default]
    Auto,
    /// By the driver, or not at all.
    Native,
    /// By the kernel's generic hook, whatever the driver.
    Generic,
    /// Not.
    Off,
}

impl XdpMode {
    /// All modes with the names under which they are set and shown.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::Auto, "auto"), (Self::Native, "native"), (Self::Generic, "generic"), (Self::Off, "off")];
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(mode, _)| mode == self).map_or("off", |(_, name)| name);
        f.write_str(name)
    }
}

impl core::str::FromStr for XdpMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found
            .map(|(mode, _)| *mode)
            .ok_or_else(|| format!("{text:?} is no XDP mode: auto, native, generic and off are"))
    }
}

/// What has become of a port's [`XdpMode`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum XdpState {
    /// The driver runs the program.
    Native,
    /// The generic hook runs it.
    Generic,
    /// Nothing does, and why.
    Off(String),
}

impl fmt::Display for XdpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::Generic => f.write_str("generic"),
            Self::Off(why) => write!(f, "off ({why})"),
        }
    }
}

pub use datapath_common::maps::PortStats;

/// Something that happened to a port's device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortEvent {
    /// The MTU, the address or the like changed.
    Changed(OdpPort),
    /// The device was deleted, renamed or moved to another namespace: it is detached, the text says what happened.
    Detached(OdpPort, String),
}
