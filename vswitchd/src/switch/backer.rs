//! A datapath with the bridges on it.
//!
//! All bridges of a type share one datapath (a packet over several of them is one flow in it), so each type in use has
//! one backer, opened with its first bridge and removed with its last.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dpif::Dpif;
use dpif::inproc::{self, InprocDatapath, PortBackend};
use dpif_ebpf::EbpfDpif;
use dpif_netlink::NetlinkDpif;

use super::Setup;
use super::shared::Shared;
use crate::config::{DatapathType, Options};
use crate::reconcile::SwitchError;

/// The name of the datapath in the kernel, be it eBPF programs or the kernel's module.
const SYSTEM_NAME: &str = "ovs-system";
/// The name of the userspace datapath, as in the field.
const USERSPACE_NAME: &str = "ovs-netdev";

/// A datapath with the bridges on it.
pub(super) struct Backer {
    pub(super) kind: DatapathType,
    pub(super) switch: Arc<ofproto::Switch>,
    /// Whether the switch works; until then it is only configured.
    pub(super) started: bool,
    /// Whether the datapath was there before, and its ports.
    pub(super) found: Option<BTreeSet<String>>,
}

impl Backer {
    /// Makes the datapath, or finds the one that an earlier process left.
    pub(super) fn open(
        kind: DatapathType,
        setup: &Setup,
        options: &Options,
        shared: &Shared,
    ) -> Result<Backer, SwitchError> {
        let (dpif, adopted): (Arc<dyn Dpif>, bool) = match kind {
            DatapathType::Ebpf => {
                let dpif = EbpfDpif::open(SYSTEM_NAME, &ebpf_options(setup, options))?;
                let adopted = dpif.was_adopted();
                (Arc::new(dpif), adopted)
            }
            DatapathType::Netlink => {
                if options.max_flows.is_some() {
                    return Err(
                        "max-flows is not supported by datapath netlink: the kernel's module has no limit".into()
                    );
                }
                let options = dpif_netlink::Options { name: SYSTEM_NAME.into(), dispatch: setup.dispatch };
                let dpif = NetlinkDpif::open(&options)?;
                let found = dpif.was_found();
                (Arc::new(dpif), found)
            }
            DatapathType::Userspace => {
                (Arc::new(InprocDatapath::with_options(userspace_options(setup, options))), false)
            }
        };
        let found = match adopted {
            true => Some(dpif.ports()?.into_iter().map(|port| port.name).collect()),
            false => None,
        };
        // Packets that come up before the switch works wait for it instead of being lost.
        dpif.handlers_set(1)?;
        let switch = Arc::new(ofproto::Switch::new(dpif, shared.switch_options(options)));
        switch.set_terse_dumps(!shared.whole_dumps.load(Ordering::SeqCst));
        tracing::info!("{}: {}", switch.dpif_name(), if adopted { "adopted" } else { "created" });
        Ok(Backer { kind, switch, started: false, found })
    }

    /// Adopts the flows that fit, removes the ports that nobody asked for, and answers upcalls from now on. One that does already
    /// gets back the threads that it may have lost.
    pub(super) fn start(&mut self) -> Result<(), SwitchError> {
        if !self.started {
            for port in self.switch.remove_unclaimed_ports()? {
                tracing::info!("{}: removed port {port}, which no bridge has any more", self.switch.dpif_name());
            }
        }
        self.switch.start()?;
        self.started = true;
        Ok(())
    }

    /// Leaves a datapath that was not started as it was found.
    pub(super) fn give_up(&self) -> Result<(), SwitchError> {
        let Some(found) = &self.found else {
            return Ok(self.switch.destroy()?);
        };
        let dpif = self.switch.dpif();
        for port in dpif.ports()?.into_iter().filter(|port| !found.contains(&port.name)) {
            dpif.port_del(port.port)?;
        }
        Ok(())
    }

    /// Ends. What can go on without the process does, unless it should not.
    pub(super) fn shutdown(&self, cleanup: bool) -> Result<(), SwitchError> {
        match (cleanup, self.kind) {
            (false, DatapathType::Ebpf | DatapathType::Netlink) => self.switch.stop(),
            // A datapath in this process would not outlive it, but its devices want their settings back.
            _ => self.switch.destroy()?,
        }
        Ok(())
    }
}

fn ebpf_options(setup: &Setup, options: &Options) -> dpif_ebpf::Options {
    let specialise = options.specialise;
    let mut ebpf = dpif_ebpf::Options { bpffs: setup.bpffs.clone(), specialise, ..dpif_ebpf::Options::default() };
    if let Some(max_flows) = options.max_flows {
        ebpf.slots = max_flows as usize;
    }
    ebpf
}

fn userspace_options(setup: &Setup, options: &Options) -> inproc::Options {
    let mut userspace = inproc::Options::new(USERSPACE_NAME);
    if !setup.memory_ports {
        userspace.backend = PortBackend::Devices;
    }
    if let Some(max_flows) = options.max_flows {
        userspace.max_flows = max_flows as usize;
    }
    userspace
}
