//! Programs in the switch's place: one that drops all packets, which shows what it costs to bring them, and one that sends all
//! packets on, which shows the least that a switch in this place could cost. And the kernel's bridge, for comparison.

use std::io::Result;
use std::path::Path;

use testkit::Netns;
use testkit::bpf::{Attached, Hook, Program};

use crate::sender::{IN, OUT, OUT_XDP};

/// What is done with each packet.
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    Dropped,
    /// Out of the device that the switch would send it to.
    Redirected,
}

/// A program at the input, gone when this is dropped.
pub(crate) struct Limit<'a> {
    netns: &'a Netns,
    /// Where there is TCX; else the program is a filter.
    link: Option<Attached>,
}

impl<'a> Limit<'a> {
    /// Attaches it to the XDP hook; what is redirected goes where the hook can send it.
    pub(crate) fn attach_xdp(netns: &'a Netns, fate: Fate) -> Result<Self> {
        let [input, output] = netns.run(|| [IN, OUT_XDP].map(nix::net::if_::if_nametoindex))?;
        let program = match fate {
            Fate::Dropped => Program::verdict(Hook::Xdp, Hook::Xdp.drop_verdict())?,
            Fate::Redirected => Program::redirect(Hook::Xdp, output?)?,
        };
        let input = input?;
        Ok(Self { netns, link: Some(netns.run(|| program.attach(input))??) })
    }

    /// Attaches it: by TCX as the switch's own programs, or as a filter where the kernel has no TCX.
    pub(crate) fn attach(netns: &'a Netns, fate: Fate, bpffs: &Path) -> Result<Self> {
        let indices = netns.run(|| [IN, OUT].map(nix::net::if_::if_nametoindex))?;
        let [input, output] = indices;
        let (input, output) = (input?, output?);
        let program = match fate {
            Fate::Dropped => Program::verdict(Hook::Tc, Hook::Tc.drop_verdict())?,
            Fate::Redirected => Program::redirect(Hook::Tc, output)?,
        };
        match netns.run(|| program.attach(input))? {
            Ok(link) => Ok(Self { netns, link: Some(link) }),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let path = bpffs.join("limit");
                program.pin(&path)?;
                netns.exec(&format!("tc qdisc add dev {IN} clsact"))?;
                let limit = Self { netns, link: None };
                let line = format!("tc filter add dev {IN} ingress bpf direct-action object-pinned {}", path.display());
                let added = netns.exec(&line);
                std::fs::remove_file(&path)?;
                added.map(|_| limit)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Limit<'_> {
    fn drop(&mut self) {
        if self.link.is_none() {
            let _ = self.netns.exec(&format!("tc qdisc del dev {IN} clsact"));
        }
    }
}

/// The kernel's bridge between input and output, gone when this is dropped.
pub(crate) struct Bridge<'a>(&'a Netns);

impl<'a> Bridge<'a> {
    pub(crate) fn new(netns: &'a Netns) -> Result<Self> {
        netns.ip(&format!("link add {BRIDGE} type bridge"))?;
        let bridge = Self(netns);
        for device in [IN, OUT] {
            netns.ip(&format!("link set {device} master {BRIDGE}"))?;
        }
        netns.ip(&format!("link set {BRIDGE} up"))?;
        Ok(bridge)
    }
}

impl Drop for Bridge<'_> {
    fn drop(&mut self) {
        let _ = self.0.ip(&format!("link del {BRIDGE}"));
    }
}

const BRIDGE: &str = "bridge0";
