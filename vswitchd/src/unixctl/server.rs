//! The thread that owns the socket and its connections.
//!
//! A connection is driven as far as it goes without waiting: send what is to be sent, then carry out the next request,
//! then read more. It carries out one request at a time and reads no further while an answer is under way, so its
//! buffers hold at most one request and one answer. After a few requests it goes to the end of the queue, so that a
//! client with endless requests leaves room for the others.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token, Waker};
use serde_json::Value;

use super::registry::{Format, Outcome, Registry, Reply, Responder, with_newline};
use super::socket::{SocketError, SocketFile, listen_on};
use super::wire::{self, Call, Framer, REQUEST_MAX};

/// Most connections at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 256;
/// Requests of one connection before it is another's turn.
const TURN: usize = 10;
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// How long answers may take to leave when the server stops.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long to wait before another try to accept when the system has no descriptor left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST_CONNECTION: usize = 2;

/// What other threads tell the server.
#[derive(Debug)]
pub(super) enum Message {
    /// The answer to what a connection waits for.
    Reply { connection: usize, result: Result<Reply, String> },
    /// Send what is to be sent, and end.
    Stop,
}

/// A control socket in service. Dropping it stops it: answers given before leave, the socket's file is removed.
pub struct Server {
    file: SocketFile,
    messages: Sender<Message>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

/// A control socket that is taken but not yet in service: clients can connect, and wait.
pub struct Bound {
    listener: std::os::unix::net::UnixListener,
    file: SocketFile,
}

impl Server {
    /// Takes the socket at `path`. A dead daemon's socket there is replaced.
    ///
    /// # Errors
    /// If another process listens there, or there can't be a socket.
    pub fn bind(path: &Path) -> Result<Bound, SocketError> {
        listen_on(path).map(|(listener, file)| Bound { listener, file })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

impl Bound {
    /// Where the socket is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Begins to carry out the commands of `registry`, on a thread called `unixctl`.
    ///
    /// # Errors
    /// If the system has no descriptors or threads left.
    pub fn serve(self, registry: Arc<Registry>) -> io::Result<Server> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        self.listener.set_nonblocking(true)?;
        let mut listener = UnixListener::from_std(self.listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let (sender, messages) = channel();
        let state = State {
            poll,
            listener,
            registry,
            messages,
            sender: sender.clone(),
            waker: Arc::clone(&waker),
            connections: HashMap::new(),
            next: FIRST_CONNECTION,
            ready: VecDeque::new(),
            accept_from: Some(Instant::now()),
        };
        let thread = std::thread::Builder::new().name("unixctl".to_owned()).spawn(|| state.run())?;
        Ok(Server { file: self.file, messages: sender, waker, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the thread is gone.
        let _ = self.messages.send(Message::Stop);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct State {
    poll: Poll,
    listener: UnixListener,
    registry: Arc<Registry>,
    messages: Receiver<Message>,
    sender: Sender<Message>,
    waker: Arc<Waker>,
    connections: HashMap<usize, Connection>,
    /// Numbers are never used again, so a late answer can't reach another's connection.
    next: usize,
    /// Connections that may have something to do.
    ready: VecDeque<usize>,
    /// From when there may be somebody to accept.
    accept_from: Option<Instant>,
}

impl State {
    fn run(mut self) {
        let mut events = Events::with_capacity(128);
        loop {
            if let Err(error) = self.poll.poll(&mut events, self.timeout())
                && error.kind() != ErrorKind::Interrupted
            {
                tracing::error!("control socket is out of service: {error}");
                return;
            }
            for event in &events {
                self.note(event);
            }
            loop {
                match self.messages.try_recv() {
                    Ok(Message::Reply { connection, result }) => self.answer(connection, result),
                    Ok(Message::Stop) => return self.farewell(&mut events),
                    Err(_) => break,
                }
            }
            for _ in 0..self.ready.len() {
                if let Some(number) = self.ready.pop_front() {
                    self.turn(number);
                }
            }
            self.accept();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        // A full house accepts again when somebody leaves.
        self.accept_from
            .filter(|_| self.connections.len() < CONNECTIONS_MAX)
            .map(|from| from.saturating_duration_since(Instant::now()))
    }

    fn note(&mut self, event: &Event) {
        match event.token() {
            LISTENER => self.accept_from = Some(Instant::now()),
            WAKER => {}
            Token(number) => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                    self.ready.push_back(number);
                }
            }
        }
    }

    fn accept(&mut self) {
        while self.connections.len() < CONNECTIONS_MAX && self.accept_from.is_some_and(|from| from <= Instant::now()) {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    let both = Interest::READABLE | Interest::WRITABLE;
                    if let Err(error) = self.poll.registry().register(&mut stream, Token(self.next), both) {
                        tracing::warn!("control connection refused: {error}");
                        continue;
                    }
                    self.connections.insert(self.next, Connection::new(stream));
                    self.next += 1;
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.accept_from = None,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        tracing::warn!("control socket: accept failed: {error}");
                        self.accept_from = Some(Instant::now() + ACCEPT_RETRY);
                    }
                },
            }
        }
    }

    /// Drives a connection until it waits, ends, or has had its turn.
    fn turn(&mut self, number: usize) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        for _ in 0..TURN {
            match connection.drive() {
                Step::Wait => return,
                Step::Close => {
                    self.connections.remove(&number);
                    return;
                }
                Step::Again => {}
                Step::Request(call) => {
                    coverage::inc!("unixctl_received");
                    tracing::debug!(
                        "received request {}{}, id={}",
                        call.method,
                        serde_json::Value::from(&*call.params),
                        call.id
                    );
                    let responder = || Responder::new(number, self.sender.clone(), Arc::clone(&self.waker));
                    match self.registry.carry_out(&call, connection.format, responder) {
                        Outcome::Done(result) => connection.answer(&call.id, result),
                        Outcome::Pending => connection.pending = Some(call.id),
                        Outcome::Format(format) => {
                            connection.format = format;
                            connection.answer(&call.id, Ok(Reply::Text(String::new())));
                        }
                    }
                }
            }
        }
        self.ready.push_back(number);
    }

    /// Gives a connection the answer it waits for.
    fn answer(&mut self, number: usize, result: Result<Reply, String>) {
        if let Some(connection) = self.connections.get_mut(&number)
            && let Some(id) = connection.pending.take()
        {
            connection.answer(&id, result);
            self.ready.push_back(number);
        }
    }

    /// Sends the answers that are still to be sent, for a limited time.
    fn farewell(mut self, events: &mut Events) {
        let end = Instant::now() + FAREWELL;
        for connection in self.connections.values_mut() {
            if let Some(id) = connection.pending.take() {
                connection.answer(&id, Err("the daemon exits".to_owned()));
            }
        }
        loop {
            self.connections.retain(|_, connection| matches!(connection.flush(), Step::Wait));
            let left = end.saturating_duration_since(Instant::now());
            if self.connections.is_empty() || left.is_zero() {
                return;
            }
            if self.poll.poll(events, Some(left)).is_err_and(|error| error.kind() != ErrorKind::Interrupted) {
                return;
            }
        }
    }
}

/// What a connection comes to.
enum Step {
    /// Nothing to do until something happens.
    Wait,
    /// It is over.
    Close,
    /// More may be done at once.
    Again,
    /// A request is to be carried out.
    Request(Call),
}

struct Connection {
    stream: UnixStream,
    framer: Framer,
    /// What is to be sent, and how much of it was.
    out: Vec<u8>,
    sent: usize,
    /// There may be something to read.
    readable: bool,
    /// The client has sent its last byte.
    ended: bool,
    /// Nothing more is understood; the connection ends with what is to be sent.
    closing: bool,
    /// The request that is being carried out.
    pending: Option<Value>,
    format: Format,
}

impl Connection {
    fn new(stream: UnixStream) -> Connection {
        Connection {
            stream,
            framer: Framer::new(REQUEST_MAX),
            out: Vec::new(),
            sent: 0,
            readable: true,
            ended: false,
            closing: false,
            pending: None,
            format: Format::Text,
        }
    }

    fn answer(&mut self, id: &Value, result: Result<Reply, String>) {
        coverage::inc!("unixctl_replied");
        let outcome = if result.is_ok() { "success" } else { "error" };
        let result = result.map(|reply| reply.into_value(self.format)).map_err(with_newline);
        self.out = wire::reply(id, result);
        self.sent = 0;
        tracing::debug!("replying with {outcome}, id={id}: {} bytes", self.out.len());
    }

    fn drive(&mut self) -> Step {
        match self.flush() {
            Step::Again => {}
            step => return step,
        }
        if self.closing {
            return Step::Close;
        }
        if self.pending.is_some() {
            return Step::Wait;
        }
        let call = self.framer.next().and_then(|frame| frame.map(|bytes| Call::parse(&bytes)).transpose());
        match call {
            Ok(Some(call)) => Step::Request(call),
            Ok(None) => self.read(),
            Err(error) => {
                tracing::warn!("control connection: {error}");
                self.answer(&Value::Null, Err(error.to_string()));
                self.closing = true;
                Step::Again
            }
        }
    }

    /// Sends what can be sent.
    fn flush(&mut self) -> Step {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Step::Close,
                Ok(n) => self.sent += n,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Step::Wait,
                    ErrorKind::Interrupted => {}
                    _ => return Step::Close,
                },
            }
        }
        // A long answer leaves no long buffer behind.
        self.out = Vec::new();
        self.sent = 0;
        Step::Again
    }

    fn read(&mut self) -> Step {
        if self.ended {
            return Step::Close;
        }
        if !self.readable {
            return Step::Wait;
        }
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(n) => self.framer.push(chunk.get(..n).unwrap_or_default()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => self.readable = false,
                ErrorKind::Interrupted => {}
                _ => return Step::Close,
            },
        }
        Step::Again
    }
}
