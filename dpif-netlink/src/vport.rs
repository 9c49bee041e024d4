//! Vports: what a datapath's ports are called in the module.

use dpif::{DpifError, OdpPort, PortKind, PortStats, Result, Tunnel};
use nix::errno::Errno;

use crate::attr::{Attrs, Writer, str_of, u16_of, u32_of, u64_of};
use crate::error;
use crate::kernel::{Kernel, Request, words};
use crate::message::F_ECHO;
use crate::uapi::{cmd, vport, vport_option, vport_type, vport_upcall};

/// What a vport is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum VportType {
    /// An existing network device.
    Netdev,
    /// A device that the module makes, through which the host itself is reached.
    Internal,
    /// A tunnel whose packets bring their key along.
    Tunnel(Tunnel),
    /// A type that isn't known here, by its number.
    Other(u32),
}

/// A vport as the module describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VportInfo {
    /// Number in the datapath.
    pub port: OdpPort,
    /// Name, which is its device's.
    pub name: String,
    /// Type, with its options.
    pub kind: VportType,
    /// Index of its device, 0 where the kernel says none.
    pub ifindex: u32,
    /// Sockets that its upcalls go to; a single 0 is none.
    pub upcall_pids: Vec<u32>,
    /// Counters.
    pub stats: PortStats,
    /// Packets received that were wrong, packets that could not be sent.
    pub errors: (u64, u64),
}

impl VportType {
    fn number(self) -> u32 {
        match self {
            Self::Netdev => vport_type::NETDEV,
            Self::Internal => vport_type::INTERNAL,
            Self::Tunnel(Tunnel::Gre) => vport_type::GRE,
            Self::Tunnel(Tunnel::Vxlan { .. }) => vport_type::VXLAN,
            Self::Tunnel(Tunnel::Geneve { .. }) => vport_type::GENEVE,
            Self::Other(number) => number,
        }
    }

    fn put_options(self, to: &mut Writer) {
        let Self::Tunnel(tunnel @ (Tunnel::Vxlan { dst_port, .. } | Tunnel::Geneve { dst_port })) = self else {
            return;
        };
        let nest = to.begin_nest(vport::OPTIONS);
        to.put_u16(vport_option::DST_PORT, dst_port);
        if matches!(tunnel, Tunnel::Vxlan { gbp: true, .. }) {
            let extension = to.begin_nest(vport_option::EXTENSION);
            to.put_flag(vport_option::VXLAN_GBP);
            to.end(extension);
        }
        to.end(nest);
    }

    fn read(number: u32, options: &[u8]) -> Self {
        let options = Attrs::new(options);
        let dst_port = options.clone().find(vport_option::DST_PORT).and_then(u16_of).unwrap_or(0);
        match number {
            vport_type::NETDEV => Self::Netdev,
            vport_type::INTERNAL => Self::Internal,
            vport_type::GRE => Self::Tunnel(Tunnel::Gre),
            vport_type::VXLAN => {
                let extension = options.find(vport_option::EXTENSION).unwrap_or_default();
                let gbp = Attrs::new(extension).find(vport_option::VXLAN_GBP).is_some();
                Self::Tunnel(Tunnel::Vxlan { dst_port, gbp })
            }
            vport_type::GENEVE => Self::Tunnel(Tunnel::Geneve { dst_port }),
            other => Self::Other(other),
        }
    }

    /// As the datapath interface names it, where what it has no name for is a device like any other.
    pub(crate) fn kind(self) -> PortKind {
        match self {
            Self::Internal => PortKind::Internal,
            Self::Tunnel(tunnel) => PortKind::Tunnel(tunnel),
            Self::Netdev | Self::Other(_) => PortKind::System,
        }
    }
}

impl From<PortKind> for VportType {
    fn from(kind: PortKind) -> Self {
        match kind {
            PortKind::System => Self::Netdev,
            PortKind::Internal => Self::Internal,
            PortKind::Tunnel(tunnel) => Self::Tunnel(tunnel),
        }
    }
}

/// Which vport: by number or by name.
pub(crate) enum Which<'a> {
    Port(OdpPort),
    Name(&'a str),
}

impl Kernel {
    /// Makes a vport whose upcalls go to `pids`.
    pub(crate) fn vport_new(
        &self,
        datapath: i32,
        name: &str,
        kind: VportType,
        request: Option<OdpPort>,
        pids: &[u32],
    ) -> Result<VportInfo> {
        let attrs = |to: &mut Writer| {
            to.put_u32(vport::TYPE, kind.number());
            to.put_str(vport::NAME, name);
            put_pids(to, pids);
            if let Some(port) = request {
                to.put_u32(vport::PORT_NO, port.0);
            }
            kind.put_options(to);
            Ok(())
        };
        let made = self.vport_request(datapath, cmd::NEW, &attrs)?;
        match made {
            Ok(Some(info)) => Ok(info),
            Ok(None) => Err(DpifError::Kernel(format!("the kernel made port {name} and says nothing of it"))),
            Err(Errno::ENODEV) if kind == VportType::Netdev => Err(DpifError::NoSuchDevice(name.into())),
            Err(Errno::EEXIST) => Err(DpifError::Exists(format!("port {name}: the name is in use"))),
            Err(Errno::EBUSY) => {
                Err(DpifError::Exists(format!("port {name}: the device or the number belongs to a port already")))
            }
            Err(Errno::EFBIG) => Err(DpifError::Full("the datapath has no port numbers left".into())),
            Err(Errno::EAFNOSUPPORT) => Err(DpifError::Unsupported(
                format!("a port of type {kind:?} (is the module vport-… loaded?)"),
                error::ENGINE.into(),
            )),
            Err(errno) => Err(error::of(errno, || format!("can't make port {name}"))),
        }
    }

    /// Says where a vport's upcalls go.
    pub(crate) fn vport_set_pids(&self, datapath: i32, port: OdpPort, pids: &[u32]) -> Result<()> {
        let attrs = |to: &mut Writer| {
            to.put_u32(vport::PORT_NO, port.0);
            put_pids(to, pids);
            Ok(())
        };
        match self.vport_request(datapath, cmd::SET, &attrs)? {
            Ok(_) => Ok(()),
            Err(Errno::ENODEV) => Err(DpifError::NoSuchPort(port)),
            Err(errno) => Err(error::of(errno, || format!("can't set the upcall sockets of port {port}"))),
        }
    }

    pub(crate) fn vport_del(&self, datapath: i32, port: OdpPort) -> Result<()> {
        let attrs = |to: &mut Writer| {
            to.put_u32(vport::PORT_NO, port.0);
            Ok(())
        };
        match self.vport_request(datapath, cmd::DEL, &attrs)? {
            Ok(_) => Ok(()),
            Err(Errno::ENODEV) => Err(DpifError::NoSuchPort(port)),
            Err(Errno::EINVAL) if port == OdpPort(0) => {
                Err(DpifError::Invalid("port 0 is the datapath's own: it goes with it".into()))
            }
            Err(errno) => Err(error::of(errno, || format!("can't delete port {port}"))),
        }
    }

    pub(crate) fn vport_get(&self, datapath: i32, which: Which<'_>) -> Result<VportInfo> {
        let attrs = |to: &mut Writer| {
            match &which {
                Which::Port(port) => to.put_u32(vport::PORT_NO, port.0),
                Which::Name(name) => to.put_str(vport::NAME, name),
            }
            Ok(())
        };
        let missing = || match &which {
            Which::Port(port) => DpifError::NoSuchPort(*port),
            Which::Name(name) => DpifError::NoSuchDevice((*name).into()),
        };
        match self.vport_request(datapath, cmd::GET, &attrs)? {
            Ok(info) => info.ok_or_else(missing),
            Err(Errno::ENODEV) => Err(missing()),
            Err(errno) => Err(error::of(errno, || "can't ask for a port".into())),
        }
    }

    /// All vports by number. What changed while they were listed is listed again.
    pub(crate) fn vports(&self, datapath: i32) -> Result<Vec<VportInfo>> {
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            let mut all = Vec::new();
            let dumped = self.dump(
                datapath,
                self.families.vport,
                |_| {},
                |attrs| {
                    all.extend(read(attrs));
                    true
                },
            )?;
            if dumped.consistent {
                all.sort_by_key(|info: &VportInfo| info.port);
                all.dedup_by_key(|info| info.port);
                return Ok(all);
            }
        }
        Err(DpifError::Kernel("the datapath's ports change faster than they can be listed".into()))
    }

    fn vport_request(
        &self,
        datapath: i32,
        command: u8,
        attrs: &dyn Fn(&mut Writer) -> crate::codec::Result<()>,
    ) -> Result<Result<Option<VportInfo>, Errno>> {
        let request = Request { family: self.families.vport, cmd: command, flags: F_ECHO, attrs };
        let mut info = None;
        let how = self.request(datapath, &request, |_, attrs| info = read(attrs))?;
        Ok(how.map(|()| info))
    }
}

fn put_pids(to: &mut Writer, pids: &[u32]) {
    let none = [0];
    let pids = if pids.is_empty() { &none[..] } else { pids };
    let bytes: Vec<u8> = pids.iter().flat_map(|pid| pid.to_ne_bytes()).collect();
    to.put(vport::UPCALL_PID, &bytes);
}

/// Reads a vport; `None` where the least that describes one is missing.
pub(crate) fn read(attrs: &[u8]) -> Option<VportInfo> {
    let attrs = Attrs::new(attrs);
    let number = |kind| attrs.clone().find(kind).and_then(u32_of);
    let pids = attrs.clone().find(vport::UPCALL_PID).unwrap_or_default();
    let counters = attrs.clone().find(vport::STATS).unwrap_or_default();
    let [rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped] = words(counters);
    let upcalls = attrs.clone().find(vport::UPCALL_STATS).unwrap_or_default();
    let upcall = |kind| Attrs::new(upcalls).find(kind).and_then(u64_of).unwrap_or(0);
    Some(VportInfo {
        port: OdpPort(number(vport::PORT_NO)?),
        name: attrs.clone().find(vport::NAME).and_then(str_of)?.into(),
        kind: VportType::read(number(vport::TYPE)?, attrs.clone().find(vport::OPTIONS).unwrap_or_default()),
        ifindex: number(vport::IFINDEX).unwrap_or(0),
        upcall_pids: pids.as_chunks().0.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect(),
        stats: PortStats {
            rx_packets,
            rx_bytes,
            tx_packets,
            tx_bytes,
            rx_dropped,
            tx_dropped,
            upcalls: upcall(vport_upcall::SUCCESS),
            upcall_lost: upcall(vport_upcall::FAIL),
        },
        errors: (rx_errors, tx_errors),
    })
}
