//! Network namespaces as the hosts of a test, veth pairs as the wires between them.
//!
//! Names are `slx-PID-N-LABEL`, with the process that made them: several tests run side by side, a person who looks
//! with `ip netns` sees whose they are, and the next test process removes what a killed one left.

use std::{
    fs::{self, File},
    io,
    panic::resume_unwind,
    path::PathBuf,
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use crate::process::{self, Process};

/// What all names begin with.
const PREFIX: &str = "slx-";
/// Where `ip netns` keeps them.
const FOLDER: &str = "/run/netns";
/// How long a command of [`Netns::exec`] may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// A network namespace, with its loopback device up; removed when dropped, together with the devices in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace. The `label` is for people who look at a running test.
    pub fn new(label: &str) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static REAP: Once = Once::new();
        REAP.call_once(reap_abandoned);

        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", std::process::id());
        process::run_ok(Command::new("ip").args(["netns", "add", &name]), COMMAND_TIMEOUT)?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name for `ip netns exec NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace, as `setns(2)` takes it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(FOLDER).join(&self.name)
    }

    /// Keeps the namespace (and returns its name): the drop won't remove it.
    pub fn keep(self) -> String {
        let mut this = std::mem::ManuallyDrop::new(self);
        std::mem::take(&mut this.name)
    }

    /// Runs `ip` in the namespace, with words split at blanks: `ns.ip("addr add 10.0.0.1/24 dev eth0")`.
    pub fn ip(&self, words: &str) -> io::Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(words.split_whitespace());
        process::run_ok(&mut command, COMMAND_TIMEOUT)
    }

    /// Runs a command in the namespace, with words split at blanks, and returns its standard output. An error if it
    /// fails or takes longer than 30 s.
    pub fn exec(&self, words: &str) -> io::Result<String> {
        let mut words = words.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        process::run_ok(command.args(words), COMMAND_TIMEOUT)
    }

    /// A command that will run in the namespace (with a `/sys` of its own); its process is the program itself.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Starts a command in the namespace that is killed when the guard is dropped.
    pub fn spawn(&self, words: &str) -> io::Result<Process> {
        let mut words = words.split_whitespace();
        Process::spawn(self.command(words.next().unwrap_or_default()).args(words))
    }

    /// Runs `work` on a thread of its own that is in the namespace; sockets it opens stay there. The mounts are the
    /// caller's: `/proc/sys/net` shows the namespace's values, `/sys/class/net` does not.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let path = self.path();
        let file = File::open(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("can't open {}: {error}", path.display())))?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&file, CloneFlags::CLONE_NEWNET)
                    .map_err(|error| io::Error::other(format!("can't enter {}: {error}", self.name)))?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Sets a `net.` sysctl by its path below `/proc/sys/net`, for instance `ipv4/ip_forward`.
    pub fn sysctl(&self, path: &str, value: &str) -> io::Result<()> {
        let file = PathBuf::from("/proc/sys/net").join(path);
        self.run(|| fs::write(&file, value))?
            .map_err(|error| io::Error::new(error.kind(), format!("can't set {}: {error}", file.display())))
    }

    /// Stops the kernel from sending anything by itself on this host's devices (neighbour and router discovery,
    /// multicast reports), so that a test sees its own frames only. Set before devices come up.
    pub fn silence(&self) -> io::Result<()> {
        self.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        self.sysctl("ipv6/conf/all/disable_ipv6", "1")
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Connects two namespaces: the device `a_name` in `a` and `b_name` in `b` (which may be the same one), both up.
pub fn veth_pair(a: &Netns, a_name: &str, b: &Netns, b_name: &str) -> io::Result<()> {
    a.ip(&format!("link add {a_name} type veth peer name {b_name} netns {}", b.name))?;
    a.ip(&format!("link set {a_name} up"))?;
    b.ip(&format!("link set {b_name} up"))?;
    Ok(())
}

/// Removes a namespace and ends what still runs in it: a process would keep it, and its devices, alive unnamed.
fn remove(name: &str) {
    let bound = Duration::from_secs(10);
    if let Ok(pids) = process::run_ok(Command::new("ip").args(["netns", "pids", name]), bound) {
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // Our own threads may be in the namespace; they leave by themselves.
            if pid != std::process::id().cast_signed() {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
    let _ = process::run_ok(Command::new("ip").args(["netns", "del", name]), bound);
}

/// Removes the namespaces of test processes that are gone.
fn reap_abandoned() {
    let names = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter_map(|name| name.into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            remove(&name);
        }
    }
}
