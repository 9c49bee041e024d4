//! The first process of the machine that `cargo xtask vm` boots.
//!
//! It mounts what programs expect, loads the modules in the order that the host worked out, runs the one command, and tells
//! the host of everything over a virtio port ([`protocol`]). Whatever goes wrong it says there, or on the console where there
//! is no port yet; then it powers the machine off.
#![forbid(unsafe_code)]

#[path = "../vm/protocol.rs"]
mod protocol;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        wait::{WaitStatus, waitpid},
    },
};

use protocol::{JOB, Kind, OUT, PORT};

/// The devices of the way to the host; loaded before anything else.
const PORT_MODULES: [&str; 2] = ["virtio_pci", "virtio_console"];

fn main() {
    if let Err(error) = run() {
        // The port may not be there: the console is the last resort.
        println!("vm-init: {error}");
        if let Ok(host) = Host::open(Duration::ZERO) {
            let _ = host.send(Kind::Fault, &[error.as_bytes()]);
        }
    }
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn run() -> Result<(), String> {
    mounts()?;
    let modules =
        fs::read_to_string(Path::new(JOB).join("modules")).map_err(|e| format!("the job has no modules: {e}"))?;
    let modules: Vec<&str> = modules.lines().collect();
    let is_port = |path: &&str| PORT_MODULES.iter().any(|name| path.ends_with(&format!("/{name}.ko")));
    let ports_end = modules.iter().rposition(is_port).map_or(0, |last| last + 1);
    let (first, rest) = modules.split_at(ports_end);
    load(first)?;
    let host = Host::open(Duration::from_secs(20))?;
    host.keep_telling();
    load(rest)?;
    no_fallback_devices();
    loopback();
    let status = host.run_job()?;
    host.files(Path::new(OUT))?;
    host.send(Kind::Exit, &[&exit_code(status).to_le_bytes()]).map_err(|e| format!("can't tell the exit code: {e}"))?;
    // The host ends the machine now; powering off is for when it doesn't.
    thread::sleep(Duration::from_secs(5));
    Ok(())
}

/// As a shell says it: 128 and the signal where one ended the process.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn mounts() -> Result<(), String> {
    let table = [
        ("proc", "/proc", true),
        ("sysfs", "/sys", true),
        ("devtmpfs", "/dev", true),
        ("tmpfs", "/run", true),
        ("devpts", "/dev/pts", false),
        ("bpf", "/sys/fs/bpf", false),
        ("tracefs", "/sys/kernel/tracing", false),
        ("debugfs", "/sys/kernel/debug", false),
    ];
    for (kind, target, needed) in table {
        let _ = fs::create_dir_all(target);
        if let Err(error) = mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            && needed
        {
            return Err(format!("can't mount {kind} on {target}: {error}"));
        }
    }
    for folder in ["/run/netns", "/tmp", OUT, "/var"] {
        fs::create_dir_all(folder).map_err(|error| format!("can't make {folder}: {error}"))?;
    }
    let _ = std::os::unix::fs::symlink("/run", "/var/run");
    let _ = std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd");
    Ok(())
}

/// Loads modules. One that is there already is fine: a kernel may have it built in.
fn load(modules: &[&str]) -> Result<(), String> {
    for path in modules {
        let file = File::open(path).map_err(|error| format!("no module {path}: {error}"))?;
        match finit_module(file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(format!("the kernel refuses {path}: {error}")),
        }
    }
    Ok(())
}

/// Modules for tunnels give each namespace devices that nobody asked for; the first namespace's are enough.
fn no_fallback_devices() {
    let _ = fs::write("/proc/sys/net/core/fb_tunnels_only_for_init_net", "1");
}

fn loopback() {
    let _ = Command::new("ip").args(["link", "set", "lo", "up"]).env("PATH", "/usr/bin:/usr/sbin").status();
}

/// The way to the host.
#[derive(Clone)]
struct Host {
    port: Arc<Mutex<File>>,
}

impl Host {
    /// Finds the port by its name; it appears a moment after its driver.
    fn open(patience: Duration) -> Result<Self, String> {
        let deadline = Instant::now() + patience;
        loop {
            for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
                let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
                if name.trim() == PORT {
                    let device = Path::new("/dev").join(entry.file_name());
                    let port = OpenOptions::new().write(true).open(&device);
                    let port = port.map_err(|error| format!("can't open {}: {error}", device.display()))?;
                    return Ok(Self { port: Arc::new(Mutex::new(port)) });
                }
            }
            if Instant::now() >= deadline {
                return Err(format!("there is no virtio port {PORT}"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn send(&self, kind: Kind, parts: &[&[u8]]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > protocol::MAX_PAYLOAD {
            return Err(io::Error::other(format!("{len} bytes are too many for a message")));
        }
        let len = u32::try_from(len).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(protocol::HEADER + len as usize);
        frame.push(kind as u8);
        frame.extend(len.to_le_bytes());
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        let mut port = self.port.lock().map_err(|_| io::Error::other("a sender panicked"))?;
        port.write_all(&frame)
    }

    fn keep_telling(&self) {
        let host = self.clone();
        thread::spawn(move || {
            while host.send(Kind::Alive, &[]).is_ok() {
                thread::sleep(Duration::from_secs(1));
            }
        });
    }

    /// Runs the command to its end, its output going to the host as it comes.
    fn run_job(&self) -> Result<ExitStatus, String> {
        let list = |name: &str| {
            let text =
                fs::read(Path::new(JOB).join(name)).map_err(|error| format!("the job has no {name}: {error}"))?;
            let text = String::from_utf8(text).map_err(|error| format!("the job's {name}: {error}"))?;
            Ok::<_, String>(text.split_terminator('\0').map(String::from).collect::<Vec<_>>())
        };
        let (args, env) = (list("args")?, list("env")?);
        let (program, args) = args.split_first().ok_or("the job has no command")?;
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        self.send(Kind::Ready, &[release.trim().as_bytes()]).map_err(|error| format!("can't speak: {error}"))?;

        let mut command = Command::new(program);
        command.args(args).env_clear().envs(env.iter().filter_map(|pair| pair.split_once('='))).current_dir("/root");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| format!("can't run {program}: {error}"))?;
        let (done, all_done) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            self.forward(Kind::Stdout, stdout, done.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            self.forward(Kind::Stderr, stderr, done);
        }
        let status = reap_until(child.id())?;
        // What the command left running may keep its output open: after a moment the rest isn't waited for.
        let deadline = Instant::now() + Duration::from_secs(1);
        while all_done.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        Ok(status)
    }

    /// Sends what can be read until its end; then lets go of `done`.
    fn forward(&self, kind: Kind, mut from: impl Read + Send + 'static, done: Sender<()>) {
        let host = self.clone();
        thread::spawn(move || {
            let _done = done;
            let mut buffer = vec![0; 32768];
            loop {
                match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(read) if host.send(kind, &[buffer.get(..read).unwrap_or_default()]).is_ok() => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    _ => return,
                }
            }
        });
    }

    /// Sends all files below `folder`.
    fn files(&self, folder: &Path) -> Result<(), String> {
        let mut folders = vec![folder.to_path_buf()];
        while let Some(from) = folders.pop() {
            for entry in fs::read_dir(&from).into_iter().flatten().flatten() {
                let path = entry.path();
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(path),
                    Ok(kind) if kind.is_file() => {
                        self.file(&path).map_err(|error| format!("can't send {}: {error}", path.display()))?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn file(&self, path: &Path) -> io::Result<()> {
        let name: PathBuf = path.strip_prefix(OUT).map_err(io::Error::other)?.into();
        let name = name.to_str().ok_or_else(|| io::Error::other("its name is not UTF-8"))?;
        let mode = fs::metadata(path)?.permissions().mode() & 0o777;
        let len = u16::try_from(name.len()).map_err(io::Error::other)?;
        self.send(Kind::File, &[&mode.to_le_bytes(), &len.to_le_bytes(), name.as_bytes(), &fs::read(path)?])
    }
}

/// The first process inherits every orphan: waits for all that end until `pid` does.
fn reap_until(pid: u32) -> Result<ExitStatus, String> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(ended, code)) if ended.as_raw().cast_unsigned() == pid => {
                return Ok(ExitStatus::from_raw((code & 0xff) << 8));
            }
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended.as_raw().cast_unsigned() == pid => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(format!("can't wait for the command: {error}")),
        }
    }
}
