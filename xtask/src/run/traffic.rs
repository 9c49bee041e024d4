//! Senders and receivers that know every byte they ought to get.
//!
//! Sockets are opened on a thread inside a host's namespace and used from any thread after that. Each call is bounded: what
//! does not arrive is an error after [`PATIENCE`], not a wait.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use testkit::Netns;

use super::interrupt;

/// How long a single packet or byte may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of one read or write of a transfer.
const CHUNK: usize = 64 * 1024;
/// Bytes after which a stream's payload repeats: prime, so that bytes which took a wrong place don't look right.
const PERIOD: usize = 65_521;

/// A client at `from` and a server at `to`, which has the address.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) from: &'a Netns,
    pub(super) to: &'a Netns,
    pub(super) address: IpAddr,
}

/// Pings; returns what was measured of the round-trip times.
pub(super) fn ping(from: &Netns, address: IpAddr, count: u32) -> Result<String> {
    let text = from.exec(&format!("ping -n -q -c {count} -i 0.02 -W 2 {address}"))?;
    ensure!(text.contains(&format!(" {count} received")), "not all of {count} echoes came back from {address}");
    let times = text.lines().find_map(|line| line.strip_prefix("rtt ")).unwrap_or_default();
    Ok(format!("{count} echoes, rtt {times}"))
}

impl Pair<'_> {
    fn connect(self) -> Result<(TcpStream, TcpStream)> {
        let listener = self.to.run(|| TcpListener::bind((self.address, 0)))?.context("can't listen")?;
        let at = listener.local_addr()?;
        let client = self.from.run(|| TcpStream::connect_timeout(&at, PATIENCE))?;
        let client = client.with_context(|| format!("no TCP connection to {at}"))?;
        // Whoever connected is in the queue by now.
        listener.set_nonblocking(true)?;
        let (server, _) = listener.accept().context("the connection is not there")?;
        server.set_nonblocking(false)?;
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        Ok((client, server))
    }

    /// Sends `len` bytes that never repeat over TCP. Both ends compute the checksum, which is returned if they agree.
    pub(super) fn transfer(self, len: usize) -> Result<u64> {
        let (mut client, mut server) = self.connect()?;
        let receiver = thread::spawn(move || -> Result<(usize, Checksum)> {
            let (mut checksum, mut received, mut bytes) = (Checksum::default(), 0, vec![0; CHUNK]);
            loop {
                match server.read(&mut bytes).context("TCP data did not arrive")? {
                    0 => return Ok((received, checksum)),
                    n => {
                        checksum.add(bytes.get(..n).unwrap_or_default());
                        received += n;
                    }
                }
            }
        });
        let (mut checksum, mut random, mut left) = (Checksum::default(), Random::new(len as u64), len);
        let mut bytes = vec![0; CHUNK];
        while left > 0 {
            let chunk = bytes.get_mut(..left.min(CHUNK)).unwrap_or_default();
            random.fill(chunk);
            checksum.add(chunk);
            client.write_all(chunk).context("can't send TCP data")?;
            left -= chunk.len();
        }
        drop(client);
        let (received, arrived) = join(receiver)?;
        ensure!(received == len, "{received} of {len} bytes arrived");
        ensure!(arrived == checksum, "the payload was changed: checksum {:016x}, sent {:016x}", arrived.0, checksum.0);
        Ok(checksum.0)
    }

    /// Sends datagrams of all sizes there and back, and compares what comes back with what was sent.
    pub(super) fn echo(self, sizes: &[usize]) -> Result<()> {
        let (client, server) = self.udp()?;
        let stop = Arc::new(AtomicBool::new(false));
        let echo = thread::spawn({
            let stop = Arc::clone(&stop);
            move || echo_until(&server, &stop)
        });
        let result = sizes.iter().enumerate().try_for_each(|(number, &size)| {
            let (mut sent, mut received) = (vec![0; size], vec![0; CHUNK]);
            Random::new(number as u64).fill(&mut sent);
            client.send(&sent).with_context(|| format!("can't send datagram {number} of {size} bytes"))?;
            let n = client.recv(&mut received).with_context(|| format!("datagram {number} of {size} bytes is lost"))?;
            ensure!(received.get(..n) == Some(&sent), "datagram {number} of {size} bytes was changed");
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        join(echo)?;
        result
    }

    /// A client's and a server's socket; the client's is connected.
    pub(super) fn udp(self) -> Result<(UdpSocket, UdpSocket)> {
        let server = self.to.run(|| UdpSocket::bind((self.address, 0)))?.context("can't open a UDP socket")?;
        let at = server.local_addr()?;
        let client = self.from.run(|| {
            let any: SocketAddr = if at.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(at)?;
            io::Result::Ok(socket)
        })?;
        let client = client.with_context(|| format!("can't reach {at}"))?;
        client.set_read_timeout(Some(PATIENCE))?;
        server.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok((client, server))
    }

    /// Begins a TCP stream that goes on until it is finished.
    pub(super) fn stream(self) -> Result<Stream> {
        let (client, server) = self.connect()?;
        let shared = Arc::new(Shared::default());
        let sender = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.send(client)
        });
        let receiver = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.receive(server)
        });
        Ok(Stream { shared, threads: vec![sender, receiver] })
    }
}

/// A TCP stream under way, every byte of which is compared with what was sent.
pub(super) struct Stream {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    received: AtomicU64,
    paused: AtomicBool,
    stop: AtomicBool,
}

impl Stream {
    /// Gbit/s that arrive from now on for `time`.
    pub(super) fn rate(&self, time: Duration) -> Result<f64> {
        let (started, before) = (Instant::now(), self.shared.received.load(Ordering::Relaxed));
        interrupt::sleep(time)?;
        let received = self.shared.received.load(Ordering::Relaxed) - before;
        Ok(gigabits(received, started.elapsed()))
    }

    /// Stops the sender, or lets it go on.
    pub(super) fn pause(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::Relaxed);
    }

    /// Ends it; the bytes that arrived. An error if one of them was wrong, or if it had broken.
    pub(super) fn finish(mut self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            join(thread)?;
        }
        Ok(self.shared.received.load(Ordering::Relaxed))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn send(&self, mut socket: TcpStream) -> Result<()> {
        let payload = payload();
        let mut at = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.paused.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            let chunk = payload.get(at..at + PERIOD).unwrap_or_default();
            at = (at + socket.write(chunk).context("the stream has stopped")?) % PERIOD;
        }
        Ok(())
    }

    fn receive(&self, mut socket: TcpStream) -> Result<()> {
        let payload = payload();
        let (mut bytes, mut at) = (vec![0; PERIOD], 0);
        loop {
            let n = match socket.read(&mut bytes) {
                Err(error) if is_timeout(&error) && self.paused.load(Ordering::Relaxed) => continue,
                read => read.context("the stream has stopped")?,
            };
            if n == 0 {
                return Ok(());
            }
            let got = self.received.fetch_add(n as u64, Ordering::Relaxed);
            ensure!(bytes.get(..n) == payload.get(at..at + n), "the stream was changed near byte {got}");
            at = (at + n) % PERIOD;
        }
    }
}

/// What a stream repeats, twice: each part of it of up to [`PERIOD`] bytes is in one piece.
fn payload() -> Vec<u8> {
    let mut bytes = vec![0; PERIOD];
    Random::new(1).fill(&mut bytes);
    bytes.extend_from_within(..);
    bytes
}

/// Sends every datagram back until it is told to stop.
fn echo_until(socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    let mut bytes = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut bytes) {
            Ok((n, from)) => drop(socket.send_to(bytes.get(..n).unwrap_or_default(), from)?),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(_) => bail!("a thread has panicked"),
    }
}

fn gigabits(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8e-9 / time.as_secs_f64()
}

/// A checksum that also changes when bytes change places (FNV-1a with eight bytes a step, over the whole stream).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Checksum(u64, u64, u32);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325, 0, 0)
    }
}

impl Checksum {
    /// Takes in the next bytes. How the stream is cut into calls makes no difference.
    fn add(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while self.2 != 0
            && let Some((&byte, behind)) = rest.split_first()
        {
            self.byte(byte);
            rest = behind;
        }
        let (words, tail) = rest.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        tail.iter().for_each(|&byte| self.byte(byte));
    }

    fn byte(&mut self, byte: u8) {
        self.1 |= u64::from(byte) << (8 * self.2);
        self.2 += 1;
        if self.2 == 8 {
            let word = self.1;
            (self.1, self.2) = (0, 0);
            self.word(word);
        }
    }

    fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    }
}

/// Bytes without a pattern, the same ones for the same seed (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(word.get(..chunk.len()).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_of_the_stream_not_of_its_pieces() {
        let mut bytes = vec![0; 1000];
        Random::new(7).fill(&mut bytes);
        let sum = |pieces: &[&[u8]]| {
            let mut sum = Checksum::default();
            pieces.iter().for_each(|piece| sum.add(piece));
            sum
        };
        let whole = sum(&[&bytes]);
        for cut in [0, 1, 7, 8, 9, 500, 999] {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(sum(&[a, b]), whole, "{cut}");
        }
        bytes.swap(100, 108);
        assert_ne!(sum(&[&bytes]), whole);
    }
}
