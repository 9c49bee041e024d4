//! Where lines end up: standard error, a file, the system log.
//!
//! Nothing here can fail towards the code that logs: a line that can't be written is lost.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use chrono::Local;

use super::pattern::Record;

/// Writes a line to standard error.
pub(super) fn write_console(line: &str) {
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// The log file. It keeps its name when it is closed.
#[derive(Default)]
pub(super) struct LogFile {
    path: Option<PathBuf>,
    file: Option<File>,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<LogFile> {
        let file = OpenOptions::new().append(true).create(true).mode(0o660).open(path)?;
        Ok(LogFile { path: Some(path.to_owned()), file: Some(file) })
    }

    pub(super) fn close(&mut self) {
        self.file = None;
    }

    pub(super) fn is_open(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Whether both are open and are one file.
    pub(super) fn is_same(&self, other: &LogFile) -> bool {
        let identity = |log: &LogFile| log.file.as_ref()?.metadata().ok().map(|found| (found.dev(), found.ino()));
        identity(self).is_some_and(|this| Some(this) == identity(other))
    }

    pub(super) fn write(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            // One call a line: the file is opened for appending, so lines of several processes don't mix.
            let _ = file.write_all(line.as_bytes());
        }
    }
}

/// The way to the system log.
#[derive(Debug)]
pub struct Syslog(Method);

#[derive(Debug)]
enum Method {
    Null,
    /// What the C library does: to `/dev/log`, with the time and the program's name before the line.
    Libc(UnixDatagram),
    /// The line as it is.
    Unix(UnixDatagram, PathBuf),
    Udp(UdpSocket),
}

/// A way to the system log that doesn't exist.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyslogError {
    /// It is none of the known ones.
    #[error("unsupported syslog method '{0}': expected null, libc, unix:FILE or udp:IP:PORT")]
    Unsupported(String),
    /// The system refused a socket.
    #[error("syslog method '{method}': {source}")]
    Socket {
        /// The method.
        method: String,
        /// What the system said.
        source: io::Error,
    },
}

/// The facilities of RFC 5424 by name; the position is the code.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "clock", "ftp", "ntp", "audit", "alert",
    "clock2", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

impl Syslog {
    /// The facility of daemons, as part of a priority.
    pub(super) const DAEMON: u8 = 3 << 3;
    /// The first facility for local use.
    pub(super) const LOCAL0: u8 = 16 << 3;

    /// Messages to the system log are dropped.
    pub fn null() -> Syslog {
        Syslog(Method::Null)
    }

    /// The way called `method`: `null`, `libc`, `unix:FILE` or `udp:IP:PORT`.
    ///
    /// # Errors
    /// If there is no such way. That nobody listens at its end is no error; somebody may come.
    pub fn new(method: &str) -> Result<Syslog, SyslogError> {
        let unsupported = || SyslogError::Unsupported(method.to_owned());
        let open = || -> io::Result<Option<Method>> {
            if method == "null" {
                return Ok(Some(Method::Null));
            }
            if method == "libc" {
                return Ok(Some(Method::Libc(datagram()?)));
            }
            if let Some(path) = method.strip_prefix("unix:") {
                return Ok(Some(Method::Unix(datagram()?, PathBuf::from(path))));
            }
            let Some(address) = method.strip_prefix("udp:").and_then(|to| to.parse::<SocketAddr>().ok()) else {
                return Ok(None);
            };
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.set_nonblocking(true)?;
            socket.connect(address)?;
            Ok(Some(Method::Udp(socket)))
        };
        let method = open().map_err(|source| SyslogError::Socket { method: method.to_owned(), source })?;
        method.map(Syslog).ok_or_else(unsupported)
    }

    /// The facility called `name`, as part of a priority.
    pub(super) fn facility(name: &str) -> Option<u8> {
        let found = FACILITIES.iter().position(|known| !known.is_empty() && known.eq_ignore_ascii_case(name));
        found.and_then(|code| u8::try_from(code << 3).ok())
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.0, Method::Null)
    }

    /// What stands before each line, for people.
    pub(super) fn prefix(&self) -> &'static str {
        match self.0 {
            Method::Null => "none",
            Method::Libc(_) => "<%B> %D{%h %e %T} %A: ",
            Method::Unix(..) | Method::Udp(_) => "<%B>",
        }
    }

    /// Sends the line of a message; each line of it if it has several.
    pub(super) fn send(&self, facility: u8, record: &Record<'_>, text: &str) {
        let priority = facility + record.level.severity();
        for line in text.lines() {
            let _ = match &self.0 {
                Method::Null => Ok(0),
                Method::Libc(socket) => {
                    let time = record.time.with_timezone(&Local).format("%b %e %H:%M:%S");
                    socket.send_to(format!("<{priority}>{time} {}: {line}", record.program).as_bytes(), "/dev/log")
                }
                Method::Unix(socket, path) => socket.send_to(format!("<{priority}>{line}").as_bytes(), path),
                Method::Udp(socket) => socket.send(format!("<{priority}>{line}").as_bytes()),
            };
        }
    }
}

/// A socket that never waits: the system log must not hold up the switch.
fn datagram() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing_subscriber::layer::SubscriberExt;

    use super::super::Vlog;
    use super::*;

    #[test]
    fn the_system_log_gets_priority_and_line() {
        let _turn = super::super::tests::TURN.lock();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let server = UnixDatagram::bind(&path).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut buffer = [0; 1000];
        for (method, receive) in [
            (format!("unix:{}", path.display()), (&|b: &mut [u8]| server.recv(b)) as &dyn Fn(&mut [u8]) -> _),
            (format!("udp:{}", udp.local_addr().unwrap()), &|b: &mut [u8]| udp.recv(b)),
        ] {
            let (vlog, layer) = Vlog::new("test", Syslog::new(&method).unwrap());
            vlog.set("console:off").unwrap();
            vlog.set("PATTERN:syslog:%c|%p|%m").unwrap();
            vlog.set("FACILITY:local1").unwrap();
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                tracing::warn!(target: "bridge", "two\nlines");
            });
            for expected in ["<140>bridge|WARN|two", "<140>lines"] {
                let n: usize = receive(&mut buffer).unwrap();
                assert_eq!(String::from_utf8_lossy(&buffer[..n]), expected, "{method}");
            }
        }
    }

    #[test]
    fn a_way_that_does_not_exist_is_refused() {
        for method in ["", "tcp:127.0.0.1:514", "udp:host:514", "udp:127.0.0.1"] {
            assert!(matches!(Syslog::new(method), Err(SyslogError::Unsupported(_))), "{method}");
        }
        assert!(Syslog::new("null").unwrap().is_null());
    }
}
