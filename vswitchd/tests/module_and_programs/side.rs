//! One of the two datapaths, with a wire that frames come in by and two that they leave by.

use std::fmt;
use std::time::Duration;

use datapath_common::{Be16, FlowKey};
use dpif::odp::Style;
use dpif::{
    Action, Dpif, FlowPut, KeyAttr, OdpPort, PortKind, PortSpec, PutMode, SetAction, Ufid, Upcall, UpcallBatch,
    XdpMode, XdpState,
};
use dpif_netlink::codec::normalize;
use testkit::{Netns, RawSocket, veth_pair};

use crate::SOON;

pub(crate) const IN: OdpPort = OdpPort(1);
pub(crate) const OUT: [OdpPort; 2] = [OdpPort(2), OdpPort(3)];
/// In which a frame that was sent has come in.
const AT_ONCE: Duration = Duration::from_millis(200);
/// Ethernet type of the frames that follow each frame out of both ports: nothing else has it.
const MARKER: [u8; 2] = [0x88, 0xb6];

pub(crate) struct Side {
    pub(crate) dpif: Box<dyn Dpif>,
    letter: char,
    to: RawSocket,
    from: [RawSocket; 2],
    /// Sees what the XDP hook hands over, once there is one.
    handed_over: Option<RawSocket>,
}

/// What became of a frame.
pub(crate) struct What {
    /// By the port that they left by. In the order of their bytes: where a list has a truncated output, ours does the whole ones
    /// first.
    pub(crate) frames: [Vec<Vec<u8>>; 2],
    pub(crate) upcalls: Vec<Upcall>,
    /// The XDP hook has finished it.
    pub(crate) in_xdp: bool,
}

impl Side {
    /// Devices' names begin with `letter`.
    pub(crate) fn new(netns: &Netns, dpif: Box<dyn Dpif>, letter: char) -> Self {
        for (number, port) in [IN, OUT[0], OUT[1]].into_iter().enumerate() {
            let (name, outside) = (format!("{letter}{number}"), format!("{letter}x{number}"));
            veth_pair(netns, &name, netns, &outside).unwrap();
            let spec = PortSpec { name, kind: PortKind::System, request: Some(port) };
            assert_eq!(dpif.port_add(&spec).unwrap(), port);
        }
        dpif.handlers_set(1).unwrap();
        let socket = |number| RawSocket::open(netns, &format!("{letter}x{number}")).unwrap();
        let side = Self { dpif, letter, to: socket(0), from: [socket(1), socket(2)], handed_over: None };
        side.marker();
        side
    }

    /// Puts the XDP hook in front of the port that frames come in by, and has the others take what it sends.
    pub(crate) fn enter_xdp(&mut self, netns: &Netns) {
        for number in [1, 2] {
            netns.exec(&format!("ethtool -K {}x{number} gro on", self.letter)).unwrap();
        }
        // What a port's device takes is looked at when its mode is chosen.
        for (port, mode) in [(OUT[0], XdpMode::Off), (OUT[1], XdpMode::Off), (IN, XdpMode::Native)] {
            self.dpif.port_set_xdp(port, mode).unwrap();
        }
        assert_eq!(self.dpif.port_xdp(IN).unwrap(), XdpState::Native);
        self.handed_over = Some(RawSocket::open(netns, &format!("{}0", self.letter)).unwrap());
    }

    /// What leaves behind the marker: devices that take redirected frames may have it overtake others.
    pub(crate) fn add_late(&self, what: &mut What) {
        for (socket, frames) in self.from.iter().zip(&mut what.frames) {
            while let Some(frame) = socket.recv(AT_ONCE).unwrap() {
                frames.push(frame.bytes);
            }
            frames.sort();
        }
    }

    /// Installs the flow of the markers.
    pub(crate) fn marker(&self) {
        let key = FlowKey { in_port: IN.0, eth_type: Be16(u16::from_ne_bytes(MARKER)), ..FlowKey::ZERO };
        let mask = FlowKey { in_port: u32::MAX, eth_type: Be16::MAX, recirc_id: u32::MAX, ..FlowKey::ZERO };
        let mask = normalize(&key, &mask, true);
        // Nothing that the XDP hook finishes.
        let value = FlowKey { skb_priority: 1, ..FlowKey::ZERO };
        let mask_of_set = FlowKey { skb_priority: u32::MAX, ..FlowKey::ZERO };
        let set = Action::Set(Box::new(SetAction { attr: KeyAttr::Priority, value, mask: mask_of_set }));
        let actions = [set].into_iter().chain(OUT.map(Action::Output)).collect();
        self.dpif.flow_put(&FlowPut { mode: PutMode::Create, ufid: Ufid(1), key, mask, actions }).unwrap();
    }

    /// A frame comes in. All that becomes of it is there when the marker behind it is.
    pub(crate) fn send(&self, frame: &[u8]) -> What {
        let received = || self.dpif.port_stats(IN).unwrap().rx_packets;
        let before = received();
        self.to.send(frame).unwrap();
        if self.handed_over.is_some() {
            // A marker that the same poll of the device brings would overtake it. A few frames nobody counts.
            testkit::wait_until(AT_ONCE, || received() != before);
        }
        let mut marker = vec![2; 64];
        marker[12..14].copy_from_slice(&MARKER);
        self.to.send(&marker).unwrap();
        let mut frames = [Vec::new(), Vec::new()];
        for (socket, frames) in self.from.iter().zip(&mut frames) {
            loop {
                let frame = socket.recv(SOON).unwrap().expect("no marker").bytes;
                if frame == marker {
                    break;
                }
                frames.push(frame);
            }
            frames.sort();
        }
        let (mut batch, mut upcalls) = (UpcallBatch::default(), Vec::new());
        while self.dpif.recv(0, &mut batch).unwrap() != 0 {
            upcalls.extend_from_slice(batch.upcalls());
        }
        for upcall in &mut upcalls {
            // The module alone has a hash of its own, and sockets.
            (upcall.packet.hash, upcall.packet.upcall_pid) = (0, 0);
        }
        let in_xdp = self.handed_over.as_ref().is_some_and(|tap| {
            let seen = std::iter::repeat_with(|| tap.recv(SOON).unwrap().expect("no marker").bytes);
            // The hook always hands the marker over.
            seen.take_while(|bytes| *bytes != marker).count() == 0
        });
        What { frames, upcalls, in_xdp }
    }
}

/// Whether a frame is taken for a marker.
pub(crate) fn is_marker(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&MARKER)
}

impl What {
    pub(crate) fn is_nothing(&self) -> bool {
        self.upcalls.is_empty() && self.frames.iter().all(Vec::is_empty)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (port, frames) in OUT.iter().zip(&self.frames) {
            for frame in frames {
                write!(f, "\n   out of {port}: {frame:02x?}")?;
            }
        }
        for upcall in &self.upcalls {
            let key = Style { verbose: true, ..Style::default() }.key(&upcall.key, None);
            write!(f, "\n   up: {:?} {key} {:02x?} of {}", upcall.kind, upcall.packet.data, upcall.orig_len)?;
        }
        Ok(())
    }
}
