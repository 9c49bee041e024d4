//! The socket's file: taken if nobody listens on it, given back when the daemon ends.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

/// Why there can't be a control socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Somebody listens there.
    #[error("{path}: a running process listens on this control socket; stop it or choose another with --unixctl", path = .0.display())]
    InUse(PathBuf),
    /// Something else has this name.
    #[error("{path}: exists and is not a socket; choose another path with --unixctl", path = .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{path}: could not initialize control socket: {source}", path = .path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket's file, removed when dropped unless another daemon has replaced it meanwhile.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nothing can be done if it fails, and the next daemon finds a dead socket and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on `path`, replacing a socket there that nobody listens on. The file is for its owner and group only.
pub(super) fn listen_on(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let system = |source: io::Error| SocketError::System { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) if somebody_listens(path).map_err(system)? => return Err(SocketError::InUse(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(system)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(system(error)),
    }
    let listener = make(path).map_err(system)?;
    let identity = identity(path).map_err(system)?;
    Ok((listener, SocketFile { path: path.to_owned(), identity }))
}

fn make(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the socket's mode (less the umask); set before, it is never open to others.
    fchmod(&fd, Mode::from_bits_truncate(0o770))?;
    let short = ShortPath::of(path)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(&short.path)?)?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(UnixListener::from(fd))
}

fn somebody_listens(path: &Path) -> io::Result<bool> {
    let short = ShortPath::of(path)?;
    // Does not wait: a listener that is busy still listens.
    match mio::net::UnixStream::connect(&short.path) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Ok(true),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(false),
            _ => Err(error),
        },
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// A path as it fits into a socket address, which holds 107 bytes: one that is longer goes through its directory's file
/// descriptor.
pub(super) struct ShortPath {
    pub(super) path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl ShortPath {
    pub(super) fn of(path: &Path) -> io::Result<ShortPath> {
        if path.as_os_str().len() < 108 {
            return Ok(ShortPath { path: path.to_owned(), _directory: None });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidFilename));
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(directory, flags, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(ShortPath { path, _directory: Some(directory) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ctl");
        let (listener, file) = listen_on(&path).unwrap();
        let error = listen_on(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        assert!(UnixStream::connect(&path).is_ok());
        // As after a crash: nobody listens, the file is still there.
        drop(listener);
        std::mem::forget(file);
        let (_listener, file) = listen_on(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_a_socket_is_never_removed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(listen_on(file.path()), Err(SocketError::NotASocket(_))));
        assert!(file.path().exists());
    }

    #[test]
    fn a_socket_that_another_daemon_made_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ctl");
        let (_listener, file) = listen_on(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let (_other, other_file) = listen_on(&path).unwrap();
        drop(file);
        assert!(path.exists());
        drop(other_file);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_longer_than_an_address_works() {
        let directory = tempfile::tempdir().unwrap();
        let long = directory.path().join("d".repeat(150));
        fs::create_dir(&long).unwrap();
        let path = long.join("ctl");
        let (_listener, _file) = listen_on(&path).unwrap();
        assert!(matches!(listen_on(&path), Err(SocketError::InUse(_))));
    }

    #[test]
    fn a_directory_that_is_not_there_is_one_clear_line() {
        let error = listen_on(Path::new("/nonexistent/ctl")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/ctl: could not initialize control socket: No such file"), "{error}");
    }
}
