//! The eBPF objects: embedded when they were there at build time, or from a folder at run time.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use dpif::{DpifError, Result};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/objects.rs"));
}

/// The environment variable that names a folder with other objects than those embedded.
pub(crate) const FOLDER: &str = "SLUICE_BPF_DIR";

/// An object file of the kernel side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Object {
    /// The datapath's programs.
    Datapath,
    /// What is attached to a port.
    PortEntry,
}

impl Object {
    /// The object's bytes: from `folder` if one is given, else as embedded.
    pub(crate) fn bytes(self, folder: Option<&Path>) -> Result<Cow<'static, [u8]>> {
        let (name, embedded) = match self {
            Self::Datapath => ("tc.o", embedded::TC),
            Self::PortEntry => ("port-entry.o", embedded::PORT_ENTRY),
        };
        if let Some(folder) = folder {
            let path = folder.join(name);
            return match fs::read(&path) {
                Ok(bytes) => Ok(bytes.into()),
                Err(error) => Err(DpifError::Io(format!("can't read eBPF object {}", path.display()), error)),
            };
        }
        embedded.map(Cow::Borrowed).ok_or_else(|| {
            DpifError::Kernel(
                "this build holds no eBPF programs; run `cargo xtask build-ebpf` and build again".to_owned(),
            )
        })
    }
}
