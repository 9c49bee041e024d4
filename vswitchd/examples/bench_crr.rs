//! Short connections through few rules: `cargo xtask bench crr`.
//!
//! The experiment of section 7.2 of "The Design and Implementation of Open vSwitch" (NSDI 2015): four rules in one table, the one
//! of the second highest priority on an address that no packet has, one on TCP ports, and a client that opens a connection,
//! sends a byte, gets one back, and closes. A switch that looked at all fields for every packet would make a megaflow for each
//! connection; with staged lookup, prefix tries and priority order there are hardly more megaflows than rules.
//!
//! Ours on eBPF and the reference with its userspace datapath take turns, on the same kind of wires between the same kind of
//! hosts, with checksum offload off (the reference's datapath needs whole checksums).

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{setsockopt, sockopt};
use testkit::report::{self, Relation, Results};
use testkit::{Need, Netns, Process, ReferenceSwitch, veth_pair, wait_until};
use vswitchd::unixctl::call;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Turns of each switch.
const TURNS: usize = 5;
/// How long a turn is.
const TURN: Duration = Duration::from_secs(4);
/// Connections at a time.
const CLIENTS: usize = 16;
/// Threads of the server.
const SERVERS: usize = 4;
const SERVER: Ipv4Addr = Ipv4Addr::new(9, 1, 1, 1);
const PORT: u16 = 9000;

const FLOWS: &str = "\
priority=4,arp,actions=NORMAL
priority=3,ip,ip_dst=11.1.1.1/16,actions=NORMAL
priority=2,tcp,ip_dst=9.1.1.1,tcp_src=10,tcp_dst=10,actions=NORMAL
priority=1,ip,ip_dst=9.1.1.1/24,actions=NORMAL
";

fn main() {
    let needs = [
        Need::Namespaces,
        Need::Bpf,
        Need::EbpfObject,
        Need::Tool("ethtool"),
        Need::Tool("ovs-vswitchd"),
        Need::Tool("ovsdb-server"),
    ];
    report::measure(&needs, measure);
}

fn measure(results: &mut Results) -> io::Result<()> {
    let ours = Ours::start()?;
    let theirs = Theirs::start()?;
    let (mut ours_per_s, mut theirs_per_s, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut megaflows, mut masks, mut their_megaflows) = (0, 0, 0);
    for turn in 0..=TURNS {
        eprintln!("turn {turn} of {TURNS}{}", if turn == 0 { " (warming up)" } else { "" });
        let mine = ours.hosts.connections_per_second().map_err(|error| named("this switch", &error))?;
        (megaflows, masks) = (megaflows.max(ours.flows()?), masks.max(ours.masks()?));
        let peer = theirs.hosts.connections_per_second().map_err(|error| named("the reference", &error))?;
        their_megaflows = their_megaflows.max(theirs.flows()?);
        if turn > 0 {
            ours_per_s.push(mine);
            theirs_per_s.push(peer);
            ratios.push(mine / peer);
        }
    }
    let lost = ours.number("lost:")?;
    ours.stop()?;
    results
        .row("crr-connections", "1/s", ours_per_s)
        .row("crr-reference", "1/s", theirs_per_s)
        .row("crr-ratio", "x", ratios)
        .row("crr-megaflows", "flows", [megaflows as f64])
        .row("crr-reference-megaflows", "flows", [their_megaflows as f64])
        .row("crr-masks", "masks", [masks as f64])
        .row("crr-lost", "upcalls", [lost as f64])
        .goal("crr-ratio", "crr-ratio", Relation::AtLeast, 1.2)
        .goal("crr-megaflows", "crr-megaflows", Relation::AtMost, 15.0)
        .goal("crr-masks", "crr-masks", Relation::AtMost, 14.0)
        .goal("crr-lost", "crr-lost", Relation::AtMost, 0.0)
        .note(format!("{CLIENTS} connections at a time, turns of {} s, nothing pinned", TURN.as_secs()))
        .note("megaflows and masks: the most after a turn, both directions and ARP; checksum offload off on all wires");
    Ok(())
}

/// An error with the switch that it befell.
fn named(switch: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("through {switch}: {error}"))
}

/// A client and a server on wires to a switch.
struct Hosts {
    switch: Netns,
    client: Netns,
    server: Netns,
}

impl Hosts {
    fn new() -> io::Result<Self> {
        let hosts = Self { switch: Netns::new("crrs")?, client: Netns::new("crrc")?, server: Netns::new("crrd")? };
        hosts.switch.silence()?;
        for (host, wire, n) in [(&hosts.client, "c0", 2), (&hosts.server, "d0", 1)] {
            host.silence()?;
            veth_pair(&hosts.switch, wire, host, "eth0")?;
            host.ip(&format!("addr add 9.1.1.{n}/24 dev eth0"))?;
            host.exec("ethtool -K eth0 tx off sg off tso off gso off gro off")?;
            hosts.switch.exec(&format!("ethtool -K {wire} tx off sg off tso off gso off gro off"))?;
        }
        Ok(hosts)
    }

    /// Opens connections for a turn's time.
    fn connections_per_second(&self) -> io::Result<f64> {
        // The clients end before the servers: a server that is gone resets the connection of a client that waits for it.
        let (stop, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let done = AtomicU64::new(0);
        let listener = self.server.run(|| TcpListener::bind(SocketAddr::from((SERVER, PORT))))??;
        std::thread::scope(|scope| {
            let (stop, closed, done, listener) = (&stop, &closed, &done, &listener);
            for _ in 0..SERVERS {
                scope.spawn(move || serve(listener, closed));
            }
            // The threads of the client are made in its namespace and stay there.
            let result = self.client.run(|| {
                std::thread::scope(|clients| {
                    let threads: Vec<_> = (0..CLIENTS).map(|_| clients.spawn(move || ask(stop, done))).collect();
                    std::thread::sleep(Duration::from_millis(500));
                    let (before, began) = (done.load(Ordering::Relaxed), Instant::now());
                    std::thread::sleep(TURN);
                    let per_second = (done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
                    stop.store(true, Ordering::SeqCst);
                    for thread in threads {
                        thread.join().map_err(|_| io::Error::other("a client panicked"))??;
                    }
                    Ok(per_second)
                })
            });
            stop.store(true, Ordering::SeqCst);
            closed.store(true, Ordering::SeqCst);
            // Whoever waits for a connection gets one, and sees that it is over.
            let woken = self.client.run(|| {
                for _ in 0..SERVERS {
                    drop(TcpStream::connect_timeout(&SocketAddr::from((SERVER, PORT)), TIMEOUT));
                }
            });
            woken.and(result).and_then(|result| result)
        })
    }
}

fn serve(listener: &TcpListener, closed: &AtomicBool) {
    let mut byte = [0];
    while let Ok((mut connection, _)) = listener.accept() {
        if closed.load(Ordering::SeqCst) {
            return;
        }
        let _ = connection.set_read_timeout(Some(TIMEOUT));
        while let Ok(1) = connection.read(&mut byte) {
            let _ = connection.write(&byte);
        }
    }
}

/// Connects, sends a byte, gets it back, and closes, again and again.
fn ask(stop: &AtomicBool, done: &AtomicU64) -> io::Result<()> {
    let mut byte = [7];
    while !stop.load(Ordering::Relaxed) {
        let mut connection = TcpStream::connect_timeout(&SocketAddr::from((SERVER, PORT)), TIMEOUT)?;
        connection.set_read_timeout(Some(TIMEOUT))?;
        // Without a state that keeps the port: there are fewer ports than connections in a turn.
        setsockopt(&connection, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        connection.write_all(&byte)?;
        connection.read_exact(&mut byte)?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Our daemon on eBPF between hosts.
struct Ours {
    daemon: Process,
    socket: PathBuf,
    bpffs: PathBuf,
    hosts: Hosts,
    _folder: tempfile::TempDir,
}

impl Ours {
    fn start() -> io::Result<Self> {
        let hosts = Hosts::new()?;
        let folder = tempfile::tempdir()?;
        let (bpffs, socket, flows) =
            (folder.path().join("bpf"), folder.path().join("ctl"), folder.path().join("flows"));
        fs::write(&flows, FLOWS)?;
        fs::create_dir(&bpffs)?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        let mut command = hosts.switch.command(daemon()?);
        command
            .args(["--datapath", "ebpf", "--bridge", "br0,fail-mode=secure", "--port", "br0:c0", "--port", "br0:d0"])
            .args(["-vconsole:off", "--log-file"])
            .arg("--flows")
            .arg(&flows)
            .arg("--unixctl")
            .arg(&socket)
            .env("SLUICE_BPFFS", &bpffs)
            .env("OVS_RUNDIR", folder.path())
            .env("OVS_LOGDIR", folder.path())
            .env("OVS_SYSLOG_METHOD", "null")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let daemon = Process::spawn(&mut command)?;
        let ours = Self { daemon, socket, bpffs, hosts, _folder: folder };
        if !wait_until(TIMEOUT, || call(&ours.socket, "version", &[], TIMEOUT).is_ok()) {
            return Err(io::Error::other("the daemon doesn't start"));
        }
        Ok(ours)
    }

    fn ask(&self, command: &str) -> io::Result<String> {
        call(&self.socket, command, &[], TIMEOUT).map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// The number behind a word of `dpctl/show`.
    fn number(&self, word: &str) -> io::Result<u64> {
        let show = self.ask("dpctl/show")?;
        let digits = show.split_once(word).map(|(_, rest)| rest.trim_start()).unwrap_or_default();
        let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().map_err(|_| io::Error::other(format!("no {word} in {show}")))
    }

    fn flows(&self) -> io::Result<u64> {
        self.number("flows:")
    }

    fn masks(&self) -> io::Result<u64> {
        self.number("total:")
    }

    fn stop(self) -> io::Result<()> {
        call(&self.socket, "exit", &["--cleanup"], TIMEOUT).map_err(io::Error::other)?.map_err(io::Error::other)?;
        self.daemon.stop(TIMEOUT)?;
        umount2(&self.bpffs, MntFlags::MNT_DETACH)?;
        Ok(())
    }
}

/// The daemon beside this program: `target/release/vswitchd`.
fn daemon() -> io::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let file = this.parent().and_then(Path::parent).map(|folder| folder.join("vswitchd"));
    file.filter(|file| file.is_file())
        .ok_or_else(|| io::Error::other("vswitchd is not built: cargo xtask bench builds it"))
}

/// The reference's daemon with its userspace datapath between hosts.
struct Theirs {
    switch: ReferenceSwitch,
    hosts: Hosts,
}

impl Theirs {
    fn start() -> io::Result<Self> {
        let hosts = Hosts::new()?;
        let switch = ReferenceSwitch::start(&hosts.switch, &["c0", "d0"])?;
        switch.replace_flows(FLOWS)?;
        Ok(Self { switch, hosts })
    }

    fn flows(&self) -> io::Result<u64> {
        let flows = self.switch.appctl(&["dpctl/dump-flows", "netdev@ovs-netdev"])?;
        Ok(flows.lines().filter(|line| line.contains("actions:")).count() as u64)
    }
}
