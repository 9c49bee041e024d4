//! Where a run keeps its files: a folder of its own with the daemon's socket and log, and a BPF file system in it.
//!
//! The daemon's pins are what makes its datapath outlive it. In a BPF file system of the run's own they can't meet those of a
//! real switch on the machine, and all of them go when it is unmounted, however the daemon ended.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What the folders of runs begin with; the number of the process follows.
const PREFIX: &str = "/run/sluice-run-";
/// The folder of a run that is kept.
const KEPT: &str = "/run/sluice-kept";
/// The BPF file system below the folder.
const BPFFS: &str = "bpf";

/// The folder; removed when dropped.
pub(super) struct Place {
    folder: PathBuf,
}

impl Place {
    /// A folder for this process, after removing those of processes that died before they could.
    pub(super) fn new() -> Result<Self> {
        reap();
        Self::at(format!("{PREFIX}{}", process::id()).into())
    }

    /// The one folder of a run that is kept.
    pub(super) fn to_keep() -> Result<Self> {
        Self::nothing_kept()?;
        Self::at(KEPT.into())
    }

    /// An error if an earlier run was kept and not ended.
    pub(super) fn nothing_kept() -> Result<()> {
        if Path::new(KEPT).exists() {
            bail!("an earlier run was kept in {KEPT}: end it by `cargo xtask run --end`");
        }
        Ok(())
    }

    /// The folder that an earlier run has kept, to be removed.
    pub(super) fn kept() -> Option<Self> {
        Path::new(KEPT).exists().then(|| Self { folder: KEPT.into() })
    }

    fn at(folder: PathBuf) -> Result<Self> {
        fs::create_dir(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let place = Self { folder };
        let bpffs = place.bpffs();
        fs::create_dir(&bpffs).with_context(|| format!("can't make {}", bpffs.display()))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), &bpffs, Some("bpf"), flags, Some("mode=0700"))
            .with_context(|| format!("can't mount a BPF file system on {}", bpffs.display()))?;
        Ok(place)
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The BPF file system.
    pub(super) fn bpffs(&self) -> PathBuf {
        self.folder.join(BPFFS)
    }

    /// The daemon's control socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("vswitchd.ctl")
    }

    /// The folders with pins of a datapath: `sluice/VERSION/NAME`.
    pub(super) fn datapaths(&self) -> Vec<PathBuf> {
        let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries(self.bpffs().join("sluice")).flat_map(entries).collect()
    }

    /// Leaves the folder where it is.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// Removes the folders of processes that are gone.
fn reap() {
    let Some((parent, prefix)) = PREFIX.rsplit_once('/') else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&entry.path());
        }
    }
}

fn remove(folder: &Path) {
    // Not mounted is no error here; and never into a file system that is still mounted: the removal stops at it.
    let _ = umount2(&folder.join(BPFFS), MntFlags::MNT_DETACH);
    if let Err(error) = fs::remove_dir_all(folder) {
        eprintln!("can't remove {}: {error}", folder.display());
    }
}
