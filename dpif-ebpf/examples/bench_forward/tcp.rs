//! TCP between a switch's hosts, as fast as it goes.

use std::io::{self, Error, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::switches::Peer;

/// How long a stream may stand still, and finds its pace in its turn.
const PATIENCE: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_millis(40);
/// How long it counts.
const TURN: Duration = Duration::from_millis(150);
/// Bytes of a call.
const CHUNK: usize = 128 << 10;

/// A stream from the left host to the right one, which runs in its turns.
pub(crate) struct Stream {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    received: AtomicU64,
    runs: AtomicBool,
    over: AtomicBool,
}

impl Stream {
    pub(crate) fn new(peer: &Peer) -> io::Result<Self> {
        peer.active(true)?;
        let stream = Self::connect(peer);
        peer.active(false)?;
        stream
    }

    fn connect(peer: &Peer) -> io::Result<Self> {
        let listener = peer.wires.right.netns.run(|| TcpListener::bind("10.0.0.2:0"))??;
        let at = listener.local_addr()?;
        let client = peer.wires.left.netns.run(|| TcpStream::connect_timeout(&at, PATIENCE))??;
        let (server, _) = listener.accept()?;
        client.set_write_timeout(Some(PATIENCE))?;
        server.set_read_timeout(Some(Duration::from_millis(100)))?;
        let shared = Arc::new(Shared::default());
        let (sending, receiving) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads =
            vec![thread::spawn(move || sending.send(client)), thread::spawn(move || receiving.receive(server))];
        Ok(Self { shared, threads })
    }

    /// Gbit/s in a turn.
    pub(crate) fn turn(&self, peer: &Peer) -> io::Result<f64> {
        peer.active(true)?;
        self.shared.runs.store(true, Ordering::Relaxed);
        thread::sleep(SETTLE);
        let (began, before) = (Instant::now(), self.shared.received.load(Ordering::Relaxed));
        thread::sleep(TURN);
        let received = self.shared.received.load(Ordering::Relaxed) - before;
        let rate = received as f64 * 8e-9 / began.elapsed().as_secs_f64();
        self.shared.runs.store(false, Ordering::Relaxed);
        // What is on its way belongs to no other peer's turn.
        thread::sleep(Duration::from_millis(10));
        peer.active(false)?;
        if received == 0 { Err(Error::other(format!("{}: the TCP stream stands still", peer.id))) } else { Ok(rate) }
    }
}

impl Shared {
    fn send(&self, mut socket: TcpStream) {
        let bytes = vec![0x5a; CHUNK];
        while !self.over.load(Ordering::Relaxed) {
            if !self.runs.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            } else if socket.write(&bytes).is_err() {
                return;
            }
        }
    }

    fn receive(&self, mut socket: TcpStream) {
        let mut bytes = vec![0; CHUNK];
        while !self.over.load(Ordering::Relaxed) {
            match socket.read(&mut bytes) {
                Ok(0) => return,
                Ok(n) => {
                    self.received.fetch_add(n as u64, Ordering::Relaxed);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        for thread in std::mem::take(&mut self.threads) {
            let _ = thread.join();
        }
    }
}
