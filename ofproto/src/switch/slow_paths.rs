//! What packets come up for beside misses: protocols, controllers, exporters, and the meters before them.

use std::sync::Arc;

use dpif::MeterConfig;

use super::{Result, Switch, SwitchError};
use crate::export::Exporter;
use crate::packet_in::PacketInSink;
use crate::protocol::{Attached, Protocol, SlowPaths};

/// Meters that the switch makes for itself. Their ids are the highest of the datapath: the others are for rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VirtualMeter {
    /// Limits packets that userspace has to handle (`OFPM13_SLOWPATH`).
    SlowPath,
    /// Limits packets to controllers (`OFPM13_CONTROLLER`).
    Controller,
}

impl Switch {
    /// Has a protocol spoken on a port of a bridge, or on all of them (`None`), until [`Switch::protocol_detach`].
    ///
    /// # Errors
    /// There is no such bridge or port.
    pub fn protocol_attach(&self, bridge: &str, port: Option<&str>, protocol: Arc<dyn Protocol>) -> Result<()> {
        let _admin = self.admin.lock();
        let on = self.bridge(bridge)?;
        let no_such = |name: &str| SwitchError::NoSuchPort(bridge.into(), name.into());
        let port = port.map(|name| on.port_by_name(name).map(|port| port.number).ok_or_else(|| no_such(name)));
        let attached = Attached { bridge: Arc::clone(&on.name), port: port.transpose()?, protocol };
        self.change_slow_paths(|slow_paths| slow_paths.protocols.push(attached.clone()));
        Ok(())
    }

    /// Ends that, wherever the protocol is spoken. It may get a packet until every handler has passed its loop.
    pub fn protocol_detach(&self, protocol: &Arc<dyn Protocol>) {
        self.change_slow_paths(|slow_paths| {
            slow_paths.protocols.retain(|attached| !Arc::ptr_eq(&attached.protocol, protocol));
        });
    }

    /// Where packets for controllers go; `None` drops them.
    pub fn set_packet_in_sink(&self, sink: Option<Arc<dyn PacketInSink>>) {
        self.backer.set_sinks(|sinks| sinks.packet_in.clone_from(&sink));
    }

    /// Where sampled packets go; `None` drops them.
    pub fn set_exporter(&self, exporter: Option<Arc<dyn Exporter>>) {
        self.backer.set_sinks(|sinks| sinks.exporter.clone_from(&exporter));
    }

    /// Limits what comes up, or (`None`) doesn't any more. Flows that send packets up do so under the meter from now on.
    ///
    /// # Errors
    /// The datapath has no meters, or not such ones.
    pub fn set_virtual_meter(&self, which: VirtualMeter, config: Option<&MeterConfig>) -> Result<()> {
        let dpif = &self.backer.dpif;
        let failed = |error| SwitchError::Datapath(format!("setting a meter of datapath {}", dpif.name()), error);
        let above = match which {
            VirtualMeter::SlowPath => 1,
            VirtualMeter::Controller => 2,
        };
        // A datapath without meters refuses whatever the number.
        let id = dpif.meter_features().max_meters.saturating_sub(above);
        if let Some(config) = config {
            dpif.meter_set(id, config).map_err(failed)?;
        }
        self.change_slow_paths(|slow_paths| {
            *match which {
                VirtualMeter::SlowPath => &mut slow_paths.slow_path_meter,
                VirtualMeter::Controller => &mut slow_paths.controller_meter,
            } = config.map(|_| id);
        });
        match config {
            Some(_) => Ok(()),
            None => {
                // No flow names it then. Without a meter, who does lets everything through.
                self.revalidate_now();
                dpif.meter_del(id).map(drop).or_else(|error| match error {
                    dpif::DpifError::NoSuchMeter(_) => Ok(()),
                    error => Err(failed(error)),
                })
            }
        }
    }

    fn change_slow_paths(&self, change: impl FnOnce(&mut SlowPaths)) {
        let changed: std::result::Result<(), std::convert::Infallible> = self.backer.update(|config| {
            change(Arc::make_mut(&mut config.slow_paths));
            Ok(())
        });
        let Ok(()) = changed;
        coverage::inc!("rev_reconfigure");
    }
}
