//! The eBPF datapath: [`dpif::Dpif`] on programs and maps in the kernel.
//!
//! The kernel's side is `datapath-ebpf`; this crate is everything that userspace does with it. What a datapath is made of:
//!
//! * **maps**, pinned, most of them memory-mapped (`pins`, `maps`, `mmap`): the datapath outlives the process, and reading a
//!   counter or writing a flow's slot is a memory access;
//! * **flows** (`slots`, `masks`, `flows`, `grace`): written whole, published by one word, reused after a grace period;
//! * **ports** (`ports`, `rtnl`, `xdp_features`): an entry program on the ingress of each device, another in its XDP hook where that
//!   loses nothing, and a record of what to undo;
//! * **programs** (`programs`, `special`): the general ones, and in front of them one that is made for what the flows need;
//! * **upcalls** (`upcalls`): a ring per handler;
//! * **execution** (`execute`): a TAP device whose receive path runs the program.
//!
//! Opening a datapath makes it, or adopts what an earlier process left (`adopt`): its flows with their statistics, and its
//! ports. Dropping it leaves it in the kernel, where established flows go on; [`Dpif::destroy`](dpif::Dpif::destroy) ends it.
//!
//! Unsafe code is in `sys` (system calls) and `mmap` (shared memory) alone.
#![deny(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adopt;
mod background;
mod compiled;
mod datapath;
mod debug;
mod execute;
mod flows;
#[doc(hidden)]
pub mod fuzzing;
mod grace;
mod groups;
mod kernel;
mod lanes;
mod maps;
mod masks;
mod mmap;
mod netns;
mod object;
mod offload;
mod options;
mod pins;
mod ports;
mod prefetch;
mod programs;
mod rtnl;
mod slots;
mod special;
mod sys;
mod table;
mod transmit;
mod upcalls;
mod xdp_features;

pub use datapath::EbpfDpif;
pub use options::{Attach, Options};
