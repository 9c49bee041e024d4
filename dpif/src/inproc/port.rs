//! Ports of the in-process datapath, and the wires in memory behind them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use datapath_common::op::DropReason;
use parking_lot::{Condvar, Mutex};

use super::Shared;
use super::device::DeviceWire;
use super::run::Frame;
use crate::Result;
use crate::error::DpifError;
use crate::packet::Packet;
use crate::port::{OdpPort, PortEvent, PortInfo, PortKind, PortStats};

/// A port.
pub(super) struct Port {
    pub(super) number: OdpPort,
    pub(super) name: String,
    pub(super) kind: PortKind,
    pub(super) counters: Counters,
    mtu: AtomicU32,
    failed: AtomicBool,
    state: Mutex<State>,
    pub(super) wire: Wire,
}

struct State {
    mac: [u8; 6],
    error: Option<String>,
}

/// What is behind a port.
pub(super) enum Wire {
    /// A queue that whoever holds the port's handle reads.
    Memory(MemoryWire),
    /// A network device.
    Device(DeviceWire),
}

/// Frames sent out of a port in memory.
pub(super) struct MemoryWire {
    frames: Mutex<VecDeque<Packet>>,
    arrived: Condvar,
    capacity: usize,
}

impl MemoryWire {
    pub(super) fn new(capacity: usize) -> Self {
        Self { frames: Mutex::default(), arrived: Condvar::new(), capacity }
    }

    fn send(&self, packet: Packet) -> Result<(), DropReason> {
        let mut frames = self.frames.lock();
        if frames.len() >= self.capacity {
            return Err(DropReason::Output);
        }
        frames.push_back(packet);
        self.arrived.notify_one();
        Ok(())
    }

    fn recv(&self, timeout: Duration) -> Option<Packet> {
        let until = Instant::now() + timeout;
        let mut frames = self.frames.lock();
        while frames.is_empty() {
            if timeout.is_zero() || self.arrived.wait_until(&mut frames, until).timed_out() {
                break;
            }
        }
        frames.pop_front()
    }
}

/// Statistics of a port.
#[derive(Default)]
pub(super) struct Counters {
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    pub(super) rx_dropped: AtomicU64,
    pub(super) tx_dropped: AtomicU64,
    pub(super) upcalls: AtomicU64,
    pub(super) upcall_lost: AtomicU64,
}

impl Counters {
    pub(super) fn received(&self, bytes: usize) {
        self.rx_packets.fetch_add(1, Ordering::Relaxed);
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.tx_packets.fetch_add(1, Ordering::Relaxed);
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> PortStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PortStats {
            rx_packets: get(&self.rx_packets),
            rx_bytes: get(&self.rx_bytes),
            tx_packets: get(&self.tx_packets),
            tx_bytes: get(&self.tx_bytes),
            rx_dropped: get(&self.rx_dropped),
            tx_dropped: get(&self.tx_dropped),
            upcalls: get(&self.upcalls),
            upcall_lost: get(&self.upcall_lost),
        }
    }
}

impl Port {
    pub(super) fn new(number: OdpPort, name: &str, kind: PortKind, mtu: u32, mac: [u8; 6], wire: Wire) -> Self {
        Self {
            number,
            name: name.into(),
            kind,
            counters: Counters::default(),
            mtu: AtomicU32::new(mtu),
            failed: AtomicBool::new(false),
            state: Mutex::new(State { mac, error: None }),
            wire,
        }
    }

    pub(super) fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Whether there is a device behind the port.
    pub(super) fn works(&self) -> bool {
        !self.failed.load(Ordering::Acquire)
    }

    pub(super) fn info(&self) -> PortInfo {
        let state = self.state.lock();
        PortInfo {
            port: self.number,
            name: self.name.clone(),
            kind: self.kind,
            mtu: self.mtu(),
            mac: state.mac,
            error: state.error.clone(),
        }
    }

    pub(super) fn send(&self, packet: Packet) -> Result<(), DropReason> {
        match &self.wire {
            Wire::Memory(wire) => wire.send(packet),
            Wire::Device(wire) => wire.send(&packet),
        }
    }

    /// Frames lost since this was last asked because the receiver didn't keep up.
    pub(super) fn overruns(&self) -> u64 {
        match &self.wire {
            Wire::Memory(_) => 0,
            Wire::Device(wire) => wire.overruns(),
        }
    }

    /// Lets go of the device. Nothing comes in any more when this returns.
    pub(super) fn stop(&self) {
        if let Wire::Device(wire) = &self.wire {
            wire.stop();
        }
    }

    /// Takes the device's MTU and address and says whether they are new.
    pub(super) fn update(&self, mtu: u32, mac: [u8; 6]) -> bool {
        let mut state = self.state.lock();
        let changed = self.mtu.swap(mtu, Ordering::Relaxed) != mtu || state.mac != mac;
        state.mac = mac;
        changed
    }

    /// Looks whether the device behind the port is as it was. Says what has happened to it.
    pub(super) fn look(&self) -> Option<PortEvent> {
        let Wire::Device(wire) = &self.wire else { return None };
        if !self.works() {
            return None;
        }
        match wire.look() {
            Ok(device) => self.update(device.mtu, device.mac).then_some(PortEvent::Changed(self.number)),
            Err(why) => self.fail(&why).then_some(PortEvent::Detached(self.number, why)),
        }
    }

    /// The device is gone. Says whether that is news.
    pub(super) fn fail(&self, why: &str) -> bool {
        let mut state = self.state.lock();
        state.error = Some(why.into());
        !self.failed.swap(true, Ordering::AcqRel)
    }
}

/// The far end of a port in memory: what a network device would be.
///
/// Frames sent here enter the datapath and are processed before the call returns; frames that the datapath sends wait here.
/// The handle keeps the datapath's memory alive, not the port: once the port is deleted, sending fails.
#[derive(Clone)]
pub struct InprocPort {
    dp: Arc<Shared>,
    port: Arc<Port>,
}

impl InprocPort {
    pub(super) fn new(dp: Arc<Shared>, port: Arc<Port>) -> Result<Self> {
        match port.wire {
            Wire::Memory(_) => Ok(Self { dp, port }),
            Wire::Device(_) => Err(DpifError::Invalid(format!("port {} is a device, not in memory", port.name))),
        }
    }

    /// Number of the port.
    pub fn number(&self) -> OdpPort {
        self.port.number
    }

    /// Name of the port.
    pub fn name(&self) -> &str {
        &self.port.name
    }

    /// A frame enters the datapath. On return it has been processed: sent on, queued for a handler or dropped.
    pub fn send(&self, frame: impl Into<Frame>) -> Result<()> {
        let current = self.dp.port(self.port.number);
        if !self.port.works() || !current.is_some_and(|p| Arc::ptr_eq(&p, &self.port)) {
            return Err(DpifError::NoSuchPort(self.port.number));
        }
        self.dp.receive(self.port.number, frame.into());
        Ok(())
    }

    /// The next frame that the datapath sent out of this port. Doesn't wait.
    pub fn recv(&self) -> Option<Packet> {
        self.recv_timeout(Duration::ZERO)
    }

    /// The next frame that the datapath sends out of this port, waiting for it at most `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Packet> {
        match &self.port.wire {
            Wire::Memory(wire) => wire.recv(timeout),
            Wire::Device(_) => None,
        }
    }

    /// Changes the MTU, as somebody might change a device's.
    pub fn set_mtu(&self, mtu: u32) {
        let mac = self.port.info().mac;
        self.changed(mtu, mac);
    }

    /// Changes the Ethernet address.
    pub fn set_mac(&self, mac: [u8; 6]) {
        self.changed(self.port.mtu(), mac);
    }

    /// Takes the device away, as somebody might delete or move a device that is a port. `why` is what the port then says.
    pub fn detach(&self, why: &str) {
        if self.port.fail(why) {
            self.dp.event(PortEvent::Detached(self.port.number, why.into()));
        }
    }

    fn changed(&self, mtu: u32, mac: [u8; 6]) {
        if self.port.update(mtu, mac) {
            self.dp.event(PortEvent::Changed(self.port.number));
        }
    }
}
