//! The peers: everything that forwards between `p1` and `p2` of its own namespace.

use std::io::{self, Error};
use std::time::Duration;

use dpif::{Dpif as _, FlowPut, OdpPort, PortKind, PortSpec, PutMode, Ufid, XdpMode, XdpState};
use dpif_ebpf::{EbpfDpif, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::{Netns, ReferenceSwitch, wait_until};

use crate::cases::{Case, MOST_FLOWS, Megaflow};
use testkit::bpf::{Attached, Hook, Program};
use testkit::live::Wires;
use testkit::live::frames::Flow;

/// One that forwards.
pub(crate) struct Peer {
    pub(crate) id: &'static str,
    pub(crate) wires: Wires,
    /// How its frames are counted best: a frame that an XDP program has sent is dropped by one.
    pub(crate) receiver: Hook,
    switch: Switch,
}

enum Switch {
    /// Programs that send everything on.
    Bare(Hook, #[allow(dead_code, reason = "detached when dropped")] [Attached; 2]),
    Bridge,
    /// On a datapath, which runs as long as it is its turn.
    Reference(ReferenceSwitch),
    Ours(Box<EbpfDpif>),
}

/// Flows that the reference's userspace datapath holds for a thread, about.
const REFERENCE_FLOWS: usize = 64_000;

/// All peers there are, by their ids.
pub(crate) const PEERS: [&str; 7] =
    ["tc-bare", "tc-ours", "bridge", "xdp-bare", "xdp-ours", "reference-af-packet", "reference-af-xdp"];

impl Peer {
    /// Sets one up.
    pub(crate) fn new(id: &'static str) -> io::Result<Self> {
        let wires = Wires::new(id)?;
        let (receiver, switch) = match id {
            "tc-bare" => (Hook::Tc, bare(&wires, Hook::Tc)?),
            "xdp-bare" => (Hook::Xdp, bare(&wires, Hook::Xdp)?),
            "bridge" => (Hook::Tc, bridge(&wires)?),
            "tc-ours" => (Hook::Tc, Switch::Ours(Box::new(ours(&wires, XdpMode::Off)?))),
            "xdp-ours" => (Hook::Xdp, Switch::Ours(Box::new(ours(&wires, XdpMode::Native)?))),
            "reference-af-packet" => (Hook::Tc, reference(&wires, "")?),
            "reference-af-xdp" => (Hook::Tc, reference(&wires, "type=afxdp options:n_rxq=1")?),
            other => return Err(Error::other(format!("no peer {other}"))),
        };
        let peer = Self { id, wires, receiver, switch };
        peer.active(false)?;
        Ok(peer)
    }

    /// Makes it ready for a case; whether it can do that.
    pub(crate) fn configure(&mut self, case: &Case) -> io::Result<bool> {
        match &self.switch {
            Switch::Bare(..) | Switch::Bridge if case.switches_only => return Ok(false),
            Switch::Bare(..) => {}
            // So that it knows where the receiver is.
            Switch::Bridge => self.wires.right.socket()?.send(&from_receiver(case))?,
            Switch::Reference(_) if case.flows.len() > REFERENCE_FLOWS => return Ok(false),
            Switch::Reference(reference) => {
                reference.delete_flows()?;
                reference.replace_flows(&case.rules)?;
                // With what it knows of them: who only deletes the datapath's flows can't get the same ones again for seconds.
                reference.appctl(&["revalidator/purge"])?;
            }
            Switch::Ours(dpif) => install(dpif, &case.megaflows)?,
        }
        Ok(true)
    }

    /// Whether it has the flows of a case, which the reference gets by upcalls.
    pub(crate) fn has(&self, case: &Case) -> io::Result<bool> {
        let Switch::Reference(reference) = &self.switch else { return Ok(true) };
        let show = reference.appctl(&["dpctl/show"])?;
        let flows = show.lines().find_map(|line| line.trim().strip_prefix("flows: ")?.parse::<usize>().ok());
        // A single one has let the frame through that was compared.
        Ok(case.flows.len() == 1 || flows.is_some_and(|flows| flows >= case.flows.len()))
    }

    /// Makes it ready for whatever two hosts have to say to each other; whether it can do that. An XDP program can't: what the hosts'
    /// stacks leave to the device, checksums and segments, doesn't get past it.
    pub(crate) fn connect(&mut self) -> io::Result<bool> {
        match &self.switch {
            Switch::Bare(Hook::Xdp, _) => return Ok(false),
            Switch::Bare(..) | Switch::Bridge => {}
            Switch::Reference(reference) => {
                if self.id == "reference-af-xdp" {
                    return Ok(false);
                }
                reference.delete_flows()?;
                reference.replace_flows("in_port=1,actions=output:2\nin_port=2,actions=output:1\n")?;
                // Its userspace datapath completes no checksums, and cuts nothing that is longer than the MTU.
                for (host, port) in [(&self.wires.left, "p1"), (&self.wires.right, "p2")] {
                    host.netns.exec("ethtool -K eth0 tx off")?;
                    self.wires.switch.exec(&format!("ethtool -K {port} gro off"))?;
                }
            }
            Switch::Ours(_) if self.receiver == Hook::Xdp => return Ok(false),
            Switch::Ours(dpif) => install(dpif, &[all_of(1, 2), all_of(2, 1)])?,
        }
        Ok(true)
    }

    /// Lets it run or stops it: a daemon that polls would take a CPU from the others in their turns.
    pub(crate) fn active(&self, active: bool) -> io::Result<()> {
        let Switch::Reference(reference) = &self.switch else { return Ok(()) };
        let signal = if active { Signal::SIGCONT } else { Signal::SIGSTOP };
        kill(Pid::from_raw(reference.pid().cast_signed()), signal)?;
        Ok(())
    }

    /// Whether it forwards on threads of its own, which may still be at it when the sender is done.
    pub(crate) fn is_daemon(&self) -> bool {
        matches!(self.switch, Switch::Reference(_))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A stopped process doesn't end by itself; this fails only if it has ended.
        let _ = self.active(true);
        if let Switch::Ours(dpif) = &self.switch
            && let Err(error) = dpif.destroy()
        {
            eprintln!("the datapath of {} is left: {error}", self.id);
        }
    }
}

fn bare(wires: &Wires, hook: Hook) -> io::Result<Switch> {
    let attach = |from: &str, to: &str| {
        let (from, to) = (wires.port(from)?, wires.port(to)?);
        let program = Program::redirect(hook, to)?;
        wires.switch.run(|| program.attach(from))?
    };
    Ok(Switch::Bare(hook, [attach("p1", "p2")?, attach("p2", "p1")?]))
}

fn bridge(wires: &Wires) -> io::Result<Switch> {
    wires.switch.ip("link add name bridge0 type bridge")?;
    wires.switch.ip("link set bridge0 up")?;
    for port in ["p1", "p2"] {
        wires.switch.ip(&format!("link set {port} master bridge0"))?;
    }
    Ok(Switch::Bridge)
}

fn ours(wires: &Wires, xdp: XdpMode) -> io::Result<EbpfDpif> {
    let slots = (MOST_FLOWS * 3 / 2).next_power_of_two();
    let options = Options { bpffs: "/run/sluice-test/bpf".into(), slots, ..Options::default() };
    let name = datapath_name(&wires.switch);
    wires.switch.run(|| {
        let dpif = EbpfDpif::open(&name, &options).map_err(Error::other)?;
        for name in ["p1", "p2"] {
            let spec = PortSpec { name: name.into(), kind: PortKind::System, request: None };
            let number = dpif.port_add(&spec).map_err(Error::other)?;
            let state = dpif.port_set_xdp(number, xdp).map_err(Error::other)?;
            if xdp == XdpMode::Native && state != XdpState::Native {
                return Err(Error::other(format!("no native XDP on {name}: {state}")));
            }
        }
        Ok(dpif)
    })?
}

/// `slx-PID-N-LABEL`: unique, but longer than a datapath's name may be.
fn datapath_name(netns: &Netns) -> String {
    let mut words = netns.name().split('-').skip(1);
    format!("t{}-{}", words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

fn install(dpif: &EbpfDpif, megaflows: &[Megaflow]) -> io::Result<()> {
    dpif.flow_flush().map_err(Error::other)?;
    // Flows whose slots lie one behind the other in the order in which their frames come are fetched ahead by the CPU: on a datapath that is
    // fresh all would, and after a flush none. What comes in what order is chance everywhere.
    let mut order: Vec<_> = megaflows.iter().enumerate().collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    for (number, Megaflow { key, mask, actions }) in order {
        let (key, mask, actions) = (*key, *mask, actions.clone().into());
        let put = FlowPut { mode: PutMode::Create, ufid: Ufid(number as u128 + 1), key, mask, actions };
        dpif.flow_put(&put).map_err(|error| Error::other(format!("flow {number}: {error}")))?;
    }
    Ok(())
}

/// A flow of all packets of a port.
fn all_of(from: u32, to: u32) -> Megaflow {
    let (mut key, mut mask) = (dpif::FlowKey::ZERO, dpif::FlowKey::ZERO);
    (key.in_port, mask.in_port) = (from, u32::MAX);
    Megaflow { key, mask, actions: vec![dpif::Action::Output(OdpPort(to))] }
}

/// The reference on ports of this kind, in `ovs-vsctl`'s words.
fn reference(wires: &Wires, interface: &str) -> io::Result<Switch> {
    let reference = ReferenceSwitch::start(&wires.switch, &["p1", "p2"])?;
    // Flows stay between the turns of a case. One core polls; the frames' sender has the other.
    reference.appctl(&["upcall/set-flow-limit", "200000"])?;
    reference.vsctl("--no-wait set Open_vSwitch . other_config:max-idle=600000 other_config:pmd-cpu-mask=0x1")?;
    if !interface.is_empty() {
        for port in ["p1", "p2"] {
            reference.vsctl(&format!("--no-wait set interface {port} {interface}"))?;
        }
        let polled =
            || reference.appctl(&["dpif-netdev/pmd-rxq-show"]).is_ok_and(|text| text.matches("port: p").count() == 2);
        if !wait_until(Duration::from_secs(10), polled) {
            return Err(Error::other(format!("its ports don't come up with {interface}")));
        }
    }
    Ok(Switch::Reference(reference))
}

/// A frame by which a bridge learns where the receiver is.
fn from_receiver(case: &Case) -> Vec<u8> {
    let mut frame = case.flows.first().map_or_else(|| vec![0; 60], |flow: &Flow| flow.frame());
    let (to, from) = frame.split_at_mut(6);
    to.swap_with_slice(&mut from[..6]);
    frame
}
