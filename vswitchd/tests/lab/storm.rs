//! Port 1 sends packets of new flows at full speed, while neighbours behind ports 2 and 3 open connections with each other.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dpif::PortStats;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use testkit::RawSocket;

use super::{Datapath, Lab, udp};

/// Each rule reads both UDP ports whole, so that each connection needs two megaflows of its own. The storm goes where nobody is.
const RULES: [&str; 3] = [
    "in_port=1,udp,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],move:NXM_OF_UDP_DST[]->NXM_NX_REG1[0..15],output:4",
    "in_port=2,udp,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],move:NXM_OF_UDP_DST[]->NXM_NX_REG1[0..15],output:3",
    "in_port=3,udp,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],move:NXM_OF_UDP_DST[]->NXM_NX_REG1[0..15],output:2",
];
/// A connection that has not come about after so long is lost, and not just late on a busy machine.
const LOST: Duration = Duration::from_secs(10);

/// The switch and its neighbours.
pub(crate) struct Storm {
    pub(crate) lab: Lab,
    client: RawSocket,
    server: RawSocket,
    next: u32,
}

/// What came of some connections.
#[derive(Default)]
pub(crate) struct Run {
    /// How long each took from the request to the answer, in order of size.
    pub(crate) times: Vec<Duration>,
    /// Connections that did not come about.
    pub(crate) lost: u32,
    /// Frames that the storm sent meanwhile.
    pub(crate) sent: u64,
    /// How long all of it took.
    pub(crate) took: Duration,
    /// What the ports 1, 2 and 3 counted meanwhile: upcalls queued and lost.
    pub(crate) upcalls: [(u64, u64); 3],
}

impl Run {
    /// The time that so large a part of the connections took at most; `NAN` of none.
    pub(crate) fn quantile_us(&self, part: f64) -> f64 {
        let at = (self.times.len() as f64 * part) as usize;
        self.times.get(at.min(self.times.len().saturating_sub(1))).map_or(f64::NAN, |time| time.as_nanos() as f64 / 1e3)
    }
}

impl Storm {
    pub(crate) fn new(datapath: Datapath) -> Self {
        let options = ofproto::Options { n_handlers: Some(1), n_revalidators: Some(1), ..Default::default() };
        let lab = Lab::new(datapath, 4, 4, options);
        lab.flows(&RULES);
        lab.start();
        let (client, server) = (lab.socket(2), lab.socket(3));
        Self { lab, client, server, next: 0 }
    }

    /// Opens `n` connections, one after the other.
    pub(crate) fn idle(&mut self, n: u32) -> Run {
        let before = self.counters();
        let mut run = self.connect(n);
        run.upcalls = self.since(before);
        run
    }

    /// As [`Storm::idle`], while the storm blows. `blow` sends some frames and says how many; it is called again and again on a
    /// thread of its own.
    pub(crate) fn stormy(&mut self, n: u32, mut blow: impl FnMut() -> u64 + Send) -> Run {
        let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    sent.fetch_add(blow(), Ordering::Relaxed);
                }
            });
            // It has filled what it can fill.
            std::thread::sleep(Duration::from_millis(300));
            let (before, sent_before) = (self.counters(), sent.load(Ordering::Relaxed));
            let mut run = self.connect(n);
            (run.upcalls, run.sent) = (self.since(before), sent.load(Ordering::Relaxed) - sent_before);
            over.store(true, Ordering::Relaxed);
            run
        })
    }

    fn connect(&mut self, n: u32) -> Run {
        let mut run = Run::default();
        let began = Instant::now();
        for _ in 0..n {
            self.next += 1;
            let [_, a, b, c] = self.next.to_be_bytes();
            let ports = [u16::from_be_bytes([b, c]), 1000 + u16::from(a)];
            match self.connection(ports) {
                Some(time) => run.times.push(time),
                None => run.lost += 1,
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        run.took = began.elapsed();
        run.times.sort_unstable();
        run
    }

    /// A request of a new flow, and an answer to it of another.
    fn connection(&self, [from, to]: [u16; 2]) -> Option<Duration> {
        let (request, answer) = (udp(3, 2, [from, to], 60), udp(2, 3, [to, from], 60));
        let began = Instant::now();
        self.client.send(&request).ok()?;
        self.server.recv_where(LOST, |frame| frame.bytes == request).ok()??;
        self.server.send(&answer).ok()?;
        self.client.recv_where(LOST, |frame| frame.bytes == answer).ok()??;
        Some(began.elapsed())
    }

    fn counters(&self) -> [PortStats; 3] {
        [1, 2, 3].map(|n| self.lab.switch.dpif().port_stats(self.lab.odp(n)).unwrap())
    }

    fn since(&self, before: [PortStats; 3]) -> [(u64, u64); 3] {
        let now = self.counters();
        std::array::from_fn(|n| (now[n].upcalls - before[n].upcalls, now[n].upcall_lost - before[n].upcall_lost))
    }
}

/// Lets the threads of this process whose name begins so run on one CPU. Says how many there are.
pub(crate) fn pin_threads(name: &str, cpu: usize) -> io::Result<usize> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    let mut pinned = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        let named = fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name));
        if let Some(tid) = task.file_name().to_str().and_then(|tid| tid.parse().ok()).filter(|_| named) {
            sched_setaffinity(Pid::from_raw(tid), &set)?;
            pinned += 1;
        }
    }
    Ok(pinned)
}
