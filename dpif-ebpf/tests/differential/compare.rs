//! One frame through both engines, and everything that they say about it compared.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use datapath_common::key::KEY_WORDS;
use dpif::inproc::{Event, InprocDatapath, Options, Trace};
use dpif::program::compile;
use dpif::{Action, DpStats, Dpif, FlowKey, FlowPut, OdpPort, PortKind, PortSpec, Upcall, UpcallBatch};

use super::rig::{Arrival, MTUS, REDIRECT, Rig, SHOT, XDP_DROP, XDP_PASS, XDP_REDIRECT, is_tag, survives_the_wire};
use super::tables::entering;

/// How long a frame that the program has cloned may take to the other end of a wire.
const SOON: Duration = Duration::from_millis(500);

/// The in-process datapath that is to do as the eBPF datapath does: same ports, same secret.
pub(crate) fn twin(rig: &Rig) -> InprocDatapath {
    let twin = InprocDatapath::with_options(Options { seeds: rig.seeds, ..Options::new("twin") });
    for (i, mtu) in MTUS.iter().enumerate() {
        let request = Some(OdpPort(i as u32 + 1));
        let spec = PortSpec { name: format!("p{}", i + 1), kind: PortKind::System, request };
        let port = twin.port_add(&spec).expect("a port");
        twin.port(port).expect("the port").set_mtu(*mtu);
    }
    twin.handlers_set(1).expect("a handler");
    twin
}

/// Both engines.
pub(crate) struct Pair<'a> {
    pub(crate) rig: &'a mut Rig,
    pub(crate) twin: InprocDatapath,
    /// The flows in both.
    pub(crate) flows: Vec<FlowPut>,
    /// Frames that were compared.
    pub(crate) compared: u64,
    /// What the programs served that were specialised.
    pub(crate) variants: BTreeSet<Vec<&'static str>>,
    batch: UpcallBatch,
}

impl<'a> Pair<'a> {
    pub(crate) fn new(rig: &'a mut Rig) -> Self {
        let twin = twin(rig);
        rig.dpif.handlers_set(1).expect("a handler");
        Self { rig, twin, flows: Vec::new(), compared: 0, variants: BTreeSet::new(), batch: UpcallBatch::default() }
    }

    /// Removes all flows and installs these; says if one engine takes what the other doesn't.
    pub(crate) fn install(&mut self, flows: Vec<FlowPut>) -> Result<(), String> {
        self.rig.dpif.flow_flush().map_err(|error| error.to_string())?;
        self.twin.flow_flush().map_err(|error| error.to_string())?;
        self.flows.clear();
        flows.into_iter().try_for_each(|put| self.put(put))
    }

    /// Puts a flow into both.
    pub(crate) fn put(&mut self, put: FlowPut) -> Result<(), String> {
        match (self.rig.dpif.flow_put(&put), self.twin.flow_put(&put)) {
            (Ok(()), Ok(())) => {
                self.flows.retain(|flow| flow.ufid != put.ufid);
                self.flows.push(put);
                Ok(())
            }
            (Err(_), Err(_)) => Ok(()),
            (kernel, twin) => Err(format!("flow_put of {:?}: eBPF {kernel:?}, in-process {twin:?}", put.actions)),
        }
    }

    /// Deletes a flow from both.
    pub(crate) fn del(&mut self, at: usize) -> Result<(), String> {
        let ufid = self.flows.remove(at).ufid;
        let (kernel, twin) = (self.rig.dpif.flow_del(ufid), self.twin.flow_del(ufid));
        let counts = |r: &dpif::Result<dpif::FlowStats>| r.as_ref().ok().map(|s| (s.packets, s.bytes, s.tcp_flags));
        same("final statistics of a flow", &counts(&kernel), &counts(&twin))
    }

    /// Sends a frame through both, if a frame like this can be. What differs is said in one text.
    pub(crate) fn frame(&mut self, arrival: &Arrival) -> Result<Trace, String> {
        if arrival.wire && (!survives_the_wire(&arrival.bytes) || self.truncates()) {
            return Ok(Trace::default());
        }
        self.compared += 1;
        let before = self.counters();
        let trace = self.twin.process(OdpPort(arrival.port), entering(arrival));
        let mut outputs = trace.outputs();
        let mut said = Said::default();
        if arrival.wire {
            self.rig.send(arrival);
        } else {
            let redirected = self.ends_in_redirect(&trace);
            let ran = self.rig.run(arrival, 1);
            said.note(same("verdict", &ran.verdict, if redirected { &REDIRECT } else { &SHOT }));
            if redirected && let Some((_, sent)) = outputs.pop() {
                said.note(redirect_sent(ran.bytes, sent));
            }
        }

        // A test run has ended; a frame on the wire may still be on its way.
        let deadline = Instant::now() + SOON;
        let expected = difference(&self.twin_counters(), &before.1);
        loop {
            let now = difference(&self.kernel_counters(), &before.0);
            if now == expected || !arrival.wire || Instant::now() > deadline {
                said.note(same("datapath statistics", &now, &expected));
                break;
            }
            std::thread::yield_now();
        }
        self.rig.dpif.recv(0, &mut self.batch).expect("to receive");
        said.note(upcalls(self.batch.upcalls(), &trace.upcalls()));
        for (port, expected) in outputs.iter().filter(|output| survives_the_wire(output.1)) {
            said.note(match self.rig.sent(port.0, SOON) {
                Some(sent) if sent == *expected => Ok(()),
                Some(sent) => Err(differ(&format!("sent to {port:?}"), &sent, expected)),
                None => Err(format!("nothing came out of {port:?}; expected {}", hex(expected))),
            });
        }
        if !outputs.is_empty() {
            for port in 1..=MTUS.len() as u32 {
                while let Some(sent) = self.rig.sent(port, Duration::ZERO) {
                    said.note(Err(format!("the eBPF datapath alone sent to port {port}: {}", hex(&sent))));
                }
            }
        }
        if said.0.is_empty() { Ok(trace) } else { Err(said.0) }
    }

    /// Runs the XDP hook on a frame as it comes off a wire, and compares: with nothing having happened where it passes the frame
    /// on, else with all that the twin does. True: it finished the frame.
    pub(crate) fn xdp_frame(&mut self, arrival: &Arrival) -> Result<bool, String> {
        let arrival = Arrival { wire: true, priority: 0, mark: 0, gso_size: 0, ..arrival.clone() };
        self.compared += 1;
        let before = self.counters();
        let ran = self.rig.run_xdp(&arrival, 1);
        let (verdict, bytes) = (ran.verdict, ran.bytes.to_vec());
        let mut said = Said::default();
        if verdict == XDP_PASS {
            said.note(if bytes == arrival.bytes { Ok(()) } else { Err(differ("passed on", &bytes, &arrival.bytes)) });
            said.note(same("datapath statistics", &difference(&self.kernel_counters(), &before.0), &vec![]));
        } else {
            let trace = self.twin.process(OdpPort(arrival.port), entering(&arrival));
            let outputs = trace.outputs();
            said.note(match (verdict, outputs.as_slice()) {
                (XDP_REDIRECT, [(_, sent)]) if *sent == bytes => Ok(()),
                // A group of ports.
                (XDP_REDIRECT, outputs) if outputs.len() > 1 && outputs.iter().all(|(_, sent)| *sent == bytes) => {
                    Ok(())
                }
                (XDP_REDIRECT, [(_, sent)]) => Err(differ("redirected", &bytes, sent)),
                (XDP_DROP, []) => Ok(()),
                (verdict, outputs) => Err(format!("verdict {verdict}, in-process {} outputs", outputs.len())),
            });
            let expected = difference(&self.twin_counters(), &before.1);
            said.note(same("datapath statistics", &difference(&self.kernel_counters(), &before.0), &expected));
            said.note(upcalls(&[], &trace.upcalls()));
        }
        if said.0.is_empty() { Ok(verdict != XDP_PASS) } else { Err(said.0) }
    }

    /// Sends a frame through both as if nobody looked: its upcalls wait for their handlers, as far as they may.
    pub(crate) fn storm(&mut self, arrival: &Arrival) {
        if arrival.wire {
            return;
        }
        match self.twin.port(OdpPort(arrival.port)) {
            Ok(port) => port.send(entering(arrival)).expect("a port"),
            Err(_) => drop(self.twin.process(OdpPort(arrival.port), entering(arrival))),
        }
        self.rig.run(arrival, 1);
    }

    /// Throws away the upcalls that wait.
    pub(crate) fn purge(&self) -> Result<(), String> {
        let purge = |dpif: &dyn Dpif| dpif.recv_purge(0).expect("to purge");
        same("upcalls that waited", &purge(&self.rig.dpif), &purge(&self.twin))
    }

    /// Sets the number of handlers.
    pub(crate) fn handlers(&self, n: u32) {
        self.rig.dpif.handlers_set(n).expect("to set the handlers");
        self.twin.handlers_set(n).expect("to set the handlers");
    }

    /// Whether the datapaths' counters are the same.
    pub(crate) fn counters_agree(&self) -> Result<(), String> {
        let (kernel, twin) = self.counters();
        let none = DpStats { drops: kernel.drops.iter().map(|drop| (drop.0, 0)).collect(), ..DpStats::default() };
        same("datapath statistics", &difference(&kernel, &none), &difference(&twin, &none))
    }

    /// Statistics of flows and ports, and how many flows and masks there are.
    pub(crate) fn statistics(&self) -> Result<(), String> {
        let flows = |dpif: &dyn Dpif| {
            let mut flows = Vec::new();
            dpif.flow_dump_stats(&mut |ufid, stats| {
                flows.push((ufid, stats.packets, stats.bytes, stats.tcp_flags, stats.used_ms != 0));
                true
            })
            .expect("statistics of flows");
            flows.sort();
            flows
        };
        same("statistics of flows", &flows(&self.rig.dpif), &flows(&self.twin))?;
        for port in 1..=MTUS.len() as u32 {
            let get = |dpif: &dyn Dpif| dpif.port_stats(OdpPort(port)).expect("statistics of a port");
            same(&format!("statistics of port {port}"), &get(&self.rig.dpif), &get(&self.twin))?;
        }
        let (kernel, twin) = self.counters();
        same("flows and masks", &(kernel.flows, kernel.masks), &(twin.flows, twin.masks))
    }

    /// Whether a flow truncates. The kernel's helper refuses to cut a packet off before the transport header that the sender's
    /// stack has noted in the buffer, or before a checksum that is still to be computed; a test run's buffer has neither.
    fn truncates(&self) -> bool {
        self.flows.iter().any(|flow| flow.actions.iter().any(|action| matches!(action, Action::Trunc(_))))
    }

    fn counters(&self) -> (DpStats, DpStats) {
        (self.kernel_counters(), self.twin_counters())
    }

    fn kernel_counters(&self) -> DpStats {
        self.rig.dpif.stats().expect("statistics")
    }

    fn twin_counters(&self) -> DpStats {
        self.twin.stats().expect("statistics")
    }

    /// Whether the program that ran last sends the packet itself, not a clone: it ends in an output, which has succeeded.
    fn ends_in_redirect(&self, trace: &Trace) -> bool {
        let last = trace.events.iter().rev().find_map(|event| match event {
            Event::Lookup { ufid, .. } => Some(*ufid),
            _ => None,
        });
        let flow = last.flatten().and_then(|ufid| self.flows.iter().find(|flow| flow.ufid == ufid));
        let program = flow.and_then(|flow| compile(&flow.actions).ok()).unwrap_or_default();
        let output = program.last().is_some_and(|op| op.kind == datapath_common::OpKind::Output as u16 && op.is_last());
        output && matches!(trace.events.last(), Some(Event::Output(..)))
    }
}

/// What was found to differ.
#[derive(Default)]
struct Said(String);

impl Said {
    fn note(&mut self, result: Result<(), String>) {
        if let Err(text) = result {
            let _ = writeln!(self.0, "{}", text.trim_end());
        }
    }
}

fn upcalls(kernel: &[Upcall], twin: &[&Upcall]) -> Result<(), String> {
    same("number of upcalls", &kernel.len(), &twin.len())?;
    let mut said = Said::default();
    for (k, t) in kernel.iter().zip(twin) {
        said.note(if k.key == t.key { Ok(()) } else { Err(keys(&k.key, &t.key)) });
        let rest = |u: &Upcall| (u.kind, u.orig_len, u.hash, u.packet.mru, u.packet.gso_size, u.cookie.clone());
        said.note(same("upcall", &rest(k), &rest(t)));
        let (k, t) = (&k.packet.data, &t.packet.data);
        said.note(if k == t { Ok(()) } else { Err(differ("packet of the upcall", k, t)) });
    }
    if said.0.is_empty() { Ok(()) } else { Err(said.0) }
}

/// What is left in the buffer of a packet that was redirected. A tag that was pushed last is beside the bytes.
fn redirect_sent(buffer: &[u8], sent: &[u8]) -> Result<(), String> {
    let tagged = sent.get(12..).is_some_and(is_tag);
    if buffer == sent || (tagged && buffer.get(..12) == sent.get(..12) && buffer.get(12..) == sent.get(16..)) {
        return Ok(());
    }
    Err(differ("redirected", buffer, sent))
}

fn differ(what: &str, kernel: &[u8], twin: &[u8]) -> String {
    format!("{what}:\n  eBPF       {}\n  in-process {}", hex(kernel), hex(twin))
}

/// What is comparable: the order in which masks are tried is each engine's own.
fn difference(after: &DpStats, before: &DpStats) -> Vec<(&'static str, u64)> {
    let named =
        [("hit", after.hit - before.hit), ("missed", after.missed - before.missed), ("lost", after.lost - before.lost)];
    let drops = after.drops.iter().zip(&before.drops).map(|(a, b)| (a.0, a.1 - b.1));
    named.into_iter().chain(drops).filter(|counter| counter.1 != 0).collect()
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, kernel: &T, twin: &T) -> Result<(), String> {
    if kernel == twin {
        return Ok(());
    }
    Err(format!("{what}:\n  eBPF       {kernel:?}\n  in-process {twin:?}"))
}

/// The words in which two keys differ, and both keys.
fn keys(kernel: &FlowKey, twin: &FlowKey) -> String {
    let words: Vec<_> = (0..KEY_WORDS).filter(|i| kernel.words()[*i] != twin.words()[*i]).collect();
    format!("keys differ in words {words:?}:\n  eBPF       {kernel:?}\n  in-process {twin:?}\n")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
