//! A packet's way through the datapath: extract, look up, run the program, again where it recirculates.
//!
//! This is the twin of the TC program, operation by operation, over the same shared code. What it must agree in:
//!
//! - a lookup counts before the actions run, whatever becomes of the packet then;
//! - a packet is looked up at most [`MAX_LOOKUPS`] times;
//! - pushing or popping a VLAN tag makes the key stale, and it is extracted again before the next operation that needs it;
//! - a truncation holds for the next output or upcall and is gone then;
//! - an output that can't be done is counted and the program goes on; a change that can't be done drops the packet.

use std::sync::atomic::Ordering;

use datapath_common::apply::set_word;
use datapath_common::digest::{action_hash, flow_hash};
use datapath_common::extract::{Layers, clear_packet_fields, extract};
use datapath_common::maps::MAX_LOOKUPS;
use datapath_common::op::{DropReason, OpKind, kind};
use datapath_common::packet::{PacketEdit, SlicePacket};
use datapath_common::{Be16, FlowKey, Op, Vlan};

use super::Shared;
use super::port::Port;
use super::program::WITH_ACTIONS;
use crate::action::Action;
use crate::flow::Ufid;
use crate::packet::Packet;
use crate::port::OdpPort;
use crate::upcall::{Upcall, UpcallKind};

/// A frame as it enters the datapath.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Its bytes and its accelerated VLAN tag.
    pub packet: SlicePacket,
    /// Segment size of a GSO super-packet, else 0.
    pub gso_size: u16,
    /// Maximum receive unit of a reassembled packet, else 0.
    pub mru: u16,
    /// Priority that the frame comes with.
    pub skb_priority: u32,
    /// Mark that the frame comes with.
    pub skb_mark: u32,
}

impl From<SlicePacket> for Frame {
    fn from(packet: SlicePacket) -> Self {
        Self { packet, ..Self::default() }
    }
}

impl From<Packet> for Frame {
    fn from(packet: Packet) -> Self {
        let Packet { data, gso_size, partial_checksum, mru, .. } = packet;
        let packet = SlicePacket { bytes: data, vlan: Vlan::default(), partial_checksum };
        Self { packet, gso_size, mru, ..Self::default() }
    }
}

impl From<&Packet> for Frame {
    fn from(packet: &Packet) -> Self {
        packet.clone().into()
    }
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Self {
        SlicePacket::new(bytes).into()
    }
}

impl From<&[u8]> for Frame {
    fn from(bytes: &[u8]) -> Self {
        SlicePacket::new(bytes).into()
    }
}

/// Where packets go that leave the datapath.
pub(super) trait Sink {
    /// A lookup was done.
    fn looked_up(&mut self, _key: &FlowKey, _masks: u32, _ufid: Option<Ufid>) {}
    /// Sends a packet, its tags in its bytes.
    fn output(&mut self, port: &Port, packet: Packet) -> Result<(), DropReason>;
    /// Sends a packet to userspace. `packet_len`: its bytes without an accelerated tag.
    fn upcall(&mut self, upcall: Upcall, packet_len: usize) -> Result<(), DropReason>;
    /// Something was dropped; it is counted already.
    fn dropped(&mut self, _reason: DropReason) {}
}

/// One packet on its way.
struct Work {
    frame: Frame,
    key: FlowKey,
    layers: Layers,
    /// The packet has changed since the key was extracted.
    stale: bool,
    /// Lookups done.
    lookups: u32,
    /// It has come in, and was not looked up yet.
    arrived: bool,
}

/// What is run: actions, and the program that they are.
struct List<'a> {
    actions: &'a [Action],
    program: &'a [Op],
}

/// Why a packet is sent up.
struct Why<'a> {
    kind: UpcallKind,
    cookie: Vec<u8>,
    /// Go along.
    actions: Option<&'a [Action]>,
}

impl Default for Why<'_> {
    fn default() -> Self {
        Self { kind: UpcallKind::Miss, cookie: Vec::new(), actions: None }
    }
}

const METER: u16 = OpKind::Meter as u16;
const CLONE: u16 = OpKind::Clone as u16;
const SAMPLE: u16 = OpKind::Sample as u16;

/// How a program ended.
enum End {
    /// The packet is gone.
    Done,
    /// It is to be looked up again.
    Recirc,
}

/// Runs packets of a datapath into a sink.
pub(super) struct Run<'a, S> {
    dp: &'a Shared,
    sink: &'a mut S,
}

impl<'a, S: Sink> Run<'a, S> {
    pub(super) fn new(dp: &'a Shared, sink: &'a mut S) -> Self {
        Self { dp, sink }
    }

    /// A frame comes in at a port.
    pub(super) fn receive(&mut self, in_port: OdpPort, frame: Frame) {
        let Some(port) = self.dp.port(in_port) else { return self.dropped(DropReason::UnknownInPort) };
        port.counters.received(frame.packet.bytes.len());
        let Frame { skb_priority, skb_mark, .. } = frame;
        let mut key = FlowKey { in_port: in_port.0, skb_priority, skb_mark, ..FlowKey::ZERO };
        let Ok(layers) = extract(&frame.packet, &mut key) else {
            port.counters.rx_dropped.fetch_add(1, Ordering::Relaxed);
            return self.dropped(DropReason::Malformed);
        };
        self.look_up(Work { frame, key, layers, stale: false, lookups: 0, arrived: true });
    }

    /// Userspace executes `actions` on a packet, which are `program`. `false` if the packet is malformed.
    pub(super) fn execute(&mut self, frame: Frame, metadata: &FlowKey, actions: &[Action], program: &[Op]) -> bool {
        let mut key = *metadata;
        clear_packet_fields(&mut key);
        let Ok(layers) = extract(&frame.packet, &mut key) else {
            self.dropped(DropReason::Malformed);
            return false;
        };
        let mut work = Work { frame, key, layers, stale: false, lookups: 0, arrived: false };
        if let End::Recirc = self.program(&mut work, &List { actions, program }) {
            self.look_up(work);
        }
        true
    }

    /// Looks the packet up and runs what it finds until the packet is gone.
    fn look_up(&mut self, mut work: Work) {
        loop {
            if work.lookups >= MAX_LOOKUPS {
                return self.dropped(DropReason::RecircLimit);
            }
            work.lookups += 1;
            if !std::mem::take(&mut work.arrived) {
                self.dp.counters.recirculated.fetch_add(1, Ordering::Relaxed);
            }
            let found = self.dp.lookup(&work.key, work.frame.packet.bytes.len() as u64);
            self.sink.looked_up(&work.key, found.masks, found.flow.as_ref().map(|f| f.ufid));
            let Some(flow) = found.flow else { return self.upcall(&work, Why::default(), None) };
            match self.program(&mut work, &List { actions: &flow.actions, program: &flow.program }) {
                End::Done => return,
                End::Recirc => {}
            }
        }
    }

    fn program(&mut self, work: &mut Work, list: &List<'_>) -> End {
        if list.program.first().is_none_or(|op| op.kind == kind::END) {
            self.dropped(DropReason::Flow);
            return End::Done;
        }
        match self.operations(work, list, list.program) {
            Ok(end) => end,
            Err(reason) => {
                self.dropped(reason);
                End::Done
            }
        }
    }

    /// Runs `program`, the list's or a part of it.
    fn operations(&mut self, work: &mut Work, list: &List<'_>, program: &[Op]) -> Result<End, DropReason> {
        let mut trunc = None;
        let mut ops = program.iter();
        while let Some(op) = ops.next() {
            match op.kind {
                kind::END => break,
                kind::OUTPUT => self.output(work, OdpPort(op.arg), trunc.take(), op.is_last()),
                kind::USERSPACE => {
                    work.refresh()?;
                    let cookie = take_cookie(&mut ops, (op.arg & 0xff) as usize);
                    let actions = (op.arg & WITH_ACTIONS != 0).then_some(list.actions);
                    self.upcall(work, Why { kind: UpcallKind::Action, cookie, actions }, trunc.take());
                }
                kind::DATA => {}
                kind::SET_WORD => {
                    work.refresh()?;
                    let Work { frame, key, layers, .. } = work;
                    set_word(&mut frame.packet, key, layers, op.arg as usize, op.a, op.b)
                        .map_err(|_| DropReason::Action)?;
                }
                kind::PUSH_VLAN => {
                    let tpid = Be16::from_raw(op.arg as u16);
                    let vlan = Vlan { tpid, tci: Be16::from_raw((op.arg >> 16) as u16) };
                    work.frame.packet.push_vlan(vlan).map_err(|_| DropReason::Action)?;
                    work.stale = true;
                }
                kind::POP_VLAN => {
                    work.frame.packet.pop_vlan().map_err(|_| DropReason::Action)?;
                    work.stale = true;
                }
                kind::RECIRC => {
                    work.refresh()?;
                    if op.is_last() {
                        work.key.recirc_id = op.arg;
                        return Ok(End::Recirc);
                    }
                    let mut copy = work.copy();
                    copy.key.recirc_id = op.arg;
                    self.look_up(copy);
                }
                kind::HASH => {
                    work.refresh()?;
                    work.key.dp_hash = action_hash(&work.key, self.dp.seeds.hash, op.arg);
                }
                kind::TRUNC => trunc = Some(op.arg as usize),
                kind::DROP => return Err(DropReason::Flow),
                METER => {
                    if self.dp.meters.exceeds(op.arg, work.frame.packet.bytes.len(), (self.dp.clock)()) {
                        return Err(DropReason::Meter);
                    }
                }
                CLONE | SAMPLE => {
                    let (part, rest) = ops.as_slice().split_at_checked(op.a as usize).ok_or(DropReason::UnknownOp)?;
                    ops = rest.iter();
                    if op.kind == CLONE || self.dp.meters.chance(op.arg) {
                        self.branch(work, list, part)?;
                    }
                }
                _ => return Err(DropReason::UnknownOp),
            }
        }
        Ok(End::Done)
    }

    /// Runs a part of a list on a copy of the packet.
    fn branch(&mut self, work: &mut Work, list: &List<'_>, part: &[Op]) -> Result<(), DropReason> {
        work.refresh()?;
        let mut copy = work.copy();
        match self.operations(&mut copy, list, part) {
            Ok(End::Done) => {}
            Ok(End::Recirc) => self.look_up(copy),
            Err(reason) => self.dropped(reason),
        }
        Ok(())
    }

    fn output(&mut self, work: &mut Work, to: OdpPort, trunc: Option<usize>, last: bool) {
        let Some(port) = self.dp.port(to) else { return self.dropped(DropReason::NoPort) };
        match self.transmit(work, &port, trunc, last) {
            Ok(len) => port.counters.sent(len),
            Err(reason) => {
                port.counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
                self.dropped(reason);
            }
        }
    }

    /// Sends the packet, or a copy of it; says how long it was without an accelerated tag.
    fn transmit(
        &mut self,
        work: &mut Work,
        port: &Port,
        trunc: Option<usize>,
        last: bool,
    ) -> Result<usize, DropReason> {
        if !port.works() {
            return Err(DropReason::NoPort);
        }
        let mut packet = if last { std::mem::take(&mut work.frame.packet) } else { work.frame.packet.clone() };
        let mut gso_size = work.frame.gso_size;
        if let Some(len) = trunc.filter(|len| *len < packet.bytes.len()) {
            packet.bytes.truncate(len);
            // The kernel's helper that cuts a packet off makes a plain packet of a super-packet.
            gso_size = 0;
        }
        let len = packet.bytes.len();
        if gso_size == 0 && behind_ethernet(&packet) > port.mtu() as usize {
            return Err(DropReason::Mtu);
        }
        self.sink.output(port, finished(packet, gso_size, work.frame.mru))?;
        Ok(len)
    }

    fn upcall(&mut self, work: &Work, why: Why<'_>, trunc: Option<usize>) {
        let port = self.dp.port(OdpPort(work.key.in_port));
        let [miss, action] = &self.dp.counters.upcalls;
        let counters = if why.kind == UpcallKind::Miss { miss } else { action };
        if let Err(reason) = self.try_upcall(work, why, trunc) {
            counters.lost.fetch_add(1, Ordering::Relaxed);
            if let Some(port) = port {
                port.counters.upcall_lost.fetch_add(1, Ordering::Relaxed);
            }
            self.dropped(reason);
        } else {
            counters.queued.fetch_add(1, Ordering::Relaxed);
            if let Some(port) = port {
                port.counters.upcalls.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn try_upcall(&mut self, work: &Work, why: Why<'_>, trunc: Option<usize>) -> Result<(), DropReason> {
        if self.dp.handlers.count() == 0 {
            return Err(DropReason::UpcallNoHandler);
        }
        let source = &work.frame.packet;
        let len = source.bytes.len().min(trunc.unwrap_or(usize::MAX));
        let mut packet = source.clone();
        packet.bytes.truncate(len);
        let packet = finished(packet, work.frame.gso_size, work.frame.mru);
        let upcall = Upcall {
            kind: why.kind,
            orig_len: (packet.data.len() + source.bytes.len() - len) as u32,
            packet,
            key: work.key,
            cookie: why.cookie,
            // No port of this engine is a tunnel.
            egress_tunnel: None,
            actions: why.actions.map(Into::into),
            hash: flow_hash(&work.key, self.dp.seeds.hash),
            arrival_ns: (self.dp.clock)(),
        };
        self.sink.upcall(upcall, len)
    }

    fn dropped(&mut self, reason: DropReason) {
        self.dp.counters.dropped(reason);
        self.sink.dropped(reason);
    }
}

impl Work {
    /// Extracts the key again if the packet has changed.
    fn refresh(&mut self) -> Result<(), DropReason> {
        if self.stale {
            clear_packet_fields(&mut self.key);
            self.layers = extract(&self.frame.packet, &mut self.key).map_err(|_| DropReason::Malformed)?;
            self.stale = false;
        }
        Ok(())
    }

    fn copy(&self) -> Self {
        Self { frame: self.frame.clone(), ..*self }
    }
}

/// What the MTU limits: all behind the Ethernet header, but for one VLAN tag.
fn behind_ethernet(packet: &SlicePacket) -> usize {
    let tagged = packet.vlan.tpid.is_zero() && matches!(packet.bytes.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]));
    packet.bytes.len().saturating_sub(if tagged { 18 } else { 14 })
}

fn finished(mut packet: SlicePacket, gso_size: u16, mru: u16) -> Packet {
    packet.restore_vlan();
    Packet { data: packet.bytes, gso_size, partial_checksum: packet.partial_checksum, mru, ..Packet::default() }
}

/// The payload of the operation before: `len` bytes out of `Data` operations.
fn take_cookie(ops: &mut core::slice::Iter<'_, Op>, len: usize) -> Vec<u8> {
    let mut cookie = Vec::with_capacity(len.next_multiple_of(16));
    while cookie.len() < len {
        let Some(data) = ops.next() else { break };
        cookie.extend_from_slice(&data.a.to_ne_bytes());
        cookie.extend_from_slice(&data.b.to_ne_bytes());
    }
    cookie.truncate(len);
    cookie
}
