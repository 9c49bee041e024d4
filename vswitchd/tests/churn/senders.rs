//! Neighbours that send frames of many kinds, as long as their wire ends in a port.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{RwLock, RwLockWriteGuard};
use testkit::raw::GsoKind;
use testkit::{Gso, Offload, RawSocket};

use crate::lab::{Lab, tcp_super_packet, udp};

/// Numbers at random that are the same in each run (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// The ends of all wires.
pub(crate) struct Senders {
    wires: Vec<Wire>,
    seed: u64,
    sent: AtomicU64,
    super_packets: AtomicU64,
    malformed: AtomicU64,
    /// Whether super-packets are sent.
    with_super_packets: bool,
}

struct Wire {
    socket: RawSocket,
    /// Whether there is a port. Held for reading while a frame is sent.
    open: RwLock<bool>,
    /// Frames sent since there is.
    sent: AtomicU64,
}

impl Senders {
    pub(crate) fn new(lab: &Lab, n_wires: usize, seed: u64, with_super_packets: bool) -> Self {
        let wire = |n| Wire { socket: lab.socket(n), open: RwLock::new(false), sent: AtomicU64::new(0) };
        Self {
            wires: (1..=n_wires).map(wire).collect(),
            seed,
            sent: AtomicU64::new(0),
            super_packets: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            with_super_packets,
        }
    }

    /// Frames may be sent on this wire (from 0).
    pub(crate) fn open(&self, wire: usize) {
        *self.wires[wire].open.write() = true;
    }

    /// No frame is sent on this wire any more. Says how many were since it was opened.
    pub(crate) fn close(&self, wire: usize) -> u64 {
        let Wire { open, sent, .. } = &self.wires[wire];
        *open.write() = false;
        sent.swap(0, Ordering::Relaxed)
    }

    /// No frame is sent on any wire as long as what this returns is kept.
    pub(crate) fn pause(&self) -> Vec<RwLockWriteGuard<'_, bool>> {
        self.wires.iter().map(|wire| wire.open.write()).collect()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn super_packets(&self) -> u64 {
        self.super_packets.load(Ordering::Relaxed)
    }

    /// Frames sent that nothing can be looked up for.
    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Sends until the end: bursts of what is known and of what is new, with pauses in which all is answered.
    pub(crate) fn run(&self, thread: u64, ended: &AtomicBool) {
        let mut rng = Rng(self.seed << 8 | thread);
        while !ended.load(Ordering::Relaxed) {
            let burst = [20, 100, 3_000][rng.below(3) as usize];
            let new_flows = rng.below(2) == 0;
            for _ in 0..burst {
                self.send_one(&mut rng, new_flows);
            }
            std::thread::sleep(Duration::from_micros(rng.below(6_000)));
        }
    }

    fn send_one(&self, rng: &mut Rng, new_flows: bool) {
        let wire = &self.wires[rng.below(self.wires.len() as u64) as usize];
        let open = wire.open.read();
        if !*open {
            return;
        }
        let ports = if new_flows { 20_000 } else { 8 };
        let ports = [rng.below(ports) as u16, rng.below(32) as u16];
        let (to, from) = (1 + rng.below(6) as u8, 1 + rng.below(6) as u8);
        match rng.below(40) {
            0 => {
                // A service header that is shorter than it can be: nothing to look up.
                let nsh = [&[0x50, 0x54, 0, 0, 0, to, 0x50, 0x54, 0, 0, 0, from, 0x89, 0x4f][..], &[0; 46]].concat();
                let sent = wire.socket.send(&nsh);
                self.malformed.fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
                self.count(wire, sent);
            }
            1 if self.with_super_packets => {
                let gso = Gso { kind: GsoKind::Tcp4, size: 1000, headers: 54 };
                let offload = Offload { checksum: Some((34, 16)), gso: Some(gso) };
                let sent = wire.socket.send_offloaded(&tcp_super_packet(to, from, ports, 5054), offload);
                self.super_packets.fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
                self.count(wire, sent);
            }
            2 => {
                let mut tagged = udp(to, from, ports, 80);
                tagged.splice(12..12, [0x81, 0, 0, 7]);
                self.count(wire, wire.socket.send(&tagged));
            }
            3 => self.count(wire, wire.socket.send(&udp(to, from, ports, 1_500))),
            _ => self.count(wire, wire.socket.send(&udp(to, from, ports, 60))),
        }
    }

    fn count(&self, wire: &Wire, sent: io::Result<()>) {
        wire.sent.fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
        self.sent.fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
    }
}
