//! The daemon's life.
//!
//! It begins with what can refuse it: the pidfile (another one runs), the log file, the control socket. Then the switch
//! is made what it should be, and only then clients of the control socket are served, though they can connect before:
//! who gets an answer knows that the switch is configured. From there on the main thread waits for what signals and
//! control commands ask of it, one thing at a time, and keeps the clockwork going. The end is the same whoever asked
//! for it; the one who did is answered when everything else is done.
//!
//! | signal | meaning |
//! | --- | --- |
//! | `SIGTERM`, `SIGINT` | end, established flows go on; a second one ends at once |
//! | `SIGHUP` | open the log file again |

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use coverage::Rates;
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::iterator::backend::Handle;

use crate::cli::Cli;
use crate::config::{DesiredState, to_toml};
use crate::dirs::{self, DirError};
use crate::pidfile::{Pidfile, PidfileError};
use crate::reconcile::{ReconcileError, Reconciler, Switch, one_line};
use crate::unixctl::{Bound, Registry, Reply, Responder, Server, SocketError};
use crate::vlog::Vlog;

/// How often [`Switch::run`] is called.
const TICK: Duration = Duration::from_secs(1);

/// Why the daemon didn't start, or didn't end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// There is no place for its files.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The pidfile can't be had.
    #[error(transparent)]
    Pidfile(#[from] PidfileError),
    /// The control socket can't be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The log file can't be had.
    #[error("{path}: failed to open for logging: {source}", path = .path.display())]
    Log {
        /// The log file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The switch can't be made what it should be.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// The system has no room for a thread or a descriptor.
    #[error("could not start: {0}")]
    System(#[from] io::Error),
    /// Something of the switch stays behind.
    #[error("could not shut down cleanly: {0}")]
    Shutdown(String),
}

/// What the main thread is asked for.
enum Event {
    /// End. Who asked through the control socket is answered.
    Exit { cleanup: bool, responder: Option<Responder> },
    /// Open the log file again.
    ReopenLog,
    /// Read the configuration again.
    Reload(Responder),
    /// Show what the switch is.
    ShowConfig(Responder),
    /// Show what takes memory.
    ShowMemory(Responder),
}

/// Runs the daemon called `program` until it is told to end. `desired` is what `cli` said at first.
///
/// # Errors
/// If it can't start, in which case the switch is as it was before; or if it didn't end well.
pub fn run(
    program: &str,
    cli: &Cli,
    desired: &DesiredState,
    vlog: &Vlog,
    switch: &mut dyn Switch,
) -> Result<(), DaemonError> {
    more_descriptors();
    let _pidfile = pidfile_path(program, cli)?.map(|path| Pidfile::create(&path)).transpose()?;
    if let Some(path) = log_path(program, cli)? {
        vlog.set_file(&path).map_err(|source| DaemonError::Log { path, source })?;
    }
    let socket = socket_path(program, cli)?.map(|path| Server::bind(&path)).transpose()?;
    let (sender, events) = channel();
    let _signals = SignalThread::start(sender.clone())?;
    let rates = Arc::new(Mutex::new(Rates::new()));
    let version = version(program);
    tracing::info!("{version}");
    let registry = registry(&version, vlog, &rates, sender);
    switch.register_commands(&registry);

    let mut reconciler = Reconciler::new();
    if let Err(error) = reconciler.reconcile(switch, desired) {
        // The way back has left the system as it was; what another process made before stays.
        if let Err(shutdown) = switch.shutdown(false) {
            tracing::error!("could not shut down cleanly: {}", one_line(shutdown.as_ref()));
        }
        return Err(error.into());
    }
    tracing::info!("{} bridges, {} ports", desired.bridges.len(), count_ports(desired));
    let server = socket.map(|bound: Bound| bound.serve(registry)).transpose()?;

    let (cleanup, responder) = wait(&events, cli, vlog, switch, &mut reconciler, &rates);
    let cleanup = cleanup || cli.cleanup_on_exit;
    tracing::info!("exiting{}", if cleanup { " with cleanup" } else { "" });
    let result = switch.shutdown(cleanup).map_err(|error| DaemonError::Shutdown(one_line(error.as_ref())));
    if let Some(responder) = responder {
        responder.reply(result.as_ref().map(|()| Reply::Text(String::new())).map_err(ToString::to_string));
    }
    // The answer leaves, then the socket goes, then the pidfile: who waits for that waits for everything.
    drop(server);
    result
}

/// Takes as many file descriptors as the system allows: some datapaths want one for each port.
fn more_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}

/// What `--version` and the command `version` say.
pub fn version(program: &str) -> String {
    format!("{program} (Sluice) {}", env!("CARGO_PKG_VERSION"))
}

/// Does what it is asked for until it is asked to end; returns how, and by whom.
fn wait(
    events: &Receiver<Event>,
    cli: &Cli,
    vlog: &Vlog,
    switch: &mut dyn Switch,
    reconciler: &mut Reconciler,
    rates: &Mutex<Rates>,
) -> (bool, Option<Responder>) {
    let started = Instant::now();
    let mut next_tick = started;
    loop {
        probes::run_start();
        let now = Instant::now();
        if now >= next_tick {
            let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            rates.lock().run(now_ms);
            switch.run(now_ms);
            next_tick = now + TICK;
        }
        probes::poll_block();
        match events.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
            Ok(Event::Exit { cleanup, responder }) => return (cleanup, responder),
            // The error was logged.
            Ok(Event::ReopenLog) => drop(vlog.reopen()),
            Ok(Event::Reload(responder)) => responder.reply(reload(cli, switch, reconciler)),
            Ok(Event::ShowConfig(responder)) => responder.reply(Ok(Reply::Text(to_toml(reconciler.current())))),
            Ok(Event::ShowMemory(responder)) => responder.reply(Ok(Reply::Text(memory(switch)))),
            Err(RecvTimeoutError::Timeout) => {}
            // The registry and the signal thread hold senders, so this is the end of everything.
            Err(RecvTimeoutError::Disconnected) => return (false, None),
        }
    }
}

fn reload(cli: &Cli, switch: &mut dyn Switch, reconciler: &mut Reconciler) -> Result<Reply, String> {
    let result = cli.desired().map_err(|error| error.to_string()).and_then(|desired| {
        let changes = reconciler.reconcile(switch, &desired).map_err(|error| error.to_string())?;
        Ok(format!("{changes} changes\n"))
    });
    match &result {
        Ok(changes) => tracing::info!("configuration reloaded: {}", changes.trim_end()),
        Err(error) => tracing::error!("configuration not reloaded: {error}"),
    }
    result.map(Reply::Text)
}

/// The text of `memory/show`.
fn memory(switch: &dyn Switch) -> String {
    let mut usage = switch.memory_usage();
    usage.sort();
    usage.iter().map(|(name, number)| format!("{name}:{number}")).collect::<Vec<_>>().join(" ")
}

fn count_ports(state: &DesiredState) -> usize {
    state.bridges.iter().map(|bridge| bridge.ports.len()).sum()
}

/// The registry with the commands of the daemon itself.
fn registry(version: &str, vlog: &Vlog, rates: &Arc<Mutex<Rates>>, events: Sender<Event>) -> Arc<Registry> {
    let registry = Registry::new(version);
    vlog.register_commands(&registry);
    let shown = Arc::clone(rates);
    registry.register("coverage/show", "", 0, 0, move |_| Ok(shown.lock().show()));
    registry.register("coverage/read-counter", "COUNTER", 1, 1, |args| {
        let total = args.first().and_then(|name| coverage::total(name));
        total.map(|total| format!("{total}\n")).ok_or_else(|| "No such counter".to_owned())
    });
    type Ask = fn(Responder) -> Event;
    for (name, ask) in [
        ("config/reload", Event::Reload as Ask),
        ("config/show", Event::ShowConfig),
        ("memory/show", Event::ShowMemory),
    ] {
        let events = events.clone();
        registry.register_later(name, "", 0, 0, move |_, responder| {
            // If the main thread is gone, the responder comes back and answers while it is dropped.
            let _ = events.send(ask(responder));
        });
    }
    registry.register_later("exit", "[--cleanup]", 0, 1, move |request, responder| {
        let cleanup = match request.args {
            [] => false,
            [option] if option == "--cleanup" => true,
            [other, ..] => return responder.reply(Err(format!("unknown option \"{other}\""))),
        };
        let _ = events.send(Event::Exit { cleanup, responder: Some(responder) });
    });
    registry
}

/// The thread that turns signals into events. Dropping it ends it.
struct SignalThread {
    handle: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl SignalThread {
    fn start(events: Sender<Event>) -> io::Result<SignalThread> {
        // The second signal to end finds the flag set by the first.
        let ending = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&ending))?;
            signal_hook::flag::register(signal, Arc::clone(&ending))?;
        }
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let handle = signals.handle();
        let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                let event = match signal {
                    SIGHUP => Event::ReopenLog,
                    _ => Event::Exit { cleanup: false, responder: None },
                };
                if events.send(event).is_err() {
                    return;
                }
            }
        })?;
        Ok(SignalThread { handle, thread: Some(thread) })
    }
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It ends because it was told to, or has panicked, which was reported.
            let _ = thread.join();
        }
    }
}

/// Where the control socket is; `None` if none is wanted.
fn socket_path(program: &str, cli: &Cli) -> Result<Option<PathBuf>, DirError> {
    match &cli.unixctl {
        Some(path) if path == Path::new("none") => Ok(None),
        Some(path) => dirs::in_run_dir(path).map(Some),
        None => Ok(Some(dirs::run_dir()?.join(format!("{program}.{}.ctl", std::process::id())))),
    }
}

/// Where the pidfile is; `None` if none is wanted.
fn pidfile_path(program: &str, cli: &Cli) -> Result<Option<PathBuf>, DirError> {
    match (&cli.pidfile, &cli.unixctl) {
        (Some(Some(path)), _) => dirs::in_run_dir(path).map(Some),
        (None, Some(_)) => Ok(None),
        (Some(None), _) | (None, None) => Ok(Some(dirs::run_dir()?.join(format!("{program}.pid")))),
    }
}

/// Where the log file is; `None` if none is wanted.
fn log_path(program: &str, cli: &Cli) -> Result<Option<PathBuf>, DirError> {
    match &cli.log_file {
        None => Ok(None),
        Some(Some(path)) => Ok(Some(path.clone())),
        Some(None) => Ok(Some(dirs::log_dir()?.join(format!("{program}.log")))),
    }
}
