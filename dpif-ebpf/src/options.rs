//! How an eBPF datapath is opened.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use datapath_common::maps::DEFAULT_SLOTS;

use crate::object;

/// The environment variable that names the BPF file system for the pins.
const BPFFS: &str = "SLUICE_BPFFS";

/// Options of [`EbpfDpif::open`](crate::EbpfDpif::open).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where the BPF file system is (mounted if it isn't): `SLUICE_BPFFS` or `/sys/fs/bpf`. A process in a mount namespace of
    /// its own (`ip netns exec` makes one) needs one that outlives it, or the datapath ends with it.
    pub bpffs: PathBuf,
    /// A folder with `tc.o` and `port-entry.o` to use instead of the embedded ones: `SLUICE_BPF_DIR`.
    pub objects: Option<PathBuf>,
    /// Flow slots of a datapath that is made; one that is adopted keeps its own.
    pub slots: usize,
    /// How programs are attached.
    pub attach: Attach,
    /// Load the programs with their debugging output, sent to `tracing`. Nothing is specialised then: what runs says all.
    pub debug: bool,
    /// Put a program in front that is specialised in what the flows need.
    pub specialise: bool,
    /// For how long the flows must have needed the same before a program is made for it.
    pub hold: Duration,
}

/// How programs are attached to devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Attach {
    /// By TCX links (Linux 6.6), by clsact filters where the kernel has none.
    #[default]
    Auto,
    /// By clsact filters.
    Clsact,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bpffs: env::var_os(BPFFS).map_or_else(|| "/sys/fs/bpf".into(), PathBuf::from),
            objects: env::var_os(object::FOLDER).map(PathBuf::from),
            slots: DEFAULT_SLOTS,
            attach: Attach::Auto,
            debug: false,
            specialise: true,
            hold: Duration::from_secs(2),
        }
    }
}
