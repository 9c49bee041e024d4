//! A datapath between three wires: packets come in by one and go out by two.
//!
//! The device of the port `PLAIN` takes unfinished work over, so what is left to it arrives unfinished, and the test finishes it.
//! The device of the port `BARE` takes nothing over: the kernel completes checksums, cuts segments and inserts tags before it.

use dpif::{Action, Dpif, FlowPut, OdpPort, Upcall, UpcallBatch};
use dpif_ebpf::EbpfDpif;

use crate::common::{Host, Neighbour, QUIET, SOON, flow_of_port, system};
use crate::frame::{Frame, Mode, complete};

pub(crate) const IN: OdpPort = OdpPort(1);
pub(crate) const PLAIN: OdpPort = OdpPort(2);
pub(crate) const BARE: OdpPort = OdpPort(3);

pub(crate) struct Wires {
    pub(crate) dpif: EbpfDpif,
    pub(crate) host: Host,
    source: Neighbour,
    plain: Neighbour,
    bare: Neighbour,
}

impl Wires {
    pub(crate) fn new(label: &str) -> Self {
        let host = Host::new(label);
        let [source, plain, bare] = ["in", "plain", "bare"].map(|device| host.neighbour(device));
        host.netns
            .exec("ethtool -K bare tx off sg off tso off gso off txvlan off tx-vlan-stag-hw-insert off")
            .expect("a device without offloads");
        let dpif = host.open();
        for (device, port) in [("in", IN), ("plain", PLAIN), ("bare", BARE)] {
            assert_eq!(dpif.port_add(&system(device)).unwrap(), port);
        }
        Self { dpif, host, source, plain, bare }
    }

    /// Lets frames of 9000 bytes through.
    pub(crate) fn jumbo(&self) {
        for (device, neighbour) in [("in", &self.source), ("plain", &self.plain), ("bare", &self.bare)] {
            self.host.netns.ip(&format!("link set {device} mtu 9000")).unwrap();
            neighbour.netns.ip("link set eth0 mtu 9000").unwrap();
        }
        assert!(testkit::wait_until(SOON, || self.dpif.ports().unwrap().iter().all(|port| port.mtu == 9000)));
    }

    /// What packets from the first wire are to go through when they come in.
    pub(crate) fn flow(&self, actions: Vec<Action>) -> FlowPut {
        let mut put = flow_of_port(IN, actions);
        put.mask.recirc_id = u32::MAX;
        self.dpif.flow_put(&put).unwrap_or_else(|error| panic!("{:?}: {error}", put.actions));
        put
    }

    pub(crate) fn send(&self, frame: &Frame, mode: Mode) {
        let (bytes, offload) = frame.handed_over(mode);
        self.source
            .socket
            .send_offloaded(&bytes, offload)
            .unwrap_or_else(|error| panic!("{mode:?} {frame:?}: {error}"));
    }

    /// What came out of a port is `frame`, handed over in `mode` if the device allows it, else complete and in segments.
    pub(crate) fn check(&self, port: OdpPort, frame: &Frame, mode: Mode) -> Result<(), String> {
        let (_, left) = frame.handed_over(mode);
        let mut received = self.receive(port).ok_or("nothing came")?;
        let expected = match (mode, received.offload.gso) {
            (Mode::Gso(size), None) => frame.segments(size),
            _ => vec![frame.clone()],
        };
        // The kernel hands two tags to no device unfinished in segments.
        if port == BARE && received.offload != Default::default() {
            return Err(format!("is not finished: {:?}", received.offload));
        }
        let whole = expected.len() == 1;
        if port == PLAIN && frame.tags.len() < 2 && (received.offload.checksum, whole) != (left.checksum, true) {
            return Err(format!("came with {:?} in {} frames instead of {left:?}", received.offload, expected.len()));
        }
        if let Some(gso) = received.offload.gso
            && left.gso.map(|left| (left.kind, left.size)) != Some((gso.kind, gso.size))
        {
            return Err(format!("came with {gso:?} instead of {:?}", left.gso));
        }
        for (i, frame) in expected.iter().enumerate() {
            if i > 0 {
                received = self.receive(port).ok_or_else(|| format!("segment {i} didn't come"))?;
            }
            if let Some(place) = received.offload.checksum {
                complete(&mut received.bytes, place);
            }
            same(&received.bytes, &frame.build()).map_err(|text| format!("segment {i}: {text}"))?;
        }
        Ok(())
    }

    pub(crate) fn receive(&self, port: OdpPort) -> Option<testkit::Frame> {
        let neighbour = if port == PLAIN { &self.plain } else { &self.bare };
        neighbour.socket.recv(SOON).expect("to receive")
    }

    /// The next frame, if there is one already or nearly.
    pub(crate) fn receive_soon(&self, port: OdpPort) -> Option<testkit::Frame> {
        let neighbour = if port == PLAIN { &self.plain } else { &self.bare };
        neighbour.socket.recv(QUIET / 4).expect("to receive")
    }

    /// The next upcalls.
    pub(crate) fn upcalls<'a>(&self, batch: &'a mut UpcallBatch) -> &'a [Upcall] {
        // What wakes may be a record that is still being written.
        assert!(testkit::wait_until(SOON, || self.dpif.recv(0, batch).unwrap() > 0), "no upcall came");
        batch.upcalls()
    }

    /// Nothing more comes out anywhere.
    pub(crate) fn assert_quiet(&self) {
        for neighbour in [&self.source, &self.plain, &self.bare] {
            let frames = neighbour.socket.recv_all(QUIET).expect("to receive");
            assert!(frames.is_empty(), "{} unexpected frames, such as {:?}", frames.len(), frames[0]);
        }
    }

    /// How many packets were dropped for this reason.
    pub(crate) fn drops(&self, reason: &str) -> u64 {
        let stats = self.dpif.stats().unwrap();
        stats.drops.iter().find(|(name, _)| *name == reason).map_or(0, |(_, count)| *count)
    }

    /// Ends the test: nothing has come that was not asked for, and nothing was dropped but what `drops` says.
    pub(crate) fn end(self, drops: &[(&str, u64)]) {
        self.assert_quiet();
        let mut stats = self.dpif.stats().unwrap();
        stats.drops.retain(|(_, count)| *count != 0);
        assert_eq!(stats.drops, drops);
        self.dpif.destroy().unwrap();
    }
}

/// Says where two frames differ.
pub(crate) fn same(got: &[u8], expected: &[u8]) -> Result<(), String> {
    let at = got.iter().zip(expected).position(|(a, b)| a != b);
    match at {
        None if got.len() == expected.len() => Ok(()),
        None => Err(format!("{} bytes instead of {}", got.len(), expected.len())),
        Some(at) => {
            let (a, b) = (&got[..got.len().min(160)], &expected[..expected.len().min(160)]);
            Err(format!("byte {at}:\n  came     {a:02x?}\n  expected {b:02x?}"))
        }
    }
}
