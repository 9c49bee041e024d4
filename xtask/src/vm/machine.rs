//! One boot: QEMU is started, listened to, and ended, whatever happens in it.

use std::{
    fs,
    io::{self, Read, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Component, Path},
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    console::Console,
    packages::{Kernel, Qemu},
    protocol::{HEADER, Kind, MAX_PAYLOAD, PORT},
};
use crate::cmd;

/// A panic ends the machine at once (reboot, which -no-reboot turns into an end). What the kernel does at its start for
/// cryptography (tests of its algorithms, a source of randomness, certificates for modules) takes an emulated processor longer
/// than all the switch needs, which uses none of it.
const KERNEL_ARGS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr rdinit=/init \
    no_timer_check cryptomgr.notests \
    initcall_blacklist=jent_mod_init,load_system_certificate_list,crypto_kdf108_init";

/// The machine to boot.
pub(crate) struct Machine<'a> {
    pub(crate) qemu: &'a Qemu,
    pub(crate) kernel: &'a Kernel,
    /// The file with the first file system.
    pub(crate) image: &'a Path,
    pub(crate) cpus: u32,
    /// MiB.
    pub(crate) memory: u32,
    /// More of QEMU's options.
    pub(crate) qemu_args: &'a [String],
    /// From power-on to the command's start.
    pub(crate) boot_timeout: Duration,
    /// Without a sign of life.
    pub(crate) silence_timeout: Duration,
    /// The command's.
    pub(crate) timeout: Duration,
    /// Where the guest's files go.
    pub(crate) out: &'a Path,
    /// Where all that the console says goes.
    pub(crate) log: &'a Path,
}

/// How a boot ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The command ran to its end.
    Exited {
        /// Its exit code.
        code: i32,
        /// From power-on to its start.
        boot: Duration,
        /// How long it ran.
        ran: Duration,
        /// Files that it left.
        files: usize,
    },
    /// The command took too long; the guest was well.
    TimedOut,
    /// The machine died, or never came to life: why. Another try may succeed.
    Died(String),
    /// The guest could not run the command: why. Another try would not.
    Fault(String),
}

/// What comes from the guest.
enum Event {
    Console(Vec<u8>),
    Frame(Kind, Vec<u8>),
    /// The port's stream can't be read on.
    Broken(String),
    /// QEMU closed a stream.
    Closed,
}

impl Machine<'_> {
    /// Boots, passes the command's output through, and says how it ended.
    pub(crate) fn run(&self) -> Result<Ended> {
        let sockets = tempfile::tempdir().context("can't make a temporary folder")?;
        let (console, port) = (sockets.path().join("console"), sockets.path().join("port"));
        let listeners = [UnixListener::bind(&console)?, UnixListener::bind(&port)?];
        let started = Instant::now();
        let mut qemu = Guard::spawn(self, &console, &port)?;
        let (sender, events) = mpsc::channel();
        let [console, port] = listeners;
        let console = accept(&console, &mut qemu)?;
        let port = accept(&port, &mut qemu)?;
        let of_console = sender.clone();
        thread::spawn(move || read_console(console, &of_console));
        thread::spawn(move || read_frames(port, &sender));
        let mut listener = Listener::new(self, started)?;
        let ended = loop {
            match events.recv_timeout(listener.patience()) {
                Ok(event) => {
                    if let Some(ended) = listener.take(event)? {
                        break ended;
                    }
                }
                Err(RecvTimeoutError::Timeout) => break listener.timed_out(),
                Err(RecvTimeoutError::Disconnected) => break listener.closed(),
            }
            if let Some(fatal) = listener.console.fatal() {
                break Ended::Died(fatal.to_owned());
            }
        };
        qemu.end();
        if matches!(ended, Ended::Died(_)) {
            // What it said last is still in the pipes.
            while let Ok(event) = events.recv_timeout(Duration::from_millis(200)) {
                if let Event::Console(bytes) = event {
                    listener.console(&bytes);
                }
            }
            qemu.said().lines().for_each(|line| eprintln!("    qemu: {line}"));
            listener.console.tail().for_each(|line| eprintln!("    | {line}"));
        }
        listener.console.warnings().iter().for_each(|line| eprintln!("    the guest's kernel complained: {line}"));
        Ok(ended)
    }
}

/// The state of a boot as far as it has been heard.
struct Listener<'a> {
    machine: &'a Machine<'a>,
    started: Instant,
    ready: Option<Instant>,
    alive: Instant,
    console: Console,
    log: fs::File,
    files: usize,
}

impl<'a> Listener<'a> {
    fn new(machine: &'a Machine<'a>, started: Instant) -> Result<Self> {
        let log = fs::File::create(machine.log).with_context(|| format!("can't write {}", machine.log.display()))?;
        Ok(Self { machine, started, ready: None, alive: started, console: Console::default(), log, files: 0 })
    }

    /// When to stop waiting.
    fn patience(&self) -> Duration {
        let machine = self.machine;
        let deadline = match self.ready {
            None => self.started + machine.boot_timeout,
            Some(ready) => (self.alive + machine.silence_timeout).min(ready + machine.timeout),
        };
        deadline.saturating_duration_since(Instant::now())
    }

    fn timed_out(&self) -> Ended {
        let machine = self.machine;
        match self.ready {
            None => Ended::Died(format!("it did not start the command within {}", cmd::seconds(machine.boot_timeout))),
            Some(ready) if ready.elapsed() >= machine.timeout => Ended::TimedOut,
            Some(_) => Ended::Died(format!("it gave no sign of life for {}", cmd::seconds(machine.silence_timeout))),
        }
    }

    fn closed(&self) -> Ended {
        Ended::Died(self.console.fatal().unwrap_or("it ended without a word").to_owned())
    }

    fn console(&mut self, bytes: &[u8]) {
        // A log that can't be written costs only the log.
        let _ = self.log.write_all(bytes);
        self.console.feed(bytes);
    }

    fn take(&mut self, event: Event) -> Result<Option<Ended>> {
        match event {
            Event::Console(bytes) => self.console(&bytes),
            Event::Closed => return Ok(None),
            Event::Broken(why) => return Ok(Some(Ended::Died(why))),
            Event::Frame(kind, payload) => {
                self.alive = Instant::now();
                return self.frame(kind, &payload);
            }
        }
        Ok(None)
    }

    fn frame(&mut self, kind: Kind, payload: &[u8]) -> Result<Option<Ended>> {
        match kind {
            Kind::Ready => self.ready = Some(Instant::now()),
            Kind::Stdout => print(io::stdout(), payload)?,
            Kind::Stderr => print(io::stderr(), payload)?,
            Kind::Alive => {}
            Kind::File => {
                save(self.machine.out, payload)?;
                self.files += 1;
            }
            Kind::Fault => return Ok(Some(Ended::Fault(String::from_utf8_lossy(payload).into_owned()))),
            Kind::Exit => {
                let code = payload.first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
                let code = code.context("the guest said no exit code")?;
                let ready = self.ready.unwrap_or_else(Instant::now);
                let (boot, ran) = (ready.duration_since(self.started), ready.elapsed());
                return Ok(Some(Ended::Exited { code, boot, ran, files: self.files }));
            }
        }
        Ok(None)
    }
}

fn print(mut to: impl io::Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).and_then(|()| to.flush()).context("can't pass the guest's output on")
}

/// Writes a file that the guest sent, below `out` and nowhere else.
fn save(out: &Path, payload: &[u8]) -> Result<()> {
    let (mode, rest) = payload.split_first_chunk().context("a file without its mode")?;
    let (len, rest) = rest.split_first_chunk().context("a file without its path")?;
    let (path, data) = rest.split_at_checked(u16::from_le_bytes(*len).into()).context("a file with half a path")?;
    let path = Path::new(std::str::from_utf8(path).context("a file whose path is no text")?);
    if path.as_os_str().is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
        bail!("the guest sent a file {}", path.display());
    }
    let path = out.join(path);
    fs::create_dir_all(path.parent().unwrap_or(out))?;
    fs::write(&path, data).with_context(|| format!("can't write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(u32::from_le_bytes(*mode) & 0o777))?;
    Ok(())
}

/// QEMU connects at once, or ends at once.
fn accept(listener: &UnixListener, qemu: &mut Guard) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("can't wait for QEMU"),
        }
        if let Some(status) = qemu.child.try_wait()? {
            bail!("QEMU did not start ({status}): {}", qemu.said().trim());
        }
        if Instant::now() >= deadline {
            bail!("QEMU does not open its connections");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn read_console(mut from: UnixStream, to: &Sender<Event>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.send(Event::Console(buffer.get(..read).unwrap_or_default().to_vec())).is_err() {
            return;
        }
    }
}

fn read_frames(mut from: impl Read, to: &Sender<Event>) {
    loop {
        let event = match read_frame(&mut from) {
            Ok(Some((kind, payload))) => Event::Frame(kind, payload),
            Ok(None) => Event::Closed,
            Err(error) => Event::Broken(format!("its messages can't be read: {error}")),
        };
        let last = !matches!(event, Event::Frame(..));
        if to.send(event).is_err() || last {
            return;
        }
    }
}

/// One frame; `None` at the stream's end.
fn read_frame(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut header = [0; HEADER];
    match from.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let [kind, len @ ..] = header;
    let kind = Kind::try_from(kind).map_err(|kind| io::Error::other(format!("kind {kind}")))?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MAX_PAYLOAD {
        return Err(io::Error::other(format!("{len} bytes")));
    }
    let mut payload = vec![0; len];
    from.read_exact(&mut payload)?;
    Ok(Some((kind, payload)))
}

/// A QEMU that is ended when it goes out of scope.
struct Guard {
    child: Child,
    errors: tempfile::NamedTempFile,
}

impl Guard {
    fn spawn(machine: &Machine<'_>, console: &Path, port: &Path) -> Result<Self> {
        let errors = tempfile::NamedTempFile::new().context("can't make a temporary file")?;
        let mut command = machine.qemu.command();
        let socket = |id: &str, path: &Path| format!("socket,id={id},path={}", path.display());
        let device = |words: &str| ["-device".to_owned(), words.to_owned()];
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35,accel=tcg"]);
        command.args(["-cpu", "max", "-smp", &machine.cpus.to_string(), "-m", &machine.memory.to_string()]);
        command.arg("-kernel").arg(&machine.kernel.image).arg("-initrd").arg(machine.image);
        command.args(["-append", KERNEL_ARGS]);
        command.arg("-chardev").arg(socket("console", console)).args(["-serial", "chardev:console"]);
        command.arg("-chardev").arg(socket("port", port));
        command.args(device("virtio-serial-pci")).args(device(&format!("virtserialport,chardev=port,name={PORT}")));
        command.args(machine.qemu_args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.reopen()?);
        let child = command.spawn().context("can't run QEMU")?;
        Ok(Self { child, errors })
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What it said on its standard error.
    fn said(&self) -> String {
        fs::read_to_string(self.errors.path()).unwrap_or_default()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&[kind as u8][..], &len, payload].concat()
    }

    #[test]
    fn frames_are_read_until_the_end() {
        let bytes = [frame(Kind::Ready, b"6.1"), frame(Kind::Stdout, b""), frame(Kind::Exit, &[1, 0, 0, 0])].concat();
        let (sender, events) = mpsc::channel();
        read_frames(bytes.as_slice(), &sender);
        drop(sender);
        let kinds: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::Frame(kind, payload) => Some((kind, payload.len())),
                Event::Closed => None,
                _ => panic!("a good stream is read to its end"),
            })
            .collect();
        assert_eq!(kinds, [Some((Kind::Ready, 3)), Some((Kind::Stdout, 0)), Some((Kind::Exit, 4)), None]);
    }

    #[test]
    fn a_broken_stream_is_told_as_one() {
        let too_long = [&[Kind::Stdout as u8][..], &u32::MAX.to_le_bytes()].concat();
        let cut = frame(Kind::Stdout, b"some words").split_at(9).0.to_vec();
        for bytes in [too_long, vec![99, 0, 0, 0, 0], cut] {
            let (sender, events) = mpsc::channel();
            read_frames(bytes.as_slice(), &sender);
            assert!(matches!(events.recv().unwrap(), Event::Broken(_)), "{bytes:?}");
        }
    }

    #[test]
    fn files_stay_below_their_folder() {
        let file = |path: &str, data: &[u8]| {
            let len = u16::try_from(path.len()).unwrap().to_le_bytes();
            [&0o755u32.to_le_bytes()[..], &len, path.as_bytes(), data].concat()
        };
        let out = tempfile::tempdir().unwrap();
        save(out.path(), &file("a/b", b"data")).unwrap();
        assert_eq!(fs::read(out.path().join("a/b")).unwrap(), b"data");
        for path in ["../x", "/x", "a/../../x", ""] {
            assert!(save(out.path(), &file(path, b"data")).is_err(), "{path}");
        }
        assert!(save(out.path(), &[0; 5]).is_err());
        assert!(save(out.path(), &[0, 0, 0, 0, 9, 0, b'x']).is_err());
    }
}
