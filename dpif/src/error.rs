//! What a datapath operation can fail with.

use crate::port::OdpPort;

/// Why a datapath refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DpifError {
    /// The engine can't do this; the text names what. The caller's request was well-formed.
    #[error("{0} is not supported by datapath {1}")]
    Unsupported(String, String),
    /// The request makes no sense, whichever engine; the text says why. A bug of the caller or bad input of the operator.
    #[error("{0}")]
    Invalid(String),
    /// There is no such port.
    #[error("no port {0} in the datapath")]
    NoSuchPort(OdpPort),
    /// There is no such network device where the datapath looks for it.
    #[error("no network device {0} in this network namespace; create it first or check the name")]
    NoSuchDevice(String),
    /// The device or name is in use already.
    #[error("{0}")]
    Exists(String),
    /// There is no such flow.
    #[error("no such flow")]
    NoSuchFlow,
    /// There is no such meter.
    #[error("no meter {0} in the datapath")]
    NoSuchMeter(u32),
    /// A flow with this key is there already.
    #[error("the flow exists already")]
    FlowExists,
    /// A table of the datapath is full; the text says which.
    #[error("{0}")]
    Full(String),
    /// The flow needs another mask, and there are so many already.
    #[error("the datapath's flows have {0} different masks, as many as it takes")]
    TooManyMasks(usize),
    /// Another key has the same digest: the flow can't be installed, packets go on by upcall.
    #[error("the flow's digest collides with another flow's")]
    DigestCollision,
    /// A missing privilege; the text says what needs it.
    #[error("{0}: permission denied; run as root or with CAP_NET_ADMIN and CAP_BPF")]
    Permission(String),
    /// The operating system refused; the text says what was tried on what.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    /// The kernel can't run the datapath; the text says what it lacks.
    #[error("{0}")]
    Kernel(String),
}
