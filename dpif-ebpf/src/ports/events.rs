//! Watching the ports' devices.
//!
//! A thread waits for news of the kernel. It takes from them only *which* device to look at: what the device is like is asked
//! for then, so that news which waited or were lost leave nothing wrong.

use std::io;
use std::sync::Arc;

use dpif::{OdpPort, PortEvent, PortKind};

use super::{Port, Ports, SYSTEM};
use crate::background::{Background, Stop};
use crate::rtnl::{self, Monitor, News};

/// What has become of a device.
const MOVED: &str = "moved to another network namespace";

/// Starts to watch the devices of `ports`, beginning with what has happened before.
pub(crate) fn watch(ports: Arc<Ports>) -> io::Result<Background> {
    let mut monitor = ports.netns().run(Monitor::open)??;
    Background::start("dpif-ebpf-ports", move |stop: Stop| {
        ports.on_news(News::Lost);
        while stop.wait_for(&monitor)? {
            monitor.news()?.into_iter().for_each(|news| ports.on_news(news));
        }
        Ok(())
    })
}

impl Ports {
    /// Brings the ports in step with devices that have changed.
    fn on_news(&self, news: News) {
        let state = &mut *self.state.lock();
        let (index, gone) = match news {
            // A device that isn't there any more will be said to be gone, and then why.
            News::Changed(index) => (Some(index), None),
            News::Gone(index) => (Some(index), Some("deleted")),
            News::Moved(index) => (Some(index), Some(MOVED)),
            News::Lost => (None, Some("deleted or moved to another network namespace")),
        };
        let concerned = |port: &Port| {
            let record = &port.record;
            port.error.is_none() && index.is_none_or(|index| index == record.ifindex || index == record.host_ifindex)
        };
        for (number, port) in state.ports.iter_mut().filter(|(_, port)| concerned(port)) {
            match self.refresh(*number, port, gone) {
                Ok(false) => {}
                Ok(true) => state.events.push(PortEvent::Changed(OdpPort(*number))),
                Err(why) => {
                    let error = format!("{} was {why}", port.name);
                    tracing::warn!("{}: port {number} is detached: {error}", self.datapath);
                    // Its number may be another device's by now, unless it is back.
                    let is_there = || {
                        let link = rtnl::by_index(port.record.ifindex).ok().flatten();
                        link.is_some_and(|link| link.name == port.name)
                    };
                    if port.record.kind == SYSTEM && gone == Some(why.as_str()) && !is_there() {
                        (port.record.ifindex, port.record.host_ifindex) = (0, 0);
                    }
                    if let Err(error) = self.detach(*number, &mut port.record) {
                        tracing::warn!("{}: port {number}: {error}", self.datapath);
                    }
                    port.error = Some(error.clone());
                    state.events.push(PortEvent::Detached(OdpPort(*number), error));
                }
            }
        }
    }

    /// Looks at a port's devices. True: something about them changed. An error says why the port can't go on; that a device
    /// is not there is one if `gone` says so.
    fn refresh(&self, number: u32, port: &mut Port, gone: Option<&str>) -> Result<bool, String> {
        let look = || {
            let host = rtnl::by_index(port.record.host_ifindex)?;
            let is_pair = port.kind == PortKind::Internal;
            let inside = if is_pair { rtnl::by_index(port.record.ifindex)? } else { host.clone() };
            io::Result::Ok((host, inside))
        };
        let (host, inside) = match look() {
            Ok(found) => found,
            // That one can't ask says nothing of the device.
            Err(error) => {
                tracing::warn!("{}: can't look at {}: {error}", self.datapath, port.name);
                return Ok(false);
            }
        };
        let (Some(host), Some(mut inside)) = (host, inside) else {
            return gone.map_or(Ok(false), |how| Err(how.to_owned()));
        };
        // One that is back already has lost on its way what was attached to it.
        if gone == Some(MOVED) {
            return Err(MOVED.to_owned());
        }
        if host.name != port.name {
            return Err(format!("renamed to {}", host.name));
        }
        if inside.mtu != host.mtu {
            // The operator changes the host's end; the datapath's follows.
            match rtnl::set_mtu(inside.index, host.mtu) {
                Ok(()) => inside.mtu = host.mtu,
                Err(error) => tracing::warn!("{}: can't set the MTU of {}: {error}", port.name, inside.name),
            }
        }
        let changed = (port.mtu, port.mac) != (inside.mtu, host.mac);
        let resized = port.mtu != inside.mtu;
        if changed {
            (port.mtu, port.mac) = (inside.mtu, host.mac);
        }
        if resized {
            self.retry_xdp(number, port).map_err(|error| format!("changed, and {error}"))?;
        }
        // Whether it takes frames of the XDP hook may have changed too, and nothing else says so.
        self.set_entry(number, port).map_err(|error| format!("changed, and {error}"))?;
        Ok(changed)
    }
}
