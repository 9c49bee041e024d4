//! Programs in the switch's place: one that drops all packets, which shows what it costs to bring them, and one that sends all
//! packets on, which shows the least that a switch in this place could cost.

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use testkit::Netns;

use crate::sender::{IN, OUT};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const TC_ACT_SHOT: i32 = 2;
const BPF_FUNC_REDIRECT: i32 = 23;

/// What is done with each packet.
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    Dropped,
    /// Out of the device that the switch would send it to.
    Redirected,
}

/// A program at the input, gone when this is dropped.
pub(crate) struct Limit<'a> {
    netns: &'a Netns,
    /// Where there is TCX; else the program is a filter.
    link: Option<OwnedFd>,
}

impl<'a> Limit<'a> {
    /// Attaches it: by TCX as the switch's own programs, or as a filter where the kernel has no TCX.
    pub(crate) fn attach(netns: &'a Netns, fate: Fate, bpffs: &Path) -> Result<Self> {
        let indices = netns.run(|| [IN, OUT].map(nix::net::if_::if_nametoindex))?;
        let [input, output] = indices;
        let (input, output) = (input?, output?);
        // r0 = 2; or r1 = output, r2 = 0, call; exit.
        let program = match fate {
            Fate::Dropped => load(&[instruction(0xb7, 0, TC_ACT_SHOT), instruction(0x95, 0, 0)])?,
            Fate::Redirected => load(&[
                instruction(0xb7, 1, output.cast_signed()),
                instruction(0xb7, 2, 0),
                instruction(0x85, 0, BPF_FUNC_REDIRECT),
                instruction(0x95, 0, 0),
            ])?,
        };
        let attributes = [program.as_raw_fd().cast_unsigned(), input, BPF_TCX_INGRESS, 0, 0, 0, 0, 0];
        match netns.run(|| bpf(BPF_LINK_CREATE, &attributes))? {
            Ok(link) => Ok(Self { netns, link: Some(link) }),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let path = bpffs.join("limit");
                pin(&program, &path)?;
                netns.exec(&format!("tc qdisc add dev {IN} clsact"))?;
                let limit = Self { netns, link: None };
                let line = format!("tc filter add dev {IN} ingress bpf direct-action object-pinned {}", path.display());
                let added = netns.exec(&line);
                std::fs::remove_file(&path)?;
                added.map(|_| limit)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Limit<'_> {
    fn drop(&mut self) {
        if self.link.is_none() {
            let _ = self.netns.exec(&format!("tc qdisc del dev {IN} clsact"));
        }
    }
}

/// `struct bpf_insn` of a single register and a constant.
fn instruction(code: u8, register: u8, constant: i32) -> u64 {
    let [a, b, c, d] = constant.to_le_bytes();
    u64::from_le_bytes([code, register, 0, 0, a, b, c, d])
}

fn load(program: &[u64]) -> Result<OwnedFd> {
    let pointer = |pointer: *const u8| {
        let address = pointer as u64;
        [address as u32, (address >> 32) as u32]
    };
    let [instructions, license] = [pointer(program.as_ptr().cast()), pointer(c"GPL".as_ptr().cast())];
    let attributes = [
        BPF_PROG_TYPE_SCHED_CLS,
        program.len() as u32,
        instructions[0],
        instructions[1],
        license[0],
        license[1],
        0,
        0,
        0,
        0,
    ];
    bpf(BPF_PROG_LOAD, &attributes)
}

fn pin(program: &OwnedFd, path: &Path) -> Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let address = path.as_ptr() as u64;
    let attributes = [address as u32, (address >> 32) as u32, program.as_raw_fd().cast_unsigned(), 0];
    // SAFETY: as in `bpf`; the path is alive.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, attributes.as_ptr(), size_of_val(&attributes) as libc::c_uint)
    };
    if done < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// A call of `bpf(2)` that returns a descriptor. The words are the first of `union bpf_attr`; the rest is zero.
fn bpf(command: libc::c_int, attributes: &[u32]) -> Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told, which are those of the live slice; pointers in them are of data that
    // the callers keep alive.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes) as libc::c_uint) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
