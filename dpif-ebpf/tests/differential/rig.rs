//! An eBPF datapath in a network namespace of its own, and its TC program run on frames without a device.
//!
//! The datapath is the real backend: flows, masks, slots, rings and ports as the daemon uses them. Only the arrival of a frame
//! is played: `BPF_PROG_TEST_RUN` calls `sluice_tc` as a port's entry program would, with the port's number in `skb->cb[0]`.
#![allow(dead_code)]

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};

use aya::programs::{ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions, Xdp, loaded_programs};
use aya_obj::programs::XdpAttachType;
use datapath_common::DigestSeeds;
use datapath_common::maps::{LAYOUT_VERSION, PROGRAM_TC, name};
use dpif::{Dpif as _, OdpPort, PortKind, PortSpec, XdpMode, XdpState};
use dpif_ebpf::{EbpfDpif, Options};
use testkit::{Netns, RawSocket, veth_pair};

/// `TC_ACT_SHOT`.
pub(crate) const SHOT: u32 = 2;
/// `TC_ACT_REDIRECT`.
pub(crate) const REDIRECT: u32 = 7;
/// `XDP_DROP`.
pub(crate) const XDP_DROP: u32 = 1;
/// `XDP_PASS`.
pub(crate) const XDP_PASS: u32 = 2;
/// `XDP_REDIRECT`.
pub(crate) const XDP_REDIRECT: u32 = 4;
/// The longest frame that the kernel takes for a test run: a page less headroom and `struct skb_shared_info`.
pub(crate) const LONGEST: usize = 3400;

/// MTUs of the ports 1, 2, …
pub(crate) const MTUS: [u32; 3] = [1500, 1500, 576];

/// A frame that arrives, with what the kernel's buffer says beside its bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arrival {
    pub(crate) port: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) priority: u32,
    pub(crate) mark: u32,
    pub(crate) gso_size: u16,
    /// Over the wire, not by a test run. Such a frame's outer VLAN tag arrives beside the bytes, and it has no metadata.
    pub(crate) wire: bool,
}

impl Arrival {
    /// As it can be: over the wire where the kernel refuses a test run (an IP header that is cut off), by a test run where a
    /// wire would not carry it.
    pub(crate) fn fit(mut self) -> Self {
        let header = match self.bytes.get(12..14) {
            Some([0x08, 0x00]) => 14 + 20,
            Some([0x86, 0xdd]) => 14 + 40,
            _ => 14,
        };
        let mtu = MTUS.get(self.port.wrapping_sub(1) as usize).copied().unwrap_or_default();
        self.wire = self.bytes.len() < header || (self.wire && self.bytes.len() <= mtu as usize);
        if self.wire {
            (self.priority, self.mark, self.gso_size) = (0, 0, 0);
        }
        self
    }

    /// The VLAN tag that the kernel takes off a frame on its way to the program: type and control information.
    pub(crate) fn accelerated(&self) -> Option<[u8; 4]> {
        self.bytes.get(12..16).filter(|tag| self.wire && is_tag(tag)).and_then(|tag| tag.try_into().ok())
    }
}

/// Whether these bytes behind the addresses begin a VLAN tag.
pub(crate) fn is_tag(bytes: &[u8]) -> bool {
    matches!(bytes.get(..2), Some([0x81, 0] | [0x88, 0xa8]))
}

/// Whether a frame survives the receiving end of a wire: the kernel takes its tag off first, and drops a frame in which
/// nothing whole follows the tag.
pub(crate) fn survives_the_wire(frame: &[u8]) -> bool {
    frame.len() >= 20 || !frame.get(12..).is_some_and(is_tag)
}

/// What became of it.
pub(crate) struct Ran<'a> {
    /// What the program returned.
    pub(crate) verdict: u32,
    /// The buffer after the program, without an accelerated VLAN tag.
    pub(crate) bytes: &'a [u8],
    /// Nanoseconds, of repeated runs the mean.
    pub(crate) ns: u64,
}

/// A datapath with a port for each of [`MTUS`], their other ends in a second namespace.
pub(crate) struct Rig {
    pub(crate) dpif: EbpfDpif,
    pub(crate) seeds: DigestSeeds,
    program: SchedClassifier,
    /// Its number, and where the one of the moment has its.
    running: u32,
    programs: Array<MapData, u32>,
    /// The ports' entries in the XDP hook, once it is on.
    xdp: Vec<Xdp>,
    sockets: Vec<RawSocket>,
    out: Box<[u8; 4096]>,
    pins: PathBuf,
    far: Netns,
    // The last to go: its devices are ports until the datapath is destroyed.
    _netns: Netns,
}

impl Rig {
    /// Makes the datapath and runs `work` with it, on a thread in its namespace (where the program's outputs go).
    pub(crate) fn with<T: Send>(label: &str, work: impl FnOnce(&mut Self) -> T + Send) -> T {
        let netns = Netns::new(label).expect("a network namespace");
        let path = netns.path();
        // `run` borrows the namespace, the rig owns it: enter by way of a second guard's path.
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let file = std::fs::File::open(&path).expect("the namespace");
                nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).expect("to enter the namespace");
                let mut rig = Self::new(netns);
                work(&mut rig)
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn new(netns: Netns) -> Self {
        netns.silence().expect("a quiet network namespace");
        let far = Netns::new("far").expect("a network namespace");
        far.silence().expect("a quiet network namespace");
        let mut words = netns.name().split('-').skip(1);
        let datapath = format!("d{}-{}", words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let bpffs = "/run/sluice-test/bpf".into();
        // The general program, until a test asks for more.
        let options = Options { bpffs, slots: 8192, specialise: false, hold: Duration::ZERO, ..Options::default() };
        let pins = options.bpffs.join(format!("sluice/v{LAYOUT_VERSION}")).join(&datapath);
        let dpif = EbpfDpif::open(&datapath, &options).unwrap_or_else(|error| panic!("{error}"));
        let mut sockets = Vec::new();
        for (i, mtu) in MTUS.iter().enumerate() {
            let device = format!("p{}", i + 1);
            veth_pair(&netns, &device, &far, &device).expect("a wire");
            netns.ip(&format!("link set {device} mtu {mtu}")).expect("an MTU");
            let request = Some(OdpPort(i as u32 + 1));
            dpif.port_add(&PortSpec { name: device.clone(), kind: PortKind::System, request }).expect("a port");
            sockets.push(RawSocket::open(&far, &device).expect("a raw socket"));
        }
        let control = MapData::from_pin(pins.join(name::CONTROL)).expect("the control block");
        let program = program_with_map("sluice_tc", control.info().expect("its description").id());
        let programs = MapData::from_pin(pins.join(name::PROGRAMS)).expect("the programs");
        let programs: Array<_, u32> = Array::try_from(Map::Array(programs)).expect("an array");
        let seeds = MapData::from_pin(pins.join(name::SEEDS)).expect("the seeds");
        let seeds: Array<_, DigestSeeds> = Array::try_from(Map::Array(seeds)).expect("an array");
        let seeds = seeds.get(&0, 0).expect("the seeds");
        let out = Box::new([0; 4096]);
        Self { dpif, seeds, program, running: 0, programs, xdp: Vec::new(), sockets, out, pins, far, _netns: netns }
    }

    /// Lets the datapath specialise its program, or not, and waits until it is as the flows need it. Returns what it serves.
    pub(crate) fn specialise(&self, on: bool) -> Vec<&'static str> {
        let state = || self.dpif.program().expect("a program");
        if (state().why == "switched off") == on {
            self.dpif.set_specialise(on).expect("to specialise");
        }
        let start = std::time::Instant::now();
        while !["as ", "none ", "switched off"].iter().any(|why| state().why.starts_with(why)) {
            // In an emulated machine a change takes seconds, and each that comes to nothing makes the next wait longer.
            assert!(start.elapsed() < Duration::from_secs(240), "{:?}", state());
            std::thread::sleep(Duration::from_millis(5));
        }
        state().serves.unwrap_or_default()
    }

    /// Takes the program that the ports' entries call now for the one to run.
    fn follow(&mut self) {
        let id = self.programs.get(&PROGRAM_TC, 0).expect("the program of the moment");
        if self.running != id {
            self.running = id;
            let info = loaded_programs().flatten().find(|info| info.id() == id).expect("a loaded program");
            let name = info.name_as_str().unwrap_or_default().to_owned();
            self.program = SchedClassifier::from_program_info(info, name.into()).expect("a classifier");
        }
    }

    /// Runs the TC program on a frame `repeat` times (each run finds what the one before left).
    pub(crate) fn run(&mut self, arrival: &Arrival, repeat: u32) -> Ran<'_> {
        self.follow();
        let context = context(arrival);
        let run = self
            .program
            .test_run(TestRunOptions {
                data_in: Some(&arrival.bytes),
                data_out: Some(self.out.as_mut_slice()),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::new()
            })
            .unwrap_or_else(|error| panic!("a test run of {} bytes: {error:?}", arrival.bytes.len()));
        let len = run.data_size_out as usize;
        Ran { verdict: run.return_value, bytes: &self.out[..len], ns: run.duration.as_nanos() as u64 }
    }

    /// Puts the XDP hook in front of every port, and has every port take frames from it.
    pub(crate) fn enable_xdp(&mut self) {
        for port in 1..=MTUS.len() as u32 {
            self.far.exec(&format!("ethtool -K p{port} gro on")).expect("to switch GRO on");
        }
        for port in 1..=MTUS.len() as u32 {
            let state = self.dpif.port_set_xdp(OdpPort(port), XdpMode::Native).expect("native XDP");
            assert_eq!(state, XdpState::Native);
        }
        let map = MapData::from_pin(self.pins.join(name::XDP_PORT)).expect("the port of the hook");
        let mut entries = programs_with_map("sluice_xdp_port", map.info().expect("its description").id());
        entries.sort_by_key(ProgramInfo::id);
        let xdp = |info| Xdp::from_program_info(info, "sluice_xdp_port".into(), XdpAttachType::Interface);
        self.xdp = entries.into_iter().map(|info| xdp(info).expect("an XDP program")).collect();
        assert_eq!(self.xdp.len(), MTUS.len());
    }

    /// Runs the XDP hook of the frame's port on it, `repeat` times.
    pub(crate) fn run_xdp(&mut self, arrival: &Arrival, repeat: u32) -> Ran<'_> {
        let entry = &self.xdp[arrival.port as usize - 1];
        let run = entry
            .test_run(TestRunOptions {
                data_in: Some(&arrival.bytes),
                data_out: Some(self.out.as_mut_slice()),
                repeat,
                ..TestRunOptions::new()
            })
            .unwrap_or_else(|error| panic!("a test run of {} bytes: {error:?}", arrival.bytes.len()));
        let len = run.data_size_out as usize;
        Ran { verdict: run.return_value, bytes: &self.out[..len], ns: run.duration.as_nanos() as u64 }
    }

    /// The far ends of the ports' wires, and the datapath, for threads of their own.
    pub(crate) fn parts(&self) -> (&[RawSocket], &EbpfDpif) {
        (&self.sockets, &self.dpif)
    }

    /// Sends a frame over the wire into a port.
    pub(crate) fn send(&self, arrival: &Arrival) {
        let socket = &self.sockets[arrival.port as usize - 1];
        socket.send(&arrival.bytes).unwrap_or_else(|error| panic!("{arrival:?}: {error}"));
    }

    /// The next frame that came out of a port at the other end of its wire, VLAN tags in the bytes. Those that need not survive
    /// the wire are left out (they do where their tag went beside the bytes).
    pub(crate) fn sent(&self, port: u32, wait: Duration) -> Option<Vec<u8>> {
        let socket = self.sockets.get((port as usize).checked_sub(1)?)?;
        loop {
            let frame = socket.recv(wait).expect("to receive")?;
            if survives_the_wire(&frame.bytes) {
                return Some(frame.bytes);
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Err(error) = self.dpif.destroy() {
            eprintln!("can't destroy the datapath: {error}");
        }
        for folder in ["links", ""] {
            for entry in std::fs::read_dir(self.pins.join(folder)).into_iter().flatten().flatten() {
                let _ = std::fs::remove_file(entry.path());
            }
            let _ = std::fs::remove_dir(self.pins.join(folder));
        }
    }
}

/// `struct __sk_buff` of a frame's arrival.
pub(crate) fn context(arrival: &Arrival) -> [u8; 192] {
    let mut context = [0; 192];
    let mut put = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(8, arrival.mark);
    put(32, arrival.priority);
    put(48, arrival.port);
    put(164, u32::from(arrival.gso_size != 0) * 2);
    put(176, arrival.gso_size.into());
    context
}

/// The loaded program of this name that uses the map with this id.
fn program_with_map(name: &'static str, map: u32) -> SchedClassifier {
    let info = programs_with_map(name, map).pop().unwrap_or_else(|| panic!("{name} is not loaded"));
    SchedClassifier::from_program_info(info, Cow::Borrowed(name)).expect("a classifier")
}

fn programs_with_map(name: &str, map: u32) -> Vec<ProgramInfo> {
    let uses = |info: &ProgramInfo| info.map_ids().ok().flatten().is_some_and(|maps| maps.contains(&map));
    loaded_programs().flatten().filter(|info| info.name_as_str() == Some(name) && uses(info)).collect()
}
