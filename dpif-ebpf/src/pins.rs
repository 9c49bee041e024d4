//! Where a datapath lives while no daemon does: pinned objects in a BPF file system.
//!
//! ```text
//! /sys/fs/bpf/sluice/v11/ovs-system/CONTROL, SLOTS, …    maps
//!                                  ring0 …              rings of the handlers
//!                                  links/3              what is attached to port 3
//! ```
//!
//! The folder carries the version of the memory layout, so a daemon never adopts what it would misread; folders of other
//! versions with the same datapath name are removed, their ports given back. One process at a time owns a datapath: it
//! holds a lock on the folder that the kernel releases when the process ends, however it ends.
//!
//! A datapath is complete when its control block says so, which is written last. What is incomplete was left by a process
//! that died while making it, is attached to nothing, and is made anew.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use datapath_common::maps::{LAYOUT_VERSION, PortRecord, PortState, name};
use dpif::{DpifError, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::kernel::io_error;
use crate::sys::bpf;

/// The folder of links below a datapath's.
const LINKS: &str = "links";

/// The pins of one datapath, locked for this process.
pub(crate) struct Pins {
    name: String,
    folder: PathBuf,
    _lock: Flock<File>,
}

/// Where a link attaches a port's program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hook {
    Tcx,
    Xdp,
}

/// How the names of links in the XDP hook end.
const XDP: &str = "-xdp";

impl Pins {
    /// Opens, or begins, the pins of datapath `name` below `bpffs`, where a BPF file system is mounted if there is none.
    /// `give_back` undoes what ports of another layout have changed about devices, apart from what is attached by links.
    pub(crate) fn open(bpffs: &Path, name: &str, give_back: impl Fn(&[PortRecord])) -> Result<Self> {
        check_name(name)?;
        mount_bpffs(bpffs)?;
        let root = bpffs.join("sluice");
        remove_other_layouts(&root, name, give_back)?;
        let folder = root.join(format!("v{LAYOUT_VERSION}")).join(name);
        let failed = |error| io_error(format!("can't make {}", folder.display()), error);
        loop {
            fs::create_dir_all(folder.join(LINKS)).map_err(failed)?;
            let lock = lock(&folder, name)?;
            // Whoever held the lock before may have removed the folder.
            let same = fs::metadata(&folder).is_ok_and(|now| lock.metadata().is_ok_and(|then| then.ino() == now.ino()));
            if same {
                return Ok(Self { name: name.into(), folder, _lock: lock });
            }
        }
    }

    /// Name of the datapath.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where an object is pinned.
    pub(crate) fn path(&self, object: &str) -> PathBuf {
        self.folder.join(object)
    }

    /// Opens a pinned object.
    pub(crate) fn get(&self, object: &str) -> Result<OwnedFd> {
        let path = self.path(object);
        bpf::open_pin(&path).map_err(|error| io_error(format!("can't open {}", path.display()), error))
    }

    /// Pins a link as that of port `port`.
    pub(crate) fn pin_link(&self, port: u32, hook: Hook, link: &OwnedFd) -> Result<()> {
        let path = self.link_path(port, hook);
        bpf::pin(link.as_fd(), &path).map_err(|error| io_error(format!("can't pin {}", path.display()), error))
    }

    /// The link of a port; `None` if there is none.
    pub(crate) fn link(&self, port: u32, hook: Hook) -> Result<Option<OwnedFd>> {
        let path = self.link_path(port, hook);
        match bpf::open_pin(&path) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(format!("can't open {}", path.display()), error)),
        }
    }

    /// Detaches the link of a port and forgets it. Nothing if there is none.
    pub(crate) fn remove_link(&self, port: u32, hook: Hook) -> Result<()> {
        let path = self.link_path(port, hook);
        detach_and_unlink(&path).map_err(|error| io_error(format!("can't detach {}", path.display()), error))
    }

    /// Ports that have a link, and in which hook.
    pub(crate) fn links(&self) -> Result<Vec<(u32, Hook)>> {
        let folder = self.folder.join(LINKS);
        let entries = fs::read_dir(&folder).map_err(|e| io_error(format!("can't read {}", folder.display()), e))?;
        let parse = |name: &str| match name.strip_suffix(XDP) {
            Some(port) => Some((port.parse().ok()?, Hook::Xdp)),
            None => Some((name.parse().ok()?, Hook::Tcx)),
        };
        Ok(entries.flatten().filter_map(|entry| parse(entry.file_name().to_str()?)).collect())
    }

    /// Removes all objects; the folder stays, for a datapath that is made anew.
    pub(crate) fn clear(&self) -> Result<()> {
        clear(&self.folder).map_err(|error| io_error(format!("can't remove {}", self.folder.display()), error))?;
        let links = self.folder.join(LINKS);
        fs::create_dir_all(&links).map_err(|error| io_error(format!("can't make {}", links.display()), error))
    }

    /// Removes everything, the folder included.
    pub(crate) fn remove(&self) -> Result<()> {
        remove_folder(&self.folder)
            .map_err(|error| io_error(format!("can't remove {}", self.folder.display()), error))?;
        // The folders above go with their last datapath.
        let _ = self.folder.ancestors().skip(1).take(2).try_for_each(fs::remove_dir);
        Ok(())
    }

    fn link_path(&self, port: u32, hook: Hook) -> PathBuf {
        let suffix = if hook == Hook::Xdp { XDP } else { "" };
        self.folder.join(LINKS).join(format!("{port}{suffix}"))
    }
}

/// A name is a file name for a file system that reserves the dot, and fits the control block.
fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '@');
    if name.is_empty() || name.len() > 15 || !name.chars().all(good) {
        return Err(DpifError::Invalid(format!(
            "{name:?} is no name for an eBPF datapath: up to 15 letters, digits, '-', '_' and '@' are"
        )));
    }
    Ok(())
}

fn mount_bpffs(path: &Path) -> Result<()> {
    let failed = |error: io::Error| io_error(format!("can't mount a BPF file system on {}", path.display()), error);
    if !path.exists() {
        fs::create_dir_all(path).map_err(failed)?;
    }
    if statfs(path).map_err(|error| failed(error.into()))?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700")).map_err(|error| failed(error.into()))
}

fn lock(folder: &Path, name: &str) -> Result<Flock<File>> {
    let file = File::open(folder).map_err(|error| io_error(format!("can't open {}", folder.display()), error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => DpifError::Exists(format!(
            "datapath {name} is in use by another process (it holds a lock on {}); stop that one first",
            folder.display()
        )),
        errno => io_error(format!("can't lock {}", folder.display()), errno.into()),
    })
}

/// Removes datapaths of this name whose memory this version can't read, after their ports were given back: what a port's record looks
/// like doesn't change with the rest.
fn remove_other_layouts(root: &Path, name: &str, give_back: impl Fn(&[PortRecord])) -> Result<()> {
    let current = format!("v{LAYOUT_VERSION}");
    for version in fs::read_dir(root).into_iter().flatten().flatten() {
        let folder = version.path().join(name);
        if version.file_name().to_str() == Some(&current) || !folder.is_dir() {
            continue;
        }
        let _lock = lock(&folder, name)?;
        tracing::warn!("removing datapath {}: its memory layout is another version's", folder.display());
        let failed = |error| io_error(format!("can't remove {}", folder.display()), error);
        detach_all(&folder.join(LINKS)).map_err(failed)?;
        // As long as the records are there, whoever dies here leaves it to the next.
        give_back(&records(&folder.join(name::PORT_RECORDS)));
        remove_folder(&folder).map_err(failed)?;
        let _ = fs::remove_dir(version.path());
    }
    Ok(())
}

/// Detaches what is pinned in a folder of links; one that is not there has none.
fn detach_all(links: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(links) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for link in entries {
        detach_and_unlink(&link?.path())?;
    }
    Ok(())
}

/// The records of ports in a pinned map; none where they are of another size.
fn records(path: &Path) -> Vec<PortRecord> {
    let map = MapData::from_pin(path).ok();
    let Some((map, info)) = map.and_then(|map| map.info().ok().map(|info| (map, info))) else { return Vec::new() };
    if info.value_size() as usize != size_of::<PortRecord>() {
        return Vec::new();
    }
    let record = |number: u32| bpf::map_lookup::<u32, PortRecord>(map.fd().as_fd(), &number).ok().flatten();
    (0..info.max_entries()).filter_map(record).filter(|record| record.state != PortState::Free as u32).collect()
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    clear(folder)?;
    fs::remove_dir(folder)
}

/// Empties a folder; links are detached first, so that nothing stays attached because someone looks at it.
fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            detach_all(&path)?;
            fs::remove_dir(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn detach_and_unlink(path: &Path) -> io::Result<()> {
    match bpf::open_pin(path) {
        Ok(link) => {
            // A link whose device is gone says so; its pin goes all the same.
            if let Err(error) = bpf::link_detach(link.as_fd()) {
                tracing::debug!("detaching {}: {error}", path.display());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_not_be_pinned_are_refused() {
        for name in ["", "a/b", "..", "ovs.system", "a-name-of-16-char", "ö"] {
            assert!(matches!(check_name(name), Err(DpifError::Invalid(_))), "{name:?}");
        }
        for name in ["ovs-system", "ovs@ebpf", "a"] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }
}
