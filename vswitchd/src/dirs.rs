//! Where the daemon's own files are.
//!
//! The field's variables `OVS_RUNDIR` and `OVS_LOGDIR` say it. Without them root uses the system's directories, and a
//! user the session's runtime directory; a default directory is made if it isn't there. A file given by a name that
//! doesn't begin with `/` is in the run directory, as the field has it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A directory that can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirError {
    /// Nothing says where it is.
    #[error("no directory for {what}: set {variable}, or say {option}")]
    Unknown {
        /// What should be there.
        what: &'static str,
        /// The variable that would say it.
        variable: &'static str,
        /// The option that makes it unnecessary.
        option: &'static str,
    },
    /// It can't be made.
    #[error("{path}: could not make this directory: {source}", path = .path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The directory of the pidfile and the control socket.
///
/// # Errors
/// If nothing says where it is, or it is a default and can't be made.
pub fn run_dir() -> Result<PathBuf, DirError> {
    let unknown = DirError::Unknown {
        what: "the control socket and the pidfile",
        variable: "OVS_RUNDIR",
        option: "--unixctl with an absolute path",
    };
    match run_dir_of(|name| env::var_os(name), is_root()) {
        Some(Place::Given(path)) => Ok(path),
        Some(Place::Default(path)) => make(path),
        None => Err(unknown),
    }
}

/// The directory of the log file.
///
/// # Errors
/// As [`run_dir`].
pub fn log_dir() -> Result<PathBuf, DirError> {
    match given("OVS_LOGDIR", |name| env::var_os(name)) {
        Some(path) => Ok(path),
        None if is_root() => make(PathBuf::from("/var/log/sluice")),
        None => Err(DirError::Unknown { what: "the log file", variable: "OVS_LOGDIR", option: "--log-file=FILE" }),
    }
}

/// The file called `name`: in the run directory unless it is absolute.
///
/// # Errors
/// If there is no run directory.
pub fn in_run_dir(name: &Path) -> Result<PathBuf, DirError> {
    if name.is_absolute() { Ok(name.to_owned()) } else { Ok(run_dir()?.join(name)) }
}

enum Place {
    Given(PathBuf),
    Default(PathBuf),
}

fn run_dir_of(variable: impl Fn(&str) -> Option<OsString>, root: bool) -> Option<Place> {
    if let Some(path) = given("OVS_RUNDIR", &variable) {
        return Some(Place::Given(path));
    }
    if root {
        return Some(Place::Default(PathBuf::from("/var/run/sluice")));
    }
    given("XDG_RUNTIME_DIR", &variable).map(|path| Place::Default(path.join("sluice")))
}

fn given(name: &str, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    variable(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn make(path: PathBuf) -> Result<PathBuf, DirError> {
    match fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(DirError::Make { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_directory_is_the_given_one_or_the_users() {
        for (ovs, xdg, root, expected) in [
            ("/tmp/x", "/run/user/5", true, Some("/tmp/x")),
            ("", "/run/user/5", true, Some("/var/run/sluice")),
            ("", "/run/user/5", false, Some("/run/user/5/sluice")),
            ("", "", false, None),
        ] {
            let variable = |name: &str| Some(OsString::from(if name == "OVS_RUNDIR" { ovs } else { xdg }));
            let path = run_dir_of(variable, root).map(|place| match place {
                Place::Given(path) | Place::Default(path) => path,
            });
            assert_eq!(path, expected.map(PathBuf::from), "{ovs:?} {xdg:?} {root}");
        }
    }
}
