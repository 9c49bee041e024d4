//! Hosts with a TCP/IP stack, each behind a port in memory, and the traffic between them.
//!
//! Nobody is waiting in a thread: [`Network::until`] lets every stack work in turn until what is expected has happened, or the
//! time for it is over.

use std::collections::BTreeSet;
use std::time::Duration;

use dpif::inproc::InprocPort;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr, IpEndpoint, Ipv6Address,
};

use super::Error;

/// How long one packet may take there and back.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// How long a transfer may take.
const TRANSFER: Duration = Duration::from_secs(60);
/// Bytes of a TCP socket's buffers.
const TCP_BUFFER: usize = 1 << 20;
/// Largest frame, without the frame check sequence.
const FRAME: usize = 1514;
/// The identifier of our echo requests.
const IDENT: u16 = 0x51c;
/// The servers' port.
const PORT: u16 = 7;

/// A host: `10.0.0.N` and `fd00::N`.
pub(crate) struct Host {
    number: u8,
    stack: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
}

/// All hosts, by their place.
pub(crate) struct Network {
    pub(crate) hosts: Vec<Host>,
    next_port: u16,
}

/// A host's network card.
struct Wire {
    port: InprocPort,
    /// Whose frames have come in.
    heard: BTreeSet<[u8; 6]>,
}

impl Host {
    pub(crate) fn new(port: InprocPort, number: u8) -> Self {
        let mut wire = Wire { port, heard: BTreeSet::new() };
        let mut config = Config::new(EthernetAddress([2, 0, 0, 0, 0, number]).into());
        config.random_seed = number.into();
        let mut stack = Interface::new(config, &mut wire, Instant::now());
        stack.update_ip_addrs(|addresses| {
            // There is room for both.
            let _ = addresses.push(IpCidr::new(address(number, false), 24));
            let _ = addresses.push(IpCidr::new(address(number, true), 64));
        });
        Self { number, stack, sockets: SocketSet::new(Vec::new()), wire }
    }

    pub(crate) fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, self.number]
    }

    /// A frame that the stack knows nothing of.
    pub(crate) fn send(&self, frame: Vec<u8>) -> Result<(), Error> {
        Ok(self.wire.port.send(frame)?)
    }

    pub(crate) fn forget_heard(&mut self) {
        self.wire.heard.clear();
    }

    pub(crate) fn has_heard(&self, mac: [u8; 6]) -> bool {
        self.wire.heard.contains(&mac)
    }

    fn address(&self, v6: bool) -> IpAddress {
        address(self.number, v6)
    }

    /// Lets the stack work; whether it had something to do.
    fn work(&mut self) -> bool {
        self.stack.poll(Instant::now(), &mut self.wire, &mut self.sockets) != PollResult::None
    }
}

impl Network {
    pub(crate) fn new(hosts: Vec<Host>) -> Self {
        Self { hosts, next_port: 49152 }
    }

    /// Lets the hosts work until `probe` has what it wants. It is an error, told as `what`, if that takes too long.
    pub(crate) fn until<T>(
        &mut self,
        timeout: Duration,
        what: &str,
        mut probe: impl FnMut(&mut Self) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let deadline = std::time::Instant::now() + timeout;
        loop {
            let worked = self.hosts.iter_mut().fold(false, |worked, host| host.work() | worked);
            if let Some(found) = probe(self)? {
                return Ok(found);
            }
            if std::time::Instant::now() > deadline {
                return Err(what.into());
            }
            if !worked {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }

    /// Sends echo requests one after the other; all must be answered.
    pub(crate) fn ping(&mut self, from: usize, to: usize, v6: bool, count: u16) -> Result<(), Error> {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let target = self.hosts[to].address(v6);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(IDENT))?;
        let handle = self.hosts[from].sockets.add(socket);
        let result = (0..count).try_for_each(|number| {
            self.hosts[from].request_echo(handle, target, number)?;
            self.until(PATIENCE, &format!("{target} does not answer"), |network| {
                let socket = network.hosts[from].sockets.get_mut::<icmp::Socket>(handle);
                Ok(socket.can_recv().then(|| socket.recv().map(drop)).transpose()?)
            })
        });
        self.hosts[from].sockets.remove(handle);
        result
    }

    /// Sends `len` bytes over TCP and compares them; returns Gbit/s.
    pub(crate) fn transfer(&mut self, from: usize, to: usize, len: usize) -> Result<f64, Error> {
        let payload = payload(len);
        let started = std::time::Instant::now();
        let socket = || {
            let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
            tcp::Socket::new(buffer(), buffer())
        };
        let (mut client, mut server) = (socket(), socket());
        server.listen(PORT)?;
        let remote = IpEndpoint::new(self.hosts[to].address(false), PORT);
        self.next_port += 1;
        client.connect(self.hosts[from].stack.context(), remote, self.next_port)?;
        let client = self.hosts[from].sockets.add(client);
        let server = self.hosts[to].sockets.add(server);
        let (mut sent, mut received) = (0, Vec::with_capacity(len));
        let result = self.until(TRANSFER, "TCP data does not arrive", |network| {
            let socket = network.hosts[from].sockets.get_mut::<tcp::Socket>(client);
            if socket.may_send() && sent < len {
                sent += socket.send_slice(payload.get(sent..).unwrap_or_default())?;
            }
            let socket = network.hosts[to].sockets.get_mut::<tcp::Socket>(server);
            while socket.can_recv() {
                socket.recv(|bytes| {
                    received.extend_from_slice(bytes);
                    (bytes.len(), ())
                })?;
            }
            Ok((received.len() >= len).then_some(()))
        });
        let time = started.elapsed();
        self.hosts[from].sockets.remove(client);
        self.hosts[to].sockets.remove(server);
        result?;
        if received != payload {
            return Err("the payload was changed".into());
        }
        Ok(len as f64 * 8e-9 / time.as_secs_f64())
    }

    /// Sends datagrams of these sizes there and back, and compares them.
    pub(crate) fn echo(&mut self, from: usize, to: usize, sizes: &[usize]) -> Result<(), Error> {
        let mut open = |at: usize, port: u16| -> Result<SocketHandle, Error> {
            let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 8192]);
            let mut socket = udp::Socket::new(buffer(), buffer());
            socket.bind(port)?;
            Ok(self.hosts[at].sockets.add(socket))
        };
        let (client, server) = (open(from, PORT + 1)?, open(to, PORT)?);
        let remote = IpEndpoint::new(self.hosts[to].address(true), PORT);
        let result = sizes.iter().try_for_each(|&size| {
            let payload = payload(size);
            self.hosts[from].sockets.get_mut::<udp::Socket>(client).send_slice(&payload, remote)?;
            let back = self.until(PATIENCE, &format!("a datagram of {size} bytes is lost"), |network| {
                let socket = network.hosts[to].sockets.get_mut::<udp::Socket>(server);
                if socket.can_recv() {
                    let (bytes, from) = socket.recv().map(|(bytes, from)| (bytes.to_vec(), from))?;
                    socket.send_slice(&bytes, from)?;
                }
                let socket = network.hosts[from].sockets.get_mut::<udp::Socket>(client);
                Ok(socket.can_recv().then(|| socket.recv().map(|(bytes, _)| bytes.to_vec())).transpose()?)
            })?;
            if back == payload { Ok(()) } else { Err(format!("a datagram of {size} bytes was changed").into()) }
        });
        self.hosts[from].sockets.remove(client);
        self.hosts[to].sockets.remove(server);
        result
    }
}

impl Host {
    fn request_echo(&mut self, socket: SocketHandle, target: IpAddress, number: u16) -> Result<(), Error> {
        let checksum = ChecksumCapabilities::default();
        let socket = self.sockets.get_mut::<icmp::Socket>(socket);
        match target {
            IpAddress::Ipv4(_) => {
                let request = Icmpv4Repr::EchoRequest { ident: IDENT, seq_no: number, data: &[0x55; 56] };
                let bytes = socket.send(request.buffer_len(), target)?;
                request.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksum);
            }
            IpAddress::Ipv6(to) => {
                let request = Icmpv6Repr::EchoRequest { ident: IDENT, seq_no: number, data: &[0x55; 56] };
                let bytes = socket.send(request.buffer_len(), target)?;
                let own = self.stack.get_source_address_ipv6(&to);
                request.emit(&own, &to, &mut Icmpv6Packet::new_unchecked(bytes), &checksum);
            }
        }
        Ok(())
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.port.recv()?.data;
        self.heard.extend(frame.get(6..12).and_then(|mac| <[u8; 6]>::try_from(mac).ok()));
        Some((Received(frame), Sender(&self.port)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&self.port))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sender<'a>(&'a InprocPort);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        // A port that is gone is a cable that is pulled.
        let _ = self.0.send(frame);
        result
    }
}

fn address(number: u8, v6: bool) -> IpAddress {
    match v6 {
        false => IpAddress::v4(10, 0, 0, number),
        true => Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Bytes without a pattern (xorshift64*).
fn payload(len: usize) -> Vec<u8> {
    let mut state = len as u64 | 1 << 40;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
