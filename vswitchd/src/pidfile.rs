//! The pidfile: one daemon of a name, and how others find it.
//!
//! It holds the process's number and is locked (by `fcntl`, for writing) as long as the process lives; that is how
//! `ovs-appctl -t NAME` tells a running daemon from the leftover of one that crashed. The file is written and locked
//! under another name first and renamed then, so nobody ever sees it empty or unlocked.
//!
//! A lock of this kind is lost when the process closes *any* descriptor of the file: nothing else in the daemon may
//! open its own pidfile.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// A pidfile, removed when dropped unless another daemon has replaced it.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
    identity: (u64, u64),
    /// Holds the lock.
    _file: File,
}

/// Why there can't be a pidfile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PidfileError {
    /// A daemon that lives has it.
    #[error("{path}: already running as pid {pid}", path = .path.display())]
    Running {
        /// The pidfile.
        path: PathBuf,
        /// The daemon.
        pid: i32,
    },
    /// The system refused.
    #[error("{path}: could not make the pidfile: {source}", path = .path.display())]
    System {
        /// The pidfile.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Pidfile {
    /// Makes the pidfile at `path`. A leftover there is replaced.
    ///
    /// # Errors
    /// If a daemon that lives has it, or it can't be written.
    pub fn create(path: &Path) -> Result<Pidfile, PidfileError> {
        let system = |source: io::Error| PidfileError::System { path: path.to_owned(), source };
        let running = |pid| PidfileError::Running { path: path.to_owned(), pid };
        // All daemons of a name write their file under one name, so its lock lets only one of them go on.
        let mut name = path.as_os_str().to_owned();
        name.push(".tmp");
        let temporary = PathBuf::from(name);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&temporary).map_err(system)?;
        if let Some(pid) = holder(&file).map_err(system)? {
            return Err(running(pid));
        }
        fcntl(&file, FcntlArg::F_SETLK(&whole_file())).map_err(|errno| system(errno.into()))?;
        if let Some(pid) = holder_of(path).map_err(system)? {
            let _ = fs::remove_file(&temporary);
            return Err(running(pid));
        }
        file.set_len(0).map_err(system)?;
        writeln!(file, "{}", std::process::id()).map_err(system)?;
        fs::rename(&temporary, path).map_err(system)?;
        let found = file.metadata().map_err(system)?;
        Ok(Pidfile { path: path.to_owned(), identity: (found.dev(), found.ino()), _file: file })
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path).map(|found| (found.dev(), found.ino()));
        if found.is_ok_and(|now| now == self.identity) {
            // A leftover does no harm: without its lock it is replaced.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The process that has the file at `path` locked, if there is such a file and such a process.
fn holder_of(path: &Path) -> io::Result<Option<i32>> {
    match File::open(path) {
        Ok(file) => holder(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The process, other than this one, that has the file locked.
fn holder(file: impl AsFd) -> io::Result<Option<i32>> {
    let mut lock = whole_file();
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_pid))
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_is_replaced_and_the_file_goes_with_its_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vswitchd.pid");
        fs::write(&path, "999999999\n").unwrap();
        let pidfile = Pidfile::create(&path).unwrap();
        drop(pidfile);
        assert!(!path.exists());
        assert!(!directory.path().join("vswitchd.pid.tmp").exists());
    }

    #[test]
    fn a_file_that_another_daemon_made_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vswitchd.pid");
        let pidfile = Pidfile::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(pidfile);
        assert!(path.exists());
    }

    #[test]
    fn a_directory_that_is_not_there_is_one_clear_line() {
        let error = Pidfile::create(Path::new("/nonexistent/x.pid")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/x.pid: could not make the pidfile: No such file"), "{error}");
    }
}
